//! Sources compiled, loaded and looked up once per device.

use super::graph::RUN_ONCE;
use super::{Gpu, Session, describe, lock};
use crate::engine::jit::{Compiled, OPTIONS};
use crate::engine::nvrtc::Source;
use crate::{Error, Result, error::did_you_mean};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

/// A loaded source.
pub(super) struct Module {
    name: String,
    /// Its kernels' names, for who misspells one.
    names: Vec<String>,
    module: sys::CUmodule,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

// SAFETY: a module's handle may be used from every thread whose context is its own.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel that can be launched.
pub struct Kernel {
    pub(super) name: String,
    pub(super) function: sys::CUfunction,
    /// Bytes of each parameter.
    pub(super) params: Vec<usize>,
    /// Most threads of a block.
    pub(super) threads: u32,
    /// Bytes of shared memory that the source declares.
    pub(super) shared: u32,
    /// Bytes of dynamic shared memory that it may have without asking, or has asked for.
    pub(super) allowed: Mutex<u32>,
}

impl Kernel {
    /// One that is never launched.
    fn meta(name: &str) -> Self {
        let (function, most) = (std::ptr::null_mut(), u32::MAX);
        Self {
            name: name.into(),
            function,
            params: Vec::new(),
            threads: most,
            shared: 0,
            allowed: Mutex::new(most),
        }
    }
}

// SAFETY: as for `Module`, which lives as long as the device.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Gpu {
    /// Kernel `name` of the embedded source `source` (`gelu.cu`): compiled, or found in the cache, and loaded when it is
    /// first asked for.
    pub fn kernel(&self, source: &'static str, name: &str) -> Result<Arc<Kernel>> {
        let Some(session) = &self.session else { return Ok(Arc::new(Kernel::meta(name))) };
        let module = session.module(source, || {
            let compiled = session.jit.kernel(source, &self.properties.arch())?;
            self.load(source, compiled)
        })?;
        self.in_module(&module, name)
    }

    /// Kernel `name` of a source that is not embedded, by the same compiler, options and cache. It stays loaded as long
    /// as the device.
    pub fn compile(&self, source: &Source, name: &str) -> Result<Arc<Kernel>> {
        let Some(session) = &self.session else { return Ok(Arc::new(Kernel::meta(name))) };
        // All that the source is, so that two of one name are two.
        let module = session.module(&format!("{source:?}"), || {
            let compiled = session.jit.get(source, &self.properties.arch(), &OPTIONS)?;
            self.load(source.name, compiled)
        })?;
        self.in_module(&module, name)
    }

    fn in_module(&self, module: &Module, name: &str) -> Result<Arc<Kernel>> {
        let mut found = lock(&module.kernels);
        if let Some(kernel) = found.get(name) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(self.look_up(module, name)?);
        found.insert(name.into(), kernel.clone());
        Ok(kernel)
    }

    fn load(&self, source: &str, compiled: Compiled) -> Result<Module> {
        self.outside_capture(&format!("loading {source}"), RUN_ONCE)?;
        self.bound("loading a module")?;
        // SAFETY: an image of the driver's own formats, whole: the compiler made it and the cache checked its hash.
        let mut loaded = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        if matches!(loaded, Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU) {
            let ptx = CString::new(compiled.ptx)
                .map_err(|_| Error::cuda(source, "its PTX has a zero byte in it: the cache is damaged"))?;
            // SAFETY: text that ends in a zero.
            loaded = unsafe { result::module::load_data(ptx.as_ptr().cast()) };
        }
        let module = loaded.map_err(|e| {
            self.error(
                &format!("loading {source} for {} on {}", self.properties.arch(), self.properties.name),
                e,
            )
        })?;
        let names = compiled.kernels.into_iter().map(|k| k.name).collect();
        Ok(Module { name: source.into(), names, module, kernels: Mutex::default() })
    }

    fn look_up(&self, module: &Module, name: &str) -> Result<Kernel> {
        let source = &module.name;
        let refuse = |e| Error::cuda(&format!("{source}, {name}"), describe(e));
        let c_name =
            CString::new(name).map_err(|_| Error::cuda(source, "a kernel's name has a zero byte in it"))?;
        self.bound("loading a module")?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(module.module, c_name) }.map_err(|_| {
            let near = did_you_mean(name, module.names.iter().map(String::as_str));
            Error::cuda(source, format!("has no kernel {name}{near}"))
        })?;
        let attribute = |a| {
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::get_function_attribute(function, a) }.map_err(refuse)
        };
        use sys::CUfunction_attribute_enum as A;
        let threads = attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?.unsigned_abs();
        let shared = attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?.unsigned_abs();
        let mut params = Vec::new();
        loop {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: two integers that live through the call; a number past the last parameter is refused.
            match unsafe { sys::cuFuncGetParamInfo(function, params.len(), &mut offset, &mut bytes) } {
                sys::CUresult::CUDA_SUCCESS => params.push(bytes),
                sys::CUresult::CUDA_ERROR_INVALID_VALUE => break,
                e => return Err(refuse(cudarc::driver::DriverError(e))),
            }
        }
        // Without asking, a block has 48 KiB, what the source declares included.
        let allowed = Mutex::new((48 << 10) - shared.min(48 << 10));
        Ok(Kernel { name: name.into(), function, params, threads, shared, allowed })
    }
}

impl Session {
    /// The module kept as `key`, loaded if it is not there yet.
    fn module(&self, key: &str, load: impl FnOnce() -> Result<Module>) -> Result<Arc<Module>> {
        // Held while it compiles: others that want the same source wait for it, as they would for the disk cache.
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(key) {
            return Ok(module.clone());
        }
        let module = Arc::new(load()?);
        modules.insert(key.into(), module.clone());
        Ok(module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the device that owns it binds the context before it drops its modules, and nothing runs any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}
