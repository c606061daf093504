//! FLUX.1's autoencoder: against diffusers' golden vectors, by either naming of its weights, in tiles, as a run's codec.

mod common;

use asasr_engine::data::{Codec, Image, Latents};
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::flux::vae::{Tiling, Vae};
use asasr_engine::flux::weights::write_safetensors;
use asasr_engine::flux::{Folder, SafeFile};
use asasr_engine::infer::model::{Model, layout};
use asasr_engine::infer::upscale::upscale;
use asasr_engine::infer::{Settings, Watch};
use asasr_engine::train::options::Precision;
use asasr_engine::train::stages::Silent;
use asasr_engine::train::{Config, Start, run};
use asasr_engine::verify::{self, Verdict};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const GOLDEN: &str = "tests/golden";
const TINY: &str = "tests/golden/tiny_flux/vae";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// diffusers' parts of names, and what the original code has in their place, to be replaced in this order.
const ORIGINAL: [(&str, &str); 14] = [
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    (".resnets.", ".block."),
    ("down_blocks.", "down."),
];

/// `tensors` under the original code's names, attention's matrices as 1×1 convolutions.
fn renamed(tensors: &[(String, Tensor)], blocks: usize) -> Vec<(String, Tensor)> {
    let one = |(name, t): &(String, Tensor)| {
        let mut name = ORIGINAL.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        // From the back, or what has been renamed is renamed again.
        for i in 0..blocks {
            name = name.replace(&format!("up_blocks.{i}."), &format!("up.{}.", blocks - 1 - i));
        }
        let t = t.clone();
        match *t.shape() {
            [a, b] => (name, t.reshape(&[a, b, 1, 1]).unwrap()),
            _ => (name, t),
        }
    };
    tensors.iter().map(one).collect()
}

fn tiny() -> Vec<(String, Tensor)> {
    let file = SafeFile::open(Path::new(TINY).join(WEIGHTS)).unwrap();
    file.names().map(|n| (n.to_owned(), file.tensor(n, &Device::cpu()).unwrap())).collect()
}

fn write(path: &Path, tensors: &[(String, Tensor)]) {
    write_safetensors(path, &BTreeMap::new(), tensors).unwrap();
}

fn normals(stream: u64, shape: &[usize], scale: f32) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Philox::new(7, stream).normals(0, &mut values);
    values.iter_mut().for_each(|v| *v *= scale);
    Tensor::from_slice(&Device::cpu(), shape, &values).unwrap()
}

/// Latents that change over some positions, as pictures' do.
fn smooth(h: usize, w: usize) -> Tensor {
    let wave = |c: usize, y: usize, x: usize| {
        let (c, y, x) = (c as f32, y as f32, x as f32);
        (0.31 * y + 1.7 * c).sin() + (0.23 * x - 0.9 * c).cos() + 0.5 * (0.05 * (x + y) * (1.0 + c)).sin()
    };
    let values: Vec<f32> = (0..16 * h * w).map(|i| wave(i / (h * w), i / w % h, i % w)).collect();
    Tensor::from_slice(&Device::cpu(), &[1, 16, h, w], &values).unwrap()
}

#[test]
fn golden_vectors_are_diffusers() {
    for device in [Some(Device::cpu()), common::cuda::device()].into_iter().flatten() {
        let only = ["vae_tiny", "sampler"].map(str::to_owned);
        for row in verify::run(Path::new(GOLDEN), &only, &device, Precision::F32).unwrap() {
            println!("{device:?} {}: {:?}, {:?}", row.name, row.verdict, row.worst);
            assert_eq!(row.verdict, Verdict::Passed, "{device:?} {}: {}", row.name, row.detail);
            assert_eq!(row.left_out, Vec::<String>::new());
        }
    }
}

#[test]
fn the_original_names_are_the_same_network() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let vae = Vae::load(Path::new(TINY), &cpu).unwrap();
    let original = renamed(&tiny(), 4);
    assert!(original.iter().any(|t| t.0 == "decoder.up.1.block.0.nin_shortcut.weight"));
    write(&dir.path().join("ae.safetensors"), &original);
    fs::copy(Path::new(TINY).join("config.json"), dir.path().join("config.json")).unwrap();
    let other = Vae::load(dir.path(), &cpu).unwrap();
    let (picture, z) = (normals(1, &[1, 3, 32, 24], 0.5), normals(2, &[1, 16, 4, 3], 1.0));
    assert_eq!(vae.encode(&picture).unwrap(), other.encode(&picture).unwrap());
    assert_eq!(vae.decode(&z).unwrap().f32(), other.decode(&z).unwrap().f32());
    // Without a config dimensions are the shapes', and FLUX.1's 32 groups do not fit these.
    let e = Vae::load(&dir.path().join("ae.safetensors"), &cpu).err().unwrap().to_string();
    assert!(e.contains("8 channels are not norm_num_groups = 32"), "{e}");
}

/// Every width four times as large, so that 32 groups fit: a file alone, a model's folder, shards.
#[test]
fn shapes_and_shards_tell_the_same() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let wider: Vec<(String, Tensor)> = tiny()
        .into_iter()
        .enumerate()
        .map(|(i, (name, t))| {
            let outside = |j: usize| {
                let (at, n) = (t.shape()[j], t.shape().len());
                let latent =
                    name.contains("encoder.conv_out") || (j == 1 && name.contains("decoder.conv_in"));
                let picture = name.contains("decoder.conv_out") && (j == 0 || n == 1);
                if at == 3 || (latent && j < 2 && at != 8 && !(j == 1 && name.contains("encoder"))) || picture
                {
                    at
                } else {
                    4 * at
                }
            };
            let shape: Vec<usize> =
                (0..t.shape().len()).map(|j| if j < 2 { outside(j) } else { t.shape()[j] }).collect();
            let scale = 1.0 / (shape.iter().skip(1).product::<usize>() as f32).sqrt();
            let t = normals(i as u64, &shape, scale);
            (name, t)
        })
        .collect();
    let file = dir.path().join("ae.safetensors");
    write(&file, &renamed(&wider, 4));
    let model = dir.path().join("model");
    let vae = model.join("vae");
    fs::create_dir_all(&vae).unwrap();
    let (first, second) = wider.split_at(wider.len() / 2);
    let map: BTreeMap<&str, &str> = [(first, "m-1.safetensors"), (second, "m-2.safetensors")]
        .into_iter()
        .flat_map(|(part, name)| {
            write(&vae.join(name), part);
            part.iter().map(move |t| (t.0.as_str(), name))
        })
        .collect();
    let index = serde_json::json!({ "weight_map": map });
    fs::write(vae.join("m.safetensors.index.json"), index.to_string()).unwrap();
    let config = fs::read_to_string(Path::new(TINY).join("config.json")).unwrap();
    let config: String = config.split_whitespace().collect();
    let config = config.replace("[8,8,16,16]", "[32,32,64,64]");
    fs::write(vae.join("config.json"), config.replace("\"norm_num_groups\":4", "\"norm_num_groups\":32"))
        .unwrap();
    let [a, b] = [&file, &model].map(|path| Vae::load(path, &cpu).unwrap());
    assert_eq!((a.config().block_out_channels.as_slice(), a.config().block()), (&[32, 32, 64, 64][..], 8));
    assert_eq!(Vae::files(&model).unwrap().len(), 3);
    let z = normals(2, &[1, 16, 3, 2], 1.0);
    assert_eq!(a.decode(&z).unwrap().f32(), b.decode(&z).unwrap().f32());
    let identity = |path: &Path| Codec::open(path, &cpu).unwrap().identity().unwrap();
    assert!(identity(&file).starts_with("vae Sample ") && identity(&file) != identity(&model));
}

/// Root mean square of the step of `d` `[planes, side, side]` from one column or row to the next, where that is one of
/// `borders` and elsewhere.
fn steps(d: &[f32], side: usize, borders: &[usize]) -> [f64; 2] {
    let mut sums = [[0f64; 2]; 2];
    for plane in d.chunks_exact(side * side) {
        for i in 0..side {
            for j in 1..side {
                for step in [
                    plane[i * side + j] - plane[i * side + j - 1],
                    plane[j * side + i] - plane[(j - 1) * side + i],
                ] {
                    let sum = &mut sums[usize::from(!borders.contains(&j))];
                    *sum = [sum[0] + f64::from(step).powi(2), sum[1] + 1.0];
                }
            }
        }
    }
    sums.map(|[sum, n]| (sum / n).sqrt())
}

/// The measure of a seam is the step that tiles add to the whole picture: its root mean square across tiles' borders over
/// that elsewhere. Blended tiles show none; the same tiles cut hard do.
#[test]
fn tiles_leave_no_seams() {
    let cpu = Device::cpu();
    let at = |side: usize, overlap: usize| {
        Vae::load(Path::new(TINY), &cpu).unwrap().tiled(Tiling { side, overlap })
    };
    let z = smooth(48, 48);
    let (whole, side) = (at(1024, 256).decode(&z).unwrap(), 48 * 8);
    let range = whole.f32().iter().fold(0f32, |a, v| a.max(v.abs()));
    let seam = |overlap: usize, borders: &[usize]| {
        let tiled = at(128, overlap).decode(&z).unwrap();
        let d: Vec<f32> = tiled.f32().iter().zip(whole.f32()).map(|(a, b)| a - b).collect();
        let rms = (d.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / d.len() as f64).sqrt();
        let [across, elsewhere] = steps(&d, side, borders);
        println!(
            "overlap {overlap}: off by {rms:.3} rms of values up to {range:.1}; steps of that {across:.4} across borders, \
             {elsewhere:.4} elsewhere: {:.2}",
            across / elsewhere
        );
        across / elsewhere
    };
    // Tiles of 16 cells that share 8 begin at 0, 8, 16, 24, 32 of 48; a border is where one begins or ends.
    let blended = seam(64, &[64, 128, 192, 256, 320]);
    let cut = seam(0, &[128, 256]);
    assert!(blended < 1.0, "{blended}");
    assert!(cut > 3.0, "{cut}");
    // Latents, likewise.
    let picture = at(1024, 256).decode(&smooth(32, 32)).unwrap();
    let [whole, tiled] = [at(1024, 256), at(128, 64)].map(|v| v.encode(&picture).unwrap().mean);
    let d: Vec<f32> = tiled.iter().zip(&whole).map(|(a, b)| a - b).collect();
    let [across, elsewhere] = steps(&d, 32, &[8, 16, 24]);
    println!("latents: {:.2}", across / elsewhere);
    assert!(across / elsewhere < 1.0);
}

#[test]
fn what_is_no_autoencoder_is_refused_by_name() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let (weights, config) = (dir.path().join(WEIGHTS), dir.path().join("config.json"));
    let good = fs::read_to_string(Path::new(TINY).join("config.json")).unwrap();
    let refused = |tensors: &[(String, Tensor)], text: &str| {
        write(&weights, tensors);
        fs::write(&config, text).unwrap();
        Codec::open(dir.path(), &cpu).err().expect("nothing usable").to_string()
    };
    let with = |name: &str, t: Tensor| {
        let mut all = tiny();
        all.retain(|t| t.0 != name);
        [all, vec![(name.to_owned(), t)]].concat()
    };
    let mut all = tiny();
    let bias = "decoder.up_blocks.2.resnets.1.conv1.bias";
    let i = all.iter().position(|t| t.0 == bias).unwrap();
    all[i].0 = "decoder.up_blocks.2.resnets.1.conv.bias".into();
    let e = refused(&all, &good);
    assert!(e.contains(&format!("`{bias}`")) && e.contains("did you mean"), "{e}");
    let zeros = |shape: &[usize]| Tensor::zeros(&cpu, shape).unwrap();
    let e = refused(&with(bias, zeros(&[9])), &good);
    assert!(e.contains(bias) && e.contains("[9]") && e.contains("[8]"), "{e}");
    let e = refused(&with("decoder.mid_block.attentions.0.to_q.weight", zeros(&[16, 16, 3, 3])), &good);
    assert!(e.contains("to_q.weight") && e.contains("[16, 16, 3, 3]"), "{e}");
    let e = refused(&with("quant_conv.weight", zeros(&[1])), &good);
    assert!(e.contains("1 tensors have no place") && e.contains("`quant_conv.weight`"), "{e}");
    let e = refused(&with("encoder.conv_in.bia", zeros(&[8])), &good);
    assert!(e.contains("the nearest that it has is `encoder.conv_in.bias`"), "{e}");
    let e = refused(&with(bias, Tensor::full(&cpu, &[8], f32::NAN).unwrap()), &good);
    assert!(e.contains(bias) && e.contains("NaN"), "{e}");
    for (from, to, want) in [
        ("\"use_quant_conv\": false", "\"use_quant_conv\": true", "use_quant_conv"),
        ("\"norm_num_groups\": 4", "\"norm_num_groups\": 3", "8 channels are not norm_num_groups = 3"),
        ("\"norm_num_groups\": 4", "\"norm_num_groups\": 0", "numbers from 1 to"),
        ("\"act_fn\": \"silu\"", "\"act_fn\": \"gelu\"", "act_fn is \"gelu\""),
        ("\"scaling_factor\": 0.3611", "\"scaling_factor\": 0.0", "scaling_factor 0"),
        ("\"layers_per_block\": 2", "\"layers_per_block\": \"two\"", "config.json"),
        ("\"layers_per_block\": 2", "\"layers_per_block\": 3", "resnets.2"),
    ] {
        assert!(good.contains(from), "{from}");
        let e = refused(&tiny(), &good.replace(from, to));
        assert!(e.contains(want), "{want}: {e}");
    }
    let vae = Vae::load(Path::new(TINY), &cpu).unwrap();
    let e = vae.encode(&zeros(&[1, 3, 12, 16])).unwrap_err().to_string();
    assert!(e.contains("[1, 3, 12, 16]") && e.contains("multiples of 8"), "{e}");
    assert!(vae.decode(&zeros(&[1, 4, 2, 2])).is_err());
}

#[test]
fn a_codec_samples_the_same_of_the_same_picture() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let codec = Codec::open(TINY, &cpu).unwrap();
    assert_eq!((codec.name(), codec.channels(), codec.block()), ("vae", 16, 8));
    let image = Image::from_fn(32, 24, |c, y, x| ((c + 2) * (y + 3 * x) % 97) as f32 / 97.0);
    let mut other = image.clone();
    other.data[5] += 1e-3;
    let z = codec.encode(&image).unwrap();
    assert_eq!(z, codec.encode(&image).unwrap());
    let mode = codec.clone().taking(Latents::Mode);
    assert_ne!(mode.identity().unwrap(), codec.identity().unwrap());
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let moved = off(&mode.encode(&image).unwrap(), &mode.encode(&other).unwrap());
    let drawn = off(&z, &codec.encode(&other).unwrap());
    assert!(moved < 0.1 && drawn > 0.5, "{moved} {drawn}");
    // The sample is its definition.
    let vae = Vae::load(Path::new(TINY), &cpu).unwrap();
    let signed: Vec<f32> = image.data.iter().map(|v| 2.0 * v - 1.0).collect();
    let posterior = vae.encode(&Tensor::from_slice(&cpu, &[1, 3, 32, 24], &signed).unwrap()).unwrap();
    assert_eq!(mode.encode(&image).unwrap(), vae.scaled(posterior.mean.clone()));
    let mean = vae.scaled(posterior.mean);
    let normal: Vec<f32> = z
        .iter()
        .zip(&mean)
        .zip(&posterior.logvar)
        .map(|((z, m), v)| (z - m) / (0.3611 * (0.5 * v).exp()))
        .collect();
    let n = normal.len() as f32;
    let (sum, squares) = normal.iter().fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
    // Five deviations of the mean, and of the variance, of so many normals.
    assert!(
        (sum / n).abs() < 5.0 / n.sqrt() && (squares / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt(),
        "{sum} {squares} {n}"
    );

    let json = dir.path().join("codec.json");
    fs::write(&json, mode.to_json().unwrap()).unwrap();
    let again = Codec::load(&json, &cpu).unwrap();
    assert_eq!(again.encode(&image).unwrap(), mode.encode(&image).unwrap());
    fs::write(&json, mode.to_json().unwrap().replace("\"sha256\": \"", "\"sha256\": \"0")).unwrap();
    let e = Codec::load(&json, &cpu).err().unwrap().to_string();
    assert!(e.contains("was written with weights of SHA-256 0"), "{e}");
    let back = codec.decode(&z, 4, 3).unwrap();
    assert_eq!((back.height, back.width), (32, 24));
}

/// The kernels' latents of a picture are the CPU's, noise included: either may be twice as far from f64 as PyTorch's f32, which
/// the golden vectors say of latents like these. The cache tells them apart even so.
#[test]
fn a_devices_latents_are_the_hosts() {
    let Some(device) = common::cuda::device() else { return };
    let said = fs::read_to_string(Path::new(GOLDEN).join("vae_tiny.json")).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let naive = said["tensors"]["out.latents"]["f32_vs_f64"]["max_abs"].as_f64().unwrap();
    let host = Codec::open(TINY, &Device::cpu().meta()).unwrap().to(&Device::cpu()).unwrap();
    let there = host.to(&device).unwrap();
    let image = Image::from_fn(32, 32, |c, y, x| ((c + 2) * (y + 3 * x) % 97) as f32 / 97.0);
    let [want, got] = [&host, &there].map(|codec| codec.encode(&image).unwrap());
    let worst = want.iter().zip(&got).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    println!("{worst:.1e}, {:.2} of what is allowed", worst / (4.0 * naive));
    assert!(want.len() == 16 * 4 * 4 && worst <= 4.0 * naive, "{worst:e}, {naive:e}");
    assert_eq!(host.identity().unwrap(), there.identity().unwrap());
    assert_ne!(host.bits().unwrap(), there.bits().unwrap());
}

/// A run on the autoencoder's latents, cached, and a picture of another size restored with it.
#[test]
fn a_run_stands_on_it_and_upscales() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let small = "run.stages=[\"base\",\"sft\"] model.dim=16 model.heads=2 model.axes=[2,2,4] model.double=1 model.single=1 \
        data.images=4 data.held_out=1 data.image_size=32 data.crop=32 data.pool=4 run.eval_crops=1 run.eval_steps=1 \
        run.validation_crops=1 sft.rank=2 base.steps=3 sft.steps=3 base.batch=2 sft.batch=2 base.warmup=1 sft.warmup=1";
    let cache = dir.path().join("latents");
    let more = [format!("data.codec={TINY}"), format!("data.latent_cache={}", cache.display())];
    let sets: Vec<String> = small.split_whitespace().map(str::to_owned).chain(more).collect();
    let (config, out) = (Config::load(None, None, &sets).unwrap(), dir.path().join("run"));
    run(&config, &out, &Start::New, &cpu, &Silent, &AtomicBool::new(false)).unwrap();
    assert!(cache.read_dir().unwrap().count() > 0);
    let model = Model::open(&out, &[layout::SFT], &cpu).unwrap();
    assert_eq!((model.codec.name(), model.config.in_channels), ("vae", 64));
    let lq = Image::from_fn(9, 11, |c, y, x| (c + y + x) as f32 / 24.0);
    let settings = Settings { scale: 4.0, steps: 1, guidance: 0.0, seed: 0, tile: 32, overlap: 16 };
    let (never, watch) = (AtomicBool::new(false), |_: usize, _: usize| {});
    let watch = Watch { progress: &watch, say: &|_| {}, stop: &never };
    let big = upscale(&model, &lq, &settings, &cpu, &watch).unwrap().image;
    assert_eq!((big.height, big.width), (36, 44));
    assert!(big.data.iter().all(|v| v.is_finite()));
    // Its weights in bf16 are another autoencoder, and are computed with in f32.
    let half = dir.path().join("half");
    fs::create_dir(&half).unwrap();
    fs::copy(Path::new(TINY).join("config.json"), half.join("config.json")).unwrap();
    let rounded: Vec<_> = tiny()
        .into_iter()
        .map(|(name, t)| (name, Tensor::bf16_from_f32(&cpu, t.shape(), t.f32()).unwrap()))
        .collect();
    write(&half.join(WEIGHTS), &rounded);
    assert_eq!(
        Folder::open(&half).unwrap().stored("decoder.conv_in.bias", &cpu).unwrap().dtype(),
        DType::Bf16
    );
    let z = normals(3, &[1, 16, 2, 2], 1.0);
    let [a, b] = [Path::new(TINY), &half].map(|p| Vae::load(p, &cpu).unwrap().decode(&z).unwrap());
    let off = a.f32().iter().zip(b.f32()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off > 0.0 && off < 0.3, "{off}");
}
