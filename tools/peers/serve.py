#!/usr/bin/env python3
"""Served clients: scrimp serve and llama.cpp's llama-server in turn, 1, 8 and 16 streaming users.

Every user sends R requests one after the other, each a chat of about 110 prompt tokens (no two alike, so that no
cache of prefixes helps) that streams N tokens; the figure is all tokens over the time from the first request to
the last token. Servers are started in turn, warmed up, measured and stopped; medians over rounds.

    python tools/peers/serve.py --llama-cpp ~/llama.cpp model-Q8_0.gguf
    python tools/peers/serve.py --llama-cpp ~/llama.cpp --users 1,8,16 --rounds 3 --json model.gguf

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
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def command(engine: str, model: Path, port: int, args: argparse.Namespace) -> list[str]:
    if engine == "scrimp":
        return [str(args.scrimp), "serve", "--model", str(model), "--port", str(port), "--threads", str(args.threads),
                "--max-num-seqs", str(args.slots),
                "--served-model-name", "any", *args.scrimp_args.split()]
    return [str(args.llama_server), "-m", str(model), "--port", str(port), "-t", str(args.threads),
            "-np", str(args.slots), "-c", str(args.slots * 1024), *args.llama_args.split()]


def wait_until_ready(port: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit(f"{process.args} exited with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit("the server was not ready within a minute")


def serve(engine: str, model: Path, args: argparse.Namespace, salt: int) -> dict:
    """Starts an engine, measures every number of users, stops it."""
    process = subprocess.Popen(
        command(engine, model, args.port, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_ready(args.port, process)
        asyncio.run(ask(args.port, "Hello.", 8))
        figures = {users: asyncio.run(load(args.port, users, args, salt)) for users in args.users}
        return {"users": figures, "peak_rss_bytes": resident_bytes(process.pid)}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(model: Path, args: argparse.Namespace) -> dict:
    engines = ["scrimp", "llama-server"]
    runs: dict[str, list[dict]] = {engine: [] for engine in engines}
    for turn in range(args.rounds):
        for engine in engines if turn % 2 == 0 else reversed(engines):
            run = serve(engine, model, args, turn)
            runs[engine].append(run)
            rates = ", ".join(f"{users}: {f['tokens_per_s']:.1f}" for users, f in run["users"].items())
            print(f"{model.name} round {turn + 1}/{args.rounds} {engine}: tokens/s by users {rates}", file=sys.stderr)
    rows = []
    for users in args.users:
        row = {"model": model.name, "users": users}
        for engine in engines:
            figures = [run["users"][users] for run in runs[engine]]
            row[engine] = {key: statistics.median(f[key] for f in figures) for key in figures[0]}
            row[engine]["peak_rss_bytes"] = int(statistics.median(r["peak_rss_bytes"] for r in runs[engine]))
        row["ratio"] = row["scrimp"]["tokens_per_s"] / row["llama-server"]["tokens_per_s"]
        rows.append(row)
    return {"model": model.name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files that both can read")
    parser.add_argument("--llama-cpp", required=True, type=Path, metavar="DIR", help="llama.cpp with its build")
    parser.add_argument("--scrimp", type=Path, default=ROOT / "target" / "release" / "scrimp")
    parser.add_argument("--users", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 16])
    parser.add_argument("--requests", type=int, default=2, help="of each user (default 2)")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--slots", type=int, default=16, help="sequences at a time, 1024 tokens each (default 16)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="threads for both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18480)
    parser.add_argument("--scrimp-args", default="", help="more of scrimp serve's options")
    parser.add_argument("--llama-args", default="", help="more of llama-server's options")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    args = parser.parse_args()
    args.llama_server = find_llama_tool(args.llama_cpp, "llama-server")
    results = [measure(model, args) for model in args.models]
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(f"medians of {args.rounds} rounds in turn, {args.threads} threads, {args.tokens} tokens an answer, tokens/s")
    for result in results:
        print(result["model"])
        for row in result["rows"]:
            s, l = row["scrimp"], row["llama-server"]
            print(
                f"  {row['users']:3} users ({s['prompt_tokens']:.0f} prompt tokens): scrimp {s['tokens_per_s']:.1f}, "
                f"llama-server {l['tokens_per_s']:.1f}, ratio {row['ratio']:.2f}; first token after "
                f"{s['ttft_s'] * 1e3:.0f} and {l['ttft_s'] * 1e3:.0f} ms; peak resident "
                f"{s['peak_rss_bytes'] / 2**20:.0f} and {l['peak_rss_bytes'] / 2**20:.0f} MiB"
            )


if __name__ == "__main__":
    main()
