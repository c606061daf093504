//! The machine: devices, memory, tensors, matrix products, noise.
//!
//! Responsible for where bytes live and how they are reached. Must not know any maths of the model, the tape or the
//! method. All `unsafe` of the crate lives on this floor.

pub mod arena;
pub mod cuda;
pub mod flat;
pub mod jit;
pub mod kernels;
mod map;
pub mod matmul;
pub mod nvrtc;
pub mod par;
pub mod pixels;
mod pool;
pub mod random;
pub mod simd;
pub mod tensor;

pub use arena::{ArenaStats, Device};
pub use flat::FlatBuffer;
pub(crate) use map::map;
pub use random::Philox;
pub use tensor::{DType, Tensor};
