//! The CUDA side: `kernels/sdpa.cu` and `kernels/sdpa_f32.cu`. A part of the heads and queries at a time, its scores in
//! memory: a product, the softmax, a product.

use super::super::{cuda, expect_dtypes};
use super::{Dims, NAME, Sdpa};
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor, kernels};
use bytemuck::{NoUninit, Pod, Zeroable};

const SOURCE: &str = "sdpa.cu";
/// Rows and columns of a tile.
const TILE: [usize; 2] = [128, 64];
/// What a tile of bf16 advances by along k.
const DEPTH: usize = 32;
/// Most scores in memory at once: 128 MiB of them, and as many probabilities.
const SCORES: usize = 1 << 25;
/// Most blocks along a grid's y.
const MOST: usize = 65_535;

/// `Problem` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Problem {
    extents: [i32; 3],
    strides: [i32; 3],
    accumulate: i32,
}

/// `Origin` of the source.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Origin {
    first: i64,
    sample: i64,
    head: i64,
    slot: i64,
}

/// `Heads` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Heads {
    origins: [Origin; 3],
    heads: i32,
    skipped: i32,
}

/// `Scored` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Scored {
    rows: i32,
    keys: i32,
    pitch: i32,
    queries: i32,
    first: i32,
    heads: i32,
    head: i32,
    causal: i32,
    scale: f32,
}

/// What one round computes: heads of all samples' from `head` on, queries from `first` on.
#[derive(Clone, Copy)]
struct Part {
    head: usize,
    heads: usize,
    first: usize,
    rows: usize,
    /// From a row of scores to the next: whole 16 bytes in either dtype.
    pitch: usize,
}

impl Part {
    /// Where scores lie.
    fn scores(&self) -> Origin {
        Origin { first: 0, sample: 0, head: 0, slot: cuda::long(self.rows * self.pitch) }
    }
}

/// Of a tensor `[batch, tokens, width]`, from token `first` on.
fn tokens(d: Dims, tokens: usize, first: usize) -> Origin {
    let [first, sample, head] = [first * d.width(), tokens * d.width(), d.hd].map(cuda::long);
    Origin { first, sample, head, slot: 0 }
}

pub(super) fn forward(gpu: &Gpu, op: &Sdpa, d: Dims, inputs: &[&Tensor]) -> Result<Tensor> {
    let (q, dtype) = (inputs[0], inputs[0].dtype());
    expect_dtypes(NAME, dtype, &inputs[1..3])?;
    let mut o = Tensor::empty_as(q.device(), q.shape(), dtype)?;
    let pitch = d.keys.next_multiple_of(8);
    // At least one tile's rows, whatever a row's length.
    let rows = (SCORES / pitch.max(1) / TILE[0] * TILE[0]).clamp(TILE[0], d.queries.max(TILE[0]));
    let all = d.batch * op.heads;
    let heads = (SCORES / (rows.min(d.queries) * pitch).max(1)).clamp(1, all.clamp(1, MOST));
    for head in (0..all).step_by(heads) {
        for first in (0..d.queries).step_by(rows) {
            let part =
                Part { head, heads: heads.min(all - head), first, rows: rows.min(d.queries - first), pitch };
            round(gpu, op, d, part, inputs, &mut o)?;
        }
    }
    Ok(o)
}

fn round(gpu: &Gpu, op: &Sdpa, d: Dims, part: Part, inputs: &[&Tensor], o: &mut Tensor) -> Result<()> {
    let (device, dtype, bias) = (o.device().clone(), o.dtype(), inputs.get(3).copied());
    let int = |n| cuda::int(NAME, n);
    let shape = [part.heads, part.rows, part.pitch];
    let mut scores = Tensor::empty(&device, &shape)?;
    let asking = tokens(d, d.queries, part.first);
    let asked = tokens(d, d.keys, 0);
    Product {
        name: "scores",
        extents: [part.rows, d.keys, d.hd],
        strides: [d.width(), d.width(), part.pitch],
        origins: [asking, asked, part.scores()],
        whole: d.whole(&inputs[..3]),
    }
    .run(gpu, op, part, [inputs[0], inputs[1]], &mut scores)?;
    let mut chances = Tensor::empty_as(&device, &shape, dtype)?;
    let scored = Scored {
        rows: int(part.rows)?,
        keys: int(d.keys)?,
        pitch: int(part.pitch)?,
        queries: int(d.queries)?,
        first: int(part.first)?,
        heads: int(op.heads)?,
        head: int(part.head % op.heads)?,
        causal: i32::from(op.causal),
        scale: op.scale,
    };
    let values = part.heads * part.rows * d.keys;
    let launch = cuda::kernel(gpu, SOURCE, "sdpa_fwd_softmax", dtype)?;
    let launch = gpu.launch(&launch, [part.rows.div_ceil(8), part.heads, 1], cuda::THREADS);
    let launch = launch.read_part(&scores, 4 * values);
    match bias {
        Some(bias) => launch.read_part(bias, 4 * part.heads.min(op.heads) * part.rows * d.keys),
        None => launch.value(0u64),
    }
    .write_part(&mut chances, dtype.size() * values)
    .value(scored)
    .run()?;
    Product {
        name: "values",
        extents: [part.rows, d.hd, d.keys],
        strides: [part.pitch, d.width(), d.width()],
        origins: [part.scores(), asked, asking],
        whole: d.whole(&inputs[..3]),
    }
    .run(gpu, op, part, [&chances, inputs[2]], o)
}

/// C = A·B of the part's heads.
struct Product {
    name: &'static str,
    extents: [usize; 3],
    strides: [usize; 3],
    origins: [Origin; 3],
    /// Does every head's row begin on 16 bytes?
    whole: bool,
}

impl Product {
    fn run(&self, gpu: &Gpu, op: &Sdpa, part: Part, [a, b]: [&Tensor; 2], c: &mut Tensor) -> Result<()> {
        let int = |n| cuda::int(NAME, n);
        let three = |n: [usize; 3]| Ok::<_, crate::Error>([int(n[0])?, int(n[1])?, int(n[2])?]);
        let [m, n, k] = self.extents;
        let tiles = [m.div_ceil(TILE[0]), n.div_ceil(TILE[1])];
        let (source, name, flops) = match a.dtype() {
            // f32 does without tensor cores.
            DType::F32 => ("sdpa_f32.cu", format!("sdpa_fwd_{}_f32", self.name), 0),
            DType::Bf16 => {
                let any = if self.whole { "" } else { "_any" };
                let padded = tiles[0] * TILE[0] * tiles[1] * TILE[1] * k.next_multiple_of(DEPTH);
                (SOURCE, format!("sdpa_fwd_{}{any}_bf16", self.name), 2 * part.heads * padded)
            }
        };
        let kernel = gpu.kernel(source, &name)?;
        let size = part.heads * a.dtype().size();
        let out = part.heads * m * n * c.dtype().size();
        gpu.launch(&kernel, [tiles[0] * tiles[1], part.heads, 1], cuda::THREADS)
            .shared(kernels::dynamic_shared(kernels::text(source)?, &name) as usize)
            .read_part(a, size * m * k)
            .read_part(b, size * n * k)
            .write_part(c, out)
            .value(Heads { origins: self.origins, heads: int(op.heads)?, skipped: int(part.head)? })
            .value(Problem { extents: three(self.extents)?, strides: three(self.strides)?, accumulate: 0 })
            .multiplies(flops)
            .run()
    }
}
