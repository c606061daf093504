//! Damaged input at every entry point: refused or accepted, never a panic, a hang or memory out of proportion.
//!
//! Cases start from valid bytes; [`Edit`]s flip, cut, insert, copy, and put numbers and words where there were others.
//! Half of the cases are mended afterwards (header length, checksums), so that damage gets past the outer check. A few
//! thousand run by default; `cargo xtask fuzz` runs a million.

use asasr_engine::data::{Format, Image, Photo, Picture, picture};
use asasr_engine::engine::{DType, Device};
use asasr_engine::flux::text::{ClipConfig, T5Config};
use asasr_engine::flux::vae::VaeConfig;
use asasr_engine::flux::{AdapterFile, BaseModel, FluxConfig, SafeFile, bfl};
use asasr_engine::train::Config;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Cases in all without `ASASR_FUZZ_CASES`.
const CASES: usize = 4000;
/// No case may take more memory than this and [`PER_BYTE`] for each byte of input: six for every pixel that a byte of a
/// picture may stand for, and as much again while it is being converted.
const MEMORY: usize = 256 << 20;
const PER_BYTE: usize = 100_000;
/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts this thread's memory: held now, and the most held since it was last set.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Threads that are going away have no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static MEMORY_OF_THREADS: Counting = Counting;

/// One change of some bytes. Places are shares of the length.
#[derive(Clone, Debug)]
enum Edit {
    Flip(Index, u8),
    Put(Index, u8),
    Cut(Index),
    Remove(Index, Index),
    Insert(Index, Vec<u8>),
    Copy(Index, Index, Index),
    /// Another number where one stands.
    Number(Index, Index),
    /// Another word where one stands.
    Word(Index, Index),
}

const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "3",
    "7",
    "255",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "1e-999",
    "0.5",
    "null",
    "[]",
];
const WORDS: [&str; 16] = [
    "",
    "F32",
    "BF16",
    "F64",
    "I64",
    "U8",
    "F8_E4M3",
    "F4",
    "lora_A",
    "alpha",
    "use_rslora",
    "rank_pattern",
    "../x",
    "é",
    "\\u0000",
    "\\ud800",
];

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        1 => (at(), 0..8u8).prop_map(|(i, bit)| Edit::Flip(i, bit)),
        1 => (at(), any::<u8>()).prop_map(|(i, b)| Edit::Put(i, b)),
        1 => at().prop_map(Edit::Cut),
        1 => (at(), at()).prop_map(|(i, n)| Edit::Remove(i, n)),
        1 => (at(), vec(any::<u8>(), 1..9)).prop_map(|(i, b)| Edit::Insert(i, b)),
        1 => (at(), at(), at()).prop_map(|(i, n, to)| Edit::Copy(i, n, to)),
        8 => (at(), at()).prop_map(|(i, n)| Edit::Number(i, n)),
        5 => (at(), at()).prop_map(|(i, w)| Edit::Word(i, w)),
    ];
    vec(edit, 1..4)
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let n = bytes.len();
        if n == 0 {
            return;
        }
        let span = |i: &Index, length: &Index| {
            let from = i.index(n);
            from..from + length.index(64.min(n - from) + 1)
        };
        match self {
            Self::Flip(i, bit) => bytes[i.index(n)] ^= 1 << bit,
            Self::Put(i, b) => bytes[i.index(n)] = *b,
            Self::Cut(i) => bytes.truncate(i.index(n)),
            Self::Remove(i, length) => drop(bytes.drain(span(i, length))),
            Self::Insert(i, new) => drop(bytes.splice(i.index(n)..i.index(n), new.iter().copied())),
            Self::Copy(i, length, to) => {
                let part = bytes[span(i, length)].to_vec();
                bytes.splice(to.index(n)..to.index(n), part);
            }
            Self::Number(i, new) => replace(bytes, i, new.get::<&str>(&NUMBERS), |b| b.is_ascii_digit()),
            Self::Word(i, new) => {
                replace(bytes, i, new.get::<&str>(&WORDS), |b| b.is_ascii_alphabetic() || b == b'_')
            }
        }
    }
}

/// Replaces the run of `kind` that follows place `i`.
fn replace(bytes: &mut Vec<u8>, i: &Index, new: &str, kind: impl Fn(u8) -> bool) {
    let i = i.index(bytes.len());
    let Some(from) = (i..bytes.len()).find(|&at| kind(bytes[at])) else { return };
    let to = (from..bytes.len()).find(|&at| !kind(bytes[at])).unwrap_or(bytes.len());
    bytes.splice(from..to, new.bytes());
}

/// A way in: what it is given first, how an edited input is mended, and the call, which says whether it was accepted.
struct Entry {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    damage: fn(&[u8], &[Edit], bool) -> Vec<u8>,
    enter: fn(Vec<u8>) -> bool,
}

fn entries() -> Vec<Entry> {
    let text = |texts: &[&str]| texts.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>();
    let config = Config::default().to_toml();
    let mut section = "";
    let mut sets = Vec::new();
    for line in config.lines() {
        match line.split_once(" = ") {
            _ if line.starts_with('#') => {}
            _ if line.starts_with('[') => section = line.trim_matches(['[', ']']),
            Some((key, value)) => sets.push(format!("{section}.{key}={value}").into_bytes()),
            None => {}
        }
    }
    vec![
        Entry {
            name: "safetensors",
            seeds: vec![mixed_tensors(), adapter_bytes()],
            damage: in_header,
            enter: safetensors,
        },
        Entry {
            name: "adapter",
            seeds: vec![adapter_bytes(), kohya_bytes()],
            damage: in_header,
            enter: adapter,
        },
        Entry { name: "base model", seeds: vec![bfl_bytes()], damage: in_header, enter: base_model },
        Entry {
            name: "adapter_config.json",
            seeds: text(&[DESCRIPTION]),
            damage: anywhere,
            enter: description,
        },
        Entry { name: "config.json", seeds: text(&[DIMENSIONS]), damage: anywhere, enter: dimensions },
        Entry {
            name: "a text encoder's config.json",
            seeds: text(&TEXT_ENCODERS),
            damage: anywhere,
            enter: text_encoder,
        },
        Entry {
            name: "the autoencoder's config.json",
            seeds: text(&[VAE]),
            damage: anywhere,
            enter: autoencoder,
        },
        Entry {
            name: "config.toml",
            seeds: text(&[CONFIG, &CONFIG[..CONFIG.len() / 2]]),
            damage: anywhere,
            enter: toml,
        },
        Entry { name: "--set", seeds: sets, damage: anywhere, enter: set },
        Entry { name: "png", seeds: pngs(), damage: in_chunks, enter: photo },
        Entry { name: "jpeg", seeds: jpegs(), damage: anywhere, enter: photo },
        Entry { name: "png with a note", seeds: noted(&[Format::Png]), damage: in_chunks, enter: picture },
        Entry {
            name: "jpg, webp with a note",
            seeds: noted(&[Format::Jpeg, Format::WebP]),
            damage: anywhere,
            enter: picture,
        },
    ]
}

fn anywhere(seed: &[u8], edits: &[Edit], _: bool) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    edits.iter().for_each(|e| e.apply(&mut bytes));
    bytes
}

/// Edits of a safetensors file; mended: of its header alone, whose length is then written anew.
fn in_header(seed: &[u8], edits: &[Edit], mend: bool) -> Vec<u8> {
    if !mend {
        return anywhere(seed, edits, mend);
    }
    let end = 8 + u64::from_le_bytes(seed[..8].try_into().unwrap()) as usize;
    let header = anywhere(&seed[8..end], edits, mend);
    [&(header.len() as u64).to_le_bytes(), &header[..], &seed[end..]].concat()
}

/// Edits of a PNG; mended: the checksum of every chunk that can still be told is written anew.
fn in_chunks(seed: &[u8], edits: &[Edit], mend: bool) -> Vec<u8> {
    let mut bytes = anywhere(seed, edits, mend);
    let mut at = 8;
    while let Some(Ok(length)) = bytes.get(at..at + 4).map(<[u8; 4]>::try_from).filter(|_| mend) {
        let end = at + 8 + u32::from_be_bytes(length) as usize;
        let Some(chunk) = bytes.get(at + 4..end) else { break };
        let sum = crc(chunk).to_be_bytes();
        let Some(place) = bytes.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|i| {
            (0..8).fold(i as u32, |c, _| if c & 1 == 1 { 0xedb8_8320 ^ c >> 1 } else { c >> 1 })
        })
    });
    !bytes.iter().fold(u32::MAX, |c, b| TABLE[((c ^ u32::from(*b)) & 255) as usize] ^ c >> 8)
}

fn safetensors(bytes: Vec<u8>) -> bool {
    let Ok(file) = SafeFile::from_bytes("x.safetensors", bytes) else { return false };
    let device = Device::cpu();
    for name in file.names() {
        let n = file.shape(name).unwrap().iter().product::<usize>();
        for t in [file.tensor(name, &device), file.stored(name, &device), file.weight(name, &device)] {
            assert_eq!(t.map_or(n, |t| t.len()), n);
        }
        assert_eq!(file.f64s(name).map_or(n, |v| v.len()), n);
    }
    file.tensor("nowhere", &device).is_err()
}

fn read_adapter(weights: Vec<u8>, description: &str) -> bool {
    let Ok(file) = SafeFile::from_bytes("x.safetensors", weights) else { return false };
    let description = Some((Path::new("adapter_config.json"), description));
    let read = AdapterFile::read("x".into(), &file, description, &Device::cpu());
    read.is_ok_and(|a| {
        a.modules.values().all(|m| m.scaling().is_finite()) && a.validate(&FluxConfig::default()).is_err()
    })
}

fn adapter(bytes: Vec<u8>) -> bool {
    read_adapter(bytes, DESCRIPTION)
}

fn base_model(bytes: Vec<u8>) -> bool {
    thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap());
    FOLDER.with(|dir| {
        let path = dir.path().join("flux.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let load = |base: BaseModel| base.load(&Device::cpu(), DType::F32, &mut |_, _| ());
        BaseModel::open(&path).and_then(load).is_ok()
    })
}

fn description(bytes: Vec<u8>) -> bool {
    static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(adapter_bytes);
    read_adapter(WEIGHTS.clone(), &String::from_utf8_lossy(&bytes))
}

fn dimensions(bytes: Vec<u8>) -> bool {
    let config = FluxConfig::parse(&String::from_utf8_lossy(&bytes));
    config
        .is_ok_and(|c| c.dim() > 0 && c.mlp_dim() > 0 && (c.num_layers > 64 || !c.lora_targets().is_empty()))
}

fn text_encoder(bytes: Vec<u8>) -> bool {
    let text = String::from_utf8_lossy(&bytes);
    let clip = ClipConfig::parse(&text).is_ok_and(|c| !c.empty().0.is_empty());
    clip || T5Config::parse(&text).is_ok_and(|c| !c.empty().0.is_empty())
}

fn autoencoder(bytes: Vec<u8>) -> bool {
    let config = VaeConfig::parse(&String::from_utf8_lossy(&bytes));
    config.is_ok_and(|c| {
        let widths = &c.block_out_channels;
        c.block() <= 128
            && widths.iter().all(|w| w.is_multiple_of(c.norm_num_groups))
            && c.shift().is_finite()
    })
}

fn toml(bytes: Vec<u8>) -> bool {
    thread_local!(static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().unwrap());
    FILE.with(|file| {
        std::fs::write(file, bytes).unwrap();
        Config::load(None, Some(file.path()), &[]).is_ok()
    })
}

fn set(bytes: Vec<u8>) -> bool {
    Config::load(None, None, &[String::from_utf8_lossy(&bytes).into_owned()]).is_ok()
}

fn photo(bytes: Vec<u8>) -> bool {
    let photo = Photo::decode(&bytes);
    photo.is_ok_and(|p| p.crop(p.height() - 1, p.width() - 1, 1, 1).is_ok())
}

fn picture(bytes: Vec<u8>) -> bool {
    let noted = picture::note(&bytes).is_some();
    Picture::decode(&bytes).is_ok_and(|p| p.filled().data.len() == 3 * p.color.height * p.color.width)
        && noted
}

const DESCRIPTION: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"a.b": 3}, "rank_pattern": {"a.b": 3},
"use_rslora": false, "use_dora": false, "target_modules": ["x_embedder", "a.b"], "lora_bias": false}"#;

const DIMENSIONS: &str = r#"{"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "out_channels": null,
"num_layers": 2, "num_single_layers": 3, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
"pooled_projection_dim": 768, "guidance_embeds": true, "axes_dims_rope": [16, 56, 56], "rope_theta": 100.0, "mlp_ratio": 2.0}"#;

const TEXT_ENCODERS: [&str; 2] = [
    include_str!("golden/tiny_flux/text_encoder/config.json"),
    include_str!("golden/tiny_flux/text_encoder_2/config.json"),
];
const VAE: &str = r#"{"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [8, 8, 16, 16], "in_channels": 3,
"latent_channels": 16, "layers_per_block": 2, "mid_block_add_attention": true, "norm_num_groups": 4, "out_channels": 3,
"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": false, "use_post_quant_conv": false}"#;

const CONFIG: &str = r#"[run]
seed = 3
stages = ["sft", "asdpo"]
[data]
crop = 64
blur_max = 1.5
source = "photos"
[model]
axes = [4, 14, 14]
mlp_ratio = 4.0
[asdpo]
lr = 5e-4
beta = 500
spectrum = "half"
recompute = true
"#;

fn file(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let (mut header, mut data) = (BTreeMap::new(), Vec::<u8>::new());
    for &(name, dtype, shape, size) in tensors {
        let from = data.len();
        // 0.5 in f32; something in the others.
        data.extend([0, 0, 0, 0x3f].iter().cycle().take(shape.iter().product::<usize>() * size));
        let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, data.len()]});
        header.insert(name, info);
    }
    header.insert("__metadata__", serde_json::json!({"format": "pt", "lq_resize": "torch_bicubic"}));
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()
}

fn mixed_tensors() -> Vec<u8> {
    file(&[
        ("bf16", "BF16", &[2, 3], 2),
        ("f16", "F16", &[4], 2),
        ("f32", "F32", &[2, 2], 4),
        ("f64", "F64", &[3], 8),
        ("i64", "I64", &[], 8),
        ("none", "F32", &[0, 5], 4),
        ("u8", "U8", &[5], 1),
    ])
}

fn adapter_bytes() -> Vec<u8> {
    file(&[
        ("base_model.model.a.b.lora_A.weight", "F32", &[3, 4], 4),
        ("base_model.model.a.b.lora_B.weight", "BF16", &[5, 3], 2),
        ("transformer.x_embedder.alpha", "F32", &[], 4),
        ("transformer.x_embedder.lora_A.weight", "F32", &[2, 4], 4),
        ("transformer.x_embedder.lora_B.weight", "F16", &[6, 2], 2),
    ])
}

fn kohya_bytes() -> Vec<u8> {
    file(&[
        ("lora_unet_double_blocks_0_img_attn_qkv.alpha", "F32", &[], 4),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "F32", &[2, 4], 4),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "BF16", &[12, 2], 2),
        ("lora_unet_single_blocks_3_linear1.lora_down.weight", "F16", &[1, 4], 2),
        ("lora_unet_single_blocks_3_linear1.lora_up.weight", "F32", &[20, 1], 4),
    ])
}

/// A model of one single block and one head, in Black Forest Labs' naming.
fn bfl_bytes() -> Vec<u8> {
    let config = FluxConfig {
        in_channels: 4,
        num_layers: 0,
        num_single_layers: 1,
        num_attention_heads: 1,
        joint_attention_dim: 2,
        pooled_projection_dim: 2,
        mlp_ratio: 0.03125,
        ..FluxConfig::default()
    };
    let all = bfl::parameters(&config);
    let tensors: Vec<_> = all.iter().map(|(name, shape)| (name.as_str(), "BF16", &shape[..], 2)).collect();
    file(&tensors)
}

fn colours(width: usize, height: usize) -> Image {
    Image::from_fn(height, width, |c, y, x| ((c * 50 + y * 7 + x * 3) % 256) as f32 / 255.0)
}

fn pngs() -> Vec<Vec<u8>> {
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType as Kind, ImageEncoder};
    let (w, h) = (9u32, 7u32);
    let one = |kind: Kind| {
        let data: Vec<u8> =
            (0..w * h * u32::from(kind.bits_per_pixel()) / 8).map(|i| (i * 37 % 251) as u8).collect();
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(&data, w, h, kind).unwrap();
        bytes
    };
    [Kind::L8, Kind::La8, Kind::Rgb8, Kind::Rgba8, Kind::Rgb16].map(one).to_vec()
}

fn jpegs() -> Vec<Vec<u8>> {
    use image::ExtendedColorType as Kind;
    let one = |(w, h, quality, kind): (u32, u32, u8, Kind)| {
        let rgb = colours(w as usize, h as usize).to_rgb8();
        let data = if kind == Kind::L8 { &rgb[..(w * h) as usize] } else { &rgb };
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality)
            .encode(data, w, h, kind)
            .unwrap();
        bytes
    };
    [(17, 9, 90, Kind::Rgb8), (8, 8, 30, Kind::Rgb8), (16, 24, 60, Kind::L8)].map(one).to_vec()
}

/// Pictures as `upscale` writes them, grey, in colour and, where the format can, transparent.
fn noted(formats: &[Format]) -> Vec<Vec<u8>> {
    let kinds = pngs().into_iter().map(|bytes| Picture::decode(&bytes).unwrap());
    let as_each = |p: Picture| {
        formats.iter().filter_map(move |&f| p.encode(f, 80, "{\"seed\":1}").ok()).collect::<Vec<_>>()
    };
    kinds.flat_map(as_each).collect()
}

#[derive(Default)]
struct Tally {
    cases: AtomicUsize,
    accepted: AtomicUsize,
    peak: AtomicUsize,
    slowest: AtomicUsize,
}

impl Tally {
    /// One case: what it took is counted, and must be in proportion.
    fn case(&self, entry: &Entry, input: Vec<u8>) {
        let n = input.len();
        let held = HELD.get();
        PEAK.set(held);
        let begun = Instant::now();
        let accepted = (entry.enter)(input);
        let (time, peak) = (begun.elapsed(), (PEAK.get() - held).max(0) as usize);
        self.cases.fetch_add(1, Relaxed);
        self.accepted.fetch_add(usize::from(accepted), Relaxed);
        self.peak.fetch_max(peak, Relaxed);
        self.slowest.fetch_max(time.as_micros() as usize, Relaxed);
        assert!(
            peak <= MEMORY + PER_BYTE * n,
            "{}: {peak} bytes of memory for {n} bytes of input",
            entry.name
        );
        assert!(time < PATIENCE, "{}: {time:?} for {n} bytes of input", entry.name);
    }

    /// `cases` of them, the same whenever `seed` is.
    fn run(&self, entry: &Entry, cases: usize, seed: u8) -> Result<(), String> {
        let runs = Runs { cases: cases as u32, failure_persistence: None, ..Runs::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let strategy = (any::<Index>(), edits(), any::<bool>());
        let outcome = TestRunner::new_with_rng(runs, rng).run(&strategy, |(seed, edits, mend)| {
            self.case(entry, (entry.damage)(seed.get::<Vec<u8>>(&entry.seeds), &edits, mend));
            Ok(())
        });
        outcome.map_err(|e| format!("{}: {e}", entry.name))
    }
}

#[test]
fn damaged_input_is_refused_or_accepted() {
    let cases = std::env::var("ASASR_FUZZ_CASES").map_or(CASES, |n| n.parse().expect("a number of cases"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(64);
    let entries = entries();
    println!(
        "{:<20} {:>8} {:>8} {:>8} {:>8} {:>9} {:>10}",
        "entry point", "cases", "refused", "accepted", "seconds", "peak MiB", "slowest ms"
    );
    let mut sum = [0usize; 3];
    let begun = Instant::now();
    for entry in &entries {
        // Undamaged, everything is accepted: what is refused below is refused for its damage.
        for seed in &entry.seeds {
            let shown = String::from_utf8_lossy(seed);
            assert!((entry.enter)(seed.clone()), "{}: a good input was refused: {shown}", entry.name);
        }
        let (tally, begun) = (Tally::default(), Instant::now());
        let each = cases.div_ceil(entries.len()).div_ceil(threads);
        std::thread::scope(|s| {
            let work: Vec<_> = (0..threads)
                .map(|t| {
                    s.spawn({
                        let tally = &tally;
                        move || tally.run(entry, each, t as u8)
                    })
                })
                .collect();
            for thread in work {
                thread.join().unwrap().unwrap_or_else(|why| panic!("{why}"));
            }
        });
        let [n, ok] = [&tally.cases, &tally.accepted].map(|a| a.load(Relaxed));
        let [peak, slowest] = [&tally.peak, &tally.slowest].map(|a| a.load(Relaxed) as f64);
        println!(
            "{:<20} {n:>8} {:>8} {ok:>8} {:>8.1} {:>9.2} {:>10.1}",
            entry.name,
            n - ok,
            begun.elapsed().as_secs_f64(),
            peak / 1048576.0,
            slowest / 1000.0
        );
        assert!(
            ok > 0 && ok < n,
            "{}: {ok} of {n} damaged inputs accepted; the damage is too small or too great",
            entry.name
        );
        sum = [sum[0] + n, sum[1] + n - ok, sum[2] + ok];
    }
    println!(
        "{:<20} {:>8} {:>8} {:>8} {:>8.1}",
        "all",
        sum[0],
        sum[1],
        sum[2],
        begun.elapsed().as_secs_f64()
    );
}

/// The counters see what a case takes, on its own thread.
#[test]
fn memory_is_counted() {
    let tally = Tally::default();
    let greedy = Entry {
        name: "greedy",
        seeds: vec![],
        damage: anywhere,
        enter: |_| std::hint::black_box(vec![1u8; 300 << 20]).len() > 1,
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tally.case(&greedy, vec![])));
    assert!(outcome.is_err() && tally.peak.load(Relaxed) >= 300 << 20);
}
