//! The CUDA side of attention: `kernels/attention.cu` (bf16) and `kernels/attention_f32.cu`.

use super::super::{Slot, cuda, expect_dtypes};
use super::{Attention, Dims, OP};
use crate::Result;
use crate::engine::cuda::{Gpu, Kernel};
use crate::engine::{DType, Tensor};
use bytemuck::NoUninit;
use std::f64::consts::LOG2_E;
use std::sync::Arc;

/// Widest head that the kernels take.
pub const WIDEST: usize = 128;

/// `Side` of the source: addresses of the text's and of the stream's tensor.
#[repr(C)]
#[derive(Clone, Copy, Default, NoUninit)]
struct Side {
    text: u64,
    stream: u64,
}

/// `Geometry` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Geometry {
    heads: i32,
    hd: i32,
    q_text: i32,
    q_stream: i32,
    k_text: i32,
    k_stream: i32,
    img: i32,
    scale: f32,
    scale2: f32,
    unused: i32,
}

/// The addresses of a pair of tensors, each of which may not be there.
fn side(gpu: &Gpu, text: Option<&Tensor>, stream: Option<&Tensor>) -> Result<Side> {
    let address = |t: Option<&Tensor>| t.map_or(Ok(0), |t| gpu.address(t));
    Ok(Side { text: address(text)?, stream: address(stream)? })
}

/// The same, to be written.
fn target(text: Option<&mut Slot>, stream: Option<&mut Slot>) -> Result<(Side, i32)> {
    let mut adds = 0;
    let mut address = |bit: i32, slot: Option<&mut Slot>| -> Result<u64> {
        let Some(slot) = slot else { return Ok(0) };
        adds |= i32::from(slot.accumulate) << bit;
        slot.grad.address_mut()
    };
    let side = Side { text: address(0, text)?, stream: address(1, stream)? };
    Ok((side, adds))
}

/// What a launch of one part of the op needs to know: the kernel, its tile and its dynamic shared memory.
struct Part {
    kernel: Arc<Kernel>,
    rows: usize,
    threads: u32,
    shared: usize,
    /// Rows of the other side's tiles, and the head's width as it is multiplied; 0 where no tensor core is used.
    far: usize,
    width: usize,
}

impl Part {
    /// What `products` products of every tile of `rows` rows with every tile of `columns` take on tensor cores.
    fn flops(&self, d: Dims, products: usize, rows: usize, columns: usize) -> usize {
        let (rows, columns) = (rows.next_multiple_of(self.rows), columns.next_multiple_of(self.far.max(1)));
        2 * products * d.batch * d.heads * rows * columns * self.width
    }
}

impl Attention {
    fn geometry(&self, d: Dims) -> Result<Geometry> {
        let int = |n| cuda::int(OP, n);
        let scale = 1.0 / (d.hd as f64).sqrt();
        Ok(Geometry {
            heads: int(d.heads)?,
            hd: int(d.hd)?,
            q_text: int(d.asking[0])?,
            q_stream: int(d.asking[1])?,
            k_text: int(self.layout.txt)?,
            k_stream: int(self.layout.stream())?,
            img: int(self.layout.img)?,
            scale: scale as f32,
            scale2: (scale * LOG2_E) as f32,
            unused: 0,
        })
    }

    /// The biases in base 2 on the device, a row per group of queries; 0 where there are none.
    fn bias2(&self, gpu: &Gpu) -> Result<u64> {
        if self.log_multiplicity.is_none() && self.groups.is_none() {
            return Ok(0);
        }
        let name = format!("{OP} {:?} {:?} {:?}", self.layout, self.groups, self.log_multiplicity);
        gpu.constant(name, || {
            let rows = self.biases();
            let none = vec![0.0; self.layout.total()];
            let base2 = |v: &f32| (f64::from(*v) * LOG2_E) as f32;
            rows.iter().flat_map(|row| row.as_ref().unwrap_or(&none).iter().map(base2)).collect::<Vec<f32>>()
        })
    }

    fn part(&self, gpu: &Gpu, d: Dims, dtype: DType, name: &str) -> Result<Part> {
        let pitch = d.hd | 1;
        if dtype == DType::F32 {
            let kernel = gpu.kernel("attention_f32.cu", &format!("attention_{name}_f32"))?;
            let shared = if name == "fwd" { 384 * pitch + 4224 } else { 512 * pitch + 8448 };
            return Ok(Part { kernel, rows: 32, threads: 256, shared, far: 0, width: 0 });
        }
        let width = [32, 64, 128].into_iter().find(|&w| d.hd <= w).unwrap_or(WIDEST);
        let kernel = gpu.kernel("attention.cu", &format!("attention_{name}_{width}_bf16"))?;
        // A tile of 64 rows takes 128·width bytes. Forward keeps one, and two pairs of the keys'; backward two, and two
        // pairs of the other side's, which at the greatest width are of 32 rows.
        let far = if name != "fwd" && width == WIDEST { 32 } else { 64 };
        let shared = width * if name == "fwd" { 640 } else { 256 + 8 * far };
        Ok(Part { kernel, rows: 64, threads: 128, shared, far, width })
    }

    /// o of the stream, o of the text if it asks, lse.
    pub(super) fn forward_cuda(
        &self,
        gpu: &Gpu,
        inputs: &[&Tensor],
        d: Dims,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let dtype = inputs[0].dtype();
        expect_dtypes(OP, dtype, inputs)?;
        let device = inputs[0].device();
        let fresh = |t: &Tensor| Tensor::empty_as(device, t.shape(), dtype);
        let mut outputs = vec![fresh(inputs[0])?];
        if let Some(q) = inputs.get(5) {
            outputs.push(fresh(q)?);
        }
        let mut lse = Tensor::empty(device, &[d.batch, d.heads * d.queries()])?;
        let part = self.part(gpu, d, dtype, "fwd")?;
        let o = side(gpu, outputs.get(1), outputs.first())?;
        let bytes = |t: &Tensor| t.len() * dtype.size();
        let moved = inputs.iter().map(|t| bytes(t)).chain(outputs.iter().map(bytes)).sum();
        gpu.launch(&part.kernel, [d.queries().div_ceil(part.rows), d.heads, d.batch], part.threads)
            .shared(part.shared)
            .value(side(gpu, inputs.get(5).copied(), Some(inputs[0]))?)
            .value(side(gpu, Some(inputs[3]), Some(inputs[1]))?)
            .value(side(gpu, Some(inputs[4]), Some(inputs[2]))?)
            .value(self.bias2(gpu)?)
            .value(o)
            .write(&mut lse)
            .value(self.geometry(d)?)
            .moves(moved)
            .multiplies(part.flops(d, 2, d.queries(), self.layout.total()))
            .run()?;
        Ok((outputs, lse))
    }

    /// The gradients of the inputs that have slots.
    pub(super) fn backward_cuda(
        &self,
        gpu: &Gpu,
        (inputs, outputs, lse): (&[&Tensor], &[Tensor], &Tensor),
        d: Dims,
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let dtype = inputs[0].dtype();
        for t in grads.iter().flatten().copied().chain(slots.iter().flatten().map(|s| &s.grad)) {
            expect_dtypes(OP, dtype, &[t])?;
        }
        let (geometry, bias2) = (self.geometry(d)?, self.bias2(gpu)?);
        let fields = [
            side(gpu, inputs.get(5).copied(), Some(inputs[0]))?,
            side(gpu, Some(inputs[3]), Some(inputs[1]))?,
            side(gpu, Some(inputs[4]), Some(inputs[2]))?,
        ];
        // Zeros stand for a gradient that is not there where a tile is copied whole.
        let zero = |t: Option<&Tensor>, g: Option<&Tensor>| -> Result<Option<Tensor>> {
            match (t, g) {
                (Some(_), Some(g)) => Ok(Some(g.clone())),
                (Some(t), None) => Ok(Some(Tensor::zeros_as(t.device(), t.shape(), dtype)?)),
                (None, _) => Ok(None),
            }
        };
        let d_text = zero(outputs.get(1), grads.get(1).copied().flatten())?;
        let d_stream = zero(outputs.first(), grads[0])?;
        let d_o = side(gpu, d_text.as_ref(), d_stream.as_ref())?;
        let mut delta = Tensor::empty(lse.device(), lse.shape())?;
        let source = if dtype == DType::F32 { "attention_f32.cu" } else { "attention.cu" };
        let kernel = cuda::kernel(gpu, source, "attention_bwd_delta", dtype)?;
        gpu.launch(&kernel, [d.queries().div_ceil(64), d.heads, d.batch], 256)
            .value(side(gpu, outputs.get(1), outputs.first())?)
            .value(d_o)
            .write(&mut delta)
            .value(geometry)
            .moves(2 * outputs.iter().map(|t| t.len() * dtype.size()).sum::<usize>())
            .run()?;
        let bytes = |tensors: &[usize]| {
            tensors.iter().map(|&i| inputs.get(i).map_or(0, |t| t.len() * dtype.size())).sum::<usize>()
        };
        let read = bytes(&[0, 1, 2, 3, 4, 5]) + bytes(&[0, 5]);
        let run = |name: &str,
                   [rows, columns, products]: [usize; 3],
                   written,
                   out: [Side; 2],
                   adds: i32|
         -> Result<()> {
            let part = self.part(gpu, d, dtype, name)?;
            let launch = gpu.launch(&part.kernel, [rows.div_ceil(part.rows), d.heads, d.batch], part.threads);
            let launch = fields.iter().fold(launch.shared(part.shared), |launch, side| launch.value(*side));
            let launch = launch.value(bias2).value(d_o).read(lse).read(&delta);
            let launch = launch.value(out[0]).value(out[1]).value(geometry).value(adds);
            // Bits of `adds` say which gradients are read, too.
            let again = if adds == 0 { 1 } else { 2 };
            launch.moves(read + again * written).multiplies(part.flops(d, products, rows, columns)).run()
        };
        let mut slots: Vec<Option<&mut Slot>> = slots.iter_mut().map(Option::as_mut).collect();
        slots.resize_with(6, || None);
        let [q, k, v, text_k, text_v, text_q] = &mut slots[..] else { return Ok(()) };
        if q.is_some() || text_q.is_some() {
            let (dq, adds) = target(text_q.take(), q.take())?;
            let extents = [d.queries(), self.layout.total(), 3];
            run("bwd_q", extents, bytes(&[0, 5]), [dq, Side::default()], adds)?;
        }
        if [&*k, &*v, &*text_k, &*text_v].iter().any(|s| s.is_some()) {
            let (dk, adds_k) = target(text_k.take(), k.take())?;
            let (dv, adds_v) = target(text_v.take(), v.take())?;
            let extents = [self.layout.total(), d.queries(), 4];
            run("bwd_kv", extents, bytes(&[1, 2, 3, 4]), [dk, dv], adds_k | adds_v << 2)?;
        }
        Ok(())
    }
}
