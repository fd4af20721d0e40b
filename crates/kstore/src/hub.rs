//! Where watches wait, and how an event finds those that want it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::PoisonError,
    task::Waker,
};

use bytes::Bytes;

use crate::{
    Event, Interest, Term,
    events::Log,
    sync::{Mutex, MutexGuard},
};

/// How many places of events a wait list remembers, to spare its watches the search.
const TRAIL_MAX: usize = 1_024;

/// Where the watches of one table wait. A published batch wakes the lists that want one of its events, once.
pub(crate) struct Hub {
    lists: Mutex<Lists>,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub::new(0)
    }
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
pub(crate) enum Step {
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

    /// The waker that was there before, to be dropped where no lock is held: it may own what needs the lock to end.
    fn wait(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) -> Option<Waker> {
        if let Some(Ticket { generation, place }) = *ticket
            && generation == self.generation
            && let Some(Some(present)) = self.waiters.get_mut(place)
        {
            return (!present.will_wake(waker)).then(|| std::mem::replace(present, waker.clone()));
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
        None
    }

    /// The waker, to be dropped as above.
    fn cancel(&mut self, ticket: Ticket) -> Option<Waker> {
        let waiter = self.waiters.get_mut(ticket.place).filter(|_| ticket.generation == self.generation);
        let waker = waiter.and_then(Option::take);
        if waker.is_some() {
            self.free.push(ticket.place);
        }
        waker
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

    /// Drops the list of an interest that no watch has any more.
    fn forget(&mut self, interest: &Interest) {
        match interest {
            Interest::All => {
                self.all.waiters = Vec::new();
                self.all.free = Vec::new();
            }
            Interest::Term(term) => drop(self.terms.remove(term)),
            Interest::Key(key) => drop(self.keys.remove(key)),
            Interest::Prefix(prefix) => {
                self.prefixes.remove(prefix);
                if let Some(count) = self.prefix_lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        self.prefix_lengths.remove(&prefix.len());
                    }
                }
            }
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
    pub(crate) fn enter(&self, interest: &Interest) {
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
    pub(crate) fn leave(&self, interest: &Interest, ticket: Option<Ticket>) {
        let mut lists = self.lists();
        let Some(list) = lists.list(interest) else { return };
        let waker = ticket.and_then(|ticket| list.cancel(ticket));
        list.watches -= 1;
        if list.watches == 0 {
            lists.forget(interest);
        }
        drop(lists);
        drop(waker);
    }

    pub(crate) fn wait(&self, interest: &Interest, ticket: &mut Option<Ticket>, waker: &Waker) {
        let before = self.lists().list(interest).and_then(|list| list.wait(ticket, waker));
        drop(before);
    }

    pub(crate) fn step(&self, interest: &Interest, from: u64) -> Step {
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
