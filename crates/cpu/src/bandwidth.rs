//! How fast this machine reads memory, with the very threads that compute.
//!
//! Decoding a token reads every weight once, so this is what decoding is held against.

use std::time::{Duration, Instant};

use scrimp_backend::BackendError;

use crate::memory::Aligned;
use crate::simd::{Kernel, Simd};
use crate::{CpuBackend, CpuMatrix};

/// Bytes that a pass reads: more than the caches of common machines keep.
const BYTES: usize = 128 << 20;
/// Bytes that a thread takes at a time.
const CHUNK: usize = 1 << 20;
/// How long passes are repeated.
const TIME: Duration = Duration::from_millis(400);

/// Reads bytes and does next to nothing with them.
pub(crate) struct Touch;

/// Operands of [`Touch`]: `len` bytes, a multiple of 256.
pub(crate) struct TouchArgs {
    pub(crate) bytes: *const u8,
    pub(crate) len: usize,
    /// Where something that depends on all of them goes.
    pub(crate) out: *mut i8,
}

impl Kernel for Touch {
    type Args = TouchArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &TouchArgs) {
        let mut sums = [s.splat_int(0); 4];
        for at in (0..a.len).step_by(256) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `len` is a multiple of 256.
                *sum = s.add_int(*sum, unsafe { s.load_bytes(a.bytes.add(at + 64 * i)) });
            }
        }
        let sum = s.add_int(s.add_int(sums[0], sums[1]), s.add_int(sums[2], sums[3]));
        // SAFETY: `out` has room for sixteen.
        unsafe { s.store_low_bytes(a.out, sum) }
    }
}

/// Bytes per second of the median pass within two fifths of a second, over memory of its own.
///
/// Not of the fastest: on a shared machine single passes come out of a cache of the host's, or
/// meet idle neighbours, at rates that nothing keeps up.
///
/// # Errors
/// When there is no memory to read: it takes 128 MiB while it measures.
pub fn read_bandwidth(backend: &mut CpuBackend) -> Result<f64, BackendError> {
    let mut memory = Aligned::<u8>::zeroed(BYTES, "measuring bandwidth")?;
    // Pages that were never written all lie in one page of zeros.
    memory.as_mut_slice().fill(1);
    Ok(rate(backend, &[memory.as_slice()], TIME))
}

/// The same over matrices that are there anyhow, one pass at least: what a decode step reads, in
/// the form that it is read in. 0 of no matrices.
pub fn read_matrices(backend: &mut CpuBackend, matrices: &[&CpuMatrix], time: Duration) -> f64 {
    let all: Vec<&[u8]> = matrices.iter().map(|m| m.memory()).collect();
    rate(backend, &all, time)
}

/// Bytes per second of the median pass over `memory`, repeated for `time`.
fn rate(backend: &mut CpuBackend, memory: &[&[u8]], time: Duration) -> f64 {
    let chunks: Vec<&[u8]> = memory.iter().flat_map(|m| m.chunks(CHUNK)).collect();
    let bytes: usize = chunks.iter().map(|c| c.len()).sum();
    let (pool, table) = backend.team();
    let started = Instant::now();
    let mut passes = Vec::new();
    while passes.is_empty() || started.elapsed() < time {
        let pass = Instant::now();
        pool.run(chunks.len(), &|chunk, _| {
            let mut out = [0i8; 16];
            let bytes = chunks[chunk];
            // SAFETY: a chunk of memory, as much of it as is a multiple of 256, and room for
            // sixteen bytes; a kernel of the table runs on this machine.
            unsafe {
                (table.touch)(&TouchArgs {
                    bytes: bytes.as_ptr(),
                    len: bytes.len() / 256 * 256,
                    out: out.as_mut_ptr(),
                });
            }
            std::hint::black_box(out);
        });
        passes.push(pass.elapsed());
    }
    passes.sort_unstable();
    bytes as f64 / passes[passes.len() / 2].as_secs_f64()
}

#[cfg(test)]
mod tests {
    use scrimp_backend::Backend;
    use scrimp_tensor::{DType, MatrixView};

    use super::*;
    use crate::{CpuLevel, CpuOptions};

    #[test]
    fn every_level_reads_something() {
        for level in CpuLevel::ALL.into_iter().filter(|l| l.is_available()) {
            let mut backend = CpuBackend::new(CpuOptions {
                level: Some(level),
                ..CpuOptions::default()
            })
            .unwrap();
            assert!(read_bandwidth(&mut backend).unwrap() > 1e6, "{level}");
        }
    }

    #[test]
    fn matrices_of_any_size_are_read() {
        let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
        // 75 weights of 4 bytes: less than a chunk, and no multiple of a step.
        let bytes = vec![0u8; 25 * 3 * 4];
        let view = MatrixView::from_blocks(DType::F32, 25, 3, &bytes).unwrap();
        let matrix = backend.load_matrix(&view).unwrap();
        assert!(matrix.memory().len() >= bytes.len());
        assert!(read_matrices(&mut backend, &[&matrix, &matrix], Duration::ZERO) > 0.0);
    }
}
