//! Watches: cursors over a table's log.

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{
    Event, ReadError, Revision, StoreError, TableId, Term, WatchError,
    events::Log,
    hub::{Hub, Step, Ticket},
    root::{Published, TableRoot},
};

/// How many events a batch has at most, unless one revision alone has more: a revision is never split.
pub const BATCH_EVENTS_MAX: usize = 1_024;

/// Which events of a table a watch is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// All.
    All,
    /// Those whose entry has the term, before or after the change.
    Term(Term),
    /// Those of one key.
    Key(Bytes),
    /// Those of the keys that begin so.
    Prefix(Bytes),
}

impl Interest {
    /// Whether the event is one of them.
    pub fn wants(&self, event: &Event) -> bool {
        match self {
            Interest::All => true,
            Interest::Term(term) => event.touches(term),
            Interest::Key(key) => event.entry.key() == key,
            Interest::Prefix(prefix) => event.entry.key().starts_with(prefix),
        }
    }
}

/// What to watch, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// The table.
    pub table: TableId,
    /// Events with a greater revision are delivered. The revision of a snapshot continues that snapshot without a gap; one
    /// that is still to come is waited for.
    pub after: Revision,
    /// Which events.
    pub interest: Interest,
}

impl WatchRequest {
    /// All events of a table after a revision.
    pub fn new(table: TableId, after: Revision) -> WatchRequest {
        WatchRequest { table, after, interest: Interest::All }
    }

    /// Narrows it down.
    #[must_use]
    pub fn interest(mut self, interest: Interest) -> WatchRequest {
        self.interest = interest;
        self
    }
}

/// Events of whole revisions, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// At least one.
    pub events: Vec<Event>,
    /// The watch has now delivered everything of its interest up to and including this published revision.
    pub revision: Revision,
}

/// A running watch: what [`Store::watch`](crate::Store::watch) gives.
///
/// It holds a place in the table's log and no queue, so a watch that nobody reads costs nothing. Events come in the order
/// of their revisions, each once, all events of a revision in one batch. Dropping it ends it.
pub struct Watch {
    published: Arc<Published>,
    hub: Arc<Hub>,
    table: TableId,
    interest: Interest,
    after: Revision,
    /// Every event before this place is delivered or not wanted.
    next: u64,
    /// Everything up to here is delivered.
    seen: Revision,
    ticket: Option<Ticket>,
    ended: Option<WatchError>,
    hook: Option<Box<dyn Hook>>,
}

/// Looks at what a watch tells.
pub(crate) trait Hook: Send + Sync {
    /// It is about to deliver this, and is ended instead if there is an error.
    fn batch(&mut self, batch: &Batch) -> Option<WatchError>;
    /// It says that everything up to here has been delivered.
    fn progress(&mut self, _revision: Revision) {}
    /// It is dropped, while this is published.
    fn dropped(&mut self, _published: &Published) {}
}

/// One after the other; the second sees what the first lets pass.
#[cfg(any(test, feature = "testing"))]
struct Both(Box<dyn Hook>, Box<dyn Hook>);

#[cfg(any(test, feature = "testing"))]
impl Hook for Both {
    fn batch(&mut self, batch: &Batch) -> Option<WatchError> {
        self.0.batch(batch).or_else(|| self.1.batch(batch))
    }
    fn progress(&mut self, revision: Revision) {
        self.0.progress(revision);
        self.1.progress(revision);
    }
    fn dropped(&mut self, published: &Published) {
        self.0.dropped(published);
        self.1.dropped(published);
    }
}

impl<F: FnMut(&Batch) -> Option<WatchError> + Send + Sync> Hook for F {
    fn batch(&mut self, batch: &Batch) -> Option<WatchError> {
        self(batch)
    }
}

impl Watch {
    pub(crate) fn new(published: Arc<Published>, request: WatchRequest) -> Result<Watch, ReadError> {
        let WatchRequest { table, after, interest } = request;
        if published.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed.into());
        }
        let root = published.load();
        let place = root.tables.get(table).ok_or(StoreError::UnknownTable(table))?;
        let floor = place.log.floor();
        if after < floor {
            return Err(ReadError::Compacted { asked: after, floor });
        }
        let (hub, next) = (place.hub.clone(), place.log.seek(after));
        drop(root);
        hub.enter(&interest);
        Ok(Watch {
            published,
            hub,
            table,
            interest,
            after,
            next,
            seen: after,
            ticket: None,
            ended: None,
            hook: None,
        })
    }

    /// Waits for the next events.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when events that were not read yet are gone, [`WatchError::Closed`] when the store is closed
    /// and everything has been delivered. Both are final: asked again, it answers the same.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: an event is taken only in the moment in which it is returned.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Watch::next) for those who write futures by hand.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Batch, WatchError>> {
        if let Some(ready) = self.try_next().transpose() {
            return Poll::Ready(ready);
        }
        self.hub.wait(&self.interest, &mut self.ticket, context.waker());
        // Looked at again, since something may have been published between the first look and the registration.
        match self.try_next().transpose() {
            Some(ready) => Poll::Ready(ready),
            None => Poll::Pending,
        }
    }

    /// The next events, if there are any now.
    ///
    /// # Errors
    /// As of [`next`](Watch::next).
    pub fn try_next(&mut self) -> Result<Option<Batch>, WatchError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let result = self.advance(BATCH_EVENTS_MAX);
        let result = match (result, &mut self.hook) {
            (Ok(Some(batch)), Some(hook)) => hook.batch(&batch).map_or(Ok(Some(batch)), Err),
            (result, _) => result,
        };
        if let Err(error) = &result {
            self.ended = Some(error.clone());
        }
        result
    }

    /// The revision up to which every event of interest has been delivered: what a bookmark may carry now.
    ///
    /// It moves with the store, also while no event is of interest; an event that waits to be read holds it back.
    pub fn progress(&mut self) -> Revision {
        if self.ended.is_none() {
            let root = self.published.load();
            if let Some(table) = root.tables.get(self.table) {
                match self.find(table) {
                    Found::Gone | Found::Event(_) => {}
                    Found::Nothing => {
                        self.next = table.log.end();
                        self.seen = self.seen.max(root.revision);
                    }
                }
            }
        }
        if let Some(hook) = &mut self.hook {
            hook.progress(self.seen);
        }
        self.seen
    }

    /// The table that is watched.
    pub fn table(&self) -> TableId {
        self.table
    }

    /// Which events are delivered.
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// The same watch, but each batch is shown to `hook` first, which may end it. For fault injection.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_hook(self, hook: impl FnMut(&Batch) -> Option<WatchError> + Send + Sync + 'static) -> Watch {
        self.hooked(Box::new(hook))
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn hooked(mut self, hook: Box<dyn Hook>) -> Watch {
        self.hook = Some(match self.hook.take() {
            Some(first) => Box::new(Both(first, hook)),
            None => hook,
        });
        self
    }

    fn advance(&mut self, max: usize) -> Result<Option<Batch>, WatchError> {
        // Read first: what was published before the store closed is still delivered.
        let closed = self.published.closed.load(Ordering::Acquire);
        let root = self.published.load();
        let Some(table) = root.tables.get(self.table) else { return Err(WatchError::Closed) };
        let mut events: Vec<Event> = Vec::new();
        match self.interest {
            Interest::All => self.take_all(table, root.revision, max, &mut events)?,
            _ => self.take_wanted(table, root.revision, max, &mut events)?,
        }
        match (events.is_empty(), closed) {
            (false, _) => Ok(Some(Batch { events, revision: self.seen })),
            (true, true) => Err(WatchError::Closed),
            (true, false) => Ok(None),
        }
    }

    /// Takes what there is, as one run through the log.
    fn take_all(
        &mut self,
        table: &TableRoot,
        revision: Revision,
        max: usize,
        events: &mut Vec<Event>,
    ) -> Result<(), WatchError> {
        let (log, end) = (&table.log, table.log.end());
        if self.next < end && self.next < log.floor_seq() {
            return Err(WatchError::Compacted { floor: log.floor() });
        }
        events.reserve_exact(max.min(end.saturating_sub(self.next) as usize));
        for (at, event) in log.iter(self.next, end) {
            if event.revision <= self.after {
                continue;
            }
            if let Some(last) = events.last()
                && events.len() >= max
                && last.revision != event.revision
            {
                self.next = at;
                self.seen = self.seen.max(last.revision);
                return Ok(());
            }
            events.push(event.clone());
        }
        // The log may be that of a state before what has been read already.
        self.next = self.next.max(end);
        self.seen = self.seen.max(revision);
        Ok(())
    }

    /// Takes what is of interest, from one place of the log to the next.
    fn take_wanted(
        &mut self,
        table: &TableRoot,
        revision: Revision,
        max: usize,
        events: &mut Vec<Event>,
    ) -> Result<(), WatchError> {
        loop {
            let at = match self.find(table) {
                Found::Gone => return Err(WatchError::Compacted { floor: table.log.floor() }),
                Found::Nothing => {
                    self.next = table.log.end();
                    self.seen = self.seen.max(revision);
                    return Ok(());
                }
                Found::Event(at) => at,
            };
            let Some(event) = table.log.get(at) else { return Ok(()) };
            if let Some(last) = events.last()
                && events.len() >= max
                && last.revision != event.revision
            {
                self.next = at;
                self.seen = self.seen.max(last.revision);
                return Ok(());
            }
            events.push(event.clone());
            self.next = at + 1;
        }
    }

    /// Where the first event of interest from `next` on is.
    fn find(&self, table: &TableRoot) -> Found {
        let log = &table.log;
        let (mut from, end) = (self.next, log.end());
        while from < end {
            let step = self.hub.step(&self.interest, from);
            let found = match step {
                // Nothing wanted before `to`, so nothing was missed if the log doesn't reach back so far.
                Step::Skip(to) => {
                    from = to.min(end);
                    continue;
                }
                Step::Event(at) if at >= end => return Found::Nothing,
                Step::Event(at) if at < log.floor_seq() => return Found::Gone,
                Step::Event(at) => log.get(at).filter(|event| event.revision > self.after).map(|_| at),
                Step::Search(to) => {
                    if from < log.floor_seq() {
                        return Found::Gone;
                    }
                    match self.search(log, from, to.min(end)) {
                        Some(at) => Some(at),
                        None => {
                            from = to.min(end);
                            continue;
                        }
                    }
                }
            };
            match (found, step) {
                (Some(at), _) => return Found::Event(at),
                (None, Step::Event(at)) => from = at + 1,
                (None, _) => return Found::Nothing,
            }
        }
        Found::Nothing
    }

    fn search(&self, log: &Log, from: u64, to: u64) -> Option<u64> {
        if let Interest::Term(term) = &self.interest {
            return log.find_term(term, self.after, from, to);
        }
        log.iter(from, to)
            .find(|(_, event)| event.revision > self.after && self.interest.wants(event))
            .map(|(at, _)| at)
    }
}

enum Found {
    Event(u64),
    Nothing,
    /// An event that may have been of interest is no longer in the log.
    Gone,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(mut hook) = self.hook.take() {
            hook.dropped(&self.published);
        }
        self.hub.leave(&self.interest, self.ticket.take());
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("table", &self.table.0)
            .field("interest", &self.interest)
            .field("seen", &self.seen.0)
            .field("ended", &self.ended)
            .finish()
    }
}
