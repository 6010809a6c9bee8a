#!/usr/bin/env python3
"""Block-format goldens: random valid blocks and what `gguf.quants` reads out of them.

Writes one safetensors file (default `tests/goldens/blocks.safetensors`) with, for each format F in
q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl mxfp4 f16 bf16:

    F.bytes      uint8 [blocks, bytes per block]   the packed blocks as they lie in a file
    F.values     f32   [blocks, values per block]  their values

for the formats that `gguf.quants` can also write (q4_0 q4_1 q5_0 q5_1 q8_0):

    F.src        f32   [blocks, values per block]
    F.quantized  uint8 [blocks, bytes per block]

and `float8_e4m3fn.bytes` / `.values`: all 256 codes through torch (codes 0x7f and 0xff are NaN; every
other value in the file is finite).

The blocks are random bytes with the half-precision scales overwritten: mostly ordinary ones, in the first
blocks the extremes (+0, -0, the least subnormal, the greatest subnormal, the least normal, the greatest
finite, and each negated). MXFP4's exponent byte runs over 0, 1, 2, 252 and ordinary ones (255 is NaN, 253 and 254 can overflow f32).

`src` rows hold normal draws at several magnitudes, a row of zeros, a constant row, a row with one large
outlier and a row of ties. gguf rounds on f32 as ggml's C does, so `quantized` is to be met bit for bit.

Usage: python tools/goldens/blocks.py [--out FILE]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

BLOCKS = 24
SEED = 20240317

# format -> byte offsets of the half-precision scales inside a block
HALF_SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "MXFP4": [],
}
QUANTIZABLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

# zero, least and greatest subnormal, least normal, one, greatest finite half
EXTREME_HALVES = [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF]
EXTREME_HALVES += [h | 0x8000 for h in EXTREME_HALVES]


def random_blocks(rng: np.random.Generator, name: str) -> np.ndarray:
    """BLOCKS blocks of format `name`, [BLOCKS, bytes per block], with finite scales."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, size=(BLOCKS, size), dtype=np.uint8)
    for turn, offset in enumerate(HALF_SCALES[name]):
        scales = (rng.standard_normal(BLOCKS) * 0.05).astype(np.float16).view(np.uint16)
        # the second scale of a block meets the extremes in another order than the first
        extremes = np.roll(np.array(EXTREME_HALVES, dtype=np.uint16), 5 * turn)
        scales[: len(extremes)] = extremes
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
    if name == "MXFP4":
        exponents = rng.integers(96, 160, size=BLOCKS, dtype=np.uint8)
        exponents[:5] = [0, 1, 2, 127, 252]
        blocks[:, 0] = exponents
    return blocks


def sources(rng: np.random.Generator, width: int) -> np.ndarray:
    """f32 rows [BLOCKS, width] to be quantized."""
    rows = rng.standard_normal((BLOCKS, width)).astype(np.float32)
    rows *= np.float32(10.0) ** rng.integers(-4, 3, size=(BLOCKS, 1)).astype(np.float32)
    rows[0] = 0.0
    rows[1] = 0.75
    rows[2] = -0.75
    rows[3, 7] = 1000.0
    rows[4, 11] = -1000.0
    rows[5] = np.arange(width, dtype=np.float32) - width / 2
    rows[6] = np.where(np.arange(width) % 2 == 0, 1.5, -1.5)
    return rows


def collect() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    out: dict[str, np.ndarray] = {}
    for name in HALF_SCALES:
        blocks = random_blocks(rng, name)
        with np.errstate(over="ignore"):
            values = quants.dequantize(blocks, GGMLQuantizationType[name])
        assert np.isfinite(values).all(), name
        out[f"{name.lower()}.bytes"] = blocks
        out[f"{name.lower()}.values"] = values
    for name in QUANTIZABLE:
        width, _ = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        src = sources(rng, width)
        with np.errstate(divide="ignore", invalid="ignore"):
            packed = quants.quantize(src, GGMLQuantizationType[name])
        out[f"{name.lower()}.src"] = src
        out[f"{name.lower()}.quantized"] = packed

    # f16: every 61st code (a prime, so that all exponents and signs are met), less the infinities and NaNs
    halves = np.arange(0, 65536, 61, dtype=np.uint16)
    halves = np.concatenate([halves, np.array(EXTREME_HALVES, dtype=np.uint16)])
    halves = halves[np.isfinite(halves.view(np.float16))].reshape(-1, 1)
    out["f16.bytes"] = halves.view(np.uint8)
    out["f16.values"] = halves.view(np.float16).astype(np.float32)

    brains = np.arange(0, 65536, 61, dtype=np.uint16)
    values = (brains.astype(np.uint32) << 16).view(np.float32)
    brains = brains[np.isfinite(values)].reshape(-1, 1)
    out["bf16.bytes"] = brains.view(np.uint8)
    out["bf16.values"] = quants.dequantize(out["bf16.bytes"], GGMLQuantizationType.BF16)

    codes = torch.arange(256, dtype=torch.uint8).reshape(-1, 1)
    out["float8_e4m3fn.bytes"] = codes.numpy()
    out["float8_e4m3fn.values"] = codes.view(torch.float8_e4m3fn).to(torch.float32).numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "blocks.safetensors"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    tensors = {name: np.ascontiguousarray(t) for name, t in sorted(collect().items())}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out)
    for name, tensor in tensors.items():
        print(f"{name:24} {str(tensor.dtype):8} {list(tensor.shape)}")


if __name__ == "__main__":
    main()
