//! What the health servers answer, as clients read it. Expected: `pkg/proxy/healthcheck/healthcheck_test.go`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kcore::TokioClock;
use knet::health::{HealthServer, PENDING_MAX, ProxyHealth, ServiceHealth};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The status, the headers and the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_proxy_tells_how_it_does() {
    let health = Arc::new(ProxyHealth::new(Arc::new(TokioClock::new())));
    let server =
        HealthServer::start(([127, 0, 0, 1], 0).into(), Arc::clone(&health), "nftables").await.unwrap();
    let address = server.address();
    let statuses = async || (get(address, "/healthz").await.0, get(address, "/livez").await.0);
    assert_eq!(statuses().await, (200, 200), "nothing to do is done");
    assert_eq!(get(address, "/proxyMode").await.2, "nftables");
    assert_eq!(get(address, "/other").await.0, 404);
    health.updated();
    let (_, head, body) = get(address, "/healthz").await;
    assert!(
        head.contains("content-type: application/json") && head.contains("x-content-type-options: nosniff")
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&true.into(), &true.into()));
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    health.set_eligible(false);
    assert_eq!(statuses().await, (503, 200), "a node that goes gets no new traffic, and its proxy is well");
    health.set_eligible(true);
    health.pending();
    tokio::time::pause();
    tokio::time::advance(PENDING_MAX - Duration::from_secs(1)).await;
    health.pending();
    tokio::time::resume();
    assert_eq!(statuses().await, (200, 200));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    assert_eq!(statuses().await, (503, 503), "the oldest change counts");
    health.updated();
    assert_eq!(statuses().await, (200, 200));
}

#[tokio::test]
async fn services_tell_how_many_endpoints_the_node_has() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    let proxy = Arc::new(ProxyHealth::new(Arc::new(TokioClock::new())));
    let health = ServiceHealth::new(vec![[127, 0, 0, 1].into()], Arc::clone(&proxy));
    let of = |endpoints| [(("shop".to_owned(), "web".to_owned()), (port, endpoints))].into();
    let refused = health.sync(&of(2)).await;
    assert_eq!(refused[0].1.kind(), std::io::ErrorKind::AddrInUse, "somebody else has the port");
    drop(free);
    assert!(health.sync(&of(2)).await.is_empty());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (status, head, body) = get(address, "/").await;
    assert_eq!(status, 200);
    assert!(head.contains("x-load-balancing-endpoint-weight: 2"), "{head}");
    assert_eq!(
        body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
    );
    assert!(health.sync(&of(0)).await.is_empty());
    assert_eq!(get(address, "/").await.0, 503, "a node without endpoints");
    assert!(health.sync(&[].into()).await.is_empty());
    // Whoever listened ends with its next turn.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
