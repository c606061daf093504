#!/usr/bin/env python3
"""Real-ESRGAN's degradation by basicsr 1.4.2 and by the engine, side by side on the same cores.

    python benches/peers/basicsr_degrade.py PHOTOS --basicsr FOLDER      needs torch, torchvision, scipy, opencv-python, cargo

FOLDER is basicsr's unpacked source (`pip download --no-deps --no-binary :all: basicsr==1.4.2`): the modules used here are
loaded by path, since the package as a whole does not import with recent torchvision.

Both sides have the photographs decoded in memory and turn crops of 512² into a sharpened target and an 8-bit picture of
128² with the same probabilities and ranges, on the same number of threads, in turns, so that the machine's noise hits both.
basicsr's side is RealESRGANDataset's kernels and RealESRGANModel.feed_data up to its clamp; `cv2 USM` has OpenCV's
separable sharpening (basicsr's `usm_sharp`) in the place of the model's 51×51 convolution. Every batch size that is named is
a variant of its own, since filters are grouped convolutions there.
"""
import argparse
import importlib.util
import math
import os
import random
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CROP, SCALE = 512, 4
KINDS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KIND_PROB = [0.42, 0.26, 0.14, 0.05, 0.09, 0.04]
FIRST = dict(blur_prob=1.0, sinc=0.06, sigma=[0.2, 2.35], resize_prob=[0.28, 0.38, 0.34], resize=[0.28, 1.65], gaussian=0.16,
             noise=[0.5, 5.5], poisson=[0.01, 0.5], gray=0.88, jpeg=[48, 88])
SECOND = dict(blur_prob=0.55, sinc=0.05, sigma=[0.15, 1.75], resize_prob=[0.18, 0.28, 0.54], resize=[0.48, 1.32], gaussian=0.10,
              noise=[0.5, 4.0], poisson=[0.01, 0.32], gray=0.836, jpeg=[52, 90])
BETA_G, BETA_P, LIGHT, FINAL_SINC = [0.45, 3.0], [1.0, 2.0], 0.20, 0.78


def load(folder):
    """basicsr's three modules; torchvision has moved what one of them imports."""
    import torchvision.transforms.functional as moved
    shim = types.ModuleType("torchvision.transforms.functional_tensor")
    shim.rgb_to_grayscale = moved.rgb_to_grayscale
    sys.modules.setdefault(shim.__name__, shim)
    modules = []
    for name in ("data/degradations", "utils/diffjpeg", "utils/img_process_util"):
        spec = importlib.util.spec_from_file_location(Path(name).name, Path(folder) / "basicsr" / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return modules


class Basicsr:
    def __init__(self, photos, folder, batch, cv2_usm):
        import numpy as np
        import torch
        self.np, self.torch, self.photos, self.batch, self.cv2_usm = np, torch, photos, batch, cv2_usm
        self.d, jpeg, self.process = load(folder)
        self.jpeger, self.usm = jpeg.DiffJPEG(differentiable=False), self.process.USMSharp()

    def kernel(self, c):
        np, d = self.np, self.d
        size = random.choice(range(7, 22, 2))
        if np.random.uniform() >= c["blur_prob"]:
            return None
        if np.random.uniform() < c["sinc"]:
            lowest = np.pi / 3 if size < 13 else np.pi / 5
            kernel = d.circular_lowpass_kernel(np.random.uniform(lowest, np.pi), size, pad_to=False)
        else:
            kernel = d.random_mixed_kernels(KINDS, KIND_PROB, size, c["sigma"], c["sigma"], [-math.pi, math.pi], BETA_G,
                                            BETA_P, noise_range=None)
        pad = (21 - size) // 2
        return self.torch.FloatTensor(np.pad(kernel, ((pad, pad), (pad, pad))))

    def last_kernel(self):
        if self.np.random.uniform() >= FINAL_SINC:
            pulse = self.torch.zeros(21, 21)
            pulse[10, 10] = 1
            return pulse
        omega = self.np.random.uniform(self.np.pi / 3, self.np.pi)
        return self.torch.FloatTensor(self.d.circular_lowpass_kernel(omega, random.choice(range(7, 22, 2)), pad_to=21))

    def mode(self):
        return random.choice(["area", "bilinear", "bicubic"])

    def compress(self, x, c):
        return self.jpeger(x.clamp(0, 1), quality=x.new_zeros(x.size(0)).uniform_(*c["jpeg"]))

    def factor(self, c):
        kind = random.choices(["up", "down", "keep"], c["resize_prob"])[0]
        bounds = {"up": (1, c["resize"][1]), "down": (c["resize"][0], 1), "keep": (1, 1)}[kind]
        return self.np.random.uniform(*bounds)

    def noise(self, x, c):
        if self.np.random.uniform() < c["gaussian"]:
            return self.d.random_add_gaussian_noise_pt(x, sigma_range=c["noise"], clip=True, rounds=False, gray_prob=c["gray"])
        return self.d.random_add_poisson_noise_pt(x, scale_range=c["poisson"], gray_prob=c["gray"], clip=True, rounds=False)

    def filter(self, x, kernels):
        # filter2D wants planes one after the other, whatever recent torch made of them before
        return self.process.filter2D(x.contiguous(), kernels)

    def step(self):
        """One batch: sharpened targets, bad pictures."""
        torch, np, interpolate = self.torch, self.np, self.torch.nn.functional.interpolate
        crops = []
        for _ in range(self.batch):
            photo = random.choice(self.photos)
            y, x = (random.randint(0, n - CROP) for n in photo.shape[:2])
            crop = photo[y:y + CROP, x:x + CROP].astype(np.float32) / 255
            crops.append(self.process.usm_sharp(crop) if self.cv2_usm else crop)
        gt = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2)).contiguous()
        if not self.cv2_usm:
            gt = self.usm(gt)
        small = (CROP // SCALE, CROP // SCALE)
        if np.random.uniform() < LIGHT:
            out = self.compress(interpolate(gt, size=small, mode=self.mode()), SECOND)
            return gt, (out * 255).round().clamp(0, 255) / 255
        # kernels are drawn for each picture, everything else for the batch
        out = self.filter(gt, torch.stack([self.kernel(FIRST) for _ in crops]))
        out = interpolate(out, scale_factor=self.factor(FIRST), mode=self.mode())
        out = self.compress(self.noise(out, FIRST), FIRST)
        if np.random.uniform() < SECOND["blur_prob"]:
            always = SECOND | dict(blur_prob=1.0)
            out = self.filter(out, torch.stack([self.kernel(always) for _ in crops]))
        side = int(CROP / SCALE * self.factor(SECOND))
        out = self.noise(interpolate(out, size=(side, side), mode=self.mode()), SECOND)
        last = torch.stack([self.last_kernel() for _ in crops])
        if np.random.uniform() < 0.5:
            out = self.filter(interpolate(out, size=small, mode=self.mode()), last)
            out = self.compress(out, SECOND)
        else:
            out = interpolate(self.compress(out, SECOND), size=small, mode=self.mode())
            out = self.filter(out, last)
        return gt, (out * 255).round().clamp(0, 255) / 255

    def run(self, n):
        begun = time.perf_counter()
        with self.torch.no_grad():
            for _ in range(n // self.batch):
                self.step()
        return time.perf_counter() - begun


class Engine:
    def __init__(self, binary, photos, threads):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([binary, photos, "--peer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)

    def run(self, n):
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def built():
    """The path of the compiled benchmark."""
    import json
    out = subprocess.run(["cargo", "bench", "--bench", "degrade", "--no-run", "--message-format", "json"], cwd=ROOT, check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    messages = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "degrade")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of PNG photographs, 512 pixels or more on each side")
    parser.add_argument("--basicsr", required=True, help="basicsr's unpacked source")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a turn; a multiple of the batch sizes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--engine", help="the compiled benchmark (default: built with cargo)")
    args = parser.parse_args()
    import cv2
    import numpy
    import torch
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    pictures = [cv2.imread(str(p))[:, :, ::-1].copy() for p in sorted(Path(args.photos).glob("*.png"))]
    variants = {"engine": Engine(args.engine or built(), args.photos, args.threads)}
    for batch in args.batches:
        variants[f"basicsr, batch {batch}"] = Basicsr(pictures, args.basicsr, batch, False)
        variants[f"basicsr, batch {batch}, cv2 USM"] = Basicsr(pictures, args.basicsr, batch, True)
    times = {name: [] for name in variants}
    for turn in range(args.turns + 1):
        for name, variant in variants.items():
            # the engine is so much faster that its turns would be too short to time
            n = args.pairs * (8 if name == "engine" else 1)
            seconds = variant.run(n) / n
            if turn > 0:  # the first warms up
                times[name].append(seconds)
    mine = statistics.median(times["engine"])
    print(f"{args.threads} threads, {args.turns} turns, torch {torch.__version__}, OpenCV {cv2.__version__}, load "
          f"{os.getloadavg()[0]:.1f}\n\n| variant | median ms a pair | min | max | pairs/s | time / engine's |\n|---|--:|--:|--:|--:|--:|")
    for name, all_ in times.items():
        median = statistics.median(all_)
        print(f"| {name} | {1e3 * median:.1f} | {1e3 * min(all_):.1f} | {1e3 * max(all_):.1f} | {1 / median:.1f} | "
              f"{median / mine:.1f} |")


if __name__ == "__main__":
    main()
