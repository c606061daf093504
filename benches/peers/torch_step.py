#!/usr/bin/env python3
"""The same AS-DPO step in PyTorch and in the engine, side by side on the same cores.

    python benches/peers/torch_step.py                 needs torch, numpy, safetensors, a C++ compiler, cargo

Writes one random case (base weights in diffusers' names, three adapters, winners, losers, condition tokens, noise, noise
levels) into a temporary folder. Every variant is a fresh process that reads it, first takes the same optimizer steps with
the folder's noise (the losses must agree, or the exit status is 1), then, turn by turn with the others so that the
machine's noise hits all of them, steps on noise it draws itself.

Timed, in every variant: noise and noise levels drawn, adversary forward without gradients, loser synthesis, reference and
policy forward on winners, dataset losers and adversarial losers, backward of the policy, Sobolev gaps, clip, AdamW. f32.
Memory is the most a variant's process ever had resident. `1 token` is the exact collapse of the 512 equal text tokens of
training (one key that counts 512 times); `512 tokens` computes them all, as the reference implementation does.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASE = dict(dim=128, heads=4, double=1, single=4, channels=24, plane=[16, 16], axes=[4, 14, 14], batch=4, rank=16,
            text_tokens=512, s=1.5, beta=1000.0, lam=1.0, lr=5e-4, weight_decay=0.01, max_norm=1.0, threads=2, seed=0)
ADAPTERS = ("base_sft", "adv", "train_dpo")


# ------------------------------------------------------------------------------------------------ the case
def modules(c):
    """Name → (in, out) of every linear layer, and the names that adapters act on."""
    d, mlp, cin = c["dim"], 4 * c["dim"], 4 * c["channels"]
    layers = {"x_embedder": (cin, d), "context_embedder": (1, d), "norm_out.linear": (d, 2 * d), "proj_out": (d, cin)}
    layers |= {f"time_text_embed.timestep_embedder.linear_{i}": (w, d) for i, w in ((1, 256), (2, d))}
    layers |= {f"time_text_embed.text_embedder.linear_{i}": (w, d) for i, w in ((1, 1), (2, d))}
    targets = ["x_embedder"]
    for i in range(c["double"]):
        b = f"transformer_blocks.{i}."
        adapted = {"norm1.linear": (d, 6 * d), "ff.net.2": (mlp, d)}
        adapted |= {f"attn.{n}": (d, d) for n in ("to_q", "to_k", "to_v", "to_out.0")}
        frozen = {"norm1_context.linear": (d, 6 * d), "ff.net.0.proj": (d, mlp)}
        frozen |= {"ff_context.net.0.proj": (d, mlp), "ff_context.net.2": (mlp, d)}
        frozen |= {f"attn.{n}": (d, d) for n in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
        layers |= {b + n: shape for n, shape in (adapted | frozen).items()}
        targets += [b + n for n in adapted]
    for i in range(c["single"]):
        b = f"single_transformer_blocks.{i}."
        adapted = {"norm.linear": (d, 3 * d), "proj_mlp": (d, mlp), "proj_out": (d + mlp, d)}
        adapted |= {f"attn.{n}": (d, d) for n in ("to_q", "to_k", "to_v")}
        layers |= {b + n: shape for n, shape in adapted.items()}
        targets += [b + n for n in adapted]
    return layers, targets


def draw_sigma(shape, generator):
    import torch
    u = torch.sigmoid(torch.randn(shape, generator=generator))
    return (1000 - torch.floor(1000 * u)) / 1000


def write_case(c, folder, steps):
    """Random weights, adapters (the trained one's B is 0) and a batch with the noise of `steps` steps."""
    import torch
    from safetensors.torch import save_file
    g = torch.Generator().manual_seed(c["seed"])
    normal = lambda *shape, scale=1.0: torch.randn(shape, generator=g) * scale
    layers, targets = modules(c)
    weights, hd = {}, c["dim"] // c["heads"]
    for name, (width, out) in layers.items():
        silent = "text_embedder" in name  # the pooled text is zero: it adds nothing to the time embedding
        weights[name + ".weight"] = normal(out, width, scale=0.0 if silent else width ** -0.5)
        weights[name + ".bias"] = normal(out, scale=0.0 if silent else 0.2)
    # β multiplies the velocities' rounding, too; with small ones two f32 programs can be compared to 1e-4.
    weights["proj_out.weight"] *= 0.2
    norms = [f"transformer_blocks.{i}.attn.{n}" for i in range(c["double"])
             for n in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")]
    norms += [f"single_transformer_blocks.{i}.attn.{n}" for i in range(c["single"]) for n in ("norm_q", "norm_k")]
    weights |= {name + ".weight": 1 + normal(hd, scale=0.3) for name in norms}
    (folder / "base").mkdir()
    save_file(weights, folder / "base" / "diffusion_pytorch_model.safetensors")
    config = dict(in_channels=4 * c["channels"], num_layers=c["double"], num_single_layers=c["single"],
                  attention_head_dim=hd, num_attention_heads=c["heads"], joint_attention_dim=1,
                  pooled_projection_dim=1, guidance_embeds=False, axes_dims_rope=c["axes"])
    (folder / "base" / "config.json").write_text(json.dumps(config))
    r = c["rank"]
    for adapter in ADAPTERS:
        tensors = {}
        for name in targets:
            width, out = layers[name]
            tensors[f"transformer.{name}.lora_A.weight"] = (2 * torch.rand(r, width, generator=g) - 1) * width ** -0.5
            tensors[f"transformer.{name}.lora_B.weight"] = normal(out, r, scale=0.02 * (adapter != "train_dpo"))
        (folder / adapter).mkdir()
        save_file(tensors, folder / adapter / "adapter_model.safetensors")
    planes, b = (c["batch"], c["channels"], *c["plane"]), c["batch"]
    loser = normal(*planes)
    batch = dict(winner=normal(*planes), loser=loser, cond=pack(loser), noise=normal(steps, 2, *planes),
                 sigma=draw_sigma((steps, 2, b), g))
    save_file({name: t.contiguous() for name, t in batch.items()}, folder / "batch.safetensors")
    (folder / "step.json").write_text(json.dumps(c))


# ------------------------------------------------------------------------------------------------ PyTorch's side
def pack(z):
    b, c, h, w = z.shape
    return z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(t, h, w):
    b = t.shape[0]
    return t.reshape(b, h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)


def torch_model(c, weights, adapters, tokens):
    """The transformer with a condition branch, as a function (image tokens, condition tokens, σ, adapter names)."""
    import torch
    import torch.nn.functional as F
    dim, heads, (height, width) = c["dim"], c["heads"], (n // 2 for n in c["plane"])
    n, hd, joint = height * width, dim // heads, tokens + 2 * height * width

    rows, columns = torch.arange(n) // width, torch.arange(n) % width
    angles = torch.cat([ids.double()[:, None] / 1e4 ** (torch.arange(0, d, 2).double() / d)
                        for ids, d in zip((torch.zeros(n), rows, columns), c["axes"])], 1)
    # Image and condition tokens have the same ids.
    cos, sin = (torch.cat([t, t]).float() for t in (angles.cos(), angles.sin()))
    bias = None
    if tokens != c["text_tokens"]:
        bias = torch.zeros(1, 1, 1, joint)
        bias[..., :tokens] = math.log(c["text_tokens"] / tokens)
    frequencies = torch.exp(-math.log(1e4) * torch.arange(128) / 128)

    def linear(name, x, stream=None, active=()):
        """`stream`: "both" for [B, image|condition, N, D], "condition" for rows of the condition alone."""
        y = F.linear(x, weights[name + ".weight"], weights[name + ".bias"])
        if stream is None or not active:
            return y
        xc = x[:, 1] if stream == "both" else x
        delta = sum(F.linear(F.linear(xc, adapters[a][name][0]), adapters[a][name][1]) for a in active)
        return torch.cat([y[:, :1], (y[:, 1] + delta)[:, None]], 1) if stream == "both" else y + delta

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def split(x, weight=None):
        """[B, …, D] → [B, heads, tokens, head]; with a weight, RMS-normalised."""
        x = x.reshape(x.shape[0], -1, heads, hd).transpose(1, 2)
        return x if weight is None else F.rms_norm(x, (hd,), weights[weight + ".weight"], 1e-6)

    def rope(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)

    def attention(q, k, v):
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        return o.reshape(o.shape[0], joint, dim)

    def gelu(x):
        return F.gelu(x, approximate="tanh")

    def embedding(sigma):
        a = sigma[:, None] * 1000 * frequencies
        name = "time_text_embed.timestep_embedder.linear_"
        h = F.silu(linear(name + "1", torch.cat([a.cos(), a.sin()], -1)))
        return F.silu(linear(name + "2", h))

    def forward(img, cond, sigma, active):
        b = img.shape[0]
        on = dict(stream="both", active=active)
        e, e0 = embedding(sigma), embedding(torch.zeros(1))
        x = linear("x_embedder", torch.stack([img, cond], 1), **on)
        txt = weights["context_embedder.bias"].expand(b, tokens, dim)  # the prompt is zero

        def modulation(name, k):
            image = linear(name, e).reshape(b, 1, 1, k * dim)
            c0 = linear(name, e0, "condition", active).reshape(1, 1, 1, k * dim).expand(b, 1, 1, k * dim)
            return torch.cat([image, c0], 1).chunk(k, -1), image[:, 0].chunk(k, -1)

        for i in range(c["double"]):
            at = f"transformer_blocks.{i}.".__add__
            m, _ = modulation(at("norm1.linear"), 6)
            mt = linear(at("norm1_context.linear"), e)[:, None].chunk(6, -1)
            y, yt = norm(x) * (1 + m[1]) + m[0], norm(txt) * (1 + mt[1]) + mt[0]
            q = split(linear(at("attn.to_q"), y, **on), at("attn.norm_q"))
            k = split(linear(at("attn.to_k"), y, **on), at("attn.norm_k"))
            v = split(linear(at("attn.to_v"), y, **on))
            qt = split(linear(at("attn.add_q_proj"), yt), at("attn.norm_added_q"))
            kt = split(linear(at("attn.add_k_proj"), yt), at("attn.norm_added_k"))
            vt = split(linear(at("attn.add_v_proj"), yt))
            o = attention(torch.cat([qt, rope(q)], 2), torch.cat([kt, rope(k)], 2), torch.cat([vt, v], 2))
            x = x + m[2] * linear(at("attn.to_out.0"), o[:, tokens:].reshape(b, 2, n, dim), **on)
            txt = txt + mt[2] * linear(at("attn.to_add_out"), o[:, :tokens])
            y, yt = norm(x) * (1 + m[4]) + m[3], norm(txt) * (1 + mt[4]) + mt[3]
            x = x + m[5] * linear(at("ff.net.2"), gelu(linear(at("ff.net.0.proj"), y)), **on)
            txt = txt + mt[5] * linear(at("ff_context.net.2"), gelu(linear(at("ff_context.net.0.proj"), yt)))
        for i in range(c["single"]):
            at = f"single_transformer_blocks.{i}.".__add__
            m, mt = modulation(at("norm.linear"), 3)
            y, yt = norm(x) * (1 + m[1]) + m[0], norm(txt) * (1 + mt[1]) + mt[0]
            q, qt = (split(linear(at("attn.to_q"), *a), at("attn.norm_q")) for a in ((y, "both", active), (yt,)))
            k, kt = (split(linear(at("attn.to_k"), *a), at("attn.norm_k")) for a in ((y, "both", active), (yt,)))
            v, vt = (split(linear(at("attn.to_v"), *a)) for a in ((y, "both", active), (yt,)))
            o = attention(torch.cat([qt, rope(q)], 2), torch.cat([kt, rope(k)], 2), torch.cat([vt, v], 2))
            both = torch.cat([o[:, tokens:].reshape(b, 2, n, dim), gelu(linear(at("proj_mlp"), y, **on))], -1)
            x = x + m[2] * linear(at("proj_out"), both, **on)
            both = torch.cat([o[:, :tokens], gelu(linear(at("proj_mlp"), yt))], -1)
            txt = txt + mt[2] * linear(at("proj_out"), both)
        scale, shift = linear("norm_out.linear", e)[:, None].chunk(2, -1)
        return linear("proj_out", norm(x[:, 0]) * (1 + scale) + shift)

    return forward


def serve_torch(folder, mode, tokens):
    """A variant: one answer in JSON per line of stdin (`shared`, `fresh` or `memory`)."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    c = json.loads((folder / "step.json").read_text())
    torch.set_num_threads(c["threads"])
    weights = load_file(folder / "base" / "diffusion_pytorch_model.safetensors")
    adapters, trained = {}, []
    for name in ADAPTERS:
        t = load_file(folder / name / "adapter_model.safetensors")
        halves = {k.removeprefix("transformer.").removesuffix(".lora_A.weight"): k for k in t if "lora_A" in k}
        adapters[name] = {m: (t[k], t[k.replace("lora_A", "lora_B")]) for m, k in halves.items()}
    for pair in adapters["train_dpo"].values():
        trained += [p.requires_grad_() for p in pair]
    batch = load_file(folder / "batch.safetensors")
    opt = torch.optim.AdamW(trained, lr=c["lr"], weight_decay=c["weight_decay"], fused=True)
    model = torch_model(c, weights, adapters, tokens)
    (h, w), b, beta = c["plane"], c["batch"], 0.5 * c["beta"]
    kh, kw = torch.fft.fftfreq(h, 1 / h), torch.fft.fftfreq(w, 1 / w)
    metric = (1 + kh[:, None] ** 2 + kw ** 2) ** c["s"]
    metric /= metric.mean()
    compiled = {}

    def velocity(active, x, cond, sigma):
        if active not in compiled:
            run = lambda img, cond, sigma: model(img, cond, sigma, active)
            compiled[active] = torch.compile(run, dynamic=False) if mode == "compile" else run
        return unpack(compiled[active](pack(x), cond, sigma), h, w)

    def step(noise, sigma):
        (ew, el), (sw, sl) = noise, (s[:, None, None, None] for s in sigma)
        winner, loser = batch["winner"], batch["loser"]
        xw, xl = (1 - sw) * winner + sw * ew, (1 - sl) * loser + sl * el
        with torch.no_grad():
            va = velocity(("base_sft", "adv"), xw, batch["cond"], sigma[0])
            negative = winner + c["lam"] * ((xw - sw * va) - winner)
        x = torch.cat([xw, xl, (1 - sw) * negative + sw * ew])
        target = torch.cat([ew - winner, el - loser, ew - negative])
        cond, sigmas = batch["cond"].repeat(3, 1, 1), torch.cat([sigma[0], sigma[1], sigma[0]])
        with torch.no_grad():
            vr = velocity(("base_sft",), x, cond, sigmas)
        v = velocity(("base_sft", "train_dpo"), x, cond, sigmas)
        # E(v − target) − E(v_ref − target) without cancellation
        d, u = v - vr, v + vr - 2 * target
        gap = (d * torch.fft.ifft2(torch.fft.fft2(u) * metric).real).mean((1, 2, 3)).split(b)
        loss = sum(F.softplus(beta * (gap[0] - lost)).mean() for lost in gap[1:])
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, c["max_norm"])
        opt.step()
        return loss.item()

    generator, shared = torch.Generator().manual_seed(c["seed"] + 1), zip(batch["noise"], batch["sigma"])
    for line in sys.stdin:
        if line.strip() == "memory":
            status = Path("/proc/self/status").read_text().splitlines()
            answer = dict(mib=next(int(l.split()[1]) for l in status if l.startswith("VmHWM")) / 1024)
        else:
            begun = time.perf_counter()
            if line.strip() == "shared":
                loss = step(*next(shared))
            else:
                noise = torch.randn((2, b, c["channels"], h, w), generator=generator)
                loss = step(noise, draw_sigma((2, b), generator))
            answer = dict(seconds=time.perf_counter() - begun, loss=loss)
        print(json.dumps(answer), flush=True)


# ------------------------------------------------------------------------------------------------ side by side
class Variant:
    def __init__(self, name, command, env):
        self.name, self.times = name, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: ended with status {self.process.wait()}")
        return json.loads(line)


def engine_binary():
    build = ["cargo", "bench", "--no-run", "--bench", "peer", "--message-format=json"]
    out = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]).stdout
    messages = (json.loads(line) for line in out.splitlines())
    return next(m["executable"] for m in messages
                if m["reason"] == "compiler-artifact" and m["target"]["name"] == "peer")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="timed steps of each variant")
    parser.add_argument("--check", type=int, default=6, help="steps whose losses must agree")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference of two losses")
    parser.add_argument("--only", default="", help="variants whose name contains this, beside the engine's")
    args = parser.parse_args()
    c = CASE
    full, binary = c["text_tokens"], engine_binary()
    with tempfile.TemporaryDirectory() as folder:
        write_case(c, Path(folder), args.check)
        env = os.environ | {"OMP_NUM_THREADS": str(c["threads"])}
        commands = {}
        for tokens in (1, full):
            word = "token" if tokens == 1 else "tokens"
            commands[f"engine, {tokens} {word}"] = [binary, folder, str(tokens)]
            for mode in ("eager", "compile"):
                command = [sys.executable, __file__, "--serve", folder, mode, str(tokens)]
                commands[f"torch {mode}, {tokens} {word}"] = command
        chosen = {n: k for n, k in commands.items() if n.startswith("engine") or args.only in n}
        variants = [Variant(name, command, env) for name, command in chosen.items()]
        for v in variants:
            v.losses = [v.ask("shared")["loss"] for _ in range(args.check)]
        for _ in range(args.turns):
            for v in variants:
                time.sleep(0.2)  # until the last variant's threads have stopped spinning
                v.ask("fresh")  # its data back into the caches
                v.times.append(v.ask("fresh")["seconds"])
        for v in variants:
            v.mib = v.ask("memory")["mib"]
            v.process.stdin.close()
            v.process.wait()
    import torch
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    print(f"{model}, {c['threads']} threads, torch {torch.__version__}, load {os.getloadavg()[1]:.1f} over 5 minutes\n")
    ours = variants[0]
    base, agree = statistics.median(ours.times), True
    print(f"| variant | median s | min | max | samples/s | peak MiB | first loss | loss {args.check} "
          "| largest difference | time / engine's |\n|---|" + "--:|" * 9)
    for v in variants:
        m = statistics.median(v.times)
        off = max(abs(a - b) / abs(b) for a, b in zip(v.losses, ours.losses))
        agree &= off <= args.tolerance
        print(f"| {v.name} | {m:.4f} | {min(v.times):.4f} | {max(v.times):.4f} | {c['batch'] / m:.1f} | {v.mib:.0f} "
              f"| {v.losses[0]:.6f} | {v.losses[-1]:.6f} | {off:.1e} | {m / base:.2f} |")
    if not agree:
        sys.exit(f"the losses differ by more than {args.tolerance:g}: "
                 + "; ".join(f"{v.name} {v.losses}" for v in variants))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve_torch(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
