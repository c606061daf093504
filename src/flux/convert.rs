//! An adapter's file in another tool's naming, read back and compared.

use super::lora::{AdapterFile, LoraModule};
use crate::engine::{Device, Philox};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Unit roundoffs that a module's output may be off by, relative to the sum of its terms' sizes: B and alpha are rounded once
/// where layers of different scales are fused, alpha once more where they are taken apart.
const ROUNDINGS: f64 = 4.0;

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// diffusers' and PEFT's: a folder with a description.
    Diffusers,
    /// kohya's sd-scripts': one file.
    Kohya,
}

impl Format {
    /// Both, by name.
    pub const NAMES: [(&str, Self); 2] = [("diffusers", Self::Diffusers), ("kohya", Self::Kohya)];
}

/// Writes the adapter at `from`, in whatever naming, to `to`, which must not exist; reads it back, and refuses it if any
/// module's output is off by more than rounding. Gives both, and the largest difference in unit roundoffs.
pub fn convert(from: &Path, to: &Path, format: Format) -> Result<(AdapterFile, AdapterFile, f64)> {
    if to.exists() {
        return Err(Error::Usage(format!("{} exists already; name a new file or folder", to.display())));
    }
    let adapter = AdapterFile::load(from, &Device::cpu())?;
    match format {
        Format::Diffusers => adapter.save(to)?,
        Format::Kohya => adapter.save_kohya(to)?,
    }
    let written = AdapterFile::load(to, &Device::cpu())?;
    let off = difference(&adapter, &written)?;
    if off.is_nan() || off > ROUNDINGS {
        // Made above: there was nothing of this name.
        let _ = if to.is_dir() { std::fs::remove_dir_all(to) } else { std::fs::remove_file(to) };
        let detail = format!(
            "read back, a module's output differed by {off:.1} unit roundoffs from {}'s, of which {ROUNDINGS} can be \
             rounding; it was removed",
            from.display()
        );
        return Err(Error::format(to, detail));
    }
    Ok((adapter, written, off))
}

/// The largest difference of two adapters' outputs for the same random input, in f32's unit roundoffs of the sum of what
/// is added up in each. A module that one of them lacks adds nothing.
fn difference(a: &AdapterFile, b: &AdapterFile) -> Result<f64> {
    let modules: BTreeSet<&String> = a.modules.keys().chain(b.modules.keys()).collect();
    let mut worst = 0f64;
    for (stream, module) in modules.into_iter().enumerate() {
        let outputs = [a, b].map(|f| f.modules.get(module).map(|m| output(m, stream as u64)).transpose());
        let [ours, theirs] = outputs;
        let (ours, theirs) = (ours?.unwrap_or_default(), theirs?.unwrap_or_default());
        for i in 0..ours.len().max(theirs.len()) {
            let at = |of: &[(f64, f64)]| of.get(i).copied().unwrap_or_default();
            let ((x, size), (y, other)) = (at(&ours), at(&theirs));
            if x != y {
                worst = worst.max((x - y).abs() / (size.max(other) * 2f64.powi(-24)));
            }
        }
    }
    Ok(worst)
}

/// `alpha/r · B(A x)` for a random x, and the sum of the sizes of all its terms.
fn output(m: &LoraModule, stream: u64) -> Result<Vec<(f64, f64)>> {
    let mut x = vec![0.0; m.a.shape()[1]];
    Philox::new(0, stream).normals(0, &mut x);
    let scale = f64::from(m.alpha) / m.rank() as f64;
    let product = |row: &[f32], x: &[(f64, f64)]| {
        row.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, (v, s))| {
            (sum + f64::from(*w) * v, size + f64::from(w.abs()) * s)
        })
    };
    let x: Vec<(f64, f64)> = x.into_iter().map(|v| (f64::from(v), f64::from(v.abs()))).collect();
    let (a, b) = (m.a.values()?, m.b.values()?);
    let inner: Vec<(f64, f64)> = a.chunks_exact(x.len().max(1)).map(|row| product(row, &x)).collect();
    let outer = b.chunks_exact(inner.len().max(1)).map(|row| product(row, &inner));
    Ok(outer.map(|(sum, size)| (scale * sum, scale.abs() * size)).collect())
}
