//! A libcuda that interprets PTX on the CPU, under checks that hardware does not make.
//!
//! [`Module::parse`] reads PTX and decodes it once; [`Memory`] is the device's address space; [`launch`] runs a kernel over a
//! grid, blocks in parallel, and gives [`Counters`] or the [`Report`] of the first fault.

#![allow(clippy::precedence)]

mod access;
mod alu;
mod atomics;
mod counters;
mod cvt;
mod decode;
mod decode_ops;
mod driver;
mod error;
mod exec;
mod ir;
mod launch;
mod memory;
mod module;
mod num;
mod parse;
mod printf;
mod select;
mod shadow;
mod tensor;
mod warp_ops;

pub use counters::Counters;
pub use error::{Error, Fault, Report};
pub use ir::{Kernel, Param};
pub use launch::{Checks, Launch, launch, launch_to};
pub use memory::{Allocation, Memory};
pub use module::{Global, Module};
