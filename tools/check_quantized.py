#!/usr/bin/env python3
"""Hold what `scrimp quantize` writes against the compressed-tensors library, and layouts against each other.

Every packed module of a compressed-tensors folder is decompressed by the library and, apart from it, by the
definition in docs/quantization.md (code minus zero point, times the stored scale, rounded to the scale's type);
the two have to be equal bit by bit. AWQ and GPTQ folders are unpacked by their layouts' definitions; given with
the folder they were made beside (same source, scheme, group), their weights have to be equal to each other.

    python tools/check_quantized.py ./model-int4 ./model-int8
    python tools/check_quantized.py ./model-awq ./model-gptq --equal
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors import safe_open

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def load(folder):
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())["quantization_config"]
    return tensors, config


def fields(words, bits):
    """[..., n] int32 to [..., n, 32 / bits] codes, lowest bits first."""
    words = words.numpy().astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & np.uint32(2**bits - 1)).astype(np.int64)


def compressed(tensors, config):
    """Module, weight by definition, weight by the library."""
    from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme(**group)
    bits = group["weights"]["num_bits"]
    for name in tensors:
        if not name.endswith(".weight_scale"):
            continue
        module = name.removesuffix(".weight_scale")
        local = {key.removeprefix(module + "."): value for key, value in tensors.items() if key.startswith(module + ".")}
        scale = local["weight_scale"]
        if "weight_packed" in local:
            rows, cols = local["weight_shape"].tolist()
            codes = fields(local["weight_packed"], bits).reshape(rows, -1)[:, :cols] - 2 ** (bits - 1)
            zeros = np.zeros(scale.shape, np.int64)
            if "weight_zero_point" in local:
                zeros = fields(local["weight_zero_point"], bits) - 2 ** (bits - 1)
                zeros = zeros.transpose(0, 2, 1).reshape(-1, scale.shape[1])[:rows]
            library = PackedQuantizationCompressor.decompress(dict(local), scheme)["weight"]
        else:
            codes = local["weight"].numpy().astype(np.int64)
            rows, cols = codes.shape
            zeros = np.zeros(scale.shape, np.int64)
            library = IntQuantizationCompressor.decompress(dict(local), scheme)["weight"]
        repeat = cols // scale.shape[1]
        steps = torch.from_numpy(codes - zeros.repeat(repeat, 1)).float()
        own = (steps * scale.float().repeat_interleave(repeat, 1)).to(scale.dtype)
        yield module, own, library


def layouts(tensors, config):
    """Module and weight [out, in] of an AWQ or GPTQ folder."""
    awq = config["quant_method"] == "awq"
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        scales = tensors[module + ".scales"].numpy().astype(np.float32)
        zeros = fields(tensors[module + ".qzeros"], 4)
        codes = fields(tensors[name], 4)
        if awq:
            back = np.argsort(AWQ_ORDER)
            codes = codes[..., back].reshape(codes.shape[0], -1)
            zeros = zeros[..., back].reshape(zeros.shape[0], -1)
        else:
            codes = codes.transpose(0, 2, 1).reshape(-1, codes.shape[1])
            zeros = zeros.reshape(zeros.shape[0], -1) + 1
        repeat = codes.shape[0] // scales.shape[0]
        weight = (codes - zeros.repeat(repeat, 0)) * scales.repeat(repeat, 0)
        yield module, torch.from_numpy(weight.T.copy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--equal", action="store_true", help="hold AWQ and GPTQ folders against the first")
    args = parser.parse_args()
    first, bad = None, 0
    for folder in args.folders:
        tensors, config = load(folder)
        if config["quant_method"] == "compressed-tensors":
            modules = list(compressed(tensors, config))
            wrong = [name for name, own, library in modules if not torch.equal(own, library)]
        else:
            weights = dict(layouts(tensors, config))
            modules, first = list(weights), first or weights
            wrong = [name for name in weights if args.equal and not torch.equal(weights[name], first[name])]
        bad += len(wrong) + (not modules)
        print(f"{folder}: {config['quant_method']}, {len(modules)} modules, {len(wrong)} differ {wrong[:3]}")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
