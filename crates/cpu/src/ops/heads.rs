//! A matrix for each head, plain or transposed.

use scrimp_backend::{HeadRows, Segments};

use crate::kernels::gemm::Gemm;
use crate::kernels::gemm_float::STRETCH;
use crate::kernels::heads::TransposedArgs;
use crate::kernels::table::KernelTable;
use crate::matrix::CpuMatrix;
use crate::memory::Shared;
use crate::ops::check_segments;
use crate::pool::Pool;

/// Weight rows that a chunk of a plain product takes.
const ROWS_PER_CHUNK: usize = 64;

/// Operands of [`head_linear`].
pub(crate) struct HeadLinear<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) from: Segments,
    pub(crate) weight: &'a CpuMatrix,
    pub(crate) heads: HeadRows,
    pub(crate) out: &'a mut [f32],
    pub(crate) to: Segments,
}

/// Applies each head's matrix to each row's vector of that head; activations stay f32.
pub(crate) fn head_linear(pool: &mut Pool, table: &KernelTable, op: HeadLinear<'_>) {
    let HeadLinear {
        x,
        rows,
        from,
        weight,
        heads,
        out,
        to,
    } = op;
    if rows == 0 || from.count == 0 {
        return;
    }
    let last = heads.offset + (from.count - 1) * heads.stride + heads.count;
    assert!(
        last <= weight.rows,
        "head rows end at {last} of {}",
        weight.rows
    );
    assert_eq!(from.count, to.count, "as many vectors out as in");
    let (inputs, outputs) = if heads.transposed {
        (heads.count, weight.cols)
    } else {
        (weight.cols, heads.count)
    };
    assert_eq!((from.dim, to.dim), (inputs, outputs), "widths of a head");
    check_segments("head_linear's input", x.len(), rows, &from);
    check_segments("head_linear's output", out.len(), rows, &to);

    let kernels = table.format(weight.format);
    let step = if heads.transposed {
        STRETCH
    } else {
        ROWS_PER_CHUNK
    };
    let chunks = outputs.div_ceil(step);
    let out = Shared::new(out);
    pool.run(from.count * chunks, &|chunk, _| {
        let (head, start) = (chunk / chunks, chunk % chunks * step);
        let end = (start + step).min(outputs);
        let first = heads.offset + head * heads.stride;
        let x = x[from.start(0, head)..].as_ptr();
        // SAFETY: extents were checked above; each chunk writes columns of its own of one head.
        unsafe {
            let out = out.as_mut_ptr().add(to.start(0, head) + start);
            if heads.transposed {
                (kernels.transposed)(&TransposedArgs {
                    weight: weight.packed(),
                    from: first,
                    count: heads.count,
                    x,
                    x_stride: from.row_stride,
                    rows,
                    cols: (start, end),
                    out,
                    out_stride: to.row_stride,
                });
            } else {
                (kernels.gemm_float)(&Gemm {
                    weight: weight.packed(),
                    from: first + start,
                    to: first + end,
                    acts: x.cast(),
                    act_stride: from.row_stride * 4,
                    index: std::ptr::null(),
                    rows,
                    out,
                    out_stride: to.row_stride,
                    bias: std::ptr::null(),
                    accumulate: false,
                });
            }
        }
    });
}
