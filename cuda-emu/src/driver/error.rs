//! The driver's result codes, their names and what they mean here.

use std::ffi::CStr;

/// What every function of the driver answers, before it becomes a `CUresult`.
pub type Answer<T = ()> = Result<T, Code>;

const fn terminated(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the macro below ends every text with a NUL"),
    }
}

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// The failures of `CUresult`, without their prefix.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "they are the driver's names")]
        #[allow(dead_code, reason = "cuGetErrorName knows them all")]
        pub enum Code {
            $($name = $value,)*
        }

        /// A code's name and description, for `cuGetErrorName` and `cuGetErrorString`.
        pub fn describe(code: i32) -> Option<(&'static CStr, &'static CStr)> {
            Some(match code {
                0 => (c"CUDA_SUCCESS", c"no error"),
                $($value => (
                    const { terminated(concat!("CUDA_ERROR_", stringify!($name), "\0")) },
                    const { terminated(concat!($text, "\0")) },
                ),)*
                _ => return None,
            })
        }
    };
}

codes! {
    INVALID_VALUE = 1, "an argument is out of its range";
    OUT_OF_MEMORY = 2, "the device's memory is exhausted";
    NOT_INITIALIZED = 3, "cuInit has not been called";
    DEINITIALIZED = 4, "the driver is shutting down";
    NO_DEVICE = 100, "there is no device";
    INVALID_DEVICE = 101, "there is no device of that ordinal";
    INVALID_IMAGE = 200, "the module image is not one";
    INVALID_CONTEXT = 201, "no context is current on this thread, or it is not one";
    NO_BINARY_FOR_GPU = 209, "the image holds machine code; only PTX can be interpreted";
    UNSUPPORTED_LIMIT = 215, "that limit does not exist here";
    INVALID_PTX = 218, "the PTX could not be read";
    UNSUPPORTED_PTX_VERSION = 222, "the PTX is of a version that is not supported";
    FILE_NOT_FOUND = 301, "the file was not found";
    INVALID_HANDLE = 400, "the handle is not one, or what it named was destroyed";
    ILLEGAL_STATE = 401, "the object is in a state that does not allow this";
    NOT_FOUND = 500, "that name does not exist";
    NOT_READY = 600, "the work has not finished";
    ILLEGAL_ADDRESS = 700, "a kernel accessed memory that is not its own";
    LAUNCH_OUT_OF_RESOURCES = 701, "the launch asks for more than a block may have";
    PRIMARY_CONTEXT_ACTIVE = 708, "the primary context is active";
    CONTEXT_IS_DESTROYED = 709, "the current context was destroyed";
    ASSERT = 710, "an assertion failed in a kernel";
    HOST_MEMORY_ALREADY_REGISTERED = 712, "the host memory is registered already";
    HOST_MEMORY_NOT_REGISTERED = 713, "the host memory is not registered";
    ILLEGAL_INSTRUCTION = 715, "a kernel executed an instruction that is not one";
    MISALIGNED_ADDRESS = 716, "a kernel accessed an address that is not aligned";
    LAUNCH_FAILED = 719, "a kernel failed";
    NOT_PERMITTED = 800, "a host function may not call the driver";
    NOT_SUPPORTED = 801, "the emulated device does not support this";
    STREAM_CAPTURE_UNSUPPORTED = 900, "not allowed while a stream is captured";
    STREAM_CAPTURE_INVALIDATED = 901, "the capture was invalidated by an earlier error";
    STREAM_CAPTURE_MERGE = 902, "two captures would be merged";
    STREAM_CAPTURE_UNMATCHED = 903, "the capture did not begin in this stream";
    STREAM_CAPTURE_UNJOINED = 904, "a stream of the capture was not joined to its origin";
    STREAM_CAPTURE_ISOLATION = 905, "a captured stream would depend on work outside the capture";
    STREAM_CAPTURE_IMPLICIT = 906, "the legacy stream would depend on a captured stream";
    CAPTURED_EVENT = 907, "the event was last recorded in a capture";
    STREAM_CAPTURE_WRONG_THREAD = 908, "the capture began on another thread";
    UNKNOWN = 999, "the emulator itself failed";
}
