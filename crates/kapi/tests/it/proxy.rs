//! HTTP to pods and services through the server.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use kapi::{
    ApiServer, ServiceAddresses,
    authn::{MASTERS, UserInfo},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tower::ServiceExt as _;

use crate::harness::{get, json as send};

/// A server that says what it was asked; the port that it listens on.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let said = json!({"method": parts.method.as_str(), "path": parts.uri.to_string(),
                    "body": String::from_utf8_lossy(&body), "trusted": parts.headers.contains_key("authorization")});
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string()))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    port
}

async fn server(loopback: bool) -> ApiServer {
    let addresses = ServiceAddresses { loopback, ..ServiceAddresses::default() };
    let server = ApiServer::builder().service_addresses(addresses).build().unwrap();
    server.bootstrap().await.unwrap();
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    server
}

async fn pod(server: &ApiServer, port: u16) {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": port}]}]}});
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(send(server, "POST", pods, &pod).await.0, 201);
    let (_, mut made) = get(server, &format!("{pods}/p")).await;
    made["status"] = json!({"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]});
    let (code, written) = send(server, "PUT", &format!("{pods}/p/status"), &made).await;
    assert_eq!(code, 200, "{written}");
}

#[tokio::test]
async fn requests_reach_pods_and_services() {
    let port = echo().await;
    let server = server(true).await;
    pod(&server, port).await;
    let path = "/api/v1/namespaces/default/pods/p/proxy/some/page?x=1";
    let (code, said) = get(&server, path).await;
    assert_eq!(
        (code, &said["method"], &said["path"]),
        (200, &json!("GET"), &json!("/some/page?x=1")),
        "{said}"
    );
    let named = format!("/api/v1/namespaces/default/pods/http:p:{port}/proxy/");
    let (_, said) = send(&server, "POST", &named, &json!({"a": 1})).await;
    assert_eq!(
        (&said["method"], &said["body"], &said["trusted"]),
        (&json!("POST"), &json!("{\"a\":1}"), &json!(false))
    );
    assert_eq!(send(&server, "DELETE", &named, &Value::Null).await.1["method"], "DELETE");

    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/services", &service).await.0, 201);
    let web = "/api/v1/namespaces/default/services/web:http/proxy/x";
    let (code, status) = get(&server, web).await;
    assert_eq!((code, status["message"].as_str()), (503, Some("no endpoints available for service \"web\"")));
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "http", "port": port}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let (code, made) = send(&server, "POST", slices, &slice).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(get(&server, web).await.1["path"], "/x");
    assert_eq!(get(&server, "/api/v1/namespaces/default/services/none/proxy/").await.0, 404);
    let (code, status) = get(&server, "/api/v1/namespaces/default/services/web:other/proxy/").await;
    assert_eq!(
        (code, status["message"].as_str()),
        (503, Some("no service port \"other\" found for service \"web\""))
    );
}

/// A server that gives back what it is sent, once it has been asked to speak `echo`; the port that it listens on.
async fn echo_bytes() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|mut request: Request<Incoming>| async move {
                let mut response = Response::new(Full::<Bytes>::default());
                if request.headers().get("upgrade").is_none_or(|protocol| protocol != "echo") {
                    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                    return Ok::<_, Infallible>(response);
                }
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    tokio::io::copy(&mut read, &mut write).await
                });
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                Ok(response)
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(connection.with_upgrades());
        }
    });
    port
}

#[tokio::test]
async fn connections_are_handed_on_when_both_ends_speak_something_else() {
    let port = echo_bytes().await;
    let server = server(true).await;
    pod(&server, port).await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let admin = server.as_user(UserInfo::new("admin", [MASTERS]));
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(far), TowerToHyperService::new(admin));
    tokio::spawn(serving.with_upgrades());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let path = "/api/v1/namespaces/default/pods/p/proxy/";
    let request = |protocol: &str| {
        let request = Request::get(path).header("host", "cluster").header("connection", "Upgrade");
        request.header("upgrade", protocol).body(Full::<Bytes>::default()).unwrap()
    };
    // What the other end does not want to speak is answered as it answers.
    let refused = sender.send_request(request("chess")).await.unwrap();
    assert_eq!(refused.status(), 426);
    drop(refused);
    sender.ready().await.unwrap();
    let response = sender.send_request(request("echo")).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["upgrade"]), (101, &"echo".parse().unwrap()));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for said in ["hello", "again"] {
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said.as_bytes());
    }
    // In the process there is no connection to hand on.
    let admin = server.as_user(UserInfo::new("admin", [MASTERS]));
    assert_eq!(admin.oneshot(request("echo")).await.unwrap().status(), 400);
}

/// Otherwise whoever may write a pod's status could reach what listens on the server's own machine.
#[tokio::test]
async fn the_servers_own_machine_is_not_reached() {
    let port = echo().await;
    let server = server(false).await;
    pod(&server, port).await;
    let (code, status) = get(&server, "/api/v1/namespaces/default/pods/p/proxy/").await;
    assert_eq!((code, status["message"].as_str()), (400, Some("address not allowed")));
}

/// A server whose pages lead to itself.
async fn pages() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|request: Request<Incoming>| async move {
                let own = request.headers()["x-forwarded-uri"].to_str().unwrap().to_owned();
                let host = request.headers()["host"].to_str().unwrap().to_owned();
                let mut response = Response::new(Full::new(Bytes::from(format!(
                    "<p id='{own}'><a href=\"/next?of={host}\">next</a><a href='near'>near</a>"
                ))));
                let headers = response.headers_mut();
                headers.insert("content-type", "text/html; charset=utf-8".parse().unwrap());
                headers.insert("access-control-allow-origin", "*".parse().unwrap());
                if request.uri().path() == "/old" {
                    headers.insert("location", "/new?x=1".parse().unwrap());
                    *response.status_mut() = StatusCode::FOUND;
                }
                Ok::<_, Infallible>(response)
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    port
}

/// apimachinery `util/proxy`: `upgradeaware.go` (the root, CORS) and `transport.go` (redirects, links, forwarding headers).
#[tokio::test]
async fn pages_lead_through_the_server() {
    let port = pages().await;
    let server = server(true).await;
    pod(&server, port).await;
    let proxy = "/api/v1/namespaces/default/pods/p/proxy";
    let ask = async |path: &str| {
        let request = Request::get(path).header("host", "cluster:6443").body(String::new()).unwrap();
        let client = server.as_user(UserInfo::new("admin", [MASTERS]));
        let response = client.oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        (head, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    let (head, _) = ask(&format!("{proxy}?a=b")).await;
    assert_eq!(
        (head.status.as_u16(), &head.headers["location"]),
        (301, &format!("{proxy}/?a=b").parse().unwrap())
    );
    let (head, page) = ask(&format!("{proxy}/deep/page")).await;
    let expected = format!(
        "<p id='{proxy}/deep/page'><a href=\"{proxy}/next?of=cluster:6443\">next</a><a href='near'>near</a>"
    );
    assert_eq!((head.status.as_u16(), page), (200, expected));
    assert!(!head.headers.contains_key("access-control-allow-origin"));
    let (head, _) = ask(&format!("{proxy}/old")).await;
    assert_eq!(
        (head.status.as_u16(), &head.headers["location"]),
        (302, &format!("{proxy}/new?x=1").parse().unwrap())
    );
}
