//! `vllm serve`, on one node or several.

use super::command::Command;
use super::{checkpoint, nodes, reasoning_parser};
use crate::remedy::Evaluated;
use crate::{KvDtype, MemoryRule, ModelShape, Storage, WeightScheme};

/// Port on which data-parallel nodes find each other.
const RPC_PORT: u32 = 13345;

pub(super) fn commands(model: &str, shape: &ModelShape, plan: &Evaluated) -> Vec<Command> {
    let nodes = nodes(plan);
    if nodes == 1 {
        return vec![serve(model, shape, plan)];
    }
    let parallel = &plan.setup.deployment.parallel;
    let one_group = u64::from(parallel.tp) * u64::from(parallel.pp);
    if one_group > u64::from(plan.setup.deployment.devices_per_node) {
        over_ray(serve(model, shape, plan), nodes)
    } else {
        replicas(&serve(model, shape, plan), plan, nodes)
    }
}

/// One model over several nodes: a Ray cluster, then the command on its head.
fn over_ray(mut serve: Command, nodes: u64) -> Vec<Command> {
    let mut head = Command::new(&["ray", "start"]);
    head.note("1. on the first node; HEAD_ADDRESS is its address");
    head.when(true, "--head");
    head.with("--port", 6379);
    let mut worker = Command::new(&["ray", "start"]);
    worker.note(format!("2. on each of the other {} nodes", nodes - 1));
    worker.with("--address", "$HEAD_ADDRESS:6379");
    serve.note("3. on the first node, once `ray status` lists them all");
    serve.with("--distributed-executor-backend", "ray");
    vec![head, worker, serve]
}

/// Whole replicas on each node, one API in front.
fn replicas(serve: &Command, plan: &Evaluated, nodes: u64) -> Vec<Command> {
    let local = u64::from(plan.setup.deployment.parallel.dp) / nodes;
    (0..nodes)
        .map(|node| {
            let mut command = serve.clone();
            if node > 0 {
                command.notes.clear();
            }
            command.note(format!(
                "on node {}; HEAD_ADDRESS is the first one's address",
                node + 1
            ));
            command.with("--data-parallel-size-local", local);
            command.with("--data-parallel-address", "$HEAD_ADDRESS");
            command.with("--data-parallel-rpc-port", RPC_PORT);
            command.when(node > 0, "--headless");
            if node > 0 {
                command.with("--data-parallel-start-rank", node * local);
            }
            command
        })
        .collect()
}

fn serve(model: &str, shape: &ModelShape, plan: &Evaluated) -> Command {
    let deployment = &plan.setup.deployment;
    let parallel = &deployment.parallel;
    let online = online_quantization(shape, &deployment.weights);
    let path = if online.is_some() {
        model.to_owned()
    } else {
        checkpoint(model, &deployment.weights)
    };
    let mut command = Command::new(&["vllm", "serve", &path]);
    if path != model {
        command.note(format!(
            "{path} is {model} with weights {}: `scrimp quantize` makes one",
            deployment.weights.label()
        ));
    }
    command.with_some("--quantization", online);
    let more = |n: u32| (n > 1).then_some(n);
    command.with_some("--tensor-parallel-size", more(parallel.tp));
    command.with_some("--pipeline-parallel-size", more(parallel.pp));
    command.with_some("--data-parallel-size", more(parallel.dp));
    command.with_some("--decode-context-parallel-size", more(parallel.dcp));
    command.when(parallel.expert, "--enable-expert-parallel");
    command.with_some("--max-model-len", deployment.max_model_len);
    match deployment.memory {
        Some(MemoryRule::OfTotal(fraction)) => {
            command.with("--gpu-memory-utilization", fraction);
        }
        Some(MemoryRule::Bytes(_)) => command.with("--kv-cache-memory-bytes", pool(plan)),
        _ => {}
    }
    command.with_some("--kv-cache-dtype", deployment.kv_dtype.and_then(kv_dtype));
    command.with_some("--max-num-seqs", deployment.max_num_seqs);
    command.with_some(
        "--max-num-batched-tokens",
        deployment.max_num_batched_tokens,
    );
    command.with_some("--block-size", deployment.block_size);
    if deployment.offload_bytes > 0 {
        command.with("--cpu-offload-gb", offload_gb(plan));
    }
    command.when(!deployment.cuda_graphs, "--enforce-eager");
    command.when(
        !plan.setup.workload.prefix_caching,
        "--no-enable-prefix-caching",
    );
    command.with_some("--reasoning-parser", reasoning_parser(shape));
    command
}

/// vLLM can round a 16-bit release to FP8 while it loads.
fn online_quantization(shape: &ModelShape, scheme: &WeightScheme) -> Option<&'static str> {
    let fp8 = matches!(
        scheme,
        WeightScheme::Linear(Storage::Fp8 | Storage::Fp8Rows | Storage::Fp8Tiles(..))
    );
    (fp8 && shape.quantization.is_none()).then_some("fp8")
}

fn kv_dtype(dtype: KvDtype) -> Option<&'static str> {
    match dtype {
        KvDtype::Bf16 => Some("bfloat16"),
        KvDtype::Fp8 => Some("fp8"),
        KvDtype::Fp8DsMla => Some("fp8_ds_mla"),
        _ => None,
    }
}

/// KV pool of a rank, bytes.
fn pool(plan: &Evaluated) -> u64 {
    plan.prediction
        .ranks
        .iter()
        .map(|r| r.kv_pool_bytes)
        .min()
        .unwrap_or(0)
}

/// GiB of weights that each device leaves in host memory, rounded up.
pub(super) fn offload_gb(plan: &Evaluated) -> u64 {
    let most = plan
        .prediction
        .ranks
        .iter()
        .map(|r| r.offloaded_bytes)
        .max();
    most.unwrap_or(0).div_ceil(1 << 30)
}
