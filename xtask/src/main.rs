//! Set-up and checks: `cargo xtask <command>`.

mod bundle;
mod checks;
mod kernels;
mod smoke;
mod soak;
mod steps;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Set-up and checks of asasr-engine
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything CI runs, in order, and a table of what passed and how long it took
    Test {
        /// Only the steps with these names (repeatable)
        #[arg(long, value_name = "STEP")]
        only: Vec<String>,
    },
    /// Make each gradient of each op wrong by one percent, one at a time, and show that gradcheck fails every time
    Mutate,
    /// Kill a training run at random moments, resume it, and want the files of an undisturbed one
    Soak {
        /// Kills of each kind of run
        #[arg(long, default_value_t = 20)]
        kill: usize,
        /// Which moments
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Damaged input at every entry point: no panic, no hang, no memory out of proportion; and a table
    Fuzz {
        /// Cases in all
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(8..))]
        cases: u32,
    },
    /// Compile every CUDA source with NVRTC and print what each kernel uses; run it on the emulator and print what it
    /// does beside what it needs; and how a training step of FLUX.1-dev launches each; fail where one spills registers,
    /// breaks its launch bounds or exceeds a limit
    ///
    /// The limits: 1.15 times the bytes it must move, bank conflicts in 1 % of its accesses to shared memory, matrix
    /// products within 2 % of those of whole tiles. A reason in the kernel's heading excuses the first two.
    ///
    /// Needs no GPU. An NVRTC that is not found is fetched once, with pip, into target/nvrtc.
    Kernels {
        /// Real architectures, as sm_89 (default: sm_80 sm_90)
        archs: Vec<String>,
        /// sm_80, sm_86, sm_89, sm_90, sm_100 and sm_120
        #[arg(long, conflicts_with = "archs")]
        all: bool,
        /// Write the table there as well
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Make one folder of all that a machine with a GPU needs to run the checks and benchmarks: no Rust, no network
    ///
    /// There: `./run.sh all`. Here, without a GPU: `./run.sh --device emu all`.
    Bundle {
        /// Where to; a bundle that is there is made anew (default: target/bundle)
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Write docs/options.md and asasr.example.toml anew from the options' definitions
    Docs,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test { only } => steps::run(&only),
        Command::Mutate => checks::mutate(),
        Command::Soak { kill, seed } => soak::run(kill, seed),
        Command::Fuzz { cases } => checks::fuzz(cases),
        Command::Kernels { archs, all, json } => kernels::report(&archs, all, json.as_deref()),
        Command::Bundle { out } => bundle::make(out.as_deref()),
        Command::Docs => checks::write_docs(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
