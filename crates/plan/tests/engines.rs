//! Rules of engines: what must hold whatever the model and the machine.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use scrimp_model::{KvLayout, ModelConfig};
use scrimp_plan::{
    Deployment, Device, Engine, EngineKind, Error, KvDtype, MemoryRule, ModelShape, Parallel,
    Storage, Version, WeightScheme, predict,
};
use scrimp_tensor::DType;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
        "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 3000, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": false,
        "hidden_act": "silu", "torch_dtype": "bfloat16"
    })
}

fn deepseek() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "hidden_size": 256, "intermediate_size": 704, "moe_intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
        "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
        "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "vocab_size": 3000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 4096, "tie_word_embeddings": false, "hidden_act": "silu",
        "torch_dtype": "bfloat16"
    })
}

fn shape(config: &Value) -> ModelShape {
    ModelShape::from_config("test", config).unwrap()
}

fn alone() -> Parallel {
    Parallel {
        tp: 1,
        pp: 1,
        dp: 1,
        dcp: 1,
        expert: false,
    }
}

fn on(kind: EngineKind, device: Device, parallel: Parallel) -> Deployment {
    let devices = parallel.devices() as u32;
    Deployment {
        engine: Engine {
            kind,
            version: None,
        },
        device,
        device_count: devices,
        devices_per_node: devices.min(8),
        host_memory: None,
        disk: None,
        parallel,
        weights: WeightScheme::Released,
        kv_dtype: None,
        memory: None,
        max_model_len: None,
        max_num_batched_tokens: None,
        max_num_seqs: None,
        block_size: None,
        cuda_graphs: true,
        free_at_start: None,
        offload_bytes: 0,
    }
}

fn h100() -> Device {
    Device::find("H100").unwrap()
}

/// `plan --engine scrimp` and the engine itself size the same cache from the same config.
#[test]
fn scrimp_plans_what_the_engine_reserves() {
    for config in [llama(), deepseek()] {
        let model = ModelConfig::from_hf(&config).unwrap();
        let mut deployment = on(EngineKind::Scrimp, Device::host(8 * GIB, 0), alone());
        deployment.memory = Some(MemoryRule::Bytes(2 * GIB));
        deployment.kv_dtype = Some(KvDtype::F16);
        deployment.max_model_len = Some(4096);
        let plan = predict(&shape(&config), &deployment).unwrap();
        let layout = KvLayout::of(&model, DType::F16, 16);
        let rank = &plan.ranks[0];
        assert_eq!(rank.kv_bytes_per_token, layout.bytes_per_token() as f64);
        assert_eq!(
            rank.kv_pool_bytes,
            rank.kv_blocks * layout.bytes_per_block() as u64
        );
        assert_eq!(rank.weights_bytes(), shape(&config).tensor_bytes());
        let taken = rank.weights_bytes()
            + rank.kv_pool_bytes
            + rank.activation_peak_bytes
            + rank.overhead_bytes;
        assert!(
            taken <= rank.budget_bytes,
            "{taken} of {}",
            rank.budget_bytes
        );
        assert_eq!(rank.missing_bytes, 0);
    }
}

#[test]
fn what_does_not_fit_says_by_how_much() {
    let shape = shape(&llama());
    for kind in [
        EngineKind::Vllm,
        EngineKind::Sglang,
        EngineKind::TrtLlm,
        EngineKind::LlamaCpp,
        EngineKind::Scrimp,
    ] {
        let tiny = Device::find("H100").unwrap().with_memory(8 << 20).unwrap();
        let plan = predict(&shape, &on(kind, tiny, alone())).unwrap();
        assert!(plan.ranks[0].missing_bytes > 0, "{kind:?}");
    }
}

#[test]
fn host_memory_takes_experts_before_anything_else() {
    let config = deepseek();
    let small = Device::find("H100").unwrap().with_memory(4 * GIB).unwrap();
    let mut deployment = on(EngineKind::Vllm, small, alone());
    deployment.memory = Some(MemoryRule::Bytes(1));
    deployment.offload_bytes = 1 << 20;
    let rank = predict(&shape(&config), &deployment)
        .unwrap()
        .ranks
        .remove(0);
    assert_eq!(rank.offloaded_bytes, 1 << 20);
    deployment.offload_bytes = 0;
    let all = predict(&shape(&config), &deployment)
        .unwrap()
        .ranks
        .remove(0);
    for ((component, with), (_, without)) in rank.weights.iter().zip(&all.weights) {
        let routed = *component == scrimp_plan::Component::RoutedExperts;
        assert_eq!(
            without - with,
            if routed { 1 << 20 } else { 0 },
            "{component:?}"
        );
    }
}

#[test]
fn a_latent_is_on_every_rank_and_heads_are_not() {
    let pool = |config: &Value, tp| {
        let mut deployment = on(EngineKind::Vllm, h100(), Parallel { tp, ..alone() });
        deployment.engine.version = Some(Version(0, 11, 0));
        predict(&shape(config), &deployment).unwrap().ranks[0].kv_bytes_per_token
    };
    assert_eq!(pool(&deepseek(), 8), pool(&deepseek(), 1));
    assert_eq!(pool(&llama(), 2), pool(&llama(), 1) / 2.0);
    assert_eq!(pool(&llama(), 8), pool(&llama(), 2));
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let shape = shape(&llama());
    let refused = |change: &dyn Fn(&mut Deployment), setting: &str| {
        let mut deployment = on(EngineKind::Vllm, h100(), alone());
        change(&mut deployment);
        match predict(&shape, &deployment) {
            Err(Error::Setting { setting: found, .. }) => assert_eq!(found, setting),
            other => panic!("{setting}: {other:?}"),
        }
    };
    refused(&|d| d.parallel.tp = 0, "--tensor-parallel-size");
    refused(&|d| d.parallel.tp = 2, "--device");
    refused(&|d| d.parallel.pp = 7, "--pipeline-parallel-size");
    refused(&|d| d.parallel.dcp = 2, "--decode-context-parallel-size");
    refused(
        &|d| d.memory = Some(MemoryRule::OfTotal(1.5)),
        "--gpu-memory-utilization",
    );
    refused(
        &|d| d.memory = Some(MemoryRule::OfTotal(f64::NAN)),
        "--gpu-memory-utilization",
    );
    refused(
        &|d| d.memory = Some(MemoryRule::Static(0.0)),
        "--mem-fraction-static",
    );
    refused(&|d| d.max_model_len = Some(0), "--max-model-len");
    refused(&|d| d.block_size = Some(u64::MAX), "--block-size");
    refused(&|d| d.device.total_bytes = 0, "--device-memory");
}

fn kinds() -> impl Strategy<Value = EngineKind> {
    prop::sample::select(vec![
        EngineKind::Vllm,
        EngineKind::Sglang,
        EngineKind::TrtLlm,
        EngineKind::LlamaCpp,
        EngineKind::Scrimp,
    ])
}

proptest! {
    /// Any deployment is planned or refused, nothing is counted twice, and more memory holds no
    /// fewer tokens.
    #[test]
    fn plans_hold_together(
        kind in kinds(),
        latent in any::<bool>(),
        (tp, pp, dp) in (1u32..9, 1u32..4, 1u32..3),
        expert in any::<bool>(),
        minor in 4u32..30,
        gib in 1u64..200,
        length in prop::option::of(1u64..2_000_000),
        tokens in prop::option::of(1u64..100_000),
        sequences in prop::option::of(1u64..5000),
        eight in any::<bool>(),
    ) {
        let shape = shape(&if latent { deepseek() } else { llama() });
        let parallel = Parallel { tp, pp, dp, dcp: 1, expert };
        let plan = |bytes: u64| {
            let device = h100().with_memory(bytes).unwrap();
            let mut deployment = on(kind, device, parallel);
            deployment.engine.version = Some(Version(0, minor, 0));
            deployment.max_model_len = length;
            deployment.max_num_batched_tokens = tokens;
            deployment.max_num_seqs = sequences;
            if eight { deployment.weights = WeightScheme::Linear(Storage::Fp8); }
            predict(&shape, &deployment)
        };
        let (Ok(less), Ok(more)) = (plan(gib * GIB), plan(2 * gib * GIB)) else {
            return Ok(());
        };
        prop_assert!(more.kv_tokens >= less.kv_tokens);
        for rank in &less.ranks {
            prop_assert!(rank.kv_bytes_per_token.is_finite() && rank.kv_bytes_per_token >= 0.0);
            let spent = rank.weights_bytes() + rank.kv_pool_bytes;
            prop_assert!(rank.missing_bytes > 0 || spent <= rank.budget_bytes,
                "{spent} of {}", rank.budget_bytes);
        }
        prop_assert!(less.max_concurrency.is_finite());
        prop_assert_eq!(less.ranks.is_empty(), false);
    }
}

/// Logs that are in none of the cases, from public issues.
mod elsewhere {
    use super::*;

    fn of(name: &str, kind: EngineKind, version: Version, tp: u32) -> (ModelShape, Deployment) {
        let shape = scrimp_plan::catalogue::shape(name).unwrap();
        let mut deployment = on(kind, h100(), Parallel { tp, ..alone() });
        deployment.engine.version = Some(version);
        (shape, deployment)
    }

    fn near(predicted: f64, recorded: f64, within: f64) {
        let error = (predicted / recorded - 1.0).abs();
        assert!(error < within, "{predicted} for {recorded}");
    }

    /// vllm-project/vllm#33155 (Triton's layout) and #23278 (Marlin's), one H100.
    #[test]
    fn gpt_oss_120b_by_kernel() {
        for (version, gib) in [(Version(0, 14, 1), 64.38), (Version(0, 10, 1), 65.9651)] {
            let (shape, deployment) = of("openai/gpt-oss-120b", EngineKind::Vllm, version, 1);
            let plan = predict(&shape, &deployment).unwrap();
            near(plan.ranks[0].weights_bytes() as f64 / GIB as f64, gib, 0.01);
        }
    }

    /// vllm-project/vllm#21348: SGLang on four H100 with 0.93.
    #[test]
    fn qwen3_235b_under_sglang() {
        let version = Version(0, 4, 9);
        let (shape, mut deployment) =
            of("Qwen/Qwen3-235B-A22B-FP8", EngineKind::Sglang, version, 4);
        deployment.memory = Some(MemoryRule::Static(0.93));
        near(
            predict(&shape, &deployment).unwrap().kv_tokens as f64,
            367_404.0,
            0.012,
        );
    }

    /// vllm-project/vllm#10511: Llama 3 8B over two H100, with the first engine.
    #[test]
    fn llama_3_over_two_ranks() {
        let version = Version(0, 6, 5);
        let (mut shape, mut deployment) = of(
            "meta-llama/Llama-3.1-8B-Instruct",
            EngineKind::Vllm,
            version,
            2,
        );
        shape.max_position_embeddings = 8192;
        deployment.device = h100().with_memory((79.22 * GIB as f64) as u64).unwrap();
        let rank = predict(&shape, &deployment).unwrap().ranks.remove(0);
        near(rank.weights_bytes() as f64 / GIB as f64, 7.48, 0.01);
        near(rank.activation_peak_bytes as f64 / GIB as f64, 1.26, 0.03);
        near(rank.overhead_bytes as f64 / GIB as f64, 3.58, 0.01);
    }
}
