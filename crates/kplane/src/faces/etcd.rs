//! `etcd`: what a test suite asks of it before it starts the API server.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::{FaceError, Flags};
use crate::serve::Tasks;

/// The flags that `--help` lists, and what they do here.
pub(super) const FLAGS: &[(&str, &str)] = &[
    ("advertise-client-urls", "Accepted."),
    ("data-dir", "Accepted; nothing is kept."),
    ("listen-client-urls", "Where health and version are served. Default http://localhost:2379."),
    ("listen-peer-urls", "Accepted; there are no peers."),
    ("unsafe-no-fsync", "Accepted."),
];

/// The version that is answered, the one that Kubernetes 1.37 is tested with.
const VERSION: &str = "3.6.5";

pub(super) async fn run(flags: &Flags, end: impl Future<Output = ()> + Send) -> Result<(), FaceError> {
    let tasks = Tasks::default();
    let urls: Vec<&str> = flags.list("listen-client-urls").collect();
    let urls = if urls.is_empty() { vec!["http://localhost:2379"] } else { urls };
    for url in urls {
        let address = address(url)?;
        let listener =
            TcpListener::bind(address).await.map_err(|source| FaceError::Listen { address, source })?;
        super::announce(&listener);
        tasks.spawn(listen(listener, tasks.clone()));
    }
    end.await;
    tasks.stop.cancel();
    tasks.tracker.close();
    tasks.tracker.wait().await;
    Ok(())
}

fn address(url: &str) -> Result<SocketAddr, FaceError> {
    let fault = || FaceError::Flag {
        flag: "listen-client-urls",
        value: url.to_owned(),
        wanted: "a URL such as http://127.0.0.1:2379",
    };
    let place = url.strip_prefix("http://").ok_or_else(fault)?.trim_end_matches('/');
    place.replace("localhost", "127.0.0.1").parse().map_err(|_| fault())
}

async fn listen(listener: TcpListener, tasks: Tasks) {
    while let Ok((stream, _)) = listener.accept().await {
        tasks.spawn(async move {
            let service = hyper::service::service_fn(answer);
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path() {
        "/health" => r#"{"health":"true","reason":""}"#.to_owned(),
        "/version" => format!(r#"{{"etcdserver":"{VERSION}","etcdcluster":"3.6.0"}}"#),
        _ => {
            let mut response = Response::new(Full::default());
            let grpc = request.headers().get(header::CONTENT_TYPE);
            if grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                // gRPC's "unimplemented", in the form of an answer without messages.
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
                response.headers_mut().insert("grpc-status", header::HeaderValue::from_static("12"));
                let why = "this etcd answers health and version alone; the kplane API server keeps its objects itself";
                response.headers_mut().insert("grpc-message", header::HeaderValue::from_static(why));
            } else {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            return Ok(response);
        }
    };
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}
