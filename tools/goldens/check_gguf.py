#!/usr/bin/env python3
"""Run the tiny GGUF files through llama.cpp and hold its logits against the goldens.

A check on tiny_gguf.py: if llama.cpp, reading the files, agrees with transformers, reading the safetensors, then
names, permutations, metadata and tokenizer are as llama.cpp writes them. Needs `llama-cpp-python`.

Usage: python tools/goldens/check_gguf.py [--goldens DIR]
"""

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FILES = ["llama/model.gguf", "deepseek_v3/mla.gguf", "deepseek_v3/legacy.gguf"]
TOLERANCE = 1e-3  # llama.cpp's sums and its exp differ in the last bits; a wrong permutation shows as > 0.1
TEXTS = ["the theory in an answer\n", "Ünïcode ≠ ascii, 'tis 12 345", "<｜User｜>hi<｜Assistant｜><think>\n"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "goldens")
    args = parser.parse_args()
    worst = 0.0
    for file in FILES:
        path = args.goldens / file
        golden = load_file(path.parent / "golden.safetensors")
        model = llama_cpp.Llama(
            str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False, flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )
        reference = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
        for text in TEXTS:
            ours = model.tokenize(text.encode(), add_bos=False, special=True)
            assert ours == reference.encode(text, add_special_tokens=False).ids, (file, text, ours)
        template = json.loads((path.parent / "tokenizer_config.json").read_text()).get("chat_template")
        if template:
            assert model.metadata["tokenizer.chat_template"] == template
        for i in (0, 1):
            model.reset()
            model.eval(golden[f"ids.{i}"].tolist())
            ours, want = np.array(model.scores[: len(golden[f"ids.{i}"])]), golden[f"logits.{i}"]
            error = float(np.abs(ours - want).max() / np.abs(want).max())
            worst = max(worst, error)
            print(f"{file:28} sequence {i}: largest difference {error:.1e} of the largest logit")
    raise SystemExit(f"differs by {worst}" if worst > TOLERANCE else 0)


if __name__ == "__main__":
    main()
