//! The metrics against pictures whose figures are known (`verify --only metrics` holds them to pyiqa and basicsr).
use asasr_engine::data::{DeadLeaves, Image};
use asasr_engine::eval::results::MEASURES;
use asasr_engine::eval::{Convention, Folders, Lpips, Networks, Results, evaluate};
use serde_json::Value;
use std::path::{Path, PathBuf};

#[test]
fn identical_pictures_score_perfectly() {
    let leaves = DeadLeaves::new(2, 64).unwrap();
    let set = [leaves.image(0).crop(0, 0, 40, 64).unwrap(), leaves.image(1)];
    let m = evaluate(&set, &set).unwrap();
    // rounding to 8 bits may move a value by an ulp
    assert!((m.psnr_y - 80.0).abs() < 1e-6 && (m.ssim_y - 1.0).abs() < 1e-9, "{m}");
    assert!(m.lsd_db < 1e-3 && m.rlsd_db < 1e-6 && (m.hf_ratio - 1.0).abs() < 1e-6, "{m}");
}

/// White noise of a known power added to a grey picture: every figure can be worked out.
#[test]
fn known_noise_gives_known_figures() {
    use asasr_engine::engine::random::Philox;
    let noise = |stream, sigma: f32| {
        let mut rng = Philox::new(4, stream).reader();
        // grey noise: luma scales it by (235 − 16)/255
        let plane: Vec<f32> = (0..48 * 96).map(|_| 0.5 + sigma * rng.normal()).collect();
        Image::new(48, 96, plane.repeat(3)).unwrap()
    };
    let truth: Vec<Image> = (0..8).map(|i| noise(i, 0.05)).collect();
    let double: Vec<Image> = (0..8).map(|i| noise(100 + i, 0.10)).collect();
    let m = evaluate(&double, &truth).unwrap();
    println!("{m}");
    let scale = 219.0 / 255.0;
    assert!((m.psnr_y + 10.0 * (0.0125f64 * scale * scale).log10()).abs() < 0.1, "{m}");
    // twice the amplitude: four times the power at every ring
    assert!((m.hf_ratio - 4.0).abs() < 0.1 && (m.rlsd_db - 6.02).abs() < 0.3, "{m}");
    // two independent log-exponential spectra: 5.57·√2 dB beside the offset
    assert!((m.lsd_db - (7.88f64.powi(2) + 6.02f64.powi(2)).sqrt()).abs() < 0.2, "{m}");
}

#[test]
fn restored_pictures_are_judged_as_files() {
    let truth = DeadLeaves::new(2, 64).unwrap().image(3);
    let mut nudged = truth.clone();
    nudged.data.iter_mut().for_each(|v| *v += 0.4 / 255.0);
    let m = evaluate(&[nudged], std::slice::from_ref(&truth)).unwrap();
    assert!((m.psnr_y - 80.0).abs() < 1e-6, "rounding was not applied: {m}");
    // the border does not count
    let mut framed = truth.clone();
    for i in 0..64 {
        framed.data[i] = 1.0 - framed.data[i];
        framed.data[64 * i + 3] = 0.0;
    }
    let m = evaluate(&[framed], &[truth]).unwrap();
    assert!((m.psnr_y - 80.0).abs() < 1e-6 && (m.ssim_y - 1.0).abs() < 1e-9 && m.lsd_db > 0.1, "{m}");
}

#[test]
fn sets_that_do_not_match_are_refused() {
    let a = Image::zeros(32, 40);
    let refuse = |s: &[Image], h: &[Image]| evaluate(s, h).unwrap_err().to_string();
    assert!(refuse(&[], &[]).contains("at least 1"));
    assert!(refuse(&[a.clone(), a.clone()], std::slice::from_ref(&a)).contains("2 restored and 1 true"));
    let message = refuse(std::slice::from_ref(&a), &[a.transpose()]);
    assert!(message.contains("32×40") && message.contains("40×32"), "{message}");
    assert!(refuse(&[Image::zeros(18, 40)], &[Image::zeros(18, 40)]).contains("19"));
    // flat pictures: nothing to divide by, nothing to be infinite
    let m = evaluate(std::slice::from_ref(&a), std::slice::from_ref(&a)).unwrap();
    assert!(m.rlsd_db == 0.0 && m.hf_ratio == 1.0, "{m}");
}

/// The truth (three pictures), and two methods: `near` adds little noise, `far` darkens and, of one picture, keeps half
/// of the pixels.
fn folders(dir: &Path) -> (PathBuf, Vec<(String, PathBuf)>) {
    let leaves = DeadLeaves::new(2, 64).unwrap();
    let [gt, near, far] = ["gt", "near", "far"].map(|name| dir.join(name));
    [&gt, &near, &far].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    for i in 0..3u64 {
        // the second is larger: the set's rings are not its own
        let side = if i == 1 { 64 } else { 48 };
        let truth = leaves.image(i).crop(0, 0, 48, side).unwrap();
        let scaled =
            |gain: f32| Image { data: truth.data.iter().map(|v| gain * v).collect(), ..truth.clone() };
        truth.save_png(gt.join(format!("{i}.png"))).unwrap();
        scaled(0.98).save_png(near.join(format!("{i}.PNG"))).unwrap();
        let far_one = if i == 2 { scaled(0.5).crop(0, 0, 24, 24).unwrap() } else { scaled(0.5) };
        far_one.save_png(far.join(format!("{i}.png"))).unwrap();
    }
    std::fs::write(gt.join("notes.txt"), "no picture").unwrap();
    (gt, vec![("near".into(), near), ("far,\"er\"".into(), far)])
}

fn scored(gt: &Path, sr: &[(String, PathBuf)], convention: Convention) -> (Folders, Results) {
    let folders = Folders::open(gt, sr, 11, &|_, _| ()).unwrap();
    let results = Results::of(&folders, convention, &Networks::default(), &mut |_, _| ()).unwrap();
    (folders, results)
}

#[test]
fn folders_are_matched_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let (gt, sr) = folders(dir.path());
    let (folders, results) = scored(&gt, &sr, Convention::Pyiqa);
    assert_eq!(folders.names(), ["0", "1", "2"]);
    assert_eq!((folders.resized(0), folders.resized(1), folders.least_side()), (0, 1, 48));
    // every measure finds the method that is nearer
    let known = [0, 1, 5, 6, 7];
    assert!(known.iter().all(|&k| results.best(k) == Some(0)));
    assert_eq!((results.best(2), MEASURES[results.judge()].key), (None, "psnr_y"));
    // the picture that lost half of its pixels is the worst
    assert_eq!(results.worst(1)[0], 2);
    // a gain of g is a power of g², at every frequency, of a picture and of the set
    for figures in results.methods[0].images.iter().chain([&results.methods[0].mean]) {
        let db = 20.0 * 0.98f64.log10();
        assert!((figures.rlsd_db + db).abs() < 0.05 && (10.0 * figures.hf_ratio.log10() - db).abs() < 0.05);
    }

    let json: Value = serde_json::from_str(&results.to_json().unwrap()).unwrap();
    let method = &json["methods"]["far,\"er\""];
    let keys: Vec<&str> = method["images"][1].as_object().unwrap().keys().map(String::as_str).collect();
    let wanted =
        ["name", "psnr_y", "ssim_y", "lpips_alex", "lpips_vgg", "dists", "lsd_db", "rlsd_db", "hf_ratio"];
    assert_eq!(keys, wanted);
    assert!(method["images"][1]["name"] == "1" && method["mean"]["dists"].is_null());
    let images = method["images"].as_array().unwrap();
    let mean = images.iter().map(|i| i["ssim_y"].as_f64().unwrap()).sum::<f64>() / 3.0;
    assert!((method["mean"]["ssim_y"].as_f64().unwrap() - mean).abs() < 1e-12);

    let csv = results.to_csv();
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines.len() == 9 && lines[0].starts_with("method,image,psnr_y,ssim_y,lpips_alex,"));
    assert!(lines[5].starts_with("\"far,\"\"er\"\"\",0,") && lines[8].starts_with("\"far,\"\"er\"\"\",,"));
    assert!(lines.iter().all(|line| line.replace("far,", "far").matches(',').count() == 9));
}

#[test]
fn equal_pictures_are_infinitely_near_to_basicsr_and_null_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let (gt, _) = folders(dir.path());
    let (_, results) = scored(&gt, &[("same".into(), gt.clone())], Convention::Basicsr);
    assert_eq!((results.methods[0].mean.psnr_y, results.methods[0].mean.ssim_y), (f64::INFINITY, 1.0));
    let json: Value = serde_json::from_str(&results.to_json().unwrap()).unwrap();
    assert!(json["methods"]["same"]["mean"]["psnr_y"].is_null());
    assert!(results.to_csv().lines().nth(1).unwrap().starts_with("same,0,,1"));
    let (_, results) = scored(&gt, &[("same".into(), gt.clone())], Convention::Pyiqa);
    assert_eq!(results.methods[0].mean.psnr_y, 80.0);
}

#[cfg(feature = "report")]
#[test]
fn the_page_shows_every_method_and_the_worst_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let (gt, sr) = folders(dir.path());
    let (folders, results) = scored(&gt, &sr, Convention::Pyiqa);
    let page = |worst: usize| {
        let to = dir.path().join("page.html");
        asasr_engine::report::eval::write(&results, &folders, worst, &to).unwrap();
        std::fs::read_to_string(to).unwrap()
    };
    let shown = page(2);
    // the two worst of `far` and of `near` are at least two pictures, at most three, in three panes each
    let pictures = shown.matches("data:image/jpeg;base64,").count();
    assert!(pictures == 6 || pictures == 9, "{pictures}");
    for wanted in
        ["far,&quot;er&quot;", "1 of 3 pictures of", "worst of near", "3 pictures: near is best in PSNR-Y"]
    {
        assert!(shown.contains(wanted), "{wanted}");
    }
    assert!(!shown.contains("far,\"er") && !shown.contains("http:") && !shown.contains(">NaN"));
    assert!(!page(0).contains("data:image"));
}

#[test]
fn what_cannot_be_compared_is_one_list() {
    let dir = tempfile::tempdir().unwrap();
    let (gt, sr) = folders(dir.path());
    std::fs::write(sr[0].1.join("1.PNG"), "no picture").unwrap();
    std::fs::remove_file(gt.join("2.png")).unwrap();
    let refused = Folders::open(&gt, &sr, 32, &|_, _| ()).err().unwrap().to_string();
    assert_eq!(refused.matches("no picture of this name").count(), 2, "{refused}");
    assert!(refused.contains("1.PNG: cannot decode"), "{refused}");
    assert!(refused.contains("24×24 pixels; the metrics want 32"), "{refused}");
}

/// Figures that OSEDiff's authors publish of their pictures, made with pyiqa.
#[test]
fn published_figures_are_met() {
    let data = Path::new("../shared/data");
    let published = data.join("photos/realsr/metrics_osediff.json");
    let Ok(text) = std::fs::read_to_string(&published) else {
        println!("skipped: {} is not here", published.display());
        return;
    };
    let published: Value = serde_json::from_str(&text).unwrap();
    let folder = |name: &str| data.join("photos/realsr").join(name);
    let folders =
        Folders::open(&folder("HR"), &[("osediff".into(), folder("SR_osediff"))], 31, &|_, _| ()).unwrap();
    let alex = Lpips::load(data.join("weights/metrics/lpips_alex_v0.1.safetensors")).unwrap();
    let networks = Networks { lpips_alex: Some(alex), ..Networks::default() };
    let results = Results::of(&folders, Convention::Pyiqa, &networks, &mut |_, _| ()).unwrap();
    assert_eq!(results.names.len(), published["images"].as_object().unwrap().len());
    for (name, got) in results.names.iter().zip(&results.methods[0].images) {
        let want = &published["images"][name];
        for (key, got) in [("PSNR", got.psnr_y), ("SSIM", got.ssim_y), ("LPIPS", got.lpips_alex.unwrap())] {
            let want = want[key].as_f64().unwrap();
            println!("{name} {key}: {got:.6}, published {want:.6}");
            assert!((got - want).abs() < 1e-3 * want, "{name} {key}: {got}, published {want}");
        }
    }
}
