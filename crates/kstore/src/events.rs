//! What happened to a table: one ordered log, shared by the writer and every reader.

use std::sync::{Arc, OnceLock};

use crate::{Entry, Revision, Term, checksum::crc32c};

/// Chunks begin small, so that a quiet table is small, and double up to here. Also what is freed at once.
const CHUNK_EVENTS_MAX: usize = 256;
const CHUNK_EVENTS_MIN: usize = 8;

/// What kind of change an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A key was written.
    Put,
    /// A key was deleted.
    Delete,
}

/// One change of one key. Cloning costs two reference counts.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision of the change.
    pub revision: Revision,
    /// Whether the key was written or deleted.
    pub kind: EventKind,
    /// The new state; of a deletion, the tombstone.
    pub entry: Arc<Entry>,
    /// The state before, if there was one. (A put without one is a creation.)
    pub previous: Option<Arc<Entry>>,
}

impl Event {
    /// Whether the key was not there before.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.previous.is_none()
    }

    /// Whether the state before or after has the term.
    pub(crate) fn touches(&self, term: &Term) -> bool {
        self.entry.has_term(term) || self.previous.as_ref().is_some_and(|previous| previous.has_term(term))
    }

    /// What is kept in memory for the sake of this event: the state it superseded, and the event itself.
    pub(crate) fn history_bytes(&self) -> usize {
        let superseded = |entry: &Arc<Entry>| entry.key.len() + entry.value.len() + size_of::<Entry>();
        size_of::<Event>() + self.previous.as_ref().map_or(0, superseded)
    }
}

/// A piece of the log. Slots are filled once, in order, by the one writer; a reader looks only at those that the root it
/// holds says are filled.
pub(crate) struct Chunk {
    first_seq: u64,
    first_revision: Revision,
    slots: Box<[OnceLock<Event>]>,
    /// Where which terms are, by their hash: made for a full chunk by the first search that comes by.
    terms: OnceLock<Box<[(u32, u16)]>>,
}

fn hash(term: &Term) -> u32 {
    crc32c(0, term.as_bytes())
}

impl Chunk {
    /// The slots of a full chunk whose events touch a term of that hash, in order, among some others perhaps; none if the
    /// chunk is not full.
    fn candidates(&self, hash: u32) -> Option<impl Iterator<Item = usize>> {
        self.slots.last()?.get()?;
        let terms = self.terms.get_or_init(|| {
            let mut terms = Vec::new();
            for (at, event) in self.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.get()?)))
            {
                let before = event.previous.as_ref().map(|previous| previous.terms()).unwrap_or_default();
                terms.extend(
                    event.entry.terms().iter().chain(before).map(|term| (self::hash(term), at as u16)),
                );
            }
            terms.sort_unstable();
            terms.dedup();
            terms.into()
        });
        let first = terms.partition_point(|(other, _)| *other < hash);
        Some(
            terms[first..]
                .iter()
                .take_while(move |(other, _)| *other == hash)
                .map(|(_, at)| usize::from(*at)),
        )
    }
}

/// The log of a table as one root sees it. Events are numbered from 0 by a sequence that never goes back.
#[derive(Clone)]
pub(crate) struct Log {
    /// Ordered; each begins where the one before ends (which may be before that one is full, in a fork).
    chunks: Arc<Vec<Arc<Chunk>>>,
    /// The first event that is still in memory.
    start: u64,
    /// The sequence number of the next event.
    end: u64,
    /// The revision from which on history is whole: what happened after it can be read.
    floor: Revision,
    /// The first event after the floor; `start <= floor_seq <= end`.
    floor_seq: u64,
    /// The revision of the last event before `start`.
    before: Revision,
    /// A fork must not write into the chunk it shares with its origin.
    sealed: bool,
}

impl Log {
    /// An empty log of a table that last changed at `before`, whose history begins there.
    pub(crate) fn new(floor: Revision, before: Revision) -> Log {
        Log { chunks: Arc::default(), start: 0, end: 0, floor, floor_seq: 0, before, sealed: false }
    }

    /// The log of a restored table. It begins behind place 0, so that a watch from before the restore finds that it missed
    /// something.
    pub(crate) fn restored(floor: Revision, before: Revision) -> Log {
        Log { start: 1, end: 1, floor_seq: 1, ..Log::new(floor, before) }
    }

    /// The log of a table whose history was lost: it goes on behind `seq`, so that every watch finds that it missed something.
    #[cfg(feature = "replica")]
    pub(crate) fn resumed(floor: Revision, before: Revision, seq: u64) -> Log {
        Log { start: seq, end: seq, floor_seq: seq, ..Log::new(floor, before) }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn floor_seq(&self) -> u64 {
        self.floor_seq
    }

    /// The revision of the last event before `seq`, which must not be before the floor.
    pub(crate) fn revision_before(&self, seq: u64) -> Revision {
        seq.checked_sub(1).and_then(|seq| self.get(seq)).map_or(self.before, |event| event.revision)
    }

    /// The revision of the last change of the table.
    pub(crate) fn last_revision(&self) -> Revision {
        self.revision_before(self.end)
    }

    /// Writes the next event; its revision must not be less than that of the one before.
    pub(crate) fn append(&mut self, event: Event) {
        if self.sealed {
            let kept = self.chunks.partition_point(|chunk| chunk.first_seq < self.end);
            Arc::make_mut(&mut self.chunks).truncate(kept);
        }
        let room = self.chunks.last().map_or(0, |last| {
            last.slots.len() as u64 - (self.end - last.first_seq).min(last.slots.len() as u64)
        });
        if room == 0 || self.sealed {
            let size = self
                .chunks
                .last()
                .map_or(CHUNK_EVENTS_MIN, |last| last.slots.len() * 2)
                .min(CHUNK_EVENTS_MAX);
            let slots = (0..size).map(|_| OnceLock::new()).collect();
            let (first_seq, first_revision) = (self.end, event.revision);
            let chunk = Chunk { first_seq, first_revision, slots, terms: OnceLock::new() };
            Arc::make_mut(&mut self.chunks).push(Arc::new(chunk));
            self.sealed = false;
        }
        if let Some(last) = self.chunks.last() {
            let filled = last.slots[(self.end - last.first_seq) as usize].set(event);
            debug_assert!(filled.is_ok(), "a slot of the log is filled once");
        }
        self.end += 1;
    }

    pub(crate) fn get(&self, seq: u64) -> Option<&Event> {
        if seq < self.start || seq >= self.end {
            return None;
        }
        let at = self.chunks.partition_point(|chunk| chunk.first_seq <= seq).checked_sub(1)?;
        let chunk = &self.chunks[at];
        chunk.slots.get((seq - chunk.first_seq) as usize)?.get()
    }

    /// The events from `from` up to but without `to`, with their sequence numbers.
    pub(crate) fn iter(&self, from: u64, to: u64) -> impl DoubleEndedIterator<Item = (u64, &Event)> {
        let (from, to) = (from.max(self.start), to.min(self.end));
        let first = self.chunks.partition_point(|chunk| chunk.first_seq <= from).saturating_sub(1);
        let last = self.chunks.partition_point(|chunk| chunk.first_seq < to);
        (first..last).flat_map(move |at| {
            let chunk = &self.chunks[at];
            let end = self.chunks.get(at + 1).map_or(self.end, |next| next.first_seq).min(to);
            let range = from.max(chunk.first_seq)..end.max(chunk.first_seq);
            range
                .filter_map(move |seq| Some((seq, chunk.slots.get((seq - chunk.first_seq) as usize)?.get()?)))
        })
    }

    /// The first event from `from` up to but without `to` that touches the term and is after `after`. Full chunks are not
    /// looked through event by event.
    pub(crate) fn find_term(&self, term: &Term, after: Revision, from: u64, to: u64) -> Option<u64> {
        let (mut from, to) = (from.max(self.start), to.min(self.end));
        let hash = hash(term);
        let wanted = |event: &Event| event.revision > after && event.touches(term);
        let first = self.chunks.partition_point(|chunk| chunk.first_seq <= from).saturating_sub(1);
        for (at, chunk) in self.chunks.iter().enumerate().skip(first) {
            let end = self.chunks.get(at + 1).map_or(self.end, |next| next.first_seq).min(to);
            if from >= end {
                break;
            }
            let found = match chunk.candidates(hash) {
                Some(mut slots) => slots.find_map(|slot| {
                    let seq = chunk.first_seq + slot as u64;
                    ((from..end).contains(&seq) && wanted(chunk.slots[slot].get()?)).then_some(seq)
                }),
                None => self.iter(from, end).find(|(_, event)| wanted(event)).map(|(seq, _)| seq),
            };
            if found.is_some() {
                return found;
            }
            from = end;
        }
        None
    }

    /// The first event after `revision`; the end if there is none.
    pub(crate) fn seek(&self, revision: Revision) -> u64 {
        let at = self.chunks.partition_point(|chunk| chunk.first_revision <= revision);
        let Some(chunk) = at.checked_sub(1).map(|at| &self.chunks[at]) else { return self.start };
        let end = self.chunks.get(at).map_or(self.end, |next| next.first_seq).max(chunk.first_seq);
        let filled = &chunk.slots[..(end - chunk.first_seq) as usize];
        let before = |slot: &OnceLock<Event>| slot.get().is_some_and(|event| event.revision <= revision);
        (chunk.first_seq + filled.partition_point(before) as u64).clamp(self.start, self.end)
    }

    /// Moves the floor up to `floor`: what happened up to it can't be read any more. Memory is freed by `free`.
    pub(crate) fn raise_floor(&mut self, floor: Revision) {
        if floor > self.floor {
            self.floor_seq = self.seek(floor).max(self.floor_seq);
            self.floor = floor;
        }
    }

    /// Lets go of at most `max` chunks that are wholly below the floor and before `to`; whether there may be more.
    pub(crate) fn free(&mut self, to: u64, max: usize) -> bool {
        let to = to.min(self.floor_seq);
        let whole = self.chunks.partition_point(|chunk| chunk.first_seq <= to);
        // The last chunk that begins at or below the floor may reach above it; all of it is below when it ends there.
        let ends_below = whole == self.chunks.len() && to == self.end;
        let dead = if ends_below { whole } else { whole.saturating_sub(1) };
        let count = dead.min(max);
        if count > 0 {
            let next = self.chunks.get(count).map_or(self.end, |chunk| chunk.first_seq);
            self.before = self.revision_before(next);
            self.start = next;
            Arc::make_mut(&mut self.chunks).drain(..count);
        }
        dead > count
    }

    /// The same log as it was before the event `end`.
    pub(crate) fn cut(&self, end: u64) -> Log {
        let mut log = self.clone();
        log.end = end.clamp(self.floor_seq, self.end);
        log.sealed = true;
        log
    }

    /// An empty log with the same floor, for the same events in other words.
    pub(crate) fn emptied(&self) -> Log {
        let mut log = Log::new(self.floor, self.revision_before(self.floor_seq));
        (log.start, log.end, log.floor_seq) = (self.floor_seq, self.floor_seq, self.floor_seq);
        log
    }

    /// The same log, to be continued apart from this one.
    pub(crate) fn fork(&self) -> Log {
        let mut log = self.clone();
        log.sealed = true;
        log
    }
}
