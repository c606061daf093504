"""A LoRA in kohya's naming means the same to this engine as to diffusers, in both directions.

    pip install torch diffusers peft transformers safetensors
    cargo build --release --bins --example forward
    python tests/interop/kohya_lora.py

On the small model of tests/golden, every row adapted:
- adapters made with PEFT are written in kohya's naming by `convert-lora`, read by diffusers' own converter, and computed;
- files as sd-scripts trains them (one A for all rows of a fused layer, alpha != r, some layers only) are read by both, and
  written in diffusers' naming by `convert-lora`, which diffusers' pipeline then loads.
Not part of `cargo xtask test`: it needs PyTorch. Exits with 1 if an output differs by more than LIMIT of the largest.

diffusers' converter has FLUX.1's widths written into it; here it gets the small model's. It also forgets to put
`transformer.` before `x_embedder`, whose adapter its pipeline then passes over; that is mended here, and said.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import load_file, save_file

from diffusers_lora import ADAPTERS, LIMIT, REPO, compute, engine, inputs, pipeline_load, random_adapter, transformer
from flux_names import resized

PROGRAM = REPO / "target/release/asasr-engine"


def convert(source, to, naming):
    done = subprocess.run(
        [PROGRAM, "convert-lora", source, to, "--format", naming], check=True, capture_output=True, text=True
    )
    print("  " + done.stdout.strip().split(" → ")[1].split("; ", 1)[1])
    return to


def kohya_load(path, width):
    """As diffusers' pipeline does with such a file."""
    read = resized(
        lora_conversion_utils._convert_kohya_flux_lora_to_diffusers,
        {"dims=[3072, 3072, 3072, 12288]": f"dims=[{width}, {width}, {width}, {4 * width}]"},
    )
    state = read(load_file(path))
    bare = [k for k in state if not k.startswith("transformer.")]
    if bare:
        print(f"  diffusers' converter leaves {sorted(bare)} without `transformer.`")
    state = {k if k.startswith("transformer.") else f"transformer.{k}": v for k, v in state.items()}
    model = transformer()
    FluxPipeline.load_lora_into_transformer(state, network_alphas=None, transformer=model)
    return model


def trained(width, in_channels):
    """What sd-scripts writes: one A for a whole fused layer."""
    g = torch.Generator().manual_seed(3)
    layers = {
        "img_in": (in_channels, width, 4, 2.0),
        "double_blocks_0_img_attn_qkv": (width, 3 * width, 4, 1.0),
        "double_blocks_1_img_attn_qkv": (width, 3 * width, 6, 9.0),
        "double_blocks_1_img_attn_proj": (width, width, 4, None),
        "double_blocks_0_img_mlp_2": (4 * width, width, 2, 2.0),
        "double_blocks_1_img_mod_lin": (width, 6 * width, 4, 4.0),
        "single_blocks_0_linear1": (width, 7 * width, 8, 4.0),
        "single_blocks_2_linear1": (width, 7 * width, 5, 5.0),
        "single_blocks_1_linear2": (5 * width, width, 4, 1.0),
        "single_blocks_2_modulation_lin": (width, 3 * width, 3, 2.0),
    }
    state = {}
    for name, (n_in, n_out, r, alpha) in layers.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(r, n_in, generator=g) * 0.5 / n_in**0.5
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(n_out, r, generator=g) * 0.5 / r**0.5
        if alpha is not None:
            state[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    return state


def main():
    worst = 0.0

    def compare(what, got, want):
        nonlocal worst
        error = ((got - want).abs().max() / want.abs().max()).item()
        worst = max(worst, error)
        print(f"  {what:<52} largest error {error:.1e}")

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        plain = transformer()
        width = plain.config.num_attention_heads * plain.config.attention_head_dim
        given = inputs(plain.config)
        save_file(given, scratch / "in.safetensors")
        base = compute(plain, given)
        for seed, (name, (r, alpha, own)) in enumerate(ADAPTERS.items()):
            print(f"{name}, made with PEFT")
            folder = scratch / str(seed)
            folder.mkdir()
            model = random_adapter(seed, r, alpha, own)
            want = compute(model, given)
            assert (want - base).abs().max() > 0.1 * base.abs().max(), "the adapter must be seen in the output"
            model.save_lora_adapter(str(folder / "peft"), adapter_name="sr")
            kohya = convert(folder / "peft", folder / "kohya.safetensors", "kohya")
            alphas = [k for k in load_file(kohya) if k.endswith(".alpha")]
            assert 3 * len(alphas) == len(load_file(kohya)), "every layer has its alpha"
            compare("kohya's naming, read here", engine(scratch, kohya), want)
            compare("kohya's naming, read by diffusers", compute(kohya_load(kohya, width), given), want)
            back = convert(kohya, folder / "back", "diffusers")
            again = compute(pipeline_load(back, "adapter_model.safetensors"), given)
            compare("and back in diffusers' naming, read by diffusers", again, want)
        print("as sd-scripts trains it")
        path = scratch / "trained.safetensors"
        save_file(trained(width, plain.config.in_channels), path)
        want = compute(kohya_load(path, width), given)
        assert (want - base).abs().max() > 0.1 * base.abs().max(), "the adapter must be seen in the output"
        compare("read here", engine(scratch, path), want)
        ours = convert(path, scratch / "ours", "diffusers")
        again = compute(pipeline_load(ours, "adapter_model.safetensors"), given)
        compare("in diffusers' naming, read by diffusers", again, want)
        kohya = convert(ours, scratch / "again.safetensors", "kohya")
        compare("and back in kohya's, read by diffusers", compute(kohya_load(kohya, width), given), want)
    print(f"largest of all: {worst:.1e}, limit {LIMIT:.0e}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
