//! `--device`.

use asasr_engine::engine::Device;
use asasr_engine::engine::cuda::Driver;
use asasr_engine::engine::cuda::library::find_driver;
use asasr_engine::{Error, Result};

/// Where to compute.
#[derive(clap::Args)]
pub struct Choice {
    /// Where to compute: auto, cpu, cuda, cuda:N, or emu, which interprets the CUDA kernels on the CPU under checks
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
}

impl Choice {
    /// What to plan for: a GPU may be one that this machine has not.
    pub fn open_to_plan(&self) -> Result<Device> {
        let absent = self.device.starts_with("cuda") && find_driver(Driver::Nvidia).is_err();
        if absent { Ok(Device::absent_gpu()) } else { self.open() }
    }

    /// Opens it. `auto` is the first GPU where there is one, else the CPU; never the emulator.
    pub fn open(&self) -> Result<Device> {
        match self.device.as_str() {
            "auto" if find_driver(Driver::Nvidia).is_ok() => {
                // Where there is a GPU, the CPU is never taken without a word.
                Ok(Device::cuda(0).unwrap_or_else(|e| {
                    eprintln!("--device auto computes on the CPU: {e}");
                    Device::cpu()
                }))
            }
            "auto" | "cpu" => Ok(Device::cpu()),
            "cuda" => Device::cuda(0),
            "emu" => Device::emu(),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Device::cuda(ordinal),
                _ => Err(Error::Usage(format!(
                    "--device {other}: wanted auto, cpu, cuda, cuda:N (N counted from 0) or emu"
                ))),
            },
        }
    }
}
