"""The tiny models: one table entry per golden folder, each a config.json in the form that releases use.

Shapes are odd on purpose: few powers of two, head sizes that are no multiple of a SIMD width, vocabularies
that are no multiple of 16, sequences whose lengths leave a partial block of 16 tokens. Two spellings of
RoPE settings are both here because both are met in the wild: `rope_theta` + `rope_scaling` (with `type` or
`rope_type`), and `rope_parameters`, which transformers 5 writes.

A spec's keys: `config` (what config.json will hold), `lengths` (tokens of the two golden sequences),
`dtype` (of the stored weights: f32, bf16, f16 or fp8), `shards` (number of files), `tokenizer` (which chat
template the tokenizer beside it has: "plain" or "r1").
"""

YARN_R1 = {
    # the shape of DeepSeek-R1's: mscale and mscale_all_dim equal, so cos and sin stay unscaled while the
    # softmax scale is multiplied by (0.1 * mscale_all_dim * ln(factor) + 1)^2
    "type": "yarn",
    "factor": 24,
    "original_max_position_embeddings": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def llama(**changes) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": 40,
        "intermediate_size": 76,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }


def qwen(model_type: str, architecture: str, **changes) -> dict:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }


def qwen3_moe(**changes) -> dict:
    return qwen(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        **{
            "attention_bias": False,
            "head_dim": 18,
            "hidden_size": 44,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 14,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "vocab_size": 103,
            **changes,
        },
    )


def deepseek(version: int, **changes) -> dict:
    config = {
        "architectures": [f"DeepseekV{version}ForCausalLM"],
        "model_type": f"deepseek_v{version}",
        "hidden_act": "silu",
        "attention_bias": False,
        "hidden_size": 44,
        "intermediate_size": 60,
        "moe_intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 28,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 12,
        "v_head_dim": 14,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": YARN_R1,
        "tie_word_embeddings": False,
        "vocab_size": 109,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        **changes,
    }
    if version == 2:
        return {"topk_method": "greedy", "scoring_func": "softmax", **config}
    return {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0, **config}


DEEPSEEK_V3 = deepseek(
    3,
    num_hidden_layers=2,
    q_lora_rank=36,
    n_routed_experts=12,
    n_group=4,
    topk_group=2,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    vocab_size=270,
    bos_token_id=264,
    eos_token_id=265,
)

SPECS: dict[str, dict] = {
    # tied head, 4 query heads on 2 KV heads, plain RoPE; serveable (has a tokenizer)
    "llama": {
        "config": llama(vocab_size=270, tie_word_embeddings=True, bos_token_id=264, eos_token_id=265),
        "tokenizer": "plain",
    },
    "llama_rope_llama3": {
        "config": llama(
            rope_theta=10000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "lengths": (67, 43),
    },
    "llama_rope_linear": {"config": llama(rope_scaling={"type": "linear", "factor": 2.5}, num_key_value_heads=1)},
    # 5 heads of 18 = 90 values of attention on a hidden size of 40; settings as transformers 5 writes them
    "llama_head_dim": {
        "config": {
            **{k: v for k, v in llama(num_attention_heads=5, num_key_value_heads=5).items() if k != "rope_theta"},
            "head_dim": 18,
            "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0},
            "dtype": "float32",
        }
    },
    "llama_sharded": {"config": llama(num_hidden_layers=3, vocab_size=113), "shards": 3},
    "llama_bf16": {"config": llama(torch_dtype="bfloat16", num_key_value_heads=4), "dtype": "bf16"},
    "qwen2": {"config": qwen("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True)},
    "qwen2_yarn": {
        "config": qwen(
            "qwen2",
            "Qwen2ForCausalLM",
            rope_theta=10000.0,
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        "lengths": (69, 41),
    },
    "qwen2_f16": {"config": qwen("qwen2", "Qwen2ForCausalLM", torch_dtype="float16"), "dtype": "f16"},
    "qwen3": {
        "config": qwen(
            "qwen3", "Qwen3ForCausalLM", head_dim=22, attention_bias=False, tie_word_embeddings=True, vocab_size=107
        )
    },
    "qwen3_moe": {"config": qwen3_moe()},
    # layer 0 dense by name, layers 1 and 3 sparse by step, layer 2 dense by step; weights not normalised
    "qwen3_moe_mixed": {
        "config": qwen3_moe(
            num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[0], norm_topk_prob=False, num_experts=5
        )
    },
    "deepseek_v2": {
        "config": deepseek(
            2,
            num_hidden_layers=2,
            n_shared_experts=2,
            rope_scaling={**YARN_R1, "mscale": 0.707, "mscale_all_dim": 0.707},
        )
    },
    # mscale and mscale_all_dim differ: cos and sin are scaled by their quotient
    "deepseek_v2_q_lora": {
        "config": deepseek(
            2,
            q_lora_rank=34,
            n_routed_experts=9,
            n_group=3,
            topk_group=2,
            topk_method="group_limited_greedy",
            routed_scaling_factor=4.0,
            n_shared_experts=2,
            rope_scaling={**YARN_R1, "mscale": 1.0, "mscale_all_dim": 0.707},
        )
    },
    # DeepSeek-R1 in small; serveable
    "deepseek_v3": {"config": DEEPSEEK_V3, "tokenizer": "r1"},
    "deepseek_v3_no_q_lora": {
        "config": {
            **{k: v for k, v in deepseek(3).items() if k != "rope_scaling"},
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "first_k_dense_replace": 0,
            "num_hidden_layers": 2,
        }
    },
    # stored as the release is: FP8 with a scale per block of 128x128 (136 = one block and a bit), BF16 for the
    # rest, and tensors of a multi-token-prediction layer after the last one, which a reader must pass over
    "deepseek_v3_fp8": {
        "config": deepseek(
            3,
            hidden_size=132,
            intermediate_size=132,
            moe_intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=5,
            num_key_value_heads=5,
            q_lora_rank=132,
            kv_lora_rank=40,
            qk_nope_head_dim=20,
            qk_rope_head_dim=8,
            v_head_dim=18,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            num_nextn_predict_layers=1,
            torch_dtype="bfloat16",
            quantization_config={
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
            },
        ),
        "dtype": "fp8",
    },
}

DEFAULT_LENGTHS = (61, 37)
