//! Gated delta nets: the linear attention of Qwen3-Next and Qwen3.5.

use scrimp_model::ConfigError;
use scrimp_model::fields::{Fields, MAX_HEADS};

use super::builder::{Builder, Matrix};
use super::{Component, LayerCache, Split};

/// Sizes of one mixer.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaNet {
    key_heads: u64,
    value_heads: u64,
    key: u64,
    value: u64,
    kernel: u64,
}

impl DeltaNet {
    pub(super) fn read(fields: &Fields<'_>) -> Result<DeltaNet, ConfigError> {
        Ok(DeltaNet {
            key_heads: fields.required("linear_num_key_heads", MAX_HEADS)? as u64,
            value_heads: fields.required("linear_num_value_heads", MAX_HEADS)? as u64,
            key: fields.required("linear_key_head_dim", MAX_HEADS)? as u64,
            value: fields.required("linear_value_head_dim", MAX_HEADS)? as u64,
            kernel: fields.extent("linear_conv_kernel_dim", 4, 1 << 10)? as u64,
        })
    }

    /// Channels of the convolution: queries, keys and values.
    fn channels(&self) -> u64 {
        2 * self.key_heads * self.key + self.value_heads * self.value
    }

    /// What one sequence keeps.
    pub(super) fn state(&self) -> LayerCache {
        LayerCache::State {
            conv: (self.kernel - 1) * self.channels(),
            recurrent: self.value_heads * self.key * self.value,
        }
    }

    /// Tensors of one layer. Checkpoints hold the input as two or as four matrices; the values are
    /// the same.
    pub(super) fn add(&self, builder: &mut Builder<'_>, hidden: u64) {
        let values = self.value_heads * self.value;
        let matrix = |path, rows, columns, split| Matrix {
            component: Component::Attention,
            path,
            rows,
            columns,
            split,
        };
        let qkvz = self.channels() + values;
        builder.linear(matrix(
            "linear_attn.in_proj_qkvz",
            qkvz,
            hidden,
            Split::Rows,
        ));
        builder.linear(matrix(
            "linear_attn.in_proj_ba",
            2 * self.value_heads,
            hidden,
            Split::Rows,
        ));
        builder.kept(matrix(
            "linear_attn.conv1d",
            self.channels(),
            self.kernel,
            Split::Rows,
        ));
        builder.linear(matrix(
            "linear_attn.out_proj",
            hidden,
            values,
            Split::Columns,
        ));
        for path in ["linear_attn.dt_bias", "linear_attn.A_log"] {
            builder.vector(Component::Norms, path, self.value_heads, Split::Rows);
        }
        builder.vector(
            Component::Norms,
            "linear_attn.norm",
            self.value,
            Split::Replicated,
        );
    }
}
