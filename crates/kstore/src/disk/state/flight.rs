//! The way out: frames are cut, fly, land, and are published in their order.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smallvec::SmallVec;

use super::{After, Job, Moment, Reply, State};
use crate::{
    Backup, Durability, Revision, Snapshot, StoreError, TableId,
    disk::{
        SyncPolicy,
        checkpoint::{CheckpointJob, Preface},
        frame::{Buffer, CLOSED},
        wal::{Cut, Segment},
    },
    root::Root,
};

/// How many frames are in the air at once.
pub(crate) const FLIGHTS_MAX: usize = 4;
/// With so many in the air, the next one waits until it is worth while.
const FLIGHTS_EAGER: usize = 2;
const FLIGHT_BYTES_WORTH: usize = 64 * 1024;
/// Buffers that became larger are not kept.
const BUFFER_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// How many revisions a frame reserves beyond its own, where revisions are shown before they are durable.
const RESERVED_REVISIONS: u64 = 65_536;

/// A state that is not published yet, and the frame that leads to it.
pub(super) struct Flight {
    /// The frame's number; none where there is none.
    seq: Option<u64>,
    landed: bool,
    sync: bool,
    reserved: Revision,
    pub(super) root: Root,
    tables: SmallVec<[TableId; 4]>,
    replies: Vec<Reply>,
    /// To be written once the state is published.
    checkpoint: Option<Box<CheckpointJob>>,
    restored: bool,
}

/// How a job ended.
pub(crate) enum Ended {
    Write(u64, Buffer, io::Result<()>),
    Prepare(io::Result<Segment>),
    Checkpoint { seq: u64, revision: Revision, bytes: u64, result: io::Result<()> },
    Remove,
}

/// A disk is quick while durable writes take less than this on average.
const QUICK_WRITE: Duration = Duration::from_micros(250);
/// Each write counts for one part in so many of the average.
const AVERAGE_PARTS: u32 = 8;
/// What is assumed of a disk that nothing is known of: it has to show that it is quick.
const WRITE_TIME_AT_FIRST: Duration = Duration::from_millis(1);

/// How long durable writes take, on average of late.
pub(super) struct WriteTime(Duration);

impl Default for WriteTime {
    fn default() -> WriteTime {
        WriteTime(WRITE_TIME_AT_FIRST)
    }
}

impl State {
    /// The write that is better done by whoever has just committed than handed to another thread: one to the page cache; or a
    /// durable one that a single caller waits for, on a quick disk, if that holds nobody else up. Whoever takes it counts as a
    /// worker meanwhile.
    pub(crate) fn take_quick_write(&mut self, others_can_go_on: bool) -> Option<Job> {
        let lonely = self.flights.len() == 1
            && self.flights.front().is_some_and(|flight| flight.replies.len() == 1)
            && self.waiting.is_empty();
        let synced = lonely && others_can_go_on && self.write_time.0 <= QUICK_WRITE;
        let quick = matches!(self.jobs.front()?, Job::Write(write) if write.is_quick(synced));
        let job = if quick { self.jobs.pop_front()? } else { return None };
        self.workers += 1;
        self.running += 1;
        Some(job)
    }

    /// A durable write took so long.
    pub(crate) fn write_took(&mut self, took: Option<Duration>) {
        if let Some(took) = took {
            let average = &mut self.write_time.0;
            *average = *average - *average / AVERAGE_PARTS + took / AVERAGE_PARTS;
        }
    }

    /// Makes a flight of what was done since the last one; whether there is one.
    pub(super) fn cut(&mut self, moment: Moment, flags: u32) -> bool {
        if let Some(job) = self.restored.take() {
            self.fly_restored(job);
            return true;
        }
        let due = self.checkpoint_is_due();
        let (batch, must_sync) = (&self.batch, self.batch.sync);
        let nobody = batch.replies.is_empty() && batch.backups.is_empty() && !batch.show && !batch.write;
        if self.restoring || (nobody && !due && flags == 0) {
            return false;
        }
        let write = batch.write || flags != 0 || (due && !self.buffer.is_empty());
        if !self.may_fly(write) {
            return false;
        }
        let sync = must_sync || flags != 0 || self.settings.policy == SyncPolicy::EveryCommit;
        let (seq, sync) = match write {
            true => match self.write(sync, flags) {
                Some((seq, sync)) => (Some(seq), sync),
                None => return false,
            },
            false => (None, false),
        };
        let batch = std::mem::take(&mut self.batch);
        let tables = self.core.dirty();
        let root = self.core.publish(moment.now);
        let mut replies = batch.replies;
        for to in batch.backups {
            let leases = self.core.leases.times(moment.now);
            let backup = Backup::new(Snapshot::new(Arc::new(root.clone())), leases, self.core.leases.last());
            replies.push(Reply::Then(Box::new(move |landed| drop(to.send(landed.map(|()| backup))))));
        }
        let checkpoint = (due && self.buffer.is_empty()).then(|| {
            self.checkpoints.running = true;
            self.checkpoints.wanted = false;
            self.checkpoints.position = self.wal.total;
            Box::new(self.capture(root.clone(), moment))
        });
        let (landed, restored, reserved) = (seq.is_none(), false, self.reserving);
        self.flights.push_back(Flight {
            seq,
            landed,
            sync,
            reserved,
            root,
            tables,
            replies,
            checkpoint,
            restored,
        });
        true
    }

    /// Whether a flight can begin now, or the batch had better grow.
    fn may_fly(&mut self, write: bool) -> bool {
        if !write {
            // It could not be published before those that are in the air.
            return self.flights.is_empty();
        }
        let (eager, max) = match self.settings.policy {
            SyncPolicy::EveryCommit => (FLIGHTS_EAGER, FLIGHTS_MAX),
            // What a sync covers is certain only when nothing else is being written.
            SyncPolicy::Interval(_) | SyncPolicy::Never => (1, 1),
        };
        let worth = self.flying < eager || (self.flying < max && self.buffer.len() >= FLIGHT_BYTES_WORTH);
        let records = self.buffer.len();
        worth && (self.wal.fits(records) || self.provide(records))
    }

    /// Cuts a frame and sends it off; its number and whether it becomes durable.
    fn write(&mut self, sync: bool, flags: u32) -> Option<(u64, bool)> {
        let last = self.core.revision;
        let mut sync = sync;
        if !self.loose || flags & CLOSED != 0 {
            self.reserving = last;
        } else if last.0.saturating_add(RESERVED_REVISIONS / 2) > self.reserving.0 {
            self.reserving = Revision(last.0.saturating_add(RESERVED_REVISIONS));
            sync = true;
        }
        let cut =
            Cut { first: self.first, last, reserved: self.reserving, durable: self.durable, flags, sync };
        let empty = self.spare_buffers.pop().unwrap_or_else(Buffer::new);
        let job = match self.wal.cut(std::mem::replace(&mut self.buffer, empty), &cut) {
            Ok(job) => job,
            Err(buffer) => {
                self.buffer = buffer;
                return None;
            }
        };
        let seq = job.seq;
        self.first = last;
        self.flying += 1;
        if sync {
            self.flush_at = None;
        }
        self.jobs.push_back(Job::Write(job));
        // In time, so that nobody waits for it.
        self.provide(0);
        Some((seq, sync))
    }

    fn fly_restored(&mut self, job: Box<CheckpointJob>) {
        let replies = std::mem::take(&mut self.batch.replies);
        let tables = SmallVec::new();
        let root = self.core.publish(Duration::ZERO);
        self.checkpoints.position = self.wal.total;
        self.flights.push_back(Flight {
            seq: None,
            landed: false,
            sync: true,
            reserved: self.reserving,
            root,
            tables,
            replies,
            checkpoint: None,
            restored: true,
        });
        self.jobs.push_back(Job::Checkpoint(job));
    }

    fn checkpoint_is_due(&self) -> bool {
        let since = self.wal.total - self.wal.covered;
        let large = since >= self.settings.checkpoint_bytes.max(self.checkpoints.bytes)
            && self.wal.total >= self.checkpoints.not_before;
        // The last frame of all is to be found by the next opening, so no checkpoint covers it.
        let closing = self.published.closed.load(Ordering::Acquire);
        (self.checkpoints.wanted || large) && !self.checkpoints.running && !closing
    }

    /// A checkpoint of the state, which everything that was cut leads to and nothing else.
    pub(super) fn capture(&self, root: Root, moment: Moment) -> CheckpointJob {
        let durabilities: Vec<Durability> = self.core.durabilities().collect();
        let forgotten = durabilities.iter().enumerate().filter(|(_, class)| **class == Durability::Memory);
        let forgotten = forgotten.map(|(index, _)| TableId(index as u32)).collect();
        let preface = Preface {
            identity: self.wal.identity,
            generation: self.wal.generation,
            seq: self.wal.seq,
            chain: self.wal.chain,
            reserved: self.reserving,
            taken: moment.wall,
            durabilities,
        };
        let leases = self.core.leases.times(moment.now);
        let backup = Backup::new(Snapshot::new(Arc::new(root)), leases, self.core.leases.last());
        CheckpointJob::new(&self.files, &preface, backup.without(forgotten))
    }

    /// Publishes what has landed, as far as everything before it has.
    pub(super) fn publish(&mut self, after: &mut After) {
        while self.flights.front().is_some_and(|flight| flight.landed)
            && let Some(flight) = self.flights.pop_front()
        {
            if let Some(seq) = flight.seq
                && flight.sync
            {
                (self.durable, self.reserved) = (seq, flight.reserved);
            }
            let tables = flight.root.tables.clone();
            after.roots.push(self.published.swap(flight.root));
            for table in flight.tables.iter().filter_map(|id| tables.get(*id)) {
                table.hub.tell(&table.log, &mut after.wakers);
            }
            if flight.restored {
                self.restoring = false;
                for (_, table) in tables.iter() {
                    table.hub.reset(table.log.end(), &mut after.wakers);
                }
            }
            after.landed.push(flight.replies);
            self.jobs.extend(flight.checkpoint.map(Job::Checkpoint));
        }
    }

    /// A job has ended.
    pub(crate) fn ended(&mut self, ended: Ended, after: &mut After) {
        if self.fault.is_some() {
            return;
        }
        match ended {
            Ended::Write(_, _, Err(error)) => self.fence(error, after),
            Ended::Write(seq, mut buffer, Ok(())) => {
                self.flying -= 1;
                if let Some(flight) = self.flights.iter_mut().find(|flight| flight.seq == Some(seq)) {
                    flight.landed = true;
                }
                if buffer.capacity() <= BUFFER_BYTES_KEPT_MAX && self.spare_buffers.len() < FLIGHTS_MAX {
                    buffer.clear();
                    self.spare_buffers.push(buffer);
                }
            }
            Ended::Prepare(Ok(segment)) => {
                self.no_room = None;
                self.wal.provided(Some(segment));
            }
            Ended::Prepare(Err(error)) => {
                self.wal.provided(None);
                // What was let in had room; only a table that was opened just then can have taken it.
                if self.batch.write && !self.wal.fits(self.buffer.len()) {
                    return self.fence(error, after);
                }
                self.no_room = Some(match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
                    _ => StoreError::Backend(Arc::new(error)),
                });
            }
            Ended::Checkpoint { seq, revision, bytes, result } => {
                self.checkpoint_ended(seq, revision, bytes, result, after);
            }
            Ended::Remove => {}
        }
    }

    fn checkpoint_ended(
        &mut self,
        seq: u64,
        revision: Revision,
        bytes: u64,
        result: io::Result<()>,
        after: &mut After,
    ) {
        let restored = self.flights.front_mut().filter(|flight| flight.restored);
        let result = match (restored, result) {
            (Some(flight), Ok(())) => {
                flight.landed = true;
                Ok(())
            }
            // The pending state has what was to be restored, and can't go back.
            (Some(_), Err(error)) => return self.fence(error, after),
            (None, result) => result,
        };
        self.checkpoints.running = false;
        let told = match result {
            Ok(()) => {
                let surplus = self.wal.release(seq, self.checkpoints.position);
                if !surplus.is_empty() {
                    self.jobs.push_back(Job::Remove(self.files.clone(), surplus));
                }
                self.checkpoints.bytes = bytes;
                Ok(revision)
            }
            Err(error) => {
                self.checkpoints.not_before = self.wal.total + self.settings.checkpoint_bytes;
                Err(StoreError::Backend(Arc::new(error)))
            }
        };
        if !self.checkpoints.wanted {
            let waiting = std::mem::take(&mut self.checkpoints.waiting).into_iter();
            let tell = |to: tokio::sync::oneshot::Sender<_>| {
                let told = told.clone();
                Reply::Then(Box::new(move |_| drop(to.send(told))))
            };
            after.landed.push(waiting.map(tell).collect());
        }
    }

    /// The disk failed, and what it holds is not known: nothing is done any more, until the store is opened anew. What is
    /// published is still right.
    pub(crate) fn fence(&mut self, error: io::Error, after: &mut After) {
        let fault = StoreError::Fenced(Arc::new(error));
        self.fault = Some(fault.clone());
        self.flying = 0;
        self.jobs.clear();
        for flight in std::mem::take(&mut self.flights) {
            after.failed.push((flight.replies, fault.clone()));
        }
        let waiting = std::mem::take(&mut self.checkpoints.waiting).into_iter();
        let told = waiting.map(|to| {
            Reply::Then(Box::new(move |landed: Result<(), StoreError>| {
                drop(to.send(landed.map(|()| Revision::ZERO)));
            }))
        });
        after.failed.push((told.collect(), fault));
        self.published.closed.store(true, Ordering::Release);
        for (_, table) in self.published.load().tables.iter() {
            table.hub.wake_all(&mut after.wakers);
        }
    }
}
