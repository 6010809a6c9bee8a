"""Writes a model as a Hugging Face folder, tensors in BF16 under DeepSeek's own names.

    python tools/train/export.py CHECKPOINT FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import build_tokenizer
from model import Config, Ponder


def tensors(model: Ponder) -> dict[str, Tensor]:
    """Every tensor by its name in the file. All BF16 but the correction bias, which is F32."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        stem, _, leaf = name.rpartition(".")
        if stem.endswith("mlp.experts"):
            mlp = "model." + stem.removesuffix(".experts")
            if leaf == "router":
                out[f"{mlp}.gate.weight"] = value.bfloat16()
            elif leaf == "correction_bias":
                out[f"{mlp}.gate.e_score_correction_bias"] = value.float()
            else:
                for e, w in enumerate(value):
                    out[f"{mlp}.experts.{e}.{leaf}_proj.weight"] = w.bfloat16().contiguous()
        else:
            out[name if name.startswith("lm_head") else f"model.{name}"] = value.bfloat16().contiguous()
    return out


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Ponder:
    """The training-side model with an exported folder's weights."""
    from safetensors.torch import load_file

    raw = json.loads((folder / "config.json").read_text())
    model = Ponder(Config(**{k: raw[k] for k in Config.__dataclass_fields__}), dtype)
    file = load_file(folder / "model.safetensors")
    state = {}
    for name in model.state_dict():
        stem, _, leaf = name.rpartition(".")
        mlp = "model." + stem.removesuffix(".experts")
        if not stem.endswith("mlp.experts"):
            state[name] = file[name if name.startswith("lm_head") else f"model.{name}"].float()
        elif leaf == "router":
            state[name] = file[f"{mlp}.gate.weight"].float()
        elif leaf == "correction_bias":
            state[name] = file[f"{mlp}.gate.e_score_correction_bias"]
        else:
            count = model.config.n_routed_experts
            state[name] = torch.stack([file[f"{mlp}.experts.{e}.{leaf}_proj.weight"].float() for e in range(count)])
    model.load_state_dict(state)
    return model.eval()


def write(model: Ponder, folder: Path) -> None:
    """The whole folder: config, weights, tokenizer, template, generation config."""
    tokenizer = build_tokenizer.write(folder)
    bos, eos, pad = (tokenizer.token_to_id(t) for t in (build_tokenizer.BOS, build_tokenizer.EOS, build_tokenizer.PAD))
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **model.config.to_dict(),
        "num_key_value_heads": model.config.num_attention_heads,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_interleave": True,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": False, "max_new_tokens": 1024}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    partial = folder / "model.safetensors.partial"
    save_file(tensors(model), partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


if __name__ == "__main__":
    checkpoint = torch.load(sys.argv[1], weights_only=True)
    ponder = Ponder(Config(**checkpoint["config"]))
    ponder.load_state_dict(checkpoint["model"])
    write(ponder, Path(sys.argv[2]))
