//! Experts and routing from a `config.json`.

use serde_json::Value;

use crate::fields::{Fields, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, shortened};
use crate::{
    Architecture, ConfigError, GroupScore, MoeConfig, MoeLayerFreq, RouterConfig, Scoring,
};

/// The experts of a family that has them.
pub(crate) fn moe(
    fields: &Fields,
    config: &Value,
    architecture: Architecture,
) -> Result<Option<MoeConfig>, ConfigError> {
    match architecture {
        Architecture::Qwen3Moe => qwen3_moe(fields, config).map(Some),
        Architecture::DeepseekV2 | Architecture::DeepseekV3 => deepseek_moe(fields, architecture),
        _ => Ok(None),
    }
}

fn qwen3_moe(fields: &Fields, config: &Value) -> Result<MoeConfig, ConfigError> {
    // transformers stores the same number under either name.
    let experts_key = match fields.has("num_experts") {
        false if fields.has("num_local_experts") => "num_local_experts",
        _ => "num_experts",
    };
    Ok(MoeConfig {
        num_experts: fields.extent(experts_key, 128, MAX_EXPERTS)?,
        moe_intermediate_size: fields.extent("moe_intermediate_size", 768, MAX_WIDTH)?,
        num_shared_experts: 0,
        first_k_dense_replace: 0,
        moe_layer_freq: MoeLayerFreq::SparseStep(fields.extent(
            "decoder_sparse_step",
            1,
            MAX_LAYERS,
        )?),
        mlp_only_layers: layer_list(config, "mlp_only_layers")?,
        router: RouterConfig {
            top_k: fields.extent("num_experts_per_tok", 8, MAX_EXPERTS)?,
            scoring: Scoring::Softmax,
            n_group: 1,
            topk_group: 1,
            group_score: GroupScore::Max,
            norm_topk_prob: fields.flag("norm_topk_prob", false)?,
            routed_scaling_factor: 1.0,
            correction_bias: false,
        },
    })
}

fn deepseek_moe(
    fields: &Fields,
    architecture: Architecture,
) -> Result<Option<MoeConfig>, ConfigError> {
    let v3 = architecture == Architecture::DeepseekV3;
    if fields.has("n_routed_experts") && fields.count("n_routed_experts", 1, MAX_EXPERTS)?.is_none()
    {
        return Ok(None);
    }
    let (scoring, method) = if v3 {
        ("sigmoid", "noaux_tc")
    } else {
        ("softmax", "greedy")
    };
    if fields.text("scoring_func")?.is_some_and(|s| s != scoring) {
        return Err(fields.unsupported(
            "scoring_func",
            format!("this family scores by \"{scoring}\""),
        ));
    }
    let method = fields.text("topk_method")?.unwrap_or(method.to_owned());
    let grouped = match (v3, method.as_str()) {
        (true, "noaux_tc") | (false, "group_limited_greedy") => true,
        (false, "greedy") => false,
        _ => return Err(fields.unsupported(
            "topk_method",
            "implemented are \"noaux_tc\" for DeepSeek-V3, \"greedy\" and \"group_limited_greedy\" for V2",
        )),
    };
    let groups = |key, default| match fields.has(key) {
        _ if !grouped => Ok(1),
        true => Ok(fields.count(key, 1, MAX_EXPERTS)?.unwrap_or(1)),
        false => Ok(if v3 { default } else { 1 }),
    };
    let top_k = match v3 {
        true => fields.extent("num_experts_per_tok", 8, MAX_EXPERTS)?,
        false => fields.required("num_experts_per_tok", MAX_EXPERTS)?,
    };
    let shared = match fields.has("n_shared_experts") {
        true => fields.count("n_shared_experts", 0, 1024)?.unwrap_or(0),
        false => {
            if v3 {
                1
            } else {
                2
            }
        }
    };
    Ok(Some(MoeConfig {
        num_experts: fields.extent("n_routed_experts", if v3 { 256 } else { 64 }, MAX_EXPERTS)?,
        moe_intermediate_size: fields.extent(
            "moe_intermediate_size",
            if v3 { 2048 } else { 1407 },
            MAX_WIDTH,
        )?,
        num_shared_experts: shared,
        first_k_dense_replace: fields
            .count("first_k_dense_replace", 0, MAX_LAYERS)?
            .unwrap_or(if v3 { 3 } else { 0 }),
        moe_layer_freq: MoeLayerFreq::Every(fields.extent("moe_layer_freq", 1, MAX_LAYERS)?),
        mlp_only_layers: Vec::new(),
        router: RouterConfig {
            top_k,
            scoring: if v3 {
                Scoring::Sigmoid
            } else {
                Scoring::Softmax
            },
            n_group: groups("n_group", 8)?,
            topk_group: groups("topk_group", 4)?,
            group_score: if v3 {
                GroupScore::Top2Sum
            } else {
                GroupScore::Max
            },
            norm_topk_prob: fields.flag("norm_topk_prob", v3)?,
            routed_scaling_factor: fields.ratio("routed_scaling_factor")?.unwrap_or(if v3 {
                2.5
            } else {
                1.0
            }) as f32,
            correction_bias: v3,
        },
    }))
}

fn layer_list(config: &Value, key: &str) -> Result<Vec<usize>, ConfigError> {
    let layers = match &config[key] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(layers) if layers.len() <= MAX_LAYERS => {
            let layer = |v: &Value| {
                v.as_u64()
                    .filter(|&v| v < MAX_LAYERS as u64)
                    .map(|v| v as usize)
            };
            layers.iter().map(layer).collect::<Option<Vec<usize>>>()
        }
        _ => None,
    };
    layers.ok_or_else(|| ConfigError::Value {
        key: key.to_owned(),
        value: shortened(&config[key].to_string()),
        allowed: format!("a list of at most {MAX_LAYERS} layer indices"),
    })
}
