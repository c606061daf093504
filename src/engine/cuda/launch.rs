//! Launching a kernel: what it is given is checked against what was compiled before the driver sees it.

use super::ledger::Need;
use super::{Gpu, Kernel, describe, lock};
use crate::engine::Tensor;
use crate::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// A launch in the making: arguments in the order of the kernel's parameters, then [`Launch::run`].
///
/// The arguments' number and sizes, the tensors' device and alignment, the grid, the block and the shared memory are
/// checked; how many elements a kernel touches is its op's affair.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    kernel: &'a Kernel,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    /// The arguments' bytes, each from a multiple of 8.
    data: Vec<u64>,
    /// Where each begins in `data`, and its bytes.
    args: Vec<(usize, usize)>,
    /// What it must at least do, for the ledger.
    need: Need,
    /// The first thing that was wrong.
    refused: Option<String>,
}

impl Gpu {
    /// A launch of `kernel` over `grid` blocks (x, y, z) of `block` threads.
    pub fn launch<'a>(&'a self, kernel: &'a Kernel, grid: [usize; 3], block: u32) -> Launch<'a> {
        let mut launch = Launch {
            gpu: self,
            kernel,
            grid: [1; 3],
            block,
            shared: 0,
            data: Vec::new(),
            args: Vec::new(),
            need: Need { launches: 1, ..Need::default() },
            refused: None,
        };
        for (axis, (&n, limit)) in grid.iter().zip([i32::MAX as usize, 65_535, 65_535]).enumerate() {
            match u32::try_from(n) {
                Ok(n) if n as usize <= limit => launch.grid[axis] = n,
                _ => launch.refuse(format!(
                    "a grid of {grid:?} blocks exceeds {limit} along {}",
                    ["x", "y", "z"][axis]
                )),
            }
        }
        if block == 0 || block > kernel.threads {
            launch.refuse(format!("a block of {block} threads; it was compiled for 1 to {}", kernel.threads));
        }
        launch
    }
}

impl Launch<'_> {
    /// Asks for `bytes` of dynamic shared memory.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = u32::try_from(bytes).unwrap_or(u32::MAX);
        self
    }

    /// A tensor that is read; its elements are aligned to themselves, and wider loads are the kernel's to prove.
    pub fn read(self, t: &Tensor) -> Self {
        self.read_part(t, t.len() * t.dtype().size())
    }

    /// A tensor of which `bytes` bytes are read.
    pub fn read_part(self, t: &Tensor, bytes: usize) -> Self {
        let address = t.address();
        self.pointer(t, address).moves(bytes)
    }

    /// A tensor that is read, or a null pointer.
    pub fn read_or_null(self, t: Option<&Tensor>) -> Self {
        match t {
            Some(t) => self.read(t),
            None => self.value(0u64),
        }
    }

    /// A tensor that is written: its only handle.
    pub fn write(self, t: &mut Tensor) -> Self {
        let bytes = t.len() * t.dtype().size();
        self.write_part(t, bytes)
    }

    /// A tensor of which `bytes` bytes are written: its only handle.
    pub fn write_part(mut self, t: &mut Tensor, bytes: usize) -> Self {
        match t.address_mut() {
            Ok(address) => self.pointer(t, address).moves(bytes),
            Err(e) => {
                self.refuse(e.to_string());
                self.value(0u64)
            }
        }
    }

    /// A tensor that is written: its only handle; or, where `accumulate`, one that is added to.
    pub fn write_or_add(self, t: &mut Tensor, accumulate: bool) -> Self {
        let old = if accumulate { t.len() * t.dtype().size() } else { 0 };
        self.write(t).moves(old)
    }

    /// A tensor that is written, or a null pointer.
    pub fn write_or_null(self, t: Option<&mut Tensor>) -> Self {
        match t {
            Some(t) => self.write(t),
            None => self.value(0u64),
        }
    }

    /// States for the ledger that the kernel must read or write `bytes` bytes beyond its tensors, each once: what stands
    /// behind addresses that are passed by value, what an output held.
    pub fn moves(mut self, bytes: usize) -> Self {
        self.need.bytes += bytes as u64;
        self
    }

    /// States for the ledger what the kernel must do on tensor cores.
    pub fn multiplies(mut self, flops: usize) -> Self {
        self.need.mma_flops += flops as u64;
        self
    }

    fn pointer(mut self, t: &Tensor, address: u64) -> Self {
        if !t.device().gpu().is_some_and(|gpu| std::ptr::eq(gpu, self.gpu)) {
            self.refuse(format!("argument {} is {t:?}, not on this device", self.args.len()));
        }
        let alignment = t.dtype().size() as u64;
        if !address.is_multiple_of(alignment) && !t.is_empty() {
            let detail = format!("starts at {address:#x}, no multiple of {alignment}");
            self.refuse(format!("argument {}, {t:?}, {detail}", self.args.len()));
        }
        self.value(address)
    }

    /// A number, an address or a structure, by value.
    pub fn value<T: bytemuck::NoUninit>(mut self, value: T) -> Self {
        let bytes = bytemuck::bytes_of(&value);
        self.args.push((self.data.len(), bytes.len()));
        let words = bytes.chunks(8).map(|c| {
            let mut word = [0; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_ne_bytes(word)
        });
        self.data.extend(words);
        self
    }

    fn refuse(&mut self, why: String) {
        self.refused.get_or_insert(why);
    }

    /// Launches it. An empty grid is nothing to do.
    pub fn run(mut self) -> Result<()> {
        let kernel = self.kernel;
        if self.grid.contains(&0) && self.refused.is_none() {
            return Ok(());
        }
        let given: Vec<usize> = self.args.iter().map(|a| a.1).collect();
        if given != kernel.params && self.gpu.session.is_some() {
            self.refuse(format!("arguments of {given:?} bytes; its parameters have {:?}", kernel.params));
        }
        if let Some(why) = self.refused {
            return Err(Error::cuda(&format!("launching {}", kernel.name), why));
        }
        if self.gpu.session.is_none() {
            self.enter();
            return Ok(());
        }
        let session = self.gpu.bound("a launch")?;
        self.allow_shared()?;
        let base = self.data.as_mut_ptr();
        // SAFETY: every offset is inside `data`, which lives through the call.
        let mut pointers: Vec<*mut c_void> =
            self.args.iter().map(|a| unsafe { base.add(a.0) }.cast()).collect();
        let [x, y, z] = self.grid;
        // SAFETY: the arguments have the number and the sizes of the kernel's parameters, as checked above. That its
        // pointers reach no further than their tensors is what each op checks before, and the emulator during a launch.
        let launched = unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (self.block, 1, 1),
                self.shared,
                session.stream.cu_stream(),
                &mut pointers,
            )
        };
        let doing = || format!("{} over {:?}×{}", kernel.name, self.grid, self.block);
        launched.map_err(|e| self.gpu.error(&doing(), e))?;
        self.enter();
        if session.synchronous && !self.gpu.recording() {
            session.stream.synchronize().map_err(|e| self.gpu.error(&doing(), e))?;
        }
        Ok(())
    }

    /// Enters it into the ledger.
    fn enter(&self) {
        if let Some(ledger) = lock(&self.gpu.ledger).as_mut() {
            let blocks = self.grid.iter().map(|&n| u64::from(n)).product();
            let need = Need { blocks, threads: self.block, shared: self.shared, ..self.need };
            ledger.entry(self.kernel.name.clone()).or_default().add(&need);
        }
    }

    /// A kernel must be told before it gets more than 48 KiB of shared memory.
    fn allow_shared(&self) -> Result<()> {
        let (kernel, limit) = (self.kernel, self.gpu.properties.shared_limit);
        let mut allowed = lock(&kernel.allowed);
        if self.shared <= *allowed {
            return Ok(());
        }
        if self.shared > limit.saturating_sub(kernel.shared) {
            let detail = format!(
                "{} bytes of shared memory beside its own {}; a block of {} may have {limit}",
                self.shared, kernel.shared, self.gpu.properties.name
            );
            return Err(Error::cuda(&format!("launching {}", kernel.name), detail));
        }
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
        // SAFETY: the function is of a loaded module.
        unsafe { result::function::set_function_attribute(kernel.function, MOST, self.shared as i32) }
            .map_err(|e| Error::cuda(&format!("shared memory for {}", kernel.name), describe(e)))?;
        *allowed = self.shared;
        Ok(())
    }
}
