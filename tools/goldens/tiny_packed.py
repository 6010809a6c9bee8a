#!/usr/bin/env python3
"""One tiny Llama whose every matrix is in another GGUF block format, with transformers' logits of what they hold.

Writes `tests/goldens/llama_packed/`: model.gguf, golden.safetensors (as the other tiny models have it) and, for
reference, config.json. Hidden and inner sizes are 256, the least that the K-formats divide. There is no tokenizer
(`tokenizer.ggml.model` is `no_vocab`).

Formats that `gguf.quants` can write are quantized from normal draws. For the others the blocks are random bytes
whose scales are then set so that the values have the spread a weight should have. The golden is computed in f32
from the dequantized values, so an engine that rounds activations will differ from it by that rounding only.

Usage: python tools/goldens/tiny_packed.py [--out DIR]
"""

import argparse
import math
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants
from safetensors.torch import save_file

import tiny_models
import tiny_tokenizer
from blocks import HALF_SCALES, QUANTIZABLE
from tiny_gguf import GQA_NAMES
from tiny_specs import llama

CONFIG = llama(
    hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=1, num_hidden_layers=2
)
FORMATS = {
    "token_embd": "Q8_0", "output": "Q6_K",
    "blk.0.attn_q": "Q4_0", "blk.0.attn_k": "Q4_1", "blk.0.attn_v": "Q5_0", "blk.0.attn_output": "Q5_1",
    "blk.0.ffn_gate": "IQ4_NL", "blk.0.ffn_up": "MXFP4", "blk.0.ffn_down": "Q3_K",
    "blk.1.attn_q": "Q2_K", "blk.1.attn_k": "F16", "blk.1.attn_v": "BF16", "blk.1.attn_output": "Q4_K",
    "blk.1.ffn_gate": "Q5_K", "blk.1.ffn_up": "Q6_K", "blk.1.ffn_down": "Q8_0",
}
# dmin as a multiple of d: with it, random codes and sub-scales average to zero
MIN_PER_SCALE = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def random_rows(rng: np.random.Generator, kind: str, rows: int, columns: int, spread: float) -> np.ndarray:
    """Packed rows uint8 [rows, bytes] of random codes, whose values have standard deviation `spread`."""
    width, size = GGML_QUANT_SIZES[Type[kind]]
    blocks = rng.integers(0, 256, size=(rows * columns // width, size), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = 127 + round(math.log2(spread / 3.2)) + rng.integers(0, 2, size=len(blocks))
        return blocks.reshape(rows, -1)

    def scaled(d: float) -> np.ndarray:
        vary = rng.uniform(0.7, 1.3, size=len(blocks))
        for offset, share in zip(HALF_SCALES[kind], (1.0, MIN_PER_SCALE.get(kind, 1.0))):
            # the first scale of a format is d, the second (Q2_K, Q4_K, Q5_K) dmin
            half = (d * share * vary).astype(np.float16)
            blocks[:, offset : offset + 2] = half.view(np.uint8).reshape(-1, 2)
        return blocks

    probe = quants.dequantize(scaled(2.0**-8), Type[kind]).std()
    return scaled(2.0**-8 * spread / probe).reshape(rows, -1).copy()


def packed(rng: np.random.Generator, kind: str, rows: int, columns: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """(the tensor as stored, its values f32 [rows, columns])."""
    if kind in QUANTIZABLE or kind in ("F16", "BF16"):
        draw = (rng.standard_normal((rows, columns)) * spread).astype(np.float32)
        data = quants.quantize(draw, Type[kind])
    else:
        data = random_rows(rng, kind, rows, columns, spread)
    return data, quants.dequantize(data, Type[kind]).astype(np.float32).reshape(rows, columns)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs back to (first halves, second halves)."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def build(seed: int) -> tuple[dict, dict[str, torch.Tensor]]:
    """(GGUF tensors: name -> (data, type), checkpoint weights: name -> values)."""
    rng = np.random.default_rng(seed)
    names = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
             "model.norm.weight": "output_norm.weight"}
    for i in range(CONFIG["num_hidden_layers"]):
        names |= {f"model.layers.{i}.{old}": f"blk.{i}.{new}" for old, new in GQA_NAMES.items()}
    stored, values = {}, {}
    for name, shape, gain in tiny_models.tensor_table(CONFIG):
        target = names[name]
        if len(shape) == 1:
            weight = (gain * (1 + 0.2 * rng.standard_normal(shape))).astype(np.float32)
            stored[target] = (weight, Type.F32)
        else:
            kind = FORMATS[target.removesuffix(".weight")]
            data, weight = packed(rng, kind, *shape, gain / math.sqrt(shape[1]))
            stored[target] = (data, Type[kind])
            if "attn_q." in target:
                weight = unpermute(weight, CONFIG["num_attention_heads"])
            elif "attn_k." in target:
                weight = unpermute(weight, CONFIG["num_key_value_heads"])
        values[name] = torch.from_numpy(np.ascontiguousarray(weight))
    return stored, values


def write(path: Path, stored: dict) -> None:
    c = CONFIG
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny packed")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_dimension_count(c["hidden_size"] // c["num_attention_heads"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("no_vocab")
    for name, (data, kind) in stored.items():
        w.add_tensor(name, data, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "goldens")
    folder = parser.parse_args().out / "llama_packed"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for seed in range(1, 100):
        stored, values = build(seed)
        model = tiny_models.reference_model(CONFIG, values)
        generator = torch.Generator().manual_seed(seed)
        sequences = [torch.randint(3, CONFIG["vocab_size"], (n,), generator=generator) for n in (61, 37)]
        result = tiny_models.golden(model, sequences)
        why = tiny_models.refuse(model, CONFIG, sequences, result)
        if why is None:
            break
        print(f"seed {seed} refused: {why}")
    write(folder / "model.gguf", stored)
    save_file(result, folder / "golden.safetensors")
    tiny_tokenizer.dump(folder / "config.json", CONFIG)
    for name, weight in values.items():
        if weight.dim() == 2:
            print(f"{name:44} std * sqrt(in) {weight.std() * weight.shape[1] ** 0.5:.2f}  mean/std {weight.mean() / weight.std():+.3f}")


if __name__ == "__main__":
    main()
