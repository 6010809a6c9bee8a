//! The report for a terminal: sparklines, bars and tables.

use scrimp_engine::Part;
use scrimp_memory::bytes::HumanBytes;

use super::apply::Applied;
use super::report::{Report, error};
use crate::terminal::table;

/// Columns of a picture.
const WIDTH: usize = 56;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// All of it.
pub fn text(report: &Report<'_>) -> String {
    let mut sections = vec![
        head(report),
        timeline(report),
        memory(report),
        time(report),
        report.verdict.explanation.clone() + "\n",
        remedies(report),
    ];
    if let Some(applied) = &report.applied {
        sections.push(outcome(report, applied));
    }
    sections.join("\n")
}

fn head(report: &Report<'_>) -> String {
    let measured = report.measured;
    let usage = &measured.usage;
    let what = match report.task.problems.first() {
        Some(problem) => format!(
            "{} {} of {} steps",
            report.task.concurrency(),
            match report.task.concurrency() {
                1 => format!("{} problem", problem.family.name()),
                _ => format!("{} problems", problem.family.name()),
            },
            problem.steps
        ),
        None => "a prompt".into(),
    };
    let right = match report.task.right(&measured.answers) {
        Some(right) => format!(", {right} of {} right", report.task.problems.len()),
        None => String::new(),
    };
    format!(
        "{} on {}\n{what}{right}: {} tokens of prompt, {} generated ({} thinking)\n",
        report.opened.name,
        measured.device,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens
    )
}

fn timeline(report: &Report<'_>) -> String {
    let measured = report.measured;
    let steps = &measured.steps;
    let loading: Vec<f64> = measured
        .loading
        .iter()
        .map(|sample| sample.resident.total() as f64)
        .collect();
    let rss: Vec<f64> = steps.iter().map(|record| record.rss as f64).collect();
    let kv: Vec<f64> = steps.iter().map(|record| record.ledger[1] as f64).collect();
    let decode = steps.iter().filter(|record| record.is_decode());
    let step: Vec<f64> = decode
        .map(|record| record.seconds / record.steps as f64 * 1e3)
        .collect();
    let bytes = |values: &[f64]| {
        let (low, high) = range(values);
        format!(
            "{} to {}",
            HumanBytes(low as usize),
            HumanBytes(high as usize)
        )
    };
    let (low, high) = range(&step);
    let row =
        |name: &str, values: &[f64], note: String| vec![name.to_owned(), sparkline(values), note];
    let mut rows = vec![row("resident, loading", &loading, bytes(&loading))];
    rows.push(row("resident, running", &rss, bytes(&rss)));
    rows.push(row("KV cache written", &kv, bytes(&kv)));
    rows.push(row(
        "a decode step",
        &step,
        format!("{low:.2} to {high:.2} ms"),
    ));
    rows.iter()
        .map(|row| format!("{:<18} {:<WIDTH$}  {}\n", row[0], row[1], row[2]))
        .collect()
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    (if low.is_finite() { low } else { 0.0 }, high)
}

/// Means of equal stretches as bars between the least and the largest.
fn sparkline(values: &[f64]) -> String {
    let (low, high) = range(values);
    let columns = WIDTH.min(values.len());
    let mean = |column: usize| {
        let from = column * values.len() / columns;
        let to = ((column + 1) * values.len() / columns).max(from + 1);
        values[from..to].iter().sum::<f64>() / (to - from) as f64
    };
    let level = |value: f64| match high > low {
        true => (((value - low) / (high - low)) * 7.0).round() as usize,
        false => 0,
    };
    (0..columns)
        .map(|c| LEVELS[level(mean(c)).min(7)])
        .collect()
}

fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * 24.0 * 8.0).round() as usize;
    let rest = match eighths % 8 {
        0 => String::new(),
        n => ['▏', '▎', '▍', '▌', '▋', '▊', '▉'][n - 1].to_string(),
    };
    "█".repeat(eighths / 8) + &rest
}

fn memory(report: &Report<'_>) -> String {
    let measured = report.measured;
    let percent = |planned, measured| {
        error(planned, measured).map_or("-".into(), |e| format!("{:+.1} %", e * 100.0))
    };
    let mut rows = vec![
        ["memory", "planned", "measured", "error"]
            .map(String::from)
            .to_vec(),
    ];
    for (category, planned, seen) in measured.by_category() {
        rows.push(vec![
            format!("  {}", category.name()),
            HumanBytes(planned).to_string(),
            HumanBytes(seen).to_string(),
            percent(planned, seen),
        ]);
    }
    let (planned, seen) = (measured.planned_peak(), measured.peak_rss);
    rows.push(vec![
        "  peak".into(),
        HumanBytes(planned).to_string(),
        HumanBytes(seen).to_string(),
        percent(planned, seen),
    ]);
    table(&rows)
}

fn time(report: &Report<'_>) -> String {
    let (decode, prefill) = (report.measured.decode(), report.measured.prefill());
    let mut text = format!(
        "decode  {:.1} tokens/s over {} steps; prefill {:.1} tokens/s\n",
        decode.rate(),
        decode.steps,
        prefill.rate()
    );
    for part in Part::ALL {
        let share = decode.share(part);
        if share > 0.0005 {
            text += &format!(
                "  {:<10} {:>5.1} %  {}\n",
                part.name(),
                share * 100.0,
                bar(share)
            );
        }
    }
    let steps = decode.steps.max(1);
    text += &format!(
        "  a step reads {} of weights and {} of KV cache: {:.1} of {:.1} GB/s  {}\n",
        HumanBytes(decode.weight_bytes / steps),
        HumanBytes(decode.kv_bytes / steps),
        decode.bytes_per_s() / 1e9,
        report.measured.bandwidth / 1e9,
        bar(report.verdict.bandwidth_fraction)
    );
    text
}

fn remedies(report: &Report<'_>) -> String {
    if report.remedies.is_empty() {
        return "Nothing that can be changed here would save or gain anything.\n".into();
    }
    let mut text = String::from("what would help, the most first (--apply N tries one)\n");
    for (i, remedy) in report.remedies.iter().enumerate() {
        text += &format!(
            "{:>3}  {}: {} at the peak; speed: {}\n     {}\n     quality: {}\n     {}\n",
            i + 1,
            remedy.name,
            remedy.gain(),
            remedy.speed,
            remedy.change,
            remedy.quality,
            remedy.flags.join(" ")
        );
    }
    text
}

fn outcome(report: &Report<'_>, applied: &Applied) -> String {
    let remedy = &report.remedies[applied.number - 1];
    let heading = ["", "before", "predicted", "after", "error"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    let Applied {
        before,
        predicted,
        after,
        ..
    } = applied;
    let off = |predicted: f64, after: f64| match after > 0.0 {
        true => format!("{:+.1} %", (predicted / after - 1.0) * 100.0),
        false => "-".into(),
    };
    for (name, before, predicted, after) in [
        (
            "peak memory",
            before.peak_rss_bytes,
            predicted.peak_rss_bytes,
            after.peak_rss_bytes,
        ),
        (
            "KV cache",
            before.kv_cache_bytes,
            predicted.kv_cache_bytes,
            after.kv_cache_bytes,
        ),
        (
            "activations",
            before.activations_bytes,
            predicted.activations_bytes,
            after.activations_bytes,
        ),
    ] {
        let bytes = |bytes| HumanBytes(bytes).to_string();
        let off = off(predicted as f64, after as f64);
        rows.push(vec![
            name.into(),
            bytes(before),
            bytes(predicted),
            bytes(after),
            off,
        ]);
    }
    for (name, unit, scale, before, predicted, after) in [
        (
            "decode",
            "tokens/s",
            1.0,
            before.decode_tokens_per_s,
            predicted.decode_tokens_per_s,
            after.decode_tokens_per_s,
        ),
        (
            "prefill",
            "ms",
            1e3,
            before.prefill_s,
            predicted.prefill_s,
            after.prefill_s,
        ),
    ] {
        let figure = |value: f64| format!("{:.1} {unit}", value * scale);
        let off = off(predicted, after);
        rows.push(vec![
            name.into(),
            figure(before),
            figure(predicted),
            figure(after),
            off,
        ]);
    }
    if let Some((then, now)) = applied.right {
        let of = |n: usize| format!("{n} of {}", applied.problems);
        rows.push(vec!["right".into(), of(then), String::new(), of(now)]);
    }
    let same = if applied.same_text {
        "the same"
    } else {
        "not the same"
    };
    format!(
        "{} applied ({})\n{}the text is {same}, token for token\n",
        remedy.name,
        remedy.flags.join(" "),
        table(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_span_from_least_to_most() {
        assert_eq!(sparkline(&[1.0, 2.0, 3.0]), "▁▅█");
        assert_eq!(sparkline(&[5.0; 4]), "▁▁▁▁");
        assert_eq!(sparkline(&[]), "");
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(sparkline(&many).chars().count(), WIDTH);
        assert_eq!((bar(1.0).chars().count(), bar(0.0).as_str()), (24, ""));
    }
}
