//! Copies and fills. Those without a stream use the legacy one, and none may run while a capture forbids it.

use super::abi::{Host, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Handle};
use super::work::{self, Op};

/// Whether a copy without a stream may run now.
fn blocking() -> Answer {
    state::ready()?.unsafe_call()
}

/// Refuses device memory where host memory is meant: following such an address would fault.
fn host(address: Host, bytes: usize, what: &str) -> Answer {
    let mut state = state::ready()?;
    if bytes > 0 && state.on_device(address) {
        let report = format!("{what}: {:#x} is device memory, not the host's", address.address());
        return Err(state.refuse(Code::INVALID_VALUE, report));
    }
    if bytes > 0 && address.pointer().is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

fn to_device(to: u64, from: Host, bytes: usize, stream: Handle) -> Answer {
    host(from, bytes, "the source of a copy to the device")?;
    work::submit(stream, Op::ToDevice { to, from, bytes })
}

fn to_host(to: Host, from: u64, bytes: usize, stream: Handle) -> Answer {
    host(to, bytes, "the target of a copy to the host")?;
    work::submit(stream, Op::ToHost { to, from, bytes })
}

fn on_device(to: u64, from: u64, bytes: usize, stream: Handle) -> Answer {
    work::submit(stream, Op::OnDevice { to, from, bytes })
}

/// Copies between addresses of either kind; each tells by its value.
fn any(to: u64, from: u64, bytes: usize, stream: Handle) -> Answer {
    let (state, at) = (state::ready()?, |addr| Host::new(addr as *mut _));
    let (to_is_device, from_is_device) = (state.on_device(at(to)), state.on_device(at(from)));
    drop(state);
    match (to_is_device, from_is_device) {
        (true, true) => on_device(to, from, bytes, stream),
        (true, false) => to_device(to, at(from), bytes, stream),
        (false, true) => to_host(at(to), from, bytes, stream),
        (false, false) => Err(Code::INVALID_VALUE),
    }
}

fn fill(to: u64, pattern: &[u8], count: usize, stream: Handle) -> Answer {
    if !to.is_multiple_of(pattern.len() as u64) || count.checked_mul(pattern.len()).is_none() {
        return Err(Code::INVALID_VALUE);
    }
    work::submit(stream, Op::Fill { to, pattern: pattern.into(), count })
}

driver_api! {
    /// Copies from the host.
    fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) {
        blocking()?;
        to_device(to, from, bytes, 0)
    }

    /// Copies from the host.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, stream: Handle) {
        to_device(to, from, bytes, stream)
    }

    /// Copies to the host.
    fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) {
        blocking()?;
        to_host(to, from, bytes, 0)
    }

    /// Copies to the host.
    fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, stream: Handle) {
        to_host(to, from, bytes, stream)
    }

    /// Copies on the device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        blocking()?;
        on_device(to, from, bytes, 0)
    }

    /// Copies on the device.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        on_device(to, from, bytes, stream)
    }

    /// Copies between contexts, which share the one device.
    fn cuMemcpyPeerAsync(to: u64, to_ctx: Handle, from: u64, from_ctx: Handle, bytes: usize, stream: Handle) {
        let mut state = state::ready()?;
        state.context(to_ctx)?;
        state.context(from_ctx)?;
        drop(state);
        on_device(to, from, bytes, stream)
    }

    /// Copies, whichever side each address is on.
    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        blocking()?;
        any(to, from, bytes, 0)
    }

    /// Copies, whichever side each address is on.
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) {
        any(to, from, bytes, stream)
    }

    /// Repeats a byte.
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        blocking()?;
        fill(to, &[value], count, 0)
    }

    /// Repeats two bytes.
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        blocking()?;
        fill(to, &value.to_ne_bytes(), count, 0)
    }

    /// Repeats four bytes.
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        blocking()?;
        fill(to, &value.to_ne_bytes(), count, 0)
    }

    /// Repeats a byte.
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) {
        fill(to, &[value], count, stream)
    }

    /// Repeats two bytes.
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) {
        fill(to, &value.to_ne_bytes(), count, stream)
    }

    /// Repeats four bytes.
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) {
        fill(to, &value.to_ne_bytes(), count, stream)
    }
}
