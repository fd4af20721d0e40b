//! Bodies on their way through, frame by frame.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// A body that is handed on as it comes, or a short one of the proxy's own.
pub(super) struct ProxyBody {
    inner: Inner,
    /// What is held until the body was read to its end or dropped. Told how it went.
    keep: Option<Box<dyn Keep>>,
}

enum Inner {
    Passing(Incoming),
    Own(Full<Bytes>),
}

/// Held while a body is on its way.
pub(super) trait Keep: Send {
    /// The body was read to its end.
    fn finished(self: Box<Self>);
}

impl ProxyBody {
    pub(super) fn passing(body: Incoming) -> Self {
        Self { inner: Inner::Passing(body), keep: None }
    }

    pub(super) fn own(text: impl Into<Bytes>) -> Self {
        Self { inner: Inner::Own(Full::new(text.into())), keep: None }
    }

    pub(super) fn empty() -> Self {
        Self::own(Bytes::new())
    }

    /// Holds `keep` until this was read.
    pub(super) fn keeping(mut self, keep: Box<dyn Keep>) -> Self {
        if self.is_end_stream() {
            keep.finished();
        } else {
            self.keep = Some(keep);
        }
        self
    }

    fn finish(&mut self) {
        if let Some(keep) = self.keep.take() {
            keep.finished();
        }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match &mut self.inner {
            Inner::Passing(body) => Pin::new(body).poll_frame(context),
            Inner::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        };
        match &polled {
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(_))) => self.keep = None,
            // Nobody polls again who knows by the length that this was all.
            Poll::Ready(Some(Ok(_))) if self.is_end_stream() => self.finish(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Passing(body) => body.is_end_stream(),
            Inner::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passing(body) => body.size_hint(),
            Inner::Own(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for ProxyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
