//! Operands of the operations: which vectors, which weights, normed or not.

use crate::Backend;

/// An RMS norm's constants.
pub struct Norm<'a, B: Backend> {
    /// One factor per value of the normed vector.
    pub weight: &'a B::Buffer,
    /// Width of the normed vector.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl<B: Backend> Clone for Norm<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Norm<'_, B> {}

/// Rows that projections read, optionally normed on the way.
pub struct Input<'a, B: Backend> {
    /// `[rows, cols]`, `cols` being that of the matrices.
    pub x: &'a B::Buffer,
    /// Number of rows.
    pub rows: usize,
    /// Norm applied to each row before it is projected.
    pub norm: Option<Norm<'a, B>>,
    /// Whether these rows, where the backend rounds activations, are to be rounded to sixteen bits
    /// or so: for results that are not summed up with others any more.
    pub fine: bool,
}

/// One projection of an [`Input`].
pub struct Projection<'a, B: Backend> {
    /// `[out, in]`.
    pub weight: &'a B::Matrix,
    /// `[out]`.
    pub bias: Option<&'a B::Buffer>,
    /// `[rows, out]`.
    pub out: &'a mut B::Buffer,
    /// Whether the product is added to `out` (a residual) instead of replacing it.
    pub accumulate: bool,
}

/// Equal vectors at regular places in every row of a buffer: heads, or a part of each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Values from one row to the next.
    pub row_stride: usize,
    /// Where the first vector of a row begins.
    pub offset: usize,
    /// Vectors in a row.
    pub count: usize,
    /// Values from one vector of a row to the next.
    pub stride: usize,
    /// Values in a vector.
    pub dim: usize,
}

impl Segments {
    /// `count` vectors of `dim` values that fill their rows.
    pub fn dense(count: usize, dim: usize) -> Segments {
        Segments {
            row_stride: count * dim,
            offset: 0,
            count,
            stride: dim,
            dim,
        }
    }

    /// The values `start .. start + dim` of each of these vectors.
    pub fn part(self, start: usize, dim: usize) -> Segments {
        debug_assert!(
            start + dim <= self.dim,
            "part {start}+{dim} of {}",
            self.dim
        );
        Segments {
            offset: self.offset + start,
            dim,
            ..self
        }
    }

    /// Where vector `i` of row `r` begins.
    pub fn start(&self, r: usize, i: usize) -> usize {
        r * self.row_stride + self.offset + i * self.stride
    }
}

/// The rows of a stacked matrix that belong to each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRows {
    /// First row of head 0.
    pub offset: usize,
    /// Rows from one head to the next.
    pub stride: usize,
    /// Rows of a head that take part.
    pub count: usize,
    /// Whether the head's matrix is applied transposed: `count` inputs, `cols` outputs.
    pub transposed: bool,
}

/// How latents become keys and values: rows of one matrix, for each head.
pub struct Expand<'a, B: Backend> {
    /// `[.., latent]`.
    pub weight: &'a B::Matrix,
    /// Rows that make the key's part without a position.
    pub keys: HeadRows,
    /// Rows that make the value.
    pub values: HeadRows,
}

impl<B: Backend> Clone for Expand<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Expand<'_, B> {}

/// A routed expert's matrices.
pub struct Expert<B: Backend> {
    /// `[width, hidden]`.
    pub gate: B::Matrix,
    /// `[width, hidden]`.
    pub up: B::Matrix,
    /// `[hidden, width]`.
    pub down: B::Matrix,
}

/// Chosen experts and their weights, `top_k` for each row.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// Experts per row.
    pub top_k: usize,
    /// `[rows, top_k]`, best first.
    pub experts: Vec<u32>,
    /// `[rows, top_k]`.
    pub weights: Vec<f32>,
}
