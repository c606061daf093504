//! `asasr-engine inspect`.

use super::print;
use asasr_engine::engine::Device;
use asasr_engine::flux::{AdapterFile, BaseModel, SafeFile};
use asasr_engine::train::checkpoint::Checkpoint;
use asasr_engine::train::{StageSummary, Summary};
use asasr_engine::{Error, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// A .safetensors file, a model's or an adapter's folder, a checkpoint or a run directory
    path: PathBuf,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let path = &args.path;
    if !path.exists() {
        return Err(Error::Usage(format!("{} does not exist", path.display())));
    }
    if path.join("summary.json").is_file() {
        print(&show_run(path)?)?;
    } else if path.join("manifest.json").is_file() {
        print(&show_checkpoint(path)?)?;
    } else if path.join("log.jsonl").is_file() {
        print(&show_unfinished(path)?)?;
    } else if path.is_dir()
        && ["config.json", "transformer/config.json"].iter().any(|f| path.join(f).is_file())
    {
        print(&show_model(path)?)?;
    } else if path.is_dir() {
        print(&show_adapter(path)?)?;
    } else {
        print(&show_file(path)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_run(path: &Path) -> Result<String> {
    let mut text = String::new();
    let s = Summary::load(path.join("summary.json"))?;
    let _ = writeln!(text, "run of version {}, seed {}, {:.0} s", s.version, s.seed, s.wall_s);
    for stage in &s.stages {
        let (first, last) = (stage.first_loss, stage.last_loss);
        let _ = writeln!(
            text,
            "  {:<10} {:>6} steps, {:>6.0} s, loss {first:.4} → {last:.4}",
            stage.name, stage.steps, stage.seconds
        );
    }
    for (name, m) in s.eval.rows() {
        let _ = writeln!(text, "  {name:<8} {m}");
    }
    Ok(text)
}

/// A run without a summary: how far it has come, and from where it can go on.
fn show_unfinished(path: &Path) -> Result<String> {
    let mut text = "a run that is not finished, or still going\n".to_owned();
    for stage in StageSummary::of_run(path)? {
        let (first, last) = (stage.first_loss, stage.last_loss);
        let _ = writeln!(text, "  {:<10} {:>6} steps, loss {first:.4} → {last:.4}", stage.name, stage.steps);
    }
    let mut damaged = Vec::new();
    let latest = Checkpoint::latest(path, |e| damaged.push(e));
    for e in damaged {
        let _ = writeln!(text, "  damaged: {e}");
    }
    let _ = match latest {
        Some(c) => writeln!(text, "  --resume goes on from {}", c.path.display()),
        None => writeln!(text, "  it has no intact checkpoint: --resume starts over"),
    };
    Ok(text)
}

fn show_checkpoint(path: &Path) -> Result<String> {
    let Checkpoint { record: r, .. } = Checkpoint::open(path)?;
    let lr = r.next_lr.map_or("none: the stage is done".to_owned(), |lr| lr.to_string());
    let mut text = format!(
        "checkpoint of stage {} after {} updates; its hashes are right\n  engine {}, format {}, seed {}\n  \
         {} samples drawn, {} lines of log.jsonl\n  next learning rate {lr}\n  configuration {}\n",
        r.stage, r.step, r.engine, r.format, r.seed, r.samples, r.log_lines, r.config_hash
    );
    for (name, hash) in &r.artifacts {
        let _ = writeln!(text, "  stands on {name} {hash}");
    }
    text.push_str(&show_tensors(&path.join("state.safetensors"))?);
    Ok(text)
}

fn show_adapter(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = AdapterFile::load(path, &Device::cpu())?;
    let values: usize = file.modules.values().map(|m| m.a.len() + m.b.len()).sum();
    let one = |v: Option<String>| v.unwrap_or_else(|| "mixed".to_owned());
    let rank = one(file.rank().map(|r| r.to_string()));
    let alpha = one(file.alpha().map(|a| a.to_string()));
    let _ = writeln!(
        text,
        "adapter {}: {} modules, rank {rank}, alpha {alpha}, {values} values",
        file.name,
        file.modules.len()
    );
    for (name, m) in &file.modules {
        let norm = |t: &[f32]| t.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let _ = writeln!(
            text,
            "  {name:<52} A {:?} B {:?}  scale {:.3}  ‖A‖ {:.3}  ‖B‖ {:.3}",
            m.a.shape(),
            m.b.shape(),
            m.scaling(),
            norm(m.a.f32()),
            norm(m.b.f32())
        );
    }
    Ok(text)
}

fn show_model(path: &Path) -> Result<String> {
    let model = BaseModel::open(path)?;
    let c = model.config();
    Ok(format!(
        "FLUX transformer in {}: {} double and {} single blocks, width {} in {} heads, {} channels, text {} and {}{}\n  \
         {} values in {} bytes\n",
        model.naming(),
        c.num_layers,
        c.num_single_layers,
        c.dim(),
        c.num_attention_heads,
        c.in_channels,
        c.joint_attention_dim,
        c.pooled_projection_dim,
        if c.guidance_embeds { ", guidance" } else { "" },
        c.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(),
        model.bytes()?,
    ))
}

/// An adapter by its modules; any other file by its tensors, below what model they make.
fn show_file(path: &Path) -> Result<String> {
    let file = SafeFile::open(path)?;
    let is = |parts: &[&str]| file.names().any(|name| parts.iter().any(|part| name.contains(part)));
    let shown = if is(&[".lora_A.", ".lora_down."]) {
        match show_adapter(path) {
            Ok(text) => return Ok(text),
            Err(e) => format!("# no adapter: {e}\n"),
        }
    } else if is(&["single_blocks.", "single_transformer_blocks."]) {
        show_model(path).unwrap_or_else(|e| format!("# no base model: {e}\n"))
    } else {
        String::new()
    };
    Ok(shown + &show_tensors(path)?)
}

fn show_tensors(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = SafeFile::open(path)?;
    let mut values = 0;
    for (key, value) in file.metadata() {
        let _ = writeln!(text, "# {key} = {value}");
    }
    for name in file.names() {
        let shape = file.shape(name)?;
        values += shape.iter().product::<usize>();
        let _ = writeln!(text, "{name:<72} {:<4} {shape:?}", file.dtype(name)?);
    }
    let _ = writeln!(text, "{} tensors, {values} values", file.names().count());
    Ok(text)
}
