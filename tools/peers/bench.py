#!/usr/bin/env python3
"""scrimp bench and llama.cpp's llama-bench in turn on the same files: medians and ratios.

Absolute figures drift on a shared machine, so the two are run alternately, one round each, and the order is
swapped every round; the ratio of medians is the figure to quote. Each run is a process of its own: it loads the
model, warms up, measures prompt processing of P tokens and generation of N tokens (batch 1), and exits.

    python tools/peers/bench.py --llama-cpp ~/llama.cpp model-Q8_0.gguf model-Q4_0.gguf
    python tools/peers/bench.py --llama-cpp ~/llama.cpp --rounds 7 -t 4 -p 1024 -n 256 --json model.gguf

DIR in --llama-cpp is a llama.cpp folder with its build (`build/bin/llama-bench`), or any folder that holds
llama-bench. Building it: `cmake -B build -DGGML_NATIVE=ON -DLLAMA_CURL=OFF && cmake --build build -t llama-bench`.
The fields read from scrimp are `prefill.tokens_per_s`, `decode.tokens_per_s`, `decode.gb_per_s`,
`decode.bandwidth_fraction` and `isa` of `scrimp bench --json`. Peak resident memory is what the kernel
reports for the finished process, of both alike (mapped file pages count in both).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """One process: tokens/s of both phases, and peak resident bytes."""

    prefill: float
    decode: float
    peak_rss: int
    detail: dict


def execute(command: list[str]) -> tuple[str, int]:
    """(stdout, peak resident bytes) of a command; its stderr is shown only if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.exit(f"{' '.join(command)}\nexited with {process.returncode}:\n{again.stderr[-2000:]}")
    return out, usage.ru_maxrss * 1024


def run_scrimp(args: argparse.Namespace, model: Path) -> Run:
    command = [str(args.scrimp), "bench", "--model", str(model), "-p", str(args.prompt), "-n", str(args.generate)]
    out, rss = execute(command + ["--threads", str(args.threads), "--json"])
    report = json.loads(out)
    return Run(report["prefill"]["tokens_per_s"], report["decode"]["tokens_per_s"], rss, report)


def run_llama_bench(args: argparse.Namespace, model: Path) -> Run:
    command = [str(args.llama_bench), "-m", str(model), "-p", str(args.prompt), "-n", str(args.generate)]
    out, rss = execute(command + ["-t", str(args.threads), "-r", "1", "-o", "json"])
    rates = {bool(test["n_prompt"]): test["avg_ts"] for test in json.loads(out)}
    return Run(rates[True], rates[False], rss, {})


def measure(args: argparse.Namespace, model: Path) -> dict:
    engines = [("scrimp", run_scrimp), ("llama.cpp", run_llama_bench)]
    runs: dict[str, list[Run]] = {name: [] for name, _ in engines}
    for turn in range(args.rounds):
        for name, run in engines if turn % 2 == 0 else reversed(engines):
            result = run(args, model)
            runs[name].append(result)
            print(
                f"{model.name} round {turn + 1}/{args.rounds} {name}: prefill {result.prefill:.1f}, "
                f"decode {result.decode:.1f} tokens/s",
                file=sys.stderr,
            )
    row = {"model": model.name, "rounds": args.rounds, "threads": args.threads}
    for name in runs:
        row[name] = {
            "prefill": statistics.median(r.prefill for r in runs[name]),
            "decode": statistics.median(r.decode for r in runs[name]),
            "decode_min": min(r.decode for r in runs[name]),
            "decode_max": max(r.decode for r in runs[name]),
            "peak_rss_bytes": int(statistics.median(r.peak_rss for r in runs[name])),
        }
    ours = [r.detail for r in runs["scrimp"]]
    row["isa"] = ours[0].get("isa")
    row["gb_per_s"] = statistics.median(r["decode"].get("gb_per_s") or 0.0 for r in ours)
    row["bandwidth_fraction"] = statistics.median(r["decode"].get("bandwidth_fraction") or 0.0 for r in ours)
    for phase in ("prefill", "decode"):
        row[f"{phase}_ratio"] = row["scrimp"][phase] / row["llama.cpp"][phase]
    return row


def table(rows: list[dict], args: argparse.Namespace) -> str:
    head = ["model", f"scrimp pp{args.prompt}", "llama.cpp", "ratio", f"scrimp tg{args.generate}", "llama.cpp", "ratio",
            "GB/s", "of memory", "RSS scrimp", "llama.cpp"]
    body = []
    for row in rows:
        s, l = row["scrimp"], row["llama.cpp"]
        body.append([
            row["model"], f"{s['prefill']:.1f}", f"{l['prefill']:.1f}", f"{row['prefill_ratio']:.2f}",
            f"{s['decode']:.1f}", f"{l['decode']:.1f}", f"{row['decode_ratio']:.2f}",
            f"{row['gb_per_s']:.1f}", f"{row['bandwidth_fraction']:.0%}",
            f"{s['peak_rss_bytes'] / 2**20:.0f} MiB", f"{l['peak_rss_bytes'] / 2**20:.0f} MiB",
        ])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for line in [head, *body]:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def find_llama_bench(folder: Path) -> Path:
    for candidate in (folder / "build" / "bin" / "llama-bench", folder / "bin" / "llama-bench", folder / "llama-bench"):
        if candidate.is_file():
            return candidate
    sys.exit(f"no llama-bench in {folder} (looked in build/bin, bin and the folder itself)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files that both can read")
    parser.add_argument("--llama-cpp", required=True, type=Path, metavar="DIR", help="llama.cpp with its build")
    parser.add_argument("--scrimp", type=Path, default=ROOT / "target" / "release" / "scrimp")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="prompt tokens (default 512)")
    parser.add_argument("-n", "--generate", type=int, default=128, help="tokens generated (default 128)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="threads for both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    args = parser.parse_args()
    args.llama_bench = find_llama_bench(args.llama_cpp)
    rows = [measure(args, model) for model in args.models]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"medians of {args.rounds} rounds in turn, {args.threads} threads, tokens/s; scrimp uses {rows[0]['isa']}")
    print(table(rows, args))


if __name__ == "__main__":
    main()
