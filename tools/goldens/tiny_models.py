#!/usr/bin/env python3
"""Tiny random-weight models of every architecture, with logits from transformers.

For each entry of `tiny_specs.SPECS` writes `tests/goldens/<name>/`:

    config.json                   as a release spells it
    model*.safetensors            weights under their checkpoint names (sharded ones with an index)
    golden.safetensors            ids.0, ids.1 int64 [n]; logits.0, logits.1 f32 [n, vocab]
    tokenizer.json, ...           where the spec asks for them

and, from the same weights, the GGUF files of `tiny_gguf.py`.

Logits are transformers' own, in f32, eager attention, every position of a sequence fed at once. Weights stored
in BF16, F16 or FP8 are rounded first and the logits computed from the rounded values in f32.

A golden that could pass by luck is refused: weights are drawn again with the next seed until
  * in every MoE layer all experts are used, and the k-th and (k+1)-th choice (experts and groups) differ by more
    than MARGIN for every token, so that rounding in another order of summation cannot flip a choice;
  * the best and second-best logit differ by more than MARGIN at every position;
  * changing the first token changes the last logits by more than a twentieth of their spread (attention reaches back).

Where transformers and DeepSeek's own code disagree, and what the goldens therefore avoid or pin:
  * DeepSeek-V2, `norm_topk_prob`: the original normalises top-k weights when it is true and applies
    `routed_scaling_factor` only when it is false; transformers never normalises and always scales. Every V2
    release says false; so do these configs, and there the two agree.
  * DeepSeek-V3 normalises (sum + 1e-20) and then scales, in both.
  * Groups that lost: transformers masks their biased scores with -inf, as DeepSeek's inference code does; the
    modelling file in the Hub repositories writes 0.0, which differs once a correction bias makes scores negative.
    The goldens follow -inf. V2 (softmax, no bias) masks with 0.0, which cannot matter.
  * A V2 group's score is its best expert; a V3 group's is the sum of its two best biased scores. The bias chooses
    only; weights are the unbiased sigmoids.
  * RoPE: both lay pairs out interleaved (x0, x1), (x2, x3), ... V2 rotates them in place as complex numbers, V3
    puts the rotated halves next to each other. Queries and keys agree within a model, so scores are the same.
  * YaRN: cos and sin are multiplied by m(factor, mscale) / m(factor, mscale_all_dim), the softmax scale by
    m(factor, mscale_all_dim)^2, with m(f, x) = 0.1 x ln f + 1. Without both keys transformers multiplies cos and
    sin by m(factor, 1) (what Qwen's YaRN does).
  * The norms inside MLA (q_a, kv_a) use 1e-6 in transformers whatever `rms_norm_eps` says; all configs here say
    1e-6, as the releases do.
  * FP8: transformers would compute with quantized activations; the golden is weights only, f8 * scale_inv.

Usage: python tools/goldens/tiny_models.py [--out DIR] [--only NAME ...]
"""

import argparse
import json
import math
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_gguf
import tiny_tokenizer
from tiny_specs import DEFAULT_LENGTHS, SPECS

MARGIN = 1e-4
FP8_MAX = 448.0
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def tensor_table(c: dict) -> list[tuple[str, tuple[int, ...], float]]:
    """(name, shape, gain) of each tensor of the checkpoint that config `c` describes.

    A matrix [out, in] is drawn with standard deviation gain / sqrt(in); a vector is 1 + 0.2 n (norms) or, where
    the gain is negative, -gain * n (biases).
    """
    hidden, heads, vocab = c["hidden_size"], c["num_attention_heads"], c["vocab_size"]
    table = [("model.embed_tokens.weight", (vocab, hidden), math.sqrt(hidden)), ("model.norm.weight", (hidden,), 1.0)]
    if not c["tie_word_embeddings"]:
        table.append(("lm_head.weight", (vocab, hidden), 2.5))
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        table += [(p + "input_layernorm.weight", (hidden,), 1.0), (p + "post_attention_layernorm.weight", (hidden,), 1.0)]
        table += [(p + "self_attn." + n, s, g) for n, s, g in (mla(c) if "kv_lora_rank" in c else gqa(c))]
        table += [(p + "mlp." + n, s, g) for n, s, g in (moe(c) if is_moe(c, i) else mlp("", hidden, c["intermediate_size"]))]
    return table


def gqa(c: dict) -> list:
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or hidden // heads
    rows = [
        ("q_proj.weight", (heads * dim, hidden), 1.5),
        ("k_proj.weight", (kv * dim, hidden), 1.5),
        ("v_proj.weight", (kv * dim, hidden), 1.2),
        ("o_proj.weight", (hidden, heads * dim), 1.6),
    ]
    if c["model_type"] == "qwen2":
        rows += [("q_proj.bias", (heads * dim,), -0.5), ("k_proj.bias", (kv * dim,), -0.5), ("v_proj.bias", (kv * dim,), -0.3)]
    if c["model_type"].startswith("qwen3"):
        rows += [("q_norm.weight", (dim,), 1.5), ("k_norm.weight", (dim,), 1.5)]
    return rows


def mla(c: dict) -> list:
    hidden, heads, rank, rope = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
    rows = [
        ("kv_a_proj_with_mqa.weight", (rank + rope, hidden), 1.4),
        ("kv_a_layernorm.weight", (rank,), 1.0),
        ("kv_b_proj.weight", (heads * (nope + v), rank), 1.4),
        ("o_proj.weight", (hidden, heads * v), 1.6),
    ]
    if c["q_lora_rank"] is None:
        return rows + [("q_proj.weight", (heads * (nope + rope), hidden), 1.4)]
    return rows + [
        ("q_a_proj.weight", (c["q_lora_rank"], hidden), 1.0),
        ("q_a_layernorm.weight", (c["q_lora_rank"],), 1.0),
        ("q_b_proj.weight", (heads * (nope + rope), c["q_lora_rank"]), 1.4),
    ]


def mlp(prefix: str, hidden: int, inner: int) -> list:
    return [
        (prefix + "gate_proj.weight", (inner, hidden), 1.4),
        (prefix + "up_proj.weight", (inner, hidden), 1.4),
        (prefix + "down_proj.weight", (hidden, inner), 1.4),
    ]


def moe(c: dict) -> list:
    hidden, inner = c["hidden_size"], c["moe_intermediate_size"]
    experts = c.get("n_routed_experts") or c["num_experts"]
    rows = [("gate.weight", (experts, hidden), 1.5)]
    if c["model_type"] == "deepseek_v3":
        rows.append(("gate.e_score_correction_bias", (experts,), -0.3))
    for e in range(experts):
        rows += mlp(f"experts.{e}.", hidden, inner)
    if c.get("n_shared_experts"):
        rows += mlp("shared_experts.", hidden, inner * c["n_shared_experts"])
    return rows


def is_moe(c: dict, layer: int) -> bool:
    if "n_routed_experts" in c:
        return layer >= c["first_k_dense_replace"]
    if "num_experts" in c:
        return layer not in c["mlp_only_layers"] and (layer + 1) % c["decoder_sparse_step"] == 0
    return False


def draw(c: dict, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape, gain in tensor_table(c):
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            weights[name] = noise * (gain / math.sqrt(shape[1]))
        elif gain < 0:
            weights[name] = noise * -gain
        else:
            weights[name] = gain * (1.0 + 0.2 * noise)
    if c["tie_word_embeddings"]:
        # the embedding is the head as well: between the sizes the two would have
        weights["model.embed_tokens.weight"] *= 2.5 / math.sqrt(c["hidden_size"])
    return weights


def fp8_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`weight` [out, in] as (f8, scale_inv [ceil(out/128), ceil(in/128)], the values those two stand for)."""
    rows, cols = weight.shape
    scale = torch.zeros(-(-rows // 128), -(-cols // 128))
    packed = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
    values = torch.zeros(rows, cols)
    for r in range(scale.shape[0]):
        for k in range(scale.shape[1]):
            at = (slice(128 * r, 128 * r + 128), slice(128 * k, 128 * k + 128))
            scale[r, k] = weight[at].abs().max() / FP8_MAX
            packed[at] = (weight[at] / scale[r, k]).to(torch.float8_e4m3fn)
            values[at] = packed[at].to(torch.float32) * scale[r, k]
    return packed, scale, values


def store(weights: dict[str, torch.Tensor], dtype: str) -> tuple[dict, dict]:
    """(tensors as stored, the f32 values they stand for). Correction biases stay f32, as in the releases."""
    stored, values = {}, {}
    for name, weight in weights.items():
        fp8 = dtype == "fp8" and weight.dim() == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight"))
        if fp8:
            stored[name], stored[name + "_scale_inv"], values[name] = fp8_blocks(weight)
            continue
        kind = torch.float32 if name.endswith("e_score_correction_bias") else DTYPES.get(dtype, torch.bfloat16)
        stored[name] = weight.to(kind)
        values[name] = stored[name].to(torch.float32)
    return stored, values


def mtp_tensors(c: dict) -> dict[str, torch.Tensor]:
    """Some tensors of the multi-token-prediction layer that follows the last layer in DeepSeek-V3's release."""
    hidden, p = c["hidden_size"], f"model.layers.{c['num_hidden_layers']}."
    generator = torch.Generator().manual_seed(1)
    packed, scale, _ = fp8_blocks(torch.randn(hidden, 2 * hidden, generator=generator))
    ones = {n: torch.ones(hidden, dtype=torch.bfloat16) for n in ("enorm", "hnorm", "shared_head.norm", "input_layernorm")}
    return {p + "eh_proj.weight": packed, p + "eh_proj.weight_scale_inv": scale, **{f"{p}{n}.weight": t for n, t in ones.items()}}


def reference_model(c: dict, values: dict[str, torch.Tensor]) -> torch.nn.Module:
    """transformers' model holding exactly `values`, loaded through from_pretrained's own name conversion."""
    plain = {k: v for k, v in c.items() if k not in ("quantization_config", "torch_dtype", "dtype")}
    plain.pop("num_nextn_predict_layers", None)
    model_type = plain.pop("model_type")
    if model_type == "deepseek_v3":
        plain["num_nextn_predict_layers"] = 0
    config = AutoConfig.for_model(model_type, **plain)
    model, report = type(AutoModelForCausalLM.from_config(config)).from_pretrained(
        None, config=config, state_dict=dict(values), dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    problems = {k: v for k, v in report.items() if v and k != "mismatched_keys"}
    tied = {"lm_head.weight"} if c["tie_word_embeddings"] else set()
    assert not (set(problems.pop("missing_keys", [])) - tied), report
    assert not any(problems.values()), report
    return model.eval()


def routing_margin(model: torch.nn.Module, c: dict, sequences: list[torch.Tensor]) -> tuple[float, bool]:
    """(least gap between a choice made and the best one not made, whether every expert of every layer was used)."""
    gaps, used_all, seen = [math.inf], True, {}
    hooks = []
    for name, module in model.named_modules():
        if "Router" in type(module).__name__:
            hooks.append(module.register_forward_hook(lambda m, i, o, n=name: seen.setdefault(n, []).append((m, o))))
    with torch.no_grad():
        for ids in sequences:
            model(ids[None])
    for hook in hooks:
        hook.remove()
    for calls in seen.values():
        chosen = torch.cat([o[2] for _, o in calls])
        experts = calls[0][1][0].shape[-1]
        used_all &= len(chosen.unique()) == experts
        for module, out in calls:
            gaps += choice_gaps(c, module, out[0])
    return float(min(gaps)), used_all


def choice_gaps(c: dict, router: torch.nn.Module, logits: torch.Tensor) -> list[float]:
    """Gaps of one router call: between the last group kept and the first dropped, and likewise for experts."""
    v3 = c["model_type"] == "deepseek_v3"
    scores = logits.sigmoid() + router.e_score_correction_bias if v3 else logits.softmax(-1)
    gaps = []
    groups = c.get("n_group", 1)
    if groups > 1 and c.get("topk_method") != "greedy":
        by_group = scores.view(len(scores), groups, -1)
        totals = by_group.topk(2, -1)[0].sum(-1) if v3 else by_group.max(-1)[0]
        kept = totals.sort(-1, descending=True)
        k = c["topk_group"]
        gaps.append((kept.values[:, k - 1] - kept.values[:, k]).min())
        mask = torch.zeros_like(totals).scatter(1, kept.indices[:, :k], 1).bool()
        scores = by_group.masked_fill(~mask[..., None], -math.inf).view(len(scores), -1)
    ordered = scores.sort(-1, descending=True).values
    k = c["num_experts_per_tok"]
    gaps.append((ordered[:, k - 1] - ordered[:, k]).min())
    return gaps


def golden(model: torch.nn.Module, sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    with torch.no_grad():
        for i, ids in enumerate(sequences):
            out[f"ids.{i}"] = ids
            out[f"logits.{i}"] = model(ids[None]).logits[0].contiguous()
    return out


def refuse(model, c, sequences, out) -> str | None:
    """Why this draw makes no good golden, or None."""
    margin, used_all = routing_margin(model, c, sequences)
    if margin < MARGIN:
        return f"routing margin {margin:.1e}"
    if not used_all:
        return "an expert was never used"
    logits = torch.cat([out["logits.0"], out["logits.1"]])
    top = logits.topk(2, -1).values
    if (top[:, 0] - top[:, 1]).min() < MARGIN:
        return "near-tied logits"
    other = sequences[0].clone()
    other[0] = (other[0] + 1) % c["vocab_size"]
    with torch.no_grad():
        moved = (model(other[None]).logits[0, -1] - out["logits.0"][-1]).std() / logits.std()
    if moved < 0.05:
        return f"the last position hardly depends on the first token ({moved:.3f})"
    print(f"    margin {margin:.1e}  logits std {logits.std():.2f}  first token moves the last logits by {moved:.2f}")
    return None


def write_weights(folder: Path, stored: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(stored), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = {n: stored[n] for n in names[s::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    tiny_tokenizer.dump(folder / "model.safetensors.index.json", index)


def make(name: str, spec: dict, out: Path) -> None:
    c, folder = spec["config"], out / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(1, 400):
        stored, values = store(draw(c, seed), spec.get("dtype", "f32"))
        model = reference_model(c, values)
        generator = torch.Generator().manual_seed(1000 + seed)
        limit = 256 if "tokenizer" in spec else c["vocab_size"]
        sequences = [torch.randint(3, limit, (n,), generator=generator) for n in spec.get("lengths", DEFAULT_LENGTHS)]
        result = golden(model, sequences)
        why = refuse(model, c, sequences, result)
        if why is None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives a usable golden; the last was refused for: {why}")
    if c.get("num_nextn_predict_layers"):
        stored |= mtp_tensors(c)
    written = c if "rope_parameters" in c else {**c, "transformers_version": "4.46.3"}
    tiny_tokenizer.dump(folder / "config.json", written)
    write_weights(folder, {n: t.contiguous() for n, t in stored.items()}, spec.get("shards", 1))
    save_file(result, folder / "golden.safetensors")
    if "tokenizer" in spec:
        tiny_tokenizer.write(folder, spec["tokenizer"])
    tiny_gguf.write_all(name, c, values, folder)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:24} seed {seed:3}  {size / 1024:7.1f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "goldens")
    parser.add_argument("--only", nargs="*", choices=sorted(SPECS), help="make these models only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for name, spec in SPECS.items():
        if not args.only or name in args.only:
            make(name, spec, args.out)


if __name__ == "__main__":
    main()
