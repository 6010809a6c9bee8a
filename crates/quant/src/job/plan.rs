//! What a job writes and holds, worked out before it starts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::awq::SAMPLED_ROWS;
use crate::calibrate::{CalibrationSet, Calibrator};
use crate::gguf::GgufFile;
use crate::hessian::Hessian;
use crate::job::inputs::REPORTED_ROWS;
use crate::pack::{OutTensor, Packer};
use crate::quantized::Quantized;
use crate::recipe::{Format, GGUF_GROUP, Recipe, RecipeError};
use crate::shards::{Layout, SHARD_BYTES};
use crate::source::{Role, Source, SourceTensor};

/// Bytes of small things beside what is counted: tables, reports, buffers of files, code that is
/// read in when it is first run.
const SMALL: usize = 3 << 20;
/// What the allocator may keep of memory given back: a part of the peak, and most; of a large one
/// at least the last part. Seen: 1.3 and 3 % of 1.6 and 3.3 GiB.
const KEPT: (usize, usize, usize) = (8, 16 << 20, 24);
/// Values of a tensor that are read before its file's pages are given back.
const SLAB: usize = 4 << 20;
/// Bytes of a file that come in beside those asked for: large pages at both ends, read ahead.
const BESIDE: usize = 4 << 20;

/// What a job will take, and where everything goes.
pub struct JobPlan {
    /// Most bytes that are held at one time, beside what the process held before.
    pub peak_bytes: usize,
    /// The stage that holds them.
    pub peak_stage: String,
    /// Bytes of all shards.
    pub output_bytes: usize,
    /// Bytes of activations on disk.
    pub scratch_bytes: usize,
    /// Matrices that become codes.
    pub matrices: usize,
    /// Bits of a quantized weight with its share of scales and zero points.
    pub bits_per_weight: f64,
    pub(super) layout: Layout,
    pub(super) packer: Packer,
    pub(super) config: Value,
    /// Whether each of the source's tensors becomes codes.
    pub(super) chosen: Vec<bool>,
    /// Tensors outside of layers.
    pub(super) outside: Vec<usize>,
    /// Each layer's tensors, by role and expert.
    pub(super) layers: Vec<BTreeMap<(Role, usize), usize>>,
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Weights of all matrices.
    pub(super) weights: usize,
    /// Inputs that share a grid; `None`: a whole row's.
    pub(super) group: Option<usize>,
}

impl JobPlan {
    pub(super) fn new(
        source: &dyn Source,
        recipe: &Recipe,
        calibration: Option<(&CalibrationSet, &dyn Calibrator)>,
        gguf: Option<&GgufFile>,
        threads: usize,
    ) -> Result<JobPlan, RecipeError> {
        let tensors = source.tensors();
        let chosen = recipe.select(tensors)?;
        let packer = Packer::new(recipe, source.float_type());
        let mut out = Vec::new();
        let mut types = Vec::with_capacity(tensors.len());
        let (mut packed_bytes, mut packed_weights) = (0, 0);
        for (tensor, &chosen) in tensors.iter().zip(&chosen) {
            if !chosen {
                types.push(tensor.dtype);
                out.push(kept(tensor));
                continue;
            }
            let (rows, cols) = (tensor.rows(), tensor.cols());
            let group = recipe.group_size.unwrap_or(cols);
            let packed = packer.tensors(tensor.module(), rows, cols, group);
            packed_bytes += packed.iter().map(OutTensor::bytes).sum::<usize>();
            packed_weights += rows * cols;
            types.extend(packed.first().map(|t| t.dtype));
            out.extend(packed);
        }
        let layout = match gguf {
            Some(gguf) => {
                gguf.check_stacks(&chosen)?;
                gguf.layout(&types)?
            }
            None => Layout::new(&out, SHARD_BYTES),
        };
        let mut layers: Vec<BTreeMap<(Role, usize), usize>> = Vec::new();
        let mut outside = Vec::new();
        for (i, tensor) in tensors.iter().enumerate() {
            match tensor.layer {
                Some(layer) => {
                    if layers.len() <= layer {
                        layers.resize_with(layer + 1, BTreeMap::new);
                    }
                    layers[layer].insert((tensor.role, tensor.expert.unwrap_or(0)), i);
                }
                None => outside.push(i),
            }
        }
        let norm = tensors.iter().find(|t| t.role == Role::FinalNorm);
        let is_matrix = |t: &&SourceTensor| t.shape.len() > 1;
        let ignore = kept_linears(tensors, &chosen);
        let mut plan = JobPlan {
            peak_bytes: 0,
            peak_stage: String::new(),
            output_bytes: layout.bytes(),
            scratch_bytes: 0,
            matrices: chosen.iter().filter(|c| **c).count(),
            bits_per_weight: packed_bytes as f64 * 8.0 / packed_weights.max(1) as f64,
            config: packer.config(recipe, recipe.group_size, &ignore),
            layout,
            packer,
            hidden: norm.map_or(0, SourceTensor::cols),
            weights: tensors
                .iter()
                .filter(is_matrix)
                .map(SourceTensor::len)
                .sum(),
            chosen,
            outside,
            layers,
            group: recipe.group_size,
        };
        plan.measure(source, recipe, calibration, threads);
        Ok(plan)
    }

    /// Inputs of a row of `cols` that share a grid.
    pub(super) fn group_of(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols)
    }

    fn measure(
        &mut self,
        source: &dyn Source,
        recipe: &Recipe,
        calibration: Option<(&CalibrationSet, &dyn Calibrator)>,
        threads: usize,
    ) {
        let tensors = source.tensors();
        let mut sizes = Sizes {
            tensors,
            recipe,
            rows: calibration.map_or(0, |(set, _)| set.longest()),
            threads,
            rows_apart: self.packer.keeps_rows_apart(),
            matrix: &|r, c| calibration.map_or(0, |(_, k)| k.matrix_bytes(r, c)),
            peak: (0, String::new()),
        };
        let largest = tensors.iter().map(|t| sizes.one_matrix(t)).max();
        sizes.stage(largest.unwrap_or(0), "reading and rounding a matrix");
        if let Some((set, calibrator)) = calibration {
            let mut widest = [self.hidden; 2];
            for (index, layer) in self.layers.iter().enumerate() {
                let widths = sizes.layer(index, layer, &self.chosen);
                widest = [widest[0].max(widths[0]), widest[1].max(widths[1])];
            }
            let rows = set.longest();
            let row = self.hidden * 2 + widest[0].max(widest[1]) * 2;
            sizes.peak.0 += calibrator.scratch_bytes(rows) + rows * row * 4;
            // Three of the residual stream, and the inputs of o, of gate and up, and of down.
            let stored = 4 * self.hidden + widest[0] + widest[1];
            self.scratch_bytes = set.tokens() * stored * 4;
        }
        // What is outside of layers is read before them, when nothing else is held.
        let (inside, outside): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| t.layer.is_some());
        let mapped = inside.into_iter().map(mapped_bytes).max().unwrap_or(0);
        let before = outside.into_iter();
        let before = before.map(|t| sizes.one_matrix(t) + mapped_bytes(t)).max();
        let (held, stage) = sizes.peak;
        let kept = (held / KEPT.0).min(KEPT.1).max(held / KEPT.2);
        let layers = (held + kept + mapped, stage);
        let before = (before.unwrap_or(0), "embedding and head".to_owned());
        let (bytes, stage) = if before.0 > layers.0 { before } else { layers };
        (self.peak_bytes, self.peak_stage) = (bytes + SMALL, stage);
    }
}

/// Bytes of a tensor's file that are mapped at one time.
fn mapped_bytes(tensor: &SourceTensor) -> usize {
    let cols = tensor.cols();
    let bytes = tensor.rows().min(slab_rows(cols)) * cols * tensor.dtype.block_bytes();
    bytes + bytes.min(BESIDE)
}

/// Rows of a matrix that are read before its file's pages are given back.
pub(super) fn slab_rows(cols: usize) -> usize {
    (SLAB / cols.max(1)).next_multiple_of(FLOATS_ROWS)
}

/// A tensor that stays in floats.
fn kept(tensor: &SourceTensor) -> OutTensor {
    OutTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    }
}

/// Modules that readers would take for linear layers and that stay in floats.
fn kept_linears(tensors: &[SourceTensor], chosen: &[bool]) -> Vec<String> {
    let kept = tensors.iter().zip(chosen).filter(|(t, chosen)| {
        let linear = t.role.is_linear() || matches!(t.role, Role::Head | Role::Router | Role::KvB);
        !**chosen && linear
    });
    let mut names: Vec<String> = kept.map(|(t, _)| t.module().to_owned()).collect();
    // A head that is the embedding has no tensor, and is still a module.
    if !names.iter().any(|n| n == "lm_head") {
        names.push("lm_head".into());
    }
    names
}

/// Bytes of the stages of a layer, as `layer` and `experts` hold them.
struct Sizes<'a> {
    tensors: &'a [SourceTensor],
    recipe: &'a Recipe,
    /// Of the longest sequence.
    rows: usize,
    threads: usize,
    /// Whether rows are packed and written without those beside them.
    rows_apart: bool,
    /// Of a matrix in the calibrator.
    matrix: &'a dyn Fn(usize, usize) -> usize,
    peak: (usize, String),
}

impl Sizes<'_> {
    fn stage(&mut self, bytes: usize, what: &str) {
        if bytes > self.peak.0 {
            self.peak = (bytes, what.to_owned());
        }
    }

    /// A matrix in floats, in codes and in packed bytes, and what threads hold on the way.
    fn one_matrix(&self, tensor: &SourceTensor) -> usize {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        if tensor.shape.len() < 2 {
            return 8 * cols;
        }
        let linear = tensor.role.is_linear();
        let group = self
            .recipe
            .group_size
            .filter(|g| linear && cols.is_multiple_of(*g));
        let group = group.unwrap_or(cols);
        // Without a calibration, and for what is outside of layers, a thread has a few rows at a
        // time: in floats, and as they will be stored.
        let part = rows.min(FLOATS_ROWS);
        let stored = |rows| match linear {
            true => Quantized::bytes(rows, cols, group) + self.packed(rows, cols),
            false => rows * cols * tensor.dtype.block_bytes(),
        };
        let outside = matches!(tensor.role, Role::Embedding | Role::Head);
        if outside || self.rows == 0 {
            return match linear && !self.rows_apart {
                true => self.threads * part * cols * 4 + stored(rows),
                false => self.threads * (part * cols * 4 + stored(part)),
            };
        }
        if !linear {
            return rows * cols * 4; // whole, for the calibrator
        }
        // A row's weights and codes in order, and those that its error is reported by.
        let carried = match self.recipe.scheme.carries_errors() {
            true => self.threads * 64 * cols * 6,
            false => self.threads * 64 * cols * 8,
        };
        let reported = REPORTED_ROWS * cols * 16;
        rows * cols * 4 + Quantized::bytes(rows, cols, group) + carried.max(reported)
    }

    /// Bytes of some rows as they are written.
    fn packed(&self, rows: usize, cols: usize) -> usize {
        // GGUF's blocks are one buffer, scales and all.
        let scales = match self.recipe.format {
            Format::Gguf => rows * cols / GGUF_GROUP * 4,
            _ => 0,
        };
        rows * cols * self.recipe.scheme.bits() as usize / 8 + scales
    }

    /// The largest of some matrices, one of them in hand at a time.
    fn in_hand(&self, layer: &BTreeMap<(Role, usize), usize>, roles: &[Role]) -> usize {
        let of = roles.iter().filter_map(|r| layer.get(&(*r, 0)));
        let matrices = of.map(|i| self.one_matrix(&self.tensors[*i]));
        matrices.max().unwrap_or(0).max(self.sample(layer, roles))
    }

    /// Matrices in the calibrator.
    fn resident(&self, layer: &BTreeMap<(Role, usize), usize>, roles: &[Role]) -> usize {
        let of = roles.iter().filter_map(|r| layer.get(&(*r, 0)));
        of.map(|i| (self.matrix)(self.tensors[*i].rows(), self.tensors[*i].cols()))
            .sum()
    }

    fn cols(&self, layer: &BTreeMap<(Role, usize), usize>, role: Role) -> usize {
        layer.get(&(role, 0)).map_or(0, |i| self.tensors[*i].cols())
    }

    /// A Hessian of `n` channels, and what threads hold that take it in or multiply by it.
    fn moments(&self, n: usize) -> usize {
        Hessian::bytes(n) + self.threads * 32 * n * 8
    }

    /// The sample of rows that scales are searched on, before matrices are in hand.
    fn sample(&self, layer: &BTreeMap<(Role, usize), usize>, roles: &[Role]) -> usize {
        if !self.recipe.scheme.scales_channels() {
            return 0;
        }
        let of = roles.iter().filter_map(|r| layer.get(&(*r, 0)));
        let readers: Vec<&SourceTensor> = of.map(|i| &self.tensors[*i]).collect();
        let rows: usize = readers.iter().map(|t| t.rows()).sum();
        let cols = readers.iter().map(|t| t.cols()).max().unwrap_or(0);
        (rows.min(SAMPLED_ROWS) + self.threads * 32 * 2) * cols * 4
    }

    /// Takes in a layer's stages; gives the widths of the inputs of `o` and of down projections.
    fn layer(
        &mut self,
        index: usize,
        layer: &BTreeMap<(Role, usize), usize>,
        chosen: &[bool],
    ) -> [usize; 2] {
        use Role as R;
        let first = [R::Q, R::K, R::V, R::QA, R::KvA];
        let attention = [R::Q, R::K, R::V, R::QA, R::QB, R::KvA, R::KvB];
        let name = |what: &str| format!("layer {index}, {what}");
        let any = |roles: &[Role]| {
            roles
                .iter()
                .any(|r| layer.get(&(*r, 0)).is_some_and(|i| chosen[*i]))
        };
        let moments = |roles: &[Role], n: usize| if any(roles) { self.moments(n) } else { 0 };
        let held = |role: Role| {
            // Codes wait for the scales of the next projection.
            let i = layer.get(&(role, 0)).map(|i| &self.tensors[*i]);
            i.map_or(0, |t| {
                if self.recipe.scheme.scales_channels() {
                    Quantized::bytes(
                        t.rows(),
                        t.cols(),
                        self.recipe.group_size.unwrap_or(t.cols()).max(1),
                    )
                } else {
                    0
                }
            })
        };
        let hidden = self.cols(layer, R::AttentionNorm);
        let attended = self.cols(layer, R::O);
        let mut stages = vec![
            (
                moments(&first, hidden)
                    + self.in_hand(layer, &first)
                    + self.resident(layer, &attention)
                    + held(R::V),
                name("queries, keys and values"),
            ),
            (
                moments(&[R::QB], self.cols(layer, R::QB))
                    + self.in_hand(layer, &[R::QB, R::KvB])
                    + self.resident(layer, &attention),
                name("queries from their bottleneck"),
            ),
            (
                moments(&[R::O], attended)
                    + held(R::V)
                    + (self.in_hand(layer, &[R::O]) + self.resident(layer, &[R::O]))
                        .max(self.resident(layer, &attention)),
                name("output projection"),
            ),
        ];
        let mut width = 0;
        for [gate, up, down] in [
            [R::Gate, R::Up, R::Down],
            [R::SharedGate, R::SharedUp, R::SharedDown],
            [R::ExpertGate, R::ExpertUp, R::ExpertDown],
        ] {
            if self.cols(layer, down) == 0 {
                continue;
            }
            width = width.max(self.cols(layer, down));
            let shared = if gate == R::Gate {
                0
            } else {
                self.moments(hidden) + self.resident(layer, &[R::Router])
            };
            let both = self.resident(layer, &[gate, up]);
            stages.push((
                moments(&[gate, up], hidden).max(shared)
                    + self.in_hand(layer, &[gate, up])
                    + both
                    + held(up),
                name("gate and up"),
            ));
            let own = self.in_hand(layer, &[down]) + self.resident(layer, &[down]);
            // An expert's gate and up stay until the next one's take their places.
            let with_both = match gate {
                R::ExpertGate => both + own,
                _ => both.max(own),
            };
            stages.push((
                shared + moments(&[down], self.cols(layer, down)) + held(up) + with_both,
                name("down projection"),
            ));
        }
        for (bytes, what) in stages {
            self.stage(bytes, &what);
        }
        [attended, width]
    }
}

/// Rows that a thread decodes at a time.
pub(super) const FLOATS_ROWS: usize = 32;
