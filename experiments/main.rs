//! What Sobolev rectification and adversarial negatives do on real photographs, at a scale that a small machine can do.
//!
//! ```sh
//! cargo run --release --example experiment -- --photos DIR --codec TAEF1 --pairs DIR [--sr DIR] [--lpips FILE] --out DIR
//! ```
//! `photos` are good pictures; `pairs` has `gt/` and `lr/` with some upscaler's outputs in `neg/` or in `--sr`, for the
//! adversary; pictures that are held out of the one are held out of the other, by name. Each of the folds holds out other
//! photographs, has its own seed, and trains its own base, SFT and adversary; every arm (`arms.rs`) then trains its preference
//! adapter on those. What is done is not done again: run the same command after an interruption. It ends with
//! `results.md` and pictures in `--out`.

mod arms;
mod page;
mod quantum;
mod stats;

use arms::{Arm, all};
use asasr_engine::data::{Image, Sampler, pictures_of, torch_up};
use asasr_engine::engine::Device;
use asasr_engine::eval::{BORDER, Convention, Lpips, Pair};
use asasr_engine::flux::lora::AdapterFile;
use asasr_engine::flux::params::Adapter;
use asasr_engine::infer::model::{Model, layout};
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, Start, data};
use asasr_engine::{Error, Result};
use clap::Parser;
use page::{REFERENCE, Results, Scored};
use quantum::STRENGTHS;
use serde::{Serialize, de::DeserializeOwned};
use stats::Crop;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Held-out crops of a fold.
const CROPS: usize = 24;
/// Crops restored in one forward pass.
const BATCH: usize = 8;
/// Pairs whose preferences are measured.
const PAIRS: usize = 64;

#[derive(Parser)]
#[command(about = "SFT, DPO, S-DPO and AS-DPO on photographs, held out in turns")]
struct Args {
    /// Good photographs
    #[arg(long)]
    photos: PathBuf,
    /// TAEF1's weights (data.codec)
    #[arg(long)]
    codec: PathBuf,
    /// Pairs for the adversary (adversary.source)
    #[arg(long)]
    pairs: PathBuf,
    /// An upscaler's outputs of the pairs' lr/ (adversary.negatives)
    #[arg(long)]
    sr: Option<PathBuf>,
    /// LPIPS (AlexNet) weights
    #[arg(long)]
    lpips: Option<PathBuf>,
    /// Where everything goes
    #[arg(long)]
    out: PathBuf,
    /// How often the photographs take turns in being held out
    #[arg(long, default_value_t = 4)]
    folds: usize,
    /// DPO's β of the methods, rising; the sweeps are done at the middle one
    #[arg(long, value_delimiter = ',', default_value = "250,1000,4000")]
    betas: Vec<f32>,
    /// Options for every run, as train --set takes them
    #[arg(long = "set")]
    sets: Vec<String>,
}

fn main() {
    if let Err(e) = run(&Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(i32::from(e.exit_code()));
    }
}

fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    let arms = all(&args.betas);
    let lpips = args.lpips.as_ref().map(Lpips::load).transpose()?;
    let stem = |path: PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = pictures_of(&args.photos)?.into_iter().map(stem).collect();
    if args.folds < 2 || args.folds > names.len() || args.betas.is_empty() {
        let (n, b) = (names.len(), args.betas.len());
        let detail = format!("{} folds of {n} photographs and {b} values of β", args.folds);
        return Err(Error::Usage(format!("{detail}: wanted 2 to {n} folds and a β at least")));
    }
    let mut folds = Vec::new();
    for fold in 0..args.folds {
        let held_out: Vec<&str> = names.iter().skip(fold).step_by(args.folds).map(String::as_str).collect();
        println!("fold {fold}: {} held out", held_out.join(", "));
        folds.push(Fold::open(args, fold, &held_out)?.run(&arms, lpips.as_ref())?);
    }
    let results = gather(args, &arms, &folds, &names);
    let page = results.markdown();
    std::fs::write(args.out.join("results.md"), &page).map_err(Error::io(&args.out))?;
    results.pictures(&args.out)?;
    println!("{page}");
    Ok(())
}

/// Makes good pictures of bad ones; it is given the true ones, too.
type Restore<'a> = dyn Fn(&[Image], &[Image]) -> Result<Vec<Image>> + 'a;

/// What a fold measured: (method, crops) without a preference stage, then of every arm, and rounded preferences.
struct Measured {
    plain: Vec<(String, Vec<Crop>)>,
    arms: Vec<Vec<Crop>>,
    rounded: Vec<(String, f32, quantum::Preferences)>,
}

/// Some photographs held out, and everything trained on the others.
struct Fold<'a> {
    dir: PathBuf,
    sets: Vec<String>,
    sampler: Sampler,
    args: &'a Args,
}

impl<'a> Fold<'a> {
    fn open(args: &'a Args, fold: usize, held_out: &[&str]) -> Result<Self> {
        let path = |p: &Path| -> Result<String> {
            let whole = p.canonicalize().map_err(Error::io(p))?;
            whole
                .to_str()
                .map(str::to_owned)
                .ok_or_else(|| Error::Usage(format!("{} is not UTF-8", p.display())))
        };
        let mut sets = vec![
            format!("run.seed={fold}"),
            format!("data.source={}", path(&args.photos)?),
            format!("data.held_out_names={}", held_out.join(",")),
            format!("data.codec={}", path(&args.codec)?),
            format!("data.latent_cache={}/latents", path(&args.out)?),
            format!("data.seed={fold}"),
            format!("adversary.source={}", path(&args.pairs)?),
        ];
        if let Some(sr) = &args.sr {
            sets.push(format!("adversary.negatives={}", path(sr)?));
        }
        sets.extend(args.sets.iter().cloned());
        let dir = args.out.join(format!("fold-{fold}"));
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let config = config(&sets, &[])?;
        let (source, split) = data::source(&config)?;
        let codec = data::codec(&config, None, &*source, &split)?;
        let sampler = data::sampler(&config, source, split, codec)?;
        Ok(Self { dir, sets, sampler, args })
    }

    fn run(&self, arms: &[Arm], lpips: Option<&Lpips>) -> Result<Measured> {
        let common = self.dir.join("common");
        self.train(&common, &["run.stages=base,sft,adversary".to_owned()])?;
        let longer = self.dir.join("sft-continued");
        let from = format!("run.from={}", common.display());
        let config = config(&self.sets, &[])?;
        let steps = format!("sft.steps={}", config.sft.steps + config.asdpo.steps);
        self.train(&longer, &["run.stages=sft".to_owned(), steps, from.clone()])?;
        let score =
            |name: &str, restore: &Restore| self.kept(&format!("{name}.json"), || self.score(lpips, restore));
        let codec = self.sampler.codec();
        let through = |hq: &[Image]| -> Result<Vec<Image>> {
            let block = codec.block();
            let back = |i: &Image| codec.decode(&codec.encode(i)?, i.height / block, i.width / block);
            hq.iter().map(|i| Ok(back(i)?.clamped())).collect()
        };
        let bicubic = |lq: &[Image], hq: &[Image]| -> Result<Vec<Image>> {
            Ok(lq.iter().zip(hq).map(|(l, h)| torch_up(l, h.height, h.width).clamped()).collect())
        };
        let by = |adapters: &[(&Path, &str)]| -> Result<Model> {
            let mut model = Model::open(&common, &[], &Device::cpu())?;
            model.lq_resize = config.data.lq_resize;
            for (dir, name) in adapters {
                let file = AdapterFile::load(dir.join(name), &Device::cpu())?;
                model.adapters.push(Adapter::frozen(&file, 1.0));
            }
            Ok(model)
        };
        let restored = |model: &Model, lq: &[Image]| -> Result<Vec<Image>> {
            model.restore(lq, &vec![(0, 0); lq.len()], config.run.eval_steps, &Device::cpu())
        };
        let base = by(&[])?;
        let sft = by(&[(&common, layout::SFT)])?;
        let continued = by(&[(&longer, layout::SFT)])?;
        let plain = vec![
            ("bicubic".to_owned(), score("bicubic", &bicubic)?),
            ("codec alone".to_owned(), score("codec", &|_, hq| through(hq))?),
            ("base".to_owned(), score("base", &|lq, _| restored(&base, lq))?),
            (REFERENCE.to_owned(), score("sft", &|lq, _| restored(&sft, lq))?),
            ("SFT continued".to_owned(), score("sft-continued", &|lq, _| restored(&continued, lq))?),
        ];
        let (mut scored, mut rounded) = (Vec::new(), Vec::new());
        for arm in arms {
            let run = self.dir.join(arm.folder());
            let mut options = vec!["run.stages=asdpo".to_owned(), from.clone()];
            options.extend(arm.options());
            self.train(&run, &options)?;
            let model = by(&[(&common, layout::SFT), (&run, layout::ASDPO)])?;
            scored.push(score(&arm.folder(), &|lq, _| restored(&model, lq))?);
            let middle = self.args.betas[self.args.betas.len() / 2];
            if arm.beta == middle && ["DPO", "S-DPO", "AS-DPO"].contains(&arm.method) {
                for strength in STRENGTHS {
                    let name = format!("{}-preferences-{strength}.json", arm.folder());
                    let found = self.kept(&name, || {
                        let file = AdapterFile::load(run.join(layout::ASDPO), &Device::cpu())?;
                        let adapters = [model.adapters[0].clone(), Adapter::frozen(&file, strength)];
                        let metric = self::config(&self.sets, &arm.options())?.preference.metric();
                        let parts = (&model.config, &model.weights);
                        quantum::preferences(parts, &adapters, &self.sampler, (metric, PAIRS))
                    })?;
                    rounded.push((arm.name(), strength, found));
                }
            }
        }
        Ok(Measured { plain, arms: scored, rounded })
    }

    /// Trains what `options` say into `run`, or what is left of it.
    fn train(&self, run: &Path, options: &[String]) -> Result<()> {
        let config = config(&self.sets, options)?;
        let start = match run.join("config.toml").exists() {
            true => Start::Resume { checkpoint: None, change_config: false },
            false => Start::New,
        };
        if !run.join("summary.json").exists() {
            println!("  {}", run.display());
            asasr_engine::train::run(&config, run, &start, &Device::cpu(), &Quiet, &AtomicBool::new(false))?;
        }
        Ok(())
    }

    /// The held-out crops as `restore` makes them of LQ and HQ, scored.
    fn score(&self, lpips: Option<&Lpips>, restore: &Restore) -> Result<Vec<Crop>> {
        let pairs = self.sampler.held_out(CROPS)?;
        let mut out = Vec::new();
        for group in pairs.chunks(BATCH) {
            let lq: Vec<Image> = group.iter().map(|p| p.lq.clone()).collect();
            let hq: Vec<Image> = group.iter().map(|p| p.hq.clone()).collect();
            for (pair, sr) in group.iter().zip(restore(&lq, &hq)?) {
                let sr = Image::from_rgb8(sr.height, sr.width, &sr.to_rgb8())?;
                let seen = Pair::of(&sr, &pair.hq, BORDER, Convention::Pyiqa);
                out.push(Crop {
                    photo: pair.name.clone(),
                    at: (pair.x, pair.y),
                    psnr_y: seen.psnr_y,
                    ssim_y: seen.ssim_y,
                    lpips: lpips.map(|net| net.distance(&sr, &pair.hq)).transpose()?,
                    lsd_db: seen.lsd_db,
                    spectra: seen.spectra(self.sampler.crop()),
                });
            }
        }
        Ok(out)
    }

    /// What the file `name` of the fold holds, or what `make` makes of it first.
    fn kept<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let dir = self.dir.join("scores");
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let path = dir.join(name);
        let wrong =
            |e: serde_json::Error| Error::format(&path, format!("{e}; remove it to have it made again"));
        if path.exists() {
            return serde_json::from_slice(&std::fs::read(&path).map_err(Error::io(&path))?).map_err(wrong);
        }
        let made = make()?;
        let part = path.with_extension("tmp");
        std::fs::write(&part, serde_json::to_vec(&made).map_err(wrong)?).map_err(Error::io(&part))?;
        std::fs::rename(&part, &path).map_err(Error::io(&path))?;
        Ok(made)
    }
}

/// The options of a run: the preset, what all share, the fold's, the run's own.
fn config(fold: &[String], own: &[String]) -> Result<Config> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/photos.toml");
    Config::load(Some("tiny"), Some(&shared), &[fold, own].concat())
}

fn gather(args: &Args, arms: &[Arm], folds: &[Measured], names: &[String]) -> Results {
    let scored = |name: &str, of: &dyn Fn(&Measured) -> Vec<Crop>| {
        let parts: Vec<Vec<Crop>> = folds.iter().map(of).collect();
        let folds = parts.iter().map(Vec::len).collect();
        Scored { name: name.to_owned(), crops: parts.concat(), folds }
    };
    let plain = folds[0].plain.iter().enumerate();
    let mut rounded = folds[0].rounded.clone();
    for fold in &folds[1..] {
        for (all, (_, _, more)) in rounded.iter_mut().zip(&fold.rounded) {
            all.2.exact.extend(&more.exact);
            all.2.rounded.extend(&more.rounded);
        }
    }
    Results {
        plain: plain.map(|(i, (name, _))| scored(name, &|m| m.plain[i].1.clone())).collect(),
        arms: arms
            .iter()
            .enumerate()
            .map(|(i, a)| (a.clone(), scored(&a.name(), &|m| m.arms[i].clone())))
            .collect(),
        betas: args.betas.clone(),
        rounded,
        setting: vec![format!("{} photographs, {} folds, {CROPS} crops each", names.len(), args.folds)],
    }
}

/// Says nothing but what is a warning.
struct Quiet;

impl Progress for Quiet {
    fn stage(&self, name: &str, steps: usize, done: usize) {
        println!("    {name}: {done} of {steps} steps are done");
    }
    fn step(&self, _: f64, _: f64) {}
    fn done(&self, summary: &StageSummary) {
        println!("    {}: {:.0} s", summary.name, summary.seconds);
    }
    fn say(&self, line: &str) {
        println!("    {line}");
    }
}
