use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use kcore::TokioClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig, kubelet_service,
    runtime::process::{ProcessOptions, ProcessRuntime},
};
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::fake::{FakeApi, text};

/// A node with one pod that runs.
struct Subject {
    agent: NodeAgent,
    _running: Running,
    _dir: tempfile::TempDir,
    _block: LoopbackBlock,
}

async fn subject(script: &str) -> Subject {
    let api = FakeApi::default();
    let dir = tempfile::tempdir().unwrap();
    let block = LoopbackBlock::claim().unwrap();
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
    let clock = Arc::new(TokioClock::new());
    let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock.clone());
    let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node", runtime);
    config.state_dir = Some(dir.path().join("node"));
    let agent = NodeAgent::new(&informers, clock, [config]);
    let running = Manager::new().informers(&informers).add(Start::Always, agent.clone()).start();
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "pod", "namespace": "default", "uid": "1"},
        "spec": {"nodeName": "node", "volumes": [{"name": "v", "configMap": {"name": "config"}}], "containers": [{
            "name": "c", "image": "i", "stdin": true, "command": ["sh", "-c", script],
            "env": [{"name": "VALUE", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "key"}}}],
        }]},
        "status": {"phase": "Pending"},
    }));
    api.until(|pods| pods["pod"]["status"]["phase"] == "Running").await;
    Subject { agent, _running: running, _dir: dir, _block: block }
}

impl Subject {
    fn connect(&self) -> tokio::io::DuplexStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(kubelet_service(&self.agent, "node").serve(server));
        client
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let io = hyper_util::rt::TokioIo::new(self.connect());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::get(path).header("host", "node").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let stream = response.into_body().into_data_stream().map(|bytes| bytes.unwrap());
        (status, text(stream).await)
    }

    async fn socket(&self, path: &str, protocol: &str) -> WebSocketStream<tokio::io::DuplexStream> {
        let mut request = format!("ws://node{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        let (socket, response) = client_async(request, self.connect()).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol.split(',').next().unwrap());
        socket
    }
}

/// What came on each channel until the server closed.
async fn collect(mut socket: WebSocketStream<tokio::io::DuplexStream>) -> Vec<String> {
    let mut channels = vec![Vec::new(); 4];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    channels.into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

fn binary(channel: u8, data: &[u8]) -> Message {
    Message::Binary([&[channel], data].concat().into())
}

#[tokio::test]
async fn exec_gives_streams_and_the_exit_code() {
    let subject = subject("sleep 1000").await;
    let path = "/exec/default/pod/c?command=sh&command=-c&command=echo%20%24VALUE%3B%20echo%20bad%20%3E%262%3B%20exit%207&output=1&error=1";
    let socket = subject.socket(path, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    let channels = collect(socket).await;
    assert_eq!((channels[1].as_str(), channels[2].as_str()), ("value\n", "bad\n"));
    let status: Value = serde_json::from_str(&channels[3]).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&json!("NonZeroExitCode"), &json!("7"))
    );
    let mut socket =
        subject.socket("/exec/default/pod/c?command=cat&input=1&output=1", "v5.channel.k8s.io").await;
    socket.send(binary(0, b"to and fro")).await.unwrap();
    socket.send(binary(255, &[0])).await.unwrap();
    let channels = collect(socket).await;
    assert_eq!(channels[1], "to and fro");
    assert!(channels[3].contains("Success"));
    let socket = subject.socket("/exec/default/pod/c?command=no-such-program", "v4.channel.k8s.io").await;
    let channels = collect(socket).await;
    assert!(channels[3].contains("no-such-program") && channels[3].contains("Failure"), "{}", channels[3]);
    let mut socket =
        subject.socket("/exec/default/pod/c?command=sh&input=1&output=1&tty=1", "v5.channel.k8s.io").await;
    socket.send(binary(4, br#"{"Width":100,"Height":40}"#)).await.unwrap();
    socket.send(binary(0, b"stty size; exit\n")).await.unwrap();
    assert!(collect(socket).await[1].contains("40 100"));
}

#[tokio::test]
async fn attach_joins_and_leaves() {
    let subject = subject("read line; echo got $line; read line; exit 3").await;
    let mut socket = subject.socket("/attach/default/pod/c?input=1&output=1", "v5.channel.k8s.io").await;
    socket.send(binary(0, b"one\n")).await.unwrap();
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first, binary(1, b"got one\n"));
    socket.send(binary(0, b"two\n")).await.unwrap();
    assert!(collect(socket).await[3].contains("\"3\""));
}

#[tokio::test]
async fn logs_are_as_asked_for() {
    let subject = subject("echo one; echo two >&2; echo three; exec sleep 1000").await;
    let get = async |query: &str| subject.get(&format!("/containerLogs/default/pod/c?{query}")).await;
    // Following until the third line is there makes the rest independent of time.
    assert_eq!(get("follow=true&limitBytes=14").await.0, 200);
    let (_, all) = get("").await;
    let mut lines: Vec<_> = all.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "three", "two"]);
    assert_eq!(get("tailLines=0").await, (200, String::new()));
    assert_eq!(get("limitBytes=2").await.1.len(), 2);
    assert_eq!(get("timestamps=true").await.1.lines().filter(|line| line.contains("Z ")).count(), 3);
    assert_eq!(get("tailLines=x").await.0, 400);
    let (status, text) = get("previous=true").await;
    assert_eq!(
        (status, text.as_str()),
        (400, "previous terminated container \"c\" in pod \"pod\" not found")
    );
    assert_eq!(subject.get("/containerLogs/default/pod/none").await.0, 404);
    assert_eq!(subject.get("/containerLogs/default/none/c").await.0, 404);
    assert_eq!(subject.get("/healthz").await, (200, "ok".to_owned()));
    assert!(subject.get("/pods").await.1.contains("\"PodList\""));
}

#[tokio::test]
async fn ports_are_forwarded() {
    let subject = subject("cd /proc/self/fdinfo && exec python3 -u -m http.server 8080").await;
    assert_eq!(subject.get("/containerLogs/default/pod/c?follow=true&limitBytes=7").await.1, "Serving");
    let mut socket = subject.socket("/portForward/default/pod?ports=8080", "v4.channel.k8s.io").await;
    for channel in [0, 1] {
        let first = socket.next().await.unwrap().unwrap();
        assert_eq!(first, binary(channel, &8080_u16.to_le_bytes()));
    }
    socket.send(binary(0, b"GET / HTTP/1.0\r\n\r\n")).await.unwrap();
    let channels = collect(socket).await;
    assert!(channels[0].starts_with("HTTP/1.0 200"), "{channels:?}");
    let mut socket = subject.socket("/portForward/default/pod?ports=9", "v4.channel.k8s.io").await;
    socket.next().await;
    socket.next().await;
    assert!(collect(socket).await[1].contains("unable to do port forwarding"));
}

/// What isn't a WebSocket that we speak is told so.
#[tokio::test]
async fn other_upgrades_are_refused() {
    let subject = subject("sleep 1000").await;
    assert_eq!(subject.get("/exec/default/pod/c?command=ls").await.0, 400);
    let mut request = "ws://node/exec/default/pod/c?command=ls".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v9.channel.k8s.io".parse().unwrap());
    assert!(client_async(request, subject.connect()).await.is_err());
}
