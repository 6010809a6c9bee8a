//! A plan as people and scripts read it: one JSON object, one screen, one HTML page.

mod format;
mod html;
mod json;
mod text;

pub use format::bytes;

use crate::placement::Placement;
use crate::remedy::{Advice, Evaluated};
use crate::{Component, EngineKind, KvDtype, LayerCache, ModelShape, RankPlan, Storage};

/// Everything that is reported.
pub struct Report<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Its inventory.
    pub shape: &'a ModelShape,
    /// The plan.
    pub plan: &'a Evaluated,
    /// What can be done about it.
    pub advice: &'a Advice,
    /// Where layers live.
    pub placement: &'a Placement,
    /// The command that runs it, where there is one.
    pub command: Option<String>,
}

/// A line of a device's memory.
struct Use {
    name: &'static str,
    bytes: u64,
}

impl Report<'_> {
    /// How KV values are stored.
    fn kv_dtype(&self) -> KvDtype {
        let deployment = &self.plan.setup.deployment;
        deployment
            .kv_dtype
            .unwrap_or(match (deployment.engine.kind, self.shape.dtype) {
                (_, Storage::F32) => KvDtype::F32,
                (EngineKind::LlamaCpp | EngineKind::Scrimp, _) | (_, Storage::F16) => KvDtype::F16,
                _ => KvDtype::Bf16,
            })
    }

    /// Bytes that a token leaves in the caches of all layers, before an engine's padding.
    fn kv_bytes_per_token(&self) -> u64 {
        self.shape.kv_bytes_per_token(self.kv_dtype())
    }

    /// Why a token takes that many bytes: `61 × latent of 512 + 64, bf16`.
    fn kv_reason(&self) -> String {
        let mut kinds: Vec<(LayerCache, usize)> = Vec::new();
        for cache in &self.shape.caches {
            match kinds.iter_mut().find(|(kind, _)| kind == cache) {
                Some((_, count)) => *count += 1,
                None => kinds.push((*cache, 1)),
            }
        }
        let kinds = kinds
            .iter()
            .map(|(kind, count)| format!("{count} × {}", cache_name(kind)));
        format!(
            "{}; {}",
            kinds.collect::<Vec<_>>().join(", "),
            self.kv_dtype().name()
        )
    }

    /// Parameters and bytes under the plan's weight scheme, by component.
    fn components(&self) -> Vec<(Component, u64, u64)> {
        let bytes = self.shape.bytes_under(&self.plan.setup.deployment.weights);
        let mut components: Vec<(Component, u64, u64)> = Vec::new();
        for (group, bytes) in self.shape.tensors.iter().zip(bytes) {
            match components
                .iter_mut()
                .find(|(c, _, _)| *c == group.component)
            {
                Some((_, values, all)) => {
                    *values += group.values();
                    *all += bytes.total();
                }
                None => components.push((group.component, group.values(), bytes.total())),
            }
        }
        components.sort_by_key(|(component, _, _)| *component);
        components
    }

    /// The rank with the least room for KV.
    fn tightest(&self) -> Option<&RankPlan> {
        let ranks = self.plan.prediction.ranks.iter();
        ranks.min_by_key(|rank| (rank.kv_pool_bytes, rank.budget_bytes))
    }

    /// Devices that are alike with each listed rank.
    fn alike(&self) -> u64 {
        let p = &self.plan.setup.deployment.parallel;
        u64::from(p.tp.max(1)) * u64::from(p.dp.max(1))
    }

    /// What takes a rank's memory, besides its KV pool.
    fn uses(rank: &RankPlan) -> [Use; 4] {
        [
            Use {
                name: "weights",
                bytes: rank.weights_bytes(),
            },
            Use {
                name: "activations",
                bytes: rank.activation_peak_bytes,
            },
            Use {
                name: "CUDA graphs",
                bytes: rank.cuda_graph_bytes,
            },
            Use {
                name: "overhead",
                bytes: rank.overhead_bytes,
            },
        ]
    }

    /// `8 × H200`.
    fn machine(&self) -> String {
        let deployment = &self.plan.setup.deployment;
        match deployment.device_count {
            1 => deployment.device.name.clone(),
            n => format!("{n} × {}", deployment.device.name),
        }
    }
}

/// A component's name in reports.
pub fn component_name(component: Component) -> &'static str {
    match component {
        Component::Embedding => "embedding",
        Component::Attention => "attention",
        Component::DenseMlp => "dense_mlp",
        Component::RoutedExperts => "routed_experts",
        Component::SharedExperts => "shared_experts",
        Component::Router => "router",
        Component::Norms => "norms",
        Component::Head => "head",
        Component::Mtp => "mtp",
        Component::Vision => "vision",
    }
}

fn cache_name(cache: &LayerCache) -> String {
    match *cache {
        LayerCache::Full { heads, key, value } => format!("{heads} heads of {key} + {value}"),
        LayerCache::Sliding {
            heads,
            key,
            value,
            window,
        } => format!("{heads} heads of {key} + {value} for {window} tokens"),
        LayerCache::Latent { rank, rope } => format!("a latent of {rank} + {rope}"),
        LayerCache::IndexedLatent { rank, rope, index } => {
            format!("a latent of {rank} + {rope} and an index key of {index}")
        }
        LayerCache::State { conv, recurrent } => {
            format!("a state of {} values a sequence", conv + recurrent)
        }
        LayerCache::None => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests;
