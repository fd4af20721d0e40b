//! A client of SPDY/3.1 that says what Go's clients say, against the server's side alone.

use bytes::{Bytes, BytesMut};
use kruntime::spdy::{
    Control, FrameDecoder, FrameEncoder, STREAMS_MAX, Stream, accept,
    frame::{Frame, Headers, away, reset},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
};

/// The client's end of a connection.
pub(crate) struct Client<S> {
    io: S,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    bytes: BytesMut,
    next: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(io: S, rest: Bytes) -> Self {
        let (encoder, decoder) = (FrameEncoder::default(), FrameDecoder::default());
        Self { io, encoder, decoder, bytes: rest.into(), next: 1 }
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out);
        self.io.write_all(&out).await.unwrap();
    }

    /// The next frame; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.bytes).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.bytes).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Opens a stream without waiting for the answer.
    pub(crate) async fn open(&mut self, headers: impl Into<Headers>) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.send(open(stream, headers.into())).await;
        stream
    }

    pub(crate) async fn data(&mut self, stream: u32, data: &[u8], fin: bool) {
        self.send(Frame::Data { stream, fin, data: Bytes::copy_from_slice(data) }).await;
    }

    /// What comes on one stream until its end, and all frames that are no data; other streams are left out.
    pub(crate) async fn collect(&mut self, stream: u32) -> String {
        let mut out = Vec::new();
        while let Some(frame) = self.next().await {
            match frame {
                Frame::Data { stream: of, fin, data } if of == stream => {
                    out.extend_from_slice(&data);
                    if fin {
                        break;
                    }
                }
                Frame::Reset { stream: of, .. } if of == stream => break,
                _ => {}
            }
        }
        String::from_utf8(out).unwrap()
    }
}

fn open(stream: u32, headers: Headers) -> Frame {
    Frame::SynStream { stream, associated: 0, priority: 0, fin: false, unidirectional: false, headers }
}

struct Subject {
    client: Client<tokio::io::DuplexStream>,
    control: Control,
    streams: mpsc::Receiver<Stream>,
    run: JoinHandle<()>,
}

fn subject() -> Subject {
    let (near, far) = tokio::io::duplex(1024 * 1024);
    let (control, streams, run) = accept(far, |headers| headers.get("bad").is_none());
    Subject { client: Client::new(near, Bytes::new()), control, streams, run: tokio::spawn(run) }
}

fn replied(stream: u32) -> Option<Frame> {
    Some(Frame::SynReply { stream, fin: false, headers: Headers::default() })
}

fn refused(stream: u32, status: u32) -> Option<Frame> {
    Some(Frame::Reset { stream, status })
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end_by_halves() {
    let Subject { mut client, mut streams, .. } = subject();
    let id = client.open([("streamtype", "data")]).await;
    assert_eq!(client.next().await, replied(id));
    let mut stream = streams.recv().await.unwrap();
    assert_eq!((stream.id, stream.headers.get("streamtype")), (id, Some("data")));
    client.data(id, b"up", true).await;
    assert_eq!(stream.reader.next().await, Some(Bytes::from_static(b"up")));
    assert_eq!(stream.reader.next().await, None);
    assert!(stream.writer.write(Bytes::from_static(b"down")).await);
    stream.writer.finish().await;
    assert_eq!(client.collect(id).await, "down");
    assert!(!stream.writer.write(Bytes::from_static(b"more")).await, "nothing follows the end");
}

#[tokio::test]
async fn pings_are_answered_and_what_binds_nobody_is_passed_over() {
    let Subject { mut client, .. } = subject();
    client.send(Frame::Settings(vec![(4, 100)])).await;
    client.send(Frame::WindowUpdate { stream: 0, delta: 1 }).await;
    client.send(Frame::Ping(2)).await;
    client.data(99, b"to nobody", false).await;
    client.send(Frame::Ping(7)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(7)));
}

/// Section 2.3.2 of the draft: numbers are odd and grow; what is refused is reset.
#[tokio::test]
async fn streams_that_may_not_be_are_reset() {
    let Subject { mut client, mut streams, .. } = subject();
    for (number, headers, expected) in [
        (3, [("a", "")], replied(3)),
        (3, [("a", "")], refused(3, reset::PROTOCOL_ERROR)),
        (1, [("a", "")], refused(1, reset::PROTOCOL_ERROR)),
        (4, [("a", "")], refused(4, reset::PROTOCOL_ERROR)),
        (5, [("bad", "")], refused(5, reset::CANCEL)),
        (7, [("a", "")], replied(7)),
    ] {
        client.send(open(number, headers.into())).await;
        assert_eq!(client.next().await, expected, "{number}");
    }
    assert_eq!(streams.recv().await.unwrap().id, 3);
    assert_eq!(streams.recv().await.unwrap().id, 7);
    drop(streams);
    client.send(open(9, Headers::default())).await;
    assert_eq!(client.next().await, replied(9));
    assert_eq!(client.next().await, refused(9, reset::REFUSED_STREAM));
}

#[tokio::test]
async fn open_streams_are_limited() {
    let Subject { mut client, mut streams, .. } = subject();
    let mut held = Vec::new();
    for _ in 0..STREAMS_MAX {
        let id = client.open([("a", "")]).await;
        assert_eq!(client.next().await, replied(id));
        held.push(streams.recv().await.unwrap());
    }
    let id = client.open([("a", "")]).await;
    assert_eq!(client.next().await, refused(id, reset::REFUSED_STREAM));
    // Where one has ended there is room for another.
    client.send(Frame::Reset { stream: held[0].id, status: reset::CANCEL }).await;
    held[0].ended().cancelled().await;
    assert_eq!(held[0].reader.next().await, None);
    let id = client.open([("a", "")]).await;
    assert_eq!(client.next().await, replied(id));
}

/// What has been read is credited to the peer, so that one that keeps to its window is never stuck.
#[tokio::test]
async fn windows_are_opened_as_streams_are_read() {
    let Subject { mut client, mut streams, .. } = subject();
    let id = client.open([("a", "")]).await;
    client.next().await;
    let mut stream = streams.recv().await.unwrap();
    client.data(id, &[b'x'; 40_000], true).await;
    let mut read = 0;
    while let Some(piece) = stream.reader.next().await {
        read += piece.len();
    }
    assert_eq!(read, 40_000);
    let update = |stream| Some(Frame::WindowUpdate { stream, delta: 40_000 });
    assert_eq!((client.next().await, client.next().await), (update(id), update(0)));
}

#[tokio::test]
async fn both_sides_can_end_the_connection() {
    let Subject { mut client, control, mut streams, run } = subject();
    let id = client.open([("a", "")]).await;
    client.next().await;
    let mut stream = streams.recv().await.unwrap();
    stream.writer.write(Bytes::from_static(b"last words")).await;
    control.close().await;
    assert!(matches!(client.next().await, Some(Frame::Data { .. })));
    assert_eq!(client.next().await, Some(Frame::GoAway { last: id, status: away::OK }));
    assert_eq!(client.next().await, None);
    drop(client);
    control.closed().await;
    assert_eq!(stream.reader.next().await, None);
    run.await.unwrap();

    let Subject { mut client, control, run, .. } = subject();
    client.send(Frame::GoAway { last: 0, status: away::OK }).await;
    client.open([("a", "")]).await;
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(1)), "no stream is opened after the farewell");
    drop(client);
    control.closed().await;
    run.await.unwrap();
}

#[tokio::test]
async fn who_breaks_the_protocol_is_sent_away() {
    let Subject { mut client, run, .. } = subject();
    client.io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // That is a frame of data for a stream that isn't there; then a control frame of a version that isn't spoken.
    client.io.write_all(&[0x80; 3_000_000]).await.ok();
    let mut last = None;
    while let Some(frame) = client.next().await {
        last = Some(frame);
    }
    assert_eq!(last, Some(Frame::GoAway { last: 0, status: away::PROTOCOL_ERROR }));
    drop(client);
    run.await.unwrap();
}

/// Four hours, as the kubelet's `streamingConnectionIdleTimeout`.
#[tokio::test(start_paused = true)]
async fn silent_connections_end() {
    let begin = tokio::time::Instant::now();
    let Subject { client, control, .. } = subject();
    control.closed().await;
    assert_eq!(begin.elapsed().as_secs(), 4 * 60 * 60);
    drop(client);
}
