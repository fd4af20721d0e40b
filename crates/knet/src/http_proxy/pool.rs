//! Connections to endpoints: those that are used, and those that are kept for the next request.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    CONNECT_MAX, HEAD_BYTES_MAX, IDLE_BACKEND_MAX, IDLE_MAX_PER_ENDPOINT,
    backend_tls::BackendTls,
    body::{Keep, ProxyBody},
    rule::{Backend, BackendProtocol},
};
use crate::redirect::{Redirects, Transport};

/// How often an endpoint that speaks HTTP/2 is asked whether it is there, and how long it may take to answer.
const ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const ALIVE_MAX: Duration = Duration::from_secs(15);

type Http1 = http1::SendRequest<ProxyBody>;
type Http2 = http2::SendRequest<ProxyBody>;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) struct Failure {
    /// The request, if nothing of it was sent.
    pub(super) request: Option<Box<Request<ProxyBody>>>,
    /// Whether the connection had served another request before, so that the endpoint may be well.
    pub(super) reused: bool,
    pub(super) error: io::Error,
}

/// Holds what an answer needs until it was read.
pub(super) struct Lease {
    sender: Option<Http1>,
    running: Running,
}

impl Keep for Lease {
    fn finished(mut self: Box<Self>) {
        if let Some(sender) = self.sender.take() {
            self.running.0.put(sender);
        }
    }
}

/// Counts a request as long as it lives.
struct Running(Arc<Endpoint>);

impl Running {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.running.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What connections are shared by: those to an address that speak the same, and that have to prove the same when they are sealed.
pub(super) type Key = (SocketAddr, BackendProtocol, Option<[u8; 32]>);

/// The key of connections to a backend's endpoint.
pub(super) fn key(address: SocketAddr, backend: &Backend) -> Key {
    (address, backend.protocol, backend.tls.as_ref().map(BackendTls::id))
}

/// What is known of an endpoint.
struct Endpoint {
    address: SocketAddr,
    tls: Option<BackendTls>,
    running: AtomicUsize,
    /// Connections of HTTP/1.1 that nobody uses, the newest last, with the time since when.
    idle: Mutex<Vec<(Instant, Http1)>>,
    /// The connection of HTTP/2 that all share. Held while it is made, so that one is.
    shared: tokio::sync::Mutex<Option<Http2>>,
}

impl Endpoint {
    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Http1)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Http1> {
        let mut idle = self.idle();
        let now = Instant::now();
        idle.retain(|(since, sender)| *since + IDLE_BACKEND_MAX > now && !sender.is_closed());
        // One whose last request is still being read by the endpoint is not ready.
        let at = idle.iter().rposition(|(_, sender)| sender.is_ready())?;
        Some(idle.remove(at).1)
    }

    fn put(&self, sender: Http1) {
        let mut idle = self.idle();
        if !sender.is_closed() && idle.len() < IDLE_MAX_PER_ENDPOINT {
            idle.push((Instant::now(), sender));
        }
    }
}

/// The connections to all endpoints.
pub(super) struct Pool {
    endpoints: Mutex<HashMap<Key, Arc<Endpoint>>>,
    redirects: Redirects,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A pool that connects to where `redirects` says.
    pub(super) fn new(redirects: Redirects) -> Self {
        Self { endpoints: Mutex::default(), redirects }
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<Key, Arc<Endpoint>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests run at an endpoint.
    pub(super) fn load(&self, address: SocketAddr, backend: &Backend) -> usize {
        let endpoints = self.endpoints();
        endpoints.get(&key(address, backend)).map_or(0, |endpoint| endpoint.running.load(Ordering::Relaxed))
    }

    /// Forgets the connections to all others. What runs on them goes on to its end.
    pub(super) fn retain(&self, keys: &HashSet<Key>) {
        self.endpoints().retain(|key, _| keys.contains(key));
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the endpoint can't be reached or does not answer. The request comes back if nothing of it was sent.
    pub(super) async fn send(
        &self,
        address: SocketAddr,
        backend: &Backend,
        request: Request<ProxyBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let endpoint = Arc::clone(self.endpoints().entry(key(address, backend)).or_insert_with(|| {
            Arc::new(Endpoint {
                address,
                tls: backend.tls.clone(),
                running: AtomicUsize::new(0),
                idle: Mutex::default(),
                shared: tokio::sync::Mutex::default(),
            })
        }));
        let running = Running::new(Arc::clone(&endpoint));
        match backend.protocol {
            BackendProtocol::Http1 => self.send_http1(&endpoint, running, request).await,
            BackendProtocol::Http2 => Box::pin(self.send_http2(&endpoint, running, request)).await,
        }
    }

    async fn send_http1(
        &self,
        endpoint: &Endpoint,
        running: Running,
        mut request: Request<ProxyBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        if let Some(mut sender) = endpoint.take() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { sender: Some(sender), running })),
                Err(mut error) => {
                    // The endpoint has closed it, and the others that are as old probably, too.
                    endpoint.idle().clear();
                    match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(failure(error, true)),
                    }
                }
            }
        }
        // Rare, and big: what is kept within the future is moved with every request.
        let mut sender = match Box::pin(self.connect_http1(endpoint)).await {
            Ok(sender) => sender,
            Err(error) => return Err(Failure { request: Some(Box::new(request)), reused: false, error }),
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, Lease { sender: Some(sender), running })),
            Err(error) => Err(failure(error, false)),
        }
    }

    async fn send_http2(
        &self,
        endpoint: &Endpoint,
        running: Running,
        mut request: Request<ProxyBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let known = endpoint.shared.lock().await.clone().filter(|sender| !sender.is_closed());
        if let Some(mut sender) = known {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { sender: None, running })),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failure(error, true)),
                },
            }
        }
        let sender = {
            let mut shared = endpoint.shared.lock().await;
            match shared.as_ref().filter(|sender| !sender.is_closed()).cloned() {
                Some(sender) => Ok(sender),
                None => self.connect_http2(endpoint).await.inspect(|sender| *shared = Some(sender.clone())),
            }
        };
        let mut sender = match sender {
            Ok(sender) => sender,
            Err(error) => return Err(Failure { request: Some(Box::new(request)), reused: false, error }),
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, Lease { sender: None, running })),
            Err(error) => Err(failure(error, false)),
        }
    }

    /// A connection of its own.
    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let address = self.redirects.resolve(Transport::Tcp, address);
        let stream = timeout(CONNECT_MAX, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect_http1(&self, endpoint: &Endpoint) -> io::Result<Http1> {
        let connect = async {
            let stream = self.connect(endpoint.address).await?;
            match &endpoint.tls {
                None => begin_http1(stream, endpoint.address).await,
                Some(tls) => {
                    begin_http1(tls.connect(BackendProtocol::Http1, stream).await?, endpoint.address).await
                }
            }
        };
        timeout(CONNECT_MAX, connect).await?
    }

    async fn connect_http2(&self, endpoint: &Endpoint) -> io::Result<Http2> {
        let connect = async {
            let stream = self.connect(endpoint.address).await?;
            match &endpoint.tls {
                None => begin_http2(stream, endpoint.address).await,
                Some(tls) => {
                    begin_http2(tls.connect(BackendProtocol::Http2, stream).await?, endpoint.address).await
                }
            }
        };
        timeout(CONNECT_MAX, connect).await?
    }
}

async fn begin_http1<I>(stream: I, address: SocketAddr) -> io::Result<Http1>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends when nobody holds the sender and what it has carried is over.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%address, %error, "a connection to an endpoint ended");
        }
    });
    Ok(sender)
}

async fn begin_http2<I>(stream: I, address: SocketAddr) -> io::Result<Http2>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(ALIVE_INTERVAL).keep_alive_timeout(ALIVE_MAX);
    builder.max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%address, %error, "a connection to an endpoint ended");
        }
    });
    Ok(sender)
}

fn failure(mut error: TrySendError<Request<ProxyBody>>, reused: bool) -> Failure {
    let request = error.take_message().map(Box::new);
    Failure { request, reused, error: io::Error::other(error.into_error()) }
}
