"""FLUX.1-dev's real width: golden vectors of one double and one single block between the embedders and the output, by diffusers.

    pip install torch diffusers transformers safetensors
    python tests/interop/full_blocks.py tests/golden/full
    cargo run --release -- verify --fixtures tests/golden/full

545 million weights are too many to commit, so both sides draw them from a counter (Philox 4×32-10; `drawn` below, and
src/verify/full.rs); what is recorded is small: inputs, outputs of a few tokens, and of each weight's gradient 64 entries and the
2-norm. Tolerances are 20 times what float32 is off from float64, at least 2e-6 of the largest value, as in tests/golden;
what diffusers itself computes in float32 even then (RMSNorm's mean, the turned queries and keys) is so in both.

Takes under a minute on two cores, and 7.7 GB: each weight's gradient is looked at and dropped as soon as it is there.
"""

import argparse
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {
    "patch_size": 1, "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
SEED = 20260131
PROBES = 64
BATCH, HEIGHT, WIDTH, TEXT = 2, 4, 4, 3
PIECE = 1 << 20


def words(stream, first, blocks):
    """Four words of each block of `stream`, in order."""
    u32, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    block = np.arange(first, first + blocks, dtype=np.uint64)
    c = [block & low, block >> u32, np.full_like(block, stream), np.zeros_like(block)]
    key = [SEED & 0xFFFFFFFF, SEED >> 32]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> u32) ^ c[1] ^ np.uint64(key[0]), p1 & low, (p0 >> u32) ^ c[3] ^ np.uint64(key[1]), p0 & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1).astype(np.uint32).ravel()


def drawn(name, shape, stream):
    """Uniform values: a matrix keeps the variance of what it multiplies, a bias is small, a norm's weight near 1."""
    n = int(np.prod(shape))
    scale = np.sqrt(np.float32(3) / np.float32(shape[1])) if len(shape) == 2 else np.float32(0.1)
    out = np.empty(n, np.float32)
    for at in range(0, n, PIECE):
        piece = out[at : at + PIECE]
        unit = (words(stream, at // 4, -(-len(piece) // 4))[: len(piece)] >> np.uint32(8)).astype(np.float32)
        np.multiply(unit * np.float32(2**-23) - np.float32(1), scale, out=piece)
    if len(shape) == 1 and name.endswith("weight"):
        out += np.float32(1)
    return torch.from_numpy(out).reshape(shape)


def model(dtype):
    """diffusers' model in `dtype`; a weight's stream is its place among the names in order."""
    with torch.device("meta"):
        flux = diffusers.FluxTransformer2DModel(**CONFIG)
    shapes = {name: tuple(p.shape) for name, p in flux.state_dict().items()}
    state = {name: drawn(name, shapes[name], i).to(dtype) for i, name in enumerate(sorted(shapes))}
    print(f"{dtype}: {sum(p.numel() for p in state.values())} weights drawn", flush=True)
    flux.load_state_dict(state, assign=True)
    return flux.eval()


def given():
    """Inputs of two samples, different in everything but the grid."""
    draws = torch.Generator().manual_seed(SEED)
    normal = lambda *shape: torch.randn(*shape, generator=draws)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    ids = torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).float()
    n = HEIGHT * WIDTH
    return {
        "in.hidden_states": normal(BATCH, n, CONFIG["in_channels"]),
        "in.encoder_hidden_states": normal(BATCH, TEXT, CONFIG["joint_attention_dim"]),
        "in.pooled_projections": normal(BATCH, CONFIG["pooled_projection_dim"]),
        "in.timestep": torch.tensor([0.75, 0.125]), "in.guidance": torch.tensor([3.5, 1.0]),
        "in.img_ids": ids, "in.txt_ids": torch.zeros(TEXT, 3), "in.target": normal(BATCH, n, CONFIG["in_channels"]),
    }  # fmt: skip


def probes(n):
    """Evenly spaced entries, the first and the last among them."""
    return torch.tensor([j * (n - 1) // (PROBES - 1) for j in range(PROBES)])


def compute(dtype):
    flux, made = model(dtype), {}
    inputs = {name.removeprefix("in."): t.to(dtype) for name, t in given().items()}
    ids = {name: inputs.pop(name).float() for name in ("img_ids", "txt_ids")}
    target = inputs.pop("target")
    leaves = {f"grad.{name}": inputs[name].requires_grad_() for name in ("hidden_states", "encoder_hidden_states")}

    def keep(name):
        def look(parameter):
            flat = parameter.grad.flatten()
            made[f"grad.weights.{name}"] = flat[probes(len(flat))].clone()
            made[f"norm.weights.{name}"] = flat.double().norm().reshape(1)
            parameter.grad = None

        return look

    for name, parameter in flux.named_parameters():
        parameter.register_post_accumulate_grad_hook(keep(name))
    flux.time_text_embed.register_forward_hook(lambda _m, _i, out: made.update({"mid.temb": out}))
    both = lambda _m, _i, out: made.update({"mid.block0_txt": out[0], "mid.block0_img": out[1]})
    flux.transformer_blocks[0].register_forward_hook(both)
    v = flux(**inputs, **ids, return_dict=False)[0]
    made["out.sample"] = v
    made["out.loss"] = (v - target).square().mean()
    made["out.loss"].backward()
    made |= {name: leaf.grad for name, leaf in leaves.items()}
    print(f"{dtype}: done", flush=True)
    return {name: t.detach().double() for name, t in made.items()}


def record(out, stem, config, given, single, double):
    """Writes `stem`: what is given and what float64 makes of it, with tolerances by what float32 is off."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: {"shape": list(t.shape), "kind": "input"} for name, t in given.items()}
    for name, exact in double.items():
        off, most = single[name] - exact, exact.abs().max().item()
        size = exact.norm().item()
        gap = {"max_abs": off.abs().max().item(), "rel_l2": off.norm().item() / size if size > 0 else 0.0}
        tolerance = {"max_abs": max(20 * gap["max_abs"], 2e-6 * most), "rel_l2": max(20 * gap["rel_l2"], 2e-6)}
        rounded = lambda d: {key: float(f"{value:.4g}") for key, value in d.items()}
        kind = "grad" if name.startswith("grad.") else "output"
        tensors[name] = {"shape": list(exact.shape), "kind": kind}
        tensors[name] |= {"f32_vs_f64": rounded(gap | {"max_value": most}), "tolerance": rounded(tolerance)}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "numpy": np.__version__}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
    head = json.dumps({"versions": versions, "config": config | {"seed": SEED, "probes": PROBES}}, indent=1)[:-2]
    (out / f"{stem}.json").write_text(f'{head},\n "tensors": {{\n{lines}\n }}\n}}\n')
    values = given | {name: t.float().contiguous() for name, t in double.items()}
    save_file(values, out / f"{stem}.safetensors")


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=Path)
    out = args.parse_args().out
    single, double = compute(torch.float32), compute(torch.float64)
    record(out, "full_blocks", {"transformer": CONFIG}, given(), single, double)


if __name__ == "__main__":
    main()
