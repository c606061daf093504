#![doc = include_str!("../README.md")]
pub mod autograd;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
mod faults;
mod files;
pub mod flux;
pub mod infer;
pub mod losses;
pub mod ops;
#[cfg(feature = "report")]
pub mod report;
pub mod train;
pub mod verify;

pub use error::{Error, Result};

// What the tests here share with those in `tests/` calls the library by its name.
#[cfg(test)]
extern crate self as asasr_engine;
