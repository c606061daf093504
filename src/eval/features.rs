//! AlexNet and VGG16 (torchvision's) up to their last ReLU, cut where LPIPS and DISTS read them. On the CPU.

use super::pool::Pool;
use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::flux::weights::SafeFile;
use crate::ops::conv2d::Conv2d;
use crate::{Error, Result};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backbone {
    /// Five convolutions.
    Alex,
    /// Thirteen.
    Vgg16,
}

/// A convolution: its place in torchvision's `features`, output channels, window, stride.
type Layer = (usize, usize, usize, usize);

/// The convolutions of each stage; its output is what the last one's ReLU gives.
const ALEX: [&[Layer]; 5] =
    [&[(0, 64, 11, 4)], &[(3, 192, 5, 1)], &[(6, 384, 3, 1)], &[(8, 256, 3, 1)], &[(10, 256, 3, 1)]];
const VGG16: [&[Layer]; 5] = [
    &[(0, 64, 3, 1), (2, 64, 3, 1)],
    &[(5, 128, 3, 1), (7, 128, 3, 1)],
    &[(10, 256, 3, 1), (12, 256, 3, 1), (14, 256, 3, 1)],
    &[(17, 512, 3, 1), (19, 512, 3, 1), (21, 512, 3, 1)],
    &[(24, 512, 3, 1), (26, 512, 3, 1), (28, 512, 3, 1)],
];

impl Backbone {
    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alex => "alex",
            Self::Vgg16 => "vgg",
        }
    }

    /// The network whose weights `file` holds.
    pub(super) fn of(file: &SafeFile) -> Result<Self> {
        match [Self::Vgg16, Self::Alex].into_iter().find(|b| file.contains(&b.last())) {
            Some(backbone) => Ok(backbone),
            None => {
                let [vgg, alex] = [Self::Vgg16, Self::Alex].map(Self::last);
                let detail =
                    format!("holds neither `{vgg}` (VGG16) nor `{alex}` (AlexNet): no metric's weights");
                Err(Error::format(file.path(), detail))
            }
        }
    }

    fn last(self) -> String {
        let stages = self.stages();
        let last = stages[stages.len() - 1].last().map_or(0, |l| l.0);
        format!("features.{last}.weight")
    }

    const fn stages(self) -> [&'static [Layer]; 5] {
        match self {
            Self::Alex => ALEX,
            Self::Vgg16 => VGG16,
        }
    }

    /// Channels of each stage's output.
    pub(super) fn channels(self) -> [usize; 5] {
        self.stages().map(|layers| layers.last().map_or(0, |l| l.1))
    }

    /// The side of the smallest picture that every stage makes something of.
    pub(super) const fn least(self) -> usize {
        match self {
            Self::Alex => 31,
            Self::Vgg16 => 16,
        }
    }
}

/// Weights of a network, each stage's input halved by a pooling or left as it is.
pub(super) struct Features {
    backbone: Backbone,
    /// What a picture in [0, 1] is taken from and divided by, channel by channel.
    input: ([f32; 3], [f32; 3]),
    stages: Vec<(Option<Pool>, Vec<Convolution>)>,
    device: Device,
}

struct Convolution {
    op: Conv2d,
    weight: Tensor,
    bias: Tensor,
}

impl Features {
    /// Reads `features.N.weight` and `.bias` as torchvision calls them; `l2`: DISTS's pooling in place of the largest.
    pub(super) fn load(
        file: &SafeFile,
        backbone: Backbone,
        input: ([f32; 3], [f32; 3]),
        l2: bool,
    ) -> Result<Self> {
        let device = Device::cpu();
        let mut channels = 3;
        let mut stages = Vec::new();
        for (i, layers) in backbone.stages().into_iter().enumerate() {
            let pool = match backbone {
                _ if i == 0 => None,
                Backbone::Vgg16 if l2 => Some(Pool::L2),
                Backbone::Vgg16 => Some(Pool::Max(2)),
                Backbone::Alex => (i < 3).then_some(Pool::Max(3)),
            };
            let mut convolutions = Vec::new();
            for &(at, out, side, stride) in layers {
                let padding = if stride == 1 { side / 2 } else { 2 };
                let op = Conv2d { stride, padding: [padding; 2], upsample: false, relu: true };
                let weight =
                    file.shaped(&format!("features.{at}.weight"), &[out, channels, side, side], &device)?;
                let bias = file.shaped(&format!("features.{at}.bias"), &[out], &device)?;
                convolutions.push(Convolution { op, weight, bias });
                channels = out;
            }
            stages.push((pool, convolutions));
        }
        Ok(Self { backbone, input, stages, device })
    }

    pub(super) fn backbone(&self) -> Backbone {
        self.backbone
    }

    /// `images` of one size through the network, in one batch; `read(k, x)` is given the output of stage `k`,
    /// `[images, channels, height, width]`. No more than two stages are in memory at once.
    pub(super) fn each_stage(
        &self,
        images: [&Image; 2],
        mut read: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let [a, b] = images.map(|i| (i.height, i.width));
        let least = self.backbone.least();
        if a != b || a.0.min(a.1) < least {
            let detail = format!(
                "pictures of {}×{} and {}×{} pixels; wanted two of one size, at least {least} a side",
                a.0, a.1, b.0, b.1
            );
            return Err(Error::shape("distance", detail));
        }
        let (mean, deviation) = self.input;
        let mut values = Vec::with_capacity(6 * a.0 * a.1);
        for image in images {
            for c in 0..3 {
                values.extend(image.plane(c).iter().map(|v| (v - mean[c]) / deviation[c]));
            }
        }
        let mut x = Tensor::from_slice(&self.device, &[2, 3, a.0, a.1], &values)?;
        drop(values);
        for (k, (pool, convolutions)) in self.stages.iter().enumerate() {
            if let Some(pool) = pool {
                x = pool.apply(&x)?;
            }
            for c in convolutions {
                x = c.op.apply(&[&x, &c.weight, &c.bias])?;
            }
            read(k, &x)?;
        }
        Ok(())
    }
}

/// One channel of one sample of `[B, C, H, W]`.
pub(super) fn plane(x: &Tensor, sample: usize, channel: usize) -> &[f32] {
    let n = x.shape()[2] * x.shape()[3];
    &x.f32()[(sample * x.shape()[1] + channel) * n..][..n]
}
