//! The client's side of a server's streams: SPDY/3.1, which every server of the interface speaks for exec, attach and
//! port-forwarding, and which can close one direction of a stream alone.

use std::{collections::HashMap, io};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::spdy::{
    FrameDecoder, FrameEncoder,
    frame::{Frame, Headers},
};

/// The bytes of a stream that wait to be read, in each direction.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// The frames that wait to be sent.
const OUTGOING_MAX: usize = 16;
const READ_BYTES: usize = 32 * 1024;
/// The longest refusal that is read.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Our end of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) reader: ReadHalf<DuplexStream>,
    pub(super) writer: WriteHalf<DuplexStream>,
}

/// The streams that were opened, in their order. The connection ends when the guard goes.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) streams: Vec<Stream>,
    pub(super) guard: DropGuard,
}

/// Upgrades a request to SPDY and opens streams with these headers.
pub(super) async fn open(url: &str, protocol: &str, streams: &[Headers]) -> io::Result<Streams> {
    let connection = upgrade(url, protocol).await?;
    let (mut reader, writer) = tokio::io::split(connection);
    let (out, outgoing) = mpsc::channel(OUTGOING_MAX);
    let stop = CancellationToken::new();
    let (mut opened, mut incoming) = (Vec::new(), HashMap::new());
    let mut beginning = Vec::new();
    for (number, headers) in (1_u32..).step_by(2).zip(streams) {
        let (near, far) = tokio::io::duplex(WAITING_BYTES_MAX);
        let (far_reader, far_writer) = tokio::io::split(far);
        beginning.push(Frame::SynStream {
            stream: number,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: headers.clone(),
        });
        incoming.insert(number, far_writer);
        let (near_reader, near_writer) = tokio::io::split(near);
        opened.push(Stream { reader: near_reader, writer: near_writer });
        let (out, stop) = (out.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = send_stream(number, far_reader, out) => {}
            }
        });
    }
    let sending = write_frames(writer, beginning, outgoing);
    let stopped = stop.clone();
    tokio::spawn(async move {
        let receiving = read_frames(&mut reader, incoming, out);
        tokio::select! {
            () = stopped.cancelled() => {}
            result = async { tokio::join!(sending, receiving).1 } => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a stream of a container runtime broke");
                }
            }
        }
        stopped.cancel();
    });
    Ok(Streams { streams: opened, guard: stop.drop_guard() })
}

async fn upgrade(url: &str, protocol: &str) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let uri: Uri = url.parse().map_err(|error| wrong(format!("{url}: {error}")))?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong(format!("{url}: only plain HTTP is spoken with a server's streams")));
    }
    let authority = uri.authority().ok_or_else(|| wrong(format!("{url} has no host")))?.clone();
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        return Err(io::Error::other(format!("streams were refused: {status}: {}", text.trim())));
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(io::Error::other)
}

/// Sends what is written to one stream, and its end.
async fn send_stream(stream: u32, mut from: ReadHalf<DuplexStream>, out: mpsc::Sender<Frame>) {
    loop {
        let mut data = BytesMut::with_capacity(READ_BYTES);
        let length = from.read_buf(&mut data).await.unwrap_or(0);
        let frame = Frame::Data { stream, fin: length == 0, data: data.freeze() };
        if out.send(frame).await.is_err() || length == 0 {
            return;
        }
    }
}

async fn write_frames<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: W,
    beginning: Vec<Frame>,
    mut frames: mpsc::Receiver<Frame>,
) {
    let mut encoder = FrameEncoder::default();
    let mut bytes = BytesMut::new();
    for frame in &beginning {
        encoder.encode(frame, &mut bytes);
    }
    loop {
        if writer.write_all_buf(&mut bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
        let Some(frame) = frames.recv().await else { return };
        encoder.encode(&frame, &mut bytes);
    }
}

/// Hands out what comes, until the connection or all of its streams have ended.
async fn read_frames<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut R,
    mut streams: HashMap<u32, WriteHalf<DuplexStream>>,
    out: mpsc::Sender<Frame>,
) -> io::Result<()> {
    let mut decoder = FrameDecoder::default();
    let mut bytes = BytesMut::new();
    while !streams.is_empty() {
        let Some(frame) = decoder.decode(&mut bytes).map_err(io::Error::other)? else {
            if reader.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            continue;
        };
        match frame {
            Frame::Data { stream, fin, data } => {
                let Some(to) = streams.get_mut(&stream) else { continue };
                // A reader that is gone is no reason to stop: the other streams have theirs.
                let _ = to.write_all(&data).await;
                if fin {
                    end(streams.remove(&stream)).await;
                }
            }
            Frame::SynReply { stream, fin: true, .. } | Frame::Reset { stream, .. } => {
                end(streams.remove(&stream)).await;
            }
            Frame::Ping(number) if number % 2 == 0 => {
                let _ = out.send(Frame::Ping(number)).await;
            }
            _ => {}
        }
    }
    Ok(())
}

async fn end(stream: Option<WriteHalf<DuplexStream>>) {
    if let Some(mut stream) = stream {
        let _ = stream.shutdown().await;
    }
}
