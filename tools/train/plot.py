"""Draws a run's loss and curriculum: python tools/train/plot.py LOG.csv PICTURE.png"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(log: str, picture: str) -> None:
    with open(log, newline="") as f:
        rows = list(csv.DictReader(f))
    tokens = [float(r["tokens"]) / 1e6 for r in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.semilogy(tokens, [float(r["loss"]) for r in rows], color="black", linewidth=1)
    left.set(xlabel="tokens (millions)", ylabel="loss on the completion (nats a token)", title="Training loss")
    right.plot(tokens, [int(r["longest"]) for r in rows], color="tab:blue", label="longest chain (steps)")
    right.plot(tokens, [10 * float(r["lr_factor"]) for r in rows], color="tab:orange", label="10 x rate factor")
    right.set(xlabel="tokens (millions)", ylim=(0, None), title="Curriculum and learning rate")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
