//! The paper's stages, each a run that stands on the one before, on a base model and an autoencoder from elsewhere: those of
//! the golden vectors, on drawn pictures; and a picture upscaled with what came of it.

use asasr_engine::autograd::Tape;
use asasr_engine::data::Image;
use asasr_engine::engine::{DType, Device};
use asasr_engine::infer::{Model, Parts, Settings, Watch, upscale};
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, Start, run};
use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const FLUX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_flux");

/// The overrides that make the presets small.
const SMALL: &str = "run.precision=f32 run.eval_crops=1 run.eval_steps=1 run.validation_crops=1 data.source=dead-leaves \
    data.images=4 data.held_out=1 data.image_size=64 data.crop=64 data.degradation=light";

#[derive(Default)]
struct Said(RefCell<Vec<String>>);

impl Progress for Said {
    fn stage(&self, _: &str, _: usize, _: usize) {}
    fn step(&self, _: f64, _: f64) {}
    fn done(&self, _: &StageSummary) {}
    fn say(&self, line: &str) {
        self.0.borrow_mut().push(line.to_owned());
    }
    fn loading(&self, done: u64, all: u64) {
        assert!(done <= all);
        if done == all {
            self.say(&format!("{all} bytes of weights"));
        }
    }
}

fn config(stage: &str, more: &[String]) -> Config {
    let steps =
        ["steps=3", "batch=1", "accumulation=2", "warmup=1", "rank=4", "alpha=4.0", "validate_every=0"];
    let small = SMALL.split_whitespace().map(str::to_owned);
    let sets: Vec<String> =
        small.chain(steps.iter().map(|s| format!("{stage}.{s}"))).chain(more.to_vec()).collect();
    Config::load(Some(&format!("paper-{stage}")), None, &sets).unwrap()
}

fn train(stage: &str, more: &[String], out: &Path) -> asasr_engine::Result<Vec<String>> {
    let said = Said::default();
    run(&config(stage, more), out, &Start::New, &Device::cpu(), &said, &AtomicBool::new(false))?;
    Ok(said.0.take())
}

#[test]
fn each_run_stands_on_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let from = |name: &str| vec![format!("run.from={}", at(name).display())];
    let named = [format!("model.base={FLUX}"), format!("data.codec={FLUX}/vae")];
    let said = train("sft", &named, &at("sft")).unwrap();
    assert!(said.iter().any(|s| s.contains("paper-sft: ") && s.contains("sft.steps: 1000 → 3")), "{said:?}");
    assert!(said.iter().any(|s| s.starts_with("sft: ") && s.contains("weights 0.9 MiB")), "{said:?}");
    assert_eq!(said.iter().filter(|s| s.ends_with("bytes of weights")).count(), 1, "{said:?}");
    train("adversary", &from("sft"), &at("adversary")).unwrap();
    train("asdpo", &from("adversary"), &at("asdpo")).unwrap();
    // Base and codec were named once.
    let written = std::fs::read_to_string(at("asdpo").join("config.toml")).unwrap();
    assert!(written.contains(&format!("base = {FLUX:?}")) && written.contains("tiny_flux/vae"), "{written}");
    assert!(written.contains("dim = 48"));

    let parts = Parts::find(&at("asdpo"), None, None).unwrap();
    assert_eq!(parts.names(), ["base_sft:1", "train_dpo:1"]);
    let settings = Settings { scale: 2.0, steps: 1, guidance: 3.5, seed: 1, tile: 64, overlap: 16 };
    let watch = Watch { progress: &|_, _| {}, say: &|_| {}, stop: &AtomicBool::new(false) };
    let lq = Image::from_fn(40, 50, |c, y, x| (c * 20 + y + x) as f32 / 150.0);
    // Loaded for this or for anything, it gives the same.
    let [big, same] = [Some(&settings), None].map(|asked| {
        let model = Model::load(&parts, &Device::cpu(), DType::F32, asked, &mut |_, _| ()).unwrap();
        assert_eq!(model.weights.var(&Tape::no_grad(), "norm_out.linear.weight").is_ok(), asked.is_none());
        upscale(&model, &lq, &settings, &Device::cpu(), &watch).unwrap().image
    });
    assert!(big == same);
    assert!((big.height, big.width) == (80, 100) && big.data.iter().all(|v| v.is_finite()));
}

#[test]
fn what_does_not_go_together_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |more: &[&str]| {
        let more: Vec<String> = more.iter().map(|&s| s.to_owned()).collect();
        let e = train("sft", &more, &dir.path().join("run")).unwrap_err();
        assert_eq!(e.exit_code(), 2, "{e}");
        e.to_string()
    };
    let base = format!("model.base={FLUX}");
    let haar = refusal(&[&base, "data.codec=haar"]);
    assert!(
        haar.contains("have 64 channels; the codec haar has 24") && haar.contains("data.codec"),
        "{haar}"
    );
    let none = refusal(&["model.base=nowhere", "data.codec=haar"]);
    assert!(none.contains("nowhere: no such file or folder") && none.contains("random:flux-dev"), "{none}");
    let mut config = config("sft", &[base]);
    config.run.stages.insert(0, asasr_engine::train::options::StageName::Base);
    assert!(config.validate().unwrap_err().to_string().contains("run.stages trains a base"));
}
