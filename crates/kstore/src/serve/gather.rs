//! What a connection writes, gathered until the end of its task's turn.
//!
//! The implementation of HTTP/2 writes each piece of data that is not tiny by a system call of its own. Here they are put one
//! after the other in a buffer, and whoever runs the connection writes it out when there is nothing more to do, so that a
//! thousand events for as many watches are a few system calls.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is gathered at most: then the connection waits until the peer takes it.
const GATHERED_BYTES_MAX: usize = 128 * 1024;
/// A buffer that is larger is let go of when so little of it was used.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// The end of a connection that reads at once and writes later.
pub(super) struct Gather<S>(Arc<Mutex<Out<S>>>);

/// Writes out what was gathered.
pub(super) struct Flush<S>(Arc<Mutex<Out<S>>>);

struct Out<S> {
    stream: S,
    bytes: Vec<u8>,
    /// What of `bytes` is written out.
    written: usize,
    /// The stream has something that it holds back itself.
    unflushed: bool,
    failed: Option<io::Error>,
}

/// Both ends of a connection.
pub(super) fn gather<S>(stream: S) -> (Gather<S>, Flush<S>) {
    let out = Out { stream, bytes: Vec::new(), written: 0, unflushed: false, failed: None };
    let out = Arc::new(Mutex::new(out));
    (Gather(out.clone()), Flush(out))
}

fn lock<S>(out: &Mutex<Out<S>>) -> MutexGuard<'_, Out<S>> {
    // Both ends are in one task; nothing is broken by a panic of the stream but the stream.
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncWrite + Unpin> Out<S> {
    /// Hands everything to the stream.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let rest = &self.bytes[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
            self.unflushed = true;
        }
        if self.bytes.capacity() > KEPT_BYTES_MAX && self.bytes.len() <= KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes more can be gathered.
    fn room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.bytes.len() >= GATHERED_BYTES_MAX {
            ready!(self.drain(context))?;
        }
        Poll::Ready(Ok(GATHERED_BYTES_MAX - self.bytes.len()))
    }
}

impl<S: AsyncWrite + Unpin> Flush<S> {
    /// Writes out what can be; the rest goes when the stream takes it, for which the task is woken. A connection whose stream is
    /// broken is told so when it writes next.
    pub(super) fn flush(&self, context: &mut Context<'_>) {
        let mut out = lock(&self.0);
        if let Poll::Ready(Err(error)) = out.flush(context) {
            (out.bytes, out.written, out.unflushed) = (Vec::new(), 0, false);
            out.failed = Some(error);
            context.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut out = lock(&self.0);
        let room = ready!(out.room(context))?;
        let mut taken = 0;
        for slice in slices {
            let part = slice.len().min(room - taken);
            out.bytes.extend_from_slice(&slice[..part]);
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The bytes go out at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match lock(&self.0).failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = lock(&self.0);
        ready!(out.flush(context))?;
        Pin::new(&mut out.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn turn_ends(flush: &Flush<tokio::io::DuplexStream>) {
        poll_fn(|context| {
            flush.flush(context);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_written_goes_out_when_it_is_flushed_and_all_of_it_when_the_end_is_closed() {
        let (ours, mut peer) = tokio::io::duplex(64);
        let (mut stream, flush) = gather(ours);
        stream.write_all(b"one ").await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(b"two").await.unwrap();
        let mut seen = [0; 7];
        let early = futures::FutureExt::now_or_never(peer.read(&mut seen));
        assert!(early.is_none(), "nothing before the turn ends");
        turn_ends(&flush).await;
        peer.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"one two");

        // More than what is gathered and more than the peer's buffer: the writer waits for the reader.
        let sent: Vec<u8> = (0..3 * GATHERED_BYTES_MAX).map(|number| number as u8).collect();
        let mut read = Vec::new();
        let write = async {
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let (_, got) = futures::join!(write, peer.read_to_end(&mut read));
        got.unwrap();
        assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
    }

    #[tokio::test]
    async fn a_broken_stream_is_told_of_at_the_next_write() {
        let (ours, peer) = tokio::io::duplex(64);
        let (mut stream, flush) = gather(ours);
        drop(peer);
        stream.write_all(b"lost").await.unwrap();
        turn_ends(&flush).await;
        let error = stream.flush().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
