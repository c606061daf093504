//! The driver's library, opened as a client opens it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// Kernels that hardware's driver would take as well.
pub const PTX: &str = concat!(include_str!("../kernels.ptx"), "\0");

/// Where cargo put the library: beside the test.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.parent().expect("a file lies in a directory").join("libcuda_emu.so")
}

/// Opens the library for everybody in this process, for good.
pub fn open() -> &'static Library {
    let path = path();
    // SAFETY: the library has no initialisers of its own.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    Box::leak(Box::new(library.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

/// A function of the library.
pub fn symbol<T: Copy>(library: &Library, name: &str) -> T {
    // SAFETY: the caller names the type that the function has.
    let symbol: Symbol<T> = unsafe { library.get(name.as_bytes()) }.unwrap_or_else(|_| panic!("no {name}"));
    *symbol
}

/// A text that one of the emulator's own functions answers.
pub fn text(library: &Library, name: &str) -> String {
    let ask: unsafe extern "C" fn(*mut u8, usize) -> usize = symbol(library, name);
    // SAFETY: a null buffer only asks for the length.
    let length = unsafe { ask(std::ptr::null_mut(), 0) };
    let mut buffer = vec![0; length + 1];
    // SAFETY: the buffer is as long as is said.
    unsafe { ask(buffer.as_mut_ptr(), buffer.len()) };
    buffer.truncate(length);
    String::from_utf8(buffer).expect("the emulator writes UTF-8")
}
