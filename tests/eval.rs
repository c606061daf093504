//! The metrics against pictures whose figures are known (`verify --only metrics` holds them to pyiqa and basicsr).
use asasr_engine::data::{DeadLeaves, Image};
use asasr_engine::eval::evaluate;

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
