//! `scrimp plan` as a person or a script starts it: the real binary on the catalogue, on files, and
//! on what is wrong with them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
const R1: [&str; 7] = [
    "deepseek-ai/DeepSeek-R1",
    "--device",
    "H200:8",
    "--context",
    "65536",
    "--concurrency",
    "32",
];

fn scrimp(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .arg("plan")
        .args(args)
        .env_remove("SCRIMP_MODEL")
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn printed(args: &[&str]) -> String {
    let output = scrimp(args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    text(&output.stdout)
}

fn planned(args: &[&str]) -> Value {
    serde_json::from_str(&printed(&[args, &["--json"]].concat())).unwrap()
}

/// What a command that has to fail says, without a panic.
fn refusal(args: &[&str]) -> String {
    let output = scrimp(args);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn words(value: &Value) -> Vec<&str> {
    let list = value.as_array().unwrap().iter();
    list.map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn r1_fits_one_screen_and_names_its_bottleneck() {
    let screen = printed(&R1);
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines.len() <= 48, "{} lines\n{screen}", lines.len());
    for line in &lines {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert!(screen.contains("DOES NOT FIT"), "{screen}");
    assert!(screen.contains("What binds is KV cache"), "{screen}");
    assert!(screen.contains("reading the KV cache"), "{screen}");
}

/// Every remedy, put into the command, changes the plan as it said it would.
#[test]
fn remedies_keep_their_word() {
    let before = planned(&R1);
    assert_eq!(before["fits"], false);
    assert_eq!(before["bottleneck"]["capacity"], "kv_cache");
    let remedies = before["remedies"].as_array().unwrap();
    assert_eq!(remedies[0]["settles"], true);
    let best = &before["best_combination"];
    for remedy in remedies.iter().take(5).chain([best]) {
        let after = planned(&[&R1[..], &words(&remedy["flags"])].concat());
        assert_eq!(after["outcome"], remedy["after"], "{}", remedy["name"]);
        assert_eq!(after["fits"], remedy["settles"], "{}", remedy["name"]);
        let gained = after["kv_tokens"].as_i64().unwrap() - before["kv_tokens"].as_i64().unwrap();
        assert_eq!(remedy["gains_tokens"], gained, "{}", remedy["name"]);
    }
}

#[test]
fn combinations_and_machines_keep_their_word_too() {
    let short = [
        "Qwen/QwQ-32B",
        "--device",
        "RTX4090:2",
        "--context",
        "32768",
    ];
    let short = [&short[..], &["--concurrency", "4"]].concat();
    let before = planned(&short);
    assert_eq!(before["fits"], false);
    let mut tried = 0;
    let hardware = before["hardware"].as_array().unwrap();
    for remedy in hardware.iter().chain([&before["best_combination"]]) {
        if remedy.is_null() {
            continue;
        }
        let after = planned(&[&short[..], &words(&remedy["flags"])].concat());
        assert_eq!(after["fits"], true, "{}", remedy["name"]);
        assert_eq!(after["outcome"], remedy["after"], "{}", remedy["name"]);
        tried += 1;
    }
    assert!(tried > 0, "{before:#}");
}

#[test]
fn lengths_lower_what_is_needed() {
    let longest = planned(&R1);
    let lengths = ["--prompt-tokens", "2000", "--output-tokens", "6000,20000"];
    let known = planned(&[&R1[..], &lengths].concat());
    let needed = |plan: &Value| plan["live_tokens"]["needed"].as_f64().unwrap();
    assert!(needed(&known) < needed(&longest) / 3.0);
    assert_eq!(known["fits"], true);
    let shared = [&R1[..], &lengths, &["--prefix-share", "1"]].concat();
    assert!(needed(&planned(&shared)) < needed(&known));
}

#[test]
fn models_are_found_by_every_kind_of_name() {
    let folder = format!("{GOLDENS}/llama");
    let gguf = format!("{GOLDENS}/deepseek_v3/mla.gguf");
    let bare = format!("{GOLDENS}/qwen3_moe/config.json");
    let cpu = [
        "--device",
        "cpu",
        "--device-memory",
        "8GiB",
        "--device-bandwidth",
        "20",
    ];
    let of = |name: &str| planned(&[&[name][..], &cpu].concat());
    for name in [folder.as_str(), &gguf, &bare, "ponder"] {
        let plan = of(name);
        assert!(plan["parameters"].as_u64().unwrap() > 1000, "{name}");
        assert_eq!(plan["fits"], true, "{name}");
    }
    // Headers are exact: the file's own bytes.
    let tensors = of(&folder)["tensor_bytes"].as_u64().unwrap();
    let file = fs::metadata(format!("{folder}/model.safetensors"))
        .unwrap()
        .len();
    assert!(tensors <= file && tensors > file / 2, "{tensors} of {file}");
    let known = planned(&["DeepSeek-R1", "--device", "H200:8"]);
    assert_eq!(known["tensor_bytes"], 688_574_839_360u64);
}

#[test]
fn what_is_unknown_or_absurd_is_said_clearly() {
    let h200 = ["--device", "H200:8"];
    let r1 = "deepseek-ai/DeepSeek-R1";
    for (args, expected) in [
        (vec![r1, "--device", "H2000"], "H200"),
        (vec![r1, "--device", "H200:0"], "number of devices"),
        (vec!["DeepSeek-R11x", h200[0], h200[1]], "nearest"),
        (vec![r1, "--weights", "int3"], "int4-g128"),
        (vec![r1, "--kv-dtype", "fp5"], "fp8"),
        (vec![r1, "--engine", "vlm"], "vllm"),
        (vec![r1, "--engine", "vllm@x.y"], "version"),
        (vec![r1, "--output-tokens", "9,1"], "95th percentile"),
        (vec![r1, "--output-tokens", "-4"], "output-tokens"),
        (vec![r1, "--context", "0"], "--context"),
        (vec![r1, "--concurrency", "0"], "--concurrency"),
        (
            vec![r1, "--context", "100", "--prompt-tokens", "100"],
            "no room",
        ),
        (vec![r1, "--prefix-share", "2"], "--prefix-share"),
        (vec![r1, "--tp", "16"], "devices"),
        (vec![r1, "--mem-fraction-static", "0.8"], "sglang"),
        (
            vec![r1, "--gpu-memory-utilization", "1.5"],
            "--gpu-memory-utilization",
        ),
        (
            vec![r1, "--placement", "late_layers=moon"],
            "host_if_pressure",
        ),
        (vec![r1, "--emit", "docker"], "kubernetes"),
        (vec![r1, "--device-memory", "lots"], "memory"),
        (vec!["/nowhere/model"], "nearest"),
        (vec!["--check", "/nowhere.json"], "reading"),
    ] {
        let mut all = args.clone();
        if !args.contains(&"--device") && !args.contains(&"--check") {
            all.extend(h200);
        }
        let said = refusal(&all);
        assert!(said.contains(expected), "{all:?}: {said}");
        assert!(said.lines().count() < 12, "{said}");
    }
}

#[test]
fn broken_configs_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let good: Value =
        serde_json::from_str(&fs::read_to_string(format!("{GOLDENS}/llama/config.json")).unwrap())
            .unwrap();
    for (key, value) in [
        ("num_hidden_layers", json!(-4)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("hidden_size", json!("wide")),
        ("num_attention_heads", json!(0)),
        ("vocab_size", json!(1.5)),
        ("model_type", json!("nonesuch")),
    ] {
        let mut bad = good.clone();
        bad[key] = value.clone();
        fs::write(&path, bad.to_string()).unwrap();
        let said = refusal(&[path.to_str().unwrap(), "--device", "H200"]);
        let named = said.contains(key) || said.contains("nonesuch");
        assert!(named, "{key} = {value}: {said}");
    }
    fs::write(&path, "{ no json").unwrap();
    assert!(refusal(&[path.to_str().unwrap(), "--device", "H200"]).contains("no JSON"));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let said = refusal(&[empty.to_str().unwrap(), "--device", "H200"]);
    assert!(said.contains("config.json"), "{said}");
}

#[test]
fn a_workload_that_cannot_fit_is_a_verdict_and_no_error() {
    let plan = planned(&["DeepSeek-R1", "--device", "RTX4090", "--context", "8192"]);
    assert_eq!(plan["fits"], false);
    assert_eq!(plan["bottleneck"]["capacity"], "weights");
    assert!(!plan["hardware"].as_array().unwrap().is_empty());
}

#[test]
fn emitted_commands_run_the_plan() {
    let command = printed(&[&R1[..], &["--emit", "vllm", "--kv-dtype", "fp8"]].concat());
    assert!(
        command.contains("vllm serve deepseek-ai/DeepSeek-R1"),
        "{command}"
    );
    assert!(command.contains("--kv-cache-dtype fp8"), "{command}");
    let manifest = printed(&[
        "DeepSeek-R1",
        "--device",
        "H100:16",
        "--context",
        "32768",
        "--emit",
        "kubernetes",
    ]);
    assert!(manifest.contains("kind: LeaderWorkerSet"), "{manifest}");
    // scrimp's own flags are read by scrimp itself.
    let own = printed(&[
        "ponder",
        "--device",
        "cpu",
        "--device-memory",
        "4GiB",
        "--device-bandwidth",
        "20",
        "--memory",
        "1GiB",
        "--context",
        "1024",
        "--emit",
        "scrimp",
    ]);
    let words: Vec<String> = own
        .replace("\\\n", " ")
        .split_whitespace()
        .map(String::from)
        .collect();
    assert_eq!(&words[..2], ["scrimp", "serve"]);
    let output = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(&words[1..])
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{own}");
}

#[test]
fn the_page_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("plan.html");
    printed(&[&R1[..], &["--html", page.to_str().unwrap()]].concat());
    let html = fs::read_to_string(page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("Remedies"));
}

#[test]
fn recorded_cases_are_predicted_and_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cases.json");
    let config: Value =
        serde_json::from_str(&fs::read_to_string(format!("{GOLDENS}/llama/config.json")).unwrap())
            .unwrap();
    let case = json!([{
        "id": "a",
        "kind": "kv_bytes_per_token",
        "model": "x",
        "config": config,
        "setting": {"kv_dtype": "bf16", "tp": 1},
        "expected": {"bytes_per_token": 1024}
    }]);
    fs::write(&path, case.to_string()).unwrap();
    let report = planned(&["--check", path.to_str().unwrap()]);
    assert_eq!(
        report["cases"][0]["quantities"][0]["name"],
        "bytes_per_token"
    );
    assert!(report["summary"][0]["median_error"].is_number());
    let table = printed(&["--check", path.to_str().unwrap()]);
    assert!(
        table.contains("predicted") && table.contains("median error"),
        "{table}"
    );
}

#[test]
fn a_log_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vllm.log");
    let log = "INFO 01-01 00:00:00 [gpu_model_runner.py:1] Model loading took 15.2 GiB and 9.1 seconds\n\
               INFO 01-01 00:00:01 [gpu_worker.py:1] Available KV cache memory: 50.00 GiB\n\
               INFO 01-01 00:00:02 [kv_cache_utils.py:1] GPU KV cache size: 409,600 tokens\n";
    fs::write(&path, log).unwrap();
    let said = printed(&["--check-log", path.to_str().unwrap()]);
    assert!(said.contains("15.2") && said.contains("409600"), "{said}");
    fs::write(&path, "nothing of any engine").unwrap();
    assert!(refusal(&["--check-log", path.to_str().unwrap()]).contains("check-log"));
}

#[test]
fn names_are_listed() {
    assert!(printed(&["--list", "models"]).contains("deepseek-ai/DeepSeek-R1"));
    assert!(printed(&["--list", "devices"]).contains("H200"));
    assert!(printed(&["--list", "weights"]).contains("int4-g128"));
}
