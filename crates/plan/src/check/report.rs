//! What a check prints: cases with their quantities, and a summary by quantity and engine.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::quantities::Predicted;

/// A figure, predicted and recorded, in the recorded one's unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantity {
    /// Its key among the case's `expected` (`file_bytes.BF16` where figures are nested).
    pub name: String,
    /// What the plan says.
    pub predicted: f64,
    /// What somebody measured.
    pub recorded: f64,
    /// The difference as a part of the recorded figure, without sign.
    pub relative_error: f64,
}

/// One case.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CaseReport {
    /// As in the file.
    pub id: String,
    /// `startup_log`, `kv_bytes_per_token`, `params` or `weights_bytes`.
    pub kind: String,
    /// As in the file.
    pub model: String,
    /// Engine and version, where the setting names one.
    pub engine: String,
    /// Figures that were predicted.
    pub quantities: Vec<Quantity>,
    /// Why the case was not predicted at all.
    pub skipped: Option<String>,
    /// Recorded figures for which nothing is predicted, and why.
    pub unpredicted: BTreeMap<String, String>,
    /// What was assumed, where the case does not say.
    pub note: Option<String>,
}

/// Errors of one quantity under one engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the quantity.
    pub quantity: String,
    /// Engine without version; `model` for what depends on no engine.
    pub engine: String,
    /// How many.
    pub cases: usize,
    /// Median relative error.
    pub median_error: f64,
    /// Largest relative error.
    pub max_error: f64,
}

/// All cases and their summary.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckReport {
    /// In the file's order.
    pub cases: Vec<CaseReport>,
    /// By quantity and engine.
    pub summary: Vec<Summary>,
}

impl CaseReport {
    /// Notes what was assumed.
    pub(super) fn assume(&mut self, what: &[String]) {
        for line in what {
            let note = self.note.get_or_insert_with(String::new);
            if !note.is_empty() {
                note.push_str("; ");
            }
            note.push_str(line);
        }
    }

    /// Pairs what is predicted with what is recorded.
    pub(super) fn compare(&mut self, predicted: &Predicted, expected: &Map<String, Value>) {
        for (name, recorded) in expected {
            match recorded {
                Value::Object(inner) => {
                    for (key, recorded) in inner {
                        self.compare_one(predicted, format!("{name}.{key}"), recorded);
                    }
                }
                _ => self.compare_one(predicted, name.clone(), recorded),
            }
        }
        if self.quantities.is_empty() {
            let names: Vec<&str> = expected.keys().map(String::as_str).collect();
            self.skipped = Some(format!(
                "none of its figures is predicted: {}",
                names.join(", ")
            ));
        }
    }

    fn compare_one(&mut self, predicted: &Predicted, name: String, recorded: &Value) {
        let Some(recorded) = recorded.as_f64().filter(|r| r.is_finite()) else {
            self.unpredicted.insert(name, "it is no number".to_owned());
            return;
        };
        if recorded <= 0.0 {
            self.unpredicted
                .insert(name, format!("{recorded} is no size"));
            return;
        }
        match predicted.get(&name) {
            Some(Ok(value)) if value.is_finite() => self.quantities.push(Quantity {
                name,
                predicted: *value,
                recorded,
                relative_error: ((value - recorded) / recorded).abs(),
            }),
            Some(Ok(_)) => {
                self.unpredicted
                    .insert(name, "it has no finite value".to_owned());
            }
            Some(Err(why)) => {
                self.unpredicted.insert(name, why.clone());
            }
            None => {
                self.unpredicted
                    .insert(name, "nothing predicts a figure of this name".to_owned());
            }
        }
    }
}

impl CheckReport {
    pub(super) fn of(cases: impl Iterator<Item = CaseReport>) -> CheckReport {
        let cases: Vec<CaseReport> = cases.collect();
        let mut errors: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for case in &cases {
            let engine = case.engine.split(' ').next().unwrap_or_default();
            for quantity in &case.quantities {
                let name = quantity
                    .name
                    .split('.')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                errors
                    .entry((name, engine.to_owned()))
                    .or_default()
                    .push(quantity.relative_error);
            }
        }
        let summary = errors
            .into_iter()
            .map(|((quantity, engine), mut errors)| {
                errors.sort_by(f64::total_cmp);
                Summary {
                    quantity,
                    engine,
                    cases: errors.len(),
                    median_error: median(&errors),
                    max_error: errors.last().copied().unwrap_or(0.0),
                }
            })
            .collect();
        CheckReport { cases, summary }
    }

    /// Every quantity of this name with its case, for gates.
    pub fn quantities<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a CaseReport, &'a Quantity)> {
        self.cases.iter().flat_map(move |case| {
            case.quantities
                .iter()
                .filter(move |q| q.name == name)
                .map(move |q| (case, q))
        })
    }
}

/// Of sorted values.
fn median(sorted: &[f64]) -> f64 {
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

impl fmt::Display for CaseReport {
    /// A line for the case, and one for each of its figures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.id, self.model, self.engine)?;
        if let Some(why) = &self.skipped {
            return write!(f, "\n  skipped: {why}");
        }
        for q in &self.quantities {
            write!(
                f,
                "\n  {:<28} {:>16} {:>16} {:>8.2} %",
                q.name,
                figure(q.predicted),
                figure(q.recorded),
                100.0 * q.relative_error
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<28} {:<12} {:>5} {:>9.2} % {:>9.2} %",
            self.quantity,
            self.engine,
            self.cases,
            100.0 * self.median_error,
            100.0 * self.max_error
        )
    }
}

/// Whole numbers without decimals.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
