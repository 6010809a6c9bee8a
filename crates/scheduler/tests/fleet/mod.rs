//! A simulated fleet: the real scheduler, a fake model with a real memory, random requests.
//!
//! The fake model knows nothing but what a step hands out. It keeps, for every slot of the KV
//! cache, a digest of the prefix that a real key and value would depend on, and computes each
//! token's digest from the one in the slot before it, as found through the block table. The next
//! token is a function of that digest. So a wrong block, a missing copy, a hit on something that
//! was never computed or a chunk in the wrong place all change what is generated, which is
//! compared with what the same request gives alone.

use std::collections::BTreeMap;

use scrimp_memory::{BlockPool, BlockPoolConfig, TokenId};
use scrimp_scheduler::{
    AddError, EstimatorConfig, FinishReason, Finished, NewSequence, Scheduler, SchedulerConfig,
    SchedulerOutput, SeqId, SequenceStatus,
};

/// Digest of a prefix.
type Digest = u64;

/// A request, and what a user would see of it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Step in which it arrives.
    pub arrival: usize,
    pub prompt: Vec<TokenId>,
    pub max_tokens: usize,
    /// Tokens after which the model would stop by itself.
    pub natural_len: usize,
    pub priority: i32,
    pub thinking: bool,
    pub salt: u8,
    pub n: usize,
    /// Steps after its arrival in which its caller gives up.
    pub abort_after: Option<usize>,
}

/// Shape of the fleet's one machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub num_blocks: usize,
    pub block_size: usize,
    pub max_num_batched_tokens: usize,
    pub max_num_seqs: usize,
    pub max_model_len: usize,
    pub enable_prefix_caching: bool,
    pub cold_start_tokens: usize,
    /// Every how many steps one fails and is not completed; 0: never.
    pub fail_every: usize,
}

/// The digest of a prefix that goes on with `token`.
fn digest(before: Digest, token: TokenId) -> Digest {
    let mixed = (before ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

fn salted(salt: u8) -> Digest {
    digest(0xDEAD_BEEF, u32::from(salt))
}

/// The token that continuation `sample` draws after a prefix. Few values, so that outputs meet.
fn next_token(prefix: Digest, sample: usize) -> TokenId {
    (digest(prefix, sample as u32) % 5) as TokenId
}

/// What continuation `sample` of `request` gives with the machine to itself.
pub fn alone(request: &Request, sample: usize, len: usize) -> Vec<TokenId> {
    let start = request
        .prompt
        .iter()
        .fold(salted(request.salt), |d, &t| digest(d, t));
    let mut prefix = start;
    (0..len)
        .map(|_| {
            let token = next_token(prefix, sample);
            prefix = digest(prefix, token);
            token
        })
        .collect()
}

/// A sequence as its caller sees it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Index of the request, and which of its continuations.
    pub request: usize,
    pub sample: usize,
    pub output: Vec<TokenId>,
    pub finished: Option<Finished>,
}

pub struct Fleet {
    pub scheduler: Scheduler,
    machine: Machine,
    requests: Vec<Request>,
    /// Digest in each slot; `None` where nothing was ever written.
    memory: Vec<Option<Digest>>,
    pub clients: BTreeMap<SeqId, Client>,
    pub refused: Vec<(usize, AddError)>,
    pub steps: usize,
    pub preemptions: u64,
    pub max_running: usize,
}

impl Fleet {
    pub fn new(machine: Machine, requests: Vec<Request>) -> Fleet {
        let pool = BlockPool::new(BlockPoolConfig {
            num_blocks: machine.num_blocks,
            block_size: machine.block_size,
            max_blocks_per_seq: 4096,
            bytes_per_block: 100,
            enable_prefix_caching: machine.enable_prefix_caching,
        })
        .unwrap();
        let config = SchedulerConfig {
            max_num_batched_tokens: machine.max_num_batched_tokens,
            max_num_seqs: machine.max_num_seqs,
            max_model_len: machine.max_model_len,
            estimator: EstimatorConfig {
                cold_start_tokens: machine.cold_start_tokens,
                ..EstimatorConfig::default()
            },
        };
        Fleet {
            scheduler: Scheduler::new(config, pool).unwrap(),
            memory: vec![None; machine.num_blocks * machine.block_size],
            machine,
            requests,
            clients: BTreeMap::new(),
            refused: Vec::new(),
            steps: 0,
            preemptions: 0,
            max_running: 0,
        }
    }

    /// Runs until every request has arrived and ended. Panics when that takes longer than it
    /// possibly should, or when any promise is broken on the way.
    pub fn run(&mut self) {
        let limit = self.step_limit();
        while self.steps < self.last_arrival() || self.scheduler.has_unfinished() {
            assert!(
                self.steps <= limit,
                "not done after {limit} steps: a livelock"
            );
            self.arrive();
            self.step();
            self.give_up();
            self.steps += 1;
        }
        let usage = self.scheduler.stats().usage;
        assert_eq!((usage.protected_blocks, usage.tokens_in_use), (0, 0));
        self.check_outputs();
    }

    /// The first in line gets a token in every step that is completed, so all tokens of all
    /// sequences one after the other are the most steps it can take, with a step more for each
    /// preemption of the others: twice that, and the arrivals.
    fn step_limit(&self) -> usize {
        let tokens = |r: &Request| (r.prompt.len() + r.max_tokens + 2) * r.n;
        let steps: usize = self.requests.iter().map(tokens).sum();
        2 * (2 * steps + self.last_arrival()) + 10
    }

    fn last_arrival(&self) -> usize {
        self.requests
            .iter()
            .map(|r| r.arrival + 1)
            .max()
            .unwrap_or(0)
    }

    fn arrive(&mut self) {
        for (index, request) in self.requests.iter().enumerate() {
            if request.arrival != self.steps {
                continue;
            }
            let added = self.scheduler.add(NewSequence {
                prompt_token_ids: request.prompt.clone(),
                max_tokens: request.max_tokens,
                priority: request.priority,
                thinking: request.thinking,
                extra_keys: vec![request.salt],
                n: request.n,
            });
            match added {
                Ok(ids) => {
                    for (sample, id) in ids.into_iter().enumerate() {
                        let client = Client {
                            request: index,
                            sample,
                            output: Vec::new(),
                            finished: None,
                        };
                        self.clients.insert(id, client);
                        if request.thinking {
                            self.scheduler.set_thinking_from(id, request.prompt.len());
                        }
                    }
                }
                Err(error) => self.refused.push((index, error)),
            }
        }
    }

    fn step(&mut self) {
        let had_work = self.scheduler.has_unfinished();
        let ran: Vec<SeqId> = self
            .scheduler
            .sequences()
            .filter(|seq| seq.status() == SequenceStatus::Running)
            .map(|seq| seq.id())
            .collect();
        let output = self.scheduler.schedule();
        self.scheduler.check_integrity().unwrap();
        self.check_step(&output, had_work);
        if !output.preempted.is_empty() {
            let mut scheduled = output.scheduled.iter().map(|part| part.id);
            assert!(
                scheduled.all(|id| ran.contains(&id)),
                "one goes and another comes"
            );
        }
        self.preemptions += output.preempted.len() as u64;
        for finished in &output.finished {
            assert_eq!(finished.reason, FinishReason::Length);
            self.end(finished.clone());
        }
        let sampled = self.run_model(&output);
        let fails = self.machine.fail_every;
        if fails > 0 && self.steps % fails == fails - 1 {
            return;
        }
        self.scheduler.complete();
        self.scheduler.check_integrity().unwrap();
        self.max_running = self.max_running.max(self.scheduler.stats().num_running);
        for (id, token) in sampled {
            self.take_token(id, token);
        }
        self.scheduler.check_integrity().unwrap();
    }

    fn check_step(&self, output: &SchedulerOutput, had_work: bool) {
        assert!(output.num_tokens() <= self.machine.max_num_batched_tokens);
        assert!(output.scheduled.len() <= self.machine.max_num_seqs);
        assert_eq!(output.positions().count(), output.num_tokens());
        assert_eq!(output.slot_mapping().count(), output.num_tokens());
        assert_eq!(output.cu_seqlens_q().last(), Some(output.num_tokens()));
        assert_eq!(output.context_lens().count(), output.scheduled.len());
        let idle = output.is_empty() && output.finished.is_empty();
        assert!(!(had_work && idle), "sequences wait and nothing is done");
        for part in &output.scheduled {
            let seq = self.scheduler.sequence(part.id).unwrap();
            assert_eq!(seq.num_computed_tokens(), part.start);
            assert_eq!(part.samples, part.context_len() == seq.num_tokens());
            let blocks = part.context_len().div_ceil(self.machine.block_size);
            assert_eq!(output.block_table(part).len(), blocks);
            assert_eq!(
                output.token_ids(part),
                &seq.token_ids()[part.start..part.context_len()]
            );
        }
    }

    /// Runs the fake model on nothing but the step; returns the sampled tokens.
    fn run_model(&mut self, output: &SchedulerOutput) -> Vec<(SeqId, TokenId)> {
        let size = output.block_size;
        for copy in &output.copies {
            for offset in 0..size {
                self.memory[copy.dst as usize * size + offset] =
                    self.memory[copy.src as usize * size + offset];
            }
        }
        let slots: Vec<usize> = output.slot_mapping().collect();
        let mut sampled = Vec::new();
        for part in &output.scheduled {
            let table = output.block_table(part);
            let slot = |at: usize| table[at / size] as usize * size + at % size;
            let salt = self.requests[self.clients[&part.id].request].salt;
            let mut prefix = match part.start {
                0 => salted(salt),
                start => self.memory[slot(start - 1)].expect("a slot that was written"),
            };
            for (offset, &token) in output.token_ids(part).iter().enumerate() {
                prefix = digest(prefix, token);
                assert_eq!(slots[part.tokens.start + offset], slot(part.start + offset));
                self.memory[slot(part.start + offset)] = Some(prefix);
            }
            // Attention reads the whole context: every slot of it must be this prefix's.
            let tokens = self.scheduler.sequence(part.id).unwrap().token_ids();
            let mut expected = salted(salt);
            for (at, &token) in tokens[..part.context_len()].iter().enumerate() {
                expected = digest(expected, token);
                assert_eq!(self.memory[slot(at)], Some(expected), "{} at {at}", part.id);
            }
            if part.samples {
                for &id in std::iter::once(&part.id).chain(&part.forks) {
                    sampled.push((id, next_token(prefix, self.clients[&id].sample)));
                }
            }
            assert!(part.samples || part.forks.is_empty());
        }
        sampled
    }

    fn take_token(&mut self, id: SeqId, token: TokenId) {
        let client = self.clients.get_mut(&id).unwrap();
        let request = &self.requests[client.request];
        client.output.push(token);
        let stop = client.output.len() >= request.natural_len;
        let over = self
            .scheduler
            .update(id, token, stop.then_some(FinishReason::Stop));
        if let Some(finished) = over {
            self.end(finished);
        } else {
            let seq = self.scheduler.sequence(id).unwrap();
            assert_eq!(seq.output_token_ids(), self.clients[&id].output);
        }
    }

    fn give_up(&mut self) {
        let due: Vec<SeqId> = self
            .clients
            .iter()
            .filter(|(_, client)| client.finished.is_none())
            .filter(|(_, client)| {
                let request = &self.requests[client.request];
                request
                    .abort_after
                    .is_some_and(|after| request.arrival + after <= self.steps)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            let finished = self.scheduler.abort(id).unwrap();
            assert!(self.scheduler.abort(id).is_none());
            assert!(self.scheduler.sequence(id).is_none());
            self.scheduler.check_integrity().unwrap();
            self.end(finished);
        }
    }

    fn end(&mut self, finished: Finished) {
        let client = self.clients.get_mut(&finished.id).unwrap();
        let stats = &finished.stats;
        assert_eq!(stats.output_tokens, client.output.len());
        assert_eq!(
            stats.prompt_tokens,
            self.requests[client.request].prompt.len()
        );
        assert!(stats.cached_tokens <= stats.prompt_tokens + stats.output_tokens);
        assert!(stats.peak_blocks <= self.machine.num_blocks);
        assert_eq!(stats.peak_kv_bytes, stats.peak_blocks * 100);
        assert!(
            client.finished.replace(finished).is_none(),
            "it ended twice"
        );
    }

    /// Every sequence ended, once, for the reason it should, with the tokens it has when alone.
    fn check_outputs(&self) {
        let mut preemptions = 0;
        for (id, client) in &self.clients {
            let request = &self.requests[client.request];
            let finished = client
                .finished
                .as_ref()
                .unwrap_or_else(|| panic!("{id} is lost"));
            let expected = alone(request, client.sample, client.output.len());
            assert_eq!(client.output, expected, "{id} differs from a run alone");
            preemptions += finished.stats.preemptions as u64;
            let len = client.output.len();
            let total = request.prompt.len() + len;
            match finished.reason {
                FinishReason::Stop => assert_eq!(len, request.natural_len),
                FinishReason::Abort => assert!(request.abort_after.is_some()),
                FinishReason::Length => assert!(
                    len == request.max_tokens
                        || total == self.machine.max_model_len
                        // It filled the pool by itself.
                        || total > self.machine.num_blocks * self.machine.block_size,
                    "{id} ended after {len} tokens, {total} in all"
                ),
            }
        }
        assert_eq!(preemptions, self.preemptions);
        assert_eq!(preemptions, self.scheduler.stats().num_preemptions);
    }
}
