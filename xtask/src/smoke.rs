//! A training run of a few steps through the command line: everything it should write is there, and one and two
//! threads give the same final adapter to the bit.

use crate::checks::{binary, run as execute, target};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Steps of each stage.
const STEPS: [(&str, usize); 4] = [("base", 6), ("sft", 4), ("adversary", 4), ("asdpo", 4)];

pub fn run() -> Result<(), String> {
    let dir = target().join("xtask-smoke");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let runs = [1, 2].map(|threads| dir.join(format!("threads-{threads}")));
    for (out, threads) in runs.iter().zip([1, 2]) {
        train(out, threads)?;
        outputs(out)?;
    }
    for adapter in ["base_sft", "adv", "train_dpo"] {
        let file = format!("{adapter}/adapter_model.safetensors");
        let [one, two] = [read(&runs[0].join(&file))?, read(&runs[1].join(&file))?];
        if one != two {
            return Err(format!("{file} of one thread and of two differ"));
        }
        println!("{file}: {} bytes, the same with 1 thread and with 2", one.len());
    }
    let picture = runs[0].join("samples.png");
    let upscaled = dir.join("upscaled.png");
    execute(
        binary()?.arg("upscale").arg(&picture).arg(&upscaled).arg("--model").arg(&runs[0]).arg("--steps=1"),
    )?;
    let [small, large] = [png_size(&picture)?, png_size(&upscaled)?];
    if large != small.map(|v| 4 * v) {
        return Err(format!("upscale made {large:?} of {small:?}, wanted four times as much"));
    }
    fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn train(out: &Path, threads: usize) -> Result<(), String> {
    let mut command = binary()?;
    command.args(["train", "--device", "cpu", "--preset", "tiny", "--out"]).arg(out);
    let mut set = |option: String| {
        command.arg("--set").arg(option);
    };
    for (stage, steps) in STEPS {
        set(format!("{stage}.steps={steps}"));
        set(format!("{stage}.warmup=1"));
    }
    for option in ["data.images=12", "data.held_out=4", "run.eval_crops=1", "run.eval_steps=2"] {
        set(option.to_owned());
    }
    set(format!("run.threads={threads}"));
    execute(&mut command)
}

/// Everything a run writes is there and says what it should.
fn outputs(out: &Path) -> Result<(), String> {
    let summary: Value = serde_json::from_slice(&read(&out.join("summary.json"))?)
        .map_err(|e| format!("summary.json is not JSON: {e}"))?;
    let has = |at: &str, keys: &[&str]| {
        let object = summary.pointer(at).and_then(Value::as_object);
        match keys.iter().find(|k| object.and_then(|o| o.get(**k)).is_none_or(Value::is_null)) {
            None => Ok(()),
            Some(key) => Err(format!("summary.json has no `{at}/{key}`")),
        }
    };
    has("", &["stages", "eval", "held_out", "peak_rss_mb", "wall_s", "seed", "version"])?;
    for (i, (stage, steps)) in STEPS.iter().enumerate() {
        let at = format!("/stages/{i}");
        has(&at, &["name", "steps", "seconds", "first_loss", "last_loss"])?;
        let row = &summary["stages"][i];
        if row["name"] != *stage || row["steps"] != *steps {
            return Err(format!("summary.json says {row} of stage {stage} with {steps} steps"));
        }
    }
    let first = summary["stages"][3]["first_loss"].as_f64().unwrap_or(f64::NAN);
    let want = 2.0 * std::f64::consts::LN_2;
    if (first - want).abs() > 1e-6 || first.is_nan() {
        return Err(format!("the first preference loss is {first}, wanted 2·ln 2 = {want}"));
    }
    for method in ["bicubic", "base", "sft", "asdpo"] {
        has(&format!("/eval/{method}"), &["psnr_y", "ssim_y", "lsd_db", "rlsd_db", "hf_ratio"])?;
    }
    png_size(&out.join("samples.png"))?;
    for adapter in ["base_sft", "adv", "train_dpo"] {
        safetensors(&out.join(adapter).join("adapter_model.safetensors"), "lora_B.weight")?;
        json(&out.join(adapter).join("adapter_config.json"), "lora_alpha")?;
    }
    safetensors(&out.join("base/diffusion_pytorch_model.safetensors"), "x_embedder.weight")?;
    json(&out.join("base/config.json"), "num_single_layers")?;
    json(&out.join("codec.json"), "mean")?;
    let lines = String::from_utf8_lossy(&read(&out.join("log.jsonl"))?).lines().count();
    let steps: usize = STEPS.iter().map(|s| s.1).sum();
    if lines != steps {
        return Err(format!("log.jsonl has {lines} lines for {steps} steps"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn json(path: &Path, key: &str) -> Result<(), String> {
    let value: Value =
        serde_json::from_slice(&read(path)?).map_err(|e| format!("{} is not JSON: {e}", path.display()))?;
    if value.get(key).is_some() { Ok(()) } else { Err(format!("{} has no `{key}`", path.display())) }
}

/// The header parses, a tensor's name holds `name`, and the file is as long as the header says.
fn safetensors(path: &Path, name: &str) -> Result<(), String> {
    let bytes = read(path)?;
    let wrong = |what: &str| format!("{}: {what}", path.display());
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| wrong("is too short"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| wrong("has no header"))?;
    let header = rest.get(..length).ok_or_else(|| wrong("ends inside its header"))?;
    let header: Value = serde_json::from_slice(header).map_err(|e| wrong(&e.to_string()))?;
    let tensors = header.as_object().ok_or_else(|| wrong("has no header"))?;
    if !tensors.keys().any(|k| k.contains(name)) {
        return Err(wrong(&format!("holds no {name}")));
    }
    let end = tensors.values().filter_map(|t| t["data_offsets"][1].as_u64()).max().unwrap_or(0);
    if end == (rest.len() - length) as u64 { Ok(()) } else { Err(wrong("is not as long as its header says")) }
}

/// Width and height of a PNG.
fn png_size(path: &Path) -> Result<[u32; 2], String> {
    let bytes = read(path)?;
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match (bytes.starts_with(b"\x89PNG\r\n\x1a\n"), number(16), number(20)) {
        (true, Some(w), Some(h)) if w > 0 && h > 0 => Ok([w, h]),
        _ => Err(format!("{} is not a PNG", path.display())),
    }
}
