//! A from-scratch engine that trains faithful image super-resolution (ASASR, ICML 2026) on FLUX with LoRA.
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;

pub use error::{Error, Result};
