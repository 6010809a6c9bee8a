//! Mixture of experts: how many there are, which layers have them, how tokens are routed.

/// Experts of a model and the rule that picks them.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Routed experts per layer.
    pub num_experts: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Shared experts, run on every token as one of `num_shared_experts × moe_intermediate_size`.
    pub num_shared_experts: usize,
    /// Leading layers that stay dense.
    pub first_k_dense_replace: usize,
    /// Of the others, every `moe_layer_freq`-th has experts.
    pub moe_layer_freq: MoeLayerFreq,
    /// Layers that stay dense whatever the frequency says.
    pub mlp_only_layers: Vec<usize>,
    /// How tokens are routed.
    pub router: RouterConfig,
}

/// Which phase of the layer index has experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoeLayerFreq {
    /// DeepSeek: layers with `index % n == 0`.
    Every(usize),
    /// Qwen: layers with `(index + 1) % n == 0`.
    SparseStep(usize),
}

/// From router logits to `top_k` experts and their weights.
///
/// Scores are `scoring(logits)`. A correction bias, where the model has one, is added for the
/// choice alone. With groups, only experts of the `topk_group` best of `n_group` groups are
/// eligible. Weights are the chosen experts' uncorrected scores, normalised when
/// `norm_topk_prob`, times `routed_scaling_factor`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterConfig {
    /// Experts a token is sent to.
    pub top_k: usize,
    /// Function from logits to scores.
    pub scoring: Scoring,
    /// Groups the experts are split into; 1 when there are none.
    pub n_group: usize,
    /// Groups a token may use.
    pub topk_group: usize,
    /// What ranks a group.
    pub group_score: GroupScore,
    /// Whether the chosen weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f32,
    /// Whether each layer has an `e_score_correction_bias` of `num_experts` values.
    pub correction_bias: bool,
}

/// Function from router logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Over all experts of the layer.
    Softmax,
    /// Each expert by itself.
    Sigmoid,
}

/// What ranks a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// The best score in it (DeepSeek-V2).
    Max,
    /// The sum of its two best corrected scores (DeepSeek-V3).
    Top2Sum,
}

impl MoeConfig {
    /// Whether layer `index` has experts.
    pub fn is_moe_layer(&self, index: usize) -> bool {
        let in_phase = match self.moe_layer_freq {
            MoeLayerFreq::Every(n) => index.is_multiple_of(n),
            MoeLayerFreq::SparseStep(n) => (index + 1).is_multiple_of(n),
        };
        index >= self.first_k_dense_replace && in_phase && !self.mlp_only_layers.contains(&index)
    }
}
