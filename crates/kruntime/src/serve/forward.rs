//! Port-forward over a WebSocket: two channels a port, one for bytes and one for errors.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Failure, KubeletBody, Query,
    upgrade::{Socket, Upgrade},
};
use crate::agent::{Inner, PodEntry};

/// The ports that one request may ask for: their channels are numbered by a byte.
const PORTS_MAX: usize = 127;
/// How many messages of one port wait until its connection takes them.
const MESSAGES_MAX: usize = 16;
const READ_BYTES: usize = 32 * 1024;

pub(super) fn forward(
    inner: &Inner,
    entry: Arc<PodEntry>,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &["v4.channel.k8s.io"])?;
    let ports: Result<Vec<u16>, _> = ["port", "ports"]
        .into_iter()
        .flat_map(|name| query.all(name))
        .flat_map(|list| list.split(','))
        .map(str::parse)
        .collect();
    let ports = ports.map_err(|_| Failure::bad("a port is not a number"))?;
    if ports.is_empty() || ports.len() > PORTS_MAX {
        return Err(Failure::bad(format!("between 1 and {PORTS_MAX} ports can be forwarded")));
    }
    let addresses = entry.node.config.runtime.observe(&entry.uid).addresses.unwrap_or_default();
    let address = *addresses.first().ok_or_else(|| Failure::bad("the pod is not running"))?;
    let (response, socket) = upgrade.accept()?;
    inner.tasks.spawn(async move {
        let Some(socket) = socket.await else { return };
        tokio::select! {
            () = entry.stop.cancelled() => {}
            () = run(socket, &entry, address, ports) => {}
        }
    });
    Ok(response)
}

fn message(channel: usize, bytes: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(bytes.len() + 1);
    out.put_u8(u8::try_from(channel).unwrap_or(u8::MAX));
    out.put_slice(bytes);
    Message::Binary(out.freeze())
}

async fn run(socket: Socket, entry: &PodEntry, address: IpAddr, ports: Vec<u16>) {
    let (mut sink, mut incoming) = socket.split();
    let (replies, mut to_send) = mpsc::channel(MESSAGES_MAX);
    let mut inputs = Vec::new();
    let mut connections = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        // Each channel begins with its port's number.
        for channel in [2 * index, 2 * index + 1] {
            if sink.send(message(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
        }
        let (input, received) = mpsc::channel(MESSAGES_MAX);
        inputs.push(input);
        let target = entry.node.config.runtime.dial_address(SocketAddr::new(address, port));
        connections.push(connect(index, target, received, replies.clone()));
    }
    drop(replies);
    let read = async {
        while let Some(Ok(message)) = incoming.next().await {
            let Message::Binary(bytes) = message else {
                if matches!(message, Message::Close(_)) {
                    return;
                }
                continue;
            };
            let Some((channel, _)) = bytes.split_first() else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // A connection that has ended takes no more.
                let _ = input.send(bytes.slice(1..)).await;
            }
        }
    };
    let write = async {
        while let Some(message) = to_send.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(super::stream::normal_closure()).await;
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
    index: usize,
    target: SocketAddr,
    mut input: mpsc::Receiver<Bytes>,
    replies: mpsc::Sender<Message>,
) {
    let stream = match TcpStream::connect(target).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("unable to do port forwarding: {error}");
            let _ = replies.send(message(2 * index + 1, text.as_bytes())).await;
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
            if length == 0 || replies.send(message(2 * index, &chunk[..length])).await.is_err() {
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
