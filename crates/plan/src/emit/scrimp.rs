//! `scrimp serve`.

use super::checkpoint;
use super::command::Command;
use crate::remedy::Evaluated;
use crate::{KvDtype, MemoryRule};

pub(super) fn command(model: &str, plan: &Evaluated) -> Command {
    let deployment = &plan.setup.deployment;
    let path = checkpoint(model, &deployment.weights);
    let mut command = Command::new(&["scrimp", "serve"]);
    if path != model {
        command.note(format!(
            "{path} is {model} with weights {}: `scrimp quantize` makes one",
            deployment.weights.label()
        ));
    }
    command.with("--model", path);
    if let Some(MemoryRule::Bytes(bytes)) = deployment.memory {
        command.with("--memory", bytes);
    }
    command.with_some("--max-model-len", deployment.max_model_len);
    command.with_some("--max-num-seqs", deployment.max_num_seqs);
    command.with_some(
        "--max-num-batched-tokens",
        deployment.max_num_batched_tokens,
    );
    command.with_some("--block-size", deployment.block_size);
    let dtype = deployment.kv_dtype.and_then(|dtype| match dtype {
        KvDtype::F32 => Some("f32"),
        KvDtype::F16 => Some("f16"),
        KvDtype::Bf16 => Some("bf16"),
        _ => None,
    });
    command.with_some("--kv-cache-dtype", dtype);
    if let Some(output) = plan.setup.workload.output {
        command.with("--expected-output-tokens", output.mean(1e12).round() as u64);
    }
    if !plan.setup.workload.prefix_caching {
        command.with("--enable-prefix-caching", false);
    }
    command
}
