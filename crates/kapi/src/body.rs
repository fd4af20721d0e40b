//! The body of a response: nothing, bytes, or a stream of bytes.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body::{Frame, SizeHint};

/// The body of a response of the server. It never fails: what goes wrong within a stream is said in its content.
pub struct Body(Inner);

enum Inner {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Body {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self(Inner::Full(None))
    }

    /// The same body; when it has been sent, or dropped on the way, `done` is told how many bytes of it were.
    pub(crate) fn measured(self, done: impl FnOnce(u64) + Send + 'static) -> Self {
        match self.0 {
            Inner::Full(bytes) => {
                done(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
                Self(Inner::Full(bytes))
            }
            Inner::Stream(stream) => {
                let mut sent = Sent { bytes: 0, done: Some(Box::new(done)) };
                Self(Inner::Stream(Box::pin(stream.inspect(move |chunk| sent.add(chunk)))))
            }
        }
    }

    /// The same body; when it has been sent, or dropped on the way, `done` is told what it was, unless it was longer than
    /// `keep` and came in pieces.
    pub(crate) fn tapped(self, keep: usize, done: impl FnOnce(Option<Bytes>) + Send + 'static) -> Self {
        match self.0 {
            Inner::Full(bytes) => {
                done(bytes.clone());
                Self(Inner::Full(bytes))
            }
            Inner::Stream(stream) => {
                let mut kept = Kept { keep, bytes: Some(Vec::new()), done: Some(Box::new(done)) };
                Self(Inner::Stream(Box::pin(stream.inspect(move |chunk| kept.add(chunk)))))
            }
        }
    }

    /// A body of chunks that are made while it is read.
    pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(chunks)))
    }
}

/// Counts the bytes of a stream until it goes.
struct Sent {
    bytes: u64,
    done: Option<Box<dyn FnOnce(u64) + Send>>,
}

impl Sent {
    fn add(&mut self, chunk: &Bytes) {
        self.bytes += chunk.len() as u64;
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(self.bytes);
        }
    }
}

/// Keeps the bytes of a stream until it goes.
struct Kept {
    keep: usize,
    bytes: Option<Vec<u8>>,
    done: Option<Box<dyn FnOnce(Option<Bytes>) + Send>>,
}

impl Kept {
    fn add(&mut self, chunk: &Bytes) {
        let fits = self.bytes.as_ref().is_some_and(|bytes| bytes.len() + chunk.len() <= self.keep);
        match &mut self.bytes {
            Some(bytes) if fits => bytes.extend_from_slice(chunk),
            bytes => *bytes = None,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(self.bytes.take().map(Bytes::from));
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self(Inner::Full(Some(bytes.into())))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Inner::Full(bytes) => Poll::Ready(
                bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))),
            ),
            Inner::Stream(stream) => {
                stream.poll_next_unpin(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Inner::Full(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Inner::Full(_) => "Body::Full",
            Inner::Stream(_) => "Body::Stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn what_has_been_sent_is_measured() {
        let chunks =
            || futures::stream::iter(["ab", "cde", "f"].map(|text| Bytes::from_static(text.as_bytes())));
        for (body, frames, expected) in [
            (Body::from("abc"), 1, 3),
            (Body::empty(), 0, 0),
            (Body::stream(chunks()), 3, 6),
            // Who goes away has got what was sent before.
            (Body::stream(chunks()), 2, 5),
        ] {
            let told = Arc::new(AtomicU64::new(u64::MAX));
            let heard = Arc::clone(&told);
            let mut body = body.measured(move |bytes| heard.store(bytes, Ordering::Relaxed));
            for _ in 0..frames {
                assert!(body.frame().await.is_some());
            }
            drop(body);
            assert_eq!(told.load(Ordering::Relaxed), expected);
        }
    }
}
