//! `scrimp profile` on the built-in model: what scripts read, what a remedy does, and the page.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Stdio};

use serde_json::Value;

fn scrimp(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .arg("profile")
        .args(args)
        .env_remove("SCRIMP_MODEL")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn profile(args: &[&str]) -> Value {
    let output = scrimp(&[args, &["--json", "--threads", "2"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn every_step_is_accounted_for() {
    let report = profile(&["--steps", "3"]);
    let request = &report["request"];
    assert_eq!(
        (&request["correct"], &request["steps"]),
        (&1.into(), &3.into())
    );
    let timeline = report["timeline"].as_array().unwrap();
    let sum = |f: &dyn Fn(&Value) -> f64| -> f64 { timeline.iter().map(f).sum() };
    let tokens = number(&request["prompt_tokens"]) + number(&request["completion_tokens"]);
    // The last token is drawn and never computed.
    assert_eq!(sum(&|step| number(&step["tokens"])), tokens - 1.0);
    for step in timeline {
        let parts = step["seconds_by_part"].as_object().unwrap();
        let in_parts: f64 = parts.values().map(number).sum();
        let seconds = number(&step["seconds"]);
        assert!((in_parts - seconds).abs() <= seconds * 1e-3, "{step}");
        assert!(number(&parts["linear"]) > 0.0 && number(&parts["experts"]) > 0.0);
        assert!(number(&step["rss_bytes"]) > 1e7 && number(&step["ledger"]["weights"]) > 1e6);
    }
    let last = &timeline[timeline.len() - 1];
    let (weights, kv) = (&last["bytes_read"]["weights"], &last["bytes_read"]["kv"]);
    let resident = number(&report["planned"]["weights_bytes"]);
    assert!(number(weights) > 0.1 * resident && number(weights) < resident);
    assert!(number(kv) > 0.0 && number(kv) < number(&report["planned"]["kv_cache_bytes"]));
    assert!(
        number(&report["errors"]["peak"]).abs() <= 0.03,
        "{}",
        report["errors"]
    );
    for field in ["capacity", "bandwidth", "explanation"] {
        assert!(report["bottleneck"][field].is_string(), "{field}");
    }
    for field in [
        "name",
        "change",
        "saves_bytes",
        "gains_tokens",
        "gains_sequences",
        "quality",
        "speed",
        "flags",
    ] {
        assert!(!report["remedies"][0][field].is_null(), "{field}");
    }
}

/// Half the bytes of a value, and settings cut to what runs: both as foretold.
#[test]
fn a_remedy_does_what_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let page = page.to_str().unwrap();
    let args = [
        "--steps",
        "6",
        "--kv-cache-dtype",
        "f32",
        "--concurrency",
        "6",
    ];
    let report = profile(&[&args[..], &["--apply", "--html", page]].concat());
    let applied = &report["applied"];
    let (predicted, after) = (&applied["predicted"], &applied["after"]);
    for figure in ["peak_rss_bytes", "activations_bytes"] {
        let (said, is) = (number(&predicted[figure]), number(&after[figure]));
        assert!((said / is - 1.0).abs() <= 0.1, "{figure}: {applied}");
    }
    let before = number(&applied["before"]["peak_rss_bytes"]);
    assert!(number(&after["peak_rss_bytes"]) < before, "{applied}");
    assert_eq!(applied["remedy"]["flags"], report["remedies"][0]["flags"]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("Applied"));
    assert!(page.matches("<svg").count() == 2 && !page.contains("NaN"));
    assert!(
        !page.contains("src=") && !page.contains("href="),
        "self-contained"
    );
}

#[test]
fn what_cannot_be_profiled_is_refused_in_words() {
    let cases: [(&[&str], &str); 4] = [
        (&["--steps", "65"], "--steps is 65"),
        (&["--family", "chess"], "chess"),
        (&["--concurrency", "0"], "--concurrency is 0"),
        (&["--steps", "1", "--apply", "99"], "--apply 99"),
    ];
    for (args, wanted) in cases {
        let output = scrimp(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?} was accepted");
        assert!(said.contains(wanted), "{args:?} said {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
