"""Golden vectors of FLUX.1's autoencoder at sizes no test has seen, by diffusers, its weights beside them.

    pip install torch diffusers
    python tests/interop/vae_vectors.py OUT --size 0 && asasr-engine verify --fixtures OUT [--device emu]

Each size has other channels, groups, layers and latents than tests/golden, and planes that are no squares; between them
are one and four halvings, a middle without attention, a latent of one row, no shift. Tolerances are 20 times what float32
is off from float64, at least 2e-6 of the largest value, as in tests/golden.
"""

import argparse
import json
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

# Blocks' channels, groups, layers per block, latent channels, attention, scale and shift, batch, height and width in pixels.
SIZES = [
    ((12, 24, 36), 6, 1, 4, True, 0.18215, None, 3, (24, 40)),
    ((10, 10, 30, 20), 5, 3, 16, True, 0.3611, 0.1159, 1, (8, 56)),
    ((32, 64), 32, 2, 7, True, 1.5, -0.25, 2, (26, 34)),
    ((8, 16, 8, 24, 40), 8, 1, 5, True, 0.3611, 0.1159, 2, (48, 112)),
    ((6, 18, 9), 3, 2, 3, False, 0.7, 0.4, 2, (44, 4)),
    ((64, 96, 160, 160), 32, 2, 16, True, 0.3611, 0.1159, 1, (104, 72)),
]


def model(widths, groups, layers, latents, attention, scale, shift):
    """A random autoencoder: matrices keep the variance of what they multiply, norms are near 1, biases small."""
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths, layers_per_block=layers, latent_channels=latents, norm_num_groups=groups,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=attention,
    )  # fmt: skip
    for name, p in vae.named_parameters():
        if p.dim() > 1:
            p.data.normal_(0, p[0].numel() ** -0.5)
        else:
            p.data.normal_(float("norm" in name and name.endswith("weight")), 0.2)
    return vae.eval()


def compute(vae, given, dtype):
    """Both ways in `dtype`, and what the middle blocks give."""
    vae, given = vae.type(dtype), {name: t.to(dtype) for name, t in given.items()}
    made, config = {}, vae.config
    scale, shift = config.scaling_factor, config.shift_factor or 0
    keep = lambda name: lambda _module, _inputs, out: made.update({name: out})
    hooks = [
        vae.encoder.mid_block.register_forward_hook(keep("out.enc_mid")),
        vae.decoder.mid_block.register_forward_hook(keep("out.dec_mid")),
    ]
    with torch.no_grad():
        posterior = vae.encode(given["in.image"]).latent_dist
        sample = posterior.mean + posterior.std * given["in.eps"]
        made |= {"out.mean": posterior.mean, "out.logvar": posterior.logvar, "out.sample": sample}
        made["out.latents"] = (sample - shift) * scale
        made["out.decoded"] = vae.decode(given["in.z"] / scale + shift).sample
    for hook in hooks:
        hook.remove()
    return {name: t.double() for name, t in made.items()}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=Path)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--size", type=int, default=0, choices=range(len(SIZES)))
    args = args.parse_args()
    torch.manual_seed(args.seed)
    *dimensions, batch, (height, width) = SIZES[args.size]
    vae = model(*dimensions)
    vae.save_pretrained(args.out / "tiny_flux/vae")
    widths, latents = dimensions[0], dimensions[3]
    cells = (batch, latents, height >> (len(widths) - 1), width >> (len(widths) - 1))
    given = {"in.image": torch.rand(batch, 3, height, width) * 2 - 1, "in.eps": torch.randn(cells), "in.z": torch.randn(cells)}
    single, double = (compute(vae, given, dtype) for dtype in (torch.float32, torch.float64))
    tensors = {name: {"kind": "input", "shape": list(t.shape)} for name, t in given.items()}
    for name, exact in double.items():
        off, most = single[name] - exact, exact.abs().max().item()
        largest = max(20 * off.abs().max().item(), 2e-6 * most)
        tolerance = {"max_abs": largest, "rel_l2": max(20 * (off.norm() / exact.norm()).item(), 2e-6)}
        tensors[name] = {"kind": "output", "shape": list(exact.shape), "tolerance": tolerance}
    save_file(given | {name: t.float().contiguous() for name, t in double.items()}, args.out / "vae_tiny.safetensors")
    (args.out / "vae_tiny.json").write_text(json.dumps({"config": dict(vae.config), "tensors": tensors}, indent=1))


if __name__ == "__main__":
    main()
