//! Checks a watch while it goes: the properties that etcd's robustness tests name for a watch.
//!
//! Filter, ordered, unique, atomic, reliable, resumable (a validator may go on with a second watch from where the first
//! ended), bookmarkable, previous value, is-create.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    Batch, Entry, Event, EventKind, Interest, Range, Revision, Snapshot, TableId, Watch, WatchRequest,
};

/// The state that follows from a list and the events after it, and what has been delivered so far.
#[derive(Debug)]
pub struct Validator {
    table: TableId,
    interest: Interest,
    /// Whether the state began with a list. Else it holds what the watch itself has told, and no list can be compared with it.
    listed: bool,
    /// What a client that lists and watches would have in its cache.
    state: BTreeMap<Bytes, Arc<Entry>>,
    /// The revision of the last event.
    last: Revision,
    /// What was said to be complete.
    complete: Revision,
}

impl Validator {
    /// Begins with what the request's interest sees in `list`, whose revision the request continues.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn new(list: &Snapshot, request: WatchRequest) -> Validator {
        let WatchRequest { table, after, interest } = request;
        assert_eq!(list.revision(), after, "a watch continues the list at the list's revision");
        let state = seen(list, table, &interest);
        Validator { table, interest, listed: true, state, last: after, complete: after }
    }

    /// Begins where nobody can list: at a revision that is still to come, or in a past that is gone. All but *reliable* is
    /// checked, and previous values from the second event of a key on.
    pub fn without_list(request: WatchRequest) -> Validator {
        let WatchRequest { table, after, interest } = request;
        Validator { table, interest, listed: false, state: BTreeMap::new(), last: after, complete: after }
    }

    /// Takes in what was said to be complete.
    ///
    /// # Panics
    /// If it had been said of a later revision before, or if it is before the last event.
    pub fn progress(&mut self, revision: Revision) {
        assert!(revision >= self.complete, "bookmarkable: {revision} after {}", self.complete);
        assert!(revision >= self.last, "bookmarkable: {revision} is before the last event, {}", self.last);
        self.complete = revision;
    }

    /// The list that the events must lead to: that of this table at the revision that was said to be complete. None if they
    /// began without one.
    pub(crate) fn leads_to(&self) -> Option<(TableId, Revision)> {
        self.listed.then_some((self.table, self.complete))
    }

    /// Takes a batch in.
    ///
    /// # Panics
    /// If it breaks a property.
    pub fn observe(&mut self, batch: &Batch) {
        assert!(!batch.events.is_empty(), "a batch has events");
        let first = batch.events[0].revision;
        assert!(first > self.last, "atomic: revision {first} was delivered in part before");
        assert!(
            first > self.complete,
            "bookmarkable: {first} comes after {} was said to be complete",
            self.complete
        );
        for event in &batch.events {
            self.event(event);
        }
        assert!(batch.revision >= self.last, "bookmarkable: a batch is complete up to its own events");
        self.complete = batch.revision;
    }

    fn event(&mut self, event: &Event) {
        assert!(event.revision >= self.last, "ordered: {} after {}", event.revision, self.last);
        assert!(self.interest.wants(event), "filter: nobody asked for {event:?}");
        assert_eq!(event.entry.modified(), event.revision, "{event:?}");
        assert_eq!(event.kind == EventKind::Delete, event.entry.is_tombstone(), "{event:?}");
        let key = event.entry.key();
        let known = self.state.get(key);
        if let Some(known) = known {
            assert!(known.modified() < event.revision, "unique: {event:?} comes after {known:?}");
        }
        // Under a term, a key can also come from outside of what was listed.
        if known.is_some() || (self.listed && !matches!(self.interest, Interest::Term(_))) {
            let address =
                |entry: Option<&Arc<Entry>>| entry.map(|entry| (entry.modified(), entry.value().clone()));
            assert_eq!(address(event.previous.as_ref()), address(known), "previous: {event:?}");
        }
        assert_eq!(
            event.is_create(),
            event.kind == EventKind::Put && event.entry.version() == 1,
            "is-create: {event:?}"
        );
        match event.kind == EventKind::Put && wanted(&self.interest, &event.entry) {
            true => self.state.insert(key.clone(), event.entry.clone()),
            false => self.state.remove(key),
        };
        self.last = event.revision;
    }

    /// Reads what the watch has, and then compares the state that follows from it with what is there: a list and the events
    /// after it lead to the later list.
    ///
    /// # Panics
    /// If they don't, or if the watch has ended.
    pub fn drain(&mut self, watch: &mut Watch, list: &Snapshot) {
        while self.last < list.revision() {
            match watch.try_next() {
                Ok(Some(batch)) => self.observe(&batch),
                Ok(None) => break,
                Err(error) => panic!("reliable: the watch ended: {error}"),
            }
        }
        let progress = watch.progress();
        assert!(progress >= list.revision(), "bookmarkable: {progress} although everything was read");
        self.complete = progress;
        if self.last <= list.revision() {
            self.closes(list);
        }
    }

    /// Compares the state that follows from the events with a list that they lead to.
    ///
    /// # Panics
    /// If they differ.
    pub fn closes(&self, list: &Snapshot) {
        let short = |state: &BTreeMap<Bytes, Arc<Entry>>| -> Vec<(Bytes, Revision)> {
            state.iter().map(|(key, entry)| (key.clone(), entry.modified())).collect()
        };
        let expected = seen(list, self.table, &self.interest);
        assert_eq!(
            short(&self.state),
            short(&expected),
            "reliable: what follows from the watch is not what is there"
        );
    }

    /// The revision of the last event.
    pub fn last(&self) -> Revision {
        self.last
    }
}

fn wanted(interest: &Interest, entry: &Entry) -> bool {
    match interest {
        Interest::All => true,
        Interest::Term(term) => entry.terms().contains(term),
        Interest::Key(key) => entry.key() == key,
        Interest::Prefix(prefix) => entry.key().starts_with(prefix),
    }
}

fn seen(list: &Snapshot, table: TableId, interest: &Interest) -> BTreeMap<Bytes, Arc<Entry>> {
    let all = list.range(table, Range::all());
    all.filter(|entry| wanted(interest, entry)).map(|entry| (entry.key().clone(), entry)).collect()
}
