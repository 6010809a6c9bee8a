//! What is said about checkpoints that do not fit.

use std::collections::BTreeMap;

use scrimp_model::ModelConfig;
use scrimp_tensor::{DType, TensorView};

use super::inventory::{Inventory, Problem, TensorSource};
use super::names::{Component, Scheme, Slot};
use super::spec::{Kind, weight_specs};

/// Tensors of zeros, by name.
struct Zeros {
    scheme: Scheme,
    tensors: BTreeMap<String, (DType, Vec<usize>)>,
    bytes: Vec<u8>,
}

impl TensorSource for Zeros {
    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (dtype, shape) = self.tensors.get(name)?;
        let cols = *shape.last()?;
        let rows: usize = shape.iter().product::<usize>() / cols;
        let bytes = rows * cols / dtype.block_len() * dtype.block_bytes();
        Some(TensorView {
            dtype: *dtype,
            shape: shape.clone(),
            bytes: &self.bytes[..bytes],
        })
    }

    fn release(&self, _name: &str) {}
}

fn golden(name: &str) -> ModelConfig {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens");
    let text = std::fs::read_to_string(format!("{folder}/{name}/config.json")).unwrap();
    ModelConfig::from_hf(&serde_json::from_str(&text).unwrap()).unwrap()
}

/// Exactly the tensors that `config` asks for; for GGUF, those that `has` says are there.
fn complete(config: &ModelConfig, scheme: Scheme, has: &dyn Fn(&str) -> bool) -> Zeros {
    let specs = weight_specs(config, scheme, has);
    let tensors = specs
        .into_iter()
        .map(|spec| (spec.tensor, (DType::F32, spec.shape)))
        .collect();
    Zeros {
        scheme,
        tensors,
        bytes: vec![0; 1 << 20],
    }
}

const MODELS: [&str; 6] = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
];

#[test]
fn the_list_has_every_parameter_once() {
    for name in MODELS {
        let config = golden(name);
        let counts = config.parameter_counts();
        for scheme in [Scheme::HuggingFace, Scheme::Gguf] {
            let head_is_there = |name: &str| !config.tie_word_embeddings && name == "output.weight";
            let specs = weight_specs(&config, scheme, &head_is_there);
            let of = |component| -> u64 {
                let own = specs.iter().filter(|spec| spec.component() == component);
                own.map(|spec| spec.kind.len() as u64).sum()
            };
            assert_eq!(of(Component::Embedding), counts.embedding, "{name}");
            assert_eq!(of(Component::Attention), counts.attention, "{name}");
            assert_eq!(of(Component::DenseMlp), counts.dense_mlp, "{name}");
            assert_eq!(of(Component::RoutedExperts), counts.routed_experts);
            assert_eq!(of(Component::SharedExperts), counts.shared_experts);
            assert_eq!(of(Component::Router), counts.router, "{name}");
            assert_eq!(of(Component::Norms), counts.norms, "{name}");
            assert_eq!(of(Component::Head), counts.head, "{name}");
        }
    }
}

#[test]
fn complete_checkpoints_fit() {
    for name in MODELS {
        let config = golden(name);
        for scheme in [Scheme::HuggingFace, Scheme::Gguf] {
            let source = complete(&config, scheme, &|_| false);
            let inventory = Inventory::new(&config, &source).unwrap();
            let all: usize = source
                .names()
                .iter()
                .map(|n| source.tensor(n).unwrap().bytes.len())
                .sum();
            assert_eq!(inventory.stored_bytes(), all, "{name}");
        }
    }
}

#[test]
fn every_misfit_is_named_at_once() {
    let config = golden("deepseek_v3");
    let mut source = complete(&config, Scheme::HuggingFace, &|_| false);
    let odd = "model.layers.1.mlp.experts.1.up_proj.weight";
    let integer = "model.layers.0.self_attn.o_proj.weight";
    let tensors = &mut source.tensors;
    tensors.remove("model.norm.weight").unwrap();
    tensors
        .remove("model.layers.0.self_attn.kv_b_proj.weight")
        .unwrap();
    tensors.get_mut(odd).unwrap().1[0] += 1;
    tensors.get_mut(integer).unwrap().0 = DType::I32;
    tensors.insert(
        "model.layers.0.self_attn.sinks".into(),
        (DType::F32, vec![4]),
    );
    let misfit = Inventory::new(&config, &source).unwrap_err();
    let names: Vec<&str> = misfit
        .problems
        .iter()
        .map(|problem| match problem {
            Problem::Missing { name } | Problem::Surplus { name } => name.as_str(),
            Problem::Shape { name, .. }
            | Problem::Storage { name, .. }
            | Problem::Packing { name, .. } => name.as_str(),
        })
        .collect();
    let expected = [
        "model.layers.0.self_attn.kv_b_proj.weight",
        "model.norm.weight",
        odd,
        integer,
        "model.layers.0.self_attn.sinks",
    ];
    assert_eq!(names, expected, "{misfit}");
    assert!(misfit.to_string().contains("(5 problems)"), "{misfit}");
}

#[test]
fn a_misshapen_stack_is_reported_once() {
    let config = golden("deepseek_v3");
    let mut source = complete(&config, Scheme::Gguf, &|_| false);
    source.tensors.remove("blk.1.ffn_up_exps.weight").unwrap();
    source
        .tensors
        .get_mut("blk.1.ffn_down_exps.weight")
        .unwrap()
        .1[0] += 1;
    let misfit = Inventory::new(&config, &source).unwrap_err();
    assert_eq!(misfit.problems.len(), 2, "{misfit}");
}

#[test]
fn fp8_needs_its_scales() {
    let config = golden("deepseek_v3_fp8");
    let mut source = complete(&config, Scheme::HuggingFace, &|_| false);
    let name = "model.layers.0.mlp.up_proj.weight";
    source.tensors.get_mut(name).unwrap().0 = DType::F8E4M3;
    let scales = format!("{name}_scale_inv");
    let missing = Inventory::new(&config, &source).unwrap_err();
    assert_eq!(
        missing.problems,
        [Problem::Missing {
            name: scales.clone()
        }]
    );
    source
        .tensors
        .insert(scales.clone(), (DType::F32, vec![2, 3]));
    let shape = Inventory::new(&config, &source).unwrap_err();
    let (expected, found) = (vec![2, 2], vec![2, 3]);
    let problem = Problem::Shape {
        name: scales.clone(),
        expected,
        found,
    };
    assert_eq!(shape.problems, [problem]);
    source.tensors.insert(scales, (DType::F32, vec![2, 2]));
    Inventory::new(&config, &source).unwrap();
}

#[test]
fn what_no_decoder_reads_is_passed_over() {
    let mut config = golden("deepseek_v3");
    config.num_nextn_predict_layers = 1;
    config.tie_word_embeddings = true;
    let next = config.num_layers;
    let mut source = complete(&config, Scheme::HuggingFace, &|_| false);
    for name in [
        &format!("model.layers.{next}.eh_proj.weight"),
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "lm_head.weight",
    ] {
        source
            .tensors
            .insert(name.to_owned(), (DType::F32, vec![2]));
    }
    Inventory::new(&config, &source).unwrap();
    let beyond = format!("model.layers.{}.eh_proj.weight", next + 1);
    source.tensors.insert(beyond.clone(), (DType::F32, vec![2]));
    let misfit = Inventory::new(&config, &source).unwrap_err();
    assert_eq!(misfit.problems, [Problem::Surplus { name: beyond }]);
}

#[test]
fn newer_gguf_files_split_the_latent_projection() {
    let config = golden("deepseek_v3");
    let split = |name: &str| name.ends_with("attn_k_b.weight");
    let specs = weight_specs(&config, Scheme::Gguf, &split);
    let slots: Vec<Slot> = specs
        .iter()
        .filter(|s| s.id.layer == 1)
        .map(|s| s.id.slot)
        .collect();
    assert!(slots.contains(&Slot::KB) && slots.contains(&Slot::VB));
    assert!(!slots.contains(&Slot::KvB));
    let up = specs
        .iter()
        .filter(|s| s.id.slot == Slot::ExpertUp && s.id.layer == 1);
    let starts: Vec<usize> = up.map(|s| s.first_row).take(3).collect();
    let width = config.moe.as_ref().unwrap().moe_intermediate_size;
    assert_eq!(starts, [0, width, 2 * width]);
    let router = specs.iter().find(|s| s.id.slot == Slot::Router).unwrap();
    assert!(matches!(router.kind, Kind::FloatMatrix { .. }));
}
