//! Shapes of FLUX.1-dev's blocks at 512 px, for a real GPU: 3 and 6 streams of 2048 tokens, width 3072.
//!
//! `benches/peers/torch_kernels.py` times the same under the same names.

use crate::work::normals;
use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::ops::attention::Attention;
use asasr_engine::ops::embed::RopeTable;
use asasr_engine::ops::feed_forward::FeedForward;
use asasr_engine::ops::gelu::Gelu;
use asasr_engine::ops::linear::{Epilogue, Linear, Lora};
use asasr_engine::ops::modulate::LnModulate;
use asasr_engine::ops::qk_norm_rope::QkNormRope;
use asasr_engine::ops::sobolev::{Metric, SobolevGap};
use asasr_engine::ops::{AdapterSet, Case, ModSource, TokenLayout, given};
use std::sync::Arc;

/// Parameters of FLUX.1-dev's adapter of rank 16, rounded.
pub const PARAMETERS: usize = 57_950_208;

const D: usize = 3072;
const TOKENS: usize = 2048;
/// Width of a head.
const HEAD: usize = 128;
/// Rank of an adapter.
const RANK: usize = 16;

fn random(device: &Device, shape: &[usize], at: usize, scale: f32) -> Tensor {
    given(device, shape, &normals(shape.iter().product(), at, scale))
}

/// One shape: made when its turn comes, because all at once would fill the host's memory.
pub struct Large {
    pub name: String,
    pub dtypes: &'static [DType],
    pub make: Box<dyn Fn() -> Case>,
}

const BF16: &[DType] = &[DType::Bf16];
const BOTH: &[DType] = &[DType::F32, DType::Bf16];
const F32: &[DType] = &[DType::F32];

fn linear(streams: usize, inp: usize, out: usize, gelu: bool) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/linear{}/{rows}x{inp}x{out}", if gelu { "_gelu" } else { "" });
    let title = name.clone();
    let make = move || {
        let (cpu, fan) = (Device::cpu(), 1.0 / (inp as f32).sqrt());
        let inputs = vec![
            random(&cpu, &[streams, TOKENS, inp], 20, 1.0),
            random(&cpu, &[out, inp], 21, fan),
            random(&cpu, &[out], 22, 0.3),
        ];
        let epilogue = if gelu { Epilogue::Gelu } else { Epilogue::None };
        Case::new(title.clone(), Linear { epilogue, ..Linear::plain() }, inputs)
            .half(&[0, 1, 2])
            .parameters(&[1, 2])
            .cost(2.0 * rows as f64 * (inp * out) as f64, rows * out)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

/// Angles of 32×32 image tokens and as many of the condition.
fn angles() -> Arc<RopeTable> {
    let ids: Vec<[f32; 3]> = (0..TOKENS).map(|t| [0.0, (t % 1024 / 32) as f32, (t % 32) as f32]).collect();
    Arc::new(RopeTable::new(&ids, &[16, 56, 56], 1e4).expect("FLUX's axes are even"))
}

/// Queries or keys, with their norm and rotation.
fn linear_rope(streams: usize) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/linear_rope/{rows}x{D}x{D}");
    let title = name.clone();
    let make = move || {
        let (cpu, fan) = (Device::cpu(), 1.0 / (D as f32).sqrt());
        let inputs = vec![
            random(&cpu, &[streams, TOKENS, D], 20, 1.0),
            random(&cpu, &[D, D], 21, fan),
            random(&cpu, &[D], 22, 0.3),
            random(&cpu, &[HEAD], 71, 1.0),
        ];
        let op = Linear { epilogue: Epilogue::NormRope { table: angles() }, ..Linear::plain() };
        Case::new(title.clone(), op, inputs)
            .half(&[0, 1, 2])
            .parameters(&[1, 2, 3])
            .cost(2.0 * (rows * D * D) as f64, rows * D)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

/// The tables of the image and of the condition that each of their tokens reads.
fn modulation(streams: usize) -> ModSource {
    ModSource { split: TOKENS / 2, image: (0..streams).collect(), cond: Some(vec![0; streams].into()) }
}

/// The MLP of a double block; or, beside attention's output, that of a single one.
fn feed_forward(streams: usize, beside: bool) -> Large {
    let (rows, wide) = (streams * TOKENS, if beside { 5 * D } else { 4 * D });
    let name = format!("large/feed_forward{}/{rows}x{D}x{}", if beside { "_beside" } else { "" }, 4 * D);
    let title = name.clone();
    let make = move || {
        let (cpu, fan) = (Device::cpu(), |width: usize| 1.0 / (width as f32).sqrt());
        let mut inputs = vec![
            random(&cpu, &[streams, TOKENS, D], 20, 1.0),
            random(&cpu, &[4 * D, D], 21, fan(D)),
            random(&cpu, &[4 * D], 22, 0.3),
        ];
        let (mut parameters, mut half) = (vec![1, 2], vec![0, 1, 2]);
        if beside {
            half.push(inputs.len());
            inputs.push(random(&cpu, &[streams, TOKENS, D], 23, 1.0));
        }
        let w = inputs.len();
        parameters.extend([w, w + 1]);
        half.extend([w, w + 1]);
        inputs.extend([
            random(&cpu, &[D, wide], 24, fan(wide)),
            random(&cpu, &[D], 25, 0.3),
            random(&cpu, &[streams, TOKENS, D], 26, 1.0),
            random(&cpu, &[streams, 3 * D], 41, 0.5),
            random(&cpu, &[1, 3 * D], 42, 0.5),
        ]);
        let epilogue = Epilogue::Gate { source: modulation(streams), chunk: 2 };
        let down = Linear { joined: beside, epilogue, ..Linear::plain() };
        Case::new(title.clone(), FeedForward::new(Linear::plain(), down), inputs)
            .half(&half)
            .parameters(&parameters)
            .cost(2.0 * (rows * D * (4 * D + wide)) as f64, rows * D)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

fn layer_norm(streams: usize) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/ln_modulate/{rows}x{D}");
    let title = name.clone();
    let make = move || {
        let cpu = Device::cpu();
        let source = modulation(streams);
        let inputs = vec![
            random(&cpu, &[streams, TOKENS, D], 40, 1.3),
            random(&cpu, &[streams, 3 * D], 41, 0.5),
            random(&cpu, &[1, 3 * D], 42, 0.5),
        ];
        let op = LnModulate { source, shift: 0, scale: 2, narrow: false };
        Case::new(title.clone(), op, inputs)
            .half(&[0])
            .parameters(&[1, 2])
            .cost(9.0 * (rows * D) as f64, rows * D)
    };
    Large { name, dtypes: BOTH, make: Box::new(make) }
}

fn gelu(streams: usize) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/gelu/{rows}x{}", 4 * D);
    let title = name.clone();
    let make = move || {
        let x = random(&Device::cpu(), &[streams, TOKENS, 4 * D], 1, 1.5);
        let n = x.len();
        Case::new(title.clone(), Gelu, vec![x]).half(&[0]).cost(14.0 * n as f64, n)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

fn sobolev(planes: usize) -> Large {
    let (name, side) = (format!("large/sobolev_gap/{planes}x64x64"), 64);
    let title = name.clone();
    let make = move || {
        let cpu = Device::cpu();
        let field = |stream: usize| random(&cpu, &[planes / 16, 16, side, side], stream, 0.5);
        let values = (planes * side * side) as f64;
        let op = SobolevGap::new(Metric::full(1.5));
        let case = Case::new(title.clone(), op, vec![field(1), field(2), field(3)]).constant(&[1, 2]);
        case.cost(10.0 * values * 12.0 + 10.0 * values, planes / 16)
    };
    Large { name, dtypes: F32, make: Box::new(make) }
}

/// A layer with adapters of ranks 16 and 16 on the condition half of the tokens.
fn adapted(streams: usize) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/linear_lora/{rows}x{D}x{D}");
    let title = name.clone();
    let make = move || {
        let (cpu, fan) = (Device::cpu(), 1.0 / (D as f32).sqrt());
        let mut inputs = vec![
            random(&cpu, &[streams, TOKENS, D], 20, 1.0),
            random(&cpu, &[D, D], 21, fan),
            random(&cpu, &[D], 22, 0.3),
        ];
        for at in [23, 25] {
            inputs.push(random(&cpu, &[RANK, D], at, fan));
            inputs.push(random(&cpu, &[D, RANK], at + 1, 0.25));
        }
        let set = Arc::new(AdapterSet::uniform(vec![0, 1], streams));
        let lora = Lora { tokens: TOKENS / 2..TOKENS, set, adapters: vec![(0, 1.0), (1, 1.0)] };
        let op = Linear { lora: Some(lora), ..Linear::plain() };
        // The base and the first adapter are frozen, as in the preference stage.
        Case::new(title.clone(), op, inputs)
            .constant(&[1, 2, 3, 4])
            .half(&[0, 1, 2])
            .parameters(&[5, 6])
            .cost(2.0 * rows as f64 * (D * D + 2 * RANK * D) as f64, rows * D)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

fn attention(streams: usize) -> Large {
    let (heads, layout) = (D / HEAD, TokenLayout { txt: 1, img: TOKENS / 2, cond: TOKENS / 2 });
    let name = format!("large/attention/{streams}x{}x{heads}x{HEAD}", layout.total());
    let title = name.clone();
    let make = move || {
        let cpu = Device::cpu();
        let side = |tokens: usize, at: usize| random(&cpu, &[streams, tokens, D], at, 1.0);
        let inputs =
            vec![side(TOKENS, 60), side(TOKENS, 61), side(TOKENS, 62), side(1, 63), side(1, 64), side(1, 65)];
        let multiplicity = (0..layout.total()).map(|key| if key == 0 { 512f32.ln() } else { 0.0 }).collect();
        let op = Attention { heads, layout, log_multiplicity: Some(multiplicity), groups: None };
        let n = layout.total();
        Case::new(title.clone(), op, inputs)
            .half(&[0, 1, 2, 3, 4, 5])
            .cost(4.0 * (streams * D) as f64 * (n * n) as f64, streams * n * D)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

fn qk_norm_rope(streams: usize) -> Large {
    let rows = streams * TOKENS;
    let name = format!("large/qk_norm_rope/{rows}x{D}");
    let title = name.clone();
    let make = move || {
        let cpu = Device::cpu();
        let inputs = vec![random(&cpu, &[streams, TOKENS, D], 70, 1.0), random(&cpu, &[HEAD], 71, 1.0)];
        Case::new(title.clone(), QkNormRope { table: angles() }, inputs)
            .constant(&[1])
            .half(&[0])
            .cost(8.0 * (rows * D) as f64, rows * D)
    };
    Large { name, dtypes: BF16, make: Box::new(make) }
}

/// All of them.
pub fn large() -> Vec<Large> {
    let mut all = Vec::new();
    for streams in [3, 6] {
        all.push(linear(streams, D, 3 * D, false));
        all.push(linear(streams, D, D, false));
        all.push(linear(streams, D, 4 * D, true));
        all.push(linear_rope(streams));
        all.push(feed_forward(streams, false));
        all.push(feed_forward(streams, true));
        all.push(layer_norm(streams));
        all.push(gelu(streams));
        all.push(adapted(streams));
        all.push(attention(streams));
        all.push(qk_norm_rope(streams));
    }
    all.push(sobolev(48));
    all.push(sobolev(4096));
    all
}
