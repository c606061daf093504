//! `asasr-engine report`.

use asasr_engine::{Error, Result, report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// A run directory; the run need not have finished
    run: PathBuf,
    /// Another one, to be shown beside it
    run2: Option<PathBuf>,
    /// The page to write [default: report.html in RUN, or report-vs-RUN2.html for two]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let runs: Vec<&Path> = std::iter::once(&args.run).chain(&args.run2).map(PathBuf::as_path).collect();
    let to = match (&args.out, &args.run2) {
        (Some(out), _) => out.clone(),
        (None, None) => args.run.join("report.html"),
        (None, Some(other)) => {
            let whole =
                other.canonicalize().map_err(|e| Error::Usage(format!("{}: {e}", other.display())))?;
            let name = whole.file_name().map_or("other".into(), |name| name.to_string_lossy());
            args.run.join(format!("report-vs-{name}.html"))
        }
    };
    report::write(&runs, &to)?;
    println!("{}", to.display());
    Ok(ExitCode::SUCCESS)
}
