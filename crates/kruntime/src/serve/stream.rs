//! exec and attach: several streams in one WebSocket, told apart by the first byte of each message.

use std::{io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream::SplitSink};
use http::{Request, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Mutex,
};
use tokio_tungstenite::tungstenite::{
    Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    Failure, KubeletBody, Query,
    upgrade::{Socket, Upgrade},
};
use crate::{
    agent::{Inner, PodEntry},
    runtime::{ExecRequest, Reader, Resize, RuntimeError, Session, Writer},
};

/// How long a client may take to confirm the end of a connection.
const CLOSE_MAX: Duration = Duration::from_secs(5);
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In version 5 only: the byte that follows names the stream that is closed.
const CLOSE: u8 = 255;
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// How long the rest of the output is waited for after the program has ended: something may still hold its pipes.
const DRAIN_MAX: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 32 * 1024;

type Sink = Arc<Mutex<SplitSink<Socket, Message>>>;

/// A terminal's size, as clients send it.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", default)]
    width: u16,
    #[serde(rename = "Height", default)]
    height: u16,
}

pub(super) async fn exec(
    inner: &Inner,
    entry: Arc<PodEntry>,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &PROTOCOLS)?;
    let wanted = ExecRequest {
        command: query.all("command").map(str::to_owned).collect(),
        stdin: query.is_set("input") || query.is_set("stdin"),
        tty: query.is_set("tty"),
    };
    if wanted.command.is_empty() {
        return Err(Failure::bad("you must specify at least 1 of stdin, stdout, stderr, and a command"));
    }
    let session = entry.node.config.runtime.exec(&entry.uid, container, wanted).await;
    accept(inner, &entry, container, upgrade, session)
}

pub(super) async fn attach(
    inner: &Inner,
    entry: Arc<PodEntry>,
    container: &str,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &PROTOCOLS)?;
    let session = entry.node.config.runtime.attach(&entry.uid, container).await;
    accept(inner, &entry, container, upgrade, session)
}

/// A container that isn't there is told before the upgrade; a program that can't be started after it, in the stream for
/// errors, as the kubelet does.
fn accept(
    inner: &Inner,
    entry: &PodEntry,
    container: &str,
    upgrade: Upgrade,
    session: Result<Session, RuntimeError>,
) -> Result<Response<KubeletBody>, Failure> {
    let session = match session {
        Err(RuntimeError::NotRunning(_) | RuntimeError::PodNotFound(_)) => {
            return Err(Failure::not_found(format!("container not found (\"{container}\")")));
        }
        session => session,
    };
    let closes = upgrade.protocol() == PROTOCOLS[0];
    let (response, socket) = upgrade.accept()?;
    let stop = entry.stop.clone();
    inner.tasks.spawn(async move {
        let Some(socket) = socket.await else { return };
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(socket, session, closes) => {}
        }
    });
    Ok(response)
}

async fn run(socket: Socket, session: Result<Session, RuntimeError>, closes: bool) {
    let (sink, mut incoming) = socket.split();
    let sink: Sink = Arc::new(Mutex::new(sink));
    let status = match session {
        Err(error) => failed(&error),
        Ok(session) => {
            let Session { stdin, stdout, stderr, resize, exit } = session;
            let mut input = Input { stdin, resize, closes };
            let read = async {
                while let Some(Ok(message)) = incoming.next().await {
                    if matches!(message, Message::Close(_)) || input.take(message).await.is_err() {
                        break;
                    }
                }
            };
            let out = copy(stdout, STDOUT, Arc::clone(&sink));
            let errors = copy(stderr, STDERR, Arc::clone(&sink));
            let ended = async {
                let output = async { tokio::join!(out, errors) };
                tokio::pin!(output, exit);
                let code = tokio::select! {
                    code = &mut exit => {
                        let _ = tokio::time::timeout(DRAIN_MAX, output).await;
                        code
                    }
                    _ = &mut output => exit.await,
                };
                code.map_or_else(|error| failed(&error), status)
            };
            tokio::select! {
                status = ended => status,
                // The client is gone; dropping the session ends the program.
                () = read => return,
            }
        }
    };
    let mut sink = sink.lock().await;
    let _ = sink.send(message(ERROR, status.to_string().as_bytes())).await;
    // Clients take anything but a normal closure for a broken connection.
    let _ = sink.send(normal_closure()).await;
    let _ = sink.flush().await;
    // What the client still sends must be taken, or the connection breaks before the closure reaches it.
    let drained = async {
        while incoming.next().await.is_some_and(|message| !matches!(message, Ok(Message::Close(_)) | Err(_)))
        {
        }
    };
    let _ = tokio::time::timeout(CLOSE_MAX, drained).await;
}

/// The frame that ends a connection whose business is done (RFC 6455, code 1000).
pub(super) fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") }))
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(bytes.len() + 1);
    out.put_u8(channel);
    out.put_slice(bytes);
    Message::Binary(out.freeze())
}

async fn copy(reader: Option<Reader>, channel: u8, sink: Sink) {
    let Some(mut reader) = reader else { return };
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(length) = reader.read(&mut chunk).await {
        if length == 0 || sink.lock().await.send(message(channel, &chunk[..length])).await.is_err() {
            return;
        }
    }
}

struct Input {
    stdin: Option<Writer>,
    resize: Option<Resize>,
    closes: bool,
}

impl Input {
    async fn take(&mut self, message: Message) -> io::Result<()> {
        let bytes: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return Ok(()),
        };
        let Some((channel, data)) = bytes.split_first() else { return Ok(()) };
        match (*channel, &mut self.stdin) {
            (STDIN, Some(stdin)) => {
                let written = async {
                    stdin.write_all(data).await?;
                    stdin.flush().await
                };
                // A program that doesn't read any more is no reason to end: its exit code is still to come.
                if written.await.is_err() {
                    self.stdin = None;
                }
            }
            (RESIZE, _) => {
                if let (Some(resize), Ok(size)) = (&self.resize, serde_json::from_slice::<Size>(data)) {
                    resize(size.width, size.height);
                }
            }
            (CLOSE, _) if self.closes && data.first() == Some(&STDIN) => {
                if let Some(mut stdin) = self.stdin.take() {
                    let _ = stdin.shutdown().await;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failed(error: &RuntimeError) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {error}"),
        "details": {"causes": [{"message": error.to_string()}]},
    })
}
