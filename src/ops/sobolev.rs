//! The Sobolev metric of residuals, and the gap of two residuals in it without cancellation (paper §3.2).
//!
//! ```text
//! E_s(r) = 1/(C·H·W) · Σ_c Σ_k w(k) |F r_c(k)|²,   w(k) = (1+|k|²)^s,   A = F⁻¹ w F
//!          F the orthonormal 2-D DFT of each plane, k integer (fftfreq·size); s = 0 is the mean square
//! SobolevGap:  v [≥n, C, H, W], v_ref [n, …], target v* [n, …]  →  gap [n] = E(v − v*) − E(v_ref − v*)
//!              d = v − v_ref,  u = v + v_ref − 2v*,  gap = ⟨d, A u⟩/(C·H·W)
//! ```
//! Subtracting two energies of 10⁴ to see a gap of 10⁻³ is hopeless in f32, so the gap is computed from d. Both planes
//! go through one complex transform: `z = d + i·u`, `y = A z = A d + i·A u`; the dot product takes the spatial d as it
//! came in, and runs in f64 in a fixed order. Re y is never used alone: it carries the rounding of A u.
//!
//! Saves `∂ = (Re y + Im y)/(C·H·W) = ∂E(v − v*)/∂v = 2/(C·H·W)·A (v − v*)`; backward: `dv_b = ∂_b·dgap_b`.
//! Differentiable in v alone. With v_ref = target the gap is the energy E_s(v − target) and its gradient exactly that.
//!
//! `spectrum = half` is the public reference: it sums each of the ⌊W/2⌋+1 columns of a real FFT once, which is the
//! full plane with w·m, m = 1 for column 0 and, if W is even, column W/2, else ½. (At s = 0 the reference takes the plain
//! mean square instead; that is `full`, and the caller's choice.) `weight = mean-one` divides w by its mean over the plane.

use super::multiplier::{Multiplier, dot};
use super::{Case, Op, Save, Slot, dims4, expect_constant, expect_f32, expect_inputs, random};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;
use rustfft::num_complex::Complex32;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

mod launch;

/// Which frequencies the energy sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spectrum {
    /// All of the plane: Parseval-exact.
    Full,
    /// The columns of a real FFT once each, as the public reference does.
    Half,
}

/// How the weight is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// (1+|k|²)^s as it is: the energy grows with the plane.
    Raw,
    /// Divided by the mean of (1+|k|²)^s over the plane: one β serves every size.
    MeanOne,
}

/// What makes an energy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Smoothness; any real number, 1.5 in the paper, 0 for the mean square.
    pub s: f64,
    /// Which frequencies count.
    pub spectrum: Spectrum,
    /// How the weight is scaled.
    pub weight: Weight,
}

impl Metric {
    /// The energy of the paper: the full plane, unscaled.
    pub const fn full(s: f64) -> Self {
        Self { s, spectrum: Spectrum::Full, weight: Weight::Raw }
    }

    /// The real, even weight of a plane of `h`×`w`, in the order of the DFT's frequencies.
    pub fn plane(&self, h: usize, w: usize) -> Vec<f32> {
        self.plane_f64(h, w).into_iter().map(|v| v as f32).collect()
    }

    fn plane_f64(&self, h: usize, w: usize) -> Vec<f64> {
        let frequency = |i: usize, n: usize| i.min(n - i) as f64;
        let raw = |i: usize| (1.0 + frequency(i / w, h).powi(2) + frequency(i % w, w).powi(2)).powf(self.s);
        let mut plane: Vec<f64> = (0..h * w).map(raw).collect();
        if self.weight == Weight::MeanOne {
            let mean = plane.iter().sum::<f64>() / plane.len() as f64;
            plane.iter_mut().for_each(|v| *v /= mean);
        }
        if self.spectrum == Spectrum::Half {
            let alone = |column: usize| column == 0 || 2 * column == w;
            plane.iter_mut().enumerate().filter(|(i, _)| !alone(i % w)).for_each(|(_, v)| *v *= 0.5);
        }
        plane
    }
}

/// The operator A of a metric, for planes of any size: `(I − Δ)^s` where the metric is full and raw.
///
/// Plans and weights are made once per plane size and shared by clones.
#[derive(Clone)]
pub struct Sobolev {
    metric: Metric,
    sizes: Arc<Mutex<Vec<Known>>>,
}

/// A plane size and its operator.
type Known = ((usize, usize), Arc<Multiplier>);

impl Sobolev {
    /// The operator of `metric`.
    pub fn new(metric: Metric) -> Self {
        Self { metric, sizes: Arc::default() }
    }
    /// The metric.
    pub fn metric(&self) -> &Metric {
        &self.metric
    }

    /// The operator on planes of `h`×`w`.
    pub fn at(&self, h: usize, w: usize) -> Result<Arc<Multiplier>> {
        // The list only ever grows by whole entries, so a panic elsewhere does not spoil it.
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = sizes.iter().find(|(size, _)| *size == (h, w)) {
            return Ok(known.clone());
        }
        let made = Multiplier::new(h, w, &self.metric.plane_f64(h, w)).map_err(|e| {
            Error::shape("sobolev", format!("s = {} on planes of {h}×{w}: {e}", self.metric.s))
        })?;
        let made = Arc::new(made);
        sizes.push(((h, w), made.clone()));
        Ok(made)
    }

    /// A x of every plane of `x` [B, C, H, W].
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let [_, _, h, w] = dims4("sobolev", "the field", x)?;
        expect_f32("sobolev", &[x])?;
        let mut out = Tensor::empty(x.device(), x.shape())?;
        if let Some(gpu) = x.device().gpu() {
            launch::apply(gpu, &self.metric, x, &mut out)?;
            return Ok(out);
        }
        self.at(h, w)?.apply_all(x.f32(), out.f32_mut());
        Ok(out)
    }

    /// ⟨a, A b⟩/(C·H·W) of every sample of two fields [B, C, H, W].
    pub fn inner(&self, a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
        let [n, c, h, w] = dims4("sobolev", "the first field", a)?;
        expect_f32("sobolev", &[a, b])?;
        b.expect("sobolev", "the second field", a.shape())?;
        if a.device().is_meta() {
            return Ok(vec![0.0; n]);
        }
        Ok(per_sample(&self.at(h, w)?.inner_all(a.f32(), b.f32()), c, h * w))
    }

    /// E(r) of every sample of `r` [B, C, H, W].
    pub fn energy(&self, r: &Tensor) -> Result<Vec<f64>> {
        self.inner(r, r)
    }
}

/// Sums of `c` planes each, divided by the values of a sample.
fn per_sample(planes: &[f64], c: usize, area: usize) -> Vec<f64> {
    planes.chunks(c.max(1)).map(|p| p.iter().sum::<f64>() / (c * area) as f64).collect()
}

/// How a CUDA device transforms planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// In one block by radices of 16, 8 and 4: square planes of 8, 16, 32, 64 or, where the device has the shared memory,
    /// 128.
    Radix,
    /// In one block by the matrix of the DFT: planes of at most 64×64.
    Matrix,
    /// By cuFFT: planes of any size.
    CuFft,
}

/// The gap of two residuals' energies against one target; inputs v, v_ref, target. A clone shares the plans.
#[derive(Clone)]
pub struct SobolevGap {
    operator: Sobolev,
    /// `None`: the fastest for the plane's size.
    route: Option<Route>,
}

impl SobolevGap {
    /// The gap in `metric`.
    pub fn new(metric: Metric) -> Self {
        Self { operator: Sobolev::new(metric), route: None }
    }
    /// The same, transformed by `route` on a CUDA device.
    pub fn by(mut self, route: Route) -> Self {
        self.route = Some(route);
        self
    }
}

impl Op for SobolevGap {
    fn name(&self) -> &'static str {
        "sobolev_gap"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("sobolev_gap", inputs, 3)?;
        expect_f32("sobolev_gap", inputs)?;
        expect_constant("sobolev_gap", save, &[(1, "v_ref"), (2, "target")])?;
        let [v, v_ref, target] = [inputs[0], inputs[1], inputs[2]];
        let [n, c, h, w] = dims4("sobolev_gap", "v_ref", v_ref)?;
        target.expect("sobolev_gap", "target", v_ref.shape())?;
        v.expect("sobolev_gap", "v", v_ref.shape())?;
        if c == 0 {
            return Err(Error::shape(
                "sobolev_gap",
                format!("v_ref has shape {:?}: no channel", v_ref.shape()),
            ));
        }
        let operator = self.operator.at(h, w)?;
        let area = h * w;
        let scale = (1.0 / (c * area) as f64) as f32;

        let kept = if save.needs(0) { n } else { 0 };
        let mut partial = Tensor::empty(v.device(), &[kept, c, h, w])?;
        if let Some(gpu) = v.device().gpu() {
            let (metric, route) = (self.operator.metric(), self.route);
            let problem = launch::Problem {
                fields: [v, v_ref, target],
                extents: [n, c, h, w],
                metric,
                route,
                scale: None,
            };
            let gap = launch::forward(gpu, &problem, &mut partial)?;
            save.keep(&partial);
            return Ok(vec![gap]);
        }
        if v.device().is_meta() {
            save.keep(&partial);
            return Ok(vec![Tensor::zeros(v.device(), &[n])?]);
        }
        let keep = partial.f32_mut().chunks_mut(area).map(Some).chain(std::iter::repeat_with(|| None));
        let planes: Vec<(usize, Option<&mut [f32]>)> = (0..n * c).zip(keep).collect();
        let dots: Vec<f64> = planes
            .into_par_iter()
            .map_init(
                || operator.scratch(),
                |scratch, (p, keep)| {
                    let [v, v_ref, target] = [v, v_ref, target].map(|t| &t.f32()[p * area..][..area]);
                    let y = operator.apply(scratch, |i| {
                        let u = (v[i] - target[i]) + (v_ref[i] - target[i]);
                        Complex32::new(v[i] - v_ref[i], u)
                    });
                    if let Some(keep) = keep {
                        keep.iter_mut().zip(y).for_each(|(k, y)| *k = (y.re + y.im) * scale);
                    }
                    dot(v.iter().zip(v_ref).map(|(a, b)| a - b), y.iter().map(|y| y.im))
                },
            )
            .collect();
        let gap: Vec<f32> = per_sample(&dots, c, area).into_iter().map(|g| g as f32).collect();
        save.keep(&partial);
        Ok(vec![Tensor::from_slice(v.device(), &[n], &gap)?])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let (Some(slot), Some(dgap)) = (&mut slots[0], grads[0]) {
            if let Some(gpu) = dgap.device().gpu() {
                return launch::backward(gpu, &saved[0], dgap, slot);
            }
            let each = slot.grad.stride0();
            let rows = slot.adding().par_chunks_mut(each).zip(saved[0].f32().par_chunks(each));
            rows.zip(dgap.f32()).for_each(|((g, partial), &dgap)| simd::axpy(dgap, partial, g));
        }
        Ok(())
    }
}

/// Small ones for gradcheck (even and odd planes); the gaps of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let by = |route: Option<Route>, metric: Metric, [n, c, h, w]: [usize; 4]| {
        let field = |stream: u64| random(device, &[n, c, h, w], stream, 0.5);
        let inputs = vec![field(1), field(2), field(3)];
        let values = (n * c * h * w) as f64;
        let flops = 10.0 * values * ((h * w) as f64).log2() + 10.0 * values;
        let by = route.map_or(String::new(), |r| format!(" {r:?}"));
        let name = format!("sobolev_gap/{:?}/s{}/{n}x{c}x{h}x{w}{by}", metric.spectrum, metric.s);
        let op = SobolevGap { route, ..SobolevGap::new(metric) };
        let mut case = Case::new(name.to_lowercase(), op, inputs).constant(&[1, 2]);
        case.bytes = 12.0 * values;
        case.cost(flops, n + n * c * h * w)
    };
    let case = |metric, extents| by(None, metric, extents);
    let half = |s: f64, weight: Weight| Metric { s, spectrum: Spectrum::Half, weight };
    // Every route of a CUDA device, at sizes that it is for and at those it is not the first choice for.
    let routed = |route, extents: [usize; 4]| by(Some(route), half(1.5, Weight::Raw), extents).bench_only();
    let routes = vec![
        routed(Route::Radix, [2, 3, 8, 8]),
        routed(Route::Radix, [2, 3, 32, 32]),
        routed(Route::Radix, [2, 2, 128, 128]),
        routed(Route::Matrix, [2, 2, 64, 64]),
        routed(Route::Matrix, [2, 2, 33, 48]),
        routed(Route::CuFft, [2, 2, 64, 64]),
        routed(Route::CuFft, [2, 3, 5, 7]),
        routed(Route::CuFft, [2, 1, 96, 80]),
    ];
    let mut all = vec![
        case(Metric::full(1.5), [3, 2, 4, 6]),
        case(half(1.5, Weight::Raw), [3, 1, 3, 5]),
        case(half(-1.0, Weight::MeanOne), [3, 2, 5, 4]),
        case(Metric::full(0.0), [3, 1, 1, 7]),
        case(half(1.5, Weight::Raw), [6, 16, 16, 16]).bench_only(),
        case(half(1.5, Weight::Raw), [3, 16, 64, 64]).bench_only(),
    ];
    all.extend(routes);
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustfft::num_complex::Complex64;
    use safetensors::{Dtype, SafeTensors};
    use std::f64::consts::TAU;

    /// The 2-D DFT (unnormalised), directly, in f64.
    pub(crate) fn dft(z: &[Complex64], h: usize, w: usize) -> Vec<Complex64> {
        let turns = |n: usize| (0..n).map(|i| Complex64::cis(-TAU * i as f64 / n as f64)).collect::<Vec<_>>();
        let (across, down) = (turns(w), turns(h));
        let line = |turns: &[Complex64], x: &dyn Fn(usize) -> Complex64, k: usize| -> Complex64 {
            (0..turns.len()).map(|j| x(j) * turns[j * k % turns.len()]).sum()
        };
        let rows: Vec<Complex64> = (0..h * w).map(|i| line(&across, &|j| z[i / w * w + j], i % w)).collect();
        (0..h * w).map(|i| line(&down, &|j| rows[j * w + i % w], i / w)).collect()
    }

    /// A x by the definition, in f64, for one plane; the weight spelled out anew.
    fn operator(metric: &Metric, x: &[f64], h: usize, w: usize) -> Vec<f64> {
        let signed = |i: usize, n: usize| if 2 * i < n { i as f64 } else { i as f64 - n as f64 };
        let raw = |i: usize| (1.0 + signed(i / w, h).powi(2) + signed(i % w, w).powi(2)).powf(metric.s);
        let mean = match metric.weight {
            Weight::Raw => 1.0,
            Weight::MeanOne => (0..h * w).map(raw).sum::<f64>() / (h * w) as f64,
        };
        let m = |col: usize| match metric.spectrum {
            Spectrum::Half if col != 0 && 2 * col != w => 0.5,
            _ => 1.0,
        };
        let z: Vec<Complex64> = x.iter().map(|&v| Complex64::new(v, 0.0)).collect();
        let mut spectrum = dft(&z, h, w);
        // The inverse is the conjugate of the DFT of the conjugate, over H·W.
        spectrum.iter_mut().enumerate().for_each(|(i, z)| *z = z.conj() * raw(i) * m(i % w) / mean);
        dft(&spectrum, h, w).iter().map(|z| z.re / (h * w) as f64).collect()
    }

    /// The gaps in f64, as ⟨d, A u⟩, and ∂E/∂v.
    fn exact(metric: &Metric, v: &Tensor, v_ref: &Tensor, target: &Tensor) -> (Vec<f64>, Vec<f64>) {
        let [n, c, h, w]: [usize; 4] = v_ref.shape().try_into().unwrap();
        let (mut gaps, mut partial) = (vec![0.0; n], Vec::new());
        for p in 0..n * c {
            let at = |t: &Tensor| -> Vec<f64> {
                t.f32()[p * h * w..][..h * w].iter().map(|&x| x.into()).collect()
            };
            let (a, b, t) = (at(v), at(v_ref), at(target));
            let u: Vec<f64> = (0..h * w).map(|i| a[i] + b[i] - 2.0 * t[i]).collect();
            let r: Vec<f64> = (0..h * w).map(|i| a[i] - t[i]).collect();
            let au = operator(metric, &u, h, w);
            let size = (c * h * w) as f64;
            gaps[p / c] += (0..h * w).map(|i| (a[i] - b[i]) * au[i]).sum::<f64>() / size;
            partial.extend(operator(metric, &r, h, w).iter().map(|x| 2.0 * x / size));
        }
        (gaps, partial)
    }

    fn run(metric: Metric, v: &Tensor, v_ref: &Tensor, target: &Tensor) -> (Tensor, Tensor) {
        let op = SobolevGap::new(metric);
        let mut save = Save::new(&[true, false, false]);
        let gap = op.forward(&[v, v_ref, target], &mut save).unwrap().remove(0);
        (gap, save.into_kept().remove(0))
    }

    fn both() -> [Metric; 2] {
        [Spectrum::Full, Spectrum::Half].map(|spectrum| Metric { s: 1.5, spectrum, weight: Weight::Raw })
    }

    fn rel_l2(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
        let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        got.zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt() / norm
    }

    /// The golden file of the PyTorch reference: every s, both spectra, values and gradients.
    #[test]
    fn golden_values_and_gradients() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
        let bytes = std::fs::read(format!("{dir}sobolev.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let json = std::fs::read(format!("{dir}sobolev.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let read = |name: &str| -> Option<Vec<f64>> {
            let t = file.tensor(name).ok()?;
            Some(match t.dtype() {
                Dtype::F32 => t
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
                    .collect(),
                Dtype::F64 => {
                    t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
                }
                other => panic!("{name} is {other:?}"),
            })
        };
        let tolerance = |name: &str, kind: &str| json["tensors"][name]["tolerance"][kind].as_f64().unwrap();
        let d = Device::cpu_poisoned();
        let (mut values, mut gradients, mut worst) = (0, 0, (0f64, 0f64));
        for i in 0..json["config"]["shapes"].as_array().unwrap().len() {
            let x = file.tensor(&format!("x_{i}")).unwrap();
            let data: Vec<f32> = read(&format!("x_{i}")).unwrap().iter().map(|&v| v as f32).collect();
            let x = Tensor::from_slice(&d, x.shape(), &data).unwrap();
            let zero = Tensor::zeros(&d, x.shape()).unwrap();
            for s in json["config"]["s"].as_array().unwrap() {
                for (kind, spectrum) in [("full", Spectrum::Full), ("ref", Spectrum::Half)] {
                    let metric = Metric { s: s.as_f64().unwrap(), spectrum, weight: Weight::Raw };
                    let (energy, gradient) = run(metric, &x, &zero, &zero);
                    let name = format!("{kind}_{i}_s{s}");
                    let want = read(&format!("{kind}64_{i}_s{s}")).unwrap();
                    let got = || energy.f32().iter().map(|&v| f64::from(v));
                    let error = rel_l2(got(), &want);
                    assert!(error <= tolerance(&name, "rel_l2"), "{name}: {error:e}");
                    let off = got().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
                    assert!(off <= tolerance(&name, "max_abs"), "{name}: {off:e}");
                    values += 1;
                    worst.0 = worst.0.max(error / tolerance(&name, "rel_l2"));
                    let name = format!("{name}_grad");
                    if let Some(want) = read(&name) {
                        let error = rel_l2(gradient.f32().iter().map(|&v| v.into()), &want);
                        assert!(error <= tolerance(&name, "rel_l2"), "{name}: {error:e}");
                        let off = gradient.f32().iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).abs());
                        let off = off.fold(0.0, f64::max);
                        assert!(off <= tolerance(&name, "max_abs"), "{name}: {off:e}");
                        gradients += 1;
                        worst.1 = worst.1.max(error / tolerance(&name, "rel_l2"));
                    }
                }
            }
        }
        println!("{values} values, {gradients} gradients; worst share of a tolerance {worst:.3?}");
        assert_eq!((values, gradients), (48, 24));
    }

    /// Policy and reference nearly equal at E ≈ 10⁴: the gap survives; the difference of two f32 energies does not.
    #[test]
    fn a_small_gap_of_large_energies_is_right() {
        let d = Device::cpu_poisoned();
        let shape = [4, 16, 64, 64];
        for metric in both() {
            let (v_ref, target) = (random(&d, &shape, 1, 0.7), random(&d, &shape, 2, 0.7));
            let mut v = random(&d, &shape, 3, 1e-4);
            v.f32_mut().iter_mut().zip(v_ref.f32()).for_each(|(v, r)| *v += r);
            let (gap, _) = run(metric, &v, &v_ref, &target);
            let (want, _) = exact(&metric, &v, &v_ref, &target);
            let (e, e_ref) = (run(metric, &v, &target, &target).0, run(metric, &v_ref, &target, &target).0);
            let mut naive = 0f64;
            for (b, want) in want.iter().enumerate() {
                let error = (f64::from(gap.f32()[b]) - want).abs() / want.abs();
                naive = naive.max((f64::from(e.f32()[b] - e_ref.f32()[b]) - want).abs() / want.abs());
                println!("{:?} E {:.0} gap {want:+.2e}: off by {error:.1e}", metric.spectrum, e.f32()[b]);
                assert!(error < 1e-4, "gap {want:e} is off by {error:e}");
                assert!(e.f32()[b] > 8e3);
            }
            println!("subtracting the energies is off by up to {naive:.1e}");
            assert!(naive > 1e-2, "subtracting energies would do: {naive:e}");
        }
    }

    /// Any plane, odd or degenerate, any real s, every option, against the direct DFT in f64.
    #[test]
    fn odd_planes_agree_with_the_definition() {
        let d = Device::cpu_poisoned();
        for (i, (h, w)) in
            [(7, 9), (1, 5), (5, 1), (1, 1), (15, 32), (2, 3), (13, 10)].into_iter().enumerate()
        {
            for s in [-1.3, 0.0, 0.7, 1.5] {
                for spectrum in [Spectrum::Full, Spectrum::Half] {
                    for weight in [Weight::Raw, Weight::MeanOne] {
                        let metric = Metric { s, spectrum, weight };
                        let field = |stream: u64| random(&d, &[2, 3, h, w], 10 * i as u64 + stream, 1.0);
                        let (v, v_ref, target) = (field(1), field(2), field(3));
                        let (gap, partial) = run(metric, &v, &v_ref, &target);
                        let (want, want_partial) = exact(&metric, &v, &v_ref, &target);
                        // A gap of random fields can be small by chance: measure against the energies it is made of.
                        let size = Sobolev::new(metric).energy(&v).unwrap().into_iter().fold(0.0, f64::max);
                        for (g, w) in gap.f32().iter().zip(&want) {
                            assert!(
                                (f64::from(*g) - w).abs() < 2e-6 * size,
                                "{h}×{w} {metric:?}: {g} vs {w}"
                            );
                        }
                        let error = rel_l2(partial.f32().iter().map(|&v| v.into()), &want_partial);
                        assert!(error < 2e-6, "{h}×{w} {metric:?}: gradient off by {error:e}");
                    }
                }
            }
        }
    }

    /// The plane means the method quotes for s = 1.5, and the share of the half spectrum.
    #[test]
    fn the_weight_has_the_known_means() {
        let mean = |p: Vec<f32>| p.iter().map(|&v| f64::from(v)).sum::<f64>() / p.len() as f64;
        for (n, want) in [(8, 47.0), (16, 335.0), (32, 2597.0), (64, 20607.0)] {
            assert!((mean(Metric::full(1.5).plane(n, n)) - want).abs() < 0.5, "{n}");
        }
        let one = Metric { weight: Weight::MeanOne, ..Metric::full(1.5) };
        assert!((mean(one.plane(9, 14)) - 1.0).abs() < 1e-6);
        let half = mean(both()[1].plane(64, 64));
        assert!((20607.0 / half - 1.9135).abs() < 1e-3, "{half}");
        assert_eq!(Metric::full(0.0).plane(3, 4), [1.0; 12]);
    }

    /// A sample's gap and gradient, alone, among others, and on one thread: the same bits. An equal policy: exactly 0.
    #[test]
    fn bits_depend_on_the_sample_alone() {
        let d = Device::cpu_poisoned();
        let shape = [5, 3, 12, 10];
        let (v, v_ref, target) =
            (random(&d, &shape, 1, 1.0), random(&d, &shape, 2, 1.0), random(&d, &shape, 3, 1.0));
        let bits = |t: &Tensor| t.f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for metric in both() {
            let (gap, partial) = run(metric, &v, &v_ref, &target);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let (gap1, partial1) = pool.install(|| run(metric, &v, &v_ref, &target));
            assert_eq!((bits(&gap), bits(&partial)), (bits(&gap1), bits(&partial1)));
            for b in 0..5 {
                let row = |t: &Tensor| t.rows(b..b + 1).unwrap();
                let (g, p) = run(metric, &row(&v), &row(&v_ref), &row(&target));
                assert_eq!((bits(&g), bits(&p)), (bits(&row(&gap)), bits(&row(&partial))));
            }
            assert!(run(metric, &v, &v, &target).0.f32().iter().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let d = Device::cpu();
        let (a, b) = (Tensor::zeros(&d, &[2, 1, 4, 4]).unwrap(), Tensor::zeros(&d, &[3, 1, 4, 4]).unwrap());
        let op = SobolevGap::new(Metric::full(1.5));
        let says = |r: Result<Vec<Tensor>>, what: &str| {
            let e = r.expect_err("refused").to_string();
            assert!(e.contains(what), "{e}");
        };
        says(
            op.forward(&[&a, &b, &b], &mut Save::nothing()),
            "v has shape [2, 1, 4, 4], wanted [3, 1, 4, 4]",
        );
        says(op.forward(&[&a, &a, &b], &mut Save::nothing()), "target has shape [3, 1, 4, 4]");
        says(op.forward(&[&a, &a, &a], &mut Save::new(&[true, true, false])), "v_ref");
        let steep = SobolevGap::new(Metric::full(60.0));
        says(steep.forward(&[&a, &a, &a], &mut Save::nothing()), "s = 60 on planes of 4×4");
    }

    #[test]
    fn a_metric_is_written_in_words() {
        let metric = Metric { s: 1.5, spectrum: Spectrum::Half, weight: Weight::MeanOne };
        let text = serde_json::to_string(&metric).unwrap();
        assert_eq!(text, r#"{"s":1.5,"spectrum":"half","weight":"mean-one"}"#);
        assert_eq!(serde_json::from_str::<Metric>(&text).unwrap(), metric);
    }
}
