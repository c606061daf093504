//! Stages, optimizer, checkpoints, log, report.
//!
//! Responsible for the options of a run and for what a run writes down. Must not parse the command line or print: that
//! is the binary's part, which hands over a preset's name, a file and `--set` texts.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod environment;
mod evaluation;
mod export;
pub mod init;
pub mod log;
mod micro;
pub mod monitor;
pub mod objective;
pub mod options;
pub mod planner;
pub mod read;
pub mod run;
pub mod stages;
pub mod tensorboard;
mod trainer;
pub mod validation;

pub use config::Config;
pub use log::{Eval, JsonlLog, StageSummary, Summary, peak_rss_mb};
pub use planner::StageMemory;
pub use run::{Start, plan, run};
pub use stages::Progress;
