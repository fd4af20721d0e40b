//! Connections: plain and with TLS, HTTP/2 and HTTP/1.1 on one port.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::{Request, Response, header};
use http_body::Body as HttpBody;
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;

use super::{EtcdServer, calls::Calls, gateway, gather::gather, grpc, http1};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How often in a row a connection may fail to be accepted before the listener counts as broken, and the pause in between.
const ACCEPT_FAILURES_MAX: u32 = 600;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections are served at once.
pub(super) const CONNECTIONS_MAX: usize = 65_536;
/// How many calls one connection may have running; watches are calls that go on.
const STREAMS_MAX: u32 = 1_000_000;
/// How many bytes a client may have sent that nobody has read yet, for each call and together.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Why a server ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No more connections can be taken.
    #[error("connections can't be accepted")]
    Accept(#[from] io::Error),
}

impl EtcdServer {
    /// Serves until `end` is there, and ends all connections then.
    ///
    /// # Errors
    /// [`ServeError::Accept`] when the listener is broken.
    pub async fn serve(
        &self,
        listener: TcpListener,
        end: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.accept(listener, None, end).await
    }

    /// The same with TLS. Whether clients need a certificate is said by `tls`; its protocols must include `h2`.
    ///
    /// # Errors
    /// As of [`serve`](EtcdServer::serve).
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<tokio_rustls::rustls::ServerConfig>,
        end: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.accept(listener, Some(TlsAcceptor::from(tls)), end).await
    }

    async fn accept(
        &self,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        end: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let mut connections = JoinSet::new();
        let mut end = std::pin::pin!(end);
        let mut failures = 0;
        loop {
            let (stream, _) = tokio::select! {
                () = &mut end => break,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) if passing(&error) => continue,
                    // Too many open files, as a rule, until a connection ends.
                    Err(error) if failures < ACCEPT_FAILURES_MAX => {
                        tracing::warn!(%error, "a connection can't be accepted");
                        failures += 1;
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                },
                Some(_) = connections.join_next() => continue,
            };
            failures = 0;
            // Answers are small and waited for.
            let _ = stream.set_nodelay(true);
            let (server, tls) = (self.clone(), tls.clone());
            connections.spawn(async move {
                match tls {
                    None => server.connection(stream).await,
                    Some(tls) => match tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await {
                        Ok(Ok(stream)) => server.connection(stream).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a client's TLS handshake failed"),
                        Err(_) => tracing::debug!("a client took too long for its TLS handshake"),
                    },
                }
            });
        }
        connections.shutdown().await;
        Ok(())
    }

    /// Serves one connection to its end.
    pub async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let server = self.clone();
        let service = hyper::service::service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.call(request).await) }
        });
        let calls = Calls::default();
        let (stream, flush) = gather(stream);
        let mut server = auto::Builder::new(calls.clone());
        server
            .http2()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let connection = server.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = calls.run_beside(connection, &flush).await {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// Answers one request, for those who have connections of their own.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return grpc::call(self.face.clone(), request).await;
        }
        if gateway::is_mine(request.uri().path()) {
            return gateway::answer(self.face.clone(), request).await;
        }
        http1::answer(&self.face, &request).await.map(Body::new)
    }
}

/// Whether the next connection may fare better.
fn passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted)
}
