#!/usr/bin/env python3
"""The ops of `benches/kernels` in PyTorch, on the same shapes, by CUDA events: eager, compiled, and as a CUDA graph.

    python torch_kernels.py --json torch.json                        a GPU and torch
    python torch_kernels.py --merge engine*.json torch*.json         a table of both; needs neither

Names and passes are the engine's (benches/kernels/cases.rs). Inputs are random, at least three sets take turns (so many
that no cache holds one until it is wanted again), and what is timed is a number of runs between two events, 30 times. First
and last come a copy within the device and cuBLAS's 8192³ in bf16: what everything else is a share of. PyTorch's weight
gradients are bf16, the engine's f32; its kernels are otherwise asked for the same.
"""
import argparse
import json
import math
import statistics
import sys
import time

D, TOKENS, PARAMETERS, HEAD, RANK = 3072, 2048, 57_950_208, 128, 16
CUBLAS = "cublas/8192x8192x8192"


# ------------------------------------------------------------------------------------------------ what is timed
def cases(torch, device, scale):
    """Name, pass, variant, FLOPs, bytes of a set, and a function that makes a run of one set. `scale` divides the sizes."""
    import torch.nn.functional as F
    d, tokens = D // scale, TOKENS // scale
    bf16, f32 = torch.bfloat16, torch.float32

    def rand(*shape, dtype=bf16, by=1.0):
        return torch.randn(shape, device=device, dtype=f32).mul_(by).to(dtype)

    def both(function, make):
        """Forward, and forward + backward, of function(*inputs): two makers of runs."""
        def forward():
            inputs = make()
            def run():
                with torch.no_grad():
                    return function(*inputs)
            return run

        def backward():
            inputs = [t.requires_grad_() if t.is_floating_point() else t for t in make()]
            with torch.no_grad():
                seed = torch.randn_like(function(*inputs))
            wanted = [t for t in inputs if t.requires_grad]
            return lambda: torch.autograd.grad(function(*inputs), wanted, seed)
        return forward, backward

    def variants(name, dtype, function, make, flops, size, times=3.0):
        compiled = None
        for variant in ("eager", "compile"):
            if variant == "compile":
                compiled = torch.compile(function, dynamic=False)
            forward, backward = both(compiled or function, make)
            yield name, f"{dtype} forward", variant, flops, size, forward
            yield name, f"{dtype} forward+backward", variant, times * flops, size, backward

    def linear(x, w, b):
        return F.linear(x, w, b)

    def linear_gelu(x, w, b):
        return F.gelu(F.linear(x, w, b), approximate="tanh")

    def gelu(x):
        return F.gelu(x, approximate="tanh")

    def ln_modulate(x, table, cond):
        """Image tokens read their sample's row, condition tokens the one row of theirs: shift is chunk 0, scale chunk 2."""
        n, t, width = x.shape
        y = F.layer_norm(x, (width,), eps=1e-6).reshape(n, 2, t // 2, width)
        rows = torch.stack([table, cond.expand(n, -1)], 1).to(x.dtype)
        shift, _, scale_ = rows[:, :, None].chunk(3, -1)
        return (y * (1 + scale_) + shift).reshape(n, t, width)

    def qk_norm_rope(x, cos, sin):
        n, t, width = x.shape
        y = F.rms_norm(x.view(n, t, -1, HEAD), (HEAD,), eps=1e-6).float()
        a, b = y.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
        return turned.flatten(-2).to(x.dtype).view(n, t, width)

    def feed_forward(x, w1, b1, w2, b2, resid, gate, beside=None):
        """resid + gate ⊙ down([beside | GELU(up(x))]); the image's tokens have a gate of their sample's, the others one."""
        h = linear_gelu(x, w1, b1)
        y = F.linear(h if beside is None else torch.cat([beside, h], -1), w2, b2)
        n, t, width = y.shape
        return (resid.view(n, 2, t // 2, width) + gate[:, :, None] * y.view(n, 2, t // 2, width)).view(n, t, width)

    def blocks(streams):
        """What a block's layers do with `streams` streams. Runs are made later: each keeps its own."""
        rows = streams * tokens
        for inp, out, name, function in ((d, 3 * d, "linear", linear), (d, d, "linear", linear),
                                         (d, 4 * d, "linear_gelu", linear_gelu)):
            make = lambda inp=inp, out=out: [rand(streams, tokens, inp), rand(out, inp, by=inp ** -0.5), rand(out)]
            size = 2 * (rows * (inp + out) + inp * out)
            yield from variants(f"large/{name}/{rows}x{inp}x{out}", "bf16", function, make, 2.0 * rows * inp * out, size)
        for dtype, short in ((f32, "f32"), (bf16, "bf16")):
            make = lambda dtype=dtype: [rand(streams, tokens, d, dtype=dtype), rand(streams, 3 * d, dtype=f32, by=0.5),
                                        rand(1, 3 * d, dtype=f32, by=0.5)]
            yield from variants(f"large/ln_modulate/{rows}x{d}", short, ln_modulate, make, 9.0 * rows * d,
                                2 * rows * d * (4 if dtype == f32 else 2), 1.0)
        yield from variants(f"large/gelu/{rows}x{4 * d}", "bf16", gelu, lambda: [rand(streams, tokens, 4 * d)],
                            14.0 * rows * 4 * d, 4 * rows * 4 * d, 1.0)

        # The same adapters, on the condition half alone: what a careful implementation in PyTorch does.
        def lora(x, w, b, a1, b1, a2, b2):
            y, half = F.linear(x, w, b), x.shape[1] // 2
            cond = x[:, half:]
            more = F.linear(F.linear(cond, a1), b1) + F.linear(F.linear(cond, a2), b2)
            return torch.cat([y[:, :half], y[:, half:] + more], 1)

        def adapted():
            factors = [rand(*s, by=0.1) for s in ((RANK, d), (d, RANK)) * 2]
            frozen = [rand(d, d, by=d ** -0.5), rand(d), *factors[:2]]
            return lambda x, a, b: lora(x, *frozen, a, b), lambda: [rand(streams, tokens, d), *factors[2:]]
        function, make = adapted()
        yield from variants(f"large/linear_lora/{rows}x{d}x{d}", "bf16", function, make,
                            2.0 * rows * d * (d + 2 * RANK), 2 * (2 * rows * d + d * d), 2.0)

        # With the text key's multiplicity as a bias, which is the same mathematics; then without, which is faster.
        heads, n = d // HEAD, tokens + 1
        bias = torch.zeros(n, n, device=device, dtype=bf16)
        bias[:, 0] = math.log(512)
        for title, mask in (("attention", bias), ("attention_unbiased", None)):
            def attend(q, k, v, mask=mask):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            make = lambda: [rand(streams, heads, n, HEAD) for _ in range(3)]
            yield from variants(f"large/{title}/{streams}x{n}x{heads}x{HEAD}", "bf16", attend, make,
                                4.0 * streams * d * n * n, 8 * streams * n * d, 3.5)

        angles = torch.randn(tokens, 1, HEAD // 2, device=device)
        cos, sin = angles.cos(), angles.sin()
        yield from variants(f"large/qk_norm_rope/{rows}x{d}", "bf16",
                            lambda x, cos=cos, sin=sin: qk_norm_rope(x, cos, sin),
                            lambda: [rand(streams, tokens, d)], 8.0 * rows * d, 4 * rows * d, 1.0)
        yield from variants(f"large/linear_rope/{rows}x{d}x{d}", "bf16",
                            lambda x, w, b, cos=cos, sin=sin: qk_norm_rope(F.linear(x, w, b), cos, sin),
                            lambda: [rand(streams, tokens, d), rand(d, d, by=d ** -0.5), rand(d)],
                            2.0 * rows * d * d, 2 * (2 * rows * d + d * d))
        for title, wide in (("feed_forward", 4 * d), ("feed_forward_beside", 5 * d)):
            def make(wide=wide):
                beside = [rand(streams, tokens, d)] if wide > 4 * d else []
                return [rand(streams, tokens, d), rand(4 * d, d, by=d ** -0.5), rand(4 * d),
                        rand(d, wide, by=wide ** -0.5), rand(d), rand(streams, tokens, d, dtype=f32),
                        rand(streams, 2, d, dtype=f32, by=0.5), *beside]
            yield from variants(f"large/{title}/{rows}x{d}x{4 * d}", "bf16", feed_forward, make,
                                2.0 * rows * d * (4 * d + wide), 2 * (rows * (wide - 4 * d) + d * (4 * d + wide)) + 10 * rows * d)

    for streams in (3, 6):
        yield from blocks(streams)

    k = torch.fft.fftfreq(64, 1 / 64, device=device)
    metric = (1 + k[:, None] ** 2 + k ** 2) ** 1.5
    metric = (metric / metric.mean()).float()

    def sobolev(v, v_ref, target):
        """E(v − target) − E(v_ref − target) of each sample, without cancellation."""
        difference, total = v - v_ref, v + v_ref - 2 * target
        return (difference * torch.fft.ifft2(torch.fft.fft2(total) * metric).real).mean((1, 2, 3))

    def constants(function):
        """Only the first input has a gradient."""
        return lambda v, v_ref, target: function(v, v_ref.detach(), target.detach())

    for planes in (48, 4096 // scale):
        make = lambda planes=planes: [rand(planes // 16, 16, 64, 64, dtype=f32, by=0.5) for _ in range(3)]
        values = planes * 4096
        name, flops = f"large/sobolev_gap/{planes}x64x64", 130.0 * values

        def backward(make=make):
            v, v_ref, target = make()
            v.requires_grad_()
            seed = rand(v.shape[0], dtype=f32)
            return lambda: torch.autograd.grad(sobolev(v, v_ref, target), v, seed)

        def graph(make=make):
            run = backward(make)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                kept = run()
            return lambda: (recorded.replay(), kept)
        yield name, "f32 forward", "eager", flops, 12 * values, both(constants(sobolev), make)[0]
        yield name, "f32 forward+backward", "eager", flops, 16 * values, backward
        if device == "cuda":
            yield name, "f32 forward+backward", "graph", flops, 16 * values, graph

    n = PARAMETERS // scale

    def adamw():
        p = torch.nn.Parameter(rand(n, dtype=f32))
        p.grad, half = rand(n, dtype=f32), torch.empty(n, device=device, dtype=bf16)
        optimizer = torch.optim.AdamW([p], lr=1e-6, weight_decay=0.01, eps=1e-8, fused=True)

        def run():
            torch.nn.utils.clip_grad_norm_([p], 1.0)
            optimizer.step()
            half.copy_(p.detach())
        return run
    yield f"large/adamw/{n}", "f32 update", "fused", 16.0 * n, 34 * n, adamw


def references(torch, device, scale, when):
    n, side = (1 << 27) // scale ** 2, 8192 // scale

    def copy():
        x = torch.randn(n, device=device)
        y = torch.empty_like(x)
        return lambda: y.copy_(x)

    def product():
        a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
        return lambda: a @ b
    yield "copy", when, "eager", 0.0, 8 * n, copy
    yield CUBLAS, when, "eager", 2.0 * side ** 3, 6 * side ** 2, product


# ------------------------------------------------------------------------------------------------ timing
def measure(torch, device, make, size, samples):
    """Seconds of one run, `samples` times, each over as many runs as take about 10 ms."""
    sets = max(3, min(16, -(-(256 << 20) // max(size, 1)))) if device == "cuda" else 3
    runs = [make() for _ in range(sets)]

    def timed(n):
        if device != "cuda":
            begun = time.perf_counter()
            for i in range(n):
                runs[i % sets]()
            return time.perf_counter() - begun
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for i in range(n):
            runs[i % sets]()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    timed(2 * sets)
    n = max(sets, round(0.01 / (timed(sets) / sets))) if samples > 1 else sets
    return sorted(timed(n) / n for _ in range(samples))


def serve(args):
    import torch
    device, scale = args.device, args.scale
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, samples = [], 1 if args.quick else 30
    everything = (list(references(torch, device, scale, "first")) + list(cases(torch, device, scale))
                  + list(references(torch, device, scale, "last")))
    for name, passed, variant, flops, size, make in everything:
        if args.only not in f"{name}/{passed}" and name not in ("copy", CUBLAS):
            continue
        if device != "cuda" and variant == "compile":
            continue
        try:
            seconds = measure(torch, device, make, size, samples)
        except Exception as e:  # one that runs out of memory, or that the compiler refuses, does not stop the others
            print(f"{name} {passed} {variant}: {type(e).__name__}: {e}", file=sys.stderr)
            rows.append(dict(name=name, **{"pass": passed}, variant=variant, error=str(e)))
            continue
        finally:
            make = None
            if device == "cuda":
                torch.cuda.empty_cache()
        at = lambda share: seconds[round((len(seconds) - 1) * share)]
        rows.append(dict(name=name, **{"pass": passed}, variant=variant, seconds=at(0.5), low=at(0.1), high=at(0.9),
                         samples=len(seconds), flops=flops, bytes=size))
        print(f"{name + ' ' + passed + ' ' + variant:72} {1e6 * at(0.5):10.1f} µs {flops / at(0.5) / 1e12:9.2f} TFLOP/s",
              flush=True)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = dict(by="torch", torch=torch.__version__, cuda=torch.version.cuda, device=gpu,
                  gpu_timing=device == "cuda" and not args.quick, rows=rows)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)


# ------------------------------------------------------------------------------------------------ both together
def merge(files):
    times, flops, size, timing, by = {}, {}, {}, True, set()
    for file in files:
        with open(file) as f:
            result = json.load(f)
        timing &= result["gpu_timing"]
        by.add(result["by"])
        for row in result["rows"]:
            if "seconds" in row:
                key = row["name"], row["pass"]
                who = "engine" if result["by"] == "asasr-engine" else row["variant"]
                times.setdefault(key, {}).setdefault(who, []).append(row["seconds"])
                if who == "engine" or key not in flops:
                    flops[key], size[key] = row["flops"], row["bytes"]
    median = {key: {who: statistics.median(t) for who, t in of.items()} for key, of in times.items()}
    rate = lambda name, of, who: [of[k] / median[k][who] for k in median if k[0] == name and who in median[k]]
    copy, cublas = rate("copy", size, "engine"), rate(CUBLAS, flops, "eager")
    if not timing:
        print(f"{len(median)} benchmarks were tried, none measured: these are no GPU timings, and no table")
        return
    for what, rates, unit in (("copy", copy, 1e9), ("cuBLAS 8192x8192x8192, bf16", cublas, 1e12)):
        if rates:
            print(f"{what}: " + ", ".join(f"{r / unit:.1f}" for r in rates)
                  + (" GB/s" if unit == 1e9 else " TFLOP/s") + " (first, last)")
    print("\n| op | pass | engine µs | GB/s | of copy | TFLOP/s | of cuBLAS | best of torch | µs | torch / engine |\n"
          "|---|---|--:|--:|--:|--:|--:|---|--:|--:|")
    for key in sorted(median):
        of = median[key]
        if "engine" not in of or key[0] == "copy":
            continue
        mine = of.pop("engine")
        share = lambda amount, rates: f"{100 * amount / mine / rates[0]:.0f} %" if rates else "-"
        product = "linear" in key[0]
        best = min(of, key=of.get) if of else None
        print(f"| {key[0]} | {key[1]} | {1e6 * mine:.1f} | {size[key] / mine / 1e9:.0f} | {share(size[key], copy)} "
              f"| {flops[key] / mine / 1e12:.2f} | {share(flops[key], cublas) if product else '-'} "
              + (f"| {best} | {1e6 * of[best]:.1f} | {of[best] / mine:.2f} |" if best else "| - | - | - |"))
    if "torch" not in by:
        print("\nno PyTorch beside it")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="each once: shows that it runs, measures nothing")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script")
    parser.add_argument("--scale", type=int, default=1, help="sizes divided by this, to try the script")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="results of both sides, as a table")
    args = parser.parse_args()
    merge(args.merge) if args.merge else serve(args)


if __name__ == "__main__":
    main()
