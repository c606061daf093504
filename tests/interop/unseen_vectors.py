"""Makes golden vectors of other shapes, heads, batches and seeds than those of tests/golden, to verify on what nobody tuned to.

    pip install torch safetensors
    python tests/interop/unseen_vectors.py /tmp/unseen --seed 1 --size 0
    asasr-engine verify --fixtures /tmp/unseen --device emu [--precision bf16]

A restatement of the method in float64 (the conditioned transformer with ONE text token that counts 512 times, the Sobolev
gap, both training steps with AdamW, the sampler), which shares no code with the engine. Tolerances follow the recorder's rule:
20 times the gap between float32 and float64, at least 2e-6 of the largest value.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import gelu, silu, softplus

# heads, RoPE axes, double and single blocks, text and pooled widths, latents (channels, height, width), batch.
SIZES = [
    (2, (4, 14, 14), 1, 2, 20, 12, (4, 6, 10), 3),
    (5, (2, 2, 4), 3, 1, 12, 28, (8, 12, 4), 2),
    (1, (8, 8, 16), 2, 4, 36, 8, (6, 8, 8), 4),
]
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v")
OPTIMIZER = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}
LR = "1e-2"


class World:
    """A model, its adapters and random inputs; everything is drawn in float32 and computed in `self.dtype`."""

    def __init__(self, out, seed, size):
        self.heads, self.axes, self.double, self.single, self.joint, self.pooled, self.latents, self.batch = size
        self.dim, self.channels = self.heads * sum(self.axes), 4 * self.latents[0]
        self.out, self.draws = Path(out), torch.Generator().manual_seed(seed)
        self.weights = {name: self.weight(name, shape) for name, shape in self.parameters()}
        self.lora = {"base_sft": (5, 5.0), "train_dpo": (2, 2.0), "adv": (3, 4.5)}
        self.factors = {name: self.adapter(r) for name, (r, _) in self.lora.items()}
        self.dtype = torch.float64

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.draws)

    def parameters(self):
        d, layer = self.dim, lambda n, i, o: [(f"{n}.weight", (o, i)), (f"{n}.bias", (o,))]
        every = layer("x_embedder", self.channels, d) + layer("context_embedder", self.joint, d)
        for name, width in ("timestep", 256), ("guidance", 256), ("text", self.pooled):
            every += layer(f"time_text_embed.{name}_embedder.linear_1", width, d)
            every += layer(f"time_text_embed.{name}_embedder.linear_2", d, d)
        for b in range(self.double):
            at = f"transformer_blocks.{b}."
            every += layer(at + "norm1.linear", d, 6 * d) + layer(at + "norm1_context.linear", d, 6 * d)
            for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
                every += layer(at + "attn." + name, d, d)
            every += [(f"{at}attn.norm_{n}.weight", (d // self.heads,)) for n in ("q", "k", "added_q", "added_k")]
            for name in "ff", "ff_context":
                every += layer(f"{at}{name}.net.0.proj", d, 4 * d) + layer(f"{at}{name}.net.2", 4 * d, d)
        for b in range(self.single):
            at = f"single_transformer_blocks.{b}."
            every += layer(at + "norm.linear", d, 3 * d) + layer(at + "proj_mlp", d, 4 * d)
            every += layer(at + "proj_out", 5 * d, d)
            every += sum((layer(at + name, d, d) for name in TARGETS), [])
            every += [(f"{at}attn.norm_{n}.weight", (d // self.heads,)) for n in ("q", "k")]
        return every + layer("norm_out.linear", d, 2 * d) + layer("proj_out", d, self.channels)

    def weight(self, name, shape):
        if len(shape) == 2:
            return self.normal(*shape) / math.sqrt(shape[1])
        return (1 if ".norm_" in name and "linear" not in name else 0) + 0.2 * self.normal(*shape)

    def targets(self):
        """Input and output widths of what adapters act on."""
        d, adapted = self.dim, {"x_embedder": (self.channels, self.dim)}
        for b in range(self.double):
            at = f"transformer_blocks.{b}."
            adapted |= {at + n: (d, d) for n in (*TARGETS, "attn.to_out.0")}
            adapted |= {at + "norm1.linear": (d, 6 * d), at + "ff.net.2": (4 * d, d)}
        for b in range(self.single):
            at = f"single_transformer_blocks.{b}."
            adapted |= {at + n: (d, d) for n in TARGETS}
            adapted |= {at + "norm.linear": (d, 3 * d), at + "proj_mlp": (d, 4 * d), at + "proj_out": (5 * d, d)}
        return adapted

    def adapter(self, rank):
        factors = {}
        for name, (i, o) in self.targets().items():
            factors[f"transformer.{name}.lora_A.weight"] = self.normal(rank, i) / math.sqrt(i)
            factors[f"transformer.{name}.lora_B.weight"] = 0.3 * self.normal(o, rank)
        return factors

    def to(self, t):
        return t.detach().to(self.dtype)

    # The transformer. `sets` lists the acting adapters as (scale, factors).

    def lin(self, n, x, sets=()):
        y = x @ self.w[n + ".weight"].T + self.w[n + ".bias"]
        for scale, f in sets:
            y = y + scale * (x @ f[f"transformer.{n}.lora_A.weight"].T) @ f[f"transformer.{n}.lora_B.weight"].T
        return y

    def embed(self, t, g, pooled):
        def waves(v):
            a = v[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=self.dtype) / 128)
            return torch.cat([a.cos(), a.sin()], -1)

        mlp = lambda n, x: self.lin(f"time_text_embed.{n}_embedder.linear_2", silu(self.lin(f"time_text_embed.{n}_embedder.linear_1", x)))
        return mlp("timestep", waves(1000 * t)) + mlp("guidance", waves(1000 * g)) + mlp("text", pooled)

    def rope(self, ids):
        angles = [ids[:, i, None].double() / 10000 ** (torch.arange(0, d, 2).double() / d) for i, d in enumerate(self.axes)]
        a = torch.cat(angles, -1)
        return a.cos().to(self.dtype), a.sin().to(self.dtype)

    def turned(self, x, table):
        (c, s), a, b = table, x[..., 0::2], x[..., 1::2]
        return torch.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)

    def qkv(self, at, x, names, norms, table, sets=()):
        heads = [self.lin(at + n, x, sets).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in names]
        rms = lambda v, n: v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{at}attn.{n}.weight"]
        return self.turned(rms(heads[0], norms[0]), table), self.turned(rms(heads[1], norms[1]), table), heads[2]

    def forward(self, img, t, guidance, text, pooled, ids, txt_ids, cond=None, copies=1, sets=(), mid=None):
        ln = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        split = lambda n, e, k, s=(): [m[:, None] for m in self.lin(n, silu(e), s).chunk(k, -1)]
        e = self.embed(t, guidance, pooled)
        x, txt = self.lin("x_embedder", img), self.lin("context_embedder", text)
        table, ttable = self.rope(ids), self.rope(txt_ids)
        bias = torch.zeros(txt.shape[1] + x.shape[1] * (1 if cond is None else 2), dtype=self.dtype)
        bias[: txt.shape[1]] = math.log(copies)
        streams = {"x": (x, e, ()), "txt": (txt, e, ())}
        if cond is not None:
            streams["c"] = (self.lin("x_embedder", cond, sets), self.embed(0 * t, guidance, pooled), sets)

        def attend(q, k, v):
            z = torch.softmax(torch.cat(q, 2) @ torch.cat(k, 2).mT / math.sqrt(q[0].shape[-1]) + bias, -1)
            return (z @ torch.cat(v, 2)).transpose(1, 2).flatten(2).split([p.shape[2] for p in q], 1)

        own, added = (TARGETS, ("norm_q", "norm_k")), (tuple(f"attn.add_{n}_proj" for n in "qkv"), ("norm_added_q", "norm_added_k"))
        order = [n for n in ("txt", "x", "c") if n in streams]
        for b in range(self.double):
            at = f"transformer_blocks.{b}."
            state = {}
            for n in order:
                h, emb, s = streams[n]
                m = split(at + ("norm1_context.linear" if n == "txt" else "norm1.linear"), emb, 6, s)
                y = ln(h) * (1 + m[1]) + m[0]
                state[n] = m, self.qkv(at, y, *(added if n == "txt" else own), ttable if n == "txt" else table, s)
            outs = attend(*zip(*(state[n][1] for n in order)))
            for n, o in zip(order, outs):
                (h, emb, s), m, text_side = streams[n], state[n][0], n == "txt"
                h = h + m[2] * self.lin(at + ("attn.to_add_out" if text_side else "attn.to_out.0"), o, s)
                f = at + ("ff_context" if text_side else "ff")
                y = gelu(self.lin(f + ".net.0.proj", ln(h) * (1 + m[4]) + m[3]), approximate="tanh")
                streams[n] = h + m[5] * self.lin(f + ".net.2", y, s), emb, s
            if mid is not None:
                mid |= {f"mid.block{b}_txt": streams["txt"][0], f"mid.block{b}_img": streams["x"][0]}
        for b in range(self.single):
            at = f"single_transformer_blocks.{b}."
            state = {}
            for n in order:
                h, emb, s = streams[n]
                m = split(at + "norm.linear", emb, 3, s)
                y = ln(h) * (1 + m[1]) + m[0]
                state[n] = m, self.qkv(at, y, *own, ttable if n == "txt" else table, s), gelu(self.lin(at + "proj_mlp", y, s), approximate="tanh")
            outs = attend(*zip(*(state[n][1] for n in order)))
            for n, o in zip(order, outs):
                (h, emb, s), (m, _, y) = streams[n], state[n]
                streams[n] = h + m[2] * self.lin(at + "proj_out", torch.cat([o, y], -1), s), emb, s
            if mid is not None and b + 1 < self.single:
                mid[f"mid.single{b}"] = torch.cat([streams["txt"][0], streams["x"][0]], 1)
        if mid is not None:
            c, s = (v.repeat_interleave(2, -1) for v in self.rope(torch.cat([txt_ids, ids])))
            mid |= {"mid.temb": e, "mid.rope_cos": c, "mid.rope_sin": s}
        scale, shift = split("norm_out.linear", e, 2)
        return self.lin("proj_out", ln(streams["x"][0]) * (1 + scale) + shift)

    # Training's use of it: planes in and out, zero text.

    def grid(self):
        _, h, w = self.latents
        return torch.tensor([[0.0, i // (w // 2), i % (w // 2)] for i in range(h * w // 4)])

    def pack(self, x):
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)

    def velocity(self, x, sigma, cond, sets):
        (c, h, w), b, zeros = self.latents, len(x), lambda *s: torch.zeros(*s, dtype=self.dtype)
        v = self.forward(
            self.pack(x), sigma.flatten(), zeros(b), zeros(b, 1, self.joint), zeros(b, self.pooled), self.grid(), torch.zeros(1, 3), cond, 512, sets
        )
        return v.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    def act(self, *names, **trained):
        """The adapters `names` as acting, those in `trained` with these factors."""
        return [(self.lora[n][1] / self.lora[n][0], trained.get(n) or {k: self.to(v) for k, v in self.factors[n].items()}) for n in names]

    def record(self, stem, config, given, compute):
        """Writes what `compute` gives in float64, with tolerances from what it gives in float32."""
        made = {}
        for self.dtype in torch.float32, torch.float64:
            self.w = {n: self.to(t) for n, t in self.weights.items()}
            made[self.dtype] = {n: t.detach() for n, t in compute({n: self.to(t) for n, t in given.items()}).items()}
        tensors = {n: {"kind": "input"} for n in given}
        for name, exact in made[torch.float64].items():
            off, most = (made[torch.float32][name].double() - exact.double()), exact.abs().max().item()
            size = exact.norm().item()
            tolerance = {"max_abs": max(20 * off.abs().max().item(), 2e-6 * most, 1e-9)}
            tolerance["rel_l2"] = max(20 * off.norm().item() / size if size > 0 else 0, 2e-6)
            tensors[name] = {"kind": "grad" if "grad." in name else "output", "tolerance": tolerance}
        every = {n: t.float().contiguous() for n, t in (given | made[torch.float64]).items()}
        save_file(every, self.out / f"{stem}.safetensors")
        lora = {n: {"file": f"lora/{n}.safetensors", "r": r, "lora_alpha": a} for n, (r, a) in self.lora.items()}
        config = {"weights": "model", "lora": lora, "optimizer": OPTIMIZER} | config
        (self.out / f"{stem}.json").write_text(json.dumps({"config": config, "tensors": tensors}, indent=1))
        print(stem, len(made[torch.float64]), "tensors")


def tracked(factors):
    return {k: v.clone().requires_grad_() for k, v in factors.items()}


def norm_of(*gradients):
    return torch.cat([g.flatten() for some in gradients for g in some.values()]).norm()


def gradients(loss, *factors):
    every = [t for f in factors for t in f.values()]
    grads = iter(torch.autograd.grad(loss, every, allow_unused=True))
    return [{k: (torch.zeros_like(t) if (g := next(grads)) is None else g) for k, t in f.items()} for f in factors]


class AdamW:
    def __init__(self, lr):
        self.lr, self.m, self.v, self.n = lr, {}, {}, 0

    def step(self, weights, grads):
        """The weights after an update by clipped gradients, A's and B's."""
        o, clip, self.n = OPTIMIZER, min(1.0, (OPTIMIZER["max_grad_norm"] / (norm_of(grads) + 1e-6)).item()), self.n + 1
        (b1, b2), after = o["betas"], {}
        for k, w in weights.items():
            g = grads[k] * clip
            self.m[k] = b1 * self.m.get(k, 0) + (1 - b1) * g
            self.v[k] = b2 * self.v.get(k, 0) + (1 - b2) * g * g
            m, v = self.m[k] / (1 - b1**self.n), self.v[k] / (1 - b2**self.n)
            after[k] = w.detach() * (1 - self.lr * o["weight_decay"]) - self.lr * m / (v.sqrt() + o["eps"])
        return after


def sigma_of(u):
    return ((1000 - (1000 * u).floor()) / 1000).view(-1, 1, 1, 1)


def symbol(h, w, s, half, dtype):
    k, l = torch.fft.fftfreq(h, 1 / h, dtype=dtype), torch.fft.fftfreq(w, 1 / w, dtype=dtype)
    keep = (torch.arange(w) <= w // 2) if half else torch.ones(w)
    return (1 + k[:, None] ** 2 + l**2) ** s * keep


def product(a, b, s, half):
    """⟨a, A b⟩/(C·H·W) of each sample; the energy where a is b."""
    f = lambda x: torch.fft.fft2(x, norm="ortho")
    return (symbol(*a.shape[-2:], s, half, a.dtype) * (f(a) * f(b).conj()).real).sum((1, 2, 3)) / a[0].numel()


def flux_tiny(w):
    n, text = len(w.grid()), 7
    given = {
        "in.hidden_states": w.normal(w.batch, n, w.channels), "in.encoder_hidden_states": w.normal(w.batch, text, w.joint),
        "in.pooled_projections": w.normal(w.batch, w.pooled), "in.timestep": torch.rand(w.batch, generator=w.draws),
        "in.guidance": 1 + torch.arange(w.batch).float(), "in.img_ids": w.grid(), "in.txt_ids": torch.zeros(text, 3),
        "in.target": w.normal(w.batch, n, w.channels),
    }  # fmt: skip

    def compute(g):
        w.w = tracked(w.w)
        img, txt, mid = g["in.hidden_states"].requires_grad_(), g["in.encoder_hidden_states"].requires_grad_(), {}
        v = w.forward(img, g["in.timestep"], g["in.guidance"], txt, g["in.pooled_projections"], given["in.img_ids"], given["in.txt_ids"], mid=mid)
        loss = (v - g["in.target"]).square().mean()
        inputs, weights = gradients(loss, {"grad.hidden_states": img, "grad.encoder_hidden_states": txt}, w.w)
        return mid | inputs | {f"grad.weights.{k}": t for k, t in weights.items()} | {"out.sample": v, "out.loss": loss}

    w.record("flux_tiny", {}, given, compute)


def flux_cond(w):
    n = len(w.grid())
    given = {f"in.{k}": w.normal(w.batch, n, w.channels) for k in ("hidden_states", "condition", "target")}
    given |= {"in.timestep": torch.rand(w.batch, generator=w.draws), "in.img_ids": w.grid()}

    def compute(g):
        zeros = lambda *s: torch.zeros(*s, dtype=w.dtype)
        run = lambda img, cond, sets: w.forward(
            img, g["in.timestep"], zeros(w.batch), zeros(w.batch, 1, w.joint), zeros(w.batch, w.pooled), given["in.img_ids"], torch.zeros(1, 3), cond, 512, sets
        )
        img, cond = g["in.hidden_states"].requires_grad_(), g["in.condition"].requires_grad_()
        sets = {"sft_dpo": ("base_sft", "train_dpo"), "sft": ("base_sft",), "sft_adv": ("base_sft", "adv"), "none": ()}
        made = {f"out.{k}": run(img, cond, w.act(*names)) for k, names in sets.items()}
        trained = {n: tracked(f) for n, (_, f) in zip(sets["sft_dpo"], w.act(*sets["sft_dpo"]))}
        loss = (run(img, cond, w.act(*trained, **trained)) - g["in.target"]).square().mean()
        inputs, *grads = gradients(loss, {"grad.hidden_states": img, "grad.condition": cond}, *trained.values())
        made |= inputs | {"out.loss": loss}
        return made | {f"grad.{n}.{k}": t for n, gs in zip(trained, grads) for k, t in gs.items()}

    w.record("flux_cond", {}, given, compute)


def sampler(w, steps=3, guidance=2.25):
    n = len(w.grid())
    given = {"in.noise": w.normal(w.batch, n, w.channels), "in.cond": w.normal(w.batch, n, w.channels), "in.ids": w.grid()}
    given |= {"in.text": w.normal(1, 9, w.joint).expand(w.batch, -1, -1), "in.pooled": w.normal(1, w.pooled).expand(w.batch, -1)}

    def compute(g):
        mu = 0.5 + (n - 256) * (1.15 - 0.5) / (4096 - 256)
        sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        sigmas = math.exp(mu) / (math.exp(mu) + 1 / sigmas - 1)
        sigmas = torch.cat([sigmas, torch.zeros(1)]).to(w.dtype)
        x, made = g["in.noise"], {"mid.sigmas": sigmas, "mid.timesteps": 1000 * sigmas[:-1]}
        for i in range(steps):
            t = sigmas[i].expand(w.batch)
            v = w.forward(x, t, 0 * t + guidance, g["in.text"], g["in.pooled"], given["in.ids"], torch.zeros(9, 3), g["in.cond"], 1, w.act("base_sft", "train_dpo"))
            x = x + (sigmas[i + 1] - sigmas[i]) * v
            made |= {f"step{i}.velocity": v, f"step{i}.latents": x}
        return made

    w.record("sampler", {"steps": steps, "guidance_scale": guidance, "adapters": {"base_sft": 1.0, "train_dpo": 1.0}}, given, compute)


def sobolev(w):
    shapes = [(3, 1, 64, 64), (1, 5, 16, 16), (2, 2, 14, 22), (2, 3, 32, 32), (1, 2, 33, 63), (1, 1, 128, 128), (1, 1, 72, 100)]
    given = {f"x_{i}": w.normal(*shape) for i, shape in enumerate(shapes)}

    def compute(g):
        made = {}
        for name, x in g.items():
            i = name[2:]
            made[f"mse_{i}"] = x.square().mean((1, 2, 3))
            for s in (0, 0.75, 1.5, -0.5):
                for kind, half in ("ref", True), ("full", False):
                    x = x.detach().requires_grad_()
                    energy = product(x, x, s, half)
                    made[f"{kind}_{i}_s{s}"] = energy
                    made[f"{kind}_{i}_s{s}_grad"] = torch.autograd.grad(energy.sum(), x)[0]
        return made

    w.record("sobolev", {}, given, compute)


def adversary_step(w):
    shape = (w.batch, *w.latents)
    given = {"in.latents": w.normal(*shape), "in.noise": w.normal(*shape), "in.u": torch.rand(w.batch, generator=w.draws)}
    given |= {"in.cond": w.normal(w.batch, len(w.grid()), w.channels)}
    given["in.u"] = (given["in.u"] * 1000).floor() / 1000 + 5e-4

    def compute(g):
        x, e, s = g["in.latents"], g["in.noise"], sigma_of(given["in.u"]).to(w.dtype)
        noisy, target = (1 - s) * x + s * e, e - x
        (_, sft), (_, adv) = w.act("base_sft", "adv")
        sft, adv = tracked(sft), tracked(adv)
        v = w.velocity(noisy, s, g["in.cond"], w.act("base_sft", "adv", base_sft=sft, adv=adv))
        loss = (v - target).square().mean()
        d_sft, d_adv = gradients(loss, sft, adv)
        made = {"out.sigmas": s, "out.timesteps": 1000 * s.flatten(), "out.noisy": noisy, "out.target_v": target, "out.pred": v, "out.loss": loss}
        made |= {"out.norm_adv": norm_of(d_adv), "out.norm_ref": norm_of(d_sft, d_adv)}
        made |= {f"grad.{k}": t for k, t in d_adv.items()}
        return made | {f"intended.adv.{k}": t for k, t in AdamW(float(LR)).step(adv, d_adv).items()}

    w.record("adversary_step", {"lr": float(LR)}, given, compute)


def asdpo_step(w):
    b, shape = w.batch, (2 * w.batch, *w.latents)
    given = {"in.latents": w.normal(*shape), "in.noise": w.normal(*shape), "in.cond": w.normal(b, len(w.grid()), w.channels)}
    given["in.u"] = (torch.rand(2 * b, generator=w.draws) * 1000).floor() / 1000 + 5e-4
    # Gaps are well above what rounding to bf16 makes of them: of less nothing is to be had there.
    variants = {
        "first": {"beta": 900.0, "s": 1.5, "lam": 0.2, "b_scale": 0.0},
        "later": {"beta": 8.0, "s": 1.0, "lam": 0.5, "b_scale": 0.1},
        "plain": {"beta": 30.0, "s": 0.0, "lam": 1.0, "b_scale": 0.2},
        "alone": {"beta": 6.0, "s": 1.5, "lam": 0.1, "b_scale": 0.15, "use_adv": False},
    }

    def compute(g):
        x, e, s = g["in.latents"], g["in.noise"], sigma_of(given["in.u"]).to(w.dtype)
        noisy, target = (1 - s) * x + s * e, e - x
        made = {"mid.sigmas": s, "mid.timesteps": 1000 * s.flatten(), "mid.noisy_latents": noisy, "mid.target": target}
        made["mid.packed_noisy_latents"] = w.pack(noisy)
        for name, o in variants.items():
            made |= {f"{name}.{k}": t for k, t in variant(g["in.cond"], x, e, s, noisy, target, **o).items()}
        return made

    def variant(cond, x, e, sigma, noisy, target, beta, s, lam, b_scale, use_adv=True):
        made, half = {}, s != 0
        if use_adv:
            xw, sw = x[:b], sigma[:b]
            va = w.velocity(noisy[:b], sw, cond, w.act("base_sft", "adv"))
            estimate = noisy[:b] - sw * va
            hat = xw + lam * (estimate - xw)
            noisy = torch.cat([noisy, (1 - sw) * hat + sw * e[:b]])
            target = torch.cat([target, e[:b] - hat])
            made |= {"adv_pred": va, "x1_adv": estimate, "x1_hat_a": hat, "noisy_latents_adv": noisy[2 * b :], "target_adv": target[2 * b :]}
            sigma = torch.cat([sigma, sw])
        conds = cond.repeat(len(x) // b + use_adv, 1, 1)
        streams = ["win", "loss_data", "loss_adv"][: 2 + use_adv]

        def step(sft, dpo):
            v = w.velocity(noisy, sigma, conds, w.act("base_sft", "train_dpo", base_sft=sft, train_dpo=dpo))
            r = w.velocity(noisy, sigma, conds, w.act("base_sft")).detach()
            gaps = product(v - r, v + r - 2 * target, s, half).split(b)
            terms = [-0.5 * beta * (gaps[0] - gap) for gap in gaps[1:]]
            return v, r, terms, [softplus(-t).mean() for t in terms]

        (_, sft), (_, dpo) = w.act("base_sft", "train_dpo")
        # The files hold B as drawn with a scale of 0.3.
        dpo = {k: t * (b_scale / 0.3 if "lora_B" in k else 1) for k, t in dpo.items()}
        sft, dpo = tracked(sft), tracked(dpo)
        v, r, terms, losses = step(sft, dpo)
        made |= {"model_pred": v, "ref_pred": r, "loss": sum(losses), "loss_dpo_data": losses[0]}
        made["loss_dpo_adv"] = losses[1] if use_adv else torch.zeros(())
        for who, pred in ("model", v), ("ref", r):
            energy = product(pred - target, pred - target, s, half)
            made |= {f"loss_{who}_{n}": part for n, part in zip(streams, energy.split(b))} | {f"raw_{who}_loss": energy.mean()}
        made |= {f"inside_term_{i + 1}": t for i, t in enumerate(terms)} if use_adv else {"inside_term": terms[0]}
        arguments = torch.cat(terms)
        made |= {"implicit_acc": (arguments > 0).float().mean(), "implicit_acc_lenient": (arguments >= 0).float().mean()}
        d_sft, d_dpo = gradients(sum(losses), sft, dpo)
        made |= {"grad_norm_train_dpo": norm_of(d_dpo), "grad_norm_ref": norm_of(d_sft, d_dpo)}
        made |= {f"grad.{k}": t for k, t in d_dpo.items()}
        adamw = AdamW(float(LR))
        first = adamw.step(dpo, d_dpo)
        made |= {f"intended.lr{LR}.{k}": t for k, t in first.items()}
        if b_scale:
            first = tracked(first)
            *_, losses = step(sft, first)
            (d_first,) = gradients(sum(losses), first)
            made |= {"intended.loss_step2": sum(losses), "intended.grad_norm_step2": norm_of(d_first)}
            made |= {f"intended.lr{LR}_step2.{k}": t for k, t in adamw.step(first, d_first).items()}
        return made

    w.record("asdpo_step", {"half_bsz": b, "variants": variants}, given, compute)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=Path)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--size", type=int, default=0, choices=range(len(SIZES)))
    args = args.parse_args()
    for folder in args.out / "model", args.out / "lora":
        folder.mkdir(parents=True, exist_ok=True)
    w = World(args.out, args.seed, SIZES[args.size])
    save_file(w.weights, args.out / "model/diffusion_pytorch_model.safetensors")
    config = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": w.channels, "out_channels": None}
    config |= {"num_layers": w.double, "num_single_layers": w.single, "attention_head_dim": sum(w.axes)}
    config |= {"num_attention_heads": w.heads, "joint_attention_dim": w.joint, "pooled_projection_dim": w.pooled}
    config |= {"guidance_embeds": True, "axes_dims_rope": w.axes}
    (args.out / "model/config.json").write_text(json.dumps(config))
    for name, factors in w.factors.items():
        save_file(factors, args.out / f"lora/{name}.safetensors")
    for make in flux_tiny, flux_cond, sampler, sobolev, adversary_step, asdpo_step:
        make(w)


if __name__ == "__main__":
    main()
