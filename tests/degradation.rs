//! The draws of Real-ESRGAN's degradation against their configuration, and folders of pairs.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use asasr_engine::data::degrade::config::Stage;
use asasr_engine::data::degrade::jpeg::Codec;
use asasr_engine::data::degrade::kernels::{Blur, Kind};
use asasr_engine::data::degrade::pairs::{Job, Outcome};
use asasr_engine::data::degrade::{Step, replay};
use asasr_engine::data::resize::{Mode, To};
use asasr_engine::data::{Degradation, Image, RealEsrgan, Strengths};
use asasr_engine::engine::Philox;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const SIDE: usize = 512;

fn draw(config: &RealEsrgan, i: u64) -> Vec<Step> {
    config.draw(SIDE, SIDE, &mut Philox::new(i, 11).reader())
}

/// What was met of one number: all of it within its range, both ends of it come near.
#[derive(Default)]
struct Values(Vec<f64>);

impl Values {
    fn fill(&self, what: &str, [lo, hi]: [f64; 2]) {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // 0.95³⁰⁰ is 2·10⁻⁷
        assert!(self.0.len() >= 300, "{what}: {} values", self.0.len());
        assert!(lo <= least && most <= hi, "{what}: {least}…{most} leaves {lo}…{hi}");
        let near = 0.05 * (hi - lo);
        assert!(least < lo + near && most > hi - near, "{what}: only {least}…{most} of {lo}…{hi}");
    }
}

/// `hits` of `of` against a probability, to five standard deviations of the binomial distribution.
fn share(what: &str, hits: usize, of: usize, p: f64) {
    let (n, hits) = (of as f64, hits as f64);
    assert!((hits - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{what}: {hits} of {of}, wanted {p}");
}

/// One stage's steps of every sample, up to its noise.
#[derive(Default)]
struct Seen {
    samples: usize,
    sincs: BTreeMap<bool, Values>,
    kinds: [usize; 6],
    sizes: BTreeMap<usize, usize>,
    sigmas: Values,
    angles: Values,
    betag: Values,
    betap: Values,
    modes: [usize; 3],
    gaussians: Values,
    poissons: Values,
    grey: usize,
}

impl Seen {
    fn add(&mut self, steps: &[Step]) {
        self.samples += 1;
        for step in steps {
            match step {
                Step::Sinc(sinc) => {
                    self.sincs.entry(sinc.size >= 13).or_default().0.push(sinc.cutoff);
                    *self.sizes.entry(sinc.size).or_default() += 1;
                }
                Step::Blur(blur) => self.blur(blur),
                Step::Resize { mode, .. } => {
                    self.modes[Mode::ALL.iter().position(|m| m == mode).unwrap()] += 1
                }
                Step::Gaussian { sigma, grey, .. } => {
                    self.gaussians.0.push(*sigma);
                    self.grey += usize::from(*grey);
                }
                Step::Poisson { scale, grey, .. } => {
                    self.poissons.0.push(*scale);
                    self.grey += usize::from(*grey);
                }
                Step::Jpeg { .. } => panic!("JPEG before noise"),
            }
        }
    }

    fn blur(&mut self, blur: &Blur) {
        self.kinds[Kind::ALL.iter().position(|k| *k == blur.kind).unwrap()] += 1;
        *self.sizes.entry(blur.size).or_default() += 1;
        self.sigmas.0.extend([blur.sigma_x, blur.sigma_y]);
        match blur.kind {
            Kind::Iso | Kind::Aniso => assert_eq!(blur.beta, None),
            Kind::GeneralizedIso | Kind::GeneralizedAniso => self.betag.0.extend(blur.beta),
            Kind::PlateauIso | Kind::PlateauAniso => self.betap.0.extend(blur.beta),
        }
        if blur.kind.isotropic() {
            assert_eq!((blur.sigma_x, blur.theta), (blur.sigma_y, 0.0));
        } else {
            self.angles.0.push(blur.theta);
        }
    }

    fn expect(&self, what: &str, stage: &Stage) {
        let (n, p) = (self.samples, stage.blur_prob);
        let small: usize = self.sincs[&false].0.len();
        let sincs = small + self.sincs[&true].0.len();
        share(&format!("{what}: sinc"), sincs, n, p * stage.sinc_prob);
        for ((hits, q), kind) in self.kinds.iter().zip(stage.kernel_prob).zip(Kind::ALL) {
            share(&format!("{what}: {kind:?}"), *hits, n, p * (1.0 - stage.sinc_prob) * q);
        }
        let blurs: usize = self.sizes.values().sum();
        assert_eq!(self.sizes.keys().copied().collect::<Vec<_>>(), [7, 9, 11, 13, 15, 17, 19, 21]);
        self.sizes.values().for_each(|&hits| share(&format!("{what}: a size"), hits, blurs, 0.125));
        // of eight sizes three are below 13
        share(&format!("{what}: small sincs"), small, sincs, 0.375);
        for (large, cutoffs) in &self.sincs {
            let lowest = stage.sinc_cutoff[usize::from(*large)];
            assert!(cutoffs.0.iter().all(|c| (lowest..=PI).contains(c)), "{what}");
        }
        self.sigmas.fill(&format!("{what}: sigma"), stage.blur_sigma);
        self.angles.fill(&format!("{what}: angle"), [-PI, PI]);
        for (name, betas, [lo, hi]) in
            [("betag", &self.betag, stage.betag_range), ("betap", &self.betap, stage.betap_range)]
        {
            let (below, above): (Vec<f64>, Vec<f64>) = betas.0.iter().partition(|b| **b <= 1.0);
            share(&format!("{what}: {name} up to 1"), below.len(), betas.0.len(), 0.5);
            assert!(below.iter().all(|b| *b >= lo) && above.iter().all(|b| *b <= hi), "{what}: {name}");
        }
        let resizes: usize = self.modes.iter().sum();
        self.modes.iter().for_each(|&hits| share(&format!("{what}: a mode"), hits, resizes, 1.0 / 3.0));
        share(&format!("{what}: gaussian"), self.gaussians.0.len(), n, stage.gaussian_noise_prob);
        share(&format!("{what}: grey"), self.grey, n, stage.gray_noise_prob);
        self.gaussians.fill(&format!("{what}: gaussian"), stage.noise_range);
        self.poissons.fill(&format!("{what}: poisson"), stage.poisson_scale_range);
    }
}

/// What ten thousand draws do, against what the configuration says: at the full degradation, and at half of it.
#[test]
fn ten_thousand_draws_follow_the_configuration() {
    let half = Strengths { blur: 0.5, second: 0.7, ringing: 0.9, resize: 0.6, noise: 0.8, jpeg: 0.4 };
    for config in [RealEsrgan::default(), RealEsrgan::at(&half)] {
        let n = 10_000;
        let (mut first, mut second) = (Seen::default(), Seen::default());
        let (mut light_jpeg, mut jpeg, mut jpeg2) = (Values::default(), Values::default(), Values::default());
        let (mut up, mut down, mut up2, mut down2) = (Values::default(), Values::default(), 0, 0);
        let (mut resized_first, mut last_sincs) = (0, Values::default());
        for i in 0..n {
            let steps = draw(&config, i as u64);
            if let [Step::Resize { to, .. }, Step::Jpeg { quality }] = &steps[..] {
                assert_eq!(*to, To::Size(128, 128));
                light_jpeg.0.push(*quality);
                continue;
            }
            let at = steps.iter().position(|s| matches!(s, Step::Jpeg { .. })).unwrap();
            let Step::Jpeg { quality } = steps[at] else { unreachable!("found above") };
            jpeg.0.push(quality);
            first.add(&steps[..at]);
            for step in &steps[..at] {
                match step {
                    Step::Resize { to: To::Scale(by), .. } if *by > 1.0 => up.0.push(*by),
                    Step::Resize { to: To::Scale(by), .. } => down.0.push(*by),
                    Step::Resize { to, .. } => panic!("{to:?}"),
                    _ => (),
                }
            }
            let rest = &steps[at + 1..];
            let noise = |s: &Step| matches!(s, Step::Gaussian { .. } | Step::Poisson { .. });
            let at = rest.iter().position(noise).unwrap();
            second.add(&rest[..=at]);
            let Step::Resize { to: To::Size(h, w), .. } = rest[at - 1] else { panic!("{:?}", rest[at - 1]) };
            let [lo, hi] = config.second.resize_range.map(|r| (128.0 * r) as usize);
            assert!(h == w && (lo..=hi).contains(&h), "{h} {w}");
            up2 += usize::from(h > 128);
            down2 += usize::from(h < 128);
            // the end: resize, perhaps a sinc, JPEG; or JPEG first
            let end = &rest[at + 1..];
            let is_jpeg = |s: &Step| matches!(s, Step::Jpeg { .. });
            resized_first += usize::from(!is_jpeg(&end[0]));
            assert_eq!(end.iter().filter(|s| is_jpeg(s)).count(), 1);
            for step in end {
                match step {
                    Step::Jpeg { quality } => jpeg2.0.push(*quality),
                    Step::Sinc(sinc) => last_sincs.0.push(sinc.cutoff),
                    Step::Resize { to, .. } => assert_eq!(*to, To::Size(128, 128)),
                    other => panic!("{other:?} at the end"),
                }
            }
        }
        share("light path", light_jpeg.0.len(), n, config.light_prob);
        light_jpeg.fill("quality of the light path", config.light_jpeg_range);
        jpeg.fill("first quality", config.first.jpeg_range);
        jpeg2.fill("second quality", config.second.jpeg_range);
        first.expect("first", &config.first);
        second.expect("second", &config.second);
        let ([p_up, p_down], [lo, hi]) = (config.first.resize_prob, config.first.resize_range);
        share("first up", up.0.len(), first.samples, p_up);
        share("first down", down.0.len(), first.samples, p_down);
        up.fill("first up", [1.0, hi]);
        down.fill("first down", [lo, 1.0]);
        let ([p_up, p_down], [_, hi]) = (config.second.resize_prob, config.second.resize_range);
        // factors below 1 + 1/128 are rounded down to the size itself
        share("second up", up2, second.samples, p_up * (1.0 - 1.0 / 128.0 / (hi - 1.0)));
        share("second down", down2, second.samples, p_down);
        share("size before JPEG", resized_first, first.samples, config.resize_first_prob);
        share("last sinc", last_sincs.0.len(), first.samples, config.final_sinc_prob);
        last_sincs.fill("last cut-off", [config.final_sinc_cutoff, PI]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(64) })]

    /// Whatever the strengths, the configuration is sound, survives being written, and so do its draws.
    #[test]
    fn any_strengths_are_sound(s in prop::array::uniform6(0.0f64..=1.0), seed: u64, side in 1usize..700) {
        let mut strengths = Strengths::default();
        for (name, value) in Strengths::NAMES.iter().zip(s) {
            strengths.set(name, value).unwrap();
        }
        let config = RealEsrgan::at(&strengths);
        prop_assert!(config.check().is_ok());
        prop_assert_eq!(&toml::from_str::<RealEsrgan>(&toml::to_string(&config).unwrap()).unwrap(), &config);
        let steps = config.draw(4 * side, 4 * side + 4, &mut Philox::new(seed, 0).reader());
        let text = serde_json::to_string(&steps).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Vec<Step>>(&text).unwrap(), &steps);
        let mut sizes = (4 * side, 4 * side + 4);
        for step in &steps {
            if let Step::Resize { to, .. } = step {
                sizes = to.size(sizes.0, sizes.1);
            }
        }
        prop_assert_eq!(sizes, (side, side + 1));
    }

    /// Any draw gives a picture of the right size in 8-bit levels, by either codec.
    #[test]
    fn any_draw_gives_a_picture(seed: u64, h in 1usize..8, w in 1usize..8, diff: bool) {
        let config = RealEsrgan { jpeg: if diff { Codec::Diff } else { Codec::File }, ..RealEsrgan::default() };
        let img = Image::from_fn(4 * h, 4 * w, |c, y, x| ((c * 50 + y * 7 + x * 3) % 256) as f32 / 255.0);
        let degradation = Degradation::RealEsrgan(Box::new(config));
        let (hq, lq) = degradation.pair(img, &mut Philox::new(seed, 0).reader()).unwrap();
        prop_assert_eq!((hq.height, hq.width, lq.height, lq.width), (4 * h, 4 * w, h, w));
        let levels = |v: &f32| (0.0..=1.0).contains(v) && (v * 255.0).fract().min(1.0 - (v * 255.0).fract()) < 1e-4;
        prop_assert!(lq.data.iter().all(levels));
        prop_assert!(hq.data.iter().all(|v| (0.0..=1.0).contains(v)));
    }
}

/// A folder of three pictures: one of them smaller than the crop on one side.
fn photos(dir: &Path) -> PathBuf {
    let hq = dir.join("hq");
    fs::create_dir(&hq).unwrap();
    for (name, h, w) in [("a", 60, 50), ("b", 40, 90), ("c", 48, 48)] {
        let img = Image::from_fn(h, w, |c, y, x| ((c * 91 + y * y * 3 + x * 5) % 256) as f32 / 255.0);
        img.save_png(hq.join(format!("{name}.png"))).unwrap();
    }
    hq
}

fn job(hq: &Path, out: &Path) -> Job {
    let (hq, out) = (hq.to_path_buf(), out.to_path_buf());
    Job { hq, out, seed: 5, crop: 48, repeats: 2, degradation: RealEsrgan::default() }
}

fn run(job: &Job) -> Outcome {
    job.run(&|_, _| (), &AtomicBool::new(false)).unwrap()
}

/// Every file below `dir` with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(p, bytes)| (dir.join(p), bytes)));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all.into_iter().map(|(p, bytes)| (p.strip_prefix(dir).unwrap_or(&p).to_path_buf(), bytes)).collect()
}

#[test]
fn pairs_are_the_same_on_any_number_of_threads_and_replayed_from_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let hq = photos(dir.path());
    let before = files(&hq);
    let made: Vec<_> = [1, 3]
        .into_iter()
        .map(|threads| {
            let out = dir.path().join(threads.to_string());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let outcome = pool.install(|| run(&job(&hq, &out)));
            assert_eq!((outcome.made, outcome.kept, outcome.failed.len()), (6, 0, 0));
            files(&out)
        })
        .collect();
    assert!(made[0] == made[1], "the number of threads changed a file");
    assert!(files(&hq) == before, "the folder of good pictures was written to");

    let out = dir.path().join("1");
    let manifest = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let config = RealEsrgan::default();
    for line in manifest.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let load = |folder: &str| Image::load(out.join(folder).join(line["file"].as_str().unwrap())).unwrap();
        let source = Image::load(hq.join(line["source"].as_str().unwrap())).unwrap();
        let [y, x] = [0, 1].map(|i| line["crop_at"][i].as_u64().unwrap() as usize);
        // beyond the last row and column the picture is reflected
        let fold = |i: usize, n: usize| if i < n { i } else { 2 * (n - 1) - i };
        let (h, w) = (source.height, source.width);
        let hq = Image::from_fn(48, 48, |c, dy, dx| source.plane(c)[fold(y + dy, h) * w + fold(x + dx, w)]);
        let hq = config.sharpen.apply(hq);
        assert_eq!(hq.to_rgb8(), load("gt").to_rgb8(), "{line}");
        let steps: Vec<Step> = serde_json::from_value(line["steps"].clone()).unwrap();
        assert_eq!(replay(&steps, hq, config.jpeg).unwrap(), load("lr"), "{line}");
    }
    assert_eq!(manifest.lines().count(), 6);
    let sheet = Image::load(out.join("contact.png")).unwrap();
    assert!(sheet.width > 4 * 48 && sheet.height > 3 * 48);
}

#[test]
fn a_job_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let hq = photos(dir.path());
    let whole = dir.path().join("whole");
    run(&job(&hq, &whole));
    let wanted = files(&whole);

    // stopped after two pairs
    let out = dir.path().join("out");
    let stop = AtomicBool::new(false);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let stopped =
        one.install(|| job(&hq, &out).run(&|done, _| stop.store(done >= 2, Ordering::Relaxed), &stop));
    let stopped = stopped.unwrap();
    assert!(stopped.stopped && stopped.made == 2);
    assert!(
        files(&out).iter().all(|(path, bytes)| path.ends_with("manifest.jsonl") || wanted[path] == *bytes)
    );
    // as if killed: a temporary file, a manifest that is behind; and a file gone, another changed
    fs::write(out.join("gt/.00000_a.png.1-2.tmp"), "half").unwrap();
    let rest = run(&job(&hq, &out));
    assert_eq!((rest.kept, rest.made), (2, 4));
    assert!(files(&out) == wanted);
    fs::remove_file(out.join("lr/00001_a.png")).unwrap();
    fs::write(out.join("gt/00003_b.png"), "mine").unwrap();
    let rest = run(&job(&hq, &out));
    assert_eq!((rest.kept, rest.made), (4, 2));
    assert!(files(&out) == wanted);

    let refused = |change: fn(&mut Job), words: &[&str]| {
        let mut other = job(&hq, &out);
        change(&mut other);
        let e = other.run(&|_, _| (), &AtomicBool::new(false)).unwrap_err();
        assert!(e.exit_code() == 2 && words.iter().all(|w| e.to_string().contains(w)), "{e}");
    };
    refused(|j| j.seed = 6, &["seed: 5 → 6", "other settings"]);
    refused(|j| j.degradation.light_prob = 1.0, &["degradation.light_prob: 0.2 → 1.0"]);
    refused(|j| j.crop = 50, &["50", "multiple of the scale, 4"]);
    refused(|j| j.repeats = 0, &["0 pairs"]);
    assert!(files(&out) == wanted);
}

/// The command: pictures that cannot be used are listed, the others are made, and the exit code says so.
#[test]
fn what_cannot_be_used_is_listed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let hq = photos(dir.path());
    fs::write(hq.join("b.jpg"), "no picture").unwrap();
    Image::zeros(20, 20).save_png(hq.join("tiny.png")).unwrap();
    let out = dir.path().join("out");
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
        command.arg("degrade").arg("--hq").arg(&hq).arg("--out").arg(&out).args(["--crop", "48"]).args(more);
        command.output().unwrap()
    };
    let first = command(&["--threads", "2"]);
    let (said, failed) = (String::from_utf8_lossy(&first.stdout), String::from_utf8_lossy(&first.stderr));
    assert_eq!(first.status.code(), Some(1), "{said}{failed}");
    assert!(
        said.contains("tiny.png: 20×20 pixels, less than 36×36") && said.contains("3 pairs made"),
        "{said}"
    );
    assert!(failed.contains("b.jpg: cannot decode"), "{failed}");
    let names = |folder: &str| files(&out.join(folder)).into_keys().collect::<Vec<_>>();
    assert_eq!(names("gt"), ["00000_a.png", "00002_b.png", "00003_c.png"].map(PathBuf::from));
    assert_eq!(names("lr"), names("gt"));
    fs::remove_file(hq.join("b.jpg")).unwrap();
    let other = command(&[]);
    let failed = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(2));
    assert!(failed.contains("pictures: 5 → 4"), "{failed}");
}
