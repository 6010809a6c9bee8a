//! Models, tokens, health, version, metrics and the API's own description.

use serde_json::{Value, json};

use crate::client::{get, post};
use crate::fake::{MAX_MODEL_LEN, MODEL, Script, TestServer};

const SAY: Script = Script::Say {
    thinking: "2+2",
    answer: "four",
};

#[test]
fn models_are_listed_and_found() {
    let server = TestServer::start(SAY);
    let list = get(server.address, "/v1/models").json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, [MODEL, "alias"]);
    let model = get(server.address, &format!("/v1/models/{MODEL}")).json();
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!(MODEL), &json!("model"))
    );
    assert_eq!(model["max_model_len"], MAX_MODEL_LEN);
}

#[test]
fn tokens_go_both_ways() {
    let server = TestServer::start(SAY);
    let body = json!({"prompt": "h<think>é", "return_token_strs": true});
    let json = post(server.address, "/tokenize", &body).json();
    assert_eq!(json["tokens"], json!([104, 258, 195, 169]));
    assert_eq!(
        json["token_strs"],
        json!(["h", "<think>", "\u{fffd}", "\u{fffd}"])
    );
    assert_eq!(
        (&json["count"], &json["max_model_len"]),
        (&json!(4), &json!(MAX_MODEL_LEN))
    );
    let back = post(
        server.address,
        "/detokenize",
        &json!({"tokens": json["tokens"]}),
    )
    .json();
    assert_eq!(back["prompt"], "h<think>é");

    let body =
        json!({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false});
    let json = post(server.address, "/tokenize", &body).json();
    assert_eq!(json["count"], 1 + 6 + 1);

    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        (
            "/tokenize",
            json!({"prompt": "a", "messages": []}),
            "prompt",
        ),
        ("/detokenize", json!({"tokens": [9999]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        assert_eq!(
            post(server.address, path, &body).error(400)["param"],
            param,
            "{body}"
        );
    }
}

#[test]
fn health_and_version_answer() {
    let server = TestServer::start(SAY);
    assert_eq!(
        get(server.address, "/health").json(),
        json!({"status": "ok"})
    );
    let version = get(server.address, "/version").json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        get(server.address, "/nowhere").error(404)["code"],
        "not_found"
    );
    assert_eq!(
        get(server.address, "/tokenize").error(405)["code"],
        "method_not_allowed"
    );
}

#[test]
fn metrics_have_the_names_that_users_know() {
    let server = TestServer::start(SAY);
    let mut observer = server.metrics.step_observer();
    observer(&scrimp_engine::StepReport {
        tokens: 300,
        ..Default::default()
    });
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "n": 2});
    assert_eq!(
        post(server.address, "/v1/chat/completions", &body).status,
        200
    );
    let text = get(server.address, "/metrics").body;
    let value = |name: &str, label: &str| -> f64 {
        let start = format!("scrimp:{name}{{");
        let wanted = |line: &&str| {
            line.starts_with(&start)
                && line.contains(&format!("model_name=\"{MODEL}\""))
                && line.contains(label)
        };
        let line = text
            .lines()
            .find(wanted)
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for (name, label, expected) in [
        ("num_requests_running", "", 0.0),
        ("num_requests_waiting", "", 0.0),
        // 256 of 64 × 16 tokens.
        ("kv_cache_usage_perc", "", 0.25),
        ("num_preemptions_total", "", 3.0),
        ("prefix_cache_queries_total", "", 0.0),
        ("prefix_cache_hits_total", "", 0.0),
        ("prompt_tokens_total", "", 0.0),
        ("generation_tokens_total", "", 0.0),
        ("request_success_total", "finished_reason=\"stop\"", 2.0),
        ("request_success_total", "finished_reason=\"length\"", 0.0),
        ("request_success_total", "finished_reason=\"abort\"", 0.0),
        ("time_to_first_token_seconds_count", "", 2.0),
        ("inter_token_latency_seconds_count", "", 12.0),
        ("e2e_request_latency_seconds_count", "", 2.0),
        ("request_queue_time_seconds_sum", "", 0.5),
        ("request_prefill_time_seconds_sum", "", 1.0),
        ("request_decode_time_seconds_sum", "", 1.0),
        ("request_prompt_tokens_sum", "", 44.0),
        ("request_generation_tokens_sum", "", 14.0),
        ("iteration_tokens_total_sum", "", 300.0),
        ("iteration_tokens_total_bucket", "le=\"500.0\"", 1.0),
        ("cache_config_info", "block_size=\"16\"", 1.0),
        ("cache_config_info", "num_gpu_blocks=\"64\"", 1.0),
    ] {
        assert_eq!(value(name, label), expected, "{name}{{{label}}} in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_description_names_every_endpoint_and_the_fields_that_are_read() {
    let server = TestServer::start(SAY);
    let document = get(server.address, "/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    let mut described: Vec<_> = paths.keys().map(String::as_str).collect();
    described.sort_unstable();
    let expected = [
        "/detokenize",
        "/health",
        "/metrics",
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/version",
    ];
    assert_eq!(described, expected);
    for (path, item) in paths {
        let path = path.replace("{id}", MODEL);
        match item.get("get") {
            Some(_) => assert_eq!(get(server.address, &path).status, 200, "{path}"),
            None => assert_eq!(
                post(server.address, &path, &json!([])).status,
                400,
                "{path}"
            ),
        }
    }
    let schemas = &document["components"]["schemas"];
    let chat = schemas["ChatCompletionRequest"].to_string()
        + &schemas["GenerationFields"].to_string()
        + &schemas["ChatBody"].to_string();
    for field in [
        "messages",
        "max_completion_tokens",
        "thinking_token_budget",
        "logit_bias",
    ] {
        assert!(chat.contains(&format!("\"{field}\"")), "{field} in {chat}");
    }
    assert_every_reference_leads_somewhere(&document, &document);
}

fn assert_every_reference_leads_somewhere(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                let pointer = target.strip_prefix('#').expect("a local reference");
                assert!(
                    document.pointer(pointer).is_some(),
                    "{target} leads nowhere"
                );
            }
            map.values()
                .for_each(|v| assert_every_reference_leads_somewhere(v, document));
        }
        Value::Array(list) => {
            list.iter()
                .for_each(|v| assert_every_reference_leads_somewhere(v, document));
        }
        _ => {}
    }
}
