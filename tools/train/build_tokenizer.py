"""Builds the byte-level tokenizer: 256 bytes, the words of the problems, R1's special tokens.

A digit is always one token of its own; so is a capital letter that stands alone. A word takes the
space before it, and the space after it when a digit or such a letter follows; a step's label
(" a)") is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from problems import FAMILIES, MAX_STEPS, problem

BOS, EOS, USER, ASSISTANT = (f"<｜{name}｜>" for name in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant"))
PAD, THINK, END_THINK = "<｜▁pad▁｜>", "<think>", "</think>"

PIECES = r" [a-z]{1,2}\)|\d|[A-Z](?![a-z])| ?[A-Z]?[a-z]+(?: (?=\d|[A-Z](?![a-z])))?| ?[^\sA-Za-z\d]+|\n+|\s"

CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set ns.system = ns.system + message['content'] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<｜Assistant｜>' + message['content'].split('</think>')[-1].lstrip('\\n') + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}
"""


def render(prompt: str) -> str:
    """One user turn with the generation prompt, as the chat template renders it."""
    return f"{BOS}{USER}{prompt}{ASSISTANT}{THINK}\n"


def build() -> Tokenizer:
    """Trains the merges on generated problems until every word is one token. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = []
    for family in FAMILIES:
        for seed in range(300):
            p = problem(family, MAX_STEPS if seed % 10 == 0 else 3, "train", seed)
            corpus += [p.prompt, p.completion.replace(END_THINK, "")]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD, USER, ASSISTANT)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (THINK, END_THINK)])
    return tokenizer


def write(folder: Path) -> Tokenizer:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer


if __name__ == "__main__":
    import sys

    print(write(Path(sys.argv[1])).get_vocab_size())
