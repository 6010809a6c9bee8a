//! Packed checkpoints: bytes that are planned and kept, and damage that is named.

#![allow(clippy::unwrap_used)] // in helpers, which the lint does not take for tests

mod common;

use std::collections::HashMap;

use common::{backend, goldens_folder};
use proptest::prelude::*;
use scrimp_backend::{Backend, MatrixStorage};
use scrimp_checkpoint::Checkpoint;
use scrimp_cpu::Precision;
use scrimp_engine::weights::{Inventory, Scheme, TensorSource, WeightError, WeightStore};
use scrimp_memory::MemoryLedger;
use scrimp_model::{ModelConfig, Quantization};
use scrimp_tensor::{DType, TensorView};

/// Golden models with packed weights.
const PACKED: [&str; 10] = [
    "llama_w4a16",
    "llama_w4a16_asym",
    "qwen2_w8a16",
    "llama_w8a8",
    "qwen3_awq",
    "qwen3_moe_gptq",
    "llama_gptq_act_order",
    "qwen2_gptq_w8",
    "deepseek_v2_awq",
    "deepseek_v3_w4a16",
];

/// A tensor by itself.
#[derive(Clone, Debug)]
struct Owned {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A checkpoint some of whose tensors are others, or gone.
struct Edited {
    checkpoint: Checkpoint,
    edits: HashMap<String, Option<Owned>>,
}

impl Edited {
    fn open(name: &str) -> (Edited, ModelConfig) {
        let checkpoint = Checkpoint::open(&goldens_folder().join(name)).unwrap();
        let config = checkpoint.config().unwrap();
        let edits = HashMap::new();
        (Edited { checkpoint, edits }, config)
    }

    fn owned(&self, name: &str) -> Owned {
        let view = self.checkpoint.get(name).unwrap();
        Owned {
            dtype: view.dtype,
            shape: view.shape,
            bytes: view.bytes.to_vec(),
        }
    }

    /// Changes one tensor.
    fn edit(mut self, name: &str, change: impl FnOnce(&mut Owned)) -> Self {
        let mut tensor = self.owned(name);
        change(&mut tensor);
        self.edits.insert(name.to_owned(), Some(tensor));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.edits.insert(name.to_owned(), None);
        self
    }

    fn with(mut self, name: &str, tensor: Owned) -> Self {
        self.edits.insert(name.to_owned(), Some(tensor));
        self
    }
}

impl TensorSource for Edited {
    fn scheme(&self) -> Scheme {
        Scheme::HuggingFace
    }

    fn names(&self) -> Vec<&str> {
        let stored = self.checkpoint.infos().map(|(_, info)| info.name.as_str());
        let kept = stored.filter(|name| !self.edits.contains_key(*name));
        let edited = self.edits.iter().filter(|(_, tensor)| tensor.is_some());
        kept.chain(edited.map(|(name, _)| name.as_str())).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        match self.edits.get(name) {
            Some(edit) => edit.as_ref().map(|tensor| TensorView {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: &tensor.bytes,
            }),
            None => self.checkpoint.get(name),
        }
    }

    fn release(&self, _name: &str) {}
}

/// Loads all weights, or says why not.
fn load(config: &ModelConfig, source: &Edited) -> Result<(), String> {
    let inventory = Inventory::new(config, source).map_err(|misfit| misfit.to_string())?;
    let mut backend = backend(Precision::Exact);
    let ledger = MemoryLedger::new(1 << 30);
    let store: Result<_, WeightError> = WeightStore::load(
        config,
        &inventory,
        source,
        &mut backend,
        &ledger,
        &mut |_| {},
    );
    let planned = inventory.weight_plan(&backend);
    let planned: usize = planned.iter().map(|(_, bytes)| bytes).sum();
    let store = store.map_err(|error| error.to_string())?;
    assert_eq!(store.bytes(), planned);
    Ok(())
}

/// Asserts that loading fails and says all of these words.
fn refused(config: &ModelConfig, source: &Edited, words: &[&str]) {
    let error = load(config, source).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn packed_weights_stay_packed() {
    for name in PACKED {
        let (source, config) = Edited::open(name);
        let inventory = Inventory::new(&config, &source).unwrap();
        let backend = backend(Precision::Fast);
        let mut grouped = 0;
        for entry in &inventory.entries {
            let Some(MatrixStorage::Grouped(form)) = entry.storage else {
                continue;
            };
            grouped += 1;
            // Codes, scales and zero points, in panels of sixteen rows and blocks of 32 columns.
            let shape = &entry.spec.shape;
            let (rows, cols) = (shape[0].next_multiple_of(16), shape[1].next_multiple_of(32));
            let scale = if form.scale == DType::F32 { 4 } else { 2 };
            let per_group = scale + usize::from(form.zeros);
            let groups = form.groups(shape[1]);
            let index = if form.indexed { 4 * shape[1] } else { 0 };
            let most =
                rows * cols * form.bits / 8 + rows * groups * per_group + rows / 16 * 63 + index;
            let kept = backend.matrix_bytes(shape[0], shape[1], MatrixStorage::Grouped(form));
            assert!(
                kept <= most,
                "{name}: {} keeps {kept}, not {most}",
                entry.spec.tensor
            );
        }
        assert!(grouped >= 12, "{name} has {grouped} packed matrices");
        load(&config, &source).unwrap();
    }
}

#[test]
fn symmetric_gptq_needs_no_zero_points() {
    let (source, config) = Edited::open("qwen3_moe_gptq");
    let inventory = Inventory::new(&config, &source).unwrap();
    for entry in &inventory.entries {
        if let Some(MatrixStorage::Grouped(form)) = entry.storage {
            assert!(!form.zeros && !form.indexed, "{}", entry.spec.tensor);
        }
    }
}

#[test]
fn words_of_other_shapes_are_refused() {
    let weight = "model.layers.1.mlp.down_proj.weight";
    let part = |end: &str| format!("{weight}_{end}");
    let open = || Edited::open("llama_w4a16");
    let (source, config) = open();
    let cut = source.edit(&part("packed"), |t| t.shape[0] -= 1);
    refused(
        &config,
        &cut,
        &["down_proj.weight_packed", "[63, 12]", "[64, 12]"],
    );
    let narrow = open().0.edit(&part("packed"), |t| t.dtype = DType::I64);
    refused(&config, &narrow, &["down_proj.weight_packed", "I64", "I32"]);
    let missing = open().0.without(&part("scale"));
    refused(&config, &missing, &["down_proj.weight_scale is missing"]);
    let rows = open().0.edit(&part("scale"), |t| t.shape = vec![32, 6]);
    refused(&config, &rows, &["down_proj.weight_scale", "[64, groups]"]);
    let groups = open().0.edit(&part("scale"), |t| {
        t.shape = vec![64, 5];
        t.bytes.resize(64 * 5 * 2, 0);
    });
    refused(&config, &groups, &["5 groups", "96 columns"]);
    let integers = open().0.edit(&part("scale"), |t| t.dtype = DType::I32);
    refused(&config, &integers, &["weight_scale", "I32", "BF16"]);
    let stated = open().0.edit(&part("shape"), |t| t.bytes[0] = 65);
    refused(&config, &stated, &["weight_shape", "[65, 96]", "[64, 96]"]);
    let infinite = open().0.edit(&part("scale"), |t| {
        t.bytes[..2].copy_from_slice(&[0x80, 0x7f]);
    });
    refused(&config, &infinite, &["down_proj", "damaged", "finite"]);
    let unsaid = ModelConfig {
        quantization: None,
        ..config.clone()
    };
    refused(
        &unsaid,
        &open().0,
        &["weight_packed", "quantization_config"],
    );
    let router = open().0.with(
        "model.layers.0.mlp.gate.weight_packed",
        open().0.owned(&part("packed")),
    );
    refused(
        &config,
        &router,
        &["mlp.gate.weight_packed", "belongs to nothing"],
    );
}

#[test]
fn gptq_parts_that_do_not_fit_are_refused() {
    let base = "model.layers.0.self_attn.o_proj";
    let part = |end: &str| format!("{base}.{end}");
    let open = || Edited::open("llama_gptq_act_order");
    let config = open().1;
    let far = open().0.edit(&part("g_idx"), |t| t.bytes[8] = 3);
    refused(&config, &far, &["o_proj.g_idx", "group 3 of 3"]);
    let below = open().0.edit(&part("g_idx"), |t| t.bytes[4..8].fill(0xfe));
    refused(&config, &below, &["o_proj.g_idx", "group -"]);
    let short = open().0.edit(&part("g_idx"), |t| t.shape[0] -= 1);
    refused(&config, &short, &["o_proj.g_idx", "[71]", "[72]"]);
    let none = open().0.without(&part("qzeros"));
    refused(&config, &none, &["o_proj.qzeros is missing"]);
    let none = open().0.without(&part("qweight"));
    refused(
        &config,
        &none,
        &["o_proj.weight is missing", "o_proj.scales"],
    );
    let zeros = open().0.edit(&part("qzeros"), |t| t.shape.reverse());
    refused(&config, &zeros, &["o_proj.qzeros", "[3, 9]"]);
    let awq = ModelConfig {
        quantization: Some(Quantization::Awq),
        ..config.clone()
    };
    refused(&awq, &open().0, &["qweight", "shape"]);

    // A bias of zeros beside weights that have none is passed over; any other one is not.
    let bias = |byte| Owned {
        dtype: DType::F16,
        shape: vec![72],
        bytes: vec![byte; 144],
    };
    load(&config, &open().0.with(&part("bias"), bias(0))).unwrap();
    let odd = open().0.with(&part("bias"), bias(1));
    refused(&config, &odd, &["o_proj.bias", "belongs to nothing"]);
}

#[test]
fn a_packed_router_is_refused() {
    let (source, config) = Edited::open("qwen3_moe_gptq");
    let gate = "model.layers.0.mlp.gate.weight";
    let qweight = source.owned("model.layers.0.mlp.experts.0.up_proj.qweight");
    let source = source
        .without(gate)
        .with("model.layers.0.mlp.gate.qweight", qweight);
    refused(&config, &source, &[gate, "never quantized"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to one tensor, loading ends in weights or in an error that names it.
    #[test]
    fn no_damage_panics(
        model in 0..PACKED.len(),
        tensor in any::<prop::sample::Index>(),
        dtype in 0..8usize,
        shape in prop::collection::vec(0..100usize, 0..4),
        noise in any::<u8>(),
        what in 0..4,
    ) {
        let (source, config) = Edited::open(PACKED[model]);
        let name = {
            let names = source.names();
            (*tensor.get(&names)).to_owned()
        };
        let source = source.edit(&name, |t| match what {
            0 => {
                t.dtype = DType::all().nth(dtype).unwrap();
                let elements: usize = t.shape.iter().product();
                t.bytes.resize(elements * t.dtype.block_bytes(), noise);
            }
            1 => {
                let elements: usize = shape.iter().product();
                t.bytes.resize(elements * t.dtype.block_bytes(), noise);
                t.shape = shape;
            }
            2 => t.shape.reverse(),
            _ => t.bytes.fill(noise),
        });
        if let Err(error) = load(&config, &source) {
            prop_assert!(error.contains(name.rsplit_once('.').unwrap().0), "{}: {}", name, error);
        }
    }
}
