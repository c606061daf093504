//! A libcuda that interprets PTX on the CPU, under checks that hardware does not make.
//!
//! [`Module::parse`] reads PTX and decodes it once; [`Memory`] is the device's address space; [`launch`] runs a kernel over a
//! grid, blocks in parallel, and gives [`Counters`] or the [`Report`] of the first fault.
//!
//! ```
//! use cuda_emu::{Checks, Launch, Memory, Module, launch};
//!
//! let ptx = ".version 8.0 .target sm_80 .address_size 64
//!     .visible .entry twice(.param .u64 at) {
//!         .reg .b64 %rd<3>; .reg .b32 %r<3>;
//!         ld.param.u64 %rd1, [at]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
//!         ld.global.u32 %r2, [%rd1]; add.u32 %r2, %r2, %r2; st.global.u32 [%rd1], %r2; ret;
//!     }";
//! let memory = Memory::new();
//! let mut module = Module::parse(ptx)?;
//! module.place(&memory);
//! let numbers = memory.alloc(128, "numbers");
//! memory.write(numbers, &[1; 128])?;
//! let mut launched =
//!     Launch { grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, params: &numbers.to_le_bytes(), checks: Checks::default() };
//! let counters = launch(&module, "twice", &memory, &launched)?;
//! assert_eq!(counters.global_read, 128);
//! // One thread too many, and the report says which, where, and past the end of what.
//! launched.block = [33, 1, 1];
//! let report = launch(&module, "twice", &memory, &launched).unwrap_err();
//! assert!(report.to_string().contains("past the end of \"numbers\""));
//! assert_eq!(report.thread, [32, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! How the text becomes what runs: `parse` knows the grammar, `decode` turns names into rows of a warp's registers and
//! inlines calls, `select` and `cvt` choose a function over 32 lanes for each lane-wise opcode (`alu`, `num`). `exec` runs a
//! block: its warps in turn, each at the lowest of its lanes' instructions, to the next barrier or for so many instructions;
//! `access`, `atomics`, `tensor`, `warp_ops` and `printf` are the rest of the instructions. `memory` and `shadow` keep who
//! wrote and touched what in global and in shared memory.
//!
//! What it does not model: the order in which plain accesses become visible other than at barriers, fences and atomics; races
//! of lanes of one warp; blocks that wait for one that has not begun (a loop that never ends, says the report); time.

#![allow(clippy::precedence)]

mod access;
mod alu;
mod atomics;
mod counters;
mod cvt;
mod decode;
mod decode_extra;
mod decode_ops;
mod driver;
mod error;
mod exec;
mod ir;
mod launch;
mod live;
mod memory;
mod modifiers;
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
