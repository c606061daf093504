//! Errors by name, functions by name, and what the device does not have.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

use super::abi::{In, Out, Text, driver_api};
use super::error::{Answer, Code, describe};

/// `CU_GET_PROC_ADDRESS_SUCCESS` and `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const FOUND: c_int = 0;
const NOT_FOUND: c_int = 1;

/// The newest form of a function that a client of this version of CUDA means by its plain name.
fn address(name: &str, version: c_int) -> Option<usize> {
    let suffixes = match (name, version) {
        ("cuCtxCreate", ..11_040) => ["_v2"].as_slice(),
        ("cuCtxCreate", ..12_050) => &["_v3"],
        ("cuEventElapsedTime", ..12_080) => &[""],
        _ => &["_v4", "_v3", "_v2", ""],
    };
    suffixes.iter().find_map(|suffix| {
        let matches = |found: &str| found.strip_prefix(name) == Some(suffix);
        super::symbols().find(|(found, _)| matches(found)).map(|(_, address)| address)
    })
}

fn described(code: c_int, out: Out<*const c_char>, name: bool) -> Answer {
    match describe(code) {
        Some((first, second)) => out.set(if name { first } else { second }.as_ptr()),
        None => {
            out.set(ptr::null())?;
            Err(Code::INVALID_VALUE)
        }
    }
}

driver_api! {
    /// The name of a result.
    fn cuGetErrorName(code: c_int, out: Out<*const c_char>) {
        described(code, out, true)
    }

    /// What a result means.
    fn cuGetErrorString(code: c_int, out: Out<*const c_char>) {
        described(code, out, false)
    }

    /// A function by its name.
    fn cuGetProcAddress_v2(name: Text, out: Out<usize>, version: c_int, _flags: u64, status: Out<c_int>) {
        match address(name.utf8()?, version) {
            Some(address) => {
                status.offer(FOUND);
                out.set(address)
            }
            None => {
                status.offer(NOT_FOUND);
                out.set(0)?;
                Err(Code::NOT_FOUND)
            }
        }
    }

    /// Tensor maps are Hopper's.
    fn cuTensorMapEncodeTiled(
        _map: Out<u8>,
        _dtype: c_int,
        _rank: c_uint,
        _address: *mut c_void,
        _dims: In<u64>,
        _strides: In<u64>,
        _tile: In<c_uint>,
        _steps: In<c_uint>,
        _interleave: c_int,
        _swizzle: c_int,
        _promotion: c_int,
        _fill: c_int,
    ) {
        Err(Code::NOT_SUPPORTED)
    }
}
