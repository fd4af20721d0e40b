//! A server and ways to talk to it.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use serde_json::Value;
use tower::ServiceExt as _;

pub(crate) async fn server() -> ApiServer {
    let server = ApiServer::builder().build().unwrap();
    server.bootstrap().await.unwrap();
    server
}

pub(crate) fn client(server: &ApiServer) -> kube::Client {
    kube::Client::new(server.as_user(UserInfo::new("admin", [MASTERS])), "default")
}

/// One request as an administrator: its status and its body as JSON.
pub(crate) async fn send(
    server: &ApiServer,
    method: &str,
    path: &str,
    kind: &str,
    body: impl Into<Bytes>,
) -> (u16, Value) {
    let (code, answer, _) = warned(server, method, path, kind, body).await;
    (code, answer)
}

/// The same, with what the caller is warned of.
pub(crate) async fn warned(
    server: &ApiServer,
    method: &str,
    path: &str,
    kind: &str,
    body: impl Into<Bytes>,
) -> (u16, Value, Vec<String>) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(Full::new(body.into())).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let warnings = response.headers().get_all("warning").into_iter().map(|value| {
        let text = std::str::from_utf8(value.as_bytes()).unwrap();
        let quoted = text.trim_start_matches("299 - \"");
        let quoted = quoted.strip_suffix('"').unwrap_or(quoted);
        quoted.replace("\\\"", "\"").replace("\\\\", "\\")
    });
    let warnings = warnings.collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null), warnings)
}

pub(crate) async fn json(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    send(server, method, path, "application/json", body).await
}

/// One request as anybody.
pub(crate) async fn json_as(
    server: &ApiServer,
    user: UserInfo,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let response = server.as_user(user).oneshot(request.body(Full::new(Bytes::from(body))).unwrap()).await;
    let response = response.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

pub(crate) async fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    json(server, "GET", path, &Value::Null).await
}
