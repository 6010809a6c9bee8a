#!/usr/bin/env python3
"""Write a Hugging Face folder of random weights of any size, a shard at a time.

For measuring memory: `llama` in BF16 with an 8B model's widths, `deepseek_v3` in FP8 blocks of 128 x 128 with R1's
true widths (one dense layer, one of 256 experts). The tokenizer is taken from another folder, whose ids must fit.

    python tools/peers/random_folder.py llama ./big --layers 24 --tokenizer ./bf16
    python tools/peers/random_folder.py deepseek_v3 ./r1 --tokenizer ./bf16 --set vocab_size=49152
    python tools/peers/random_folder.py deepseek_v3 ./small --tokenizer ./bf16 --set n_routed_experts=16 hidden_size=512
"""
import argparse
import json
import math
import pathlib
import shutil

import torch
from safetensors.torch import save_file

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": False,
    "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                            "activation_scheme": "dynamic"},
}  # fmt: skip


def feed_forward(prefix, hidden, width):
    shapes = {"gate_proj": [width, hidden], "up_proj": [width, hidden], "down_proj": [hidden, width]}
    return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}


def layer(config, index):
    """Names and shapes of a layer's tensors."""
    hidden, heads, at = config["hidden_size"], config["num_attention_heads"], f"model.layers.{index}"
    shapes = {f"{at}.input_layernorm.weight": [hidden], f"{at}.post_attention_layernorm.weight": [hidden]}
    if config["model_type"] == "llama":
        dim, keys = config["head_dim"], config["num_key_value_heads"]
        own = {"q_proj": [heads * dim, hidden], "k_proj": [keys * dim, hidden], "v_proj": [keys * dim, hidden]}
        own["o_proj"] = [hidden, heads * dim]
    else:
        low, latent, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
        nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
        own = {"q_a_proj": [low, hidden], "q_a_layernorm": [low], "q_b_proj": [heads * (nope + rope), low]}
        own |= {"kv_a_proj_with_mqa": [latent + rope, hidden], "kv_a_layernorm": [latent]}
        own |= {"kv_b_proj": [heads * (nope + value), latent], "o_proj": [hidden, heads * value]}
    shapes |= {f"{at}.self_attn.{name}.weight": shape for name, shape in own.items()}
    if config["model_type"] == "llama" or index < config["first_k_dense_replace"]:
        return shapes | feed_forward(f"{at}.mlp", hidden, config["intermediate_size"])
    experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
    shapes[f"{at}.mlp.gate.weight"] = [experts, hidden]
    shapes[f"{at}.mlp.gate.e_score_correction_bias"] = [experts]
    shapes |= feed_forward(f"{at}.mlp.shared_experts", hidden, width * config["n_shared_experts"])
    for expert in range(experts):
        shapes |= feed_forward(f"{at}.mlp.experts.{expert}", hidden, width)
    return shapes


POOL = 1 << 26


def drawn(pool, shape):
    """Values from a pool of random ones, from a random place on: drawing each anew takes an hour."""
    count = math.prod(shape)
    start = int(torch.randint(POOL, ()))
    parts = [pool[start:]] + [pool] * (count // POOL + 1)
    return torch.cat(parts)[:count].reshape(shape).contiguous()


def values(pool, name, shape, blocks):
    """A tensor, and its scales where it is in FP8."""
    if len(shape) == 1:
        bias = name.endswith("bias")
        return {name: torch.zeros(shape) if bias else torch.ones(shape, dtype=torch.bfloat16)}
    weight = drawn(pool, shape)
    if not blocks or name.endswith(("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")):
        return {name: weight * 0.02}
    scales = torch.full([-(-side // 128) for side in shape], 0.02 / 16, dtype=torch.float32)
    return {name: (weight * 16).to(torch.float8_e4m3fn), name + "_scale_inv": scales}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["llama", "deepseek_v3"])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, help="default: 24, or 2 for deepseek_v3")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=NUMBER", help="other widths than the kind's")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=1 << 30)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pool = torch.empty(POOL, dtype=torch.bfloat16).normal_()
    config = dict(LLAMA if args.kind == "llama" else DEEPSEEK)
    config["num_hidden_layers"] = args.layers or (24 if args.kind == "llama" else 2)
    config |= {key: int(number) for key, number in (pair.split("=") for pair in args.set)}
    args.out.mkdir(parents=True)
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], config["hidden_size"]]}
    for index in range(config["num_hidden_layers"]):
        shapes |= layer(config, index)
    shapes |= {"model.norm.weight": [config["hidden_size"]], "lm_head.weight": shapes["model.embed_tokens.weight"]}
    shard, held, files, places = {}, 0, 0, {}

    def write():
        nonlocal shard, held, files
        name = f"model-{files:05}.safetensors"
        save_file(shard, args.out / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard, held, files = {}, 0, files + 1

    total = 0
    for name, shape in shapes.items():
        for key, tensor in values(pool, name, shape, args.kind == "deepseek_v3").items():
            shard[key] = tensor
            held += tensor.nbytes
            total += tensor.nbytes
        if held >= args.shard_bytes:
            write()
    if shard:
        write()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index))
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (args.tokenizer / name).exists():
            shutil.copy(args.tokenizer / name, args.out)
    print(f"{total / 1e9:.2f} GB in {files} files")


if __name__ == "__main__":
    main()
