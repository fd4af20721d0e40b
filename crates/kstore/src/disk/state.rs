//! What the disk engine decides, without doing any of it: which commits make a frame, when it is written, what is published when
//! it has landed. No I/O, no threads, no clock.
//!
//! There are two heads. Transactions are decided on against the *pending* state, in which everything is done already;
//! readers see what is *published*, which is what has landed. A frame and the state after it are one *flight*; several are
//! in the air, and they are published in their order. Answers wait for their flight, conflicts too: they tell of the pending
//! state.

mod admission;
mod flight;

use std::{
    any::Any,
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    Backup, CommitError, Committed, Durability, LeaseId, RestoreError, Revision, StoreError, TableId,
    TableSpec, Txn,
    backup::Image,
    core::{Core, reindexed},
    disk::{
        SyncPolicy,
        checkpoint::CheckpointJob,
        files::Files,
        frame::{Buffer, CLOSED},
        record::{self, Record},
        wal::{PrepareJob, Wal, WriteJob},
    },
    root::{Published, Root},
};
pub(crate) use flight::Ended;
use flight::{Flight, WriteTime};

/// What any record but a transaction takes at most.
pub(crate) const SMALL_RECORD_BYTES: usize = 8 * 1024;

pub(crate) type Answer = Result<Result<Committed, CommitError>, Box<dyn Any + Send>>;

/// The time, counted from the opening of the store, and counted from 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Duration,
    pub(crate) wall: Duration,
}

/// What someone wants done. It is done when there is room in the log for it, and refused when there can't be.
pub(crate) enum Queued {
    Commit(Txn, oneshot::Sender<Answer>),
    Act(Box<Act>),
}

pub(crate) struct Act {
    /// What it may write to the log, in bytes.
    pub(crate) bytes: usize,
    /// Whether nothing else may be under way.
    pub(crate) alone: bool,
    pub(crate) act: ActFn,
}

pub(crate) type ActFn = Box<dyn FnOnce(Result<&mut State, StoreError>, Moment) -> Reply + Send>;

/// Who is told when what was done is published, or can't be.
pub(crate) enum Reply {
    Commit(oneshot::Sender<Answer>, Answer),
    Then(Box<dyn FnOnce(Result<(), StoreError>) + Send>),
}

impl Reply {
    fn send(self, landed: Result<(), StoreError>) {
        match (self, landed) {
            // Whoever has gone doesn't want to know.
            (Reply::Commit(to, answer), Ok(())) => drop(to.send(answer)),
            // Nobody can say how much of it got to the disk.
            (Reply::Commit(to, Ok(Ok(_))), Err(_)) => drop(to.send(Ok(Err(CommitError::UnknownOutcome)))),
            // It was not done; why tells of what may be lost.
            (Reply::Commit(to, _), Err(error)) => drop(to.send(Ok(Err(error.into())))),
            (Reply::Then(then), landed) => then(landed),
        }
    }
}

/// What is to be done outside.
pub(crate) enum Job {
    Write(WriteJob),
    Prepare(PrepareJob),
    Checkpoint(Box<CheckpointJob>),
    Remove(Arc<dyn Files>, Vec<String>),
}

/// What is left to do once the state is not locked any more: waking runs foreign code, and an old root may take much with it.
#[derive(Default)]
pub(crate) struct After {
    landed: Vec<Vec<Reply>>,
    failed: Vec<(Vec<Reply>, StoreError)>,
    wakers: Vec<Waker>,
    roots: Vec<Arc<Root>>,
}

impl After {
    pub(crate) fn run(self) {
        for reply in self.landed.into_iter().flatten() {
            reply.send(Ok(()));
        }
        for (replies, error) in self.failed {
            replies.into_iter().for_each(|reply| reply.send(Err(error.clone())));
        }
        self.wakers.into_iter().for_each(Waker::wake);
        drop(self.roots);
    }
}

/// What waits for the next flight.
#[derive(Default)]
struct Batch {
    replies: Vec<Reply>,
    backups: Vec<oneshot::Sender<Result<Backup, StoreError>>>,
    /// There is something to show, even if nobody waits for it.
    show: bool,
    /// It can't be shown before it is written, and before it is durable.
    write: bool,
    sync: bool,
}

#[derive(Default)]
struct Checkpoints {
    wanted: bool,
    running: bool,
    /// Where in the log the one that is running is.
    position: u64,
    /// How large the last one was.
    bytes: u64,
    /// The last attempt failed; not again before the log has got so far.
    not_before: u64,
    waiting: Vec<oneshot::Sender<Result<Revision, StoreError>>>,
}

/// What can be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) policy: SyncPolicy,
    pub(crate) checkpoint_bytes: u64,
}

pub(crate) struct State {
    pub(crate) core: Core,
    wal: Wal,
    files: Arc<dyn Files>,
    published: Arc<Published>,
    settings: Settings,
    waiting: VecDeque<Queued>,
    buffer: Buffer,
    spare_buffers: Vec<Buffer>,
    batch: Batch,
    /// In order.
    flights: VecDeque<Flight>,
    /// How many of them have a frame that has not landed.
    flying: usize,
    write_time: WriteTime,
    pub(crate) jobs: VecDeque<Job>,
    /// Whoever does jobs, and how many of them do one now.
    pub(crate) workers: usize,
    pub(crate) running: usize,
    /// What the keeper was told last.
    pub(crate) kept_for: Option<Duration>,
    /// All frames up to this one are durable.
    durable: u64,
    /// The last frame when the store was opened.
    opened_seq: u64,
    /// No revision above it may be shown without being durable; and what the frames in the air reserve.
    reserved: Revision,
    reserving: Revision,
    /// The revision before the next frame.
    first: Revision,
    /// Whether anything is ever shown before it is durable.
    loose: bool,
    /// When what is not durable has to be.
    flush_at: Option<Duration>,
    checkpoints: Checkpoints,
    /// There was no room when it was asked for last.
    no_room: Option<StoreError>,
    /// The file that makes a restored state durable is being written; nothing else is done meanwhile.
    restoring: bool,
    restored: Option<Box<CheckpointJob>>,
    fault: Option<StoreError>,
}

impl State {
    pub(crate) fn new(
        core: Core,
        wal: Wal,
        files: Arc<dyn Files>,
        published: Arc<Published>,
        settings: Settings,
        checkpoint_bytes: u64,
    ) -> State {
        let revision = core.revision;
        let loose = settings.policy != SyncPolicy::EveryCommit
            || core.durabilities().any(|durability| durability != Durability::Sync);
        State {
            durable: wal.seq,
            opened_seq: wal.seq,
            core,
            wal,
            files,
            published,
            settings,
            waiting: VecDeque::new(),
            buffer: Buffer::new(),
            spare_buffers: Vec::new(),
            batch: Batch::default(),
            flights: VecDeque::new(),
            flying: 0,
            write_time: WriteTime::default(),
            jobs: VecDeque::new(),
            workers: 0,
            running: 0,
            kept_for: None,
            reserved: revision,
            reserving: revision,
            first: revision,
            loose,
            flush_at: None,
            checkpoints: Checkpoints { bytes: checkpoint_bytes, ..Checkpoints::default() },
            no_room: None,
            restoring: false,
            restored: None,
            fault: None,
        }
    }

    /// Why nothing can be committed any more.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match (&self.fault, self.published.closed.load(Ordering::Acquire)) {
            (Some(fault), _) => Err(fault.clone()),
            (None, true) => Err(StoreError::Closed),
            (None, false) => Ok(()),
        }
    }

    /// What is wrong with the disk.
    pub(crate) fn fault(&self) -> Option<StoreError> {
        self.fault.clone()
    }

    pub(crate) fn take_in(&mut self, queued: impl IntoIterator<Item = Queued>) {
        self.waiting.extend(queued);
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.fault.is_some()
            || (self.flights.is_empty()
                && self.jobs.is_empty()
                && self.waiting.is_empty()
                && self.batch.replies.is_empty()
                && !self.checkpoints.running
                && !self.wal.preparing)
    }

    /// Whether work in the background is waited for: room in the log, a checkpoint, the end.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
            || !self.checkpoints.waiting.is_empty()
            || self.restoring
            || self.published.closed.load(Ordering::Acquire)
    }

    /// When something has to be done even if nobody asks.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let times = [self.core.leases.next_deadline(), self.flush_at];
        times.into_iter().flatten().min().filter(|_| self.fault.is_none())
    }

    /// Takes in what waits, starts what can be started, publishes what has landed.
    pub(crate) fn settle(&mut self, moment: Moment, after: &mut After) {
        loop {
            self.publish(after);
            if self.fault.is_some() {
                return self.refuse_waiting(moment, after);
            }
            self.end_leases(moment.now);
            if self.flush_at.is_some_and(|at| at <= moment.now) {
                (self.batch.write, self.batch.sync) = (true, true);
            }
            self.drain(moment);
            if !self.cut(moment, 0) {
                return;
            }
        }
    }

    /// Everything that was done becomes durable, and then a frame says that nothing is missing after it. To be called again
    /// until there is nothing under way.
    pub(crate) fn close(&mut self, moment: Moment, after: &mut After) {
        self.settle(moment, after);
        let changed = self.wal.seq > self.opened_seq || !self.buffer.is_empty();
        if self.fault.is_none() && self.is_idle() && changed {
            // If there is no room for it, the next opening only knows less.
            self.cut(moment, CLOSED);
            self.opened_seq = self.wal.seq;
        }
    }

    pub(crate) fn open_table(&mut self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.check()?;
        let (name, durability) = (spec.name.clone(), spec.durability);
        let before = self.core.find_table(&name);
        if let Some((id, true)) = before {
            return Ok(id);
        }
        let known = before.map(|(id, _)| self.core.durability(id));
        let index = spec.index.clone().filter(|_| known.is_some());
        let (id, table) = self.core.open_shown(spec)?;
        if known != Some(durability) {
            record::put(self.buffer.end(), &Record::Table { id, durability, name });
            self.buffer.keep();
        }
        self.loose |= durability != Durability::Sync;
        // It is shown at once, in what is in the air too.
        let mut root = Root::clone(&self.published.load());
        let pending = self.core.revision > root.revision;
        let roots = self.flights.iter_mut().map(|flight| &mut flight.root).chain([&mut root]);
        for root in roots {
            let shown = match (root.tables.get(id), &index) {
                // A lease that ends may be changing it, although nobody has had it open: each state stays what it is.
                (Some(old), Some(index)) if pending => Arc::new(reindexed(old, &**index)?),
                (None, _) | (_, Some(_)) => table.clone(),
                (Some(_), None) => continue,
            };
            root.tables.set(id, shown);
        }
        self.published.swap(root);
        self.batch.show = true;
        Ok(id)
    }

    /// Writes something down that is not a transaction, and that has just been done.
    pub(crate) fn record(&mut self, record: &Record) {
        record::put(self.buffer.end(), record);
        self.buffer.keep();
        self.batch.write = true;
        self.batch.sync |= self.settings.policy == SyncPolicy::EveryCommit;
        self.cover_revision();
    }

    /// Writes down that a lease is as it is now.
    pub(crate) fn record_lease(&mut self, id: LeaseId, ttl: Duration, wall: Duration) {
        let last = self.core.leases.last();
        self.record(&Record::Lease { id, ttl, ends: wall.saturating_add(ttl), last });
    }

    /// Ends a lease and writes it down. None if there is no such lease.
    pub(crate) fn end_lease(&mut self, id: LeaseId, now: Duration) -> Option<Revision> {
        let revision = self.core.end_lease(id, now)?;
        self.record(&Record::LeaseEnd { id, revision });
        Some(revision)
    }

    /// A copy of what is published when everything done so far is.
    pub(crate) fn back_up(&mut self, to: oneshot::Sender<Result<Backup, StoreError>>) {
        self.batch.backups.push(to);
    }

    /// Asks for a checkpoint.
    pub(crate) fn checkpoint(&mut self, to: oneshot::Sender<Result<Revision, StoreError>>) {
        match self.check() {
            Ok(()) => {
                self.checkpoints.wanted = true;
                self.checkpoints.waiting.push(to);
            }
            Err(error) => drop(to.send(Err(error))),
        }
    }

    /// Fills the empty store; to be done alone. It is published once a checkpoint of it is durable.
    pub(crate) fn restore(&mut self, image: Image, moment: Moment) -> Result<Revision, RestoreError> {
        self.core.load(image, moment.now)?;
        let revision = self.core.revision;
        (self.reserved, self.reserving, self.first) = (revision, revision, revision);
        self.restoring = true;
        // What is restored is in no frame. The checkpoint takes the number of one, so that the log doesn't reach behind it: if the
        // checkpoint is damaged, its frame is missing, and the store isn't opened as if nothing had been restored.
        self.wal.seq += 1;
        let root = self.core.publish(moment.now);
        self.restored = Some(Box::new(self.capture(root, moment)));
        Ok(revision)
    }
}
