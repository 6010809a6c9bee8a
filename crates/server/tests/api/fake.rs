//! A scripted engine behind the real edge, and a server in front of it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use scrimp_engine::{
    Command, Delta, EngineEnd, EngineHandle, EngineInfo, EngineStats, Event, EventSink,
    FinishReason, Finished, GenerateRequest, RequestError, RequestId, TokenInfo, TokenLogprobs,
    Update, Usage,
};
use scrimp_memory::{MemoryPlan, PlanInput};
use scrimp_model::{
    Architecture, AttentionConfig, GqaConfig, KvLayout, ModelConfig, RopeConfig, RopeScaling,
};
use scrimp_server::{Ending, Metrics, ModelText, Server, ServerConfig, Shutdown};
use scrimp_text::{ChatTemplate, Tokenizer, TokenizerConfig};
use serde_json::json;

pub const MODEL: &str = "tiny/reasoner";
pub const MAX_MODEL_LEN: usize = 512;
/// 256 bytes, then these.
pub const SPECIAL: [&str; 5] = ["<s>", "</s>", "<think>", "</think>", "<|user|>"];
pub const VOCAB: usize = 256 + SPECIAL.len();

/// What the engine does with a request.
#[derive(Clone)]
pub enum Script {
    /// Thinks, then answers, a token a byte, and stops.
    Say {
        thinking: &'static str,
        answer: &'static str,
    },
    /// Sends one token, then nothing until it is aborted.
    Hang,
    /// Sends one token and breaks.
    Break(RequestError),
}

/// What the engine was asked.
#[derive(Default)]
pub struct Seen {
    pub requests: Vec<GenerateRequest>,
    pub aborted: Vec<RequestId>,
    pub shutdown: Option<bool>,
}

/// A running server; dropped, it drains.
pub struct TestServer {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    pub shutdown: Shutdown,
    pub metrics: Metrics,
    thread: Option<JoinHandle<Ending>>,
}

impl TestServer {
    pub fn start(script: Script) -> TestServer {
        Self::with(script, config(), text(Some(TEMPLATE)))
    }

    pub fn with(script: Script, config: ServerConfig, text: ModelText) -> TestServer {
        let (handle, end) = EngineHandle::channel(info());
        let seen = Arc::<Mutex<Seen>>::default();
        let told = Arc::clone(&seen);
        std::thread::spawn(move || run_engine(&end, &script, &told));
        let (shutdown, metrics) = (Shutdown::default(), Metrics::new(MODEL));
        let (ending, counting) = (shutdown.clone(), metrics.clone());
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = Server::bind(config, handle, text, counting).await.unwrap();
                bound.send(server.local_addr()).unwrap();
                server.run(ending).await
            })
        });
        let address = address.recv().unwrap();
        TestServer {
            address,
            seen,
            shutdown,
            metrics,
            thread: Some(thread),
        }
    }

    /// Waits for the server's own end.
    pub fn ending(mut self) -> Ending {
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn last_request(&self) -> GenerateRequest {
        self.seen
            .lock()
            .unwrap()
            .requests
            .last()
            .cloned()
            .expect("a request")
    }

    /// Waits until the engine has seen what `wanted` looks for.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        let start = Instant::now();
        while !wanted(&self.seen.lock().unwrap()) {
            assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.abort();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn config() -> ServerConfig {
    ServerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        served_model_names: vec![MODEL.into(), "alias".into()],
        ..ServerConfig::default()
    }
}

/// Opens a thinking turn like R1's template, unless told not to; refuses a first assistant.
pub const TEMPLATE: &str = "{{ bos_token }}\
    {%- if messages[0].role == 'assistant' %}{{ raise_exception('a user must start') }}{% endif -%}\
    {%- for m in messages -%}[{{ m.role }}]{{ m.content }}\
    {%- if m.reasoning_content %}({{ m.reasoning_content }}){% endif -%}\
    {%- if not (loop.last and not add_generation_prompt) %}</s>{% endif -%}{%- endfor -%}\
    {%- if tools %}[tools:{{ tools | length }}]{% endif -%}\
    {%- if add_generation_prompt %}[assistant]\
    {%- if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{% endif %}";

/// A byte-level tokenizer without merges: a token a byte.
pub fn text(template: Option<&str>) -> ModelText {
    let mut vocab = BTreeMap::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), usize::from(byte));
    }
    let added: Vec<_> = SPECIAL
        .iter()
        .enumerate()
        .map(|(i, text)| {
            json!({"id": 256 + i, "content": text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": !text.contains("think")})
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let json = json.to_string();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), &TokenizerConfig::default()).unwrap();
    let template = template.map(|source| {
        let template = ChatTemplate::from_source(source).unwrap();
        template.with_special_tokens([("bos_token", Some("<s>"))])
    });
    ModelText::new(tokenizer, template)
}

/// How byte-level tokenizers spell a byte (GPT-2's table).
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(256 + u32::try_from(before).unwrap()).unwrap()
}

pub fn info() -> EngineInfo {
    let gqa = GqaConfig {
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
    };
    let config = ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: VOCAB,
        hidden_size: 8,
        num_layers: 2,
        intermediate_size: 16,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: MAX_MODEL_LEN,
        attention: AttentionConfig::Gqa(gqa),
        rope: RopeConfig {
            dim: 4,
            theta: 10_000.0,
            scaling: RopeScaling::None,
            interleaved: false,
        },
        moe: None,
        bos_token_id: Some(256),
        eos_token_ids: vec![257],
        num_nextn_predict_layers: 0,
        dtype: None,
        fp8_tile: None,
        quantization: None,
    };
    let kv = KvLayout::of(&config, scrimp_tensor::DType::F32, 16);
    let plan = MemoryPlan::new(&PlanInput {
        budget_bytes: 1 << 20,
        weights: vec![],
        activations_bytes: 0,
        bytes_per_seq: 0,
        staging_bytes: 0,
        loading_bytes: 0,
        opening_bytes: 0,
        other_bytes: 0,
        reserve_bytes: 0,
        kv,
        kv_block_bytes: kv.bytes_per_block(),
        kv_page_bytes: 1,
        max_model_len: MAX_MODEL_LEN,
        shrink_to_fit: false,
        max_num_seqs: 4,
        max_blocks_per_seq: 4096,
        num_blocks: Some(64),
        kv_cache_bytes: None,
        max_kv_cache_bytes: None,
    });
    EngineInfo {
        config,
        plan: plan.unwrap(),
        max_model_len: MAX_MODEL_LEN,
        device: "scripted".into(),
    }
}

fn run_engine(end: &EngineEnd, script: &Script, seen: &Mutex<Seen>) {
    let mut open: HashMap<RequestId, EventSink> = HashMap::new();
    while let Ok(command) = end.commands.recv() {
        match command {
            Command::Submit(id, request, mut sink) => {
                // Known before the client can have its answer.
                seen.lock().unwrap().requests.push((*request).clone());
                end.publish(EngineStats {
                    num_requests_running: usize::from(matches!(script, Script::Hang)),
                    tokens_in_use: 256,
                    blocks_total: 64,
                    num_preemptions: 3,
                    ..EngineStats::default()
                });
                let first = Update {
                    index: 0,
                    event: Event::Delta(token(b'h', false, &request)),
                };
                match script {
                    Script::Say { thinking, answer } => say(&request, &mut sink, thinking, answer),
                    Script::Hang => {
                        sink(first);
                        open.insert(id, sink);
                    }
                    Script::Break(error) => {
                        sink(first);
                        let event = Event::Failed(error.clone());
                        sink(Update { index: 0, event });
                    }
                }
            }
            Command::Abort(id) => {
                open.remove(&id);
                seen.lock().unwrap().aborted.push(id);
            }
            Command::Shutdown { drain } => {
                seen.lock().unwrap().shutdown = Some(drain);
                return;
            }
        }
    }
}

/// All completions of a request, their tokens in turn.
fn say(request: &GenerateRequest, sink: &mut EventSink, thinking: &str, answer: &str) {
    let bytes = thinking
        .bytes()
        .map(|b| (b, true))
        .chain(answer.bytes().map(|b| (b, false)));
    let bytes: Vec<_> = bytes
        .take(request.max_tokens.unwrap_or(usize::MAX))
        .collect();
    for &(byte, reasoning) in &bytes {
        for index in 0..request.n {
            sink(Update {
                index,
                event: Event::Delta(token(byte, reasoning, request)),
            });
        }
    }
    let whole = bytes.len() == thinking.len() + answer.len();
    for index in 0..request.n {
        let usage = Usage {
            prompt_tokens: request.prompt.len(),
            completion_tokens: bytes.len(),
            reasoning_tokens: bytes.iter().filter(|(_, reasoning)| *reasoning).count(),
            cached_tokens: 2,
            kv_cache_bytes: 1000,
            preemptions: 1,
            queue_time: Duration::from_millis(250),
            prefill_time: Duration::from_millis(500),
            decode_time: Duration::from_millis(index as u64 * 1000),
        };
        let reason = if whole {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        sink(Update {
            index,
            event: Event::Finished(Finished { reason, usage }),
        });
    }
}

fn token(byte: u8, reasoning: bool, request: &GenerateRequest) -> Delta {
    let text = char::from(byte).to_string();
    let logprobs = request.sampling.logprobs.map(|top| TokenLogprobs {
        logprob: -0.5,
        top: (0..top).map(|i| (i + 65, -0.5 - i as f32)).collect(),
    });
    let tokens = vec![TokenInfo {
        id: u32::from(byte),
        reasoning,
        logprobs,
    }];
    match reasoning {
        true => Delta {
            reasoning: text,
            tokens,
            ..Delta::default()
        },
        false => Delta {
            answer: text,
            tokens,
            ..Delta::default()
        },
    }
}
