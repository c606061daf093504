"""Writes what diffusers' own converter calls the tensors of FLUX.1's `ae.safetensors`.

    python tests/interop/vae_names.py > tests/interop/vae_names.txt

needs `diffusers` and `torch`. Each line is diffusers' name, then the original one; a unit test holds the engine's mapping to
them. A checkpoint of the original's structure, every tensor with a number of its own, goes through the converter, which must
leave none out and give what `AutoencoderKL` has.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

WIDTHS, LAYERS, LATENTS, GROUPS = (8, 8, 16, 16), 2, 16, 4


def original():
    """Name and shape of every tensor, from the modules of the original code's Encoder and Decoder."""

    def conv(name, inp, out, side=3):
        yield f"{name}.weight", (out, inp, side, side)
        yield f"{name}.bias", (out,)

    def norm(name, width):
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    def block(name, inp, out):
        yield from norm(f"{name}.norm1", inp)
        yield from conv(f"{name}.conv1", inp, out)
        yield from norm(f"{name}.norm2", out)
        yield from conv(f"{name}.conv2", out, out)
        if inp != out:
            yield from conv(f"{name}.nin_shortcut", inp, out, 1)

    def middle(half, width):
        yield from block(f"{half}.mid.block_1", width, width)
        yield from norm(f"{half}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from conv(f"{half}.mid.attn_1.{part}", width, width, 1)
        yield from block(f"{half}.mid.block_2", width, width)

    last, width = len(WIDTHS) - 1, WIDTHS[0]
    yield from conv("encoder.conv_in", 3, width)
    for level, out in enumerate(WIDTHS):
        for i in range(LAYERS):
            yield from block(f"encoder.down.{level}.block.{i}", width, out)
            width = out
        if level != last:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from middle("encoder", width)
    yield from norm("encoder.norm_out", width)
    yield from conv("encoder.conv_out", width, 2 * LATENTS)

    width = WIDTHS[-1]
    yield from conv("decoder.conv_in", LATENTS, width)
    yield from middle("decoder", width)
    for level in reversed(range(len(WIDTHS))):
        for i in range(LAYERS + 1):
            yield from block(f"decoder.up.{level}.block.{i}", width, WIDTHS[level])
            width = WIDTHS[level]
        if level != 0:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from norm("decoder.norm_out", width)
    yield from conv("decoder.conv_out", width, 3)


def main():
    names = list(original())
    checkpoint = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(names)}
    model = AutoencoderKL(
        block_out_channels=WIDTHS,
        layers_per_block=LAYERS,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    converted = convert_ldm_vae_checkpoint(checkpoint, model.config)
    model.load_state_dict(converted, strict=True)
    pairs = sorted((name, names[int(t.flatten()[0])][0]) for name, t in model.state_dict().items())
    assert len({pair[1] for pair in pairs}) == len(pairs) == len(names)
    for pair in pairs:
        print(*pair)


main()
