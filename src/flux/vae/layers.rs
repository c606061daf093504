//! The autoencoder's two networks: stacks of residual blocks around one attention.

use super::weights::Reader;
use crate::Result;
use crate::engine::Tensor;
use crate::ops::conv2d::Conv2d;
use crate::ops::group_norm::GroupNorm;
use crate::ops::sdpa::Sdpa;
use crate::ops::transpose::transposed;

const PLAIN: Conv2d = Conv2d::same(3);
const POINTWISE: Conv2d = Conv2d::same(1);
/// Zeros stand below and on the right alone.
const DOWN: Conv2d = Conv2d { stride: 2, padding: [0, 1], ..PLAIN };
const UP: Conv2d = Conv2d { upsample: true, ..PLAIN };

/// A convolution, its weight and its bias.
struct Conv(Conv2d, [Tensor; 2]);

impl Conv {
    fn load(r: &Reader, name: &str, op: Conv2d, side: usize, [inp, out]: [usize; 2]) -> Result<Self> {
        let w = r.get(&format!("{name}.weight"), &[out, inp, side, side])?;
        Ok(Self(op, [w, r.get(&format!("{name}.bias"), &[out])?]))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [x].into_iter().chain(&self.1).chain(residual).collect();
        self.0.apply(&inputs)
    }
}

/// A normalisation, its weight and its bias.
struct Norm(GroupNorm, [Tensor; 2]);

impl Norm {
    fn load(r: &Reader, name: &str, silu: bool, channels: usize) -> Result<Self> {
        let part = |part: &str| r.get(&format!("{name}.{part}"), &[channels]);
        Ok(Self(GroupNorm { groups: r.config.norm_num_groups, silu }, [part("weight")?, part("bias")?]))
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.0.apply(&[x, &self.1[0], &self.1[1]])
    }
}

/// `x + conv(silu(norm(conv(silu(norm(x))))))`, x through a 1×1 convolution where the channels differ.
struct Resnet {
    norms: [Norm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Resnet {
    fn load(r: &Reader, name: &str, [inp, out]: [usize; 2]) -> Result<Self> {
        let norm = |i: usize, channels| Norm::load(r, &format!("{name}.norm{i}"), true, channels);
        let conv = |i: usize, inp| Conv::load(r, &format!("{name}.conv{i}"), PLAIN, 3, [inp, out]);
        let shortcut = || Conv::load(r, &format!("{name}.conv_shortcut"), POINTWISE, 1, [inp, out]);
        Ok(Self {
            norms: [norm(1, inp)?, norm(2, out)?],
            convs: [conv(1, inp)?, conv(2, out)?],
            shortcut: (inp != out).then(shortcut).transpose()?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.convs[0].apply(&self.norms[0].apply(x)?, None)?;
        // In its place, so that the larger planes are held but once.
        h = self.norms[1].apply(&h)?;
        match &self.shortcut {
            Some(conv) => self.convs[1].apply(&h, Some(&conv.apply(x, None)?)),
            None => self.convs[1].apply(&h, Some(x)),
        }
    }
}

/// `x + out(attention(q(norm(x)), k(norm(x)), v(norm(x))))`, every position a token, one head of all channels.
struct Attention {
    norm: Norm,
    qkv: [Conv; 3],
    out: Conv,
}

impl Attention {
    fn load(r: &Reader, name: &str, channels: usize) -> Result<Self> {
        let conv = |part: &str| Conv::load(r, &format!("{name}.{part}"), POINTWISE, 1, [channels; 2]);
        Ok(Self {
            norm: Norm::load(r, &format!("{name}.group_norm"), false, channels)?,
            qkv: [conv("to_q")?, conv("to_k")?, conv("to_v")?],
            out: conv("to_out.0")?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norm.apply(x)?;
        let &[batch, channels, ..] = x.shape() else { unreachable!("the norm has counted the extents") };
        let planes = [batch, channels, x.len() / (batch * channels).max(1)];
        let tokens = |conv: &Conv| transposed(&conv.apply(&h, None)?.reshape(&planes)?);
        let [q, k, v] = self.qkv.each_ref().map(tokens);
        let one = Sdpa { heads: 1, scale: 1.0 / (channels as f32).sqrt(), causal: false };
        let o = transposed(&one.apply(&[&q?, &k?, &v?])?)?.reshape(x.shape())?;
        self.out.apply(&o, Some(x))
    }
}

enum Layer {
    Conv(Conv),
    Norm(Norm),
    Resnet(Box<Resnet>),
    Attention(Box<Attention>),
}

impl Layer {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.apply(x, None),
            Self::Norm(norm) => norm.apply(x),
            Self::Resnet(block) => block.apply(x),
            Self::Attention(block) => block.apply(x),
        }
    }
}

/// The layers of one half in order, and how many there are up to the end of the middle block.
pub struct Network {
    layers: Vec<Layer>,
    middle: usize,
}

impl Network {
    /// Planes halve after every block but the last; two numbers come out per latent.
    pub fn encoder(r: &Reader) -> Result<Self> {
        let c = r.config;
        let mut stack = Stack { r, layers: Vec::new(), channels: c.in_channels };
        stack.conv("encoder.conv_in", PLAIN, c.block_out_channels[0])?;
        for (i, &width) in c.block_out_channels.iter().enumerate() {
            let block = format!("encoder.down_blocks.{i}");
            (0..c.layers_per_block).try_for_each(|j| stack.resnet(&format!("{block}.resnets.{j}"), width))?;
            if i + 1 < c.block_out_channels.len() {
                stack.conv(&format!("{block}.downsamplers.0.conv"), DOWN, width)?;
            }
        }
        stack.middle("encoder.mid_block")?;
        let middle = stack.layers.len();
        stack.end("encoder", 2 * c.latent_channels)?;
        Ok(Self { layers: stack.layers, middle })
    }

    /// The reverse, with one more residual layer per block.
    pub fn decoder(r: &Reader) -> Result<Self> {
        let c = r.config;
        let widths: Vec<usize> = c.block_out_channels.iter().rev().copied().collect();
        let mut stack = Stack { r, layers: Vec::new(), channels: c.latent_channels };
        stack.conv("decoder.conv_in", PLAIN, widths[0])?;
        stack.middle("decoder.mid_block")?;
        let middle = stack.layers.len();
        for (i, &width) in widths.iter().enumerate() {
            let block = format!("decoder.up_blocks.{i}");
            (0..=c.layers_per_block)
                .try_for_each(|j| stack.resnet(&format!("{block}.resnets.{j}"), width))?;
            if i + 1 < widths.len() {
                stack.conv(&format!("{block}.upsamplers.0.conv"), UP, width)?;
            }
        }
        stack.end("decoder", c.out_channels)?;
        Ok(Self { layers: stack.layers, middle })
    }

    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        run(&self.layers, x)
    }

    /// What the middle block gives.
    pub fn to_middle(&self, x: &Tensor) -> Result<Tensor> {
        run(&self.layers[..self.middle], x)
    }
}

fn run(layers: &[Layer], x: &Tensor) -> Result<Tensor> {
    layers.iter().try_fold(x.clone(), |x, layer| layer.apply(&x))
}

/// A network while it is read: what there is, and how many channels come out of it.
struct Stack<'r, 'f> {
    r: &'r Reader<'f>,
    layers: Vec<Layer>,
    channels: usize,
}

impl Stack<'_, '_> {
    fn conv(&mut self, name: &str, op: Conv2d, out: usize) -> Result<()> {
        let conv = Conv::load(self.r, name, op, 3, [self.channels, out])?;
        self.layers.push(Layer::Conv(conv));
        self.channels = out;
        Ok(())
    }

    fn resnet(&mut self, name: &str, out: usize) -> Result<()> {
        let block = Resnet::load(self.r, name, [self.channels, out])?;
        self.layers.push(Layer::Resnet(Box::new(block)));
        self.channels = out;
        Ok(())
    }

    fn middle(&mut self, name: &str) -> Result<()> {
        self.resnet(&format!("{name}.resnets.0"), self.channels)?;
        if self.r.config.mid_block_add_attention {
            let block = Attention::load(self.r, &format!("{name}.attentions.0"), self.channels)?;
            self.layers.push(Layer::Attention(Box::new(block)));
        }
        self.resnet(&format!("{name}.resnets.1"), self.channels)
    }

    fn end(&mut self, half: &str, out: usize) -> Result<()> {
        let norm = Norm::load(self.r, &format!("{half}.conv_norm_out"), true, self.channels)?;
        self.layers.push(Layer::Norm(norm));
        self.conv(&format!("{half}.conv_out"), PLAIN, out)
    }
}
