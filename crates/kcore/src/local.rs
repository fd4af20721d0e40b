//! Handing a watch over inside one process, without encoding it.
//!
//! A client that can take objects as they are puts [`WantLocal`] into the extensions of its watch request. A server in
//! the same process answers with [`LocalEvents`] in the extensions of the response and an empty body; any other server
//! ignores the extension and answers with JSON lines. Authentication, authorization and the meaning of the events are
//! the same either way.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures::Stream;

use crate::{Status, Stored};

/// Request extension: the caller takes [`LocalEvents`] instead of a body, if the server can give them.
#[derive(Clone, Copy, Debug, Default)]
pub struct WantLocal;

/// One change, as a watch reports it.
#[derive(Clone, Debug)]
pub enum LocalEvent {
    /// The object came into the watch's selection.
    Added(Arc<Stored>),
    /// The object changed and stayed in the selection.
    Modified(Arc<Stored>),
    /// The object left the selection or was deleted; its last state, with the revision of the change.
    Deleted(Arc<Stored>),
    /// Everything up to this revision has been reported.
    Bookmark {
        /// The revision to resume from.
        revision: u64,
        /// Whether this bookmark ends the initial events of a streaming list.
        initial_events_end: bool,
    },
    /// The watch ended with an error; nothing follows.
    Error(Box<Status>),
}

/// A stream of batches: all that was ready when the reader asked. Ends when the watch ends.
pub type LocalEventStream = Pin<Box<dyn Stream<Item = Vec<LocalEvent>> + Send>>;

/// Response extension: the events of a watch. Cloning shares the one stream; the first [`take`](Self::take) gets it.
#[derive(Clone)]
pub struct LocalEvents {
    stream: Arc<Mutex<Option<LocalEventStream>>>,
}

impl LocalEvents {
    /// Wraps a stream of batches.
    pub fn new(stream: impl Stream<Item = Vec<LocalEvent>> + Send + 'static) -> Self {
        Self { stream: Arc::new(Mutex::new(Some(Box::pin(stream)))) }
    }

    /// The stream, the first time; `None` after that.
    #[must_use]
    pub fn take(&self) -> Option<LocalEventStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for LocalEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEvents").finish_non_exhaustive()
    }
}
