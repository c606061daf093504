//! What C hands over, as types that can be used without `unsafe` at every call.
//!
//! An `Out`, `In`, `Text` or `Host` only ever comes into being as an argument of one of the driver's functions,
//! whose caller promises that it is null or points where the driver's documentation says. Null is told here;
//! anything else is believed, as a real driver believes it.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Answer, Code};
use super::state;

/// A pointer that a result is written through.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes a result; null is an invalid value.
    pub fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function promises a writable place, and it is not null.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes a result that the caller may decline with null.
    pub fn offer(self, value: T) {
        if !self.0.is_null() {
            let _ = self.set(value);
        }
    }

    /// Whether nothing is wanted.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

impl Out<c_char> {
    /// Writes as much of a text as fits, NUL-terminated.
    pub fn fill(self, text: &str, capacity: usize) -> Answer {
        if self.0.is_null() || capacity == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let bytes = text.len().min(capacity - 1);
        // SAFETY: the caller promises `capacity` writable bytes, of which `bytes` and the NUL are used.
        unsafe {
            self.0.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), bytes);
            self.0.add(bytes).write(0);
        }
        Ok(())
    }
}

/// A pointer to one or several values.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The value; null is an invalid value.
    pub fn get(self) -> Answer<T> {
        self.at(0)
    }

    /// The value at an index of an array that the caller says is long enough.
    pub fn at(self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promises an array that holds this index, and it is not null.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// Whether nothing was passed.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

/// A NUL-terminated text.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// The text; null is an invalid value.
    pub fn get<'a>(self) -> Answer<&'a CStr> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promises a NUL-terminated text that outlives the call, and it is not null.
        Ok(unsafe { CStr::from_ptr(self.0) })
    }

    /// The text where it is UTF-8, as every name in PTX is.
    pub fn utf8<'a>(self) -> Answer<&'a str> {
        self.get()?.to_str().map_err(|_| Code::INVALID_VALUE)
    }
}

/// An address in the caller's memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host(*mut c_void);

// SAFETY: it is an address; who uses it promises, as with a real driver, that it is valid when the work runs.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// The address of memory that the driver itself allocated.
    pub fn new(address: *mut c_void) -> Self {
        Self(address)
    }

    /// As a number.
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    /// As it came.
    pub fn pointer(self) -> *mut c_void {
        self.0
    }

    /// As a text: a module's image is one, once it is known not to be machine code.
    pub fn text(self) -> Text {
        Text(self.0.cast())
    }

    /// As values.
    pub fn values<T>(self) -> In<T> {
        In(self.0.cast_const().cast())
    }

    /// As a place to write to.
    pub fn place<T>(self) -> Out<T> {
        Out(self.0.cast())
    }

    /// The bytes there, to read.
    pub fn bytes<'a>(self, count: usize) -> Answer<&'a [u8]> {
        if count == 0 {
            return Ok(&[]);
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller of the copy promises `count` readable bytes that nobody writes until it is done.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast(), count) })
    }

    /// The bytes there, to write.
    pub fn bytes_mut<'a>(self, count: usize) -> Answer<&'a mut [u8]> {
        if count == 0 {
            return Ok(&mut []);
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller of the copy promises `count` writable bytes that nobody else uses until it is done.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), count) })
    }
}

/// Runs the body of a C function: no panic leaves it, and what is not supported is named.
pub fn guard(name: &str, body: impl FnOnce() -> Answer) -> i32 {
    let refuse = |code, why: &str| state::lock().refuse(code, format!("{name}: {why}"));
    let code = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(Code::NOT_SUPPORTED)) => {
            refuse(Code::NOT_SUPPORTED, "the emulated device does not support this, or not as it was asked")
        }
        Ok(Err(code)) => code,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            refuse(Code::UNKNOWN, &format!("the emulator itself failed: {text}"))
        }
    };
    code as i32
}

/// Defines functions of the driver: exported by name, guarded, and listed for `cuGetProcAddress`.
///
/// # Safety
/// The caller of each keeps the promises that the driver's documentation asks of its pointers.
macro_rules! driver_api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// Pointers must be null or valid, as the driver's documentation says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                $crate::driver::abi::guard(stringify!($name), move || $body)
            }
        )*

        /// This file's functions, by name.
        pub fn symbols() -> Vec<(&'static str, usize)> {
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}
pub(super) use driver_api;
