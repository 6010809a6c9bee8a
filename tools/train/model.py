"""DeepSeek-V3's architecture, small, with a forward pass made for training on a CPU.

The parameters are transformers' `DeepseekV3ForCausalLM`, and so are the logits (see
test_train.py). What differs is the cost: whole batches of equal-length problems, no cache, no
masks but the causal one, tokens sorted by expert once a layer. Matrix products run in `dtype`
(bfloat16 by default); the residual stream, norms and router stay in float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Shapes, with the names they have in config.json."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int = 128
    kv_lora_rank: int = 128
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def to_dict(self) -> dict:
        return asdict(self)


class RMSNorm(nn.Module):
    """Root-mean-square norm, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Linear(nn.Linear):
    """A linear layer without bias whose product runs in the input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Routed experts: sigmoid scores, correction bias, groups, top-k, scaling."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        e, i, h = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        self.config = c
        self.router = nn.Parameter(torch.empty(e, h))
        self.gate = nn.Parameter(torch.empty(e, i, h))
        self.up = nn.Parameter(torch.empty(e, i, h))
        self.down = nn.Parameter(torch.empty(e, h, i))
        self.register_buffer("correction_bias", torch.zeros(e))
        self.register_buffer("load", torch.zeros(e), persistent=False)  # tokens per expert, last forward

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, hidden] in float32 -> weights [n, k], experts [n, k]."""
        c = self.config
        scores = F.linear(x, self.router).sigmoid()
        with torch.no_grad():
            choice = scores + self.correction_bias
            grouped = choice.view(-1, c.n_group, c.n_routed_experts // c.n_group)
            kept = grouped.topk(2, dim=-1)[0].sum(-1).topk(c.topk_group, dim=-1)[1]
            mask = torch.zeros(len(x), c.n_group, dtype=torch.bool).scatter_(1, kept, True)
            choice = grouped.masked_fill(~mask[..., None], float("-inf")).flatten(1)
            chosen = choice.topk(c.num_experts_per_tok, dim=-1)[1]
        weights = scores.gather(1, chosen)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.routed_scaling_factor, chosen

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x [n, hidden] in float32 -> [n, hidden] in float32."""
        c = self.config
        weights, chosen = self.route(x)
        expert, order = chosen.flatten().sort(stable=True)
        counts = torch.bincount(expert, minlength=c.n_routed_experts)
        self.load.copy_(counts)
        token = order // c.num_experts_per_tok
        rows = x.to(dtype).index_select(0, token).split(counts.tolist())
        gate, up, down = (w.to(dtype).unbind(0) for w in (self.gate, self.up, self.down))
        out = [F.linear(F.silu(F.linear(r, g)) * F.linear(r, u), d) for r, g, u, d in zip(rows, gate, up, down)]
        scaled = torch.cat(out).float() * weights.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, token, scaled)


class Moe(nn.Module):
    """Routed experts and the shared expert."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.experts = Experts(c)
        self.shared_experts = Mlp(c.hidden_size, c.moe_intermediate_size * c.n_shared_experts)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        flat = x.flatten(0, -2)
        return (self.experts(flat, dtype) + self.shared_experts(flat.to(dtype)).float()).view_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs: x [..., t, d], cos and sin [t, d / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 256) -> Tensor:
    """Causal attention in blocks of queries, each over the keys up to its end: on a CPU in bfloat16
    two to three times as fast as the fused kernel, forward and backward. q is scaled already."""
    t, out = q.shape[2], []
    mask = torch.full((block, block), float("-inf"), dtype=q.dtype).triu(1)
    for begin in range(0, t, block):
        end = min(t, begin + block)
        scores = q[:, :, begin:end] @ k[:, :, :end].mT
        scores[..., begin:] += mask[: end - begin, : end - begin]
        out.append(torch.softmax(scores, -1) @ v[:, :, :end])
    return torch.cat(out, 2)


class Attention(nn.Module):
    """Multi-head latent attention in its plain (not absorbed) form."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        heads, nope, rope, v = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        self.config = c
        self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = Linear(c.q_lora_rank, heads * (nope + rope))
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + rope)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (nope + v))
        self.o_proj = Linear(heads * v, c.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: dict | None) -> Tensor:
        """x [b, t, hidden]; `cache` (decoding only) holds the latents and rope keys seen so far."""
        c = self.config
        b, t, _ = x.shape
        nope, rope, v, heads = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.num_attention_heads
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)).to(x.dtype)).view(b, t, heads, -1).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, rope), -1)
        k_rope = rotate(k_rope, cos, sin)
        latent = self.kv_a_layernorm(latent).to(x.dtype)
        if cache is not None:
            if cache:
                latent = torch.cat((cache["latent"], latent), 1)
                k_rope = torch.cat((cache["k_rope"], k_rope), 1)
            cache["latent"], cache["k_rope"] = latent, k_rope
        k_nope, value = self.kv_b_proj(latent).view(b, -1, heads, nope + v).transpose(1, 2).split((nope, v), -1)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        k = torch.cat((k_nope, k_rope[:, None].expand(-1, heads, -1, -1)), -1)
        q = q * (nope + rope) ** -0.5
        out = (torch.softmax(q @ k.mT, -1) @ value) if t == 1 else causal_attention(q, k, value)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, heads * v))


class Layer(nn.Module):
    """A decoder layer, dense or with experts."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        dense = index < c.first_k_dense_replace
        self.mlp = Mlp(c.hidden_size, c.intermediate_size) if dense else Moe(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, cache: dict | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x).to(dtype), cos, sin, cache).float()
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, dtype) if isinstance(self.mlp, Moe) else self.mlp(y.to(dtype)).float())


class Ponder(nn.Module):
    """The whole model."""

    def __init__(self, config: Config, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        half = config.qk_rope_head_dim // 2
        freq = config.rope_theta ** (-torch.arange(half).float() / half)
        angles = torch.arange(config.max_position_embeddings).float()[:, None] * freq
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Fan-in initialisation; matrices that write to the residual stream start small."""
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue
            std = 0.5 * p.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down")):
                std /= (2 * self.config.num_hidden_layers) ** 0.5
            nn.init.normal_(p, std=0.02 if "embed" in name else std)

    def hidden(self, ids: Tensor, caches: list[dict] | None = None) -> Tensor:
        """ids [b, t] -> final hidden states [b, t, hidden], normed, in the compute dtype."""
        past = caches[0]["latent"].shape[1] if caches and caches[0] else 0
        cos, sin = (f[past : past + ids.shape[1]].to(self.dtype) for f in (self.cos, self.sin))
        x = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, self.dtype, caches[i] if caches is not None else None)
        return self.norm(x).to(self.dtype)

    def forward(self, ids: Tensor, caches: list[dict] | None = None) -> Tensor:
        """ids [b, t] -> logits [b, t, vocab]."""
        return self.lm_head(self.hidden(ids, caches))

    def moe_layers(self) -> list[Experts]:
        return [layer.mlp.experts for layer in self.layers if isinstance(layer.mlp, Moe)]
