#!/usr/bin/env python3
"""llama.cpp's logits on the golden SmolLM2 windows, in the form `tools/goldens/smollm2.py compare` takes.

What does llama.cpp's own quantization of activations cost on a file and a text? Dump the logits of the file in
llama.cpp's default mode, and compare with a reading that does not round: transformers' for the Q4_1 file, or
llama.cpp's own of the same weights dequantized to F32 (`llama-quantize --allow-requantize in.gguf f32.gguf F32`).

    python tools/goldens/smollm2.py reference /tmp/reference.safetensors
    python tools/peers/llama_cpp_logits.py SmolLM2-135M-Instruct.Q4_1.gguf /tmp/llama.npy
    python tools/goldens/smollm2.py compare /tmp/reference.safetensors /tmp/llama.npy

Measured with llama-cpp-python 0.3.36 on x86-64 with AVX-512 VNNI, 2,000 tokens, KL of the exact reading from it:

    file   reference                    top-1      KL mean   KL 99%
    Q4_1   transformers, f32            96.65%     2.80e-3   1.21e-2
    Q8_0   the same weights in F32      97.10%     2.90e-3   1.38e-2
    Q4_0   the same weights in F32      95.55%     3.42e-3   1.78e-2
    BF16   the same weights in F32      99.50%     7.94e-5   4.21e-4
    F32    transformers, f32            99.90%     6.52e-7   4.88e-6

Needs `llama-cpp-python`, numpy, safetensors.
"""

import argparse
from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "smollm2"
WINDOW = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="a .npy file: f32 [2000, vocab]")
    parser.add_argument("--f32-kv", action="store_true", help="keep keys and values in F32 (default: F16)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    ids = load_file(GOLDENS / "golden.safetensors")["ids"]
    kv = llama_cpp.GGML_TYPE_F32 if args.f32_kv else llama_cpp.GGML_TYPE_F16
    model = llama_cpp.Llama(
        str(args.model), n_ctx=WINDOW + 24, n_threads=args.threads, n_threads_batch=args.threads, logits_all=True,
        verbose=False, type_k=kv, type_v=kv,
    )
    text = (GOLDENS / "text.txt").read_bytes()
    tokens = model.tokenize(text, add_bos=False, special=False)[: len(ids)]
    if tokens != ids.tolist():
        raise SystemExit("llama.cpp tokenizes the text differently: is this SmolLM2?")
    logits = np.empty((len(ids), model.n_vocab()), dtype=np.float32)
    for at in range(0, len(ids), WINDOW):
        model.reset()
        model.eval(ids[at : at + WINDOW].tolist())
        logits[at : at + WINDOW] = model.scores[:WINDOW]
    np.save(args.out, logits)


if __name__ == "__main__":
    main()
