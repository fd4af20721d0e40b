//! Port forwarding over SPDY: each connection is a pair of streams, one for bytes and one for what went wrong.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{agent::PodEntry, spdy};

/// How long the second stream of a pair may take; the kubelet's `streamCreationTimeout`.
const PAIR_MAX: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 32 * 1024;

/// Where a stream goes: `port`, `requestid` and whether `streamtype` is `data`. Clients before 1.3 give no request; then the
/// two streams follow upon each other, the one for errors first.
fn place(stream: &spdy::Stream) -> Option<(u16, String, bool)> {
    let data = is_data(&stream.headers)?;
    let port = port(&stream.headers)?;
    let before = stream.id.wrapping_sub(if data { 2 } else { 0 });
    let request = stream.headers.get("requestid").map_or_else(|| before.to_string(), str::to_owned);
    Some((port, request, data))
}

fn is_data(headers: &spdy::frame::Headers) -> Option<bool> {
    match headers.get("streamtype")? {
        "data" => Some(true),
        "error" => Some(false),
        _ => None,
    }
}

fn port(headers: &spdy::frame::Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// A pair that is not complete.
struct Half {
    stream: spdy::Stream,
    data: bool,
    until: Instant,
}

/// Serves a connection to its end.
pub(super) async fn serve<S>(io: S, entry: &PodEntry, address: IpAddr)
where
    S: AsyncRead + AsyncWrite + Send,
{
    // A stream that can't be placed is reset.
    let check: fn(&spdy::frame::Headers) -> bool =
        |headers| is_data(headers).is_some() && port(headers).is_some();
    let (_control, mut opened, run) = spdy::accept(io, check);
    let work = async {
        let mut halves: HashMap<String, Half> = HashMap::new();
        let mut pairs = FuturesUnordered::new();
        loop {
            let oldest = halves.values().map(|half| half.until).min();
            let late = async {
                match oldest {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                stream = opened.recv() => {
                    let Some(stream) = stream else { return };
                    let Some((port, request, data)) = place(&stream) else { continue };
                    match halves.remove(&request) {
                        None => {
                            let until = Instant::now() + PAIR_MAX;
                            halves.insert(request, Half { stream, data, until });
                        }
                        Some(half) if half.data == data => {
                            let kind = if data { "data" } else { "error" };
                            let why = format!("{kind} stream already assigned");
                            complain(&half.stream, &request, &why).await;
                            halves.insert(request, half);
                        }
                        Some(Half { stream: other, .. }) => {
                            let target = SocketAddr::new(address, port);
                            let (bytes, errors) = if data { (stream, other) } else { (other, stream) };
                            pairs.push(forward(bytes, errors, target, port, entry));
                        }
                    }
                }
                Some(()) = pairs.next() => {}
                () = late => {
                    let now = Instant::now();
                    let late: Vec<String> = halves
                        .iter()
                        .filter(|(_, half)| half.until <= now)
                        .map(|(request, _)| request.clone())
                        .collect();
                    for request in late {
                        if let Some(half) = halves.remove(&request) {
                            complain(&half.stream, &request, "timed out waiting for streams").await;
                            half.stream.writer.reset().await;
                        }
                    }
                }
            }
        }
    };
    // The client ends the connection; with it go those to the pod.
    tokio::select! {
        () = run => {}
        () = work => {}
    }
}

/// Tells the client, if the stream is the one for that.
async fn complain(stream: &spdy::Stream, request: &str, why: &str) {
    if is_data(&stream.headers) == Some(false) {
        let text = format!("error processing stream for request {request}: {why}");
        stream.writer.write(Bytes::from(text)).await;
    }
}

/// Carries one connection until both directions have ended, or the client has enough.
async fn forward(bytes: spdy::Stream, errors: spdy::Stream, target: SocketAddr, port: u16, entry: &PodEntry) {
    let ended = bytes.ended();
    let spdy::Stream { reader, writer, .. } = bytes;
    let carried = async {
        let connected = entry.node.config.runtime.connect(&entry.uid, target, true).await;
        carry(connected.map_err(|error| format!("failed to connect to {target}: {error}"))?, reader, &writer)
            .await
    };
    let outcome = tokio::select! {
        outcome = carried => outcome,
        () = ended.cancelled() => Ok(()),
    };
    if let Err(error) = outcome {
        let pod = entry.pod();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let text = format!("error forwarding port {port} to pod {name}, uid {}: {error}", entry.uid);
        errors.writer.write(Bytes::from(text)).await;
        // The client waits for the end of both.
        writer.reset().await;
    }
    errors.writer.finish().await;
}

async fn carry(
    connection: TcpStream,
    mut reader: spdy::StreamReader,
    writer: &spdy::StreamWriter,
) -> Result<(), String> {
    let (mut from, mut to) = connection.into_split();
    let up = async {
        while let Some(piece) = reader.next().await {
            if to.write_all(&piece).await.is_err() {
                // It doesn't read any more, but it may still have something to say.
                break;
            }
        }
        let _ = to.shutdown().await;
        // What still comes must be taken, or it would hold up the other streams.
        while reader.next().await.is_some() {}
    };
    let down = async {
        let mut chunk = vec![0; READ_BYTES];
        let outcome = loop {
            match from.read(&mut chunk).await {
                Ok(0) => break Ok(()),
                Ok(length) => {
                    if !writer.write(Bytes::copy_from_slice(&chunk[..length])).await {
                        break Ok(());
                    }
                }
                Err(error) => break Err(format!("the connection broke: {error}")),
            }
        };
        if outcome.is_ok() {
            writer.finish().await;
        }
        outcome
    };
    tokio::pin!(up, down);
    // When the pod has said its last, the connection is over: a client that goes on writing would not learn of it otherwise.
    let outcome = tokio::select! {
        outcome = &mut down => outcome,
        () = &mut up => down.await,
    };
    outcome
}
