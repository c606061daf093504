//! Where and when a run was made: `environment.json`, a line of facts and one entry per session.

use super::trainer::now;
use crate::files::write_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file, in the run directory.
const FILE: &str = "environment.json";

/// What there is to know of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The engine's version.
    pub version: String,
    /// Operating system and processor family.
    pub platform: String,
    /// The processor's name, where the system says it.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Worker threads.
    pub threads: usize,
    /// The machine's memory, in MiB, where the system says it.
    pub memory_mb: Option<u64>,
    /// When each session began, in seconds since 1970: the first, then every resume.
    pub sessions: Vec<f64>,
}

impl Environment {
    fn here() -> Self {
        let field = |file: &str, key: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix(key))?;
            Some(line.trim_start_matches([':', ' ', '\t']).trim().to_owned())
        };
        let memory =
            field("/proc/meminfo", "MemTotal").and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            memory_mb: memory.map(|kib| kib / 1024),
            sessions: Vec::new(),
        }
    }
}

/// Writes the facts of this machine and adds a session.
pub(super) fn note_session(run: &Path) -> Result<()> {
    let path = run.join(FILE);
    let earlier: Option<Environment> =
        std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut here = Environment::here();
    here.sessions = earlier.map_or(Vec::new(), |e| e.sessions);
    here.sessions.push(now());
    let text = serde_json::to_string_pretty(&here).map_err(|e| Error::format(&path, e.to_string()))?;
    write_atomic(path, format!("{text}\n").as_bytes())
}
