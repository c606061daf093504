//! A disk that fills up, and one that cannot be written: the run says so and stops, what was saved stays whole, and with
//! room again it goes on to the same end.
//!
//! Everywhere through writes that are made to fail (feature `faults`); through real small and read-only file systems
//! where mounting is allowed.
#![cfg(feature = "faults")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SMALL: &str = "model.dim=16 model.heads=2 model.axes=[2,2,4] model.double=1 model.single=1 data.images=5 \
    data.held_out=2 data.image_size=32 data.crop=32 run.eval_crops=2 run.eval_steps=1 run.validation_crops=1 \
    sft.rank=2 adversary.rank=2 asdpo.rank=2 base.steps=4 sft.steps=3 adversary.steps=3 asdpo.steps=3 \
    base.batch=2 sft.batch=2 adversary.batch=2 asdpo.batch=2 base.warmup=1 sft.warmup=1 adversary.warmup=1 \
    asdpo.warmup=1 base.checkpoint_every=2 sft.checkpoint_every=2";

/// The paper's stages on a model and an autoencoder that diffusers wrote.
const PAPER: &str = "run.stages=[\"sft\",\"adversary\",\"asdpo\"] model.base=tests/golden/tiny_flux \
    data.codec=tests/golden/tiny_flux/vae data.images=4 data.held_out=1 data.image_size=64 data.crop=64 run.eval_crops=1 \
    run.eval_steps=1 run.validation_crops=1 sft.rank=2 adversary.rank=2 asdpo.rank=2 sft.steps=3 adversary.steps=2 \
    asdpo.steps=3 sft.batch=1 adversary.batch=1 asdpo.batch=1 sft.warmup=1 adversary.warmup=1 asdpo.warmup=1 \
    sft.checkpoint_every=2 asdpo.checkpoint_every=2";

fn train(options: &str, out: &Path, resume: bool, disk: Option<u64>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
    command.arg("train").arg("--out").arg(out);
    if resume {
        command.arg("--resume");
    } else {
        command.args(options.split_whitespace().flat_map(|o| ["--set", o]));
    }
    command.envs(disk.map(|bytes| ("ASASR_DISK", bytes.to_string())));
    command.output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The run's results and checkpoints.
fn results(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders: Vec<PathBuf> =
        ["base", "base_sft", "adv", "train_dpo", "checkpoints", "samples"].map(|f| run.join(f)).to_vec();
    while let Some(folder) = folders.pop() {
        // A base from elsewhere is not the run's.
        for path in fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(run).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_breaks_nothing() {
    fills_up(SMALL);
}

#[test]
fn a_disk_that_fills_up_stops_a_run_on_a_model_from_elsewhere() {
    fills_up(PAPER);
}

fn fills_up(options: &str) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let out = train(options, &whole, false, None);
    assert!(out.status.success(), "{}", said(&out));
    let wanted = results(&whole);
    let (mut stopped, mut bytes) = (0, 200);
    // Room for ever more, from nothing at all to everything.
    loop {
        let run = dir.path().join(format!("room-for-{bytes}"));
        let out = train(options, &run, false, Some(bytes));
        if out.status.success() {
            break;
        }
        stopped += 1;
        let text = said(&out);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains("No space left on device") && text.contains(run.to_str().unwrap()), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        let out = train(options, &run, run.join("config.toml").exists(), None);
        assert!(out.status.success(), "{}", said(&out));
        assert!(results(&run) == wanted, "room for {bytes} bytes: resumed, the results differ");
        bytes *= 3;
    }
    println!("{stopped} runs stopped for want of room, and resumed");
    assert!(stopped >= 5);
}

/// A file system mounted for a test, unmounted at its end.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let mounted = done.is_ok_and(|o| o.status.success());
        if !mounted {
            println!("skipped: mounting is not allowed here");
        }
        mounted.then(|| Self(at.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_small_file_system_is_refused_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(&dir.path().join("small"), "size=4m") else { return };
    let out = train(SMALL, &mount.0.join("run"), false, None);
    let text = said(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("this run needs") && text.contains("MiB are free"), "{text}");
    assert_eq!(fs::read_dir(&mount.0).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_read_only_file_system_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(&dir.path().join("locked"), "size=64m,ro") else { return };
    let out = train(SMALL, &mount.0.join("run"), false, None);
    let text = said(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("Read-only file system") && text.contains("locked/run"), "{text}");
}

/// Pairs of a folder: those that are there are whole, and the same command makes the rest.
#[test]
fn a_disk_that_fills_up_leaves_whole_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let hq = dir.path().join("hq");
    fs::create_dir(&hq).unwrap();
    for i in 0..3 {
        let img =
            asasr_engine::data::Image::from_fn(48, 48, |c, y, x| ((c * 9 + y * i + x) % 16) as f32 / 15.0);
        img.save_png(hq.join(format!("{i}.png"))).unwrap();
    }
    let degrade = |out: &Path, disk: Option<u64>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
        command.arg("degrade").arg("--hq").arg(&hq).arg("--out").arg(out).args(["--crop", "48"]);
        command.envs(disk.map(|bytes| ("ASASR_DISK", bytes.to_string())));
        command.output().unwrap()
    };
    let pairs = |out: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let folders = ["gt", "lr"].map(|f| fs::read_dir(out.join(f)));
        let paths = folders.into_iter().flatten().flatten().map(|e| e.unwrap().path());
        paths.map(|p| (p.strip_prefix(out).unwrap().to_path_buf(), fs::read(&p).unwrap())).collect()
    };
    let whole = dir.path().join("whole");
    assert!(degrade(&whole, None).status.success());
    let wanted = pairs(&whole);
    let (mut stopped, mut bytes) = (0, 100);
    loop {
        let out = dir.path().join(format!("room-for-{bytes}"));
        let outcome = degrade(&out, Some(bytes));
        if outcome.status.success() {
            break;
        }
        stopped += 1;
        let text = said(&outcome);
        assert_eq!(outcome.status.code(), Some(1), "{text}");
        assert!(text.contains("No space left on device") && text.contains(out.to_str().unwrap()), "{text}");
        assert!(pairs(&out).iter().all(|(path, bytes)| wanted[path] == *bytes), "room for {bytes} bytes");
        let outcome = degrade(&out, None);
        assert!(outcome.status.success(), "{}", said(&outcome));
        assert!(pairs(&out) == wanted, "room for {bytes} bytes: completed, the pairs differ");
        bytes *= 2;
    }
    assert!(stopped >= 5, "{stopped}");
}
