//! Modules and libraries: PTX text in, kernels and global variables out. Machine code is refused.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fs;
use std::sync::Arc;

use super::abi::{Host, In, Out, Text, driver_api};
use super::error::{Answer, Code};
use super::function::Function;
use super::state::{self, Handle, Module};
use super::{core, work};

/// What machine code begins with: an ELF file, a fat binary, and the wrapper that nvcc puts around one.
const MACHINE_CODE: [[u8; 4]; 3] = [*b"\x7fELF", [0x50, 0xed, 0x55, 0xba], [0xb1, 0x43, 0x62, 0x46]];
/// `CU_JIT_ERROR_LOG_BUFFER` and `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;
/// `CU_MODULE_EAGER_LOADING`.
const EAGER: c_int = 1;

/// An image's text, once it is known not to be machine code. No byte past a NUL is read.
fn text<'a>(image: Host) -> Answer<&'a str> {
    let bytes = image.values::<u8>();
    let mut head = [0; 4];
    for (index, byte) in head.iter_mut().enumerate() {
        *byte = bytes.at(index)?;
        if *byte == 0 {
            break;
        }
    }
    if MACHINE_CODE.contains(&head) {
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    if head[0] == 0 {
        return Err(Code::INVALID_IMAGE);
    }
    image.text().get()?.to_str().map_err(|_| Code::INVALID_IMAGE)
}

/// The buffer that the caller wants the reason of a failure in.
fn error_log(
    count: c_uint,
    options: In<c_uint>,
    values: In<*mut c_void>,
) -> Answer<Option<(Out<c_char>, usize)>> {
    let find = |wanted| {
        for index in 0..count as usize {
            if options.at(index)? == wanted {
                return values.at(index).map(Some);
            }
        }
        Ok(None)
    };
    let (buffer, bytes) = (find(ERROR_LOG)?, find(ERROR_LOG_BYTES)?);
    Ok(buffer.zip(bytes).map(|(buffer, bytes)| (Host::new(buffer).place(), bytes as usize)))
}

fn load(out: Out<Handle>, ptx: &str, log: Option<(Out<c_char>, usize)>) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    state.unsafe_call()?;
    out.set(0)?;
    drop(state);
    let loaded = core::load(ptx, &work::device());
    let mut state = state::lock();
    let core = match loaded {
        Ok(module) => Arc::new(module),
        Err(error) => {
            if let Some((buffer, bytes)) = log {
                let _ = buffer.fill(&error, bytes);
            }
            return Err(state.refuse(Code::INVALID_PTX, format!("a module's PTX: {error}")));
        }
    };
    let handle = state.handle();
    state.modules.insert(handle, Module { ctx, core, functions: BTreeMap::new() });
    out.set(handle)
}

fn unload(module: Handle) -> Answer {
    let mut state = state::ready()?;
    state.current()?;
    let Some(removed) = state.modules.remove(&module) else { return Err(Code::INVALID_HANDLE) };
    state.functions.retain(|_, function| function.module_handle != module);
    drop(state);
    core::unload(&removed.core, &work::device());
    state::lock().sticky(removed.ctx)
}

fn function(out: Out<Handle>, module: Handle, name: Text) -> Answer {
    let name = name.utf8()?;
    let mut state = state::ready()?;
    state.healthy()?;
    let found = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
    if let Some(&known) = found.functions.get(name) {
        return out.set(known);
    }
    let (ctx, core) = (found.ctx, found.core.clone());
    if core.kernel(name).is_none() {
        return Err(Code::NOT_FOUND);
    }
    let handle = state.handle();
    let function = Function::new(ctx, module, core, name)?;
    state.functions.insert(handle, Arc::new(function));
    if let Some(module) = state.modules.get_mut(&module) {
        module.functions.insert(name.into(), handle);
    }
    out.set(handle)
}

fn global(addr: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) -> Answer {
    let name = name.utf8()?;
    let state = state::ready()?;
    state.healthy()?;
    let module = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
    let (start, size) = core::global(&module.core, name).ok_or(Code::NOT_FOUND)?;
    addr.offer(start);
    bytes.offer(size as usize);
    Ok(())
}

driver_api! {
    /// Loads a module from a file of PTX.
    fn cuModuleLoad(out: Out<Handle>, path: Text) {
        let bytes = fs::read(path.utf8()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        if MACHINE_CODE.iter().any(|magic| bytes.starts_with(magic)) {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        load(out, str::from_utf8(&bytes).map_err(|_| Code::INVALID_IMAGE)?, None)
    }

    /// Loads a module from PTX.
    fn cuModuleLoadData(out: Out<Handle>, image: Host) {
        load(out, text(image)?, None)
    }

    /// Loads a module from PTX; of the options, the error log is written.
    fn cuModuleLoadDataEx(
        out: Out<Handle>,
        image: Host,
        count: c_uint,
        options: In<c_uint>,
        values: In<*mut c_void>,
    ) {
        load(out, text(image)?, error_log(count, options, values)?)
    }

    /// A fat binary holds machine code.
    fn cuModuleLoadFatBinary(_out: Out<Handle>, _image: Host) {
        Err(Code::NO_BINARY_FOR_GPU)
    }

    /// Unloads a module.
    fn cuModuleUnload(module: Handle) {
        unload(module)
    }

    /// A kernel by its name.
    fn cuModuleGetFunction(out: Out<Handle>, module: Handle, name: Text) {
        function(out, module, name)
    }

    /// A global variable by its name.
    fn cuModuleGetGlobal_v2(addr: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        global(addr, bytes, module, name)
    }

    /// When kernels are loaded: at once.
    fn cuModuleGetLoadingMode(mode: Out<c_int>) {
        state::initialized()?;
        mode.set(EAGER)
    }

    /// Loads a library: a module by another name, of the current context.
    fn cuLibraryLoadData(
        out: Out<Handle>,
        image: Host,
        options: In<c_uint>,
        values: In<*mut c_void>,
        count: c_uint,
        _library_options: In<c_uint>,
        _library_values: In<*mut c_void>,
        _library_count: c_uint,
    ) {
        load(out, text(image)?, error_log(count, options, values)?)
    }

    /// Unloads a library.
    fn cuLibraryUnload(library: Handle) {
        unload(library)
    }

    /// A library's module: itself.
    fn cuLibraryGetModule(out: Out<Handle>, library: Handle) {
        let state = state::ready()?;
        state.modules.get(&library).ok_or(Code::INVALID_HANDLE)?;
        out.set(library)
    }

    /// A kernel by its name.
    fn cuLibraryGetKernel(out: Out<Handle>, library: Handle, name: Text) {
        function(out, library, name)
    }

    /// A global variable by its name.
    fn cuLibraryGetGlobal(addr: Out<u64>, bytes: Out<usize>, library: Handle, name: Text) {
        global(addr, bytes, library, name)
    }
}
