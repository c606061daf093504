//! Training pairs and batches, and the evaluation set.
//!
//! Sample `i` of a stage is a pure function of (seed, stage, `i`); step `t` of batch size `B` takes samples
//! `t·B … t·B + B − 1`. Evaluation crops depend on nothing but the pictures, so that every run and seed is judged alike.

use std::sync::Arc;

use rayon::prelude::*;

use crate::data::{Degradation, Domain, HaarCodec, Image, LqResize, Source, Split, bad_upscale, draws};
use crate::engine::random::Reader;
use crate::{Error, Result};

/// Draws training pairs and evaluation pairs from a source.
pub struct Sampler {
    source: Arc<dyn Source>,
    split: Split,
    crop: usize,
    degradation: Degradation,
    codec: HaarCodec,
    lq_resize: LqResize,
    seed: u64,
}

/// A batch of latents; each tensor is `[batch, channels, side, side]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Samples.
    pub batch: usize,
    /// Latent channels (24).
    pub channels: usize,
    /// Latent height and width (crop / 4).
    pub side: usize,
    /// Latents of the good pictures.
    pub hq: Vec<f32>,
    /// Latents of the bad pictures, enlarged to the good ones' size and clamped; see [`LqResize`].
    pub cond: Vec<f32>,
    /// Latents of [`bad_upscale`] of the bad pictures, where they were asked for.
    pub bad: Option<Vec<f32>>,
}

/// One evaluation sample.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalPair {
    /// The good picture, `[3, crop, crop]`; sharpened, if the degradation sharpens its targets.
    pub hq: Image,
    /// The bad picture, `[3, crop/scale, crop/scale]`.
    pub lq: Image,
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
        codec: HaarCodec,
        seed: u64,
    ) -> Result<Self> {
        degradation.check()?;
        let (block, scale) = (codec.block(), degradation.scale());
        if crop == 0 || !crop.is_multiple_of(block) || !crop.is_multiple_of(scale) {
            return Err(Error::Usage(format!(
                "crop {crop} must be a multiple of the codec's block ({block}) and of the scale ({scale})"
            )));
        }
        check_split(&*source, &split, crop)?;
        let lq_resize = LqResize::TorchBicubic;
        Ok(Self { source, split, crop, degradation, codec, lq_resize, seed })
    }

    /// Brings the bad picture to the good one's size in another way than [`LqResize::TorchBicubic`].
    pub fn resizing(mut self, lq_resize: LqResize) -> Self {
        self.lq_resize = lq_resize;
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
    pub fn codec(&self) -> &HaarCodec {
        &self.codec
    }

    /// Seed of every training draw.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A codec fitted on the training pictures of `split`, whole.
    pub fn fit_codec(source: &dyn Source, split: &Split) -> Result<HaarCodec> {
        check_split(source, split, 1)?;
        HaarCodec::fit(split.train.iter().map(|&i| source.image(i)))
    }

    /// Training sample `sample_index` of `stage`: the good crop (flipped and transposed at random) and its bad version.
    pub fn pair(&self, stage: u64, sample_index: u64) -> Result<(Image, Image)> {
        let mut rng = draws(self.seed, Domain::Train, stage, sample_index);
        let picture = self.split.train[rng.below(self.split.train.len())];
        let (mut hq, ..) = self.random_crop(picture, &mut rng)?;
        let coins = rng.word();
        if coins & 1 != 0 {
            hq = hq.flip_horizontal();
        }
        if coins & 2 != 0 {
            hq = hq.flip_vertical();
        }
        if coins & 4 != 0 {
            hq = hq.transpose();
        }
        self.degradation.pair(hq, &mut rng)
    }

    /// The batch of `step` (from 0) of `stage`; `with_bad` adds the bad upscaler's latents.
    pub fn batch(&self, stage: u64, step: u64, batch: usize, with_bad: bool) -> Result<Batch> {
        let first = step * batch as u64;
        let samples: Vec<Result<[Vec<f32>; 3]>> = (0..batch as u64)
            .into_par_iter()
            .map(|i| {
                let (hq, lq) = self.pair(stage, first + i)?;
                let bad = if with_bad {
                    self.encode(&bad_upscale(&lq, self.degradation.scale()))?
                } else {
                    Vec::new()
                };
                Ok([self.encode(&hq)?, self.condition(&lq)?, bad])
            })
            .collect();
        let (channels, side) = (self.codec.channels(), self.crop / self.codec.block());
        let mut all = [(); 3].map(|()| Vec::with_capacity(batch * channels * side * side));
        for sample in samples {
            for (to, part) in all.iter_mut().zip(sample?) {
                to.extend(part);
            }
        }
        let [hq, cond, bad] = all;
        Ok(Batch { batch, channels, side, hq, cond, bad: with_bad.then_some(bad) })
    }

    /// The same pictures, split and codec under another degradation.
    pub fn with_degradation(&self, degradation: Degradation) -> Result<Self> {
        let (source, split, codec) = (self.source.clone(), self.split.clone(), self.codec.clone());
        Ok(Self::new(source, split, self.crop, degradation, codec, self.seed)?.resizing(self.lq_resize))
    }

    /// The latents a model is conditioned on for the bad picture `lq`: enlarged, clamped, encoded.
    pub fn condition(&self, lq: &Image) -> Result<Vec<f32>> {
        let scale = self.degradation.scale();
        self.encode(&self.lq_resize.apply(lq, lq.height * scale, lq.width * scale))
    }

    /// Latents `[24, h/4, w/4]` of a picture.
    pub fn encode(&self, image: &Image) -> Result<Vec<f32>> {
        let block = self.codec.block();
        let mut z = vec![0.0; self.codec.channels() * (image.height / block) * (image.width / block)];
        self.codec.encode(image, &mut z)?;
        Ok(z)
    }

    /// The first `n_crops` evaluation samples: crops cycle over the held-out pictures, without flips. The same for every
    /// training seed.
    pub fn held_out(&self, n_crops: usize) -> Result<Vec<EvalPair>> {
        let pictures = &self.split.held_out;
        let pairs: Vec<Result<EvalPair>> = (0..n_crops)
            .into_par_iter()
            .map(|i| {
                let mut rng = draws(0, Domain::HeldOut, i as u64, self.crop as u64);
                let picture = pictures[i % pictures.len()];
                let (hq, y, x) = self.random_crop(picture, &mut rng)?;
                let (hq, lq) = self.degradation.pair(hq, &mut rng)?;
                Ok(EvalPair { hq, lq, name: self.source.name(picture), x, y })
            })
            .collect();
        pairs.into_iter().collect()
    }

    fn random_crop(&self, picture: usize, rng: &mut Reader) -> Result<(Image, usize, usize)> {
        let photo = self.source.photo(picture);
        let place = |rng: &mut Reader, side: usize| rng.below((side + 1).saturating_sub(self.crop).max(1));
        let y = place(rng, photo.height());
        let x = place(rng, photo.width());
        Ok((photo.crop(y, x, self.crop, self.crop)?, y, x))
    }
}

fn check_split(source: &dyn Source, split: &Split, crop: usize) -> Result<()> {
    let n = source.len();
    let mut seen = vec![false; n];
    for &i in split.train.iter().chain(&split.held_out) {
        if i >= n || std::mem::replace(&mut seen[i], true) {
            return Err(Error::Usage(format!("split: picture {i} of {n} does not exist or is named twice")));
        }
        let (h, w) = (source.photo(i).height(), source.photo(i).width());
        if h.min(w) < crop {
            let name = source.name(i);
            return Err(Error::Usage(format!(
                "{name}: {w}×{h} pixels is smaller than the {crop}×{crop} crop"
            )));
        }
    }
    if split.train.is_empty() || split.held_out.is_empty() {
        let (t, e) = (split.train.len(), split.held_out.len());
        return Err(Error::Usage(format!(
            "split: {t} training and {e} held-out pictures; each needs at least one"
        )));
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
        let bad = batch.bad.as_ref().unwrap();
        assert_eq!((batch.hq.len(), batch.cond.len(), bad.len()), (3 * size, 3 * size, 3 * size));
        for i in 0..3 {
            let (hq, lq) = s.pair(2, 15 + i as u64).unwrap();
            assert_eq!((hq.height, hq.width, lq.height, lq.width), (64, 64, 16, 16));
            assert_eq!(s.encode(&hq).unwrap(), batch.hq[i * size..][..size]);
            assert_eq!(s.condition(&lq).unwrap(), batch.cond[i * size..][..size]);
            assert_eq!(s.encode(&bad_upscale(&lq, 4)).unwrap(), bad[i * size..][..size]);
        }
        assert_eq!(s.batch(2, 5, 3, false).unwrap().bad, None);
        let other = |s: &Sampler, stage, step| s.batch(stage, step, 3, true).unwrap().hq;
        assert!(
            other(&s, 3, 5) != batch.hq
                && other(&s, 2, 6) != batch.hq
                && other(&sampler(8), 2, 5) != batch.hq
        );
    }

    /// Over many samples every training picture is met, no held-out one, and all eight orientations are.
    #[test]
    fn training_crops_come_from_training_pictures_in_all_orientations() {
        let s = sampler(1);
        let (mut pictures, mut orientations) = ([0; 6], [0; 8]);
        for i in 0..96 {
            let (hq, _) = s.pair(0, i).unwrap();
            let mut found = 0;
            for (o, met) in orientations.iter_mut().enumerate() {
                let mut back = if o & 4 != 0 { hq.transpose() } else { hq.clone() };
                back = if o & 2 != 0 { back.flip_vertical() } else { back };
                back = if o & 1 != 0 { back.flip_horizontal() } else { back };
                for (p, count) in pictures.iter_mut().enumerate() {
                    if contains(&s.source.image(p), &back) {
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
            assert_eq!(p.hq, s.source.image(4 + i % 2).crop(p.y, p.x, 64, 64).unwrap());
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
        assert!(make(split(&[0], &[]), 64).contains("at least one"));
    }
}
