//! What tells one family's layers from another's, as a table: no code asks for a model by name.
//!
//! Facts are those of the families' modelling code in transformers (defaults of its config classes
//! included, where releases leave keys out).

use serde_json::{Map, Value, json};

/// When a projection has a bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bias {
    Never,
    Always,
    /// When this key says so; absent is the second value.
    Key(&'static str, bool),
}

/// Norms of queries and keys inside the attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum QkNorm {
    None,
    /// One weight for each value of a head.
    PerHead,
    /// One weight for each value of all heads together (OLMo 2).
    Whole,
    /// Per head when this key says so.
    Key(&'static str),
    /// A weight for each head and value, when this key says so (Command R+).
    WholeKey(&'static str),
}

/// Which attention layers see only a window, where the config has no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Windows {
    /// None, whatever `sliding_window` says.
    None,
    /// All, when `sliding_window` is a number.
    All,
    /// All from `max_window_layers` on, when `use_sliding_window` is true (Qwen 2 and 3).
    Opted,
    /// All but every n-th; the key that may say another n.
    AllBut(u32, &'static str),
}

/// Where the experts' shared part gets its width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shared {
    None,
    /// `n_shared_experts` times the width of a routed expert.
    Count,
    /// `shared_expert_intermediate_size`, with a gate of one row.
    Gated,
    /// One as wide as a routed expert.
    Same,
}

/// How a family's layers are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// `model_type`s.
    pub types: &'static [&'static str],
    /// Latent attention.
    pub latent: bool,
    /// Bias of query, key and value projections.
    pub qkv_bias: Bias,
    /// Bias of the output projection.
    pub o_bias: Bias,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Full attention has an output gate, as wide as the queries.
    pub gated_attention: bool,
    /// One learned logit a head (gpt-oss).
    pub sinks: bool,
    /// Norms of a layer, in the width of the residual stream.
    pub norms: u64,
    /// Norms have biases.
    pub norm_bias: bool,
    /// Two matrices up and one down, not one up and one down.
    pub gated_mlp: bool,
    /// Bias of the feed-forward.
    pub mlp_bias: Bias,
    /// Experts have biases, and so has the router (gpt-oss).
    pub expert_bias: bool,
    /// Width of a routed expert.
    pub expert_width: &'static str,
    /// Width of a dense feed-forward.
    pub dense_width: &'static str,
    /// Shared experts.
    pub shared: Shared,
    /// The router has a correction bias for each expert.
    pub correction_bias: bool,
    /// Learned positions: this many rows more than the longest sequence (OPT).
    pub positions: Option<u64>,
    /// Bias of the head (phi-2).
    pub head_bias: bool,
    /// `tie_word_embeddings` where the config does not say.
    pub tied: bool,
    /// Windows of layers.
    pub windows: Windows,
    /// Tokens in a window (or a chunk, which holds as many at most).
    pub window: &'static str,
    /// Keys that releases leave to the config class.
    pub defaults: &'static [(&'static str, i64)],
    /// Multi-token-prediction layers that releases hold.
    pub mtp: Mtp,
}

/// Multi-token prediction in a release. `mtp_use_dedicated_embeddings` in a config (Qwen3.5's have
/// it) says otherwise where a release differs from its family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mtp {
    None,
    /// `num_nextn_predict_layers`, each with its own copy of embedding and head (DeepSeek-V3, GLM).
    NextN,
    /// `num_nextn_predict_layers`, sharing embedding and head (GLM-5).
    NextNSharing,
    /// One layer under `mtp.`, sharing embedding and head (Qwen3-Next, Qwen3.5).
    Sharing,
}

const LLAMA: Family = Family {
    types: &["llama", "codellama", "smollm"],
    latent: false,
    qkv_bias: Bias::Key("attention_bias", false),
    o_bias: Bias::Key("attention_bias", false),
    qk_norm: QkNorm::None,
    gated_attention: false,
    sinks: false,
    norms: 2,
    norm_bias: false,
    gated_mlp: true,
    mlp_bias: Bias::Key("mlp_bias", false),
    expert_bias: false,
    expert_width: "moe_intermediate_size",
    dense_width: "intermediate_size",
    shared: Shared::None,
    correction_bias: false,
    positions: None,
    head_bias: false,
    tied: false,
    windows: Windows::None,
    window: "sliding_window",
    defaults: &[],
    mtp: Mtp::None,
};

/// Qwen 3: biases by key in front only, norms of heads.
const QWEN3: Family = Family {
    types: &["qwen3", "qwen3_vl", "qwen3_vl_text"],
    qk_norm: QkNorm::PerHead,
    mlp_bias: Bias::Never,
    windows: Windows::Opted,
    defaults: &[("head_dim", 128)],
    ..LLAMA
};

const QWEN2: Family = Family {
    types: &[
        "qwen2",
        "qwen2_vl",
        "qwen2_vl_text",
        "qwen2_5_vl",
        "qwen2_5_vl_text",
    ],
    qkv_bias: Bias::Always,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::Opted,
    ..LLAMA
};

const DEEPSEEK: Family = Family {
    types: &[
        "deepseek_v3",
        "kimi_k2",
        "kimi_k25",
        "kimi_vl",
        "deepseek_v32",
        "glm4_moe_lite",
    ],
    latent: true,
    mlp_bias: Bias::Never,
    shared: Shared::Count,
    correction_bias: true,
    mtp: Mtp::NextN,
    ..LLAMA
};

const QWEN3_NEXT: Family = Family {
    types: &["qwen3_next"],
    gated_attention: true,
    shared: Shared::Gated,
    defaults: &[("head_dim", 256), ("full_attention_interval", 4)],
    mtp: Mtp::Sharing,
    ..QWEN3
};

const GEMMA2: Family = Family {
    types: &["gemma2"],
    norms: 4,
    mlp_bias: Bias::Never,
    tied: true,
    windows: Windows::AllBut(2, "sliding_window_pattern"),
    defaults: &[("head_dim", 256)],
    ..LLAMA
};

/// Every family, the first being what a config without any hint is read as for its caches.
const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        types: &["mistral", "mistral3", "ministral", "ministral3"],
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All,
        ..LLAMA
    },
    QWEN2,
    QWEN3,
    Family {
        types: &["qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text"],
        ..QWEN3
    },
    Family {
        types: &["qwen2_moe"],
        shared: Shared::Gated,
        ..QWEN2
    },
    Family {
        types: &["deepseek_v2"],
        correction_bias: false,
        mtp: Mtp::None,
        ..DEEPSEEK
    },
    DEEPSEEK,
    Family {
        types: &["glm_moe_dsa"],
        defaults: &[("index_head_dim", 128), ("index_n_heads", 32)],
        mtp: Mtp::NextNSharing,
        ..DEEPSEEK
    },
    QWEN3_NEXT,
    Family {
        types: &["qwen3_5", "qwen3_5_text"],
        shared: Shared::None,
        ..QWEN3_NEXT
    },
    Family {
        types: &["qwen3_5_moe", "qwen3_5_moe_text"],
        ..QWEN3_NEXT
    },
    Family {
        types: &["gpt_oss"],
        qkv_bias: Bias::Key("attention_bias", true),
        o_bias: Bias::Key("attention_bias", true),
        sinks: true,
        mlp_bias: Bias::Never,
        expert_bias: true,
        expert_width: "intermediate_size",
        windows: Windows::AllBut(2, "sliding_window_pattern"),
        defaults: &[("head_dim", 64), ("sliding_window", 128)],
        ..LLAMA
    },
    Family {
        types: &["gemma"],
        mlp_bias: Bias::Never,
        tied: true,
        defaults: &[("head_dim", 256)],
        ..LLAMA
    },
    GEMMA2,
    Family {
        types: &["gemma3", "gemma3_text"],
        qk_norm: QkNorm::PerHead,
        windows: Windows::AllBut(6, "sliding_window_pattern"),
        defaults: &[
            ("head_dim", 256),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("vocab_size", 262_208),
            ("sliding_window", 4096),
        ],
        ..GEMMA2
    },
    Family {
        types: &["glm4"],
        o_bias: Bias::Never,
        norms: 4,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        types: &["glm"],
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        types: &["glm4_moe"],
        o_bias: Bias::Never,
        qk_norm: QkNorm::Key("use_qk_norm"),
        mlp_bias: Bias::Never,
        shared: Shared::Count,
        correction_bias: true,
        mtp: Mtp::NextN,
        ..LLAMA
    },
    Family {
        types: &["llama4", "llama4_text"],
        o_bias: Bias::Key("attention_bias", false),
        mlp_bias: Bias::Never,
        expert_width: "intermediate_size",
        dense_width: "intermediate_size_mlp",
        shared: Shared::Same,
        windows: Windows::AllBut(4, "no_rope_layer_interval"),
        window: "attention_chunk_size",
        ..LLAMA
    },
    Family {
        types: &["mixtral"],
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        expert_width: "intermediate_size",
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        types: &["phi"],
        qkv_bias: Bias::Always,
        o_bias: Bias::Always,
        norms: 1,
        norm_bias: true,
        gated_mlp: false,
        mlp_bias: Bias::Always,
        head_bias: true,
        ..LLAMA
    },
    Family {
        types: &["opt"],
        qkv_bias: Bias::Always,
        o_bias: Bias::Always,
        norm_bias: true,
        gated_mlp: false,
        mlp_bias: Bias::Always,
        dense_width: "ffn_dim",
        positions: Some(2),
        tied: true,
        ..LLAMA
    },
    Family {
        types: &["phi3"],
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        types: &["granite"],
        ..LLAMA
    },
    Family {
        types: &["olmo2"],
        qk_norm: QkNorm::Whole,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        types: &["olmo3"],
        qk_norm: QkNorm::Whole,
        mlp_bias: Bias::Never,
        windows: Windows::AllBut(4, "sliding_window_pattern"),
        ..LLAMA
    },
    Family {
        types: &["cohere"],
        qk_norm: QkNorm::WholeKey("use_qk_norm"),
        norms: 1,
        mlp_bias: Bias::Never,
        tied: true,
        ..LLAMA
    },
    Family {
        types: &["cohere2"],
        norms: 1,
        mlp_bias: Bias::Never,
        tied: true,
        windows: Windows::AllBut(4, "sliding_window_pattern"),
        ..LLAMA
    },
];

/// The family of a `model_type`.
pub(super) fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.types.contains(&model_type))
}

/// All `model_type`s, for messages.
pub(super) fn known() -> String {
    let types: Vec<&str> = FAMILIES
        .iter()
        .flat_map(|f| f.types.iter().copied())
        .collect();
    types.join(", ")
}

/// The family whose classes `architectures` name: `Qwen3MoeForCausalLM` is `qwen3_moe`.
pub(super) fn of_class(class: &str) -> Option<&'static str> {
    let stem = class.split("For").next()?.to_ascii_lowercase();
    FAMILIES
        .iter()
        .flat_map(|f| f.types.iter().copied())
        .find(|name| name.replace('_', "") == stem)
}

/// Lays the family's defaults under what the config says.
pub(super) fn with_defaults(family: &Family, config: &Map<String, Value>) -> Map<String, Value> {
    let mut full = config.clone();
    for &(key, value) in family.defaults {
        full.entry(key).or_insert_with(|| json!(value));
    }
    full
}

impl Bias {
    /// Reads it from the config.
    pub(super) fn read(
        self,
        fields: &scrimp_model::fields::Fields<'_>,
    ) -> Result<bool, scrimp_model::ConfigError> {
        match self {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::Key(key, default) => fields.flag(key, default),
        }
    }
}
