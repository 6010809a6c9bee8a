//! Downloads from a small hub on loopback: the cache's layout, resuming, refusals.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::vectors;
use scrimp_checkpoint::Checkpoint;
use scrimp_checkpoint::hub::{HubError, HubSettings, Progress, resolve};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a file is served.
#[derive(Clone, Default)]
struct Served {
    bytes: Vec<u8>,
    etag: String,
    /// Bytes sent before the connection is cut, one number per request; then whole.
    cuts: Vec<usize>,
    /// Length announced, if another than the true one.
    announced: Option<usize>,
    /// Whether `Range` is ignored.
    no_resume: bool,
    /// Whether the file lies in storage behind a redirect, as large files do.
    stored: bool,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Served>,
    /// Request lines with their range and whether a token came along.
    log: Vec<String>,
    /// Status for everything, if not the usual.
    status: Option<u16>,
    token: Option<String>,
}

struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
    cache: TempDir,
}

impl Hub {
    fn new(files: &[(&str, Served)]) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files
            .iter()
            .map(|(n, f)| ((*n).to_owned(), f.clone()))
            .collect();
        let state = Arc::new(Mutex::new(State {
            files,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Hub {
            endpoint,
            state,
            cache: TempDir::new().unwrap(),
        }
    }

    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.endpoint.clone(),
            cache: self.cache.path().to_owned(),
            token: Some("hf_secret".to_owned()),
            offline: false,
        }
    }

    fn resolve(&self, id: &str) -> Result<std::path::PathBuf, HubError> {
        resolve(id, &self.settings(), &mut |_| {})
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn repo(&self) -> std::path::PathBuf {
        self.cache.path().join("models--org--name")
    }
}

/// Answers one request and closes.
fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        match header.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let mut words = line.split_whitespace();
    let (method, path) = (
        words.next().unwrap().to_owned(),
        words.next().unwrap().to_owned(),
    );
    let answer = answer(&method, &path, &headers, &mut state.lock().unwrap());
    stream.write_all(answer.as_slice()).unwrap();
}

fn answer(
    method: &str,
    path: &str,
    headers: &HashMap<String, String>,
    state: &mut State,
) -> Vec<u8> {
    let range = headers.get("range").cloned();
    let token = headers.contains_key("authorization");
    let shown = range.as_deref().unwrap_or("whole");
    state.log.push(format!(
        "{method} {path} {shown}{}",
        if token { " token" } else { "" }
    ));
    if let Some(status) = state.status {
        let head = format!(
            "HTTP/1.1 {status} No\r\nX-Error-Message: the reason\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return head.into_bytes();
    }
    if let Some(wanted) = &state.token
        && headers.get("authorization") != Some(&format!("Bearer {wanted}"))
    {
        return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec();
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let names: Vec<_> = state
            .files
            .keys()
            .map(|n| serde_json::json!({"rfilename": n}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": names}).to_string();
        return format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes();
    }
    let resolved = format!("/org/name/resolve/{COMMIT}/");
    let (name, in_storage) = match (path.strip_prefix(&resolved), path.strip_prefix("/storage/")) {
        (Some(name), _) => (name, false),
        (_, Some(name)) => (name, true),
        _ => {
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .to_vec();
        }
    };
    let Some(file) = state.files.get_mut(name) else {
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec();
    };
    let size = file.announced.unwrap_or(file.bytes.len());
    let linked = format!(
        "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {size}\r\n",
        file.etag
    );
    if file.stored && !in_storage {
        // Asked about, it names another host, which nobody may ask; read, it is here.
        let host = if method == "HEAD" {
            "http://storage.invalid"
        } else {
            ""
        };
        let head = format!("HTTP/1.1 302 Found\r\nLocation: {host}/storage/{name}\r\n{linked}");
        return format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").into_bytes();
    }
    let begin = match &range {
        Some(range) if !file.no_resume => range["bytes=".len()..]
            .trim_end_matches('-')
            .parse()
            .unwrap(),
        _ => 0usize,
    };
    let body = &file.bytes[begin.min(file.bytes.len())..];
    let status = if begin > 0 {
        format!(
            "206 Partial Content\r\nContent-Range: bytes {begin}-{}/{size}",
            size - 1
        )
    } else {
        "200 OK".to_owned()
    };
    let etag = if file.stored {
        "\"storage-etag\"".to_owned()
    } else {
        format!("W/\"{}\"", file.etag)
    };
    let length = body.len().max(size.saturating_sub(begin));
    let mut out = format!(
        "HTTP/1.1 {status}\r\nETag: {etag}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into_bytes();
    if method == "GET" {
        let end = if file.cuts.is_empty() {
            body.len()
        } else {
            file.cuts.remove(0).min(body.len())
        };
        out.extend(&body[..end]);
    }
    out
}

fn small(text: &str) -> Served {
    Served {
        bytes: text.as_bytes().to_vec(),
        etag: format!("{:040x}", text.len()),
        ..Served::default()
    }
}

fn large(bytes: Vec<u8>) -> Served {
    let hash = Sha256::digest(&bytes);
    Served {
        etag: hash.iter().map(|b| format!("{b:02x}")).collect(),
        bytes,
        stored: true,
        ..Served::default()
    }
}

fn numbers(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn a_model_lands_in_the_shared_layout() {
    let weights = vectors(&["a", "b"]);
    let hub = Hub::new(&[
        ("config.json", small("{}")),
        ("tokenizer.json", small("{\"x\": 1}")),
        ("model.safetensors", large(weights.clone())),
        ("README.md", small("# not asked for")),
        ("onnx/model.onnx", small("nor this")),
    ]);
    let folder = hub.resolve("org/name").unwrap();
    assert_eq!(folder, hub.repo().join("snapshots").join(COMMIT));
    assert_eq!(
        std::fs::read_to_string(hub.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(Checkpoint::open(&folder).unwrap().contains("b"));
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(large(weights).etag));
    assert!(!folder.join("README.md").exists() && !folder.join("onnx").exists());

    let log = hub.log();
    assert!(
        log.contains(&"GET /api/models/org/name/revision/main whole token".to_owned()),
        "{log:?}"
    );
    assert!(
        log.contains(&"GET /storage/model.safetensors whole".to_owned()),
        "the token is for the hub alone: {log:?}"
    );

    // Again: the listing is asked for, and nothing else.
    assert_eq!(hub.resolve("org/name").unwrap(), folder);
    assert_eq!(hub.log().len(), 1);
    // A revision by commit needs no ref.
    assert_eq!(hub.resolve(&format!("org/name@{COMMIT}")).unwrap(), folder);
    assert!(!hub.repo().join("refs").join(COMMIT).exists());
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let bytes = numbers(300_000);
    let mut file = large(bytes.clone());
    file.cuts = vec![100_000, 50_000, 0];
    let hub = Hub::new(&[("m.gguf", file)]);
    let mut events = Vec::new();
    let path = resolve(
        "org/name:m.gguf",
        &hub.settings(),
        &mut |event| match event {
            Progress::Retry { reason, .. } => events.push(reason.to_owned()),
            Progress::Bytes { done, total, .. } => assert!(done <= total && total == 300_000),
            Progress::Offline { .. } => panic!(),
        },
    )
    .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(events.len(), 3, "{events:?}");
    let log = hub.log();
    let ranges: Vec<&String> = log
        .iter()
        .filter(|l| l.starts_with("GET /storage"))
        .collect();
    assert_eq!(
        ranges,
        [
            "GET /storage/m.gguf whole",
            "GET /storage/m.gguf bytes=100000-",
            "GET /storage/m.gguf bytes=150000-",
            "GET /storage/m.gguf bytes=150000-",
        ]
    );
}

#[test]
fn a_later_run_goes_on_and_a_server_that_cannot_starts_anew() {
    for no_resume in [false, true] {
        let bytes = numbers(70_001);
        let mut file = large(bytes.clone());
        file.no_resume = no_resume;
        let etag = file.etag.clone();
        let hub = Hub::new(&[("m.gguf", file)]);
        let blobs = hub.repo().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{etag}.incomplete")), &bytes[..40_000]).unwrap();
        let path = hub.resolve("org/name").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes);
        let asked = "GET /storage/m.gguf bytes=40000-".to_owned();
        assert!(hub.log().contains(&asked));
        assert!(!blobs.join(format!("{etag}.incomplete")).exists());
    }
}

#[test]
fn what_does_not_come_as_announced_is_not_kept() {
    // Another content of the right length: the hash tells.
    let mut file = large(numbers(1000));
    file.bytes[500] ^= 1;
    let hub = Hub::new(&[("m.gguf", file.clone())]);
    let error = hub.resolve("org/name").unwrap_err();
    assert!(matches!(error, HubError::Hash { .. }), "{error}");
    assert!(error.to_string().contains(&file.etag));
    assert_eq!(
        std::fs::read_dir(hub.repo().join("blobs")).unwrap().count(),
        0
    );

    // Longer than the hub said.
    let mut file = large(numbers(1000));
    file.announced = Some(900);
    let hub = Hub::new(&[("m.gguf", file)]);
    let error = hub.resolve("org/name").unwrap_err();
    assert!(
        matches!(
            error,
            HubError::Length {
                found: 1000,
                wanted: 900,
                ..
            }
        ),
        "{error}"
    );

    // Shorter, however often one asks: what came stays for the next attempt.
    let mut file = large(numbers(1000));
    file.announced = Some(1100);
    let etag = file.etag.clone();
    let hub = Hub::new(&[("m.gguf", file)]);
    let error = hub.resolve("org/name").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let part = hub.repo().join("blobs").join(format!("{etag}.incomplete"));
    assert_eq!(std::fs::metadata(part).unwrap().len(), 1000);
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::new(&[("m.gguf", small("x"))]);
    for (status, words) in [
        (401, "HF_TOKEN"),
        (403, "gated"),
        (404, "revision"),
        (429, "429"),
    ] {
        hub.state.lock().unwrap().status = Some(status);
        let error = hub.resolve("org/name").unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("the reason"),
            "{error}"
        );
        assert!(error.contains(&status.to_string()), "{error}");
        assert!(!error.contains("hf_secret"), "{error}");
    }
    hub.state.lock().unwrap().status = None;
    let error = hub.resolve("org/other").unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");
    let error = hub.resolve("org/name:q.gguf").unwrap_err().to_string();
    assert!(
        error.contains("\"q.gguf\"") && error.contains("m.gguf"),
        "{error}"
    );
    let error = hub.resolve("no such thing").unwrap_err().to_string();
    assert!(
        error.contains("no file or folder") && error.contains("org/name"),
        "{error}"
    );
    hub.state.lock().unwrap().token = Some("hf_secret".to_owned());
    assert!(hub.resolve("org/name").is_ok());
}

#[test]
fn without_a_hub_the_cache_will_do() {
    let hub = Hub::new(&[("m.gguf", small("weights"))]);
    let folder = hub.resolve("org/name").unwrap();
    let mut settings = hub.settings();
    settings.endpoint = "http://127.0.0.1:1".to_owned(); // nobody listens there
    let mut offline = false;
    let mut watch = |event: Progress| offline |= matches!(event, Progress::Offline { .. });
    let cached = resolve("org/name:m.gguf", &settings, &mut watch).unwrap();
    assert_eq!(cached, folder);
    assert!(offline);
    let error = resolve("org/never", &settings, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    settings.offline = true;
    assert!(resolve("org/name", &settings, &mut |_| {}).is_ok());
    let error = resolve("org/never", &settings, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("not in the cache") && error.contains("HF_HUB_OFFLINE"),
        "{error}"
    );
}

#[test]
fn shards_come_by_the_index() {
    let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    let hub = Hub::new(&[
        ("config.json", small("{}")),
        ("model.safetensors.index.json", small(index)),
        ("1.safetensors", large(vectors(&["a"]))),
        ("2.safetensors", large(vectors(&["b"]))),
        ("consolidated.safetensors", large(vectors(&["x"]))),
    ]);
    let folder = hub.resolve("org/name").unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert!(checkpoint.contains("a") && checkpoint.contains("b"));
    assert!(!folder.join("consolidated.safetensors").exists());
    let hub = Hub::new(&[("model.safetensors.index.json", small(index))]);
    let error = hub.resolve("org/name").unwrap_err().to_string();
    assert!(error.contains("\"1.safetensors\""), "{error}");
}

#[test]
fn names_that_leave_the_folder_are_passed_over() {
    let hub = Hub::new(&[
        ("../../evil.safetensors", small("x")),
        ("/abs.gguf", small("x")),
    ]);
    let error = hub.resolve("org/name").unwrap_err().to_string();
    assert!(error.contains("no files"), "{error}");
    let mut bad = small("x");
    bad.etag = "../../../up".to_owned();
    let hub = Hub::new(&[("m.gguf", bad)]);
    let error = hub.resolve("org/name").unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
}
