//! Every flag that is emitted is one that the engine's own parser knows.

use super::*;
use crate::remedy::{Setup, evaluate};
use crate::{Deployment, Device, Engine, KvDtype, MemoryRule, Parallel, Workload, catalogue};

const LISTS: [(Target, &str); 5] = [
    (Target::Vllm, include_str!("flags/vllm.txt")),
    (Target::Sglang, include_str!("flags/sglang.txt")),
    (Target::Ktransformers, include_str!("flags/sglang.txt")),
    (Target::LlamaCpp, include_str!("flags/llama.cpp.txt")),
    (Target::Scrimp, include_str!("flags/scrimp.txt")),
];

/// With everything set that can be.
fn plan(target: Target, count: u32, parallel: Parallel) -> (ModelShape, Evaluated) {
    let shape = catalogue::shape("deepseek-ai/DeepSeek-R1").unwrap();
    let engine = Engine {
        kind: target.engine().unwrap_or(EngineKind::Vllm),
        version: None,
    };
    let mut workload = Workload::longest(16384, 4);
    workload.prefix_caching = false;
    workload.drops_thinking = true;
    let (memory, kv) = match engine.kind {
        EngineKind::Vllm => (MemoryRule::OfTotal(0.9), KvDtype::Fp8),
        EngineKind::Sglang => (MemoryRule::Static(0.85), KvDtype::Fp8),
        EngineKind::LlamaCpp => (MemoryRule::Bytes(70 << 30), KvDtype::Q8_0),
        _ => (MemoryRule::Bytes(900 << 30), KvDtype::F16),
    };
    let setup = Setup {
        deployment: Deployment {
            engine,
            device: Device::find("H200").unwrap(),
            device_count: count,
            devices_per_node: count.min(8),
            host_memory: Some(1 << 40),
            disk: None,
            parallel,
            weights: WeightScheme::Released,
            kv_dtype: Some(kv),
            memory: Some(memory),
            max_model_len: Some(16384),
            max_num_batched_tokens: Some(4096),
            max_num_seqs: Some(4),
            block_size: Some(16),
            cuda_graphs: false,
            free_at_start: None,
            offload_bytes: 700 << 30,
        },
        workload,
    };
    let plan = evaluate(&shape, &setup).unwrap();
    (shape, plan)
}

fn parallel(tp: u32, pp: u32, dp: u32, expert: bool) -> Parallel {
    Parallel {
        tp,
        pp,
        dp,
        dcp: 1,
        expert,
    }
}

#[test]
fn every_flag_is_known_to_its_engine() {
    for (target, list) in LISTS {
        let known: Vec<&str> = list.lines().filter(|line| line.starts_with('-')).collect();
        assert!(known.len() > 10, "{target:?}");
        let splits = match target {
            Target::Scrimp => vec![(1, parallel(1, 1, 1, false))],
            Target::LlamaCpp => vec![(1, parallel(1, 1, 1, false)), (4, parallel(4, 1, 1, false))],
            _ => vec![
                (1, parallel(1, 1, 1, false)),
                (8, parallel(8, 1, 1, false)),
                (8, parallel(1, 1, 8, true)),
                (16, parallel(8, 2, 1, false)),
                (16, parallel(1, 1, 16, true)),
            ],
        };
        for (count, split) in splits {
            let (shape, plan) = plan(target, count, split);
            let all = commands(target, "deepseek-ai/DeepSeek-R1", &shape, &plan).unwrap();
            assert!(!all.is_empty());
            for command in all.iter().filter(|c| c.program[0] != "ray") {
                for (flag, _) in &command.flags {
                    assert!(known.contains(&flag.as_str()), "{target:?} has no {flag}");
                }
            }
        }
    }
}

#[test]
fn one_node_is_one_command_and_two_are_a_cluster() {
    let (shape, one) = plan(Target::Vllm, 8, parallel(8, 1, 1, false));
    let script = emit(Target::Vllm, "org/R1", &shape, &one).unwrap();
    assert!(script.contains("vllm serve org/R1"), "{script}");
    assert!(script.contains("--tensor-parallel-size 8"), "{script}");
    assert!(!script.contains("ray"), "{script}");
    let (shape, two) = plan(Target::Vllm, 16, parallel(8, 2, 1, false));
    let script = emit(Target::Vllm, "org/R1", &shape, &two).unwrap();
    assert!(script.contains("ray start"), "{script}");
    assert!(script.contains("--pipeline-parallel-size 2"), "{script}");
}

#[test]
fn attention_replicas_are_spelled_in_each_engines_way() {
    let (shape, plan_v) = plan(Target::Vllm, 8, parallel(1, 1, 8, true));
    let vllm = emit(Target::Vllm, "m", &shape, &plan_v).unwrap();
    assert!(vllm.contains("--data-parallel-size 8") && vllm.contains("--enable-expert-parallel"));
    let (shape, plan_s) = plan(Target::Sglang, 8, parallel(1, 1, 8, true));
    let sglang = emit(Target::Sglang, "m", &shape, &plan_s).unwrap();
    assert!(
        sglang.contains("--tp-size 8") && sglang.contains("--enable-dp-attention"),
        "{sglang}"
    );
}

#[test]
fn manifests_hold_the_command_word_by_word() {
    let (shape, one) = plan(Target::Vllm, 8, parallel(8, 1, 1, false));
    let manifest = emit(Target::Kubernetes, "org/R1", &shape, &one).unwrap();
    assert!(manifest.contains("kind: Deployment"), "{manifest}");
    assert!(manifest.contains("nvidia.com/gpu: \"8\""), "{manifest}");
    assert!(
        manifest.contains("- \"--tensor-parallel-size\"\n"),
        "{manifest}"
    );
    let (shape, two) = plan(Target::Vllm, 16, parallel(8, 2, 1, false));
    let manifest = emit(Target::Kubernetes, "org/R1", &shape, &two).unwrap();
    assert!(manifest.contains("kind: LeaderWorkerSet"), "{manifest}");
    assert!(
        manifest.contains("size: 2") && manifest.contains("ray_cluster_size=2"),
        "{manifest}"
    );
}

#[test]
fn a_plan_is_not_written_for_another_engine() {
    let (shape, plan_v) = plan(Target::Vllm, 8, parallel(8, 1, 1, false));
    let message = emit(Target::Sglang, "m", &shape, &plan_v)
        .unwrap_err()
        .to_string();
    assert!(message.contains("--engine sglang"), "{message}");
    assert!(
        Target::parse("vlm")
            .unwrap_err()
            .to_string()
            .contains("kubernetes")
    );
}
