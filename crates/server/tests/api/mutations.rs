//! Random damage to valid bodies: reading them gives a value or an error, and never panics.

use proptest::prelude::*;
use scrimp_engine::SamplingParams;
use scrimp_server::ApiError;
use scrimp_server::parse::{
    parse_chat_request, parse_completion_request, parse_detokenize_request, parse_tokenize_request,
};

/// Bodies that use every field.
const BODIES: [&str; 4] = [
    r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9"}]},
        {"role":"assistant","content":null,"reasoning":"r","tool_calls":[{"id":"1"}]}],
        "tools":[{"type":"function"}],"tool_choice":"auto","logprobs":true,"top_logprobs":3,
        "thinking_token_budget":7,"reasoning_effort":"none","add_generation_prompt":true,
        "chat_template_kwargs":{"thinking":false},"continue_final_message":false,"n":2}"#,
    r#"{"max_tokens":5,"max_completion_tokens":6,"min_tokens":1,"temperature":0.5,"top_p":0.9,
        "top_k":-1,"min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-2,"seed":-1,
        "frequency_penalty":2,"logit_bias":{"1":2.5},"stop":["a"],"stop_token_ids":[1,2],
        "ignore_eos":true,"skip_special_tokens":false,"stream":true,"priority":1,"user":"u",
        "stream_options":{"include_usage":true},"cache_salt":"s","prompt":[[1,2],[3]],
        "response_format":{"type":"text"},"logprobs":2,"messages":[{"role":"user","content":"a"}]}"#,
    r#"{"prompt":["a","b"],"echo":true,"suffix":"","best_of":1,"guided_json":null,"stop":"x"}"#,
    r#"{"tokens":[1,2,3],"prompt":"a","return_token_strs":true,"add_special_tokens":false}"#,
];

/// Pieces of JSON that are likely to hurt.
const PIECES: [&str; 16] = [
    "null",
    "-1",
    "1e400",
    "1e30",
    "18446744073709551616",
    "\"",
    "\\u",
    "\\ud800",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "true",
    "\"\"",
];

fn read_everywhere(body: &[u8]) {
    let results: [Result<(), ApiError>; 4] = [
        parse_chat_request(body, &SamplingParams::default()).map(drop),
        parse_completion_request(body, &SamplingParams::default()).map(drop),
        parse_tokenize_request(body).map(drop),
        parse_detokenize_request(body).map(drop),
    ];
    for error in results.into_iter().filter_map(Result::err) {
        assert!(error.status.is_client_error(), "{error}");
        assert!(
            !error.body.message.is_empty() && error.body.message.len() < 2000,
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn damaged_bodies_are_values_or_errors(
        which in 0..BODIES.len(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..20usize, 0..PIECES.len()), 0..6),
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut body = BODIES[which].as_bytes().to_vec();
        for (at, length, piece) in cuts {
            let start = at.index(body.len());
            let end = (start + length).min(body.len());
            body.splice(start..end, PIECES[piece].bytes());
        }
        for (at, byte) in bytes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        read_everywhere(&body);
    }

    #[test]
    fn replaced_values_are_values_or_errors(
        which in 0..BODIES.len(),
        field in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![
            "null", "-1", "0", "1e30", "\"a\"", "[]", "{}", "[[]]", "[1]", "[\"a\"]", "true", "0.5",
            "9223372036854775808", "[{}]", "{\"type\":\"x\"}",
        ]),
    ) {
        let mut body: serde_json::Value = serde_json::from_str(BODIES[which]).unwrap();
        let object = body.as_object_mut().unwrap();
        let name = object.keys().nth(field.index(object.len())).unwrap().clone();
        object.insert(name, serde_json::from_str(value).unwrap());
        read_everywhere(body.to_string().as_bytes());
    }
}

#[test]
fn the_bodies_are_valid_where_they_belong() {
    let defaults = SamplingParams::default();
    assert!(parse_chat_request(BODIES[0].as_bytes(), &defaults).is_ok());
    assert!(parse_completion_request(BODIES[1].as_bytes(), &defaults).is_ok());
    assert!(parse_completion_request(BODIES[2].as_bytes(), &defaults).is_ok());
    assert!(parse_detokenize_request(BODIES[3].as_bytes()).is_ok());
    assert!(parse_tokenize_request(BODIES[3].as_bytes()).is_ok());
}
