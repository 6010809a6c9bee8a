#!/usr/bin/env python3
"""The real `openai` client against a running scrimp server: does everything that a client relies on hold?

Checks, one line each, and exits with 1 if any fails. Start a server first, for instance

    scrimp serve --model SmolLM2-135M-Instruct.Q4_1.gguf --port 8000
    python tools/openai_client.py --base-url http://127.0.0.1:8000/v1

and a reasoning model (`--reasoning` adds what only a model that thinks can show), with a key:

    scrimp serve --model tests/goldens/deepseek_v3 --api-key secret
    python tools/openai_client.py --base-url http://127.0.0.1:8000/v1 --api-key secret --reasoning

Many clients on a pool far too small for them. All requests are made at once, then each alone, and must give
the same text; afterwards no block may be in use. `--expect-preemptions` also wants the counter to have risen.

    scrimp serve --model SmolLM2-135M-Instruct.Q4_1.gguf --num-blocks 60 --expected-output-tokens 8
    python tools/openai_client.py --base-url http://127.0.0.1:8000/v1 --clients 32 --expect-preemptions

Needs the PyPI package `openai`; nothing of scrimp's own.
"""

import argparse
import asyncio
import json
import re
import sys
import time
import traceback
import urllib.error
import urllib.request
from typing import Any, Callable

import openai

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow, and say which one you like."}]
LONG = [{"role": "user", "content": "Count with me: " + ", ".join(str(i) for i in range(1, 60)) + ". Go on."}]
CHECKS: list[tuple[Callable, str]] = []


def check(when: str = "always") -> Callable:
    """Register a check; `when` names the flag without which it is left out."""

    def register(function: Callable) -> Callable:
        CHECKS.append((function, when))
        return function

    return register


class Server:
    """A client of the server under test, and what the checks share."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.root = re.sub(r"/v1/?$", "", args.base_url)
        self.key = args.api_key or "none"
        self.client = openai.OpenAI(base_url=args.base_url, api_key=self.key, max_retries=0, timeout=args.timeout)
        self.model = args.model or self.client.models.list().data[0].id

    def chat(self, messages: list | None = None, **options: Any) -> Any:
        options.setdefault("max_tokens", 24)
        options.setdefault("temperature", 0)
        return self.client.chat.completions.create(model=self.model, messages=messages or QUESTION, **options)

    def complete(self, prompt: Any, **options: Any) -> Any:
        options.setdefault("max_tokens", 24)
        options.setdefault("temperature", 0)
        return self.client.completions.create(model=self.model, prompt=prompt, **options)

    def fetch(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """(status, body) of a plain GET, or of a POST of `body`, where the client has no method for it."""
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        request = urllib.request.Request(self.root + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.args.timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, **fields: Any) -> dict:
        status, text = self.fetch(path, json.dumps(fields).encode())
        assert status == 200, f"{path}: {status} {text[:300]}"
        return json.loads(text)

    def tokenize(self, text: str) -> list[int]:
        return self.post("/tokenize", model=self.model, prompt=text, add_special_tokens=False)["tokens"]

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, summed over its labels."""
        status, text = self.fetch("/metrics")
        assert status == 200, f"/metrics: {status} {text[:300]}"
        values: dict[str, float] = {}
        for line in text.splitlines():
            if sample := re.match(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)", line):
                values[sample[1]] = values.get(sample[1], 0.0) + float(sample[2])
        return values

    def idle(self) -> dict[str, float]:
        """/metrics once nothing runs or waits and no block is in use; fails after 10 seconds."""
        for _ in range(100):
            m = self.metrics()
            busy = [m["scrimp:num_requests_running"], m["scrimp:num_requests_waiting"], m["scrimp:kv_cache_usage_perc"]]
            if not any(busy):
                return m
            time.sleep(0.1)
        raise AssertionError(f"not idle after 10 s: running, waiting, cache usage = {busy}")


def thinking(message: Any) -> str:
    """Reasoning of a message or delta; both spellings must agree."""
    content, plain = getattr(message, "reasoning_content", None), getattr(message, "reasoning", None)
    assert content == plain, f"reasoning_content {content!r} but reasoning {plain!r}"
    return content or ""


def collect(stream: Any) -> dict:
    """A stream put together: reasoning, content, finish_reason, usage, and the number of chunks with text."""
    got = {"reasoning": "", "content": "", "finish_reason": None, "usage": None, "role": None, "pieces": 0}
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage is not None:
            got["usage"] = chunk.usage
        for choice in chunk.choices:
            assert got["finish_reason"] is None, "text after the finish_reason"
            delta = choice.delta
            got["role"] = got["role"] or delta.role
            got["reasoning"] += thinking(delta)
            got["content"] += delta.content or ""
            got["pieces"] += bool(delta.content or thinking(delta))
            got["finish_reason"] = choice.finish_reason
    return got


def refused(kind: type, act: Callable, param: str | None = None) -> None:
    """`act` raises exactly openai's error `kind`, with the four fields of OpenAI's error object."""
    try:
        act()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert isinstance(error.body, dict) and error.body.get("message"), f"no message in {error.body!r}"
        assert error.body.get("type"), f"no type in {error.body!r}"
        assert {"param", "code"} <= error.body.keys(), f"param and code must be there: {error.body!r}"
        if param:
            assert error.body["param"] == param, f"param is {error.body['param']!r}, not {param!r}"
        return
    raise AssertionError(f"no error; {kind.__name__} was due")


@check()
def models(s: Server) -> None:
    ids = [m.id for m in s.client.models.list().data]
    assert s.model in ids, ids
    assert s.client.models.retrieve(s.model).id == s.model


@check()
def health(s: Server) -> None:
    assert s.fetch("/health")[0] == 200


@check()
def chat(s: Server) -> None:
    answer = s.chat()
    choice, usage = answer.choices[0], answer.usage
    assert answer.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.message.content or thinking(choice.message)
    assert choice.finish_reason in ("stop", "length")
    assert 0 < usage.completion_tokens <= 24 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert choice.finish_reason == "stop" or usage.completion_tokens == 24


@check()
def stream_equals_whole(s: Server) -> None:
    whole = s.chat(max_tokens=40)
    parts = collect(s.chat(max_tokens=40, stream=True, stream_options={"include_usage": True}))
    message = whole.choices[0].message
    assert parts["role"] == "assistant"
    assert parts["content"] == (message.content or ""), (parts["content"], message.content)
    assert parts["reasoning"] == thinking(message), (parts["reasoning"], thinking(message))
    assert parts["finish_reason"] == whole.choices[0].finish_reason
    assert parts["usage"].completion_tokens == whole.usage.completion_tokens
    assert parts["pieces"] > 1, "the answer came in one piece"


@check()
def no_usage_unless_asked(s: Server) -> None:
    assert collect(s.chat(stream=True))["usage"] is None


@check()
def greedy_repeats(s: Server) -> None:
    first, second = s.chat(), s.chat()
    assert first.choices[0].message.content == second.choices[0].message.content


@check()
def seed(s: Server) -> None:
    def text(seed: int) -> str:
        return s.complete("Once upon a time", temperature=1.0, seed=seed, max_tokens=32).choices[0].text

    assert text(7) == text(7), "the same seed gave two texts"
    assert len({text(seed) for seed in (7, 8, 9)}) > 1, "three seeds gave one text"


@check()
def several_choices(s: Server) -> None:
    answer = s.chat(n=3, temperature=1.0, seed=3, max_tokens=16)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({(c.message.content, thinking(c.message)) for c in answer.choices}) > 1, "three equal choices"
    assert answer.usage.completion_tokens > 16, "usage must count all choices"


@check()
def several_choices_streamed(s: Server) -> None:
    seen: dict[int, str] = {}
    for chunk in s.chat(n=2, temperature=1.0, seed=3, max_tokens=8, stream=True):
        for choice in chunk.choices:
            seen[choice.index] = seen.get(choice.index, "") + (choice.delta.content or "") + thinking(choice.delta)
    assert sorted(seen) == [0, 1], sorted(seen)


@check()
def logprobs(s: Server) -> None:
    answer = s.chat(logprobs=True, top_logprobs=5)
    items, usage = answer.choices[0].logprobs.content, answer.usage
    assert usage.completion_tokens - 1 <= len(items) <= usage.completion_tokens, (len(items), usage)
    for item in items:
        assert item.logprob <= 0 and len(item.top_logprobs) == 5
        best = [t.logprob for t in item.top_logprobs]
        assert best == sorted(best, reverse=True), "top_logprobs out of order"
        assert abs(best[0] - item.logprob) < 1e-5, "a greedy token is not the likeliest"
        assert item.bytes is not None


@check()
def logprobs_of_completions(s: Server) -> None:
    choice = s.complete("The sky is", logprobs=3, max_tokens=6).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert found.tokens and all(p <= 0 for p in found.token_logprobs)


@check()
def stop_string(s: Server) -> None:
    for attempt in range(20):
        options = {"temperature": 0.8, "seed": attempt, "max_tokens": 48}
        text = s.complete("My favourite story begins like this:", **options).choices[0].text
        starts = [i for i in range(4, len(text) - 3) if "\ufffd" not in text[i : i + 3] and text.find(text[i : i + 3]) == i]
        if not starts:
            continue
        stop = text[starts[0] : starts[0] + 3]
        cut = s.complete("My favourite story begins like this:", stop=[stop, "never in it"], **options).choices[0]
        assert cut.finish_reason == "stop", cut
        assert cut.text == text[: starts[0]], (cut.text, text, stop)
        return
    raise AssertionError("no seed gave a text to stop in")


@check()
def logit_bias(s: Server) -> None:
    text = s.complete("x", logit_bias={str(s.tokenize("a")[0]): 100}, max_tokens=5).choices[0].text
    assert text == "aaaaa", text


@check()
def completions_of_lists_and_ids(s: Server) -> None:
    ids = s.post("/tokenize", model=s.model, prompt="The sea")["tokens"]
    several = s.complete(["The sea", "A hill"], max_tokens=6)
    assert [c.index for c in several.choices] == [0, 1]
    alone = s.complete("The sea", max_tokens=6).choices[0].text
    assert several.choices[0].text == alone == s.complete(ids, max_tokens=6).choices[0].text


@check()
def tokenize_round_trip(s: Server) -> None:
    text = "Grüße, 'tis 12345 ≠ 🦀\n\n  done"
    back = s.post("/detokenize", model=s.model, tokens=s.tokenize(text))["prompt"]
    assert back == text, back


@check()
def cached_tokens(s: Server) -> None:
    s.chat(LONG, max_tokens=4)
    usage = s.chat(LONG, max_tokens=4).usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < usage.prompt_tokens, usage


@check()
def max_tokens_ends_with_length(s: Server) -> None:
    answer = s.chat(max_tokens=3, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    newer = s.chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=2, extra_body={"ignore_eos": True})
    assert newer.usage.completion_tokens == 2


@check()
def bad_requests(s: Server) -> None:
    bad = openai.BadRequestError
    refused(bad, lambda: s.chat(temperature=-1), "temperature")
    refused(bad, lambda: s.chat(top_p=1.5), "top_p")
    refused(bad, lambda: s.chat(n=0), "n")
    refused(bad, lambda: s.chat(max_tokens=-5))
    refused(bad, lambda: s.chat(logprobs=True, top_logprobs=99), "top_logprobs")
    refused(bad, lambda: s.chat([{"role": "wizard", "content": "hi"}]))
    refused(bad, lambda: s.chat(messages="hello"))
    refused(bad, lambda: s.client.chat.completions.create(model=s.model, messages=[]), "messages")
    refused(bad, lambda: s.complete("word " * 2_000_000))
    refused(bad, lambda: s.chat(extra_body={"temperature": "hot"}))


@check()
def unknown_model_and_path(s: Server) -> None:
    missing = openai.NotFoundError
    refused(missing, lambda: s.client.chat.completions.create(model="no-such-model", messages=QUESTION), "model")
    refused(missing, lambda: s.client.models.retrieve("no-such-model"))
    refused(missing, lambda: s.client.embeddings.create(model=s.model, input="x", encoding_format="float"))


@check()
def broken_bodies(s: Server) -> None:
    for body in (b"", b"{", b"[]", b'{"messages": [], "temperature": NaN}', b"\xff\xfe", b"[" * 100_000):
        status, text = s.fetch("/v1/chat/completions", body)
        assert status == 400, (body[:40], status, text[:200])
        assert json.loads(text)["error"]["message"], body[:40]


@check("api_key")
def api_key(s: Server) -> None:
    other = openai.OpenAI(base_url=s.args.base_url, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, lambda: other.chat.completions.create(model=s.model, messages=QUESTION))
    refused(openai.AuthenticationError, lambda: other.models.list())


@check("reasoning")
def reasoning_apart_from_answer(s: Server) -> None:
    options = {"max_tokens": 48, "extra_body": {"thinking_token_budget": 12, "ignore_eos": True}}
    answer = s.chat(**options)
    message, usage = answer.choices[0].message, answer.usage
    assert thinking(message), "no reasoning"
    assert message.content, "the budget closed the chain, so an answer must follow"
    for text in (thinking(message), message.content):
        assert "think>" not in text, f"a marker leaked: {text!r}"
    spent = usage.completion_tokens_details.reasoning_tokens
    # the closing marker may be counted with the chain
    assert 0 < spent <= 13 and spent < usage.completion_tokens == 48, usage
    parts = collect(s.chat(stream=True, stream_options={"include_usage": True}, **options))
    assert parts["reasoning"] == thinking(message) and parts["content"] == message.content
    assert parts["usage"].completion_tokens_details.reasoning_tokens == spent


@check("reasoning")
def chain_cut_short(s: Server) -> None:
    answer = s.chat(max_tokens=6, extra_body={"thinking_token_budget": 500, "ignore_eos": True})
    usage = answer.usage
    assert answer.choices[0].finish_reason == "length" and usage.completion_tokens == 6
    assert thinking(answer.choices[0].message), "a cut chain is reasoning"


@check()
def hang_up_frees_blocks(s: Server) -> None:
    stream = s.chat(LONG, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    s.idle()


@check()
def metrics(s: Server) -> None:
    before = s.idle()
    s.chat(max_tokens=5, extra_body={"ignore_eos": True})
    after = s.idle()
    rose = lambda name: after[name] - before.get(name, 0.0)  # noqa: E731
    assert rose("scrimp:generation_tokens_total") == 5
    assert rose("scrimp:request_success_total") == 1
    assert rose("scrimp:prompt_tokens_total") > 0
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert rose(f"scrimp:{name}_count") == 1, name


def run_checks(s: Server) -> int:
    failed = 0
    for function, when in CHECKS:
        if when != "always" and not getattr(s.args, when):
            print(f"left out  {function.__name__} (--{when.replace('_', '-')} not given)")
            continue
        started = time.monotonic()
        try:
            function(s)
            print(f"ok        {function.__name__} ({time.monotonic() - started:.2f} s)")
        except Exception as error:  # a failed check must not hide the others
            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED    {function.__name__} (line {place.lineno}): {type(error).__name__}: {error}")
    return failed


def requests_of_many_clients(s: Server) -> list[dict]:
    """Requests of unequal shape: short and long prompts, half sharing a prefix, greedy and seeded."""
    shared = "You keep the log of a lighthouse. Write down what you see, hour by hour, and be exact. " * 2
    requests = []
    for i in range(s.args.clients):
        words = " ".join(f"ship{(7 * i + k) % 97}" for k in range(5 + 11 * (i % 4)))
        content = (shared if i % 2 else "") + f"Client {i}: {words}"
        request = {
            "model": s.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max(8, s.args.max_tokens - 8 * (i % 5)),
            "extra_body": {"ignore_eos": True},
        }
        request |= {"temperature": 0.9, "seed": i} if i % 3 == 2 else {"temperature": 0}
        requests.append(request)
    return requests


def essence(answer: Any) -> tuple:
    choice = answer.choices[0]
    return thinking(choice.message), choice.message.content, choice.finish_reason, answer.usage.completion_tokens


async def all_at_once(s: Server, requests: list[dict]) -> list:
    client = openai.AsyncOpenAI(base_url=s.args.base_url, api_key=s.key, max_retries=0, timeout=s.args.timeout)
    answers = await asyncio.gather(*(client.chat.completions.create(**r) for r in requests), return_exceptions=True)
    await client.close()
    return answers


def run_many(s: Server) -> int:
    requests = requests_of_many_clients(s)
    before = s.idle()
    # All at once first: a server that has seen these lengths admits just as many as fit.
    started = time.monotonic()
    together = asyncio.run(all_at_once(s, requests))
    at_once = time.monotonic() - started
    after = s.idle()
    started = time.monotonic()
    alone = [essence(s.client.chat.completions.create(**request)) for request in requests]
    one_by_one = time.monotonic() - started
    failed = 0
    for i, (want, answer) in enumerate(zip(alone, together)):
        if isinstance(answer, BaseException):
            failed += 1
            print(f"FAILED    client {i}: {type(answer).__name__}: {answer}")
        elif essence(answer) != want:
            failed += 1
            print(f"FAILED    client {i} differs from the same request made alone:\n  {want}\n  {essence(answer)}")
    preemptions = after["scrimp:num_preemptions_total"] - before["scrimp:num_preemptions_total"]
    tokens = sum(want[3] for want in alone)
    print(f"{len(requests)} clients, {tokens} tokens: {one_by_one:.1f} s one by one, {at_once:.1f} s at once")
    print(f"equal to single runs: {len(requests) - failed} of {len(requests)}")
    print(f"scrimp:num_preemptions_total rose by {preemptions:.0f}")
    print(f"scrimp:kv_cache_usage_perc {after['scrimp:kv_cache_usage_perc']:g}")
    if s.args.expect_preemptions and preemptions == 0:
        failed += 1
        print("FAILED    nothing was preempted: make the pool smaller (--num-blocks)")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="with the /v1 (default: %(default)s)")
    parser.add_argument("--api-key", help="the server's key; also checks that a wrong one is refused")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--reasoning", action="store_true", help="the model thinks: check that too")
    parser.add_argument("--clients", type=int, help="instead of the checks: so many requests at once")
    parser.add_argument("--max-tokens", type=int, default=96, help="of the longest request with --clients (default 96)")
    parser.add_argument("--expect-preemptions", action="store_true", help="with --clients: some must happen")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take (default 600)")
    args = parser.parse_args()
    try:
        server = Server(args)
    except openai.APIError as error:
        sys.exit(f"{args.base_url}: {error}")
    failed = run_many(server) if args.clients else run_checks(server)
    print("all well" if not failed else f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
