//! Two-dimensional convolution over planes, as frozen networks use it: forward only.
//!
//! ```text
//! y[b,o,i,j] = f( Σ_c,u,v w[o,c,u,v]·x̂[b,c, s·i+u−p, s·j+v−p] + bias[o] + r[b,o,i,j] )
//! x [B, C, H, W], w [O, C, h, w], bias [O], r as y;   y [B, O, (Ĥ+p+q−h)/s+1, (Ŵ+p+q−w)/s+1]
//! ```
//! x̂ is x, or x with every value repeated in 2×2 places (nearest-neighbour upsampling, Ĥ = 2H); beyond its edges it
//! is 0. f is the identity or ReLU. Saves nothing and has no gradient.
//!
//! On the CPU a sample's plane is cut into strips of positions; what a strip's sums are over is gathered into a matrix
//! that stays in the cache (im2col), and one matrix product makes the strip. On CUDA that matrix is never made: tiles
//! of it are fetched as they are multiplied.

use super::{Case, Op, Save, Slot, dims4, expect_constant, expect_f32, random};
use crate::engine::matmul::{Mat, matmul};
use crate::engine::{Device, Tensor, par};
use crate::{Error, Result};
use rayon::prelude::*;

mod launch;

pub(super) use launch::turned;

const NAME: &str = "conv2d";
/// Values of a strip's gathered matrix: half of a core's second-level cache on the machines of today.
const GATHERED: usize = 128 * 1024;
/// Fewest positions of a strip: what a matrix product needs to be worth its overhead.
const LEAST: usize = 64;

/// The op: inputs x, w and, in this order, as many as there are of bias and r; output y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Distance of two neighbouring windows, s.
    pub stride: usize,
    /// Zeros above and on the left, p, and zeros below and on the right, q.
    pub padding: [usize; 2],
    /// Whether x is read at twice its height and width.
    pub upsample: bool,
    /// Whether f is ReLU.
    pub relu: bool,
}

/// Every extent there is.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    inp: usize,
    out: usize,
    /// Of x as it is stored.
    x: [usize; 2],
    /// Of a window.
    window: [usize; 2],
    /// Of y.
    y: [usize; 2],
}

impl Dims {
    /// Terms of a sum.
    fn depth(&self) -> usize {
        self.inp * self.window[0] * self.window[1]
    }
    /// Positions of a plane of y.
    fn plane(&self) -> usize {
        self.y[0] * self.y[1]
    }
}

impl Conv2d {
    /// Stride 1 and as much padding as keeps the size under a window of `side`, which is odd.
    pub const fn same(side: usize) -> Self {
        Self { stride: 1, padding: [side / 2; 2], upsample: false, relu: false }
    }

    /// The same, through ReLU.
    pub const fn relu(self) -> Self {
        Self { relu: true, ..self }
    }

    /// [`Op::forward`]'s one output.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let d = self.dims(inputs)?;
        if let Some(gpu) = inputs[0].device().gpu() {
            return launch::forward(gpu, self, d, inputs);
        }
        expect_f32(NAME, &[&inputs[..1], inputs.get(3..).unwrap_or_default()].concat())?;
        let mut y = Tensor::empty(inputs[0].device(), &[d.batch, d.out, d.y[0], d.y[1]])?;
        let bias = inputs.get(2).map(|b| b.to_f32());
        let residual = inputs.get(3).map(|r| r.f32());
        self.on_cpu(d, inputs[0].f32(), &inputs[1].to_f32(), bias.as_deref(), residual, y.f32_mut());
        Ok(y)
    }

    fn dims(&self, inputs: &[&Tensor]) -> Result<Dims> {
        if !(2..=4).contains(&inputs.len()) {
            let n = inputs.len();
            return Err(Error::shape(NAME, format!("{n} inputs; wanted x, w, then bias, then a residual")));
        }
        let [batch, inp, h, w] = dims4(NAME, "x", inputs[0])?;
        let &[out, inner, wh, ww] = inputs[1].shape() else {
            let have = inputs[1].shape();
            return Err(Error::shape(NAME, format!("w has shape {have:?}, wanted [out, in, height, width]")));
        };
        if inner != inp {
            let detail = format!("x has {inp} channels, w of shape {:?} takes {inner}", inputs[1].shape());
            return Err(Error::shape(NAME, detail));
        }
        let scale = 1 + usize::from(self.upsample);
        let side = |x: usize, window: usize| {
            let room = (scale * x + self.padding.iter().sum::<usize>()).checked_sub(window);
            room.filter(|_| self.stride > 0 && window > 0 && x > 0).map(|room| room / self.stride + 1)
        };
        let (Some(oh), Some(ow)) = (side(h, wh), side(w, ww)) else {
            let Self { stride, padding, .. } = *self;
            let detail =
                format!("no {wh}×{ww} window fits {h}×{w} with padding {padding:?}, stride {stride}");
            return Err(Error::shape(NAME, detail));
        };
        let d = Dims { batch, inp, out, x: [h, w], window: [wh, ww], y: [oh, ow] };
        inputs.get(2).map_or(Ok(()), |b| b.expect(NAME, "the bias", &[out]))?;
        inputs.get(3).map_or(Ok(()), |r| r.expect(NAME, "the residual", &[batch, out, oh, ow]))?;
        Ok(d)
    }

    fn on_cpu(
        &self,
        d: Dims,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let (depth, plane) = (d.depth(), d.plane());
        let width = (GATHERED / depth.max(1)).max(LEAST).next_multiple_of(16);
        let strips_of_one = plane.div_ceil(width);
        let room = || (vec![0f32; depth * width.min(plane)], vec![0f32; d.out * width.min(plane)]);
        par::strips(y, d.out, plane, width).into_par_iter().enumerate().for_each_init(
            room,
            |(gathered, sums), (i, mut strip)| {
                let (b, first) = (i / strips_of_one, i % strips_of_one * width);
                let n = width.min(plane - first);
                let x = &x[b * d.inp * d.x[0] * d.x[1]..][..d.inp * d.x[0] * d.x[1]];
                self.gather(d, x, first..first + n, gathered);
                matmul(d.out, depth, n, 1.0, Mat::new(w, depth), Mat::new(gathered, n), sums, n, false);
                for (o, sums) in sums.chunks_exact(n).take(d.out).enumerate() {
                    let row = strip.row(o);
                    let bias = bias.map_or(0.0, |b| b[o]);
                    match residual {
                        Some(r) => {
                            let r = &r[(b * d.out + o) * plane + first..][..n];
                            row.iter_mut().zip(sums).zip(r).for_each(|((y, s), r)| *y = s + bias + r);
                        }
                        None => row.iter_mut().zip(sums).for_each(|(y, s)| *y = s + bias),
                    }
                    if self.relu {
                        row.iter_mut().for_each(|y| *y = y.max(0.0));
                    }
                }
            },
        );
    }

    /// gathered [depth, positions] = what each of `positions` of a sample sums over.
    fn gather(&self, d: Dims, x: &[f32], positions: std::ops::Range<usize>, gathered: &mut [f32]) {
        let (n, [xh, xw], [_, yw]) = (positions.len(), d.x, d.y);
        let shift = u32::from(self.upsample);
        let high = xh << shift;
        for (k, row) in gathered.chunks_exact_mut(n).take(d.depth()).enumerate() {
            let (v, u, c) = (k % d.window[1], k / d.window[1] % d.window[0], k / (d.window[0] * d.window[1]));
            let mut at = positions.start;
            let mut rest = row;
            while !rest.is_empty() {
                let (i, j) = (at / yw, at % yw);
                let (piece, after) = rest.split_at_mut(rest.len().min(yw - j));
                at += piece.len();
                rest = after;
                // The row of x̂, which begins as many above its first as there are zeros.
                match (self.stride * i + u).checked_sub(self.padding[0]).filter(|&r| r < high) {
                    Some(r) => self.gather_row(&x[(c * xh + (r >> shift)) * xw..][..xw], j, v, piece),
                    None => piece.fill(0.0),
                }
            }
        }
    }

    /// Column `v` of the windows of positions `j…` of one row.
    fn gather_row(&self, x: &[f32], j: usize, v: usize, to: &mut [f32]) {
        let (shift, padding) = (u32::from(self.upsample), self.padding[0]);
        let wide = x.len() << shift;
        // Positions whose column lies inside x̂: first ≤ position < last.
        let first = padding.saturating_sub(v).div_ceil(self.stride).clamp(j, j + to.len());
        let last = (wide + padding).saturating_sub(v).div_ceil(self.stride).clamp(first, j + to.len());
        to[..first - j].fill(0.0);
        to[last - j..].fill(0.0);
        let inner = &mut to[first - j..last - j];
        if inner.is_empty() {
            return;
        }
        let start = self.stride * first + v - padding;
        if self.stride == 1 && !self.upsample {
            inner.copy_from_slice(&x[start..start + inner.len()]);
        } else {
            inner.iter_mut().enumerate().for_each(|(q, t)| *t = x[(start + self.stride * q) >> shift]);
        }
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "x"), (1, "w"), (2, "the bias"), (3, "the residual")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// Every form at odd sizes; a layer of a small autoencoder.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |op: Conv2d, [b, c, h, w]: [usize; 4], [o, wh, ww]: [usize; 3], more: usize| {
        let depth = c * wh * ww;
        let mut inputs = vec![
            random(device, &[b, c, h, w], 1, 1.0),
            random(device, &[o, c, wh, ww], 2, 1.0 / (depth as f32).sqrt()),
        ];
        let d = op.dims(&[&inputs[0], &inputs[1]]).expect("a case is well-shaped");
        let more_shapes: [&[usize]; 2] = [&[o], &[b, o, d.y[0], d.y[1]]];
        for (i, shape) in more_shapes.into_iter().take(more).enumerate() {
            inputs.push(random(device, shape, 3 + i as u64, 0.5));
        }
        let (all, n) = ((0..inputs.len()).collect::<Vec<_>>(), b * o * d.plane());
        let uneven = op.padding[0] != op.padding[1];
        let form = [(op.upsample, "_up"), (uneven, "_below"), (op.relu, "_relu"), (more > 1, "_resid")];
        let form: String = form.iter().filter(|f| f.0).map(|f| f.1).collect();
        let name = format!("conv2d{form}/{b}x{c}x{h}x{w}/{o}x{wh}x{ww}s{}", op.stride);
        Case::new(name, op, inputs)
            .constant(&all)
            .half(&all)
            .chain(depth)
            .cost(2.0 * (depth * n) as f64, n)
            .bench_only()
    };
    let strided = Conv2d { stride: 2, ..Conv2d::same(3) };
    let below = Conv2d { padding: [0, 1], ..strided };
    let doubled = Conv2d { upsample: true, ..Conv2d::same(3) };
    vec![
        case(Conv2d::same(3), [2, 3, 7, 9], [5, 3, 3], 0),
        case(Conv2d::same(3).relu(), [2, 16, 12, 13], [64, 3, 3], 1),
        case(Conv2d::same(3).relu(), [1, 64, 9, 10], [64, 3, 3], 2),
        case(strided, [2, 20, 11, 14], [40, 3, 3], 0),
        case(doubled, [2, 24, 6, 5], [17, 3, 3], 0),
        case(below, [2, 20, 10, 13], [40, 3, 3], 1),
        case(
            Conv2d { stride: 4, padding: [2; 2], upsample: false, relu: true },
            [1, 3, 27, 31],
            [64, 11, 11],
            1,
        ),
        case(Conv2d::same(1), [1, 8, 4, 4], [130, 1, 1], 1),
        case(Conv2d::same(3).relu(), [1, 64, 128, 128], [64, 3, 3], 2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::given;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    /// The definition, in f64, and the sum of its terms' sizes.
    fn naive(op: &Conv2d, d: Dims, inputs: &[&Tensor]) -> Vec<(f64, f64)> {
        let (x, w) = (inputs[0].f32(), inputs[1].f32());
        let scale = 1 + isize::from(op.upsample);
        let mut out = Vec::new();
        for at in 0..d.batch * d.out * d.plane() {
            let (j, i) = (at % d.y[1], at / d.y[1] % d.y[0]);
            let (o, b) = (at / d.plane() % d.out, at / d.plane() / d.out);
            let bias = inputs.get(2).map_or(0.0, |t| f64::from(t.f32()[o]));
            let more = inputs.get(3).map_or(0.0, |t| f64::from(t.f32()[at]));
            let (mut sum, mut size) = (bias + more, bias.abs() + more.abs());
            for k in 0..d.depth() {
                let (v, u, c) =
                    (k % d.window[1], k / d.window[1] % d.window[0], k / d.window[1] / d.window[0]);
                let r = (op.stride * i + u) as isize - op.padding[0] as isize;
                let q = (op.stride * j + v) as isize - op.padding[0] as isize;
                if r < 0 || q < 0 || r >= scale * d.x[0] as isize || q >= scale * d.x[1] as isize {
                    continue;
                }
                let (r, q) = ((r / scale) as usize, (q / scale) as usize);
                let term = f64::from(x[((b * d.inp + c) * d.x[0] + r) * d.x[1] + q])
                    * f64::from(w[o * d.depth() + k]);
                sum += term;
                size += term.abs();
            }
            out.push((if op.relu { sum.max(0.0) } else { sum }, size));
        }
        out
    }

    fn agrees(op: Conv2d, shape: [usize; 4], window: [usize; 3], more: usize, cpu: &Device) {
        let w = random(cpu, &[window[0], shape[1], window[1], window[2]], 2, 1.0);
        let mut inputs = vec![random(cpu, &shape, 1, 1.0), w];
        let Ok(d) = op.dims(&[&inputs[0], &inputs[1]]) else { return };
        let extra =
            [random(cpu, &[window[0]], 3, 1.0), random(cpu, &[d.batch, d.out, d.y[0], d.y[1]], 4, 1.0)];
        inputs.extend(extra.into_iter().take(more));
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let y = op.apply(&inputs).unwrap();
        let want = naive(&op, d, &inputs);
        assert_eq!(y.len(), want.len());
        for (&got, (want, size)) in y.f32().iter().zip(want) {
            // Worst case of a sum in f32 of that many terms.
            let allowed = (d.depth() + 3) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
            assert!(
                (f64::from(got) - want).abs() <= allowed,
                "{op:?} {d:?}: {got}, wanted {want} ± {allowed}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 96,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(1),
            ..ProptestConfig::default()
        })]
        #[test]
        fn any_shape_agrees_with_the_definition(
            (b, c, h, w) in (1usize..3, 1usize..4, 1usize..9, 1usize..24),
            (o, wh, ww) in (1usize..5, 1usize..6, 1usize..6),
            (stride, before, after) in (1usize..4, 0usize..4, 0usize..4),
            (upsample, relu) in (any::<bool>(), any::<bool>()),
            more in 0usize..3,
        ) {
            let op = Conv2d { stride, padding: [before, after], upsample, relu };
            agrees(op, [b, c, h, w], [o, wh, ww], more, &Device::cpu_poisoned());
        }
    }

    /// Planes of more than one strip, whose ends fall inside rows; bits do not depend on what stands beside a sample.
    #[test]
    fn strips_join_and_samples_stand_alone() {
        let cpu = Device::cpu_poisoned();
        let strided = Conv2d { stride: 2, ..Conv2d::same(3) };
        let doubled = Conv2d { upsample: true, ..Conv2d::same(3) };
        for op in [Conv2d::same(3).relu(), strided, doubled] {
            agrees(op, [1, 150, 17, 19], [3, 3, 3], 2, &cpu);
            let (x, w) = (random(&cpu, &[3, 150, 17, 19], 5, 1.0), random(&cpu, &[7, 150, 3, 3], 6, 1.0));
            let all = op.apply(&[&x, &w]).unwrap();
            for b in 0..3 {
                let one = op.apply(&[&x.rows(b..b + 1).unwrap(), &w]).unwrap();
                assert_eq!(one.f32(), all.rows(b..b + 1).unwrap().f32());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shapes() {
        let cpu = Device::cpu();
        let (x, w) = (random(&cpu, &[1, 2, 4, 4], 1, 1.0), random(&cpu, &[3, 2, 5, 5], 2, 1.0));
        let refused = |inputs: &[&Tensor]| Conv2d::same(1).apply(inputs).unwrap_err().to_string();
        assert!(refused(&[&x, &w]).contains("no 5×5 window fits 4×4"));
        assert!(refused(&[&x]).contains("1 inputs"));
        assert!(refused(&[&x, &given(&cpu, &[1, 3, 1, 1], &[0.0; 3])]).contains("x has 2 channels"));
        let w = given(&cpu, &[1, 2, 1, 1], &[0.0; 2]);
        assert!(refused(&[&x, &w, &given(&cpu, &[2], &[0.0; 2])]).contains("the bias has shape [2]"));
        assert!(refused(&[&x, &w, &given(&cpu, &[1], &[0.0]), &x]).contains("the residual has shape"));
        let needs = [true, false];
        assert!(Conv2d::same(1).forward(&[&x, &w], &mut Save::new(&needs)).is_err());
    }
}
