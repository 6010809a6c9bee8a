//! What a deployment comes to under an engine's rules.
//!
//! Each engine's rules are in a file of their own; what they share (which tensors are on which
//! rank, what a cached token takes there) is in `sharding` and `caches`. Pure arithmetic: a device
//! is only what the [`Deployment`] says of it.

mod allocations;
mod caches;
mod llama_cpp;
mod pool;
mod scrimp;
mod sglang;
mod sharding;
mod trtllm;
mod vllm;

pub use scrimp::forward_pass_bytes;
pub(crate) use sglang::LIBRARY_BYTES as SGLANG_LIBRARY_BYTES;
pub use vllm::releases;

use crate::{Component, Deployment, EngineKind, Error, MemoryRule, ModelShape, Prediction};

/// Largest number that a setting of ranks, tokens or sequences may have.
const MAX_SETTING: u64 = 1 << 32;

/// What each rank holds, and how much is left for the KV cache.
///
/// A deployment that does not fit is no error: its pool is empty and
/// [`missing_bytes`](crate::RankPlan::missing_bytes) says by how much.
///
/// # Errors
/// A shape without weights, or a setting that makes no sense (no devices, more ranks than
/// devices, a fraction outside 0 to 1, a length of 0).
pub fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    check_shape(shape)?;
    check_settings(shape, deployment)?;
    match deployment.engine.kind {
        EngineKind::Vllm => vllm::predict(shape, deployment),
        EngineKind::Sglang => sglang::predict(shape, deployment),
        EngineKind::TrtLlm => trtllm::predict(shape, deployment),
        EngineKind::LlamaCpp => llama_cpp::predict(shape, deployment),
        EngineKind::Scrimp => scrimp::predict(shape, deployment),
    }
}

fn check_shape(shape: &ModelShape) -> Result<(), Error> {
    if shape.tensors.is_empty() {
        let why = shape
            .undetermined
            .as_deref()
            .unwrap_or("the shape lists no tensors");
        return Err(Error::Config {
            model: shape.name.clone(),
            what: format!("its weights are not known: {why}"),
        });
    }
    if shape.caches.is_empty() {
        return Err(Error::Config {
            model: shape.name.clone(),
            what: "it has no layers".to_owned(),
        });
    }
    Ok(())
}

fn check_settings(shape: &ModelShape, deployment: &Deployment) -> Result<(), Error> {
    let wrong = |setting, what| Err(Error::Setting { setting, what });
    let p = &deployment.parallel;
    let layers = shape.caches.len() as u64;
    for (setting, value, most) in [
        ("--tensor-parallel-size", p.tp, 4096),
        ("--pipeline-parallel-size", p.pp, layers.min(4096) as u32),
        ("--data-parallel-size", p.dp, 4096),
        ("--decode-context-parallel-size", p.dcp, p.tp),
    ] {
        if value == 0 || value > most {
            return wrong(setting, format!("{value} is not between 1 and {most}"));
        }
    }
    if p.devices() > u64::from(deployment.device_count) {
        return wrong(
            "--device",
            format!(
                "{} x {} x {} ranks need {} devices, and there are {}",
                p.tp,
                p.pp,
                p.dp,
                p.devices(),
                deployment.device_count
            ),
        );
    }
    if !u64::from(p.tp).is_multiple_of(u64::from(p.dcp)) {
        return wrong(
            "--decode-context-parallel-size",
            format!("{} does not divide {} tensor-parallel ranks", p.dcp, p.tp),
        );
    }
    for (setting, value) in [
        ("--max-model-len", deployment.max_model_len),
        (
            "--max-num-batched-tokens",
            deployment.max_num_batched_tokens,
        ),
        ("--max-num-seqs", deployment.max_num_seqs),
        ("--block-size", deployment.block_size),
    ] {
        if let Some(value) = value.filter(|v| *v == 0 || *v > MAX_SETTING) {
            return wrong(
                setting,
                format!("{value} is not between 1 and {MAX_SETTING}"),
            );
        }
    }
    let fraction = match deployment.memory {
        Some(MemoryRule::OfTotal(f)) => Some(("--gpu-memory-utilization", f)),
        Some(MemoryRule::Static(f)) => Some(("--mem-fraction-static", f)),
        Some(MemoryRule::OfFreeAfterLoad(f)) => Some(("--free-gpu-memory-fraction", f)),
        Some(MemoryRule::Bytes(_)) | None => None,
    };
    if let Some((setting, f)) = fraction.filter(|(_, f)| !(*f > 0.0 && *f <= 1.0)) {
        return wrong(setting, format!("{f} is not above 0 and at most 1"));
    }
    if deployment.device.total_bytes == 0
        && !matches!(deployment.memory, Some(MemoryRule::Bytes(_)))
    {
        return wrong(
            "--device-memory",
            "the device's memory is not known; give it".to_owned(),
        );
    }
    Ok(())
}

/// `fraction` of `bytes`.
fn part_of(bytes: u64, fraction: f64) -> u64 {
    (bytes as f64 * fraction) as u64
}

/// GiB as bytes.
fn gib(gib: f64) -> u64 {
    (gib * (1u64 << 30) as f64).max(0.0) as u64
}

/// Leaves weights in host memory, largest savings for the least traffic first (routed experts,
/// of which a token reads few; then dense feed-forwards, then attention): a device's share of the
/// memory that is set aside, but no more than brings the rest down to `room` (0: all of it, as
/// engines do that are told an amount). Returns the bytes left there.
fn offload(held: &mut [(Component, u64)], room: u64, deployment: &Deployment) -> u64 {
    const ORDER: [Component; 4] = [
        Component::RoutedExperts,
        Component::DenseMlp,
        Component::SharedExperts,
        Component::Attention,
    ];
    let in_node = deployment
        .devices_per_node
        .min(deployment.device_count)
        .max(1);
    let allowed = deployment.offload_bytes / u64::from(in_node);
    let sum: u64 = held.iter().map(|(_, bytes)| bytes).sum();
    let wanted = sum.saturating_sub(room).min(allowed);
    let mut left = wanted;
    for component in ORDER {
        for (_, bytes) in held.iter_mut().filter(|(c, _)| *c == component) {
            let moved = left.min(*bytes);
            *bytes -= moved;
            left -= moved;
        }
    }
    wanted - left
}

/// Bytes free before the engine starts: measured, or the device's usual.
fn free_at_start(deployment: &Deployment) -> u64 {
    deployment
        .free_at_start
        .unwrap_or(deployment.device.free_bytes)
}
