#!/usr/bin/env python3
"""scrimp bench and llama.cpp's llama-bench in turn on the same files: medians and ratios.

Absolute figures drift on a shared machine, so the two are run alternately, one round each, and the order is
swapped every round; the ratio of medians is the figure to quote. Each run is a process of its own: it loads the
model, warms up, measures prompt processing of P tokens and generation of N tokens (batch 1), and exits. With
--context further processes generate at that depth (llama.cpp with flash attention on), and with --batch B scrimp
generates for B sequences at a time, to be compared with itself at one (llama-bench has no such test).

    python tools/peers/bench.py --llama-cpp ~/llama.cpp model-Q8_0.gguf model-Q4_0.gguf
    python tools/peers/bench.py --llama-cpp ~/llama.cpp --rounds 7 -t 4 --context 6000 --batch 8 --json model.gguf
    python tools/peers/bench.py --llama-cpp ~/llama.cpp --build llama_cpp_python-0.3.36.tar.gz model.gguf

DIR in --llama-cpp is a llama.cpp folder with its build (`build/bin/llama-bench`), or any folder that holds
llama-bench. With --build it is made there from the source archive of PyPI's llama-cpp-python (`pip download
--no-deps --no-binary :all: --no-build-isolation llama-cpp-python`, which needs scikit-build-core) by cmake, in
about ten minutes. The fields read from scrimp are `prefill.tokens_per_s`, `decode.tokens_per_s`, `decode.gb_per_s`,
`decode.bandwidth_fraction` and `isa` of `scrimp bench --json`. Peak resident memory is what the kernel reports for
the finished process, of both alike (mapped file pages count in both).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("llama-bench", "llama-server", "llama-quantize", "llama-perplexity")
CMAKE = ("-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
         "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_UI=OFF")


def find_llama_tool(folder: Path, name: str) -> Path:
    for candidate in (folder / "build" / "bin" / name, folder / "bin" / name, folder / name):
        if candidate.is_file():
            return candidate
    sys.exit(f"no {name} in {folder} (looked in build/bin, bin and the folder itself); --build makes it")


def build_llama_cpp(archive: Path, folder: Path) -> None:
    """Unpacks vendor/llama.cpp of the archive into the folder and builds the tools in it."""
    if not (folder / "CMakeLists.txt").is_file():
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                _, inside, path = member.name.partition("/vendor/llama.cpp/")
                if inside and path:
                    member.name = path
                    tar.extract(member, folder, filter="data")
    subprocess.run(["cmake", "-S", folder, "-B", folder / "build", *CMAKE], check=True)
    targets = [word for tool in TOOLS for word in ("-t", tool)]
    subprocess.run(["cmake", "--build", folder / "build", "-j", str(os.cpu_count()), *targets], check=True)


@dataclass
class Test:
    """What one process measures."""

    prompt: int = 0
    generate: int = 0
    context: int = 0
    batch: int = 1

    def names(self) -> list[str]:
        names = [f"pp{self.prompt}"] if self.prompt else []
        depth = f"@{self.context}" if self.context else ""
        batch = f"x{self.batch}" if self.batch > 1 else ""
        return names + [f"tg{self.generate}{batch}{depth}"]


@dataclass
class Run:
    """One process: tokens/s by the names of its test, and peak resident bytes."""

    rates: dict[str, float]
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


def run_scrimp(args: argparse.Namespace, model: Path, test: Test) -> Run:
    command = [str(args.scrimp), "bench", "--model", str(model), "-p", str(test.prompt), "-n", str(test.generate),
               "--context", str(test.context), "--batch", str(test.batch), "--threads", str(args.threads), "--json"]
    if args.cpu_level:
        command += ["--cpu-level", args.cpu_level]
    out, rss = execute(command + ["--repetitions", str(args.repetitions)])
    report = json.loads(out)
    parts = [report[part]["tokens_per_s"] for part in ("prefill", "decode") if report[part]]
    return Run(dict(zip(test.names(), parts, strict=True)), rss, report)


def run_llama_bench(args: argparse.Namespace, model: Path, test: Test) -> Run:
    command = [str(args.llama_bench), "-m", str(model), "-p", str(test.prompt), "-n", str(test.generate)]
    command += ["-d", str(test.context), "-fa", "1"] if test.context else []
    out, rss = execute(command + ["-t", str(args.threads), "-r", str(args.repetitions), "-o", "json"])
    parts = sorted(json.loads(out), key=lambda t: -t["n_prompt"])
    return Run(dict(zip(test.names(), (t["avg_ts"] for t in parts), strict=True)), rss, {})


def measure(args: argparse.Namespace, model: Path) -> dict:
    first = Test(args.prompt, args.generate)
    both = [first] + [Test(generate=args.generate_deep, context=c) for c in args.context]
    ours = [Test(generate=args.generate, batch=b) for b in args.batch]
    engines = [("scrimp", run_scrimp, both + ours), ("llama.cpp", run_llama_bench, both)]
    rates: dict[str, dict[str, list[float]]] = {name: {} for name, _, _ in engines}
    peaks: dict[str, list[int]] = {name: [] for name, _, _ in engines}
    details = []
    for turn in range(args.rounds):
        for name, run, tests in engines if turn % 2 == 0 else reversed(engines):
            for test in tests:
                result = run(args, model, test)
                for what, rate in result.rates.items():
                    rates[name].setdefault(what, []).append(rate)
                if test is first:
                    peaks[name].append(result.peak_rss)
                    details += [result.detail] if result.detail else []
                shown = ", ".join(f"{what} {rate:.1f}" for what, rate in result.rates.items())
                print(f"{model.name} round {turn + 1}/{args.rounds} {name}: {shown}", file=sys.stderr)
    row = {"model": model.name, "rounds": args.rounds, "threads": args.threads, "isa": details[0].get("isa")}
    decodes = [d["decode"] for d in details]
    row["gb_per_s"] = statistics.median(d.get("gb_per_s") or 0.0 for d in decodes)
    row["bandwidth_fraction"] = statistics.median(d.get("bandwidth_fraction") or 0.0 for d in decodes)
    row["peak_rss_bytes"] = {name: int(statistics.median(peaks[name])) for name in peaks}
    row["tests"] = {}
    for what, samples in rates["scrimp"].items():
        theirs = rates["llama.cpp"].get(what)
        alone = statistics.median(rates["scrimp"][first.names()[-1]])
        median = statistics.median(samples)
        row["tests"][what] = {
            "scrimp": median,
            "llama.cpp": statistics.median(theirs) if theirs else None,
            "ratio": median / statistics.median(theirs) if theirs else None,
            "times_one": None if theirs else median / alone,
            "samples": samples,
        }
    return row


def table(rows: list[dict]) -> str:
    head = ["model", "test", "scrimp", "llama.cpp", "ratio", "", "RSS scrimp", "llama.cpp"]
    body = []
    for row in rows:
        rss = row["peak_rss_bytes"]
        for i, (what, test) in enumerate(row["tests"].items()):
            theirs, ratio = test["llama.cpp"], test["ratio"]
            note = f"{test['times_one']:.2f} times one" if test["times_one"] else ""
            if what.startswith("tg") and not note and "@" not in what:
                note = f"{row['gb_per_s']:.1f} GB/s, {row['bandwidth_fraction']:.0%} of memory read"
            body.append([
                row["model"] if i == 0 else "", what, f"{test['scrimp']:.1f}",
                f"{theirs:.1f}" if theirs else "", f"{ratio:.2f}" if ratio else "", note,
                *([f"{rss[e] / 2**20:.0f} MiB" for e in ("scrimp", "llama.cpp")] if i == 0 else ["", ""]),
            ])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for line in [head, *body]:
        cells = [cell.ljust(w) if i in (0, 1, 5) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files that both can read")
    parser.add_argument("--llama-cpp", required=True, type=Path, metavar="DIR", help="llama.cpp with its build")
    parser.add_argument("--build", type=Path, metavar="ARCHIVE", help="build it there first, from this source archive")
    parser.add_argument("--scrimp", type=Path, default=ROOT / "target" / "release" / "scrimp")
    parser.add_argument("--cpu-level", help="instruction set of scrimp's (llama.cpp keeps its own)")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="prompt tokens (default 512)")
    parser.add_argument("-n", "--generate", type=int, default=128, help="tokens generated (default 128)")
    parser.add_argument("--context", type=numbers, default=[], metavar="N,…", help="generate at these depths too")
    parser.add_argument("--generate-deep", type=int, default=32, help="tokens generated there (default 32)")
    parser.add_argument("--batch", type=numbers, default=[], metavar="B,…", help="generate for so many sequences too")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="threads for both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=1, help="within a process (default 1)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    args = parser.parse_args()
    if args.build:
        build_llama_cpp(args.build, args.llama_cpp)
    args.llama_bench = find_llama_tool(args.llama_cpp, "llama-bench")
    rows = [measure(args, model) for model in args.models]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"medians of {args.rounds} rounds in turn, {args.threads} threads, tokens/s; scrimp uses {rows[0]['isa']}")
    print(table(rows))


if __name__ == "__main__":
    main()
