//! Bad inputs through the real command line: what is printed, the exit code, and that nothing is left behind.
//!
//! One row of [`CASES`] is one bad input: a title, the command line, and what spoils the folder it runs in. The folder
//! holds `run`, a finished run of a very small model, and `photos`, three good pictures; `[DIR]` stands for it in the
//! command line and in the snapshot. After a change of a message: `INSTA_UPDATE=always cargo test --test bad_inputs`,
//! and read the difference in `tests/snapshots`.
#![cfg(target_os = "linux")]

use asasr_engine::data::Image;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A title, the command line, and what to spoil first.
type Case = (&'static str, &'static str, fn(&Path));

/// Spoils nothing: the command line alone is wrong.
const AS_IT_IS: fn(&Path) = |_| ();

const BASE: &str = "run/base/diffusion_pytorch_model.safetensors";
const SFT: &str = "run/base_sft/adapter_model.safetensors";
/// The second shard of [`model`].
const SHARD: &str = "flux/transformer/m-2.safetensors";

#[rustfmt::skip]
const CASES: &[Case] = &[
    // The command line and the options.
    ("unknown command", "trian", AS_IT_IS),
    ("no output directory", "train --preset tiny", AS_IT_IS),
    ("unknown preset", "train --preset tinny --out [DIR]/out", AS_IT_IS),
    ("two presets", "train --preset tiny --set run.preset=paper-asdpo --out [DIR]/out", AS_IT_IS),
    ("bf16 without a GPU", "train --device cpu --set run.precision=bf16 --out [DIR]/out", AS_IT_IS),
    ("malformed --set", "train --set lr=3 --out [DIR]/out", AS_IT_IS),
    ("unknown option", "train --set asdpo.lamda=1 --out [DIR]/out", AS_IT_IS),
    ("option of another section", "train --set data.steps=1 --out [DIR]/out", AS_IT_IS),
    ("unknown section", "train --set sfd.steps=1 --out [DIR]/out", AS_IT_IS),
    ("wrong type", "train --set base.steps=many --out [DIR]/out", AS_IT_IS),
    ("out of range", "train --set base.lr=7 --out [DIR]/out", AS_IT_IS),
    ("not a number", "train --set asdpo.beta=nan --out [DIR]/out", AS_IT_IS),
    ("unknown choice", "train --set asdpo.adversary=loar --out [DIR]/out", AS_IT_IS),
    ("unknown stage", "train --stages sft,dpo --out [DIR]/out", AS_IT_IS),
    ("stages out of order", "train --stages asdpo,sft --out [DIR]/out", AS_IT_IS),
    ("contradictory options", "train --set data.jpeg_min=90 --set data.jpeg_max=50 --out [DIR]/out", AS_IT_IS),
    ("crop larger than the drawn images", "train --set data.crop=256 --out [DIR]/out", AS_IT_IS),
    ("model width not a multiple of its heads", "train --set model.heads=3 --out [DIR]/out", AS_IT_IS),
    ("scale the codec does not have", "train --set data.scale=2 --out [DIR]/out", AS_IT_IS),
    ("codec that is not there", "train --set data.codec=[DIR]/taef1 --out [DIR]/out", AS_IT_IS),
    ("codec folder without weights", "train --set data.codec=[DIR]/photos --out [DIR]/out", AS_IT_IS),
    ("autoencoder without weights", "train --set data.codec=[DIR]/vae --out [DIR]/out", |d| write(d, "vae/config.json", r#"{"_class_name": "AutoencoderKL"}"#)),
    ("autoencoder of another kind", "train --set data.codec=[DIR]/vae --out [DIR]/out", |d| write(d, "vae/config.json", r#"{"_class_name": "AutoencoderKL", "use_quant_conv": true}"#)),
    ("upscale with a codec of another version", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| write(d, "run/codec.json", r#"{"codec": "taef2"}"#)),
    ("upscale with a codec whose weights are gone", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| write(d, "run/codec.json", r#"{"codec": "taef1", "path": "/none/taef1", "sha256": ""}"#)),
    ("no config file", "train --config [DIR]/none.toml --out [DIR]/out", AS_IT_IS),
    ("config file with a syntax error", "train --config [DIR]/c.toml --out [DIR]/out", |d| write(d, "c.toml", "[run]\n\nseed = = 3\n")),
    ("config file with an unknown key", "train --config [DIR]/c.toml --out [DIR]/out", |d| write(d, "c.toml", "[sft]\nstep = 3\n")),
    ("config file with an unknown section", "train --config [DIR]/c.toml --out [DIR]/out", |d| write(d, "c.toml", "[dpo]\nsteps = 3\n")),
    ("config file with a key outside its section", "train --config [DIR]/c.toml --out [DIR]/out", |d| write(d, "c.toml", "seed = 3\n")),
    ("config file that is a picture", "train --config [DIR]/photos/0.png --out [DIR]/out", AS_IT_IS),

    // The photographs.
    ("no data folder", "train --data [DIR]/none --out [DIR]/out", AS_IT_IS),
    ("data folder that is a file", "train --data [DIR]/photos/0.png --out [DIR]/out", AS_IT_IS),
    ("empty data folder", "train --data [DIR]/empty --out [DIR]/out", |d| fs::create_dir(d.join("empty")).unwrap()),
    ("only a text file called .png", "train --data [DIR]/texts --out [DIR]/out", |d| write(d, "texts/a.png", "a picture, said the file")),
    ("one corrupt picture among good ones", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| write(d, "photos/1.png", "no picture")),
    ("several corrupt pictures", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| (0..12).for_each(|i| write(d, &format!("photos/b{i:02}.png"), "no picture"))),
    ("one picture only", "train --data [DIR]/one --set data.crop=32 --out [DIR]/out", |d| picture(d, "one/0.png", 40, 40)),
    ("a picture of one pixel", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| picture(d, "photos/1.png", 1, 1)),
    ("pictures smaller than the crop", "train --data [DIR]/photos --out [DIR]/out", AS_IT_IS),
    ("truncated PNG", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| cut(d, "photos/0.png", 0.7)),
    ("truncated JPEG", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| cut(d, "photos/2.jpg", 0.7)),
    ("a PNG that says it is enormous", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| enlarge(d, "photos/0.png", 60_000)),
    ("a PNG that says it is large", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/out", |d| enlarge(d, "photos/0.png", 10_000)),
    ("gt without lr", "train --data [DIR]/pairs --set data.crop=32 --out [DIR]/out", |d| picture(d, "pairs/gt/0.png", 48, 48)),
    ("pairs that do not fit", "train --data [DIR]/pairs --set data.crop=32 --out [DIR]/out", |d| {
        [("gt/a", 48), ("lr/a", 12), ("gt/b", 48), ("lr/b", 24), ("gt/c", 48), ("lr/d", 12), ("gt/e", 48), ("lr/e", 12)]
            .into_iter()
            .for_each(|(name, side)| picture(d, &format!("pairs/{name}.png"), side, side));
        write(d, "pairs/lr/e.png", "no picture");
    }),
    ("an upscaler's outputs without the pictures it was given", "train --data [DIR]/photos --sr [DIR]/photos --set data.crop=32 --out [DIR]/out", AS_IT_IS),
    ("an upscaler's outputs of no pictures", "train --sr [DIR]/photos --out [DIR]/out", AS_IT_IS),
    ("no such folder of an upscaler's outputs", "train --sr [DIR]/none --set adversary.source=[DIR]/pairs --set data.crop=32 --out [DIR]/out", |d| {
        picture(d, "pairs/gt/0.png", 48, 48);
        picture(d, "pairs/lr/0.png", 12, 12);
    }),
    ("a held-out picture that is not there", "train --data [DIR]/photos --set data.crop=32 --set data.held_out_names=7 --out [DIR]/out", AS_IT_IS),
    ("every picture held out", "train --data [DIR]/photos --set data.crop=32 --set data.held_out_names=0,1,2 --out [DIR]/out", AS_IT_IS),
    ("a latent cache without a pool", "train --set data.latent_cache=[DIR]/latents --out [DIR]/out", AS_IT_IS),
    ("a latent cache that is a file", "train --set data.latent_cache=[DIR]/photos/0.png --set data.pool=8 --out [DIR]/out", AS_IT_IS),

    // Where a run goes.
    ("a run is there already", "train --out [DIR]/run", AS_IT_IS),
    ("output directory is a file", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/file.txt", |d| write(d, "file.txt", "mine")),
    ("output directory below a file", "train --data [DIR]/photos --set data.crop=32 --out [DIR]/file.txt/run", |d| write(d, "file.txt", "mine")),

    // Going on with a run.
    ("resume where there is nothing", "train --resume --out [DIR]/none", AS_IT_IS),
    ("resume a folder that is no run", "train --resume --out [DIR]/photos", AS_IT_IS),
    ("resume from a missing checkpoint", "train --resume 2-sft-000007 --out [DIR]/run", AS_IT_IS),
    ("resume from what is no checkpoint", "train --resume [DIR]/run/base --out [DIR]/run", AS_IT_IS),
    ("resume with other options", "train --resume --set asdpo.lr=1e-3 --set run.seed=4 --out [DIR]/run", unfinished),
    ("resume with options of another model", "train --resume --change-config --set model.single=2 --out [DIR]/run", unfinished),
    ("change of options without a resume", "train --change-config --out [DIR]/out", AS_IT_IS),
    ("checkpoint with one byte flipped", "train --resume 4-asdpo-000001 --out [DIR]/run", |d| flip(d, "run/checkpoints/4-asdpo-000001/state.safetensors")),
    ("every checkpoint damaged", "train --resume --out [DIR]/run", |d| {
        unfinished(d);
        flip(d, "run/checkpoints/4-asdpo-000001/state.safetensors");
        flip(d, "run/checkpoints/3-adversary-000001/state.json");
    }),
    ("checkpoint of another version", "train --resume 4-asdpo-000001 --out [DIR]/run", |d| edit(d, "run/checkpoints/4-asdpo-000001/manifest.json", "format", json!(2))),
    ("checkpoint cut short", "inspect [DIR]/run/checkpoints/4-asdpo-000001", |d| cut(d, "run/checkpoints/4-asdpo-000001/state.safetensors", 0.9)),
    ("adapter changed since the checkpoint", "train --resume --out [DIR]/run", |d| {
        unfinished(d);
        edit(d, "run/base_sft/adapter_config.json", "r", json!(3));
    }),
    ("log shorter than the checkpoint says", "train --resume --out [DIR]/run", |d| {
        unfinished(d);
        write(d, "run/log.jsonl", "");
    }),
    ("more checkpoints than the disk can hold", "train [SMALL] --set run.keep_last=10000 --set base.ema=0.9 --set model.dim=4096 --set model.heads=32 --set model.axes=[16,56,56] --set model.double=64 --out [DIR]/out", AS_IT_IS),

    // What a run starts from.
    ("--from a folder that does not exist", "train --stages sft --from [DIR]/none --out [DIR]/out", AS_IT_IS),
    ("--from a folder that is no run", "train --stages sft --from [DIR]/photos --out [DIR]/out", AS_IT_IS),
    ("stage without its input", "train --stages asdpo --out [DIR]/out", AS_IT_IS),
    ("stage whose input the run lacks", "train --stages asdpo --from [DIR]/run [SMALL] --out [DIR]/out", |d| fs::remove_dir_all(d.join("run/adv")).unwrap()),
    ("options of another model", "train --stages sft --from [DIR]/run [SMALL] --set model.single=2 --out [DIR]/out", AS_IT_IS),

    // Weight files.
    ("truncated weights", "train --stages sft --from [DIR]/run [SMALL] --out [DIR]/out", |d| cut(d, BASE, 0.5)),
    ("header longer than the file", "inspect [DIR]/x.safetensors", |d| raw(d, "x.safetensors", 1 << 20, "{}", 0)),
    ("header larger than the format allows", "inspect [DIR]/x.safetensors", |d| raw(d, "x.safetensors", u64::MAX, "{}", 0)),
    ("header that is not JSON", "inspect [DIR]/x.safetensors", |d| tensors(d, r#"{"a": "#, 0)),
    ("overlapping tensors", "inspect [DIR]/x.safetensors", |d| tensors(d, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12)),
    ("negative offset", "inspect [DIR]/x.safetensors", |d| tensors(d, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}"#, 8)),
    ("overflowing offset", "inspect [DIR]/x.safetensors", |d| tensors(d, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551616]}}"#, 8)),
    ("overflowing shape", "inspect [DIR]/x.safetensors", |d| tensors(d, r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0)),
    ("not a safetensors file", "inspect [DIR]/photos/0.png", AS_IT_IS),
    ("weights of another shape", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rewrite(d, BASE, |t| t.get_mut("x_embedder.bias").unwrap().shape = vec![4, 4])),
    ("integer weights", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rewrite(d, BASE, |t| {
        let bias = t.get_mut("x_embedder.bias").unwrap();
        (bias.dtype, bias.bytes) = ("I64".into(), bias.bytes.repeat(2));
    })),
    ("a weight is missing", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rewrite(d, BASE, |t| drop(t.remove("proj_out.bias")))),
    ("a weight is not a number", "train --stages sft --from [DIR]/run [SMALL] --out [DIR]/out", |d| poke(d, BASE, "x_embedder.weight", 5, f32::NAN)),
    ("a weight of another name", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rename(d, BASE, "context_embedder.bias", "context_embeder.bias")),
    ("a weight too many", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rewrite(d, BASE, |t| {
        t.insert("pos_embed".into(), Stored { dtype: "F32".into(), shape: vec![1], bytes: vec![0; 4] });
    })),
    ("a truncated shard", "inspect [DIR]/run/base", |d| {
        write(d, "run/base/m.safetensors.index.json", r#"{"weight_map": {"x_embedder.bias": "diffusion_pytorch_model.safetensors"}}"#);
        cut(d, BASE, 0.5);
    }),
    ("a truncated shard of a model from elsewhere", "train --stages sft [ELSEWHERE] --out [DIR]/out", |d| {
        model(d);
        cut(d, SHARD, 0.9);
    }),
    ("a shard of a model from elsewhere has what is not a number", "train --stages sft [ELSEWHERE] --out [DIR]/out", |d| {
        model(d);
        poke(d, SHARD, "single_transformer_blocks.1.proj_out.weight", 7, f32::NAN);
    }),
    ("an autoencoder's weight is not a number", "train --stages sft [ELSEWHERE] --out [DIR]/out", |d| {
        model(d);
        poke(d, "flux/vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", 7, f32::NAN);
    }),
    ("weights of no FLUX", "inspect [DIR]/run/base", |d| tensors_in(d, BASE, r#"{"conv_in.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8)),
    ("no weights", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| fs::remove_file(d.join(BASE)).unwrap()),
    ("model dimensions with an unknown key", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| edit(d, "run/base/config.json", "num_layer", json!(3))),
    ("model dimensions that contradict each other", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| edit(d, "run/base/config.json", "axes_dims_rope", json!([2, 2, 2]))),

    // Adapters.
    ("an adapter's weight is infinite", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| poke(d, SFT, "transformer.x_embedder.lora_B.weight", 3, f32::INFINITY)),
    ("adapter of an unknown module", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rename(d, SFT, "x_embedder", "x_embeder")),
    ("adapter of a layer that is not adapted", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rename(d, SFT, "x_embedder", "context_embedder")),
    ("adapter of another width", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rename(d, SFT, "x_embedder", "single_transformer_blocks.0.proj_mlp")),
    ("an adapter of another model", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/flux --lora [DIR]/run/base_sft", model),
    ("half an adapter", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rewrite(d, SFT, |t| drop(t.remove("transformer.x_embedder.lora_B.weight")))),
    ("key that is no LoRA's", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| rename(d, SFT, "x_embedder.lora_A.weight", "x_embedder.lora_down.weight")),
    ("adapter_config.json that is not JSON", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| write(d, "run/base_sft/adapter_config.json", "r = 4")),
    ("DoRA", "inspect [DIR]/run/base_sft", |d| edit(d, "run/base_sft/adapter_config.json", "use_dora", json!(true))),
    ("adapter trained with an unknown resize", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| metadata(d, SFT, "lq_resize", "lanczos9")),
    ("an adapter to be converted onto another", "convert-lora [DIR]/run/base_sft [DIR]/run/adv --format kohya", AS_IT_IS),
    ("an adapter to be converted into no naming there is", "convert-lora [DIR]/run/base_sft [DIR]/x.safetensors --format lycoris", AS_IT_IS),
    ("what is no adapter to be converted", "convert-lora [DIR]/photos [DIR]/x.safetensors --format kohya", AS_IT_IS),
    ("a kohya adapter of an unknown layer", "convert-lora [DIR]/x.safetensors [DIR]/out --format diffusers", |d| tensors(d, r#"{"lora_unet_single_blocks_5_linear3.lora_down.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"lora_unet_single_blocks_5_linear3.lora_up.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}"#, 16)),
    ("a kohya adapter of a text encoder", "convert-lora [DIR]/x.safetensors [DIR]/out --format diffusers", |d| tensors(d, r#"{"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"lora_unet_img_in.alpha":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}"#, 8)),
    ("folder that is no adapter", "inspect [DIR]/photos", AS_IT_IS),

    // Upscaling, inspecting, verifying.
    ("upscale a missing picture", "upscale [DIR]/none.png [DIR]/up.png --model [DIR]/run", AS_IT_IS),
    ("upscale a text", "upscale [DIR]/a.png [DIR]/up.png --model [DIR]/run", |d| write(d, "a.png", "text")),
    ("upscale onto itself", "upscale [DIR]/photos/0.png [DIR]/photos/0.png --model [DIR]/run", AS_IT_IS),
    ("upscale onto itself by another name", "upscale [DIR]/photos/0.png [DIR]/run/../photos/0.png --model [DIR]/run", AS_IT_IS),
    ("upscale into a missing folder", "upscale [DIR]/photos/0.png [DIR]/none/up.png --model [DIR]/run", AS_IT_IS),
    ("upscale into a file of no format", "upscale [DIR]/photos/0.png [DIR]/up.gif --model [DIR]/run", AS_IT_IS),
    ("upscale into the folder it reads", "upscale [DIR]/photos [DIR]/photos --model [DIR]/run", AS_IT_IS),
    ("upscale into a folder below the one it reads", "upscale [DIR]/photos [DIR]/photos/up --model [DIR]/run", AS_IT_IS),
    ("upscale a folder into a file", "upscale [DIR]/photos [DIR]/run/summary.json --model [DIR]/run", AS_IT_IS),
    ("upscale an empty folder", "upscale [DIR]/run/base [DIR]/up --model [DIR]/run", AS_IT_IS),
    ("upscale two pictures of one name", "upscale [DIR]/photos [DIR]/more/0.png [DIR]/up --model [DIR]/run", |d| picture(d, "more/0.png", 8, 8)),
    ("upscale onto someone's picture", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| picture(d, "up.png", 8, 8)),
    ("upscale into another format than the name says", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --format jpg", AS_IT_IS),
    ("upscale to nothing", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --scale 0.5", AS_IT_IS),
    ("upscale with guidance that is no number", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --guidance nan", AS_IT_IS),
    ("upscale with tiles that are no tokens", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --tile 36", AS_IT_IS),
    ("upscale with tiles that all overlap", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --overlap 32", AS_IT_IS),
    ("upscale with an adapter that is not there", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --lora train_dop:0.5", AS_IT_IS),
    ("upscale with an adapter of no strength", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --lora train_dpo:inf", AS_IT_IS),
    ("upscale with weights and no codec", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run/base", AS_IT_IS),
    ("upscale with a run that was built from itself", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| write(d, "run/config.toml", "[run]\nfrom = \"run\"\n")),
    ("upscale with no steps", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --steps 0", AS_IT_IS),
    ("upscale with a missing run", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/none", AS_IT_IS),
    ("upscale with a run without its codec", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| fs::remove_file(d.join("run/codec.json")).unwrap()),
    ("upscale with a damaged codec", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| write(d, "run/codec.json", r#"{"mean": [0.0], "std": [1.0]}"#)),
    ("upscale with a run without its options", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run", |d| fs::remove_file(d.join("run/config.toml")).unwrap()),
    ("upscale with an unknown colour fix", "upscale [DIR]/photos/0.png [DIR]/up.png --model [DIR]/run --color-fix adane", AS_IT_IS),

    // Making pairs.
    ("degrade with no input folder", "degrade --hq [DIR]/none --out [DIR]/out", AS_IT_IS),
    ("degrade a picture instead of a folder", "degrade --hq [DIR]/photos/0.png --out [DIR]/out", AS_IT_IS),
    ("degrade an empty folder", "degrade --hq [DIR]/empty --out [DIR]/out", |d| fs::create_dir(d.join("empty")).unwrap()),
    ("degrade into the input folder", "degrade --hq [DIR]/photos --out [DIR]/photos", AS_IT_IS),
    ("degrade into a folder inside the input", "degrade --hq [DIR]/photos --out [DIR]/photos/../photos/out", AS_IT_IS),
    ("degrade into a folder around the input", "degrade --hq [DIR]/photos --out [DIR]", AS_IT_IS),
    ("degrade into a folder of somebody else's", "degrade --hq [DIR]/photos --out [DIR]/run", AS_IT_IS),
    ("degrade into a file", "degrade --hq [DIR]/photos --out [DIR]/file.txt", |d| write(d, "file.txt", "mine")),
    ("degrade with damaged settings", "degrade --hq [DIR]/photos --out [DIR]/out", |d| write(d, "out/settings.toml", "seed = = 3")),
    ("degrade with other settings", "degrade --hq [DIR]/photos --out [DIR]/out", |d| write(d, "out/settings.toml", "seed = 3\ncrop = 512")),
    ("degrade with a crop the scale does not divide", "degrade --hq [DIR]/photos --out [DIR]/out --crop 30", AS_IT_IS),
    ("degrade nothing of each picture", "degrade --hq [DIR]/photos --out [DIR]/out --repeats 0", AS_IT_IS),
    ("degrade by a scale of none", "degrade --hq [DIR]/photos --out [DIR]/out --scale 0", AS_IT_IS),
    ("unknown strength", "degrade --hq [DIR]/photos --out [DIR]/out --strength nose=0.5", AS_IT_IS),
    ("strength above one", "degrade --hq [DIR]/photos --out [DIR]/out --strength noise=2", AS_IT_IS),
    ("malformed strength", "degrade --hq [DIR]/photos --out [DIR]/out --strength noise", AS_IT_IS),
    ("reversed range", "degrade --hq [DIR]/photos --out [DIR]/out --set first.blur_sigma=[2,1]", AS_IT_IS),
    ("unknown range", "degrade --hq [DIR]/photos --out [DIR]/out --set first.blur_sgma=[1,2]", AS_IT_IS),
    ("range of the wrong type", "degrade --hq [DIR]/photos --out [DIR]/out --set second.jpeg_range=high", AS_IT_IS),
    ("probabilities above one", "degrade --hq [DIR]/photos --out [DIR]/out --set second.resize_prob=[0.7,0.7]", AS_IT_IS),
    ("no file of ranges", "degrade --hq [DIR]/photos --out [DIR]/out --config [DIR]/none.toml", AS_IT_IS),
    ("file of ranges with a syntax error", "degrade --hq [DIR]/photos --out [DIR]/out --config [DIR]/c.toml", |d| write(d, "c.toml", "[first]\n\nblur_sigma = = 3\n")),
    ("file of ranges with an unknown key", "degrade --hq [DIR]/photos --out [DIR]/out --config [DIR]/c.toml", |d| write(d, "c.toml", "[third]\nblur_sigma = [1, 2]\n")),
    ("strengths of the other degradation", "train --set data.noise_strength=0.5 --out [DIR]/out", AS_IT_IS),

    ("inspect a missing path", "inspect [DIR]/none", AS_IT_IS),
    ("inspect a run with a damaged summary", "inspect [DIR]/run", |d| write(d, "run/summary.json", "{")),
    ("report of what is no run", "report [DIR]/photos", AS_IT_IS),
    ("verify with an unknown name", "verify --only sobolov", AS_IT_IS),
    ("verify without golden vectors", "verify --fixtures [DIR]/photos", AS_IT_IS),
    ("verify in a missing folder", "verify --fixtures [DIR]/none", AS_IT_IS),
    ("verify on a device that is none", "verify --device cuda:x", AS_IT_IS),
    ("verify in a precision that is none", "verify --precision fp16", AS_IT_IS),
    ("verify in bf16 on the CPU", "verify --device cpu --precision bf16", AS_IT_IS),
    ("kernels for the CPU", "warm --device cpu", AS_IT_IS),

    // Prompts.
    ("a prompt for what has no text encoders", "encode-prompt --model [DIR]/run --out [DIR]/p.safetensors", AS_IT_IS),
    ("a prompt without a tokenizer", "encode-prompt --model [DIR]/flux --prompt cat --out [DIR]/p.safetensors", encoders),
    ("a prompt of no tokens", "encode-prompt --model [DIR]/flux --tokens 0 --out [DIR]/p.safetensors", encoders),
    ("a prompt written into a missing folder", "encode-prompt --model [DIR]/flux --out [DIR]/none/p.safetensors", encoders),
    ("a text encoder of another kind", "encode-prompt --model [DIR]/flux --out [DIR]/p.safetensors", |d| {
        encoders(d);
        edit(d, "flux/text_encoder/config.json", "hidden_act", json!("gelu"));
    }),
    ("a tokenizer folder without a tokenizer", "encode-prompt --model [DIR]/flux --out [DIR]/p.safetensors", |d| {
        encoders(d);
        fs::create_dir(d.join("flux/tokenizer")).unwrap();
    }),

    // Scoring folders of pictures.
    ("nothing to score", "eval --gt [DIR]/photos", AS_IT_IS),
    ("a method without a name", "eval --gt [DIR]/photos --sr [DIR]/photos", AS_IT_IS),
    ("two methods of one name", "eval --gt [DIR]/photos --sr a:[DIR]/photos a:[DIR]/photos", AS_IT_IS),
    ("no folder of the truth", "eval --gt [DIR]/none --sr a:[DIR]/photos", AS_IT_IS),
    ("no folder of a method", "eval --gt [DIR]/photos --sr a:[DIR]/photos b:[DIR]/none", AS_IT_IS),
    ("a method's folder without pictures", "eval --gt [DIR]/photos --sr a:[DIR]/run/base", AS_IT_IS),
    ("no picture has a partner", "eval --gt [DIR]/photos --sr a:[DIR]/sr", |d| picture(d, "sr/0x4.png", 48, 48)),
    ("pictures without a partner, broken ones, small ones", "eval --gt [DIR]/photos --sr a:[DIR]/photos b:[DIR]/sr --json [DIR]/x.json", |d| {
        write(d, "sr/0.png", "no picture");
        picture(d, "sr/1.png", 40, 7);
        picture(d, "sr/3.png", 48, 48);
    }),
    ("two pictures of one name", "eval --gt [DIR]/photos --sr a:[DIR]/photos", |d| jpeg(d, "photos/0.jpg")),
    ("scores written among the pictures", "eval --gt [DIR]/photos --sr a:[DIR]/photos --json [DIR]/run/../photos/x.json", AS_IT_IS),
    ("scores written into a missing folder", "eval --gt [DIR]/photos --sr a:[DIR]/photos --csv [DIR]/none/x.csv", AS_IT_IS),
    ("two files of scores of one name", "eval --gt [DIR]/photos --sr a:[DIR]/photos --csv [DIR]/x --json [DIR]/run/../x", AS_IT_IS),
    ("weights of a metric that are not there", "eval --gt [DIR]/photos --sr a:[DIR]/photos --dists [DIR]/dists.safetensors", AS_IT_IS),
    ("weights of no metric", "eval --gt [DIR]/photos --sr a:[DIR]/photos --lpips-alex [DIR]/run/base/diffusion_pytorch_model.safetensors", AS_IT_IS),
    ("weights of half a metric", "eval --gt [DIR]/photos --sr a:[DIR]/photos --lpips-alex [DIR]/x.safetensors", |d| tensors(d, r#"{"features.10.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4)),
];

/// The options of the small run.
const SMALL: &str = "--set model.dim=16 --set model.heads=2 --set model.axes=[2,2,4] --set model.double=0 --set model.single=1 \
    --set sft.rank=2 --set adversary.rank=2 --set asdpo.rank=2 --set data.images=4 --set data.held_out=1 --set data.image_size=32 \
    --set data.crop=32 --set run.eval_crops=1 --set run.eval_steps=1 --set run.threads=1 \
    --set base.steps=1 --set sft.steps=1 --set adversary.steps=1 --set asdpo.steps=1 \
    --set base.warmup=1 --set sft.warmup=1 --set adversary.warmup=1 --set asdpo.warmup=1";

/// The options of a run on the model in [`model`]'s folder.
const ELSEWHERE: &str = "--set model.base=[DIR]/flux --set data.codec=[DIR]/flux/vae --set data.images=4 --set data.held_out=1 \
    --set data.image_size=32 --set data.crop=32 --set run.eval_crops=1 --set run.eval_steps=1 --set sft.steps=1 --set sft.warmup=1";

#[test]
fn every_bad_input_is_refused_in_words() {
    let home = tempfile::tempdir().unwrap();
    let world = home.path().join("world");
    fs::create_dir(&world).unwrap();
    let made = engine(&world, &format!("train {SMALL} --out [DIR]/run"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for (name, side) in [("0.png", 48), ("1.png", 40)] {
        picture(&world, &format!("photos/{name}"), side, side);
    }
    jpeg(&world, "photos/2.jpg");

    let (mut report, mut wrong) = (String::new(), Vec::new());
    for (i, (title, line, spoil)) in CASES.iter().enumerate() {
        let dir = home.path().join(i.to_string());
        copy(&world, &dir);
        spoil(&dir);
        let before = tree(&dir);
        let out = engine(&dir, line);
        let (text, code) = (said(&dir, &out), out.status.code());
        if tree(&dir) != before {
            wrong.push(format!("{title}: something was left behind or changed"));
        }
        if !matches!(code, Some(1 | 2)) || text.contains("panicked") {
            wrong.push(format!("{title}: {}, wanted exit code 1 or 2 and no panic", out.status));
        }
        let code = code.map_or("a signal".to_owned(), |c| c.to_string());
        write!(report, "## {title}\n$ asasr-engine {line}\n{text}→ {code}\n\n").unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
    assert!(wrong.is_empty(), "{}\n\n{report}", wrong.join("\n"));
    insta::assert_snapshot!(report);
}

/// `asasr-engine inspect x | head`: the reader may go away first.
#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    tensors(dir.path(), r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    let file = dir.path().join("x.safetensors");
    let train = format!("train {SMALL} --stages base --out {}", dir.path().join("out").display());
    let inspect = format!("inspect {}", file.display());
    for line in [&inspect, "verify --only sobolev", "train --print-config --out x", &train] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
        let out = command.args(line.split_whitespace()).stdout(writer).output().unwrap();
        assert_eq!((out.status.code(), &*String::from_utf8_lossy(&out.stderr)), (Some(0), ""), "{line}");
    }
}

/// Runs the binary in `dir` with a command line in which `[DIR]`, `[SMALL]` and `[ELSEWHERE]` stand for what they say.
fn engine(dir: &Path, line: &str) -> Output {
    let line = line
        .replace("[SMALL]", SMALL)
        .replace("[ELSEWHERE]", ELSEWHERE)
        .replace("[DIR]", dir.to_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_asasr-engine"));
    command.args(line.split_whitespace()).env("COLUMNS", "100").output().unwrap()
}

/// What was printed on stderr, without what differs from machine to machine.
fn said(dir: &Path, out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr).replace(dir.to_str().unwrap(), "[DIR]");
    let text = text.replace(env!("CARGO_MANIFEST_DIR"), "[REPO]");
    // Hashes of weights, and the room on the disk.
    let mut words: Vec<&str> = text.split(' ').collect();
    for i in 0..words.len() {
        if words[i].len() >= 64 && words[i].bytes().take(64).all(|b| b.is_ascii_hexdigit()) {
            words[i] = "[SHA-256]";
        } else if words.get(i + 1) == Some(&"MiB") && words.get(i + 2) == Some(&"are") {
            words[i] = "[FREE]";
        }
    }
    words.join(" ")
}

/// Every file with its bytes, and every folder.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.append(&mut tree(&path));
            all.insert(path, None);
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, Some(bytes));
        }
    }
    all
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in tree(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        match bytes {
            None => fs::create_dir_all(to).unwrap(),
            Some(bytes) => {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(to, bytes).unwrap();
            }
        }
    }
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn colours(width: usize, height: usize) -> Image {
    Image::from_fn(height, width, |c, y, x| ((c * 50 + y * 7 + x * 3) % 256) as f32 / 255.0)
}

fn picture(dir: &Path, name: &str, width: usize, height: usize) {
    write(dir, name, "");
    colours(width, height).save_png(dir.join(name)).unwrap();
}

fn jpeg(dir: &Path, name: &str) {
    let (mut bytes, image) = (Vec::new(), colours(48, 48));
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut bytes);
    encoder.encode(&image.to_rgb8(), 48, 48, image::ExtendedColorType::Rgb8).unwrap();
    write(dir, name, bytes);
}

/// Has a PNG's header speak of `side` × `side` pixels, with the checksum that belongs to it.
fn enlarge(dir: &Path, name: &str, side: u32) {
    let mut bytes = fs::read(dir.join(name)).unwrap();
    bytes[16..24].copy_from_slice(&[side.to_be_bytes(); 2].concat());
    let crc = !bytes[12..29].iter().fold(u32::MAX, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ c >> 1 } else { c >> 1 })
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    write(dir, name, bytes);
}

/// Makes the finished run one that was stopped at its end.
fn unfinished(dir: &Path) {
    fs::remove_file(dir.join("run/summary.json")).unwrap();
}

/// Turns one bit in the middle of a file.
fn flip(dir: &Path, name: &str) {
    let mut bytes = fs::read(dir.join(name)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    write(dir, name, bytes);
}

/// Keeps this share of a file.
fn cut(dir: &Path, name: &str, share: f64) {
    let bytes = fs::read(dir.join(name)).unwrap();
    write(dir, name, &bytes[..(bytes.len() as f64 * share) as usize]);
}

/// `flux`: the text encoders of the golden vectors, which have no tokenizers.
fn encoders(dir: &Path) {
    for part in ["text_encoder", "text_encoder_2"] {
        for file in ["config.json", "model.safetensors"] {
            let golden = Path::new("tests/golden/tiny_flux").join(part).join(file);
            write(dir, &format!("flux/{part}/{file}"), fs::read(golden).unwrap());
        }
    }
}

/// `flux`: the transformer of the golden vectors in two shards, and the autoencoder.
fn model(dir: &Path) {
    for part in ["transformer", "vae"] {
        copy(&Path::new("tests/golden/tiny_flux").join(part), &dir.join("flux").join(part));
    }
    let at = |name: &str| format!("flux/transformer/{name}");
    let whole = fs::read(dir.join(at("diffusion_pytorch_model.safetensors"))).unwrap();
    fs::remove_file(dir.join(at("diffusion_pytorch_model.safetensors"))).unwrap();
    let mut index = json!({});
    for (file, single) in [("m-1.safetensors", false), ("m-2.safetensors", true)] {
        write(dir, &at(file), &whole);
        rewrite(dir, &at(file), |t| {
            t.retain(|name, _| name.starts_with("single_") == single);
            t.keys().for_each(|name| index[name] = file.into());
        });
    }
    write(dir, &at("m.safetensors.index.json"), json!({ "weight_map": index }).to_string());
}

/// Sets a key of a JSON file.
fn edit(dir: &Path, name: &str, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap();
    json[key] = value;
    write(dir, name, json.to_string());
}

/// A safetensors file as it stands: the header's length, the header, so many bytes of data.
fn raw(dir: &Path, name: &str, length: u64, header: &str, data: usize) {
    write(dir, name, [&length.to_le_bytes(), header.as_bytes(), &vec![0; data]].concat());
}

/// `x.safetensors` with this header.
fn tensors(dir: &Path, header: &str, data: usize) {
    tensors_in(dir, "x.safetensors", header, data);
}

/// The same of any name.
fn tensors_in(dir: &Path, name: &str, header: &str, data: usize) {
    raw(dir, name, header.len() as u64, header, data);
}

struct Stored {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Reads a safetensors file, has it changed, and writes it again, header and offsets in order.
fn reheaded(dir: &Path, name: &str, change: impl FnOnce(&mut BTreeMap<String, Stored>, &mut Value)) {
    let bytes = fs::read(dir.join(name)).unwrap();
    let at = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..at]).unwrap();
    let mut metadata = header.remove("__metadata__").unwrap_or(json!({}));
    let stored = |(name, info): (String, Value)| {
        let [from, to] = [0, 1].map(|i| at + info["data_offsets"][i].as_u64().unwrap() as usize);
        let shape = serde_json::from_value(info["shape"].clone()).unwrap();
        (
            name,
            Stored { dtype: info["dtype"].as_str().unwrap().into(), shape, bytes: bytes[from..to].to_vec() },
        )
    };
    let mut all = header.into_iter().map(stored).collect();
    change(&mut all, &mut metadata);
    let (mut header, mut data) = (json!({"__metadata__": metadata}), Vec::new());
    for (name, t) in all {
        let from = data.len();
        data.extend(t.bytes);
        header[name] = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [from, data.len()]});
    }
    let header = header.to_string();
    write(dir, name, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat());
}

fn rewrite(dir: &Path, name: &str, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
    reheaded(dir, name, |tensors, _| change(tensors));
}

/// Sets one of the file's free-form strings.
fn metadata(dir: &Path, name: &str, key: &str, value: &str) {
    reheaded(dir, name, |_, metadata| metadata[key] = value.into());
}

/// Puts `value` at place `i` of a tensor.
fn poke(dir: &Path, name: &str, tensor: &str, i: usize, value: f32) {
    rewrite(dir, name, |t| {
        t.get_mut(tensor).unwrap().bytes[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
    });
}

/// Renames a part of every tensor's name.
fn rename(dir: &Path, name: &str, from: &str, to: &str) {
    rewrite(dir, name, |t| {
        *t = std::mem::take(t).into_iter().map(|(k, v)| (k.replace(from, to), v)).collect();
    });
}
