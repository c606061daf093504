//! The machine: devices, memory, tensors, noise. Knows no maths of the model.
pub mod random;
