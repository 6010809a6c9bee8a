//! Settings that a log gives, by the names of `plan --check`.

use regex::Regex;
use serde_json::{Value, json};

use super::LogReport;
use crate::{Device, EngineKind};

/// A setting: its name, an expression with one group, and whether it is text.
type Setting = (&'static str, &'static str, bool);

const VLLM: &[Setting] = &[
    (
        "version",
        r"(?:API server version|LLM engine \(v)\s*v?(\d+\.\d+[\w.]*)",
        true,
    ),
    (
        "model",
        r"(?:config: model=|'model(?:_tag)?': )'([^']+)'",
        true,
    ),
    ("tp", r"tensor_parallel_size'?[=:] ?(\d+)", false),
    ("pp", r"pipeline_parallel_size'?[=:] ?(\d+)", false),
    ("dp", r"data_parallel_size'?[=:] ?(\d+)", false),
    ("dcp", r"decode_context_parallel_size'?[=:] ?(\d+)", false),
    (
        "max_model_len",
        r"(?:max_seq_len=|max_model_len'?[=:] ?|max model len )(\d+)",
        false,
    ),
    ("max_num_seqs", r"max_num_seqs'?[=:] ?(\d+)", false),
    (
        "max_num_batched_tokens",
        r"max_num_batched_tokens'?[=:] ?(\d+)",
        false,
    ),
    (
        "gpu_memory_utilization",
        r"(?:gpu_memory_utilization'?(?:[=:] ?|\s+| \()|Requested memory:? |GPU memory utilization is \()(0?\.\d+|1\.0)",
        false,
    ),
    ("dtype", r"\bdtype=(torch\.\w+)", true),
    ("quantization", r"\bquantization=([\w-]+)", true),
    ("kv_cache_dtype", r"kv_cache_dtype=(\w+)", true),
    ("enforce_eager", r"enforce_eager'?[=:] ?(True|False)", true),
    ("block_size", r"block_size'?[=:] ?(\d+)", false),
];

const SGLANG: &[Setting] = &[
    ("version", r"[Ss][Gg][Ll]ang[ =v]+(\d+\.\d+[\w.]*)", true),
    ("model", r"model_path='([^']+)'", true),
    ("tp", r"\btp(?:_size)?=(\d+)", false),
    ("pp", r"\bpp_size=(\d+)", false),
    ("dp", r"\bdp_size=(\d+)", false),
    (
        "mem_fraction_static",
        r"mem_fraction_static=(0?\.\d+)",
        false,
    ),
    ("chunked_prefill_size", r"chunked_prefill_size=(\d+)", false),
    ("cuda_graph_max_bs", r"cuda_graph_max_bs=(\d+)", false),
    ("kv_cache_dtype", r"kv_cache_dtype='(\w+)'", true),
    ("max_model_len", r"\bcontext_len=(\d+)", false),
    (
        "avail_before_load_gb",
        r"Load weight begin\. avail mem=([\d.]+) GB",
        false,
    ),
];

const LLAMA_CPP: &[Setting] = &[
    ("version", r"build: (\d+)", true),
    ("model", r"general\.name\s+str\s+= (.+?)\s*$", true),
    ("max_model_len", r"n_ctx_seq\s+= (\d+)", false),
    ("max_num_seqs", r"n_seq_max\s+= (\d+)", false),
    ("max_num_batched_tokens", r"n_ubatch\s+= (\d+)", false),
    ("kv_dtype", r"K \((\w+)\):", true),
];

/// Fills in what the log says of the run.
pub(super) fn read(text: &str, engine: EngineKind, report: &mut LogReport) {
    let table = match engine {
        EngineKind::Sglang => SGLANG,
        EngineKind::LlamaCpp => LLAMA_CPP,
        _ => VLLM,
    };
    for (name, pattern, is_text) in table {
        let Ok(regex) = Regex::new(&format!("(?m){pattern}")) else {
            continue;
        };
        let Some(found) = regex.captures(text).and_then(|c| c.get(1)) else {
            continue;
        };
        let found = found.as_str();
        match *name {
            "version" => report.version = Some(found.to_owned()),
            "model" => report.model = Some(found.to_owned()),
            "enforce_eager" => put(report, name, json!(found == "True")),
            _ if *is_text => put(report, name, json!(found)),
            _ => {
                if let Ok(number) = found.parse::<f64>() {
                    put(report, name, json!(number));
                }
            }
        }
    }
    for name in ["total_gpu_gib", "free_at_start_gib", "avail_before_load_gb"] {
        if let Some(value) = report.figure(name) {
            put(report, name, json!(value));
        }
    }
    // A budget and a fraction of it give the total where no line does.
    let fraction = report
        .settings
        .get("gpu_memory_utilization")
        .and_then(Value::as_f64);
    if let (None, Some(budget), Some(fraction)) = (
        report.settings.get("total_gpu_gib"),
        report.figure("budget_gib"),
        fraction,
    ) {
        put(report, "total_gpu_gib", json!(budget / fraction));
    }
    if let Some(device) = device(text) {
        put(report, "gpu", json!(device));
    }
    let version = report.version.as_deref().unwrap_or_default();
    let engine = format!("{} {version}", report.engine);
    put(report, "engine", json!(engine.trim()));
}

fn put(report: &mut LogReport, name: &str, value: Value) {
    report.settings.insert(name.to_owned(), value);
}

/// A device of the catalogue that the log names.
fn device(text: &str) -> Option<String> {
    let named = Regex::new(r"(?:using device \S+ \(|Device \d+: |device_name=)([^,()\n]+)").ok()?;
    let found = named.captures_iter(text).take(64).find_map(|c| {
        let name = c.get(1)?.as_str().trim().to_owned();
        Device::find(&name).ok().map(|device| device.name)
    });
    let cpu = || {
        text.contains("CPU_Mapped model buffer")
            .then(|| "cpu".to_owned())
    };
    found.or_else(cpu)
}
