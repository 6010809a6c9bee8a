//! The whole way of a response: tokens → characters → thinking and answer → stop string.

#![allow(clippy::unwrap_used)] // a helper of a test fails the test

mod support;

use scrimp_text::{
    ChatTemplate, Delta, IncrementalDetokenizer, ReasoningFormat, ReasoningParser, StopMatcher,
    Tokenizer,
};
use support::{as_gguf, fixture};

fn template(name: &str) -> ChatTemplate {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/templates");
    let source = std::fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap();
    ChatTemplate::from_source(&source).unwrap()
}

/// Streams `text` token by token; gives reasoning, answer up to `stop`, and reasoning tokens.
fn respond(tokenizer: &Tokenizer, text: &str, is_open: bool) -> (String, String, usize) {
    let format = ReasoningFormat::discover(tokenizer, Some(&template("deepseek-r1"))).unwrap();
    let mut stream = IncrementalDetokenizer::after_prompt(tokenizer, true).showing(&format.ids());
    let mut parser = ReasoningParser::new(Some(format), is_open);
    let mut stop = StopMatcher::new(&["END"]);
    let (mut reasoning, mut answer) = (String::new(), String::new());
    let ids = tokenizer.encode(text, false).unwrap();
    let mut deltas: Vec<Delta> = ids
        .iter()
        .flat_map(|&id| parser.push(stream.push(id)))
        .collect();
    deltas.extend(parser.finish(&stream.finish()));
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => reasoning += &text,
            Delta::Answer(text) => answer += &stop.push(&text).text,
        }
    }
    (
        reasoning,
        answer + &stop.finish(),
        parser.reasoning_tokens(),
    )
}

#[test]
fn tags_that_are_tokens_and_tags_that_are_not() {
    let text = "<think>\nWell 😀, 2+2\n</think>\n\nFour. END of <|im_end|>";
    // "<think>" is a token of the first and nine or so of the second.
    for name in ["qwen", "smollm"] {
        let (reasoning, answer, tokens) = respond(&fixture(name), text, false);
        assert_eq!(
            (reasoning.as_str(), answer.as_str()),
            ("Well 😀, 2+2", "Four. "),
            "{name}"
        );
        assert!(tokens >= 10, "{name}: {tokens}");
    }
    let (reasoning, answer, _) = respond(&fixture("qwen"), "\nhm</think>ok", true);
    assert_eq!((reasoning.as_str(), answer.as_str()), ("hm", "ok"));
}

#[test]
fn tags_that_are_special_tokens_are_seen_all_the_same() {
    let mut gguf = as_gguf("qwen", "qwen2");
    for (token, kind) in gguf.tokens.iter().zip(&mut gguf.token_types) {
        if token.ends_with("think>") {
            *kind = 3;
        }
    }
    let tokenizer = Tokenizer::from_gguf(gguf).unwrap();
    assert!(tokenizer.is_special(tokenizer.id("</think>").unwrap()));
    let (reasoning, answer, tokens) = respond(&tokenizer, "<think>a</think>b<|im_end|>", false);
    assert_eq!((reasoning.as_str(), answer.as_str(), tokens), ("a", "b", 1));
}

#[test]
fn tags_are_found_in_the_vocabulary_or_the_template() {
    let (qwen, smollm) = (fixture("qwen"), fixture("smollm"));
    let format = ReasoningFormat::discover(&qwen, None).unwrap();
    assert_eq!(
        (format.start.as_str(), format.end.as_str()),
        ("<think>", "</think>")
    );
    assert_eq!(format.end_ids, [qwen.id("</think>").unwrap()]);
    assert_eq!(ReasoningFormat::discover(&smollm, None), None);
    assert_eq!(
        ReasoningFormat::discover(&smollm, Some(&template("llama-3.2"))),
        None
    );
    let format = ReasoningFormat::discover(&smollm, Some(&template("qwen3"))).unwrap();
    assert!(format.end_ids.len() > 1);
    assert_eq!(smollm.decode(&format.end_ids, false), "</think>");
    assert_eq!(ReasoningFormat::new(&qwen, "", "x"), None);
}

#[test]
fn sentencepiece_keeps_the_space_after_a_prompt() {
    let tokenizer = fixture("sentencepiece");
    let ids = tokenizer.encode("so it is", false).unwrap();
    let text = |mut stream: IncrementalDetokenizer| -> String {
        ids.iter().map(|&id| stream.push(id).to_owned()).collect()
    };
    assert_eq!(
        text(IncrementalDetokenizer::new(&tokenizer, true)),
        "so it is"
    );
    assert_eq!(
        text(IncrementalDetokenizer::after_prompt(&tokenizer, true)),
        " so it is"
    );
}
