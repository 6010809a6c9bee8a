//! Predictions against recorded figures: the gates, and cases that are damaged.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use proptest::prelude::*;
use scrimp_plan::check::{self, CheckReport};
use serde_json::{Value, json};

static CASES: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("cases.json")).unwrap());

fn cases() -> Value {
    CASES.clone()
}

/// The largest error of a quantity, over cases of an engine, but for those whose ids are given:
/// each of these is explained in `docs/accuracy.md`.
fn largest(report: &CheckReport, name: &str, engine: &str, but: &[&str]) -> (usize, f64) {
    let errors: Vec<f64> = report
        .quantities(name)
        .filter(|(case, _)| case.engine.starts_with(engine) && !but.contains(&case.id.as_str()))
        .map(|(_, quantity)| quantity.relative_error)
        .collect();
    (errors.len(), errors.iter().copied().fold(0.0, f64::max))
}

/// Fails with the cases' figures in sight.
fn gate(
    report: &CheckReport,
    name: &str,
    engine: &str,
    but: &[&str],
    most: f64,
    least_cases: usize,
) {
    let (cases, error) = largest(report, name, engine, but);
    assert!(cases >= least_cases, "{name}: only {cases} cases");
    for (case, quantity) in report
        .quantities(name)
        .filter(|(c, _)| c.engine.starts_with(engine))
    {
        if quantity.relative_error > most {
            eprintln!("{}: {quantity:?}", case.id);
        }
    }
    assert!(error <= most, "{name} of {engine}: {error}");
}

/// Printed by one rank while the tokens are another's (its note says so).
const TWO_RANKS: &str = "log-vllm-R1-Distill-Qwen-14B-2x4090";

#[test]
fn start_ups_from_their_own_configs() {
    let report = check::run(&cases());
    gate(&report, "weights_gib", "vllm", &[], 0.01, 20);
    gate(&report, "kv_gib", "vllm", &[], 0.05, 20);
    gate(&report, "kv_tokens", "vllm", &[TWO_RANKS], 0.05, 18);
    gate(&report, "non_kv_gib", "vllm", &[], 0.02, 14);
    gate(&report, "max_concurrent_sequences", "trtllm", &[], 0.01, 13);
    gate(&report, "kv_tokens", "sglang", &[], 0.01, 1);
    gate(&report, "weights_gb", "sglang", &[], 0.01, 1);
}

#[test]
fn start_ups_with_published_configs() {
    let report = check::run_completed(&cases());
    gate(&report, "weights_gib", "vllm", &[], 0.01, 44);
    gate(&report, "kv_gib", "vllm", &[], 0.05, 44);
    gate(&report, "kv_tokens", "vllm", &[TWO_RANKS], 0.05, 40);
    gate(&report, "gpu_blocks", "vllm", &[], 0.05, 41);
    gate(&report, "max_concurrency", "vllm", &[], 0.05, 41);
}

#[test]
fn medians_are_far_below_the_gates() {
    let report = check::run_completed(&cases());
    for name in ["weights_gib", "kv_gib", "kv_tokens", "activation_peak_gib"] {
        let summary = report
            .summary
            .iter()
            .find(|s| s.quantity == name && s.engine == "vllm")
            .unwrap();
        assert!(summary.median_error < 0.002, "{summary}");
    }
}

#[test]
fn every_case_is_there_and_a_skipped_one_says_why() {
    let cases = cases();
    let report = check::run(&cases);
    assert_eq!(report.cases.len(), cases.as_array().unwrap().len());
    for case in &report.cases {
        assert_eq!(
            case.skipped.is_some(),
            case.quantities.is_empty(),
            "{}",
            case.id
        );
        assert!(
            case.skipped.as_ref().is_none_or(|why| why.len() > 10),
            "{}",
            case.id
        );
    }
}

/// What `--json` promises.
#[test]
fn the_report_has_the_promised_fields() {
    let json = serde_json::to_value(check::run(&cases())).unwrap();
    let case = &json["cases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["skipped"].is_null())
        .unwrap();
    for key in ["id", "kind", "quantities", "skipped"] {
        assert!(case.get(key).is_some(), "{key}");
    }
    for key in ["name", "predicted", "recorded", "relative_error"] {
        assert!(case["quantities"][0].get(key).is_some(), "{key}");
    }
    for key in ["quantity", "engine", "cases", "median_error", "max_error"] {
        assert!(json["summary"][0].get(key).is_some(), "{key}");
    }
}

/// Ids, names and recorded figures change nothing that is predicted.
#[test]
fn predictions_see_config_and_setting_only() {
    let cases = cases();
    let mut masked = cases.clone();
    for (index, case) in masked.as_array_mut().unwrap().iter_mut().enumerate() {
        case["id"] = json!(format!("case-{index}"));
        if case["kind"] == "startup_log" {
            case["model"] = json!("somebody/model");
        }
        if let Value::Object(expected) = &mut case["expected"] {
            for value in expected
                .values_mut()
                .filter(|v| v.as_f64().is_some_and(|v| v > 0.0))
            {
                *value = json!(1.0);
            }
        }
    }
    let (plain, masked) = (check::run(&cases), check::run(&masked));
    for (a, b) in plain.cases.iter().zip(&masked.cases) {
        let predicted = |c: &check::CaseReport| -> Vec<(String, f64)> {
            c.quantities
                .iter()
                .map(|q| (q.name.clone(), q.predicted))
                .collect()
        };
        assert_eq!(predicted(a), predicted(b), "{}", a.id);
    }
}

#[test]
fn files_that_are_no_cases_are_reported() {
    for file in [
        json!(null),
        json!(3),
        json!({}),
        json!("cases"),
        json!({"cases": 1}),
    ] {
        let report = check::run(&file);
        assert!(report.cases[0].skipped.is_some(), "{file}");
    }
    let odd = json!([1, null, {}, [], {"kind": "startup_log"}, {"kind": "new", "config": {}},
        {"kind": "params", "config": [], "expected": {"total": 1}},
        {"id": 7, "kind": "startup_log", "config": {}, "setting": "fast", "expected": {}}]);
    let report = check::run(&odd);
    assert_eq!(report.cases.len(), 8);
    assert!(report.cases.iter().all(|case| case.skipped.is_some()));
}

/// A value that somebody might have put there.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!("many")),
        Just(json!([])),
        Just(json!({})),
        Just(json!(true)),
        Just(json!(-1)),
        Just(json!(0)),
        Just(json!(0.5)),
        Just(json!(1e300)),
        Just(json!(u64::MAX)),
        any::<i64>().prop_map(|n| json!(n)),
        (0u32..63).prop_map(|bits| json!(1u64 << bits)),
        any::<f64>().prop_map(|f| json!(f)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in a setting or a config, the case is predicted or skipped.
    #[test]
    fn mangled_cases_are_skipped_or_predicted(
        which in 0usize..94,
        in_setting in any::<bool>(),
        key in 0usize..64,
        value in odd_value(),
        missing in any::<bool>(),
    ) {
        let mut case = CASES[which].clone();
        let part = if in_setting { "setting" } else { "config" };
        if let Value::Object(map) = &mut case[part] {
            let keys: Vec<String> = map.keys().cloned().collect();
            if let Some(key) = keys.get(key % keys.len().max(1)) {
                if missing { map.remove(key); } else { map.insert(key.clone(), value); }
            }
        }
        let report = check::run(&json!([case]));
        for quantity in &report.cases[0].quantities {
            prop_assert!(quantity.predicted.is_finite() && quantity.predicted >= 0.0, "{quantity:?}");
        }
        prop_assert!(report.cases[0].skipped.is_some() || !report.cases[0].quantities.is_empty());
    }
}
