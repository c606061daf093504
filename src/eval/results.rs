//! What methods score on folders of pictures: every picture's figures, the sets' means, and the files of them.

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

use super::{Backbone, Convention, Dists, Folders, Lpips, Pair, RadialSpectra};
use crate::data::Image;
use crate::files::write_atomic;
use crate::{Error, Result};

/// What is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More.
    More,
    /// Less.
    Less,
    /// What is nearer to 1, by its ratio to it.
    One,
}

/// A column of the results.
pub struct Measure {
    /// What files call it.
    pub key: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// Its unit, or nothing.
    pub unit: &'static str,
    /// Which way.
    pub better: Better,
    /// Digits after the point that mean something.
    pub digits: usize,
}

const fn measure(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    digits: usize,
) -> Measure {
    Measure { key, title, unit, better, digits }
}

/// Every column, in the order of [`Figures::values`].
pub const MEASURES: [Measure; 8] = [
    measure("psnr_y", "PSNR-Y", "dB", Better::More, 2),
    measure("ssim_y", "SSIM-Y", "", Better::More, 4),
    measure("lpips_alex", "LPIPS (alex)", "", Better::Less, 4),
    measure("lpips_vgg", "LPIPS (vgg)", "", Better::Less, 4),
    measure("dists", "DISTS", "", Better::Less, 4),
    measure("lsd_db", "LSD", "dB", Better::Less, 2),
    measure("rlsd_db", "radial LSD", "dB", Better::Less, 2),
    measure("hf_ratio", "hf ratio", "", Better::One, 3),
];

impl Measure {
    /// How far `value` is from the best there could be, in an order: less is better.
    pub fn badness(&self, value: f64) -> f64 {
        match self.better {
            Better::More => -value,
            Better::Less => value,
            Better::One => value.ln().abs(),
        }
    }

    /// Which way is better, as a mark.
    pub fn mark(&self) -> &'static str {
        match self.better {
            Better::More => "↑",
            Better::Less => "↓",
            Better::One => "→ 1",
        }
    }

    /// The head of a column: title, unit, mark.
    pub fn head(&self) -> String {
        let comma = if self.unit.is_empty() { "" } else { ", " };
        format!("{}{comma}{} {}", self.title, self.unit, self.mark())
    }

    /// `value` with the digits that mean something.
    pub fn format(&self, value: f64) -> String {
        format!("{value:.*}", self.digits)
    }
}

/// The figures of one picture, or of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Peak signal-to-noise ratio on luma, dB.
    pub psnr_y: f64,
    /// Structural similarity on luma.
    pub ssim_y: f64,
    /// LPIPS with AlexNet, where its weights were given.
    pub lpips_alex: Option<f64>,
    /// LPIPS with VGG16, where its weights were given.
    pub lpips_vgg: Option<f64>,
    /// DISTS, where its weights were given.
    pub dists: Option<f64>,
    /// Two-dimensional log-spectral distance, dB.
    pub lsd_db: f64,
    /// Radial log-spectral distance, dB; a set's is of the set's summed spectra, not a mean.
    pub rlsd_db: f64,
    /// Power above 0.125 cycles per pixel over the truth's; a set's is of the set's sums.
    pub hf_ratio: f64,
}

impl Figures {
    /// The figures in the order of [`MEASURES`].
    pub fn values(&self) -> [Option<f64>; MEASURES.len()] {
        let Self { psnr_y, ssim_y, lpips_alex, lpips_vgg, dists, lsd_db, rlsd_db, hf_ratio } = *self;
        [
            Some(psnr_y),
            Some(ssim_y),
            lpips_alex,
            lpips_vgg,
            dists,
            Some(lsd_db),
            Some(rlsd_db),
            Some(hf_ratio),
        ]
    }

    /// Means over a set, and what its summed spectra say.
    fn of_set(images: &[Self], spectra: &RadialSpectra) -> Self {
        let n = images.len() as f64;
        let mean = |of: fn(&Self) -> f64| images.iter().map(of).sum::<f64>() / n;
        let known = |of: fn(&Self) -> Option<f64>| Some(images.iter().map(of).sum::<Option<f64>>()? / n);
        Self {
            psnr_y: mean(|f| f.psnr_y),
            ssim_y: mean(|f| f.ssim_y),
            lpips_alex: known(|f| f.lpips_alex),
            lpips_vgg: known(|f| f.lpips_vgg),
            dists: known(|f| f.dists),
            lsd_db: mean(|f| f.lsd_db),
            rlsd_db: spectra.rlsd_db(),
            hf_ratio: spectra.hf_ratio(),
        }
    }
}

/// What one method scored.
pub struct MethodResults {
    /// Its name.
    pub name: String,
    /// The set's figures.
    pub mean: Figures,
    /// Each picture's, in the order of [`Results::names`].
    pub images: Vec<Figures>,
    /// Spectra summed over the set.
    pub spectra: RadialSpectra,
    /// How many pictures were of another size than the truth.
    pub resized: usize,
}

/// Every method's scores on the same pictures.
pub struct Results {
    /// The pictures' names.
    pub names: Vec<String>,
    /// The methods, as they were given.
    pub methods: Vec<MethodResults>,
    /// Whose PSNR and SSIM.
    pub convention: Convention,
}

/// The networks whose distances are measured besides.
#[derive(Default)]
pub struct Networks {
    /// LPIPS with AlexNet.
    pub lpips_alex: Option<Lpips>,
    /// LPIPS with VGG16.
    pub lpips_vgg: Option<Lpips>,
    /// DISTS.
    pub dists: Option<Dists>,
}

impl Networks {
    fn measure(&self, restored: &Image, truth: &Image, figures: &mut Figures) -> Result<()> {
        let lpips = |net: &Option<Lpips>| net.as_ref().map(|net| net.distance(restored, truth)).transpose();
        figures.lpips_alex = lpips(&self.lpips_alex)?;
        figures.lpips_vgg = lpips(&self.lpips_vgg)?;
        figures.dists = self.dists.as_ref().map(|net| net.distance(restored, truth)).transpose()?;
        Ok(())
    }

    /// The least side of a picture that all that is measured, networks and SSIM, can do something with.
    pub fn least_side(&self) -> usize {
        let lpips =
            [&self.lpips_alex, &self.lpips_vgg].into_iter().flatten().map(|net| net.backbone().least());
        let dists = self.dists.iter().map(|_| Backbone::Vgg16.least());
        lpips.chain(dists).fold(Pair::least_side(0), usize::max)
    }

    fn is_empty(&self) -> bool {
        self.lpips_alex.is_none() && self.lpips_vgg.is_none() && self.dists.is_none()
    }
}

impl Results {
    /// Scores every method on every picture, without a border. Pictures are read when their turn comes: memory does not
    /// grow with their number. `progress` is told pictures done and in all.
    pub fn of(
        folders: &Folders,
        convention: Convention,
        networks: &Networks,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let (n, methods) = (folders.names().len(), folders.methods().len());
        let mut images = vec![Vec::with_capacity(n); methods];
        let mut sums = vec![RadialSpectra::new(folders.least_side()); methods];
        let all: Vec<usize> = (0..n).collect();
        for group in all.chunks(rayon::current_num_threads()) {
            let scored: Vec<_> =
                group.par_iter().map(|&i| without_networks(folders, i, convention)).collect::<Result<_>>()?;
            for (&i, of_methods) in group.iter().zip(scored) {
                // One at a time: a network shares its own work out, and its activations are large.
                let truth = if networks.is_empty() { None } else { Some(folders.truth(i)?) };
                for (m, (mut figures, spectra)) in of_methods.into_iter().enumerate() {
                    if let Some(truth) = &truth {
                        networks.measure(&folders.restored(m, i, truth)?, truth, &mut figures)?;
                    }
                    images[m].push(figures);
                    sums[m].add(&spectra);
                }
                progress(i + 1, n);
            }
        }
        let results = folders.methods().zip(images).zip(sums).enumerate();
        let methods = results.map(|(m, ((name, images), spectra))| MethodResults {
            name: name.to_owned(),
            mean: Figures::of_set(&images, &spectra),
            images,
            spectra,
            resized: folders.resized(m),
        });
        Ok(Self { methods: methods.collect(), names: folders.names().to_vec(), convention })
    }

    /// The method that is best in measure `k`; none where no other was measured, or the best are equal.
    pub fn best(&self, k: usize) -> Option<usize> {
        let badness = |m: &MethodResults| Some(MEASURES[k].badness(m.mean.values()[k]?));
        let all: Vec<f64> = self.methods.iter().map(badness).collect::<Option<_>>()?;
        let (best, least) = all.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1))?;
        let alone = all.iter().filter(|b| *b == least).count() == 1;
        (all.len() > 1 && alone).then_some(best)
    }

    /// Which measure cases are called bad by: the first network's that was given, else PSNR-Y.
    pub fn judge(&self) -> usize {
        let known = |k: &usize| self.methods.iter().any(|m| m.mean.values()[*k].is_some());
        (2..5).find(known).unwrap_or(0)
    }

    /// The pictures of method `m`, the worst by [`Results::judge`] first.
    pub fn worst(&self, m: usize) -> Vec<usize> {
        let k = self.judge();
        let badness = |i: usize| MEASURES[k].badness(self.methods[m].images[i].values()[k].unwrap_or(0.0));
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by(|&a, &b| badness(b).total_cmp(&badness(a)));
        order
    }

    /// `{"methods": {name: {"mean": {…}, "images": [{"name", …}]}}}`; `null` where a network was not given, and where a
    /// number is not finite (basicsr's PSNR of equal pictures).
    pub fn to_json(&self) -> Result<String> {
        let unfit = |e: serde_json::Error| Error::shape("eval", format!("the results are not JSON: {e}"));
        let mut methods = Map::new();
        for method in &self.methods {
            let mut images = Vec::new();
            for (name, figures) in self.names.iter().zip(&method.images) {
                let mut image = Map::from_iter([("name".to_owned(), Value::from(name.as_str()))]);
                if let Value::Object(figures) = serde_json::to_value(figures).map_err(unfit)? {
                    image.extend(figures);
                }
                images.push(Value::Object(image));
            }
            methods.insert(method.name.clone(), json!({ "mean": method.mean, "images": images }));
        }
        Ok(serde_json::to_string_pretty(&json!({ "methods": methods })).map_err(unfit)? + "\n")
    }

    /// Writes [`Results::to_json`] to a file.
    pub fn save_json(&self, path: &Path) -> Result<()> {
        write_atomic(path, self.to_json()?.as_bytes())
    }

    /// Writes [`Results::to_csv`] to a file.
    pub fn save_csv(&self, path: &Path) -> Result<()> {
        write_atomic(path, self.to_csv().as_bytes())
    }

    /// One line per method and picture, below a head; the last line of a method, without a picture, is the set's.
    pub fn to_csv(&self) -> String {
        let mut out = String::from("method,image");
        MEASURES.iter().for_each(|m| out += &format!(",{}", m.key));
        out.push('\n');
        for method in &self.methods {
            let names = self.names.iter().map(String::as_str).chain([""]);
            for (name, figures) in names.zip(method.images.iter().chain([&method.mean])) {
                out += &format!("{},{}", quoted(&method.name), quoted(name));
                for value in figures.values() {
                    out += &value.filter(|v| v.is_finite()).map_or(",".to_owned(), |v| format!(",{v}"));
                }
                out.push('\n');
            }
        }
        out
    }
}

/// The figures of every method's picture `i` but the networks', and its spectra over the set's rings.
fn without_networks(
    folders: &Folders,
    i: usize,
    convention: Convention,
) -> Result<Vec<(Figures, RadialSpectra)>> {
    let truth = folders.truth(i)?;
    let of_method = |m: usize| {
        let pair = Pair::of(&folders.restored(m, i, &truth)?, &truth, 0, convention);
        let own = pair.spectra(truth.height.min(truth.width));
        let figures = Figures {
            psnr_y: pair.psnr_y,
            ssim_y: pair.ssim_y,
            lsd_db: pair.lsd_db,
            rlsd_db: own.rlsd_db(),
            hf_ratio: own.hf_ratio(),
            ..Figures::default()
        };
        let of_set =
            if own.side() == folders.least_side() { own } else { pair.spectra(folders.least_side()) };
        Ok((figures, of_set))
    };
    (0..folders.methods().len()).map(of_method).collect()
}

/// A cell of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
