//! Loops over the pixels of one plane, compiled for several instruction sets as [`simd`](super::simd)'s are, and with the
//! same bits on every one of them.

use super::random::Philox;
use super::simd::targets;
use multiversion::multiversion;

/// Taps that are added in one pass over a row: enough that loading and storing the sum costs little beside them.
const GROUP: usize = 7;

targets! {
    /// Correlates a plane with rows of taps: `out[y][x] = Σ weights[r][i] · from[(y + r)·stride + x + i·step]`, `r` over
    /// the rows of `across` taps each, in that order. `step` is 1 for taps beside each other, the stride for taps below
    /// each other. `out` has rows of `width`; `from` must reach as far as they need.
    pub fn correlate(
        from: &[f32],
        stride: usize,
        weights: &[f32],
        across: usize,
        step: usize,
        width: usize,
        out: &mut [f32],
    ) {
        out.fill(0.0);
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            for (r, taps) in weights.chunks_exact(across).enumerate() {
                add_taps(&from[(y + r) * stride..], step, taps, row);
            }
        }
    }
}

#[inline(always)]
fn add_taps(from: &[f32], step: usize, taps: &[f32], out: &mut [f32]) {
    let (groups, rest) = taps.as_chunks::<GROUP>();
    for (g, group) in groups.iter().enumerate() {
        add(&from[g * GROUP * step..], step, *group, out);
    }
    if rest.is_empty() {
        return;
    }
    let from = &from[groups.len() * GROUP * step..];
    match *rest {
        [a] => add(from, step, [a], out),
        [a, b] => add(from, step, [a, b], out),
        [a, b, c] => add(from, step, [a, b, c], out),
        [a, b, c, d] => add(from, step, [a, b, c, d], out),
        [a, b, c, d, e] => add(from, step, [a, b, c, d, e], out),
        [a, b, c, d, e, f] => add(from, step, [a, b, c, d, e, f], out),
        _ => unreachable!("fewer than {GROUP} are left"),
    }
}

#[inline(always)]
fn add<const N: usize>(from: &[f32], step: usize, taps: [f32; N], out: &mut [f32]) {
    let n = out.len();
    let sources: [&[f32]; N] = std::array::from_fn(|i| &from[i * step..][..n]);
    for (x, o) in out.iter_mut().enumerate() {
        let mut v = *o;
        for (tap, source) in taps.iter().zip(&sources) {
            v += tap * source[x];
        }
        *o = v;
    }
}

targets! {
    /// Values as bytes: ×255, rounded half to even, clamped to 0…255. NaN becomes 0.
    pub fn to_bytes(values: &[f32], out: &mut [u8]) {
        // 2²³ leaves no room for a fraction: the sum is rounded as IEEE addition rounds, and its low bits are the byte.
        const ROUND: f32 = 8_388_608.0;
        for (o, v) in out.iter_mut().zip(values) {
            *o = ((v * 255.0).clamp(0.0, 255.0) + ROUND).to_bits() as u8;
        }
    }
}

targets! {
    /// The values that bytes stand for, b/255.
    pub fn from_bytes(bytes: &[u8], out: &mut [f32]) {
        for (o, &b) in out.iter_mut().zip(bytes) {
            *o = f32::from(b) / 255.0;
        }
    }
}

targets! {
    /// The words number 0… of a stream.
    pub fn words(noise: Philox, out: &mut [u32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let words = noise.words(block as u64);
            four.copy_from_slice(&words[..four.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_is_its_definition() {
        let (h, w) = (5, 9);
        for (down, across) in [(1, 1), (3, 7), (2, 8), (4, 20), (1, 13)] {
            let stride = w + across - 1;
            let from: Vec<f32> = (0..(h + down - 1) * stride).map(|i| ((i * 37) % 101) as f32).collect();
            let weights: Vec<f32> = (0..down * across).map(|i| (i % 5) as f32 - 2.0).collect();
            let mut out = vec![f32::NAN; h * w];
            correlate(&from, stride, &weights, across, 1, w, &mut out);
            for (i, got) in out.iter().enumerate() {
                let (y, x) = (i / w, i % w);
                let want: f32 = (0..down * across)
                    .map(|k| weights[k] * from[(y + k / across) * stride + x + k % across])
                    .sum();
                assert_eq!(*got, want, "{down}×{across} at {y}, {x}");
            }
        }
        // below each other
        let from: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut out = vec![f32::NAN; 6];
        correlate(&from, 3, &[1.0, 10.0, 100.0], 3, 3, 3, &mut out);
        assert_eq!(out, [630.0, 741.0, 852.0, 963.0, 1074.0, 1185.0]);
    }

    #[test]
    fn bytes_are_rounded_half_to_even_and_saturate() {
        let values = [0.5, 1.5, 2.5, 254.5, -3.0, 300.0, f32::NAN, f32::INFINITY].map(|v: f32| v / 255.0);
        let mut bytes = [9; 8];
        to_bytes(&values, &mut bytes);
        assert_eq!(bytes, [0, 2, 2, 254, 0, 255, 0, 255]);
        let all: Vec<u8> = (0..=255).collect();
        let (mut floats, mut back) = (vec![0.0; 256], vec![0; 256]);
        from_bytes(&all, &mut floats);
        to_bytes(&floats, &mut back);
        assert_eq!(back, all);
    }

    #[test]
    fn words_are_the_streams() {
        let noise = Philox::new(3, 4);
        let mut out = [0; 11];
        words(noise, &mut out);
        let mut reader = noise.reader();
        assert!(out.iter().all(|&w| w == reader.word()));
    }
}
