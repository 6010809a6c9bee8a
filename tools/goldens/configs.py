#!/usr/bin/env python3
"""What transformers makes of a config.json: defaults, rotary frequencies, scales, parameter counts.

Writes one JSON file (default `crates/model/tests/configs.json`): a list of

    name, config        the config.json
    expected            attributes of transformers' configuration object
    inv_freq            of its rotary embedding, [rotary width / 2]
    positions           token positions
    cos, sin            at these, [positions, rotary width / 2], attention factor included
    scaling             what attention logits are multiplied by
    parameters          of the whole model, made on the meta device, buffers with weights included

Usage: python tools/goldens/configs.py [--out FILE]
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

KEYS = """vocab_size hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads head_dim
max_position_embeddings rms_norm_eps tie_word_embeddings bos_token_id eos_token_id q_lora_rank kv_lora_rank
qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts num_experts n_shared_experts num_experts_per_tok
moe_intermediate_size first_k_dense_replace n_group topk_group norm_topk_prob routed_scaling_factor""".split()
POSITIONS = [0, 1, 63, 4099, 40_000]

YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
R1 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def case(name: str, kind: str, **config) -> dict:
    types = {"Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3", "Qwen3Moe": "qwen3_moe"}
    model_type = types.get(kind, f"deepseek_v{kind[-1]}")
    return {"name": name, "config": {"architectures": [f"{kind}ForCausalLM"], "model_type": model_type, **config}}


CASES = [
    case("llama defaults", "Llama"),
    case("mistral without a window", "Mistral", sliding_window=None),
    case("qwen2 defaults", "Qwen2"),
    case("qwen3 defaults", "Qwen3"),
    case("qwen3 moe defaults", "Qwen3Moe"),
    case("deepseek v2 defaults", "DeepseekV2", num_experts_per_tok=6),
    case("deepseek v3 defaults", "DeepseekV3"),
    case("deepseek r1", "DeepseekV3", **R1),
    case(
        "deepseek v2 lite",
        "DeepseekV2",
        **{**R1, "q_lora_rank": None, "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16},
    ),
    case("llama 3.2", "Llama", rope_theta=500000.0, max_position_embeddings=131072, rope_scaling=LLAMA3, head_dim=64),
    case("linear", "Llama", rope_scaling={"type": "linear", "factor": 2.5}, attention_bias=True),
    case(
        "yarn with rope_parameters",
        "Qwen3",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    case(
        "yarn, odd settings",
        "Llama",
        rope_theta=54321.0,
        head_dim=90,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 3.3,
            "original_max_position_embeddings": 1000,
            "beta_fast": 20,
            "beta_slow": 2.5,
            "truncate": False,
            "attention_factor": 0.9,
        },
    ),
    case("qwen3 30b a3b", "Qwen3Moe", num_hidden_layers=48, head_dim=128, rope_theta=1e6, norm_topk_prob=True),
]
# V2-Lite's own routing and scales
CASES[8]["config"].update(
    topk_method="greedy",
    scoring_func="softmax",
    n_group=1,
    topk_group=1,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    moe_intermediate_size=1408,
    intermediate_size=10944,
    first_k_dense_replace=1,
    vocab_size=102400,
    num_key_value_heads=16,
    num_nextn_predict_layers=0,
    rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
)


def nine_digits(value):
    """Floats cut to what tells any two f32 apart."""
    if isinstance(value, dict):
        return {k: nine_digits(v) for k, v in value.items()}
    if isinstance(value, list):
        return [nine_digits(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def parameters(model) -> int:
    """Parameters, each tensor once, and the routers' correction biases, which are buffers."""
    seen = {id(p): p.numel() for p in model.parameters()}
    biases = (b.numel() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    return sum(seen.values()) + sum(biases)


def describe(entry: dict) -> dict:
    kwargs = {k: v for k, v in entry["config"].items() if k not in ("architectures", "model_type")}
    config = AutoConfig.for_model(entry["config"]["model_type"], **json.loads(json.dumps(kwargs)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    rotary = type(model.model.rotary_emb)(config)
    positions = torch.tensor([POSITIONS])
    out = rotary(torch.zeros(1), positions)
    if torch.is_tensor(out):  # DeepSeek-V2 keeps them as complex numbers
        cos, sin = out.real, out.imag
    else:
        half = out[0].shape[-1] // 2
        cos, sin = out[0][..., :half], out[1][..., :half]
    return {
        **entry,
        "expected": {k: getattr(config, k) for k in KEYS if hasattr(config, k)},
        "inv_freq": rotary.inv_freq.tolist(),
        "positions": POSITIONS,
        "cos": cos[0].tolist(),
        "sin": sin[0].tolist(),
        "scaling": model.model.layers[0].self_attn.scaling,
        "parameters": parameters(model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "crates" / "model" / "tests" / "configs.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cases = [describe(entry) for entry in CASES]
    text = ",\n".join(json.dumps(nine_digits(c)) for c in cases)
    args.out.write_text(f"[\n{text}\n]\n")
    for c in cases:
        print(f"{c['name']:28} {c['parameters']:>18,}")


if __name__ == "__main__":
    main()
