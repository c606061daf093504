//! `asasr-engine verify`.

use super::device::Choice;
use super::{print, threads};
use asasr_engine::train::options::{Named, Precision};
use asasr_engine::verify::{self, Verdict};
use asasr_engine::{Error, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of golden vectors [default: the repository's tests/golden]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    #[command(flatten)]
    device: Choice,
    /// What the model computes in: f32, or bf16 on a GPU or emu
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: String,
    /// Only these, by file stem (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Also say which tensors were left out, and why
    #[arg(long)]
    verbose: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    threads(0)?;
    let dir = args.fixtures.clone().unwrap_or_else(|| {
        let here = Path::new("tests/golden");
        if here.is_dir() { here.to_owned() } else { Path::new(env!("CARGO_MANIFEST_DIR")).join(here) }
    });
    let precision = precision(&args.precision)?;
    let rows = verify::run(&dir, &args.only, &args.device.open()?, precision)?;
    let mut text = String::new();
    let _ = writeln!(text, "{:<16} {:>8} {:>12}  verdict", "name", "tensors", "error ÷ tol");
    for row in &rows {
        let (verdict, detail) = match row.verdict {
            Verdict::Passed if row.precision != precision => (
                "passed",
                format!(": in {}, nothing of it is ever {}", row.precision.name(), precision.name()),
            ),
            Verdict::Passed => ("passed", String::new()),
            Verdict::Failed => ("FAILED", format!(": {}", row.detail)),
            Verdict::Skipped => ("skipped", format!(": {}", row.detail)),
        };
        let worst = row.worst.as_ref().map_or(String::from("-"), |(r, _)| format!("{r:.3}"));
        let _ = writeln!(text, "{:<16} {:>8} {:>12}  {verdict}{detail}", row.name, row.tensors, worst);
        if args.verbose {
            if let Some((_, at)) = &row.worst {
                let _ = writeln!(text, "{:16} worst at {at}", "");
            }
            for why in &row.left_out {
                let _ = writeln!(text, "{:16} left out {why}", "");
            }
        }
    }
    let count = |v: Verdict| rows.iter().filter(|r| r.verdict == v).count();
    let (passed, failed, skipped) = (count(Verdict::Passed), count(Verdict::Failed), count(Verdict::Skipped));
    let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
    print(&text)?;
    if passed + failed == 0 {
        eprintln!("error: nothing was replayed from {}", dir.display());
    }
    Ok(if failed > 0 || passed == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The value of `--precision`, named as that of the option `run.precision`.
pub(super) fn precision(name: &str) -> Result<Precision> {
    let named = Precision::ALL.iter().find(|(n, _)| *n == name);
    named.map(|(_, p)| *p).ok_or_else(|| {
        let names: Vec<&str> = Precision::ALL.iter().map(|(n, _)| *n).collect();
        Error::Usage(format!("--precision {name}: wanted {}", names.join(" or ")))
    })
}
