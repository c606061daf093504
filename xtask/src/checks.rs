//! Steps that are one command each.

use crate::kernels;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that only the command line may pull.
const NOT_IN_THE_LIBRARY: [&str; 7] =
    ["base64", "clap", "ctrlc", "indicatif", "plotters", "tokenizers", "tracing-subscriber"];

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The engine's command line, built and ready. Built with the tests' dependencies beside it, whose features cargo
/// unifies with its own: what `test` compiled is used again.
pub fn binary() -> Result<Command, String> {
    cargo(&["build", "--release", "--workspace", "--bins", "--tests"])?;
    let mut command = Command::new(target().join("release/asasr-engine"));
    command.current_dir(root());
    Ok(command)
}

/// Flags of the one build with every test hook in it: `mutate`, `soak` and `disk` share it.
const HOOKED: [&str; 3] = ["test", "--release", "--features=mutate,faults"];

/// A copy of the engine's command line with faults on demand.
pub fn faulty_binary() -> Result<PathBuf, String> {
    cargo(&[&HOOKED[..], &["--test=mutate", "--test=full_disk", "--no-run"]].concat())?;
    let copy = target().join("release/asasr-engine-faults");
    let built = target().join("release/asasr-engine");
    std::fs::copy(&built, &copy).map_err(|e| format!("{}: {e}", built.display()))?;
    Ok(copy)
}

/// Prints the command, runs it, and wants exit code 0.
pub fn run(command: &mut Command) -> Result<(), String> {
    let line = line(command);
    println!("$ {line}");
    let status = command.status().map_err(|e| format!("`{line}` cannot be started: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` ended with {status}")) }
}

fn line(command: &Command) -> String {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::iter::once(name)
        .chain(command.get_args().map(|a| a.to_string_lossy().into_owned()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn cargo_command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

pub fn cargo(args: &[&str]) -> Result<(), String> {
    run(&mut cargo_command(args))
}

/// What cargo writes to its output.
pub fn cargo_output(args: &[&str]) -> Result<String, String> {
    let mut command = cargo_command(args);
    let line = line(&command);
    println!("$ {line}");
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|e| format!("`{line}` cannot be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("`{line}` ended with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn fmt() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])
}

pub fn clippy() -> Result<(), String> {
    cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
}

/// The library alone, and a program that links it so and checks what it computes.
pub fn library() -> Result<(), String> {
    cargo(&["check", "--no-default-features", "--lib"])?;
    cargo(&["run", "--release", "--no-default-features", "--example=link"])
}

/// The library without its default features must not pull what only the binary needs.
pub fn tree() -> Result<(), String> {
    let args = ["tree", "--package=asasr-engine", "--no-default-features", "--edges=normal", "--prefix=none"];
    let mut command = cargo_command(&args);
    println!("$ {}", line(&command));
    let output = command.output().map_err(|e| format!("cargo tree cannot be started: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut crates: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
    crates.sort_unstable();
    crates.dedup();
    println!("{} crates", crates.len());
    match NOT_IN_THE_LIBRARY.iter().find(|c| crates.contains(c)) {
        None => Ok(()),
        Some(name) => Err(format!("the library alone pulls {name}; make it optional, under feature `cli`")),
    }
}

pub fn doc() -> Result<(), String> {
    run(cargo_command(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// With an NVRTC wherever there can be one: tests that want it are skipped without.
pub fn test() -> Result<(), String> {
    let mut command = cargo_command(&["test", "--release", "--workspace"]);
    kernels::with_nvrtc(&mut command)?;
    run(&mut command)
}

/// The golden vectors, by the CPU, those of FLUX.1-dev's width too, and, in both precisions, by the emulated kernels.
pub fn verify() -> Result<(), String> {
    run(binary()?.args(["verify", "--device", "cpu"]))?;
    run(binary()?.args(["verify", "--device", "cpu", "--fixtures", "tests/golden/full"]))?;
    for precision in ["f32", "bf16"] {
        let mut emulated = binary()?;
        emulated.args(["verify", "--device", "emu", "--precision", precision]);
        if kernels::with_nvrtc(&mut emulated)? {
            run(&mut emulated)?;
        }
    }
    Ok(())
}

/// The table op × input; the test fails on a miss.
pub fn mutate() -> Result<(), String> {
    cargo(&[&HOOKED[..], &["--test=mutate", "--", "--nocapture"]].concat())
}

/// Disks that fill up, are too small, or cannot be written.
pub fn disk() -> Result<(), String> {
    cargo(&[&HOOKED[..], &["--test=full_disk", "--", "--nocapture"]].concat())
}

/// The table entry point × cases; the test fails on a panic, a hang or too much memory.
pub fn fuzz(cases: u32) -> Result<(), String> {
    let args = ["test", "--release", "--test=fuzz", "--", "--nocapture", "--test-threads=1"];
    run(cargo_command(&args).env("ASASR_FUZZ_CASES", cases.to_string()))
}

/// Has the test that compares docs/options.md with the options write it instead.
pub fn write_docs() -> Result<(), String> {
    run(cargo_command(&["test", "--release", "--test=docs"]).env("ASASR_WRITE_DOCS", "1"))
}
