//! Kernels: what they ask for, how much dynamic shared memory they were allowed, and how many fit the device.

use std::ffi::{CString, c_char, c_int, c_uint};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::abi::{In, Out, driver_api};
use super::core;
use super::device::{
    BLOCK_THREADS, BLOCKS_PER_SM, MULTIPROCESSORS, SHARED, SHARED_OPT_IN, SHARED_PER_SM, SHARED_RESERVED,
    THREADS_PER_SM, check,
};
use super::error::{Answer, Code};
use super::state::{self, Handle};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES` and `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
const MAX_DYNAMIC_SHARED: c_int = 8;
const CARVEOUT: c_int = 9;
/// Threads of a warp: what a block occupies is a multiple of it.
const WARP: u32 = 32;

/// A kernel of a loaded module.
pub struct Function {
    pub ctx: Handle,
    pub module_handle: Handle,
    pub module: Arc<core::Module>,
    pub name: String,
    c_name: CString,
    max_dynamic: AtomicU32,
    carveout: AtomicI32,
}

impl Function {
    /// A kernel that the module has.
    pub fn new(ctx: Handle, module_handle: Handle, module: Arc<core::Module>, name: &str) -> Answer<Self> {
        let c_name = CString::new(name).map_err(|_| Code::INVALID_VALUE)?;
        let shared = module.kernel(name).ok_or(Code::NOT_FOUND)?.static_shared();
        Ok(Self {
            ctx,
            module_handle,
            module,
            name: name.into(),
            c_name,
            max_dynamic: AtomicU32::new(SHARED.saturating_sub(shared)),
            carveout: AtomicI32::new(-1),
        })
    }

    /// The kernel's signature.
    pub fn kernel(&self) -> Answer<&core::Kernel> {
        self.module.kernel(&self.name).ok_or(Code::NOT_FOUND)
    }

    /// The dynamic shared memory that a launch may ask for.
    pub fn max_dynamic(&self) -> u32 {
        self.max_dynamic.load(Ordering::Relaxed)
    }

    /// The threads that a block of this kernel may have.
    pub fn max_threads(&self) -> Answer<u32> {
        Ok(self.kernel()?.max_threads().min(BLOCK_THREADS))
    }

    /// How many blocks fit a multiprocessor.
    fn blocks(&self, threads: u32, dynamic: usize) -> Answer<u32> {
        if threads == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let shared = self.kernel()?.static_shared() as usize + dynamic;
        if threads > self.max_threads()? || shared > SHARED_OPT_IN as usize {
            return Ok(0);
        }
        let by_threads = THREADS_PER_SM / threads.next_multiple_of(WARP);
        let by_shared = SHARED_PER_SM / (shared as u32 + SHARED_RESERVED);
        Ok(by_threads.min(by_shared).min(BLOCKS_PER_SM))
    }
}

/// A function by its handle.
pub fn find(function: Handle) -> Answer<Arc<Function>> {
    state::ready()?.functions.get(&function).cloned().ok_or(Code::INVALID_HANDLE)
}

fn attribute(function: &Function, which: c_int) -> Answer<c_int> {
    let kernel = function.kernel()?;
    Ok(match which {
        0 => function.max_threads()? as c_int,
        1 => kernel.static_shared() as c_int,
        3 => kernel.local() as c_int,
        4 => kernel.registers() as c_int,
        5 | 6 => 80,
        MAX_DYNAMIC_SHARED => function.max_dynamic() as c_int,
        CARVEOUT => function.carveout.load(Ordering::Relaxed),
        2 | 7 | 10..=15 => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

fn set_attribute(function: &Function, which: c_int, value: c_int) -> Answer {
    match which {
        MAX_DYNAMIC_SHARED => {
            let room = SHARED_OPT_IN.saturating_sub(function.kernel()?.static_shared());
            let bytes = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
            if bytes > room {
                let report = format!(
                    "kernel {}: {bytes} bytes of dynamic shared memory are asked for; the device has room for {room}",
                    function.name
                );
                return Err(state::lock().refuse(Code::INVALID_VALUE, report));
            }
            function.max_dynamic.store(bytes, Ordering::Relaxed);
            Ok(())
        }
        CARVEOUT if (-1..=100).contains(&value) => {
            function.carveout.store(value, Ordering::Relaxed);
            Ok(())
        }
        10..=15 if value == 0 => Ok(()),
        10..=15 => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// Dynamic shared memory by block size, as `cuOccupancyMaxPotentialBlockSize` asks the caller.
type BySize = unsafe extern "C" fn(c_int) -> usize;

fn best_block(
    (grid, block): (Out<c_int>, Out<c_int>),
    function: Handle,
    (by_size, dynamic): (Option<BySize>, usize),
    limit: c_int,
) -> Answer {
    let function = find(function)?;
    let most = function.max_threads()?;
    let most = u32::try_from(limit).ok().filter(|&limit| limit > 0).map_or(most, |limit| limit.min(most));
    let shared = |threads: u32| match by_size {
        // SAFETY: the caller promises a function that may be asked for any block size.
        Some(by_size) => unsafe { by_size(threads as c_int) },
        None => dynamic,
    };
    let mut best = (0, 0, 0);
    let sizes = (1..=most / WARP).rev().map(|warps| warps * WARP);
    for threads in sizes.chain((most < WARP).then_some(most)) {
        let blocks = function.blocks(threads, shared(threads))?;
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    block.set(best.1 as c_int)?;
    grid.set((best.2 * MULTIPROCESSORS) as c_int)
}

fn active_blocks(count: Out<c_int>, function: Handle, threads: c_int, dynamic: usize) -> Answer {
    let threads = u32::try_from(threads).map_err(|_| Code::INVALID_VALUE)?;
    count.set(find(function)?.blocks(threads, dynamic)? as c_int)
}

driver_api! {
    /// A kernel's attribute.
    fn cuFuncGetAttribute(value: Out<c_int>, which: c_int, function: Handle) {
        value.set(attribute(&*find(function)?, which)?)
    }

    /// Sets a kernel's attribute: what it may take of dynamic shared memory is the one that matters.
    fn cuFuncSetAttribute(function: Handle, which: c_int, value: c_int) {
        set_attribute(&*find(function)?, which, value)
    }

    /// Sets the preferred split between L1 and shared memory; nothing here depends on it.
    fn cuFuncSetCacheConfig(function: Handle, _config: c_int) {
        find(function).map(drop)
    }

    /// A kernel's module.
    fn cuFuncGetModule(out: Out<Handle>, function: Handle) {
        out.set(find(function)?.module_handle)
    }

    /// A kernel's name, for as long as its module is loaded.
    fn cuFuncGetName(out: Out<*const c_char>, function: Handle) {
        out.set(find(function)?.c_name.as_ptr())
    }

    /// Where a parameter lies, and its size.
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let function = find(function)?;
        let param = function.kernel()?.params().get(index).ok_or(Code::INVALID_VALUE)?;
        offset.set(param.offset)?;
        size.offer(param.size);
        Ok(())
    }

    /// Loads a kernel: it is.
    fn cuFuncLoad(function: Handle) {
        find(function).map(drop)
    }

    /// A library kernel's function: itself.
    fn cuKernelGetFunction(out: Out<Handle>, kernel: Handle) {
        find(kernel)?;
        out.set(kernel)
    }

    /// A kernel's attribute.
    fn cuKernelGetAttribute(value: Out<c_int>, which: c_int, kernel: Handle, device: c_int) {
        check(device)?;
        value.set(attribute(&*find(kernel)?, which)?)
    }

    /// Sets a kernel's attribute.
    fn cuKernelSetAttribute(which: c_int, value: c_int, kernel: Handle, device: c_int) {
        check(device)?;
        set_attribute(&*find(kernel)?, which, value)
    }

    /// How many blocks fit a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        count: Out<c_int>,
        function: Handle,
        threads: c_int,
        dynamic: usize,
    ) {
        active_blocks(count, function, threads, dynamic)
    }

    /// How many blocks fit a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<c_int>,
        function: Handle,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        active_blocks(count, function, threads, dynamic)
    }

    /// The block size that fills a multiprocessor best.
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>,
        block: Out<c_int>,
        function: Handle,
        by_size: Option<BySize>,
        dynamic: usize,
        limit: c_int,
    ) {
        best_block((grid, block), function, (by_size, dynamic), limit)
    }

    /// The block size that fills a multiprocessor best.
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>,
        block: Out<c_int>,
        function: Handle,
        by_size: Option<BySize>,
        dynamic: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        best_block((grid, block), function, (by_size, dynamic), limit)
    }

    /// The dynamic shared memory that each of so many blocks can have.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<usize>,
        function: Handle,
        blocks: c_int,
        threads: c_int,
    ) {
        let function = find(function)?;
        let blocks = u32::try_from(blocks).ok().filter(|&n| n > 0).ok_or(Code::INVALID_VALUE)?;
        let threads = u32::try_from(threads).ok().filter(|&n| n > 0).ok_or(Code::INVALID_VALUE)?;
        if blocks.min(BLOCKS_PER_SM) != blocks || blocks * threads.next_multiple_of(WARP) > THREADS_PER_SM {
            return Err(Code::INVALID_VALUE);
        }
        let each = (SHARED_PER_SM / blocks).saturating_sub(SHARED_RESERVED).min(SHARED_OPT_IN);
        bytes.set(each.saturating_sub(function.kernel()?.static_shared()) as usize)
    }

    /// Clusters are not supported.
    fn cuOccupancyMaxActiveClusters(_count: Out<c_int>, _function: Handle, _config: In<u8>) {
        Err(Code::NOT_SUPPORTED)
    }

    /// Clusters are not supported.
    fn cuOccupancyMaxPotentialClusterSize(_size: Out<c_int>, _function: Handle, _config: In<u8>) {
        Err(Code::NOT_SUPPORTED)
    }
}
