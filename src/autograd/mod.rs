//! The tape: records ops, runs them backwards, recomputes blocks; parameters in flat arenas; gradcheck.
//!
//! Knows ops only through the [`Op`](crate::ops::Op) trait, and nothing of the model or the method.

pub mod gradcheck;
pub mod params;
pub mod tape;

pub use params::ParamSet;
pub use tape::{LeafId, Leaves, Tape, Var};
