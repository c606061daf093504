//! Memory: what is allocated on the device and how much is left, pinned host memory, and whose a pointer is.

use std::alloc::{self, Layout};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::MutexGuard;

use super::abi::{Host, In, Out, driver_api};
use super::device::{CAPACITY, ORDINAL, POOL};
use super::error::{Answer, Code};
use super::state::{self, Block, Handle, Pinned, State};
use super::work;

/// What an allocation occupies is a multiple of this.
const GRANULE: u64 = 512;
/// The alignment of pinned memory.
const PAGE: usize = 4096;
/// `CU_MEMORYTYPE_HOST` and `CU_MEMORYTYPE_DEVICE`.
const HOST: c_uint = 1;
const DEVICE: c_uint = 2;

/// The bytes of the capacity that an allocation takes.
pub fn rounded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX)
}

fn allocate(out: Out<u64>, bytes: usize, call: &str) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    out.set(0)?;
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let bytes = bytes as u64;
    let (capacity, used) = (state.capacity, state.used);
    let refuse = |mut state: MutexGuard<'_, State>| {
        let free = capacity.saturating_sub(used);
        let report = format!(
            "{call}: {bytes} bytes are asked for; {free} of {capacity} are free ({CAPACITY} sets the capacity)"
        );
        Err(state.refuse(Code::OUT_OF_MEMORY, report))
    };
    let Some(taken) = used.checked_add(rounded(bytes)).filter(|&taken| taken <= capacity) else {
        return refuse(state);
    };
    state.used = taken;
    state.allocations += 1;
    let id = state.allocations;
    let name = format!("{call}#{id}");
    drop(state);
    // Whatever the capacity, the host must hold it.
    let made = work::device().try_alloc(bytes, &name);
    let mut state = state::lock();
    let Ok(addr) = made else {
        state.used -= rounded(bytes);
        return refuse(state);
    };
    state.peak = state.peak.max(state.used);
    state.blocks.insert(addr, Block { ctx, bytes, name, id });
    drop(state);
    out.set(addr)
}

fn free(addr: u64, call: &str) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.current()?;
    let Some(block) = state.blocks.remove(&addr) else {
        drop(state);
        // The address space remembers what it freed, and says what the address is near.
        let why = work::device().free(addr).err().map_or("not allocated".into(), |e| e.to_string());
        return Err(state::lock().refuse(Code::INVALID_VALUE, format!("{call}({addr:#x}): {why}")));
    };
    state.used -= rounded(block.bytes);
    drop(state);
    let freed = work::device().free(addr);
    let mut state = state::lock();
    freed.map_err(|error| state.refuse(Code::INVALID_VALUE, format!("{call}({addr:#x}): {error}")))?;
    state.sticky(ctx)
}

/// An asynchronous allocation cannot be captured: its address would have to be the graph's.
fn refuse_capture(stream: Handle) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy().or_else(|_| state.current())?;
    let stream = state.stream(ctx, stream)?;
    state.wait_for(stream)
}

fn layout(bytes: usize) -> Answer<Layout> {
    Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| Code::OUT_OF_MEMORY)
}

fn allocate_host(out: Out<Host>, bytes: usize, flags: c_uint) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    state.unsafe_call()?;
    if bytes == 0 || flags > 7 {
        return Err(Code::INVALID_VALUE);
    }
    out.set(Host::new(std::ptr::null_mut()))?;
    // SAFETY: the layout's size is at least 1.
    let address = unsafe { alloc::alloc_zeroed(layout(bytes)?) };
    if address.is_null() {
        return Err(Code::OUT_OF_MEMORY);
    }
    state.pinned.insert(address as u64, Pinned { ctx, bytes, flags, owned: true });
    out.set(Host::new(address.cast()))
}

/// Gives back memory that `allocate_host` made.
pub fn free_host(addr: u64, bytes: usize) {
    if let Ok(layout) = layout(bytes) {
        // SAFETY: the table held this address with these bytes, so it came from `alloc_zeroed` with this
        // layout, and whoever removed it from the table is the only one to come here with it.
        unsafe { alloc::dealloc(addr as *mut u8, layout) };
    }
}

/// A pool's handle must be the one pool's.
fn check_pool(pool: Handle) -> Answer {
    state::initialized()?;
    if pool == POOL { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

/// What can be told of a pointer.
fn attribute(state: &State, data: Host, which: c_uint, addr: u64) -> Answer {
    let device = state.block_at(addr);
    let host = state.pinned_at(addr);
    let (base, bytes, ctx, id) = match (device, host) {
        (Some((base, block)), _) => (base, block.bytes, block.ctx, block.id),
        (_, Some((base, pinned))) => (base, pinned.bytes as u64, pinned.ctx, base),
        _ => return Err(Code::INVALID_VALUE),
    };
    match which {
        1 => data.place::<Handle>().set(ctx),
        2 => data.place::<c_uint>().set(if device.is_some() { DEVICE } else { HOST }),
        3 if device.is_some() => data.place::<u64>().set(addr),
        4 if device.is_none() => data.place::<u64>().set(addr),
        6 | 8 | 10 | 14 | 15 | 21 => data.place::<c_uint>().set(0),
        7 => data.place::<u64>().set(id),
        9 => data.place::<c_int>().set(ORDINAL),
        11 | 19 => data.place::<u64>().set(base),
        12 | 18 => data.place::<u64>().set(bytes),
        13 => data.place::<c_int>().set(1),
        16 => data.place::<c_int>().set(3),
        17 if device.is_some_and(|(_, block)| block.name.starts_with("cuMemAllocAsync")) => {
            data.place::<Handle>().set(POOL)
        }
        17 => data.place::<Handle>().set(0),
        _ => Err(Code::INVALID_VALUE),
    }
}

driver_api! {
    /// Allocates device memory.
    fn cuMemAlloc_v2(out: Out<u64>, bytes: usize) {
        state::ready()?.unsafe_call()?;
        allocate(out, bytes, "cuMemAlloc")
    }

    /// Frees device memory.
    fn cuMemFree_v2(addr: u64) {
        state::ready()?.unsafe_call()?;
        if addr == 0 { Ok(()) } else { free(addr, "cuMemFree") }
    }

    /// Allocates device memory in a stream's order.
    fn cuMemAllocAsync(out: Out<u64>, bytes: usize, stream: Handle) {
        refuse_capture(stream)?;
        allocate(out, bytes, "cuMemAllocAsync")
    }

    /// Allocates device memory from a pool, of which there is one.
    fn cuMemAllocFromPoolAsync(out: Out<u64>, bytes: usize, pool: Handle, stream: Handle) {
        check_pool(pool)?;
        refuse_capture(stream)?;
        allocate(out, bytes, "cuMemAllocAsync")
    }

    /// Frees device memory in a stream's order.
    fn cuMemFreeAsync(addr: u64, stream: Handle) {
        refuse_capture(stream)?;
        free(addr, "cuMemFreeAsync")
    }

    /// Managed memory is not supported.
    fn cuMemAllocManaged(_out: Out<u64>, _bytes: usize, _flags: c_uint) {
        Err(Code::NOT_SUPPORTED)
    }

    /// The free and the total bytes.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let state = state::ready()?;
        state.healthy()?;
        free.offer(state.capacity.saturating_sub(state.used) as usize);
        total.offer(state.capacity as usize);
        Ok(())
    }

    /// The allocation that holds an address.
    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, addr: u64) {
        let state = state::ready()?;
        state.healthy()?;
        let (start, block) = state.block_at(addr).ok_or(Code::NOT_FOUND)?;
        base.offer(start);
        bytes.offer(block.bytes as usize);
        Ok(())
    }

    /// Allocates host memory.
    fn cuMemHostAlloc(out: Out<Host>, bytes: usize, flags: c_uint) {
        allocate_host(out, bytes, flags)
    }

    /// Allocates host memory.
    fn cuMemAllocHost_v2(out: Out<Host>, bytes: usize) {
        allocate_host(out, bytes, 0)
    }

    /// Frees host memory that the driver allocated.
    fn cuMemFreeHost(host: Host) {
        let mut state = state::ready()?;
        state.current()?;
        state.unsafe_call()?;
        let addr = host.address();
        if state.pinned.get(&addr).is_none_or(|pinned| !pinned.owned) {
            return Err(Code::INVALID_VALUE);
        }
        if let Some(pinned) = state.pinned.remove(&addr) {
            free_host(addr, pinned.bytes);
        }
        Ok(())
    }

    /// Registers host memory as pinned.
    fn cuMemHostRegister_v2(host: Host, bytes: usize, flags: c_uint) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let addr = host.address();
        let last = addr.checked_add(bytes as u64).and_then(|end| end.checked_sub(1)).ok_or(Code::INVALID_VALUE)?;
        if addr == 0 || bytes == 0 || state.on_device(host) {
            return Err(Code::INVALID_VALUE);
        }
        if state.pinned_at(addr).is_some() || state.pinned_at(last).is_some() {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        state.pinned.insert(addr, Pinned { ctx, bytes, flags, owned: false });
        Ok(())
    }

    /// Takes back a registration.
    fn cuMemHostUnregister(host: Host) {
        let mut state = state::ready()?;
        state.current()?;
        let addr = host.address();
        if state.pinned.get(&addr).is_none_or(|pinned| pinned.owned) {
            return Err(Code::HOST_MEMORY_NOT_REGISTERED);
        }
        state.pinned.remove(&addr);
        Ok(())
    }

    /// Host memory is not mapped into the device.
    fn cuMemHostGetDevicePointer_v2(_out: Out<u64>, _host: Host, _flags: c_uint) {
        Err(Code::NOT_SUPPORTED)
    }

    /// The flags that host memory was allocated with.
    fn cuMemHostGetFlags(flags: Out<c_uint>, host: Host) {
        let state = state::ready()?;
        flags.set(state.pinned_at(host.address()).ok_or(Code::INVALID_VALUE)?.1.flags)
    }

    /// One attribute of a pointer.
    fn cuPointerGetAttribute(data: Host, which: c_uint, addr: u64) {
        let state = state::ready()?;
        state.current()?;
        attribute(&state, data, which, addr)
    }

    /// Several attributes of a pointer; of one that is unknown, zeros.
    fn cuPointerGetAttributes(count: c_uint, which: In<c_uint>, data: In<*mut c_void>, addr: u64) {
        let state = state::ready()?;
        state.current()?;
        for index in 0..count as usize {
            let (which, place) = (which.at(index)?, Host::new(data.at(index)?));
            if attribute(&state, place, which, addr).is_err() {
                match which {
                    2 | 6 | 8 | 10 | 13..=16 | 21 => place.place::<c_uint>().set(0)?,
                    9 => place.place::<c_int>().set(-2)?,
                    _ => place.place::<u64>().set(0)?,
                }
            }
        }
        Ok(())
    }

    /// Gives a pool's unused memory back: it keeps none.
    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        check_pool(pool)
    }

    /// Sets a pool's attribute; nothing here depends on it.
    fn cuMemPoolSetAttribute(pool: Handle, which: c_int, _value: Host) {
        check_pool(pool)?;
        if (1..=8).contains(&which) { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    /// A pool's attribute.
    fn cuMemPoolGetAttribute(pool: Handle, which: c_int, value: Host) {
        check_pool(pool)?;
        let state = state::ready()?;
        match which {
            1..=3 => value.place::<c_int>().set(1),
            4 => value.place::<u64>().set(0),
            5 | 7 => value.place::<u64>().set(state.used),
            6 | 8 => value.place::<u64>().set(state.peak),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Other pools are not supported.
    fn cuMemPoolCreate(_pool: Out<Handle>, _properties: In<u8>) {
        Err(Code::NOT_SUPPORTED)
    }

    /// The one pool is not destroyed.
    fn cuMemPoolDestroy(_pool: Handle) {
        Err(Code::INVALID_VALUE)
    }
}
