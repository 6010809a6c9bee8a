"""Batches: problems of about one length, tokenized, right-padded, loss on the completion only."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from tokenizers import Tokenizer

from build_tokenizer import BOS, EOS, PAD, render
from problems import FAMILIES, MAX_STEPS, Problem, problem

SHARES = {"arithmetic": 4, "columns": 3, "boxes": 3, "variables": 3}


@dataclass
class Batch:
    """ids [b, t] inputs; targets [b, t], -100 where there is no loss."""

    ids: Tensor
    targets: Tensor
    problems: list[Problem]


def collate(problems: list[Problem], tokenizer: Tokenizer) -> Batch:
    prompts = tokenizer.encode_batch_fast([render(p.prompt) for p in problems], add_special_tokens=False)
    answers = tokenizer.encode_batch_fast([p.completion + EOS for p in problems], add_special_tokens=False)
    width = max(len(q.ids) + len(a.ids) for q, a in zip(prompts, answers)) - 1
    ids = torch.full((len(problems), width), tokenizer.token_to_id(PAD))
    targets = torch.full((len(problems), width), -100)
    for i, (q, a) in enumerate(zip(prompts, answers)):
        whole = torch.tensor(q.ids + a.ids)
        ids[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(q.ids) - 1 : len(whole) - 1] = whole[len(q.ids) :]
    return Batch(ids, targets, problems)


def longest(step: int, warm: int) -> int:
    """The curriculum: chains of 4 steps at first, of 64 from optimizer step `warm` on."""
    return min(MAX_STEPS, 4 + (MAX_STEPS - 4) * step // warm)


def training_batch(step: int, seed: int, tokens: int, warm: int, tokenizer: Tokenizer) -> Batch:
    """The batch of an optimizer step: a function of (step, seed), so that resuming needs no state.

    Half the batches are of any length up to the curriculum's longest, half lean towards short chains,
    which show many beginnings and ends. Within a batch lengths differ by up to a third, so that the
    ends of all lengths are seen every few steps and not much is padding; and half the problems begin
    at a later label, so that the labels of long chains are learnt on short ones too.
    """
    rng = random.Random(f"{seed}/{step}")
    top = longest(step, warm)
    most = rng.randint(1, top) if rng.random() < 0.5 else int(top ** rng.random())
    least = -(-2 * most // 3)
    count = max(4, tokens // (40 + 16 * most))
    families = rng.choices(FAMILIES, weights=[SHARES[f] for f in FAMILIES], k=count)

    def draw(family: str) -> Problem:
        steps = rng.randint(least, most)
        first = rng.randint(0, top - steps) if rng.random() < 0.5 else 0
        return problem(family, steps, "train", rng.getrandbits(48), first)

    return collate([draw(f) for f in families], tokenizer)


__all__ = ["BOS", "Batch", "collate", "longest", "training_batch"]
