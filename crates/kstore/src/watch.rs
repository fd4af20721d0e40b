//! Watches: cursors over a table's log, and where they wait.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use crate::{
    Event, ReadError, Revision, StoreError, TableId, Term, WatchError,
    events::Log,
    root::{Published, TableRoot},
};

/// How many events a batch has at most, unless one revision alone has more: a revision is never split.
pub const BATCH_EVENTS_MAX: usize = 1_024;
/// How many places of events a wait list remembers, to spare its watches the search.
const TRAIL_MAX: usize = 1_024;

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
    hook: Option<Hook>,
}

/// Looks at what a watch is about to deliver and may end it instead.
type Hook = Box<dyn FnMut(&Batch) -> Option<WatchError> + Send + Sync>;

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
            (Ok(Some(batch)), Some(hook)) => hook(&batch).map_or(Ok(Some(batch)), Err),
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
    pub fn with_hook(
        mut self,
        mut hook: impl FnMut(&Batch) -> Option<WatchError> + Send + Sync + 'static,
    ) -> Watch {
        let mut inner = self.hook.take();
        self.hook = Some(Box::new(move |batch| {
            inner.as_mut().and_then(|inner| inner(batch)).or_else(|| hook(batch))
        }));
        self
    }

    fn advance(&mut self, max: usize) -> Result<Option<Batch>, WatchError> {
        // Read first: what was published before the store closed is still delivered.
        let closed = self.published.closed.load(Ordering::Acquire);
        let root = self.published.load();
        let Some(table) = root.tables.get(self.table) else { return Err(WatchError::Closed) };
        let mut events: Vec<Event> = Vec::new();
        loop {
            let at = match self.find(table) {
                Found::Gone => return Err(WatchError::Compacted { floor: table.log.floor() }),
                Found::Nothing => {
                    self.next = table.log.end();
                    self.seen = self.seen.max(root.revision);
                    break;
                }
                Found::Event(at) => at,
            };
            let Some(event) = table.log.get(at) else { break };
            if let Some(last) = events.last()
                && events.len() >= max
                && last.revision != event.revision
            {
                self.next = at;
                self.seen = self.seen.max(last.revision);
                break;
            }
            events.push(event.clone());
            self.next = at + 1;
        }
        match (events.is_empty(), closed) {
            (false, _) => Ok(Some(Batch { events, revision: self.seen })),
            (true, true) => Err(WatchError::Closed),
            (true, false) => Ok(None),
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

/// Where the watches of one table wait. A published batch wakes the lists that want one of its events, once.
#[derive(Default)]
pub(crate) struct Hub {
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    /// Every event before this place has been told to the lists.
    told: u64,
    all: WaitList,
    terms: HashMap<Term, WaitList, ahash::RandomState>,
    keys: HashMap<Bytes, WaitList, ahash::RandomState>,
    prefixes: HashMap<Bytes, WaitList, ahash::RandomState>,
    /// How many lists there are for prefixes of each length.
    prefix_lengths: BTreeMap<usize, usize>,
}

/// The watches of one interest.
#[derive(Default)]
struct WaitList {
    watches: usize,
    /// Counts the wake-ups; a ticket of an earlier one is void.
    generation: u64,
    waiters: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Where events of interest are, complete from `since` to what was told.
    trail: VecDeque<u64>,
    since: u64,
}

/// A place in a wait list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    generation: u64,
    place: usize,
}

/// What a wait list knows about the events from a place on.
#[derive(Clone, Copy)]
enum Step {
    /// None is of interest before that place.
    Skip(u64),
    /// The next of interest is there.
    Event(u64),
    /// Nothing is known before that place.
    Search(u64),
}

impl WaitList {
    fn new(since: u64) -> WaitList {
        WaitList { since, ..WaitList::default() }
    }

    fn wait(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) {
        if let Some(Ticket { generation, place }) = *ticket
            && generation == self.generation
            && let Some(Some(present)) = self.waiters.get_mut(place)
        {
            present.clone_from(waker);
            return;
        }
        let place = match self.free.pop() {
            Some(place) => {
                self.waiters[place] = Some(waker.clone());
                place
            }
            None => {
                self.waiters.push(Some(waker.clone()));
                self.waiters.len() - 1
            }
        };
        *ticket = Some(Ticket { generation: self.generation, place });
    }

    fn cancel(&mut self, ticket: Ticket) {
        if ticket.generation == self.generation
            && self.waiters.get_mut(ticket.place).is_some_and(|w| w.take().is_some())
        {
            self.free.push(ticket.place);
        }
    }

    fn wake(&mut self, wakers: &mut Vec<Waker>) {
        if !self.waiters.is_empty() {
            self.generation += 1;
            self.free.clear();
            wakers.extend(self.waiters.drain(..).flatten());
        }
    }

    fn tell(&mut self, at: u64, wakers: &mut Vec<Waker>) {
        if self.trail.back() != Some(&at) {
            if self.trail.len() == TRAIL_MAX
                && let Some(dropped) = self.trail.pop_front()
            {
                self.since = dropped + 1;
            }
            self.trail.push_back(at);
        }
        self.wake(wakers);
    }

    fn step(&self, from: u64, told: u64) -> Step {
        if from < self.since {
            return Step::Search(self.since);
        }
        match self.trail.get(self.trail.partition_point(|at| *at < from)) {
            Some(at) => Step::Event(*at),
            None if from < told => Step::Skip(told),
            None => Step::Search(u64::MAX),
        }
    }
}

impl Lists {
    fn list(&mut self, interest: &Interest) -> Option<&mut WaitList> {
        match interest {
            Interest::All => Some(&mut self.all),
            Interest::Term(term) => self.terms.get_mut(term),
            Interest::Key(key) => self.keys.get_mut(key),
            Interest::Prefix(prefix) => self.prefixes.get_mut(prefix),
        }
    }

    fn tell(&mut self, at: u64, event: &Event, wakers: &mut Vec<Waker>) {
        if !self.terms.is_empty() {
            let before = event.previous.as_ref().map(|previous| previous.terms()).unwrap_or_default();
            for term in event.entry.terms().iter().chain(before) {
                if let Some(list) = self.terms.get_mut(term) {
                    list.tell(at, wakers);
                }
            }
        }
        let key = event.entry.key();
        if !self.keys.is_empty()
            && let Some(list) = self.keys.get_mut(key)
        {
            list.tell(at, wakers);
        }
        for length in self.prefix_lengths.keys().take_while(|length| **length <= key.len()) {
            if let Some(list) = self.prefixes.get_mut(&key[..*length]) {
                list.tell(at, wakers);
            }
        }
    }
}

impl Hub {
    /// The hub of a table whose events before `told` concern nobody.
    pub(crate) fn new(told: u64) -> Hub {
        Hub { lists: Mutex::new(Lists { told, ..Lists::default() }) }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // No code of others runs under this lock but the clone of a waker; the lists are whole even if that panics.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch of this interest begins.
    fn enter(&self, interest: &Interest) {
        let mut lists = self.lists();
        let told = lists.told;
        let list = match interest {
            Interest::All => &mut lists.all,
            Interest::Term(term) => lists.terms.entry(term.clone()).or_insert_with(|| WaitList::new(told)),
            Interest::Key(key) => lists.keys.entry(key.clone()).or_insert_with(|| WaitList::new(told)),
            Interest::Prefix(prefix) => {
                if !lists.prefixes.contains_key(prefix) {
                    *lists.prefix_lengths.entry(prefix.len()).or_default() += 1;
                }
                lists.prefixes.entry(prefix.clone()).or_insert_with(|| WaitList::new(told))
            }
        };
        list.watches += 1;
    }

    /// A watch of this interest ends.
    fn leave(&self, interest: &Interest, ticket: Option<Ticket>) {
        let mut lists = self.lists();
        let Some(list) = lists.list(interest) else { return };
        if let Some(ticket) = ticket {
            list.cancel(ticket);
        }
        list.watches -= 1;
        if list.watches > 0 {
            return;
        }
        match interest {
            Interest::All => {
                lists.all.waiters = Vec::new();
                lists.all.free = Vec::new();
            }
            Interest::Term(term) => drop(lists.terms.remove(term)),
            Interest::Key(key) => drop(lists.keys.remove(key)),
            Interest::Prefix(prefix) => {
                lists.prefixes.remove(prefix);
                if let Some(count) = lists.prefix_lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        lists.prefix_lengths.remove(&prefix.len());
                    }
                }
            }
        }
    }

    fn wait(&self, interest: &Interest, ticket: &mut Option<Ticket>, waker: &Waker) {
        if let Some(list) = self.lists().list(interest) {
            list.wait(ticket, waker);
        }
    }

    fn step(&self, interest: &Interest, from: u64) -> Step {
        if *interest == Interest::All {
            // Every event is of interest; whether there is one, the log says.
            return Step::Event(from);
        }
        let mut lists = self.lists();
        let told = lists.told;
        lists.list(interest).map_or(Step::Search(u64::MAX), |list| list.step(from, told))
    }

    /// Tells the lists of what was published since the last time. Called in the order of publication; the wakers are to be
    /// woken by the caller, once no lock is held.
    pub(crate) fn tell(&self, log: &Log, wakers: &mut Vec<Waker>) {
        let mut lists = self.lists();
        let end = log.end();
        if lists.told < end {
            lists.all.wake(wakers);
        }
        if !(lists.terms.is_empty() && lists.keys.is_empty() && lists.prefixes.is_empty()) {
            for (at, event) in log.iter(lists.told, end) {
                lists.tell(at, event, wakers);
            }
        }
        lists.told = end;
    }

    /// Everything before `told` is gone: who has not read it must begin anew.
    pub(crate) fn reset(&self, told: u64, wakers: &mut Vec<Waker>) {
        {
            let mut lists = self.lists();
            lists.told = told;
            let Lists { terms, keys, prefixes, .. } = &mut *lists;
            for list in terms.values_mut().chain(keys.values_mut()).chain(prefixes.values_mut()) {
                list.trail.clear();
                list.since = told;
            }
        }
        self.wake_all(wakers);
    }

    /// Wakes everyone: the store is closed.
    pub(crate) fn wake_all(&self, wakers: &mut Vec<Waker>) {
        let mut lists = self.lists();
        let Lists { all, terms, keys, prefixes, .. } = &mut *lists;
        all.wake(wakers);
        for list in terms.values_mut().chain(keys.values_mut()).chain(prefixes.values_mut()) {
            list.wake(wakers);
        }
    }
}
