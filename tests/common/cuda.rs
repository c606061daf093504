//! The CUDA device that tests use: the emulator, or with `ASASR_TEST_DEVICE=cuda` the machine's GPU.

use asasr_engine::Error;
use asasr_engine::engine::Device;

/// The device, or `None`, said aloud, where this machine has no compiler for its kernels. Where CI says that it must have
/// one that is a failure.
pub fn device() -> Option<Device> {
    there(match std::env::var("ASASR_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::cuda(0),
        _ => Device::emu(),
    })
}

/// The emulator, whatever the other tests use.
pub fn emulator() -> Option<Device> {
    there(Device::emu())
}

fn there(opened: asasr_engine::Result<Device>) -> Option<Device> {
    match opened {
        Ok(device) => Some(device),
        Err(e @ Error::Nvrtc { .. }) if std::env::var_os("CI").is_none() => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}
