//! All tensors of a model: embedding, layers, head, prediction layers, vision tower.

use scrimp_model::ConfigError;
use scrimp_model::fields::{MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};

use super::attention::{add_heads, add_latent, indexed_layers};
use super::builder::{Builder, Matrix};
use super::caches::{Kind, layer_kinds};
use super::config::Source;
use super::experts::{ExpertLayers, Experts, add_dense};
use super::families::Mtp;
use super::linear_attention::DeltaNet;
use super::release::Release;
use super::{Component, Split, TensorGroup, vision};

/// Every tensor that the release of this config holds.
pub(super) fn tensors(source: &Source, release: &Release) -> Result<Vec<TensorGroup>, ConfigError> {
    let layers = Layers::read(source)?;
    let fields = source.fields();
    let (family, hidden) = (source.family, layers.hidden);
    let vocab = fields.required("vocab_size", MAX_VOCAB)? as u64;
    let mut builder = Builder::new(release, source.dtype()?);
    builder.leave_layers("");
    builder.table(Component::Embedding, "model.embed_tokens", vocab, hidden);
    if let Some(more) = family.positions {
        let longest = fields.required("max_position_embeddings", MAX_CONTEXT)? as u64;
        builder.table(
            Component::Embedding,
            "model.embed_positions",
            longest + more,
            hidden,
        );
    }
    for (index, kind) in layers.kinds.iter().enumerate() {
        builder.enter_layer(index as u32);
        layers.add(&mut builder, *kind, index as u64)?;
    }
    builder.leave_layers("");
    add_norm(&mut builder, "model.norm", hidden, family.norm_bias);
    if !fields.flag("tie_word_embeddings", family.tied)? {
        builder.linear(head(vocab, hidden));
    }
    if family.head_bias {
        builder.vector(Component::Head, "lm_head.bias", vocab, Split::Vocab);
    }
    layers.add_prediction(&mut builder, vocab)?;
    vision::add(&mut builder, source, hidden)?;
    Ok(builder.finish())
}

fn head(vocab: u64, hidden: u64) -> Matrix {
    Matrix {
        component: Component::Head,
        path: "lm_head",
        rows: vocab,
        columns: hidden,
        split: Split::Vocab,
    }
}

fn add_norm(builder: &mut Builder<'_>, path: &'static str, width: u64, bias: bool) {
    builder.vector(Component::Norms, path, width, Split::Replicated);
    if bias {
        builder.vector(Component::Norms, "norm.bias", width, Split::Replicated);
    }
}

/// What the layers have in common.
struct Layers<'a> {
    source: &'a Source,
    hidden: u64,
    kinds: Vec<Kind>,
    delta_net: Option<DeltaNet>,
    experts: Option<Experts>,
    expert_layers: ExpertLayers,
    /// Layers with an indexer of their own, where latent attention has any.
    indexed: Vec<bool>,
}

impl<'a> Layers<'a> {
    fn read(source: &'a Source) -> Result<Self, ConfigError> {
        let fields = source.fields();
        let count = fields.required("num_hidden_layers", MAX_LAYERS)?;
        // Latent layers are all alike, whatever `layer_types` calls them.
        let kinds = match source.latent() {
            true => vec![Kind::Full; count],
            false => layer_kinds(source.family, &source.config, &fields, count)?,
        };
        let delta_net = match kinds.contains(&Kind::Linear) {
            true => Some(DeltaNet::read(&fields)?),
            false => None,
        };
        Ok(Layers {
            source,
            hidden: fields.required("hidden_size", MAX_WIDTH)? as u64,
            kinds,
            delta_net,
            experts: Experts::read(source.family, &fields)?,
            expert_layers: ExpertLayers::read(&source.config, &fields, count)?,
            indexed: indexed_layers(&source.config, &fields, count)?,
        })
    }

    /// Mixer, feed-forward and norms of one layer.
    fn add(&self, builder: &mut Builder<'_>, kind: Kind, index: u64) -> Result<(), ConfigError> {
        let family = self.source.family;
        let fields = self.source.fields();
        match (kind, &self.delta_net) {
            (Kind::Linear, Some(net)) => net.add(builder, self.hidden),
            _ if self.source.latent() => {
                let indexed = self.indexed.get(index as usize).copied().unwrap_or(true);
                add_latent(builder, &fields, self.hidden, indexed)?;
            }
            _ => add_heads(builder, family, &fields, self.hidden)?,
        }
        match &self.experts {
            Some(experts) if self.expert_layers.has(index, family.latent) => {
                experts.add(builder, family, self.hidden);
            }
            _ => add_dense(builder, family, &fields, self.hidden)?,
        }
        const NORMS: [&str; 4] = [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ];
        for path in NORMS.into_iter().take(family.norms as usize) {
            add_norm(builder, path, self.hidden, family.norm_bias);
        }
        Ok(())
    }

    /// Multi-token-prediction layers: a joining projection, norms and one more layer each.
    fn add_prediction(&self, builder: &mut Builder<'_>, vocab: u64) -> Result<(), ConfigError> {
        let fields = self.source.fields();
        let hidden = self.hidden;
        let mtp = self.source.family.mtp;
        let (key, default) = match mtp {
            Mtp::None => return Ok(()),
            Mtp::NextN | Mtp::NextNSharing => ("num_nextn_predict_layers", 0),
            Mtp::Sharing => ("mtp_num_hidden_layers", 1),
        };
        let count = fields.count(key, 0, 16)?.unwrap_or(default);
        let own_tables = fields.flag("mtp_use_dedicated_embeddings", mtp == Mtp::NextN)?;
        let first = self.kinds.len() as u64;
        for index in first..first + count as u64 {
            builder.enter_part(Component::Mtp, &format!("model.layers.{index}."));
            builder.kept(Matrix {
                component: Component::Mtp,
                path: "eh_proj",
                rows: hidden,
                columns: 2 * hidden,
                split: Split::Replicated,
            });
            for path in ["enorm", "hnorm", "shared_head.norm"] {
                builder.vector(Component::Mtp, path, hidden, Split::Replicated);
            }
            if own_tables {
                builder.table(Component::Mtp, "embed_tokens", vocab, hidden);
                builder.kept(Matrix {
                    path: "shared_head.head",
                    ..head(vocab, hidden)
                });
            }
            self.add(builder, Kind::Full, index)?;
        }
        Ok(())
    }
}
