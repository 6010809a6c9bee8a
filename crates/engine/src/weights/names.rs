//! What every weight is called in each naming scheme: one table.

/// How a checkpoint names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `model.layers.0.self_attn.q_proj.weight`, one tensor per expert.
    HuggingFace,
    /// `blk.0.attn_q.weight`, experts stacked.
    Gguf,
}

/// Groups of weights that plans and reports speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the groups' own
pub enum Component {
    Embedding,
    Attention,
    DenseMlp,
    RoutedExperts,
    SharedExperts,
    Router,
    Norms,
    Head,
}

impl Component {
    /// Every component, in the order reports list them.
    pub const ALL: [Component; 8] = [
        Component::Embedding,
        Component::Attention,
        Component::DenseMlp,
        Component::RoutedExperts,
        Component::SharedExperts,
        Component::Router,
        Component::Norms,
        Component::Head,
    ];

    /// The name in plans and reports.
    pub fn name(self) -> &'static str {
        match self {
            Component::Embedding => "embedding",
            Component::Attention => "attention",
            Component::DenseMlp => "dense_mlp",
            Component::RoutedExperts => "routed_experts",
            Component::SharedExperts => "shared_experts",
            Component::Router => "router",
            Component::Norms => "norms",
            Component::Head => "head",
        }
    }
}

/// A weight's role in the decoder, whatever a file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the literature's
pub enum Slot {
    Embedding,
    FinalNorm,
    Head,
    AttentionNorm,
    Q,
    QBias,
    QNorm,
    K,
    KBias,
    KNorm,
    V,
    VBias,
    O,
    OBias,
    /// MLA's query bottleneck.
    QA,
    QABias,
    QANorm,
    QB,
    /// MLA's latent and the shared rotary key.
    KvA,
    KvABias,
    KvANorm,
    /// From the latent to each head's key part and value.
    KvB,
    /// The key half of `KvB`, each head transposed (newer GGUF files).
    KB,
    /// The value half of `KvB` (newer GGUF files).
    VB,
    MlpNorm,
    Gate,
    Up,
    Down,
    Router,
    CorrectionBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedGate,
    SharedUp,
    SharedDown,
}

/// A slot, its component, and its name in Hugging Face and in GGUF files. `{L}` stands for the
/// layer, `{E}` for the expert; an expert's name without `{E}` is a stack of all of them.
type Row = (Slot, Component, Option<&'static str>, &'static str);

/// The table. Hugging Face's layer names come after `model.layers.{L}.`, GGUF's after `blk.{L}.`.
#[rustfmt::skip]
const TABLE: [Row; 36] = {
    use Component as C;
    use Slot as S;
    [
        (S::Embedding,      C::Embedding,     Some("model.embed_tokens.weight"),             "token_embd.weight"),
        (S::FinalNorm,      C::Norms,         Some("model.norm.weight"),                     "output_norm.weight"),
        (S::Head,           C::Head,          Some("lm_head.weight"),                        "output.weight"),
        (S::AttentionNorm,  C::Norms,         Some("{L}.input_layernorm.weight"),            "{L}.attn_norm.weight"),
        (S::Q,              C::Attention,     Some("{L}.self_attn.q_proj.weight"),           "{L}.attn_q.weight"),
        (S::QBias,          C::Attention,     Some("{L}.self_attn.q_proj.bias"),             "{L}.attn_q.bias"),
        (S::QNorm,          C::Norms,         Some("{L}.self_attn.q_norm.weight"),           "{L}.attn_q_norm.weight"),
        (S::K,              C::Attention,     Some("{L}.self_attn.k_proj.weight"),           "{L}.attn_k.weight"),
        (S::KBias,          C::Attention,     Some("{L}.self_attn.k_proj.bias"),             "{L}.attn_k.bias"),
        (S::KNorm,          C::Norms,         Some("{L}.self_attn.k_norm.weight"),           "{L}.attn_k_norm.weight"),
        (S::V,              C::Attention,     Some("{L}.self_attn.v_proj.weight"),           "{L}.attn_v.weight"),
        (S::VBias,          C::Attention,     Some("{L}.self_attn.v_proj.bias"),             "{L}.attn_v.bias"),
        (S::O,              C::Attention,     Some("{L}.self_attn.o_proj.weight"),           "{L}.attn_output.weight"),
        (S::OBias,          C::Attention,     Some("{L}.self_attn.o_proj.bias"),             "{L}.attn_output.bias"),
        (S::QA,             C::Attention,     Some("{L}.self_attn.q_a_proj.weight"),         "{L}.attn_q_a.weight"),
        (S::QABias,         C::Attention,     Some("{L}.self_attn.q_a_proj.bias"),           "{L}.attn_q_a.bias"),
        (S::QANorm,         C::Norms,         Some("{L}.self_attn.q_a_layernorm.weight"),    "{L}.attn_q_a_norm.weight"),
        (S::QB,             C::Attention,     Some("{L}.self_attn.q_b_proj.weight"),         "{L}.attn_q_b.weight"),
        (S::KvA,            C::Attention,     Some("{L}.self_attn.kv_a_proj_with_mqa.weight"), "{L}.attn_kv_a_mqa.weight"),
        (S::KvABias,        C::Attention,     Some("{L}.self_attn.kv_a_proj_with_mqa.bias"), "{L}.attn_kv_a_mqa.bias"),
        (S::KvANorm,        C::Norms,         Some("{L}.self_attn.kv_a_layernorm.weight"),   "{L}.attn_kv_a_norm.weight"),
        (S::KvB,            C::Attention,     Some("{L}.self_attn.kv_b_proj.weight"),        "{L}.attn_kv_b.weight"),
        (S::KB,             C::Attention,     None,                                          "{L}.attn_k_b.weight"),
        (S::VB,             C::Attention,     None,                                          "{L}.attn_v_b.weight"),
        (S::MlpNorm,        C::Norms,         Some("{L}.post_attention_layernorm.weight"),   "{L}.ffn_norm.weight"),
        (S::Gate,           C::DenseMlp,      Some("{L}.mlp.gate_proj.weight"),              "{L}.ffn_gate.weight"),
        (S::Up,             C::DenseMlp,      Some("{L}.mlp.up_proj.weight"),                "{L}.ffn_up.weight"),
        (S::Down,           C::DenseMlp,      Some("{L}.mlp.down_proj.weight"),              "{L}.ffn_down.weight"),
        (S::Router,         C::Router,        Some("{L}.mlp.gate.weight"),                   "{L}.ffn_gate_inp.weight"),
        (S::CorrectionBias, C::Router,        Some("{L}.mlp.gate.e_score_correction_bias"),  "{L}.exp_probs_b.bias"),
        (S::ExpertGate,     C::RoutedExperts, Some("{L}.mlp.experts.{E}.gate_proj.weight"),  "{L}.ffn_gate_exps.weight"),
        (S::ExpertUp,       C::RoutedExperts, Some("{L}.mlp.experts.{E}.up_proj.weight"),    "{L}.ffn_up_exps.weight"),
        (S::ExpertDown,     C::RoutedExperts, Some("{L}.mlp.experts.{E}.down_proj.weight"),  "{L}.ffn_down_exps.weight"),
        (S::SharedGate,     C::SharedExperts, Some("{L}.mlp.shared_experts.gate_proj.weight"), "{L}.ffn_gate_shexp.weight"),
        (S::SharedUp,       C::SharedExperts, Some("{L}.mlp.shared_experts.up_proj.weight"), "{L}.ffn_up_shexp.weight"),
        (S::SharedDown,     C::SharedExperts, Some("{L}.mlp.shared_experts.down_proj.weight"), "{L}.ffn_down_shexp.weight"),
    ]
};

impl Scheme {
    /// What precedes the layer's number.
    pub fn layer_prefix(self) -> &'static str {
        match self {
            Scheme::HuggingFace => "model.layers.",
            Scheme::Gguf => "blk.",
        }
    }

    /// Whether experts are stacked into one tensor per layer.
    pub fn stacks_experts(self) -> bool {
        self == Scheme::Gguf
    }

    /// The name of a weight; `None` for one that this scheme never has.
    pub fn name(self, slot: Slot, layer: usize, expert: usize) -> Option<String> {
        let row = &TABLE[slot as usize];
        let template = match self {
            Scheme::HuggingFace => row.2?,
            Scheme::Gguf => row.3,
        };
        let layer = format!("{}{layer}", self.layer_prefix());
        let name = template.replacen("{L}", &layer, 1);
        Some(name.replacen("{E}", &expert.to_string(), 1))
    }

    /// The layer that a tensor's name speaks of.
    pub fn layer_of(self, name: &str) -> Option<usize> {
        let rest = name.strip_prefix(self.layer_prefix())?;
        rest.split('.').next()?.parse().ok()
    }
}

impl Slot {
    /// The group it belongs to.
    pub fn component(self) -> Component {
        TABLE[self as usize].1
    }
}

/// Ends of names that files carry and no decoder reads, with the reason.
pub const IGNORED_SUFFIXES: [(&str, &str); 5] = [
    ("rotary_emb.inv_freq", "worked out from the config"),
    ("attn_rot_embd.weight", "worked out from the config"),
    ("rope_freqs.weight", "read with the config"),
    ("self_attn.k_scale", "scale of an FP8 KV cache"),
    ("self_attn.v_scale", "scale of an FP8 KV cache"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_slots() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i, "{:?}", row.0);
        }
        for (i, component) in Component::ALL.into_iter().enumerate() {
            assert_eq!(component as usize, i);
        }
    }

    #[test]
    fn names_are_filled_in_and_read_back() {
        let hf = Scheme::HuggingFace;
        let name = hf.name(Slot::ExpertUp, 3, 17).unwrap();
        assert_eq!(name, "model.layers.3.mlp.experts.17.up_proj.weight");
        assert_eq!(hf.layer_of(&name), Some(3));
        assert_eq!(hf.name(Slot::KB, 0, 0), None);
        let stack = Scheme::Gguf.name(Slot::ExpertUp, 3, 17).unwrap();
        assert_eq!(stack, "blk.3.ffn_up_exps.weight");
        assert_eq!(Scheme::Gguf.layer_of("output.weight"), None);
    }

    #[test]
    fn no_two_slots_share_a_name() {
        for scheme in [Scheme::HuggingFace, Scheme::Gguf] {
            let names: Vec<String> = TABLE
                .iter()
                .filter_map(|r| scheme.name(r.0, 0, 0))
                .collect();
            let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
        }
    }
}
