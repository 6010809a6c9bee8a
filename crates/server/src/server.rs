//! Sockets: accepting, serving, and ending in good order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use scrimp_engine::EngineHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::app::App;
use crate::config::ServerConfig;
use crate::metrics::Metrics;
use crate::prompt::ModelText;
use crate::routes::router;
use crate::shutdown::Shutdown;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No signal handler could be set up.
    #[error("cannot watch for SIGTERM and SIGINT: {0}")]
    Signals(std::io::Error),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every request taken in was answered.
    Drained,
    /// Requests were cut off: the grace period was over, or a second signal came.
    CutOff,
}

/// A server that listens, but does not answer yet.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

/// Longest head of a request (request line and headers), in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Pause after a failed `accept`, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// Listens on the configured address.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub async fn bind(
        config: ServerConfig,
        engine: EngineHandle,
        text: ModelText,
        metrics: Metrics,
    ) -> Result<Server, ServeError> {
        let wanted = config.address;
        let failed = |source| ServeError::Bind {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server {
            app: App::new(config, engine, text, metrics),
            listener,
            address,
        })
    }

    /// Where it listens: the port is a real one, also when port 0 was configured.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` says otherwise: then no connection is accepted and no request
    /// taken any more, running requests get the grace period to finish, and the engine is told to
    /// stop.
    pub async fn run(self, shutdown: Shutdown) -> Ending {
        let Server { app, listener, .. } = self;
        let places = Arc::new(Semaphore::new(app.config.max_connections));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let router = router(Arc::clone(&app));
        loop {
            let stream = tokio::select! {
                () = shutdown.draining() => break,
                accepted = accept(&listener, &places) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let (stream, place) = stream;
            let serving = serve_connection(stream, router.clone(), &app, &graceful);
            connections.spawn(async move {
                serving.await;
                drop(place);
            });
        }
        app.draining.store(true, Ordering::Relaxed);
        drop(listener);
        let ending = tokio::select! {
            () = graceful.shutdown() => Ending::Drained,
            () = tokio::time::sleep(app.config.grace_period) => Ending::CutOff,
            () = shutdown.aborting() => Ending::CutOff,
        };
        // Dropping a connection drops its answer, which aborts its work in the engine.
        connections.shutdown().await;
        app.engine.shutdown(false);
        ending
    }
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves the requests of one connection; a drain lets the running one finish.
fn serve_connection(
    stream: TcpStream,
    router: Router,
    app: &App,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    // Small chunks of a stream must not wait for each other; without it they are only slower.
    let _ = stream.set_nodelay(true);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.read_timeout)
        .max_buf_size(MAX_HEAD_BYTES);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let watched = graceful.watch(connection);
    async move {
        if let Err(error) = watched.await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Binds, reports the address, serves until SIGTERM or SIGINT, and drains; a second signal cuts
/// off what still runs.
///
/// # Errors
/// [`ServeError`], before anything was served.
pub async fn serve(
    config: ServerConfig,
    engine: EngineHandle,
    text: ModelText,
    metrics: Metrics,
    on_bound: impl FnOnce(SocketAddr),
) -> Result<Ending, ServeError> {
    let shutdown = Shutdown::on_signals().map_err(ServeError::Signals)?;
    let server = Server::bind(config, engine, text, metrics).await?;
    on_bound(server.local_addr());
    Ok(server.run(shutdown).await)
}
