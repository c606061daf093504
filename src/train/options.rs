//! Every option of a run, defined once: key, type, default, range, description and the sections that have it.
//!
//! The tables at the end of this file are all there is to edit; structs, config file, `--set`, help text and
//! [`Config::to_toml`](super::Config::to_toml) come from them. A line reads
//! `key: type = default => [Section: its default, …], range, only [Section, …];`.

use super::objective::Adversary;
use crate::data::{Codec, DeadLeavesSource, Latents, LqResize, Strengths};
use crate::engine::DType;
use crate::error::did_you_mean;
use crate::flux::schedule::LrSchedule;
use crate::ops::sobolev::{Metric, Spectrum, Weight};
use std::ops::RangeInclusive;
use toml::Value;

/// Names an enumeration's values in the config file.
macro_rules! choice {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }
        field_names!($name { $($variant = $text,)+ });
    )+};
}

/// How an enumeration is written and read.
macro_rules! field_names {
    ($name:ident { $($variant:ident = $text:literal,)+ }) => {
        field_names!($name = &[$(($text, Self::$variant),)+]);
    };
    ($name:ident = $names:expr) => {
        impl Named for $name {
            const ALL: &'static [(&'static str, Self)] = $names;
        }
        impl Field for $name {
            fn kind() -> String {
                names::<Self>()
            }
            fn read(value: &Value) -> Result<Self, String> {
                let text = value.as_str().unwrap_or_default();
                Self::ALL.iter().find(|(n, _)| *n == text).map(|&(_, v)| v).ok_or_else(|| {
                    let hint = did_you_mean(text, Self::ALL.iter().map(|c| c.0));
                    format!("wanted one of {}{hint}", names::<Self>())
                })
            }
            fn write(&self) -> Value {
                Value::String(self.name().into())
            }
        }
    };
}

/// An enumeration whose values have names in the config file.
pub trait Named: Sized + Copy + PartialEq + 'static {
    /// Every value with its name.
    const ALL: &'static [(&'static str, Self)];
    /// The name of this value.
    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, v)| *v == self).map_or("", |(n, _)| n)
    }
}

fn names<T: Named>() -> String {
    T::ALL.iter().map(|(n, _)| format!("\"{n}\"")).collect::<Vec<_>>().join(" | ")
}

/// A type an option can have.
pub(super) trait Field: Sized {
    /// What to call it in help and messages.
    fn kind() -> String;
    fn read(value: &Value) -> Result<Self, String>;
    fn write(&self) -> Value;
}

impl Field for bool {
    fn kind() -> String {
        "true | false".into()
    }
    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| "wanted true or false".into())
    }
    fn write(&self) -> Value {
        Value::Boolean(*self)
    }
}

macro_rules! integers {
    ($($t:ty)+) => {$(
        impl Field for $t {
            fn kind() -> String {
                "integer".into()
            }
            fn read(value: &Value) -> Result<Self, String> {
                let v = value.as_integer().ok_or("wanted a whole number")?;
                Self::try_from(v).map_err(|_| "wanted a whole number from 0".into())
            }
            fn write(&self) -> Value {
                // Ranges keep every integer option below 2⁶³, TOML's limit.
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
        }
    )+};
}
integers!(usize u64);

impl Field for f32 {
    fn kind() -> String {
        "number".into()
    }
    fn read(value: &Value) -> Result<Self, String> {
        let wide = value.as_float().or(value.as_integer().map(|i| i as f64)).ok_or("wanted a number")?;
        Ok(wide as f32)
    }
    fn write(&self) -> Value {
        // Through its shortest decimal, so that 0.1 is written 0.1 and not 0.10000000149011612.
        Value::Float(self.to_string().parse().unwrap_or(f64::from(*self)))
    }
}

impl Field for String {
    fn kind() -> String {
        "text".into()
    }
    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(Into::into).ok_or_else(|| "wanted text in quotes".into())
    }
    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl<T: Field> Field for Vec<T> {
    fn kind() -> String {
        format!("list of {}", T::kind())
    }
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::Array(items) => items.iter().map(T::read).collect(),
            // `--set run.stages=sft,asdpo`
            Value::String(text) => {
                text.split(',').map(|t| T::read(&Value::String(t.trim().into()))).collect()
            }
            _ => Err(format!("wanted a {}", Self::kind())),
        }
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(T::write).collect())
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn kind() -> String {
        format!("list of {N} × {}", T::kind())
    }
    fn read(value: &Value) -> Result<Self, String> {
        let items = Vec::<T>::read(value)?;
        let n = items.len();
        items.try_into().map_err(|_| format!("wanted {N} values, these are {n}"))
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(T::write).collect())
    }
}

/// What values an option may take, beyond its type.
pub(super) trait Range<T> {
    fn holds(&self, value: &T) -> bool;
    /// In words; empty when everything goes.
    fn words(&self) -> String;
}

/// Everything of the type.
pub(super) struct Any;
/// Above the first, up to the second.
pub(super) struct Above(f32, f32);
/// Each item in this range.
pub(super) struct Each<R>(R);

impl<T> Range<T> for Any {
    fn holds(&self, _: &T) -> bool {
        true
    }
    fn words(&self) -> String {
        String::new()
    }
}
impl<T: PartialOrd + std::fmt::Display> Range<T> for RangeInclusive<T> {
    fn holds(&self, value: &T) -> bool {
        self.contains(value)
    }
    fn words(&self) -> String {
        format!("{} to {}", self.start(), self.end())
    }
}
impl Range<f32> for Above {
    fn holds(&self, value: &f32) -> bool {
        *value > self.0 && *value <= self.1
    }
    fn words(&self) -> String {
        format!("more than {}, up to {}", self.0, self.1)
    }
}
impl<T, R: Range<T>, const N: usize> Range<[T; N]> for Each<R> {
    fn holds(&self, value: &[T; N]) -> bool {
        value.iter().all(|v| self.0.holds(v))
    }
    fn words(&self) -> String {
        format!("each {}", self.0.words())
    }
}

/// One option, described.
#[derive(Clone, Debug)]
pub struct OptionInfo {
    /// Its key inside a section.
    pub key: &'static str,
    /// What it is, with its unit.
    pub doc: String,
    /// Its type in words.
    pub kind: String,
    /// Its range in words; may be empty.
    pub range: String,
    /// The sections that have it, each with its default.
    pub sections: Vec<(Section, Value)>,
}

/// A struct of options that one or more sections of the file fill.
pub(super) trait Group {
    /// Every option of the group, in order.
    fn table() -> Vec<OptionInfo>
    where
        Self: Sized;
    fn get(&self, key: &str) -> Option<Value>;
    /// Sets `key`; `Err` holds what is wrong with the value.
    fn set(&mut self, key: &str, value: &Value) -> Result<(), String>;
}

macro_rules! options {
    ($($(#[$gdoc:meta])* $group:ident in [$($section:ident),+] {
        $($(#[doc = $doc:literal])+ $key:ident: $ty:ty = $default:expr
            $(=> [$($over:ident: $value:expr),+])?, $range:expr $(, only [$($only:ident),+])?;)+
    })+) => {$(
        $(#[$gdoc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $group { $($(#[doc = $doc])+ pub $key: $ty,)+ }

        impl $group {
            const SECTIONS: &[Section] = &[$(Section::$section),+];

            /// The defaults of one of the group's sections.
            pub fn defaults(section: Section) -> Self {
                Self { $($key: match section { $($(Section::$over => $value,)+)? _ => $default },)+ }
            }
        }

        impl Group for $group {
            fn table() -> Vec<OptionInfo> {
                vec![$({
                    let only: &[&[Section]] = &[$(&[$(Section::$only),+])?];
                    let sections = only.first().copied().unwrap_or(Self::SECTIONS);
                    OptionInfo {
                        key: stringify!($key),
                        doc: [$($doc),+].map(str::trim).join(" "),
                        kind: <$ty>::kind(),
                        range: Range::<$ty>::words(&$range),
                        sections: sections.iter().map(|&s| (s, Self::defaults(s).$key.write())).collect(),
                    }
                }),+]
            }
            fn get(&self, key: &str) -> Option<Value> {
                match key {
                    $(stringify!($key) => Some(self.$key.write()),)+
                    _ => None,
                }
            }
            fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
                match key {
                    $(stringify!($key) => {
                        let read = <$ty>::read(value)?;
                        let range = $range;
                        if !Range::<$ty>::holds(&range, &read) {
                            return Err(format!("wanted {}", Range::<$ty>::words(&range)));
                        }
                        self.$key = read;
                    })+
                    _ => return Err("unknown".into()),
                }
                Ok(())
            }
        }
    )+};
}

field_names!(Latents = Latents::NAMES);
field_names!(LqResize = LqResize::NAMES);
field_names!(LrSchedule {
    Constant = "constant",
    DecayHalf = "decay-half",
});
field_names!(Spectrum {
    Full = "full",
    Half = "half",
});
field_names!(Weight {
    Raw = "raw",
    MeanOne = "mean-one",
});
field_names!(Adversary {
    Lora = "lora",
    Riesz = "riesz",
    None = "none",
});

choice! {
    /// A section of the config file.
    Section {
        /// The run as a whole.
        Run = "run",
        /// Images and their degradation.
        Data = "data",
        /// The transformer.
        Model = "model",
        /// Stage 1 of 4: the base model, all weights.
        Base = "base",
        /// Stage 2 of 4: the super-resolution adapter.
        Sft = "sft",
        /// Stage 3 of 4: the adversary's adapter.
        Adversary = "adversary",
        /// Stage 4 of 4: the preference adapter.
        Asdpo = "asdpo",
    }
    /// A training stage.
    StageName {
        /// All weights, from nothing.
        Base = "base",
        /// The super-resolution adapter.
        Sft = "sft",
        /// The adapter that imitates a bad upscaler.
        Adversary = "adversary",
        /// The preference adapter, trained with AS-DPO.
        Asdpo = "asdpo",
    }
    /// The numbers that a forward pass computes in.
    Precision {
        /// IEEE single precision, with true f32 products.
        F32 = "f32",
        /// bfloat16 with f32 sums and an f32 residual stream; on CUDA devices.
        Bf16 = "bf16",
    }
    /// How a low-quality picture is made.
    DegradationKind {
        /// One blur, a shrink, noise.
        Light = "light",
        /// Real-ESRGAN's second order.
        RealEsrgan = "real-esrgan",
    }
    /// Noise and noise level of the dataset loser.
    LoserNoise {
        /// Its own draw.
        Own = "own",
        /// The winner's.
        Shared = "shared",
    }
}

impl Precision {
    /// Of the activations beside the residual stream.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        }
    }
}

options! {
    /// `[run]`
    RunOptions in [Run] {
        /// Seed of every random draw.
        seed: u64 = 0, 0..=i64::MAX as u64;
        /// A finished run to take the base, the codec and the adapters from that the stages here do not make; empty: none.
        from: String = String::new(), Any;
        /// The preset this configuration started from.
        preset: String = "tiny".to_owned(), Any;
        /// Numbers between the residual stream, which is f32, and parameters, which are: f32, or bf16 on a GPU.
        precision: Precision = Precision::F32, Any;
        /// Worker threads; 0: one per core.
        threads: usize = 0, 0..=4096;
        /// Stages to run, in order.
        stages: Vec<StageName> = vec![StageName::Base, StageName::Sft, StageName::Adversary, StageName::Asdpo], Any;
        /// Held-out crops in the evaluation.
        eval_crops: usize = 48, 1..=1_000_000;
        /// Euler steps of the sampler in the evaluation: 4 is closer to the input, 8 richer in texture.
        eval_steps: usize = 4, 1..=1000;
        /// Held-out crops restored and measured during training; always the same ones, with the same noise.
        validation_crops: usize = 8, 1..=1024;
        /// Newest checkpoints to keep.
        keep_last: usize = 2, 1..=10000;
        /// Checkpoints to keep besides, for ever: those at multiples of this many updates; 0: none.
        keep_every: usize = 0, 0..=100_000_000;
    }

    /// `[data]`
    DataOptions in [Data] {
        /// Where images come from: "dead-leaves" (drawn by the program), a folder of pictures, or one of pairs: gt/ and lr/.
        source: String = "dead-leaves".to_owned(), Any;
        /// Drawn images in all, held-out ones included (dead leaves only; of a folder every picture is taken).
        images: usize = 144, 0..=100_000_000;
        /// Seed of the drawn images, apart from run.seed so that runs are judged on the same ones (dead leaves only).
        seed: u64 = DeadLeavesSource::RECIPE_SEED, 0..=i64::MAX as u64;
        /// Side of a drawn image, in pixels (dead leaves only).
        image_size: usize = 192, 8..=16384;
        /// Images kept out of training, for the evaluation; of a folder a quarter at most.
        held_out: usize = 24, 1..=1_000_000;
        /// Names of the pictures to keep out of training, without what follows the last dot, in place of the last ones
        /// (folders only).
        held_out_names: Vec<String> = Vec::new(), Any;
        /// Different training samples (crop, flips, degradation) there are in all; 0: no end of them.
        pool: usize = 0, 0..=100_000_000;
        /// Folder to keep the latents of a pool in, for this run and others on the same kind of device; empty: they are made
        /// each time.
        latent_cache: String = String::new(), Any;
        /// Memory for decoded pictures, in MiB; more of them than fit are read again (folders only).
        memory: usize = 1024, 1..=1_048_576;
        /// The latent codec: "haar", fitted to the images, or a folder or file with the weights of FLUX.1's autoencoder
        /// (diffusers' or ae.safetensors) or of TAEF1, whose latents are FLUX.1's, too (crop: a multiple of 16). Such a
        /// network works on the training device.
        codec: String = Codec::HAAR.to_owned(), Any;
        /// Which latents a picture has where the codec gives a distribution: a sample, always the same of the same picture,
        /// or the most probable ones (FLUX.1's autoencoder only).
        latents: Latents = Latents::Sample, Any;
        /// Side of a training crop, in pixels of the high-quality image.
        crop: usize = 64, 8..=8192;
        /// Super-resolution factor.
        scale: usize = 4, 2..=16;
        /// How low-quality pictures are made: one blur, a shrink and noise, or Real-ESRGAN's second-order degradation, which
        /// sharpens the targets too.
        degradation: DegradationKind = DegradationKind::Light, Any;
        /// Width of the blurs, from their mildest form to the full one (real-esrgan only, as the five that follow).
        blur_strength: f32 = 1.0, 0.0..=1.0;
        /// All of the second round of blur, resize and noise, and how rarely there is none.
        second_strength: f32 = 1.0, 0.0..=1.0;
        /// How frequent low-passes that ring are.
        ringing_strength: f32 = 1.0, 0.0..=1.0;
        /// How frequent and how far the resizes before the last one are.
        resize_strength: f32 = 1.0, 0.0..=1.0;
        /// How strong noise is, and how often it is Gaussian.
        noise_strength: f32 = 1.0, 0.0..=1.0;
        /// How strong JPEG compression is.
        jpeg_strength: f32 = 1.0, 0.0..=1.0;
        /// Least standard deviation of the Gaussian blur, in pixels (light only, as the four that follow).
        blur_min: f32 = 0.2, 0.0..=10.0;
        /// Greatest standard deviation of the Gaussian blur, in pixels.
        blur_max: f32 = 1.5, 0.0..=10.0;
        /// Greatest standard deviation of the noise, in units of 1/255.
        noise_max: f32 = 3.0, 0.0..=255.0;
        /// Least JPEG quality; 0 with jpeg_max = 0: no JPEG.
        jpeg_min: usize = 0, 0..=100;
        /// Greatest JPEG quality; 0 with jpeg_min = 0: no JPEG.
        jpeg_max: usize = 0, 0..=100;
        /// How the low-quality image is brought to the target size; stored with the adapter, used by inference too.
        lq_resize: LqResize = LqResize::TorchBicubic, Any;
    }

    /// `[model]`
    ModelOptions in [Model] {
        /// A base model from elsewhere: FLUX.1-dev's folder as diffusers has it, flux1-dev.safetensors, or random:flux-dev, to
        /// try speed and memory. Its dimensions then are those below. Empty: one that stage base trains, or run.from has.
        base: String = String::new(), Any;
        /// Width of the transformer.
        dim: usize = 128, 8..=65536;
        /// Attention heads.
        heads: usize = 4, 1..=1024;
        /// Double-stream blocks.
        double: usize = 1, 0..=4096;
        /// Single-stream blocks.
        single: usize = 4, 1..=4096;
        /// Width of an MLP's hidden layer over the transformer's width.
        mlp_ratio: f32 = 4.0, Above(0.0, 64.0);
        /// Head values turned by the text, row and column position; even, and summing to dim / heads.
        axes: [usize; 3] = [4, 14, 14], Each(0..=4096);
        /// Base of the rotary frequencies.
        theta: f32 = 100.0, Above(1.0, 1e9);
    }

    /// What every training stage has: `[base]`, `[sft]`, `[adversary]`, `[asdpo]`.
    StageOptions in [Base, Sft, Adversary, Asdpo] {
        /// Optimizer updates.
        steps: usize = 2570 => [Sft: 340, Adversary: 310, Asdpo: 80], 1..=100_000_000;
        /// Samples per forward and backward.
        batch: usize = 8 => [Asdpo: 4], 1..=65536;
        /// Batches whose gradients are averaged into one update.
        accumulation: usize = 1, 1..=65536;
        /// Learning rate after the warm-up.
        lr: f32 = 3e-3 => [Sft: 1e-3, Adversary: 2e-3, Asdpo: 5e-4], 0.0..=1.0;
        /// Updates over which the learning rate rises from 0.
        warmup: usize = 50 => [Sft: 20, Adversary: 20, Asdpo: 20], 0..=100_000_000;
        /// The learning rate after the warm-up: constant, or falling to 0 over the second half.
        schedule: LrSchedule = LrSchedule::DecayHalf => [Sft: LrSchedule::Constant, Adversary: LrSchedule::Constant], Any;
        /// AdamW: decay of the first moment.
        beta1: f32 = 0.9, 0.0..=0.9999;
        /// AdamW: decay of the second moment.
        beta2: f32 = 0.999 => [Base: 0.99], 0.0..=0.999999;
        /// AdamW: added to the root of the second moment.
        eps: f32 = 1e-8, Above(0.0, 1.0);
        /// AdamW: decoupled weight decay, on matrices only.
        weight_decay: f32 = 0.01, 0.0..=10.0;
        /// Greatest norm of the gradient; 0: no clipping.
        clip: f32 = 1.0, 0.0..=1e9;
        /// Recompute activations in the backward pass instead of keeping them: less memory, more time, same bits.
        recompute: bool = false, Any;
        /// Decay of the running average of the weights (EMA), which is what the stage then saves; 0: no average.
        ema: f32 = 0.0, 0.0..=0.999999;
        /// Updates between two checkpoints; one more is written when the stage ends.
        checkpoint_every: usize = 500 => [Sft: 100, Adversary: 100, Asdpo: 20], 1..=100_000_000;
        /// Updates between two validations, besides those at the stage's beginning and end; 0: none at all.
        validate_every: usize = 500 => [Sft: 100, Adversary: 100, Asdpo: 20], 0..=100_000_000;
        /// Rank of the stage's adapter.
        rank: usize = 0 => [Sft: 16, Adversary: 16, Asdpo: 16], 1..=4096, only [Sft, Adversary, Asdpo];
        /// The adapter's alpha; its output is scaled by alpha / rank.
        alpha: f32 = 0.0 => [Sft: 16.0, Adversary: 16.0, Asdpo: 16.0], Above(0.0, 65536.0), only [Sft, Adversary, Asdpo];
    }

    /// What `[sft]` has besides: a light degradation other than the base's, so that there is something to learn.
    SftOptions in [Sft] {
        /// Greatest blur in this stage, in pixels; 0: that of data.blur_max.
        blur_max: f32 = 0.0, 0.0..=10.0;
        /// Greatest noise in this stage, in units of 1/255; 0: that of data.noise_max.
        noise_max: f32 = 0.0, 0.0..=255.0;
    }

    /// What `[adversary]` has besides: what it learns to imitate.
    AdversaryOptions in [Adversary] {
        /// A folder of pairs, gt/ and lr/, with some upscaler's outputs in neg/; empty: data.source. Pictures called as one
        /// held out are left out.
        source: String = String::new(), Any;
        /// The folder of the upscaler's outputs, if it is not neg/; where there are none, the program makes bad ones itself.
        negatives: String = String::new(), Any;
    }

    /// What `[asdpo]` has besides: the preference objective (METHOD §4 to §6).
    PreferenceOptions in [Asdpo] {
        /// DPO's β; the loss multiplies energy gaps by half of it. Belongs to a resolution where weight = "raw".
        beta: f32 = 500.0, Above(0.0, 1e9);
        /// Steer β so that the mean of σ(−argument), the factor on the gradient, settles here (0.2, say); 0: β stays.
        auto_beta: f32 = 0.0, 0.0..=0.45;
        /// Weight of the losers' gaps against the winner's; below 1 the policy flees the losers less.
        loser_weight: f32 = 1.0, Above(0.0, 10.0);
        /// Weight of the mean squared distance between the policy's and the reference's velocities; 0: none.
        anchor: f32 = 0.0, 0.0..=1e6;
        /// Weight of plain flow matching on the winners, mixed into the loss; 0: none.
        sft_mix: f32 = 0.0, 0.0..=1e6;
        /// Order of the Sobolev norm; 0: the plain mean squared error.
        s: f32 = 1.5, -8.0..=8.0;
        /// How far the adversarial loser lies from the winner towards the adversary's estimate.
        lambda: f32 = 1.0, Above(0.0, 1.0);
        /// Frequencies the norm sums: the whole plane, or those of a real FFT once each as the reference does.
        spectrum: Spectrum = Spectrum::Full, Any;
        /// The norm's weight as it stands, or divided by its mean over the plane.
        weight: Weight = Weight::MeanOne, Any;
        /// Noise and noise level of the dataset loser: its own draw, or the winner's.
        loser_noise: LoserNoise = LoserNoise::Own, Any;
        /// Where the adversarial loser comes from; "none" leaves the dataset loser alone.
        adversary: Adversary = Adversary::Lora, Any;
        /// Radius of the Riesz perturbation, in units of the root of the residual's energy (adversary = "riesz").
        rho: f32 = 0.1, Above(0.0, 1e6);
    }
}

impl DataOptions {
    /// How strong each part of Real-ESRGAN's degradation is; of each the decimal that was written.
    pub fn strengths(&self) -> Strengths {
        let exact = |v: f32| v.to_string().parse().unwrap_or(f64::from(v));
        Strengths {
            blur: exact(self.blur_strength),
            second: exact(self.second_strength),
            ringing: exact(self.ringing_strength),
            resize: exact(self.resize_strength),
            noise: exact(self.noise_strength),
            jpeg: exact(self.jpeg_strength),
        }
    }
}

impl StageOptions {
    /// Learning rate of update `step`, from 0.
    pub fn lr_at(&self, step: usize) -> f32 {
        self.schedule.lr(f64::from(self.lr), step, self.warmup, self.steps) as f32
    }
}

impl PreferenceOptions {
    /// The Sobolev metric these options describe; the exponent as the decimal that was written.
    pub fn metric(&self) -> Metric {
        let s = self.s.to_string().parse().unwrap_or(f64::from(self.s));
        Metric { s, spectrum: self.spectrum, weight: self.weight }
    }
}
