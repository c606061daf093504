//! Prompts to ids: a folder with `tokenizer.json`, or with CLIP's `vocab.json` and `merges.txt`.

use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

/// CLIP's words; the last also ends a prompt, follows it, and stands for what is unknown.
const CLIP_WORDS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// CLIP's pieces of text, before they are taken apart further.
const CLIP_PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer that makes prompts of one length.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// That of the folder `dir`; prompts are cut or padded to `length` ids, as `transformers` does with
    /// `padding="max_length", truncation=True`.
    pub fn open(dir: &Path, length: usize) -> Result<Self> {
        let whole = dir.join("tokenizer.json");
        let (path, definition) = if whole.exists() {
            (whole.clone(), std::fs::read(&whole).map_err(Error::io(&whole))?)
        } else if dir.join("vocab.json").exists() {
            (dir.join("vocab.json"), clip(dir)?.to_string().into_bytes())
        } else {
            return Err(Error::format(
                dir,
                "holds neither tokenizer.json nor CLIP's vocab.json and merges.txt; a spiece.model alone is not read: fetch \
                 tokenizer.json beside it",
            ));
        };
        let wrong =
            |e: tokenizers::Error| Error::format(&path, format!("no tokenizer that can be used: {e}"));
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(definition).map_err(wrong)?;
        let pad_token = pad_token(dir)?;
        let pad_id = tokenizer.token_to_id(&pad_token).ok_or_else(|| {
            Error::format(
                &path,
                format!("does not know {pad_token}, which the folder's other files pad with"),
            )
        })?;
        let cut = TruncationParams { max_length: length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(cut)).map_err(wrong)?;
        let strategy = PaddingStrategy::Fixed(length);
        tokenizer.with_padding(Some(PaddingParams {
            strategy,
            pad_id,
            pad_token,
            ..PaddingParams::default()
        }));
        Ok(Self(tokenizer))
    }

    /// The ids of `text`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.0.encode(text, true).map_err(|e| Error::Usage(format!("the prompt {text:?}: {e}")))?;
        Ok(ids.get_ids().to_vec())
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not a JSON file: {e}")))
}

/// What prompts are padded with, as the first of the folder's files that says so has it.
fn pad_token(dir: &Path) -> Result<String> {
    let names = ["tokenizer_config.json", "special_tokens_map.json"];
    for path in names.map(|name| dir.join(name)).iter().filter(|p| p.exists()) {
        let pad = &read(path)?["pad_token"];
        if let Some(word) = pad.as_str().or(pad["content"].as_str()) {
            return Ok(word.to_owned());
        }
    }
    Err(Error::format(dir, format!("no pad_token in {}: fetch them again", names.join(" or "))))
}

/// CLIP's tokenizer, of its two files, as `tokenizer.json` would have it.
fn clip(dir: &Path) -> Result<Value> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    let words = read(&vocab)?;
    let text = std::fs::read_to_string(&merges).map_err(Error::io(&merges))?;
    let pairs: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with("#version")).collect();
    let [bos, eos] = CLIP_WORDS;
    let id = |word: &str| {
        words[word]
            .as_u64()
            .ok_or_else(|| Error::format(&vocab, format!("has no {word}: not a vocabulary of CLIP's")))
    };
    let (bos_id, eos_id) = (id(bos)?, id(eos)?);
    let special = |word: &str, id: u64| json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(bos, bos_id), special(eos, eos_id)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CLIP_PIECES}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [eos, eos_id], "cls": [bos, bos_id],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": eos, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": words, "merges": pairs,
        },
    }))
}
