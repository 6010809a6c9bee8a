//! A layer's attention half: projections, rotation, cache, attention, output projection.

use scrimp_backend::{Backend, Expand, HeadRows, Input, Norm, Projection, Segments};
use scrimp_model::{AttentionConfig, GqaConfig, MlaConfig};

use crate::decoder::Step;
use crate::decoder::scratch::Scratch;
use crate::recorder::Part as Cost;
use crate::weights::tree::{
    AttentionWeights, GqaWeights, KvExpand, LayerWeights, Linear, MlaQuery, MlaWeights,
};

/// Epsilon of the norms inside latent attention: transformers keeps its norm's default there,
/// whatever the config says for the others.
pub(super) const LATENT_NORM_EPS: f32 = 1e-6;

/// Adds the layer's attention to the residual stream in `scratch.hidden`.
pub(super) fn run<B: Backend>(
    backend: &mut B,
    step: &Step<'_>,
    index: usize,
    layer: &LayerWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
    cache: &mut B::KvCache,
) {
    attend(backend, step, index, layer, scratch, cache);
    output(backend, step.rows, layer, scratch);
    step.mark(Cost::Linear);
}

/// What the output projection reads, from `scratch.hidden` to `scratch.attended`.
pub(super) fn attend<B: Backend>(
    backend: &mut B,
    step: &Step<'_>,
    index: usize,
    layer: &LayerWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
    cache: &mut B::KvCache,
) {
    let norm = Norm {
        weight: &layer.attention_norm,
        dim: step.config.hidden_size,
        eps: step.config.rms_norm_eps,
    };
    let part = Part { step, index, norm };
    match (&layer.attention, &step.config.attention) {
        (AttentionWeights::Gqa(weights), AttentionConfig::Gqa(gqa)) => {
            part.gqa(backend, gqa, weights, scratch, cache);
        }
        (AttentionWeights::Mla(weights), AttentionConfig::Mla(mla)) => {
            part.mla(backend, mla, weights, scratch, cache);
        }
        _ => unreachable!("weights are assembled by the same config"),
    }
}

/// Adds the projection of what was attended to to the residual stream.
pub(super) fn output<B: Backend>(
    backend: &mut B,
    rows: usize,
    layer: &LayerWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
) {
    let o = match &layer.attention {
        AttentionWeights::Gqa(weights) => &weights.o,
        AttentionWeights::Mla(weights) => &weights.o,
    };
    let input = Input {
        x: &scratch.attended,
        rows,
        norm: None,
        fine: false,
    };
    let residual = Projection {
        accumulate: true,
        ..project(o, &mut scratch.hidden)
    };
    backend.linear(input, &mut [residual]);
}

fn project<'a, B: Backend>(linear: &'a Linear<B>, out: &'a mut B::Buffer) -> Projection<'a, B> {
    Projection {
        weight: &linear.weight,
        bias: linear.bias.as_ref(),
        out,
        accumulate: false,
    }
}

/// One layer's attention in one step.
struct Part<'a, B: Backend> {
    step: &'a Step<'a>,
    index: usize,
    norm: Norm<'a, B>,
}

impl<B: Backend> Part<'_, B> {
    fn gqa(
        &self,
        backend: &mut B,
        gqa: &GqaConfig,
        weights: &GqaWeights<B>,
        scratch: &mut Scratch<B::Buffer>,
        cache: &mut B::KvCache,
    ) {
        let rows = self.step.rows;
        let input = Input {
            x: &scratch.hidden,
            rows,
            norm: Some(self.norm),
            fine: false,
        };
        let mut projections = [
            project(&weights.q, &mut scratch.q),
            project(&weights.k, &mut scratch.k),
            project(&weights.v, &mut scratch.v),
        ];
        backend.linear(input, &mut projections);
        self.step.mark(Cost::Linear);
        let q_heads = Segments::dense(gqa.num_heads, gqa.head_dim);
        let k_heads = Segments::dense(gqa.num_kv_heads, gqa.head_dim);
        if let Some((q_norm, k_norm)) = &weights.qk_norm {
            let norm = |weight| Norm {
                weight,
                dim: gqa.head_dim,
                eps: self.step.config.rms_norm_eps,
            };
            backend.norm_segments(&mut scratch.q, rows, q_heads, norm(q_norm));
            backend.norm_segments(&mut scratch.k, rows, k_heads, norm(k_norm));
        }
        let rotated = self.step.config.rope.dim;
        self.rotate(backend, &mut scratch.q, q_heads.part(0, rotated));
        self.rotate(backend, &mut scratch.k, k_heads.part(0, rotated));
        self.step.mark(Cost::Other);
        let slots = &self.step.batch.slot_mapping;
        let values = Some(&scratch.v);
        backend.store_kv(cache, self.index, &scratch.k, values, slots);
        let scale = (gqa.head_dim as f32).sqrt().recip();
        backend.attention(
            &scratch.q,
            gqa.num_heads,
            cache,
            self.index,
            &self.step.batch.attention(),
            scale,
            &mut scratch.attended,
        );
        self.step.mark(Cost::Attention);
    }

    /// Latent attention: queries are carried into the space of the latent (absorbed), so that the
    /// cache is read as it is, and what comes out is carried on to the values. Where the backend
    /// asks for it, a long prompt's keys and values are expanded instead.
    fn mla(
        &self,
        backend: &mut B,
        mla: &MlaConfig,
        weights: &MlaWeights<B>,
        scratch: &mut Scratch<B::Buffer>,
        cache: &mut B::KvCache,
    ) {
        let rows = self.step.rows;
        let (latent, rope) = (mla.kv_lora_rank, mla.qk_rope_head_dim);
        self.mla_projections(backend, mla, weights, scratch);
        self.step.mark(Cost::Linear);

        let key = Segments::dense(1, latent + rope);
        let norm = Norm {
            weight: &weights.kv_a_norm,
            dim: latent,
            eps: LATENT_NORM_EPS,
        };
        backend.norm_segments(&mut scratch.k, rows, key.part(0, latent), norm);
        self.rotate(backend, &mut scratch.k, key.part(latent, rope));
        let slots = &self.step.batch.slot_mapping;
        self.step.mark(Cost::Other);
        backend.store_kv(cache, self.index, &scratch.k, None, slots);
        self.step.mark(Cost::Attention);

        let width = mla.qk_nope_head_dim + rope;
        let scale = (width as f32).sqrt().recip() * self.step.config.rope.softmax_scale();
        let batch = self.step.batch.attention();
        if let KvExpand::Joint(kv_b) = &weights.kv_b
            && batch.num_seqs() == 1
            && backend.expands_latents(rows)
        {
            self.expanded(backend, mla, kv_b, scale, scratch, cache);
            self.step.mark(Cost::Attention);
            return;
        }
        self.absorb(backend, mla, &weights.kv_b, scratch);
        self.step.mark(Cost::Linear);
        backend.attention(
            &scratch.q_latent,
            mla.num_heads,
            cache,
            self.index,
            &batch,
            scale,
            &mut scratch.latent,
        );
        self.step.mark(Cost::Attention);
        self.expand(backend, mla, &weights.kv_b, scratch);
    }

    /// The plain form: queries as they are, against the keys and values of every head.
    fn expanded(
        &self,
        backend: &mut B,
        mla: &MlaConfig,
        kv_b: &B::Matrix,
        scale: f32,
        scratch: &mut Scratch<B::Buffer>,
        cache: &B::KvCache,
    ) {
        let (nope, rope) = (mla.qk_nope_head_dim, mla.qk_rope_head_dim);
        let queries = Segments::dense(mla.num_heads, nope + rope);
        self.rotate(backend, &mut scratch.q, queries.part(nope, rope));
        let stride = nope + mla.v_head_dim;
        let rows = |offset, count| HeadRows {
            offset,
            stride,
            count,
            transposed: false,
        };
        let expand = Expand {
            weight: kv_b,
            keys: rows(0, nope),
            values: rows(nope, mla.v_head_dim),
        };
        let batch = self.step.batch.attention();
        let (q, out) = (&scratch.q, &mut scratch.attended);
        let heads = mla.num_heads;
        backend.expanded_attention(q, heads, cache, self.index, &batch, expand, scale, out);
    }

    /// Queries to `q`, the latent with its rotary key to `k`.
    fn mla_projections(
        &self,
        backend: &mut B,
        mla: &MlaConfig,
        weights: &MlaWeights<B>,
        scratch: &mut Scratch<B::Buffer>,
    ) {
        let rows = self.step.rows;
        let input = Input {
            x: &scratch.hidden,
            rows,
            norm: Some(self.norm),
            fine: false,
        };
        let kv_a = project(&weights.kv_a, &mut scratch.k);
        match &weights.q {
            MlaQuery::Direct(q) => {
                backend.linear(input, &mut [project(q, &mut scratch.q), kv_a]);
            }
            MlaQuery::LowRank { a, norm, b } => {
                backend.linear(input, &mut [project(a, &mut scratch.q_low), kv_a]);
                let input = Input {
                    x: &scratch.q_low,
                    rows,
                    norm: Some(Norm {
                        weight: norm,
                        dim: mla.q_lora_rank.unwrap_or(0),
                        eps: LATENT_NORM_EPS,
                    }),
                    fine: false,
                };
                let b = Projection {
                    weight: b,
                    bias: None,
                    out: &mut scratch.q,
                    accumulate: false,
                };
                backend.linear(input, &mut [b]);
            }
        }
    }

    /// `q_latent[h] = (key matrix of h)ᵀ · q[h]`, with the rotated part behind it.
    fn absorb(
        &self,
        backend: &mut B,
        mla: &MlaConfig,
        kv_b: &KvExpand<B>,
        scratch: &mut Scratch<B::Buffer>,
    ) {
        let rows = self.step.rows;
        let (latent, nope, rope) = (mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim);
        let from = Segments::dense(mla.num_heads, nope + rope);
        let to = Segments::dense(mla.num_heads, latent + rope);
        let (weight, heads) = match kv_b {
            KvExpand::Joint(kv_b) => (
                kv_b,
                HeadRows {
                    offset: 0,
                    stride: nope + mla.v_head_dim,
                    count: nope,
                    transposed: true,
                },
            ),
            KvExpand::Split { key, .. } => (
                key,
                HeadRows {
                    offset: 0,
                    stride: latent,
                    count: latent,
                    transposed: false,
                },
            ),
        };
        let (nope_part, latent_part) = (from.part(0, nope), to.part(0, latent));
        let q_latent = &mut scratch.q_latent;
        backend.head_linear(
            &scratch.q,
            rows,
            nope_part,
            weight,
            heads,
            q_latent,
            latent_part,
        );
        let rotary = to.part(latent, rope);
        backend.copy_segments(&scratch.q, rows, from.part(nope, rope), q_latent, rotary);
        self.rotate(backend, q_latent, rotary);
    }

    /// `attended[h] = (value matrix of h) · latent[h]`.
    fn expand(
        &self,
        backend: &mut B,
        mla: &MlaConfig,
        kv_b: &KvExpand<B>,
        scratch: &mut Scratch<B::Buffer>,
    ) {
        let value = mla.v_head_dim;
        let (weight, offset, stride) = match kv_b {
            KvExpand::Joint(kv_b) => (kv_b, mla.qk_nope_head_dim, mla.qk_nope_head_dim + value),
            KvExpand::Split { value: v_b, .. } => (v_b, 0, value),
        };
        let heads = HeadRows {
            offset,
            stride,
            count: value,
            transposed: false,
        };
        backend.head_linear(
            &scratch.latent,
            self.step.rows,
            Segments::dense(mla.num_heads, mla.kv_lora_rank),
            weight,
            heads,
            &mut scratch.attended,
            Segments::dense(mla.num_heads, value),
        );
    }

    fn rotate(&self, backend: &mut B, x: &mut B::Buffer, segments: Segments) {
        let interleaved = self.step.config.rope.interleaved;
        backend.rope(x, self.step.rows, segments, self.step.cos_sin, interleaved);
    }
}
