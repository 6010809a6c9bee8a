#!/usr/bin/env python3
"""Quantize one model by llmcompressor and by scrimp, and compare what comes out: error, time, memory.

Both get the same calibration sequences (the same tokens of one text) and the same schemes, and both write
compressed-tensors folders. Each is made in a process of its own, whose wall time and peak resident memory are
the system's. What they wrote is decompressed by the compressed-tensors library and run by transformers in
float32, all on the same windows of another text: KL divergence to the source's distributions, and how often the
likeliest token is the same.

Wants llmcompressor (0.14 here), transformers, compressed-tensors, datasets and torch. llmcompressor's AWQ pins
memory, which without an accelerator torch refuses: that is made to do nothing.

    # the source: a BF16 folder out of a GGUF file
    python tools/peers/quantize.py source SmolLM2-135M-Instruct-BF16.gguf ./bf16
    # make, evaluate, print the table; what --work has already is not made again
    python tools/peers/quantize.py table ./bf16 --scrimp target/release/scrimp --work ./out \\
        --calibration one-book.txt --evaluation another-book.txt
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

# Name: scheme, asymmetric. Both makers know all but the last two rows.
SCHEMES = {
    "rtn": ("rtn", False),
    "rtn-asym": ("rtn", True),
    "gptq": ("gptq", False),
    "gptq-asym": ("gptq", True),
    "awq": ("awq", False),
    "awq-asym": ("awq", True),
    "int8": ("int8", False),
    "awq-gptq": ("awq-gptq", False),
    "awq-gptq-asym": ("awq-gptq", True),
}
COMBINED = ("awq-gptq", "awq-gptq-asym")


def source(args):
    """A GGUF file's weights as a BF16 folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = pathlib.Path(args.gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(args.out)


def windows(tokenizer, path, count, length):
    """`count` sequences of `length` tokens, evenly spread over a text."""
    tokens = tokenizer(pathlib.Path(path).read_text(errors="replace"), add_special_tokens=False).input_ids
    pieces = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
    count = min(count, len(pieces))
    return [pieces[i * len(pieces) // count] for i in range(count)]


def peer(args):
    """One scheme by llmcompressor."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.Tensor.pin_memory = lambda self, *rest, **named: self
    kind, asymmetric = SCHEMES[args.scheme]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    weights = {"num_bits": 8, "strategy": "channel", "symmetric": True}
    if kind != "int8":
        weights = {"num_bits": 4, "strategy": "group", "group_size": args.group_size, "symmetric": not asymmetric}
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))}
    common = {"config_groups": groups, "ignore": ["lm_head"]}
    recipe = {
        "gptq": lambda: [GPTQModifier(**common)],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**common)],
    }.get(kind, lambda: [QuantizationModifier(**common)])()
    data = {}
    if kind in ("gptq", "awq"):
        texts = windows(tokenizer, args.calibration, args.samples, args.seqlen)
        rows = [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]
        data = {
            "dataset": Dataset.from_list(rows),
            "max_seq_length": args.seqlen,
            "num_calibration_samples": len(rows),
        }
    began = time.time()
    oneshot(model=model, recipe=recipe, **data)
    print(f"oneshot took {time.time() - began:.1f} s")
    model.save_pretrained(args.out, save_compressed=True)
    tokenizer.save_pretrained(args.out)


def spread(args):
    """A text of just the tokens that both calibrate on, taken from all over a longer one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = tokenizer.decode(sum(windows(tokenizer, args.calibration, args.samples, args.seqlen), []))
    pathlib.Path(args.out).write_text(text)


def own_command(args, name, out):
    kind, asymmetric = SCHEMES[name]
    scheme = "int8" if kind == "int8" else f"int4-{kind}"
    command = [args.scrimp, "quantize", args.model, "-o", out, "--scheme", scheme, "--json"]
    if kind != "int8":
        command += ["--group-size", str(args.group_size)]
    if asymmetric:
        command.append("--asymmetric")
    if kind not in ("rtn", "int8"):
        command += ["--calibration", args.calibration, "--samples", str(args.samples), "--seqlen", str(args.seqlen)]
    return command


def calibrated(args, *command):
    """A command of this script that reads the calibration as this one does."""
    values = {"group-size": args.group_size, "calibration": args.calibration, "samples": args.samples}
    values["seqlen"] = args.seqlen
    return [sys.executable, __file__, *command, *(f"--{key}={value}" for key, value in values.items())]


def peer_command(args, name, out):
    return calibrated(args, "peer", args.model, name, str(out))


def make(args, maker, name):
    """Runs one of them; wall seconds and peak bytes, kept beside the folder for the next time."""
    out = pathlib.Path(args.work) / f"{maker}-{name}"
    kept = out.with_suffix(".json")
    if kept.exists():
        return json.loads(kept.read_text())
    shutil.rmtree(out, ignore_errors=True)
    command = (own_command if maker == "scrimp" else peer_command)(args, name, out)
    with open(out.with_suffix(".log"), "w") as log:
        began = time.time()
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.time() - began
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed: see {out.with_suffix('.log')}")
    files = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    made = {"seconds": seconds, "peak": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime, "bytes": files}
    kept.write_text(json.dumps(made))
    return made


def load(folder):
    """A model in float32, its weights decompressed by compressed-tensors."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    named = {}
    if "quantization_config" in config:
        named["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named).eval().float()


def evaluate(args):
    """Mean, median, 99th percentile of the KL divergence and top-1 agreement of each folder."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = windows(tokenizer, args.evaluation, args.windows, args.window)
    reference = load(args.model)
    models = {folder: load(folder) for folder in args.folders}
    losses = {folder: ([], []) for folder in models}
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([text])
            wanted = torch.log_softmax(reference(ids).logits[0], -1)
            for folder, model in models.items():
                got = torch.log_softmax(model(ids).logits[0], -1)
                losses[folder][0].append((wanted.exp() * (wanted - got)).sum(-1))
                losses[folder][1].append((wanted.argmax(-1) == got.argmax(-1)).float())
    for folder, (divergences, agreed) in losses.items():
        divergence = torch.cat(divergences).double()
        result = {
            "mean": divergence.mean().item(),
            "median": divergence.median().item(),
            "p99": divergence.quantile(0.99).item(),
            "top1": torch.cat(agreed).mean().item(),
            "tokens": len(divergence),
        }
        pathlib.Path(folder + ".kl.json").write_text(json.dumps(result))


def table(args):
    pathlib.Path(args.work).mkdir(parents=True, exist_ok=True)
    # By a process of its own, as all that loads a library is: the system counts what a parent holds when it
    # starts a process in that one's peak.
    text = pathlib.Path(args.work) / "calibration.txt"
    subprocess.run(calibrated(args, "spread", args.model, str(text)), check=True)
    args.calibration = text
    names = args.only.split(",") if args.only else list(SCHEMES)
    pairs = [(maker, name) for name in names for maker in args.makers.split(",")]
    pairs = [(maker, name) for maker, name in pairs if maker == "scrimp" or name not in COMBINED]
    made = {(maker, name): make(args, maker, name) for maker, name in pairs}
    folders = {pair: str(pathlib.Path(args.work) / "-".join(pair)) for pair in pairs}
    missing = [folder for folder in folders.values() if not pathlib.Path(folder + ".kl.json").exists()]
    # A handful at a time: each is in memory in float32.
    for first in range(0, len(missing), args.at_once):
        command = [sys.executable, __file__, "evaluate", args.model, args.evaluation, *missing[first:][: args.at_once]]
        command += [f"--windows={args.windows}", f"--window={args.window}"]
        subprocess.run([str(part) for part in command], check=True)
    print("scheme          maker           mean KL  median     p99  top-1       s     CPU s  peak MiB  MiB")
    for (maker, name), how in made.items():
        kl = json.loads(pathlib.Path(folders[maker, name] + ".kl.json").read_text())
        how = how | kl
        print(
            f"{name:15} {maker:14} {how['mean']:8.4f} {how['median']:7.4f} {how['p99']:7.3f} {how['top1']:6.1%}"
            f" {how['seconds']:7.1f} {how['cpu']:9.1f} {how['peak'] / 2**20:9.0f} {how['bytes'] / 2**20:4.0f}"
        )
        made[maker, name] = how
    for name in names:
        both = [made.get((maker, name)) for maker in ("scrimp", "llmcompressor")]
        if all(both):
            ratio = {key: both[0][key] / both[1][key] for key in ("mean", "seconds", "peak")}
            print(f"{name:15} ours / theirs: KL {ratio['mean']:.2f}, time {ratio['seconds']:.2f}, memory {ratio['peak']:.2f}")
    four = {maker: [how["mean"] for (by, name), how in made.items() if by == maker and name != "int8"] for maker, _ in pairs}
    best = {maker: min(means, default=math.nan) for maker, means in four.items()}
    if len(best) == 2:
        print(f"best of 4 bits: ours {best['scrimp']:.4f}, theirs {best['llmcompressor']:.4f},"
              f" ratio {best['scrimp'] / best['llmcompressor']:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("source", help="a BF16 folder out of a GGUF file")
    one.add_argument("gguf")
    one.add_argument("out")
    one.set_defaults(run=source)
    one = commands.add_parser("peer", help="one scheme by llmcompressor")
    one.add_argument("model")
    one.add_argument("scheme", choices=[name for name in SCHEMES if name not in COMBINED])
    one.add_argument("out")
    one.set_defaults(run=peer)
    cut = commands.add_parser("spread", help="a text of just the tokens that both calibrate on")
    cut.add_argument("model")
    cut.add_argument("out")
    cut.set_defaults(run=spread)
    two = commands.add_parser("table", help="all of them, and the table")
    two.add_argument("model")
    two.add_argument("--scrimp", required=True, help="the program")
    two.add_argument("--work", required=True, help="folder for what is made")
    two.add_argument("--evaluation", required=True, help="a text that nothing was calibrated on")
    two.add_argument("--only", help="schemes, by commas")
    two.add_argument("--makers", default="llmcompressor,scrimp")
    two.add_argument("--at-once", type=int, default=6, help="models in memory while evaluating")
    two.set_defaults(run=table)
    three = commands.add_parser("evaluate", help="compare folders with the source")
    three.add_argument("model")
    three.add_argument("evaluation")
    three.add_argument("folders", nargs="+")
    three.set_defaults(run=evaluate)
    for each in (one, cut, two):
        each.add_argument("--calibration", required=True, help="a text")
        each.add_argument("--group-size", type=int, default=64)
        each.add_argument("--samples", type=int, default=64)
        each.add_argument("--seqlen", type=int, default=512)
    for each in (two, three):
        each.add_argument("--windows", type=int, default=64)
        each.add_argument("--window", type=int, default=512)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
