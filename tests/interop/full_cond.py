"""FLUX.1-dev's real width with a condition and adapters of two ranks: golden vectors of one double and two single blocks.

    pip install torch diffusers transformers safetensors
    python tests/interop/full_cond.py tests/golden/full
    cargo run --release -- verify --fixtures tests/golden/full

What a preference step computes: noisy image, condition and ONE zero text token that counts 512 times; `base_sft` of rank 128
frozen, `train_dpo` of rank 16 trained, both on the condition alone. The forward pass is `unseen_vectors.py`'s restatement of
the method, weights, tolerances and what is kept of a gradient are `full_blocks.py`'s; the factors are drawn from the streams
after the weights'. Two single blocks, because of the last one an adapter reaches the output by keys and values only.

Takes a minute on two cores, and 9 GB.
"""

import argparse
from pathlib import Path

import torch
from full_blocks import CONFIG, SEED, drawn, probes, record
from unseen_vectors import World, tracked

MODEL = CONFIG | {"num_single_layers": 2}
# Rank and alpha; one scale is not 1.
ADAPTERS = {"base_sft": (128, 64.0), "train_dpo": (16, 16.0)}
BATCH, HEIGHT, WIDTH = 2, 4, 4


class Full(World):
    """The model at full width, in `dtype` throughout, `train_dpo`'s factors to be trained."""

    def __init__(self, dtype):
        self.heads, self.axes = MODEL["num_attention_heads"], MODEL["axes_dims_rope"]
        self.double, self.single = MODEL["num_layers"], MODEL["num_single_layers"]
        self.joint, self.pooled = MODEL["joint_attention_dim"], MODEL["pooled_projection_dim"]
        self.dim, self.channels = self.heads * MODEL["attention_head_dim"], MODEL["in_channels"]
        self.latents, self.dtype = (self.channels // 4, HEIGHT, WIDTH), dtype
        self.lora = ADAPTERS
        shapes = dict(self.parameters())
        self.w = {name: drawn(name, shapes[name], i).to(dtype) for i, name in enumerate(sorted(shapes))}
        factors = {}
        for adapter, (r, _) in ADAPTERS.items():
            for module, (i, o) in self.targets().items():
                at = f"{adapter}.transformer.{module}.lora_"
                factors |= {at + "A.weight": (r, i), at + "B.weight": (o, r)}
        self.factors = {adapter: {} for adapter in ADAPTERS}
        for i, name in enumerate(sorted(factors), len(shapes)):
            adapter, key = name.split(".", 1)
            self.factors[adapter][key] = drawn(name, factors[name], i).to(dtype)
        self.factors["train_dpo"] = tracked(self.factors["train_dpo"])

    def act(self, *names):
        return [(ADAPTERS[n][1] / ADAPTERS[n][0], self.factors[n]) for n in names]


def given():
    """Inputs of two samples, different in everything but the grid."""
    draws = torch.Generator().manual_seed(SEED + 1)
    normal = lambda: torch.randn(BATCH, HEIGHT * WIDTH // 4, MODEL["in_channels"], generator=draws)
    given = {f"in.{name}": normal() for name in ("hidden_states", "condition", "target")}
    rows, columns = torch.meshgrid(torch.arange(HEIGHT // 2), torch.arange(WIDTH // 2), indexing="ij")
    ids = torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).float()
    return given | {"in.timestep": torch.tensor([0.75, 0.125]), "in.img_ids": ids}


def compute(dtype):
    world = Full(dtype)
    print(f"{dtype}: {sum(t.numel() for t in world.w.values())} weights drawn", flush=True)
    g = {name.removeprefix("in."): t.to(dtype) for name, t in given().items()}
    img, cond = g["hidden_states"].requires_grad_(), g["condition"].requires_grad_()
    zeros = lambda *shape: torch.zeros(*shape, dtype=dtype)
    no_text = (zeros(BATCH), zeros(BATCH, 1, world.joint), zeros(BATCH, world.pooled))
    ids = (g["img_ids"].float(), torch.zeros(1, 3))
    run = lambda *names: world.forward(img, g["timestep"], *no_text, *ids, cond, 512, world.act(*names))
    with torch.no_grad():
        made = {"out.none": run(), "out.sft": run("base_sft")}
    v = run("base_sft", "train_dpo")
    loss = (v - g["target"]).square().mean()
    made |= {"out.sft_dpo": v, "out.loss": loss}
    loss.backward()
    made |= {"grad.hidden_states": img.grad, "grad.condition": cond.grad}
    for name, factor in world.factors["train_dpo"].items():
        # Of the last block's, queries and what comes after attention reach nothing.
        flat = (torch.zeros_like(factor) if factor.grad is None else factor.grad).flatten()
        made[f"grad.train_dpo.{name}"] = flat[probes(len(flat))].clone()
        made[f"norm.train_dpo.{name}"] = flat.double().norm().reshape(1)
    print(f"{dtype}: done", flush=True)
    return {name: t.detach().double() for name, t in made.items()}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=Path)
    out = args.parse_args().out
    single, double = compute(torch.float32), compute(torch.float64)
    lora = {name: {"r": r, "lora_alpha": alpha} for name, (r, alpha) in ADAPTERS.items()}
    record(out, "full_cond", {"transformer": MODEL, "lora": lora}, given(), single, double)


if __name__ == "__main__":
    main()
