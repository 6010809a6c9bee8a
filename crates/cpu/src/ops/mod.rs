//! How each operation is shared out over threads, and checked before a kernel sees an address.
//!
//! Everything here is safe on the outside: extents are asserted against the buffers first, and
//! what runs in parallel writes disjoint parts.

pub(crate) mod attention;
pub(crate) mod heads;
pub(crate) mod latent;
pub(crate) mod linear;
pub(crate) mod moe;
pub(crate) mod route;
pub(crate) mod rows;

/// Values of work below which waking other threads costs more than it gives.
pub(crate) const SMALL: usize = 16 * 1024;

/// How many parts to cut `items` into when each is `work` values: one when all is small.
pub(crate) fn parts(items: usize, work: usize, threads: usize) -> usize {
    if items * work <= SMALL || threads == 1 {
        items.min(1)
    } else {
        items.min(4 * threads)
    }
}

/// The `part`-th of `parts` even shares of `items`.
pub(crate) fn share(items: usize, part: usize, parts: usize) -> std::ops::Range<usize> {
    items * part / parts..items * (part + 1) / parts
}

/// Asserts that a buffer of `len` values holds rows of segments.
pub(crate) fn check_segments(
    what: &str,
    len: usize,
    rows: usize,
    segments: &scrimp_backend::Segments,
) {
    if rows == 0 || segments.count == 0 {
        return;
    }
    let end = segments.start(rows - 1, segments.count - 1) + segments.dim;
    assert!(
        end <= len,
        "{what}: {rows} rows of {segments:?} end at {end} of {len} values"
    );
    assert!(
        segments.count == 1 || segments.stride >= segments.dim,
        "{what}: {segments:?} overlap"
    );
    assert!(
        rows == 1 || segments.row_stride >= (segments.count - 1) * segments.stride + segments.dim,
        "{what}: rows of {segments:?} overlap"
    );
}
