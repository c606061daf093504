//! Black Forest Labs' own names of FLUX's layers: those of their single files (`flux1-dev.safetensors`), of ComfyUI, and,
//! with underscores for points, of kohya's adapters.
//!
//! One table says where each layer of diffusers' is. Queries, keys and values are rows of one layer there, in the single
//! blocks together with the MLP's; the last modulation has its shift before its scale, which diffusers has after it.

use super::config::{FluxConfig, SINUSOID};
use std::collections::BTreeMap;
use std::ops::Range;

/// What ComfyUI puts before each name in checkpoints of several networks.
const PREFIXES: [&str; 2] = ["model.diffusion_model.", ""];
/// The head FLUX.1 has, for which the split of its values over the position axes is known.
const HEAD: usize = 128;

/// Which rows of a stored layer one of diffusers' layers is. D is the model's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// The D rows after so many times D.
    Part(usize),
    /// Those after the first 3·D.
    Rest,
    /// The second half, then the first.
    Swapped,
}
use Rows::{All, Part, Rest, Swapped};

type Table = &'static [(&'static str, &'static str, Rows)];

/// diffusers' layers outside of blocks, theirs, and the rows.
const OUTSIDE: Table = &[
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", All),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", All),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", All),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", All),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer", All),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer", All),
    ("context_embedder", "txt_in", All),
    ("x_embedder", "img_in", All),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", Swapped),
    ("proj_out", "final_layer.linear", All),
];

const DOUBLE: Table = &[
    ("norm1.linear", "img_mod.lin", All),
    ("norm1_context.linear", "txt_mod.lin", All),
    ("attn.norm_q", "img_attn.norm.query_norm", All),
    ("attn.norm_k", "img_attn.norm.key_norm", All),
    ("attn.norm_added_q", "txt_attn.norm.query_norm", All),
    ("attn.norm_added_k", "txt_attn.norm.key_norm", All),
    ("attn.to_q", "img_attn.qkv", Part(0)),
    ("attn.to_k", "img_attn.qkv", Part(1)),
    ("attn.to_v", "img_attn.qkv", Part(2)),
    ("attn.add_q_proj", "txt_attn.qkv", Part(0)),
    ("attn.add_k_proj", "txt_attn.qkv", Part(1)),
    ("attn.add_v_proj", "txt_attn.qkv", Part(2)),
    ("attn.to_out.0", "img_attn.proj", All),
    ("attn.to_add_out", "txt_attn.proj", All),
    ("ff.net.0.proj", "img_mlp.0", All),
    ("ff.net.2", "img_mlp.2", All),
    ("ff_context.net.0.proj", "txt_mlp.0", All),
    ("ff_context.net.2", "txt_mlp.2", All),
];

const SINGLE: Table = &[
    ("norm.linear", "modulation.lin", All),
    ("attn.norm_q", "norm.query_norm", All),
    ("attn.norm_k", "norm.key_norm", All),
    ("attn.to_q", "linear1", Part(0)),
    ("attn.to_k", "linear1", Part(1)),
    ("attn.to_v", "linear1", Part(2)),
    ("proj_mlp", "linear1", Rest),
    ("proj_out", "linear2", All),
];

/// diffusers' and their beginning of the names of blocks, and what is in one.
const BLOCKS: [(&str, &str, Table); 2] =
    [("transformer_blocks", "double_blocks", DOUBLE), ("single_transformer_blocks", "single_blocks", SINGLE)];

impl Rows {
    /// Those of a layer of `n` rows in a model of width `d`, one range after the other.
    pub fn ranges(self, d: usize, n: usize) -> Vec<Range<usize>> {
        let first = match self {
            Swapped => return vec![n / 2..n, 0..n / 2],
            All => 0,
            Part(i) => i * d,
            Rest => 3 * d,
        };
        std::iter::once(first..first + n).collect()
    }
}

/// Their layer in which diffusers' layer `module` is, and which rows of it.
pub fn layer(module: &str) -> Option<(String, Rows)> {
    for (ours, theirs, table) in BLOCKS {
        let Some((block, part)) =
            module.strip_prefix(ours).and_then(|m| m.strip_prefix('.')?.split_once('.'))
        else {
            continue;
        };
        let &(_, name, rows) = table.iter().find(|(name, ..)| *name == part)?;
        return Some((format!("{theirs}.{block}.{name}"), rows));
    }
    let &(_, name, rows) = OUTSIDE.iter().find(|(name, ..)| *name == module)?;
    Some((name.to_owned(), rows))
}

/// diffusers' layers that are in their layer `theirs`, whose points may be underscores (kohya's), and the rows of each.
pub fn parts(theirs: &str) -> Vec<(String, Rows)> {
    let flat = theirs.replace('.', "_");
    let within = |table: Table, name: &str, prefix: &str| {
        let those = table.iter().filter(|(_, theirs, _)| theirs.replace('.', "_") == name);
        those.map(|&(ours, _, rows)| (format!("{prefix}{ours}"), rows)).collect::<Vec<_>>()
    };
    for (ours, theirs, table) in BLOCKS {
        if let Some((block, part)) =
            flat.strip_prefix(theirs).and_then(|m| m.strip_prefix('_')?.split_once('_'))
        {
            return within(table, part, &format!("{ours}.{block}."));
        }
    }
    within(OUTSIDE, &flat, "")
}

/// Their layers of the blocks of number `block`, and those outside of blocks.
pub fn layers(block: &str) -> Vec<String> {
    let inside = BLOCKS.iter().flat_map(|(_, theirs, table)| {
        table.iter().map(move |(_, name, _)| format!("{theirs}.{block}.{name}"))
    });
    inside.chain(OUTSIDE.iter().map(|(_, name, _)| (*name).to_owned())).collect()
}

/// Their tensor in which diffusers' tensor `name` is, and which rows of it.
pub fn tensor(name: &str) -> Option<(String, Rows)> {
    let (module, what) = name.rsplit_once('.')?;
    let (theirs, rows) = layer(module)?;
    let what = if theirs.ends_with("_norm") { "scale" } else { what };
    Some((format!("{theirs}.{what}"), rows))
}

/// Name and shape of every tensor of a file of theirs.
pub fn parameters(config: &FluxConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = BTreeMap::<String, Vec<usize>>::new();
    for (ours, mut shape) in config.parameters() {
        let Some((theirs, rows)) = tensor(&ours) else { continue };
        shape[0] = rows.ranges(config.dim(), shape[0]).iter().map(|r| r.end).max().unwrap_or(0);
        let known = all.entry(theirs).or_insert_with(|| shape.clone());
        known[0] = known[0].max(shape[0]);
    }
    all.into_iter().collect()
}

/// What stands before each of their names, if `names` are those of a file of theirs.
pub fn prefix<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<&'static str> {
    names.find_map(|name| {
        PREFIXES.into_iter().find(|prefix| {
            let bare = name.strip_prefix(prefix);
            bare.is_some_and(|n| n.starts_with("double_blocks.") || n.starts_with("single_blocks."))
        })
    })
}

/// The dimensions of the model whose tensors are named `names` and have these shapes; `Err` says what they do not tell.
pub fn config<'s>(
    names: impl Iterator<Item = &'s str>,
    shape: impl Fn(&str) -> Option<&'s [usize]>,
) -> Result<FluxConfig, String> {
    let matrix = |name: &str| match shape(name) {
        Some(&[out, width]) => Ok((out, width)),
        Some(other) => Err(format!("tensor `{name}` has shape {other:?}, wanted a matrix")),
        None => Err(format!("holds no tensor `{name}`, which says how wide the model is")),
    };
    let (mut double, mut single) = (0, 0);
    for name in names {
        for (prefix, count) in [("double_blocks.", &mut double), ("single_blocks.", &mut single)] {
            let number = name.strip_prefix(prefix).and_then(|n| n.split_once('.')?.0.parse::<usize>().ok());
            *count = (*count).max(number.map_or(0, |n| n.saturating_add(1)));
        }
    }
    let (d, in_channels) = matrix("img_in.weight")?;
    let (out_channels, _) = matrix("final_layer.linear.weight")?;
    let guidance = "guidance_in.in_layer.weight";
    let head = ["double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.0.norm.query_norm.scale"];
    let head = head.into_iter().find_map(&shape).and_then(|s| s.first().copied()).unwrap_or(0);
    let mlp = match shape("single_blocks.0.linear2.weight") {
        Some(&[_, width]) => width.saturating_sub(d),
        _ => matrix("double_blocks.0.img_mlp.0.weight")?.0,
    };
    if head == 0 || d % head != 0 || matrix("time_in.in_layer.weight")?.1 != SINUSOID {
        return Err(format!(
            "is of no FLUX.1 model: a width of {d}, heads of {head}, times in {} values (wanted {SINUSOID})",
            matrix("time_in.in_layer.weight")?.1
        ));
    }
    if head != HEAD {
        return Err(format!(
            "has heads of {head} values, and does not tell how positions turn them (FLUX.1's are {HEAD}); put the model's \
             config.json beside it"
        ));
    }
    Ok(FluxConfig {
        in_channels,
        out_channels: (out_channels != in_channels).then_some(out_channels),
        num_layers: double,
        num_single_layers: single,
        attention_head_dim: head,
        num_attention_heads: d / head,
        joint_attention_dim: matrix("txt_in.weight")?.1,
        pooled_projection_dim: matrix("vector_in.in_layer.weight")?.1,
        guidance_embeds: shape(guidance).is_some(),
        mlp_ratio: mlp as f64 / d as f64,
        ..FluxConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(config: &FluxConfig, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        parameters(config).into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
    }

    /// The tensors of the file that is published: their number, and the shapes of those that differ from diffusers'.
    #[test]
    fn flux1_dev_has_its_published_tensors() {
        let config = FluxConfig::flux1_dev();
        let all = shapes(&config, "");
        assert_eq!(all.len(), 780);
        assert_eq!(all.values().map(|s| s.iter().product::<usize>()).sum::<usize>(), 11_901_408_320);
        for (name, shape) in [
            ("double_blocks.18.img_attn.qkv.weight", &[9216, 3072][..]),
            ("double_blocks.0.txt_attn.qkv.bias", &[9216]),
            ("double_blocks.3.img_attn.norm.query_norm.scale", &[128]),
            ("single_blocks.37.linear1.weight", &[21504, 3072]),
            ("single_blocks.37.linear2.weight", &[3072, 15360]),
            ("final_layer.adaLN_modulation.1.weight", &[6144, 3072]),
            ("guidance_in.in_layer.weight", &[3072, 256]),
        ] {
            assert_eq!(all[name], shape, "{name}");
        }
    }

    /// Every row of every stored tensor is in one place of diffusers', and no other.
    #[test]
    fn every_row_has_its_place() {
        let config = FluxConfig { num_layers: 2, num_single_layers: 2, ..FluxConfig::flux1_dev() };
        let mut rows: BTreeMap<String, Vec<bool>> =
            shapes(&config, "").into_iter().map(|(name, shape)| (name, vec![false; shape[0]])).collect();
        for (name, shape) in config.parameters() {
            let (theirs, part) = tensor(&name).unwrap();
            let taken = rows.get_mut(&theirs).unwrap();
            let ranges = part.ranges(config.dim(), shape[0]);
            assert_eq!(ranges.iter().map(Range::len).sum::<usize>(), shape[0], "{name}");
            for row in ranges.into_iter().flatten() {
                assert!(!std::mem::replace(&mut taken[row], true), "row {row} of {theirs} twice");
            }
            let (module, _) = name.rsplit_once('.').unwrap();
            let (theirs, part) = layer(module).unwrap();
            for spelled in [theirs.clone(), theirs.replace('.', "_")] {
                assert!(parts(&spelled).contains(&(module.to_owned(), part)), "{module}");
            }
        }
        assert!(rows.values().flatten().all(|taken| *taken));
        for unknown in ["transformer_blocks.0.attn.to_x", "transformer_blocks", "blocks.0.x", ""] {
            assert!(layer(unknown).is_none() && parts(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn dimensions_are_those_of_the_shapes() {
        let dev = FluxConfig::flux1_dev();
        let schnell = FluxConfig { guidance_embeds: false, ..dev.clone() };
        let fill = FluxConfig { in_channels: 384, out_channels: Some(64), num_layers: 0, ..dev.clone() };
        for config in [dev, schnell, fill] {
            for before in PREFIXES {
                let all = shapes(&config, before);
                let found = prefix(all.keys().map(String::as_str)).unwrap();
                assert_eq!(found, before);
                let names = all.keys().filter_map(|n| n.strip_prefix(found));
                let shape = |n: &str| all.get(&format!("{found}{n}")).map(Vec::as_slice);
                assert_eq!(super::config(names, shape).unwrap(), config);
            }
        }
        let small =
            FluxConfig { attention_head_dim: 64, axes_dims_rope: [8, 28, 28], ..FluxConfig::default() };
        let all = shapes(&small, "");
        let e = super::config(all.keys().map(String::as_str), |n| all.get(n).map(Vec::as_slice)).unwrap_err();
        assert!(e.contains("heads of 64") && e.contains("config.json"), "{e}");
        assert!(
            super::config(["double_blocks.0.x"].into_iter(), |_| None).unwrap_err().contains("img_in.weight")
        );
        assert!(prefix(["transformer_blocks.0.x"].into_iter()).is_none());
    }
}
