"""Golden vectors of the text encoders at sizes no test has seen, by transformers: CLIP's and T5's, weights beside them.

    pip install torch transformers
    python tests/interop/text_vectors.py OUT --eos 2 && asasr-engine verify --fixtures OUT

`--eos 2` is CLIP's legacy rule (pool at the largest id), another number the id to pool at. T5's weights are sharded.
Tolerances are 20 times what float32 is off from float64, as in tests/golden.
"""
import argparse, json, os
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

args = argparse.ArgumentParser()
args.add_argument("out")
args.add_argument("--eos", type=int, default=2)
args.add_argument("--seed", type=int, default=3)
args = args.parse_args()
torch.manual_seed(args.seed)


def folder(model, name, scale, **how):
    """The model with random weights, norms near 1, saved and in evaluation."""
    for key, p in model.named_parameters():
        p.data.normal_(0, scale)
        if "norm" in key and key.endswith("weight"):
            p.data.add_(1)
    path = os.path.join(args.out, "tiny_flux", name)
    os.makedirs(path, exist_ok=True)
    model.float().eval().save_pretrained(path, **how)
    return model


def record(stem, config, given, compute, model):
    """`stem`: what is given and what the model makes of it in float64, with float32's error."""
    with torch.no_grad():
        single = compute(model.float())
        double = compute(model.double())
    tensors = {}
    for key, exact in double.items():
        off, size = single[key].double() - exact, exact.norm()
        largest = max(20 * off.abs().max().item(), 2e-6 * exact.abs().max().item())
        tolerance = {"max_abs": largest, "rel_l2": max(20 * (off.norm() / size).item(), 1e-6)}
        tensors[key] = {"kind": "output", "shape": list(exact.shape), "tolerance": tolerance}
    tensors |= {key: {"kind": "input", "shape": list(ids.shape)} for key, ids in given.items()}
    values = given | {key: v.float().contiguous() for key, v in double.items()}
    save_file(values, os.path.join(args.out, stem + ".safetensors"))
    with open(os.path.join(args.out, stem + ".json"), "w") as file:
        json.dump({"config": config.to_dict(), "tensors": tensors}, file, indent=1)


def clip():
    config = CLIPTextConfig(
        vocab_size=90, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=5,
        max_position_embeddings=33, hidden_act="quick_gelu", bos_token_id=70, eos_token_id=args.eos, pad_token_id=4,
    )
    model = folder(CLIPTextModel(config), "text_encoder", 0.3)
    ids = torch.randint(0, 88, (4, 33))
    ids[:, 17] = 71 if args.eos == 2 else args.eos
    ids[0, 5] = ids[1, 9] = ids[1, 12] = 89

    def compute(model):
        out = model(ids)
        return {"out.last_hidden_state": out.last_hidden_state, "out.pooled": out.pooler_output}

    record("clip_tiny", config, {"in.ids": ids}, compute, model)


def t5():
    config = T5Config(
        vocab_size=70, d_model=48, d_kv=12, d_ff=36, num_layers=3, num_heads=3, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16, relative_attention_max_distance=50,
    )
    model = folder(T5EncoderModel(config), "text_encoder_2", 0.2, max_shard_size="20KB")
    given = {"in.ids": torch.randint(0, 70, (3, 140)), "in.empty": torch.zeros(1, 300, dtype=torch.long)}
    given["in.empty"][0, 0] = 1

    def compute(model):
        ids = model(given["in.ids"], output_hidden_states=True)
        empty = model(given["in.empty"]).last_hidden_state
        return {"out.ids": ids.last_hidden_state, "mid.layer0": ids.hidden_states[1], "out.empty": empty}

    record("t5_tiny", config, given, compute, model)


clip()
t5()
