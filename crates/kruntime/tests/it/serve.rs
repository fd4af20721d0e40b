use std::{collections::BTreeMap, sync::Arc};

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kcore::TokioClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig, kubelet_service,
    runtime::process::{ProcessOptions, ProcessRuntime},
    spdy::frame::Frame,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    fake::{FakeApi, text},
    spdy::Client,
};

/// A connection that was one of HTTP.
type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// A node with one pod that runs.
struct Subject {
    agent: NodeAgent,
    _running: Running,
    _dir: tempfile::TempDir,
    _block: LoopbackBlock,
}

async fn subject(script: &str) -> Subject {
    subject_at(script, Arc::new(TokioClock::new())).await
}

async fn subject_at(script: &str, clock: Arc<dyn kcore::Clock>) -> Subject {
    let api = FakeApi::default();
    let dir = tempfile::tempdir().unwrap();
    let block = LoopbackBlock::claim().unwrap();
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
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

/// The protocols before the fifth: a first message says that the connection is there, and before the fourth the end is told
/// in words.
#[tokio::test]
async fn older_forms_of_channels_are_spoken() {
    let subject = subject("sleep 1000").await;
    let path = "/exec/default/pod/c?command=sh&command=-c&command=echo%20hi%3B%20exit%203&output=1";
    for (protocol, first, output, last) in [
        ("v4.channel.k8s.io", binary(1, b""), binary(1, b"hi\n"), "exit status 3"),
        ("channel.k8s.io", binary(1, b""), binary(1, b"hi\n"), "exit status 3"),
        ("v4.base64.channel.k8s.io", Message::text("1"), Message::text("1aGkK"), "3ey"),
        ("base64.channel.k8s.io", Message::text("1"), Message::text("1aGkK"), "3Y29tbWFuZCB0ZXJtaW5hdGVk"),
    ] {
        let mut socket = subject.socket(path, protocol).await;
        assert_eq!(socket.next().await.unwrap().unwrap(), first, "{protocol}");
        assert_eq!(socket.next().await.unwrap().unwrap(), output, "{protocol}");
        let end = socket.next().await.unwrap().unwrap().into_data();
        let end = String::from_utf8_lossy(&end).into_owned();
        assert!(end.contains(last), "{protocol}: {end}");
    }
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
    let socket =
        subject.socket("/exec/default/pod/c?command=no-such-program&output=1", "v4.channel.k8s.io").await;
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

/// What Go's clients do: a request is upgraded, streams are opened for errors and for each of the others.
async fn spdy(subject: &Subject, path: &str, protocols: &str) -> Result<Client<Upgraded>, (u16, String)> {
    let io = TokioIo::new(subject.connect());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = http::Request::post(path)
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", protocols)
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    if response.status() != 101 {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        return Err((status, String::from_utf8_lossy(&body).into_owned()));
    }
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let chosen = response.headers()["x-stream-protocol-version"].to_str().unwrap();
    assert!(protocols.starts_with(chosen), "{chosen}");
    Ok(Client::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()), bytes::Bytes::new()))
}

/// Everything that comes on some streams.
async fn gather(client: &mut Client<impl AsyncRead + AsyncWrite + Unpin>) -> BTreeMap<u32, String> {
    let mut all: BTreeMap<u32, String> = BTreeMap::new();
    while let Some(frame) = client.next().await {
        if let Frame::Data { stream, data, .. } = frame {
            all.entry(stream).or_default().push_str(std::str::from_utf8(&data).unwrap());
        }
    }
    all
}

#[tokio::test]
async fn exec_speaks_spdy() {
    let subject = subject("sleep 1000").await;
    let path = "/exec/default/pod/c?command=sh&command=-c&command=cat%3B%20echo%20bad%20%3E%262%3B%20exit%207&input=1&output=1&error=1";
    for (protocols, expected) in [
        ("v4.channel.k8s.io,v3.channel.k8s.io,channel.k8s.io", "\"NonZeroExitCode\""),
        ("v2.channel.k8s.io", "command terminated with non-zero exit code: exit status 7"),
        ("channel.k8s.io", "command terminated with non-zero exit code: exit status 7"),
    ] {
        let mut client = spdy(&subject, path, protocols).await.map_err(|error| error.1).unwrap();
        let error = client.open([("streamtype", "error")]).await;
        let stdin = client.open([("streamtype", "stdin")]).await;
        let stdout = client.open([("streamtype", "stdout")]).await;
        let stderr = client.open([("streamtype", "stderr")]).await;
        client.data(stdin, b"to and fro", true).await;
        let all = gather(&mut client).await;
        assert_eq!((all[&stdout].as_str(), all[&stderr].as_str()), ("to and fro", "bad\n"), "{protocols}");
        assert!(all[&error].contains(expected), "{protocols}: {}", all[&error]);
    }
    // A terminal: one output, and a stream for its size.
    let path = "/exec/default/pod/c?command=sh&input=1&output=1&error=1&tty=1";
    let mut client = spdy(&subject, path, "v4.channel.k8s.io").await.map_err(|error| error.1).unwrap();
    let [error, stdin, stdout, resize] = {
        let mut ids = [0; 4];
        for (id, kind) in ids.iter_mut().zip(["error", "stdin", "stdout", "resize"]) {
            *id = client.open([("streamtype", kind)]).await;
        }
        ids
    };
    client.data(resize, b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,", false).await;
    client.data(resize, b"\"Height\":40}\n", false).await;
    client.data(stdin, b"until [ \"$(stty size)\" = '40 100' ]; do :; done; echo sized; exit\n", false).await;
    let all = gather(&mut client).await;
    assert!(all[&stdout].contains("sized") && all[&error].contains("Success"), "{all:?}");
}

#[tokio::test]
async fn upgrades_to_spdy_are_checked() {
    let subject = subject("sleep 1000").await;
    for (path, protocols, expected) in [
        (
            "/exec/default/pod/c?command=ls&output=1",
            "v9.channel.k8s.io",
            (
                403,
                "unable to upgrade: unable to negotiate protocol: client supports [v9.channel.k8s.io], server accepts \
                 [v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]",
            ),
        ),
        (
            "/portForward/default/pod",
            ",",
            (400, "unable to upgrade: header X-Stream-Protocol-Version contains [], but no valid protocols"),
        ),
        (
            "/exec/default/pod/c?command=ls",
            "v4.channel.k8s.io",
            (400, "you must specify at least 1 of stdin, stdout, stderr"),
        ),
        (
            "/exec/default/pod/none?command=ls&output=1",
            "v4.channel.k8s.io",
            (404, "container not found (\"none\")"),
        ),
    ] {
        let refused = spdy(&subject, path, protocols).await.err().unwrap();
        assert_eq!((refused.0, refused.1.as_str()), expected, "{path} {protocols}");
    }
}

/// What kubectl port-forward does for two connections, to a port where somebody listens and to one where nobody does.
async fn forward_pairs(mut client: Client<impl AsyncRead + AsyncWrite + Unpin>) {
    let headers = |kind, port, request| [("streamtype", kind), ("port", port), ("requestid", request)];
    let errors = client.open(headers("error", "8080", "0")).await;
    client.data(errors, b"", true).await;
    let data = client.open(headers("data", "8080", "0")).await;
    client.data(data, b"GET / HTTP/1.0\r\n\r\n", false).await;
    assert!(client.collect(data).await.starts_with("HTTP/1.0 200"));
    assert_eq!(client.collect(errors).await, "");
    // The older form has no request ids: the stream of bytes is the next after that of errors.
    let errors = client.open([("streamtype", "error"), ("port", "9")]).await;
    client.open([("streamtype", "data"), ("port", "9")]).await;
    let why = client.collect(errors).await;
    assert!(why.starts_with("error forwarding port 9 to pod pod, uid 1: failed to connect to "), "{why}");
    // A client that has enough: the pair ends.
    let errors = client.open(headers("error", "8080", "2")).await;
    let data = client.open(headers("data", "8080", "2")).await;
    client.send(Frame::Reset { stream: data, status: 5 }).await;
    assert_eq!(client.collect(errors).await, "");
    // Two of a kind.
    let errors = client.open(headers("error", "8080", "3")).await;
    client.open(headers("error", "8080", "3")).await;
    assert_eq!(
        match client.next().await {
            Some(Frame::SynReply { .. }) => {
                // One message, in as many pieces as the way to here makes of it.
                let (expected, mut text) = ("already assigned", String::new());
                while !text.ends_with(expected) {
                    if let Frame::Data { stream, data, .. } = client.next().await.unwrap()
                        && stream == errors
                    {
                        text.push_str(std::str::from_utf8(&data).unwrap());
                    }
                }
                text
            }
            other => format!("{other:?}"),
        },
        "error processing stream for request 3: error stream already assigned"
    );
    // Streams without a port are reset.
    let nowhere = client.open([("streamtype", "data")]).await;
    while client.next().await.unwrap() != (Frame::Reset { stream: nowhere, status: 5 }) {}
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_and_through_a_tunnel() {
    let subject = subject("cd /proc/self/fdinfo && exec python3 -u -m http.server 8080").await;
    assert_eq!(subject.get("/containerLogs/default/pod/c?follow=true&limitBytes=7").await.1, "Serving");
    let path = "/portForward/default/pod";
    forward_pairs(spdy(&subject, path, "portforward.k8s.io").await.map_err(|error| error.1).unwrap()).await;
    let socket = subject.socket(path, "SPDY/3.1+portforward.k8s.io").await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut sink, mut incoming) = socket.split();
    let (mut from, mut to) = tokio::io::split(far);
    let carry = async {
        let outward = async {
            let mut chunk = [0; 1000];
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                sink.send(Message::Binary(bytes::Bytes::copy_from_slice(&chunk[..length]))).await.unwrap();
            }
        };
        let inward = async {
            while let Some(Ok(Message::Binary(bytes))) = incoming.next().await {
                to.write_all(&bytes).await.unwrap();
            }
        };
        tokio::join!(outward, inward);
    };
    tokio::select! {
        () = carry => panic!("the tunnel ended"),
        () = forward_pairs(Client::new(near, bytes::Bytes::new())) => {}
    }
}

/// What isn't a WebSocket that we speak is told so.
#[tokio::test]
async fn other_upgrades_are_refused() {
    let subject = subject("sleep 1000").await;
    assert_eq!(subject.get("/exec/default/pod/c?command=ls").await.0, 400);
    let mut request = "ws://node/exec/default/pod/c?command=ls".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    assert!(client_async(request, subject.connect()).await.is_err(), "no stream is asked for");
    let mut request = "ws://node/exec/default/pod/c?command=ls".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v9.channel.k8s.io".parse().unwrap());
    assert!(client_async(request, subject.connect()).await.is_err());
}

/// What a process takes is told as the kubelet tells it: a loop takes processor time, and every process holds memory. Ten seconds
/// must pass before anything is told.
#[tokio::test]
async fn what_processes_use_is_told() {
    let clock = Arc::new(kcore::testing::ManualClock::new("2030-01-01T00:00:00Z".parse().unwrap()));
    let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo burned; sleep 1000";
    let subject = subject_at(burn, clock.clone()).await;
    let log = subject.get("/containerLogs/default/pod/c?follow=true&limitBytes=6").await;
    assert_eq!(log, (200, "burned".to_owned()));
    let summary = async || serde_json::from_str::<Value>(&subject.get("/stats/summary").await.1).unwrap();
    let young = summary().await;
    assert_eq!(
        (&young["pods"][0]["podRef"]["name"], &young["pods"][0]["cpu"]),
        (&json!("pod"), &Value::Null)
    );
    clock.advance(jiff::SignedDuration::from_secs(20));
    let told = summary().await;
    let container = &told["pods"][0]["containers"][0];
    let total = container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap();
    let rate = container["cpu"]["usageNanoCores"].as_u64().unwrap();
    let memory = container["memory"]["workingSetBytes"].as_u64().unwrap();
    // It was read at its start, when it may have taken some time already.
    assert!(total > 0 && rate <= total / 20 && memory > 4096, "{told}");
    assert_eq!(told["node"]["memory"]["workingSetBytes"], memory, "{told}");
    let (code, text) = subject.get("/metrics/resource").await;
    let labels = "{container=\"c\",namespace=\"default\",pod=\"pod\"}";
    let sample = format!("container_memory_working_set_bytes{labels} {memory} 1893456020000\n");
    assert!(code == 200 && text.contains(&sample) && text.contains("\nresource_scrape_error 0\n"), "{text}");
}
