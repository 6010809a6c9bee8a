"""Whether transformers writes what scrimp wrote, on the same problems.

    scrimp eval --answers answers.jsonl
    python tools/train/agree.py models/ponder answers.jsonl

Both decode greedily. Where the texts part, the first token that differs is held against
transformers' own logits: how much likelier its choice was than scrimp's. Differences near zero are
ties that another order of summation decides otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_tokenizer import EOS, render


@torch.no_grad()
def first_difference(model, tokenizer, prompt: str, theirs: str, ours: str) -> float:
    """Log-probability by which transformers prefers its token where the completions part."""
    ids = [tokenizer(prompt + text, add_special_tokens=False).input_ids for text in (theirs, ours)]
    at = next((i for i, (a, b) in enumerate(zip(*ids)) if a != b), None)
    if at is None:
        return float("inf")
    row = model(torch.tensor([ids[0][:at]])).logits[0, -1].float().log_softmax(-1)
    return (row[ids[0][at]] - row[ids[1][at]]).item()


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("answers", type=Path, help="what `scrimp eval --answers` wrote")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    p.add_argument("--limit", type=int, default=None, help="problems a family and length")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).eval()
    by_kind = defaultdict(list)
    for line in args.answers.read_text().splitlines():
        answer = json.loads(line)
        by_kind[answer["family"], answer["steps"]].append(answer)
    total = defaultdict(int)
    for (family, steps), answers in sorted(by_kind.items()):
        answers, same, texts = answers[: args.limit], 0, 0
        for i in range(0, len(answers), 64):
            part = answers[i : i + 64]
            prompts = [render(a["prompt"]) for a in part]
            inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
            limit = 24 * steps + 96
            out = model.generate(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, do_sample=False, max_new_tokens=limit)
            for a, prompt, ids in zip(part, prompts, out[:, inputs.input_ids.shape[1] :]):
                text = tokenizer.decode(ids, skip_special_tokens=False).split(EOS)[0]
                thought, _, said = text.rpartition("</think>")
                same += said.strip() == a["answer"].strip()
                if (thought.strip(), said.strip()) == (a["reasoning"].strip(), a["answer"].strip()):
                    texts += 1
                    continue
                ours = a["reasoning"].strip("\n") + "\n</think>\n\n" + a["answer"].strip()
                margin = first_difference(model, tokenizer, prompt, text, ours)
                print(f"  {family} {steps}: texts part where transformers prefers its token by {margin:.4f} nats", flush=True)
        print(f"{family:>12} {steps:>3}: {same} of {len(answers)} answers the same, {texts} whole texts", flush=True)
        for name, count in (("problems", len(answers)), ("answers", same), ("texts", texts)):
            total[name] += count
    print(f"all: {total['answers']} of {total['problems']} answers the same, {total['texts']} whole texts")


if __name__ == "__main__":
    main()
