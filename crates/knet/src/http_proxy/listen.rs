//! The proxy's sockets: accept, TLS, and HTTP on it.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    CONNECTIONS_MAX, FIRST_REQUEST_MAX, HANDSHAKE_MAX, HEAD_BYTES_MAX, IDLE_CLIENT_MAX, MIRRORS_MAX,
    STREAMS_MAX, TUNNELS_MAX,
    forward::{self, Arrival, InGrpc},
    metrics::{Answer, Metrics, OfRule},
    passthrough,
    pool::Pool,
    table::RouteTable,
    tls::{self, Certificate},
};
use crate::redirect::Redirects;

/// How long a listener that can't accept waits before it tries again.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often a client of HTTP/2 is asked whether it is there, and how long it may take to answer.
const ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const ALIVE_MAX: Duration = Duration::from_secs(15);

/// What a proxy does beside its table.
#[derive(Clone, Debug, Default)]
pub struct ProxyOptions {
    /// Where endpoints are really served.
    pub redirects: Redirects,
    /// What is shown to those who ask for a name that has no certificate. Without it their handshake fails.
    pub default_certificate: Option<Certificate>,
    /// Whether `X-Forwarded-*` and `Forwarded` of clients are believed: when another proxy stands before this one.
    pub trusts_forwarded: bool,
    /// Whether paths are compared and handed on as they were sent, for backends that tell `//` from `/`. Then another spelling of a path
    /// can pass a rule by. Default: no.
    pub keeps_paths: bool,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) table: watch::Sender<Arc<RouteTable>>,
    pub(super) pool: Arc<Pool>,
    /// How many connections may still be upgraded, and how many mirrored requests may still run.
    pub(super) tunnels: Arc<Semaphore>,
    pub(super) mirrors: Arc<Semaphore>,
    pub(super) options: ProxyOptions,
    pub(super) metrics: Metrics,
    /// Ends everything.
    pub(super) stop: CancellationToken,
    /// Ends what takes new requests.
    closing: CancellationToken,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
}

/// Serves HTTP by a [`RouteTable`]. Cheap to clone; all clones are one. When the last one is dropped, everything ends.
#[derive(Clone)]
pub struct HttpProxy {
    shared: Arc<Shared>,
    _stop_on_drop: Arc<DropGuard>,
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.shared.connections.len();
        f.debug_struct("HttpProxy").field("connections", &connections).finish_non_exhaustive()
    }
}

impl HttpProxy {
    /// A proxy with an empty table, which answers everything with 404.
    #[must_use]
    pub fn new(options: ProxyOptions) -> Self {
        let stop = CancellationToken::new();
        let shared = Shared {
            table: watch::Sender::default(),
            pool: Arc::new(Pool::new(options.redirects.clone())),
            tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)),
            mirrors: Arc::new(Semaphore::new(MIRRORS_MAX)),
            options,
            metrics: Metrics::default(),
            closing: stop.child_token(),
            stop: stop.clone(),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            connections: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared), _stop_on_drop: Arc::new(stop.drop_guard()) }
    }

    /// Goes by this table from now on. Requests that run go on as they began; connections to endpoints that are not in it end
    /// with the last request on them.
    pub fn set_table(&self, table: impl Into<Arc<RouteTable>>) {
        let table = table.into();
        let endpoints = table.endpoints().collect();
        self.shared.table.send_replace(table);
        self.shared.pool.retain(&endpoints);
    }

    /// The table, and those that come.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.shared.table.subscribe()
    }

    /// Serves what comes to `listener` as the table says for `port`, until [`shutdown`](Self::shutdown) or the last clone is
    /// dropped. Gives the address.
    ///
    /// # Errors
    /// When the listener has no address, or TLS can't be set up.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve(&self, port: u16, listener: TcpListener) -> io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        let default = self.shared.options.default_certificate.clone();
        let config = tls::config(self.shared.table.subscribe(), port, default).map_err(io::Error::other)?;
        let acceptor = TlsAcceptor::from(config);
        let shared = Arc::downgrade(&self.shared);
        let closing = self.shared.closing.clone();
        let permits = Arc::clone(&self.shared.permits);
        tokio::spawn(async move {
            loop {
                let accept = async { (Arc::clone(&permits).acquire_owned().await, listener.accept().await) };
                let (permit, accepted) = tokio::select! {
                    () = closing.cancelled() => return,
                    accepted = accept => accepted,
                };
                let (Ok(permit), Ok((stream, client))) = (permit, accepted) else {
                    // No descriptor is free, perhaps: others may be given back meanwhile.
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                };
                let Some(shared) = shared.upgrade() else { return };
                let acceptor = acceptor.clone();
                let connections = shared.connections.clone();
                connections.spawn(async move {
                    let stop = shared.stop.clone();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        ended = serve_connection(shared, acceptor, port, stream, client) => {
                            if let Err(error) = ended {
                                tracing::debug!(%client, %error, "a client's connection ended");
                            }
                        }
                    }
                    drop(permit);
                });
            }
        });
        Ok(address)
    }

    /// What is counted, as Prometheus reads it, with `name` as the label `proxy`: requests by rule and status (errors that clients of gRPC are told of have
    /// the label `grpc_status`, too, and the `code` that they would have in HTTP), how long the heads of answers take, tries that failed, connections. At most [`SERIES_MAX`](super::SERIES_MAX) pairs of rule and status are told apart.
    #[must_use]
    pub fn metrics(&self, name: &str) -> String {
        let tunnels = TUNNELS_MAX.saturating_sub(self.shared.tunnels.available_permits());
        self.shared.metrics.text(name, self.shared.connections.len(), tunnels)
    }

    /// Takes no new connections and requests, and waits until those that run have ended, at most so long. Then all ends, upgraded
    /// connections too.
    pub async fn shutdown(&self, longest: Duration) {
        self.shared.closing.cancel();
        self.shared.connections.close();
        if timeout(longest, self.shared.connections.wait()).await.is_err() {
            tracing::debug!("some requests had not ended when the proxy did");
        }
        self.shared.stop.cancel();
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    port: u16,
    stream: TcpStream,
    client: SocketAddr,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (secure, sealed) = {
        let table = shared.table.borrow();
        let routes = table.ports.get(&port);
        let sealed = routes.is_some_and(|routes| routes.passthrough.values().next().is_some());
        (routes.is_some_and(|routes| routes.tls.is_some()), sealed)
    };
    if sealed {
        return passthrough::carry(&shared, port, stream).await;
    }
    let mut arrival = Arrival { port, client, secure, name: None };
    if secure {
        let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
        let name = stream.get_ref().1.server_name();
        arrival.name = name.map(|name| name.to_ascii_lowercase().into());
        serve_http(shared, arrival, stream).await
    } else {
        serve_http(shared, arrival, stream).await
    }
}

async fn serve_http<I>(shared: Arc<Shared>, arrival: Arrival, stream: I) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let closing = shared.closing.clone();
    let asked = Arc::new(Notify::new());
    let asks = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Incoming>| {
        asks.notify_one();
        let (shared, arrival) = (Arc::clone(&shared), arrival.clone());
        async move {
            let began = Instant::now();
            let mut response = forward::answer(&shared, &arrival, request).await;
            let rule = response.extensions_mut().remove::<OfRule>();
            let answer = match response.extensions_mut().remove::<InGrpc>() {
                None => Answer::from(response.status()),
                Some(InGrpc(status, code)) => Answer { status, grpc: Some(code) },
            };
            shared.metrics.answered(rule.as_ref(), answer, began.elapsed());
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let http1 = &mut builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(IDLE_CLIENT_MAX);
    // HEADERS_MAX is hyper's own limit; to name it would cost an allocation for each head.
    http1.max_buf_size(HEAD_BYTES_MAX);
    let http2 = &mut builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(ALIVE_INTERVAL).keep_alive_timeout(ALIVE_MAX);
    http2.max_concurrent_streams(STREAMS_MAX);
    http2.max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    // The timer of HTTP/1 does not run before it is known that it is HTTP/1, and there is none for HTTP/2.
    let impatience = async {
        if timeout(FIRST_REQUEST_MAX, asked.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = impatience => return Err(io::ErrorKind::TimedOut.into()),
        () = closing.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    ended.map_err(io::Error::other)
}
