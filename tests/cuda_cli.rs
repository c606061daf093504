//! `--device`, `doctor` and `warm` through the real binary on machines that lack what they need: sentences with a
//! remedy, exit codes, never a panic. And the cache: what is compiled once is found by every later start.
#![cfg(target_os = "linux")]

use asasr_engine::engine::cuda::{Driver, library};
use asasr_engine::engine::nvrtc::Nvrtc;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The binary with a cache of its own.
fn engine(cache: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
    command.args(line.split_whitespace()).env("ASASR_CACHE", cache).env("COLUMNS", "100");
    command.env("CUDA_EMU_QUIET", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// It fails with this exit code, in words that contain all of `says`.
#[track_caller]
fn refused(command: &mut Command, code: i32, says: &[&str]) {
    let out = command.output().expect("the binary runs");
    let text = text(&out);
    assert!(out.status.code() == Some(code) && !text.contains("panicked"), "{}: {text}", out.status);
    for s in says {
        assert!(text.contains(s), "no `{s}` in: {text}");
    }
}

#[track_caller]
fn went_well(out: Output) -> String {
    let text = text(&out);
    assert!(out.status.success(), "{}: {text}", out.status);
    text
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A plan launches nothing: for a GPU that is not here it wants no driver, no emulator and no compiler, nor a cache for what that
/// would make.
#[test]
fn a_gpu_that_is_not_here_is_planned_for() {
    if library::find_driver(Driver::Nvidia).is_ok() {
        return println!("skipped: this machine has a driver");
    }
    let (dir, empty) = (folder(), folder());
    let plan = || engine(dir.path(), "train --preset nano --dry-run --set run.precision=bf16 --device cuda");
    let said = went_well(plan().output().expect("the binary runs"));
    for part in ["base: ", "asdpo: ", "weights ", "activations ", "workspace "] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    let mut bare = plan();
    bare.env_clear().env("ASASR_NVRTC", empty.path()).env("ASASR_CUDA_EMU", empty.path());
    assert_eq!(said, went_well(bare.output().expect("the binary runs")));
    assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0, "nothing is left behind");
}

/// Where this machine has no NVRTC; a failure where it must have one.
fn no_nvrtc() -> bool {
    match Nvrtc::find() {
        Ok(_) => false,
        Err(e) => {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{e}");
            println!("skipped: {e}");
            true
        }
    }
}

#[test]
fn a_device_that_is_none_is_refused() {
    let dir = folder();
    for (device, says) in [
        ("cuda:x", "--device cuda:x: wanted auto, cpu, cuda, cuda:N (N counted from 0) or emu"),
        ("cuda:-1", "wanted auto, cpu, cuda, cuda:N"),
        ("cuda:99999999999999999999", "wanted auto, cpu, cuda, cuda:N"),
        ("gpu", "--device gpu: wanted auto, cpu"),
    ] {
        refused(&mut engine(dir.path(), &format!("warm --device {device}")), 2, &[says]);
    }
    refused(&mut engine(dir.path(), "warm --device cpu"), 2, &["the CPU needs no kernels", "--arch sm_90"]);
    assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0, "nothing is left behind");
}

#[test]
fn a_machine_without_a_driver_says_so() {
    let dir = folder();
    if library::find_driver(Driver::Nvidia).is_ok() {
        // Then it has fewer devices than this.
        return refused(&mut engine(dir.path(), "warm --device cuda:99"), 2, &["there is no device 99"]);
    }
    for device in ["cuda", "cuda:0", "cuda:9"] {
        let says = ["there is no libcuda.so on this machine", "install the NVIDIA driver", "--device cpu"];
        refused(&mut engine(dir.path(), &format!("warm --device {device}")), 1, &says);
    }
}

#[test]
fn an_emulator_that_is_not_built_says_how_to() {
    let (dir, empty) = (folder(), folder());
    let says = ["--device emu: there is no libcuda_emu.so", "cargo build --release", "ASASR_CUDA_EMU"];
    refused(engine(dir.path(), "warm --device emu").env("ASASR_CUDA_EMU", empty.path()), 2, &says);
    // A file that is no library.
    fs::write(empty.path().join("libcuda_emu.so"), "text ".repeat(1000)).expect("written");
    let says = ["libcuda_emu.so", "invalid ELF header"];
    refused(engine(dir.path(), "warm --device emu").env("ASASR_CUDA_EMU", empty.path()), 1, &says);
}

#[test]
fn a_machine_without_nvrtc_says_what_to_install() {
    let (dir, empty) = (folder(), folder());
    for line in ["warm --device emu", "warm --arch sm_90"] {
        let says =
            ["no libnvrtc.so below the folder that ASASR_NVRTC names", "pip install nvidia-cuda-nvrtc"];
        refused(engine(dir.path(), line).env("ASASR_NVRTC", empty.path()), 1, &says);
        let file = empty.path().join("nothing.so");
        refused(
            engine(dir.path(), line).env("ASASR_NVRTC", &file),
            1,
            &["nothing.so", "No such file", "pip install"],
        );
    }
}

/// A `libnvrtc.so` that answers this version and compiles nothing.
fn stub(dir: &Path, major: u32, minor: u32, functions: &[&str]) -> Option<PathBuf> {
    let (source, library) = (dir.join("stub.c"), dir.join("libnvrtc.so"));
    let mut text = format!("int nvrtcVersion(int *a, int *b) {{ *a = {major}; *b = {minor}; return 0; }}\n");
    for f in functions {
        text += &format!("int {f}(void) {{ return 1; }}\n");
    }
    fs::write(&source, text).expect("written");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    match made {
        Ok(status) if status.success() => Some(library),
        _ => {
            println!("skipped: no C compiler to make a library of another version with");
            None
        }
    }
}

const FUNCTIONS: [&str; 10] = [
    "nvrtcGetErrorString",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcCompileProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
];

#[test]
fn another_nvrtc_than_the_drivers_says_which_one() {
    let dir = folder();
    for (major, minor, functions, says) in [
        (
            11,
            8,
            &FUNCTIONS[..],
            ["is version 11.8; 12.0 or later is wanted", "pip install nvidia-cuda-nvrtc"],
        ),
        (
            99,
            1,
            &FUNCTIONS[..],
            ["is version 99.1, newer than the driver", "pip install 'nvidia-cuda-nvrtc=="],
        ),
        (12, 9, &FUNCTIONS[..7], ["has no function nvrtcGetPTX", "not an NVRTC of CUDA 12 or later"]),
    ] {
        let of = folder();
        let Some(library) = stub(of.path(), major, minor, functions) else { return };
        let mut warm = engine(dir.path(), "warm --device emu");
        refused(warm.env("ASASR_NVRTC", &library), 1, &[&says[..], &["libnvrtc.so"]].concat());
    }
}

#[test]
fn doctor_names_all_that_is_missing() {
    let (cache, empty) = (folder(), folder());
    let mut doctor = engine(cache.path(), "doctor --device emu");
    doctor.env("ASASR_CUDA_EMU", empty.path()).env("ASASR_NVRTC", empty.path());
    let says = [
        "emulator   missing: --device emu: there is no libcuda_emu.so",
        "NVRTC      missing: NVRTC, ",
        "cache      0 compiled sources",
        "device     missing: --device emu",
    ];
    refused(&mut doctor, 1, &says);
    // Nowhere to keep anything.
    let mut doctor = engine(cache.path(), "doctor --device emu");
    for name in ["ASASR_CACHE", "XDG_CACHE_HOME", "HOME"] {
        doctor.env_remove(name);
    }
    doctor.env("ASASR_NVRTC", empty.path());
    refused(
        &mut doctor,
        1,
        &["cache      missing: neither ASASR_CACHE, XDG_CACHE_HOME nor HOME names a folder"],
    );
    // What is missing for another device is no failure.
    let mut doctor = engine(cache.path(), "doctor --device cpu");
    doctor.env("ASASR_CUDA_EMU", empty.path()).env("ASASR_NVRTC", empty.path());
    assert!(went_well(doctor.output().expect("the binary runs")).contains("device     cpu: all ops, f32"));
}

#[test]
fn a_cache_that_cannot_be_written_says_what_to_set() {
    if no_nvrtc() {
        return;
    }
    // A file in the folder's way: what even root cannot write below.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    for line in ["warm --device emu", "warm --arch sm_80"] {
        refused(
            &mut engine(file.path(), line),
            1,
            &["compiled kernels cannot be kept here", "set ASASR_CACHE"],
        );
    }
}

/// `n compiled, m found` at the end of what `warm` prints.
fn counts(out: &str) -> (usize, usize) {
    let number = |before: &str| {
        let head = out.split_once(before).unwrap_or_else(|| panic!("no `{before}` in: {out}")).0;
        head.rsplit([' ', '\n']).next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{out}"))
    };
    (number(" compiled,"), number(" found"))
}

fn start(cache: &Path) -> Child {
    engine(cache, "warm --arch sm_80").spawn().expect("the binary runs")
}

fn finish(child: Child) -> (usize, usize) {
    counts(&went_well(child.wait_with_output().expect("it ends")))
}

/// Two at once on a cold cache compile each source once between them, a later one compiles nothing, and one that finds
/// an entry damaged makes that one anew.
#[test]
fn every_source_is_compiled_once() {
    if no_nvrtc() {
        return;
    }
    let dir = folder();
    let both = [start(dir.path()), start(dir.path())].map(finish);
    let all = both[0].0 + both[0].1;
    assert_eq!(both[1].0 + both[1].1, all);
    assert_eq!(both[0].0 + both[1].0, all, "of {all} sources in all: {both:?}");
    assert_eq!(finish(start(dir.path())), (0, all));

    let kernels = dir.path().join("kernels");
    let entries: Vec<PathBuf> =
        fs::read_dir(&kernels).expect("it is there").flatten().map(|e| e.path()).collect();
    let entry = entries.iter().find(|p| p.extension().is_some_and(|x| x == "kernel")).expect("an entry");
    let whole = fs::read(entry).expect("read");
    fs::write(entry, &whole[..whole.len() / 2]).expect("written");
    assert_eq!(finish(start(dir.path())), (1, all - 1));
    assert_eq!(fs::read(entry).expect("read"), whole);
    let doctor = went_well(engine(dir.path(), "doctor --device cpu").output().expect("the binary runs"));
    assert!(doctor.contains(&format!("cache      {all} compiled sources")), "{doctor}");
}
