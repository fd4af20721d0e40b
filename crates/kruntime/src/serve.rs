//! The node's own API: logs, exec, attach and port-forward, as the API server asks the kubelet for them.
//!
//! [`KubeletService`] is a service for hyper's HTTP/1.1 server. It works over anything that carries bytes: the API server
//! in the same process speaks to it through [`tokio::io::duplex`], one elsewhere through a socket. By itself it trusts its caller;
//! whoever lets a socket reach it gives it a [`Guard`](access::Guard) for each connection, which finds out who is there and
//! whether they may do what they ask for.
//!
//! | path | what |
//! |---|---|
//! | `/containerLogs/{namespace}/{pod}/{container}` | the log, with the options of `PodLogOptions` |
//! | `/exec/{namespace}/{pod}/{container}` | WebSocket, `v5.channel.k8s.io` and before; SPDY/3.1, `v4.channel.k8s.io` and before |
//! | `/attach/{namespace}/{pod}/{container}` | the same |
//! | `/portForward/{namespace}/{pod}` | WebSocket, `SPDY/3.1+portforward.k8s.io`, or `v4.channel.k8s.io` with `ports`; SPDY/3.1, `portforward.k8s.io` |
//! | `/run/{namespace}/{pod}/{container}` | POST: runs the words of `cmd` and answers with what they print |
//! | `/pods` | the pods of the node as a PodList |
//! | `/stats/summary` | what the node and its pods use |
//! | `/metrics/resource` | the same as Prometheus reads it, which is what metrics-server asks for |
//! | `/metrics` | the node's name and how much runs on it |
//! | `/logs` | refused with 405, as by a kubelet whose handler for the machine's logs is turned off |
//! | `/healthz` | `ok` |

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    agent::{Inner, NodeAgent, PodEntry},
    machine::find,
    runtime::{LogOptions, ObservedContainer, RuntimeError},
};

pub mod access;
mod channel;
mod forward;
mod pairs;
mod run;
mod stream;
mod tunnel;
mod upgrade;
mod usage;

/// How long the head of a request may take, from the end of the one before (upstream's `ReadHeaderTimeout` of the API server): for
/// callers who are guarded against.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(32);

/// What an answer carries.
pub type KubeletBody = BoxBody<Bytes, io::Error>;

/// The API of one node.
///
/// ```no_run
/// # async fn example(agent: kruntime::NodeAgent) {
/// let (client, server) = tokio::io::duplex(64 * 1024);
/// let service = kruntime::serve::kubelet_service(&agent, "node-1");
/// tokio::spawn(async move { service.serve(server).await });
/// // `client` speaks HTTP/1.1 to the node now.
/// # drop(client);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KubeletService {
    inner: Arc<Inner>,
    node: Arc<str>,
    guard: Option<access::Guard>,
}

/// The API of the agent's node `node`. A node that isn't there answers 404 to everything about pods.
#[must_use]
pub fn kubelet_service(agent: &NodeAgent, node: impl Into<Arc<str>>) -> KubeletService {
    KubeletService { inner: Arc::clone(&agent.inner), node: node.into(), guard: None }
}

impl KubeletService {
    /// Answers only to whom the guard lets in. It is one for each connection, since it knows the certificate of the caller.
    #[must_use]
    pub fn guarded(self, guard: access::Guard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// Serves one connection to its end, upgrades included.
    ///
    /// # Errors
    /// When what comes is not HTTP, or the connection breaks.
    pub async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<(), hyper::Error> {
        let mut builder = hyper::server::conn::http1::Builder::new();
        if self.guard.is_some() {
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        }
        builder.serve_connection(TokioIo::new(stream), self).with_upgrades().await
    }
}

impl hyper::service::Service<Request<Incoming>> for KubeletService {
    type Response = Response<KubeletBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await.unwrap_or_else(Failure::into_response)) })
    }
}

/// An answer that says why not, as the kubelet does: plain text.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    text: String,
    headers: Vec<(&'static str, header::HeaderValue)>,
}

impl Failure {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new() }
    }

    fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    fn into_response(self) -> Response<KubeletBody> {
        let mut response = text(self.text);
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let status = match &error {
            RuntimeError::PodNotFound(_) | RuntimeError::NotRunning(_) => StatusCode::NOT_FOUND,
            RuntimeError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

fn text(text: impl Into<Bytes>) -> Response<KubeletBody> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed());
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn answer_json(value: &serde_json::Value) -> Response<KubeletBody> {
    let mut response = text(value.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A query, decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &http::Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "t"))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let parse =
            |text: &str| text.parse().map_err(|_| Failure::bad(format!("{name} is not a number: {text:?}")));
        self.get(name).map(parse).transpose()
    }
}

/// Undoes percent encoding; what isn't any stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl KubeletService {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<KubeletBody>, Failure> {
        let path = decode(request.uri().path());
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let query = Query::of(request.uri());
        // By the same parts of the path as below, so that nothing is allowed as one thing and done as another.
        if let Some(guard) = &self.guard {
            guard.check(&self.node, request.method(), &parts, request.headers()).await?;
        }
        match (&parts[..], request.method()) {
            (["healthz"], &Method::GET) => Ok(text("ok")),
            (["metrics"], &Method::GET) => Ok(text(usage::metrics(&self.node, &self.entries()))),
            (["logs", ..], _) => {
                Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled."))
            }
            (["pods"], &Method::GET) => Ok(self.pods()),
            (["stats", "summary"], &Method::GET) => Ok(answer_json(
                &usage::summary(
                    &self.inner,
                    &self.node,
                    &self.entries(),
                    query.is_set("only_cpu_and_memory"),
                )
                .await,
            )),
            (["metrics", "resource"], &Method::GET) => {
                Ok(text(usage::resource(&self.inner, &self.node, &self.entries()).await))
            }
            (["containerLogs", namespace, pod, container], &Method::GET) => {
                self.logs(&*self.pod(namespace, pod)?, container, &query).await
            }
            // Upstream's kubelet also takes the pod's uid in between.
            (["exec", namespace, pod, container] | ["exec", namespace, pod, _, container], _) => {
                stream::exec(&self.inner, self.pod(namespace, pod)?, container, &query, request).await
            }
            (["attach", namespace, pod, container] | ["attach", namespace, pod, _, container], _) => {
                stream::attach(&self.inner, self.pod(namespace, pod)?, container, &query, request).await
            }
            (["run", namespace, pod, container] | ["run", namespace, pod, _, container], &Method::POST) => {
                run::run(&*self.pod(namespace, pod)?, container, &query).await
            }
            (["portForward", namespace, pod] | ["portForward", namespace, pod, _], _) => {
                forward::forward(&self.inner, self.pod(namespace, pod)?, &query, request)
            }
            _ => Err(Failure::not_found("404 page not found")),
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<PodEntry>, Failure> {
        self.inner
            .entry_named(&self.node, namespace, name)
            .ok_or_else(|| Failure::not_found(format!("pod \"{name}\" does not exist")))
    }

    fn entries(&self) -> Vec<Arc<PodEntry>> {
        let entries = self.inner.entries();
        let here = entries.values().filter(|entry| entry.node.config.name == self.node);
        here.cloned().collect()
    }

    fn pods(&self) -> Response<KubeletBody> {
        let pods: Vec<_> = self.entries().iter().map(|entry| entry.pod()).collect();
        let items: Vec<_> = pods.iter().map(|pod| serde_json::to_value(&**pod).unwrap_or_default()).collect();
        answer_json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    async fn logs(
        &self,
        entry: &PodEntry,
        name: &str,
        query: &Query,
    ) -> Result<Response<KubeletBody>, Failure> {
        let options = self.log_options(entry, name, query)?;
        let stream = entry.node.config.runtime.logs(&entry.uid, name, options).await?;
        // An empty piece only says that the container has ended.
        let frames = stream.filter_map(|piece| async move {
            match piece {
                Ok(bytes) if bytes.is_empty() => None,
                piece => Some(piece.map(Frame::data)),
            }
        });
        let mut response = text("");
        *response.body_mut() =
            BodyExt::boxed(StreamBody::new(SyncStream(std::sync::Mutex::new(Box::pin(frames)))));
        Ok(response)
    }

    fn log_options(&self, entry: &PodEntry, name: &str, query: &Query) -> Result<LogOptions, Failure> {
        let pod = entry.pod();
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let known = spec.is_some_and(|spec| {
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| c.name == name)
                || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
        });
        if !known {
            return Err(Failure::not_found(format!("container \"{name}\" not found in pod \"{pod_name}\"")));
        }
        let observed = entry.node.config.runtime.observe(&entry.uid);
        let seen: Option<&ObservedContainer> = find(&observed, name);
        let attempt = if query.is_set("previous") {
            let before = seen.and_then(|seen| seen.attempt.checked_sub(1));
            Some(before.ok_or_else(|| {
                Failure::bad(format!(
                    "previous terminated container \"{name}\" in pod \"{pod_name}\" not found"
                ))
            })?)
        } else if seen.is_none() {
            let message =
                format!("container \"{name}\" in pod \"{pod_name}\" is waiting to start: ContainerCreating");
            return Err(Failure::bad(message));
        } else {
            None
        };
        let since_seconds: Option<i64> = query.number("sinceSeconds")?;
        let since = match (since_seconds, query.get("sinceTime")) {
            (Some(seconds), _) => self.inner.clock.now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, Some(time)) => Some(
                time.parse::<Timestamp>()
                    .map_err(|_| Failure::bad(format!("sinceTime is no time: {time:?}")))?,
            ),
            (None, None) => None,
        };
        Ok(LogOptions {
            attempt,
            follow: query.is_set("follow"),
            tail_lines: query.number("tailLines")?,
            since,
            timestamps: query.is_set("timestamps"),
            limit_bytes: query.number("limitBytes")?,
            stream: query.get("stream").filter(|stream| *stream != "All").map(str::to_owned),
        })
    }
}

/// A stream that may be shared between threads because nobody but its owner touches it.
struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let stream = self.get_mut().0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        stream.as_mut().poll_next(cx)
    }
}
