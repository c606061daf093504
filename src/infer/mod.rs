//! From a low-quality image to a high-quality one: a trained model, a batch of tiles, a whole image of any size,
//! files and folders of them.
//!
//! Shares the model, the codec and the way LQ is brought to HQ size with training. Knows nothing of stages or optimizers.

pub mod color;
pub mod job;
pub mod model;
pub mod parts;
mod tiles;
pub mod upscale;

pub use color::ColorFix;
pub use job::Job;
pub use model::Model;
pub use parts::Parts;
pub use upscale::{Restored, Settings, Watch, upscale};
