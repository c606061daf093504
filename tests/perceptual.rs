//! LPIPS and DISTS against published values. Weights and pictures are not kept in the repository: they are looked for
//! in `../shared/data`, the networks' weights in the folder `ASASR_METRICS` first; what is absent is skipped, and
//! said so. `tests/interop/convert_metric_weights.py` makes such a folder.

use asasr_engine::data::Image;
use asasr_engine::eval::{Backbone, Dists, Lpips};
use std::path::{Path, PathBuf};

const DATA: &str = "../shared/data";

/// A file of weights; says so where it is absent.
fn weights(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("ASASR_METRICS").map(PathBuf::from).into_iter();
    let folders = folders.chain([Path::new(DATA).join("weights/metrics")]);
    let found = folders.map(|f| f.join(name)).find(|p| p.is_file());
    if found.is_none() {
        println!("skipped: {name} is not here");
    }
    found
}

fn example(name: &str) -> Image {
    Image::load(Path::new(DATA).join("weights/metrics/lpips_example").join(name)).unwrap()
}

/// Pictures restored by another system, the truth, and what was published about them.
fn realsr() -> Option<Vec<(String, Image, Image, serde_json::Value)>> {
    let folder = Path::new(DATA).join("photos/realsr");
    let text = std::fs::read_to_string(folder.join("metrics_osediff.json"));
    let Ok(text) = text else {
        println!("skipped: {} is not here", folder.display());
        return None;
    };
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = read["images"].as_object().unwrap().iter().map(|(name, row)| {
        let load = |of: &str| Image::load(folder.join(of).join(format!("{name}.png"))).unwrap();
        (name.clone(), load("SR_osediff"), load("HR"), row.clone())
    });
    Some(rows.collect())
}

#[test]
fn lpips_gives_the_authors_example() {
    let Some(path) = weights("lpips_alex_v0.1.safetensors") else { return };
    let lpips = Lpips::load(path).unwrap();
    assert_eq!(lpips.backbone(), Backbone::Alex);
    let truth = example("ex_ref.png");
    for (name, want) in [("ex_p0.png", 0.7219), ("ex_p1.png", 0.1376)] {
        let got = lpips.distance(&truth, &example(name)).unwrap();
        println!("{name}: {got:.5}, published {want}");
        // Published with four digits.
        assert!((got - want).abs() < 5e-4, "{name}: {got}");
    }
    assert_eq!(lpips.distance(&truth, &truth).unwrap(), 0.0);
    let small = truth.crop(0, 0, 30, 40).unwrap();
    let refused = lpips.distance(&small, &small).unwrap_err().to_string();
    assert!(refused.contains("30×40") && refused.contains("31"), "{refused}");
    assert!(lpips.distance(&truth, &small).is_err());
}

#[test]
fn lpips_gives_the_published_values_of_real_pictures() {
    let (Some(path), Some(rows)) = (weights("lpips_alex_v0.1.safetensors"), realsr()) else { return };
    let lpips = Lpips::load(path).unwrap();
    for (name, sr, hq, row) in rows {
        let (got, want) = (lpips.distance(&sr, &hq).unwrap(), row["LPIPS"].as_f64().unwrap());
        println!("{name}: LPIPS {got:.6}, published {want}");
        assert!((got / want - 1.0).abs() < 1e-3, "{name}: {got}, published {want}");
    }
}

#[test]
fn dists_gives_the_published_values_of_real_pictures() {
    let (Some(path), Some(rows)) = (weights("dists.safetensors"), realsr()) else { return };
    let dists = Dists::load(path).unwrap();
    for (name, sr, hq, row) in rows {
        let (got, want) = (dists.distance(&sr, &hq).unwrap(), row["DISTS"].as_f64().unwrap());
        println!("{name}: DISTS {got:.6}, published {want}");
        assert!((got / want - 1.0).abs() < 5e-3, "{name}: {got}, published {want}");
        assert!(dists.distance(&hq, &hq).unwrap().abs() < 1e-6);
    }
}

/// The values are those of PyTorch in f64 with these weights.
#[test]
fn lpips_of_vgg_gives_the_references_values() {
    let Some(path) = weights("lpips_vgg.safetensors") else { return };
    let lpips = Lpips::load(path).unwrap();
    assert_eq!(lpips.backbone(), Backbone::Vgg16);
    let truth = example("ex_ref.png");
    for (name, want) in [("ex_p0.png", 0.568_612_82), ("ex_p1.png", 0.421_664_26)] {
        let got = lpips.distance(&truth, &example(name)).unwrap();
        println!("{name}: {got:.7}, PyTorch {want:.7}");
        // Thirteen layers of f32, each value a sum of up to 4608 terms.
        assert!((got / want - 1.0).abs() < 1e-5, "{name}: {got}");
    }
}
