//! A small HTTP server: each path has an answer, at once.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// How many connections one server has at the same time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to say what it wants.
const HEADER_WAIT_MAX: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    status: StatusCode,
    kind: &'static str,
    /// How many endpoints there are, for load balancers.
    weight: Option<usize>,
    body: String,
}

impl Reply {
    pub(super) fn json(good: bool, body: String) -> Self {
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Self { status, kind: "application/json", weight: None, body }
    }

    pub(super) fn text(body: String) -> Self {
        Self { status: StatusCode::OK, kind: "text/plain; charset=utf-8", weight: None, body }
    }

    pub(super) fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::text("404 page not found\n".to_owned()) }
    }

    pub(super) fn weight(mut self, endpoints: usize) -> Self {
        self.weight = Some(endpoints);
        self
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(self.kind));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        if let Some(weight) = self.weight {
            headers.insert("x-load-balancing-endpoint-weight", weight.into());
        }
        response
    }
}

/// What answers a path.
pub(super) type Answer = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// Serves until `stop`; says where.
pub(super) async fn serve(
    address: SocketAddr,
    answer: Answer,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accept = async {
                let permit = Arc::clone(&limit).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept => accepted,
            };
            let (Ok(permit), Ok((stream, _))) = (permit, accepted) else {
                // No descriptor is free, perhaps: others may be given back meanwhile.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (answer, stop) = (Arc::clone(&answer), stop.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let reply = answer(request.uri().path()).response();
                    async move { Ok::<_, Infallible>(reply) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_WAIT_MAX)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = connection => {}
                }
                drop(permit);
            });
        }
    });
    Ok(address)
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.body)
    }
}
