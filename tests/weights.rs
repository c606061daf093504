//! One model in every form a base model comes in: the same outputs, or the rounding of what it was stored as.

mod common;

use asasr_engine::autograd::{Tape, Var};
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::flux::transformer::{Inputs, grid_ids};
use asasr_engine::flux::weights::write_safetensors;
use asasr_engine::flux::{BaseModel, Flux, FluxConfig, SafeFile, Weights, bfl};
use asasr_engine::ops::AdapterSet;
use asasr_engine::ops::embed::NoiseLevels;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const BFL: &str = "flux1-tiny.safetensors";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_flux/transformer")
}

/// Name, shape and values of each tensor.
type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn stored() -> Stored {
    let (file, cpu) = (SafeFile::open(tiny().join(WEIGHTS)).unwrap(), Device::cpu());
    let read = |name: &str| {
        let t = file.tensor(name, &cpu).unwrap();
        (name.to_owned(), (t.shape().to_vec(), t.f32().to_vec()))
    };
    file.names().map(read).collect()
}

/// The same in Black Forest Labs' naming, each name behind `prefix`.
fn renamed(config: &FluxConfig, ours: &Stored, prefix: &str) -> Stored {
    let named = |(name, shape): (String, Vec<usize>)| {
        let n = shape.iter().product();
        (format!("{prefix}{name}"), (shape, vec![f32::NAN; n]))
    };
    let mut all: Stored = bfl::parameters(config).into_iter().map(named).collect();
    for (name, (part, values)) in ours {
        let (theirs, rows) = bfl::tensor(name).unwrap();
        let (shape, out) = all.get_mut(&format!("{prefix}{theirs}")).unwrap();
        let (row, mut from) = (out.len() / shape[0], &values[..]);
        for range in rows.ranges(config.dim(), part[0]) {
            let (own, rest) = from.split_at(range.len() * row);
            out[range.start * row..range.end * row].copy_from_slice(own);
            from = rest;
        }
        assert!(from.is_empty(), "{name}");
    }
    all
}

fn write(path: &Path, tensors: &Stored, dtype: Dtype) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            other => vec![0; values.len() * other.bitsize() / 8],
        }
    };
    let owned: Vec<_> = tensors.iter().map(|(n, (s, v))| (n, s.clone(), bytes(v))).collect();
    let views = owned.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(dtype, s.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The velocities that the model at `path` gives for some input.
fn velocities(path: &Path) -> Vec<f32> {
    let device = Device::cpu();
    let base = BaseModel::open(path).unwrap_or_else(|e| panic!("{e}"));
    let (mut calls, mut last) = (0, (0, 1));
    let weights = base.load(&device, DType::F32, &mut |done, all| {
        assert!(done > last.0, "progress goes on");
        (calls, last) = (calls + 1, (done, all));
    });
    assert_eq!((calls, last.0), (base.config().parameters().len(), last.1));
    let (batch, h, w, text, c) = (2, 2, 3, 4, base.config());
    let random = |stream: u64, shape: &[usize]| {
        Var::constant(Philox::new(5, stream).tensor(&device, shape, 0).unwrap())
    };
    let inputs = Inputs {
        img: random(0, &[batch, h * w, c.in_channels]),
        cond: None,
        txt: random(1, &[batch, text, c.joint_attention_dim]),
        pooled: random(2, &[batch, c.pooled_projection_dim]),
        same_text: false,
        sigma: NoiseLevels::new(&device, &[0.25, 0.75]).unwrap(),
        guidance: vec![3.5, 1.0],
        img_ids: grid_ids(h, w),
        txt_ids: vec![[0.0; 3]; text].into(),
        text_multiplicity: 1.0,
        groups: None,
        adapters: Arc::new(AdapterSet::uniform(vec![], batch)),
        adapt_all: false,
        recompute: false,
    };
    let flux = Flux { config: c, weights: &weights.unwrap(), adapters: &[] };
    flux.forward(&Tape::no_grad(), &inputs).unwrap().value().f32().to_vec()
}

/// The tiny model in a folder of its own: `config.json` and what `fill` puts beside it.
fn folder(at: &Path, fill: impl FnOnce(&Path)) -> PathBuf {
    fs::create_dir_all(at).unwrap();
    fs::copy(tiny().join("config.json"), at.join("config.json")).unwrap();
    fill(at);
    at.to_path_buf()
}

fn three_shards(dir: &Path, tensors: &Stored) {
    let mut shards = [const { BTreeMap::new() }; 3];
    let mut index = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        shards[i % 3].insert(name.clone(), tensor.clone());
        index.insert(name.clone(), format!("m-{}.safetensors", i % 3).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&dir.join(format!("m-{i}.safetensors")), shard, Dtype::F32);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    fs::write(dir.join("m.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn one_model_in_every_form_gives_the_same() {
    let (dir, ours) = (tempfile::tempdir().unwrap(), stored());
    let dir = dir.path();
    let config = FluxConfig::load(tiny()).unwrap();
    let want = velocities(&tiny());
    assert!(want.iter().any(|v| v.abs() > 0.1) && want.iter().all(|v| v.is_finite()));
    let as_f32 = |stored: &Stored, name: &'static str| {
        let stored = stored.clone();
        move |at: &Path| write(&at.join(name), &stored, Dtype::F32)
    };
    let shards = |at: &Path| three_shards(at, &ours);
    let bfl = renamed(&config, &ours, "");
    // Where theirs is known to differ.
    let d = config.dim();
    let values = |of: &Stored, name: &str| of[name].1.clone();
    for (theirs, rows, name) in [
        ("final_layer.adaLN_modulation.1.bias", 0..d, "norm_out.linear.bias"),
        ("double_blocks.0.txt_attn.qkv.bias", 2 * d..3 * d, "transformer_blocks.0.attn.add_v_proj.bias"),
        ("double_blocks.1.img_attn.qkv.bias", d..2 * d, "transformer_blocks.1.attn.to_k.bias"),
        ("single_blocks.2.linear1.bias", 3 * d..7 * d, "single_transformer_blocks.2.proj_mlp.bias"),
        ("double_blocks.1.txt_mlp.0.bias", 0..4 * d, "transformer_blocks.1.ff_context.net.0.proj.bias"),
    ] {
        let ours = values(&ours, name);
        let from = if name.starts_with("norm_out") { d } else { 0 };
        assert_eq!(values(&bfl, theirs)[rows.clone()], ours[from..][..rows.len()], "{theirs}");
    }
    let mut comfy = renamed(&config, &ours, "model.diffusion_model.");
    comfy.insert("first_stage_model.decoder.bias".into(), (vec![1], vec![0.0]));
    let forms = [
        ("a file in diffusers' naming", tiny().join(WEIGHTS)),
        ("a pipeline", tiny().parent().unwrap().to_path_buf()),
        ("three shards", folder(&dir.join("shards"), shards)),
        ("a run", folder(&dir.join("run/base"), as_f32(&ours, WEIGHTS)).parent().unwrap().to_path_buf()),
        ("Black Forest Labs' naming", folder(&dir.join("bfl"), as_f32(&bfl, BFL)).join(BFL)),
        ("Black Forest Labs' naming in a folder", dir.join("bfl")),
        ("ComfyUI's naming", folder(&dir.join("comfy"), as_f32(&comfy, BFL)).join(BFL)),
    ];
    for (form, path) in forms {
        assert!(velocities(&path) == want, "{form}");
    }

    // In halves every naming gives the same again, and the output is off by their rounding: each weight by a unit
    // roundoff at most, and the output is no more sensitive to any than ten times its own size.
    let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (dtype, roundoff) in [(Dtype::BF16, 2f32.powi(-9)), (Dtype::F16, 2f32.powi(-12))] {
        let [a, b] = [(&ours, WEIGHTS), (&bfl, BFL)].map(|(stored, name)| {
            let at = dir.join(format!("{dtype:?}-{name}"));
            velocities(&folder(&at, |at| write(&at.join(name), stored, dtype)))
        });
        assert!(a == b, "{dtype:?}");
        let off = a.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off > 0.0 && off < 10.0 * roundoff * size, "{dtype:?}: {off} of {size}");
    }
}

/// A file alone tells its model's dimensions, but for heads of another width than FLUX.1's.
#[test]
fn a_single_file_tells_its_dimensions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flux.safetensors");
    let config = FluxConfig {
        num_layers: 1,
        num_single_layers: 2,
        num_attention_heads: 1,
        joint_attention_dim: 8,
        pooled_projection_dim: 4,
        guidance_embeds: true,
        mlp_ratio: 0.5,
        ..FluxConfig::default()
    };
    let zeros = |(name, shape): (String, Vec<usize>)| {
        let n = shape.iter().product();
        (name, (shape, vec![0.0; n]))
    };
    write(&path, &bfl::parameters(&config).into_iter().map(zeros).collect(), Dtype::BF16);
    assert_eq!(BaseModel::open(&path).unwrap().config(), &config);
    let tiny_config = FluxConfig::load(tiny()).unwrap();
    write(&path, &renamed(&tiny_config, &stored(), ""), Dtype::F32);
    let e = BaseModel::open(&path).err().unwrap().to_string();
    assert!(e.contains("heads of 16") && e.contains("config.json"), "{e}");
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = folder(dir.path(), |_| ());
    let config = FluxConfig::load(tiny()).unwrap();
    let error = |stored: &Stored, dtype: Dtype| {
        write(&dir.join(WEIGHTS), stored, dtype);
        BaseModel::open(&dir)
            .and_then(|b| b.load(&Device::cpu(), DType::F32, &mut |_, _| ()))
            .err()
            .expect("refused")
            .to_string()
    };
    let (ours, bfl) = (stored(), renamed(&config, &stored(), ""));
    let changed = |of: &Stored, change: &dyn Fn(&mut Stored)| {
        let mut all = of.clone();
        change(&mut all);
        error(&all, Dtype::F32)
    };
    let rename = |all: &mut Stored, from: &str, to: &str| {
        let tensor = all.remove(from).unwrap();
        all.insert(to.into(), tensor);
    };
    let e = changed(&ours, &|all| {
        rename(all, "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.q.weight")
    });
    assert!(
        e.contains(
            "lacks `transformer_blocks.0.attn.to_q.weight` (nearest: `transformer_blocks.0.attn.q.weight`)"
        ) && e.contains("no place for `transformer_blocks.0.attn.q.weight`"),
        "{e}"
    );
    let qkv = "double_blocks.1.img_attn.qkv.weight";
    let e = changed(&bfl, &|all| rename(all, qkv, "double_blocks.1.img_attn.qvk.weight"));
    assert!(e.contains(qkv) && e.contains("nearest: `double_blocks.1.img_attn.qvk.weight`"), "{e}");
    let e = changed(&bfl, &|all| all.get_mut(qkv).unwrap().0 = vec![48, 144]);
    assert!(e.contains(qkv) && e.contains("[48, 144], wanted [144, 48]"), "{e}");
    let e = changed(&ours, &|all| all.retain(|name, _| !name.starts_with("transformer_blocks.1.")));
    assert!(e.contains("lacks `transformer_blocks.1.") && e.contains(" and 29 more"), "{e}");
    let e = changed(&ours, &|all| drop(all.insert("pos_embed".into(), (vec![1], vec![0.0]))));
    assert!(e.contains("no place for `pos_embed`"), "{e}");
    let e = changed(&bfl, &|all| all.get_mut(qkv).unwrap().1[48 * 100 + 7] = f32::NAN);
    assert!(e.contains(qkv) && e.contains("NaN"), "{e}");
    let e = error(&bfl, Dtype::F8_E4M3);
    assert!(e.contains("F8_E4M3") && e.contains("BF16"), "{e}");
    let other = BTreeMap::from([("conv_in.weight".to_owned(), (vec![1], vec![0.0]))]);
    assert!(error(&other, Dtype::F32).contains("conv_in.weight"));
    three_shards(&dir, &ours);
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    let shard = fs::read(dir.join("m-1.safetensors")).unwrap();
    fs::write(dir.join("m-1.safetensors"), &shard[..shard.len() - 100]).unwrap();
    let e = BaseModel::open(&dir).err().unwrap().to_string();
    assert!(e.contains("m-1.safetensors") && e.contains("truncated"), "{e}");
    fs::remove_file(dir.join("config.json")).unwrap();
    assert!(BaseModel::open(&dir).err().unwrap().to_string().contains("config.json"));
    let e = BaseModel::open("random:flux-pro").err().unwrap();
    assert!(e.exit_code() == 2 && e.to_string().contains("random:flux-dev"), "{e}");
}

/// Random weights are the same each time, keep the size of what passes through them, and are of any model's dimensions.
#[test]
fn random_weights_of_any_dimensions() {
    let what = format!("random:{}", tiny().display());
    let (once, again) = (velocities(Path::new(&what)), velocities(Path::new(&what)));
    assert!(once == again && once.iter().all(|v| v.is_finite()));
    let square = once.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / once.len() as f64;
    assert!((0.1..10.0).contains(&square), "{square}");
    let dev = BaseModel::open("random:flux-dev").unwrap();
    assert_eq!(dev.config(), &FluxConfig::flux1_dev());
    let refused = dev.load(&Device::cpu(), DType::Bf16, &mut |_, _| ()).err().unwrap().to_string();
    assert!(refused.contains("bf16"), "{refused}");
}

/// Random weights that are written down are the model they were.
#[test]
fn random_weights_are_kept_by_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let what = format!("random:{}", tiny().display());
    let base = BaseModel::open(&what).unwrap();
    let weights = base.load(&Device::cpu(), DType::F32, &mut |_, _| ()).unwrap();
    let tensors: Vec<(String, Tensor)> = weights.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect();
    let at =
        folder(dir.path(), |at| write_safetensors(at.join(WEIGHTS), &BTreeMap::new(), &tensors).unwrap());
    assert!(velocities(&at) == velocities(Path::new(&what)));
}

/// A device gets the CPU's weights, to the bit; where it computes in bf16, matrices are rounded on the way and nothing else.
#[test]
fn a_device_gets_the_same_weights() {
    let Some(device) = common::cuda::device() else { return };
    let (dir, cpu) = (tempfile::tempdir().unwrap(), Device::cpu());
    let halves = folder(dir.path(), |at| write(&at.join(WEIGHTS), &stored(), Dtype::BF16));
    for what in [tiny(), halves, format!("random:{}", tiny().display()).into()] {
        let base = BaseModel::open(&what).unwrap();
        let load = |device: &Device, dtype: DType| base.load(device, dtype, &mut |_, _| ()).unwrap();
        let of = |weights: &Weights| -> BTreeMap<String, Tensor> {
            weights.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect()
        };
        // Nothing stands there twice: random matrices are f32, unscaled and scaled, before they are what they will be.
        let fresh = Device::cpu();
        let held = load(&fresh, DType::F32);
        let (stats, most) = (fresh.stats(), held.iter().map(|(_, t)| 5 * t.len()).max().unwrap_or(0));
        let drawn =
            if what.starts_with(tiny().parent().unwrap()) || what == dir.path() { 0 } else { 2 * most };
        assert!(stats.peak <= stats.live + drawn, "{stats:?}");
        let (want, there) = (of(&load(&cpu, DType::F32)), of(&load(&device, DType::F32)));
        let narrow = load(&device, DType::Bf16);
        assert_eq!(narrow.activations(), DType::Bf16);
        for (name, t) in of(&narrow) {
            let (values, matrix) = (want[&name].f32(), t.shape().len() == 2);
            assert_eq!(there[&name].values().unwrap(), values, "{name}");
            assert_eq!(t.dtype() == DType::Bf16, matrix, "{name}");
            let rounded = |v: &f32| if matrix { bf16::from_f32(*v).to_f32() } else { *v };
            assert!(t.values().unwrap().into_iter().eq(values.iter().map(rounded)), "{name}");
        }
    }
}
