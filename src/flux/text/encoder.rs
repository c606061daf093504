//! What both encoders are made of: weights that are read where they are used, layers, the residual stream.

use crate::engine::{DType, Device, Tensor};
use crate::flux::weights::Folder;
use crate::ops::linear::{Epilogue, Linear};
use crate::ops::norm::Norm;
use crate::ops::{Op, Save};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A folder of `config.json` and weights, and where and in what they compute.
pub(super) struct Encoder {
    pub dir: PathBuf,
    pub folder: Folder,
    pub device: Device,
    pub dtype: DType,
}

/// What `config.json` of `dir` says, by `parse`.
pub(super) fn config<C>(dir: &Path, parse: fn(&str) -> Result<C, String>) -> Result<C> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    parse(&text).map_err(|detail| Error::format(&path, detail))
}

/// A JSON object's fields.
pub(super) fn fields<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    serde_json::from_str(text).map_err(|e| format!("no text encoder's dimensions: {e}"))
}

impl Encoder {
    /// Opens a folder; which tensors it must hold is its reader's to say.
    pub fn open(dir: PathBuf, device: &Device, dtype: DType) -> Result<Self> {
        if dtype == DType::Bf16 && device.gpu().is_none() {
            return Err(Error::Usage(format!(
                "bf16 is for CUDA devices, the text encoders are on {device:?}: use f32"
            )));
        }
        let folder = Folder::open(&dir)?;
        Ok(Self { dir, folder, device: device.clone(), dtype })
    }

    /// The rows `ids` of the embedding `name`, `[batch, tokens, width]` on the host.
    pub fn embedded(&self, name: &str, vocabulary: usize, ids: &[Vec<u32>]) -> Result<Vec<f32>> {
        let tokens = ids.first().map_or(0, Vec::len);
        if tokens == 0 || ids.iter().any(|i| i.len() != tokens) {
            let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
            return Err(Error::Usage(format!("prompts of {lengths:?} tokens; wanted equal lengths from 1")));
        }
        let all: Vec<usize> = ids.iter().flatten().map(|&id| id as usize).collect();
        if let Some(i) = all.iter().position(|&id| id >= vocabulary) {
            return Err(Error::Usage(format!(
                "token {} of prompt {} is {}; the vocabulary of {} has {vocabulary}, so ids end at {}: that tokenizer is \
                 another model's",
                i % tokens,
                i / tokens,
                all[i],
                self.dir.display(),
                vocabulary - 1
            )));
        }
        self.folder.rows(name, &all)
    }

    /// W·x (+ b), added to `resid` where there is one.
    pub fn linear(&self, module: &str, x: &Tensor, bias: bool, resid: Option<&Tensor>) -> Result<Tensor> {
        let w = self.folder.stored(&format!("{module}.weight"), &self.device)?;
        let b = bias.then(|| self.folder.weight(&format!("{module}.bias"), &self.device)).transpose()?;
        let epilogue = if resid.is_some() { Epilogue::Add } else { Epilogue::None };
        let inputs: Vec<&Tensor> = [x, &w].into_iter().chain(&b).chain(resid).collect();
        let op = Linear { bias, epilogue, ..Linear::plain() };
        Ok(op.forward(&inputs, &mut Save::nothing())?.remove(0))
    }

    /// The residual stream normed, LayerNorm where there is a bias: for a layer's input, or, at the end, for the reader.
    pub fn norm(&self, module: &str, x: &Tensor, eps: f32, bias: bool, last: bool) -> Result<Tensor> {
        let w = self.folder.weight(&format!("{module}.weight"), &self.device)?;
        let b = bias.then(|| self.folder.weight(&format!("{module}.bias"), &self.device)).transpose()?;
        let inputs: Vec<&Tensor> = [x, &w].into_iter().chain(&b).collect();
        Norm { rms: !bias, eps, narrow: self.dtype == DType::Bf16 && !last }.apply(&inputs)
    }
}

/// Refuses numbers that no encoder has: layers and heads of 1 to 4096, other sizes to a million.
pub(super) fn expect_sizes(sizes: &[(&str, usize)]) -> Result<(), String> {
    for (name, n) in sizes {
        let most = if name.starts_with("num_") { 1 << 12 } else { 1 << 20 };
        if *n == 0 || *n > most {
            return Err(format!("{name} is {n}, wanted 1 to {most}"));
        }
    }
    Ok(())
}
