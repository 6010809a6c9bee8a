//! Layouts that vLLM's MXFP4 kernels want: the same weights, with more padding.
//!
//! Each kernel rounds rows and columns of every expert up to its tiles, so a rank may hold a tenth
//! more than its share. Figures that it was checked on: gpt-oss-120b on one H100 loads to
//! 64.38 GiB with Triton (0.14) and 65.97 GiB with Marlin (0.10), whose plain bytes are 60.77;
//! gpt-oss-20b over two to 7.01 GiB with Triton (0.19), and plainly to 6.41.

use crate::{Component, Deployment, Device, Split, Storage, TensorGroup, Version};

/// What one kernel rounds to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiles {
    /// Rows of gate and up together.
    up_rows: u64,
    /// Columns of gate and up: the width of the residual stream.
    up_columns: u64,
    /// Rows of down: the width of the residual stream.
    down_rows: u64,
    /// Columns of down.
    down_columns: u64,
}

const MARLIN: Tiles = Tiles {
    up_rows: 256,
    up_columns: 256,
    down_rows: 256,
    down_columns: 128,
};
const TRITON: Tiles = Tiles {
    up_rows: 256,
    up_columns: 256,
    down_rows: 64,
    down_columns: 128,
};
/// From the one log there is of it (gpt-oss-120b over eight ranks, 9.98 GiB each).
const WIDE: Tiles = Tiles {
    up_rows: 512,
    up_columns: 64,
    down_rows: 256,
    down_columns: 128,
};

/// The kernel that a release picks on a device.
pub(super) fn tiles(device: &Device, version: Version) -> Tiles {
    let hopper = ["H100", "H200", "GH200", "H20"]
        .iter()
        .any(|n| device.name.starts_with(n));
    if version >= Version(0, 20, 0) && !hopper {
        WIDE
    } else if hopper && version >= Version(0, 11, 0) {
        TRITON
    } else {
        MARLIN
    }
}

impl Tiles {
    /// Rounds a rank's slice of experts up.
    pub(super) fn pad(&self, part: &mut TensorGroup) {
        if part.component != Component::RoutedExperts || part.storage != Storage::Mxfp4 {
            return;
        }
        match part.split {
            // Gate and up are one matrix of twice the rows.
            Split::Rows => {
                part.rows = (2 * part.rows).next_multiple_of(self.up_rows) / 2;
                part.columns = part.columns.next_multiple_of(self.up_columns);
            }
            Split::Columns => {
                part.rows = part.rows.next_multiple_of(self.down_rows);
                part.columns = part.columns.next_multiple_of(self.down_columns);
            }
            _ => {}
        }
    }
}

/// The rounding of a deployment.
pub(super) fn padding(deployment: &Deployment, version: Version) -> impl Fn(&mut TensorGroup) {
    let tiles = tiles(&deployment.device, version);
    move |part| tiles.pad(part)
}
