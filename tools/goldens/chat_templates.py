"""Renders chat templates with transformers and writes what crates/text must render.

    python tools/goldens/chat_templates.py

Reads the *.jinja files in crates/text/tests/fixtures/templates (each a model's public chat
template) and writes goldens.json beside them. Needs transformers and jinja2.
"""

import json
import pathlib
from datetime import datetime

from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).parents[2] / "crates/text/tests/fixtures/templates"
NOW = 1_767_323_045  # 2026-01-02 03:04:05 UTC

SPECIAL = {
    "deepseek-r1": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    "deepseek-v3": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    "llama-3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "llama-3.2": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen3": {"eos_token": "<|im_end|>"},
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place, in °C & \"words\" <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "integer", "minimum": 1, "default": 1.0},
                "detail": {"type": ["boolean", "null"], "default": None, "examples": [True, False]},
            },
            "required": ["place"],
        },
    },
}


def call(arguments):
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "c1", "type": "function", "function": function}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool_use(arguments, content=None, calls=1):
    return [
        user("Weather?"),
        assistant(content, tool_calls=[call(arguments)] * calls),
        {"role": "tool", "content": "{\"t\": 7}", "tool_call_id": "c1"},
    ]


CONVERSATIONS = {
    "one_question": [user("Hi there")],
    "system": [{"role": "system", "content": "Be brief.\n"}, user("  2+2? 🙂 ")],
    "two_systems": [
        {"role": "system", "content": "One."},
        user("a"),
        {"role": "system", "content": "Two."},
        user("b"),
    ],
    "turns": [user("a"), assistant("b\n"), user("c"), assistant("d"), user("e")],
    "ends_with_assistant": [user("a"), assistant("b")],
    "thought_in_text": [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")],
    "thought_in_last_text": [user("a"), assistant("<think>\nhm\n\n</think>\n\nb")],
    "thought_in_field": [user("a"), assistant("b", reasoning_content="\nhm\n"), user("c")],
    "thought_in_last_field": [user("a"), assistant("\nb", reasoning_content="\nhm\n")],
    "tool_text_arguments": tool_use("{\"place\": \"Zürich\"}"),
    "tool_object_arguments": tool_use({"place": "Zürich", "days": 2.5}, content=""),
    "tool_said_something": tool_use("{\"place\": \"東京\"}", content="Let me look."),
    "tool_two_calls": tool_use("{}", calls=2),
    "tool_two_calls_after_text": tool_use("{}", content="Two.", calls=2),
    "tool_answered": tool_use("{}") + [assistant("7 °C"), user("thanks")],
    "tool_two_results": tool_use({}, content="") + [{"role": "tool", "content": "again"}],
    "empty_text": [user("")],
    "no_messages": [],
}

# Small templates for what the models' own do not use.
SNIPPETS = {
    "printing": "{{ x }}|{{ x.a }}|{{ none }}|{{ true }}|{{ missing }}|{{ 1.0 }}|{{ 1e20 }}|{{ [1, 'a\"b', none] }}",
    "tojson": "{{ x | tojson }}\n{{ x | tojson(indent=2) }}\n{{ x | tojson(ensure_ascii=true) }}"
    "\n{{ x | tojson(separators=(',', ':')) }}\n{{ x | tojson(sort_keys=true) }}",
    "clock": "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j') }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration %}\n{% endfor %}.",
    "loop_controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "strings": "{% set s = '  a,b , c ' %}{{ s.strip().split(',') }}{{ s.upper().replace('A', 'z') }}"
    "{{ s.startswith('  a') }}{{ 'x'.join(['1', '2']) }}{{ s.find('b') }}{{ 'abc'[::-1] }}{{ 'abc'[-2:] }}"
    "{{ s.lstrip().rstrip(' ') }}{{ 'a\nb'.splitlines() }}{{ 'ab cd'.title() }}",
    "blocks": "  {% if true %}\n  yes\n  {% endif %}\n{#- note -#}\n  {%- set y = 1 %}\nend\n",
    "macros": "{% macro show(v, depth=0) %}{% if v is mapping %}{% for k, w in v.items() %}{{ k }}:{{ show(w, depth + 1) }};"
    "{% endfor %}{% else %}{{ v | string }}@{{ depth }}{% endif %}{% endmacro %}{{ show(x) }}",
    "namespace": "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }} {{ ns.seen }}",
    "tests": "{{ messages is iterable }} {{ x is mapping }} {{ 'a' is string }} {{ nope is defined }} {{ x.a is none }}"
    " {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | map(attribute='role') | join('+') }}",
    "special_tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "refusal": "{{ raise_exception('Roles must alternate, got ' + messages[0].role) }}",
    "attribute_of_nothing": "{{ nothing.at.all }}",
    "flags": "{{ thinking is defined and thinking }}{{ enable_thinking }}{{ tools is none }}{{ documents is none }}",
}

KWARGS = {
    "qwen3": [{"enable_thinking": False}, {"enable_thinking": True}],
    "llama-3.2": [{"date_string": "1 May 2025"}, {"tools_in_user_message": False}],
}


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 2, 3, 4, 5)


def render(source, messages, tools, kwargs, add_generation_prompt, special):
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **special,
            **kwargs,
        )
        return {"rendered": rendered[0]}
    except Exception as error:  # a template may raise anything
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    chat_template_utils.datetime = Clock
    chat_template_utils._compile_jinja_template.cache_clear()
    cases = []

    def add(template, source, name, with_tools, kwargs, prompt, special):
        tools = [WEATHER] if with_tools else None
        result = render(source, CONVERSATIONS[name], tools, kwargs, prompt, special)
        inputs = {"conversation": name, "with_tools": with_tools, "kwargs": kwargs}
        cases.append({"template": template, **inputs, "add_generation_prompt": prompt, **result})

    for file in sorted(FOLDER.glob("*.jinja")):
        source, model = file.read_text(), file.stem
        special = SPECIAL[model]
        for name in CONVERSATIONS:
            add(file.name, source, name, False, {}, True, special)
            add(file.name, source, name, "tool" in name, {}, False, special)
        for kwargs in KWARGS.get(model, []):
            for name in ("system", "tool_object_arguments"):
                add(file.name, source, name, True, kwargs, True, special)
    x = {"b": [1, 2.0, "é<'&\"\n"], "a": None, "c": {"z": True, "y": {}}, "e": []}
    kwargs = {"x": x, "enable_thinking": True}
    for name, source in SNIPPETS.items():
        add(name, source, "turns", False, kwargs, True, {"bos_token": "<s>", "eos_token": "</s>"})

    def lines(items):
        return ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)

    head = {"now": NOW, "tool": WEATHER, "special_tokens": SPECIAL, "snippets": SNIPPETS}
    head["conversations"] = CONVERSATIONS
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    (FOLDER / "goldens.json").write_text(f'{text},\n "cases": [\n{lines(cases)}\n]}}\n')
    errors = [(case["conversation"], case["template"], case["error"]) for case in cases if "error" in case]
    print(len(cases), "cases,", len(errors), "errors")
    for error in errors:
        print("  ", *error)


main()
