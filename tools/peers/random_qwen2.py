#!/usr/bin/env python3
"""A GGUF of Qwen2.5-1.5B's shape with random weights: what speed is measured on when nothing may be downloaded.

    pip install gguf numpy
    python tools/peers/random_qwen2.py --type Q8_0 --tokenizer SmolLM2-135M-Instruct-Q8_0.gguf out-Q8_0.gguf

Every architecture detail that costs time is the real one (biases on q, k and v, grouped heads, tied embeddings,
151,936 tokens); the values are noise of the usual size, so the text is too. The vocabulary is taken from another
GGUF file and filled up with unused tokens.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH, VOCAB = 1536, 28, 12, 2, 8960, 151936
HEAD_DIM = HIDDEN // HEADS
TYPES = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "BF16": gguf.GGMLQuantizationType.BF16}


class Matrices:
    """Random matrices, cut from one stretch of noise: drawing billions of values anew takes minutes."""

    LEN = 1 << 24

    def __init__(self, kind: str, seed: int):
        random = np.random.default_rng(seed)
        self.kind, self.at = kind, 0
        if kind == "BF16":
            values = random.standard_normal(self.LEN, dtype=np.float32)
            self.noise = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            self.noise = random.integers(-127, 128, self.LEN, dtype=np.int8).view(np.uint8)

    def values(self, count: int) -> np.ndarray:
        """The next values, from an odd place so that no two matrices are alike."""
        self.at = (self.at + 1_000_003) % self.LEN
        return np.resize(np.roll(self.noise, -self.at), count)

    def stored(self, rows: int, cols: int) -> np.ndarray:
        """Stored bytes of a matrix, `[rows, bytes of a row]`: values of about ±1/sqrt(cols)."""
        values = self.values(rows * cols)
        if self.kind == "BF16":
            # Powers of two scale by the exponent alone.
            halvings = round(np.log2(cols) / 2)
            scaled = np.where(values & 0x7F80 > halvings << 7, values - (halvings << 7), 0).astype(np.uint16)
            return scaled.reshape(rows, cols).view(np.uint8)
        blocks = np.empty((rows, cols // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(cols**-0.5 / 64).tobytes(), dtype=np.uint8)
        blocks[:, :, 2:] = values.reshape(rows, cols // 32, 32)
        return blocks.reshape(rows, -1)


def layer_shapes(layer: int) -> dict[str, tuple[int, int]]:
    kv = KV_HEADS * HEAD_DIM
    return {
        f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
        f"blk.{layer}.attn_k.weight": (kv, HIDDEN),
        f"blk.{layer}.attn_v.weight": (kv, HIDDEN),
        f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
        f"blk.{layer}.ffn_gate.weight": (WIDTH, HIDDEN),
        f"blk.{layer}.ffn_up.weight": (WIDTH, HIDDEN),
        f"blk.{layer}.ffn_down.weight": (HIDDEN, WIDTH),
    }


def add_vocabulary(writer: gguf.GGUFWriter, source: Path) -> None:
    fields = gguf.GGUFReader(source).fields
    tokens = [bytes(fields["tokenizer.ggml.tokens"].parts[i]) for i in fields["tokenizer.ggml.tokens"].data]
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    merges = [bytes(fields["tokenizer.ggml.merges"].parts[i]) for i in fields["tokenizer.ggml.merges"].data]
    missing = VOCAB - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + [f"<unused{i}>".encode() for i in range(missing)])
    writer.add_token_types(kinds + [int(gguf.TokenType.UNUSED)] * missing)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(int(fields["tokenizer.ggml.eos_token_id"].contents()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q8_0", help="of the matrices (default Q8_0)")
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="GGUF", help="file to take the vocabulary from")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    matrices, random = Matrices(args.type, args.seed), np.random.default_rng(args.seed)
    writer = gguf.GGUFWriter(args.out, "qwen2", use_temp_file=True)
    writer.add_name(f"random-1.5B-{args.type}")
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    add_vocabulary(writer, args.tokenizer)

    def add(name: str, rows: int, cols: int) -> None:
        writer.add_tensor(name, matrices.stored(rows, cols), raw_dtype=TYPES[args.type])

    def add_vector(name: str, mean: float, width: int) -> None:
        writer.add_tensor(name, (mean + 0.1 * random.standard_normal(width)).astype(np.float32))

    add("token_embd.weight", VOCAB, HIDDEN)
    add_vector("output_norm.weight", 1.0, HIDDEN)
    for layer in range(LAYERS):
        add_vector(f"blk.{layer}.attn_norm.weight", 1.0, HIDDEN)
        add_vector(f"blk.{layer}.ffn_norm.weight", 1.0, HIDDEN)
        for part, width in (("q", HIDDEN), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
            add_vector(f"blk.{layer}.attn_{part}.bias", 0.0, width)
        for name, (rows, cols) in layer_shapes(layer).items():
            add(name, rows, cols)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
