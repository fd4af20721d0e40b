//! A service on loopback that the server calls: answers what a function makes of each request, and counts connections.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kapi::outbound::Remote;
use serde_json::Value;
use tokio::net::TcpListener;

type Answer = dyn Fn(&str, &Value) -> (u16, Value) + Send + Sync;

/// The service: where it is, and what it was asked.
pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) asked: Arc<Mutex<Vec<(String, Value)>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub(crate) async fn start(answer: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let answer: Arc<Answer> = Arc::new(answer);
        let task = tokio::spawn(accept(listener, Arc::clone(&asked), Arc::clone(&connections), answer));
        Self { url, asked, connections, task }
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().unwrap().clone()
    }

    /// The service by a kubeconfig.
    pub(crate) fn remote(&self) -> Remote {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: b, user: c}}}}],
            clusters: [{{name: b, cluster: {{server: '{}/hook'}}}}], users: [{{name: c, user: {{token: sesame}}}}]}}",
            self.url
        );
        Remote::from_kubeconfig(&text, ".".as_ref()).unwrap()
    }
}

async fn accept(
    listener: TcpListener,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<AtomicUsize>,
    answer: Arc<Answer>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
        let service = service_fn(move |request: Request<Incoming>| {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            async move {
                let login = request.headers().get("authorization").and_then(|value| value.to_str().ok());
                let path = format!("{} {}", request.uri().path(), login.unwrap_or_default());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = answer(path.split(' ').next().unwrap_or_default(), &body);
                asked.lock().unwrap().push((path, body));
                let mut response = Response::new(http_body_util::Full::new(Bytes::from(answer.to_string())));
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
