//! Requests that end early, queues that are full, and servers that stop.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use scrimp_engine::RequestError;
use scrimp_server::{Ending, ServerConfig};
use serde_json::{Value, json};

use crate::client::{connect, get, head, post, read_answer};
use crate::fake::{Script, TestServer, config, text};

const PATH: &str = "/v1/completions";

/// Sends a request and does not wait for its answer.
fn send(server: &TestServer, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = connect(server.address);
    stream
        .write_all((head(PATH, &[], body.len()) + &body).as_bytes())
        .unwrap();
    stream
}

fn hanging(config: ServerConfig) -> TestServer {
    TestServer::with(Script::Hang, config, text(None))
}

#[test]
fn hanging_up_aborts_at_once_streaming_or_not() {
    let server = hanging(config());
    for (round, stream) in [(1, true), (2, false)] {
        let client = send(&server, &json!({"prompt": ["a", "b"], "stream": stream}));
        server.wait_until("both prompts taken in", |seen| {
            seen.requests.len() == 2 * round
        });
        assert_eq!(server.seen.lock().unwrap().aborted.len(), 2 * (round - 1));
        drop(client);
        server.wait_until("both prompts aborted", |seen| {
            seen.aborted.len() == 2 * round
        });
    }
    let metrics = get(server.address, "/metrics").body;
    let aborted = metrics
        .lines()
        .find(|line| line.contains("finished_reason=\"abort\""))
        .unwrap();
    assert!(aborted.ends_with(" 4"), "{aborted}");
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    let server = hanging(ServerConfig {
        keep_alive: Duration::from_millis(20),
        ..config()
    });
    let mut client = send(&server, &json!({"prompt": "a", "stream": true}));
    let mut read = String::new();
    let mut buffer = [0; 1024];
    while read.matches(": keep-alive").count() < 2 {
        let count = client.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {read:?}");
        read.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(read.contains("\"text\":\"h\""), "{read}");
}

#[test]
fn time_limits_abort_and_say_so() {
    let limit = Some(Duration::from_secs(1));
    let server = hanging(ServerConfig {
        request_timeout: limit,
        ..config()
    });
    let answer = post(server.address, PATH, &json!({"prompt": "a"}));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    let error = answer.error(504);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("the 1 s allowed"),
        "{error}"
    );
    server.wait_until("an abort", |seen| seen.aborted.len() == 1);

    let answer = post(
        server.address,
        PATH,
        &json!({"prompt": "a", "stream": true}),
    );
    let last = answer.body.lines().rfind(|line| line.starts_with("data: "));
    assert!(
        last.unwrap().contains("\"request_timeout\""),
        "{}",
        answer.body
    );
    server.wait_until("another abort", |seen| seen.aborted.len() == 2);
}

#[test]
fn failures_become_errors_or_error_events() {
    for (error, status, code) in [
        (RequestError::Internal("boom".into()), 500, "internal_error"),
        (RequestError::QueueFull { waiting: 7 }, 429, "queue_full"),
        (RequestError::ShuttingDown, 503, "shutting_down"),
    ] {
        let server = TestServer::with(Script::Break(error), config(), text(None));
        let body = post(server.address, PATH, &json!({"prompt": "a"})).error(status);
        assert_eq!(body["code"], code);
        let answer = post(
            server.address,
            PATH,
            &json!({"prompt": "a", "stream": true}),
        );
        let last = answer
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .next_back();
        let last: Value = serde_json::from_str(last.unwrap()).unwrap();
        assert_eq!(last["error"]["code"], code);
    }
}

#[test]
fn a_full_queue_refuses_until_somebody_leaves() {
    let server = hanging(ServerConfig {
        max_queue: 2,
        ..config()
    });
    let mut clients = Vec::new();
    // One runs, two wait.
    for count in 1..=3 {
        clients.push(send(&server, &json!({"prompt": "a"})));
        server.wait_until("taken in", |seen| seen.requests.len() == count);
        // The engine tells after the request that one runs.
        while !get(server.address, "/metrics")
            .body
            .contains("num_requests_running{model_name=\"tiny/reasoner\"} 1")
        {}
    }
    let answer = post(
        server.address,
        PATH,
        &json!({"prompt": "a", "stream": true}),
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    let error = answer.error(429);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("2 completions"),
        "{error}"
    );
    clients.pop();
    server.wait_until("an abort", |seen| seen.aborted.len() == 1);
    let _client = send(&server, &json!({"prompt": "a"}));
    server.wait_until("taken in again", |seen| seen.requests.len() == 4);
}

#[test]
fn draining_finishes_what_runs_and_takes_nothing_new() {
    let server = hanging(config());
    let client = send(&server, &json!({"prompt": "a"}));
    server.wait_until("taken in", |seen| seen.requests.len() == 1);
    server.shutdown.drain();
    // Nobody listens any more.
    while TcpStream::connect(server.address).is_ok() {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(server.seen.lock().unwrap().aborted.is_empty());
    drop(client);
    server.wait_until("shutdown", |seen| seen.shutdown == Some(false));
    assert_eq!(server.ending(), Ending::Drained);
}

#[test]
fn a_second_signal_or_the_grace_period_cuts_off() {
    let server = hanging(config());
    let mut client = send(&server, &json!({"prompt": "a", "stream": true}));
    server.wait_until("taken in", |seen| seen.requests.len() == 1);
    server.shutdown.drain();
    server.shutdown.abort();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    server.wait_until("an abort", |seen| seen.aborted.len() == 1);
    assert_eq!(server.ending(), Ending::CutOff);

    let server = hanging(ServerConfig {
        grace_period: Duration::from_millis(20),
        ..config()
    });
    let _client = send(&server, &json!({"prompt": "a"}));
    server.wait_until("taken in", |seen| seen.requests.len() == 1);
    server.shutdown.drain();
    assert_eq!(server.ending(), Ending::CutOff);
}

#[test]
fn an_address_in_use_is_said_to_be() {
    let server = hanging(config());
    let address = server.address;
    let (engine, _end) = scrimp_engine::EngineHandle::channel(crate::fake::info());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let metrics = server.metrics.clone();
    let config = ServerConfig {
        address,
        ..config()
    };
    let bound = runtime.block_on(scrimp_server::Server::bind(
        config,
        engine,
        text(None),
        metrics,
    ));
    let error = bound.err().expect("a refusal").to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[test]
fn web_pages_are_let_in_where_allowed() {
    let ask = |allow_any_origin| {
        let server = hanging(ServerConfig {
            allow_any_origin,
            ..config()
        });
        let mut stream = connect(server.address);
        let preflight = format!(
            "OPTIONS {PATH} HTTP/1.1\r\nhost: t\r\norigin: http://page\r\n\
             access-control-request-method: POST\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(preflight.as_bytes()).unwrap();
        let answer = read_answer(&mut stream);
        answer
            .header("access-control-allow-origin")
            .map(str::to_owned)
    };
    assert_eq!(ask(true).as_deref(), Some("*"));
    assert_eq!(ask(false), None);
}
