//! TAEF1, the tiny autoencoder of FLUX.1's latents (16 channels, 8×8 pixels): madebyollin's TAESD architecture.
//!
//! Pictures are RGB in [0, 1]; latents are already scaled as the transformer wants them, (z − 0.1159)·0.3611 of the full
//! autoencoder's. A block is `relu(conv(relu(conv(relu(conv(x))))) + x)`, all convolutions are 3×3.

use crate::engine::{Device, Tensor, simd};
use crate::flux::weights::SafeFile;
use crate::ops::conv2d::Conv2d;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Channels between the first layer and the last.
const WIDTH: usize = 64;
const PLAIN: Conv2d = Conv2d::same(3);
const DOWN: Conv2d = Conv2d { stride: 2, ..PLAIN };
const UP: Conv2d = Conv2d { upsample: true, ..PLAIN };

/// A layer: its place in the `nn.Sequential` of the original code, and what it is.
type Place = (usize, Kind);

#[derive(Clone, Copy)]
enum Kind {
    /// Input and output channels, and whether there is a bias.
    Conv(Conv2d, usize, usize, bool),
    Block,
}
use Kind::{Block, Conv};

const ENCODER: [Place; 15] = [
    (0, Conv(PLAIN, 3, WIDTH, true)),
    (1, Block),
    (2, Conv(DOWN, WIDTH, WIDTH, false)),
    (3, Block),
    (4, Block),
    (5, Block),
    (6, Conv(DOWN, WIDTH, WIDTH, false)),
    (7, Block),
    (8, Block),
    (9, Block),
    (10, Conv(DOWN, WIDTH, WIDTH, false)),
    (11, Block),
    (12, Block),
    (13, Block),
    (14, Conv(PLAIN, WIDTH, Taef1::CHANNELS, true)),
];

/// Place 0 clamps, 2 is the ReLU of 1, and those that are left out double the size.
const DECODER: [Place; 15] = [
    (1, Conv(PLAIN.relu(), Taef1::CHANNELS, WIDTH, true)),
    (3, Block),
    (4, Block),
    (5, Block),
    (7, Conv(UP, WIDTH, WIDTH, false)),
    (8, Block),
    (9, Block),
    (10, Block),
    (12, Conv(UP, WIDTH, WIDTH, false)),
    (13, Block),
    (14, Block),
    (15, Block),
    (17, Conv(UP, WIDTH, WIDTH, false)),
    (18, Block),
    (19, Conv(PLAIN, WIDTH, 3, true)),
];

/// A convolution, its weight and its bias, if it has one.
struct Layer(Conv2d, Vec<Tensor>);

impl Layer {
    fn load(file: &SafeFile, name: &str, place: Kind, device: &Device) -> Result<Self> {
        let Conv(op, inp, out, bias) = place else { unreachable!("blocks are loaded by their convolutions") };
        let mut weights = vec![file.shaped(&format!("{name}.weight"), &[out, inp, 3, 3], device)?];
        if bias {
            weights.push(file.shaped(&format!("{name}.bias"), &[out], device)?);
        }
        Ok(Self(op, weights))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [x].into_iter().chain(&self.1).chain(residual).collect();
        self.0.apply(&inputs)
    }
}

/// A stack of single convolutions and of blocks of three.
struct Network(Vec<Vec<Layer>>);

impl Network {
    fn load(part: &Part, places: &[Place], device: &Device) -> Result<Self> {
        let relu = Conv(PLAIN.relu(), WIDTH, WIDTH, true);
        let layer = |&(at, kind): &Place| -> Result<Vec<Layer>> {
            let name = format!("{}{}", part.prefix, at - part.skipped);
            match kind {
                Conv(..) => Ok(vec![Layer::load(&part.file, &name, kind, device)?]),
                Block => {
                    let one = |k| Layer::load(&part.file, &format!("{name}.conv.{k}"), relu, device);
                    [0, 2, 4].map(one).into_iter().collect()
                }
            }
        };
        Ok(Self(places.iter().map(layer).collect::<Result<_>>()?))
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(x.clone(), |x, layer| match &layer[..] {
            [a, b, c] => c.apply(&b.apply(&a.apply(&x, None)?, None)?, Some(&x)),
            [conv] => conv.apply(&x, None),
            _ => unreachable!("a block has three convolutions"),
        })
    }
}

/// Where one half's weights are: the file, what stands before a layer's number, and how many places that has no number for.
struct Part {
    file: SafeFile,
    prefix: &'static str,
    skipped: usize,
}

/// The autoencoder.
pub struct Taef1 {
    encoder: Network,
    decoder: Network,
    device: Device,
}

impl Taef1 {
    /// Latent channels.
    pub const CHANNELS: usize = 16;
    /// Pixels per latent position and side.
    pub const BLOCK: usize = 8;

    /// The files of weights at `path`: a folder with one `…encoder.safetensors` and one `…decoder.safetensors`, as TAESD's
    /// author publishes them, or one file with both (or a folder with that alone), as diffusers writes it.
    pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
        if !path.is_dir() {
            return Ok(vec![path.to_path_buf()]);
        }
        let mut all = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
            all.push(entry.map_err(Error::io(path))?.path());
        }
        all.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        all.sort();
        let half = |end: &str| {
            let named: Vec<&PathBuf> = all
                .iter()
                .filter(|p| p.file_stem().is_some_and(|s| s.to_string_lossy().ends_with(end)))
                .collect();
            if let [one] = named[..] { Some(one.clone()) } else { None }
        };
        match (half("encoder"), half("decoder"), &all[..]) {
            (Some(encoder), Some(decoder), _) => Ok(vec![encoder, decoder]),
            (_, _, [one]) => Ok(vec![one.clone()]),
            _ => Err(Error::format(
                path,
                format!(
                    "holds {} .safetensors files; wanted one that ends in encoder and one in decoder, or one with both",
                    all.len()
                ),
            )),
        }
    }

    /// Reads the weights at `path`, see [`Taef1::files`], to compute in f32 on `device`.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let parts = match &Self::files(path)?[..] {
            [encoder, decoder] => [encoder, decoder].map(|p| Ok((SafeFile::open(p)?, "", 0))),
            // Diffusers clamps before its first layer.
            both => [("encoder.layers.", 0), ("decoder.layers.", 1)].map(|(prefix, skipped)| {
                let file = both.first().ok_or_else(|| Error::format(path, "holds no weights"))?;
                Ok((SafeFile::open(file)?, prefix, skipped))
            }),
        };
        let [encoder, decoder] =
            parts.map(|part: Result<_>| part.map(|(file, prefix, skipped)| Part { file, prefix, skipped }));
        Ok(Self {
            encoder: Network::load(&encoder?, &ENCODER, device)?,
            decoder: Network::load(&decoder?, &DECODER, device)?,
            device: device.clone(),
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Pictures `[B, 3, 8h, 8w]` → latents `[B, 16, h, w]`.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        self.encoder.apply(pictures)
    }

    /// Latents `[B, 16, h, w]` → pictures `[B, 3, 8h, 8w]`, in [0, 1] but for overshoot. Latents are bent into ±3 first.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        // So few that they may as well go by the host.
        let bent: Vec<f32> = latents.values()?.into_iter().map(|z| 3.0 * simd::tanh(z / 3.0)).collect();
        self.decoder.apply(&Tensor::from_slice(&self.device, latents.shape(), &bent)?)
    }
}
