//! Port forwarding: over SPDY, by itself or in a WebSocket, or over a WebSocket with two channels a port, one for bytes and
//! one for errors.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Failure, KubeletBody, Query,
    channel::{Form, normal_closure},
    pairs,
    tunnel::tunnel,
    upgrade::{Protocols, Socket, Switched, Upgrade},
};
use crate::agent::{Inner, PodEntry};

/// The ports that one request may ask for: their channels are numbered by a byte.
const PORTS_MAX: usize = 127;
/// How many messages of one port wait until its connection takes them.
const MESSAGES_MAX: usize = 16;
const READ_BYTES: usize = 32 * 1024;

/// SPDY in a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PROTOCOLS: Protocols = Protocols {
    websocket: &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""],
    spdy: &["portforward.k8s.io"],
};

pub(super) fn forward(
    inner: &Inner,
    entry: Arc<PodEntry>,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &PROTOCOLS)?;
    let protocol = upgrade.protocol();
    // With SPDY every stream says its own port.
    let ports = if PROTOCOLS.spdy.contains(&protocol) || protocol == TUNNEL { vec![] } else { ports(query)? };
    let addresses = entry.node.config.runtime.observe(&entry.uid).addresses.unwrap_or_default();
    let address = *addresses.first().ok_or_else(|| Failure::bad("the pod is not running"))?;
    let (response, switched) = upgrade.accept()?;
    inner.tasks.spawn(async move {
        let run = async {
            match switched.await {
                Some(Switched::WebSocket(socket)) if protocol == TUNNEL => {
                    let (bytes, carry) = tunnel(*socket);
                    tokio::join!(carry, pairs::serve(bytes, &entry, address));
                }
                Some(Switched::WebSocket(socket)) => {
                    run(*socket, Form::of(protocol), &entry, address, ports).await;
                }
                Some(Switched::Spdy(connection)) => pairs::serve(connection, &entry, address).await,
                None => {}
            }
        };
        tokio::select! {
            () = entry.stop.cancelled() => {}
            () = run => {}
        }
    });
    Ok(response)
}

/// The ports that channels are made for.
fn ports(query: &Query) -> Result<Vec<u16>, Failure> {
    let lists = ["port", "ports"].into_iter().flat_map(|name| query.all(name));
    let ports: Result<Vec<u16>, _> = lists.flat_map(|list| list.split(',')).map(str::parse).collect();
    let ports = ports.map_err(|_| Failure::bad("a port is not a number"))?;
    if ports.is_empty() || ports.len() > PORTS_MAX || ports.contains(&0) {
        return Err(Failure::bad(format!("between 1 and {PORTS_MAX} ports can be forwarded")));
    }
    Ok(ports)
}

async fn run(socket: Socket, form: Form, entry: &PodEntry, address: IpAddr, ports: Vec<u16>) {
    let (mut sink, mut incoming) = socket.split();
    let (replies, mut to_send) = mpsc::channel(MESSAGES_MAX);
    let mut inputs = Vec::new();
    let mut connections = Vec::new();
    // There are fewer ports than would need a second byte, see `PORTS_MAX`.
    for (index, port) in (0_u8..).zip(ports) {
        // Each channel begins with its port's number.
        for channel in [2 * index, 2 * index + 1] {
            if sink.send(form.write(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
        }
        let (input, received) = mpsc::channel(MESSAGES_MAX);
        inputs.push(input);
        let target = SocketAddr::new(address, port);
        connections.push(connect(form, index, entry, target, received, replies.clone()));
    }
    drop(replies);
    let read = async {
        while let Some(Ok(message)) = incoming.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            let Some((channel, bytes)) = form.read(message) else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // A connection that has ended takes no more.
                let _ = input.send(bytes).await;
            }
        }
    };
    let write = async {
        while let Some(message) = to_send.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_closure()).await;
        let _ = sink.close().await;
    };
    let all = futures::future::join_all(connections);
    tokio::select! {
        () = read => {}
        _ = async { tokio::join!(write, all) } => {}
    }
}

/// Carries one port's bytes until both directions have ended.
async fn connect(
    form: Form,
    index: u8,
    entry: &PodEntry,
    target: SocketAddr,
    mut input: mpsc::Receiver<Bytes>,
    replies: mpsc::Sender<Message>,
) {
    let stream = match entry.node.config.runtime.connect(&entry.uid, target, true).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("unable to do port forwarding: {error}");
            let _ = replies.send(form.write(2 * index + 1, text.as_bytes())).await;
            return;
        }
    };
    let (mut reader, mut writer) = stream.into_split();
    let up = async {
        while let Some(bytes) = input.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut chunk = vec![0; READ_BYTES];
        while let Ok(length) = reader.read(&mut chunk).await {
            if length == 0 || replies.send(form.write(2 * index, &chunk[..length])).await.is_err() {
                return;
            }
        }
    };
    // The protocol has no word for half of a connection: when the pod closes it, it is over.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
