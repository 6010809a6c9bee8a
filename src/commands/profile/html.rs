//! The report as one self-contained page.

use std::fmt::Write;

use scrimp_engine::Part;
use scrimp_memory::Category;
use scrimp_memory::bytes::HumanBytes;

use super::apply::Applied;
use super::report::{Report, error};
use super::svg::{Band, Picture};
use crate::page::{document, escape, facts as facts_list, table};

const MIB: f64 = 1048576.0;

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let title = format!("scrimp profile: {}", report.opened.name);
    let (memory, steps) = (memory_picture(report), step_picture(report));
    let applied = match &report.applied {
        Some(applied) => outcome(report, applied),
        None => String::new(),
    };
    let body = format!(
        "{}<p class=\"verdict\">{}</p>\n\
         <h2>Memory over time</h2>\n{}{}\
         <h2>Planned and measured</h2>\n{}\
         <h2>Time of a decode step</h2>\n{}{}{}\
         <h2>What would help</h2>\n{}{applied}",
        facts(report),
        escape(&report.verdict.explanation),
        memory.legend(),
        memory.draw(),
        categories(report),
        steps.legend(),
        steps.draw(),
        shares(report),
        remedies(report),
    );
    document(&title, &body)
}

fn facts(report: &Report<'_>) -> String {
    let measured = report.measured;
    let usage = &measured.usage;
    let decode = measured.decode();
    let mut facts = vec![
        ("device", measured.device.clone()),
        (
            "tokens",
            format!(
                "{} in, {} out",
                usage.prompt_tokens, usage.completion_tokens
            ),
        ),
        ("decode", format!("{:.1} tokens/s", decode.rate())),
        ("peak", HumanBytes(measured.peak_rss).to_string()),
        ("planned", HumanBytes(measured.planned_peak()).to_string()),
    ];
    if let Some(right) = report.task.right(&measured.answers) {
        let problems = report.task.problems.len();
        facts.push(("right", format!("{right} of {problems}")));
    }
    let mut html = facts_list(&facts);
    let prompt: String = report.task.prompt.chars().take(400).collect();
    let _ = writeln!(html, "<p class=\"prompt\">{}</p>", escape(&prompt));
    html
}

/// Categories as bands, what the system counted as the line.
fn memory_picture(report: &Report<'_>) -> Picture<'static> {
    let measured = report.measured;
    let loading = measured
        .loading
        .iter()
        .map(|sample| (sample.at, sample.ledger, sample.resident.total()));
    let running = measured
        .steps
        .iter()
        .map(|step| (step.at, step.ledger, step.rss));
    let samples: Vec<_> = loading.chain(running).collect();
    // From the bottom up: what stays, then what comes and goes.
    let order = [
        (Category::Other, 5),
        (Category::Weights, 1),
        (Category::Activations, 3),
        (Category::KvCache, 2),
        (Category::Staging, 4),
    ];
    let bands = order.map(|(category, colour)| Band {
        name: category.name().replace("kv_cache", "KV cache"),
        colour,
        values: samples
            .iter()
            .map(|(_, ledger, _)| ledger[category as usize] as f64 / MIB)
            .collect(),
    });
    let planned = measured.planned_peak();
    let first_step = measured.steps.first().map(|step| step.at - step.seconds);
    Picture {
        x_label: "seconds since loading began",
        y_label: "MiB",
        height: 340.0,
        x: samples.iter().map(|(at, ..)| *at).collect(),
        bands: bands.into(),
        line: Some((
            "resident, as the system counts",
            samples.iter().map(|(.., rss)| *rss as f64 / MIB).collect(),
        )),
        limit: Some((
            format!("planned peak, {}", HumanBytes(planned)),
            planned as f64 / MIB,
        )),
        borders: first_step.map(|at| (at, "running")).into_iter().collect(),
    }
}

fn step_picture(report: &Report<'_>) -> Picture<'static> {
    let records: Vec<_> = report
        .measured
        .steps
        .iter()
        .filter(|record| record.is_decode())
        .collect();
    let mut step = 0;
    let x = records.iter().map(|record| {
        step += record.steps;
        step as f64
    });
    let x: Vec<f64> = x.collect();
    // Means over neighbours: one step's time is mostly the machine's mood.
    let window = records.len().div_ceil(180).max(1);
    let mean = |part: usize| -> Vec<f64> {
        let each: Vec<f64> = records
            .iter()
            .map(|record| record.parts[part] / record.steps as f64 * 1e3)
            .collect();
        let smooth = |i: usize| {
            let from = i / window * window;
            let to = (from + window).min(each.len());
            each[from..to].iter().sum::<f64>() / (to - from) as f64
        };
        (0..each.len()).map(smooth).collect()
    };
    let bands = Part::ALL.iter().enumerate().filter_map(|(i, part)| {
        let values = mean(i);
        values.iter().any(|v| *v > 0.0).then(|| Band {
            name: part.name().into(),
            colour: i + 1,
            values,
        })
    });
    Picture {
        x_label: "decode step",
        y_label: "ms",
        height: 280.0,
        bands: bands.collect(),
        x,
        line: None,
        limit: None,
        borders: Vec::new(),
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("–".into(), |e| format!("{:+.1} %", e * 100.0))
}

fn categories(report: &Report<'_>) -> String {
    let measured = report.measured;
    let line = |name: &str, planned: usize, seen: usize| {
        vec![
            name.to_owned(),
            HumanBytes(planned).to_string(),
            HumanBytes(seen).to_string(),
            percent(error(planned, seen)),
        ]
    };
    let mut rows: Vec<Vec<String>> = measured
        .by_category()
        .into_iter()
        .map(|(category, planned, seen)| line(category.name(), planned, seen))
        .collect();
    rows.push(line("peak", measured.planned_peak(), measured.peak_rss));
    table(&["", "planned", "measured", "error"], &rows)
}

/// Shares of time and of bytes as bars.
fn shares(report: &Report<'_>) -> String {
    let decode = report.measured.decode();
    let mut html = String::from("<div class=\"shares\">");
    let mut bar = |name: &str, colour: usize, share: f64, note: String| {
        let width = share.clamp(0.0, 1.0) * 100.0;
        let _ = write!(
            html,
            "<span>{name}</span><b><i class=\"c{colour}\" style=\"width:{width:.1}%\"></i></b>\
             <em>{}</em>",
            escape(&note)
        );
    };
    for (i, part) in Part::ALL.into_iter().enumerate() {
        let share = decode.share(part);
        if share > 0.0005 {
            bar(
                part.name(),
                i + 1,
                share,
                format!("{:.1} % of the time", share * 100.0),
            );
        }
    }
    let all = (decode.weight_bytes + decode.kv_bytes).max(1) as f64;
    let steps = decode.steps.max(1);
    for (name, colour, bytes) in [
        ("weights", 1, decode.weight_bytes),
        ("KV cache", 2, decode.kv_bytes),
    ] {
        let share = bytes as f64 / all;
        let each = HumanBytes(bytes / steps);
        bar(
            name,
            colour,
            share,
            format!("{:.1} % of the bytes, {each} a step", share * 100.0),
        );
    }
    let fraction = report.verdict.bandwidth_fraction;
    let (read, gives) = (decode.bytes_per_s() / 1e9, report.measured.bandwidth / 1e9);
    bar(
        "bandwidth",
        4,
        fraction,
        format!("{read:.1} of {gives:.1} GB/s that memory gives"),
    );
    html + "</div>\n"
}

fn remedies(report: &Report<'_>) -> String {
    if report.remedies.is_empty() {
        return "<p>Nothing that can be changed here would save or gain anything.</p>\n".into();
    }
    let rows: Vec<Vec<String>> = report
        .remedies
        .iter()
        .enumerate()
        .map(|(i, remedy)| {
            vec![
                format!("{}. {}", i + 1, remedy.name),
                remedy.change.clone(),
                remedy.gain(),
                remedy.speed.clone(),
                remedy.quality.clone(),
                remedy.flags.join(" "),
            ]
        })
        .collect();
    let heading = ["", "change", "peak", "speed", "quality", "flags"];
    format!("<div class=\"wide\">{}</div>", table(&heading, &rows))
}

fn outcome(report: &Report<'_>, applied: &Applied) -> String {
    let remedy = &report.remedies[applied.number - 1];
    let Applied {
        before,
        predicted,
        after,
        ..
    } = applied;
    let bytes = |value: f64| HumanBytes(value as usize).to_string();
    let rate = |value: f64| format!("{value:.1} tokens/s");
    let line = |name: &str, show: &dyn Fn(f64) -> String, [was, said, is]: [f64; 3]| {
        let off = (is > 0.0).then(|| said / is - 1.0);
        vec![
            name.to_owned(),
            show(was),
            show(said),
            show(is),
            percent(off),
        ]
    };
    let mut rows = vec![
        line(
            "peak memory",
            &bytes,
            [before, predicted, after].map(|f| f.peak_rss_bytes as f64),
        ),
        line(
            "KV cache",
            &bytes,
            [before, predicted, after].map(|f| f.kv_cache_bytes as f64),
        ),
        line(
            "activations",
            &bytes,
            [before, predicted, after].map(|f| f.activations_bytes as f64),
        ),
        line(
            "decode",
            &rate,
            [before, predicted, after].map(|f| f.decode_tokens_per_s),
        ),
    ];
    if let Some((then, now)) = applied.right {
        let of = |n: usize| format!("{n} of {}", applied.problems);
        rows.push(vec![
            "right".into(),
            of(then),
            "–".into(),
            of(now),
            "–".into(),
        ]);
    }
    let same = if applied.same_text {
        "the same"
    } else {
        "not the same"
    };
    format!(
        "<h2>Applied: {}</h2>\n<p><code>{}</code>; the generated text is {same}.</p>\n{}",
        escape(&remedy.name),
        escape(&remedy.flags.join(" ")),
        table(&["", "before", "predicted", "after", "error"], &rows)
    )
}
