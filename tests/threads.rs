//! What users hold may be sent to and shared between threads: stated here, checked by the compiler. The tape is neither,
//! and says so in its documentation.

use asasr_engine::autograd::{LeafId, Leaves, ParamSet, Var};
use asasr_engine::data::{Batch, Codec, DeadLeavesSource, HaarCodec, Image, Photo, Sampler};
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::eval::{Dists, Lpips};
use asasr_engine::flux::{
    Adapter, AdapterFile, Flux, FluxConfig, Folder, LoraModule, SafeFile, Taef1, Vae, Weights,
};
use asasr_engine::infer::Model;
use asasr_engine::ops::attention::Attention;
use asasr_engine::ops::conv2d::Conv2d;
use asasr_engine::ops::linear::Linear;
use asasr_engine::ops::sobolev::{Sobolev, SobolevGap};
use asasr_engine::ops::{AdapterSet, Op};
use asasr_engine::train::{Config, StageSummary, Summary};
use asasr_engine::{Error, Result};

macro_rules! send_and_sync {
    ($($t:ty)+) => {
        const fn holds<T: Send + Sync + 'static>() {}
        $(const _: () = holds::<$t>();)+
    };
}

send_and_sync! {
    Error Result<()>
    Device Tensor DType Philox
    Var LeafId Leaves ParamSet
    Box<dyn Op> Linear Attention Conv2d Sobolev SobolevGap AdapterSet
    FluxConfig Weights Adapter AdapterFile LoraModule SafeFile Folder Flux<'static> Taef1 Vae
    Image Photo Batch Sampler Codec HaarCodec DeadLeavesSource
    Lpips Dists
    Config Summary StageSummary Model
}

/// One set of weights and one input, used from two threads at once, each with its own tape.
#[test]
fn two_threads_share_values() {
    use asasr_engine::autograd::Tape;
    let device = Device::cpu();
    let x = Var::constant(Tensor::from_slice(&device, &[1, 2], &[1.0, 2.0]).unwrap());
    let w = Var::constant(Tensor::from_slice(&device, &[1, 2], &[3.0, 4.0]).unwrap());
    let run = || {
        let tape = Tape::new(Leaves::default());
        let x = tape.input(x.value().clone());
        let y = tape.one(Linear { bias: false, ..Linear::plain() }, &[&x, &w]).unwrap();
        tape.backward(&y, None).unwrap();
        (y.value().item(), tape.grad(&x).unwrap().f32().to_vec())
    };
    let other = std::thread::scope(|s| [s.spawn(run), s.spawn(run)].map(|t| t.join().unwrap()));
    assert_eq!(other, [(11.0, vec![3.0, 4.0]), (11.0, vec![3.0, 4.0])]);
}
