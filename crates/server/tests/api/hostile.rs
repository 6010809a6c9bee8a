//! What careless and hostile clients send: each gets a clear 4xx, and the next one is served.

use std::io::Write;

use scrimp_server::ServerConfig;
use serde_json::{Value, json};

use crate::client::{connect, exchange, get, head, post, post_raw, read_answer};
use crate::fake::{MAX_MODEL_LEN, Script, TestServer, config, text};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const SAY: Script = Script::Say {
    thinking: "",
    answer: "ok",
};

fn with_messages(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn bodies_that_are_no_json_object_are_refused_with_the_place() {
    let server = TestServer::start(SAY);
    let deep = "[".repeat(100_000);
    let deep_object = r#"{"a":"#.repeat(100_000);
    let deep_field = format!(r#"{{"messages": {}1{}}}"#, "[".repeat(500), "]".repeat(500));
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"text\"",
        b"{\"messages\": [}",
        b"{\"a\": NaN}",
        b"{\"temperature\": 1e999, \"messages\": []}",
        b"{\"prompt\": \"\xff\xfe\"}",
        deep.as_bytes(),
        deep_object.as_bytes(),
        deep_field.as_bytes(),
    ];
    for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
        for body in bodies {
            let error = post_raw(server.address, path, &[], body).error(400);
            assert_eq!(error["code"], "invalid_json", "{error}");
        }
    }
    assert_eq!(
        post(server.address, CHAT, &with_messages(json!({}))).status,
        200
    );
}

#[test]
fn wrong_values_are_refused_by_name() {
    let server = TestServer::start(SAY);
    let biases: serde_json::Map<_, _> = (0..5000).map(|i| (i.to_string(), json!(1))).collect();
    for (fields, param) in [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 1e300}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": [1]}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": -1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1e30}), "max_tokens"),
        (json!({"min_tokens": 9, "max_tokens": 3}), "min_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1_000_000_000}), "n"),
        (json!({"n": -1}), "n"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stop": 7}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 100]}), "stop"),
        (json!({"stop": "x".repeat(5000)}), "stop"),
        (json!({"stop_token_ids": ["a"]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": [9_999_999]}), "prompt"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": "x"}}), "logit_bias.1"),
        (json!({"logit_bias": biases}), "logit_bias"),
        (json!({"stream": "yes"}), "stream"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"priority": 1u64 << 40}), "priority"),
        (json!({"guided_json": {}}), "guided_json"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"response_format": "text"}), "response_format"),
    ] {
        for stream in [false, true] {
            let mut fields = fields.clone();
            if stream && fields.get("stream").is_none() && fields.get("stream_options").is_none() {
                fields["stream"] = json!(true);
            }
            let error = post(server.address, CHAT, &with_messages(fields.clone())).error(400);
            assert_eq!(error["param"], param, "{error}");
            assert_eq!(error["type"], "invalid_request_error");
            fields["prompt"] = json!("Hi");
            let error = post(server.address, COMPLETIONS, &fields).error(400);
            assert_eq!(error["param"], param, "{error}");
        }
    }
}

#[test]
fn messages_are_refused_by_their_place() {
    let server = TestServer::start(SAY);
    let user = json!({"role": "user", "content": "a"});
    for (messages, param) in [
        (json!([]), "messages"),
        (json!("Hi"), "messages"),
        (
            json!([user, {"role": "wizard", "content": "b"}]),
            "messages[1].role",
        ),
        (json!([user, {"content": "b"}]), "messages[1].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": null}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": 5}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0].type",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            "messages[0].content[0]",
        ),
        (json!([user, 7]), "messages[1]"),
        // The template's own refusal.
        (
            json!([{"role": "assistant", "content": "first"}]),
            "messages",
        ),
    ] {
        let error = post(server.address, CHAT, &json!({"messages": messages})).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    assert_eq!(
        post(server.address, CHAT, &json!({"model": null})).error(400)["param"],
        "messages"
    );
    for (fields, param) in [
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logprobs": 5}), "logprobs"),
        (
            json!({"thinking_token_budget": -1}),
            "thinking_token_budget",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ] {
        let error = post(server.address, CHAT, &with_messages(fields)).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
}

#[test]
fn prompts_are_refused_when_they_are_none() {
    let server = TestServer::start(SAY);
    for (fields, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [1e10]}), "prompt"),
        (json!({"prompt": [260, 261]}), "prompt"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "logprobs": 21}), "top_logprobs"),
        (json!({"prompt": vec!["a"; 300]}), "n"),
        (json!({"prompt": vec!["a"; 3], "n": 100}), "n"),
    ] {
        let error = post(server.address, COMPLETIONS, &fields).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
}

#[test]
fn prompts_that_are_too_long_are_refused_with_numbers() {
    let server = TestServer::start(SAY);
    let refused = |path, body: &Value| {
        let error = post(server.address, path, body).error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        error["message"].as_str().unwrap().to_owned()
    };
    let message = refused(COMPLETIONS, &json!({"prompt": "a".repeat(MAX_MODEL_LEN)}));
    assert!(
        message.contains("512 tokens") && message.contains("shorten it by 1"),
        "{message}"
    );
    let message = refused(COMPLETIONS, &json!({"prompt": vec![97; 3_000]}));
    assert!(message.contains("3000 tokens"), "{message}");
    let long = "word ".repeat(2_000_000);
    let message = refused(
        CHAT,
        &json!({"messages": [{"role": "user", "content": long}]}),
    );
    assert!(message.contains("more than 1024 tokens"), "{message}");
    let nearly = json!({"prompt": "a".repeat(MAX_MODEL_LEN - 1)});
    assert_eq!(post(server.address, COMPLETIONS, &nearly).status, 200);
}

#[test]
fn large_bodies_are_refused_before_they_are_read() {
    let server = TestServer::start(SAY);
    let mut stream = connect(server.address);
    // Only the head is sent: the answer must not wait for a body.
    stream
        .write_all(head(CHAT, &[], 17 << 20).as_bytes())
        .unwrap();
    let error = read_answer(&mut stream).error(413);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("16777216 bytes"),
        "{error}"
    );

    // Without a declared length the limit holds, too.
    let small = ServerConfig {
        max_body_bytes: 100_000,
        ..config()
    };
    let server = TestServer::with(SAY, small, text(None));
    let mut request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..10 {
        request.extend_from_slice(b"4000\r\n");
        request.resize(request.len() + 0x4000, b' ');
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(
        exchange(server.address, &request).error(413)["code"],
        "body_too_large"
    );
}

#[test]
fn bodies_of_countless_values_are_refused_before_they_are_parsed() {
    let server = TestServer::start(SAY);
    let body = format!("{{\"prompt\": [{}0]}}", "0,".repeat(1 << 19));
    let error = post_raw(server.address, COMPLETIONS, &[], body.as_bytes()).error(400);
    assert_eq!(error["code"], "too_many_values");
    // Marks inside a string are no values.
    let text = json!({"prompt": ",".repeat(1 << 20)});
    let error = post(server.address, COMPLETIONS, &text).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
}

#[test]
fn only_json_is_read() {
    let server = TestServer::start(SAY);
    let body = with_messages(json!({})).to_string();
    let with_type = |header: &str| post_raw(server.address, CHAT, &[header], body.as_bytes());
    let error = with_type("content-type: application/x-www-form-urlencoded").error(415);
    assert_eq!(error["code"], "unsupported_media_type");
    assert_eq!(
        with_type("content-type: application/json; charset=utf-8").status,
        200
    );
}

#[test]
fn bodies_that_trickle_are_cut_off() {
    let read_timeout = std::time::Duration::from_millis(500);
    let slow = ServerConfig {
        read_timeout,
        ..config()
    };
    let server = TestServer::with(SAY, slow, text(None));
    let mut stream = connect(server.address);
    stream.write_all(head(CHAT, &[], 100).as_bytes()).unwrap();
    stream.write_all(b"{").unwrap();
    assert_eq!(read_answer(&mut stream).error(408)["code"], "body_timeout");
    // A head that never ends: the connection is closed without an answer.
    let mut stream = connect(server.address);
    stream.write_all(b"POST /v1/chat").unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut rest).unwrap();
    assert_eq!(get(server.address, "/health").status, 200);
}

#[test]
fn a_key_is_needed_where_one_is_set() {
    let api_key = Some("secret".to_owned());
    let server = TestServer::with(
        SAY,
        ServerConfig {
            api_key,
            ..config()
        },
        text(None),
    );
    let body = json!({"prompt": "a"}).to_string();
    let with = |headers: &[&str]| post_raw(server.address, COMPLETIONS, headers, body.as_bytes());
    for headers in [
        &[][..],
        &["authorization: Bearer wrong"],
        &["authorization: Bearer secret2"],
        &["authorization: secret"],
        &["authorization: Basic c2VjcmV0"],
    ] {
        let answer = with(headers);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(answer.error(401)["code"], "invalid_api_key");
    }
    assert_eq!(with(&["authorization: bearer secret"]).status, 200);
    assert_eq!(get(server.address, "/v1/models").status, 401);
    for open in ["/health", "/metrics", "/version", "/openapi.json"] {
        assert_eq!(get(server.address, open).status, 200, "{open}");
    }
}
