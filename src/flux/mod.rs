//! The model: FLUX with a condition branch, adapter files, weights, schedules, sampler; the networks of its latents and prompts.
//!
//! Responsible for what a FLUX transformer is (its dimensions, weights, adapters, noise levels) and for the files it
//! shares with diffusers and PEFT, and in their namings with Black Forest Labs and kohya's sd-scripts. Must not know data, losses, training stages or the command line.

pub mod base;
pub mod bfl;
pub mod config;
pub mod convert;
pub mod kohya;
pub mod lora;
pub mod modulation;
pub mod params;
pub mod rounding;
pub mod sampler;
pub mod schedule;
pub mod taef1;
pub mod text;
pub mod transformer;
pub mod vae;
pub mod weights;

pub use base::BaseModel;
pub use config::FluxConfig;
pub use lora::{AdapterFile, LoraModule};
pub use params::{Adapter, Weights};
pub use schedule::LrSchedule;
pub use taef1::Taef1;
pub use transformer::Flux;
pub use vae::Vae;
pub use weights::{Folder, SafeFile};
