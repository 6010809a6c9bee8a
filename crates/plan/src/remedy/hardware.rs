//! Which devices would meet a workload, where nothing on the ones at hand does.

use super::candidates::all_splits;
use super::change::{Change, Devices};
use super::{Evaluated, Remedy};
use crate::{Device, EngineKind, ModelShape, Parallel, devices};

/// Numbers of devices that are sold together.
const COUNTS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Devices in one node.
const PER_NODE: u32 = 8;
/// Memory that machines have, in GiB.
const MACHINES: [u64; 14] = [
    8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048,
];
/// Answers that are given.
const ANSWERS: usize = 3;

/// The devices with the least memory together that meet the workload, one answer a kind of device,
/// at most three.
pub fn what_fits(shape: &ModelShape, now: &Evaluated) -> Vec<Remedy> {
    let deployment = &now.setup.deployment;
    if deployment.device.is_cpu || deployment.engine.kind == EngineKind::Scrimp {
        return machine(shape, now).into_iter().collect();
    }
    let mut found: Vec<(u64, Remedy)> = Vec::new();
    for entry in devices::catalogue() {
        let Ok(device) = Device::find(entry.name) else {
            continue;
        };
        if let Some(remedy) = fewest(shape, now, &device) {
            let count = u64::from(remedy.setup.deployment.device_count);
            found.push((count * device.total_bytes, remedy));
        }
    }
    // The kind that is there first, then the least memory.
    let own = |r: &Remedy| r.setup.deployment.device.name == deployment.device.name;
    found.sort_by_key(|(bytes, remedy)| (!own(remedy), *bytes));
    found.into_iter().take(ANSWERS).map(|(_, r)| r).collect()
}

/// A machine with enough memory for the host's own engine.
fn machine(shape: &ModelShape, now: &Evaluated) -> Option<Remedy> {
    MACHINES.iter().find_map(|gib| {
        let device = now.setup.deployment.device.clone();
        let device = device.with_memory(gib << 30).ok()?;
        let devices = Devices {
            device,
            count: 1,
            per_node: 1,
            parallel: now.setup.deployment.parallel,
        };
        let remedy = Remedy::of(shape, now, &[Change::Devices(Box::new(devices))]).ok()?;
        remedy.settles.then_some(remedy)
    })
}

/// The fewest of one kind of device.
fn fewest(shape: &ModelShape, now: &Evaluated, device: &Device) -> Option<Remedy> {
    let engine = now.setup.deployment.engine.kind;
    let needed = now.outcome.weights_bytes / 4;
    COUNTS.iter().find_map(|&count| {
        // Not worth a prediction: not even a quarter of the weights.
        if u64::from(count) * device.total_bytes < needed {
            return None;
        }
        let mut splits = all_splits(shape, engine, count, PER_NODE);
        splits.retain(|p| p.dcp == 1 || p.dcp == p.tp);
        if splits.is_empty() && count == 1 {
            splits.push(Parallel {
                tp: 1,
                pp: 1,
                dp: 1,
                dcp: 1,
                expert: false,
            });
        }
        let fits = |parallel: &Parallel| {
            let devices = Devices {
                device: device.clone(),
                count,
                per_node: PER_NODE.min(count),
                parallel: *parallel,
            };
            let remedy = Remedy::of(shape, now, &[Change::Devices(Box::new(devices))]).ok()?;
            remedy.settles.then_some(remedy)
        };
        let fitting = splits.iter().filter_map(fits);
        fitting.max_by(|a, b| a.after.tokens_per_s.total_cmp(&b.after.tokens_per_s))
    })
}
