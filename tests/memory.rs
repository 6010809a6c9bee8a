//! What is planned is what is used: the planned peak of `run`, `bench` and `serve` against the
//! most that the process really had resident, over models, contexts and types of the KV cache.
//!
//! Always: the built-in model, and a random model of 200 MB written here. With `SCRIMP_SMOLLM2`
//! naming SmolLM2's GGUF: that. With `SCRIMP_LARGE` set: a random model of Qwen2.5-1.5B's shape,
//! 3.1 GB of BF16 in the temporary folder.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Most that plan and measurement may differ by, as a share of what was measured.
const TOLERANCE: f64 = 0.03;
const KV_TYPES: [&str; 3] = ["f16", "bf16", "f32"];
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/llama");

fn scrimp(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command.args(args).env_remove("SCRIMP_MODEL");
    command
}

fn report(args: &[&str]) -> Value {
    let output = scrimp(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Holds a report's plan against its measurement; the two are printed for `--nocapture`.
fn check(args: &[&str], report: &Value) {
    let planned = report["planned_peak_bytes"].as_u64().unwrap();
    let measured = report["peak_rss_bytes"].as_u64().unwrap();
    let error = (planned as f64 - measured as f64) / measured as f64;
    println!("{:+.2} % {planned} {measured} {args:?}", error * 100.0);
    assert!(
        error.abs() <= TOLERANCE,
        "{args:?}: {planned} bytes planned, {measured} measured, {:+.2} %: {report}",
        error * 100.0
    );
}

fn check_run(args: &[&str]) {
    let args = [&["run", "--json"], args].concat();
    check(&args, &report(&args)["memory"]);
}

fn check_bench(args: &[&str]) {
    let args = [&["bench", "--json", "-r", "1"], args].concat();
    check(&args, &report(&args));
}

/// Short and long contexts of a model, with every type of cache.
fn check_model(model: &str, long: usize) {
    let decode = long.to_string();
    for kv in KV_TYPES {
        let model = ["--model", model, "--kv-cache-dtype", kv];
        check_bench(&[&model[..], &["-p", "24", "-n", "2"]].concat());
        check_bench(&[&model[..], &["-p", "0", "-n", "2", "-d", &decode]].concat());
    }
}

/// Dense layers of random BF16 weights, as Llama and Qwen have them.
struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    intermediate: usize,
    vocab: usize,
    tied: bool,
}

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, width) = (self.hidden, self.hidden / self.heads);
        let mut tensors = vec![
            ("model.embed_tokens.weight".into(), vec![self.vocab, hidden]),
            ("model.norm.weight".into(), vec![hidden]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.into()));
            };
            add("input_layernorm", &[hidden]);
            add("post_attention_layernorm", &[hidden]);
            add("self_attn.q_proj", &[self.heads * width, hidden]);
            add("self_attn.k_proj", &[self.kv_heads * width, hidden]);
            add("self_attn.v_proj", &[self.kv_heads * width, hidden]);
            add("self_attn.o_proj", &[hidden, self.heads * width]);
            add("mlp.gate_proj", &[self.intermediate, hidden]);
            add("mlp.up_proj", &[self.intermediate, hidden]);
            add("mlp.down_proj", &[hidden, self.intermediate]);
        }
        if !self.tied {
            tensors.push(("lm_head.weight".into(), vec![self.vocab, hidden]));
        }
        tensors
    }

    /// Writes the model into a folder, with a tokenizer that knows its first tokens.
    fn write(&self, folder: &Path) {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate, "vocab_size": self.vocab,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied, "torch_dtype": "bfloat16",
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(Path::new(TOKENIZER).join(file), folder.join(file)).unwrap();
        }
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in self.tensors() {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name, entry);
        }
        let header = Value::Object(header).to_string();
        let file = File::create(folder.join("model.safetensors")).unwrap();
        let mut file = BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .unwrap();
        file.write_all(header.as_bytes()).unwrap();
        let values = random_bf16(1 << 20);
        let mut left = end;
        while left > 0 {
            let part = left.min(values.len());
            file.write_all(&values[..part]).unwrap();
            left -= part;
        }
        file.flush().unwrap();
    }
}

/// Small numbers of both signs, between 2⁻⁸ and 2⁻⁵.
fn random_bf16(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut value = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        let bits = (state >> 40) as u16;
        (bits & 0x807f) | (119 + (bits >> 7 & 3)) << 7
    };
    (0..count).flat_map(|_| value().to_le_bytes()).collect()
}

const MIDDLE: Shape = Shape {
    hidden: 768,
    layers: 10,
    heads: 12,
    kv_heads: 4,
    intermediate: 2048,
    vocab: 32_000,
    tied: false,
};

#[test]
fn the_built_in_model() {
    let question = "Start with 17. a) add 25. b) multiply by 3. What is the result modulo 100?";
    check_run(&[question]);
    check_run(&["--threads", "1", "--precision", "exact", question]);
    check_model("ponder", 900);
    check_bench(&["-p", "0", "-n", "4", "-d", "300", "--batch", "6"]);
}

#[test]
fn a_random_model_of_200_mb() {
    let folder = tempfile::tempdir().unwrap();
    MIDDLE.write(folder.path());
    let model = folder.path().to_str().unwrap();
    check_model(model, 700);
    check_run(&["--model", model, "--raw", "-n", "6", "some text"]);
}

/// Where a large head is read beside a large embedding, more is held than ever after.
#[test]
fn a_peak_while_loading_is_foreseen() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape {
        hidden: 512,
        layers: 2,
        heads: 8,
        kv_heads: 2,
        intermediate: 768,
        vocab: 60_000,
        tied: false,
    };
    shape.write(folder.path());
    let model = folder.path().to_str().unwrap();
    let args = [
        "run", "--json", "--raw", "--model", model, "-n", "2", "text",
    ];
    let memory = &report(&args)["memory"];
    check(&args, memory);
    let bytes = |field: &str| memory[field].as_u64().unwrap();
    let parts = [
        "weights_bytes",
        "kv_cache_bytes",
        "activations_bytes",
        "other_bytes",
    ];
    let serving: u64 = parts.into_iter().map(bytes).sum();
    assert!(bytes("peak_rss_bytes") > serving + (40 << 20), "{memory}");
}

#[test]
fn smollm2_where_it_is_named() {
    let Some(model) = std::env::var_os("SCRIMP_SMOLLM2") else {
        eprintln!("skipped: SCRIMP_SMOLLM2 does not name SmolLM2's GGUF");
        return;
    };
    let model = model.to_str().unwrap();
    check_model(model, 1500);
    check_run(&["--model", model, "-n", "12", "Why is the sky blue?"]);
}

#[test]
fn a_model_of_three_gigabytes_where_it_is_wanted() {
    if std::env::var_os("SCRIMP_LARGE").is_none() {
        eprintln!("skipped: SCRIMP_LARGE is not set");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape {
        hidden: 1536,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        intermediate: 8960,
        vocab: 151_936,
        tied: true,
    };
    shape.write(folder.path());
    check_model(folder.path().to_str().unwrap(), 400);
}

/// The budget is hard: whatever fits into it stays below it, or is refused with numbers.
#[test]
fn resident_memory_stays_below_the_budget() {
    let mut ran = 0;
    for mib in [20, 36, 44, 60] {
        let memory = format!("{mib}MiB");
        let args = ["run", "--json", "--memory", &memory, "-n", "40", "Hello"];
        let output = scrimp(&args).stdin(Stdio::null()).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("What would fit"), "{memory}: {said}");
            continue;
        }
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let peak = report["memory"]["peak_rss_bytes"].as_u64().unwrap();
        assert!(peak <= mib << 20, "{memory}: {report}");
        ran += 1;
    }
    assert!((1..4).contains(&ran), "{ran} of 4 budgets were enough");
}

/// A server says at its end what it took.
#[test]
fn a_server_that_has_answered() {
    let mut server = scrimp(&["serve", "--port", "0", "--memory", "1GiB"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let address = lines
        .find_map(|line| {
            let line = line.unwrap();
            Some(line.split_once("http://")?.1.split(' ').next()?.to_owned())
        })
        .unwrap();
    for i in 0..4 {
        let body = json!({"model": "ponder", "prompt": format!("{i}"), "max_tokens": 100,
            "ignore_eos": true})
        .to_string();
        let mut stream = TcpStream::connect(&address).unwrap();
        let length = body.len();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let id = server.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(killed.success());
    let line = lines
        .map(|line| line.unwrap())
        .find(|line| line.starts_with("peak memory"))
        .unwrap();
    server.wait().unwrap();
    let numbers = line.split('(').skip(1);
    let bytes: Vec<u64> = numbers
        .filter_map(|part| part.split(' ').next()?.parse().ok())
        .collect();
    let report = json!({"peak_rss_bytes": bytes[0], "planned_peak_bytes": bytes[1]});
    check(&["serve"], &report);
}
