//! Photographs in, batches out: images and their files, resizing, degradation, the procedural data set, latent codecs,
//! and the sampler that turns `(seed, stage, sample index)` into a training pair.
//!
//! Must not know: the transformer, the tape, optimizers. What leaves this directory is plain `Vec<f32>`, or a picture that
//! comes back to be encoded; of devices only a codec that is a network (`flux`'s) knows, and no further than where it was
//! told to compute.
//! Every random choice is a pure function of its counters (`draws`), so neither the thread count nor a resumed run
//! changes a pixel.
pub mod batch;
pub mod codec;
pub mod dead_leaves;
pub mod degrade;
pub(crate) mod fft;
pub mod folder;
mod font;
pub mod image;
pub mod latents;
pub mod montage;
pub mod photo;
pub mod picture;
pub mod pil;
pub mod resize;
pub mod source;

pub use batch::{Batch, EvalPair, Plane, Sample, Sampler};
pub use codec::{Codec, HaarCodec, Latents};
pub use dead_leaves::{DeadLeaves, dead_leaves};
pub use degrade::{Degradation, Light, RealEsrgan, Strengths, bad_upscale, gaussian_blur};
pub use folder::{Folder, Wanted, pictures_of};
pub use image::Image;
pub use latents::LatentCache;
pub use montage::montage;
pub use photo::Photo;
pub use picture::{Format, Picture};
pub use resize::{LqResize, bicubic, nearest, pil_bicubic, torch_bilinear, torch_down, torch_up};
pub use source::{DeadLeavesSource, Part, Source, Split};

use crate::engine::random::{Philox, Reader, philox4x32_10};

/// What a draw is for; keeps the uses of one seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Domain {
    /// Texture tiles of the dead leaves.
    Tiles = 0x7469_6c65,
    /// Shapes of one dead-leaves image.
    Leaves = 0x6c65_6166,
    /// Crop, flips and degradation of a training sample.
    Train = 0x7472_6169,
    /// Crop, flips and degradation of a sample of a pool.
    Pool = 0x706f_6f6c,
    /// Crop and degradation of an evaluation sample.
    HeldOut = 0x6865_6c64,
    /// Crop and degradation of a pair that is written to a folder.
    Pairs = 0x7061_6972,
}

/// The reader that belongs to `(seed, domain, a, b)`. Philox is a bijection of its counter, so distinct `(a, b)` of one
/// seed and domain can never share a stream.
pub(crate) fn draws(seed: u64, domain: Domain, a: u64, b: u64) -> Reader {
    let key = [seed as u32 ^ domain as u32, (seed >> 32) as u32];
    let w = philox4x32_10([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32], key);
    let wide = |lo: u32, hi: u32| u64::from(lo) | u64::from(hi) << 32;
    Philox::new(wide(w[0], w[1]), wide(w[2], w[3])).reader()
}
