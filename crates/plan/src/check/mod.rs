//! Predictions against recorded figures: `scrimp plan --check`.
//!
//! A case has a model's config, a setting, and what somebody measured. Everything is predicted
//! from config and setting; a case's id, name and recorded figures are read only to report them.
//! A case that cannot be predicted is skipped and says why; no case, however damaged, is an error.

mod quantities;
mod report;
mod setting;
mod sizes;

use std::panic;

use serde_json::{Map, Value};

pub use report::{CaseReport, CheckReport, Quantity, Summary};

use crate::{EngineKind, Error, ModelShape, catalogue, engines};
use quantities::Predicted;

/// Where a case's config comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Configs {
    /// As the case gives it.
    AsGiven,
    /// With keys that it lacks taken from the catalogue's entry for the model's name.
    Completed,
}

/// Predicts every case of a list (or of `{"cases": [...]}`) from its own config and setting.
pub fn run(cases: &Value) -> CheckReport {
    run_with(cases, Configs::AsGiven)
}

/// The same, with configs that are partial or empty completed by the published ones in the
/// catalogue; each case so treated says it in [`CaseReport::note`].
pub fn run_completed(cases: &Value) -> CheckReport {
    run_with(cases, Configs::Completed)
}

fn run_with(cases: &Value, configs: Configs) -> CheckReport {
    let list = cases
        .as_array()
        .or_else(|| cases.get("cases").and_then(Value::as_array));
    match list {
        Some(list) => CheckReport::of(list.iter().enumerate().map(|(i, c)| case(i, c, configs))),
        None => CheckReport::of(std::iter::once(CaseReport {
            id: "file".to_owned(),
            kind: "none".to_owned(),
            skipped: Some("it has to be a list of cases, or an object with `cases`".to_owned()),
            ..CaseReport::default()
        })),
    }
}

/// One case.
fn case(index: usize, case: &Value, configs: Configs) -> CaseReport {
    let text = |key: &str| case.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut report = CaseReport {
        id: text("id").unwrap_or_else(|| format!("case {index}")),
        kind: text("kind").unwrap_or_else(|| "none".to_owned()),
        model: text("model").unwrap_or_default(),
        ..CaseReport::default()
    };
    let none = Map::new();
    let setting = case
        .get("setting")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    report.engine = setting::engine_label(setting);
    let outcome = predict(case, setting, &mut report, configs);
    match (outcome, case.get("expected").and_then(Value::as_object)) {
        (Err(why), _) => report.skipped = Some(why),
        (Ok(_), None) => report.skipped = Some("it has no `expected` figures".to_owned()),
        (Ok(predicted), Some(expected)) => report.compare(&predicted, expected),
    }
    report
}

/// What is predicted for a case, by kind.
fn predict(
    case: &Value,
    setting: &Map<String, Value>,
    report: &mut CaseReport,
    configs: Configs,
) -> Result<Predicted, String> {
    let config = case.get("config").cloned().unwrap_or(Value::Null);
    if !config.is_object() {
        return Err("it has no config".to_owned());
    }
    let (mut config, added) = match configs {
        Configs::AsGiven => (config, None),
        Configs::Completed => catalogue::complete(&report.model, &config),
    };
    report.note = added.map(|source| format!("config completed: {source}"));
    setting::lay_over_config(setting, &mut config);
    let shape = guarded(|| {
        ModelShape::from_partial_config(&report.model, &config).map_err(|e| e.to_string())
    })?;
    match report.kind.as_str() {
        "startup_log" => startup(&shape, setting, report),
        "kv_bytes_per_token" => guarded(|| sizes::kv(&shape, setting)),
        "params" => guarded(|| sizes::parameters(&shape)),
        "weights_bytes" => guarded(|| sizes::weights(&shape, case)),
        other => Err(format!(
            "its kind is {other:?}; known are startup_log, kv_bytes_per_token, params, \
             weights_bytes"
        )),
    }
}

/// A start-up: the engine's rules on this shape.
fn startup(
    shape: &ModelShape,
    setting: &Map<String, Value>,
    report: &mut CaseReport,
) -> Result<Predicted, String> {
    let read = setting::deployment(shape, setting)?;
    report.assume(&read.assumed);
    if shape.tensors.is_empty() {
        let why = shape
            .undetermined
            .as_deref()
            .unwrap_or("it lists no tensors");
        return Err(format!("the config does not determine the weights: {why}"));
    }
    let deployment = &read.deployment;
    guarded(|| {
        let plan = engines::predict(shape, deployment).map_err(|e| e.to_string())?;
        Ok(match deployment.engine.kind {
            EngineKind::Sglang => quantities::sglang(shape, deployment, &plan),
            EngineKind::TrtLlm => quantities::trtllm(deployment, &plan),
            EngineKind::LlamaCpp => quantities::llama_cpp(&plan),
            _ => quantities::vllm(deployment, &plan, &read),
        })
    })
}

/// Runs arithmetic on sizes that a file gave. They are range-checked where they are read; should a
/// combination still overflow, the case is skipped and the others go on.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("its sizes are beyond what can be computed".to_owned()))
}

/// A start-up's recorded figures against the plan of this shape under this setting (as a case has
/// it): what is predicted, in the order of the records.
///
/// # Errors
/// The setting does not say enough, or makes no sense.
pub fn compare_startup(
    shape: &ModelShape,
    setting: &Map<String, Value>,
    recorded: &Map<String, Value>,
) -> Result<Vec<Quantity>, Error> {
    let mut report = CaseReport::default();
    let predicted = startup(shape, setting, &mut report).map_err(|what| Error::Setting {
        setting: "--check-log",
        what,
    })?;
    report.compare(&predicted, recorded);
    Ok(report.quantities)
}
