use super::*;
use proptest::prelude::*;
use scrimp_tensor::DType;

/// DeepSeek-R1's cache: 61 layers of one 576-value row.
fn r1(dtype: DType) -> KvLayout {
    KvLayout {
        num_layers: 61,
        num_kv_heads: 1,
        key_dim: 576,
        value_dim: 512,
        value_in_key: true,
        dtype,
        block_size: 16,
    }
}

/// 2 layers × 2 heads × (8 + 8) values × 2 bytes = 128 bytes a token, 2 KiB a block.
fn small(dtype: DType) -> KvLayout {
    KvLayout {
        num_layers: 2,
        num_kv_heads: 2,
        key_dim: 8,
        value_dim: 8,
        value_in_key: false,
        dtype,
        block_size: 16,
    }
}

fn input(budget_bytes: usize, kv: KvLayout) -> PlanInput {
    PlanInput {
        budget_bytes,
        weights: vec![("embedding".into(), 30_000), ("layers".into(), 70_000)],
        activations_bytes: 10_000,
        bytes_per_seq: 100,
        staging_bytes: 4_000,
        loading_bytes: 103_500,
        opening_bytes: 1_500,
        other_bytes: 2_000,
        reserve_bytes: 3_000,
        kv,
        kv_block_bytes: kv.bytes_per_block(),
        kv_page_bytes: 1,
        max_model_len: 256,
        shrink_to_fit: false,
        max_num_seqs: 50,
        max_blocks_per_seq: PlanInput::DEFAULT_MAX_BLOCKS_PER_SEQ,
        num_blocks: None,
        kv_cache_bytes: None,
        max_kv_cache_bytes: None,
    }
}

fn refused(input: &PlanInput) -> DoesNotFit {
    match MemoryPlan::new(input) {
        Err(PlanError::DoesNotFit(error)) => *error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn the_cache_takes_what_the_budget_leaves_in_whole_blocks() {
    // 100,000 weights + 15,000 activations + 2,000 others + 3,000 in reserve, then 40 blocks and
    // a bit.
    let plan = MemoryPlan::new(&input(120_000 + 40 * 2048 + 2047, small(DType::F16))).unwrap();
    assert_eq!(plan.kv.bytes_per_token(), 128);
    assert_eq!((plan.num_blocks, plan.kv_limit), (40, KvLimit::Budget));
    assert_eq!(plan.kv_tokens(), 640);
    assert_eq!(plan.activations_bytes, 15_000);
    assert_eq!(plan.peak_bytes(), 117_000 + 40 * 2048);
    assert_eq!(plan.free_bytes(), 2047);
    assert_eq!(plan.max_concurrency(256), 2.5);
    assert_eq!(plan.max_concurrency(1), 40.0);
}

#[test]
fn the_cache_is_no_larger_than_can_be_used_or_was_asked_for() {
    let plenty = input(1 << 30, small(DType::F16));
    let plan = MemoryPlan::new(&plenty).unwrap();
    assert_eq!(
        (plan.num_blocks, plan.kv_limit),
        (16 * 50, KvLimit::Workload)
    );
    let cases = [
        (Some(10_240), None, None, 10_240, KvLimit::NumBlocks),
        (None, Some(50 * 2048 + 5), None, 50, KvLimit::KvCacheBytes),
        (None, None, Some(20 * 2048), 20, KvLimit::MaxKvCacheBytes),
        (Some(30), Some(1 << 20), Some(1), 30, KvLimit::NumBlocks),
    ];
    for (num_blocks, kv_cache_bytes, max_kv_cache_bytes, blocks, limit) in cases {
        let plan = MemoryPlan::new(&PlanInput {
            num_blocks,
            kv_cache_bytes,
            max_kv_cache_bytes,
            ..plenty.clone()
        })
        .unwrap();
        assert_eq!((plan.num_blocks, plan.kv_limit), (blocks, limit));
    }
}

#[test]
fn a_refusal_has_the_numbers_and_what_would_fit() {
    // One sequence of 256 tokens is 16 blocks; 10 fit.
    let error = refused(&input(120_000 + 10 * 2048, small(DType::F16)));
    assert_eq!(error.kv_cache_bytes, 16 * 2048);
    assert_eq!(error.kv_tokens_left, 160);
    assert_eq!(
        error.remedies,
        [
            Remedy::ShorterContext { max_model_len: 160 },
            Remedy::MoreMemory {
                budget_bytes: 120_000 + 16 * 2048
            },
        ]
    );
    assert_eq!(
        PlanError::DoesNotFit(Box::new(error)).to_string(),
        "a context of 256 tokens does not fit: 149.19 KiB is needed (weights 97.66 KiB, scratch \
         19.53 KiB, KV cache 32.00 KiB), the budget is 137.19 KiB, which leaves KV cache for 160 \
         tokens. What would fit: --max-model-len 160, or --memory 1MiB"
    );
    let error = refused(&input(120_000 + 18 * 2048, small(DType::F32)));
    assert!(
        error
            .remedies
            .contains(&Remedy::KvDtype { dtype: DType::BF16 }),
        "{error}"
    );
    let error = refused(&input(118_000 + 16 * 2048, small(DType::F16)));
    assert!(
        error
            .remedies
            .contains(&Remedy::FewerSequences { max_num_seqs: 30 }),
        "{error}"
    );
}

#[test]
fn a_cache_that_was_asked_for_is_refused_by_its_own_numbers() {
    let mut want = input(1 << 30, small(DType::F16));
    want.num_blocks = Some(15);
    assert_eq!(
        MemoryPlan::new(&want).unwrap_err().to_string(),
        "the KV cache asked for holds 240 tokens, and max-model-len is 256: give it at least 16 \
         blocks (32.00 KiB), or set max-model-len to at most 240"
    );
    want.num_blocks = Some(100);
    want.budget_bytes = 120_000 + 20 * 2048;
    let error = refused(&want);
    assert_eq!(error.kv_cache_bytes, 100 * 2048);
    assert_eq!(
        error.remedies,
        [
            Remedy::FewerBlocks {
                num_blocks: 20,
                bytes: 20 * 2048
            },
            Remedy::MoreMemory {
                budget_bytes: 120_000 + 100 * 2048
            },
        ]
    );
}

#[test]
fn weights_alone_over_budget_leave_only_more_memory() {
    let error = refused(&input(50_000, small(DType::F16)));
    assert_eq!(error.kv_tokens_left, 0);
    assert_eq!(
        error.remedies,
        [Remedy::MoreMemory {
            budget_bytes: 120_000 + 16 * 2048
        }]
    );
}

#[test]
fn a_length_nobody_asked_for_shrinks_to_what_fits() {
    let mut want = input(120_000 + 10 * 2048, small(DType::F16));
    want.shrink_to_fit = true;
    let plan = MemoryPlan::new(&want).unwrap();
    assert_eq!((plan.max_model_len, plan.num_blocks), (160, 10));
    want.budget_bytes = 120_000 + 2047;
    assert!(!refused(&want).remedies.is_empty(), "not even a block");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let good = input(1 << 30, small(DType::F16));
    let zero = PlanInput {
        max_num_seqs: 0,
        ..good.clone()
    };
    assert_eq!(
        MemoryPlan::new(&zero),
        Err(PlanError::Zero {
            name: "max-num-seqs"
        })
    );
    let long = PlanInput {
        max_model_len: 65_537,
        ..good.clone()
    };
    let text = MemoryPlan::new(&long).unwrap_err().to_string();
    assert!(
        text.contains("at most 65536") && text.contains("at least 4097"),
        "{text}"
    );
    for absurd in [
        PlanInput {
            weights: vec![("a".into(), usize::MAX), ("b".into(), 1)],
            ..good.clone()
        },
        PlanInput {
            bytes_per_seq: usize::MAX,
            ..good.clone()
        },
        PlanInput {
            num_blocks: Some(usize::MAX),
            ..good.clone()
        },
    ] {
        assert_eq!(MemoryPlan::new(&absurd), Err(PlanError::TooLarge));
    }
}

#[test]
fn the_peak_is_that_of_the_largest_phase() {
    // Loading holds 2,000,000 bytes at once: more than serving does with a small cache.
    let mut want = input(4_000_000, small(DType::F16));
    want.loading_bytes = 2_000_000;
    let plan = MemoryPlan::new(&want).unwrap();
    assert_eq!(plan.num_blocks, 16 * 50, "the cache is not smaller for it");
    assert_eq!(plan.peak_bytes_with(0), 2_002_000);
    assert_eq!(plan.peak_bytes_with(100), 2_002_000);
    let [opening, loading, serving] = plan.phases(100);
    assert_eq!((opening.total(), loading.total()), (1_500, 2_002_000));
    assert_eq!(serving.total(), 117_000 + 100 * 2048);
    assert_eq!(plan.peak_bytes(), 2_002_000);
    assert!(plan.to_string().contains("while loading"), "{plan}");

    // A budget that serving would fit into is too small for loading, and says so.
    want.budget_bytes = 2_000_000;
    let error = refused(&want);
    assert_eq!(
        error.remedies,
        [Remedy::MoreMemory {
            budget_bytes: 2_005_000
        }]
    );
    assert!(error.to_string().contains("cannot be loaded"), "{error}");

    // What was held before planning counts too, without a reserve: it is over.
    want.opening_bytes = 2_500_000;
    let remedy = &refused(&want).remedies[0];
    assert_eq!(remedy.apply(&want).budget_bytes, 2_500_000);
}

#[test]
fn large_pages_come_whole() {
    let mut want = input(120_000 + 40 * 2048, small(DType::F16));
    want.kv_page_bytes = 2_500;
    let plan = MemoryPlan::new(&want).unwrap();
    let resident = [0, 1, 5, 40].map(|blocks| plan.kv_resident_bytes(blocks));
    assert_eq!(resident, [0, 2_500, 12_500, 40 * 2048]);
    want.kv_page_bytes = 5_000;
    let plan = MemoryPlan::new(&want).unwrap();
    assert_eq!(plan.kv_resident_bytes(1), 2048, "too small for large pages");
}

#[test]
fn padding_on_the_device_counts() {
    let mut want = input(120_000 + 40 * 3072, small(DType::F16));
    want.kv_block_bytes = 3072;
    let plan = MemoryPlan::new(&want).unwrap();
    assert_eq!((plan.num_blocks, plan.kv_cache_bytes()), (40, 40 * 3072));
    assert_eq!(plan.pool_config(true).bytes_per_block, 3072);
    let twice = Remedy::KvDtype { dtype: DType::F32 }.apply(&want);
    assert_eq!(twice.kv_block_bytes, 6144);
}

#[test]
fn r1_at_64k_is_what_the_shape_says() {
    let mut want = input(usize::MAX >> 1, r1(DType::BF16));
    want.max_model_len = 65_536;
    want.num_blocks = Some(10_240);
    let plan = MemoryPlan::new(&want).unwrap();
    assert_eq!(plan.kv.bytes_per_token(), 70_272);
    assert_eq!(plan.kv_tokens(), 163_840);
    assert_eq!(plan.kv_cache_bytes(), 163_840 * 70_272);
    assert_eq!(plan.max_concurrency(65_536), 2.5);
}

#[test]
fn the_report_is_aligned_and_has_the_lines_people_grep() {
    let plan = MemoryPlan::new(&input(120_000 + 40 * 2048, small(DType::F16))).unwrap();
    assert_eq!(
        plan.to_string(),
        "Memory plan for a budget of 197.19 KiB
  weights                  97.66 KiB
    embedding              29.30 KiB
    layers                 68.36 KiB
  kv_cache                 80.00 KiB  40 blocks of 16 tokens, 128 B a token in F16; all that the budget leaves
  activations              14.65 KiB
  staging                   3.91 KiB  while loading, before there is a cache
  other                     1.95 KiB  program, heap, stacks
  planned peak            194.26 KiB  with a full cache
  reserve                   2.93 KiB  kept free for what cannot be foretold
  free                           0 B
KV cache size: 640 tokens
Maximum concurrency for 256 tokens per request: 2.50x"
    );
}

fn any_input() -> impl Strategy<Value = PlanInput> {
    let options = (
        proptest::option::weighted(0.3, 1usize..80),
        proptest::option::weighted(0.3, 0usize..300_000),
        proptest::option::weighted(0.3, 0usize..300_000),
    );
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)];
    (
        50_000usize..400_000,
        dtype,
        1usize..1000,
        any::<bool>(),
        1usize..60,
        options,
    )
        .prop_map(
            |(budget, dtype, len, shrink, seqs, (blocks, bytes, cap))| PlanInput {
                max_model_len: len,
                shrink_to_fit: shrink,
                max_num_seqs: seqs,
                num_blocks: blocks,
                kv_cache_bytes: bytes,
                max_kv_cache_bytes: cap,
                ..input(budget, small(dtype))
            },
        )
}

proptest! {
    #[test]
    fn a_plan_keeps_its_promises_and_every_remedy_helps(input in any_input()) {
        match MemoryPlan::new(&input) {
            Ok(plan) => {
                prop_assert!(plan.peak_bytes() + plan.reserve_bytes <= plan.budget_bytes);
                prop_assert!(plan.max_model_len <= plan.kv_tokens());
                prop_assert!(plan.max_model_len <= input.max_model_len);
                prop_assert!(plan.max_concurrency(plan.max_model_len) >= 1.0);
                prop_assert!(input.shrink_to_fit || plan.max_model_len == input.max_model_len);
                let taken = plan.peak_bytes() + plan.reserve_bytes;
                prop_assert_eq!(plan.free_bytes() + taken, plan.budget_bytes);
            }
            Err(PlanError::DoesNotFit(error)) => {
                prop_assert!(!error.remedies.is_empty());
                for remedy in &error.remedies {
                    let changed = remedy.apply(&input);
                    let plan = MemoryPlan::new(&changed);
                    prop_assert!(plan.is_ok(), "{remedy:?} does not help: {plan:?}");
                    prop_assert!(is_tight(&changed, remedy), "{remedy:?} is not the best");
                }
            }
            Err(PlanError::KvCacheTooSmall { kv_tokens, blocks_needed, .. }) => {
                prop_assert!(input.pool_is_set() && kv_tokens < input.max_model_len);
                let mut changed = input.clone();
                (changed.num_blocks, changed.budget_bytes) = (Some(blocks_needed), 1 << 40);
                prop_assert!(MemoryPlan::new(&changed).is_ok());
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// Whether a little less of the remedy would not do.
fn is_tight(changed: &PlanInput, remedy: &Remedy) -> bool {
    let mut less = changed.clone();
    match remedy {
        // The rest of the budget is for the first block, and any length will do.
        Remedy::ShorterContext { .. } if less.shrink_to_fit => return true,
        Remedy::ShorterContext { .. } => less.max_model_len += 1,
        Remedy::MoreMemory { .. } => less.budget_bytes -= 1,
        Remedy::FewerSequences { .. } => less.max_num_seqs += 1,
        Remedy::FewerBlocks { num_blocks, .. } => less.num_blocks = Some(num_blocks + 1),
        _ => return true,
    }
    MemoryPlan::new(&less).is_err()
}
