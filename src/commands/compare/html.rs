//! The comparison as one self-contained page.

use std::fmt::Write;

use scrimp_eval::{FamilyReport, Report as Reasoning, accuracy_svg};

use super::report::{Report, Row};
use super::terminal::{costs, losses};
use crate::page::{document, escape, facts, table};

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let title = format!("scrimp compare: {}", report.setup.name);
    let mut body = facts(&known(report));
    let asked: Vec<(String, Reasoning)> = report.rows.iter().filter_map(labelled).collect();
    if !asked.is_empty() {
        let together: Vec<_> = asked.iter().map(together).collect();
        let _ = write!(
            body,
            "<h2>Accuracy by length of the chain</h2>\n{}",
            accuracy_svg(&together)
        );
    }
    let parts = [
        ("What it loses", losses(report)),
        ("What it costs", costs(report)),
    ];
    for (name, (mut heading, rows)) in parts {
        heading[0].clear();
        let table = table(&heading, &rows);
        let _ = write!(
            body,
            "<h2>{name}</h2>\n<div class=\"figures\">{table}</div>\n"
        );
    }
    for row in &report.rows {
        if let Some(why) = &row.failed {
            let (name, why) = (escape(&row.name), escape(why));
            let _ = writeln!(body, "<p class=\"verdict\">{name}: {why}</p>");
        }
    }
    body += &notes(report);
    if !asked.is_empty() {
        let _ = write!(
            body,
            "<h2>By kind of problem</h2>\n{}",
            accuracy_svg(&asked)
        );
    }
    document(&title, &body)
}

fn known(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let setup = report.setup;
    let mut known = vec![
        ("weights", format!("{:.2} M", setup.weights as f64 / 1e6)),
        ("stored as", setup.dtype.to_string()),
        ("threads", setup.threads.to_string()),
    ];
    if let Some(group) = setup.group_size {
        known.push(("group of 4 bits", group.to_string()));
    }
    if setup.reasoning {
        known.push(("problems a row", report.problems().to_string()));
    }
    known
}

/// What was measured on what, in sentences.
fn notes(report: &Report<'_>) -> String {
    let mut notes = vec![format!("Text: {}.", report.text())];
    if !report.grid().is_empty() {
        notes.push(format!(
            "4 bits: {}; calibrated on {}.",
            report.grid(),
            report.calibration()
        ));
    }
    notes.extend(report.asked().map(|asked| format!("Reasoning: {asked}.")));
    notes.push(
        "Mean KL is the divergence from the first row in nats a token; top-1 the share of tokens \
         where both find the same one likeliest; inflation tokens thought over those of the \
         shortest right chain; peak the most memory that making took."
            .into(),
    );
    format!("<p class=\"prompt\">{}</p>\n", escape(&notes.join(" ")))
}

fn labelled(row: &Row) -> Option<(String, Reasoning)> {
    Some((row.name.clone(), row.reasoning.clone()?))
}

/// All kinds of problems as one.
fn together((name, report): &(String, Reasoning)) -> (String, Reasoning) {
    let all = FamilyReport {
        family: "all problems".to_owned(),
        accuracy: report.accuracy,
        by_length: report.by_length(),
    };
    let report = Reasoning {
        families: vec![all],
        ..report.clone()
    };
    (name.clone(), report)
}
