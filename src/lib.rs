//! A from-scratch engine that trains faithful image super-resolution (ASASR, ICML 2026) on FLUX with LoRA.
pub mod autograd;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod flux;
pub mod losses;
pub mod ops;
pub mod train;

pub use error::{Error, Result};
