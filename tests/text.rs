//! Prompts: tokenizers against ids that `transformers` gives, a model without them, what is refused, the cache.
//! FLUX.1's tokenizers are not kept in the repository: they are looked for in `../shared/data`; where they are absent
//! those tests are skipped, and say so.
#![cfg(feature = "text")]

mod common;

use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::flux::SafeFile;
use asasr_engine::flux::text::{Cache, Clip, Prompt, T5, TextEncoders, Tokenizer};
use asasr_engine::flux::weights::write_safetensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const TINY: &str = "tests/golden/tiny_flux";
/// A prompt of what tokenizers take apart.
const ODD: &str = "Straße, naïve café №5 — it's 1234!";

fn tokenizer(part: &str, length: usize) -> Option<Tokenizer> {
    let path = Path::new("../shared/data/tokenizers").join(part);
    if !path.exists() {
        println!("skipped: {} is not here", path.display());
        return None;
    }
    Some(Tokenizer::open(&path, length).unwrap())
}

/// A copy of the tiny model's encoders.
fn model(at: &Path) -> PathBuf {
    for part in ["text_encoder", "text_encoder_2"] {
        fs::create_dir_all(at.join(part)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(Path::new(TINY).join(part).join(file), at.join(part).join(file)).unwrap();
        }
    }
    at.to_path_buf()
}

fn open(dir: &Path) -> TextEncoders {
    TextEncoders::open(dir, &Device::cpu(), DType::F32).unwrap()
}

/// Ids before the padding, after which nothing but `pad` may come.
fn words(ids: &[u32], length: usize, pad: u32) -> Vec<u32> {
    assert_eq!(ids.len(), length);
    let end = ids.iter().rposition(|&id| id != pad).map_or(0, |i| i + 1);
    ids[..end].to_vec()
}

#[test]
fn clip_prompts_become_the_ids_of_transformers() {
    let Some(clip) = tokenizer("tokenizer", 77) else { return };
    let of = |text: &str| words(&clip.encode(text).unwrap(), 77, 49407);
    assert_eq!(of("a photo of a cat"), [49406, 320, 1125, 539, 320, 2368]);
    assert_eq!(of(""), [49406]);
    assert_eq!(of("A  Photo\nof a CAT"), of("a photo of a cat"));
    let odd = [
        1894, 127, 253, 324, 267, 1097, 35689, 563, 15304, 8604, 500, 276, 2005, 585, 568, 272, 273, 274,
        275, 256,
    ];
    assert_eq!(of(ODD)[1..], odd);
    // Cut, the end is kept.
    let long = clip.encode(&"cat ".repeat(100)).unwrap();
    assert_eq!((long.len(), long[0], long[75], long[76]), (77, 49406, 2368, 49407));
}

#[test]
fn t5_prompts_become_the_ids_of_transformers() {
    let Some(t5) = tokenizer("tokenizer_2", 512) else { return };
    let of = |text: &str| words(&t5.encode(text).unwrap(), 512, 0);
    assert_eq!(of("Hello world"), [8774, 296, 1]);
    assert_eq!(of(""), [1]);
    let odd = [5438, 5202, 15, 6, 3, 29, 9, 2, 162, 11949, 465, 755, 3, 318, 34, 31, 7, 586, 3710, 55, 1];
    assert_eq!(of(ODD), odd);
    let Some(short) = tokenizer("tokenizer_2", 3) else { return };
    assert_eq!(short.encode("Hello world Hello world").unwrap(), [8774, 296, 1]);
}

#[test]
fn a_model_without_tokenizers_knows_the_empty_prompt() {
    let tiny = open(Path::new(TINY));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tiny = tiny.telling({
        let told = told.clone();
        move |done, all| told.lock().unwrap().push((done, all))
    });
    let got = tiny.encode("", 20).unwrap();
    let t5 = T5::open(Path::new(TINY).join("text_encoder_2"), &Device::cpu(), DType::F32).unwrap();
    let layers = t5.layers();
    assert_eq!(*told.lock().unwrap(), (1..=layers).map(|i| (i, layers)).collect::<Vec<_>>());
    let mut ids = vec![0; 20];
    ids[0] = 1;
    assert_eq!(got.txt.f32(), t5.encode(&[ids], &mut |_, _| {}).unwrap().f32());
    let clip = Clip::open(Path::new(TINY).join("text_encoder"), &Device::cpu(), DType::F32).unwrap();
    let mut ids = vec![63; 77];
    ids[0] = 62;
    assert_eq!(got.pooled.f32(), clip.encode(&[ids]).unwrap().1.f32());
    assert_eq!((got.txt.shape(), got.pooled.shape()), (&[20, 32][..], &[24][..]));
    let refused = tiny.encode("a cat", 20).unwrap_err();
    assert!(refused.exit_code() == 2 && refused.to_string().contains("has no folder tokenizer"), "{refused}");
    assert!(tiny.encode("", 0).unwrap_err().to_string().contains("0 text tokens; wanted 1 to 512"));
}

#[test]
fn ids_beyond_the_vocabulary_are_refused_with_the_numbers() {
    let t5 = T5::open(Path::new(TINY).join("text_encoder_2"), &Device::cpu(), DType::F32).unwrap();
    let refused = t5.encode(&[vec![1, 0], vec![5, 96]], &mut |_, _| {}).unwrap_err().to_string();
    assert!(refused.contains("token 1 of prompt 1 is 96") && refused.contains("has 96"), "{refused}");
    let refused = t5.encode(&[vec![1], vec![5, 9]], &mut |_, _| {}).unwrap_err().to_string();
    assert!(refused.contains("[1, 2] tokens"), "{refused}");
    let clip = Clip::open(Path::new(TINY).join("text_encoder"), &Device::cpu(), DType::F32).unwrap();
    let refused = clip.encode(&[vec![1; 78]]).unwrap_err().to_string();
    assert!(refused.contains("78 tokens") && refused.contains("at most 77"), "{refused}");
    // Another model's tokenizers.
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(dir.path());
    ["tokenizer", "tokenizer_2"].iter().for_each(|part| words_only(&tiny.join(part)));
    assert_eq!(open(&tiny).encode("end", 4).unwrap().txt.shape(), [4, 32]);
    let refused = open(&tiny).encode("end end cat", 16).unwrap_err().to_string();
    assert!(refused.contains("token 2 of prompt 0 is 99; the vocabulary"), "{refused}");
}

/// A tokenizer of two words, one of them beyond the tiny model's vocabularies.
fn words_only(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let model = r#"{"type": "WordLevel", "vocab": {"pad": 0, "end": 1, "cat": 99}, "unk_token": "end"}"#;
    let tokenizer = format!(
        r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}}, "model": {model}}}"#
    );
    fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();
    fs::write(dir.join("special_tokens_map.json"), r#"{"pad_token": "pad"}"#).unwrap();
}

#[test]
fn encoders_of_another_kind_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(dir.path());
    let with = |part: &str, from: &str, to: &str| {
        let path = tiny.join(part).join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        let refused = TextEncoders::open(&tiny, &Device::cpu(), DType::F32).err().unwrap().to_string();
        fs::write(&path, text).unwrap();
        refused
    };
    let (clip, t5) = ("text_encoder", "text_encoder_2");
    assert!(with(clip, "\"quick_gelu\"", "\"gelu\"").contains("hidden_act is gelu, only quick_gelu"));
    assert!(
        with(clip, "\"num_attention_heads\": 4", "\"num_attention_heads\": 5").contains("no multiple of")
    );
    assert!(with(clip, "\"vocab_size\": 64", "\"vocab_size\": 65").contains("[64, 24]"));
    assert!(with(clip, "\"hidden_size\": 24,", "").contains("missing field `hidden_size`"));
    assert!(with(t5, "\"gated-gelu\"", "\"relu\"").contains("feed_forward_proj is relu"));
    assert!(with(t5, "\"t5\"", "\"mt5\"").contains("model_type is mt5"));
    assert!(with(t5, "\"num_heads\": 4", "\"num_heads\": 0").contains("num_heads is 0"));
    assert!(with(t5, "_num_buckets\": 32", "_num_buckets\": 30").contains("multiple of 4"));
    let refused = TextEncoders::open(&tiny, &Device::cpu(), DType::Bf16).err().unwrap().to_string();
    assert!(refused.contains("bf16 is for CUDA devices"), "{refused}");
    fs::create_dir(tiny.join("tokenizer")).unwrap();
    let refused = open(&tiny).encode("", 4).unwrap_err().to_string();
    assert!(refused.contains("neither tokenizer.json nor"), "{refused}");
    fs::remove_dir_all(tiny.join(t5)).unwrap();
    let refused = TextEncoders::open(&tiny, &Device::cpu(), DType::F32).err().unwrap().to_string();
    assert!(refused.contains("has no folder text_encoder_2"), "{refused}");
}

#[test]
fn a_prompt_is_encoded_once_and_again_when_anything_changed() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(&dir.path().join("model"));
    let cache = Cache::open(dir.path().join("prompts")).unwrap();
    let get = |tokens: usize| open(&tiny).encode_cached("", tokens, &cache).unwrap();
    let ((first, made), (again, had)) = (get(8), get(8));
    assert!(!made && had);
    assert_eq!(
        (first.txt.f32(), first.pooled.f32(), again.txt.shape()),
        (again.txt.f32(), again.pooled.f32(), &[8, 32][..])
    );
    assert!(!get(9).1 && get(9).1);
    // One weight.
    let path = tiny.join("text_encoder_2/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data + 2] ^= 4;
    fs::write(&path, bytes).unwrap();
    assert!(!get(8).1 && get(8).1);
    let out = dir.path().join("out.safetensors");
    first.save(&out).unwrap();
    assert_eq!(Prompt::load(&out).unwrap().txt.f32(), first.txt.f32());
}

/// In bf16 the encoders are off by no more than twice what rounding the weights alone is, which stands for as many
/// roundings of activations as there are matrices.
#[test]
fn bf16_is_as_exact_as_rounded_weights() {
    let Some(device) = common::cuda::device() else { return };
    let dir = tempfile::tempdir().unwrap();
    let rounded = model(dir.path());
    let cpu = Device::cpu();
    for part in ["text_encoder", "text_encoder_2"] {
        let path = rounded.join(part).join("model.safetensors");
        let file = SafeFile::open(&path).unwrap();
        let round = |name: &str| {
            let t = file.tensor(name, &cpu).unwrap();
            (name.to_owned(), Tensor::bf16_from_f32(&cpu, t.shape(), t.f32()).unwrap())
        };
        let tensors: Vec<(String, Tensor)> = file.names().map(round).collect();
        write_safetensors(&path, &BTreeMap::new(), &tensors).unwrap();
    }
    let exact = open(Path::new(TINY)).encode("", 40).unwrap();
    let naive = open(&rounded).encode("", 40).unwrap();
    let half = TextEncoders::open(TINY, &device, DType::Bf16).unwrap().encode("", 40).unwrap();
    let off = |a: &Tensor, b: &Tensor| {
        a.f32().iter().zip(b.f32()).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
    };
    for (what, of) in [("txt", (|p| &p.txt) as fn(&Prompt) -> &Tensor), ("pooled", |p| &p.pooled)] {
        let (got, allowed) = (off(of(&half), of(&exact)), 2.0 * off(of(&naive), of(&exact)));
        println!("{what}: {:.2} of the tolerance", got / allowed);
        assert!(got > 0.0 && got <= allowed, "{what}: {got}, allowed {allowed}");
    }
}
