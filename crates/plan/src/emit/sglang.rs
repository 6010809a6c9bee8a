//! `python -m sglang.launch_server`, on one node or several, and the same with KTransformers'
//! kernels for experts in host memory.

use super::command::Command;
use super::vllm::offload_gb;
use super::{checkpoint, nodes, reasoning_parser};
use crate::remedy::Evaluated;
use crate::{Component, KvDtype, MemoryRule, ModelShape, Storage, WeightScheme};

/// Port on which nodes find each other.
const INIT_PORT: u32 = 20000;

pub(super) fn commands(
    model: &str,
    shape: &ModelShape,
    plan: &Evaluated,
    ktransformers: bool,
) -> Vec<Command> {
    let launch = launch(model, shape, plan, ktransformers);
    let nodes = nodes(plan);
    if nodes == 1 {
        return vec![launch];
    }
    (0..nodes)
        .map(|node| {
            let mut command = launch.clone();
            command.note(format!(
                "on node {}; HEAD_ADDRESS is the first one's address",
                node + 1
            ));
            command.with("--nnodes", nodes);
            command.with("--node-rank", node);
            command.with("--dist-init-addr", format!("$HEAD_ADDRESS:{INIT_PORT}"));
            command
        })
        .collect()
}

fn launch(model: &str, shape: &ModelShape, plan: &Evaluated, ktransformers: bool) -> Command {
    let deployment = &plan.setup.deployment;
    let parallel = &deployment.parallel;
    let online = match &deployment.weights {
        WeightScheme::Linear(Storage::Fp8 | Storage::Fp8Rows | Storage::Fp8Tiles(..)) => {
            shape.quantization.is_none().then_some("fp8")
        }
        _ => None,
    };
    let path = if online.is_some() {
        model.to_owned()
    } else {
        checkpoint(model, &deployment.weights)
    };
    let mut command = Command::new(&["python", "-m", "sglang.launch_server"]);
    if path != model {
        command.note(format!(
            "{path} is {model} with weights {}: `scrimp quantize` makes one",
            deployment.weights.label()
        ));
    }
    command.with("--model-path", path);
    command.with_some("--quantization", online);
    // Attention replicas are counted inside the tensor-parallel ranks here.
    let inside = parallel.dp > 1 && parallel.expert;
    let tp = if inside {
        parallel.tp * parallel.dp
    } else {
        parallel.tp
    };
    let more = |n: u32| (n > 1).then_some(n);
    command.with_some("--tp-size", more(tp));
    command.with_some("--pp-size", more(parallel.pp));
    command.with_some("--dp-size", more(parallel.dp));
    command.when(inside, "--enable-dp-attention");
    command.with_some("--ep-size", parallel.expert.then_some(tp));
    command.with_some("--dcp-size", more(parallel.dcp));
    command.with_some("--context-length", deployment.max_model_len);
    if let Some(MemoryRule::Static(fraction)) = deployment.memory {
        command.with("--mem-fraction-static", fraction);
    }
    command.with_some("--kv-cache-dtype", deployment.kv_dtype.and_then(kv_dtype));
    command.with_some("--max-running-requests", deployment.max_num_seqs);
    command.with_some("--chunked-prefill-size", deployment.max_num_batched_tokens);
    command.with_some("--page-size", deployment.block_size);
    command.when(!deployment.cuda_graphs, "--disable-cuda-graph");
    command.when(!plan.setup.workload.prefix_caching, "--disable-radix-cache");
    command.when(plan.setup.workload.drops_thinking, "--strip-thinking-cache");
    if ktransformers {
        experts_on_host(&mut command, model, shape, plan);
    } else if deployment.offload_bytes > 0 {
        command.with("--cpu-offload-gb", offload_gb(plan));
    }
    let parser = reasoning_parser(shape).map(|p| match p {
        "deepseek_r1" => "deepseek-r1",
        "openai_gptoss" => "gpt-oss",
        other => other,
    });
    command.with_some("--reasoning-parser", parser);
    command
}

/// As many experts of each layer on the device as the plan keeps there, the rest on the host in
/// KTransformers' 4-bit form.
fn experts_on_host(command: &mut Command, model: &str, shape: &ModelShape, plan: &Evaluated) {
    let held: u64 = plan.prediction.ranks.iter().map(routed).sum();
    let left: u64 = plan
        .prediction
        .ranks
        .iter()
        .map(|r| r.offloaded_bytes)
        .sum();
    let all = (held + left).max(1);
    let kept = (shape.num_experts as f64 * held as f64 / all as f64).floor() as u64;
    let weights = checkpoint(model, &WeightScheme::Gguf("AMXINT4".to_owned()));
    command.note(format!(
        "{} holds the experts for the host, made by kt-kernel's converter; {kept} of {} experts of \
         a layer stay on the device",
        weights.replace("gguf-", ""),
        shape.num_experts
    ));
    command.with("--kt-method", "AMXINT4");
    command.with("--kt-weight-path", weights.replace("gguf-", ""));
    command.with("--kt-num-gpu-experts", kept);
}

fn routed(rank: &crate::RankPlan) -> u64 {
    let routed = rank
        .weights
        .iter()
        .filter(|(c, _)| *c == Component::RoutedExperts);
    routed.map(|(_, bytes)| bytes).sum()
}

fn kv_dtype(dtype: KvDtype) -> Option<&'static str> {
    match dtype {
        KvDtype::Bf16 => Some("bf16"),
        KvDtype::Fp8 | KvDtype::Fp8DsMla => Some("fp8_e4m3"),
        _ => None,
    }
}
