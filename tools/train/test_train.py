"""Tests of the training tools: python -m pytest tools/train"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import build_tokenizer
import export
from data import collate, longest, training_batch
from model import Config, Ponder
from optim import orthogonalize
from problems import FAMILIES, SPLITS, SplitMix64, label, problem, split_of

TOKENIZER = build_tokenizer.build()
PONDER = Path(__file__).resolve().parents[2] / "models" / "ponder"


def random_model() -> Ponder:
    """A model whose routing is spread and whose correction bias matters."""
    torch.manual_seed(3)
    model = Ponder(Config(vocab_size=TOKENIZER.get_vocab_size()), torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.05 * torch.randn_like(p)).bfloat16())
        for experts in model.moe_layers():
            experts.correction_bias.normal_(std=0.2)
    return model.eval()


def test_splitmix64_reference_values():
    rng = SplitMix64(1234567)
    assert [rng.next_u64() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_labels():
    assert [label(i) for i in (0, 25, 26, 51, 52, 63)] == ["a", "z", "aa", "az", "ba", "bl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_are_disjoint_and_problems_repeatable(family):
    seen = {s: {problem(family, n, s, i).canonical for n in (1, 2, 3, 9) for i in range(150)} for s in SPLITS}
    for split, contents in seen.items():
        assert all(split_of(c) == split for c in contents)
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert problem(family, 7, "test", 5) == problem(family, 7, "test", 5)
    assert problem(family, 7, "test", 5) != problem(family, 7, "test", 6)


def solve(p) -> str:
    """An independent solution from the canonical text."""
    head, *ops = p.canonical.split("|")
    if head == "columns":
        sign = 1 if "+" in ops[0] else -1
        a = int("".join(o[0] for o in reversed(ops)))
        b = int("".join(o[2] for o in reversed(ops)))
        return str(sum(map(int, str((a + sign * b) % 10 ** len(ops)))) % 10)
    state, *ops = ops
    if head == "arithmetic":
        return str(eval(left_to_right(state, ops)))
    cells = list(state)
    for op in ops:
        i = int(op[0]) - 1
        if head == "boxes":
            j = int(op[1]) - 1
            cells[i], cells[j] = cells[j], cells[i]
        elif op[1] == "=":
            cells[i] = op[2]
        elif op[1] == "<":
            cells[i] = cells[int(op[2]) - 1]
        else:
            cells[i] = str((int(cells[i]) + int(op[2])) % 10)
    return "".join(cells)


def left_to_right(state: str, ops: list[str]) -> str:
    expression = state
    for op in ops:
        expression = f"({expression}){op}"
    return f"({expression}) % 100"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_right(family):
    for steps in (1, 2, 5, 17, 64):
        for seed in range(20):
            p = problem(family, steps, "train", seed)
            assert p.value == solve(p), p
            assert len(p.chain) == steps + 1 and p.prompt.count(")") == steps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_is_one_token_and_text_comes_back(family):
    for seed in range(40):
        p = problem(family, 64, "test", seed)
        text = build_tokenizer.render(p.prompt) + p.completion + build_tokenizer.EOS
        ids = TOKENIZER.encode(text).ids
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
        assert len(ids) < 1140
        assert len(TOKENIZER.encode(p.completion).ids) <= 12 * 64 + 20


@pytest.mark.parametrize("text", ["", " ", "ü – 漢字\t\r\n  x", "12345 + 6", "A AB Abc ABc it's", "\x00\ufffd"])
def test_tokenizer_is_lossless_on_any_text(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_batches_put_the_loss_on_the_completion():
    batch = training_batch(40, 1, 2048, 100, TOKENIZER)
    again = training_batch(40, 1, 2048, 100, TOKENIZER)
    assert torch.equal(batch.ids, again.ids) and torch.equal(batch.targets, again.targets)
    for p, targets in zip(batch.problems, batch.targets):
        assert TOKENIZER.decode(targets[targets >= 0].tolist(), skip_special_tokens=False) == p.completion + build_tokenizer.EOS
    assert longest(0, 100) == 4 and longest(1000, 100) == 64


def test_orthogonalize_flattens_the_spectrum():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 32, 96)).float())
    assert values.min() > 0.5 and values.max() < 1.4


def test_cached_decoding_equals_one_pass():
    model = random_model()
    ids = collate([problem(f, 5, "test", 0) for f in ("boxes",)], TOKENIZER).ids
    with torch.no_grad():
        whole = model(ids)
        caches = [{} for _ in model.layers]
        parts = [model(ids[:, :40], caches)] + [model(ids[:, i : i + 1], caches) for i in range(40, ids.shape[1])]
    assert torch.allclose(whole, torch.cat(parts, 1), atol=1e-4)


def test_logits_equal_transformers(tmp_path):
    from transformers import AutoTokenizer, DeepseekV3ForCausalLM

    export.write(random_model(), tmp_path)
    model = export.load(tmp_path)
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for family in FAMILIES:
        p = problem(family, 30, "test", 1)  # more tokens than one block of queries
        ids = tokenizer.apply_chat_template([{"role": "user", "content": p.prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        assert ids[0].tolist() == TOKENIZER.encode(build_tokenizer.render(p.prompt)).ids
        ids = torch.cat((ids, torch.tensor([tokenizer(p.completion, add_special_tokens=False).input_ids])), 1)
        with torch.no_grad():
            ours, reference = model(ids), theirs(ids).logits
        assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()


def test_template_drops_past_thinking(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer.write(tmp_path)
    text = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>\nx\n</think>\n\nb"},
            {"role": "user", "content": "c"},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == f"{build_tokenizer.BOS}S<｜User｜>a<｜Assistant｜>b{build_tokenizer.EOS}<｜User｜>c<｜Assistant｜><think>\n"


def test_committed_vectors():
    for v in json.loads((PONDER / "problems.json").read_text())["vectors"]:
        p = problem(v["family"], v["steps"], v["split"], v["seed"])
        assert (p.canonical, p.prompt, list(p.chain), p.value, p.answer) == (v["canonical"], v["prompt"], v["chain"], v["value"], v["answer"])
