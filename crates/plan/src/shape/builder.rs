//! Collecting tensors: where a component, a layer and a storage meet.

use super::release::Release;
use super::{Component, Role, Split, Storage, TensorGroup};

/// Tensors so far, and where the next one belongs.
pub(super) struct Builder<'a> {
    groups: Vec<TensorGroup>,
    release: &'a Release,
    dtype: Storage,
    layer: Option<u32>,
    module: String,
    /// Set while the tensors of a prediction layer or a vision tower are added.
    part: Option<Component>,
}

/// A matrix to add.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub component: Component,
    /// Path below the layer: `self_attn.q_proj`.
    pub path: &'static str,
    pub rows: u64,
    pub columns: u64,
    pub split: Split,
}

impl<'a> Builder<'a> {
    pub(super) fn new(release: &'a Release, dtype: Storage) -> Self {
        Builder {
            groups: Vec::new(),
            release,
            dtype,
            layer: None,
            module: String::new(),
            part: None,
        }
    }

    /// What follows is in this layer.
    pub(super) fn enter_layer(&mut self, index: u32) {
        self.layer = Some(index);
        self.module = format!("model.layers.{index}.");
    }

    /// What follows is outside the layers, under this module path (which ends in a dot).
    pub(super) fn leave_layers(&mut self, module: &str) {
        self.layer = None;
        self.module = module.to_owned();
    }

    /// What follows is counted as this component, outside the layers.
    pub(super) fn enter_part(&mut self, part: Component, module: &str) {
        self.part = Some(part);
        self.leave_layers(module);
    }

    /// A linear matrix, stored as the release stores it.
    pub(super) fn linear(&mut self, matrix: Matrix) {
        self.linears(matrix, 1, 1);
    }

    /// As many equal linear matrices as experts, of which a token uses some.
    pub(super) fn linears(&mut self, matrix: Matrix, count: u64, active: u64) {
        let path = format!("{}{}", self.module, matrix.path);
        let storage = self
            .release
            .storage(&path, matrix.component)
            .unwrap_or(self.dtype);
        self.push(matrix, count, active, storage, Role::Linear);
    }

    /// A matrix that stays in the model's own type (routers).
    pub(super) fn kept(&mut self, matrix: Matrix) {
        self.push(matrix, 1, 1, self.dtype, Role::Kept);
    }

    /// A table that is looked up.
    pub(super) fn table(
        &mut self,
        component: Component,
        path: &'static str,
        rows: u64,
        columns: u64,
    ) {
        let split = match component {
            Component::Embedding => Split::Vocab,
            _ => Split::Replicated,
        };
        let matrix = Matrix {
            component,
            path,
            rows,
            columns,
            split,
        };
        self.push(matrix, 1, 1, self.dtype, Role::Embedding);
    }

    /// `count` vectors in the model's own type, of which a token uses some.
    pub(super) fn vectors(&mut self, matrix: Matrix, count: u64, active: u64) {
        self.push(matrix, count, active, self.dtype, Role::Kept);
    }

    /// A vector in the model's own type.
    pub(super) fn vector(
        &mut self,
        component: Component,
        path: &'static str,
        length: u64,
        split: Split,
    ) {
        let matrix = Matrix {
            component,
            path,
            rows: 1,
            columns: length,
            split,
        };
        self.push(matrix, 1, 1, self.dtype, Role::Kept);
    }

    /// A vector kept in 32 bits.
    pub(super) fn f32_vector(
        &mut self,
        component: Component,
        path: &'static str,
        length: u64,
        split: Split,
    ) {
        let matrix = Matrix {
            component,
            path,
            rows: 1,
            columns: length,
            split,
        };
        self.push(matrix, 1, 1, Storage::F32, Role::Kept);
    }

    fn push(&mut self, matrix: Matrix, count: u64, active: u64, storage: Storage, role: Role) {
        let name = short_name(matrix.path);
        self.groups.push(TensorGroup {
            component: self.part.unwrap_or(matrix.component),
            name: name.to_owned(),
            layer: self.layer,
            count,
            active: if self.part == Some(Component::Mtp) {
                0
            } else {
                active
            },
            rows: matrix.rows,
            columns: matrix.columns,
            storage,
            role,
            split: matrix.split,
        });
    }

    pub(super) fn finish(self) -> Vec<TensorGroup> {
        self.groups
    }
}

/// `mlp.experts.gate_proj` is `experts.gate_proj`, `self_attn.q_proj` is `q_proj`.
fn short_name(path: &str) -> &str {
    for holder in ["shared_expert", "experts.", "indexer.", "visual."] {
        if let Some(at) = path.find(holder) {
            return &path[at..];
        }
    }
    match path.rfind('.') {
        Some(at) => match &path[at + 1..] {
            "weight" | "bias" => path
                .rmatch_indices('.')
                .nth(1)
                .map_or(path, |(at, _)| &path[at + 1..]),
            last => last,
        },
        None => path,
    }
}
