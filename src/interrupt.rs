//! Ctrl-C: ends the answer that is being given, so that its style is undone and its bill printed;
//! a second one, or one while nothing is answered, ends the process.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};

use crate::terminal;

/// What shells report for a process that Ctrl-C ended.
const EXIT_CODE: i32 = 130;

type Abort = Box<dyn FnOnce() + Send>;

/// Watches for Ctrl-C until the process ends.
#[derive(Clone, Default)]
pub struct Interrupt {
    abort: Arc<Mutex<Option<Abort>>>,
}

impl Interrupt {
    /// Begins to watch.
    pub fn watch() -> Result<Interrupt> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("watching for Ctrl-C")?;
        let interrupt = Interrupt::default();
        let watching = interrupt.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let watch = move || {
            runtime.block_on(async {
                // Made before anybody relies on it; later signals are kept, not missed.
                let mut signals = std::pin::pin!(tokio::signal::ctrl_c());
                let first =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(signals.as_mut().poll(cx)));
                let pending = first.await.is_pending();
                let _ = ready.send(());
                if pending && signals.await.is_err() {
                    return;
                }
                watching.strike();
                while tokio::signal::ctrl_c().await.is_ok() {
                    watching.strike();
                }
            });
        };
        std::thread::Builder::new()
            .name("scrimp-ctrl-c".into())
            .spawn(watch)
            .context("watching for Ctrl-C")?;
        // A watcher that cannot watch leaves Ctrl-C as it was.
        let _ = is_ready.recv();
        Ok(interrupt)
    }

    /// Ctrl-C calls `abort` while the guard lives, once.
    pub fn aborts(&self, abort: impl FnOnce() + Send + 'static) -> Aborting<'_> {
        *self.lock() = Some(Box::new(abort));
        Aborting(self)
    }

    fn strike(&self) {
        let abort = self.lock().take();
        match abort {
            Some(abort) => abort(),
            None => exit(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Abort>> {
        self.abort
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Dropped when the answer is complete.
pub struct Aborting<'a>(&'a Interrupt);

impl Drop for Aborting<'_> {
    fn drop(&mut self) {
        self.0.lock().take();
    }
}

/// Ends the process as interrupted, leaving the terminal in its own style.
pub fn exit() -> ! {
    if std::io::stdout().is_terminal() {
        // Nothing is left to do if that fails.
        let _ = terminal::print("\x1b[0m");
    }
    std::process::exit(EXIT_CODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_answer_is_aborted_once_and_only_while_it_is_given() {
        let aborted = Arc::new(AtomicUsize::new(0));
        let interrupt = Interrupt::default();
        for round in 1..=2 {
            let count = Arc::clone(&aborted);
            let guard = interrupt.aborts(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            interrupt.strike();
            assert_eq!(aborted.load(Ordering::Relaxed), round);
            assert!(interrupt.lock().is_none(), "the next one ends the process");
            drop(guard);
        }
        drop(interrupt.aborts(|| unreachable!()));
        assert!(interrupt.lock().is_none());
    }
}
