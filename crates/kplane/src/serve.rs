//! Serving the API over TLS, and over connections within the process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use kapi::{ApiServer, Body, audit::PeerAddress, authn::PeerCertificates};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};
use tracing::{debug, warn};

/// How many connections a listener serves at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The buffer of a connection within the process, in bytes each way.
pub(crate) const DUPLEX_BYTES: usize = 64 * 1024;
/// How long a listener that can't accept waits before it tries again.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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
    config: Arc<rustls::ServerConfig>,
    tasks: Tasks,
) {
    let acceptor = TlsAcceptor::from(config);
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
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tasks.spawn_connection(async move {
            let _permit = permit;
            if let Err(error) = serve_tls(server, acceptor, stream).await {
                debug!(%peer, %error, "a connection ended");
            }
        });
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
    let builder = auto::Builder::new(TokioExecutor::new());
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = drained.drained() => {
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
