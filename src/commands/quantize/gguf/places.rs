//! Which tensor of a GGUF file each weight is, and in which order.

use anyhow::{Context, Result};
use scrimp_engine::weights::{Scheme, Slot};
use scrimp_model::{Architecture, AttentionConfig, ModelConfig};
use scrimp_quant::{Arrangement, GgufPlace, Role, SourceTensor};

use super::super::layers::slot_of;

/// One for each of the source's tensors.
pub fn of(tensors: &[SourceTensor], config: &ModelConfig) -> Result<Vec<GgufPlace>> {
    tensors.iter().map(|tensor| place(tensor, config)).collect()
}

fn place(tensor: &SourceTensor, config: &ModelConfig) -> Result<GgufPlace> {
    let name = |slot| {
        let name = Scheme::Gguf.name(slot, tensor.layer.unwrap_or(0), 0);
        name.with_context(|| format!("{} has no name in GGUF", tensor.name))
    };
    let place = |slot, shape: Vec<usize>, arrangement| {
        Ok(GgufPlace {
            tensor: name(slot)?,
            shape,
            arrangement,
        })
    };
    let slot = slot_of(tensor.role);
    match (tensor.role, &config.attention) {
        (Role::KvB, AttentionConfig::Mla(mla)) => {
            let (heads, nope, latent) = (mla.num_heads, mla.qk_nope_head_dim, mla.kv_lora_rank);
            let halves = Arrangement::Halves {
                values: name(Slot::VB)?,
                heads,
                nope,
                value: mla.v_head_dim,
                latent,
            };
            place(Slot::KB, vec![heads, latent, nope], halves)
        }
        // The converters' habit, and what the rotation of this architecture's readers asks for.
        (Role::Q | Role::QBias | Role::K | Role::KBias, AttentionConfig::Gqa(gqa))
            if config.architecture == Architecture::Llama =>
        {
            let head_dim = gqa.head_dim;
            let pairs = Arrangement::Interleaved { head_dim };
            place(slot, tensor.shape.clone(), pairs)
        }
        (role, _) if role.is_routed_expert() => {
            let experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts);
            let (rows, cols) = (tensor.rows(), tensor.cols());
            let first = tensor.expert.unwrap_or(0) * rows;
            place(slot, vec![experts, rows, cols], Arrangement::Rows { first })
        }
        _ => place(slot, tensor.shape.clone(), Arrangement::Rows { first: 0 }),
    }
}
