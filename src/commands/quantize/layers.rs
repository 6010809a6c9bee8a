//! The engine's layers as quantization's calibrator.

use scrimp_cpu::CpuBackend;
use scrimp_engine::decoder::{LayerStages, StageError, Tower as EngineTower};
use scrimp_engine::weights::Slot;
use scrimp_quant::calibrate::CalibrateError;
use scrimp_quant::{Calibrator, Role, Routed, Tower};

/// A decoder layer on the CPU, computed in floats.
pub struct Layers(pub LayerStages<CpuBackend>);

/// Every role with the engine's name for it.
const SLOTS: [(Role, Slot); 34] = [
    (Role::Embedding, Slot::Embedding),
    (Role::FinalNorm, Slot::FinalNorm),
    (Role::Head, Slot::Head),
    (Role::AttentionNorm, Slot::AttentionNorm),
    (Role::Q, Slot::Q),
    (Role::QBias, Slot::QBias),
    (Role::QNorm, Slot::QNorm),
    (Role::K, Slot::K),
    (Role::KBias, Slot::KBias),
    (Role::KNorm, Slot::KNorm),
    (Role::V, Slot::V),
    (Role::VBias, Slot::VBias),
    (Role::O, Slot::O),
    (Role::OBias, Slot::OBias),
    (Role::QA, Slot::QA),
    (Role::QABias, Slot::QABias),
    (Role::QANorm, Slot::QANorm),
    (Role::QB, Slot::QB),
    (Role::KvA, Slot::KvA),
    (Role::KvABias, Slot::KvABias),
    (Role::KvANorm, Slot::KvANorm),
    (Role::KvB, Slot::KvB),
    (Role::MlpNorm, Slot::MlpNorm),
    (Role::Gate, Slot::Gate),
    (Role::Up, Slot::Up),
    (Role::Down, Slot::Down),
    (Role::Router, Slot::Router),
    (Role::CorrectionBias, Slot::CorrectionBias),
    (Role::ExpertGate, Slot::ExpertGate),
    (Role::ExpertUp, Slot::ExpertUp),
    (Role::ExpertDown, Slot::ExpertDown),
    (Role::SharedGate, Slot::SharedGate),
    (Role::SharedUp, Slot::SharedUp),
    (Role::SharedDown, Slot::SharedDown),
];

/// The role of a slot; none of the two halves that newer GGUF files cut `kv_b` into.
pub fn role_of(slot: Slot) -> Option<Role> {
    SLOTS
        .iter()
        .find(|(_, s)| *s == slot)
        .map(|(role, _)| *role)
}

/// The slot of a role.
pub fn slot_of(role: Role) -> Slot {
    SLOTS[role as usize].1
}

fn tower_of(tower: Tower) -> EngineTower {
    match tower {
        Tower::Dense => EngineTower::Dense,
        Tower::Shared => EngineTower::Shared,
        Tower::Expert => EngineTower::Expert,
    }
}

fn failed(error: StageError) -> CalibrateError {
    CalibrateError(error.to_string())
}

impl Calibrator for Layers {
    fn scratch_bytes(&self, rows: usize) -> usize {
        self.0.scratch_bytes(rows)
    }

    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        self.0.matrix_bytes(rows, cols)
    }

    fn reserve(&mut self, rows: usize) -> Result<(), CalibrateError> {
        self.0.reserve(rows).map_err(failed)
    }

    fn begin_layer(&mut self, layer: usize) -> Result<(), CalibrateError> {
        self.0.begin_layer(layer).map_err(failed)
    }

    fn set_vector(&mut self, role: Role, values: &[f32]) -> Result<(), CalibrateError> {
        self.0.set_vector(slot_of(role), values).map_err(failed)
    }

    fn set_matrix(
        &mut self,
        role: Role,
        shape: (usize, usize),
        values: &[f32],
    ) -> Result<(), CalibrateError> {
        self.0
            .set_matrix(slot_of(role), shape, values)
            .map_err(failed)
    }

    fn drop_matrix(&mut self, role: Role) -> Result<(), CalibrateError> {
        self.0.drop_matrix(slot_of(role)).map_err(failed)
    }

    fn attention_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        self.0.attention_input(hidden, rows, out);
    }

    fn query_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        self.0.query_input(hidden, rows, out);
    }

    fn attend(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        self.0.attend(hidden, rows, out);
    }

    fn add_attention(&mut self, attended: &[f32], rows: usize, hidden: &mut [f32]) {
        self.0.add_attention(attended, rows, hidden);
    }

    fn mlp_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]) {
        self.0.mlp_input(hidden, rows, out);
    }

    fn gated(&mut self, tower: Tower, input: &[f32], rows: usize, out: &mut [f32]) {
        self.0.gated(tower_of(tower), input, rows, out);
    }

    fn down(&mut self, tower: Tower, gated: &[f32], rows: usize, out: &mut [f32]) {
        self.0.down(tower_of(tower), gated, rows, out);
    }

    fn route(&mut self, input: &[f32], rows: usize, routed: &mut Routed) {
        let routing = self.0.route(input, rows);
        routed.top_k = routing.top_k;
        routed.experts.clone_from(&routing.experts);
        routed.weights.clone_from(&routing.weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_roles() {
        for (i, (role, slot)) in SLOTS.into_iter().enumerate() {
            assert_eq!(role as usize, i);
            assert_eq!(role_of(slot), Some(role));
        }
    }
}
