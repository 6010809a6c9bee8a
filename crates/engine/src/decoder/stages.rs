//! One decoder layer in parts, its weights set from outside: what calibrating a quantization needs.
//!
//! The parts are the decoder's own. They are run one at a time, so that what a projection reads
//! can be looked at, and so that weights that were just replaced are the ones that the next part
//! computes with. Nothing here is on the way of a request.

use scrimp_backend::{Backend, BackendError, Input, Norm, Projection, Routing};
use scrimp_model::{AttentionConfig, KvLayout, MlpSpec, ModelConfig};
use scrimp_tensor::{DType, MatrixView, TensorError};

use crate::batch::{Batch, Logits, SequenceStep};
use crate::decoder::scratch::{self, Scratch};
use crate::decoder::{Step, StepLimits, activation_bytes, attention};
use crate::weights::names::Slot;
use crate::weights::tree::{
    AttentionWeights, GqaWeights, KvExpand, LayerMlp, LayerWeights, Linear, MlaQuery, MlaWeights,
    MlpWeights, MoeWeights,
};

/// Tokens of a block of the one sequence's cache.
const BLOCK: usize = 16;

/// Why a part of a layer cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The device refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Values that do not fill their shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A weight that layers of this model do not have.
    #[error("layers of this model have no {slot:?}")]
    NoSuchWeight {
        /// Its role.
        slot: Slot,
    },
    /// No room was reserved for the rows.
    #[error("no rows were reserved")]
    NotReserved,
}

/// A gated feed-forward of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// The layer's own.
    Dense,
    /// All shared experts as one.
    Shared,
    /// The routed expert whose weights were set last.
    Expert,
}

/// Memory for calls of so many rows.
struct Room<B: Backend> {
    rows: usize,
    scratch: Scratch<B::Buffer>,
    cache: B::KvCache,
    batch: Batch,
    /// `[rows, rope.dim]`, from position 0.
    cos_sin: Vec<f32>,
    input: B::Buffer,
    output: B::Buffer,
}

/// One layer at a time, part by part.
pub struct LayerStages<B: Backend> {
    backend: B,
    config: ModelConfig,
    layer: LayerWeights<B>,
    expert: MlpWeights<B>,
    routing: Routing,
    room: Option<Room<B>>,
}

impl<B: Backend> LayerStages<B> {
    /// For layers of `config`, whose rows are in the order that `config.rope` says.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(config: ModelConfig, mut backend: B) -> Result<Self, StageError> {
        Ok(LayerStages {
            layer: empty_layer(&mut backend, &config, 0)?,
            expert: empty_mlp(&mut backend)?,
            routing: Routing::default(),
            room: None,
            backend,
            config,
        })
    }

    /// Bytes held for calls of at most `rows` rows.
    pub fn scratch_bytes(&self, rows: usize) -> usize {
        let kv = self.kv();
        let cache = self.backend.kv_cache_bytes(&kv, rows.div_ceil(BLOCK));
        let own = 2 * self.backend.buffer_bytes(rows * self.widest());
        activation_bytes(&self.backend, &self.config, &limits(rows)) + cache + own
    }

    /// Bytes held for a matrix that was set.
    pub fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        let storage = scrimp_backend::MatrixStorage::Blocks(DType::F32);
        self.backend.matrix_bytes(rows, cols, storage)
    }

    /// Prepares for calls of at most `rows` rows.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn reserve(&mut self, rows: usize) -> Result<(), StageError> {
        let (kv, widest) = (self.kv(), self.widest());
        let backend = &mut self.backend;
        let positions: Vec<u32> = (0..rows as u32).collect();
        let mut cos_sin = vec![0.0; rows * self.config.rope.dim];
        let inv_freq = self.config.rope.inv_freq();
        self.config
            .rope
            .cos_sin(&inv_freq, &positions, &mut cos_sin);
        self.room = Some(Room {
            rows,
            scratch: scratch::allocate(backend, &self.config, &limits(rows))?,
            cache: backend.alloc_kv_cache(&kv, rows.div_ceil(BLOCK))?,
            batch: Batch::default(),
            cos_sin,
            input: backend.alloc(rows * widest)?,
            output: backend.alloc(rows * widest)?,
        });
        Ok(())
    }

    /// Forgets all weights, and turns to layer `index`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn begin_layer(&mut self, index: usize) -> Result<(), StageError> {
        self.layer = empty_layer(&mut self.backend, &self.config, index)?;
        self.expert = empty_mlp(&mut self.backend)?;
        Ok(())
    }

    /// Sets a norm, a bias or the router's correction.
    ///
    /// # Errors
    /// When the device has no room, or the layer has no such weight.
    pub fn set_vector(&mut self, slot: Slot, values: &[f32]) -> Result<(), StageError> {
        let mut buffer = self.backend.alloc(values.len())?;
        self.backend.write(&mut buffer, values);
        let layer = &mut self.layer;
        match (slot, &mut layer.attention, &mut layer.mlp) {
            (Slot::AttentionNorm, _, _) => layer.attention_norm = buffer,
            (Slot::MlpNorm, _, _) => layer.mlp_norm = buffer,
            (Slot::CorrectionBias, _, LayerMlp::Moe(moe)) => moe.correction_bias = Some(buffer),
            (Slot::QBias, AttentionWeights::Gqa(gqa), _) => gqa.q.bias = Some(buffer),
            (Slot::KBias, AttentionWeights::Gqa(gqa), _) => gqa.k.bias = Some(buffer),
            (Slot::VBias, AttentionWeights::Gqa(gqa), _) => gqa.v.bias = Some(buffer),
            (Slot::OBias, AttentionWeights::Gqa(gqa), _) => gqa.o.bias = Some(buffer),
            (Slot::QNorm | Slot::KNorm, AttentionWeights::Gqa(gqa), _) => {
                if let Some((q, k)) = &mut gqa.qk_norm {
                    *(if slot == Slot::QNorm { q } else { k }) = buffer;
                }
            }
            (Slot::OBias, AttentionWeights::Mla(mla), _) => mla.o.bias = Some(buffer),
            (Slot::KvABias, AttentionWeights::Mla(mla), _) => mla.kv_a.bias = Some(buffer),
            (Slot::KvANorm, AttentionWeights::Mla(mla), _) => mla.kv_a_norm = buffer,
            (Slot::QANorm | Slot::QABias, AttentionWeights::Mla(mla), _) => {
                let MlaQuery::LowRank { a, norm, .. } = &mut mla.q else {
                    return Err(StageError::NoSuchWeight { slot });
                };
                match slot {
                    Slot::QANorm => *norm = buffer,
                    _ => a.bias = Some(buffer),
                }
            }
            _ => return Err(StageError::NoSuchWeight { slot }),
        }
        Ok(())
    }

    /// Sets a matrix `[rows, cols]`, kept in F32; an expert's replaces the last expert's.
    ///
    /// # Errors
    /// When the device has no room, or the layer has no such weight.
    pub fn set_matrix(
        &mut self,
        slot: Slot,
        (rows, cols): (usize, usize),
        values: &[f32],
    ) -> Result<(), StageError> {
        *self.matrix(slot)? = empty(&mut self.backend)?; // the old one goes first
        let bytes = bytemuck::cast_slice(values);
        let view = MatrixView::from_blocks(DType::F32, rows, cols, bytes)?;
        *self.matrix(slot)? = self.backend.load_matrix(&view)?;
        Ok(())
    }

    /// Forgets a matrix.
    ///
    /// # Errors
    /// When the layer has no such weight.
    pub fn drop_matrix(&mut self, slot: Slot) -> Result<(), StageError> {
        *self.matrix(slot)? = empty(&mut self.backend)?;
        Ok(())
    }

    /// What the first projections of attention read, `[rows, hidden]`.
    pub fn attention_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        let Some(room) = &mut self.room else { return };
        let norm = norm(&self.layer.attention_norm, &self.config);
        self.backend.write(&mut room.input, hidden);
        self.backend
            .rms_norm(&room.input, rows, norm, &mut room.output);
        out.copy_from_slice(&self.backend.read(&room.output, out.len()));
    }

    /// What MLA's second query projection reads, `[rows, q_lora_rank]`; zeros where there is none.
    pub fn query_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        let Some(room) = &mut self.room else { return };
        let AttentionWeights::Mla(MlaWeights {
            q: MlaQuery::LowRank {
                a, norm: q_norm, ..
            },
            ..
        }) = &self.layer.attention
        else {
            return;
        };
        self.backend.write(&mut room.input, hidden);
        let input = Input {
            x: &room.input,
            rows,
            norm: Some(norm(&self.layer.attention_norm, &self.config)),
            fine: false,
        };
        let low = Projection {
            weight: &a.weight,
            bias: a.bias.as_ref(),
            out: &mut room.scratch.q_low,
            accumulate: false,
        };
        self.backend.linear(input, &mut [low]);
        let norm = Norm {
            weight: q_norm,
            dim: out.len() / rows.max(1),
            eps: attention::LATENT_NORM_EPS,
        };
        self.backend
            .rms_norm(&room.scratch.q_low, rows, norm, &mut room.output);
        out.copy_from_slice(&self.backend.read(&room.output, out.len()));
    }

    /// What the output projection reads, of a sequence from its beginning.
    pub fn attend(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        let Some(room) = &mut self.room else { return };
        let blocks: Vec<u32> = (0..room.rows.div_ceil(BLOCK) as u32).collect();
        room.batch = Batch::default();
        let sequence = SequenceStep {
            token_ids: &vec![0; rows],
            num_computed: 0,
            blocks: &blocks,
            logits: Logits::No,
        };
        room.batch.push(&sequence, BLOCK);
        let step = Step {
            config: &self.config,
            batch: &room.batch,
            rows,
            cos_sin: &room.cos_sin[..rows * self.config.rope.dim],
            recorder: None,
        };
        let (backend, scratch) = (&mut self.backend, &mut room.scratch);
        backend.write(&mut scratch.hidden, hidden);
        attention::attend(backend, &step, 0, &self.layer, scratch, &mut room.cache);
        out.copy_from_slice(&backend.read(&scratch.attended, out.len()));
    }

    /// Adds the output projection of `attended` to `hidden`.
    pub fn add_attention(&mut self, attended: &[f32], rows: usize, hidden: &mut [f32]) {
        let Some(room) = &mut self.room else { return };
        let (backend, scratch) = (&mut self.backend, &mut room.scratch);
        backend.write(&mut scratch.hidden, hidden);
        backend.write(&mut scratch.attended, attended);
        attention::output(backend, rows, &self.layer, scratch);
        hidden.copy_from_slice(&backend.read(&scratch.hidden, hidden.len()));
    }

    /// What gates, ups and the router read, `[rows, hidden]`.
    pub fn mlp_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        let Some(room) = &mut self.room else { return };
        let norm = norm(&self.layer.mlp_norm, &self.config);
        self.backend.write(&mut room.input, hidden);
        self.backend
            .rms_norm(&room.input, rows, norm, &mut room.output);
        out.copy_from_slice(&self.backend.read(&room.output, out.len()));
    }

    /// What a down projection reads.
    pub fn gated(&mut self, tower: Tower, normed: &[f32], rows: usize, out: &mut [f32]) {
        let (Some(room), Some(mlp)) = (&mut self.room, mlp(&self.layer, &self.expert, tower))
        else {
            return;
        };
        self.backend.write(&mut room.input, normed);
        let input = plain(&room.input, rows);
        self.backend
            .gate_up_silu(input, &mlp.gate, &mlp.up, &mut room.output);
        out.copy_from_slice(&self.backend.read(&room.output, out.len()));
    }

    /// The down projection of rows of [`LayerStages::gated`].
    pub fn down(&mut self, tower: Tower, gated: &[f32], rows: usize, out: &mut [f32]) {
        let (Some(room), Some(mlp)) = (&mut self.room, mlp(&self.layer, &self.expert, tower))
        else {
            return;
        };
        self.backend.write(&mut room.input, gated);
        let projection = Projection {
            weight: &mlp.down,
            bias: None,
            out: &mut room.output,
            accumulate: false,
        };
        self.backend
            .linear(plain(&room.input, rows), &mut [projection]);
        out.copy_from_slice(&self.backend.read(&room.output, out.len()));
    }

    /// Experts of rows of [`LayerStages::mlp_input`].
    pub fn route(&mut self, normed: &[f32], rows: usize) -> &Routing {
        if let (Some(room), LayerMlp::Moe(moe), Some(config)) =
            (&mut self.room, &self.layer.mlp, &self.config.moe)
        {
            let backend = &mut self.backend;
            self.routing.top_k = config.router.top_k;
            backend.write(&mut room.input, normed);
            let router = Projection {
                weight: &moe.router,
                bias: None,
                out: &mut room.scratch.router_logits,
                accumulate: false,
            };
            backend.linear(plain(&room.input, rows), &mut [router]);
            backend.route(
                &room.scratch.router_logits,
                rows,
                config.num_experts,
                &config.router,
                moe.correction_bias.as_ref(),
                &mut self.routing,
            );
        }
        &self.routing
    }

    fn matrix(&mut self, slot: Slot) -> Result<&mut B::Matrix, StageError> {
        let layer = &mut self.layer;
        let place = match (slot, &mut layer.attention, &mut layer.mlp) {
            (Slot::Q, AttentionWeights::Gqa(gqa), _) => &mut gqa.q.weight,
            (Slot::K, AttentionWeights::Gqa(gqa), _) => &mut gqa.k.weight,
            (Slot::V, AttentionWeights::Gqa(gqa), _) => &mut gqa.v.weight,
            (Slot::O, AttentionWeights::Gqa(gqa), _) => &mut gqa.o.weight,
            (Slot::O, AttentionWeights::Mla(mla), _) => &mut mla.o.weight,
            (Slot::KvA, AttentionWeights::Mla(mla), _) => &mut mla.kv_a.weight,
            (Slot::KvB, AttentionWeights::Mla(mla), _) => match &mut mla.kv_b {
                KvExpand::Joint(matrix) => matrix,
                KvExpand::Split { .. } => return Err(StageError::NoSuchWeight { slot }),
            },
            (Slot::Q | Slot::QA | Slot::QB, AttentionWeights::Mla(mla), _) => {
                match (slot, &mut mla.q) {
                    (Slot::Q, MlaQuery::Direct(q)) => &mut q.weight,
                    (Slot::QA, MlaQuery::LowRank { a, .. }) => &mut a.weight,
                    (Slot::QB, MlaQuery::LowRank { b, .. }) => b,
                    _ => return Err(StageError::NoSuchWeight { slot }),
                }
            }
            (Slot::Gate, _, LayerMlp::Dense(mlp)) => &mut mlp.gate,
            (Slot::Up, _, LayerMlp::Dense(mlp)) => &mut mlp.up,
            (Slot::Down, _, LayerMlp::Dense(mlp)) => &mut mlp.down,
            (Slot::Router, _, LayerMlp::Moe(moe)) => &mut moe.router,
            (Slot::SharedGate | Slot::SharedUp | Slot::SharedDown, _, LayerMlp::Moe(moe)) => {
                match (slot, &mut moe.shared) {
                    (Slot::SharedGate, Some(mlp)) => &mut mlp.gate,
                    (Slot::SharedUp, Some(mlp)) => &mut mlp.up,
                    (Slot::SharedDown, Some(mlp)) => &mut mlp.down,
                    _ => return Err(StageError::NoSuchWeight { slot }),
                }
            }
            (Slot::ExpertGate, _, LayerMlp::Moe(_)) => &mut self.expert.gate,
            (Slot::ExpertUp, _, LayerMlp::Moe(_)) => &mut self.expert.up,
            (Slot::ExpertDown, _, LayerMlp::Moe(_)) => &mut self.expert.down,
            _ => return Err(StageError::NoSuchWeight { slot }),
        };
        Ok(place)
    }

    /// A cache of one layer, in floats.
    fn kv(&self) -> KvLayout {
        KvLayout {
            num_layers: 1,
            ..KvLayout::of(&self.config, DType::F32, BLOCK)
        }
    }

    /// Width of the widest row that goes in or out.
    fn widest(&self) -> usize {
        let config = &self.config;
        let moe = config.moe.as_ref();
        let expert = moe.map_or(0, |m| m.moe_intermediate_size * m.num_shared_experts.max(1));
        let low = match &config.attention {
            AttentionConfig::Gqa(_) => 0,
            AttentionConfig::Mla(mla) => mla.q_lora_rank.unwrap_or(0),
        };
        let widths = [config.hidden_size, config.intermediate_size, expert, low];
        widths.into_iter().max().unwrap_or(0)
    }
}

fn limits(rows: usize) -> StepLimits {
    StepLimits {
        max_rows: rows,
        max_logit_rows: 1,
        max_context: rows,
    }
}

fn plain<B: Backend>(x: &B::Buffer, rows: usize) -> Input<'_, B> {
    Input {
        x,
        rows,
        norm: None,
        fine: false,
    }
}

fn norm<'a, B: Backend>(weight: &'a B::Buffer, config: &ModelConfig) -> Norm<'a, B> {
    Norm {
        weight,
        dim: config.hidden_size,
        eps: config.rms_norm_eps,
    }
}

fn mlp<'a, B: Backend>(
    layer: &'a LayerWeights<B>,
    expert: &'a MlpWeights<B>,
    tower: Tower,
) -> Option<&'a MlpWeights<B>> {
    match (tower, &layer.mlp) {
        (Tower::Dense, LayerMlp::Dense(mlp)) => Some(mlp),
        (Tower::Shared, LayerMlp::Moe(moe)) => moe.shared.as_ref(),
        (Tower::Expert, LayerMlp::Moe(_)) => Some(expert),
        _ => None,
    }
}

/// What stands where no weight was set yet.
fn empty<B: Backend>(backend: &mut B) -> Result<B::Matrix, StageError> {
    let view = MatrixView::from_blocks(DType::F32, 1, 1, &[0; 4])?;
    Ok(backend.load_matrix(&view)?)
}

fn empty_linear<B: Backend>(backend: &mut B) -> Result<Linear<B>, StageError> {
    Ok(Linear {
        weight: empty(backend)?,
        bias: None,
    })
}

fn empty_mlp<B: Backend>(backend: &mut B) -> Result<MlpWeights<B>, StageError> {
    Ok(MlpWeights {
        gate: empty(backend)?,
        up: empty(backend)?,
        down: empty(backend)?,
    })
}

fn empty_layer<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights<B>, StageError> {
    let attention = match &config.attention {
        AttentionConfig::Gqa(gqa) => AttentionWeights::Gqa(GqaWeights {
            q: empty_linear(backend)?,
            k: empty_linear(backend)?,
            v: empty_linear(backend)?,
            qk_norm: match gqa.qk_norm {
                true => Some((backend.alloc(gqa.head_dim)?, backend.alloc(gqa.head_dim)?)),
                false => None,
            },
            o: empty_linear(backend)?,
        }),
        AttentionConfig::Mla(mla) => AttentionWeights::Mla(MlaWeights {
            q: match mla.q_lora_rank {
                Some(rank) => MlaQuery::LowRank {
                    a: empty_linear(backend)?,
                    norm: backend.alloc(rank)?,
                    b: empty(backend)?,
                },
                None => MlaQuery::Direct(empty_linear(backend)?),
            },
            kv_a: empty_linear(backend)?,
            kv_a_norm: backend.alloc(mla.kv_lora_rank)?,
            kv_b: KvExpand::Joint(empty(backend)?),
            o: empty_linear(backend)?,
        }),
    };
    let shared = config
        .moe
        .as_ref()
        .is_some_and(|m| m.num_shared_experts > 0);
    let mlp = match config.layer(index).mlp {
        MlpSpec::Dense { .. } => LayerMlp::Dense(empty_mlp(backend)?),
        MlpSpec::Moe => LayerMlp::Moe(MoeWeights {
            router: empty(backend)?,
            correction_bias: None,
            experts: Vec::new(),
            shared: shared.then(|| empty_mlp(backend)).transpose()?,
        }),
    };
    Ok(LayerWeights {
        attention_norm: backend.alloc(config.hidden_size)?,
        attention,
        mlp_norm: backend.alloc(config.hidden_size)?,
        mlp,
    })
}
