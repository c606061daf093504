//! Upscaling whole pictures and folders of them, with a small model of random weights: sizes, memory, seams, and what
//! becomes of files. (How tiles are blended is held where it is done, in `src/infer/tiles.rs`.)

mod common;

use asasr_engine::Error;
use asasr_engine::autograd::ParamSet;
use asasr_engine::data::{Codec, DeadLeaves, Format, HaarCodec, Image, LqResize, Picture};
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::flux::{Adapter, AdapterFile, FluxConfig, SafeFile, Weights};
use asasr_engine::infer::job::Outcome;
use asasr_engine::infer::{ColorFix, Job, Model, Restored, Settings, Watch, upscale};
use common::{NANO, World};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const SETTINGS: Settings = Settings { scale: 2.0, steps: 2, guidance: 0.0, seed: 42, tile: 32, overlap: 8 };

fn leaves(height: usize, width: usize) -> Image {
    let image = DeadLeaves::new(5, height.max(width).max(32)).unwrap().image(0);
    image.crop(0, 0, height, width).unwrap()
}

fn model(device: &Device) -> Model {
    let world = World::new(&NANO, device).unwrap();
    Model {
        prompt: None,
        codec: Codec::from(HaarCodec::fit([leaves(64, 64)]).unwrap()),
        lq_resize: LqResize::PilBicubic,
        adapters: vec![Adapter::frozen(&world.sft, 0.1)],
        config: world.config,
        weights: world.weights,
    }
}

fn quietly(
    model: &Model,
    lq: &Image,
    settings: &Settings,
    device: &Device,
) -> asasr_engine::Result<Restored> {
    let watch = Watch { progress: &|_, _| (), say: &|_| (), stop: &AtomicBool::new(false) };
    upscale(model, lq, settings, device, &watch)
}

fn restored(model: &Model, lq: &Image, settings: &Settings) -> Image {
    quietly(model, lq, settings, &Device::cpu()).unwrap().image
}

#[test]
fn every_size_and_factor_gives_exactly_the_size_asked_for() {
    let model = model(&Device::cpu());
    for (h, w, scale, want) in [
        (1, 1, 1.0, (1, 1)),
        (1, 1, 4.0, (4, 4)),
        (1, 40, 1.5, (2, 60)),
        (37, 5, 1.0, (37, 5)),
        (13, 21, 2.3, (30, 48)),
        (9, 9, 8.0, (72, 72)),
    ] {
        let image = restored(&model, &leaves(h, w), &Settings { scale, steps: 1, ..SETTINGS });
        assert_eq!((image.height, image.width), want, "{h}×{w} times {scale}");
        assert!(image.data.iter().all(|v| v.is_finite()));
    }
}

/// What training measures is what the user gets.
#[test]
fn one_tile_is_what_the_evaluation_restores_to_the_bit() {
    let (model, device, lq) = (model(&Device::cpu()), Device::cpu(), leaves(8, 8));
    let whole = restored(&model, &lq, &Settings { scale: 4.0, steps: 3, ..SETTINGS });
    let want = model.restore(&[lq], &[(0, 0)], 3, &device).unwrap();
    assert_eq!(whole.clamped(), want[0]);
}

#[test]
fn threads_change_no_bit_and_the_seed_changes_many() {
    let (model, lq) = (model(&Device::cpu()), leaves(30, 23));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| restored(&model, &lq, &SETTINGS))
    };
    let one = on(1);
    assert!(one == on(2) && one == on(3));
    assert_ne!(one, restored(&model, &lq, &Settings { seed: 43, ..SETTINGS }));
}

#[test]
fn too_little_memory_makes_smaller_tiles_and_says_so() {
    let lq = leaves(192, 192);
    let settings = Settings { scale: 1.0, steps: 1, tile: 192, overlap: 16, ..SETTINGS };
    let small = Settings { tile: 64, ..settings };
    let bare = |device: Device| (model(&device), device.stats().peak).1;
    let bare = bare(Device::cpu());
    // Bytes beside the model's, and what they are enough for.
    let needed = |settings: &Settings| {
        let device = Device::cpu();
        let image = quietly(&model(&device), &lq, settings, &device).unwrap().image;
        (image, device.stats().peak - bare)
    };
    let within = |bytes: usize, settings: &Settings| {
        let device = Device::cpu_within(bare + bytes);
        let model = model(&device);
        let said = Mutex::new(Vec::new());
        let watch = Watch {
            progress: &|_, _| (),
            say: &|text| said.lock().unwrap().push(text.to_owned()),
            stop: &AtomicBool::new(false),
        };
        let made = upscale(&model, &lq, settings, &device, &watch).unwrap();
        (made, said.into_inner().unwrap())
    };
    let ((whole, most), (tiled, many)) = (needed(&settings), needed(&small));

    let (made, said) = within(many / 2, &small);
    assert!(
        made.image == tiled && made.halved == 0 && said.is_empty(),
        "fewer at a time change a bit: {said:?}"
    );

    let (made, said) = within(most / 2, &settings);
    assert!(made.halved >= 1 && made.image != whole, "{said:?}");
    assert_eq!(said.len(), made.halved as usize);
    assert!(said[0].contains("out of memory on cpu") && said[0].contains("tiles of 96 pixels"), "{said:?}");

    let device = Device::cpu_within(bare);
    let model = model(&device);
    let hog: Vec<Tensor> = std::iter::from_fn(|| Tensor::zeros(&device, &[64]).ok()).collect();
    let made = quietly(&model, &lq, &settings, &device);
    assert!(matches!(made, Err(Error::Memory { .. })) && !hog.is_empty());
}

/// The golden vectors' model and autoencoder, whose velocity is one token's in a whole tile, but another's in every tile:
/// what tiles of a trained model disagree about is a colour that fills them. Image tokens are all alike, attention is even
/// and sees the condition, which an adapter alone tells apart; beside so large a velocity the noise is nothing.
fn one_colour_a_tile(device: &Device) -> Model {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let flux = golden.join("tiny_flux/transformer");
    let file = SafeFile::open(flux.join("diffusion_pytorch_model.safetensors")).unwrap();
    let weight = |name: &str| {
        let t = file.tensor(name, &Device::cpu()).unwrap();
        let by = match name {
            "x_embedder.weight" => 0.0,
            "proj_out.weight" | "proj_out.bias" => 200.0,
            _ if ["norm_q", "norm_k", "norm_added"].iter().any(|part| name.contains(part)) => 0.0,
            _ => 1.0,
        };
        (name.to_owned(), t.shape().to_vec(), t.f32().iter().map(|v| v * by).collect())
    };
    let weights = ParamSet::new(device, file.names().map(weight).collect()).unwrap();
    let sft = AdapterFile::load(golden.join("lora/base_sft.safetensors"), device).unwrap();
    Model {
        prompt: None,
        codec: Codec::open(golden.join("tiny_flux/vae"), device).unwrap(),
        lq_resize: LqResize::PilBicubic,
        adapters: vec![Adapter::frozen(&sft, 100.0)],
        config: FluxConfig::load(flux).unwrap(),
        weights: Weights::frozen(device, &weights).unwrap(),
    }
}

/// The mean step between neighbouring tokens' mean colours, where a tile begins or ends and elsewhere. Mean colours, because
/// within a token the velocity has a pattern; without the outermost, where the decoder sees the picture's edge.
fn steps(image: &Image, token: usize, is_border: impl Fn(usize) -> bool) -> [f64; 2] {
    let (rows, columns) = (image.height / token, image.width / token);
    let colour = |c: usize, y: usize, x: usize| {
        let row = |i: usize| (c * image.height + y * token + i) * image.width + x * token;
        let values = (0..token).flat_map(|i| &image.data[row(i)..][..token]);
        values.map(|&v| f64::from(v)).sum::<f64>() / (token * token) as f64
    };
    let mut sums = [[0.0; 2]; 2];
    for c in 0..3 {
        for y in 2..rows - 1 {
            for x in 2..columns - 1 {
                let here = colour(c, y, x);
                for (at, there) in [(x, colour(c, y, x - 1)), (y, colour(c, y - 1, x))] {
                    let sum = &mut sums[usize::from(!is_border(at * token))];
                    *sum = [sum[0] + (here - there).abs(), sum[1] + 1.0];
                }
            }
        }
    }
    sums.map(|[sum, n]| sum / n)
}

/// Tiles of 4 tokens that share 2, so that a ramp begins and ends at every other token. Of two tiles' disagreement, the
/// cosine's means over the two shared tokens being 0.173 and 0.827, 0.173 is seen at either end and 0.654 between: a border
/// of two ramps has half the step of what is no border. The decoder, which looks at neighbours, evens that out, but no more.
/// That the measure sees seams is shown by tiles cut hard, that it sees nothing else by the picture in one tile.
#[test]
fn tiles_leave_no_seams_in_a_picture() {
    let (device, token) = (Device::cpu(), 16);
    let model = one_colour_a_tile(&device);
    let wave = |c: usize, y: usize, x: usize| {
        let (c, y, x) = (c as f32, y as f32, x as f32);
        0.5 + 0.4 * (x / 30.0 + c).sin() * (y / 24.0 - c).cos()
    };
    let lq = Image::from_fn(128, 128, wave);
    let seam = |tile: usize, overlap: usize, apart: usize| {
        let image = restored(&model, &lq, &Settings { steps: 1, tile, overlap, ..SETTINGS });
        let [border, elsewhere] = steps(&image, token, |at| at % apart == 0);
        println!(
            "tiles of {tile} that share {overlap}: {border:.4} across borders, {elsewhere:.4} elsewhere"
        );
        [border, border / elsewhere]
    };
    let [[_, whole], [blended, even], [cut, steep]] = [seam(256, 0, 32), seam(64, 32, 32), seam(64, 0, 64)];
    assert!((whole - 1.0).abs() < 0.1, "{whole}");
    assert!(steep > 2.0, "{steep}");
    assert!(even < 1.0 && blended < 0.5 * cut, "{even}, {blended} of {cut}");
}

#[test]
fn a_raised_flag_stops_between_passes() {
    let (model, stop) = (model(&Device::cpu()), AtomicBool::new(false));
    let seen = Mutex::new((0, 0));
    let progress = |done, all| {
        *seen.lock().unwrap() = (done, all);
        stop.store(true, Ordering::Relaxed);
    };
    let watch = Watch { progress: &progress, say: &|_| (), stop: &stop };
    let stopped = upscale(&model, &leaves(64, 64), &SETTINGS, &Device::cpu(), &watch);
    assert!(matches!(stopped, Err(Error::Interrupted { step: 1, .. })));
    let (done, all) = *seen.lock().unwrap();
    assert!(done > 0 && 2 * done == all);
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_numbers() {
    let (model, lq) = (model(&Device::cpu()), leaves(8, 8));
    for (settings, says) in [
        (Settings { scale: 0.5, ..SETTINGS }, "a scale of 0.5"),
        (Settings { scale: f64::NAN, ..SETTINGS }, "a scale of NaN"),
        (Settings { steps: 0, ..SETTINGS }, "0 Euler steps"),
        (Settings { tile: 36, ..SETTINGS }, "take 32 or 40"),
        (Settings { tile: 8, overlap: 0, ..SETTINGS }, "two tokens of 8 pixels"),
        (Settings { overlap: 24, ..SETTINGS }, "at most half a tile, 16"),
    ] {
        let e = quietly(&model, &lq, &settings, &Device::cpu()).err().expect("refused");
        assert!(e.exit_code() == 2 && e.to_string().contains(says), "{e}");
    }
    let wide = Settings { scale: 8.0, ..SETTINGS }.size(3000, 4000).unwrap_err().to_string();
    assert!(wide.contains("32000×24000") && wide.contains("--scale"), "{wide}");
}

/// A job from `inputs` below `dir` to `dir/out`.
fn job(dir: &Path, inputs: &[&str], output: &str) -> Job {
    Job {
        inputs: inputs.iter().map(|name| dir.join(name)).collect(),
        output: dir.join(output),
        recursive: false,
        format: None,
        quality: 90,
        overwrite: false,
        color_fix: ColorFix::Adain,
        settings: Settings { steps: 1, scale: 1.5, ..SETTINGS },
        model: "nano".to_owned(),
        adapters: vec!["base_sft:0.1".to_owned()],
    }
}

/// Runs it; whether the model was opened.
fn run(job: &Job) -> asasr_engine::Result<(Outcome, bool)> {
    let opened = AtomicBool::new(false);
    let open = || {
        opened.store(true, Ordering::Relaxed);
        Ok(model(&Device::cpu()))
    };
    let watch = Watch { progress: &|_, _| (), say: &|_| (), stop: &AtomicBool::new(false) };
    let outcome = job.run(&job.tasks()?, open, &Device::cpu(), &watch, &|_, _| ())?;
    Ok((outcome, opened.into_inner()))
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.append(&mut files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

/// Writes a picture of this kind with levels as a scanner has them.
fn save(path: &Path, (h, w): (usize, usize), kind: image::ColorType) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let channels = usize::from(kind.channel_count());
    let deep = kind.bytes_per_pixel() > kind.channel_count();
    let bytes: Vec<u8> =
        (0..h * w * channels * if deep { 2 } else { 1 }).map(|i| (i * 37 % 251) as u8).collect();
    image::save_buffer(path, &bytes, w as u32, h as u32, kind).unwrap();
}

#[test]
fn a_batch_goes_on_after_a_broken_file_and_skips_what_is_done() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    for (name, kind) in [
        ("a.png", image::ColorType::Rgb8),
        ("b/c.png", image::ColorType::La8),
        ("d.jpg", image::ColorType::L8),
    ] {
        save(&dir.join("in").join(name), (7, 10), kind);
    }
    fs::write(dir.join("in/broken.png"), b"no picture").unwrap();
    let before = files(&dir.join("in"));
    let job = Job { recursive: true, ..job(dir, &["in"], "out") };
    let (first, _) = run(&job).unwrap();
    assert_eq!((first.made, first.kept, first.failed.len()), (3, 0, 1));
    assert!(first.failed[0].to_string().contains("in/broken.png: cannot decode"), "{}", first.failed[0]);
    assert_eq!(files(&dir.join("in")), before, "inputs are not touched");
    let made = files(&dir.join("out"));
    let names: Vec<&PathBuf> = made.keys().collect();
    assert_eq!(
        names,
        ["a.png", "b/c.png", "d.jpg"].map(|name| dir.join("out").join(name)).iter().collect::<Vec<_>>()
    );

    fs::remove_file(dir.join("in/broken.png")).unwrap();
    let (again, opened) = run(&job).unwrap();
    assert_eq!((again.made, again.kept, again.failed.len(), opened), (0, 3, 0, false));
    fs::remove_file(dir.join("out/a.png")).unwrap();
    let (third, _) = run(&job).unwrap();
    assert_eq!((third.made, third.kept), (1, 2));
    assert_eq!(files(&dir.join("out")), made, "the same bytes again");

    // Other settings, another input, a file of someone else's: refused one by one, until they may be overwritten.
    let other = Job { settings: Settings { seed: 1, ..job.settings }, ..job.clone() };
    let (refused, opened) = run(&other).unwrap();
    assert_eq!((refused.kept, refused.failed.len(), opened), (0, 3, false));
    save(&dir.join("in/a.png"), (5, 5), image::ColorType::Rgb8);
    fs::copy(dir.join("in/d.jpg"), dir.join("out/d.jpg")).unwrap();
    let (refused, _) = run(&job).unwrap();
    let said: Vec<String> = refused.failed.iter().map(ToString::to_string).collect();
    assert!(
        refused.kept == 1
            && said[0].contains("another picture")
            && said[1].contains("not of this command's making"),
        "{said:?}"
    );
    let (anew, _) = run(&Job { overwrite: true, ..other }).unwrap();
    assert_eq!((anew.made, anew.failed.len()), (3, 0));
}

#[test]
fn files_stay_what_they_are() {
    use image::ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    for kind in [L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16] {
        let name = format!("{kind:?}.png");
        save(&dir.join(&name), (9, 6), kind);
        let (outcome, _) = run(&job(dir, &[&name], &format!("up-{name}"))).unwrap();
        assert_eq!((outcome.made, outcome.failed.len()), (1, 0));
        let made = image::open(dir.join(format!("up-{name}"))).unwrap();
        assert_eq!((made.color(), made.height(), made.width()), (kind, 14, 9));
    }
    // Every format from every other that can hold it, by --format and by the output's name.
    for format in Format::NAMES.map(|(_, format)| format) {
        let to = Job { format: Some(format), ..job(dir, &["Rgb8.png", "L8.png"], "as") };
        let (outcome, _) = run(&to).unwrap();
        assert_eq!((outcome.made, outcome.failed.len()), (2, 0));
        let bytes = fs::read(dir.join("as").join(format!("Rgb8.{}", format.ending()))).unwrap();
        assert_eq!(Picture::decode(&bytes).unwrap().color.height, 14);
    }
    let (refused, _) = run(&job(dir, &["Rgba8.png"], "up.jpg")).unwrap();
    assert!(refused.failed[0].to_string().contains("Rgba8.png: has transparency"), "{}", refused.failed[0]);
    assert!(!dir.join("up.jpg").exists());
}

/// At scale 1 transparency is what it was, and what is hidden under it shows nowhere.
#[test]
fn hidden_colours_do_not_leak() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let make = |name: &str, hidden: [u8; 3]| {
        let seen = |y: u32, x: u32| (y as i32 - 16).pow(2) + (x as i32 - 16).pow(2) < 120;
        let pixel = |x, y| {
            let [r, g, b] = if seen(y, x) { [200, (4 * x) as u8, 90] } else { hidden };
            image::Rgba([r, g, b, if seen(y, x) { 255 } else { 0 }])
        };
        image::RgbaImage::from_fn(32, 32, pixel).save(dir.join(name)).unwrap();
        let one =
            Job { settings: Settings { scale: 1.0, ..SETTINGS }, ..job(dir, &[name], &format!("up-{name}")) };
        assert_eq!(run(&one).unwrap().0.made, 1);
        let read = |name: String| Picture::decode(&fs::read(dir.join(name)).unwrap()).unwrap();
        let (before, after) = (read(name.to_owned()), read(format!("up-{name}")));
        assert_eq!(before.alpha, after.alpha);
        after.color
    };
    assert_eq!(make("a.png", [0, 255, 0]), make("b.png", [255, 0, 255]));
}

#[test]
fn places_that_must_not_be_written_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    for name in ["in/a.png", "in/a.jpg", "in/deep/b.png", "other/a.png"] {
        save(&dir.join(name), (4, 4), image::ColorType::L8);
    }
    let refused = |job: Job, says: &str| {
        let e = job.tasks().unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(says), "{e}");
    };
    refused(job(dir, &["in"], "in"), "is not written to");
    refused(job(dir, &["in"], "in/new/folder"), "is not written to");
    refused(job(dir, &["in/none.png"], "x.png"), "does not exist");
    refused(job(dir, &["in/a.png"], "in/deep/../a.png"), "its own upscale");
    refused(job(dir, &["in/a.png", "other/a.png"], "other"), "would both become");
    refused(job(dir, &["in/a.png", "other"], "out"), "would both become");
    refused(Job { format: Some(Format::Png), ..job(dir, &["in"], "out") }, "would both become");
}

/// Set5's small pictures become as large as its large ones. They are not kept in the repository but looked for in
/// `../shared/data`; where they are absent the test is skipped, and says so.
#[test]
fn set5_comes_out_at_its_true_sizes() {
    let set5 = Path::new("../shared/data/photos/set5");
    if !set5.exists() {
        return println!("skipped: {} is not here", set5.display());
    }
    let home = tempfile::tempdir().unwrap();
    let settings = Settings { scale: 4.0, steps: 1, tile: 128, overlap: 16, ..SETTINGS };
    let job = Job { inputs: vec![set5.join("LR_bicubic_x4")], settings, ..job(home.path(), &[], "out") };
    let (outcome, _) = run(&job).unwrap();
    assert_eq!((outcome.made, outcome.failed.len()), (5, 0));
    let size = |path: &Path| image::image_dimensions(path).unwrap();
    let name = |path: &Path| {
        path.file_stem().unwrap().to_string_lossy().split(['x', '_', '.']).next().unwrap().to_owned()
    };
    let large: BTreeMap<String, (u32, u32)> =
        files(&set5.join("HR")).keys().map(|path| (name(path), size(path))).collect();
    for path in files(&home.path().join("out")).keys() {
        assert_eq!(Some(&size(path)), large.get(&name(path)), "{}", path.display());
    }
}
