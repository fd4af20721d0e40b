//! Backends and clients.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use knet::http_proxy::{
    Action, Backend, BackendProtocol, HostName, HttpProxy, Match, PathMatch, PortRoutes, ProxyOptions,
    RouteTable, Rule,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};
use tokio_util::sync::CancellationToken;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    UnsyncBoxBody::new(Full::new(text.into()))
}

pub(super) fn backend(endpoints: &[SocketAddr]) -> Backend {
    Backend {
        name: "shop/web:80".into(),
        weight: 1,
        protocol: BackendProtocol::Http1,
        tls: None,
        endpoints: Some(endpoints.into()),
        filters: Vec::new(),
    }
}

/// Everything at port 80 goes there.
pub(super) fn one_rule(action: Action) -> RouteTable {
    let rule = Rule::new("all", Match::path(PathMatch::Prefix("/".into())), action);
    of_rule(rule)
}

/// This rule is for all that comes to port 80.
pub(super) fn of_rule(rule: Rule) -> RouteTable {
    let mut routes = PortRoutes::default();
    routes.add(HostName::Any, HostName::Any, Arc::new(rule));
    RouteTable { ports: [(80, routes)].into() }
}

pub(super) fn table(endpoints: &[SocketAddr]) -> RouteTable {
    one_rule(Action::Forward(vec![backend(endpoints)]))
}

/// A proxy that serves the table's port 80.
pub(super) async fn proxy(table: RouteTable) -> (HttpProxy, SocketAddr) {
    let proxy = HttpProxy::new(ProxyOptions::default());
    proxy.set_table(table);
    let address = proxy.serve(80, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    (proxy, address)
}

/// An address where nobody listens.
pub(super) async fn dead_address() -> SocketAddr {
    // Nobody else binds addresses of this host at random, so the port stays free.
    let listener = TcpListener::bind("127.98.76.54:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// What a backend has seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
    /// What was read before it was answered.
    pub(super) body: String,
}

/// Answers with what it was sent, and with its name where that is nothing.
pub(super) struct Echo {
    pub(super) address: SocketAddr,
    seen: Mutex<mpsc::UnboundedReceiver<Seen>>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    reads: bool,
    sender: mpsc::UnboundedSender<Seen>,
) -> Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let mut seen = Seen { uri: parts.uri.to_string(), headers: parts.headers, body: String::new() };
    let own = || UnsyncBoxBody::new(Full::from(name).map_err(|never| match never {}));
    let body = if reads {
        let read = body.collect().await?.to_bytes();
        seen.body = String::from_utf8_lossy(&read).into_owned();
        own()
    } else if hyper::body::Body::is_end_stream(&body) {
        own()
    } else {
        UnsyncBoxBody::new(body)
    };
    let _ = sender.send(seen);
    Ok(Response::new(body))
}

impl Echo {
    pub(super) async fn start(name: &'static str) -> Self {
        Self::serve(name, false).await
    }

    /// One that reads the whole body before it answers with its name.
    pub(super) async fn reading(name: &'static str) -> Self {
        Self::serve(name, true).await
    }

    async fn serve(name: &'static str, reads: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended = tokio::spawn(async move {
            let graceful = GracefulShutdown::new();
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                let sender = sender.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    answer(request, name, reads, sender.clone())
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(accepted.unwrap().0), service);
                let connection = graceful.watch(connection.into_owned());
                tokio::spawn(async move { drop(connection.await) });
            }
            drop(listener);
            graceful.shutdown().await;
        });
        Self { address, seen: Mutex::new(seen), stop, ended }
    }

    /// The next request that it has seen.
    pub(super) async fn seen(&self) -> Seen {
        self.seen.lock().await.recv().await.unwrap()
    }

    /// What it has seen that nobody asked for yet.
    pub(super) fn seen_more(&self) -> Option<Seen> {
        self.seen.try_lock().unwrap().try_recv().ok()
    }

    /// Takes no more connections and requests, and waits until those that run have ended.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }
}

/// A backend that keeps connections and then closes them.
pub(super) struct Rude {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Rude {
    /// How many connections it has had.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers each request with `rude`, but closes the connection instead when `closes` says so of the request's number on it.
pub(super) async fn closes_after(closes: fn(usize) -> bool) -> Rude {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                for number in 0.. {
                    let mut head = Vec::new();
                    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    if closes(number) {
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nrude";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Rude { address, connections }
}

/// One connection to the proxy.
pub(crate) enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn http1(address: SocketAddr) -> Self {
        Self::http1_over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(super) async fn http1_over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub(super) async fn http2(address: SocketAddr) -> Self {
        Self::http2_over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(super) async fn http2_over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(super) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    async fn exchange(&mut self, method: &str, path: &str, body: Body) -> (u16, String) {
        let uri = match self {
            Self::Http1(_) => path.to_owned(),
            Self::Http2(_) => format!("http://shop.example{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self, Self::Http1(_)) {
            request = request.header("host", "shop.example");
        }
        let response = self.send(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    pub(crate) async fn get(&mut self, path: &str) -> (u16, String) {
        self.exchange("GET", path, full("")).await
    }

    pub(super) async fn post(&mut self, body: &str) -> (u16, String) {
        self.exchange("POST", "/", full(body.to_owned())).await
    }
}
