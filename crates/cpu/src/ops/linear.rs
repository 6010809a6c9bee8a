//! Projections: activations brought into the form the weights want, then panels shared out.

use std::mem::MaybeUninit;

use crate::kernels::activations::Rows;
use crate::kernels::elementwise::SiluMulArgs;
use crate::kernels::gemm::Gemm;
use crate::kernels::gemm_int::act_row_bytes;
use crate::kernels::table::KernelTable;
use crate::matrix::{CpuMatrix, Format, Int8};
use crate::memory::Shared;
use crate::ops::{SMALL, parts, share};
use crate::pool::Pool;
use crate::simd::{KernelFn, LANES};
use crate::workspace::{Workspace, at_least};

/// How activations are given to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Float,
    /// Blocks of 32 int8.
    Int8,
    /// Blocks of 32 pairs of int8.
    TwoInt8,
    /// BF16.
    Bf16,
    /// int8 blocks of 32, a row's sharing one step.
    Int8Tokens,
}

/// Number of [`Form`]s.
const FORMS: usize = 5;

/// What may be done to activations on their way into a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Nothing.
    None,
    /// Sixteen bits must stay.
    Fine,
    /// Eight bits will do.
    Coarse,
}

/// The form that a matrix is multiplied in.
pub(crate) fn form_of(table: &KernelTable, rounding: Rounding, matrix: &CpuMatrix) -> Form {
    let two_terms = table.format(matrix.format).gemm_int[1].is_some();
    match (matrix.int8, rounding) {
        (Int8::PerToken, _) => Form::Int8Tokens,
        (Int8::WhenFast, Rounding::Fine) if two_terms => Form::TwoInt8,
        (Int8::WhenFast, Rounding::Coarse) => Form::Int8,
        (Int8::Never, Rounding::Coarse)
            if matrix.format == Format::Bf16 && table.gemm_bf16.is_some() =>
        {
            Form::Bf16
        }
        _ => Form::Float,
    }
}

/// The product kernel for a format and a form.
fn gemm_of(table: &KernelTable, form: Form, format: Format) -> KernelFn<Gemm> {
    let kernels = table.format(format);
    match form {
        Form::Float => None,
        Form::Int8 | Form::Int8Tokens => kernels.gemm_int[0],
        Form::TwoInt8 => kernels.gemm_int[1],
        Form::Bf16 => table.gemm_bf16,
    }
    .unwrap_or(kernels.gemm_float)
}

/// Rows of values, to be projected.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `[rows, cols]`.
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Factors and epsilon of an RMS norm.
    pub(crate) norm: Option<(&'a [f32], f32)>,
}

/// Rows in a product's form.
#[derive(Clone, Copy)]
pub(crate) struct Acts<'a> {
    pub(crate) form: Form,
    bytes: &'a [u8],
    stride: usize,
}

impl<'a> Acts<'a> {
    /// Rows as they are.
    pub(crate) fn float(x: &'a [f32], cols: usize) -> Acts<'a> {
        Acts {
            form: Form::Float,
            bytes: bytemuck::cast_slice(x),
            stride: cols * 4,
        }
    }
}

/// Rows in every form that a set of products asks for.
#[derive(Clone, Copy)]
pub(crate) struct Prepared<'a> {
    forms: [Option<Acts<'a>>; FORMS],
}

impl<'a> Prepared<'a> {
    pub(crate) fn get(&self, form: Form) -> Acts<'a> {
        self.forms[form as usize].expect("every form in use was prepared")
    }
}

/// Brings rows into the forms that `wanted` names.
pub(crate) fn prepare<'a>(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &'a mut Forms<'_>,
    source: Source<'a>,
    wanted: impl Iterator<Item = Form>,
) -> Prepared<'a> {
    let Source { x, rows, cols, .. } = source;
    assert!(
        x.len() >= rows * cols,
        "{rows} rows of {cols} in {}",
        x.len()
    );
    let mut needed = [false; FORMS];
    wanted.for_each(|form| needed[form as usize] = true);
    let mut forms = [None; FORMS];
    if needed[Form::Float as usize] {
        forms[Form::Float as usize] = Some(if source.norm.is_none() {
            Acts::float(x, cols)
        } else {
            let out = at_least(workspace.normed, rows * cols);
            convert(
                pool,
                table.to_float,
                source,
                bytemuck::cast_slice_mut(out),
                cols * 4,
            );
            Acts::float(out, cols)
        });
    }
    assert!(
        !(needed[Form::Int8 as usize] && needed[Form::TwoInt8 as usize]),
        "one rounding for all products of a row"
    );
    let int8 = &mut *workspace.int8;
    if needed[Form::Int8 as usize] || needed[Form::TwoInt8 as usize] {
        let (form, stride, kernel) = if needed[Form::Int8 as usize] {
            (Form::Int8, act_row_bytes::<1>(cols), table.to_ints[0])
        } else {
            (Form::TwoInt8, act_row_bytes::<2>(cols), table.to_ints[1])
        };
        let out = at_least(int8, rows * stride);
        convert(pool, kernel, source, out, stride);
        forms[form as usize] = Some(Acts {
            form,
            bytes: out,
            stride,
        });
    }
    if needed[Form::Int8Tokens as usize] {
        let stride = act_row_bytes::<1>(cols);
        let out = at_least(workspace.int8_tokens, rows * stride);
        convert(pool, table.to_int8_tokens, source, out, stride);
        forms[Form::Int8Tokens as usize] = Some(Acts {
            form: Form::Int8Tokens,
            bytes: out,
            stride,
        });
    }
    if needed[Form::Bf16 as usize] {
        let width = cols.next_multiple_of(2);
        let out = at_least(workspace.bf16, rows * width);
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        convert(pool, table.to_bf16, source, out, width * 2);
        forms[Form::Bf16 as usize] = Some(Acts {
            form: Form::Bf16,
            bytes: out,
            stride: width * 2,
        });
    }
    Prepared { forms }
}

/// The parts of a workspace that forms are kept in.
pub(crate) struct Forms<'w> {
    pub(crate) normed: &'w mut crate::memory::Aligned<f32>,
    pub(crate) int8: &'w mut crate::memory::Aligned<u8>,
    pub(crate) int8_tokens: &'w mut crate::memory::Aligned<u8>,
    pub(crate) bf16: &'w mut crate::memory::Aligned<u16>,
}

impl Workspace {
    /// Where forms go.
    pub(crate) fn forms(&mut self) -> Forms<'_> {
        Forms {
            normed: &mut self.normed,
            int8: &mut self.int8,
            int8_tokens: &mut self.int8_tokens,
            bf16: &mut self.bf16,
        }
    }
}

/// Runs a conversion over rows, in parallel when there are many.
pub(crate) fn convert(
    pool: &mut Pool,
    kernel: KernelFn<Rows>,
    source: Source<'_>,
    out: &mut [u8],
    out_stride: usize,
) {
    let Source {
        x,
        rows,
        cols,
        norm,
    } = source;
    assert!(x.len() >= rows * cols && out.len() >= rows * out_stride);
    assert!(norm.is_none_or(|(weight, _)| weight.len() >= cols));
    let out = Shared::new(out);
    let parts = parts(rows, cols, pool.threads());
    pool.run(parts, &|part, _| {
        let share = share(rows, part, parts);
        // SAFETY: shares are disjoint rows; extents were asserted above; a kernel of the table
        // runs on this machine.
        unsafe {
            kernel(&Rows {
                x: x.as_ptr().add(share.start * cols),
                stride: cols,
                rows: share.len(),
                cols,
                norm: norm.map_or(std::ptr::null(), |(weight, _)| weight.as_ptr()),
                eps: norm.map_or(0.0, |(_, eps)| eps),
                out: out
                    .slice(share.start * out_stride, share.len() * out_stride)
                    .as_mut_ptr(),
                out_stride,
            });
        }
    });
}

/// A product, before its weight rows are shared out.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a CpuMatrix,
    pub(crate) bias: Option<&'a [f32]>,
    /// `[rows, weight.rows]`.
    pub(crate) out: Shared<'a, f32>,
    pub(crate) accumulate: bool,
}

/// Weight rows of one chunk of work: whole pairs of panels, a few chunks for each thread.
fn chunk_rows(weight: &CpuMatrix, act_rows: usize, threads: usize) -> usize {
    if threads == 1 || weight.rows * weight.cols * act_rows <= SMALL {
        return weight.rows.max(1);
    }
    let pairs = weight.rows.div_ceil(2 * LANES);
    pairs.div_ceil(4 * threads).max(1) * 2 * LANES
}

/// Products that one region computes; more of them take more regions.
pub(crate) const PRODUCTS: usize = 8;

/// Runs products of the same rows in one region.
pub(crate) fn products(
    pool: &mut Pool,
    table: &KernelTable,
    rounding: Rounding,
    acts: &Prepared<'_>,
    rows: usize,
    products: &[Option<Product<'_>>; PRODUCTS],
) {
    if rows == 0 {
        return;
    }
    let threads = pool.threads();
    let chunks_of = |weight: &CpuMatrix| weight.rows.div_ceil(chunk_rows(weight, rows, threads));
    let chunks = products.iter().flatten().map(|p| chunks_of(p.weight)).sum();
    pool.run(chunks, &|mut chunk, _| {
        for p in products.iter().flatten() {
            let chunks = chunks_of(p.weight);
            if chunk >= chunks {
                chunk -= chunks;
                continue;
            }
            let size = chunk_rows(p.weight, rows, threads);
            let (from, to) = (chunk * size, ((chunk + 1) * size).min(p.weight.rows));
            let acts = acts.get(form_of(table, rounding, p.weight));
            assert!(p.bias.is_none_or(|bias| bias.len() >= p.weight.rows));
            let call = Call {
                weight: p.weight,
                acts,
                index: None,
                row: 0,
                rows,
                from,
                to,
                out_stride: p.weight.rows,
                bias: p.bias,
                accumulate: p.accumulate,
            };
            // SAFETY: the caller of `products` checked that `out` holds `rows` rows; columns
            // `from .. to` of it are this chunk's alone.
            unsafe { call.run(table, p.out.as_mut_ptr().add(from)) }
            return;
        }
    });
}

/// One kernel call's operands, still as slices.
pub(crate) struct Call<'a> {
    pub(crate) weight: &'a CpuMatrix,
    pub(crate) acts: Acts<'a>,
    /// Activation row of each row; the rows themselves where there is none.
    pub(crate) index: Option<&'a [u32]>,
    /// First of the rows.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Weight rows.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) out_stride: usize,
    /// All of the matrix' bias.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) accumulate: bool,
}

impl Call<'_> {
    /// Computes `out[row][from ..]`, `out` being where weight row `from` of the first row goes.
    ///
    /// # Safety
    /// `out` is writable for `rows` rows of `to - from` values, by this caller alone.
    pub(crate) unsafe fn run(&self, table: &KernelTable, out: *mut f32) {
        let Acts {
            form,
            bytes,
            stride,
        } = self.acts;
        let have = bytes.len().checked_div(stride).unwrap_or(usize::MAX);
        assert!(self.from <= self.to && self.to <= self.weight.rows);
        let (acts, index) = match self.index {
            None => {
                assert!(self.row + self.rows <= have);
                (bytes[self.row * stride..].as_ptr(), std::ptr::null())
            }
            Some(index) => {
                let index = &index[self.row..self.row + self.rows];
                assert!(index.iter().all(|&row| (row as usize) < have));
                (bytes.as_ptr(), index.as_ptr())
            }
        };
        let kernel = gemm_of(table, form, self.weight.format);
        // SAFETY: a kernel of the table runs on this machine. Activation rows are `stride` bytes,
        // which is what the form takes for the matrix' columns; the rest was asserted above or is
        // the caller's promise.
        unsafe {
            kernel(&Gemm {
                weight: self.weight.packed(),
                from: self.from,
                to: self.to,
                acts,
                act_stride: stride,
                index,
                rows: self.rows,
                out,
                out_stride: self.out_stride,
                bias: self
                    .bias
                    .map_or(std::ptr::null(), |bias| bias[self.from..].as_ptr()),
                accumulate: self.accumulate,
            });
        }
    }
}

/// Rows, and weight rows, of a gated tile.
const GATED: usize = 64;

/// A gated feed-forward's first half for some rows and weight rows.
pub(crate) struct GateUp<'a> {
    pub(crate) gate: &'a CpuMatrix,
    pub(crate) up: &'a CpuMatrix,
    pub(crate) acts: &'a Prepared<'a>,
    pub(crate) rounding: Rounding,
    pub(crate) index: Option<&'a [u32]>,
    pub(crate) rows: usize,
}

/// Weight rows of a gated chunk: at most [`GATED`], whole pairs of panels.
pub(crate) fn gated_chunk(width: usize, threads: usize) -> usize {
    let pairs = width.div_ceil(2 * LANES);
    (pairs.div_ceil(8 * threads).max(1) * 2 * LANES).min(GATED)
}

impl GateUp<'_> {
    /// `out[row][from .. to] = silu(x · gateᵀ) ⊙ (x · upᵀ)`, at most [`GATED`] weight rows.
    ///
    /// # Safety
    /// `out`, where weight row `from` of row 0 goes, is writable for `rows` rows of `to - from`
    /// values, `out_stride` apart, by this caller alone.
    pub(crate) unsafe fn run(
        &self,
        table: &KernelTable,
        (from, to): (usize, usize),
        out: *mut f32,
        out_stride: usize,
    ) {
        let mut halves = [MaybeUninit::<f32>::uninit(); 2 * GATED * GATED];
        let gate: *mut f32 = halves.as_mut_ptr().cast();
        // SAFETY: the second half begins in the middle.
        let up = unsafe { gate.add(GATED * GATED) };
        assert!(to - from <= GATED);
        for row in (0..self.rows).step_by(GATED) {
            let rows = (self.rows - row).min(GATED);
            for (weight, half) in [(self.gate, gate), (self.up, up)] {
                let call = Call {
                    weight,
                    acts: self.acts.get(form_of(table, self.rounding, weight)),
                    index: self.index,
                    row,
                    rows,
                    from,
                    to,
                    out_stride: GATED,
                    bias: None,
                    accumulate: false,
                };
                // SAFETY: each half has 64 rows of 64 values.
                unsafe { call.run(table, half) }
            }
            // SAFETY: both halves were just written for these rows and columns; `out` by contract.
            unsafe {
                (table.silu_mul)(&SiluMulArgs {
                    gate,
                    up,
                    stride: GATED,
                    out: out.add(row * out_stride),
                    out_stride,
                    rows,
                    cols: to - from,
                });
            }
        }
    }
}
