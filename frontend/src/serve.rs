//! Accepts connections, one task each, and lets them end on shutdown.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, middleware::from_fn};
use baton_model::ModelText;
use baton_trust::{Https, Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    Config, ConfigError, Dispatch, Door, HttpMetrics, Shelves,
    batches::work_on_all,
    host::one_host,
    replay::{self, Calls, Replicas, Seat, Store},
    routes,
    write_timeout::WriteTimeout,
};

/// What the routes stand on.
pub struct Services {
    /// Who answers.
    pub dispatch: Arc<dyn Dispatch>,
    /// Everything that `/metrics` prints.
    pub registry: Arc<Registry>,
    /// This room's part of it.
    pub metrics: HttpMetrics,
    /// Whom it lets in.
    pub door: Door,
    /// What clients are shown; none: they come over HTTP.
    pub https: Option<Https>,
    /// What calls with an `Idempotency-Key` were answered.
    pub kept: Arc<Store>,
    /// What tenants leave here.
    pub shelves: Arc<Shelves>,
    /// This coordinator among others; none: it is the only one.
    pub seat: Option<Seat>,
    /// Who is given the routes for calls inside this process; none: nobody.
    pub inside: Option<oneshot::Sender<Router>>,
    /// Texts that this process has anyway; others are fetched from nodes, before the first call if possible.
    pub texts: Vec<Arc<ModelText>>,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Other coordinators cannot be served.
    #[error("other coordinators cannot be served")]
    Replicas(#[source] tonic::transport::Error),
}

/// Time between two looks for models whose text is not here yet.
const PREFETCH_INTERVAL: Duration = Duration::from_millis(500);

/// Pause after an accept that failed for lack of file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready, then takes no more connections and gives
/// running answers the configured grace. Dropping the future ends everything.
///
/// # Errors
/// When a setting cannot work.
pub async fn serve(
    listener: Listener,
    config: Config,
    mut services: Services,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), FrontendError> {
    let (seat, https, inside) = (services.seat.take(), services.https.take(), services.inside.take());
    let replicas = seat.as_ref().map_or_else(Replicas::alone, Seat::replicas);
    let (router, room) = routes::router(config.clone(), services, replicas);
    // Who asked for them may have given up meanwhile.
    let _ = inside.map(|inside| inside.send(router.clone()));
    let stop = CancellationToken::new();
    let keeping = keep(seat, (router.clone(), Arc::clone(&room)), &stop);
    let end = async {
        shutdown.await;
        stop.cancel();
    };
    let conversing = converse_with_all((listener, https.clone()), &config, router, end);
    let follow = async {
        match &https {
            Some(https) => https.follow().await,
            None => std::future::pending().await,
        }
    };
    // Calls that nobody reads any more end with the room.
    let _calls = Calls(Arc::clone(&room.kept));
    let prefetch = async {
        loop {
            room.desk.texts.prefetch().await;
            tokio::time::sleep(PREFETCH_INTERVAL).await;
        }
    };
    let served = tokio::select! {
        served = async { tokio::try_join!(conversing, keeping) } => served.map(drop),
        never = prefetch => never,
        never = room.door.follow() => match never {},
        never = follow => match never {},
        never = work_on_all(&room) => match never {},
    };
    room.shelves.settle().await;
    served
}

/// Answers for other coordinators what this one keeps, until `stop` and the configured grace after it.
async fn keep(
    seat: Option<Seat>,
    (router, room): (Router, Arc<routes::Room>),
    stop: &CancellationToken,
) -> Result<(), FrontendError> {
    let Some(Seat { listener, trust, .. }) = seat else { return Ok(()) };
    let grace = room.desk.config.grace();
    let stopped = stop.clone().cancelled_owned();
    tokio::select! {
        served = replay::serve(listener, &trust, (router, room), stopped) => served.map_err(FrontendError::Replicas),
        () = async { stop.cancelled().await; tokio::time::sleep(grace).await } => Ok(()),
    }
}

/// `/health` and `/metrics` alone, for a process without the API.
///
/// # Errors
/// As [`serve`].
pub async fn serve_metrics(
    listener: Listener,
    config: Config,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), FrontendError> {
    converse_with_all((listener, None), &config, routes::metrics_router(registry), shutdown).await
}

/// Routes of another room, with the limits of this one on connections.
///
/// # Errors
/// As [`serve`].
pub async fn serve_routes(
    listener: Listener,
    config: Config,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), FrontendError> {
    converse_with_all((listener, None), &config, router, shutdown).await
}

/// Accepts connections until `shutdown`, then lets them end.
async fn converse_with_all(
    (listener, https): (Listener, Option<Https>),
    config: &Config,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), FrontendError> {
    config.validate()?;
    info!(addr = %listener.local_addr(), tls = https.is_some(), "serving HTTP");
    let listener = listener.into_inner();
    let (grace, write_timeout, patience) = (config.grace(), config.write_timeout(), config.header_timeout());
    let places = Arc::new(Semaphore::new(config.max_connections));
    let http = connection_settings(config);
    let router = router.layer(from_fn(one_host));
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (stream, place) = accept(&listener, &places) => {
                let stream = WriteTimeout::new(stream, write_timeout);
                let (https, http, router, stop) = (https.clone(), http.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    match https {
                        None => converse(http, stream, router, stop).await,
                        Some(https) => {
                            if let Some(stream) = shown(&https, stream, patience, &stop).await {
                                converse(http, stream, router, stop).await;
                            }
                        }
                    }
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    stop.cancel();
    let drained =
        tokio::time::timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        warn!(connections = connections.len(), "grace is over, cutting off running answers");
        connections.shutdown().await;
    }
    Ok(())
}

fn connection_settings(config: &Config) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout())
        .max_headers(config.max_headers)
        .max_header_size(config.max_header_bytes);
    http
}

/// The next connection, and the place it takes among `max_connections`.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = loop {
        // The semaphore is never closed.
        if let Ok(place) = Arc::clone(places).acquire_owned().await {
            break place;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it, Nagle's algorithm holds a token back until the client's
                // delayed ACK for the one before, 40 ms later.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "connection broke before it began");
                    continue;
                }
                return (stream, place);
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The stream inside TLS; none if the client leaves, is too slow, or comes too late.
async fn shown<S: AsyncRead + AsyncWrite + Unpin>(
    https: &Https,
    stream: S,
    patience: Duration,
    stop: &CancellationToken,
) -> Option<impl AsyncRead + AsyncWrite + Unpin + use<S>> {
    let accepting = tokio::time::timeout(patience, https.accept(stream));
    match stop.run_until_cancelled(accepting).await? {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!(%error, "no TLS with a client");
            None
        }
        Err(_) => None,
    }
}

/// One connection to its end. After `stop` it ends with the answer that is under way.
async fn converse(
    http: http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    stop: CancellationToken,
) {
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_do_not_wait_for_acks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let places = Arc::new(Semaphore::new(1));
        let (client, (stream, _place)) = tokio::join!(TcpStream::connect(addr), accept(&listener, &places));
        assert!(client.is_ok());
        assert!(stream.nodelay().unwrap());
    }
}
