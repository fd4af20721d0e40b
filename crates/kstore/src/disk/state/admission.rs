//! The way in: from the queue, through the state machine, into the buffer of the next frame.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{After, Answer, Job, Moment, Queued, Reply, SMALL_RECORD_BYTES, State};
use crate::{
    CommitError, Durability, Op, StoreError, Txn,
    disk::{SyncPolicy, frame::FRAME_BYTES_MAX, record},
    lease::LEASES_ENDED_MAX,
};

/// Commits wait once the records that are not in a frame yet take so much.
const BUFFER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How large a transaction may be in the log: it, and what stands in the buffer before it, fit into one frame.
const TXN_BYTES_MAX: usize = FRAME_BYTES_MAX - 2 * BUFFER_BYTES_MAX;
/// This part of a log file of the smallest size is left for deletions when there is no room for another file.
const KEPT_FOR_DELETIONS: u64 = 4;

/// What is done with someone who waits.
enum Admission {
    Go,
    Wait,
    Refuse(CommitError),
}

/// How durable a transaction has to be: as the most durable of its tables.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Memory,
    Relaxed(Duration),
    Sync,
}

impl Class {
    fn of(durabilities: impl Iterator<Item = Durability>) -> Class {
        durabilities.fold(Class::Memory, |class, durability| match (class, durability) {
            (Class::Sync, _) | (_, Durability::Sync) => Class::Sync,
            (Class::Relaxed(most), Durability::Relaxed { max_loss }) => Class::Relaxed(most.min(max_loss)),
            (Class::Memory, Durability::Relaxed { max_loss }) => Class::Relaxed(max_loss),
            (class, Durability::Memory) => class,
        })
    }
}

impl State {
    /// Does what waits, as far as there is room in the log.
    pub(super) fn drain(&mut self, moment: Moment) {
        while !self.restoring
            && self.buffer.len() < BUFFER_BYTES_MAX
            && let Some(queued) = self.waiting.front()
        {
            let (bytes, shrinks, alone) = match queued {
                Queued::Commit(txn, _) => {
                    let puts = txn.ops().iter().any(|op| matches!(op, Op::Put { .. }));
                    (record::txn_bytes(txn), !puts, false)
                }
                Queued::Act(act) => (act.bytes, true, act.alone),
            };
            let others = !self.flights.is_empty() || !self.batch.replies.is_empty();
            if alone && (others || self.checkpoints.running) {
                return;
            }
            let refusal = match self.admit(bytes, shrinks) {
                Admission::Wait => return,
                Admission::Go => None,
                Admission::Refuse(error) => Some(error),
            };
            if let Some(queued) = self.waiting.pop_front() {
                let reply = self.perform(queued, refusal, moment);
                self.batch.replies.push(reply);
            }
        }
        if self.waiting.is_empty() {
            // Whoever comes next tries again whether there is room.
            self.no_room = None;
        }
    }

    fn perform(&mut self, queued: Queued, refusal: Option<CommitError>, moment: Moment) -> Reply {
        match (queued, refusal) {
            (Queued::Commit(_, to), Some(error)) => Reply::Commit(to, Ok(Err(error))),
            (Queued::Commit(txn, to), None) => {
                let answer = self.apply(txn, moment.now);
                Reply::Commit(to, answer)
            }
            (Queued::Act(act), None) => (act.act)(Ok(self), moment),
            (Queued::Act(act), Some(CommitError::Store(error))) => (act.act)(Err(error), moment),
            (Queued::Act(act), Some(_)) => (act.act)(Err(StoreError::DiskFull), moment),
        }
    }

    /// Nothing is done any more.
    pub(super) fn refuse_waiting(&mut self, moment: Moment, after: &mut After) {
        let Some(fault) = self.fault.clone() else { return };
        let mut refused = std::mem::take(&mut self.batch.replies);
        for queued in std::mem::take(&mut self.waiting) {
            refused.push(self.perform(queued, Some(fault.clone().into()), moment));
        }
        for to in std::mem::take(&mut self.batch.backups) {
            refused.push(Reply::Then(Box::new(move |landed| {
                drop(to.send(landed.and(Err(StoreError::Closed))));
            })));
        }
        after.failed.push((refused, fault));
    }

    fn admit(&mut self, bytes: usize, shrinks: bool) -> Admission {
        if bytes > TXN_BYTES_MAX {
            let what = "a transaction in bytes";
            return Admission::Refuse(CommitError::TooLarge { what, size: bytes, max: TXN_BYTES_MAX });
        }
        if bytes == 0 {
            return Admission::Go;
        }
        // Until there is a next file, the end of this one is left for those who make room.
        let kept = if shrinks { 0 } else { (self.wal.sizes.min / KEPT_FOR_DELETIONS) as usize };
        let needed = self.buffer.len() + bytes + kept;
        if self.wal.fits(needed) {
            return Admission::Go;
        }
        match self.no_room.clone() {
            Some(error) => Admission::Refuse(error.into()),
            None if self.provide(needed) => Admission::Go,
            None => Admission::Wait,
        }
    }

    /// Sees to it that so many bytes can be written; whether they can be now.
    pub(super) fn provide(&mut self, records: usize) -> bool {
        let job = self.wal.provide(&self.files, records);
        self.jobs.extend(job.map(Job::Prepare));
        self.wal.fits(records)
    }

    fn apply(&mut self, txn: Txn, now: Duration) -> Answer {
        let class = Class::of(txn.ops().iter().map(|op| self.core.durability(op.table())));
        let mark = self.buffer.len();
        if class != Class::Memory {
            let core = &self.core;
            let logged = |table| core.durability(table) != Durability::Memory;
            record::put_txn(self.buffer.end(), &txn, logged);
        }
        let before = self.core.revision;
        let core = &mut self.core;
        let answer = catch_unwind(AssertUnwindSafe(|| core.apply(txn, now)));
        if self.core.revision == before {
            self.buffer.truncate(mark);
            return answer;
        }
        if class != Class::Memory {
            record::set_revision(self.buffer.from(mark), self.core.revision);
            self.buffer.keep();
        }
        self.note(class, now);
        answer
    }

    /// What was just done is of this class.
    fn note(&mut self, class: Class, now: Duration) {
        let flush_within = match (class, self.settings.policy) {
            (Class::Memory, _) | (Class::Sync, SyncPolicy::EveryCommit | SyncPolicy::Never) => None,
            (Class::Sync, SyncPolicy::Interval(interval)) => Some(interval),
            (Class::Relaxed(max_loss), _) => Some(max_loss),
        };
        if class == Class::Sync {
            self.batch.write = true;
            self.batch.sync |= self.settings.policy == SyncPolicy::EveryCommit;
        }
        if let Some(within) = flush_within {
            let at = now.saturating_add(within);
            self.flush_at = Some(self.flush_at.map_or(at, |earlier| earlier.min(at)));
        }
        self.cover_revision();
    }

    /// A revision may not be shown, written or not, before it is certain that it never comes again.
    pub(super) fn cover_revision(&mut self) {
        if self.loose && self.core.revision > self.reserving {
            (self.batch.write, self.batch.sync) = (true, true);
        }
    }

    /// Ends the leases whose time has come, as many as there is room for in the log.
    pub(super) fn end_leases(&mut self, now: Duration) {
        let nothing = self.core.leases.next_deadline().is_none_or(|next| next > now);
        if self.restoring || nothing || self.core.leases.due(now).is_none() {
            return;
        }
        let needed = self.buffer.len() + SMALL_RECORD_BYTES;
        if !self.wal.fits(needed) && (self.no_room.is_some() || !self.provide(needed)) {
            return;
        }
        for _ in 0..LEASES_ENDED_MAX {
            let Some(id) = self.core.leases.due(now) else { break };
            self.end_lease(id, now);
        }
    }
}
