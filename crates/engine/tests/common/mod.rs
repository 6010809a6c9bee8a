//! Golden models, and a runner for each of their files.
#![allow(dead_code)] // every test file uses some of it

use std::path::{Path, PathBuf};

use scrimp_checkpoint::Checkpoint;
use scrimp_cpu::{CpuBackend, CpuLevel, CpuOptions, Precision};
use scrimp_engine::batch::{Batch, Logits, SequenceStep};
use scrimp_engine::decoder::StepLimits;
use scrimp_engine::runner::{ModelRunner, RunnerConfig};
use scrimp_memory::MemoryLedger;
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

/// Tokens per block: small, so that every sequence has many.
pub const BLOCK: usize = 4;
/// Blocks of the cache: four times what a sequence takes, so that they can be scattered.
pub const NUM_BLOCKS: usize = 160;

/// The limits of every test's steps; logits come in parts of 7 rows.
pub const LIMITS: StepLimits = StepLimits {
    max_rows: 160,
    max_logit_rows: 7,
    max_context: 160,
};

/// A model file with what it must compute.
pub struct Golden {
    /// Folder, and file where there are several.
    pub name: String,
    /// What to open.
    pub path: PathBuf,
    /// Token ids, and logits `[ids, vocab]`.
    pub sequences: Vec<(Vec<u32>, Vec<f32>)>,
}

pub fn goldens_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

/// Every golden model in every file format it comes in.
pub fn goldens() -> Vec<Golden> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(goldens_folder()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let golden = |name: String, path| Golden {
            name,
            path,
            sequences: sequences(&folder.join("golden.safetensors")),
        };
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            if file.ends_with(".gguf") {
                found.push(golden(format!("{name}/{file}"), path.clone()));
            } else if ["model.safetensors", "model.safetensors.index.json"].contains(&file) {
                found.push(golden(name.clone(), folder.clone()));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.len() >= 20, "goldens are missing: {}", found.len());
    found
}

/// Integers of a golden file.
pub fn integers(file: &Checkpoint, name: &str) -> Vec<u32> {
    let tensor = file.get(name).unwrap();
    let width = tensor.dtype.block_bytes();
    assert!(matches!(tensor.dtype, DType::I32 | DType::I64));
    let low = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    tensor.bytes.chunks_exact(width).map(low).collect()
}

fn sequences(path: &Path) -> Vec<(Vec<u32>, Vec<f32>)> {
    let file = Checkpoint::open(path).unwrap();
    (0..)
        .take_while(|i| file.contains(&format!("ids.{i}")))
        .map(|i| {
            let logits = file.get(&format!("logits.{i}")).unwrap();
            let ids = integers(&file, &format!("ids.{i}"));
            (ids, logits.to_f32().unwrap())
        })
        .collect()
}

/// A model made ready, with a cache of `NUM_BLOCKS` blocks of `BLOCK` tokens.
pub fn runner(path: &Path, precision: Precision, kv: DType) -> ModelRunner<CpuBackend> {
    runner_on(backend(precision), path, kv)
}

/// The same on a backend of choice.
pub fn runner_on(backend: CpuBackend, path: &Path, kv: DType) -> ModelRunner<CpuBackend> {
    let ledger = MemoryLedger::new(1 << 30);
    let checkpoint = Checkpoint::open(path).unwrap();
    let model = checkpoint.config().unwrap();
    let config = RunnerConfig {
        limits: LIMITS,
        kv: KvLayout::of(&model, kv, BLOCK),
        num_blocks: NUM_BLOCKS,
    };
    ModelRunner::load(&model, &checkpoint, backend, config, &ledger, &mut |_| {}).unwrap()
}

pub fn backend(precision: Precision) -> CpuBackend {
    backend_at(CpuLevel::detect(), precision)
}

/// Every instruction set that this machine has.
pub fn levels() -> impl Iterator<Item = CpuLevel> {
    CpuLevel::ALL.into_iter().filter(|l| l.is_available())
}

/// A backend that uses one instruction set.
pub fn backend_at(level: CpuLevel, precision: Precision) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(2),
        level: Some(level),
        precision,
        ..CpuOptions::default()
    })
    .unwrap()
}

/// Every `step`-th block from `first` on: scattered, and no two of them the same.
pub fn scattered(first: usize, step: usize) -> Vec<u32> {
    assert!(!NUM_BLOCKS.is_multiple_of(step) || step == 1);
    (0..NUM_BLOCKS)
        .map(|i| ((first + i * step) % NUM_BLOCKS) as u32)
        .collect()
}

/// All logits of a sequence that is fed in chunks of these lengths (the last one repeats).
pub fn feed(
    runner: &mut ModelRunner<CpuBackend>,
    ids: &[u32],
    blocks: &[u32],
    chunks: &[usize],
) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut done = 0;
    let mut lengths = chunks
        .iter()
        .chain(std::iter::repeat(chunks.last().unwrap()));
    while done < ids.len() {
        let end = ids.len().min(done + lengths.next().unwrap());
        let mut batch = Batch::default();
        let step = SequenceStep {
            token_ids: &ids[done..end],
            num_computed: done,
            blocks,
            logits: Logits::All,
        };
        batch.push(&step, BLOCK);
        runner
            .execute(&batch, &mut |rows| logits.extend_from_slice(rows.values))
            .unwrap();
        done = end;
    }
    logits
}
