//! TAEF1 against PyTorch in f64, on 128×128 crops of the Kodak pictures. Weights and pictures are not kept in the repository:
//! they are looked for in `../shared/data`; where they are absent the tests are skipped, and say so.

use asasr_engine::data::{Codec, Image};
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::flux::weights::write_safetensors;
use asasr_engine::flux::{SafeFile, Taef1};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Picture; PSNR of the round trip, clamped; mean and deviation of all latents; three latents; three decoded values.
type Row = (&'static str, f64, [f64; 2], [f64; 3], [f64; 3]);

const ROWS: [Row; 8] = [
    (
        "01",
        23.077175,
        [-0.135853, 0.566865],
        [-0.454428, 0.149854, -0.382477],
        [0.476648, 0.220271, 0.668918],
    ),
    (
        "04",
        30.095979,
        [-0.231622, 0.850301],
        [-1.103175, -0.171445, 1.042770],
        [0.431108, 0.264727, 0.120415],
    ),
    (
        "05",
        22.650199,
        [-0.141067, 0.718686],
        [0.188428, -0.225669, -0.681122],
        [0.469385, 0.263799, 0.395925],
    ),
    ("07", 28.954965, [-0.109860, 0.745838], [0.082753, 0.178732, 0.566284], [0.579209, 0.120735, 0.542521]),
    ("08", 20.248858, [-0.121144, 0.690814], [0.375656, 0.658266, -0.275901], [0.435107, 0.627509, 0.316701]),
    ("15", 27.628403, [0.077468, 1.204600], [0.732776, -0.141748, 1.408572], [0.793287, 0.236379, 0.995688]),
    ("19", 37.679777, [-0.105359, 0.541541], [0.492046, -0.334583, 0.160997], [0.440760, 0.491398, 0.408582]),
    ("23", 23.074686, [-0.058100, 0.827211], [-0.839123, 0.248233, 0.437100], [0.268447, 0.351816, 0.325522]),
];
const SIDE: usize = 128;

fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new("../shared/data").join(part);
    if !path.exists() {
        println!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

fn crop(photos: &Path, name: &str) -> Image {
    Image::load(photos.join(format!("kodim{name}.png"))).unwrap().crop(128, 128, SIDE, SIDE).unwrap()
}

/// Mean and deviation.
fn moments<'a>(values: impl Iterator<Item = &'a f32> + Clone) -> [f64; 2] {
    let n = values.clone().count() as f64;
    let mean = values.clone().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0);
    [mean, variance.sqrt()]
}

fn near(what: &str, got: f64, want: f64, allowed: f64) {
    assert!((got - want).abs() <= allowed, "{what}: {got}, PyTorch {want}");
}

#[test]
fn latents_and_round_trips_are_pytorchs() {
    let (Some(weights), Some(photos)) = (shared("weights/taef1"), shared("photos/kodak")) else { return };
    let codec = Codec::open(&weights, &Device::cpu()).unwrap();
    assert_eq!((codec.name(), codec.channels(), codec.block()), ("taef1", 16, 8));
    let side = SIDE / 8;
    let mut all = Vec::new();
    for (name, psnr, [mean, deviation], z, y) in ROWS {
        let image = crop(&photos, name);
        let latents = codec.encode(&image).unwrap();
        let back = codec.decode(&latents, side, side).unwrap();
        let at = |c: usize, i: usize, j: usize| f64::from(latents[(c * side + i) * side + j]);
        let pixel = |c: usize, i: usize, j: usize| f64::from(back.plane(c)[i * SIDE + j]);
        // Fifty layers of f32: some 1e-5 of values of about 1; PyTorch's are rounded to six digits.
        for (k, (i, j, c)) in [(0, 0, 0), (15, 15, 15), (3, 9, 7)].into_iter().enumerate() {
            near(&format!("{name}, latent {k}"), at(c, i, j), z[k], 2e-5);
        }
        for (k, (i, j, c)) in [(0, 0, 0), (127, 127, 2), (60, 33, 1)].into_iter().enumerate() {
            near(&format!("{name}, pixel {k}"), pixel(c, i, j), y[k], 2e-5);
        }
        let got = moments(latents.iter());
        near(&format!("{name}, mean"), got[0], mean, 1e-5);
        near(&format!("{name}, deviation"), got[1], deviation, 1e-5);
        let (back, n) = (back.clamped(), image.data.len() as f64);
        let errors = image.data.iter().zip(&back.data).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let got = -10.0 * (errors.sum::<f64>() / n).log10();
        println!("kodim{name}: round trip {got:.2} dB");
        near(&format!("{name}, PSNR"), got, psnr, 1e-3);
        all.push(latents);
    }
    for c in 0..16 {
        let plane = side * side;
        let [mean, deviation] = moments(all.iter().flat_map(|z| &z[c * plane..(c + 1) * plane]));
        println!("channel {c:2}: mean {mean:6.3}, deviation {deviation:.3}");
        // Scaled for the transformer: about as large as the noise.
        assert!(mean.abs() < 1.0 && (0.3..2.0).contains(&deviation), "channel {c}: {mean}, {deviation}");
    }
}

/// One file with both halves under diffusers' names makes the same latents; the identity is that of the bytes.
#[test]
fn diffusers_layout_is_read_and_codec_json_leads_back() {
    let (Some(weights), Some(photos)) = (shared("weights/taef1"), shared("photos/kodak")) else { return };
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (half, skipped) in [("encoder", 0), ("decoder", 1)] {
        let file = SafeFile::open(weights.join(format!("taef1_{half}.safetensors"))).unwrap();
        for name in file.names() {
            let (at, rest) = name.split_once('.').unwrap();
            let at = at.parse::<usize>().unwrap() - skipped;
            tensors.push((format!("{half}.layers.{at}.{rest}"), file.stored(name, &cpu).unwrap()));
        }
    }
    let both = dir.path().join("diffusion_pytorch_model.safetensors");
    write_safetensors(&both, &BTreeMap::new(), &tensors).unwrap();
    let (one, two) = (Codec::open(&both, &cpu).unwrap(), Codec::open(&weights, &cpu).unwrap());
    let image = crop(&photos, "05").crop(0, 0, 32, 48).unwrap();
    assert_eq!(one.encode(&image).unwrap(), two.encode(&image).unwrap());
    assert_eq!(Taef1::files(dir.path()).unwrap(), [both.clone()]);

    let json = dir.path().join("codec.json");
    std::fs::write(&json, one.to_json().unwrap()).unwrap();
    let again = Codec::load(&json, &cpu).unwrap();
    assert_eq!(again.identity().unwrap(), one.identity().unwrap());
    assert_ne!(one.identity().unwrap(), two.identity().unwrap());
    // Other weights at the same place, then none.
    tensors.iter_mut().filter(|t| t.0 == "encoder.layers.14.bias").for_each(|t| {
        t.1 = Tensor::from_slice(&cpu, &[16], &[0.5; 16]).unwrap();
    });
    write_safetensors(&both, &BTreeMap::new(), &tensors).unwrap();
    let refused = |json: &Path| Codec::load(json, &cpu).err().expect("not the same").to_string();
    assert!(refused(&json).contains("was written with weights of SHA-256"), "{}", refused(&json));
    std::fs::remove_file(&both).unwrap();
    assert!(refused(&json).contains("no longer at"), "{}", refused(&json));
}

#[test]
fn what_is_no_taef1_is_refused_by_name() {
    let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
    let refused = |path: &Path| Codec::open(path, &cpu).err().expect("nothing usable").to_string();
    let at = |name: &str| dir.path().join(name);
    assert!(refused(&at("none")).contains("wanted \"haar\""));
    assert!(refused(dir.path()).contains("holds 0 .safetensors files"));
    let weight = |channels: usize| {
        let t = Tensor::zeros(&cpu, &[64, channels, 3, 3]).unwrap();
        vec![("0.weight".to_owned(), t), ("0.bias".to_owned(), Tensor::zeros(&cpu, &[64]).unwrap())]
    };
    write_safetensors(at("a_encoder.safetensors"), &BTreeMap::new(), &weight(4)).unwrap();
    write_safetensors(at("a_decoder.safetensors"), &BTreeMap::new(), &weight(3)).unwrap();
    let e = refused(dir.path());
    assert!(e.contains("`0.weight` has shape [64, 4, 3, 3], wanted [64, 3, 3, 3]"), "{e}");
    write_safetensors(at("a_encoder.safetensors"), &BTreeMap::new(), &weight(3)).unwrap();
    let e = refused(dir.path());
    assert!(e.contains("a_encoder.safetensors") && e.contains("holds no tensor `1.conv.0.weight`"), "{e}");
}
