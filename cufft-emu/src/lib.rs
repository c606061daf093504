//! The part of libcufft that cuda-emu's clients use: single-precision C2C, R2C and C2R in one to three dimensions, batched,
//! with strides. The device's memory is reached through the public functions of the libcuda that the process has open,
//! the sums are rustfft's.
//!
//! Open it by its full path before a client asks for `libcufft.so` by name, after libcuda.
#![allow(non_snake_case, reason = "the functions' names are the ABI's")]

mod abi;
mod driver;
mod error;
mod exec;
mod layout;
mod transform;
