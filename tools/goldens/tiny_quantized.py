#!/usr/bin/env python3
"""Tiny models in the packed formats of quantized checkpoints, with transformers' logits of what they hold.

For each entry of SPECS writes `tests/goldens/<name>/` as `tiny_models.py` does: config.json with its
`quantization_config`, model*.safetensors, golden.safetensors.

compressed-tensors' layouts are written by its own compressors. AWQ's and GPTQ's are packed here, in numpy, from the
formats' descriptions:

    AWQ gemm   qweight int32 [in, out/8], qzeros int32 [in/g, out/8], scales f16 [in/g, out];
               nibble i of word c is output 8c + [0, 2, 4, 6, 1, 3, 5, 7][i];  w = (q - z) s
    GPTQ       qweight int32 [in b/32, out]: field i of word row r is input (32/b) r + i;
               qzeros int32 [groups, out b/32]; scales f16 [groups, out]; g_idx int32 [in];  w = (q - z) s
               v2 stores z; v1 stores words from which 0x1111... (0x0101... for 8 bits) was subtracted: one less
               in every field, and a z of 0 borrows from its neighbour, as GPTQModel writes it

Weights are rounded to nearest; a few groups are made all positive and a few all negative, so that zero points of 0
and of the greatest code occur. Logits are computed in f32 from (q - z) s in f32. Router, embedding, MLA's kv_b_proj
and, but where the spec says `head`, lm_head stay unpacked, as loaders elsewhere want them.

W8A8: activations of packed layers are rounded to int8 in steps of max|x| / 127 of each token, before the product.
A draw in which some activation comes near the middle between two steps is refused, for there another order of
summation would round it the other way.

Usage: python tools/goldens/tiny_quantized.py [--out DIR] [--only NAME ...]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

import tiny_models
import tiny_tokenizer
from tiny_specs import deepseek, llama, qwen, qwen3_moe

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
TIE_MARGIN = 1e-4  # of a step
LENGTHS = (23, 14)

WIDE = {"hidden_size": 64, "intermediate_size": 96, "torch_dtype": "bfloat16"}
MLA = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "torch_dtype": "bfloat16",
    "n_routed_experts": 6, "num_experts_per_tok": 2,
}

# method: words (pack-quantized), bytes (int-quantized), awq, gptq; the rest are keyword arguments of `quantize`
SPECS = {
    # symmetric, in shards
    "llama_w4a16": {
        "config": llama(**WIDE), "method": "words", "bits": 4, "group": 32, "scale": "bf16", "shards": 2,
    },
    # asymmetric, groups that are no multiple of 32, a packed head of odd height
    "llama_w4a16_asym": {
        "config": llama(hidden_size=48, intermediate_size=80, vocab_size=101, torch_dtype="float16"),
        "method": "words", "bits": 4, "group": 16, "scale": "f16", "symmetric": False, "head": True,
    },
    # per channel; rows of 40 and 52 values, of whole words but not of whole blocks
    "qwen2_w8a16": {
        "config": qwen("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
        "method": "words", "bits": 8, "group": None, "scale": "f32",
    },
    "llama_w8a8": {
        "config": llama(**WIDE | {"intermediate_size": 72}), "method": "bytes", "bits": 8, "group": None, "scale": "bf16",
        "lengths": (9, 6),
    },
    "qwen3_awq": {
        "config": qwen("qwen3", "Qwen3ForCausalLM", head_dim=22, attention_bias=False, tie_word_embeddings=True,
                       hidden_size=64, intermediate_size=96, num_key_value_heads=4, torch_dtype="float16"),
        "method": "awq", "bits": 4, "group": 32, "scale": "f16", "symmetric": False,
    },
    "qwen3_moe_gptq": {
        "config": qwen3_moe(hidden_size=64, moe_intermediate_size=32, head_dim=16, num_attention_heads=4,
                            torch_dtype="float16"),
        "method": "gptq", "bits": 4, "group": 32, "scale": "f16",
    },
    # act-order: columns name their groups; v2; a last group that is cut (72 = 32 + 32 + 8)
    "llama_gptq_act_order": {
        "config": llama(hidden_size=72, intermediate_size=96, num_attention_heads=4, vocab_size=104, torch_dtype="float16"),
        "method": "gptq", "bits": 4, "group": 32, "scale": "f16", "symmetric": False, "act_order": True,
        "version": "gptq_v2", "head": True,
    },
    "qwen2_gptq_w8": {
        "config": qwen("qwen2", "Qwen2ForCausalLM", hidden_size=64, intermediate_size=96, torch_dtype="float16"),
        "method": "gptq", "bits": 8, "group": None, "scale": "f16", "symmetric": False,
    },
    "deepseek_v2_awq": {
        "config": deepseek(2, **MLA), "method": "awq", "bits": 4, "group": 32, "scale": "f16", "symmetric": False,
    },
    "deepseek_v3_w4a16": {
        "config": deepseek(3, **MLA, q_lora_rank=32, n_group=2, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5),
        "method": "words", "bits": 4, "group": 32, "scale": "bf16", "shards": 2,
    },
}


def is_packed(spec: dict, name: str, weight: torch.Tensor) -> bool:
    if weight.dim() != 2 or not name.endswith(("_proj.weight", "_proj_with_mqa.weight", "lm_head.weight")):
        return False
    if name.endswith("lm_head.weight"):
        return spec.get("head", False)
    if spec["method"] == "awq" and weight.shape[1] % spec["group"]:
        return False
    return "kv_b_proj" not in name


def groups_of(spec: dict, columns: int, generator: torch.Generator) -> np.ndarray:
    """The group of each column."""
    size = spec["group"] or columns
    index = np.arange(columns) // size
    if spec.get("act_order"):
        return index[torch.randperm(columns, generator=generator).numpy()]
    return index


def quantize(weight: np.ndarray, index: np.ndarray, spec: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes 0..2^b - 1 [out, in], scales [out, groups], zero points [out, groups]), scales as they will be stored."""
    bits, groups = spec["bits"], index.max() + 1
    top = 2**bits - 1
    codes = np.zeros(weight.shape, dtype=np.int64)
    scales = np.zeros((len(weight), groups), dtype=np.float32)
    zeros = np.full((len(weight), groups), 2 ** (bits - 1))
    for g in range(groups):
        columns = weight[:, index == g]
        if spec.get("symmetric", True):
            step = np.abs(columns).max(1) / (top / 2)
        else:
            low, high = np.minimum(columns.min(1), 0), np.maximum(columns.max(1), 0)
            step = (high - low) / top
            zeros[:, g] = np.clip(np.rint(-low / step), 0, top)
        scales[:, g] = torch.from_numpy(step.astype(np.float32)).to(tiny_models.DTYPES[spec["scale"]]).float().numpy()
        steps = np.rint(columns / scales[:, g : g + 1]) + zeros[:, g : g + 1]
        codes[:, index == g] = np.clip(steps, 0, top)
    return codes, scales, zeros


def words(fields: np.ndarray, bits: int) -> np.ndarray:
    """uint32 words of consecutive fields of the last axis, the first one lowest."""
    per_word = 32 // bits
    fields = np.pad(fields, [(0, 0), (0, -fields.shape[1] % per_word)]).astype(np.uint64)
    fields = fields.reshape(len(fields), -1, per_word)
    shifts = (np.arange(per_word) * bits).astype(np.uint64)
    return (fields << shifts).sum(-1).astype(np.uint32)


def int32(words: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32))


def awq(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> dict[str, torch.Tensor]:
    def interleaved(fields: np.ndarray) -> np.ndarray:
        assert fields.shape[1] % 8 == 0
        return words(fields.reshape(len(fields), -1, 8)[:, :, AWQ_ORDER].reshape(fields.shape), 4)

    return {
        "qweight": int32(interleaved(codes.T)),
        "qzeros": int32(interleaved(zeros.T)),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }


def gptq(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, index: np.ndarray, spec: dict) -> dict[str, torch.Tensor]:
    bits = spec["bits"]
    stored = words(zeros.T, bits)
    if spec.get("version", "gptq") == "gptq":
        stored = stored - np.uint32(0x11111111 if bits == 4 else 0x01010101)
    return {
        "qweight": int32(words(codes, bits).T),
        "qzeros": int32(stored),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }


def scheme_of(spec: dict) -> QuantizationScheme:
    group = {"strategy": "group", "group_size": spec["group"]} if spec["group"] else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=spec["bits"], type="int", symmetric=spec.get("symmetric", True), **group)
    activations = None
    if spec["method"] == "bytes":
        activations = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
    return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)


def compressed(weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, spec: dict) -> tuple[dict, np.ndarray]:
    """(compressed-tensors' own tensors, the codes it chose)."""
    middle = 2 ** (spec["bits"] - 1)
    state = {
        "weight": torch.from_numpy(weight),
        "weight_scale": torch.from_numpy(scales),
        "weight_zero_point": torch.from_numpy((zeros - middle).astype(np.int8)),
    }
    kind = IntQuantizationCompressor if spec["method"] == "bytes" else PackedQuantizationCompressor
    out = kind.compress(state, scheme_of(spec))
    if spec["method"] == "bytes":
        steps = out["weight"]
    else:
        steps = unpack_from_int32(out["weight_packed"], spec["bits"], torch.Size(weight.shape))
        out["weight_shape"] = out["weight_shape"].to(torch.int64)
    out["weight_scale"] = out["weight_scale"].to(tiny_models.DTYPES[spec["scale"]])
    return out, steps.numpy().astype(np.int64) + middle


def pack(weight: torch.Tensor, spec: dict, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(the tensors of one matrix, the values f32 [out, in] that they stand for)."""
    w = weight.numpy().copy()
    index = groups_of(spec, w.shape[1], generator)
    if not spec.get("symmetric", True):
        for sign, first in ((1, 0), (-1, 3)):
            w[first::7, index == 0] = sign * np.abs(w[first::7, index == 0])
    codes, scales, zeros = quantize(w, index, spec)
    if spec["method"] == "awq":
        stored = awq(codes, scales, zeros)
    elif spec["method"] == "gptq":
        stored = gptq(codes, scales, zeros, index, spec)
    else:
        stored, codes = compressed(w, scales, zeros, spec)
    values = (codes - zeros[:, index]).astype(np.float32) * scales[:, index]
    return stored, torch.from_numpy(values)


def quantization_config(spec: dict) -> dict:
    if spec["method"] == "awq":
        return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": spec["group"], "zero_point": True,
                "modules_to_not_convert": ["kv_b_proj"]}
    if spec["method"] == "gptq":
        return {"quant_method": "gptq", "checkpoint_format": spec.get("version", "gptq"), "bits": spec["bits"],
                "group_size": spec["group"] or -1, "desc_act": spec.get("act_order", False),
                "sym": spec.get("symmetric", True), "damp_percent": 0.01, "lm_head": spec.get("head", False)}
    bytes_ = spec["method"] == "bytes"
    group = scheme_of(spec).model_dump(mode="json")
    return {"quant_method": "compressed-tensors", "format": "int-quantized" if bytes_ else "pack-quantized",
            "quantization_status": "compressed", "global_compression_ratio": None, "kv_cache_scheme": None,
            "ignore": [] if spec.get("head") else ["lm_head"], "config_groups": {"group_0": group}}


def store(weights: dict[str, torch.Tensor], spec: dict, generator: torch.Generator) -> tuple[dict, dict]:
    dtype = tiny_models.DTYPES[{"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[spec["config"]["torch_dtype"]]]
    stored, values = {}, {}
    for name, weight in weights.items():
        if is_packed(spec, name, weight):
            parts, values[name] = pack(weight, spec, generator)
            stored |= {name.removesuffix("weight") + end: part.contiguous() for end, part in parts.items()}
        else:
            kind = torch.float32 if name.endswith("e_score_correction_bias") else dtype
            stored[name] = weight.to(kind)
            values[name] = stored[name].float()
    return stored, values


def round_activations(model: torch.nn.Module, packed: set[str]) -> list[float]:
    """Makes packed layers round their inputs; the list receives each rounding's distance to the nearest tie."""
    margins = []

    def hook(_module, args):
        (x,) = args
        step = x.abs().amax(-1, keepdim=True) / 127
        steps = x / step
        margins.append(((steps - steps.floor()) - 0.5).abs().min().item())
        return (steps.round() * step,)

    for name, module in model.named_modules():
        if name in packed:
            module.register_forward_pre_hook(hook)
    return margins


def make(name: str, spec: dict, out: Path) -> None:
    c, folder = spec["config"], out / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(1, 400):
        generator = torch.Generator().manual_seed(2000 + seed)
        stored, values = store(tiny_models.draw(c, seed), spec, generator)
        model = tiny_models.reference_model(c, values)
        margins = [1.0]
        if spec["method"] == "bytes":
            packed = {n.removesuffix(".weight") for n, w in values.items() if is_packed(spec, n, w)}
            margins = round_activations(model, packed)
        sequences = [torch.randint(3, c["vocab_size"], (n,), generator=generator) for n in spec.get("lengths", LENGTHS)]
        result = tiny_models.golden(model, sequences)
        margin = min(margins)
        why = f"an activation {margin:.1e} from a tie" if margin < TIE_MARGIN else tiny_models.refuse(model, c, sequences, result)
        if why is None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives a usable golden; the last was refused for: {why}")
    written = {**c, "transformers_version": "4.46.3", "quantization_config": quantization_config(spec)}
    tiny_tokenizer.dump(folder / "config.json", written)
    tiny_models.write_weights(folder, stored, spec.get("shards", 1))
    save_file(result, folder / "golden.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:24} seed {seed:3}  {size / 1024:7.1f} KiB  {sum(n.endswith(('scales', 'scale')) for n in stored)} packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "goldens")
    parser.add_argument("--only", nargs="*", choices=sorted(SPECS), help="make these models only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, spec in SPECS.items():
        if not args.only or name in args.only:
            make(name, spec, args.out)


if __name__ == "__main__":
    main()
