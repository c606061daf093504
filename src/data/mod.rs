//! Photographs in, batches out: images and their files, resizing, degradation, the procedural data set, the tiny
//! preset's latent codec, and the sampler that turns `(seed, stage, sample index)` into a training pair.
//!
//! Must not know: the model, the tape, optimizers, devices. What leaves this directory is plain `Vec<f32>`.
pub(crate) mod fft;
mod font;
pub mod image;
pub mod montage;
pub mod photo;
pub mod resize;

pub use image::Image;
pub use montage::montage;
pub use photo::Photo;
pub use resize::{bicubic, nearest, pil_bicubic, torch_down, torch_up};
