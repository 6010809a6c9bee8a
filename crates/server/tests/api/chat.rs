//! Chat completions: what the engine is asked, and what the client reads.

use scrimp_engine::{Reasoning, SamplingParams};
use scrimp_server::ServerConfig;
use scrimp_server::api::{ChatChunk, ChatCompletion};
use serde_json::{Value, json};

use crate::client::{get, post};
use crate::fake::{MODEL, Script, TEMPLATE, TestServer, config, text};

const PATH: &str = "/v1/chat/completions";
const SAY: Script = Script::Say {
    thinking: "2+2",
    answer: "four",
};

fn hello() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

/// Merges fields into a chat request that says hello.
fn request(fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": hello()});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn a_whole_answer_has_openais_shape() {
    let server = TestServer::start(SAY);
    let answer = post(server.address, PATH, &request(json!({"n": 2})));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.header("x-request-id").is_some());
    let json = answer.json();
    let parsed: ChatCompletion = serde_json::from_value(json.clone()).unwrap();
    assert!(parsed.id.starts_with("chatcmpl-"));
    assert_eq!(
        (parsed.object.as_str(), parsed.model.as_str()),
        ("chat.completion", MODEL)
    );
    assert_eq!(
        parsed.choices.iter().map(|c| c.index).collect::<Vec<_>>(),
        [0, 1]
    );
    for choice in &json["choices"].as_array().unwrap()[..] {
        let expected = json!({"role": "assistant", "content": "four", "refusal": null,
            "reasoning_content": "2+2", "reasoning": "2+2"});
        assert_eq!(choice["message"], expected);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["logprobs"], Value::Null);
    }
    // <s>[user]Hi</s>[assistant]<think>, a token a byte but for the special ones.
    let prompt_tokens = 1 + 6 + 2 + 1 + 11 + 1;
    assert_eq!(server.last_request().prompt.len(), prompt_tokens);
    let expected = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": 14, "total_tokens": prompt_tokens + 14,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 6},
        "scrimp": {"kv_cache_bytes": 2000, "preemptions": 2, "queue_time_s": 0.25,
            "prefill_time_s": 0.5, "decode_time_s": 1.0},
    });
    assert_eq!(json["usage"], expected);
}

#[test]
fn every_field_reaches_the_engine() {
    let server = TestServer::start(SAY);
    let body = request(json!({
        "max_tokens": 3, "max_completion_tokens": 9, "min_tokens": 2, "temperature": 0.5,
        "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 1.5, "seed": -7,
        "logit_bias": {"65": -100, "66": 2.5}, "stop": ["END", "\n\n"], "stop_token_ids": [257],
        "ignore_eos": true, "skip_special_tokens": false, "n": 3, "logprobs": true,
        "top_logprobs": 2, "thinking_token_budget": 100, "priority": -3, "cache_salt": "mine",
        "response_format": {"type": "text"}, "user": "u", "metadata": {"unknown": ["field"]},
    }));
    assert_eq!(post(server.address, PATH, &body).status, 200);
    let request = server.last_request();
    let sampling = &request.sampling;
    assert_eq!(
        (request.max_tokens, sampling.min_tokens, request.n),
        (Some(9), 2, 3)
    );
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.5, 0.9, Some(40))
    );
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.05, 1.1));
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (-1.0, 1.5)
    );
    assert_eq!((sampling.seed, sampling.logprobs), (-7i64 as u64, Some(2)));
    assert_eq!(
        sampling.logit_bias.iter().collect::<Vec<_>>(),
        [(&65, &-100.0), (&66, &2.5)]
    );
    assert_eq!(
        (request.stop.join("|"), &request.stop_token_ids[..]),
        ("END|\n\n".into(), &[257][..])
    );
    assert!(request.ignore_eos && !request.skip_special_tokens);
    assert_eq!(
        (request.thinking_token_budget, request.priority),
        (Some(100), -3)
    );
    assert_eq!(
        (request.cache_salt.as_deref(), request.reasoning),
        (Some("mine"), Reasoning::Thinking)
    );
}

#[test]
fn nulls_are_defaults_and_seeds_differ() {
    let server = TestServer::start(SAY);
    let body = request(json!({
        "max_tokens": null, "temperature": null, "stop": null, "n": null, "logit_bias": null,
        "stream": null, "stream_options": null, "seed": null, "tools": null, "tool_choice": null,
        "logprobs": null, "response_format": null, "top_k": -1, "suffix": null, "guided_json": null,
    }));
    let seeds: Vec<_> = (0..2)
        .map(|_| {
            assert_eq!(post(server.address, PATH, &body).status, 200);
            let request = server.last_request();
            assert_eq!(
                (request.max_tokens, request.n, request.sampling.top_k),
                (None, 1, None)
            );
            assert_eq!(request.sampling.temperature, 1.0);
            request.sampling.seed
        })
        .collect();
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn a_models_own_defaults_hold_where_a_request_does_not_say() {
    let default_sampling = SamplingParams {
        temperature: 0.6,
        top_k: Some(20),
        ..SamplingParams::default()
    };
    let with_defaults = ServerConfig {
        default_sampling,
        ..config()
    };
    let server = TestServer::with(SAY, with_defaults, text(Some(TEMPLATE)));
    for (fields, temperature, top_k) in [
        (json!({}), 0.6, Some(20)),
        (json!({"temperature": 0, "top_k": null}), 0.0, Some(20)),
        (json!({"top_k": -1}), 0.6, None),
    ] {
        assert_eq!(post(server.address, PATH, &request(fields)).status, 200);
        let sampling = server.last_request().sampling;
        assert_eq!((sampling.temperature, sampling.top_k), (temperature, top_k));
    }
}

/// The text of the prompt that `body` becomes.
fn prompt(body: &Value) -> (String, Reasoning) {
    let server = TestServer::start(SAY);
    let answer = post(server.address, PATH, body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let request = server.last_request();
    (
        text(None).tokenizer.decode(&request.prompt, false),
        request.reasoning,
    )
}

#[test]
fn conversations_go_through_the_template() {
    let messages = json!([
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning": "why"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]);
    let body = json!({"messages": messages, "tools": [{"type": "function"}, {}]});
    let expected = "<s>[system]Be brief</s>[user]ab</s>[assistant]c(why)</s>[assistant]</s>\
                    [tool]42</s>[tools:2][assistant]<think>";
    assert_eq!(prompt(&body), (expected.into(), Reasoning::Thinking));
}

#[test]
fn thinking_can_be_turned_off_where_the_template_can() {
    let expected = ("<s>[user]Hi</s>[assistant]".to_owned(), Reasoning::MayThink);
    let off = json!({"chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(prompt(&request(off)), expected);
    assert_eq!(
        prompt(&request(json!({"reasoning_effort": "none"}))),
        expected
    );
    let on = prompt(&request(json!({"reasoning_effort": "high"})));
    assert_eq!(on.1, Reasoning::Thinking);
}

#[test]
fn the_last_message_can_be_continued() {
    let messages =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, "}]);
    let body = json!({"messages": messages, "continue_final_message": true});
    assert_eq!(prompt(&body).0, "<s>[user]Hi</s>[assistant]Sure,");
    let plain = json!({"messages": hello(), "add_generation_prompt": false});
    assert_eq!(prompt(&plain).0, "<s>[user]Hi");
}

#[test]
fn a_model_without_tags_never_thinks_and_one_without_a_template_does_not_chat() {
    let mut plain = text(Some("{{ messages[0].content }}"));
    plain.reasoning = None;
    let server = TestServer::with(SAY, config(), plain);
    assert_eq!(post(server.address, PATH, &request(json!({}))).status, 200);
    assert_eq!(server.last_request().reasoning, Reasoning::Off);

    let server = TestServer::with(SAY, config(), text(None));
    let error = post(server.address, PATH, &request(json!({}))).error(400);
    assert_eq!(error["code"], "no_chat_template");
}

#[test]
fn all_tokens_spent_on_thinking_leave_an_empty_content_not_null() {
    let server = TestServer::start(SAY);
    let json = post(server.address, PATH, &request(json!({"max_tokens": 2}))).json();
    assert_eq!(json["choices"][0]["message"]["content"], "");
    assert_eq!(json["choices"][0]["message"]["reasoning_content"], "2+");
    assert_eq!(json["choices"][0]["finish_reason"], "length");
}

#[test]
fn log_probabilities_are_told_for_every_token() {
    let server = TestServer::start(SAY);
    let body = request(json!({"logprobs": true, "top_logprobs": 2}));
    let json = post(server.address, PATH, &body).json();
    let content = json["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let tokens: String = content
        .iter()
        .map(|t| t["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, "2+2four");
    let expected = json!({"token": "2", "logprob": -0.5, "bytes": [50], "top_logprobs": [
        {"token": "A", "logprob": -0.5, "bytes": [65]},
        {"token": "B", "logprob": -1.5, "bytes": [66]},
    ]});
    assert_eq!(content[0], expected);
}

#[test]
fn a_stream_tells_the_same_in_pieces() {
    let server = TestServer::start(SAY);
    let fields = json!({"stream": true, "n": 2, "logprobs": true,
        "stream_options": {"include_usage": true}});
    let events = post(server.address, PATH, &request(fields)).events();
    for event in &events {
        serde_json::from_value::<ChatChunk>(event.clone()).unwrap();
        assert_eq!(
            (&event["id"], &event["model"]),
            (&events[0]["id"], &json!(MODEL))
        );
        assert_eq!(event["object"], "chat.completion.chunk");
    }
    // Both roles first, then the answers in turn, each ended by its reason, then the usage.
    let opening: Vec<_> = events[..2].iter().map(|e| &e["choices"][0]).collect();
    for (index, choice) in opening.into_iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["delta"], json!({"role": "assistant", "content": ""}));
    }
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 14);
    assert_eq!(usage["usage"]["scrimp"]["preemptions"], 2);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some())
    );
    for index in 0..2 {
        let mine = || {
            chunks
                .iter()
                .map(|e| &e["choices"][0])
                .filter(|c| c["index"] == index)
        };
        let joined =
            |field: &str| -> String { mine().filter_map(|c| c["delta"][field].as_str()).collect() };
        assert_eq!(joined("content"), "four");
        assert_eq!(joined("reasoning_content"), "2+2");
        assert_eq!(joined("reasoning"), "2+2");
        let tokens = mine()
            .filter_map(|c| c["logprobs"]["content"].as_array())
            .flatten()
            .count();
        assert_eq!(tokens, 7);
        let reasons: Vec<_> = mine()
            .map(|c| &c["finish_reason"])
            .filter(|r| !r.is_null())
            .collect();
        assert_eq!(reasons, ["stop"]);
        assert_eq!(mine().next_back().unwrap()["finish_reason"], "stop");
    }
}

#[test]
fn a_stream_without_options_carries_no_usage() {
    let server = TestServer::start(SAY);
    let events = post(server.address, PATH, &request(json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    // Role, seven tokens, reason.
    assert_eq!(events.len(), 1 + 7 + 1);
}

#[test]
fn usage_can_be_told_all_along() {
    let server = TestServer::start(SAY);
    let options = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    let events = post(server.address, PATH, &request(options)).events();
    let counts: Vec<_> = events
        .iter()
        .map(|e| e["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [0, 1, 2, 3, 4, 5, 6, 7, 7]);
    assert_eq!(
        events.last().unwrap()["usage"]["completion_tokens_details"]["reasoning_tokens"],
        3
    );
}

#[test]
fn an_alias_is_answered_under_the_first_name_and_others_are_not_found() {
    let server = TestServer::start(SAY);
    let alias = post(server.address, PATH, &request(json!({"model": "alias"})));
    assert_eq!(alias.json()["model"], MODEL);
    let error = post(server.address, PATH, &request(json!({"model": "gpt-9"}))).error(404);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("model_not_found"), &json!("model"))
    );
    assert_eq!(
        get(server.address, "/v1/models/gpt-9").error(404)["code"],
        "model_not_found"
    );
}
