"""GGUF files of the tiny models: the same weights under llama.cpp's names, with the tokenizer inside.

    llama/model.gguf            Q and K rows permuted per head, as llama.cpp's converter does for interleaved RoPE
    deepseek_v3/mla.gguf        `attn_k_b` [heads, rank, nope] and `attn_v_b` [heads, v, rank]: today's layout
    deepseek_v3/legacy.gguf     `attn_kv_b` [heads * (nope + v), rank], as files of before April 2025 have it

(shapes in numpy's order; GGUF writes them reversed). Keys and values follow llama.cpp's conversion of the same
config.json. `rope.scaling.yarn_log_multiplier` is 0.1 * mscale_all_dim, which readers divide by 0.1 again;
key_length and value_length are those of the latent (one shared head) in the new layout and those of the
expanded heads in the old one.
"""

from pathlib import Path

import gguf
import numpy as np
import torch

import tiny_tokenizer

GQA_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
MLA_NAMES = {
    **GQA_NAMES,
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (first halves, second halves) to interleaved pairs."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


def layer_tensors(c: dict, values: dict, layer: int, names: dict) -> dict[str, torch.Tensor]:
    """The tensors of one layer under GGUF names, experts stacked."""
    prefix, out = f"model.layers.{layer}.", {}
    for old, new in names.items():
        if prefix + old in values:
            out[new] = values[prefix + old]
    if f"{prefix}mlp.experts.0.gate_proj.weight" in values:
        for part in ("gate", "up", "down"):
            experts = [values[f"{prefix}mlp.experts.{e}.{part}_proj.weight"] for e in range(c["n_routed_experts"])]
            out[f"ffn_{part}_exps.weight"] = torch.stack(experts)
    return out


def start(path: Path, arch: str, c: dict, template: str) -> gguf.GGUFWriter:
    """A writer holding the keys every architecture has, and the tokenizer."""
    w = gguf.GGUFWriter(path, arch)
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name("tiny")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_rope_freq_base(float(c["rope_theta"]))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)

    tokens = tiny_tokenizer.tokens()
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - len(tiny_tokenizer.SPECIALS))
    for name in tiny_tokenizer.SPECIALS:
        user = name in tiny_tokenizer.NOT_SPECIAL
        kinds.append(gguf.TokenType.USER_DEFINED if user else gguf.TokenType.CONTROL)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges([" ".join(pair) for pair in tiny_tokenizer.MERGES])
    w.add_bos_token_id(c["bos_token_id"])
    w.add_eos_token_id(c["eos_token_id"])
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(template)
    return w


def finish(w: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        w.add_tensor(name, np.ascontiguousarray(tensor.numpy().astype(np.float32)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def top_tensors(values: dict) -> dict[str, torch.Tensor]:
    return {new: values[old] for old, new in TOP_NAMES.items() if old in values}


def write_llama(path: Path, c: dict, values: dict) -> None:
    w = start(path, "llama", c, tiny_tokenizer.PLAIN_TEMPLATE)
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_dimension_count(c["hidden_size"] // c["num_attention_heads"])
    tensors = top_tensors(values)
    for i in range(c["num_hidden_layers"]):
        layer = layer_tensors(c, values, i, GQA_NAMES)
        layer["attn_q.weight"] = permute(layer["attn_q.weight"], c["num_attention_heads"])
        layer["attn_k.weight"] = permute(layer["attn_k.weight"], c["num_key_value_heads"])
        tensors |= {f"blk.{i}.{name}": t for name, t in layer.items()}
    finish(w, tensors)


def write_deepseek2(path: Path, c: dict, values: dict, legacy: bool) -> None:
    w = start(path, "deepseek2", c, tiny_tokenizer.R1_TEMPLATE)
    heads, rank, rope = c["num_attention_heads"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    nope, v, yarn = c["qk_nope_head_dim"], c["v_head_dim"], c["rope_scaling"]
    if legacy:
        w.add_head_count_kv(heads)
        w.add_key_length(nope + rope)
        w.add_value_length(v)
    else:
        w.add_head_count_kv(1)
        w.add_key_length(rank + rope)
        w.add_value_length(rank)
        w.add_key_length_mla(nope + rope)
        w.add_value_length_mla(v)
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    if c["q_lora_rank"] is not None:
        w.add_q_lora_rank(c["q_lora_rank"])
    w.add_kv_lora_rank(rank)
    w.add_rope_dimension_count(rope)
    w.add_expert_count(c["n_routed_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_group_count(c["n_group"])
    w.add_expert_group_used_count(c["topk_group"])
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(c["norm_topk_prob"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(float(yarn["factor"]))
    w.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
    w.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])

    tensors = top_tensors(values)
    for i in range(c["num_hidden_layers"]):
        layer = layer_tensors(c, values, i, MLA_NAMES)
        if not legacy:
            kv_b = layer.pop("attn_kv_b.weight").reshape(heads, nope + v, rank)
            layer["attn_k_b.weight"] = kv_b[:, :nope].transpose(1, 2)
            layer["attn_v_b.weight"] = kv_b[:, nope:]
        tensors |= {f"blk.{i}.{name}": t for name, t in layer.items()}
    finish(w, tensors)


def write_all(name: str, c: dict, values: dict, folder: Path) -> None:
    """The GGUF files of model `name`, if it has any, into `folder`."""
    if name == "llama":
        write_llama(folder / "model.gguf", c, values)
    elif name == "deepseek_v3":
        write_deepseek2(folder / "mla.gguf", c, values, legacy=False)
        write_deepseek2(folder / "legacy.gguf", c, values, legacy=True)
