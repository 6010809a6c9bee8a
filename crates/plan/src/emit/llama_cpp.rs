//! `llama-server`.

use super::command::Command;
use crate::remedy::Evaluated;
use crate::{Component, KvDtype, ModelShape, WeightScheme};

pub(super) fn command(model: &str, shape: &ModelShape, plan: &Evaluated) -> Command {
    let deployment = &plan.setup.deployment;
    let sequences = deployment.max_num_seqs.unwrap_or(1);
    let length = plan.prediction.max_model_len;
    let path = file(model, &deployment.weights);
    let mut command = Command::new(&["llama-server"]);
    if path != model {
        command.note(format!("{path} is {model} as a GGUF file in that mix"));
    }
    command.with("-m", path);
    command.with("-c", length.saturating_mul(sequences));
    command.with("-np", sequences);
    if !deployment.device.is_cpu {
        command.with("-ngl", "all");
        command.with_some("-ncmoe", experts_on_host(shape, plan));
        if deployment.parallel.devices() > 1 {
            command.with("-sm", "layer");
        }
    }
    command.with_some("-ub", deployment.max_num_batched_tokens);
    if let Some(dtype) = deployment.kv_dtype.and_then(cache_type) {
        // A quantized V cache needs it.
        command.with("-fa", "on");
        command.with("-ctk", dtype);
        command.with("-ctv", dtype);
    }
    // The plan is what fits; nothing is to be adjusted behind its back.
    command.with("-fit", "off");
    command.when(true, "--jinja");
    command
}

fn file(model: &str, scheme: &WeightScheme) -> String {
    if model.to_ascii_lowercase().ends_with(".gguf") && *scheme == WeightScheme::Released {
        return model.to_owned();
    }
    let name = model
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(model);
    let name = name.trim_end_matches(".gguf");
    match scheme {
        WeightScheme::Gguf(mix) => format!("./{name}-{mix}.gguf"),
        _ => format!("./{name}.gguf"),
    }
}

/// Layers whose experts stay on the host; the first ones, as llama.cpp counts them.
fn experts_on_host(shape: &ModelShape, plan: &Evaluated) -> Option<u64> {
    let left: u64 = plan
        .prediction
        .ranks
        .iter()
        .map(|r| r.offloaded_bytes)
        .sum();
    if left == 0 {
        return None;
    }
    let held = plan.prediction.ranks.iter().flat_map(|r| &r.weights);
    let held: u64 = held
        .filter(|(c, _)| *c == Component::RoutedExperts)
        .map(|(_, bytes)| bytes)
        .sum();
    let routed = shape
        .tensors
        .iter()
        .filter(|t| t.component == Component::RoutedExperts);
    let mut layers: Vec<u32> = routed.filter_map(|t| t.layer).collect();
    layers.dedup();
    let first = u64::from(*layers.iter().min()?);
    let each = (held + left).div_ceil(layers.len().max(1) as u64).max(1);
    Some(first + left.div_ceil(each))
}

fn cache_type(dtype: KvDtype) -> Option<&'static str> {
    match dtype {
        KvDtype::F32 => Some("f32"),
        KvDtype::F16 => Some("f16"),
        KvDtype::Bf16 => Some("bf16"),
        KvDtype::Q8_0 => Some("q8_0"),
        KvDtype::Q4_0 => Some("q4_0"),
        _ => None,
    }
}
