"""Trains Ponder. One command, seeded, resumable:

    python tools/train/train.py --out runs/ponder

Stops at --steps, or on SIGTERM after saving; the same command goes on from the last checkpoint.
The rate rises over --warmup steps, stays, and falls to zero over the last --decay steps: to train
longer, give a larger --steps before the decay has begun. On a machine that is shared, where nobody
knows how many steps an hour brings, --minutes and --decay-minutes end the run by the clock.
"""

from __future__ import annotations

import os
import sys

# Large tensors come and go at every step: keep their pages instead of returning them to the system.
# And threads that wait must sleep: on a machine with other work, spinning costs five times the step.
TUNABLES = "glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=4294967295:glibc.malloc.top_pad=268435456"
if __name__ == "__main__" and "GLIBC_TUNABLES" not in os.environ:
    os.environ |= {"GLIBC_TUNABLES": TUNABLES, "OMP_WAIT_POLICY": "PASSIVE"}
    os.execv(sys.executable, [sys.executable, *sys.argv])

import argparse
import csv
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import build_tokenizer
import export
from data import Batch, collate, longest, training_batch
from model import Config, Ponder
from optim import optimizers
from problems import FAMILIES, MAX_STEPS, label, problem

EVAL_STEPS = (4, 16, 32, 48, 64)
COLUMNS = ["step", "tokens", "seconds", "longest", "lr_factor", "loss"] + [f"{f}_{n}" for f in FAMILIES for n in EVAL_STEPS]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and exports")
    p.add_argument("--steps", type=int, default=8000)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--decay", type=int, default=1500)
    p.add_argument("--minutes", type=float, default=None, help="stop this long after the start of this call")
    p.add_argument("--decay-minutes", type=float, default=20)
    p.add_argument("--tokens", type=int, default=4096, help="tokens a batch, about")
    p.add_argument("--curriculum", type=int, default=1500, help="steps until the longest chains are reached")
    p.add_argument("--muon-lr", type=float, default=4e-3)
    p.add_argument("--adam-lr", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--eval-every", type=int, default=500)
    p.add_argument("--save-minutes", type=float, default=3)
    p.add_argument("--export-minutes", type=float, default=30)
    p.add_argument("--export-to", type=Path, default=None, help="folder of the exports (OUT/export)")
    return p.parse_args()


def token_weights(tokenizer: Tokenizer) -> torch.Tensor:
    """[vocab] each target's weight in the loss.

    A chain has hundreds of tokens and one end, and a wrong end spoils all of it: the end weighs 8
    times a usual token, a step's label, which says that this is not the end, 4 times.
    """
    weights = torch.ones(tokenizer.get_vocab_size())
    weights[tokenizer.token_to_id(build_tokenizer.END_THINK)] = 8.0
    for i in range(MAX_STEPS):
        (token,) = tokenizer.encode(f" {label(i)})", add_special_tokens=False).ids
        weights[token] = 4.0
    return weights


def loss_of(model: Ponder, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy over the completion's tokens."""
    kept = (batch.targets.flatten() >= 0).nonzero().flatten()
    hidden = model.hidden(batch.ids).flatten(0, 1).index_select(0, kept)
    return F.cross_entropy(model.lm_head(hidden).float(), batch.targets.flatten()[kept], weights)


@torch.no_grad()
def exact(model: Ponder, batch: Batch) -> torch.Tensor:
    """[b] whether each whole completion is what greedy decoding gives.

    Every token is the most likely one after the right tokens before it, which by induction is the
    same as greedy decoding writing exactly this text, at the cost of one forward pass.
    """
    kept = batch.targets >= 0
    best = torch.full_like(batch.targets, -100)
    best[kept] = model.lm_head(model.hidden(batch.ids)[kept]).float().argmax(-1)
    return (best == batch.targets).all(1)


def validate(model: Ponder, tokenizer: Tokenizer, count: int = 16) -> dict[str, float]:
    """Exact-chain accuracy by family and length, on validation problems."""
    scores = {}
    for family in FAMILIES:
        for steps in EVAL_STEPS:
            batch = collate([problem(family, steps, "validation", i) for i in range(count)], tokenizer)
            scores[f"{family}_{steps}"] = exact(model, batch).float().mean().item()
    return scores


BEGAN = time.monotonic()


def seconds_left(args: argparse.Namespace) -> float:
    """Until the end that --minutes sets."""
    return float("inf") if args.minutes is None else BEGAN + 60 * args.minutes - time.monotonic()


def rate(step: int, args: argparse.Namespace) -> float:
    """The learning rates' factor at a step."""
    left = min((args.steps - step) / args.decay, seconds_left(args) / (60 * args.decay_minutes))
    return min(1.0, (step + 1) / args.warmup, max(0.0, left))


@torch.no_grad()
def balance(model: Ponder, speed: float = 1e-3) -> None:
    """Moves each expert's correction bias against its load (arXiv 2408.15664)."""
    for experts in model.moe_layers():
        experts.correction_bias += speed * torch.sign(experts.load.mean() - experts.load)


class Run:
    """A training run and everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.tokenizer = build_tokenizer.build()
        self.weights = token_weights(self.tokenizer)
        self.model = Ponder(Config(vocab_size=self.tokenizer.get_vocab_size()))
        self.optimizers = optimizers(self.model, args.muon_lr, args.adam_lr)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.path = args.out / "checkpoint.pt"
        self.log = args.out / "log.csv"
        if self.path.exists():
            self.resume()

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            for now, then in zip(optimizer.param_groups, saved["param_groups"]):
                then["peak"] = now["peak"]  # this call's rates, not those of the call that saved
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def save(self) -> None:
        state = {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "args": {k: str(v) for k, v in vars(self.args).items()},
        }
        torch.save(state, self.path.with_suffix(".partial"))
        self.path.with_suffix(".partial").rename(self.path)

    def export(self) -> None:
        export.write(self.model, self.args.export_to or self.args.out / "export")

    def advance(self) -> float:
        """One optimizer step; returns the loss."""
        args, factor = self.args, rate(self.step, self.args)
        batch = training_batch(self.step, args.seed, args.tokens, args.curriculum, self.tokenizer)
        loss = loss_of(self.model, batch, self.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        if factor == 1.0:
            balance(self.model)
        self.step += 1
        self.tokens += batch.ids.numel()
        return loss.item()

    def record(self, loss: float, scores: dict[str, float]) -> None:
        fresh = not self.log.exists()
        row = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds), "loss": f"{loss:.5f}"}
        row |= {"longest": longest(self.step, self.args.curriculum), "lr_factor": round(rate(self.step, self.args), 3)}
        with self.log.open("a", newline="") as f:
            writer = csv.DictWriter(f, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(row | {k: round(v, 3) for k, v in scores.items()})
        parts = [f"{f}: " + " ".join(f"{n}:{scores[f'{f}_{n}']:.2f}" for n in EVAL_STEPS) for f in FAMILIES if scores]
        print(f"step {self.step} tokens {self.tokens / 1e6:.2f}M {self.seconds:.0f}s loss {loss:.4f}", *parts, sep=" | ", flush=True)


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    run, stopping = Run(args), []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    saved = exported = time.monotonic()
    if run.step == 0:
        run.export()
    average = None
    while run.step < args.steps and seconds_left(args) > 0 and not stopping:
        began = time.monotonic()
        loss = run.advance()
        run.seconds += time.monotonic() - began
        average = loss if average is None else 0.95 * average + 0.05 * loss
        if run.step % args.eval_every == 0:
            run.record(average, validate(run.model, run.tokenizer))
        elif run.step % 50 == 0:
            run.record(average, {})
        now = time.monotonic()
        if now - saved > 60 * args.save_minutes:
            run.save()
            saved = now
        if now - exported > 60 * args.export_minutes:
            run.export()
            exported = now
    run.save()
    run.export()


if __name__ == "__main__":
    main()
