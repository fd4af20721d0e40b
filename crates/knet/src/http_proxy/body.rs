//! Bodies on their way through, frame by frame.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{Collected, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use super::{MIRROR_FRAMES_MAX, pace::Pace};

/// A body that is handed on as it comes, or a short one of the proxy's own.
pub(super) struct ProxyBody {
    inner: Inner,
    /// What is held until the body was read to its end or dropped. Told how it went.
    keep: Option<Box<dyn Keep>>,
    /// Who gets a copy of what passes.
    mirrors: Vec<mpsc::Sender<Copied>>,
    /// How fast it has to come, if that matters.
    pace: Option<Pace>,
}

enum Inner {
    Passing(Incoming),
    Own(Full<Bytes>),
    Read(Box<Collected<Bytes>>),
    Copy(mpsc::Receiver<Copied>),
}

/// A part of a body for a mirror.
enum Copied {
    Frame(Frame<Bytes>),
    End,
}

/// Held while a body is on its way.
pub(super) trait Keep: Send {
    /// The body was read to its end.
    fn finished(self: Box<Self>);
}

impl ProxyBody {
    pub(super) fn passing(body: Incoming) -> Self {
        Self::new(Inner::Passing(body))
    }

    pub(super) fn own(text: impl Into<Bytes>) -> Self {
        Self::new(Inner::Own(Full::new(text.into())))
    }

    /// One that was read already.
    pub(super) fn read(body: Collected<Bytes>) -> Self {
        Self::new(Inner::Read(Box::new(body)))
    }

    fn new(inner: Inner) -> Self {
        Self { inner, keep: None, mirrors: Vec::new(), pace: None }
    }

    /// Fails when it comes too slowly.
    pub(super) fn paced(mut self, pace: Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    /// A body that gets what passes here. It fails when its reader falls behind by more than [`MIRROR_FRAMES_MAX`], so that nobody waits
    /// for it, and when this one fails.
    pub(super) fn mirror(&mut self) -> Self {
        if self.is_end_stream() {
            return Self::empty();
        }
        let (sender, receiver) = mpsc::channel(MIRROR_FRAMES_MAX);
        self.mirrors.push(sender);
        Self::new(Inner::Copy(receiver))
    }

    fn copy(&mut self, frame: &Frame<Bytes>) {
        self.mirrors.retain(|mirror| {
            let copy = match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Frame::data(data.clone()),
                (None, Some(trailers)) => Frame::trailers(trailers.clone()),
                (None, None) => return true,
            };
            mirror.try_send(Copied::Frame(copy)).is_ok()
        });
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
        for mirror in self.mirrors.drain(..) {
            // One that has no place for the end has failed, and sees that it was dropped.
            let _ = mirror.try_send(Copied::End);
        }
        if let Some(keep) = self.keep.take() {
            keep.finished();
        }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut polled = match &mut self.inner {
            Inner::Passing(body) => Pin::new(body).poll_frame(context).map_err(io::Error::other),
            Inner::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Inner::Read(body) => Pin::new(&mut **body).poll_frame(context).map_err(|never| match never {}),
            Inner::Copy(receiver) => receiver.poll_recv(context).map(|copied| match copied {
                Some(Copied::Frame(frame)) => Some(Ok(frame)),
                Some(Copied::End) => None,
                None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            }),
        };
        if let Some(pace) = &mut self.pace {
            let is_late = match &polled {
                Poll::Pending => pace.poll_pause(context).is_ready(),
                Poll::Ready(Some(Ok(frame))) => !pace.note(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(_) => false,
            };
            if is_late {
                polled = Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
            }
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && !self.mirrors.is_empty()
        {
            self.copy(frame);
        }
        match &polled {
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(_))) => {
                self.keep = None;
                self.mirrors.clear();
            }
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
            Inner::Read(body) => body.is_end_stream(),
            Inner::Copy(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passing(body) => body.size_hint(),
            Inner::Own(body) => body.size_hint(),
            Inner::Read(body) => body.size_hint(),
            Inner::Copy(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for ProxyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
