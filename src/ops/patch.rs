//! Latents to tokens and back: 2×2 patches, channel-major inside a patch.
//!
//! ```text
//! Pack:   [B, C, H, W] → [B, (H/2)(W/2), 4C],   token (row, col) row-major, feature (c, dy, dx)
//! Unpack: the inverse
//! ```
//! Saves nothing. Each is a permutation, so each one's backward is the other.

use super::{Case, Op, Save, Slot, cuda, dims3, dims4, expect_dtypes, expect_inputs, random};
use crate::engine::{Device, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

/// Planes to tokens.
pub struct Pack;

/// Tokens to planes of `height`×`width`.
pub struct Unpack {
    /// Height of the planes, even.
    pub height: usize,
    /// Width of the planes, even.
    pub width: usize,
}

/// Columns and channels of the piece of a row of patches that a block of the CUDA kernel turns.
const COLUMNS: usize = 128;
const CHANNELS: usize = 16;

/// Channels, height and width of one sample's planes.
type Planes = [usize; 3];

fn even(op: &'static str, height: usize, width: usize) -> Result<()> {
    if height.is_multiple_of(2) && width.is_multiple_of(2) && height * width > 0 {
        return Ok(());
    }
    Err(Error::shape(op, format!("planes are {height}×{width}; 2×2 patches need even, positive sides")))
}

/// Calls `visit(plane index, token index)` for every pair of neighbours in a row that stay together.
fn pairs([c, h, w]: Planes, mut visit: impl FnMut(usize, usize)) {
    for ci in 0..c {
        for y in 0..h {
            for x in (0..w).step_by(2) {
                let token = y / 2 * (w / 2) + x / 2;
                visit((ci * h + y) * w + x, token * 4 * c + ci * 4 + y % 2 * 2);
            }
        }
    }
}

/// tokens = the patches of every sample's planes.
pub fn pack(planes: &[f32], of: Planes, tokens: &mut [f32]) {
    let n: usize = of.iter().product();
    tokens.par_chunks_mut(n).zip(planes.par_chunks(n)).for_each(|(t, p)| {
        pairs(of, |i, j| t[j..j + 2].copy_from_slice(&p[i..i + 2]));
    });
}

/// planes = what every sample's tokens are the patches of.
pub fn unpack(tokens: &[f32], of: Planes, planes: &mut [f32]) {
    let n: usize = of.iter().product();
    planes.par_chunks_mut(n).zip(tokens.par_chunks(n)).for_each(|(p, t)| {
        pairs(of, |i, j| p[i..i + 2].copy_from_slice(&t[j..j + 2]));
    });
}

/// The permutation on a CUDA device: tokens from planes where `packs`, else planes from tokens; written or added.
fn permute(packs: bool, from: &Tensor, [c, h, w]: Planes, to: &mut Tensor, accumulate: bool) -> Result<()> {
    const OP: &str = "pack";
    let device = from.device().clone();
    let (Some(gpu), 1..) = (device.gpu(), from.len()) else { return Ok(()) };
    expect_dtypes(OP, from.dtype(), &[to])?;
    let kernel = cuda::kernel(gpu, "patch.cu", if packs { "pack_fwd" } else { "unpack_fwd" }, from.dtype())?;
    let grid = [w.div_ceil(COLUMNS) * c.div_ceil(CHANNELS), h / 2, from.len() / (c * h * w)];
    let launch = gpu.launch(&kernel, grid, cuda::THREADS).read(from).write_or_add(to, accumulate);
    let launch = [c, h, w].into_iter().try_fold(launch, |l, n| Ok::<_, Error>(l.value(cuda::int(OP, n)?)))?;
    launch.value(i32::from(accumulate)).run()
}

impl Op for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("pack", inputs, 1)?;
        let [b, c, h, w] = dims4("pack", "the input", inputs[0])?;
        even("pack", h, w)?;
        let shape = [b, h / 2 * (w / 2), 4 * c];
        let mut out = Tensor::empty_as(inputs[0].device(), &shape, inputs[0].dtype())?;
        if out.device().gpu().is_some() {
            permute(true, inputs[0], [c, h, w], &mut out, false)?;
            return Ok(vec![out]);
        }
        pack(inputs[0].f32(), [c, h, w], out.f32_mut());
        Ok(vec![out])
    }
    fn backward(&self, _: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>]) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            let [_, c, h, w] = dims4("pack", "the gradient", &slot.grad)?;
            if dy.device().gpu().is_some() {
                return permute(false, dy, [c, h, w], &mut slot.grad, slot.accumulate);
            }
            let mut g = vec![0.0; dy.len()];
            unpack(dy.f32(), [c, h, w], &mut g);
            slot.put(&g);
        }
        Ok(())
    }
}

impl Op for Unpack {
    fn name(&self) -> &'static str {
        "unpack"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("unpack", inputs, 1)?;
        let Self { height, width } = *self;
        even("unpack", height, width)?;
        let [b, tokens, features] = dims3("unpack", "the input", inputs[0])?;
        if tokens != height / 2 * (width / 2) || !features.is_multiple_of(4) {
            return Err(Error::shape(
                "unpack",
                format!(
                    "{tokens} tokens of {features} features; {height}×{width} planes need {} of a multiple of 4",
                    height / 2 * (width / 2)
                ),
            ));
        }
        let shape = [b, features / 4, height, width];
        let mut out = Tensor::empty_as(inputs[0].device(), &shape, inputs[0].dtype())?;
        if out.device().gpu().is_some() {
            permute(false, inputs[0], [features / 4, height, width], &mut out, false)?;
            return Ok(vec![out]);
        }
        unpack(inputs[0].f32(), [features / 4, height, width], out.f32_mut());
        Ok(vec![out])
    }
    fn backward(&self, _: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>]) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            let [_, c, h, w] = dims4("unpack", "the gradient", dy)?;
            if dy.device().gpu().is_some() {
                return permute(true, dy, [c, h, w], &mut slot.grad, slot.accumulate);
            }
            let mut g = vec![0.0; dy.len()];
            pack(dy.f32(), [c, h, w], &mut g);
            slot.put(&g);
        }
        Ok(())
    }
}

/// Small ones for gradcheck; the latents of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let packed = |b: usize, c: usize, h: usize, w: usize| {
        let n = b * c * h * w;
        Case::new(format!("pack/{b}x{c}x{h}x{w}"), Pack, vec![random(device, &[b, c, h, w], 1, 1.0)])
            .half(&[0])
            .cost(0.0, n)
    };
    let unpacked = |b: usize, c: usize, height: usize, width: usize| {
        let tokens = random(device, &[b, height / 2 * (width / 2), 4 * c], 1, 1.0);
        let n = tokens.len();
        Case::new(format!("unpack/{b}x{c}x{height}x{width}"), Unpack { height, width }, vec![tokens])
            .half(&[0])
            .cost(0.0, n)
    };
    vec![
        packed(3, 2, 4, 6),
        packed(3, 3, 2, 4),
        packed(12, 16, 16, 16).bench_only(),
        unpacked(3, 2, 4, 6),
        unpacked(3, 3, 2, 4),
        unpacked(12, 16, 16, 16).bench_only(),
        // More channels and columns than a block of the CUDA kernel takes, neither a multiple of what it takes.
        packed(1, 19, 4, 150).bench_only(),
        unpacked(1, 19, 4, 150).bench_only(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value of the input says where it is: sample, channel, row, column.
    #[test]
    fn tokens_are_row_major_and_features_channel_major() {
        let (b, c, h, w) = (2, 3, 4, 6);
        let values: Vec<f32> = (0..b * c * h * w).map(|v| v as f32).collect();
        let x = Tensor::from_slice(&Device::cpu_poisoned(), &[b, c, h, w], &values).unwrap();
        let t = Pack.forward(&[&x], &mut Save::nothing()).unwrap().remove(0);
        assert_eq!(t.shape(), [b, 6, 12]);
        for (i, &got) in t.f32().iter().enumerate() {
            let (bi, token, feature) = (i / 72, i / 12 % 6, i % 12);
            let (ci, dy, dx) = (feature / 4, feature / 2 % 2, feature % 2);
            let (y, x) = (token / 3 * 2 + dy, token % 3 * 2 + dx);
            assert_eq!(got, (((bi * c + ci) * h + y) * w + x) as f32);
        }
        let back = Unpack { height: h, width: w }.forward(&[&t], &mut Save::nothing()).unwrap().remove(0);
        assert_eq!((back.shape(), back.f32()), (x.shape(), x.f32()));
    }

    #[test]
    fn odd_planes_are_refused_with_their_size() {
        let d = Device::cpu();
        let e =
            Pack.forward(&[&Tensor::zeros(&d, &[1, 2, 5, 4]).unwrap()], &mut Save::nothing()).unwrap_err();
        assert!(e.to_string().contains("5×4"), "{e}");
        let op = Unpack { height: 4, width: 4 };
        let e = op.forward(&[&Tensor::zeros(&d, &[1, 5, 8]).unwrap()], &mut Save::nothing()).unwrap_err();
        assert!(e.to_string().contains("5 tokens of 8 features; 4×4 planes need 4"), "{e}");
    }
}
