//! Bad input over a real connection: the right `Status` each time, nothing written, and the server goes on.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use kplane::Cluster;
use serde_json::Value;
use tower::ServiceExt as _;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn send(
    cluster: &Cluster,
    method: &str,
    path: &str,
    kind: &str,
    body: impl Into<Bytes>,
) -> (u16, Value) {
    let admin = kapi::authn::UserInfo::new("admin", ["system:masters"]);
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("content-type", kind);
    let response =
        cluster.server().as_user(admin).oneshot(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn every_kind_of_nonsense_is_refused_and_nothing_is_written() {
    let cluster = Cluster::builder().nodes(0).without_controllers().start().await.unwrap();
    let before = cluster.server().objects().snapshot().revision();
    let deep = "[".repeat(100_000);
    let long_name = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, "a".repeat(254));
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let json = "application/json";
    for (method, path, kind, body, code, reason) in [
        ("POST", MAPS, json, deep.as_str(), 400, "BadRequest"),
        ("POST", MAPS, json, "null", 400, "BadRequest"),
        ("POST", MAPS, json, "\u{feff}{}", 400, "BadRequest"),
        ("POST", MAPS, "application/yaml", "a: &a [*a]", 400, "BadRequest"),
        ("POST", MAPS, "application/vnd.kubernetes.protobuf", "k8s", 400, "BadRequest"),
        ("POST", MAPS, json, long_name.as_str(), 422, "Invalid"),
        ("POST", MAPS, json, r#"{"metadata":{"name":"../etc"}}"#, 422, "Invalid"),
        ("POST", MAPS, json, r#"{"metadata":{"name":"a"},"data":{"a/b":"c"}}"#, 422, "Invalid"),
        ("POST", MAPS, json, r#"{"metadata":[]}"#, 400, "BadRequest"),
        (
            "POST",
            "/api/v1/namespaces/default/pods",
            json,
            r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","resources":{"limits":{"cpu":"lots"}}}]}}"#,
            400,
            "BadRequest",
        ),
        // Nobody made the account `default`, for which admission looks before anything is validated.
        (
            "POST",
            "/api/v1/namespaces/default/pods",
            json,
            r#"{"metadata":{"name":"a"},"spec":{}}"#,
            403,
            "Forbidden",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/services",
            json,
            r#"{"metadata":{"name":"a"},"spec":{"ports":[{"port":0}]}}"#,
            422,
            "Invalid",
        ),
        (
            "POST",
            crds,
            json,
            r#"{"metadata":{"name":"a"},"spec":{"group":"b.c","names":{"plural":"x","kind":"X"},"scope":"Namespaced","versions":[]}}"#,
            422,
            "Invalid",
        ),
        ("POST", "/api/v1/namespaces", json, r#"{"metadata":{"name":"a.b"}}"#, 422, "Invalid"),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/none",
            json,
            r#"{"metadata":{"name":"none"}}"#,
            404,
            "NotFound",
        ),
        ("DELETE", "/api/v1/namespaces/default", json, "", 403, "Forbidden"),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/x",
            json,
            r#"{"propagationPolicy":"Sideways"}"#,
            422,
            "Invalid",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/x",
            json,
            r#"{"gracePeriodSeconds":-1}"#,
            422,
            "Invalid",
        ),
        ("GET", "/api/v1/namespaces/default/configmaps?fieldSelector=a", json, "", 400, "BadRequest"),
        ("GET", "/api/v1/namespaces/default/configmaps?resourceVersion=-1", json, "", 400, "BadRequest"),
        ("GET", "/apis/apps/v1/frobs", json, "", 404, "NotFound"),
        ("FROB", MAPS, json, "", 405, "MethodNotAllowed"),
    ] {
        let shown = &body[..body.len().min(60)];
        let (got, status) = send(&cluster, method, path, kind, body.to_owned()).await;
        assert_eq!(
            (got, status["reason"].as_str()),
            (code, Some(reason)),
            "{method} {path} {shown}: {status}"
        );
        assert_eq!(status["kind"], "Status");
    }
    assert_eq!(cluster.server().objects().snapshot().revision(), before);
}

#[tokio::test]
async fn a_broken_connection_costs_only_itself() {
    let cluster = Cluster::builder().nodes(0).without_controllers().start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    // Not TLS at all.
    let plain = tokio::net::TcpStream::connect(serving.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(plain)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::get("/version").body(Full::<Bytes>::default()).unwrap();
    let answer = sender.send_request(request).await;
    assert!(answer.is_err() || answer.unwrap().status() != StatusCode::OK);
    driver.abort();
    let client = crate::clients::tls(&serving.kubeconfig).await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "37");
    cluster.shutdown().await.unwrap();
}
