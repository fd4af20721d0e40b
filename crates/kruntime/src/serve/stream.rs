//! exec and attach: a program's streams, over one WebSocket or over streams of SPDY.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Failure, KubeletBody, Query,
    channel::{CLOSE, Form, Sink},
    upgrade::{Connection, Protocols, Socket, Switched, Upgrade},
};
use crate::{
    agent::{Inner, PodEntry},
    runtime::{ExecRequest, Reader, Resize, RuntimeError, Session, Writer},
    spdy,
};

/// How long a client may take to confirm the end of a connection.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How long a client of SPDY may take to open its streams; the kubelet's `streamCreationTimeout`.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// How long the rest of the output is waited for after the program has ended: something may still hold its pipes.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The longest text that says a terminal's size.
const SIZE_BYTES_MAX: usize = 4 * 1024;
const READ_BYTES: usize = 32 * 1024;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// What a stream of SPDY says that it is, by the number of its channel.
const STREAM_TYPES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];
const PROTOCOLS: Protocols = Protocols {
    websocket: &[
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "",
    ],
    spdy: &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"],
};

/// A terminal's size, as clients send it.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", default)]
    width: u16,
    #[serde(rename = "Height", default)]
    height: u16,
}

/// The streams that the client wants, by the number of their channel.
#[derive(Clone, Copy)]
struct Wanted {
    streams: [bool; 3],
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Result<Self, Failure> {
        let set = |names: [&str; 2]| names.into_iter().any(|name| query.is_set(name));
        let tty = query.is_set("tty");
        // A terminal has one output.
        let stderr = set(["error", "stderr"]) && !tty;
        let streams = [set(["input", "stdin"]), set(["output", "stdout"]), stderr];
        if !streams.contains(&true) {
            return Err(Failure::bad("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(Self { streams, tty })
    }

    fn has(self, channel: u8) -> bool {
        self.streams.get(usize::from(channel)).copied().unwrap_or(true)
    }
}

pub(super) async fn exec(
    inner: &Inner,
    entry: Arc<PodEntry>,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &PROTOCOLS)?;
    let wanted = Wanted::of(query)?;
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Failure::bad("you must specify a command"));
    }
    let asked = ExecRequest { command, stdin: wanted.has(STDIN), tty: wanted.tty };
    let session = entry.node.config.runtime.exec(&entry.uid, container, asked).await;
    accept(inner, &entry, container, upgrade, session, wanted)
}

pub(super) async fn attach(
    inner: &Inner,
    entry: Arc<PodEntry>,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<KubeletBody>, Failure> {
    let upgrade = Upgrade::check(request, &PROTOCOLS)?;
    let wanted = Wanted::of(query)?;
    let session = entry.node.config.runtime.attach(&entry.uid, container).await;
    accept(inner, &entry, container, upgrade, session, wanted)
}

/// A container that isn't there is told before the upgrade; a program that can't be started after it, in the stream for
/// errors, as the kubelet does.
fn accept(
    inner: &Inner,
    entry: &PodEntry,
    container: &str,
    upgrade: Upgrade,
    session: Result<Session, RuntimeError>,
    wanted: Wanted,
) -> Result<Response<KubeletBody>, Failure> {
    let session = match session {
        Err(RuntimeError::NotRunning(_) | RuntimeError::PodNotFound(_)) => {
            return Err(Failure::not_found(format!("container not found (\"{container}\")")));
        }
        session => session,
    };
    let protocol = upgrade.protocol();
    let (response, switched) = upgrade.accept()?;
    let stop = entry.stop.clone();
    inner.tasks.spawn(async move {
        let run = async {
            match switched.await {
                Some(Switched::WebSocket(socket)) => {
                    run_socket(*socket, session, Form::of(protocol), wanted).await;
                }
                Some(Switched::Spdy(connection)) => run_spdy(connection, session, protocol, wanted).await,
                None => {}
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = run => {}
        }
    });
    Ok(response)
}

/// Where a program's output goes.
trait Outlet: Sync {
    /// Whether the bytes could be sent.
    fn write(&self, channel: u8, bytes: &[u8]) -> impl Future<Output = bool> + Send;
}

impl Outlet for Sink {
    async fn write(&self, channel: u8, bytes: &[u8]) -> bool {
        Self::write(self, channel, bytes).await
    }
}

/// Copies between a session and the client until the program has ended; `None` when the client is gone before.
async fn drive<O: Outlet, F: Future<Output = ()> + Send>(
    session: Result<Session, RuntimeError>,
    wanted: Wanted,
    outlet: &O,
    read: impl FnOnce(Input) -> F + Send,
) -> Option<Result<i32, RuntimeError>> {
    let Session { stdin, stdout, stderr, resize, exit } = match session {
        Ok(session) => session,
        Err(error) => return Some(Err(error)),
    };
    let read = read(Input { stdin, resize });
    let ended = async {
        let output = async {
            tokio::join!(copy(stdout, STDOUT, wanted, outlet), copy(stderr, STDERR, wanted, outlet))
        };
        tokio::pin!(output, exit);
        tokio::select! {
            code = &mut exit => {
                let _ = tokio::time::timeout(DRAIN_MAX, output).await;
                code
            }
            _ = &mut output => exit.await,
        }
    };
    tokio::select! {
        code = ended => Some(code),
        // Dropping the session ends the program.
        () = read => None,
    }
}

/// Output that nobody wants is read all the same, or the program would wait for its reader.
async fn copy<O: Outlet>(reader: Option<Reader>, channel: u8, wanted: Wanted, outlet: &O) {
    let Some(mut reader) = reader else { return };
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(length) = reader.read(&mut chunk).await {
        if length == 0 || (wanted.has(channel) && !outlet.write(channel, &chunk[..length]).await) {
            return;
        }
    }
}

async fn run_socket(socket: Socket, session: Result<Session, RuntimeError>, form: Form, wanted: Wanted) {
    let (sink, mut incoming) = socket.split();
    let sink = Sink::new(form, sink);
    if !form.closes {
        // Clients of the older protocols wait for a first message to know that they are connected.
        let first = [STDOUT, STDERR, ERROR].into_iter().find(|channel| wanted.has(*channel));
        if !sink.write(first.unwrap_or(ERROR), b"").await {
            return;
        }
    }
    let code = drive(session, wanted, &sink, |mut input| {
        let incoming = &mut incoming;
        async move {
            while let Some(Ok(message)) = incoming.next().await {
                if matches!(message, Message::Close(_)) {
                    return;
                }
                match form.read(message) {
                    Some((STDIN, data)) if wanted.has(STDIN) => input.write(&data).await,
                    Some((RESIZE, data)) => input.resize(&data),
                    Some((CLOSE, data)) if form.closes && data.first() == Some(&STDIN) => input.close().await,
                    _ => {}
                }
            }
        }
    })
    .await;
    let Some(code) = code else { return };
    let last = farewell(code, form.status);
    if !last.is_empty() && !sink.write(ERROR, last.as_bytes()).await {
        return;
    }
    sink.close().await;
    // What the client still sends must be taken, or the connection breaks before the closure reaches it.
    let drained = async {
        while incoming.next().await.is_some_and(|message| !matches!(message, Ok(Message::Close(_)) | Err(_)))
        {
        }
    };
    let _ = tokio::time::timeout(CLOSE_MAX, drained).await;
}

/// The streams of SPDY that a client has opened, by the number of their channel.
#[derive(Default)]
struct Streams([Option<spdy::Stream>; STREAM_TYPES.len()]);

impl Streams {
    /// Waits until all are there that the request spoke of; `None` when they don't come.
    async fn collect(
        mut opened: mpsc::Receiver<spdy::Stream>,
        wanted: Wanted,
        resizes: bool,
    ) -> Option<Self> {
        let mut missing = 1 + wanted.streams.iter().filter(|wanted| **wanted).count();
        missing += usize::from(wanted.tty && resizes);
        let mut streams = Self::default();
        let all = async {
            while missing > 0 {
                let stream = opened.recv().await?;
                let kind = stream.headers.get("streamtype").unwrap_or_default();
                let Some(channel) = STREAM_TYPES.iter().position(|known| *known == kind) else { continue };
                missing -= usize::from(streams.0[channel].is_none());
                streams.0[channel] = Some(stream);
            }
            Some(streams)
        };
        tokio::time::timeout(OPEN_MAX, all).await.ok().flatten()
    }
}

struct Writers([Option<spdy::StreamWriter>; STREAM_TYPES.len()]);

impl Outlet for Writers {
    async fn write(&self, channel: u8, bytes: &[u8]) -> bool {
        match self.0.get(usize::from(channel)) {
            Some(Some(writer)) => writer.write(Bytes::copy_from_slice(bytes)).await,
            _ => true,
        }
    }
}

async fn run_spdy(
    connection: Connection,
    session: Result<Session, RuntimeError>,
    protocol: &str,
    wanted: Wanted,
) {
    let resizes = ["v4.channel.k8s.io", "v3.channel.k8s.io"].contains(&protocol);
    let (control, opened, run) = spdy::accept(connection, |_| true);
    let serve = async {
        if let Some(streams) = Streams::collect(opened, wanted, resizes).await {
            let status = protocol == "v4.channel.k8s.io";
            serve_streams(&control, session, wanted, streams, status).await;
        }
        control.close().await;
    };
    tokio::join!(run, serve);
}

async fn serve_streams(
    control: &spdy::Control,
    session: Result<Session, RuntimeError>,
    wanted: Wanted,
    Streams(streams): Streams,
    status: bool,
) {
    let mut readers = [const { None }; STREAM_TYPES.len()];
    let mut writers = [const { None }; STREAM_TYPES.len()];
    for (channel, stream) in streams.into_iter().enumerate() {
        if let Some(spdy::Stream { reader, writer, .. }) = stream {
            readers[channel] = Some(reader);
            writers[channel] = Some(writer);
        }
    }
    let writers = Writers(writers);
    let code = drive(session, wanted, &writers, |Input { stdin, resize }| {
        let [typed, _, _, _, sizes] = readers;
        async move {
            let feeding = async {
                tokio::join!(feed(typed, stdin), follow(sizes, resize));
                // The end of the input is not the end of the connection.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = control.closed() => {}
                () = feeding => {}
            }
        }
    })
    .await;
    let Some(code) = code else { return };
    writers.write(ERROR, farewell(code, status).as_bytes()).await;
    for writer in writers.0.iter().flatten() {
        writer.finish().await;
    }
}

/// What the client types, to its end.
async fn feed(typed: Option<spdy::StreamReader>, stdin: Option<Writer>) {
    let Some(mut typed) = typed else { return };
    let mut input = Input { stdin, resize: None };
    while let Some(piece) = typed.next().await {
        input.write(&piece).await;
    }
    input.close().await;
}

/// The terminal's sizes: objects of JSON one after the other.
async fn follow(sizes: Option<spdy::StreamReader>, resize: Option<Resize>) {
    let Some(mut sizes) = sizes else { return };
    let input = Input { stdin: None, resize };
    let mut text = BytesMut::new();
    while let Some(piece) = sizes.next().await {
        text.extend_from_slice(&piece);
        let mut objects = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut read = 0;
        while let Some(Ok(size)) = objects.next() {
            read = objects.byte_offset();
            input.apply(&size);
        }
        let _ = text.split_to(read);
        if text.len() > SIZE_BYTES_MAX {
            return;
        }
    }
}

/// What goes into a session.
struct Input {
    stdin: Option<Writer>,
    resize: Option<Resize>,
}

impl Input {
    async fn write(&mut self, data: &[u8]) {
        let Some(stdin) = &mut self.stdin else { return };
        let written = async {
            stdin.write_all(data).await?;
            stdin.flush().await
        };
        // A program that doesn't read any more is no reason to end: its exit code is still to come.
        if written.await.is_err() {
            self.stdin = None;
        }
    }

    async fn close(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.shutdown().await;
        }
    }

    fn resize(&self, text: &[u8]) {
        if let Ok(size) = serde_json::from_slice(text) {
            self.apply(&size);
        }
    }

    fn apply(&self, size: &Size) {
        if let Some(resize) = &self.resize {
            resize(size.width, size.height);
        }
    }
}

/// What the stream for errors carries at the end: a Status, or before version 4 words, and nothing when all is well.
fn farewell(code: Result<i32, RuntimeError>, status: bool) -> String {
    let value = code.map_or_else(|error| failed(&error), outcome);
    if status { value.to_string() } else { value["message"].as_str().unwrap_or_default().to_owned() }
}

fn outcome(code: i32) -> Value {
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
        "message": format!("Internal error occurred: error executing command in container: {error}"),
        "details": {"causes": [{"message": error.to_string()}]},
    })
}
