//! `asasr-engine train`.

use super::device::Choice;
use super::{ctrl_c, threads};
use asasr_engine::train::checkpoint::CHECKPOINTS;
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, Start};
use asasr_engine::{Error, Result, report};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
#[command(after_long_help = Config::help())]
pub struct Args {
    /// Start from a preset: nano, tiny, paper-sft, paper-adversary, paper-asdpo
    #[arg(long)]
    preset: Option<String>,
    /// A TOML file of options on top of the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one option, e.g. asdpo.beta=1000 (repeatable; last wins)
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    /// Train on a folder of png, jpeg and webp photos, or of pairs in gt/ and lr/, instead of the images the program draws
    /// (data.source)
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The base model to fine-tune: a diffusers folder, a single file, or random:flux-dev (model.base); the vae/ in the
    /// folder of a whole pipeline makes its latents (data.codec)
    #[arg(long, value_name = "MODEL")]
    weights: Option<PathBuf>,
    /// What some upscaler made of the pairs' lr/, for the adversary to imitate (adversary.negatives)
    #[arg(long, value_name = "FOLDER")]
    sr: Option<PathBuf>,
    /// Run only these stages, comma-separated: base, sft, adversary, asdpo (run.stages)
    #[arg(long, value_name = "STAGES")]
    stages: Option<String>,
    /// A finished run that has what the chosen stages build on (run.from)
    #[arg(long, value_name = "RUN")]
    from: Option<PathBuf>,
    /// Where the run goes; must not hold one yet, unless with --resume
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Look at all data, say what memory each stage will need, to the byte, and exit: nothing is trained or written
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Plan for a device with so many GiB of memory, instead of what is free here
    #[arg(long, value_name = "GIB", requires = "dry_run")]
    memory: Option<f64>,
    /// Go on with the run in --out: from its newest intact checkpoint, or from the one named. Options are those of its
    /// config.toml unless given
    #[arg(long, value_name = "latest|CHECKPOINT", num_args = 0..=1, default_missing_value = "latest")]
    resume: Option<PathBuf>,
    /// Resume although options differ from those the checkpoint was written under
    #[arg(long, requires = "resume")]
    change_config: bool,
    /// Print the options in full, as a TOML file, and exit
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    device: Choice,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut sets = args.sets.clone();
    let path = |p: &PathBuf| {
        let text = p.to_str().map(str::to_owned);
        text.ok_or_else(|| Error::Usage(format!("{} is not a path in UTF-8", p.display())))
    };
    if let Some(data) = &args.data {
        sets.push(format!("data.source={}", path(data)?));
    }
    if let Some(weights) = &args.weights {
        // In front, so that --set may say otherwise.
        let codec = Some(weights.join("vae")).filter(|vae| vae.is_dir());
        let codec = codec.map(|vae| Ok::<_, Error>(format!("data.codec={}", path(&vae)?))).transpose()?;
        sets.splice(0..0, [format!("model.base={}", path(weights)?)].into_iter().chain(codec));
    }
    if let Some(sr) = &args.sr {
        sets.push(format!("adversary.negatives={}", path(sr)?));
    }
    if let Some(stages) = &args.stages {
        sets.push(format!("run.stages={stages}"));
    }
    if let Some(from) = &args.from {
        sets.push(format!("run.from={}", path(from)?));
    }
    let out = args.out.as_deref().unwrap_or(Path::new(""));
    let written = out.join("config.toml");
    let as_before =
        args.resume.is_some() && args.preset.is_none() && args.config.is_none() && written.is_file();
    let file = if as_before { Some(written.as_path()) } else { args.config.as_deref() };
    let config = Config::load(args.preset.as_deref(), file, &sets)?;
    if args.print_config {
        super::print(&config.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    threads(config.run.threads)?;
    if args.dry_run {
        let device = args.device.open_to_plan()?;
        let memory = args.memory.map(|gib| (gib * f64::from(1 << 30)) as usize);
        for stage in asasr_engine::train::plan(&config, &device, memory, &Bars::default())? {
            super::print(&format!("{}\n", stage.line()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let device = args.device.open()?;
    let stop = ctrl_c()?;
    let start = args.resume.as_ref().map_or(Start::New, |at| Start::Resume {
        checkpoint: checkpoint(out, at),
        change_config: args.change_config,
    });
    let outcome = asasr_engine::train::run(&config, out, &start, &device, &Bars::default(), &stop);
    let shown = match &outcome {
        // Of a run that was stopped, too.
        Ok(_) | Err(Error::Interrupted { .. } | Error::NonFinite { .. }) => {
            report::write(&[out], &out.join("report.html"))
        }
        Err(_) => Ok(()),
    };
    let summary = outcome?;
    shown?;
    println!(
        "\n{:<8} {:>8} {:>8} {:>9} {:>9} {:>9}",
        "", "PSNR-Y", "SSIM-Y", "LSD dB", "rLSD dB", "hf_ratio"
    );
    for (name, m) in summary.eval.rows() {
        println!(
            "{name:<8} {:>8.2} {:>8.4} {:>9.2} {:>9.2} {:>9.3}",
            m.psnr_y, m.ssim_y, m.lsd_db, m.rlsd_db, m.hf_ratio
        );
    }
    let rss = summary.peak_rss_mb.map_or(String::new(), |mb| format!(", {mb:.0} MiB at most"));
    println!("\n{:.0} s{rss}; everything is in {} (open report.html)", summary.wall_s, out.display());
    Ok(ExitCode::SUCCESS)
}

/// The checkpoint named by `at`: a path, or a name in the run's folder of checkpoints; `None` for the newest.
fn checkpoint(run: &Path, at: &Path) -> Option<PathBuf> {
    if at == Path::new("latest") {
        return None;
    }
    let named = run.join(CHECKPOINTS).join(at);
    Some(if !at.exists() && named.exists() { named } else { at.to_path_buf() })
}

/// One progress bar per stage, and one while weights are read.
#[derive(Default)]
struct Bars {
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress for Bars {
    fn stage(&self, name: &str, steps: usize, done: usize) {
        let style = "{prefix:<10} {bar:30} {pos:>5}/{len} {elapsed} left {eta} {msg}";
        let style = ProgressStyle::with_template(style).expect("a literal template");
        let bar = ProgressBar::new(steps as u64)
            .with_style(style)
            .with_prefix(name.to_owned())
            .with_position(done as u64);
        *self.bar.borrow_mut() = Some(bar);
    }
    fn step(&self, loss: f64, samples_per_s: f64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_message(format!("loss {loss:.4}, {samples_per_s:.1} samples/s"));
            bar.inc(1);
        }
    }
    fn done(&self, s: &StageSummary) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
        println!(
            "{:<10} {:>5} steps in {:>5.0} s, loss {:.4} → {:.4}",
            s.name, s.steps, s.seconds, s.first_loss, s.last_loss
        );
    }
    fn loading(&self, done: u64, all: u64) {
        let mut bar = self.bar.borrow_mut();
        let weights = bar.get_or_insert_with(super::weights_bar);
        weights.set_length(all);
        weights.set_position(done);
        if done == all {
            weights.finish_and_clear();
            *bar = None;
        }
    }
    fn say(&self, line: &str) {
        match &*self.bar.borrow() {
            // Above the bar, not through it.
            Some(bar) if !bar.is_hidden() => bar.println(line),
            _ => println!("{line}"),
        }
    }
}
