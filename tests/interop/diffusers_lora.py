"""A LoRA means the same to this engine as to diffusers and PEFT, in both directions.

    pip install torch diffusers peft transformers safetensors
    cargo build --release --example forward
    python tests/interop/diffusers_lora.py

On the small model of tests/golden: random adapters are made with PEFT (alpha = r, alpha != r, and a rank and alpha of its
own for some modules), saved in every way diffusers and PEFT save them, read by this engine, and computed by both. The
engine then saves each adapter in its own layout, which is read by diffusers and computed again. Not part of
`cargo xtask test`: it needs PyTorch. Exits with 1 if an output differs by more than LIMIT of the largest.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

REPO = Path(__file__).resolve().parents[2]
MODEL = REPO / "tests/golden/tiny_flux/transformer"
FORWARD = REPO / "target/release/examples/forward"
LIMIT = 1e-5  # float32 noise: without an adapter the two differ by 1.2e-6

# (r, alpha, (module's end, its rank and alpha) or None)
ADAPTERS = {
    "alpha = r": (4, 4, None),
    "alpha = 2.5 r": (4, 10, None),
    "mixed ranks": (4, 6, ("attn.to_q", 2, 5)),
}


def targets(model):
    double = ["norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2"]
    single = ["norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v"]
    return (
        ["x_embedder"]
        + [f"transformer_blocks.{i}.{m}" for i in range(len(model.transformer_blocks)) for m in double]
        + [f"single_transformer_blocks.{i}.{m}" for i in range(len(model.single_transformer_blocks)) for m in single]
    )


def transformer():
    return FluxTransformer2DModel.from_pretrained(MODEL, torch_dtype=torch.float32).eval()


def inputs(config):
    g = torch.Generator().manual_seed(7)
    batch, h, w, text = 2, 4, 6, 5
    img_ids = torch.zeros(h, w, 3)
    img_ids[..., 1] += torch.arange(h)[:, None]
    img_ids[..., 2] += torch.arange(w)[None, :]
    return {
        "hidden_states": torch.randn(batch, h * w, config.in_channels, generator=g),
        "encoder_hidden_states": torch.randn(batch, text, config.joint_attention_dim, generator=g),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim, generator=g),
        "timestep": torch.tensor([0.25, 0.875]),
        "guidance": torch.tensor([3.5, 1.0]),
        "img_ids": img_ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
    }


def compute(model, given):
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def random_adapter(seed, r, alpha, own):
    """A transformer with an adapter whose A and B are both random."""
    model = transformer()
    names = targets(model)
    patterns = {}
    if own:
        end, rank, its_alpha = own
        patterns = {
            "rank_pattern": {n: rank for n in names if n.endswith(end)},
            "alpha_pattern": {n: its_alpha for n in names if n.endswith(end)},
        }
    model.add_adapter(LoraConfig(r=r, lora_alpha=alpha, target_modules=names, **patterns), adapter_name="sr")
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=g) * 0.5 / p.shape[1] ** 0.5
    return model


def pipeline_load(folder, weight_name):
    """As FluxPipeline.load_lora_weights does it."""
    model = transformer()
    state, alphas, metadata = FluxPipeline.lora_state_dict(
        str(folder), weight_name=weight_name, return_alphas=True, return_lora_metadata=True
    )
    FluxPipeline.load_lora_into_transformer(state, network_alphas=alphas, transformer=model, metadata=metadata)
    return model


def saved(model, folder):
    """The adapter as diffusers' model, diffusers' pipeline and PEFT write it: name and folder of each."""
    from peft import get_peft_model_state_dict

    a, b, c = folder / "model", folder / "pipeline", folder / "peft"
    model.save_lora_adapter(str(a), adapter_name="sr")
    config = model.peft_config["sr"].to_dict()
    FluxPipeline.save_lora_weights(
        str(b),
        transformer_lora_layers=get_peft_model_state_dict(model, adapter_name="sr"),
        transformer_lora_adapter_metadata={k: sorted(v) if isinstance(v, set) else v for k, v in config.items()},
    )
    wrapped = PeftModel(transformer(), model.peft_config["sr"], adapter_name="default")
    theirs = get_peft_model_state_dict(model, adapter_name="sr")
    missing = wrapped.load_state_dict(
        {
            f"base_model.model.{k.replace('.weight', '.default.weight')}": v
            for k, v in theirs.items()
        },
        strict=False,
    )
    assert not missing.unexpected_keys, missing.unexpected_keys
    wrapped.save_pretrained(str(c))
    return [("diffusers model", a), ("diffusers pipeline", b), ("PEFT", c)]


def engine(scratch, adapter=None, resaved=None):
    out = scratch / "out.safetensors"
    extra = [str(p) for p in (adapter, resaved) if p]
    subprocess.run([FORWARD, MODEL, scratch / "in.safetensors", out, *extra], check=True)
    return load_file(out)["sample"]


def main():
    worst = 0.0

    def compare(what, got, want, base):
        nonlocal worst
        error = ((got - want).abs().max() / want.abs().max()).item()
        moved = ((want - base).abs().max() / want.abs().max()).item()
        worst = max(worst, error)
        print(f"{what:<58} largest error {error:.1e}, the adapter moves the output by {moved:.2f}")

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        plain = transformer()
        given = inputs(plain.config)
        save_file(given, scratch / "in.safetensors")
        base = compute(plain, given)
        compare("no adapter", engine(scratch), base, base)
        for seed, (name, (r, alpha, own)) in enumerate(ADAPTERS.items()):
            folder = scratch / str(seed)
            folder.mkdir()
            model = random_adapter(seed, r, alpha, own)
            want = compute(model, given)
            assert (want - base).abs().max() > 0.1 * base.abs().max(), "the adapter must be seen in the output"
            for by, path in saved(model, folder):
                ours = folder / f"ours-{path.name}"
                compare(f"{name}: saved by {by}, read here", engine(scratch, path, ours), want, base)
                again = compute(pipeline_load(ours, "adapter_model.safetensors"), given)
                compare(f"{name}: saved here again, read by diffusers", again, want, base)
                bare = transformer()
                state = {
                    k.removeprefix("transformer."): v
                    for k, v in load_file(ours / "adapter_model.safetensors").items()
                    if not k.endswith(".alpha")
                }
                config = LoraConfig(**{
                    k: v for k, v in json.loads((ours / "adapter_config.json").read_text()).items()
                    if k in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
                })
                wrapped = PeftModel(bare, config)
                wrapped.load_state_dict(
                    {f"base_model.model.{k.replace('.weight', '.default.weight')}": v for k, v in state.items()},
                    strict=False,
                )
                compare(f"{name}: saved here again, read by PEFT", compute(wrapped, given), want, base)
    print(f"largest of all: {worst:.1e}, limit {LIMIT:.0e}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
