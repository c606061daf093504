//! Sensor noise: Gaussian, and Poisson whose rate follows the picture. Each pixel's draw is a word of a counter's stream.

use std::sync::OnceLock;

use crate::data::Image;
use crate::engine::pixels::{from_bytes, to_bytes, words};
use crate::engine::random::Philox;

/// Adds Gaussian noise of `sigma`/255 and clamps to [0, 1]; `grey` noise is the same in all channels.
pub fn add_gaussian(img: &mut Image, sigma: f64, grey: bool, noise: Philox) {
    let n = img.height * img.width;
    let mut normals = vec![0.0; if grey { n } else { 3 * n }];
    noise.normals(0, &mut normals);
    gaussian(img, sigma, &normals);
}

/// [`add_gaussian`] with the standard normals given: a plane of them, or three.
pub fn gaussian(img: &mut Image, sigma: f64, normals: &[f32]) {
    let strength = sigma as f32 / 255.0;
    add(img, normals, |v, z| v + z * strength);
}

/// Adds `scale` times what the picture, its values rounded to 8 bits, loses when each is replaced by a count of photons,
/// and clamps to [0, 1]. [`photons`] says how many white is; `grey` noise is that of the picture's luma, in all channels.
pub fn add_poisson(img: &mut Image, scale: f64, grey: bool, noise: Philox) {
    let levels = levels(img, grey);
    let table = PoissonTable::of(photons(&levels));
    let mut counts = vec![0; levels.len()];
    words(noise, &mut counts);
    counts.iter_mut().zip(&levels).for_each(|(w, &level)| *w = table.count(level, *w));
    poisson(img, scale, &levels, &counts);
}

/// [`add_poisson`] with the counts given: of a picture whose [`levels`] are these.
pub fn poisson(img: &mut Image, scale: f64, levels: &[u8], counts: &[u32]) {
    let (scale, photons) = (scale as f32, photons(levels) as f32);
    let mut loss = vec![0.0; levels.len()];
    from_bytes(levels, &mut loss);
    loss.iter_mut().zip(counts).for_each(|(l, &c)| *l = c as f32 / photons - *l);
    add(img, &loss, |v, l| v + l * scale);
}

/// The 8-bit levels that Poisson noise is drawn from: of all values, or of the luma.
pub fn levels(img: &Image, grey: bool) -> Vec<u8> {
    if !grey {
        let mut levels = vec![0; img.data.len()];
        to_bytes(&img.data, &mut levels);
        return levels;
    }
    let luma = img.plane(0).iter().zip(img.plane(1)).zip(img.plane(2));
    let luma: Vec<f32> = luma.map(|((r, g), b)| 0.2989 * r + 0.587 * g + 0.114 * b).collect();
    let mut levels = vec![0; luma.len()];
    to_bytes(&luma, &mut levels);
    levels
}

/// Photons of a white pixel: the number of distinct levels, raised to a power of two.
pub fn photons(levels: &[u8]) -> usize {
    let mut there = [false; 256];
    levels.iter().for_each(|&l| there[usize::from(l)] = true);
    there.iter().filter(|t| **t).count().next_power_of_two()
}

fn add(img: &mut Image, noise: &[f32], sum: impl Fn(f32, f32) -> f32) {
    // a plane of noise serves three planes of the picture
    for plane in img.data.chunks_exact_mut(noise.len().max(1)) {
        plane.iter_mut().zip(noise).for_each(|(v, z)| *v = sum(*v, *z).clamp(0.0, 1.0));
    }
}

/// Columns of an alias table: as many counts as have a probability above 2⁻³², the resolution of a word, at any rate.
const COLUMNS: usize = 256;

/// The Poisson distributions of the 256 levels for one number of photons, as alias tables (Walker 1977): a word's high 8
/// bits choose a column, its low 24 bits the column's own count or its alias. Exact but for the rounding of probabilities
/// to 2⁻³².
struct PoissonTable {
    /// By level: the count of column 0.
    first: [u32; 256],
    /// By level and column: threshold (24 bits), alias (8 bits).
    columns: Vec<u32>,
}

impl PoissonTable {
    /// The table for `photons`, a power of two up to 256; made when first wanted.
    fn of(photons: usize) -> &'static Self {
        static TABLES: [OnceLock<PoissonTable>; 9] = [const { OnceLock::new() }; 9];
        TABLES[photons.ilog2() as usize].get_or_init(|| Self::new(photons))
    }

    fn new(photons: usize) -> Self {
        let mut table = Self { first: [0; 256], columns: Vec::with_capacity(256 * COLUMNS) };
        for (level, first) in table.first.iter_mut().enumerate() {
            let rate = level as f64 / 255.0 * photons as f64;
            // the rate of 256 has σ = 16: eight of them on either side
            let from = (rate as usize).saturating_sub(COLUMNS / 2);
            *first = from as u32;
            table.columns.extend(alias(&probabilities(rate, from)));
        }
        table
    }

    fn count(&self, level: u8, word: u32) -> u32 {
        let (level, column) = (usize::from(level), word >> 24);
        let entry = self.columns[level * COLUMNS + column as usize];
        self.first[level] + if word & 0x00ff_ffff < entry >> 8 { column } else { entry & 0xff }
    }
}

/// Of the counts `from`…`from + 255`, by the recurrence from the most probable one outwards, summing to 1.
fn probabilities(rate: f64, from: usize) -> [f64; COLUMNS] {
    let mut p = [0.0; COLUMNS];
    let mode = rate as usize - from;
    p[mode] = 1.0;
    for i in mode + 1..COLUMNS {
        p[i] = p[i - 1] * rate / (from + i) as f64;
    }
    for i in (0..mode).rev() {
        p[i] = p[i + 1] * (from + i + 1) as f64 / rate;
    }
    let sum: f64 = p.iter().sum();
    p.map(|v| v / sum)
}

/// The alias table of a distribution (Vose's construction).
fn alias(p: &[f64; COLUMNS]) -> [u32; COLUMNS] {
    let mut scaled = p.map(|p| p * COLUMNS as f64);
    // a column that fills its place aliases itself, so that its threshold is void
    let mut out: [u32; COLUMNS] = std::array::from_fn(|i| i as u32);
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..COLUMNS).partition(|&i| scaled[i] < 1.0);
    while let (Some(&s), Some(&l)) = (small.last(), large.last()) {
        small.pop();
        let threshold = (scaled[s] * f64::from(1 << 24)).round().min(f64::from((1 << 24) - 1));
        out[s] = (threshold as u32) << 8 | l as u32;
        scaled[l] -= 1.0 - scaled[s];
        if scaled[l] < 1.0 {
            large.pop();
            small.push(l);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every word counted, the tables give the distributions to the words' resolution: Poisson's, from logarithms.
    #[test]
    fn tables_hold_the_poisson_distribution() {
        for (photons, levels) in [(256, [1, 100, 255]), (128, [3, 77, 254]), (1, [0, 128, 255])] {
            let table = PoissonTable::of(photons);
            for level in levels {
                let rate = level as f64 / 255.0 * photons as f64;
                let mut p = vec![0.0; 1024];
                for (column, entry) in table.columns[level * COLUMNS..][..COLUMNS].iter().enumerate() {
                    let share = f64::from(entry >> 8) / f64::from(1 << 24) / COLUMNS as f64;
                    let first = table.first[level] as usize;
                    p[first + column] += share;
                    p[first + (entry & 0xff) as usize] += 1.0 / COLUMNS as f64 - share;
                }
                let mut log_factorial = 0.0;
                for (k, got) in p.iter().enumerate() {
                    log_factorial += if k > 0 { (k as f64).ln() } else { 0.0 };
                    let log = if rate > 0.0 {
                        k as f64 * rate.ln() - rate - log_factorial
                    } else {
                        -1e3 * k as f64
                    };
                    // a count's share is made of its column and of those it is the alias of, each rounded by half
                    let bound = 257.0 * 0.5f64.powi(33);
                    assert!(
                        (got - log.exp()).abs() < bound,
                        "{photons} photons, level {level}, {k}: {got:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn photons_are_the_levels_rounded_up() {
        assert_eq!(
            [1usize, 2, 3, 128, 129, 256].map(|n| photons(&(0..n).map(|i| i as u8).collect::<Vec<_>>())),
            [1, 2, 4, 128, 256, 256]
        );
    }

    /// Mean and variance on a flat picture among others, within five standard errors.
    #[test]
    fn noise_has_its_moments() {
        let (h, w) = (128, 256);
        let n = (h * w) as f64;
        // 200 levels in the last row, the rest flat at 0.4
        let base = Image::from_fn(h, w, |_, y, x| if y == h - 1 { (x % 200) as f32 / 255.0 } else { 0.4 });
        let flat = |img: &Image| -> (f64, f64) {
            let values: Vec<f64> = img.plane(1)[..(h - 1) * w].iter().map(|&v| f64::from(v) - 0.4).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64)
        };
        let close = |(mean, variance): (f64, f64), wanted: f64| {
            assert!(mean.abs() < 5.0 * (wanted / n).sqrt(), "mean {mean}");
            assert!((variance / wanted - 1.0).abs() < 5.0 * (2.0 / n).sqrt() * 1.05, "{variance} {wanted}");
        };
        for grey in [false, true] {
            let mut img = base.clone();
            add_gaussian(&mut img, 5.0, grey, Philox::new(1, 2));
            close(flat(&img), (5.0f64 / 255.0).powi(2));
            let same = img.plane(0)[..100] == img.plane(1)[..100];
            assert_eq!(same, grey);
            // 256 photons at 0.4: a variance of 0.4/256 in units of white
            let mut img = base.clone();
            add_poisson(&mut img, 0.5, grey, Philox::new(3, 2));
            close(flat(&img), 0.25 * 0.4 / 256.0);
            let mut again = base.clone();
            add_poisson(&mut again, 0.5, grey, Philox::new(3, 2));
            assert_eq!(img, again);
        }
    }
}
