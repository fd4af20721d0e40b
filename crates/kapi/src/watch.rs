//! Watches: a cursor over the store's log, seen through a request's selectors.

use std::{sync::Arc, time::Duration};

use futures::Stream;
use kcore::{Status, Stored, local::LocalEvent};
use kstore::{Entry, Event, EventKind, ReadError, Revision, Snapshot, Watch, WatchError, WatchRequest};
use rand::Rng as _;
use tokio::time::Instant;

use crate::{
    error::ApiResult,
    list::{read_error, too_large_revision},
    objects::{Objects, Scope, readable, stored},
    registry::{Resource, ResourceDef},
    request::ListOptions,
};

/// How long a watch lasts at least when the caller does not say, in seconds; at most twice that (`--min-request-timeout`).
const TIMEOUT_SECONDS_MIN: u64 = 1800;
/// How often a quiet watch sends a bookmark.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// How long before its end a watch sends a last bookmark.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// How many initial events are handed over at once.
const INITIAL_BATCH_MAX: usize = 500;

/// One watch: the initial objects still to be sent, then the events from the log.
pub(crate) struct Session {
    def: Arc<ResourceDef>,
    scope: Scope,
    options: ListOptions,
    initial: Option<Box<dyn Iterator<Item = Arc<Entry>> + Send>>,
    /// The revision of the snapshot that the initial objects come from.
    start: u64,
    /// Whether the caller wants to be told where the initial events end.
    marks_initial_end: bool,
    watch: Watch,
    ends_at: Instant,
    bookmark_at: Option<Instant>,
    last_bookmark: u64,
    /// Why there is no watch: its only event.
    refused: Option<Box<Status>>,
    done: bool,
}

/// Opens a watch.
///
/// Where it begins follows the API concepts, "Semantics for watch" and "Streaming lists": without a resource version or
/// with 0 at the present state, which comes as ADDED events; with one after it; with `sendInitialEvents` at a state that is
/// not older.
pub(crate) async fn open(
    objects: &Objects,
    resource: &Resource,
    namespace: &str,
    options: ListOptions,
) -> ApiResult<Session> {
    let scope = Scope::new(resource, namespace, &options.fields);
    let store = objects.store();
    let wanted = options.revision.unwrap_or(0);
    if options.revision.is_none() {
        store.barrier().await.map_err(Status::internal)?;
    }
    let snapshot: Snapshot = crate::list::as_new_as(&**store, wanted).await?;
    let sends_initial = options.initial_events.unwrap_or(wanted == 0);
    // Whoever is let in and whose revision could be read is told of other errors by an event.
    let refused = (wanted > snapshot.revision().get() && sends_initial)
        .then(|| too_large_revision(wanted, snapshot.revision().get()));
    let after = if sends_initial || (wanted == 0 && options.initial_events == Some(false)) {
        snapshot.revision()
    } else {
        Revision::from(wanted)
    };
    let interest = scope.interest(resource);
    let open = |after| store.watch(WatchRequest::new(resource.table, after).interest(interest.clone()));
    let (watch, refused) = match open(after) {
        Ok(watch) => (watch, refused),
        Err(ReadError::Compacted { .. }) => {
            let status =
                Status::expired(format!("too old resource version: {wanted} ({})", snapshot.revision()));
            let watch = open(snapshot.revision()).map_err(|error| read_error(&error))?;
            (watch, Some(status.into()))
        }
        Err(other) => return Err(read_error(&other)),
    };
    let initial = sends_initial.then(|| scope.entries(&snapshot, resource, None));
    let seconds = options.timeout_seconds.filter(|seconds| *seconds > 0);
    let seconds =
        seconds.unwrap_or_else(|| rand::rng().random_range(TIMEOUT_SECONDS_MIN..2 * TIMEOUT_SECONDS_MIN));
    let now = Instant::now();
    Ok(Session {
        def: Arc::clone(&resource.def),
        scope,
        marks_initial_end: options.bookmarks && options.initial_events == Some(true),
        bookmark_at: options.bookmarks.then(|| now + BOOKMARK_PERIOD),
        options,
        initial,
        start: snapshot.revision().get(),
        watch,
        ends_at: now + Duration::from_secs(seconds),
        last_bookmark: 0,
        refused: refused.map(|error| error.0),
        done: false,
    })
}

impl Session {
    /// The next events; `None` at the end of the watch.
    pub(crate) async fn next(&mut self) -> Option<Vec<LocalEvent>> {
        if self.done {
            return None;
        }
        if let Some(status) = self.refused.take() {
            self.done = true;
            return Some(vec![LocalEvent::Error(status)]);
        }
        if let Some(batch) = self.next_initial().await {
            return Some(batch);
        }
        loop {
            let bookmark_at = self.bookmark_at.unwrap_or(self.ends_at);
            tokio::select! {
                biased;
                batch = self.watch.next() => match batch {
                    Ok(batch) => {
                        let mut events = Vec::new();
                        for event in &batch.events {
                            settle(&self.def, event).await;
                            events.extend(self.translate(event));
                            // As upstream: a client that goes on would never learn of what it has missed.
                            self.done = matches!(events.last(), Some(LocalEvent::Error(_)));
                            if self.done {
                                break;
                            }
                        }
                        if !events.is_empty() {
                            return Some(events);
                        }
                    }
                    Err(error) => return self.fail(&error),
                },
                () = tokio::time::sleep_until(self.ends_at) => {
                    self.done = true;
                    return None;
                }
                () = tokio::time::sleep_until(bookmark_at), if self.bookmark_at.is_some() => {
                    let now = Instant::now();
                    let last = self.ends_at - BOOKMARK_BEFORE_END.min(self.ends_at - now);
                    let next = now + BOOKMARK_PERIOD;
                    self.bookmark_at = if now >= last { None } else { Some(next.min(last)) };
                    let revision = self.watch.progress().get();
                    if revision > self.last_bookmark {
                        self.last_bookmark = revision;
                        return Some(vec![LocalEvent::Bookmark { revision, initial_events_end: false }]);
                    }
                }
            }
        }
    }

    async fn next_initial(&mut self) -> Option<Vec<LocalEvent>> {
        let entries = self.initial.as_mut()?;
        let mut batch = Vec::new();
        while batch.len() < INITIAL_BATCH_MAX {
            let Some(entry) = entries.next() else {
                self.initial = None;
                if self.marks_initial_end {
                    self.last_bookmark = self.start;
                    batch.push(LocalEvent::Bookmark { revision: self.start, initial_events_end: true });
                }
                break;
            };
            if let Some(seal) = &self.def.seal {
                seal.settle(&entry).await;
            }
            let object = stored(&self.def, &entry);
            if let Err(error) = readable(&object) {
                batch.push(LocalEvent::Error(error.0));
                self.done = true;
                break;
            }
            if selects(&self.scope, &self.options, &object) {
                batch.push(LocalEvent::Added(object));
            }
        }
        if batch.is_empty() { None } else { Some(batch) }
    }

    /// What an event of the log means to this watch: an object that comes into its selection is added, one that leaves it
    /// is deleted.
    fn translate(&self, event: &Event) -> Option<LocalEvent> {
        let object = stored(&self.def, &event.entry);
        if let Err(error) = readable(&object) {
            return Some(LocalEvent::Error(error.0));
        }
        let was = event.previous.as_ref().is_some_and(|entry| {
            selects(&self.scope, &self.options, &stored(&self.def, entry)) && self.in_term(entry)
        });
        if event.kind == EventKind::Delete {
            return was.then_some(LocalEvent::Deleted(object));
        }
        let is = selects(&self.scope, &self.options, &object) && self.in_term(&event.entry);
        match (was, is) {
            (false, true) => Some(LocalEvent::Added(object)),
            (true, true) => Some(LocalEvent::Modified(object)),
            (true, false) => {
                // The last state that was in the selection, with the revision at which it left.
                let previous = event.previous.as_ref().map(|entry| stored(&self.def, entry))?;
                let header = previous.header().clone();
                Some(LocalEvent::Deleted(Arc::new(Stored::new(
                    header,
                    object.revision(),
                    previous.raw().clone(),
                ))))
            }
            (false, false) => None,
        }
    }

    fn in_term(&self, entry: &Entry) -> bool {
        match &self.scope {
            Scope::Term { term, .. } => entry.terms().contains(term),
            _ => true,
        }
    }

    fn fail(&mut self, error: &WatchError) -> Option<Vec<LocalEvent>> {
        self.done = true;
        match error {
            WatchError::Compacted { floor } => {
                let status =
                    Status::expired(format!("too old resource version: {} ({floor})", self.watch.progress()));
                Some(vec![LocalEvent::Error(Box::new(status))])
            }
            _ => None,
        }
    }

    /// The watch as a stream of batches.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Vec<LocalEvent>> + Send {
        futures::stream::unfold(self, |mut session| async move {
            session.next().await.map(|batch| (batch, session))
        })
    }
}

/// Gets the keys that an event's states are encrypted with, should they be far away.
async fn settle(def: &ResourceDef, event: &Event) {
    if let Some(seal) = &def.seal {
        for entry in std::iter::once(&event.entry).chain(&event.previous) {
            seal.settle(entry).await;
        }
    }
}

fn selects(scope: &Scope, options: &ListOptions, object: &Stored) -> bool {
    let header = object.header();
    scope.admits(header) && options.labels.matches(&header.labels) && options.fields.matches(header)
}
