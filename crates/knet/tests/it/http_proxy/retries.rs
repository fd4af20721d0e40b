//! Requests that are sent again as their rule says, and what clients of gRPC are told of errors.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use knet::http_proxy::{Action, Match, PathMatch, RETRY_BODY_BYTES_MAX, Retry, RouteTable, Rule, Timeouts};
use tokio::net::TcpListener;

use super::parts::{self, Client, backend, proxy};

/// A server that answers with a status a few times, then with what it was sent.
struct Flaky {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Flaky {
    /// `None` for no answer at all.
    async fn start(status: Option<u16>, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let count = Arc::clone(&count);
                let service = service_fn(move |request: Request<Incoming>| {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let mut response = Response::new(Full::<Bytes>::new(body));
                        if number < times {
                            let Some(status) = status else { return std::future::pending().await };
                            *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn retrying(endpoints: &[SocketAddr], attempts: u32, timeouts: Timeouts) -> RouteTable {
    let action = Action::Forward(vec![backend(endpoints)]);
    let mut rule = Rule::new("all", Match::path(PathMatch::Prefix("/".into())), action);
    let codes = vec![StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];
    rule.retry = Some(Retry { attempts, backoff: Duration::from_millis(1), codes });
    rule.timeouts = timeouts;
    parts::of_rule(rule)
}

/// GEP-1731: as often as the rule says, for any method, and with its body; then the client gets what there is.
#[tokio::test]
async fn answers_that_are_none_are_asked_for_again() {
    for (status, times, attempts, expected, asked) in
        [(500, 2, 2, 200, 3), (503, 2, 1, 503, 2), (500, 1, 0, 500, 1), (502, 1, 3, 502, 1)]
    {
        let flaky = Flaky::start(Some(status), times).await;
        let (_proxy, address) = proxy(retrying(&[flaky.address], attempts, Timeouts::default())).await;
        let mut client = Client::http1(address).await;
        assert_eq!(client.post("text").await, (expected, "text".to_owned()), "{status} {attempts}");
        assert_eq!(flaky.asked(), asked, "{status} {attempts}");
    }
    // What is too long to be kept is sent once.
    let flaky = Flaky::start(Some(500), 1).await;
    let (_proxy, address) = proxy(retrying(&[flaky.address], 3, Timeouts::default())).await;
    let long = "x".repeat(usize::try_from(RETRY_BODY_BYTES_MAX).unwrap() + 1);
    assert_eq!(Client::http1(address).await.post(&long).await, (500, long));
    assert_eq!(flaky.asked(), 1);
}

#[tokio::test]
async fn another_endpoint_is_asked_if_there_is_one() {
    let (bad, good) = (Flaky::start(Some(500), usize::MAX).await, Flaky::start(None, 0).await);
    let (_proxy, address) = proxy(retrying(&[bad.address, good.address], 1, Timeouts::default())).await;
    let mut client = Client::http1(address).await;
    for _ in 0..16 {
        assert_eq!(client.post("text").await, (200, "text".to_owned()));
    }
    assert_eq!(good.asked(), 16);
}

/// A connection that fails over a request, and a try that takes too long, are errors as well.
#[tokio::test]
async fn failed_connections_and_slow_tries_are_repeated() {
    let deadly = parts::closes_after(|_| true).await;
    let (_proxy, address) = proxy(retrying(&[deadly.address], 2, Timeouts::default())).await;
    assert_eq!(Client::http1(address).await.post("text").await.0, 502);
    assert_eq!(deadly.connections(), 3);
    let slow = Flaky::start(None, 1).await;
    let timeouts = Timeouts { request: None, backend_request: Some(Duration::from_millis(200)) };
    let (_proxy, address) = proxy(retrying(&[slow.address], 8, timeouts)).await;
    assert_eq!(Client::http1(address).await.post("text").await, (200, "text".to_owned()));
    let silent = Flaky::start(None, usize::MAX).await;
    let (_proxy, address) = proxy(retrying(&[silent.address], 1, timeouts)).await;
    assert_eq!(Client::http1(address).await.post("text").await.0, 504);
    assert_eq!(silent.asked(), 2);
}

/// Trailers alone; what is no gRPC is told by HTTP ("HTTP to gRPC Status Code Mapping").
#[tokio::test]
async fn clients_of_grpc_are_told_in_grpc() {
    let dead = parts::dead_address().await;
    let table = |action| {
        parts::of_rule(Rule::new("all", Match::path(PathMatch::Prefix("/shop.Shop".into())), action))
    };
    let mut invalid = backend(&[]);
    invalid.endpoints = None;
    for (action, path, code, status) in [
        (Action::Forward(vec![backend(&[])]), "/other.Other/Get", "12", 404),
        (Action::Forward(vec![backend(&[])]), "/shop.Shop/Get", "14", 503),
        (Action::Forward(vec![invalid]), "/shop.Shop/Get", "14", 500),
        (Action::Forward(vec![backend(&[dead])]), "/shop.Shop/Get", "14", 502),
    ] {
        let (proxy, address) = proxy(table(action)).await;
        let mut client = Client::http2(address).await;
        for (kind, expected) in [
            ("application/grpc", Some(code)),
            ("application/grpc+proto", Some(code)),
            ("application/grpc-web", None),
            ("text/plain", None),
        ] {
            let request = Request::post(format!("http://shop.example{path}")).header("content-type", kind);
            let response = client.send(request.body(parts::full("")).unwrap()).await.unwrap();
            let told = response.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
            assert_eq!(told.as_deref(), expected, "{path} {kind}");
            assert_eq!(response.status().as_u16(), if expected.is_some() { 200 } else { status });
            let is_empty = response.into_body().collect().await.unwrap().to_bytes().is_empty();
            assert_eq!(is_empty, expected.is_some());
        }
        // They are counted as the errors that they are, not as answers with the status 200.
        let rule = if status == 404 { "" } else { "all" };
        let counted = proxy.metrics("it");
        for labels in [format!("code=\"{status}\""), format!("code=\"{status}\",grpc_status=\"{code}\"")] {
            let line = format!("kplane_http_requests_total{{proxy=\"it\",rule=\"{rule}\",{labels}}} 2");
            assert!(counted.lines().any(|found| found == line), "{line}\n{counted}");
        }
        assert!(!counted.contains("code=\"200\""), "{counted}");
    }
}
