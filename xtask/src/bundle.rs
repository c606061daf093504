//! `cargo xtask bundle`: all that a machine with a GPU needs to run the checks and benchmarks, in one folder.

use crate::checks::{self, root, target};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What it may weigh at most: it is copied by hand, often over slow lines.
const MOST: u64 = 60 << 20;

/// What goes into `bin`: cargo's target, the file's name.
const PARTS: [(&str, &str); 7] = [
    ("asasr-engine", "asasr-engine"),
    ("parity", "parity"),
    ("kernels", "kernels"),
    ("differential", "differential"),
    ("kernel_report", "kernel_report"),
    ("cuda_emu", "libcuda_emu.so"),
    ("cufft_emu", "libcufft_emu.so"),
];

/// Makes the folder anew and prints what is in it.
pub fn make(out: Option<&Path>) -> Result<(), String> {
    let out = match out {
        Some(out) => out.to_owned(),
        None => target().join("bundle"),
    };
    // Only ever a folder that this made, or an empty one.
    if fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
        if !out.join("VERSION").is_file() || !out.join("run.sh").is_file() {
            return Err(format!("{} is not empty and no bundle: name another folder", out.display()));
        }
        fs::remove_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    }
    let built = build()?;
    let bin = out.join("bin");
    fs::create_dir_all(&bin).map_err(|e| format!("{}: {e}", bin.display()))?;
    for (target, name) in PARTS {
        let from = built.iter().find(|(t, f)| t == target && f.file_name().is_some_and(|f| is(f, name)));
        let (_, from) = from.ok_or_else(|| format!("cargo does not say where it built {name}"))?;
        strip(from, &bin.join(name))?;
    }
    copy(&root().join("tests/golden"), &out.join("tests/golden"))?;
    // The other peer builds the engine's side with cargo.
    let (peers, name) = (out.join("peers"), "torch_kernels.py");
    fs::create_dir_all(&peers).map_err(|e| format!("{}: {e}", peers.display()))?;
    file(&root().join("benches/peers").join(name), &peers.join(name))?;
    let script = root().join("xtask/bundle/run.sh");
    file(&script, &out.join("run.sh"))?;
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        file(&root().join(name), &out.join(name))?;
    }
    fs::write(out.join("VERSION"), version() + "\n").map_err(|e| format!("VERSION: {e}"))?;
    let mut total = 0;
    for part in ["bin", "tests", "peers"] {
        let mut files = files(&out.join(part))?;
        files.sort();
        let bytes: u64 = files.iter().map(|f| f.1).sum();
        total += bytes;
        println!("{:<32} {:>8.1} MB", part, bytes as f64 / 1e6);
        for (path, bytes) in files.iter().filter(|_| part == "bin") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            println!("  {name:<30} {:>8.1} MB", *bytes as f64 / 1e6);
        }
    }
    println!("{:<32} {:>8.1} MB in {}", "all", total as f64 / 1e6, out.display());
    if total > MOST {
        return Err(format!("the bundle has {total} bytes; it may have {MOST}"));
    }
    println!("on a machine with a GPU: ./run.sh all; here: ./run.sh --device emu all");
    Ok(())
}

/// Version, commit, and whether anything was changed since.
fn version() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).current_dir(root()).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        out.status.success().then(|| text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "no commit".into());
    let changed = if git(&["status", "--porcelain"]).is_some() { ", changed" } else { "" };
    format!("asasr-engine {} ({commit}{changed})", env!("CARGO_PKG_VERSION"))
}

/// Builds everything in one go, of the features that the tests have, and gives targets and their files: cargo alone knows
/// the names of tests and benchmarks.
fn build() -> Result<Vec<(String, PathBuf)>, String> {
    let text = checks::cargo_output(&[
        "build",
        "--release",
        "--workspace",
        "--lib",
        "--bins",
        "--examples",
        "--test=parity",
        "--bench=kernels",
        "--message-format=json-render-diagnostics",
    ])?;
    let mut files = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let Some(name) = message["target"]["name"].as_str() else { continue };
        for file in message["filenames"].as_array().into_iter().flatten() {
            files.extend(file.as_str().map(|f| (name.to_owned(), PathBuf::from(f))));
        }
    }
    Ok(files)
}

/// Is that the file of `name`: `parity-1a2b3c` as `parity`?
fn is(file: &OsStr, name: &str) -> bool {
    file.to_str().is_some_and(|f| f == name || f.rsplit_once('-').is_some_and(|(stem, _)| stem == name))
}

/// A copy without symbols, which are nine tenths of it.
fn strip(from: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new("strip");
    command.arg("--strip-unneeded").arg("-o").arg(to).arg(from);
    checks::run(&mut command).map_err(|e| format!("{e} (`strip` is one of binutils)"))
}

fn file(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(|_| ()).map_err(|e| format!("{}: {e}", from.display()))
}

/// A folder and what is below it.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", from.display());
    fs::create_dir_all(to).map_err(wrong)?;
    for entry in fs::read_dir(from).map_err(wrong)? {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).map_err(wrong)?;
        match path.is_dir() {
            true => copy(&path, &to.join(name))?,
            false => file(&path, &to.join(name))?,
        }
    }
    Ok(())
}

/// Every file below a folder, and its bytes.
fn files(dir: &Path) -> Result<Vec<(PathBuf, u64)>, String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        match entry.path().is_dir() {
            true => all.extend(files(&entry.path())?),
            false => all.push((entry.path(), entry.metadata().map_err(wrong)?.len())),
        }
    }
    Ok(all)
}
