//! The same small programs on a GPU and on the emulator, and what they computed compared: bit for bit where integers and
//! IEEE arithmetic leave no choice, within a bound for `.approx` functions and tensor-core sums.
//!
//! ```sh
//! differential --device cuda --out results/cuda     # or cuda:N, emu: one device per process
//! differential --compare results/cuda results/emu --json results/differential.json
//! ```
//!
//! `--device` writes one file per program: the words that it computed from inputs that are always the same.
#![allow(missing_docs, reason = "a program")]

mod compare;
mod programs;

use asasr_engine::Error;
use asasr_engine::engine::nvrtc::Source;
use asasr_engine::engine::{Device, Tensor, kernels};
use programs::{Inputs, PROGRAMS, Program, THREADS};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<bool> {
    let (mut device, mut out, mut pair, mut json) = (None, None, None, None);
    let mut only = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--device" => device = Some(value()?),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--only" => only = Some(value()?),
            "--compare" => pair = Some([PathBuf::from(value()?), PathBuf::from(value()?)]),
            "--json" => json = Some(PathBuf::from(value()?)),
            _ => {
                let usage =
                    "--device cuda|cuda:N|emu --out DIR [--only NAME] | --compare DIR DIR [--json FILE]";
                return Err(format!("`{arg}`: {usage}").into());
            }
        }
    }
    match (device, out, pair) {
        (Some(device), Some(out), None) => {
            let device = open(&device)?;
            std::fs::create_dir_all(&out)?;
            let chosen = PROGRAMS.iter().filter(|p| only.as_ref().is_none_or(|o| p.name.contains(o)));
            dump(&device, &out, chosen)
        }
        (None, None, Some([a, b])) => compare::directories(&a, &b, json.as_deref()),
        _ => Err("either --device and --out, or --compare".into()),
    }
}

fn open(name: &str) -> Result<Device, Error> {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("emu", _) => Device::emu(),
        ("cuda", n) if n.parse::<usize>().is_ok() => Device::cuda(n.parse().unwrap_or(0)),
        _ => Err(Error::Usage(format!("--device {name}: cuda, cuda:N or emu"))),
    }
}

/// Runs the programs and writes what each computed. One that fails does not stop the others.
fn dump<'a>(device: &Device, out: &Path, programs: impl Iterator<Item = &'a Program>) -> Outcome<bool> {
    let mut whole = true;
    for program in programs {
        let file = out.join(format!("{}.bin", program.name));
        match words(device, program) {
            Ok(words) => {
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                std::fs::write(&file, bytes).map_err(|e| format!("{}: {e}", file.display()))?;
                println!("{:24} {} words", program.name, words.len());
            }
            Err(e) => {
                let _ = std::fs::remove_file(&file);
                println!("{:24} FAILED: {e}", program.name);
                whole = false;
            }
        }
    }
    let gpu = device.gpu().ok_or("a CUDA device is wanted")?;
    let about = serde_json::json!({
        "device": gpu.properties().name, "arch": gpu.properties().arch(),
        "nvrtc": gpu.jit().map(|jit| jit.nvrtc().version()), "driver": gpu.properties().driver,
    });
    std::fs::write(out.join("device.json"), serde_json::to_vec_pretty(&about)?)?;
    Ok(whole)
}

/// A tensor of these bits: the engine moves f32 as they are.
fn upload(device: &Device, words: &[u32]) -> Result<Tensor, Error> {
    let values: Vec<f32> = words.iter().map(|&w| f32::from_bits(w)).collect();
    Tensor::from_slice(device, &[values.len()], &values)
}

fn words(device: &Device, program: &Program) -> Result<Vec<u32>, Error> {
    let gpu = device.gpu().ok_or_else(|| Error::Usage("a CUDA device is wanted".into()))?;
    let headers = kernels::headers_of(program.text)?;
    let source = Source { name: program.file, text: program.text, headers: &headers };
    let kernel = gpu.compile(&source, program.name)?;
    let input = upload(device, &Inputs::words(program.inputs, program.name))?;
    let size = program.cells.unwrap_or(THREADS * program.words);
    let mut output = Tensor::zeros(device, &[size])?;
    gpu.launch(&kernel, [THREADS / 256, 1, 1], 256)
        .read(&input)
        .write(&mut output)
        .value(THREADS as i32)
        .run()?;
    gpu.synchronize()?;
    Ok(output.values()?.iter().map(|v| v.to_bits()).collect())
}
