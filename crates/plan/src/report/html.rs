//! The plan as one HTML page that needs nothing else: no scripts, no fonts, no other files.

use super::format::{bytes, gain, grouped, short};
use super::{Report, component_name};
use crate::RankPlan;
use crate::remedy::{Remedy, split_name};
use crate::verdict::DecodeStep;

const STYLE: &str = "\
:root{--ink:#1c2430;--soft:#5b6675;--line:#dde2e8;--page:#fff;--card:#f6f8fa;--good:#1a7f4b;\
--bad:#b3261e;--w:#3b6fb6;--a:#d08a1d;--g:#8a6fb8;--o:#7b8794;--k:#2f9e8f;--n:#c94f4f}\
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#333c48;--page:#12161c;\
--card:#1a2028;--good:#53c98a;--bad:#ff8a80;--w:#6b9be0;--a:#e2ab52;--g:#ab94d6;--o:#8b97a5;\
--k:#53c2b2;--n:#e57f7f}}\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}main{max-width:1040px;margin:0 auto;padding:24px 20px 60px}\
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}\
h2{font-size:1.1rem;margin:36px 0 10px}p{margin:6px 0}.soft{color:var(--soft)}\
.verdict{border-left:5px solid var(--good);background:var(--card);padding:12px 16px;margin:20px 0;\
border-radius:0 6px 6px 0}.verdict.bad{border-color:var(--bad)}.verdict b{color:var(--good)}\
.verdict.bad b{color:var(--bad)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;\
font-size:.92rem;font-variant-numeric:tabular-nums}th,td{padding:6px 10px;text-align:right;\
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}\
th{color:var(--soft);font-weight:600}td.words{white-space:normal;text-align:left;min-width:190px}th.words{text-align:left}\
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.9rem;margin:8px 0}\
.legend span::before{content:'';display:inline-block;width:11px;height:11px;border-radius:2px;\
margin-right:6px;background:var(--c)}svg{display:block;width:100%;height:84px}\
code{font:13px/1.45 ui-monospace,monospace}pre{background:var(--card);padding:12px 14px;\
border-radius:6px;overflow-x:auto;margin:8px 0}details{margin:4px 0}summary{cursor:pointer}\
.tag{color:var(--good);font-weight:600}";

/// Colours of a device's memory, by use.
const COLOURS: [(&str, &str); 4] = [
    ("weights", "--w"),
    ("activations", "--a"),
    ("CUDA graphs", "--g"),
    ("overhead", "--o"),
];

impl Report<'_> {
    /// One page.
    pub fn html(&self) -> String {
        let title = escaped(&format!("{} on {}", self.model, self.machine()));
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>scrimp plan: {title}</title><style>{STYLE}</style></head>\n<body><main>\n\
             {}{}{}{}{}{}{}{}\n</main></body></html>\n",
            self.page_head(&title),
            self.page_verdict(),
            self.page_memory(),
            self.page_rates(),
            self.page_remedies(),
            self.page_layers(),
            self.page_components(),
            self.page_command()
        )
    }

    fn page_head(&self, title: &str) -> String {
        let deployment = &self.plan.setup.deployment;
        let workload = &self.plan.setup.workload;
        let live = workload.live_tokens();
        format!(
            "<h1>{title}</h1><p class=\"soft\">{}, {}; {} parameters, {} active; weights {}; KV cache \
             {}</p><p>{} sequences of up to {} tokens hold {} KV tokens. max_tokens × 1.5, the rule \
             of thumb, would be {}.</p>\n",
            escaped(&deployment.engine.name()),
            split_name(&deployment.parallel),
            short(self.shape.total_params() as f64),
            short(self.shape.active_params() as f64),
            escaped(&deployment.weights.label()),
            self.kv_dtype().name(),
            workload.concurrency,
            grouped(workload.context),
            short(live.needed),
            short(live.guide)
        )
    }

    fn page_verdict(&self) -> String {
        let verdict = &self.plan.verdict;
        let (class, word) = match verdict.fits {
            true => ("verdict", "Fits."),
            false => ("verdict bad", "Does not fit."),
        };
        format!(
            "<div class=\"{class}\"><b>{word}</b> {}</div>\n",
            escaped(&verdict.explanation)
        )
    }

    fn page_memory(&self) -> String {
        let Some(rank) = self.tightest() else {
            return String::new();
        };
        let prediction = &self.plan.prediction;
        let mut rows = String::new();
        for rank in &prediction.ranks {
            let activations = rank.activation_peak_bytes + rank.cuda_graph_bytes;
            rows += &row(&[
                format!("stage {}", rank.rank.1),
                bytes(rank.budget_bytes as f64),
                bytes(rank.weights_bytes() as f64),
                bytes(activations as f64),
                bytes(rank.overhead_bytes as f64),
                bytes(rank.kv_pool_bytes as f64),
                grouped(rank.kv_blocks),
            ]);
        }
        format!(
            "<h2>Memory of a device</h2>{}<p>{} KV tokens in all, {:.2} × {} tokens at once; the \
             longest sequence is {}. A token takes {} bytes: {}.</p>\n<div class=\"scroll\"><table>\
             <tr><th>rank</th><th>may use</th><th>weights</th><th>activations</th><th>overhead</th>\
             <th>KV cache</th><th>blocks</th></tr>{rows}</table></div>\n",
            self.memory_picture(rank),
            grouped(prediction.kv_tokens),
            prediction.max_concurrency,
            grouped(prediction.max_model_len),
            grouped(self.plan.verdict.capacity.max_context),
            grouped(self.kv_bytes_per_token()),
            escaped(&self.kv_reason())
        )
    }

    /// What a rank has, and what the workload needs of it, to one scale.
    fn memory_picture(&self, rank: &RankPlan) -> String {
        let needed = self.plan.verdict.capacity.kv_needed_bytes;
        let fixed: u64 = Self::uses(rank).iter().map(|u| u.bytes).sum();
        let total = rank.device.total_bytes;
        let scale = 1000.0 / total.max(fixed + needed).max(1) as f64;
        let mut legend = String::new();
        let mut bars = [String::new(), String::new()];
        for (line, kv, name, colour) in [
            (0, rank.kv_pool_bytes, "KV cache", "--k"),
            (1, needed, "KV cache needed", "--n"),
        ] {
            let mut x = 0.0;
            let parts = Self::uses(rank).into_iter().zip(COLOURS);
            let parts = parts.map(|(used, (_, colour))| (used.name, used.bytes, colour));
            for (name, size, colour) in parts.chain([(name, kv, colour)]) {
                let width = size as f64 * scale;
                bars[line] += &format!(
                    "<rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"30\" \
                     fill=\"var({colour})\"><title>{name}: {}</title></rect>",
                    line * 40,
                    bytes(size as f64)
                );
                x += width;
                if line == 0 || name.starts_with("KV") {
                    legend += &format!(
                        "<span style=\"--c:var({colour})\">{name} {}</span>",
                        bytes(size as f64)
                    );
                }
            }
        }
        let mark = |at: u64| (at as f64 * scale).min(999.0);
        format!(
            "<svg viewBox=\"0 0 1000 74\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"memory of a device: what there \
             is room for, and what the workload needs\">{}{}<line x1=\"{b:.1}\" x2=\"{b:.1}\" \
             y1=\"-2\" y2=\"74\" stroke=\"var(--ink)\" stroke-width=\"2\" stroke-dasharray=\"5 4\"/>\
             </svg><div class=\"legend\">{legend}</div><p class=\"soft\">Above: what there is room \
             for; below: what the workload needs. The dashed line is what the engine may use, {} of \
             {}.</p>",
            bars[0],
            bars[1],
            bytes(rank.budget_bytes as f64),
            bytes(total as f64),
            b = mark(rank.budget_bytes)
        )
    }

    fn page_rates(&self) -> String {
        let bandwidth = &self.plan.verdict.bandwidth;
        let line = |step: &DecodeStep| {
            row(&[
                format!("batch {}", step.batch),
                bytes(step.weight_bytes + step.host_bytes),
                bytes(step.kv_bytes),
                format!("{:.2} ms", step.link_seconds * 1e3),
                format!("{:.2} ms", step.seconds * 1e3),
                format!("{:.1}", step.tokens_per_s),
                step.bound.name().to_owned(),
            ])
        };
        let mut rows = line(&bandwidth.single);
        if bandwidth.loaded.batch > 1.0 {
            rows += &line(&bandwidth.loaded);
        }
        let compute = match bandwidth.compute_bound_batch {
            Some(batch) => format!("Arithmetic binds decoding from batch {}.", grouped(batch)),
            None => "Arithmetic never binds decoding at this context.".to_owned(),
        };
        let prefill = match bandwidth.prefill_tokens_per_s {
            r if r > 0.0 => format!(" Prompts: at most {} tokens/s.", short(r)),
            _ => String::new(),
        };
        format!(
            "<h2>A decode step, at most</h2><div class=\"scroll\"><table><tr><th></th><th>weights \
             read</th><th>KV read</th><th>links (estimate)</th><th>step</th><th>tokens/s</th>\
             <th>bound by</th></tr>{rows}</table></div><p class=\"soft\">{compute}{prefill} Bounds: \
             memory and arithmetic at the device's full rates.</p>\n"
        )
    }

    fn page_remedies(&self) -> String {
        let advice = self.advice;
        let table = |remedies: &[&Remedy]| {
            let rows: String = remedies.iter().map(|remedy| remedy_row(remedy)).collect();
            format!(
                "<div class=\"scroll\"><table><tr><th>change</th><th>saves</th><th>tokens</th>\
                 <th>sequences</th><th>decode</th><th class=\"words\">quality</th></tr>{rows}</table></div>"
            )
        };
        let mut out = String::new();
        if !advice.remedies.is_empty() {
            let all: Vec<&Remedy> = advice.remedies.iter().collect();
            out += &format!("<h2>Remedies, best first</h2>{}\n", table(&all));
        }
        if let Some(best) = &advice.combination {
            out += &format!(
                "<h2>The best that meets the workload</h2>{}\n",
                table(&[best])
            );
        }
        if !advice.hardware.is_empty() {
            let all: Vec<&Remedy> = advice.hardware.iter().collect();
            out += &format!("<h2>Machines that would do</h2>{}\n", table(&all));
        }
        out
    }

    fn page_layers(&self) -> String {
        let rows: String = self
            .placement
            .rows
            .iter()
            .map(|placed| {
                let layers = match placed.layers {
                    Some((first, last)) if first == last => first.to_string(),
                    Some((first, last)) => format!("{first}–{last}"),
                    None => "–".to_owned(),
                };
                row(&[
                    placed.class.name().to_owned(),
                    layers,
                    placed.wish.name().to_owned(),
                    bytes(placed.device_bytes as f64),
                    bytes(placed.host_bytes as f64),
                ])
            })
            .collect();
        format!(
            "<h2>Placement by layer class</h2><div class=\"scroll\"><table><tr><th>class</th>\
             <th>layers</th><th>wish</th><th>device</th><th>host</th></tr>{rows}</table></div>\n"
        )
    }

    fn page_components(&self) -> String {
        let rows: String = self
            .components()
            .into_iter()
            .map(|(component, parameters, size)| {
                row(&[
                    component_name(component).to_owned(),
                    grouped(parameters),
                    bytes(size as f64),
                ])
            })
            .collect();
        format!(
            "<h2>Weights by component</h2><div class=\"scroll\"><table><tr><th>component</th>\
             <th>parameters</th><th>bytes</th></tr>{rows}</table></div>\n"
        )
    }

    fn page_command(&self) -> String {
        let mut out = String::new();
        if let Some(command) = &self.command {
            out += &format!(
                "<h2>To run it</h2><pre><code>{}</code></pre>\n",
                escaped(command)
            );
        }
        let notes = self.plan.prediction.notes.iter();
        let notes: String = notes
            .map(|note| format!("<li>{}</li>", escaped(note)))
            .collect();
        out + &format!("<details><summary>What was assumed</summary><ul>{notes}</ul></details>\n")
    }
}

fn remedy_row(remedy: &Remedy) -> String {
    let mark = if remedy.settles {
        " <span class=\"tag\">meets the workload</span>"
    } else {
        ""
    };
    let source = remedy.quality_source.as_deref().unwrap_or_default();
    format!(
        "<tr><td class=\"words\">{}{mark}<br><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{:.2}×</td><td class=\"words\" title=\"{}\">{}</td></tr>",
        escaped(&remedy.change),
        escaped(&remedy.flags.join(" ")),
        gain(remedy.saves_bytes as f64, bytes),
        gain(remedy.gains_tokens as f64, short),
        gain(remedy.gains_sequences as f64, short),
        remedy.decode_speedup,
        escaped(source),
        escaped(&remedy.quality)
    )
}

fn row(cells: &[String]) -> String {
    let cells: String = cells
        .iter()
        .map(|c| format!("<td>{}</td>", escaped(c)))
        .collect();
    format!("<tr>{cells}</tr>")
}

/// Text that HTML takes for text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
