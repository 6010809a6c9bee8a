//! `scrimp run`, `bench` and `eval` as a person or a script starts them: the real binary on the
//! built-in model and on real (tiny, random) ones.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
const QUESTION: &str = "Start with 17. a) add 25. What is the result modulo 100?";

fn scrimp(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(args)
        .env_remove("SCRIMP_MODEL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not wait for its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a run that has to succeed.
fn printed(args: &[&str], stdin: &str) -> String {
    let output = scrimp(args, stdin);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Standard error of a run that has to fail, without a panic.
fn refusal(args: &[&str]) -> String {
    let output = scrimp(args, "");
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn model(name: &str) -> String {
    format!("{GOLDENS}/{name}")
}

#[test]
fn the_built_in_model_thinks_and_answers() {
    let json = printed(&["run", "--temperature", "0", "--json", QUESTION], "");
    let run: Value = serde_json::from_str(&json).unwrap();
    assert!(run["reasoning"].as_str().unwrap().contains("42"), "{json}");
    assert_eq!(run["answer"], "The answer is 42.");
    assert_eq!(run["finish_reason"], "stop");
    assert!(run["usage"]["reasoning_tokens"].as_u64().unwrap() > 3);
}

#[test]
fn thinking_and_answer_are_told_apart_in_a_pipe() {
    let said = printed(&["run", "--temperature", "0"], QUESTION);
    let (thought, answer) = said.split_once("</think>").unwrap();
    assert!(
        thought.starts_with("<think>\n") && thought.contains("42"),
        "{said}"
    );
    assert_eq!(answer.trim(), "The answer is 42.");
}

#[test]
fn a_conversation_goes_on_until_it_is_left() {
    let turns = format!("{QUESTION}\n/bill\n/nonsense\n/exit\n");
    let output = scrimp(&["run", "--chat", "--temperature", "0"], &turns);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("The answer is 42."));
    let notes = text(&output.stderr);
    assert!(
        notes.contains("tokens/s") && notes.contains("/nonsense is unknown"),
        "{notes}"
    );
}

#[test]
fn the_same_seed_gives_the_same_text_and_greedy_ignores_it() {
    let model = model("deepseek_v3");
    let run = |more: &[&str]| {
        let args = [
            "run", "--model", &model, "-n", "24", "--raw", "--json", "seed",
        ];
        let json = printed(&[&args, more].concat(), "");
        serde_json::from_str::<Value>(&json).unwrap()["answer"].clone()
    };
    assert_eq!(run(&["--seed", "1"]), run(&["--seed", "1"]));
    assert_ne!(run(&["--seed", "1"]), run(&["--seed", "2"]));
    let greedy = |seed| run(&["--temperature", "0", "--seed", seed]);
    assert_eq!(greedy("1"), greedy("2"));
}

#[test]
fn tiny_models_answer_from_their_folders_and_files() {
    for name in [
        "llama",
        "llama/model.gguf",
        "deepseek_v3/mla.gguf",
        "deepseek_v3/legacy.gguf",
    ] {
        let args = [
            "run",
            "--model",
            &model(name),
            "--raw",
            "-n",
            "8",
            "--json",
            "a",
        ];
        let run: Value = serde_json::from_str(&printed(&args, "")).unwrap();
        assert!(
            run["usage"]["completion_tokens"].as_u64().unwrap() > 0,
            "{name}"
        );
    }
}

#[test]
fn bench_reports_what_scripts_read() {
    let model = model("llama");
    let args = [
        "bench", "--model", &model, "-p", "20", "-n", "5", "-r", "2", "--json",
    ];
    let bench: Value = serde_json::from_str(&printed(&args, "")).unwrap();
    for field in [
        "model",
        "isa",
        "threads",
        "load_s",
        "memory_bandwidth_gb_per_s",
    ] {
        assert!(!bench[field].is_null(), "{field}");
    }
    assert_eq!(bench["prefill"]["samples"].as_array().unwrap().len(), 2);
    assert!(bench["decode"]["tokens_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn eval_measures_by_length_and_draws() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("accuracy.svg");
    let svg = svg.to_str().unwrap();
    let answers = folder.path().join("answers.jsonl");
    let answers = answers.to_str().unwrap();
    let args = [
        "eval",
        "--problems",
        "4",
        "--steps",
        "1,2",
        "--json",
        "--svg",
        svg,
        "--answers",
        answers,
    ];
    let report: Value = serde_json::from_str(&printed(&args, "")).unwrap();
    assert_eq!(report["problems"], 16);
    assert_eq!(report["families"][0]["by_length"][1]["steps"], 2);
    assert_eq!(report["families"][0]["by_length"][0]["accuracy"], 1.0);
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
    let answers = std::fs::read_to_string(answers).unwrap();
    let answers = answers.lines().map(serde_json::from_str::<Value>);
    let answers: Vec<Value> = answers.collect::<Result<_, _>>().unwrap();
    let right = answers.iter().filter(|a| a["correct"] == true).count();
    assert_eq!(answers.len(), 16);
    assert_eq!(right as f64 / 16.0, report["accuracy"].as_f64().unwrap());
}

#[test]
fn eval_scores_a_text_and_finds_no_difference_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let prose = folder.path().join("prose.txt");
    let problem = format!("{QUESTION}\nThe answer is 42. And some other words.\n");
    std::fs::write(&prose, problem.repeat(5)).unwrap();
    let prose = prose.to_str().unwrap();
    let common = ["--text", prose, "--window", "64", "--stride", "40"];
    let alone = [&["eval", "ponder", "--json"], &common[..]].concat();
    let alone: Value = serde_json::from_str(&printed(&alone, "")).unwrap();
    assert!(alone["perplexity"].as_f64().unwrap() > 1.0);
    assert!(alone.get("kl_mean").is_none());
    let both = [&["eval", "--reference", "ponder", "--json"], &common[..]].concat();
    let both: Value = serde_json::from_str(&printed(&both, "")).unwrap();
    assert_eq!(both["kl_mean"], 0.0);
    assert_eq!(both["top1_agreement"], 1.0);
    for key in ["tokens", "perplexity", "window", "stride"] {
        assert_eq!(both[key], alone[key], "{key}");
    }
    assert_eq!(both["reference_perplexity"], both["perplexity"]);
    let table = [&["eval", "--reference", "ponder"], &common[..]].concat();
    let table = printed(&table, "");
    assert!(table.contains("in windows of 64 every 40"), "{table}");
    let narrow = refusal(&["eval", "--text", prose, "--window", "1"]);
    assert!(narrow.contains("at least two tokens"), "{narrow}");
    let missing = refusal(&["eval", "--text", "no/such/file"]);
    assert!(missing.contains("no/such/file"), "{missing}");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let cases: [(&[&str], &str); 6] = [
        (
            &["run", "--model", "no/such/thing/here", "x"],
            "no file or folder",
        ),
        (&["run", "--memory", "1MiB", "x"], "What would fit"),
        (&["run", "--memory", "lots", "x"], "lots"),
        (&["run", "--temperature", "-1", "x"], "temperature is -1"),
        (&["run", "--top-p", "NaN", "x"], "top_p is NaN"),
        (&["bench", "--batch", "0"], "--batch is 0"),
    ];
    for (args, wanted) in cases {
        let said = refusal(args);
        assert!(said.contains(wanted), "{args:?} said {said}");
    }
}
