//! The CPU as a [`Backend`]: its state, and each operation handed to the code that runs it.

use std::borrow::Cow;

use scrimp_backend::{
    AttentionBatch, Backend, BackendError, Expand, Expert, HeadRows, Input, MatrixStorage, Norm,
    Projection, Routing, Segments, WorkspaceShape,
};
use scrimp_model::{KvLayout, RouterConfig};
use scrimp_tensor::MatrixView;

use crate::cache::{CpuKvCache, cache_bytes};
use crate::kernels::table::KernelTable;
use crate::level::{CpuLevel, CpuOptions, Precision};
use crate::matrix::{CpuMatrix, matrix_bytes};
use crate::memory::{Aligned, Shared};
use crate::ops;
use crate::ops::attention::AttentionOp;
use crate::ops::heads::HeadLinear;
use crate::ops::latent::Expanded;
use crate::ops::linear::{
    GateUp, PRODUCTS, Product, Rounding, Source, convert, form_of, gated_chunk, prepare, products,
};
use crate::ops::moe::Moe;
use crate::pool::Pool;
use crate::workspace::{Forms, Lengths, Workspace, at_least};

/// The CPU of this machine.
pub struct CpuBackend {
    pool: Pool,
    level: CpuLevel,
    table: KernelTable,
    precision: Precision,
    expand_latents_from: Option<usize>,
    workspace: Workspace,
}

/// f32 values in memory.
#[derive(Debug)]
pub struct CpuBuffer(Aligned<f32>);

impl CpuBackend {
    /// Starts the threads and chooses the kernels.
    ///
    /// # Errors
    /// When `options.level` is one that this machine does not have.
    pub fn new(options: CpuOptions) -> Result<CpuBackend, BackendError> {
        let level = options.level.unwrap_or_else(CpuLevel::detect);
        let table = KernelTable::for_level(level).ok_or_else(|| BackendError::Unsupported {
            what: format!("the {level} level: this machine does not have it").into(),
        })?;
        let threads = options.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        Ok(CpuBackend {
            pool: Pool::new(threads),
            level,
            table,
            precision: options.precision,
            expand_latents_from: options.expand_latents_from,
            workspace: Workspace::new(&Lengths::default())?,
        })
    }

    /// The instruction set in use.
    pub fn level(&self) -> CpuLevel {
        self.level
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// How activations meet packed weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How an operation's activations are treated.
    fn rounding_of(&self, fine: bool) -> Rounding {
        match (self.precision, fine) {
            (Precision::Exact, _) => Rounding::None,
            (Precision::Fast, true) => Rounding::Fine,
            (Precision::Fast, false) => Rounding::Coarse,
        }
    }

    /// The team and the kernels, for measurements that must use the same.
    pub(crate) fn team(&mut self) -> (&mut Pool, &KernelTable) {
        (&mut self.pool, &self.table)
    }

    fn lengths(&self, shape: &WorkspaceShape) -> Lengths {
        Lengths::of(
            shape,
            Forms {
                precision: self.precision,
                bf16_dot: self.table.gemm_bf16.is_some(),
                expands_latents: self.expand_latents_from.is_some(),
                threads: self.pool.threads(),
            },
        )
    }
}

/// A norm's factors and epsilon, its width checked.
fn norm_of<'a>(norm: &Norm<'a, CpuBackend>, cols: usize) -> (&'a [f32], f32) {
    assert_eq!(norm.dim, cols, "a norm's width");
    (&norm.weight.0.as_slice()[..cols], norm.eps)
}

/// An input of `cols` columns.
fn source_of<'a>(input: &Input<'a, CpuBackend>, cols: usize) -> Source<'a> {
    Source {
        x: input.x.0.as_slice(),
        rows: input.rows,
        cols,
        norm: input.norm.as_ref().map(|norm| norm_of(norm, cols)),
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type KvCache = CpuKvCache;

    fn description(&self) -> String {
        let dot = match (self.level, self.table.gemm_bf16.is_some()) {
            (CpuLevel::Avx512, true) => " (VNNI, BF16)",
            (CpuLevel::Avx512, false) => " (VNNI)",
            _ => "",
        };
        let precision = match self.precision {
            Precision::Exact => "float activations",
            Precision::Fast => "int8 activations",
        };
        let threads = self.pool.threads();
        let s = if threads == 1 { "" } else { "s" };
        format!("CPU {}{dot}, {threads} thread{s}, {precision}", self.level)
    }

    fn matrix_bytes(&self, rows: usize, cols: usize, storage: MatrixStorage) -> usize {
        matrix_bytes(rows, cols, storage)
    }

    fn load_matrix(&mut self, view: &MatrixView<'_>) -> Result<CpuMatrix, BackendError> {
        CpuMatrix::load(view, &mut self.pool)
    }

    fn buffer_bytes(&self, len: usize) -> usize {
        len * size_of::<f32>()
    }

    fn alloc(&mut self, len: usize) -> Result<CpuBuffer, BackendError> {
        Ok(CpuBuffer(Aligned::resident(len, "activations")?))
    }

    fn write(&mut self, buffer: &mut CpuBuffer, values: &[f32]) {
        buffer.0.as_mut_slice()[..values.len()].copy_from_slice(values);
    }

    fn read<'a>(&mut self, buffer: &'a CpuBuffer, len: usize) -> Cow<'a, [f32]> {
        Cow::Borrowed(&buffer.0.as_slice()[..len])
    }

    fn kv_cache_bytes(&self, layout: &KvLayout, num_blocks: usize) -> usize {
        cache_bytes(layout, num_blocks)
    }

    fn alloc_kv_cache(
        &mut self,
        layout: &KvLayout,
        num_blocks: usize,
    ) -> Result<CpuKvCache, BackendError> {
        if self.table.kv(layout.dtype).is_none() {
            return Err(BackendError::Unsupported {
                what: format!("a KV cache of {}", layout.dtype).into(),
            });
        }
        CpuKvCache::new(layout, num_blocks)
    }

    fn workspace_bytes(&self, shape: &WorkspaceShape) -> usize {
        self.lengths(shape).bytes()
    }

    fn reserve_workspace(&mut self, shape: &WorkspaceShape) -> Result<(), BackendError> {
        self.workspace = Workspace::new(&self.lengths(shape))?;
        Ok(())
    }

    fn embed(&mut self, table: &CpuMatrix, ids: &[u32], out: &mut CpuBuffer) {
        ops::rows::embed(
            &mut self.pool,
            &self.table,
            table,
            ids,
            out.0.as_mut_slice(),
        );
    }

    fn rms_norm(&mut self, x: &CpuBuffer, rows: usize, norm: Norm<'_, Self>, out: &mut CpuBuffer) {
        let source = Source {
            x: x.0.as_slice(),
            rows,
            cols: norm.dim,
            norm: Some(norm_of(&norm, norm.dim)),
        };
        let out = bytemuck::cast_slice_mut(out.0.as_mut_slice());
        convert(
            &mut self.pool,
            self.table.to_float,
            source,
            out,
            norm.dim * 4,
        );
    }

    fn linear(&mut self, input: Input<'_, Self>, projections: &mut [Projection<'_, Self>]) {
        let Some(first) = projections.first() else {
            return;
        };
        let cols = first.weight.cols;
        for p in &*projections {
            assert_eq!(p.weight.cols, cols, "projections of one input");
            let (have, need) = (p.out.0.as_slice().len(), input.rows * p.weight.rows);
            assert!(have >= need, "{need} outputs in {have}");
        }
        let (table, rounding) = (&self.table, self.rounding_of(input.fine));
        let wanted = projections
            .iter()
            .map(|p| form_of(table, rounding, p.weight));
        let source = source_of(&input, cols);
        let mut forms = self.workspace.forms();
        let acts = prepare(&mut self.pool, table, &mut forms, source, wanted);
        for projections in projections.chunks_mut(PRODUCTS) {
            let mut wanted = [const { None }; PRODUCTS];
            for (product, p) in wanted.iter_mut().zip(projections) {
                *product = Some(Product {
                    weight: p.weight,
                    bias: p.bias.map(|bias| bias.0.as_slice()),
                    out: Shared::new(p.out.0.as_mut_slice()),
                    accumulate: p.accumulate,
                });
            }
            products(&mut self.pool, table, rounding, &acts, input.rows, &wanted);
        }
    }

    fn gate_up_silu(
        &mut self,
        input: Input<'_, Self>,
        gate: &CpuMatrix,
        up: &CpuMatrix,
        out: &mut CpuBuffer,
    ) {
        assert_eq!((gate.rows, gate.cols), (up.rows, up.cols), "gate and up");
        let (rows, width) = (input.rows, gate.rows);
        let out = out.0.as_mut_slice();
        assert!(
            out.len() >= rows * width,
            "{rows} rows of {width} in {}",
            out.len()
        );
        if rows == 0 {
            return;
        }
        let (table, rounding) = (&self.table, self.rounding_of(input.fine));
        let wanted = [gate, up].map(|m| form_of(table, rounding, m));
        let source = source_of(&input, gate.cols);
        let mut forms = self.workspace.forms();
        let acts = prepare(
            &mut self.pool,
            table,
            &mut forms,
            source,
            wanted.into_iter(),
        );
        let op = GateUp {
            gate,
            up,
            acts: &acts,
            rounding,
            index: None,
            rows,
        };
        let step = gated_chunk(width, self.pool.threads());
        let out = Shared::new(out);
        self.pool.run(width.div_ceil(step), &|chunk, _| {
            let (from, to) = (chunk * step, ((chunk + 1) * step).min(width));
            // SAFETY: `out` holds `rows` rows; columns `from .. to` are this chunk's alone.
            unsafe { op.run(table, (from, to), out.as_mut_ptr().add(from), width) }
        });
    }

    fn norm_segments(
        &mut self,
        x: &mut CpuBuffer,
        rows: usize,
        segments: Segments,
        norm: Norm<'_, Self>,
    ) {
        let norm = norm_of(&norm, segments.dim);
        let x = x.0.as_mut_slice();
        ops::rows::norm_segments(&mut self.pool, &self.table, x, rows, segments, norm);
    }

    fn rope(
        &mut self,
        x: &mut CpuBuffer,
        rows: usize,
        segments: Segments,
        cos_sin: &[f32],
        interleaved: bool,
    ) {
        let x = x.0.as_mut_slice();
        ops::rows::rope(
            &mut self.pool,
            &self.table,
            x,
            rows,
            segments,
            cos_sin,
            interleaved,
        );
    }

    fn copy_segments(
        &mut self,
        x: &CpuBuffer,
        rows: usize,
        from: Segments,
        out: &mut CpuBuffer,
        to: Segments,
    ) {
        ops::rows::copy_segments(x.0.as_slice(), rows, from, out.0.as_mut_slice(), to);
    }

    fn head_linear(
        &mut self,
        x: &CpuBuffer,
        rows: usize,
        from: Segments,
        weight: &CpuMatrix,
        heads: HeadRows,
        out: &mut CpuBuffer,
        to: Segments,
    ) {
        let op = HeadLinear {
            x: x.0.as_slice(),
            rows,
            from,
            weight,
            heads,
            out: out.0.as_mut_slice(),
            to,
        };
        ops::heads::head_linear(&mut self.pool, &self.table, op);
    }

    fn store_kv(
        &mut self,
        cache: &mut CpuKvCache,
        layer: usize,
        keys: &CpuBuffer,
        values: Option<&CpuBuffer>,
        slots: &[u32],
    ) {
        let (keys, values) = (keys.0.as_slice(), values.map(|v| v.0.as_slice()));
        let pool = &mut self.pool;
        ops::attention::store_kv(pool, &self.table, cache, layer, keys, values, slots);
    }

    fn attention(
        &mut self,
        q: &CpuBuffer,
        num_heads: usize,
        cache: &CpuKvCache,
        layer: usize,
        batch: &AttentionBatch<'_>,
        scale: f32,
        out: &mut CpuBuffer,
    ) {
        let op = AttentionOp {
            q: q.0.as_slice(),
            num_heads,
            cache,
            layer,
            batch,
            scale,
            out: out.0.as_mut_slice(),
        };
        ops::attention::attention(&mut self.pool, &self.table, &mut self.workspace, op);
    }

    fn expands_latents(&self, rows: usize) -> bool {
        self.expand_latents_from.is_some_and(|from| rows >= from)
    }

    fn expanded_attention(
        &mut self,
        q: &CpuBuffer,
        num_heads: usize,
        cache: &CpuKvCache,
        layer: usize,
        batch: &AttentionBatch<'_>,
        expand: Expand<'_, Self>,
        scale: f32,
        out: &mut CpuBuffer,
    ) {
        let op = Expanded {
            q: q.0.as_slice(),
            num_heads,
            cache,
            layer,
            batch,
            expand,
            scale,
            out: Shared::new(out.0.as_mut_slice()),
        };
        ops::latent::attention(&mut self.pool, &self.table, &mut self.workspace, op);
    }

    fn copy_blocks(&mut self, cache: &mut CpuKvCache, copies: &[(u32, u32)]) {
        cache.copy_blocks(copies);
    }

    fn route(
        &mut self,
        logits: &CpuBuffer,
        rows: usize,
        num_experts: usize,
        router: &RouterConfig,
        correction_bias: Option<&CpuBuffer>,
        routing: &mut Routing,
    ) {
        let scratch = at_least(&mut self.workspace.scores, 2 * num_experts);
        let bias = correction_bias.map(|bias| bias.0.as_slice());
        let logits = logits.0.as_slice();
        ops::route::route(logits, rows, num_experts, router, bias, scratch, routing);
    }

    fn moe(
        &mut self,
        x: &CpuBuffer,
        rows: usize,
        routing: &Routing,
        experts: &[Expert<Self>],
        out: &mut CpuBuffer,
    ) {
        let op = Moe {
            x: x.0.as_slice(),
            rows,
            routing,
            experts,
            out: out.0.as_mut_slice(),
        };
        let rounding = self.rounding_of(false);
        let (pool, workspace) = (&mut self.pool, &mut self.workspace);
        ops::moe::moe(pool, &self.table, rounding, workspace, op);
    }

    fn gather_rows(&mut self, x: &CpuBuffer, cols: usize, rows: &[u32], out: &mut CpuBuffer) {
        ops::rows::gather_rows(x.0.as_slice(), cols, rows, out.0.as_mut_slice());
    }
}
