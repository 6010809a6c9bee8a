//! Reports of the case that planning was asked for first.

use serde_json::Value;

use super::Report;
use crate::placement::{Policy, place};
use crate::remedy::{Setup, advise, evaluate};
use crate::{Deployment, Device, Engine, ModelShape, Parallel, WeightScheme, Workload, catalogue};

fn setup(name: &str, device: &str, count: u32) -> (ModelShape, Setup) {
    let shape = catalogue::shape(name).unwrap();
    let deployment = Deployment {
        engine: Engine::parse("vllm").unwrap(),
        device: Device::find(device).unwrap(),
        device_count: count,
        devices_per_node: count,
        host_memory: None,
        disk: None,
        parallel: Parallel {
            tp: count,
            pp: 1,
            dp: 1,
            dcp: 1,
            expert: false,
        },
        weights: WeightScheme::Released,
        kv_dtype: None,
        memory: None,
        max_model_len: Some(65536),
        max_num_batched_tokens: None,
        max_num_seqs: None,
        block_size: None,
        cuda_graphs: true,
        free_at_start: None,
        offload_bytes: 0,
    };
    let workload = Workload::longest(65536, 32);
    (
        shape,
        Setup {
            deployment,
            workload,
        },
    )
}

fn with_report<T>(name: &str, device: &str, count: u32, read: impl Fn(&Report<'_>) -> T) -> T {
    let (shape, setup) = setup(name, device, count);
    let plan = evaluate(&shape, &setup).unwrap();
    let advice = advise(&shape, &plan).unwrap();
    let room = shape.tensor_bytes();
    let placement = place(&shape, &setup.deployment.weights, &Policy::default(), room);
    read(&Report {
        model: name,
        shape: &shape,
        plan: &plan,
        advice: &advice,
        placement: &placement,
        command: Some("vllm serve <x> & 'y'".to_owned()),
    })
}

#[test]
fn the_text_fits_one_screen() {
    for (name, device, count) in [
        ("deepseek-ai/DeepSeek-R1", "H200", 8),
        ("deepseek-ai/DeepSeek-R1", "RTX4090", 1),
        ("Qwen/QwQ-32B", "H100", 2),
    ] {
        let text = with_report(name, device, count, |r| r.text());
        assert!(
            text.lines().count() <= 48,
            "{}\n{text}",
            text.lines().count()
        );
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(text.contains("Verdict:"), "{text}");
    }
}

#[test]
fn the_json_has_the_fields_that_scripts_read() {
    let json = with_report("deepseek-ai/DeepSeek-R1", "H200", 8, |r| r.json());
    for field in [
        "model",
        "parameters",
        "active_parameters",
        "tensor_bytes",
        "kv_bytes_per_token",
        "devices",
        "components",
        "max_concurrency",
        "max_context",
        "fits",
        "bottleneck",
        "remedies",
    ] {
        assert!(!json[field].is_null(), "{field}");
    }
    assert_eq!(json["tensor_bytes"], 688_574_839_360u64);
    assert_eq!(json["kv_bytes_per_token"], 70_272);
    assert_eq!(json["devices"].as_array().unwrap().len(), 8);
    for field in [
        "name",
        "capacity_bytes",
        "weights_bytes",
        "kv_pool_bytes",
        "kv_tokens",
        "kv_blocks",
        "activation_peak_bytes",
        "overhead_bytes",
        "free_bytes",
    ] {
        assert!(!json["devices"][0][field].is_null(), "{field}");
    }
    let sum = |key: &str| -> u64 {
        let parts = json["components"].as_array().unwrap();
        parts.iter().map(|c| c[key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("bytes"), 688_574_839_360);
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
        assert!(!json["remedies"][0][field].is_null(), "{field}");
    }
    assert!(matches!(json["bottleneck"]["capacity"], Value::String(_)));
}

#[test]
fn the_page_stands_alone_and_takes_nothing_for_markup() {
    let html = with_report("deepseek-ai/DeepSeek-R1", "H200", 8, |r| r.html());
    for foreign in ["<script", "http://", "https://", "url(", "src="] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert!(html.contains("vllm serve &lt;x&gt; &amp; &#39;y&#39;"));
    assert!(html.contains("<svg") && html.contains("width=device-width"));
}
