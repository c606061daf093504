//! The op against its formula; what it refuses; its rounds on a device.

use super::super::given;
use super::*;

#[allow(dead_code, clippy::duplicate_mod, reason = "shared with the tests of the library from outside")]
#[path = "../../../tests/common/cuda.rs"]
mod cuda;

/// The formula, term by term, in f64.
fn plainly(op: &Sdpa, inputs: &[&Tensor]) -> Vec<f64> {
    let d = op.dims(inputs).unwrap();
    let w = d.width();
    let at = |t: usize, b: usize, i: usize, c: usize| {
        f64::from(inputs[t].f32()[(b * inputs[t].shape()[1] + i) * w + c])
    };
    let mut out = vec![0.0; d.batch * d.queries * w];
    for (b, h, i) in
        (0..d.batch).flat_map(|b| (0..d.heads).flat_map(move |h| (0..d.queries).map(move |i| (b, h, i))))
    {
        let keys = if op.causal { i + 1 } else { d.keys };
        let weights: Vec<f64> = (0..keys)
            .map(|j| {
                let dot: f64 = (h * d.hd..(h + 1) * d.hd).map(|c| at(0, b, i, c) * at(1, b, j, c)).sum();
                let bias = inputs.get(3).map_or(0.0, |t| t.f32()[(h * d.queries + i) * d.keys + j]);
                (f64::from(op.scale) * dot + f64::from(bias)).exp()
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        for c in h * d.hd..(h + 1) * d.hd {
            let o: f64 = weights.iter().enumerate().map(|(j, p)| p * at(2, b, j, c)).sum();
            out[(b * d.queries + i) * w + c] = o / sum;
        }
    }
    out
}

#[test]
fn agrees_with_the_formula() {
    let cpu = Device::cpu();
    for (causal, biased, [queries, keys], heads, hd) in [
        (true, false, [67, 67], 4, 6),
        (false, true, [5, 70], 2, 8),
        (false, false, [130, 3], 1, 512),
        (true, true, [66, 66], 2, 64),
    ] {
        let shape = |tokens| [2, tokens, heads * hd];
        let [q, k, v] = [(queries, 1), (keys, 2), (keys, 3)].map(|(t, s)| random(&cpu, &shape(t), s, 1.0));
        let bias = random(&cpu, &[heads, queries, keys], 4, 1.0);
        let op = Sdpa { heads, scale: 1.0 / (hd as f32).sqrt(), causal };
        let inputs: Vec<&Tensor> = [&q, &k, &v].into_iter().chain(biased.then_some(&bias)).collect();
        let (got, want) = (op.apply(&inputs).unwrap(), plainly(&op, &inputs));
        // Scores of order 1 are sums of hd terms, each rounded to half an ulp; the average over keys adds as much.
        let allowed = 2f64.powi(-24) * ((hd + keys) as f64).sqrt() * 8.0;
        let worst = got.f32().iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
        assert!(worst.fold(0.0, f64::max) < allowed, "{heads}×{hd}, causal {causal}");
    }
}

/// As many rounds as there are heads and tiles of queries, and one.
#[test]
fn bits_do_not_depend_on_how_much_is_in_memory() {
    let Some(device) = cuda::device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    let op = Sdpa { heads: 3, scale: 0.5, causal: true };
    let bias = random(&device, &[3, 150, 150], 4, 1.0);
    for dtype in [DType::F32, DType::Bf16] {
        let input = |stream| {
            let x = random(&Device::cpu(), &[2, 150, 24], stream, 1.0);
            match dtype {
                DType::F32 => Tensor::from_slice(&device, x.shape(), x.f32()),
                DType::Bf16 => Tensor::bf16_from_f32(&device, x.shape(), x.f32()),
            }
        };
        let [q, k, v] = [1, 2, 3].map(|stream| input(stream).unwrap());
        let inputs = [&q, &k, &v, &bias];
        let with = |scores| {
            let d = op.dims(&inputs).unwrap();
            launch::forward(gpu, &op, d, &inputs, scores).unwrap().values().unwrap()
        };
        assert_eq!(with(1), with(launch::SCORES), "{dtype:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let cpu = Device::cpu();
    let (x, y) = (random(&cpu, &[1, 2, 6], 1, 1.0), random(&cpu, &[1, 3, 6], 2, 1.0));
    let op = Sdpa { heads: 2, scale: 1.0, causal: false };
    let refused = |op: Sdpa, inputs: &[&Tensor]| op.apply(inputs).unwrap_err().to_string();
    assert!(refused(op, &[&x, &y]).contains("2 inputs"));
    assert!(refused(Sdpa { heads: 4, ..op }, &[&x, &x, &x]).contains("width 6 is no multiple of 4 heads"));
    assert!(refused(op, &[&x, &y, &x]).contains("v has shape [1, 2, 6]"));
    assert!(refused(op, &[&x, &x, &x, &x]).contains("the bias has shape"));
    assert!(refused(Sdpa { causal: true, ..op }, &[&x, &y, &y]).contains("2 queries and 3 keys"));
    let none = given(&cpu, &[1, 0, 6], &[]);
    assert!(refused(op, &[&x, &none, &none]).contains("at least one"));
    assert!(op.forward(&[&x, &x, &x], &mut Save::new(&[true])).is_err());
}
