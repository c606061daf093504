//! The CUDA side of LayerNorm and modulation: `kernels/ln_modulate.cu`.

use super::super::{ModSource, RowMap, Slot, cuda, dims3, expect_dtypes};
use super::LnModulate;
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor};
use bytemuck::{NoUninit, Zeroable};
use std::collections::BTreeSet;

const OP: &str = "ln_modulate";
const SOURCE: &str = "ln_modulate.cu";
/// Rows of a block.
const ROWS: usize = 32;
/// Threads of a block.
const THREADS: u32 = 128;
/// Width of a model's rows that has a kernel of its own, which reads them once.
const FLUX_WIDTH: usize = 3072;

/// The last part of a kernel's name, for a residual stream in `x` and what stands between in `y`.
fn form(x: &Tensor, y: &Tensor) -> Result<&'static str> {
    if x.dtype() == DType::F32 && y.dtype() == DType::Bf16 {
        return Ok("mixed");
    }
    expect_dtypes(OP, x.dtype(), &[y])?;
    Ok(x.dtype().name())
}

/// `Tables` of the source: addresses, then extents.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
pub struct Tables {
    image: u64,
    cond: u64,
    image_row: u64,
    cond_row: u64,
    image_width: i32,
    cond_width: i32,
    split: i32,
    unused: i32,
}

/// The address of a row map on the device.
pub fn row_map(gpu: &Gpu, map: &RowMap) -> Result<u64> {
    gpu.constant(format!("rows {map:?}"), || map.iter().map(|&r| r as i32).collect())
}

impl Tables {
    /// Where the tokens of a stream find their modulation.
    pub fn new(gpu: &Gpu, source: &ModSource, image: &Tensor, cond: Option<&Tensor>) -> Result<Self> {
        expect_dtypes(OP, DType::F32, &[image])?;
        let none = Self {
            image: gpu.address(image)?,
            cond: 0,
            image_row: row_map(gpu, &source.image)?,
            cond_row: 0,
            image_width: cuda::int(OP, image.width())?,
            cond_width: 0,
            split: i32::MAX,
            unused: 0,
        };
        let (Some(map), Some(cond)) = (&source.cond, cond) else { return Ok(none) };
        expect_dtypes(OP, DType::F32, &[cond])?;
        Ok(Self {
            cond: gpu.address(cond)?,
            cond_row: row_map(gpu, map)?,
            cond_width: cuda::int(OP, cond.width())?,
            split: source.split.min(i32::MAX as usize) as i32,
            ..none
        })
    }
}

/// Bytes of the tables that `rows` samples and the map of each are read at: `chunks` of d columns of every row that any
/// of them names, once.
pub fn table_bytes(source: &ModSource, batch: usize, tokens: usize, d: usize, chunks: usize) -> usize {
    let bytes = |map: &RowMap| {
        let rows: BTreeSet<usize> = map.iter().take(batch).copied().collect();
        4 * (rows.len() * chunks * d + batch)
    };
    let cond = source.cond.as_ref().filter(|_| source.split < tokens);
    let image = (source.split > 0 || cond.is_none()).then_some(&source.image);
    [image, cond].into_iter().flatten().map(bytes).sum()
}

pub fn forward(
    op: &LnModulate,
    gpu: &Gpu,
    x: &Tensor,
    tables: (&Tensor, Option<&Tensor>),
    y: &mut Tensor,
) -> Result<()> {
    let [batch, tokens, d] = dims3(OP, "x", x)?;
    let tables = Tables::new(gpu, &op.source, tables.0, tables.1)?;
    let whole = d == FLUX_WIDTH && [x, y].iter().all(|t| t.address().is_multiple_of(16));
    let name = if whole { "ln_modulate_fwd_3072" } else { "ln_modulate_fwd" };
    let kernel = gpu.kernel(SOURCE, &format!("{name}_{}", form(x, y)?))?;
    let rows = batch * tokens;
    let launch = gpu.launch(&kernel, [rows.div_ceil(ROWS), 1, 1], THREADS).read(x).value(tables).write(y);
    let launch = launch.value(cuda::int(OP, rows)?).value(cuda::int(OP, tokens)?);
    let launch = if whole { launch } else { launch.value(cuda::int(OP, d)?) };
    let launch = launch.value(cuda::int(OP, op.shift)?).value(cuda::int(OP, op.scale)?);
    launch.moves(table_bytes(&op.source, batch, tokens, d, 2)).run()
}

pub fn backward(
    op: &LnModulate,
    gpu: &Gpu,
    saved: &[Tensor],
    dy: &Tensor,
    slots: &mut [Option<Slot>],
) -> Result<()> {
    let [batch, tokens, d] = dims3(OP, "the gradient", dy)?;
    let x = &saved[0];
    let form = form(x, dy)?;
    let tables = Tables::new(gpu, &op.source, &saved[1], saved.get(2))?;
    let rows = batch * tokens;
    let wants_tables = slots[1..].iter().any(Option::is_some);
    // (mean, 1/σ) of every row, left by the first kernel for the second.
    let mut stats = wants_tables.then(|| Tensor::empty(dy.device(), &[rows, 2])).transpose()?;
    let int = |n| cuda::int(OP, n);
    if slots[0].is_some() || wants_tables {
        // Where only the tables ask, dx goes where nobody looks.
        let mut unread = None;
        let (dx, keep) = match &mut slots[0] {
            Some(slot) => {
                expect_dtypes(OP, x.dtype(), &[&slot.grad])?;
                let keep = slot.accumulate;
                (&mut slot.grad, keep)
            }
            None => (unread.insert(Tensor::empty_as(dy.device(), dy.shape(), x.dtype())?), false),
        };
        // Two rows of such a width in f32 would not stay in registers: that kernel wants dy in bf16.
        let aligned = [x, dy, &*dx].iter().all(|t| t.address().is_multiple_of(16));
        let whole = d == FLUX_WIDTH && dy.dtype() == DType::Bf16 && aligned;
        let name = if whole { "ln_modulate_bwd_3072" } else { "ln_modulate_bwd" };
        let kernel = gpu.kernel(SOURCE, &format!("{name}_{form}"))?;
        let launch = gpu.launch(&kernel, [rows.div_ceil(ROWS), 1, 1], THREADS).read(x).read(dy).value(tables);
        let launch = launch.write_or_add(dx, keep).write_or_null(stats.as_mut());
        let launch = launch.moves(table_bytes(&op.source, batch, tokens, d, 1));
        let launch = launch.value(int(rows)?).value(int(tokens)?);
        let launch = if whole { launch } else { launch.value(int(d)?) };
        launch.value(int(op.scale)?).value(i32::from(keep)).run()?;
    }
    let Some(stats) = &stats else { return Ok(()) };
    let kernel = gpu.kernel(SOURCE, &format!("ln_modulate_bwd_tables_{form}"))?;
    let split = if op.source.cond.is_some() { op.source.split.min(tokens) } else { tokens };
    for (at, range, map) in
        [(1, 0..split, Some(&op.source.image)), (2, split..tokens, op.source.cond.as_ref())]
    {
        let (Some(map), Some(Some(slot))) = (map, slots.get_mut(at)) else { continue };
        expect_dtypes(OP, DType::F32, &[&slot.grad])?;
        if !slot.accumulate {
            // Chunks other than these two, which the kernel does not touch.
            slot.grad.zero()?;
        }
        let (table_rows, width) = (slot.grad.shape()[0], slot.grad.width());
        let (values, sums) = (batch * range.len() * d, 4 * table_rows * 2 * d);
        gpu.launch(&kernel, [d.div_ceil(32), table_rows, 1], 256)
            .read_part(x, values * x.dtype().size())
            .read_part(dy, values * dy.dtype().size())
            .read_part(stats, 8 * batch * range.len())
            .value(row_map(gpu, map)?)
            .moves(4 * batch)
            .write_part(&mut slot.grad, sums * if slot.accumulate { 2 } else { 1 })
            .value(int(batch)?)
            .value(int(tokens)?)
            .value(int(range.start)?)
            .value(int(range.end)?)
            .value(int(d)?)
            .value(int(width)?)
            .value(int(op.shift)?)
            .value(int(op.scale)?)
            .value(i32::from(slot.accumulate))
            .run()?;
    }
    Ok(())
}
