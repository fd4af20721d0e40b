//! What is taken from clients: spellings of paths, slow bodies; and what is counted of it.

use std::sync::Arc;

use knet::http_proxy::{
    Action, BODY_PAUSE_MAX, HostName, HttpProxy, Match, PathMatch, PortRoutes, ProxyOptions, RouteTable, Rule,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::parts::{Client, Echo, backend, proxy, table};

/// A rule by the path cannot be passed by with another spelling of it: who asks comes to it, or to nobody.
#[tokio::test]
async fn no_spelling_passes_a_rule_by() {
    let (open, guarded) = (Echo::start("open").await, Echo::start("guarded").await);
    let mut routes = PortRoutes::default();
    for (path, echo) in [("/", &open), ("/admin", &guarded)] {
        let action = Action::Forward(vec![backend(&[echo.address])]);
        let rule = Rule::new(path, Match::path(PathMatch::Prefix(path.into())), action);
        routes.add(HostName::Any, HostName::Any, Arc::new(rule));
    }
    let table = RouteTable { ports: [(80, routes)].into() };
    let (running, address) = proxy(table.clone()).await;
    let cases = [
        ("/admin/x", 200, "guarded", "/admin/x"),
        ("//admin/x?a=//", 200, "guarded", "/admin/x?a=//"),
        ("/a/../admin", 200, "guarded", "/admin"),
        ("/a/%2e%2E/admin/", 200, "guarded", "/admin/"),
        ("/%61dmin", 200, "guarded", "/admin"),
        ("/./admin", 200, "guarded", "/admin"),
        // An encoded slash stays where it makes no difference.
        ("/group%2fproject", 200, "open", "/group%2Fproject"),
        ("/admin/group%2Fproject", 200, "guarded", "/admin/group%2Fproject"),
        ("/administrators", 200, "open", "/administrators"),
        ("/admin%2f..%2fx", 200, "open", "/admin%2F..%2Fx"),
        ("/%2Fadmin", 400, "400 Bad Request\n", ""),
        ("/x%2f..%2fadmin", 400, "400 Bad Request\n", ""),
        ("/x/..%5cadmin", 400, "400 Bad Request\n", ""),
        ("/admin%2fx", 400, "400 Bad Request\n", ""),
        ("/a/..;/admin", 400, "400 Bad Request\n", ""),
        ("/../admin", 400, "400 Bad Request\n", ""),
        ("/admin%00", 400, "400 Bad Request\n", ""),
    ];
    for (path, status, body, seen) in cases {
        let mut client = Client::http1(address).await;
        assert_eq!(client.get(path).await, (status, body.to_owned()), "{path}");
        if status == 200 {
            let echo = if body == "open" { &open } else { &guarded };
            assert_eq!(echo.seen().await.uri, seen, "{path}");
        }
    }
    let told = running.metrics("own");
    for line in [
        "kplane_http_requests_total{proxy=\"own\",rule=\"/admin\",code=\"200\"} 7",
        "kplane_http_requests_total{proxy=\"own\",rule=\"/\",code=\"200\"} 3",
        "kplane_http_requests_total{proxy=\"own\",rule=\"\",code=\"400\"} 7",
        "kplane_http_request_duration_seconds_count{proxy=\"own\"} 17",
    ] {
        assert!(told.lines().any(|found| found == line), "{line}\n{told}");
    }
    // Who wants paths as they were sent gets them.
    let keeping = HttpProxy::new(ProxyOptions { keeps_paths: true, ..ProxyOptions::default() });
    keeping.set_table(table);
    let address = keeping.serve(80, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    assert_eq!(Client::http1(address).await.get("//admin").await, (200, "open".to_owned()));
    assert_eq!(open.seen().await.uri, "//admin");
}

/// Who sends a body and then nothing is told so, and the backend is free again.
#[tokio::test]
async fn a_body_that_stops_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_proxy, address) = proxy(table(&[listener.local_addr().unwrap()])).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nx";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut backend, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nx") {
        seen.push(backend.read_u8().await.unwrap());
    }
    // What has come has gone on: the proxy waits for more.
    tokio::time::pause();
    tokio::time::advance(BODY_PAUSE_MAX + std::time::Duration::from_secs(1)).await;
    tokio::time::resume();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(matches!(backend.read(&mut [0; 16]).await, Ok(0) | Err(_)), "the backend's connection has ended");
}
