//! Kernels that NVRTC compiled, against the same computed on the CPU.

mod common;

use common::{Device, Params};
use half::bf16;

const GELU: &str = include_str!("../benches/ptx/gelu.ptx");
const LN: &str = include_str!("../benches/ptx/ln_modulate.ptx");
const SOBOLEV: &str = include_str!("../benches/ptx/sobolev.ptx");
const LINEAR: &str = include_str!("../benches/ptx/linear.ptx");

/// Values in -1 .. 1 that repeat no pattern.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761).max(1);
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn halves(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} is not {b}");
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh())
}

#[test]
fn gelu_in_f32_and_bf16() {
    for n in [1, 31, 256, 5003] {
        let d = Device::new(GELU);
        let x: Vec<f32> = noise(n, 7).iter().map(|x| x * 6.0).collect();
        let (from, to) = (d.floats("x", &x), d.empty("y", n as u64 * 4));
        let params = Params::new().u64(from).u64(to).u64(n as u64);
        d.run("gelu_fwd_f32", 3, 256, &params).unwrap_or_else(|r| panic!("{r}"));
        for (x, y) in x.iter().zip(d.read_floats(to, n)) {
            close(y.into(), gelu((*x).into()), 4e-7);
        }
        let (from, to) = (d.halves("x", &halves(&x)), d.empty("y", n as u64 * 2));
        let params = Params::new().u64(from).u64(to).u64(n as u64);
        d.run("gelu_fwd_bf16", 3, 256, &params).unwrap_or_else(|r| panic!("{r}"));
        for (x, y) in x.iter().zip(d.read_halves(to, n)) {
            close(bf16::from_bits(y).into(), gelu(bf16::from_f32(*x).into()), 1.0 / 256.0);
        }
    }
}

#[test]
fn layer_norm() {
    let (rows, width) = (6, 512);
    let d = Device::new(LN);
    let (x, table) = (noise(rows * width, 3), noise(3 * width, 4));
    let (at, image, row) = (d.floats("x", &x), d.floats("table", &table), d.words("rows", &[0]));
    let y = d.empty("y", (rows * width * 4) as u64);
    let params =
        Params::new().u64(at).u64(image).u64(0).u64(row).u64(0).u32(3 * width as u32).u32(0).u32(1 << 30);
    let params = params.u64(y).u32(rows as u32).u32(rows as u32).u32(width as u32).u32(0).u32(2);
    d.run("ln_modulate_fwd_f32", rows.div_ceil(4) as u32, 128, &params).unwrap_or_else(|r| panic!("{r}"));
    let got = d.read_floats(y, rows * width);
    for (x, y) in x.chunks(width).zip(got.chunks(width)) {
        let n = width as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        for (c, (x, y)) in x.iter().zip(y).enumerate() {
            let unit = (f64::from(*x) - mean) / (var + 1e-6).sqrt();
            close((*y).into(), unit * (1.0 + f64::from(table[2 * width + c])) + f64::from(table[c]), 2e-6);
        }
    }
}

#[test]
fn linear_in_bf16() {
    for (m, n, k) in [(128, 128, 64), (130, 136, 72), (256, 256, 256)] {
        let mut d = Device::new(LINEAR);
        d.dynamic_shared = 65536;
        let (a, b, bias) = (halves(&noise(m * k, 1)), halves(&noise(n * k, 2)), halves(&noise(n, 3)));
        let (pa, pb, pbias) = (d.halves("a", &a), d.halves("b", &b), d.halves("bias", &bias));
        let c = d.empty("c", (m * n * 2) as u64);
        let params = Params::new().u64(pa).u64(pb).u64(pbias).u64(c);
        let params = [m, n, k, k, k, n].iter().fold(params, |p, v| p.u32(*v as u32)).f32(0.5).u32(0);
        let blocks = (m.div_ceil(128) * n.div_ceil(128)) as u32;
        let counters = d.run("linear_fwd_bf16", blocks, 256, &params).unwrap_or_else(|r| panic!("{r}"));
        let padded = (m.next_multiple_of(128) * n.next_multiple_of(128) * k.next_multiple_of(32)) as u64;
        assert_eq!(counters.mma_flops, 2 * padded);
        let got = d.read_halves(c, m * n);
        let f = |x: u16| f64::from(bf16::from_bits(x));
        for i in (0..m).step_by(7) {
            for j in 0..n {
                let sum: f64 = (0..k).map(|x| f(a[i * k + x]) * f(b[j * k + x])).sum();
                close(f(got[i * n + j]), 0.5 * sum + f(bias[j]), 1.0 / 256.0 + 1e-5);
            }
        }
    }
}

/// A plane whose weight is 1/N² everywhere comes back as it was.
#[test]
fn sobolev_of_no_weight_is_the_identity() {
    const N: usize = 64;
    let planes = 2;
    let d = Device::new(SOBOLEV);
    let [v, r, t] = [11, 12, 13].map(|s| noise(planes * N * N, s));
    let (pv, pr, pt) = (d.floats("v", &v), d.floats("v_ref", &r), d.floats("target", &t));
    let w = d.floats("weight", &[1.0 / (N * N) as f32; N * N]);
    let (dot, partial) = (d.empty("dot", planes as u64 * 8), d.empty("partial", (planes * N * N * 4) as u64));
    let params =
        Params::new().u64(pv).u64(pr).u64(pt).u64(w).u64(dot).u64(partial).u32(planes as u32).f32(2.0);
    d.run("sobolev_gap_fwd_64_f32", planes as u32, 256, &params).unwrap_or_else(|r| panic!("{r}"));
    let got = d.read_floats(partial, planes * N * N);
    let dots = d.read(dot, planes * 2);
    for p in 0..planes {
        let (mut sum, f) = (0.0, f64::from);
        for i in p * N * N..(p + 1) * N * N {
            let (x, u) = (f(v[i]) - f(r[i]), f(v[i]) - f(t[i]) + f(r[i]) - f(t[i]));
            close(f(got[i]), 2.0 * (x + u), 1e-5);
            sum += x * u;
        }
        let dot = f64::from_bits(u64::from(dots[2 * p + 1]) << 32 | u64::from(dots[2 * p]));
        close(dot, sum, 1e-5);
    }
}

/// What the programs compute and count, as one number.
fn digest() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    let n = 5003;
    let d = Device::new(GELU);
    let x: Vec<f32> = noise(n, 7).iter().map(|x| x * 6.0).collect();
    let (from, to) = (d.floats("x", &x), d.empty("y", n as u64 * 4));
    let params = Params::new().u64(from).u64(to).u64(n as u64);
    let counters = d.run("gelu_fwd_f32", 3, 256, &params).unwrap_or_else(|r| panic!("{r}"));
    (d.read(to, n), counters.items()).hash(&mut hash);
    let (from, to) = (d.halves("x", &halves(&x)), d.empty("y", n as u64 * 2));
    let params = Params::new().u64(from).u64(to).u64(n as u64);
    let counters = d.run("gelu_fwd_bf16", 3, 256, &params).unwrap_or_else(|r| panic!("{r}"));
    (d.read_halves(to, n), counters.items()).hash(&mut hash);

    let (rows, width) = (6, 512);
    let d = Device::new(LN);
    let (at, image) = (d.floats("x", &noise(rows * width, 3)), d.floats("table", &noise(3 * width, 4)));
    let (row, y) = (d.words("rows", &[0]), d.empty("y", (rows * width * 4) as u64));
    let params =
        Params::new().u64(at).u64(image).u64(0).u64(row).u64(0).u32(3 * width as u32).u32(0).u32(1 << 30);
    let params = params.u64(y).u32(rows as u32).u32(rows as u32).u32(width as u32).u32(0).u32(2);
    let counters = d.run("ln_modulate_fwd_f32", 2, 128, &params).unwrap_or_else(|r| panic!("{r}"));
    (d.read(y, rows * width), counters.items()).hash(&mut hash);

    let (m, n, k) = (130, 136, 72);
    let mut d = Device::new(LINEAR);
    d.dynamic_shared = 65536;
    let (a, b) = (d.halves("a", &halves(&noise(m * k, 1))), d.halves("b", &halves(&noise(n * k, 2))));
    let (bias, c) = (d.halves("bias", &halves(&noise(n, 3))), d.empty("c", (m * n * 2) as u64));
    let params = Params::new().u64(a).u64(b).u64(bias).u64(c);
    let params = [m, n, k, k, k, n].iter().fold(params, |p, v| p.u32(*v as u32)).f32(0.5).u32(0);
    let counters = d.run("linear_fwd_bf16", 4, 256, &params).unwrap_or_else(|r| panic!("{r}"));
    (d.read_halves(c, m * n), counters.items()).hash(&mut hash);

    let (planes, side) = (2, 64);
    let d = Device::new(SOBOLEV);
    let [v, r, t] = [11, 12, 13].map(|s| d.floats("plane", &noise(planes * side * side, s)));
    let w = d.floats("weight", &noise(side * side, 14));
    let (dot, partial) =
        (d.empty("dot", planes as u64 * 8), d.empty("partial", (planes * side * side * 4) as u64));
    let params = Params::new().u64(v).u64(r).u64(t).u64(w).u64(dot).u64(partial).u32(planes as u32).f32(2.0);
    let counters =
        d.run("sobolev_gap_fwd_64_f32", planes as u32, 256, &params).unwrap_or_else(|r| panic!("{r}"));
    (d.read(partial, planes * side * side), d.read(dot, planes * 2), counters.items()).hash(&mut hash);
    hash.finish()
}

/// Machines without AVX2 and FMA run the same functions compiled without them: the same bits, and the same counts.
#[test]
fn plain_code_gives_the_same_bits() {
    let mine = format!("digest={:016x}", digest());
    println!("{mine}");
    if std::env::var_os("CUDA_EMU_PLAIN").is_some() {
        return;
    }
    let mut plain = std::process::Command::new(std::env::current_exe().expect("this test"));
    plain.args(["plain_code_gives_the_same_bits", "--exact", "--nocapture"]).env("CUDA_EMU_PLAIN", "1");
    let out = plain.output().expect("a process");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains(&mine), "not {mine}:\n{text}");
}
