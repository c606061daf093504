"""A FLUX model in Black Forest Labs' naming means the same to this engine as to diffusers.

    pip install torch diffusers transformers safetensors
    cargo build --release --example forward
    python tests/interop/flux_names.py

The small model of tests/golden is written in Black Forest Labs' naming, by the mapping below and no code of the engine's.
diffusers' own converter must make the model of it that it was, bit by bit, and this engine must give the same output for
the file, plain and behind ComfyUI's prefix, as for diffusers' folder. Not part of `cargo xtask test`: it needs PyTorch.

The converter has FLUX.1's width written into it; here it gets the small model's.
"""

import inspect
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from diffusers_lora import FORWARD, MODEL, compute, inputs, transformer


def bfl(state, double, single):
    """Black Forest Labs' state dict of diffusers' `state`."""
    out, left = {}, dict(state)

    def move(theirs, *ours, swap=False):
        for end in ("weight", "bias"):
            parts = [left.pop(f"{name}.{end}") for name in ours]
            if swap:
                scale, shift = parts[0].chunk(2)
                parts = [shift, scale]
            out[f"{theirs}.{end}"] = torch.cat(parts)

    def norm(theirs, ours):
        out[f"{theirs}.scale"] = left.pop(f"{ours}.weight")

    for theirs, ours in [("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")]:
        move(f"{theirs}.in_layer", f"time_text_embed.{ours}_embedder.linear_1")
        move(f"{theirs}.out_layer", f"time_text_embed.{ours}_embedder.linear_2")
    move("img_in", "x_embedder")
    move("txt_in", "context_embedder")
    move("final_layer.linear", "proj_out")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    for i in range(double):
        a, b = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for kind, context, q, out_proj, added in [
            ("img", "", ["to_q", "to_k", "to_v"], "to_out.0", ""),
            ("txt", "_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "added_"),
        ]:
            move(f"{a}.{kind}_mod.lin", f"{b}.norm1{context}.linear")
            move(f"{a}.{kind}_attn.qkv", *[f"{b}.attn.{n}" for n in q])
            move(f"{a}.{kind}_attn.proj", f"{b}.attn.{out_proj}")
            norm(f"{a}.{kind}_attn.norm.query_norm", f"{b}.attn.norm_{added}q")
            norm(f"{a}.{kind}_attn.norm.key_norm", f"{b}.attn.norm_{added}k")
            move(f"{a}.{kind}_mlp.0", f"{b}.ff{context}.net.0.proj")
            move(f"{a}.{kind}_mlp.2", f"{b}.ff{context}.net.2")
    for i in range(single):
        a, b = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        move(f"{a}.modulation.lin", f"{b}.norm.linear")
        move(f"{a}.linear1", f"{b}.attn.to_q", f"{b}.attn.to_k", f"{b}.attn.to_v", f"{b}.proj_mlp")
        move(f"{a}.linear2", f"{b}.proj_out")
        norm(f"{a}.norm.query_norm", f"{b}.attn.norm_q")
        norm(f"{a}.norm.key_norm", f"{b}.attn.norm_k")
    assert not left, left.keys()
    return out


def resized(function, numbers):
    """`function` with other numbers in its source."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in numbers.items():
        assert old in source, old
        source = source.replace(old, new)
    scope = dict(function.__globals__)
    exec(source, scope)
    return scope[function.__name__]


def engine(scratch, model):
    subprocess.run([FORWARD, model, scratch / "in.safetensors", scratch / "out.safetensors"], check=True)
    return load_file(scratch / "out.safetensors")["sample"]


def main():
    model = transformer()
    config, state = model.config, model.state_dict()
    width = config.num_attention_heads * config.attention_head_dim
    theirs = bfl(state, config.num_layers, config.num_single_layers)
    convert = resized(
        single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, {"inner_dim = 3072": f"inner_dim = {width}"}
    )
    back = convert(dict(theirs))
    assert back.keys() == state.keys(), back.keys() ^ state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
    print(f"diffusers' converter gives back all {len(state)} tensors of {len(theirs)}, to the bit")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        given = inputs(config)
        save_file(given, scratch / "in.safetensors")
        want, reference = engine(scratch, MODEL), compute(model, given)
        print(f"folder: {(want - reference).abs().max() / reference.abs().max():.1e} off diffusers' output")
        same = True
        for name, prefix in [("plain", ""), ("comfy", "model.diffusion_model.")]:
            (scratch / name).mkdir()
            shutil.copy(MODEL / "config.json", scratch / name)
            path = scratch / name / "flux.safetensors"
            save_file({prefix + k: v.contiguous() for k, v in theirs.items()}, path)
            equal = torch.equal(engine(scratch, path), want)
            same &= equal
            print(f"single file, {name}: {'the same bits as the folder' if equal else 'ANOTHER OUTPUT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
