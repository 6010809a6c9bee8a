//! What changed from one vLLM release to another, as far as memory goes.

use crate::{Deployment, Device, ModelShape, Version};

/// The newest release whose rules are known.
const NEWEST: Version = Version(0, 28, 0);
/// Bytes in a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// First releases of a month: a log that has only a date is read by the newest one before it.
const DATES: &[((u32, u32), Version)] = &[
    ((2024, 9), Version(0, 6, 0)),
    ((2024, 12), Version(0, 6, 5)),
    ((2025, 1), Version(0, 6, 6)),
    ((2025, 2), Version(0, 7, 2)),
    ((2025, 3), Version(0, 7, 3)),
    ((2025, 4), Version(0, 8, 3)),
    ((2025, 5), Version(0, 8, 5)),
    ((2025, 6), Version(0, 9, 1)),
    ((2025, 7), Version(0, 9, 2)),
    ((2025, 8), Version(0, 10, 0)),
    ((2025, 9), Version(0, 10, 1)),
    ((2025, 10), Version(0, 11, 0)),
    ((2025, 12), Version(0, 12, 0)),
    ((2026, 1), Version(0, 14, 0)),
    ((2026, 2), Version(0, 15, 1)),
    ((2026, 3), Version(0, 17, 0)),
    ((2026, 4), Version(0, 19, 0)),
    ((2026, 5), Version(0, 21, 0)),
];

/// The release that was current in a month.
pub fn of_month(year: u32, month: u32) -> Option<Version> {
    DATES
        .iter()
        .rev()
        .find(|(date, _)| *date <= (year, month))
        .map(|(_, version)| *version)
}

/// Rules of one release on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rules {
    /// Which release.
    pub version: Version,
    /// The first engine: no hybrid allocator, eager profile run.
    pub v0: bool,
    /// Fraction of the total when none is asked for.
    pub utilization: f64,
    /// Windows and states have blocks of their own.
    pub hybrid: bool,
    /// A sequence keeps two states, one to go back to, and hybrids print the tokens of whole
    /// sequences (two logs of 0.22 and 0.24).
    pub keeps_states: bool,
    /// Copies of the 32-bit logits that the sampler holds at its peak.
    pub logit_copies: f64,
    /// Workspace of expert kernels outlives the forward pass, so it adds to the sampler's peak.
    pub kept_workspace: bool,
    /// Captured graphs are estimated and taken off the KV cache.
    pub graphs_subtracted: bool,
    /// Captured graphs as a part of what 0.19's take: the first engine captured decoding only, and
    /// from 0.21 graphs of all sizes share their buffers (62 MiB and 0.17 GiB in the two logs).
    pub graph_share: f64,
    /// Bytes that latent rows are rounded up to.
    pub latent_align: u64,
}

impl Rules {
    /// The rules of a deployment.
    pub(super) fn of(deployment: &Deployment) -> Rules {
        let version = deployment.engine.version.unwrap_or(NEWEST);
        let v0 = version < Version(0, 8, 0);
        Rules {
            version,
            v0,
            utilization: if version < Version(0, 21, 0) {
                0.9
            } else {
                0.92
            },
            hybrid: version >= Version(0, 9, 2),
            keeps_states: version >= Version(0, 21, 0),
            // Until 0.16 top-k and top-p sorted the logits: a 16-bit and a 32-bit copy, sorted
            // values, 64-bit indices, the sort's own buffers, probabilities. From 0.17 a kernel
            // without the sort leaves the logits twice, probabilities and noise.
            logit_copies: if version < Version(0, 17, 0) {
                9.5
            } else {
                3.612
            },
            kept_workspace: version >= Version(0, 13, 0),
            graphs_subtracted: version >= Version(0, 21, 0),
            graph_share: match (v0, version >= Version(0, 21, 0)) {
                (true, _) => 0.45,
                (_, true) => 0.1,
                _ => 1.0,
            },
            latent_align: if v0 && version >= Version(0, 7, 0) {
                256
            } else {
                1
            },
        }
    }

    /// Whether a device gets the larger defaults: 70 GiB and more, but no A100.
    fn large(device: &Device) -> bool {
        device.total_bytes as f64 >= 70.0 * GIB && !device.name.starts_with("A100")
    }

    /// Sequences at once when none are asked for.
    pub(super) fn max_num_seqs(&self, device: &Device) -> u64 {
        match self.version >= Version(0, 8, 3) && Self::large(device) {
            true => 1024,
            false => 256,
        }
    }

    /// Tokens of one forward pass when none are asked for.
    pub(super) fn batched_tokens(&self, device: &Device, max_model_len: u64, latent: bool) -> u64 {
        if !self.v0 {
            return if Self::large(device) { 8192 } else { 2048 };
        }
        // The first engine split prompts by itself only for models of more than 32 Ki tokens, and
        // not with latent attention.
        let split = if self.version < Version(0, 7, 0) {
            512
        } else {
            2048
        };
        if max_model_len > 32_768 && !latent {
            split
        } else {
            max_model_len.max(2048)
        }
    }

    /// Bytes that libraries and communicators take on a rank, as the profile run measures them.
    pub(super) fn non_torch_bytes(&self, shape: &ModelShape, deployment: &Deployment) -> u64 {
        let device = &deployment.device;
        // Replicas of a dense model do not talk to each other.
        let replicas = if shape.num_experts > 0 {
            deployment.parallel.dp
        } else {
            1
        };
        let ranks = f64::from(deployment.parallel.tp) * f64::from(replicas);
        let small = (device.total_bytes as f64) < 70.0 * GIB;
        let switched = device.has_fast_links();
        let gib = if self.version < Version(0, 7, 0) {
            // All that is not torch's, the context of the process included.
            if small { 0.35 * ranks } else { 1.79 * ranks }
        } else {
            let alone = match (small, self.version < Version(0, 19, 0)) {
                (true, _) => 0.05,
                (false, true) => 0.13,
                (false, false) => 0.25,
            };
            // NCCL's channels over a switch, more with more ranks; over PCIe its buffers are in
            // the host. The first engine's took a GiB for each other rank.
            let linked = match (ranks > 1.0, switched, self.v0) {
                (false, _, _) => 0.0,
                (true, true, true) => ranks - 1.0,
                (true, true, false) => 1.82 + 0.24 * (ranks - 2.0),
                (true, false, true) => 0.15,
                (true, false, false) => 0.02,
            };
            // Pipeline stages meet before the profile begins: only what comes later is counted.
            let piped = deployment.parallel.pp > 1 && ranks < 2.0 && !self.v0;
            if piped { 0.07 } else { alone + linked }
        };
        // Two Granite models, whose logits have an odd number of columns, load more kernels.
        let odd = match shape.vocab_size % 2 {
            1 if !self.v0 => 0.21,
            _ => 0.0,
        };
        ((gib + odd) * GIB) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_name_releases() {
        assert_eq!(of_month(2024, 12), Some(Version(0, 6, 5)));
        assert_eq!(of_month(2025, 7), Some(Version(0, 9, 2)));
        assert_eq!(of_month(2025, 11), Some(Version(0, 11, 0)));
        assert_eq!(of_month(2020, 1), None);
        assert!(
            DATES
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
        );
    }
}
