//! Plain completions.

use scrimp_engine::Reasoning;
use scrimp_server::api::Completion;
use serde_json::{Value, json};

use crate::client::post;
use crate::fake::{MODEL, Script, TestServer};

const PATH: &str = "/v1/completions";
const SAY: Script = Script::Say {
    thinking: "",
    answer: " world",
};

#[test]
fn a_text_is_continued() {
    let server = TestServer::start(SAY);
    let json = post(
        server.address,
        PATH,
        &json!({"model": MODEL, "prompt": "hello"}),
    )
    .json();
    let parsed: Completion = serde_json::from_value(json.clone()).unwrap();
    assert!(parsed.id.starts_with("cmpl-"));
    assert_eq!(json["object"], "text_completion");
    let expected = json!({"index": 0, "text": " world", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(json["choices"], json!([expected]));
    assert_eq!(json["usage"]["prompt_tokens"], 5);
    let request = server.last_request();
    assert_eq!(request.prompt, b"hello".map(u32::from));
    assert_eq!(
        (request.max_tokens, request.reasoning),
        (Some(16), Reasoning::Off)
    );
}

#[test]
fn prompts_come_in_four_forms_and_are_answered_in_order() {
    let server = TestServer::start(SAY);
    for (prompt, prompts) in [
        (json!("ab"), vec![vec![97, 98]]),
        (json!(["ab", "c"]), vec![vec![97, 98], vec![99]]),
        (json!([97, 98]), vec![vec![97, 98]]),
        (json!([[97, 98], [99]]), vec![vec![97, 98], vec![99]]),
    ] {
        let body = json!({"prompt": prompt, "n": 2, "echo": true, "max_tokens": 3});
        let json = post(server.address, PATH, &body).json();
        let choices = json["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 2 * prompts.len());
        for (index, choice) in choices.iter().enumerate() {
            let echo: String = prompts[index / 2]
                .iter()
                .map(|&b: &u8| char::from(b))
                .collect();
            assert_eq!(choice["index"], index);
            assert_eq!(choice["text"], format!("{echo} wo"));
            assert_eq!(choice["finish_reason"], "length");
        }
        let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
        assert_eq!(json["usage"]["prompt_tokens"], prompt_tokens);
        assert_eq!(json["usage"]["completion_tokens"], 3 * 2 * prompts.len());
    }
}

#[test]
fn log_probabilities_are_parallel_lists() {
    let server = TestServer::start(SAY);
    let body = json!({"prompt": "x", "logprobs": 2, "max_tokens": 2});
    let json = post(server.address, PATH, &body).json();
    let expected = json!({
        "text_offset": [0, 1], "token_logprobs": [-0.5, -0.5], "tokens": [" ", "w"],
        "top_logprobs": [{"A": -0.5, "B": -1.5, " ": -0.5}, {"A": -0.5, "B": -1.5, "w": -0.5}],
    });
    assert_eq!(json["choices"][0]["logprobs"], expected);
    let error = post(
        server.address,
        PATH,
        &json!({"prompt": "x", "logprobs": 2, "echo": true}),
    );
    assert_eq!(error.error(400)["param"], "echo");
}

#[test]
fn a_stream_tells_the_same_in_pieces() {
    let server = TestServer::start(SAY);
    let body = json!({"prompt": ["a", "b"], "stream": true, "echo": true, "logprobs": null,
        "stream_options": {"include_usage": true}});
    let events = post(server.address, PATH, &body).events();
    let text = |index: usize| -> String {
        let choices = events.iter().filter_map(|e| e["choices"].get(0));
        let mine = choices.filter(|c| c["index"] == index);
        mine.map(|c| c["text"].as_str().unwrap()).collect()
    };
    assert_eq!((text(0).as_str(), text(1).as_str()), ("a world", "b world"));
    let usage = events.last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(14))
    );

    let body = json!({"prompt": "a", "stream": true, "logprobs": 0});
    let events = post(server.address, PATH, &body).events();
    let offsets: Vec<_> = events
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .filter_map(Value::as_u64)
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
}
