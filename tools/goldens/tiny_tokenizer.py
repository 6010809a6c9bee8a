"""A byte-level BPE tokenizer of 270 tokens, whose ids 0..=255 are the 256 bytes, for the tiny models.

256 byte tokens, 8 merges, 6 special tokens with the names (and ids in the order) that DeepSeek-R1 uses. The
pre-tokenizer is GPT-2's regular expression, which `tokenizers` has built in and GGUF calls `gpt-2`.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIALS = [BOS, EOS, USER, ASSISTANT, "<think>", "</think>"]
# <think> and </think> are ordinary added tokens in R1: decoding with skip_special_tokens keeps them
NOT_SPECIAL = {"<think>", "</think>"}
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "t"), ("a", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n")]

# Answers of earlier turns lose their thinking, and the prompt for a new one opens <think>.
R1_TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}{%- set add_generation_prompt = false -%}{%- endif -%}
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set ns.system = ns.system + message['content'] -%}
{%- endfor -%}
{{- bos_token -}}{{- ns.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{%- set content = message['content'] -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}
"""

PLAIN_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}{{- '<｜Assistant｜>' + message['content'] + eos_token -}}
{%- else -%}{{- message['content'] -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
"""


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, spare = {}, 0x100
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(spare)
            spare += 1
    return [table[byte] for byte in range(256)]


def tokens() -> list[str]:
    """All 270 tokens in the order of their ids."""
    return byte_characters() + ["".join(pair) for pair in MERGES] + SPECIALS


def write(folder: Path, template: str) -> None:
    """tokenizer.json, tokenizer_config.json, generation_config.json (and, for "plain", chat_template.jinja)."""
    ordinary = tokens()[: 256 + len(MERGES)]
    model = models.BPE(vocab={token: i for i, token in enumerate(ordinary)}, merges=MERGES)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    for name in SPECIALS:
        tokenizer.add_tokens([AddedToken(name, special=name not in NOT_SPECIAL, normalized=False)])
    assert tokenizer.get_vocab_size() == len(tokens()) == 270
    tokenizer.save(str(folder / "tokenizer.json"))

    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": BOS, "lstrip": False, "normalized": True, "rstrip": False,
                      "single_word": False},
        "eos_token": {"__type": "AddedToken", "content": EOS, "lstrip": False, "normalized": True, "rstrip": False,
                      "single_word": False},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 960,
    }
    if template == "r1":
        config["chat_template"] = R1_TEMPLATE
    else:
        config["bos_token"], config["eos_token"] = BOS, EOS
        (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    dump(folder / "tokenizer_config.json", config)
    dump(folder / "generation_config.json", {"bos_token_id": 264, "eos_token_id": 265, "do_sample": True,
                                             "temperature": 0.6, "top_p": 0.95})


def dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
