//! Files from the internet: whatever is in them, the answer is a value or an error.

#![allow(clippy::unwrap_used)] // a helper of a test fails the test

mod support;

use proptest::prelude::*;
use scrimp_text::{ChatTemplate, GgufTokenizer, TemplateInput, Tokenizer, TokenizerConfig};
use serde_json::json;
use support::{as_gguf, read};

/// Uses a tokenizer if there is one; only a panic is a failure.
fn exercise(tokenizer: Result<Tokenizer, scrimp_text::TokenizerError>) {
    if let Ok(tokenizer) = tokenizer {
        let text = "Hi <think>the é😀 \n\n  x</think> 123's ▁\0";
        if let Ok(ids) = tokenizer.encode(text, true) {
            tokenizer.decode(&ids, true);
        }
        tokenizer.decode(&[0, 1, 300, u32::MAX], false);
    }
}

/// Some bytes replaced, and perhaps the end cut off.
fn mutated(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = original.len();
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(b"\"{}[],:0123456789-.eE\\ ntf".to_vec()),
    ];
    let edits = prop::collection::vec((0..len, byte), 1..6);
    (edits, prop_oneof![4 => Just(len), 1 => 0..len]).prop_map(move |(edits, end)| {
        let mut bytes = original.clone();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(end);
        bytes
    })
}

/// Pieces that templates are made of, in any order.
fn template_source() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "if ",
        "endif",
        "for m in messages",
        "endfor",
        "set x = ",
        "set ns = namespace(a=1)",
        "set ns.a = ns.a + 1",
        "messages",
        "[0]",
        "[-1]",
        "[::-1]",
        "['role']",
        ".content",
        "x",
        "ns.a",
        " | tojson",
        " | tojson(indent=99)",
        " | length",
        " | trim",
        " + ",
        " ~ ",
        " * 99",
        "-1",
        "1.5",
        "'é\n'",
        "none",
        "true",
        "is defined",
        "not ",
        "in ",
        "(",
        ")",
        ", ",
        ".split('a')",
        ".strip()",
        "raise_exception('no')",
        "strftime_now('%Q')",
        "strftime_now('%Y%')",
        "macro f(a)",
        "endmacro",
        "f(1)",
        "range(9)",
        "loop.index",
        "break",
        "generation",
        "endgeneration",
        "{# ",
        " #}",
        "\n  ",
    ]);
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn tokenizer_json(bytes in prop::sample::select(support::JSON_FIXTURES.to_vec())
        .prop_flat_map(|name| mutated(read(&format!("{name}.json"))))) {
        exercise(Tokenizer::from_json(&bytes, &TokenizerConfig::default()));
    }

    #[test]
    fn tokenizer_config(bytes in mutated(
        br#"{"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "{{ 1 }}"}]}"#.to_vec()
    )) {
        if let Ok(config) = TokenizerConfig::parse(&bytes) {
            let _ = ChatTemplate::from_config(&config);
        }
    }

    #[test]
    fn gguf_fields(
        model in prop::sample::select(vec!["gpt2", "llama", ""]),
        pre in prop::sample::select(vec!["default", "qwen2", "deepseek-llm", "falcon", "tekken"]),
        edits in prop::collection::vec((0usize..500, "[a-zĠ▁ ]{0,3}", -1i32..9, any::<f32>()), 0..8),
        ids in prop::array::uniform3(prop::option::of(any::<u32>().prop_map(|id| id % 600))),
        with_scores in any::<bool>(),
    ) {
        let mut gguf = GgufTokenizer { model: model.into(), ..as_gguf("smollm", pre) };
        if with_scores {
            gguf.scores = (0..gguf.tokens.len()).map(|i| -(i as f32)).collect();
        }
        for (at, text, kind, score) in edits {
            gguf.tokens[at] = text.clone();
            gguf.token_types[at] = kind;
            if let Some(place) = gguf.scores.get_mut(at) {
                *place = score;
            }
            if let Some(merge) = gguf.merges.get_mut(at).filter(|_| kind == 0) {
                *merge = text;
            }
        }
        [gguf.bos, gguf.eos, gguf.unk] = ids;
        exercise(Tokenizer::from_gguf(gguf));
    }

    #[test]
    fn templates(source in template_source()) {
        let messages = [json!({"role": "user", "content": "aé"}), json!({"role": 3, "x": [1.5, null]})];
        let input = TemplateInput { messages: &messages, ..Default::default() };
        if let Ok(template) = ChatTemplate::from_source(&source) {
            let _ = template.render(&input);
        }
    }

    #[test]
    fn stray_clocks(now in any::<i64>(), format in "[%A-Za-z0-9 .:+-]{0,8}") {
        let source = format!("{{{{ strftime_now('{format}') }}}}");
        let _ = ChatTemplate::from_source(&source).unwrap().render(&TemplateInput { now, ..Default::default() });
    }
}
