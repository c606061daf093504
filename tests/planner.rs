//! What is planned is what the arena then allocates, to the byte; what does not fit is refused with a remedy that does.

use asasr_engine::engine::Device;
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, Start, plan, run};
use std::cell::RefCell;
use std::sync::atomic::AtomicBool;

#[allow(dead_code, reason = "shared with tests of the emulator alone")]
#[path = "common/cuda.rs"]
mod cuda;

/// All stages of a very small model, whose crops are looked at only where a test says so.
fn config(more: &str) -> Config {
    let sets = "model.dim=16 model.heads=2 model.axes=[2,2,4] model.double=1 model.single=1 data.images=5 \
        data.held_out=2 data.image_size=32 data.crop=32 run.eval_crops=2 run.eval_steps=1 run.validation_crops=1 \
        sft.rank=2 adversary.rank=3 asdpo.rank=2 base.steps=4 sft.steps=4 adversary.steps=4 asdpo.steps=4 \
        base.batch=2 sft.batch=3 adversary.batch=2 asdpo.batch=2 base.warmup=1 sft.warmup=1 adversary.warmup=1 \
        asdpo.warmup=1 base.validate_every=0 sft.validate_every=0 adversary.validate_every=0 asdpo.validate_every=0";
    let sets: Vec<String> = sets.split_whitespace().chain(more.split_whitespace()).map(Into::into).collect();
    Config::load(None, None, &sets).unwrap()
}

/// Keeps what the arena has seen when a stage's last step was read: the peak since its beginning.
struct Watch {
    device: Device,
    peaks: RefCell<Vec<usize>>,
}

impl Progress for Watch {
    fn stage(&self, _: &str, _: usize, _: usize) {
        self.peaks.borrow_mut().push(0);
    }
    fn step(&self, _: f64, _: f64) {
        *self.peaks.borrow_mut().last_mut().unwrap() = self.device.stats().peak;
    }
    fn done(&self, _: &StageSummary) {}
    fn say(&self, _: &str) {}
}

/// The peaks of all stages: planned, and had.
fn peaks(config: &Config, device: Device) -> (Vec<usize>, Vec<usize>) {
    let watch = Watch { device, peaks: RefCell::default() };
    let planned = plan(config, &watch.device, None, &watch).unwrap();
    let out = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    run(config, &out.path().join("run"), &Start::New, &watch.device, &watch, &never).unwrap();
    for m in &planned {
        assert_eq!(
            m.weights + m.codec + m.adapters + m.optimizer + m.activations + m.workspace,
            m.peak,
            "{m:?}"
        );
        assert!(m.optimizer > 0 && m.activations > 0, "{m:?}");
    }
    (planned.into_iter().map(|m| m.peak).collect(), watch.peaks.take())
}

/// A look during training whose crops take more than a micro-batch does.
const LOOK: &str = "run.stages=[\"base\"] base.batch=1 base.validate_every=2 run.validation_crops=48";

/// The ways through a step that need different memory.
const WAYS: [&str; 5] = [
    "run.seed=0",
    "base.recompute=true sft.recompute=true asdpo.recompute=true sft.ema=0.9",
    "asdpo.accumulation=2 asdpo.steps=11 asdpo.anchor=0.5 asdpo.sft_mix=0.5 asdpo.s=0",
    "asdpo.adversary=riesz asdpo.auto_beta=0.2 data.crop=24",
    "data.codec=tests/golden/tiny_flux/vae base.batch=1 base.validate_every=2",
];

#[test]
fn the_cpus_arena_takes_what_was_planned() {
    for way in WAYS.into_iter().chain([LOOK]) {
        let (planned, had) = peaks(&config(way), Device::cpu());
        assert_eq!(planned, had, "{way}");
    }
}

#[test]
fn a_cuda_devices_arena_takes_what_was_planned() {
    for (way, precision) in WAYS.into_iter().zip(["f32", "bf16"].into_iter().cycle()) {
        let Some(device) = cuda::device() else { return };
        let (planned, had) = peaks(&config(&format!("{way} run.precision={precision}")), device);
        assert_eq!(planned, had, "{way}, {precision}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let config = config("run.stages=base,sft asdpo.batch=4");
    let watch = Watch { device: Device::cpu(), peaks: RefCell::default() };
    let planned = plan(&config, &watch.device, None, &watch).unwrap();
    let refusal = |memory| plan(&config, &watch.device, Some(memory), &watch).unwrap_err();
    let e = refusal(planned[0].peak - 1);
    assert_eq!(e.exit_code(), 2);
    assert!(
        e.to_string()
            .contains("--set base.recompute=true --set base.batch=1 --set base.accumulation=2 needs"),
        "{e}"
    );
    let e = refusal(1 << 16).to_string();
    assert!(e.contains("no setting of batch and recompute fits"), "{e}");
    assert!(
        plan(&config, &watch.device, Some(planned.iter().map(|m| m.peak).max().unwrap()), &watch).is_ok()
    );
}
