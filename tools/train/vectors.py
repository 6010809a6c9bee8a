"""Writes the test vectors for a port of problems.py: python tools/train/vectors.py models/ponder/problems.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from problems import FAMILIES, SPLITS, problem


def vectors() -> list[dict]:
    out = []
    for family in FAMILIES:
        for split in SPLITS:
            for steps, seed in ((1, 0), (2, 1), (5, 12345), (30, 7), (64, 2**40 + 3)):
                if steps > 5 and split != "test":
                    continue
                p = problem(family, steps, split, seed)
                row = {"family": family, "steps": steps, "split": split, "seed": seed, "canonical": p.canonical}
                out.append(row | {"prompt": p.prompt, "chain": list(p.chain), "value": p.value, "answer": p.answer})
    return out


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(v) for v in vectors())
    Path(sys.argv[1]).write_text('{"vectors": [\n' + lines + "\n]}\n")
