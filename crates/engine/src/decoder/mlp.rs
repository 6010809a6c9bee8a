//! A layer's feed-forward half: dense, or routed and shared experts.

use scrimp_backend::{Backend, Input, Norm, Projection, Routing};

use crate::decoder::Step;
use crate::decoder::scratch::Scratch;
use crate::recorder::Part;
use crate::weights::tree::{LayerMlp, LayerWeights, MlpWeights, MoeWeights};

/// Adds the layer's feed-forward to the residual stream in `scratch.hidden`.
pub(super) fn run<B: Backend>(
    backend: &mut B,
    step: &Step<'_>,
    layer: &LayerWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
    routing: &mut Routing,
) {
    let norm = Norm {
        weight: &layer.mlp_norm,
        dim: step.config.hidden_size,
        eps: step.config.rms_norm_eps,
    };
    match &layer.mlp {
        LayerMlp::Dense(weights) => {
            let input = Input {
                x: &scratch.hidden,
                rows: step.rows,
                norm: Some(norm),
                fine: false,
            };
            backend.gate_up_silu(input, &weights.gate, &weights.up, &mut scratch.gated);
            add_down(backend, step, weights, scratch);
            step.mark(Part::Linear);
        }
        LayerMlp::Moe(weights) => {
            experts(backend, step, norm, weights, scratch, routing);
            step.mark(Part::Experts);
        }
    }
}

/// The norm is taken once for the router, the shared and the routed experts.
fn experts<B: Backend>(
    backend: &mut B,
    step: &Step<'_>,
    norm: Norm<'_, B>,
    weights: &MoeWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
    routing: &mut Routing,
) {
    let rows = step.rows;
    let Some(moe) = &step.config.moe else {
        return; // weights of experts are loaded for configs that have them
    };
    backend.rms_norm(&scratch.hidden, rows, norm, &mut scratch.normed);
    let normed = |x| Input {
        x,
        rows,
        norm: None,
        fine: false,
    };
    let router = Projection {
        weight: &weights.router,
        bias: None,
        out: &mut scratch.router_logits,
        accumulate: false,
    };
    backend.linear(normed(&scratch.normed), &mut [router]);
    backend.route(
        &scratch.router_logits,
        rows,
        moe.num_experts,
        &moe.router,
        weights.correction_bias.as_ref(),
        routing,
    );
    if let Some(recorder) = step.recorder {
        recorder.experts(&routing.experts);
    }
    if let Some(shared) = &weights.shared {
        let input = normed(&scratch.normed);
        backend.gate_up_silu(input, &shared.gate, &shared.up, &mut scratch.gated);
        add_down(backend, step, shared, scratch);
    }
    let hidden = &mut scratch.hidden;
    backend.moe(&scratch.normed, rows, routing, &weights.experts, hidden);
}

/// Projects `scratch.gated` down and adds it to the residual stream.
fn add_down<B: Backend>(
    backend: &mut B,
    step: &Step<'_>,
    weights: &MlpWeights<B>,
    scratch: &mut Scratch<B::Buffer>,
) {
    let input = Input {
        x: &scratch.gated,
        rows: step.rows,
        norm: None,
        fine: false,
    };
    let residual = Projection {
        weight: &weights.down,
        bias: None,
        out: &mut scratch.hidden,
        accumulate: true,
    };
    backend.linear(input, &mut [residual]);
}
