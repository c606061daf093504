//! The one device: an sm_80 with an A100's limits.

use std::env;
use std::ffi::{c_char, c_int, c_uint};

use super::abi::{Out, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Handle};

/// The driver version that is reported, as CUDA writes it: 13.2, the newest whose PTX was tried.
pub const VERSION: c_int = 13_020;
/// Threads of a block, at most.
pub const BLOCK_THREADS: u32 = 1024;
/// Threads of a block along x, y and z, at most.
pub const BLOCK: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid along x, y and z, at most.
pub const GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Shared memory of a block without opting in.
pub const SHARED: u32 = 48 << 10;
/// Shared memory of a block with opting in.
pub const SHARED_OPT_IN: u32 = 163 << 10;
/// Shared memory of a multiprocessor.
pub const SHARED_PER_SM: u32 = 164 << 10;
/// Shared memory of each block that the system keeps.
pub const SHARED_RESERVED: u32 = 1 << 10;
/// Multiprocessors.
pub const MULTIPROCESSORS: u32 = 108;
/// Threads of a multiprocessor.
pub const THREADS_PER_SM: u32 = 2048;
/// Blocks of a multiprocessor.
pub const BLOCKS_PER_SM: u32 = 32;
/// The device's only ordinal.
pub const ORDINAL: c_int = 0;
/// The environment variable that sets the capacity of the memory, in bytes or with a K, M or G.
pub const CAPACITY: &str = "CUDA_EMU_MEMORY";
/// The capacity where nothing is said.
const DEFAULT_CAPACITY: u64 = 16 << 30;
/// The handle of the device's default memory pool.
pub const POOL: Handle = 0x0c0d_a100_0000_0010;

/// The capacity that the environment asks for.
pub fn capacity() -> u64 {
    env::var(CAPACITY).ok().and_then(|text| parse(&text)).unwrap_or(DEFAULT_CAPACITY)
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim().to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Refuses any device but the one there is.
pub fn check(device: c_int) -> Answer {
    if device == ORDINAL { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

/// An attribute's value. What the list lacks, the device does not have: 0.
fn attribute(attribute: c_int) -> Answer<c_int> {
    Ok(match attribute {
        1 => BLOCK_THREADS as c_int,
        2..=4 => BLOCK[attribute as usize - 2] as c_int,
        5..=7 => GRID[attribute as usize - 5] as c_int,
        8 => SHARED as c_int,
        9 => 64 << 10,       // constant memory
        10 => 32,            // warp
        11 => c_int::MAX,    // pitch
        12 | 82 => 64 << 10, // registers per block, per multiprocessor
        13 => 1_410_000,     // kHz
        14 => 512,           // texture alignment
        15 => 1,             // overlap of copy and kernel
        16 => MULTIPROCESSORS as c_int,
        30 => 512,       // surface alignment
        31 => 1,         // concurrent kernels
        36 => 1_215_000, // memory, kHz
        37 => 5120,      // memory, bits
        38 => 40 << 20,  // L2
        39 => THREADS_PER_SM as c_int,
        40 => 3,  // copy engines
        41 => 1,  // unified addressing
        51 => 32, // texture pitch alignment
        75 => 8,  // compute capability
        76 => 0,
        78..=80 => 1, // stream priorities, L1 for globals and locals
        81 => SHARED_PER_SM as c_int,
        87 => 2, // single to double
        90 => 1, // preemption
        97 => SHARED_OPT_IN as c_int,
        99 => 1, // host registration
        106 => BLOCKS_PER_SM as c_int,
        111 => SHARED_RESERVED as c_int,
        115 => 1,              // memory pools
        130 | 131 | 134 => -1, // NUMA
        _ if (1..148).contains(&attribute) => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

driver_api! {
    /// Initialises the driver.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        state::lock().initialized = true;
        Ok(())
    }

    /// CUDA's version, 1000 × major + 10 × minor.
    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(VERSION)
    }

    /// A device by its ordinal.
    fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) {
        state::initialized()?;
        check(ordinal)?;
        device.set(ordinal)
    }

    /// How many devices there are: one.
    fn cuDeviceGetCount(count: Out<c_int>) {
        state::initialized()?;
        count.set(1)
    }

    /// The device's name.
    fn cuDeviceGetName(name: Out<c_char>, capacity: c_int, device: c_int) {
        state::initialized()?;
        check(device)?;
        name.fill("cuda-emu (PTX interpreter)", usize::try_from(capacity).unwrap_or(0))
    }

    /// One of the device's attributes.
    fn cuDeviceGetAttribute(value: Out<c_int>, which: c_int, device: c_int) {
        state::initialized()?;
        check(device)?;
        value.set(attribute(which)?)
    }

    /// The device's identity.
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: c_int) {
        state::initialized()?;
        check(device)?;
        uuid.set(*b"cuda-emu-sm_80-0")
    }

    /// The device's identity.
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) {
        state::initialized()?;
        check(device)?;
        uuid.set(*b"cuda-emu-sm_80-0")
    }

    /// The capacity of the device's memory.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) {
        check(device)?;
        bytes.set(state::ready()?.capacity as usize)
    }

    /// The compute capability: 8.0.
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) {
        state::initialized()?;
        check(device)?;
        major.set(8)?;
        minor.set(0)
    }

    /// Whether a device reaches another's memory: there is no other.
    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: c_int, peer: c_int) {
        state::initialized()?;
        check(device)?;
        check(peer)?;
        can.set(0)
    }

    /// The pool that asynchronous allocations come from.
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: c_int) {
        state::initialized()?;
        check(device)?;
        pool.set(POOL)
    }

    /// The pool that asynchronous allocations come from.
    fn cuDeviceGetMemPool(pool: Out<Handle>, device: c_int) {
        state::initialized()?;
        check(device)?;
        pool.set(POOL)
    }

    /// Chooses the pool that asynchronous allocations come from: there is one.
    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        state::initialized()?;
        check(device)?;
        if pool == POOL { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_is_a_number_with_a_unit() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse(" 3 g "), Some(3 << 30));
        assert_eq!(parse("512M"), Some(512 << 20));
        assert_eq!(parse("x"), None);
        assert_eq!(parse("7T"), None);
        assert_eq!(parse("99999999999999G"), None);
    }
}
