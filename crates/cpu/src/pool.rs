//! The threads that compute: a team that is always there, woken through user space.
//!
//! A step of a small model opens hundreds of parallel regions, each a few microseconds long. So
//! workers spin for a while on one word before they park, and a region is opened and closed
//! through that word alone:
//!
//! ```text
//! gate = epoch << 32 | OPEN | joined
//! caller:  publish task; gate = (epoch + 1) << 32 | OPEN; wake the parked; take chunks;
//!          close the gate (no more joins); wait until `done` = joined
//! worker:  see a new open epoch; joined += 1 unless closed meanwhile; take chunks; done += 1
//! ```
//!
//! A worker that the machine is not running (a busy neighbour) does not join, and is not waited
//! for. Of a team larger than the machine only as many as it has cores are ever woken: two that
//! take turns on a core finish a region later than one that has it. Chunks are fixed by the caller
//! and taken from a counter, so which thread computes a chunk is a matter of timing and what it
//! computes is not.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

/// Looks at the gate before a worker parks: a few hundred microseconds.
const SPINS: u32 = 20_000;
/// Looks at the count of finished workers before the caller gives its core away between looks.
const SPINS_TO_FINISH: u32 = 2_000;
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

/// What every thread of a region runs: `(chunk, thread)`.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// State on lines of their own, so that spinning on one does not slow another.
#[repr(align(128))]
struct Line<T>(T);

struct State {
    gate: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    done: Line<AtomicU32>,
    panicked: AtomicBool,
    chunks: AtomicUsize,
    task: UnsafeCell<Option<&'static Task<'static>>>,
    parked: Vec<Line<AtomicBool>>,
    shutdown: AtomicBool,
    /// Workers that take part: those that have a core beside the caller's.
    active: usize,
}

// SAFETY: `task` is written only while the gate is closed and nobody is joined, and read only by
// threads that joined through the open gate; the gate orders the two.
unsafe impl Sync for State {}

/// A team of threads, the caller's own included.
pub(crate) struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A team of `threads`, at least one.
    pub(crate) fn new(threads: usize) -> Pool {
        let cores = thread::available_parallelism().map_or(usize::MAX, std::num::NonZero::get);
        Pool::on_cores(threads, cores)
    }

    /// The same for a machine of `cores` cores, at least one.
    fn on_cores(threads: usize, cores: usize) -> Pool {
        let workers = threads.max(1) - 1;
        let state = Arc::new(State {
            gate: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            done: Line(AtomicU32::new(0)),
            panicked: AtomicBool::new(false),
            chunks: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            parked: (0..workers).map(|_| Line(AtomicBool::new(false))).collect(),
            shutdown: AtomicBool::new(false),
            active: workers.min(cores - 1),
        });
        let workers = (0..workers)
            .map_while(|index| {
                let state = Arc::clone(&state);
                thread::Builder::new()
                    .name(format!("scrimp-cpu-{}", index + 1))
                    .spawn(move || state.work(index))
                    .ok()
            })
            .collect();
        Pool { state, workers }
    }

    /// Threads in the team.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(chunk, thread)` for every chunk below `chunks`, and returns when all are done.
    pub(crate) fn run(&mut self, chunks: usize, task: &Task<'_>) {
        if self.state.active == 0 || chunks <= 1 {
            (0..chunks).for_each(|chunk| task(chunk, 0));
            return;
        }
        let state = &*self.state;
        // SAFETY: only the lifetime changes. The reference is used by threads that joined, and
        // `Region`'s drop waits for them before this frame ends, panic or not.
        let task: &'static Task<'static> = unsafe { std::mem::transmute(task) };
        // SAFETY: the gate is closed and nobody is joined: the last region's drop saw to it, and
        // `&mut self` keeps other callers out.
        unsafe { *state.task.get() = Some(task) };
        state.chunks.store(chunks, Ordering::Relaxed);
        state.next.0.store(0, Ordering::Relaxed);
        state.done.0.store(0, Ordering::Relaxed);
        let epoch = (state.gate.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        state.gate.0.store(epoch << 32 | OPEN, Ordering::SeqCst);
        for (parked, worker) in state.parked.iter().zip(&self.workers).take(state.active) {
            if parked.0.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let region = Region(state);
        state.take_chunks(task, 0);
        drop(region);
        if state.panicked.swap(false, Ordering::Relaxed) {
            panic!("a worker thread panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.shutdown.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics; there is nothing to pass on here.
            let _ = worker.join();
        }
    }
}

/// An open gate, closed on drop.
struct Region<'a>(&'a State);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        let joined = (self.0.gate.0.fetch_and(!OPEN, Ordering::AcqRel) & JOINED) as u32;
        let mut looks = 0;
        while self.0.done.0.load(Ordering::Acquire) != joined {
            looks += 1;
            if looks < SPINS_TO_FINISH {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl State {
    fn take_chunks(&self, task: &Task<'_>, thread: usize) {
        let chunks = self.chunks.load(Ordering::Relaxed);
        loop {
            let chunk = self.next.0.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            task(chunk, thread);
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait_for_epoch_after(seen, index) {
            seen = epoch;
            if !self.join(epoch) {
                continue;
            }
            // SAFETY: joined through the open gate, so the task is published and stays until
            // `done` counts this thread.
            if let Some(task) = unsafe { *self.task.get() } {
                let run = std::panic::AssertUnwindSafe(|| self.take_chunks(task, index + 1));
                if std::panic::catch_unwind(run).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.done.0.fetch_add(1, Ordering::Release);
        }
    }

    /// The gate's epoch once it differs from `seen`; `None` at shutdown. Workers that do not take
    /// part only ever see the shutdown.
    fn wait_for_epoch_after(&self, seen: u64, index: usize) -> Option<u64> {
        let parked = &self.parked[index].0;
        let mut looks = 0;
        loop {
            let epoch = self.gate.0.load(Ordering::SeqCst) >> 32;
            if epoch != seen && index < self.active {
                parked.store(false, Ordering::Relaxed);
                return Some(epoch);
            }
            if self.shutdown.load(Ordering::SeqCst) {
                return None;
            }
            looks += 1;
            if index < self.active && looks < SPINS {
                std::hint::spin_loop();
            } else if parked.swap(true, Ordering::SeqCst) {
                // Said so, and looked again since: sleep until the caller says otherwise.
                thread::park();
            }
        }
    }

    /// Joins the region of `epoch` unless it is closed or over.
    fn join(&self, epoch: u64) -> bool {
        let mut gate = self.gate.0.load(Ordering::Acquire);
        while gate >> 32 == epoch && gate & OPEN != 0 {
            let joined = self.gate.0.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match joined {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_whatever_the_team() {
        for (threads, cores) in [(1, 64), (2, 64), (3, 64), (17, 64), (3, 2), (4, 1)] {
            let mut pool = Pool::on_cores(threads, cores);
            assert_eq!(pool.threads(), threads);
            for chunks in [0, 1, 2, 5, 100] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(chunks, &|chunk, thread| {
                        assert!(thread < threads.min(cores));
                        counts[chunk].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = Pool::on_cores(3, 3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(1000, &|chunk, _| {
                sum.fetch_add(chunk, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 499_500);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_usable() {
        let mut pool = Pool::on_cores(2, 2);
        let run = std::panic::AssertUnwindSafe(|| pool.run(8, &|chunk, _| assert!(chunk != 3)));
        assert!(std::panic::catch_unwind(run).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|chunk, _| {
            sum.fetch_add(chunk, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
