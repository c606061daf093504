//! Graphs, feeds and read-backs: what a replay computes has the eager bits, its memory is nobody else's, what cannot be
//! captured is refused by name, parcels and numbers come in order.

mod common;

use asasr_engine::autograd::{LeafId, Leaves, Tape, Var};
use asasr_engine::engine::cuda::{Feed, Graph, Readback, library};
use asasr_engine::engine::nvrtc::Source;
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::ops::adamw::launch::{Arenas, step_block, update_from};
use asasr_engine::ops::adamw::{AdamW, Gradients};
use asasr_engine::ops::sobolev::{Metric, Route, SobolevGap};
use asasr_engine::ops::{
    ModSource, Op, Save, gelu::Gelu, modulate::LnModulate, negative::NegativeFromNoise, reduce::Mean,
    reduce::MeanSquare,
};
use asasr_engine::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The emulator has one context for the process: one test at a time.
fn device() -> Option<(MutexGuard<'static, ()>, Device)> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    library::reset_counters();
    Some((one, common::cuda::device()?))
}

fn good<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

fn bits(t: &Tensor) -> Vec<u32> {
    good(t.values()).into_iter().map(f32::to_bits).collect()
}

fn normals(device: &Device, shape: &[usize], stream: u64) -> Tensor {
    good(Philox::new(3, stream).tensor(device, shape, 0))
}

const SHAPE: [usize; 4] = [2, 1, 3, 8];
const PARAMETERS: usize = 2 * 16;
const OPT: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// What a step reads that changes, and what it leaves behind.
struct State {
    x: Tensor,
    counter: Tensor,
    block: Tensor,
    sigma: Tensor,
    w: Tensor,
    m: Tensor,
    v: Tensor,
}

/// What a step makes.
struct Made {
    loss: Tensor,
    gap: Tensor,
    noise: Tensor,
}

impl State {
    fn new(device: &Device) -> Self {
        let zeros = |shape: &[usize]| good(Tensor::zeros(device, shape));
        Self {
            x: zeros(&SHAPE),
            counter: zeros(&[3, 2]),
            block: zeros(&[12]),
            sigma: good(Tensor::from_slice(device, &[2], &[0.3, 0.8])),
            w: normals(device, &[PARAMETERS], 1),
            m: zeros(&[PARAMETERS]),
            v: zeros(&[PARAMETERS]),
        }
    }

    /// What step `n` is given.
    fn feed(&mut self, feed: &mut Feed, n: u64) {
        let x = good(normals(&Device::cpu(), &SHAPE, 10 + n).values());
        let counter = Philox::new(7, n).counter(4 * n + 1);
        let block = step_block(&OPT, (n + 1, 1e-2), Gradients::of_one(0.01));
        let parts = [bytemuck::cast_slice(&x), bytemuck::cast_slice(&counter), bytemuck::cast_slice(&block)];
        good(feed.send(&parts));
        good(feed.deliver(&mut [&mut self.x, &mut self.counter, &mut self.block]));
    }

    /// Losers from fresh noise, a layer, its loss and gradient, a gap by cuFFT, an update.
    fn step(&mut self) -> Result<Made> {
        let device = self.x.device().clone();
        let gpu = device.gpu().expect("a CUDA device");
        let mut noise = Tensor::empty(&device, &SHAPE)?;
        Philox::fill_from(&self.counter, &mut noise)?;
        let losers = NegativeFromNoise { lambda: 0.7 }
            .forward(&[&self.x, &noise, &self.sigma, &self.counter], &mut Save::nothing())?;
        let flat = losers[0].clone().reshape(&[2, 3, 8])?;
        let tape = Tape::new(Leaves::into_buffers(vec![Tensor::empty(&device, &[2, 16])?], false));
        let table = tape.param(self.w.clone().reshape(&[2, 16])?, LeafId(0));
        let layer = LnModulate { source: ModSource::per_sample(2), shift: 0, scale: 1, narrow: false };
        let h = tape.one(layer, &[&Var::constant(flat), &table])?;
        let y = tape.one(Gelu, &[&h])?;
        let target = Var::constant(losers[1].clone().reshape(&[2, 3, 8])?);
        let each = tape.one(MeanSquare, &[&y, &target])?;
        let loss = tape.one(Mean, &[&each])?;
        tape.backward(&loss, None)?;
        let out = y.value().clone().reshape(&SHAPE)?;
        let gap = SobolevGap::new(Metric::full(-1.0)).by(Route::CuFft);
        let gap = gap.forward(&[&out, &losers[1], &losers[2]], &mut Save::nothing())?.remove(0);
        let loss = loss.value().clone();
        drop((table, h, y, each));
        let g = tape.into_leaves().buffers(1)?.remove(0).reshape(&[PARAMETERS])?;
        let arenas = Arenas { w: &mut self.w, g: &g, m: &mut self.m, v: &mut self.v, half: None };
        update_from(gpu, &mut self.block, &[(20, true), (12, false)], arenas)?;
        Ok(Made { loss, gap, noise })
    }

    fn bits(&self, made: &Made) -> Vec<Vec<u32>> {
        [&self.w, &self.m, &self.v, &self.block, &made.loss, &made.gap, &made.noise].map(bits).into()
    }
}

/// Tensors of many sizes full of NaN: what lies idle is overwritten.
fn scribble(device: &Device) -> Vec<Tensor> {
    (1..80).map(|n| good(Tensor::full(device, &[n], f32::NAN))).collect()
}

#[test]
fn a_replay_has_the_eager_bits_whatever_happens_in_between() {
    let Some((_one, device)) = device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    let (mut eager, mut recorded) = (State::new(&device), State::new(&device));
    let mut feed = good(Feed::new(&device, 1024));
    let first = good(recorded.step()).loss;
    drop(first);
    recorded = State::new(&device);
    let (graph, made) = good(device.capture(|| recorded.step()));
    assert!(graph.nodes() > 15, "{}", graph.nodes());
    gpu.take_needs();
    let mut seen = Vec::new();
    for n in 0..4 {
        let scribbled = scribble(&device);
        eager.feed(&mut feed, n);
        recorded.feed(&mut feed, n);
        let wanted = good(eager.step());
        gpu.take_needs();
        good(graph.replay());
        assert_eq!(gpu.take_needs()["gelu_fwd_f32"].launches, 1);
        let (got, wanted) = (recorded.bits(&made), eager.bits(&wanted));
        assert_eq!(got, wanted, "step {n}");
        assert!(!seen.contains(&got), "step {n} is that of other inputs");
        seen.push(got);
        drop(scribbled);
    }
    // The caller's tensors may go; the graph's memory stays its own.
    let State { w, .. } = recorded;
    let State { w: eager_w, .. } = eager;
    drop((w, eager_w, made));
    let _scribbled = scribble(&device);
    good(graph.replay());
    good(gpu.synchronize());
}

#[test]
fn the_memory_goes_back_with_the_graph() {
    let Some((_one, device)) = device() else { return };
    let x = normals(&device, &[100], 1);
    let work = |x: &Tensor| {
        let y = Gelu.forward(&[x], &mut Save::nothing())?.remove(0);
        Ok(Gelu.forward(&[&y], &mut Save::nothing())?.remove(0))
    };
    let wanted = bits(&good(work(&x)));
    let before = device.stats();
    let (graph, made) = good(device.capture(|| work(&x)));
    let (other, again) = good(device.capture(|| work(&x)));
    assert_eq!(graph.nodes(), 2);
    assert_eq!(device.stats().live, before.live + 4 * 448, "two blocks of 100 values each");
    // x is both graphs' as long as they live, though its handle is gone.
    drop(x);
    assert_eq!(device.stats().live, before.live + 4 * 448);
    good(graph.replay());
    assert_eq!(bits(&made), wanted);
    // An output outlives its graph.
    drop(graph);
    assert_eq!(bits(&made), wanted);
    assert_eq!(device.stats().live, before.live + 3 * 448);
    drop(made);
    assert_eq!(device.stats().live, before.live + 2 * 448);
    drop(again);
    good(other.replay());
    assert_eq!(device.stats().live, before.live + 2 * 448);
    drop(other);
    assert_eq!(device.stats().live, before.live - 448, "x, too, has gone");
}

/// What a capture refuses, by a sentence that says `says`; the device does its work afterwards.
fn refused<T>(device: &Device, says: &[&str], work: impl FnOnce(&Tensor) -> Result<T>) {
    let x = good(Tensor::full(device, &[8], 0.5));
    let before = device.stats().live;
    let result = device.capture(|| {
        let y = Gelu.forward(&[&x], &mut Save::nothing())?;
        work(&y[0])
    });
    let e = result.err().unwrap_or_else(|| panic!("{says:?} is not refused")).to_string();
    assert!(says.iter().all(|s| e.contains(s)), "{says:?}: {e}");
    assert_eq!(device.stats().live, before, "{says:?}");
    assert_eq!(good(x.values()), [0.5; 8], "{says:?}");
}

#[test]
fn what_cannot_be_captured_is_refused_by_name() {
    let Some((_one, device)) = device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    let d = &device;
    good(Gelu.forward(&[&good(Tensor::full(d, &[8], 0.5))], &mut Save::nothing()));
    let (other, _) = good(d.capture(|| Tensor::full(d, &[2], 1.0)));
    let (mut feed, mut back) = (good(Feed::new(d, 64)), Readback::new(d, 8));
    const CAPTURED: &str = "a graph is being captured, which cannot hold this: ";
    refused(d, &["copying 4 bytes to the device", CAPTURED, "`Feed`"], |_| {
        Tensor::from_slice(d, &[1], &[1.0])
    });
    refused(d, &["copying 32 bytes from the device", CAPTURED, "`Readback`"], |y| y.values());
    refused(d, &["waiting for the device", CAPTURED], |_| gpu.synchronize());
    refused(d, &["marking a time", CAPTURED], |_| gpu.mark().map(drop));
    refused(d, &["capturing a graph", "one graph is captured at a time"], |_| d.capture(|| Ok(())).map(drop));
    refused(d, &["replaying a graph", CAPTURED], |_| other.replay());
    refused(d, &["sending a parcel", CAPTURED], |_| feed.send(&[&[0; 4]]));
    refused(d, &["making a feed", CAPTURED], |_| Feed::new(d, 64));
    refused(d, &["reading back", CAPTURED], |y| back.push(y));
    let text = "extern \"C\" __global__ void __launch_bounds__(32) never_seen(float* x) { *x = 1.f; }";
    let source = Source { name: "never_seen.cu", text, headers: &[] };
    refused(d, &["loading never_seen.cu", "run the work once before"], |_| {
        gpu.compile(&source, "never_seen")
    });
    let field = normals(d, &[1, 1, 5, 66], 1);
    let gap = |s: f64| SobolevGap::new(Metric::full(s));
    let run = |s: f64| gap(s).forward(&[&field, &field, &field], &mut Save::nothing());
    refused(d, &["uploading the constant `sobolev_gap", "run the work once before"], |_| run(0.25));
    // The context that an error leaves behind is as good as new: what failed above now runs.
    good(gpu.compile(&source, "never_seen"));
    good(run(0.25));
    refused(d, &["uploading the constant"], |_| run(0.125));
    refused(d, &["of the closure's own"], |_| Err::<(), _>(Error::Usage("of the closure's own".into())));
    let panicked = catch_unwind(AssertUnwindSafe(|| d.capture(|| -> Result<()> { panic!("in a capture") })));
    assert!(panicked.is_err());
    let (graph, made) = good(d.capture(|| run(0.25)));
    good(graph.replay());
    assert_eq!(bits(&made[0]), bits(&good(run(0.25))[0]));
    good(feed.send(&[&[0; 4]]));
    let e = Device::cpu().capture(|| Ok(())).err().expect("the CPU has no graphs").to_string();
    assert!(e.contains("cpu has none; run the work itself"), "{e}");
}

#[test]
fn a_replayed_kernel_is_checked() {
    let Some((_one, device)) = device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    if gpu.driver() != library::Driver::Emulator {
        return;
    }
    let text =
        "extern \"C\" __global__ void __launch_bounds__(32) at(const int* i, float* x) { x[*i] = 1.f; }";
    let kernel = good(gpu.compile(&Source { name: "at.cu", text, headers: &[] }, "at"));
    let mut feed = good(Feed::new(&device, 4));
    let (mut i, mut x) = (good(Tensor::zeros(&device, &[1])), good(Tensor::zeros(&device, &[4])));
    let (graph, ()) = good(device.capture(|| gpu.launch(&kernel, [1, 1, 1], 1).read(&i).write(&mut x).run()));
    let mut replay = |at: i32| {
        good(feed.send(&[&at.to_ne_bytes()]));
        good(feed.deliver(&mut [&mut i]));
        graph.replay()
    };
    good(replay(3));
    assert_eq!(good(x.values()), [0.0, 0.0, 0.0, 1.0]);
    let e = replay(4).expect_err("one past the end").to_string();
    let says = ["replaying a graph of 1 nodes", "in kernel at: ", "OutOfBounds", "0 bytes past the end of"];
    assert!(says.iter().all(|s| e.contains(s)), "{e}");
    library::reset_counters();
}

/// Parcels with two on their way, on either kind of device.
fn parcels_come_in_order(device: &Device) {
    let mut feed = good(Feed::new(device, 64));
    let mut a = good(Tensor::zeros(device, &[3]));
    let mut b = good(Tensor::zeros_as(device, &[5], DType::Bf16));
    let values = |n: u16| ([f32::from(n), 0.5, -1.0], [0x3f80 + n; 5]);
    let send = |feed: &mut Feed, n: u16| {
        let (a, b) = values(n);
        feed.send(&[bytemuck::cast_slice(&a), bytemuck::cast_slice(&b)])
    };
    let e = feed.deliver(&mut [&mut a]).expect_err("nothing was sent").to_string();
    assert!(e.contains("no parcel was sent"), "{e}");
    good(send(&mut feed, 0));
    for n in 0..7 {
        good(send(&mut feed, n + 1));
        assert_eq!(feed.waiting(), 2);
        let e = send(&mut feed, 9).expect_err("two wait").to_string();
        assert!(e.contains("2 parcels wait already: deliver one before"), "{e}");
        let e = feed.deliver(&mut [&mut a]).expect_err("it has two parts").to_string();
        assert!(e.contains("parts of [12, 10] bytes") && e.contains("which take [12]"), "{e}");
        let held = a.clone();
        assert!(feed.deliver(&mut [&mut a, &mut b]).is_err(), "another handle exists");
        drop(held);
        good(feed.deliver(&mut [&mut a, &mut b]));
        assert_eq!(good(a.values()), values(n).0);
        assert_eq!(good(b.values()), [f32::from_bits(u32::from(0x3f80 + n) << 16); 5]);
    }
    let e = feed.send(&[&[0; 60], &[0; 5]]).expect_err("65 bytes").to_string();
    assert!(e.contains("a parcel of 65 bytes; the feed was made for 64"), "{e}");
}

/// Numbers that were pushed before what they were read from changed.
fn numbers_come_in_order(device: &Device) {
    let mut back = Readback::new(device, 4);
    for round in 0..3 {
        for n in 0..4 {
            let mut t = good(Tensor::full(device, &[n + 1], (10 * round + n) as f32));
            good(back.push(&t));
            let mut feed = good(Feed::new(device, 64));
            good(feed.send(&[bytemuck::cast_slice(&vec![f32::NAN; n + 1])]));
            good(feed.deliver(&mut [&mut t]));
        }
        assert_eq!(back.pending(), 4);
        for n in 0..4 {
            assert_eq!(good(back.take()), Some(vec![(10 * round + n) as f32; n + 1]));
        }
        assert_eq!(good(back.take()), None);
    }
    let e = back.push(&good(Tensor::zeros(device, &[5]))).expect_err("5 values").to_string();
    assert!(e.contains("up to 4 values of f32"), "{e}");
    assert!(back.push(&good(Tensor::zeros_as(device, &[2], DType::Bf16))).is_err());
    good(back.push(&good(Tensor::zeros(device, &[]))));
}

#[test]
fn feeds_and_readbacks_keep_their_order() {
    let cpu = Device::cpu();
    parcels_come_in_order(&cpu);
    numbers_come_in_order(&cpu);
    let Some((_one, device)) = device() else { return };
    let before = device.stats().live;
    parcels_come_in_order(&device);
    numbers_come_in_order(&device);
    assert_eq!(device.stats().live, before);
}

/// A graph may be handed to the thread that replays it.
#[test]
fn a_graph_moves_between_threads() {
    fn send<T: Send>() {}
    send::<Graph>();
    send::<Feed>();
    send::<Readback>();
    let Some((_one, device)) = device() else { return };
    let (graph, made) = good(device.capture(|| Tensor::full(&device, &[3], 2.0)));
    good(std::thread::scope(|s| s.spawn(move || graph.replay().map(|()| graph)).join()).expect("no panic"));
    assert_eq!(good(made.values()), [2.0; 3]);
}
