"""Draws the loss curve and the validation accuracy of a run: python tools/train/plot.py LOG.csv PICTURE.png"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from problems import FAMILIES


def main(log: str, picture: str) -> None:
    with open(log, newline="") as f:
        rows = list(csv.DictReader(f))
    lengths = sorted({int(k.rpartition("_")[2]) for k in rows[0] if k.rpartition("_")[2].isdigit()})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.semilogy([float(r["tokens"]) / 1e6 for r in rows], [float(r["loss"]) for r in rows], color="black", linewidth=1)
    left.set(xlabel="tokens (millions)", ylabel="loss on the completion (nats a token)", title="Training loss")
    measured = [r for r in rows if r[f"{FAMILIES[0]}_{lengths[0]}"]]
    for length in lengths:
        mean = [sum(float(r[f"{f}_{length}"]) for f in FAMILIES) / len(FAMILIES) for r in measured]
        right.plot([float(r["tokens"]) / 1e6 for r in measured], mean, label=f"{length} steps")
    right.set(xlabel="tokens (millions)", ylabel="whole chain right", ylim=(0, 1.02), title="Validation, mean of the families")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
