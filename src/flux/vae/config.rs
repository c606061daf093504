//! The autoencoder's dimensions: diffusers' `config.json`, or what its tensors' shapes tell.

use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// diffusers' class name, as `config.json` carries it.
pub const CLASS: &str = "AutoencoderKL";
/// The largest number of channels, layers or blocks that is believed.
const MOST: usize = 1 << 16;

/// Dimensions of an autoencoder. Fields are diffusers', defaults FLUX.1's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of a picture that is encoded.
    pub in_channels: usize,
    /// Channels of a picture that is decoded.
    pub out_channels: usize,
    /// Latent channels.
    pub latent_channels: usize,
    /// Channels of each block, from the largest plane to the smallest.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of an encoder's block; a decoder's has one more.
    pub layers_per_block: usize,
    /// Groups of every normalisation.
    pub norm_num_groups: usize,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
    /// What latents are multiplied by.
    pub scaling_factor: f32,
    /// What is subtracted before that; `None` is 0.
    pub shift_factor: Option<f32>,
    /// Must be "silu".
    act_fn: String,
    /// Must be false, as the next.
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            scaling_factor: 0.3611,
            shift_factor: Some(0.1159),
            act_fn: "silu".to_owned(),
            use_quant_conv: false,
            use_post_quant_conv: false,
        }
    }
}

impl VaeConfig {
    /// Reads `config.json` of the folder `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::parse(&text).map_err(|detail| Error::format(&path, detail))
    }

    /// [`VaeConfig::load`] of a file's text; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| format!("not an autoencoder's config: {e}"))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses, in words, what cannot be computed.
    pub(super) fn check(&self) -> Result<(), String> {
        let (widths, groups) = (&self.block_out_channels, self.norm_num_groups);
        let sizes =
            [self.in_channels, self.out_channels, self.latent_channels, self.layers_per_block, groups];
        if self.act_fn != "silu" {
            return Err(format!("act_fn is {:?}; wanted \"silu\"", self.act_fn));
        }
        if self.use_quant_conv || self.use_post_quant_conv {
            return Err(
                "use_quant_conv or use_post_quant_conv is true; FLUX.1's autoencoder has no such layer"
                    .into(),
            );
        }
        if widths.is_empty()
            || widths.len() > 8
            || sizes.iter().chain(widths).any(|n| !(1..=MOST).contains(n))
        {
            return Err(format!(
                "block_out_channels {widths:?} and channels, layers and groups {sizes:?}: wanted one to eight blocks and \
                 numbers from 1 to {MOST}"
            ));
        }
        if let Some(width) = widths.iter().find(|width| *width % groups != 0) {
            return Err(format!("{width} channels are not norm_num_groups = {groups} equal groups"));
        }
        let usable =
            self.scaling_factor.is_finite() && self.scaling_factor != 0.0 && self.shift().is_finite();
        if !usable {
            let (scale, shift) = (self.scaling_factor, self.shift());
            return Err(format!(
                "scaling_factor {scale}, shift_factor {shift}: wanted finite numbers, the first not 0"
            ));
        }
        Ok(())
    }

    /// Pixels per latent position and side.
    pub fn block(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// [`VaeConfig::shift_factor`].
    pub fn shift(&self) -> f32 {
        self.shift_factor.unwrap_or(0.0)
    }

    /// FLUX.1's, but for what `shape` tells of tensors by diffusers' names; `None` of one that is not there.
    pub(super) fn of_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Self {
        let extent = |name: &str, i: usize| shape(name).and_then(|s| s.get(i).copied());
        let first = |i| format!("encoder.down_blocks.{i}.resnets.0.conv1.weight");
        let layer = |j| format!("encoder.down_blocks.0.resnets.{j}.conv1.weight");
        Self {
            in_channels: extent("encoder.conv_in.weight", 1).unwrap_or(3),
            out_channels: extent("decoder.conv_out.weight", 0).unwrap_or(3),
            latent_channels: extent("decoder.conv_in.weight", 1).unwrap_or(16),
            block_out_channels: (0..).map_while(|i| extent(&first(i), 0)).collect(),
            layers_per_block: (0..).take_while(|&j| shape(&layer(j)).is_some()).count(),
            mid_block_add_attention: shape("decoder.mid_block.attentions.0.to_q.weight").is_some(),
            ..Self::default()
        }
    }
}
