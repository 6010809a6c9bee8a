//! From arguments to a deployment and a workload.

use std::fs;

use anyhow::{Result, bail};
use scrimp_cpu::bandwidth::read_bandwidth;
use scrimp_cpu::{CpuBackend, CpuOptions};
use scrimp_plan::emit::Target;
use scrimp_plan::remedy::Setup;
use scrimp_plan::{
    Deployment, Device, Engine, EngineKind, KvDtype, MemoryRule, ModelShape, OutputLengths,
    Parallel, WeightScheme, Workload,
};

use super::args::{EngineArgs, MachineArgs, PlanArgs, WorkloadArgs};
use crate::machine::MemoryLimits;

/// Where Linux lists NVIDIA's devices.
const NVIDIA: &str = "/proc/driver/nvidia/gpus";

/// What was asked for.
pub fn setup(args: &PlanArgs, shape: &ModelShape) -> Result<Setup> {
    let (device, count) = device(&args.machine)?;
    let engine = engine(args, &device)?;
    let workload = workload(&args.workload, shape)?;
    let per_node = args.machine.devices_per_node.min(count);
    let own = &args.engine;
    let max_num_seqs = own.max_num_seqs.or(match engine.kind {
        // Contexts are allocated whole there, one for each.
        EngineKind::LlamaCpp => Some(workload.concurrency),
        _ => None,
    });
    Ok(Setup {
        deployment: Deployment {
            engine,
            device_count: count,
            devices_per_node: per_node,
            host_memory: args.machine.host_memory.map(|b| b as u64),
            disk: args.machine.disk.map(|b| b as u64),
            parallel: parallel(own, shape, engine.kind, count, per_node),
            weights: WeightScheme::parse(&own.weights)?,
            kv_dtype: own.kv_dtype.as_deref().map(KvDtype::parse).transpose()?,
            memory: memory(own, engine.kind)?,
            max_model_len: args.workload.context,
            max_num_batched_tokens: own.max_num_batched_tokens,
            max_num_seqs,
            block_size: own.block_size,
            cuda_graphs: own.cuda_graphs,
            free_at_start: None,
            offload_bytes: own.offload as u64,
            device,
        },
        workload,
    })
}

fn engine(args: &PlanArgs, device: &Device) -> Result<Engine> {
    if let Some(name) = &args.engine.engine {
        return Ok(Engine::parse(name)?);
    }
    let emitted = args.emit.as_deref().map(Target::parse).transpose()?;
    let kind = emitted
        .and_then(Target::engine)
        .unwrap_or(match device.is_cpu {
            true => EngineKind::Scrimp,
            false => EngineKind::Vllm,
        });
    Ok(Engine {
        kind,
        version: None,
    })
}

fn workload(args: &WorkloadArgs, shape: &ModelShape) -> Result<Workload> {
    let output = args.output_tokens.as_deref().map(OutputLengths::parse);
    let workload = Workload {
        context: args.context.unwrap_or(shape.max_position_embeddings.max(1)),
        concurrency: args.concurrency,
        prompt_tokens: args.prompt_tokens,
        output: output.transpose()?,
        prefix_share: args.prefix_share,
        prefix_caching: args.prefix_caching,
        thinking_share: args.thinking_share,
        drops_thinking: args.drop_thinking,
    };
    workload.check()?;
    Ok(workload)
}

/// Devices by name, or this machine's.
fn device(args: &MachineArgs) -> Result<(Device, u32)> {
    let (mut device, count) = match args.device.trim() {
        "auto" => match gpus() {
            Some((name, count)) => (Device::find(&name)?, count),
            None => (Device::host(0, 0), 1),
        },
        name => Device::parse(name)?,
    };
    if let Some(bytes) = args.device_memory {
        device = device.with_memory(bytes as u64)?;
    } else if device.is_cpu {
        let Some(budget) = MemoryLimits::read().budget(None) else {
            bail!("this system does not say how much memory is available: set --device-memory");
        };
        device = device.with_memory(budget as u64)?;
    }
    if let Some(rate) = args.device_bandwidth {
        if !(rate.is_finite() && rate > 0.0) {
            bail!("--device-bandwidth {rate}: has to be above 0 GB/s");
        }
        device.bandwidth = rate * 1e9;
    } else if device.is_cpu {
        device.bandwidth = read_bandwidth(&mut CpuBackend::new(CpuOptions::default())?)?;
    }
    Ok((device, count))
}

/// This machine's NVIDIA devices, as their driver names them.
fn gpus() -> Option<(String, u32)> {
    let entries = fs::read_dir(NVIDIA).ok()?;
    let names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read_to_string(entry.path().join("information")).ok())
        .filter_map(|text| {
            let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
            Some(model.trim().to_owned())
        })
        .collect();
    let first = names.first()?.clone();
    let alike = names.iter().filter(|name| **name == first).count();
    Some((first, alike as u32))
}

/// What was asked for; what was not is the devices that are left, over nodes as stages.
fn parallel(
    args: &EngineArgs,
    shape: &ModelShape,
    engine: EngineKind,
    count: u32,
    per_node: u32,
) -> Parallel {
    let dp = args.dp.unwrap_or(1);
    let left = count / dp.max(1);
    let divides = |tp: &u32| {
        left.is_multiple_of(*tp)
            && (shape.num_attention_heads == 0
                || shape.num_attention_heads.is_multiple_of(u64::from(*tp)))
    };
    let most = (left / args.pp.unwrap_or(1).max(1)).clamp(1, per_node.max(1));
    let tp = args.tp.unwrap_or_else(|| match engine {
        EngineKind::Scrimp | EngineKind::LlamaCpp => 1,
        _ => (1..=most).rev().find(divides).unwrap_or(1),
    });
    let pp = args.pp.unwrap_or_else(|| match engine {
        EngineKind::Scrimp => 1,
        EngineKind::LlamaCpp => left.max(1),
        _ if args.tp.is_some() => 1,
        _ => (left / tp.max(1)).max(1),
    });
    Parallel {
        tp,
        pp,
        dp,
        dcp: args.dcp.unwrap_or(1),
        expert: args.ep,
    }
}

/// The engine's own way of saying how much memory it may use.
fn memory(args: &EngineArgs, engine: EngineKind) -> Result<Option<MemoryRule>> {
    let given = [
        (
            "--gpu-memory-utilization",
            EngineKind::Vllm,
            args.gpu_memory_utilization.map(MemoryRule::OfTotal),
        ),
        (
            "--mem-fraction-static",
            EngineKind::Sglang,
            args.mem_fraction_static.map(MemoryRule::Static),
        ),
        (
            "--free-gpu-memory-fraction",
            EngineKind::TrtLlm,
            args.free_gpu_memory_fraction
                .map(MemoryRule::OfFreeAfterLoad),
        ),
    ];
    let mut rule = args.memory.map(|bytes| MemoryRule::Bytes(bytes as u64));
    for (flag, of, value) in given {
        if value.is_some() && of != engine {
            bail!(
                "{flag} is a setting of {}, and the plan is for {}",
                of.name(),
                engine.name()
            );
        }
        rule = value.or(rule);
    }
    Ok(rule)
}
