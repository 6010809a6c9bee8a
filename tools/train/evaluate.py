"""Held-out accuracy of an exported folder by family and chain length.

    python tools/train/evaluate.py models/ponder                          # one forward pass a batch
    python tools/train/evaluate.py models/ponder --engine transformers    # greedy generation
    python tools/train/evaluate.py models/ponder --int4 32                # naive 4-bit weights

`lean` counts a problem as right when every token of the completion is what greedy decoding writes
(train.exact); `transformers` generates, and counts right answers and right chains.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

import export
from build_tokenizer import EOS, render
from data import collate
from model import Ponder
from problems import FAMILIES, Problem, problem
from train import exact

LENGTHS = (1, 2, 4, 8, 16, 32, 48, 64)


@torch.no_grad()
def round_to_int4(w: Tensor, group: int) -> Tensor:
    """Symmetric round-to-nearest in groups along the last dimension: scale = amax / 7.5, q in -8..=7."""
    grouped = w.reshape(*w.shape[:-1], -1, group)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7.5).clamp_min(1e-12)
    return ((grouped / scale).round().clamp(-8, 7) * scale).reshape(w.shape)


@torch.no_grad()
def quantize(model: torch.nn.Module, group: int) -> None:
    """Rounds every matrix inside the layers except the router, in place. Works for both engines."""
    for name, p in model.named_parameters():
        if "layers." in name and p.dim() >= 2 and "router" not in name and "mlp.gate.weight" not in name:
            p.copy_(round_to_int4(p.float(), group))


def groups(problems: list[Problem], tokens: int) -> list[list[Problem]]:
    """Batches of at most about `tokens` tokens."""
    size = max(1, tokens // (40 + 16 * problems[0].steps))
    return [problems[i : i + size] for i in range(0, len(problems), size)]


def evaluate_lean(model: Ponder, tokenizer: Tokenizer, problems: list[Problem]) -> dict[str, float]:
    right = [exact(model, collate(part, tokenizer)) for part in groups(problems, 8192)]
    return {"chain": torch.cat(right).float().mean().item()}


@torch.no_grad()
def evaluate_transformers(model, tokenizer, problems: list[Problem]) -> dict[str, float]:
    answers = chains = 0
    for part in groups(problems, 1 << 17):
        inputs = tokenizer([render(p.prompt) for p in part], add_special_tokens=False, padding=True, return_tensors="pt")
        limit = 12 * part[0].steps + 64
        out = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=limit)
        for p, ids in zip(part, out[:, inputs.input_ids.shape[1] :]):
            text = tokenizer.decode(ids, skip_special_tokens=False).split(EOS)[0]
            answers += text.rpartition("</think>")[2].strip() == p.answer
            chains += text == p.completion
    return {"answer": answers / len(problems), "chain": chains / len(problems)}


def load(args: argparse.Namespace):
    """(evaluation function, model, tokenizer) of the chosen engine."""
    dtype = getattr(torch, args.dtype)
    if args.engine == "lean":
        model, tokenizer = export.load(args.folder, dtype), Tokenizer.from_file(str(args.folder / "tokenizer.json"))
        return evaluate_lean, model, tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder, padding_side="left")
    return evaluate_transformers, AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype).eval(), tokenizer


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--engine", choices=("lean", "transformers"), default="lean")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    p.add_argument("--split", choices=("validation", "test"), default="test")
    p.add_argument("--count", type=int, default=200, help="problems a family and length")
    p.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    p.add_argument("--int4", type=int, default=0, metavar="GROUP", help="round the weights to 4 bits in groups")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    measure, model, tokenizer = load(args)
    if args.int4:
        quantize(model, args.int4)
    rows, began = [], time.monotonic()
    for family in FAMILIES:
        for steps in args.lengths:
            problems = [problem(family, steps, args.split, i) for i in range(args.count)]
            rows.append({"family": family, "steps": steps, "problems": args.count} | measure(model, tokenizer, problems))
            print(json.dumps(rows[-1]), flush=True)
    seconds = round(time.monotonic() - began, 1)
    settings = {"engine": args.engine, "dtype": args.dtype, "split": args.split, "int4_group": args.int4 or None}
    print(json.dumps({"settings": settings, "seconds": seconds, "mean": {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if k in ("chain", "answer")}}))


if __name__ == "__main__":
    main()
