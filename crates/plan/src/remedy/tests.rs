//! Remedies on the release they were asked for first.

use super::*;
use crate::{Deployment, Device, Engine, KvDtype, Parallel, WeightScheme, Workload, catalogue};

fn r1(count: u32, device: &str, workload: Workload) -> (ModelShape, Evaluated) {
    let shape = catalogue::shape("deepseek-ai/DeepSeek-R1").unwrap();
    let setup = Setup {
        deployment: Deployment {
            engine: Engine::parse("vllm").unwrap(),
            device: Device::find(device).unwrap(),
            device_count: count,
            devices_per_node: count.min(8),
            host_memory: None,
            disk: None,
            parallel: Parallel {
                tp: count.min(8),
                pp: count.div_ceil(8),
                dp: 1,
                dcp: 1,
                expert: false,
            },
            weights: WeightScheme::Released,
            kv_dtype: None,
            memory: None,
            max_model_len: Some(workload.context),
            max_num_batched_tokens: None,
            max_num_seqs: None,
            block_size: None,
            cuda_graphs: true,
            free_at_start: None,
            offload_bytes: 0,
        },
        workload,
    };
    let now = evaluate(&shape, &setup).unwrap();
    (shape, now)
}

#[test]
fn r1_on_eight_h200_is_short_of_cache_and_the_first_remedy_keeps_its_word() {
    let (shape, now) = r1(8, "H200", Workload::longest(65536, 32));
    assert!(!now.verdict.fits, "{}", now.verdict.explanation);
    assert_eq!(now.verdict.capacity.binding, Binding::KvCache);
    let advice = advise(&shape, &now).unwrap();
    let first = &advice.remedies[0];
    assert!(first.settles, "{first:?}");
    let again = evaluate(&shape, &first.setup).unwrap();
    assert_eq!(again.outcome, first.after);
    assert!(again.verdict.fits);
    // On eight ranks the latent is held eight times over: dividing it is the point.
    assert!(first.gains_tokens as u64 > now.outcome.kv_tokens);
    assert!(advice.combination.is_some());
}

#[test]
fn remedies_are_different_and_do_something() {
    let (shape, now) = r1(8, "H200", Workload::longest(65536, 32));
    let advice = advise(&shape, &now).unwrap();
    let mut names: Vec<&str> = advice.remedies.iter().map(|r| r.name.as_str()).collect();
    assert!(names.len() >= 5, "{names:?}");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), advice.remedies.len());
    for remedy in &advice.remedies {
        assert!(!remedy.flags.is_empty());
        assert!(!remedy.quality.is_empty() && !remedy.speed.is_empty());
        assert!(remedy.settles || remedy.gains_tokens > 0 || remedy.decode_speedup > 1.0);
    }
    let fp8 = Change::Kv(KvDtype::Fp8);
    let fp8 = advice
        .remedies
        .iter()
        .find(|r| r.changes == [fp8.clone()])
        .unwrap();
    let growth = fp8.after.kv_tokens as f64 / now.outcome.kv_tokens as f64;
    assert!((1.7..2.2).contains(&growth), "{growth}");
    assert!(fp8.saves_bytes > 0);
}

#[test]
fn weights_that_never_fit_are_answered_with_machines_that_would() {
    let (shape, now) = r1(1, "RTX4090", Workload::longest(8192, 1));
    assert_eq!(now.verdict.capacity.binding, Binding::Weights);
    let advice = advise(&shape, &now).unwrap();
    assert!(advice.combination.is_none());
    assert!(!advice.hardware.is_empty());
    for remedy in &advice.hardware {
        let again = evaluate(&shape, &remedy.setup).unwrap();
        assert!(again.verdict.fits, "{}", remedy.name);
    }
}

#[test]
fn experts_in_host_memory_let_one_card_run_it_slowly() {
    let (shape, mut now) = r1(1, "H100", Workload::longest(8192, 1));
    now.setup.deployment.host_memory = Some(1 << 40);
    let now = evaluate(&shape, &now.setup).unwrap();
    let advice = advise(&shape, &now).unwrap();
    let names: Vec<&str> = advice.remedies.iter().map(|r| r.name.as_str()).collect();
    assert!(
        names.iter().any(|n| n.contains("host")),
        "{names:?} {}",
        now.verdict.explanation
    );
    let offload = advice
        .remedies
        .iter()
        .find(|r| r.changes[0].topic() == Topic::Offload)
        .unwrap();
    assert!(offload.settles, "{offload:?}");
    assert_eq!(offload.after.decode_bound, DecodeBound::HostMemory);
}

#[test]
fn combined_qualities_multiply_and_unmeasured_ones_stay_so() {
    let shape = catalogue::shape("deepseek-ai/DeepSeek-R1").unwrap();
    let scheme = |name| Change::Weights(WeightScheme::parse(name).unwrap());
    let experts = quality::of(&scheme("experts-int4"), &shape);
    assert_eq!(experts.retained, Some(0.988));
    assert!(experts.source.is_some());
    let kv = quality::of(&Change::Kv(KvDtype::Fp8), &shape);
    assert_eq!(kv.retained, None);
    assert!(kv.text.contains("not measured"));
    let both = Quality::of_all(&[experts.clone(), kv]);
    assert_eq!(both.retained, None);
    assert!(both.text.contains("98.8") && both.text.contains("not measured"));
    assert_eq!(
        Quality::of_all(&[experts.clone(), experts]).retained,
        Some(0.988 * 0.988)
    );
}
