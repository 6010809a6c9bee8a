//! The loop under load, with a stand-in for the model that would notice any mistake in the cache:
//! it stores tokens in the slots it is told to, reads them back through the block tables, and its
//! next token is a hash of everything it read.

#![allow(clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use scrimp_engine::{
    EngineHandle, EngineInfo, EngineParts, Event, FinishReason, GenerateRequest, Reasoning,
    RequestError, SamplingParams, StepModel, Update, Usage, start,
};
use scrimp_memory::{BlockPool, BlockPoolConfig, MemoryPlan, PlanInput};
use scrimp_model::{KvLayout, ModelConfig};
use scrimp_scheduler::{EstimatorConfig, Scheduler, SchedulerConfig, SchedulerOutput};
use scrimp_text::{ReasoningFormat, Tokenizer};

const BLOCK: usize = 4;

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/deepseek_v3")
}

fn config() -> ModelConfig {
    let json = std::fs::read(folder().join("config.json")).unwrap();
    ModelConfig::from_hf(&serde_json::from_slice(&json).unwrap()).unwrap()
}

/// Remembers tokens by slot, and chooses the next one by what it finds there.
struct Echo {
    slots: Vec<u32>,
    vocab_size: usize,
    /// Step at which it fails, counting down.
    fails_in: Option<usize>,
}

impl StepModel for Echo {
    fn run(&mut self, step: &SchedulerOutput, sink: &mut dyn FnMut(&[f32])) -> Result<(), String> {
        if let Some(left) = &mut self.fails_in {
            if *left == 0 {
                self.fails_in = None;
                return Err("the device is on fire".into());
            }
            *left -= 1;
        }
        for copy in &step.copies {
            let (from, to) = (copy.src as usize * BLOCK, copy.dst as usize * BLOCK);
            self.slots.copy_within(from..from + BLOCK, to);
        }
        for (slot, &token) in step.slot_mapping().zip(&step.input_ids) {
            self.slots[slot] = token;
        }
        for seq in step.scheduled.iter().filter(|s| s.samples) {
            let table = step.block_table(seq);
            let hash = (0..seq.context_len()).fold(0xCBF2_9CE4_8422_2325_u64, |h, p| {
                let token = self.slots[table[p / BLOCK] as usize * BLOCK + p % BLOCK];
                (h ^ u64::from(token)).wrapping_mul(0x100_0000_01B3)
            });
            // Only plain bytes: special tokens would end or hide text.
            let row: Vec<f32> = (0..self.vocab_size as u64)
                .map(|t| {
                    if t < 256 {
                        ((hash >> 20) ^ (t * 37)) as u8 as f32 / 16.0
                    } else {
                        -50.0
                    }
                })
                .collect();
            sink(&row);
        }
        Ok(())
    }
}

struct Setup {
    num_blocks: usize,
    max_num_seqs: usize,
    budget: usize,
    max_queue: usize,
    fails_in: Option<usize>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            num_blocks: 400,
            max_num_seqs: 64,
            budget: 64,
            max_queue: 1000,
            fails_in: None,
        }
    }
}

fn engine(setup: &Setup) -> (EngineHandle, JoinHandle<()>) {
    let config = config();
    let kv = KvLayout::of(&config, scrimp_tensor::DType::F32, BLOCK);
    let max_model_len = 200.min(setup.num_blocks * BLOCK);
    let plan = MemoryPlan::new(&PlanInput {
        budget_bytes: 1 << 30,
        weights: vec![("weights".into(), 1000)],
        activations_bytes: 1000,
        bytes_per_seq: 0,
        staging_bytes: 0,
        loading_bytes: 1000,
        opening_bytes: 0,
        other_bytes: 0,
        reserve_bytes: 0,
        kv,
        kv_block_bytes: kv.bytes_per_block(),
        kv_page_bytes: 1,
        max_model_len,
        shrink_to_fit: false,
        max_num_seqs: setup.max_num_seqs,
        max_blocks_per_seq: 4096,
        num_blocks: Some(setup.num_blocks),
        kv_cache_bytes: None,
        max_kv_cache_bytes: None,
    })
    .unwrap();
    let pool = BlockPool::new(BlockPoolConfig {
        num_blocks: setup.num_blocks,
        block_size: BLOCK,
        max_blocks_per_seq: 4096,
        bytes_per_block: kv.bytes_per_block(),
        enable_prefix_caching: true,
    })
    .unwrap();
    let scheduler = Scheduler::new(
        SchedulerConfig {
            max_num_batched_tokens: setup.budget,
            max_num_seqs: setup.max_num_seqs,
            max_model_len,
            estimator: EstimatorConfig {
                cold_start_tokens: 4,
                ..EstimatorConfig::default()
            },
        },
        pool,
    )
    .unwrap();
    let tokenizer = Tokenizer::from_folder(&folder()).unwrap();
    start(EngineParts {
        model: Box::new(Echo {
            slots: vec![0; setup.num_blocks * BLOCK],
            vocab_size: config.vocab_size,
            fails_in: setup.fails_in,
        }),
        scheduler,
        reasoning_format: ReasoningFormat::discover(&tokenizer, None),
        tokenizer,
        info: EngineInfo {
            config,
            plan,
            max_model_len,
            device: "echo".into(),
        },
        max_queue: setup.max_queue,
        observer: None,
    })
    .unwrap()
}

fn request(i: u32) -> GenerateRequest {
    // Prompts of 5 to 44 tokens; every third begins like its neighbours.
    let len = 5 + (i * 7) % 40;
    GenerateRequest {
        prompt: (0..len)
            .map(|p| {
                if i.is_multiple_of(3) {
                    p % 200
                } else {
                    (p * i + 3) % 200
                }
            })
            .collect(),
        sampling: SamplingParams {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 1.0 },
            seed: u64::from(i),
            ..SamplingParams::default()
        },
        max_tokens: Some(20 + (i as usize * 5) % 60),
        n: 1 + (i as usize % 4) / 3,
        skip_special_tokens: true,
        ..GenerateRequest::default()
    }
}

/// What became of a request: tokens and text of each completion, in order of index.
#[derive(Debug, Default, PartialEq)]
struct Answers {
    tokens: Vec<Vec<u32>>,
    texts: Vec<(String, String)>,
    reasons: Vec<Option<FinishReason>>,
    usages: Vec<Usage>,
    error: Option<RequestError>,
}

impl Answers {
    fn collect(n: usize, updates: &Receiver<Update>) -> Answers {
        let mut answers = Answers {
            tokens: vec![vec![]; n],
            texts: vec![Default::default(); n],
            reasons: vec![None; n],
            usages: vec![Usage::default(); n],
            error: None,
        };
        for update in updates {
            let i = update.index;
            assert!(answers.reasons[i].is_none(), "news after the end");
            match update.event {
                Event::Delta(delta) => {
                    answers.tokens[i].extend(delta.tokens.iter().map(|t| t.id));
                    answers.texts[i].0 += &delta.reasoning;
                    answers.texts[i].1 += &delta.answer;
                }
                Event::Finished(finished) => {
                    answers.reasons[i] = Some(finished.reason);
                    answers.usages[i] = finished.usage;
                }
                Event::Failed(error) => answers.error = Some(error),
            }
        }
        answers
    }
}

fn submit(handle: &EngineHandle, request: &GenerateRequest) -> Receiver<Update> {
    let (sender, receiver) = channel();
    handle
        .submit(
            request.clone(),
            Box::new(move |update| sender.send(update).is_ok()),
        )
        .unwrap();
    receiver
}

fn alone(request: &GenerateRequest) -> Answers {
    let (handle, thread) = engine(&Setup::default());
    let answers = Answers::collect(request.n, &submit(&handle, request));
    drop(handle);
    thread.join().unwrap();
    answers
}

#[test]
fn neighbours_preemptions_and_shared_prefixes_change_nothing() {
    let requests: Vec<GenerateRequest> = (0..32).map(request).collect();
    let setup = Setup {
        num_blocks: 40,
        max_num_seqs: 16,
        budget: 24,
        ..Setup::default()
    };
    let (handle, thread) = engine(&setup);
    let updates: Vec<_> = requests.iter().map(|r| submit(&handle, r)).collect();
    let mut preemptions = 0;
    for (i, (request, updates)) in requests.iter().zip(&updates).enumerate() {
        let together = Answers::collect(request.n, updates);
        let alone = alone(request);
        assert_eq!(together.tokens, alone.tokens, "request {i}");
        assert_eq!(together.texts, alone.texts, "request {i}");
        assert_eq!(together.reasons, alone.reasons, "request {i}");
        assert_eq!(alone.tokens[0].len(), request.max_tokens.unwrap());
        preemptions += together.usages.iter().map(|u| u.preemptions).sum::<usize>();
    }
    assert!(preemptions > 0, "the pool was meant to be too small");
    handle.shutdown(true);
    thread.join().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.blocks_in_use, stats.tokens_in_use), (0, 0));
    assert!(stats.num_preemptions as usize >= preemptions && stats.prefix_cache_hits > 0);
}

#[test]
fn n_samples_differ_by_their_seeds_and_share_the_prompt() {
    let request = GenerateRequest { n: 4, ..request(3) };
    let request = GenerateRequest {
        sampling: SamplingParams {
            temperature: 5.0,
            ..request.sampling
        },
        ..request
    };
    let answers = alone(&request);
    for (i, tokens) in answers.tokens.iter().enumerate() {
        assert!(
            answers.tokens[..i].iter().all(|other| other != tokens),
            "{i} repeats"
        );
    }
    assert_eq!(answers.usages[1].cached_tokens, request.prompt.len());
    for usage in &answers.usages {
        // Made one after another, they started as one.
        assert!(usage.queue_time <= answers.usages[0].queue_time);
        assert!(!usage.prefill_time.is_zero());
    }
    assert_eq!(alone(&request).with_times_of(&answers), answers);
}

impl Answers {
    /// These answers, with everything that is measured in seconds taken from others.
    fn with_times_of(mut self, other: &Answers) -> Answers {
        for (usage, other) in self.usages.iter_mut().zip(&other.usages) {
            usage.queue_time = other.queue_time;
            usage.prefill_time = other.prefill_time;
            usage.decode_time = other.decode_time;
        }
        self
    }
}

#[test]
fn a_spent_thinking_budget_closes_the_chain_and_goes_on_to_the_answer() {
    for budget in [0, 1, 7] {
        let request = GenerateRequest {
            reasoning: Reasoning::Thinking,
            thinking_token_budget: Some(budget),
            max_tokens: Some(30),
            n: 1,
            ..request(2)
        };
        let answers = alone(&request);
        let usage = &answers.usages[0];
        assert_eq!(usage.reasoning_tokens, budget);
        assert_eq!(usage.completion_tokens, 30);
        let close = Tokenizer::from_folder(&folder())
            .unwrap()
            .id("</think>")
            .unwrap();
        assert_eq!(answers.tokens[0][budget], close);
        assert!(!answers.texts[0].1.is_empty(), "an answer follows");
    }
}

#[test]
fn a_chain_that_is_cut_is_all_reasoning() {
    // Some of these end within a character, whose text then comes with no token of its own.
    for length in 1..40 {
        let request = GenerateRequest {
            reasoning: Reasoning::Thinking,
            max_tokens: Some(length),
            n: 1,
            ..request(2)
        };
        let answers = alone(&request);
        let (reasoning, answer) = &answers.texts[0];
        assert!(!reasoning.is_empty() && answer.is_empty());
        assert_eq!(answers.reasons[0], Some(FinishReason::Length));
        assert_eq!(answers.usages[0].reasoning_tokens, length);
    }
}

#[test]
fn stop_texts_and_tokens_end_an_answer_before_themselves() {
    let free = alone(&request(2));
    let text = &free.texts[0].1;
    let stop: String = text.chars().skip(6).take(2).collect();
    let cut = alone(&GenerateRequest {
        stop: vec![stop.clone()],
        ..request(2)
    });
    assert_eq!(cut.texts[0].1, text[..text.find(&stop).unwrap()]);
    assert_eq!(cut.reasons[0], Some(FinishReason::Stop));

    let token = free.tokens[0][9];
    let first = free.tokens[0].iter().position(|&t| t == token).unwrap();
    let cut = alone(&GenerateRequest {
        stop_token_ids: vec![token],
        ..request(2)
    });
    assert_eq!(cut.tokens[0], free.tokens[0][..=first]);
    assert_eq!(cut.reasons[0], Some(FinishReason::Stop));
}

#[test]
fn a_client_that_leaves_frees_its_blocks() {
    let (handle, thread) = engine(&Setup::default());
    let mut left = 3;
    let sink = Box::new(move |_| {
        left -= 1;
        left > 0
    });
    handle.submit(request(1), sink).unwrap();
    let updates = submit(&handle, &request(2));
    let id = handle.submit(request(4), Box::new(|_| true)).unwrap();
    handle.abort(id);
    assert_eq!(
        Answers::collect(1, &updates).tokens,
        alone(&request(2)).tokens
    );
    handle.shutdown(true);
    thread.join().unwrap();
    assert_eq!(handle.stats().blocks_in_use, 0);
    let refused = handle.submit(request(1), Box::new(|_| true));
    assert_eq!(refused.unwrap_err(), RequestError::ShuttingDown);
}

#[test]
fn the_last_request_on_a_full_pool_ends_by_length() {
    let setup = Setup {
        num_blocks: 8,
        max_num_seqs: 4,
        budget: 8,
        ..Setup::default()
    };
    let (handle, thread) = engine(&setup);
    let long = GenerateRequest {
        max_tokens: None,
        prompt: vec![1; 10],
        n: 1,
        ..request(2)
    };
    let both = [submit(&handle, &long), submit(&handle, &long)];
    for updates in both {
        let answers = Answers::collect(1, &updates);
        assert_eq!(answers.reasons[0], Some(FinishReason::Length));
        assert_eq!(
            answers.tokens[0].len(),
            22,
            "8 blocks of 4, less the prompt"
        );
    }
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn what_can_never_run_is_refused_with_numbers() {
    let (handle, _thread) = engine(&Setup {
        max_num_seqs: 4,
        ..Setup::default()
    });
    let submit = |request| {
        handle
            .submit(request, Box::new(|_| true))
            .unwrap_err()
            .to_string()
    };
    assert!(
        submit(GenerateRequest {
            prompt: vec![1; 300],
            ..request(1)
        })
        .contains("200")
    );
    assert!(
        submit(GenerateRequest {
            prompt: vec![],
            ..request(1)
        })
        .contains("empty")
    );
    assert!(
        submit(GenerateRequest {
            prompt: vec![99_999],
            ..request(1)
        })
        .contains("99999")
    );
    let updates = self::submit(&handle, &GenerateRequest { n: 5, ..request(1) });
    let error = Answers::collect(5, &updates).error.unwrap();
    assert_eq!(error.param(), Some("n"));
}

#[test]
fn a_full_queue_refuses_and_keeps_what_it_has() {
    let setup = Setup {
        max_num_seqs: 1,
        max_queue: 2,
        ..Setup::default()
    };
    let (handle, thread) = engine(&setup);
    let updates: Vec<_> = (0..20).map(|_| submit(&handle, &request(2))).collect();
    let answers: Vec<_> = updates.iter().map(|u| Answers::collect(1, u)).collect();
    let refused = answers
        .iter()
        .filter(|a| matches!(a.error, Some(RequestError::QueueFull { .. })))
        .count();
    let done = answers.iter().filter(|a| a.reasons[0].is_some()).count();
    assert!(
        refused > 0 && done >= 2 && refused + done == 20,
        "{refused} refused, {done} done"
    );
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn a_failed_step_costs_only_the_requests_in_it() {
    let (handle, thread) = engine(&Setup {
        fails_in: Some(5),
        ..Setup::default()
    });
    let broken = Answers::collect(1, &submit(&handle, &request(2)));
    assert!(broken.error.unwrap().to_string().contains("on fire"));
    let after = Answers::collect(1, &submit(&handle, &request(2)));
    assert_eq!(after.tokens, alone(&request(2)).tokens);
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn logprobs_come_with_every_token() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (handle, thread) = engine(&Setup::default());
    let mut asked = request(2);
    asked.sampling.logprobs = Some(3);
    let sink = {
        let seen = Arc::clone(&seen);
        Box::new(move |update: Update| {
            if let Event::Delta(delta) = update.event {
                seen.lock().unwrap().extend(delta.tokens);
            }
            true
        })
    };
    handle.submit(asked, sink).unwrap();
    drop(handle);
    thread.join().unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 30);
    for token in seen.iter() {
        let logprobs = token.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.top.len(), 3);
        assert_eq!(
            logprobs.top[0],
            (token.id, logprobs.logprob),
            "greedy takes the best"
        );
    }
}

#[test]
fn handles_know_when_the_engine_has_ended() {
    let (handle, thread) = engine(&Setup::default());
    assert!(handle.is_running());
    handle.shutdown(true);
    thread.join().unwrap();
    assert!(!handle.is_running());
}
