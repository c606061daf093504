//! Training pairs and batches, and the evaluation set.
//!
//! Sample `i` of a stage is a pure function of (seed, stage, `i`); step `t` of batch size `B` takes samples
//! `t·B … t·B + B − 1`. Evaluation crops depend on nothing but the pictures, so that every run and seed is judged alike.

use std::sync::Arc;

use rayon::prelude::*;

use crate::data::{
    Codec, Degradation, Domain, HaarCodec, Image, LatentCache, LqResize, Part, Source, Split, bad_upscale,
    draws,
};
use crate::engine::random::Reader;
use crate::{Error, Result};

/// Most pictures that a codec is fitted on.
const FITTED: usize = 256;

/// Draws training pairs and evaluation pairs from a source.
#[derive(Clone)]
pub struct Sampler {
    source: Arc<dyn Source>,
    split: Split,
    crop: usize,
    degradation: Degradation,
    codec: Codec,
    lq_resize: LqResize,
    seed: u64,
    pool: Option<Pool>,
    cache: Option<Arc<LatentCache>>,
}

/// The samples that training keeps to: so many, of this seed.
#[derive(Clone, Copy)]
struct Pool {
    size: usize,
    seed: u64,
}

/// A batch, as far as any thread can make it: [`Sampler::latents`] makes `[batch, channels, side, side]`, row-major, of its
/// parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Samples.
    pub batch: usize,
    /// Latent channels.
    pub channels: usize,
    /// Latent height and width.
    pub side: usize,
    /// The good pictures; or [`bad_upscale`] of the bad ones, or what the source has in its place.
    pub target: Vec<Plane>,
    /// The bad pictures, enlarged to the good ones' size and clamped; see [`LqResize`].
    pub cond: Vec<Plane>,
}

/// A picture on its way to its latents.
#[derive(Clone, Debug, PartialEq)]
pub enum Plane {
    /// It has arrived.
    Latents(Vec<f32>),
    /// It waits for the codec, a network that works for one thread: the one that launches on its device.
    Picture(Image),
}

/// One training sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The good picture, `[3, crop, crop]`.
    pub hq: Image,
    /// The bad picture, `[3, crop/scale, crop/scale]`.
    pub lq: Image,
    /// What some upscaler made of the bad picture, where the source has that.
    pub neg: Option<Image>,
}

/// One evaluation sample.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalPair {
    /// The good picture, `[3, crop, crop]`; sharpened, if the degradation sharpens its targets.
    pub hq: Image,
    /// The bad picture, `[3, crop/scale, crop/scale]`.
    pub lq: Image,
    /// What some upscaler made of the bad picture, where the source has that.
    pub neg: Option<Image>,
    /// The picture it was cut from.
    pub name: String,
    /// Left column of the crop in that picture.
    pub x: usize,
    /// Top row of the crop in that picture.
    pub y: usize,
}

impl Sampler {
    /// Checks that everything fits: a crop the codec and the scale divide, pictures no smaller than it, a split that
    /// names pictures that exist and none twice.
    pub fn new(
        source: Arc<dyn Source>,
        split: Split,
        crop: usize,
        degradation: Degradation,
        codec: impl Into<Codec>,
        seed: u64,
    ) -> Result<Self> {
        degradation.check()?;
        let codec = codec.into();
        let (block, scale) = (codec.block(), degradation.scale());
        if crop == 0 || !crop.is_multiple_of(block) || !crop.is_multiple_of(scale) {
            return Err(Error::Usage(format!(
                "crop {crop} must be a multiple of the codec's block ({block}) and of the scale ({scale})"
            )));
        }
        check_split(&*source, &split, crop)?;
        let lq_resize = LqResize::TorchBicubic;
        Ok(Self { source, split, crop, degradation, codec, lq_resize, seed, pool: None, cache: None })
    }

    /// Brings the bad picture to the good one's size in another way than [`LqResize::TorchBicubic`].
    pub fn resizing(mut self, lq_resize: LqResize) -> Self {
        self.lq_resize = lq_resize;
        self
    }

    /// Every training sample is one of `size` that follow from `seed` and not from the run's: the same for all stages and
    /// runs, so that their latents can be kept. At 0 there is no end of samples.
    pub fn pooling(mut self, size: usize, seed: u64) -> Self {
        self.pool = (size > 0).then_some(Pool { size, seed });
        self
    }

    /// Takes latents from `cache`, and puts them there.
    pub fn caching(mut self, cache: Arc<LatentCache>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// How the bad picture is brought to the good one's size.
    pub fn lq_resize(&self) -> LqResize {
        self.lq_resize
    }

    /// The pictures.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Which of them train.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// Side of the square crops of the good picture, pixels.
    pub fn crop(&self) -> usize {
        self.crop
    }

    /// How the bad picture comes from the good one.
    pub fn degradation(&self) -> &Degradation {
        &self.degradation
    }

    /// Pictures to latents.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Seed of every training draw.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A codec fitted on the training pictures of `split`, whole; of more than 256 on so many at most.
    pub fn fit_codec(source: &dyn Source, split: &Split) -> Result<HaarCodec> {
        check_split(source, split, 1)?;
        // Of many pictures some, evenly spread.
        let some = split.train.iter().step_by(split.train.len().div_ceil(FITTED));
        let mut failed = None;
        let images = some.map_while(|&i| source.image(i).map_err(|why| failed = Some(why)).ok());
        let codec = HaarCodec::fit(images);
        failed.map_or(codec, Err)
    }

    /// Training sample `sample_index` of `stage`: a crop, flipped and transposed at random, and its partners.
    pub fn sample(&self, stage: u64, sample_index: u64) -> Result<Sample> {
        let mut rng = draws(self.seed, Domain::Train, stage, sample_index);
        if let Some(Pool { size, seed }) = self.pool {
            rng = draws(seed, Domain::Pool, rng.below(size) as u64, self.crop as u64);
        }
        let picture = self.split.train[rng.below(self.split.train.len())];
        let mut crop = self.random_crop(picture, &mut rng)?;
        let coins = rng.word();
        crop.each(|image| {
            if coins & 1 != 0 {
                *image = image.flip_horizontal();
            }
            if coins & 2 != 0 {
                *image = image.flip_vertical();
            }
            if coins & 4 != 0 {
                *image = image.transpose();
            }
        });
        self.degraded(crop, &mut rng)
    }

    /// The batch of `step` (from 0) of `stage`, whose targets are the good pictures or, `towards_bad`, the bad upscaler's.
    pub fn batch(&self, stage: u64, step: u64, batch: usize, towards_bad: bool) -> Result<Batch> {
        let first = step * batch as u64;
        let one = |i: u64| -> Result<(Plane, Plane)> {
            let Sample { hq, lq, neg } = self.sample(stage, first + i)?;
            let target = match (towards_bad, neg) {
                (true, Some(neg)) => neg,
                (true, None) => bad_upscale(&lq, self.degradation.scale()),
                (false, _) => hq,
            };
            Ok((self.plane(target)?, self.plane(self.enlarged(&lq))?))
        };
        let samples: Vec<_> = (0..batch as u64).into_par_iter().map(one).collect();
        let (target, cond) = samples.into_iter().collect::<Result<_>>()?;
        let (channels, side) = (self.codec.channels(), self.crop / self.codec.block());
        Ok(Batch { batch, channels, side, target, cond })
    }

    /// `image` with what can be done for it beside a device's work.
    fn plane(&self, image: Image) -> Result<Plane> {
        if self.codec.device().is_none() {
            return self.encode(&image).map(Plane::Latents);
        }
        let kept = self.cache.as_ref().and_then(|cache| cache.find(&image, self.values(&image)));
        Ok(kept.map_or(Plane::Picture(image), Plane::Latents))
    }

    /// The latents of `planes`, one after the other: a network has but one picture at a time in memory.
    pub fn latents(&self, planes: &[Plane]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for plane in planes {
            match plane {
                Plane::Latents(values) => all.extend_from_slice(values),
                Plane::Picture(image) => all.extend(self.encode(image)?),
            }
        }
        Ok(all)
    }

    /// The same pictures, split and codec under another degradation.
    pub fn with_degradation(&self, degradation: Degradation) -> Result<Self> {
        degradation.check()?;
        Ok(Self { degradation, ..self.clone() })
    }

    /// The latents a model is conditioned on for the bad picture `lq`: enlarged, clamped, encoded.
    pub fn condition(&self, lq: &Image) -> Result<Vec<f32>> {
        self.encode(&self.enlarged(lq))
    }

    /// The bad picture `lq` at the good one's size.
    fn enlarged(&self, lq: &Image) -> Image {
        let scale = self.degradation.scale();
        self.lq_resize.apply(lq, lq.height * scale, lq.width * scale)
    }

    /// Latents `[channels, h/block, w/block]` of a picture.
    pub fn encode(&self, image: &Image) -> Result<Vec<f32>> {
        let encode = || self.codec.encode(image);
        self.cache.as_ref().map_or_else(encode, |cache| cache.get(image, self.values(image), encode))
    }

    /// How many latents `image` has.
    fn values(&self, image: &Image) -> usize {
        let block = self.codec.block();
        self.codec.channels() * (image.height / block) * (image.width / block)
    }

    /// The first `n_crops` evaluation samples: crops cycle over the held-out pictures, without flips. The same for every
    /// training seed.
    pub fn held_out(&self, n_crops: usize) -> Result<Vec<EvalPair>> {
        let pictures = &self.split.held_out;
        if pictures.is_empty() {
            return Err(Error::Usage("split: no picture is held out; evaluation needs at least one".into()));
        }
        let pairs: Vec<Result<EvalPair>> = (0..n_crops)
            .into_par_iter()
            .map(|i| {
                let mut rng = draws(0, Domain::HeldOut, i as u64, self.crop as u64);
                let picture = pictures[i % pictures.len()];
                let crop = self.random_crop(picture, &mut rng)?;
                let (y, x) = (crop.y, crop.x);
                let Sample { hq, lq, neg } = self.degraded(crop, &mut rng)?;
                Ok(EvalPair { hq, lq, neg, name: self.source.name(picture), x, y })
            })
            .collect();
        pairs.into_iter().collect()
    }

    /// A square of picture `picture` at a random place, which of a pair is a multiple of the scale.
    fn random_crop(&self, picture: usize, rng: &mut Reader) -> Result<Crop> {
        let (height, width) = self.source.size(picture);
        let (paired, scale, side) = (self.source.has(Part::Lr), self.degradation.scale(), self.crop);
        let grid = if paired { scale } else { 1 };
        let mut place =
            |length: usize| grid * rng.below(((length + 1).saturating_sub(side)).div_ceil(grid).max(1));
        let (y, x) = (place(height), place(width));
        let cut = |part: Part, by: usize| -> Result<Option<Image>> {
            if !self.source.has(part) {
                return Ok(None);
            }
            self.source.photo(picture, part)?.crop(y / by, x / by, side / by, side / by).map(Some)
        };
        let hq = self.source.photo(picture, Part::Gt)?.crop(y, x, side, side)?;
        Ok(Crop { hq, lq: cut(Part::Lr, scale)?, neg: cut(Part::Neg, 1)?, y, x })
    }

    /// The crop with its bad picture, which is made where there is none.
    fn degraded(&self, crop: Crop, rng: &mut Reader) -> Result<Sample> {
        let Crop { hq, lq, neg, .. } = crop;
        let (hq, lq) = match lq {
            Some(lq) => (hq, lq),
            None => self.degradation.pair(hq, rng)?,
        };
        Ok(Sample { hq, lq, neg })
    }
}

/// A square of a picture and of what there is beside it, and where it was in the good picture.
struct Crop {
    hq: Image,
    lq: Option<Image>,
    neg: Option<Image>,
    y: usize,
    x: usize,
}

impl Crop {
    fn each(&mut self, f: impl FnMut(&mut Image)) {
        [Some(&mut self.hq), self.lq.as_mut(), self.neg.as_mut()].into_iter().flatten().for_each(f);
    }
}

fn check_split(source: &dyn Source, split: &Split, crop: usize) -> Result<()> {
    let n = source.len();
    let mut seen = vec![false; n];
    for &i in split.train.iter().chain(&split.held_out) {
        if i >= n || std::mem::replace(&mut seen[i], true) {
            return Err(Error::Usage(format!("split: picture {i} of {n} does not exist or is named twice")));
        }
        let (h, w) = source.size(i);
        if h.min(w) < crop {
            let name = source.name(i);
            return Err(Error::Usage(format!(
                "{name}: {w}×{h} pixels is smaller than the {crop}×{crop} crop"
            )));
        }
    }
    if split.train.is_empty() {
        return Err(Error::Usage("split: no picture to train on".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DeadLeavesSource;

    fn sampler(seed: u64) -> Sampler {
        let source: Arc<dyn Source> = Arc::new(DeadLeavesSource::new(6, 1, 96).unwrap());
        let split = Split::last(6, 2).unwrap();
        let codec = Sampler::fit_codec(&*source, &split).unwrap();
        Sampler::new(source, split, 64, Degradation::default(), codec, seed).unwrap()
    }

    #[test]
    fn a_batch_is_its_samples_whatever_the_threads() {
        let s = sampler(7);
        let batch = s.batch(2, 5, 3, true).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| s.batch(2, 5, 3, true)).unwrap(), batch);
        let size = 24 * 16 * 16;
        let good = s.latents(&s.batch(2, 5, 3, false).unwrap().target).unwrap();
        let [bad, cond] = [&batch.target, &batch.cond].map(|planes| s.latents(planes).unwrap());
        assert_eq!((good.len(), cond.len(), bad.len()), (3 * size, 3 * size, 3 * size));
        for i in 0..3 {
            let Sample { hq, lq, neg } = s.sample(2, 15 + i as u64).unwrap();
            assert_eq!(neg, None);
            assert_eq!((hq.height, hq.width, lq.height, lq.width), (64, 64, 16, 16));
            assert_eq!(s.encode(&hq).unwrap(), good[i * size..][..size]);
            assert_eq!(s.condition(&lq).unwrap(), cond[i * size..][..size]);
            assert_eq!(s.encode(&bad_upscale(&lq, 4)).unwrap(), bad[i * size..][..size]);
        }
        let other = |s: &Sampler, stage, step| s.batch(stage, step, 3, true).unwrap().target;
        assert!(
            other(&s, 3, 5) != batch.target
                && other(&s, 2, 6) != batch.target
                && other(&sampler(8), 2, 5) != batch.target
        );
    }

    /// Over many samples every training picture is met, no held-out one, and all eight orientations are.
    #[test]
    fn training_crops_come_from_training_pictures_in_all_orientations() {
        let s = sampler(1);
        let (mut pictures, mut orientations) = ([0; 6], [0; 8]);
        for i in 0..96 {
            let hq = s.sample(0, i).unwrap().hq;
            let mut found = 0;
            for (o, met) in orientations.iter_mut().enumerate() {
                let mut back = if o & 4 != 0 { hq.transpose() } else { hq.clone() };
                back = if o & 2 != 0 { back.flip_vertical() } else { back };
                back = if o & 1 != 0 { back.flip_horizontal() } else { back };
                for (p, count) in pictures.iter_mut().enumerate() {
                    if contains(&s.source.image(p).unwrap(), &back) {
                        *count += 1;
                        *met += 1;
                        found += 1;
                    }
                }
            }
            assert_eq!(found, 1, "sample {i}");
        }
        assert!(pictures[..4].iter().all(|&n| n > 10) && pictures[4..] == [0, 0], "{pictures:?}");
        assert!(orientations.iter().all(|&n| n > 3), "{orientations:?}");
    }

    #[test]
    fn a_pool_is_the_same_for_every_stage_and_run() {
        let own =
            |s: &Sampler, stage| -> Vec<Sample> { (0..64).map(|i| s.sample(stage, i).unwrap()).collect() };
        let (a, b) = (sampler(1).pooling(5, 9), sampler(2).pooling(5, 9));
        let mut kinds: Vec<Sample> = Vec::new();
        for sample in own(&a, 0).into_iter().chain(own(&b, 3)) {
            if !kinds.contains(&sample) {
                kinds.push(sample);
            }
        }
        assert_eq!(kinds.len(), 5);
        assert!(own(&a, 0) != own(&b, 0) && own(&a, 0) != own(&a, 1));
        assert!(own(&sampler(1).pooling(5, 8), 0).iter().all(|s| !kinds.contains(s)));
        assert_eq!(own(&sampler(1).pooling(0, 9), 0), own(&sampler(1), 0));
    }

    #[test]
    fn kept_latents_are_latents() {
        let dir = tempfile::tempdir().unwrap();
        let cache = || Arc::new(LatentCache::open(dir.path(), "haar").unwrap());
        let (plain, kept) = (sampler(1).pooling(3, 9), sampler(1).pooling(3, 9).caching(cache()));
        for (step, bad) in (0..4).flat_map(|step| [(step, false), (step, true)]) {
            assert_eq!(kept.batch(1, step, 4, bad).unwrap(), plain.batch(1, step, 4, bad).unwrap());
        }
        let files = |d: &std::path::Path| {
            std::fs::read_dir(d).unwrap().flatten().map(|e| e.path()).collect::<Vec<_>>()
        };
        let entries: usize = files(dir.path()).iter().map(|d| files(d).len()).sum();
        assert_eq!(entries, 9, "three samples: good, bad, worse");
    }

    fn contains(image: &Image, crop: &Image) -> bool {
        let (h, w) = (crop.height, crop.width);
        (0..=image.height - h).any(|y| {
            (0..=image.width - w).any(|x| {
                image.data[y * image.width + x..][..w] == crop.data[..w]
                    && image.crop(y, x, h, w).is_ok_and(|window| window == *crop)
            })
        })
    }

    #[test]
    fn evaluation_crops_are_held_out_and_do_not_depend_on_the_seed() {
        let s = sampler(1);
        let pairs = s.held_out(5).unwrap();
        assert_eq!(pairs, sampler(2).held_out(5).unwrap());
        assert_eq!(pairs[..3], s.held_out(3).unwrap());
        for (i, p) in pairs.iter().enumerate() {
            assert_eq!(p.name, format!("dead-leaves-{:04}", 4 + i % 2));
            assert_eq!(p.hq, s.source.image(4 + i % 2).unwrap().crop(p.y, p.x, 64, 64).unwrap());
            assert_eq!((p.lq.height, p.lq.width), (16, 16));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = sampler(1);
        let make = |split: Split, crop: usize| {
            let (source, codec) = (Arc::clone(&good.source), good.codec.clone());
            Sampler::new(source, split, crop, Degradation::default(), codec, 0)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        let split =
            |train: &[usize], held_out: &[usize]| Split { train: train.into(), held_out: held_out.into() };
        assert!(make(split(&[0], &[1]), 62).contains("multiple"));
        assert!(make(split(&[0], &[1]), 128).contains("96×96"));
        assert!(make(split(&[0, 6], &[1]), 64).contains("picture 6 of 6"));
        assert!(make(split(&[0, 1], &[1]), 64).contains("twice"));
        assert!(make(split(&[], &[1]), 64).contains("to train on"));
        let blind = Sampler::new(
            Arc::clone(&good.source),
            split(&[0], &[]),
            64,
            Degradation::default(),
            good.codec.clone(),
            0,
        );
        assert!(blind.unwrap().held_out(1).unwrap_err().to_string().contains("at least one"));
    }
}
