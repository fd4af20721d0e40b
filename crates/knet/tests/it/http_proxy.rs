//! The HTTP proxy over real sockets: what clients and backends see of each other.

pub(crate) mod backend_tls;
pub(crate) mod parts;
mod paths;
mod retries;
mod rollover;
mod tls;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use knet::http_proxy::{
    Action, BackendProtocol, HostName, Match, PathMatch, PortRoutes, RouteTable, Rule, Timeouts,
    URI_BYTES_MAX,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use self::parts::{Client, Echo, backend, one_rule, proxy, table};

#[tokio::test]
async fn backends_see_the_client_and_the_client_sees_the_backend() {
    let echo = Echo::start("echo").await;
    let (_proxy, address) = proxy(table(&[echo.address])).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "POST /a%2Fb?c=d HTTP/1.1\r\nHost: Shop.Example:8080\r\nX-Forwarded-For: 1.2.3.4\r\nX-Own: 1\r\n\
        Connection: X-Own\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let mut length = 0;
    while !answer[..length].ends_with(b"0\r\n\r\n") {
        let more = stream.read(&mut answer[length..]).await.unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&answer[..length]));
        length += more;
    }
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("abc") && answer.contains("de"), "{answer}");
    let seen = echo.seen().await;
    assert_eq!(seen.uri, "/a%2Fb?c=d");
    assert_eq!(seen.headers["host"], "Shop.Example:8080");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["x-forwarded-proto"], "http");
    assert_eq!(seen.headers["x-forwarded-host"], "Shop.Example:8080");
    assert!(!seen.headers.contains_key("x-own") && !seen.headers.contains_key("connection"));
}

#[tokio::test]
async fn errors_are_told_apart() {
    let dead = parts::dead_address().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut routes = PortRoutes::default();
    let mut add = |path: &str, action: Action, timeouts: Timeouts| {
        let mut rule = Rule::new(path, Match::path(PathMatch::Prefix(path.into())), action);
        rule.timeouts = timeouts;
        routes.add(HostName::Any, HostName::ingress("shop.example"), Arc::new(rule));
    };
    let short = Some(Duration::from_millis(50));
    add("/empty", Action::Forward(vec![backend(&[])]), Timeouts::default());
    add("/dead", Action::Forward(vec![backend(&[dead])]), Timeouts::default());
    add("/none", Action::Forward(vec![]), Timeouts::default());
    let mut invalid = backend(&[]);
    invalid.endpoints = None;
    add("/invalid", Action::Forward(vec![invalid]), Timeouts::default());
    let slow = || Action::Forward(vec![backend(&[silent.local_addr().unwrap()])]);
    add("/slow", slow(), Timeouts { request: short, backend_request: None });
    add("/slow-backend", slow(), Timeouts { request: None, backend_request: short });
    let (_proxy, address) = proxy(RouteTable { ports: [(80, routes)].into() }).await;
    let long = format!("/{}", "x".repeat(URI_BYTES_MAX));
    for (host, path, expected) in [
        ("shop.example", "/other", "404 Not Found\n"),
        ("other.example", "/empty", "404 Not Found\n"),
        ("shop.example", "/empty", "503 Service Unavailable\n"),
        ("SHOP.example:1", "/empty", "503 Service Unavailable\n"),
        ("shop.example", "/dead", "502 Bad Gateway\n"),
        ("shop.example", "/none", "500 Internal Server Error\n"),
        ("shop.example", "/invalid", "500 Internal Server Error\n"),
        ("shop.example", "/slow", "504 Gateway Timeout\n"),
        ("shop.example", "/slow-backend", "504 Gateway Timeout\n"),
        ("a@b", "/", "400 Bad Request\n"),
        ("shop.example", long.as_str(), "414 URI Too Long\n"),
    ] {
        let mut client = Client::http1(address).await;
        let request = Request::get(path).header("host", host).body(parts::full("")).unwrap();
        let response = client.send(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(body, expected, "{host}{path}");
        assert!(expected.starts_with(head.status.as_str()));
    }
    for head in ["Host: a\r\nHost: b\r\n", ""] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\n{head}Connection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(knet::http_proxy::HEAD_BYTES_MAX));
    // The proxy may end it while this is still being written.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

/// A call of gRPC with messages both ways: each is answered before the next is sent, and trailers tell how it went.
#[tokio::test]
async fn grpc_streams_both_ways_with_trailers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            assert_eq!(request.version(), http::Version::HTTP_2);
            assert_eq!(request.headers()["te"], "trailers");
            let uri = request.uri().to_string();
            let frames = request.into_body().into_data_stream().map(|data| data.map(Frame::data));
            let trailers = [("grpc-status", "0"), ("grpc-message", uri.as_str())];
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let end = futures::stream::iter([Ok(Frame::trailers(trailers.into_iter().collect()))]);
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames.chain(end))))
        });
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut backend = backend(&[address]);
    backend.protocol = BackendProtocol::Http2;
    let (_proxy, address) = proxy(one_rule(Action::Forward(vec![backend]))).await;
    let mut client = Client::http2(address).await;
    let (mut sender, receiver) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = UnsyncBoxBody::new(StreamBody::new(receiver));
    let request = Request::post("http://shop.example/svc/Method").header("te", "trailers");
    let response = client.send(request.header("content-type", "application/grpc").body(body).unwrap());
    sender.send(Ok(Frame::data("one".into()))).await.unwrap();
    let mut body = response.await.unwrap().into_body();
    for next in ["two", "three", ""] {
        let frame = body.frame().await.unwrap().unwrap();
        assert!(!frame.into_data().unwrap().is_empty());
        if !next.is_empty() {
            sender.send(Ok(Frame::data(next.into()))).await.unwrap();
        }
    }
    drop(sender);
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["grpc-message"], "http://shop.example/svc/Method");
}

#[tokio::test]
async fn web_sockets_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let (proxy, address) = proxy(table(&[address])).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, response) =
        tokio_tungstenite::client_async("ws://shop.example/chat", stream).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for text in ["one", "two"] {
        socket.send(text.into()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().to_text().unwrap(), text);
        // Its endpoint may go meanwhile: what runs goes on.
        proxy.set_table(RouteTable::default());
    }
    drop(proxy);
    assert!(socket.next().await.is_none_or(|message| message.is_err()), "nothing outlives the proxy");
}

/// With endpoints that refuse, that close connections which are kept, or that die over a request that may be repeated.
#[tokio::test]
async fn requests_are_tried_elsewhere() {
    let (dead, echo) = (parts::dead_address().await, Echo::start("echo").await);
    let rude = parts::closes_after(|number| number % 2 == 1).await;
    let (proxy, address) = proxy(table(&[dead, echo.address])).await;
    let mut client = Client::http1(address).await;
    for number in 0..20 {
        let body = format!("body {number}");
        assert_eq!(client.post(&body).await, (200, body), "nothing of it was sent to the dead endpoint");
    }
    proxy.set_table(table(&[rude.address]));
    for _ in 0..20 {
        // Every second request on a connection finds it closed by its endpoint.
        assert_eq!(client.get("/").await, (200, "rude".to_owned()));
    }
    assert!(rude.connections() > 1);
    let deadly = [parts::closes_after(|_| true).await, parts::closes_after(|_| true).await];
    let tried = || deadly[0].connections() + deadly[1].connections();
    proxy.set_table(table(&deadly.each_ref().map(|deadly| deadly.address)));
    assert_eq!(client.get("/").await.0, 502);
    assert_eq!(tried(), 2, "what may be repeated is, once at each endpoint");
    assert_eq!(client.post("x").await.0, 502);
    assert_eq!(tried(), 3, "what may have had an effect is not repeated");
}

/// Endpoints that all refuse may be gone just before the proxy hears of the new ones.
#[tokio::test]
async fn who_finds_all_endpoints_gone_waits_for_others() {
    let (dead, echo) = (parts::dead_address().await, Echo::start("echo").await);
    let (proxy, address) = proxy(table(&[dead])).await;
    let mut client = Client::http1(address).await;
    let request = tokio::spawn(async move { client.post("text").await });
    // Whenever the new table comes, before the try or after it, the request succeeds.
    tokio::task::yield_now().await;
    proxy.set_table(table(&[echo.address]));
    assert_eq!(request.await.unwrap(), (200, "text".to_owned()));
}

/// A mirror gets the whole request, and nobody waits for it; one that can't be reached disturbs nobody.
#[tokio::test]
async fn mirrors_get_copies() {
    use knet::http_proxy::{Filter, Mirror};
    let (echo, mirror) = (Echo::start("echo").await, Echo::reading("mirror").await);
    let dead = parts::dead_address().await;
    let mirror_to = |endpoint, share| Filter::Mirror(Mirror { backend: backend(&[endpoint]), share, of: 1 });
    let mut rule = Rule::new(
        "all",
        Match::path(PathMatch::Prefix("/".into())),
        Action::Forward(vec![backend(&[echo.address])]),
    );
    rule.filters = vec![mirror_to(dead, 1), mirror_to(mirror.address, 1), mirror_to(echo.address, 0)];
    let mut routes = PortRoutes::default();
    routes.add(HostName::Any, HostName::Any, Arc::new(rule));
    let (_proxy, address) = proxy(RouteTable { ports: [(80, routes)].into() }).await;
    let (mut one, mut two) = (Client::http1(address).await, Client::http2(address).await);
    for text in ["some", "more"] {
        assert_eq!(one.post(text).await, (200, text.to_owned()));
        assert_eq!(two.post(text).await, (200, text.to_owned()));
        assert_eq!(one.get("/path").await, (200, "echo".to_owned()));
        let mut copies = Vec::new();
        for _ in 0..3 {
            let seen = mirror.seen().await;
            assert_eq!(seen.headers["host"], "shop.example");
            copies.push((seen.uri, seen.body));
        }
        copies.sort();
        let (root, path) = (("/".to_owned(), text.to_owned()), ("/path".to_owned(), String::new()));
        assert_eq!(copies, [root.clone(), root, path]);
    }
    for _ in 0..6 {
        echo.seen().await;
    }
    assert!(echo.seen_more().is_none(), "a share of nothing is nothing");
}

/// HTTP/1.1 and HTTP/2 in the clear on one port; trailers of HTTP/1.1 too, where the client takes them.
#[tokio::test]
async fn both_versions_on_one_port() {
    let echo = Echo::start("echo").await;
    let (_proxy, address) = proxy(table(&[echo.address])).await;
    let (mut one, mut two) = (Client::http1(address).await, Client::http2(address).await);
    for _ in 0..3 {
        assert_eq!(one.post("1").await, (200, "1".to_owned()));
        assert_eq!(two.post("2").await, (200, "2".to_owned()));
    }
    let seen = echo.seen().await;
    assert_eq!((seen.uri.as_str(), &seen.headers["host"]), ("/", &"shop.example".parse().unwrap()));
}
