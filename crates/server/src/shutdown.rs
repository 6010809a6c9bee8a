//! Asking a server to end: first politely, then not.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Aborting,
}

/// Ends a server. Clones end the same one.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Sender<Stage>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown {
            stage: watch::Sender::new(Stage::Running),
        }
    }
}

impl Shutdown {
    /// Ends the server at SIGTERM or SIGINT (Ctrl-C): the first drains, the second aborts.
    ///
    /// # Errors
    /// When the system refuses a signal handler. Needs a tokio runtime with IO.
    #[cfg(unix)]
    pub fn on_signals() -> std::io::Result<Shutdown> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Shutdown::default();
        let told = shutdown.clone();
        tokio::spawn(async move {
            for tell in [Shutdown::drain, Shutdown::abort] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tell(&told);
            }
        });
        Ok(shutdown)
    }

    /// Ends the server at Ctrl-C: the first drains, the second aborts.
    ///
    /// # Errors
    /// None here; other systems may refuse a handler.
    #[cfg(not(unix))]
    pub fn on_signals() -> std::io::Result<Shutdown> {
        let shutdown = Shutdown::default();
        let told = shutdown.clone();
        tokio::spawn(async move {
            for tell in [Shutdown::drain, Shutdown::abort] {
                if tokio::signal::ctrl_c().await.is_ok() {
                    tell(&told);
                }
            }
        });
        Ok(shutdown)
    }

    /// Takes nothing new, and finishes what runs.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// Ends what runs, too.
    pub fn abort(&self) {
        self.advance(Stage::Aborting);
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let later = to > *stage;
            *stage = to.max(*stage);
            later
        });
    }

    pub(crate) async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    pub(crate) async fn aborting(&self) {
        self.reached(Stage::Aborting).await;
    }

    async fn reached(&self, stage: Stage) {
        // The sender is `self`: the channel cannot close while this waits.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }
}
