//! A connection with its streams, as the server has it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    FrameDecoder, FrameEncoder,
    frame::{Frame, Headers, away, reset},
};

/// The streams that a connection may have open at once; more are refused.
pub const STREAMS_MAX: usize = 1000;
/// The streams that wait to be taken by whoever serves them.
const INCOMING_MAX: usize = 16;
/// The frames that wait to be sent.
const OUTGOING_MAX: usize = 16;
/// The pieces of one stream that wait to be read.
const PIECES_MAX: usize = 8;
const READ_BYTES: usize = 64 * 1024;
/// How much is read before the peer is told that it may send as much again: half of the window that a stream begins with.
const CREDIT_BYTES: usize = 32 * 1024;
/// How long a connection may be silent in both directions; the kubelet's `streamingConnectionIdleTimeout`.
const IDLE_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// How long the other side may take to take note of the end.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// One stream that the client has opened.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// What the client sends.
    pub reader: StreamReader,
    /// What goes to the client.
    pub writer: StreamWriter,
    reset: CancellationToken,
}

impl Stream {
    /// A token that is cancelled when the client resets the stream, or the connection ends.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.reset.clone()
    }
}

/// The bytes that a client sends on a stream.
#[derive(Debug)]
pub struct StreamReader {
    id: u32,
    pieces: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Outgoing>,
    /// What was read and not yet credited.
    taken: usize,
}

impl StreamReader {
    /// The next bytes; `None` when the client has sent its last, or the stream or the connection is gone.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            tokio::select! {
                biased;
                permit = self.out.reserve(), if self.taken >= CREDIT_BYTES => {
                    let taken = std::mem::take(&mut self.taken);
                    if let Ok(permit) = permit {
                        permit.send(Outgoing::Credit { stream: self.id, bytes: taken });
                    }
                }
                piece = self.pieces.recv() => {
                    if let Some(piece) = &piece {
                        self.taken += piece.len();
                    } else {
                        // What the stream took of the connection's window is given back; if not now, then nobody waits for it.
                        let bytes = std::mem::take(&mut self.taken);
                        let _ = self.out.try_send(Outgoing::Credit { stream: 0, bytes });
                    }
                    return piece;
                }
            }
        }
    }
}

/// The way back to the client. Dropping it leaves the stream open until the connection ends: say [`finish`](Self::finish).
#[derive(Debug)]
pub struct StreamWriter {
    id: u32,
    out: mpsc::Sender<Outgoing>,
    table: Arc<Table>,
}

impl StreamWriter {
    /// Sends bytes; whether that was possible. Waits while the client doesn't read.
    pub async fn write(&self, data: Bytes) -> bool {
        if !self.table.is_open(self.id) {
            return false;
        }
        let frame = Frame::Data { stream: self.id, fin: false, data };
        self.out.send(Outgoing::Frame(frame)).await.is_ok()
    }

    /// Says that these were the last bytes. What the client sends is still read.
    pub async fn finish(&self) {
        if self.table.close_local(self.id) {
            let frame = Frame::Data { stream: self.id, fin: true, data: Bytes::new() };
            let _ = self.out.send(Outgoing::Frame(frame)).await;
        }
    }

    /// Ends the stream in both directions.
    pub async fn reset(&self) {
        if self.table.remove(self.id).is_some() {
            let frame = Frame::Reset { stream: self.id, status: reset::CANCEL };
            let _ = self.out.send(Outgoing::Frame(frame)).await;
        }
    }
}

/// The connection as a whole.
#[derive(Clone, Debug)]
pub struct Control {
    out: mpsc::Sender<Outgoing>,
    closed: CancellationToken,
}

impl Control {
    /// Says farewell and ends the connection, after what was written before.
    pub async fn close(&self) {
        let _ = self.out.send(Outgoing::Close(away::OK)).await;
    }

    /// Returns when the connection has ended, whoever ended it.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

#[derive(Debug)]
enum Outgoing {
    Frame(Frame),
    Credit { stream: u32, bytes: usize },
    Close(u32),
}

/// What is known about a stream that is open.
#[derive(Debug)]
struct Open {
    /// `None` once the client has sent its last bytes.
    pieces: Option<mpsc::Sender<Bytes>>,
    finished: bool,
    reset: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    open: Mutex<HashMap<u32, Open>>,
    /// The last stream that was opened.
    last: AtomicU32,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes may still be sent.
    fn is_open(&self, id: u32) -> bool {
        self.lock().get(&id).is_some_and(|open| !open.finished)
    }

    fn remove(&self, id: u32) -> Option<Open> {
        self.lock().remove(&id)
    }

    /// Whether this side was open until now.
    fn close_local(&self, id: u32) -> bool {
        let mut table = self.lock();
        let Some(open) = table.get_mut(&id).filter(|open| !open.finished) else { return false };
        open.finished = true;
        if open.pieces.is_none() {
            table.remove(&id);
        }
        true
    }

    fn close_remote(&self, id: u32) {
        let mut table = self.lock();
        if let Some(open) = table.get_mut(&id) {
            open.pieces = None;
            if open.finished {
                table.remove(&id);
            }
        }
    }
}

/// Takes over a connection. Gives its control, the streams as the client opens them, and what runs it: nothing happens
/// unless the future is polled. A stream whose headers `check` refuses is reset before anybody sees it.
pub fn accept<S>(
    io: S,
    check: fn(&Headers) -> bool,
) -> (Control, mpsc::Receiver<Stream>, impl Future<Output = ()> + Send)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (out, outgoing) = mpsc::channel(OUTGOING_MAX);
    let (incoming, streams) = mpsc::channel(INCOMING_MAX);
    let closed = CancellationToken::new();
    let control = Control { out: out.clone(), closed: closed.clone() };
    let (read, write) = tokio::io::split(io);
    let (activity, idle) = tokio::sync::watch::channel(());
    let server = Server {
        table: Arc::default(),
        out,
        incoming,
        check,
        closed: closed.clone(),
        away: false,
        discarded: 0,
    };
    let run = async move {
        let _end = End { table: Arc::clone(&server.table), closed };
        let writer = write_all(write, outgoing, Arc::clone(&server.table), activity.clone());
        let reader = server.read(read, &activity);
        tokio::pin!(writer, reader);
        tokio::select! {
            // The writer goes on to its end when there is something to say about the end.
            tell = &mut reader => if tell {
                let _ = tokio::time::timeout(CLOSE_MAX, writer).await;
            },
            // What the client still sends must be taken, or the connection breaks before the last bytes reach it.
            () = &mut writer => {
                let _ = tokio::time::timeout(CLOSE_MAX, reader).await;
            }
            () = silence(idle) => debug!("a connection was idle for too long"),
        }
    };
    (control, streams, run)
}

/// Readers, and those who wait for the end, learn of it whichever way the connection ends.
struct End {
    table: Arc<Table>,
    closed: CancellationToken,
}

impl Drop for End {
    fn drop(&mut self) {
        self.table.lock().clear();
        self.closed.cancel();
    }
}

/// Returns when nothing has happened for [`IDLE_MAX`].
async fn silence(mut activity: tokio::sync::watch::Receiver<()>) {
    while let Ok(Ok(())) = tokio::time::timeout(IDLE_MAX, activity.changed()).await {}
}

async fn write_all<S: AsyncWrite>(
    mut write: WriteHalf<S>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    table: Arc<Table>,
    activity: tokio::sync::watch::Sender<()>,
) {
    let mut encoder = FrameEncoder::default();
    let mut bytes = BytesMut::new();
    let mut end = false;
    while !end {
        let Some(first) = outgoing.recv().await else { break };
        let mut next = Some(first);
        while let Some(what) = next.take() {
            match what {
                Outgoing::Frame(frame) => encoder.encode(&frame, &mut bytes),
                Outgoing::Credit { bytes: 0, .. } => {}
                Outgoing::Credit { stream, bytes: credit } => {
                    let delta = u32::try_from(credit).unwrap_or(u32::MAX);
                    if stream != 0 {
                        encoder.encode(&Frame::WindowUpdate { stream, delta }, &mut bytes);
                    }
                    encoder.encode(&Frame::WindowUpdate { stream: 0, delta }, &mut bytes);
                }
                Outgoing::Close(status) => {
                    let last = table.last.load(Ordering::Relaxed);
                    encoder.encode(&Frame::GoAway { last, status }, &mut bytes);
                    end = true;
                    break;
                }
            }
            if bytes.len() < READ_BYTES {
                next = outgoing.try_recv().ok();
            }
        }
        activity.send_replace(());
        if write.write_all_buf(&mut bytes).await.is_err() || write.flush().await.is_err() {
            return;
        }
        bytes.clear();
    }
    let _ = write.shutdown().await;
}

struct Server {
    table: Arc<Table>,
    out: mpsc::Sender<Outgoing>,
    incoming: mpsc::Sender<Stream>,
    check: fn(&Headers) -> bool,
    closed: CancellationToken,
    /// Whether the client opens no more streams.
    away: bool,
    /// Bytes that nobody wanted and that are not yet credited.
    discarded: usize,
}

impl Server {
    /// Reads to the end; whether there is something to say about it.
    async fn read<S: AsyncRead>(
        mut self,
        mut read: ReadHalf<S>,
        activity: &tokio::sync::watch::Sender<()>,
    ) -> bool {
        let mut decoder = FrameDecoder::default();
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        loop {
            match decoder.decode(&mut bytes) {
                Ok(Some(frame)) => {
                    activity.send_replace(());
                    if !self.take(frame).await {
                        return false;
                    }
                }
                Ok(None) => {
                    bytes.reserve(READ_BYTES);
                    if !matches!(read.read_buf(&mut bytes).await, Ok(1..)) {
                        return false;
                    }
                }
                Err(error) => {
                    debug!(%error, "a client breaks the protocol");
                    return self.send(Outgoing::Close(away::PROTOCOL_ERROR)).await;
                }
            }
        }
    }

    async fn send(&self, what: Outgoing) -> bool {
        self.out.send(what).await.is_ok()
    }

    /// Whether the connection goes on.
    async fn take(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => return self.open(stream, fin, headers).await,
            Frame::Data { stream, fin, data } => return self.data(stream, fin, data).await,
            Frame::Headers { stream, fin: true, .. } => self.table.close_remote(stream),
            Frame::Reset { stream, .. } => {
                if let Some(open) = self.table.remove(stream) {
                    open.reset.cancel();
                }
            }
            // Those with even numbers are answers to this side, which asks nothing.
            Frame::Ping(number) if number % 2 == 1 => {
                return self.send(Outgoing::Frame(Frame::Ping(number))).await;
            }
            Frame::GoAway { .. } => self.away = true,
            // Windows and settings bind nobody here, see the module.
            Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Ping(_)
            | Frame::Settings(_)
            | Frame::WindowUpdate { .. } => {}
        }
        true
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> bool {
        if self.away {
            return true;
        }
        let refuse = |status| Outgoing::Frame(Frame::Reset { stream: id, status });
        if id.is_multiple_of(2) || id <= self.table.last.load(Ordering::Relaxed) {
            return self.send(refuse(reset::PROTOCOL_ERROR)).await;
        }
        self.table.last.store(id, Ordering::Relaxed);
        if self.table.lock().len() >= STREAMS_MAX {
            return self.send(refuse(reset::REFUSED_STREAM)).await;
        }
        if !(self.check)(&headers) {
            return self.send(refuse(reset::CANCEL)).await;
        }
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let reset = self.closed.child_token();
        let open = Open { pieces: (!fin).then_some(sender), finished: false, reset: reset.clone() };
        self.table.lock().insert(id, open);
        let reply = Frame::SynReply { stream: id, fin: false, headers: Headers::default() };
        if !self.send(Outgoing::Frame(reply)).await {
            return false;
        }
        let stream = Stream {
            id,
            headers,
            reader: StreamReader { id, pieces, out: self.out.clone(), taken: 0 },
            writer: StreamWriter { id, out: self.out.clone(), table: Arc::clone(&self.table) },
            reset,
        };
        if self.incoming.send(stream).await.is_err() {
            self.table.remove(id);
            return self.send(refuse(reset::REFUSED_STREAM)).await;
        }
        true
    }

    async fn data(&mut self, id: u32, fin: bool, data: Bytes) -> bool {
        let pieces = self.table.lock().get(&id).and_then(|open| open.pieces.clone());
        let length = data.len();
        let wanted = match pieces {
            Some(pieces) if length > 0 => pieces.send(data).await.is_ok(),
            _ => length == 0,
        };
        if fin {
            self.table.close_remote(id);
        }
        if !wanted {
            self.discarded += length;
        }
        if self.discarded < CREDIT_BYTES {
            return true;
        }
        let bytes = std::mem::take(&mut self.discarded);
        self.send(Outgoing::Credit { stream: 0, bytes }).await
    }
}
