//! `scrimp serve` as a person starts it: the real binary, a real (tiny, random) model of R1's
//! architecture, real sockets and real signals.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/deepseek_v3");
const CHAT: &str = "/v1/chat/completions";

/// Far more than any test needs: a hang is a failure, not a stuck run.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running `scrimp serve`; dropped, it is killed.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_scrimp"))
            .args(["serve", "--model", MODEL, "--port", "0", "--threads", "2"])
            .args(["--memory", "1GiB", "--served-model-name", "tiny"])
            .args(args)
            .env_remove("SCRIMP_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("no address in {said}"))
                .unwrap();
            if let Some((_, address)) = line.split_once("http://") {
                break address.split(' ').next().unwrap().parse().unwrap();
            }
            said.push_str(&line);
        };
        // Somebody has to read on, or the server would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, body) = read_answer(self.open("POST", path, &body.to_string()));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// A metric's value, summed over its labels.
    fn metric(&self, name: &str) -> f64 {
        let (_, text) = read_answer(self.open("GET", "/metrics", ""));
        let start = format!("scrimp:{name}{{");
        let values = text.lines().filter(|line| line.starts_with(&start));
        values
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until more than `before` tokens have been generated.
    fn wait_until_generating(&self, before: f64) {
        let start = Instant::now();
        while self.metric("generation_tokens_total") <= before {
            assert!(start.elapsed() < PATIENCE, "nothing is generated");
        }
    }

    /// Waits until nothing runs and no block is in use.
    fn wait_until_idle(&self) {
        let gauges = [
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_blocks_in_use",
        ];
        let start = Instant::now();
        while gauges.iter().any(|gauge| self.metric(gauge) > 0.0) {
            assert!(start.elapsed() < PATIENCE, "not idle");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body, its chunks put together.
fn read_answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, mut rest) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.contains("chunked") {
        return (status, rest.to_owned());
    }
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (status, body)
}

fn question(words: &str, fields: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": words}],
        "temperature": 0, "max_tokens": 40, "ignore_eos": true, "thinking_token_budget": 12,
    });
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    body
}

/// What must not depend on what else runs.
fn essence(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    json!([
        choice["message"],
        choice["finish_reason"],
        answer["usage"]["completion_tokens"]
    ])
}

#[test]
fn thinking_and_answer_come_apart_whole_and_streamed() {
    let server = Server::start(&[]);
    let whole = server.post(CHAT, &question("What is 2+2?", json!({})));
    let message = &whole["choices"][0]["message"];
    let (thinking, content) = (
        message["reasoning_content"].as_str().unwrap(),
        message["content"].as_str().unwrap(),
    );
    assert!(!thinking.is_empty() && !content.is_empty(), "{whole}");
    assert!(
        !thinking.contains("think>") && !content.contains("think>"),
        "{whole}"
    );
    let usage = &whole["usage"];
    assert_eq!(
        (&usage["completion_tokens"], &usage["total_tokens"].as_u64()),
        (&json!(40), &usage["prompt_tokens"].as_u64().map(|n| n + 40))
    );
    let thought = usage["completion_tokens_details"]["reasoning_tokens"]
        .as_u64()
        .unwrap();
    // The closing tag may be counted with the chain.
    assert!((1..=13).contains(&thought), "{usage}");
    assert!(
        usage["scrimp"]["kv_cache_bytes"].as_u64().unwrap() > 0,
        "{usage}"
    );

    let streamed = question("What is 2+2?", json!({"stream": true}));
    let (status, events) = read_answer(server.open("POST", CHAT, &streamed.to_string()));
    assert_eq!(status, 200);
    let data = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    let chunks: Vec<Value> = data
        .filter(|&d| d != "[DONE]")
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    let joined = |field: &str| -> String {
        chunks
            .iter()
            .filter_map(|c| c["choices"][0]["delta"][field].as_str())
            .collect()
    };
    assert_eq!(
        (
            joined("reasoning_content").as_str(),
            joined("content").as_str()
        ),
        (thinking, content)
    );
    assert!(chunks.len() > 10, "{} chunks", chunks.len());

    // The same words again find their full blocks in the cache.
    let again = server.post(CHAT, &question("What is 2+2?", json!({})));
    assert_eq!(essence(&again), essence(&whole));
    assert!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            >= 16
    );
    server.wait_until_idle();
}

#[test]
fn many_clients_on_a_small_pool_get_what_each_gets_alone() {
    let request = |i: usize| {
        let sampled = json!({"temperature": 0.9, "seed": i});
        let words = format!("Client {i}: {}", "ship ".repeat(3 + i % 5));
        question(
            &words,
            if i.is_multiple_of(3) {
                sampled
            } else {
                json!({})
            },
        )
    };
    let roomy = Server::start(&[]);
    let alone: Vec<_> = (0..32)
        .map(|i| essence(&roomy.post(CHAT, &request(i))))
        .collect();

    // Twelve blocks of 16 tokens. It learns to expect short answers, and so lets in more
    // requests than can finish side by side.
    let server = Server::start(&["--num-blocks", "12", "--max-model-len", "192"]);
    for i in 0..32 {
        server.post(CHAT, &question(&format!("{i}"), json!({"max_tokens": 4})));
    }
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..32)
            .map(|i| {
                let (server, request) = (&server, &request);
                scope.spawn(move || essence(&server.post(CHAT, &request(i))))
            })
            .collect();
        for (i, client) in clients.into_iter().enumerate() {
            assert_eq!(client.join().unwrap(), alone[i], "client {i}");
        }
    });
    // Whether those clients met depends on the machine. Eight answers to one request do meet, and
    // grow to far more blocks than were expected of them.
    let eight = json!({"n": 8, "max_tokens": 140, "temperature": 0.9, "seed": 1});
    let eight = question("Go on", eight);
    assert_eq!(
        server.post(CHAT, &eight)["choices"],
        roomy.post(CHAT, &eight)["choices"]
    );
    assert!(server.metric("num_preemptions_total") > 0.0);
    server.wait_until_idle();
    assert_eq!(server.metric("kv_cache_usage_perc"), 0.0);
    assert_eq!(
        server.metric("generation_tokens_total"),
        32.0 * (4.0 + 40.0) + 8.0 * 140.0
    );
}

#[test]
fn a_client_that_hangs_up_frees_its_blocks() {
    let server = Server::start(&[]);
    for stream in [true, false] {
        let before = server.metric("generation_tokens_total");
        let endless = question("Go on", json!({"stream": stream, "max_tokens": 900}));
        let client = server.open("POST", CHAT, &endless.to_string());
        server.wait_until_generating(before);
        drop(client);
        server.wait_until_idle();
    }
    assert!(server.metric("generation_tokens_total") < 1800.0);
}

#[test]
fn sigterm_finishes_what_runs_and_exits_cleanly() {
    let mut server = Server::start(&[]);
    let body = question("Go on", json!({"max_tokens": 400})).to_string();
    let client = server.open("POST", CHAT, &body);
    server.wait_until_generating(0.0);
    server.signal("-TERM");
    let (status, answer) = read_answer(client);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 400);
    assert!(server.wait().success());
    assert!(TcpStream::connect(server.address).is_err());
}
