//! Serving the API over TLS, and over connections within the process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use kapi::{ApiServer, Body, audit::PeerAddress, authn::PeerCertificates};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};
use tracing::{debug, warn};

/// How many connections a listener serves at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be there without a request (upstream's `ReadHeaderTimeout`).
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(32);
/// How long the head of a further request may take, from the end of the one before (upstream's `IdleTimeout`).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a client of HTTP/2 is asked whether it is there, and how long it may take to answer (upstream's 30 and 15 s).
const ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// The buffer of a connection within the process, in bytes each way.
pub(crate) const DUPLEX_BYTES: usize = 64 * 1024;
/// How long a listener that can't accept waits before it tries again.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the tasks of one cluster share: they are counted and told when to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    /// Connections, which may end by themselves before the rest is told to.
    pub(crate) connections: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Tasks {
    /// Serves a connection until it ends or the cluster does.
    pub(crate) fn spawn_connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.connections.track_future(task));
    }

    /// Runs a task until it ends or the cluster does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }
}

/// Accepts TLS connections and serves the API on them, until the cluster ends.
pub(crate) async fn listen(
    server: ApiServer,
    listener: TcpListener,
    configs: watch::Receiver<Arc<rustls::ServerConfig>>,
    tasks: Tasks,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.drained() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Each connection has the certificate of the time when it was made.
        let acceptor = TlsAcceptor::from(Arc::clone(&configs.borrow()));
        let server = server.clone();
        tasks.spawn_connection(async move {
            let _permit = permit;
            if let Err(error) = serve_tls(server, acceptor, stream).await {
                debug!(%peer, %error, "a connection ended");
            }
        });
    }
}

/// Serves with what `make` gives, again and again: a new certificate, or the same from files that may have changed. What can't be
/// used is told to the log, and what was good goes on.
pub(crate) async fn renew<E: std::fmt::Display>(
    config: &watch::Sender<Arc<rustls::ServerConfig>>,
    every: Duration,
    make: impl Fn() -> Result<rustls::ServerConfig, E>,
) {
    loop {
        tokio::time::sleep(every).await;
        match make() {
            Ok(new) => drop(config.send_replace(Arc::new(new))),
            Err(error) => tracing::error!(%error, "the serving certificate stays as it was"),
        }
    }
}

async fn serve_tls(server: ApiServer, acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = PeerAddress(stream.peer_addr()?.ip());
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let chain = stream.get_ref().1.peer_certificates().map(|chain| {
        PeerCertificates(Arc::new(chain.iter().map(|certificate| certificate.to_vec()).collect()))
    });
    let drained = server.clone();
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if let Some(chain) = &chain {
            request.extensions_mut().insert(chain.clone());
        }
        server.clone().oneshot(request)
    });
    serve_impatiently(service, stream, drained.drained()).await
}

/// Serves HTTP to somebody who need not mean well: who is slow to ask is not waited for.
async fn serve_impatiently<S, I>(service: S, stream: I, drained: impl Future<Output = ()>) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let asked = Arc::new(Notify::new());
    let asks = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Incoming>| {
        asks.notify_one();
        service.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    let http2 = &mut builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(ALIVE_INTERVAL).keep_alive_timeout(ALIVE_TIMEOUT);
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut served = std::pin::pin!(served);
    // The timer of HTTP/1 does not run before it is known that it is HTTP/1, and there is none for HTTP/2.
    let impatience = async {
        if tokio::time::timeout(FIRST_REQUEST_TIMEOUT, asked.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = impatience => return Err(io::ErrorKind::TimedOut.into()),
        () = drained => {
            // What is being answered is answered to its end; nothing new is taken.
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    ended.map_err(io::Error::other)
}

/// Serves HTTP/1.1 or HTTP/2 on a connection, upgrades included.
pub(crate) async fn serve_connection<S, I>(service: S, stream: I) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service)).await;
    served.map_err(io::Error::other)
}

/// A connection within the process to a service that speaks HTTP.
pub(crate) fn connect<S>(service: S, tasks: &Tasks) -> DuplexStream
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
    tasks.spawn(async move {
        if let Err(error) = serve_connection(service, far).await {
            debug!(%error, "a connection within the process ended");
        }
    });
    near
}

/// A listener that is being served.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    /// The kubeconfig of an administrator for it.
    pub kubeconfig: String,
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// How long a client that sends this, and then nothing, is served, in seconds; and the first line of the answer.
    async fn served(sent: &str) -> (u64, String) {
        let (seconds, answer) = answered(sent).await;
        (seconds, answer.lines().next().unwrap_or_default().to_owned())
    }

    /// The same with all that was answered.
    async fn answered(sent: &str) -> (u64, String) {
        let server = ApiServer::builder().build().unwrap();
        server.bootstrap().await.unwrap();
        let (mut near, far) = tokio::io::duplex(DUPLEX_BYTES);
        let began = tokio::time::Instant::now();
        let serving = tokio::spawn(serve_impatiently(server, far, std::future::pending()));
        near.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        // It may end with an error.
        drop(serving.await.unwrap());
        (began.elapsed().as_secs(), answer)
    }

    /// Messages whose end can be understood in two ways (RFC 9112, section 11.2): there is one answer at most, so that nobody's
    /// request is hidden in another's body.
    #[tokio::test(start_paused = true)]
    async fn no_request_is_hidden_in_another() {
        const HIDDEN: &str = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
        let head = "POST /api/v1/namespaces HTTP/1.1\r\nhost: a\r\n";
        for (headers, body) in [
            ("content-length: 4\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            ("transfer-encoding: chunked\r\ncontent-length: 4\r\n", "0\r\n\r\n"),
            ("content-length: 0\r\ncontent-length: 38\r\n", ""),
            ("content-length: 0, 38\r\n", ""),
            ("content-length: +0\r\n", ""),
            ("content-length: -1\r\n", ""),
            ("content-length: 0x0\r\n", ""),
            ("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"),
            ("transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
            ("transfer-encoding : chunked\r\n", "0\r\n\r\n"),
            (" transfer-encoding: chunked\r\n", "0\r\n\r\n"),
            ("transfer-encoding: chunked\r\n", "-1\r\n\r\n"),
            ("transfer-encoding: chunked\r\n", "0 x\r\n\r\n"),
            ("x: a\0b\r\ncontent-length: 0\r\n", ""),
        ] {
            let sent = format!("{head}{headers}\r\n{body}{HIDDEN}");
            let (_, answer) = answered(&sent).await;
            assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{headers:?} {body:?}: {answer}");
            assert!(!answer.contains("200 OK"), "{headers:?} {body:?}: {answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_renewed_and_kept_when_that_fails() {
        let ca = crate::ca::Ca::new(Arc::new(kcore::TokioClock::new())).unwrap();
        let make = || Arc::new(ca.server_config(&["localhost"], &[], &[]).unwrap());
        let (config, mut configs) = watch::channel(make());
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let renewing = renew(&config, crate::ca::RENEWAL, || {
            match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err("not now".to_owned()),
                _ => ca.server_config(&["localhost"], &[], &[]).map_err(|error| error.to_string()),
            }
        });
        let first = Arc::clone(&configs.borrow_and_update());
        let began = tokio::time::Instant::now();
        tokio::select! {
            () = renewing => unreachable!("it goes on"),
            changed = configs.changed() => changed.unwrap(),
        }
        assert_eq!(began.elapsed().as_secs() / 86_400, 2 * 292);
        assert!(!Arc::ptr_eq(&first, &configs.borrow()));
    }

    /// Expected results: the time-outs of upstream's `SecureServingInfo.Serve`.
    #[tokio::test(start_paused = true)]
    async fn who_is_slow_to_ask_is_not_waited_for() {
        for (sent, seconds, line) in [
            ("", 32, ""),
            ("G", 32, ""),
            ("GET /healthz HT", 32, ""),
            ("GET /healthz HTTP/1.1\r\nhost: a\r\nx: ", 32, ""),
            ("PRI * HTTP/2.0\r\n\r\nSM", 32, ""),
            ("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", 90, "HTTP/1.1 200 OK"),
            ("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /", 90, "HTTP/1.1 200 OK"),
        ] {
            let (found, answer) = served(sent).await;
            assert_eq!((found, answer.as_str()), (seconds, line), "{sent:?}");
        }
    }
}
