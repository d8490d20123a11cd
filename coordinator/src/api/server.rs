//! Connections: accepted within bounds, served, and ended in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::{self, Guard};
use super::engine::Engine;
use super::state::Api;
use super::{
    ApiSettings, body, caches, chat, comparisons, completions, dashboard, forecast, live, pages, pin, watch,
    workers,
};

/// Most connections at a time; further ones wait in the operating system's queue. Far above what one pipeline can
/// serve, and below the usual limit of 1024 open files together with everything else.
const MAX_CONNECTIONS: usize = 768;

/// How long a client may take to send a request's headers, and may leave a connection idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// After how long without a byte a client is asked whether it is still there, and how often from then on.
const PROBE_AFTER: Duration = Duration::from_secs(15);

/// How long a client may neither acknowledge nor take what is sent before it counts as gone: it must not hold a
/// connection, or have an answer generated for it, for ever.
#[cfg(target_os = "linux")]
const GONE_AFTER: Duration = Duration::from_secs(60);

/// How long connections may take to end at shutdown: streams only have an error event left to send.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(700);

/// Rest after a failure to accept, which is mostly a lack of file descriptors that connections still hold.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A server that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is not usable.
    #[error("failed to listen for HTTP: {0}; give a free address with --http")]
    Listener(#[from] std::io::Error),
}

/// Serves the HTTP API on `listener` until `shutdown` is cancelled. Then nothing more is accepted, running streams get an
/// error event and end, and every connection is closed; that takes less than a second.
///
/// # Errors
/// Where the listener itself does not work. Failures of single connections are logged and end nothing else.
pub async fn serve<E: Engine>(
    listener: TcpListener,
    engine: E,
    settings: ApiSettings,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    listener.local_addr()?;
    let guard = Guard::new(&settings);
    let api = Api::new(engine, guard, &settings, shutdown.clone());
    if let Some(kept) = &settings.kept {
        kept.tend(shutdown.clone());
    }
    let router = router(api);
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (slot, Ok((stream, remote))) => {
                tracing::debug!(%remote, "HTTP connection accepted");
                let serving = serve_connection(stream, router.clone(), shutdown.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    serving.await;
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "failed to accept an HTTP connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    if let Some(kept) = settings.kept {
        kept.close().await;
    }
    Ok(())
}

async fn serve_connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    if let Err(error) = set_options(&stream) {
        // The socket works all the same, a little less well.
        tracing::debug!(%error, "failed to set the options of an HTTP connection");
    }
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(SHUTDOWN_GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection broke");
    }
}

/// Tokens are small and must leave at once; and a client whose machine has vanished is noticed.
fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER))?;
    // Elsewhere the system's own limits hold for what is sent and not acknowledged.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(GONE_AFTER))?;
    Ok(())
}

fn router<E: Engine>(api: Api<E>) -> Router {
    Router::new()
        .route("/", get(dashboard::index::<E>))
        .route("/assets/{name}", get(dashboard::asset))
        .route("/v1/completions", post(completions::complete::<E>))
        .route("/v1/chat/completions", post(chat::chat::<E>))
        .route("/v1/models", get(pages::models::<E>))
        .route("/v1/models/{*id}", get(pages::model::<E>))
        .route("/health", get(pages::health::<E>))
        .route("/readyz", get(pages::readyz::<E>))
        .route("/livez", get(pages::livez))
        .route("/metrics", get(pages::metrics::<E>))
        .route("/api/status", get(pages::status::<E>))
        .route("/api/devices", get(forecast::devices::<E>))
        .route("/api/forecast", get(forecast::forecast::<E>))
        .route("/api/stream", get(live::stream::<E>))
        .route("/api/timeline", get(watch::timeline::<E>))
        .route("/api/events", get(watch::events::<E>))
        .route("/api/comparisons", get(comparisons::list::<E>))
        .route("/api/comparisons/{id}", get(comparisons::one::<E>))
        .route("/api/workers/{worker}/drain", post(workers::drain::<E>).delete(workers::undo::<E>))
        .route("/api/caches", get(caches::list::<E>))
        .route("/api/caches/{fingerprint}", delete(caches::remove::<E>))
        .route("/api/caches/{fingerprint}/verify", post(caches::verify::<E>))
        .route("/api/pin", put(pin::pin::<E>).delete(pin::unpin::<E>))
        .route("/api/choices", get(forecast::choices::<E>))
        .fallback(pages::unknown_route)
        .method_not_allowed_fallback(pages::wrong_method)
        .layer(DefaultBodyLimit::max(body::MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), auth::guard::<E>))
        .layer(middleware::from_fn(log))
        .with_state(api)
}

/// Logs that a request was answered, or its stream begun; never what it said.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let (status, took_ms) = (response.status().as_u16(), start.elapsed().as_millis());
    tracing::debug!(%method, path, status, took_ms, "HTTP request");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_vanishes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set_options(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(GONE_AFTER));
    }
}
