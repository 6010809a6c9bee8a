//! The two tables: what a scheme costs, and what it loses.

use scrimp_memory::bytes::HumanBytes;

use super::report::{Report, Row};
use crate::terminal;

const NONE: &str = "–";

/// The whole report as text.
pub fn text(report: &Report<'_>) -> String {
    let mut out = format!("{}\n\n", facts(report));
    for (heading, rows) in [costs(report), losses(report)] {
        let mut table = vec![heading];
        table.extend(rows);
        out += &terminal::table(&table);
        out.push('\n');
    }
    for row in &report.rows {
        if let Some(why) = &row.failed {
            out += &format!("{}: {why}\n", row.name);
        }
    }
    out
}

fn facts(report: &Report<'_>) -> String {
    let mut lines = vec![vec!["model".to_owned(), name(report)]];
    let mut line = |name: &str, value: String| lines.push(vec![name.to_owned(), value]);
    if !report.grid().is_empty() {
        line("4 bits", report.grid());
        line("calibration", report.calibration());
    }
    line("text", report.text());
    if let Some(asked) = report.asked() {
        line("reasoning", asked);
    }
    let lines = lines.iter().map(|l| format!("{:<12} {}", l[0], l[1]));
    lines.collect::<Vec<_>>().join("\n")
}

/// The model in words.
pub fn name(report: &Report<'_>) -> String {
    let setup = report.setup;
    let threads = match setup.threads {
        1 => "1 thread".to_owned(),
        n => format!("{n} threads"),
    };
    let weights = setup.weights as f64 / 1e6;
    format!("{}, {weights:.2} M weights, {threads}", setup.name)
}

/// A heading and rows of cells.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// Bits, bytes, speed, and what making took.
pub fn costs(report: &Report<'_>) -> Table {
    let heading = [
        "what it costs",
        "bits/weight",
        "overall",
        "on disk",
        "resident",
        "tokens/s",
        "to make",
        "peak",
    ];
    let bytes = |b: Option<u64>| cell(b.map(|b| HumanBytes(b as usize).to_string()));
    let row = |row: &Row| {
        let number = |v: Option<f64>, digits: usize| cell(v.map(|v| format!("{v:.digits$}")));
        vec![
            row.name.clone(),
            number(row.bits_per_weight, 3),
            number(row.bits_overall, 2),
            bytes(row.bytes_on_disk),
            bytes(row.bytes_resident),
            number(row.tokens_per_s, 1),
            cell(row.made.map(|m| seconds(m.seconds))),
            bytes(row.made.and_then(|m| m.peak_bytes).map(|b| b as u64)),
        ]
    };
    let heading = heading.map(String::from).to_vec();
    (heading, report.rows.iter().map(row).collect())
}

/// Perplexity, divergence, problems solved.
pub fn losses(report: &Report<'_>) -> Table {
    let mut heading: Vec<String> = ["what it loses", "perplexity", "mean KL", "top-1"]
        .map(String::from)
        .to_vec();
    let reasons = report.setup.reasoning;
    let mut lengths = report.args.steps.clone();
    lengths.sort_unstable();
    lengths.dedup();
    if reasons {
        heading.push("right".into());
        let reference = report.rows.first();
        heading.push(reference.map_or_else(String::new, |r| format!("of {}", r.name)));
        heading.extend(lengths.iter().map(|s| format!("{s} steps")));
        heading.push("inflation".into());
    }
    let row = |row: &Row| {
        let scored = row.scored.as_ref();
        let nats = |kl: f64| match kl {
            kl if kl < 0.001 => format!("{kl:.2e}"),
            kl => format!("{kl:.4}"),
        };
        let mut cells = vec![
            row.name.clone(),
            cell(scored.map(|s| format!("{:.4}", s.perplexity))),
            cell(scored.and_then(|s| s.kl_mean).map(nats)),
            cell(
                scored
                    .and_then(|s| s.top1_agreement)
                    .map(|s| format!("{:.2} %", s * 100.0)),
            ),
        ];
        if reasons {
            let reasoning = row.reasoning.as_ref();
            let by_length = reasoning.map(|r| r.by_length()).unwrap_or_default();
            cells.push(cell(reasoning.map(|r| percent(r.accuracy))));
            cells.push(cell(report.quality(row).map(|q| format!("{q:.3}"))));
            for steps in &lengths {
                let found = by_length.iter().find(|l| l.steps == *steps);
                cells.push(cell(found.map(|l| percent(l.accuracy))));
            }
            cells.push(cell(reasoning.map(|r| format!("{:.3}", r.inflation()))));
        }
        cells
    };
    (heading, report.rows.iter().map(row).collect())
}

fn seconds(seconds: f64) -> String {
    match seconds < 1.0 {
        true => format!("{seconds:.2} s"),
        false => format!("{seconds:.1} s"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn cell(value: Option<String>) -> String {
    value.unwrap_or_else(|| NONE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!(cell(None), NONE);
        assert_eq!(
            (seconds(0.034), seconds(3.04)),
            ("0.03 s".into(), "3.0 s".into())
        );
        assert_eq!(cell(Some(percent(0.9375))), "93.8 %");
    }
}
