//! What has to hold between the values of a configuration, whichever file it came from.

use crate::{AttentionConfig, ConfigError, GroupScore, ModelConfig, MoeConfig, MoeLayerFreq};

impl ModelConfig {
    /// Returns the configuration if its values go together.
    pub(crate) fn checked(self) -> Result<ModelConfig, ConfigError> {
        match &self.attention {
            AttentionConfig::Gqa(gqa) => require(
                gqa.num_heads.is_multiple_of(gqa.num_kv_heads),
                ("num_attention_heads", gqa.num_heads),
                ("num_key_value_heads", gqa.num_kv_heads),
                "every key-value head serves the same number of query heads",
            )?,
            AttentionConfig::Mla(mla) => require(
                self.rope.dim == mla.qk_rope_head_dim,
                ("qk_rope_head_dim", mla.qk_rope_head_dim),
                ("rotary width", self.rope.dim),
                "they are the same thing",
            )?,
        }
        if !self.rope.dim.is_multiple_of(2) {
            return Err(ConfigError::Value {
                key: "the rotary width of a head".to_owned(),
                value: self.rope.dim.to_string(),
                allowed: "even, for it is rotated in pairs".to_owned(),
            });
        }
        if let Some(moe) = &self.moe {
            check_moe(moe, self.num_layers)?;
        }
        let tokens = self.bos_token_id.iter().chain(&self.eos_token_ids);
        for &token in tokens {
            require(
                (token as usize) < self.vocab_size,
                ("a bos or eos token id", token as usize),
                ("vocab_size", self.vocab_size),
                "token ids are below the vocabulary's size",
            )?;
        }
        Ok(self)
    }
}

fn check_moe(moe: &MoeConfig, num_layers: usize) -> Result<(), ConfigError> {
    let router = &moe.router;
    let experts = ("number of experts", moe.num_experts);
    require(
        router.top_k <= moe.num_experts,
        ("num_experts_per_tok", router.top_k),
        experts,
        "a token cannot go to more experts than there are",
    )?;
    require(
        moe.num_experts.is_multiple_of(router.n_group),
        ("n_group", router.n_group),
        experts,
        "groups are of one size",
    )?;
    require(
        router.topk_group <= router.n_group,
        ("topk_group", router.topk_group),
        ("n_group", router.n_group),
        "a token cannot use more groups than there are",
    )?;
    let group = moe.num_experts / router.n_group;
    require(
        router.top_k <= router.topk_group * group,
        ("num_experts_per_tok", router.top_k),
        (
            "experts in the groups a token may use",
            router.topk_group * group,
        ),
        "a token cannot go to more experts than its groups hold",
    )?;
    require(
        router.n_group == 1 || router.group_score == GroupScore::Max || group >= 2,
        ("n_group", router.n_group),
        experts,
        "groups are ranked by their two best experts, so each needs two",
    )?;
    let (MoeLayerFreq::Every(step) | MoeLayerFreq::SparseStep(step)) = moe.moe_layer_freq;
    require(
        step > 0,
        ("the step between layers with experts", step),
        ("number of layers", num_layers),
        "the step is at least 1",
    )
}

fn require(
    holds: bool,
    (first, first_value): (&'static str, usize),
    (second, second_value): (&'static str, usize),
    rule: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Contradiction {
        first,
        first_value,
        second,
        second_value,
        rule,
    })
}
