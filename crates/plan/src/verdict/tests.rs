//! Verdicts on a shape small enough to count by hand.

use super::*;
use crate::{
    Component, Device, Engine, EngineKind, LayerCache, Parallel, Role, Split, Storage, TensorGroup,
    Version, WeightScheme,
};

const GIB: u64 = 1 << 30;

fn tensor(component: Component, count: u64, active: u64, rows: u64, columns: u64) -> TensorGroup {
    TensorGroup {
        component,
        name: "w".into(),
        layer: None,
        count,
        active,
        rows,
        columns,
        storage: Storage::Bf16,
        role: Role::Linear,
        split: Split::Rows,
    }
}

/// 4 layers of 1024 attention weights a side, 16 experts of which 4 are used, GQA of 8 heads.
pub(crate) fn shape() -> ModelShape {
    ModelShape {
        name: "tiny".into(),
        model_type: "tiny".into(),
        hidden_size: 1024,
        vocab_size: 1000,
        num_attention_heads: 16,
        intermediate_size: 1024,
        experts_per_token: 4,
        num_experts: 16,
        max_position_embeddings: 65536,
        dtype: Storage::Bf16,
        quantization: None,
        undetermined: None,
        tensors: vec![
            tensor(Component::Embedding, 1, 1, 1000, 1024),
            tensor(Component::Attention, 4, 4, 1024, 1024),
            tensor(Component::RoutedExperts, 64, 16, 1024, 1024),
            tensor(Component::Head, 1, 1, 1000, 1024),
        ],
        caches: vec![
            LayerCache::Full {
                heads: 8,
                key: 64,
                value: 64
            };
            4
        ],
    }
}

fn deployment(parallel: Parallel) -> Deployment {
    Deployment {
        engine: Engine {
            kind: EngineKind::Vllm,
            version: Some(Version(0, 19, 0)),
        },
        device: Device {
            name: "D".into(),
            total_bytes: 80 * GIB,
            free_bytes: 79 * GIB,
            bandwidth: 1e12,
            bf16_flops: 1e14,
            fp8_flops: 2e14,
            link_bandwidth: 1e11,
            is_cpu: false,
        },
        device_count: 8,
        devices_per_node: 8,
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

fn alone() -> Parallel {
    Parallel {
        tp: 1,
        pp: 1,
        dp: 1,
        dcp: 1,
        expert: false,
    }
}

/// What an engine might make of it: one rank with the given pool.
fn prediction(deployment: &Deployment, pool: u64, budget: u64) -> Prediction {
    let tp = u64::from(deployment.parallel.tp);
    let bytes = |values: u64| values * 2 / tp;
    let m = 1024 * 1024;
    let weights = vec![
        (Component::Embedding, bytes(1000 * 1024)),
        (Component::Attention, bytes(4 * m)),
        (Component::RoutedExperts, bytes(64 * m)),
        (Component::Head, bytes(1000 * 1024)),
    ];
    let per_token = 4.0 * 8.0 * 128.0 * 2.0 / tp as f64;
    let kv_tokens = (pool as f64 / per_token) as u64;
    let all: u64 = weights.iter().map(|(_, b)| b).sum();
    Prediction {
        ranks: vec![RankPlan {
            device: deployment.device.clone(),
            rank: (0, 0),
            budget_bytes: budget,
            weights,
            offloaded_bytes: 0,
            overhead_bytes: 0,
            activation_peak_bytes: 1 << 20,
            cuda_graph_bytes: 0,
            kv_pool_bytes: pool,
            kv_blocks: kv_tokens / 16,
            kv_tokens,
            kv_bytes_per_token: per_token,
            missing_bytes: all.saturating_sub(budget),
        }],
        kv_tokens,
        block_size: 16,
        max_model_len: 65536,
        max_num_seqs: 256,
        max_concurrency: kv_tokens as f64 / 65536.0,
        notes: vec![],
    }
}

#[test]
fn a_step_reads_the_experts_that_are_touched() {
    let (shape, deployment) = (shape(), deployment(alone()));
    let prediction = prediction(&deployment, GIB, 2 * GIB);
    let traffic = Traffic::new(&shape, &deployment, &prediction);
    let m = f64::from(1024 * 1024);
    let one = traffic.decode(1.0, 0.0);
    // Attention, a quarter of the experts, the head; not the embedding.
    let expected = 2.0 * (4.0 * m + 16.0 * m + 1000.0 * 1024.0);
    assert!((one.weight_bytes - expected).abs() < 1.0);
    assert_eq!(one.bound, DecodeBound::Weights);
    assert!((one.tokens_per_s - 1e12 / expected).abs() / one.tokens_per_s < 1e-9);
    assert!((traffic.experts_touched(2.0) - (1.0 - 0.75 * 0.75)).abs() < 1e-12);
    let many = traffic.decode(64.0, 0.0);
    assert!(many.weight_bytes > 3.0 * one.weight_bytes && many.weight_bytes < 64.0 * expected);
    // Long contexts turn it over to the cache.
    let long = traffic.decode(64.0, 30_000.0);
    assert!((long.kv_bytes - 64.0 * 30_000.0 * 8192.0).abs() < 1.0);
    assert_eq!(long.bound, DecodeBound::KvCache);
}

#[test]
fn a_tied_head_is_read_whole() {
    let (mut shape, deployment) = (shape(), deployment(alone()));
    let mut prediction = prediction(&deployment, GIB, 2 * GIB);
    let untied = Traffic::new(&shape, &deployment, &prediction).decode(1.0, 0.0);
    shape.tensors.pop();
    prediction.ranks[0].weights.pop();
    let tied = Traffic::new(&shape, &deployment, &prediction).decode(1.0, 0.0);
    assert_eq!(tied.weight_bytes, untied.weight_bytes);
    assert_eq!(
        active_values(&shape),
        f64::from(20 * 1024 * 1024 + 1000 * 1024)
    );
}

#[test]
fn the_compute_bound_batch_is_where_the_terms_cross() {
    let (shape, deployment) = (shape(), deployment(alone()));
    let prediction = prediction(&deployment, GIB, 2 * GIB);
    let traffic = Traffic::new(&shape, &deployment, &prediction);
    let batch = traffic.compute_bound_batch(0.0).unwrap();
    let at = |b: u64| {
        let step = traffic.decode(b as f64, 0.0);
        step.compute_seconds >= step.memory_seconds
    };
    assert!(at(batch) && !at(batch - 1), "{batch}");
    // A cache of 8 heads read for 16 query heads never lets arithmetic catch up.
    assert_eq!(traffic.compute_bound_batch(100_000.0), None);
}

#[test]
fn tensor_parallel_ranks_read_less_and_talk() {
    let shape = shape();
    let (one, four) = (
        deployment(alone()),
        deployment(Parallel { tp: 4, ..alone() }),
    );
    let (p1, p4) = (
        prediction(&one, GIB, 2 * GIB),
        prediction(&four, GIB, 2 * GIB),
    );
    let (t1, t4) = (
        Traffic::new(&shape, &one, &p1),
        Traffic::new(&shape, &four, &p4),
    );
    assert_eq!(t1.link_seconds(1.0), 0.0);
    let step = t4.decode(8.0, 1000.0);
    assert!((step.weight_bytes * 4.0 / t1.decode(8.0, 1000.0).weight_bytes - 1.0).abs() < 1e-9);
    assert!((t4.kv_read(1000.0) * 4.0 - t1.kv_read(1000.0)).abs() < 1e-6);
    let rows = 8.0 * 1024.0 * 2.0;
    let expected = 4.0 * 2.0 * (1.5 * rows / 1e11 + COLLECTIVE_LATENCY);
    assert!((step.link_seconds - expected).abs() < 1e-12);
    // More ranks than heads: a head is on several of them.
    let sixteen = deployment(Parallel { tp: 16, ..alone() });
    let p16 = prediction(&sixteen, GIB, 2 * GIB);
    let t16 = Traffic::new(&shape, &sixteen, &p16);
    assert!((t16.kv_read(1000.0) * 8.0 - t1.kv_read(1000.0)).abs() < 1e-6);
}

#[test]
fn a_replicated_latent_is_divided_by_context_parallelism_only() {
    let mut shape = shape();
    shape.caches = vec![
        LayerCache::Latent {
            rank: 512,
            rope: 64
        };
        61
    ];
    let at = |parallel| {
        let deployment = deployment(parallel);
        let prediction = prediction(&deployment, GIB, 2 * GIB);
        Traffic::new(&shape, &deployment, &prediction).kv_read(1.0)
    };
    assert_eq!(at(alone()), 70_272.0);
    assert_eq!(at(Parallel { tp: 8, ..alone() }), 70_272.0);
    assert_eq!(
        at(Parallel {
            tp: 8,
            dcp: 8,
            ..alone()
        }),
        8784.0
    );
}

#[test]
fn capacity_names_who_is_in_the_way() {
    let (shape, deployment) = (shape(), deployment(alone()));
    let workload = Workload::longest(65536, 4);
    // 4 × 65536 × 8 KiB = 2 GiB of cache.
    let roomy = judge(
        &shape,
        &deployment,
        &prediction(&deployment, 3 * GIB, 4 * GIB),
        &workload,
    );
    assert!(roomy.fits, "{}", roomy.explanation);
    assert_eq!(roomy.capacity.kv_needed_bytes, 2 * GIB);
    let tight = judge(
        &shape,
        &deployment,
        &prediction(&deployment, GIB, 4 * GIB),
        &workload,
    );
    assert!(!tight.fits);
    assert_eq!(tight.capacity.binding, Binding::KvCache);
    assert_eq!(tight.capacity.short_bytes, GIB);
    assert_eq!(tight.capacity.sequences, 2.0);
    assert!(
        tight.explanation.contains("2.0 of 4 sequences fit"),
        "{}",
        tight.explanation
    );
    let none = judge(
        &shape,
        &deployment,
        &prediction(&deployment, 0, 1 << 20),
        &workload,
    );
    assert!(!none.fits);
    assert_eq!(none.capacity.binding, Binding::Weights);
    assert!(
        none.explanation.contains("weights do not fit"),
        "{}",
        none.explanation
    );
}
