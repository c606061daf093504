//! Adapters in kohya's naming: what is written computes the same, what is read is taken apart rightly, and what is
//! neither is named.

use asasr_engine::engine::{Device, Philox, Tensor};
use asasr_engine::flux::convert::{Format, convert};
use asasr_engine::flux::weights::write_safetensors;
use asasr_engine::flux::{AdapterFile, FluxConfig, LoraModule, SafeFile};
use std::collections::BTreeMap;
use std::path::Path;

fn normals(stream: u64, shape: &[usize]) -> Tensor {
    Philox::new(11, stream).tensor(&Device::cpu(), shape, 0).unwrap()
}

/// Two blocks of either kind, 16 wide, MLPs of 32.
fn model() -> FluxConfig {
    FluxConfig {
        num_layers: 2,
        num_single_layers: 2,
        attention_head_dim: 8,
        num_attention_heads: 2,
        axes_dims_rope: [2, 2, 4],
        mlp_ratio: 2.0,
        ..FluxConfig::default()
    }
}

/// An adapter of the model's targets; `of` gives rank and alpha of a module, or leaves it out.
fn adapter(of: impl Fn(&str) -> Option<(usize, f32)>) -> AdapterFile {
    let mut modules = BTreeMap::new();
    for (i, (module, width, out)) in model().lora_targets().into_iter().enumerate() {
        let Some((r, alpha)) = of(&module) else { continue };
        let (a, b) = (normals(2 * i as u64, &[r, width]), normals(2 * i as u64 + 1, &[out, r]));
        modules.insert(module, LoraModule { a, b, alpha });
    }
    let metadata = BTreeMap::from([("step".to_owned(), "80".to_owned())]);
    AdapterFile { name: "x".into(), modules, lq_resize: Some("torch_bicubic".into()), metadata }
}

fn same(a: &AdapterFile, b: &AdapterFile) {
    assert_eq!(a.modules.keys().collect::<Vec<_>>(), b.modules.keys().collect::<Vec<_>>());
    for (name, m) in &a.modules {
        let other = &b.modules[name];
        assert_eq!((m.a.shape(), m.b.shape()), (other.a.shape(), other.b.shape()), "{name}");
        assert!(m.a.f32() == other.a.f32() && m.b.f32() == other.b.f32(), "{name}");
        assert_eq!(m.alpha, other.alpha, "{name}");
    }
}

/// `alpha/r · B A`, row-major, with the sum of its terms' sizes.
fn delta(m: &LoraModule) -> Vec<(f64, f64)> {
    let (r, width) = (m.rank(), m.a.shape()[1]);
    let (a, b) = (m.a.f32(), m.b.f32());
    let scale = f64::from(m.alpha) / r as f64;
    let term = |i: usize, k: usize, j: usize| f64::from(b[i * r + j]) * f64::from(a[j * width + k]) * scale;
    (0..m.b.shape()[0] * width)
        .map(|n| {
            (0..r).map(|j| term(n / width, n % width, j)).fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()))
        })
        .collect()
}

#[test]
fn equal_ranks_come_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (kohya, folder) = (dir.path().join("k.safetensors"), dir.path().join("d"));
    let whole = adapter(|_| Some((4, 6.0)));
    whole.save_kohya(&kohya).unwrap();
    let file = SafeFile::open(&kohya).unwrap();
    assert_eq!(file.names().count(), 3 * (1 + 2 * 4 + 2 * 3));
    let alpha = |layer: &str| file.f64s(&format!("lora_unet_{layer}.alpha")).unwrap();
    let (qkv, linear1) = ("double_blocks_1_img_attn_qkv", "single_blocks_0_linear1");
    assert_eq!([alpha(qkv), alpha(linear1), alpha("img_in")], [[18.0], [24.0], [6.0]]);
    assert_eq!(file.shape(&format!("lora_unet_{qkv}.lora_down.weight")).unwrap(), [12, 16]);
    assert_eq!(file.shape(&format!("lora_unet_{linear1}.lora_up.weight")).unwrap(), [80, 16]);
    let back = AdapterFile::load(&kohya, &Device::cpu()).unwrap();
    same(&whole, &back);
    assert_eq!((&back.lq_resize, back.metadata["step"].as_str()), (&whole.lq_resize, "80"));
    back.validate(&model()).unwrap();
    let (.., off) = convert(&kohya, &folder, Format::Diffusers).unwrap();
    assert_eq!(off, 0.0);
    same(&whole, &AdapterFile::load(&folder, &Device::cpu()).unwrap());
}

/// Of every module its own rank and alpha, some modules not at all: each weight's change is the same but for the rounding
/// of B and alpha, at the layer's scale and back.
#[test]
fn any_ranks_scales_and_subsets_compute_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for case in 0..6usize {
        let of = |module: &str| {
            let hash = module.bytes().fold(case, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
            (hash % 3 != 0).then_some((1 + hash / 3 % 4, [0.3, 1.0, -2.5, 7.0][hash / 12 % 4]))
        };
        let whole = adapter(of);
        let path = dir.path().join(format!("{case}.safetensors"));
        whole.save(dir.path().join(case.to_string())).unwrap();
        let (.., off) = convert(&dir.path().join(case.to_string()), &path, Format::Kohya).unwrap();
        assert!(off <= 3.0, "{off}");
        let back = AdapterFile::load(&path, &Device::cpu()).unwrap();
        assert_eq!(whole.modules.keys().collect::<Vec<_>>(), back.modules.keys().collect::<Vec<_>>());
        for (name, m) in &whole.modules {
            let other = &back.modules[name];
            assert_eq!(m.rank(), other.rank(), "{name}");
            for ((a, size), (b, _)) in delta(m).into_iter().zip(delta(other)) {
                assert!((a - b).abs() <= 3.0 * 2f64.powi(-24) * size, "{case} {name}: {a} {b}");
            }
        }
    }
}

fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: Vec<_> = tensors.iter().map(|(name, t)| (format!("lora_unet_{name}"), t.clone())).collect();
    write_safetensors(path, &BTreeMap::new(), &tensors).unwrap();
}

/// sd-scripts trains one A for queries, keys and values.
#[test]
fn a_shared_down_projection_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let [path, again] = ["a", "b"].map(|n| dir.path().join(n).with_extension("safetensors"));
    let linear1 = "single_blocks_7_linear1";
    let (a, b) = (normals(0, &[4, 16]), normals(1, &[3 * 16 + 64, 4]));
    let two = Tensor::scalar(&Device::cpu(), 2.0).unwrap();
    write(
        &path,
        &[
            (&format!("{linear1}.lora_down.weight"), a.clone()),
            (&format!("{linear1}.lora_up.weight"), b.clone()),
            (&format!("{linear1}.alpha"), two),
            ("double_blocks_0_img_mlp_2.lora_down.weight", normals(2, &[3, 64])),
            ("double_blocks_0_img_mlp_2.lora_up.weight", normals(3, &[16, 3])),
        ],
    );
    let read = AdapterFile::load(&path, &Device::cpu()).unwrap();
    let rows = |module: &str| &read.modules[&format!("single_transformer_blocks.7.{module}")];
    for (module, from, n) in
        [("attn.to_q", 0, 16), ("attn.to_k", 16, 16), ("attn.to_v", 32, 16), ("proj_mlp", 48, 64)]
    {
        let m = rows(module);
        assert_eq!((m.a.f32(), m.alpha), (a.f32(), 2.0), "{module}");
        assert_eq!(m.b.f32(), &b.f32()[4 * from..4 * (from + n)], "{module}");
    }
    // Without alpha it is the rank.
    assert_eq!(read.modules["transformer_blocks.0.ff.net.2"].alpha, 3.0);
    read.save_kohya(&again).unwrap();
    let (one, two) = (SafeFile::open(&path).unwrap(), SafeFile::open(&again).unwrap());
    for name in one.names() {
        assert!(one.f64s(name).unwrap() == two.f64s(name).unwrap(), "{name}");
    }
    // Fresh ones have B = 0 and are read all the same.
    let zeros = Tensor::zeros(&Device::cpu(), &[48, 4]).unwrap();
    let qkv = "double_blocks_0_img_attn_qkv";
    let [down, up] = ["down", "up"].map(|half| format!("{qkv}.lora_{half}.weight"));
    write(&path, &[(&down, a), (&up, zeros)]);
    assert_eq!(AdapterFile::load(&path, &Device::cpu()).unwrap().modules.len(), 3);
}

#[test]
fn what_is_no_such_adapter_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let error = |key: &str, width: usize, out: usize| {
        let [down, up] = ["down", "up"].map(|half| format!("{key}.lora_{half}.weight"));
        write(&path, &[(&down, normals(0, &[2, width])), (&up, normals(1, &[out, 2]))]);
        AdapterFile::load(&path, &Device::cpu()).unwrap_err().to_string()
    };
    let e = error("double_blocks_12_img_atn_qkv", 16, 48);
    assert!(e.contains("did you mean `double_blocks_12_img_attn_qkv`"), "{e}");
    assert!(error("double_blocks_0_img_attn_qkv", 16, 40).contains("16 values to 40, wanted 48"));
    assert!(error("single_blocks_0_linear1", 16, 48).contains("16 values to 48, wanted more than 48"));
    let key = "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha".to_owned();
    let mut tensors = vec![(key, Tensor::scalar(&Device::cpu(), 1.0).unwrap())];
    tensors.push(("lora_unet_img_in.alpha".into(), Tensor::scalar(&Device::cpu(), 1.0).unwrap()));
    write_safetensors(&path, &BTreeMap::new(), &tensors).unwrap();
    let e = AdapterFile::load(&path, &Device::cpu()).unwrap_err().to_string();
    assert!(e.contains("lora_te1") && e.contains("text encoder"), "{e}");
    let twice = ["double_blocks_0_img_mlp_2", "double_blocks.0.img_mlp.2"].map(|layer| {
        [("down", [1, 64]), ("up", [16, 1])]
            .map(|(half, s)| (format!("{layer}.lora_{half}.weight"), normals(0, &s)))
    });
    write(&path, &twice.iter().flatten().map(|(n, t)| (n.as_str(), t.clone())).collect::<Vec<_>>());
    let e = AdapterFile::load(&path, &Device::cpu()).unwrap_err().to_string();
    assert!(e.contains("`transformer_blocks.0.ff.net.2` twice"), "{e}");
    let exists = convert(&path, dir.path(), Format::Kohya).unwrap_err();
    assert!(exists.exit_code() == 2 && exists.to_string().contains("exists already"), "{exists}");
    // An adapter of another model, by name and both shapes.
    let mut other = adapter(|_| Some((2, 2.0)));
    let wide = LoraModule { a: normals(0, &[2, 32]), b: normals(1, &[32, 2]), alpha: 2.0 };
    for part in ["q", "k", "v"] {
        other.modules.insert(format!("transformer_blocks.0.attn.to_{part}"), wide.clone());
    }
    other.save_kohya(&path).unwrap();
    let e = AdapterFile::load(&path, &Device::cpu()).unwrap().validate(&model()).unwrap_err().to_string();
    assert!(
        e.contains("transformer_blocks.0.attn.to_k")
            && e.contains("32 values to 32")
            && e.contains("16 to 16"),
        "{e}"
    );
}
