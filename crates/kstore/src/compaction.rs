//! How the past of a table is kept within its limits, a little with each commit.

use std::{collections::VecDeque, time::Duration};

use crate::{Event, HistoryLimits, events::Log};

/// How many events one step looks at for the sake of the limits, besides twice those that were added.
const SLICE_EVENTS: usize = 64;
/// How many chunks of events one step frees at most, besides one for each so many events that were added.
const SLICE_CHUNKS: usize = 1;
const EVENTS_PER_CHUNK: usize = 64;
/// The age of events is known to this fraction of the limit.
const AGE_STEPS: u32 = 64;

/// The writer's account of a table's past.
#[derive(Clone, Debug)]
pub(crate) struct History {
    limits: HistoryLimits,
    /// What the events from `counted` on keep in memory.
    bytes: usize,
    /// The first event that is counted in; those before are to go or gone.
    counted: u64,
    /// When events were added: at that time the log had got so far. At most about `AGE_STEPS` of them.
    marks: VecDeque<(Duration, u64)>,
}

impl History {
    pub(crate) fn new(limits: HistoryLimits, end: u64) -> History {
        History { limits, bytes: 0, counted: end, marks: VecDeque::new() }
    }

    pub(crate) fn set_limits(&mut self, limits: HistoryLimits) {
        self.limits = limits;
    }

    /// The past begins anew at `end`.
    pub(crate) fn restart(&mut self, end: u64) {
        *self = History::new(self.limits, end);
    }

    /// An event is about to be added at `end`.
    pub(crate) fn count(&mut self, event: &Event, end: u64, now: Duration) {
        self.bytes += event.history_bytes();
        let granule = self.limits.age_max / AGE_STEPS;
        if self.marks.back().is_none_or(|(time, _)| now >= time.saturating_add(granule)) {
            self.marks.push_back((now, end));
        }
    }

    /// Lets go of what is beyond the limits or below the floor, a bounded piece of it; whether more is left.
    pub(crate) fn trim(&mut self, log: &mut Log, now: Duration, added: usize) -> bool {
        let aged = self.aged(now, log.end());
        let mut left = SLICE_EVENTS + 2 * added;
        while left > 0 && self.counted < log.end() {
            let beyond = (log.end() - self.counted) as usize > self.limits.events_max
                || self.bytes > self.limits.bytes_max
                || self.counted < aged;
            if !beyond && self.counted >= log.floor_seq() {
                break;
            }
            self.drop_one(log);
            left -= 1;
        }
        let freeing = log.free(self.counted, SLICE_CHUNKS + added / EVENTS_PER_CHUNK);
        freeing || left == 0
    }

    fn drop_one(&mut self, log: &mut Log) {
        let Some((bytes, revision)) =
            log.get(self.counted).map(|event| (event.history_bytes(), event.revision))
        else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(bytes);
        self.counted += 1;
        // The floor may stand only where a revision is complete, for revisions are read whole.
        let next = log.get(self.counted).map(|event| event.revision);
        if next != Some(revision) {
            log.raise_floor(revision);
        }
    }

    /// The first event that is young enough.
    fn aged(&mut self, now: Duration, end: u64) -> u64 {
        let Some(oldest) = now.checked_sub(self.limits.age_max) else { return 0 };
        // What was added from a mark on, up to the next, came within the granule.
        let granule = self.limits.age_max / AGE_STEPS;
        while self.marks.front().is_some_and(|(time, _)| time.saturating_add(granule) <= oldest) {
            self.marks.pop_front();
        }
        self.marks.front().map_or(end, |(_, at)| *at)
    }

    /// What the past keeps in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
