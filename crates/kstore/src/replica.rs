//! A [`Store`] made of a database elsewhere, behind the feature `replica`.
//!
//! The replica holds everything in memory, as the other engines do: reads, lists and watches work on it and ask nobody.
//! Commits go to the database, which decides; what it did comes back as a stream of changes, is published in the order of its
//! revisions, and only then is a commit answered.

mod feed;
mod remote;
mod sent;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use self::sent::Sent;
use crate::{
    Backup, BackupReader, CommitError, Committed, Event, EventKind, LeaseError, LeaseId, LeaseInfo, Leases,
    Op, Outcome, ReadError, RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn,
    Watch, WatchRequest, core::Core, sequencer::Sequencer,
};

pub use remote::{
    Remote, RemoteChange, RemoteEntry, RemoteError, RemoteEvent, RemoteLease, RemoteLoad, RemoteOutcome,
    RemoteTxn,
};

/// How long a commit or a barrier waits for what it did, or must see, to arrive here. After that the outcome of a commit is
/// unknown, and a barrier fails.
pub const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(30);

/// A replica of a database, as a store.
///
/// It keeps the promises of [`Store`] for as long as nothing but replicas writes where it reads. A database that can't be
/// reached makes commits and barriers fail; snapshots and watches go on with what is known, and once it can be reached again
/// watches get what they missed, in order, or [`WatchError::Compacted`](crate::WatchError::Compacted) if the database has
/// forgotten it.
///
/// Dropping the replica closes it as a store; what it wrote stays.
pub struct Replica<R: Remote> {
    shared: Arc<Shared<R>>,
    feed: JoinHandle<()>,
}

pub(crate) struct Shared<R> {
    remote: R,
    sequencer: Sequencer,
    /// The names of the tables, by number.
    names: RwLock<Vec<Arc<str>>>,
    /// What is on its way, so that what comes back shares its bytes.
    sent: Sent,
    /// What is published.
    arrived: watch::Sender<Revision>,
}

impl<R: Remote> Replica<R> {
    /// Loads what the database holds, and follows it from there on.
    ///
    /// # Errors
    /// When it can't be loaded.
    pub async fn new(remote: R) -> Result<Self, StoreError> {
        let load = remote.load().await.map_err(RemoteError::into_store)?;
        let sequencer = Sequencer::new(Core::new(u64::MAX), Instant::now());
        let (arrived, _) = watch::channel(Revision::ZERO);
        let shared = Shared { remote, sequencer, names: RwLock::default(), sent: Sent::default(), arrived };
        shared.reload(load)?;
        let shared = Arc::new(shared);
        let feed = tokio::spawn(feed::follow(Arc::downgrade(&shared)));
        Ok(Replica { shared, feed })
    }

    /// The database.
    pub fn remote(&self) -> &R {
        &self.shared.remote
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match self.shared.sequencer.published.closed.load(Ordering::Acquire) {
            true => Err(StoreError::Closed),
            false => Ok(()),
        }
    }

    /// Waits until `revision` is published here.
    async fn arrival(&self, revision: Revision) -> Result<(), StoreError> {
        let mut arrived = self.shared.arrived.subscribe();
        if *arrived.borrow_and_update() >= revision {
            return Ok(());
        }
        let waiting = arrived.wait_for(|arrived| *arrived >= revision);
        match tokio::time::timeout(ARRIVAL_TIME_MAX, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(elapsed) => Err(StoreError::Backend(Arc::new(elapsed))),
        }
    }

    /// Waits until `revision`, which may be of something that is not seen here, is published here.
    async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        if *self.shared.arrived.borrow() < revision {
            self.shared.remote.ask_progress(revision).await.map_err(RemoteError::into_store)?;
        }
        self.arrival(revision).await
    }

    /// Which comparison did not hold at `revision`, and what stood there.
    fn conflict(&self, txn: &Txn, revision: Revision) -> CommitError {
        let Ok(state) = self.snapshot().at(revision) else { return CommitError::UnknownOutcome };
        for (index, compare) in txn.compares.iter().enumerate() {
            let (table, key) = compare.target();
            let current = state.get(table, key);
            if !compare.holds(current.as_deref()) {
                return CommitError::Conflict { index, current, revision };
            }
        }
        CommitError::UnknownOutcome
    }

    /// What the operations did, read from what came back.
    fn committed(&self, txn: &Txn, revision: Revision) -> Result<Committed, CommitError> {
        let snapshot = self.snapshot();
        let mut events: Vec<(TableId, Vec<Event>)> = Vec::new();
        for op in &txn.ops {
            let table = op.table();
            if events.iter().all(|(known, _)| *known != table) {
                let since = snapshot.events(table, revision.previous());
                let mut since = since.map_err(|_| CommitError::UnknownOutcome)?;
                since.retain(|event| event.revision == revision);
                events.push((table, since));
            }
        }
        let of = |table: TableId| {
            let found = events.iter().find(|(known, _)| *known == table);
            found.map(|(_, events)| &events[..]).unwrap_or_default()
        };
        let outcome = |event: &Event| Outcome {
            entry: Some(event.entry.clone()),
            previous: event.previous.clone(),
            deleted: Vec::new(),
        };
        let outcomes = txn.ops.iter().map(|op| match op {
            Op::Put { table, key, .. } | Op::Delete { table, key } => {
                let event = of(*table).iter().find(|event| event.entry.key() == key);
                event.map(outcome).unwrap_or_default()
            }
            Op::DeleteRange { table, range } => {
                let gone = of(*table)
                    .iter()
                    .filter(|event| event.kind == EventKind::Delete && range.contains(event.entry.key()));
                let mut deleted: Vec<_> = gone.filter_map(|event| event.previous.clone()).collect();
                deleted.sort_by(|a, b| a.key().cmp(b.key()));
                Outcome { deleted, ..Outcome::default() }
            }
        });
        Ok(Committed { revision, outcomes: outcomes.collect() })
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.shared.names.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<R> Drop for Replica<R>
where
    R: Remote,
{
    fn drop(&mut self) {
        self.feed.abort();
        self.shared.sequencer.close();
    }
}

impl<R: Remote> fmt::Debug for Replica<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("remote", &self.shared.remote)
            .field("state", &self.snapshot())
            .finish()
    }
}

#[async_trait]
impl<R: Remote> Leases for Replica<R> {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.check_open()?;
        if ttl.is_zero() || ttl > crate::LEASE_TTL_MAX {
            return Err(LeaseError::BadTtl { ttl });
        }
        self.shared.remote.grant(ttl, id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.check_open()?;
        self.shared.remote.keep_alive(id).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.check_open()?;
        let revision = self.shared.remote.revoke(id).await?;
        self.reached(revision).await?;
        Ok(revision)
    }

    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.check_open()?;
        let names = self.names();
        let numbered = |(name, key): (Arc<str>, Bytes)| {
            let table = names.iter().position(|known| *known == name)?;
            Some((TableId(u32::try_from(table).ok()?), key))
        };
        let leases = self.shared.remote.leases(id).await?;
        Ok(leases
            .into_iter()
            .map(|lease| LeaseInfo {
                id: lease.id,
                ttl: lease.ttl,
                remaining: lease.remaining,
                keys: lease.keys.into_iter().filter_map(numbered).collect(),
            })
            .collect())
    }
}

#[async_trait]
impl<R: Remote> Store for Replica<R> {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.check_open()?;
        let id = self.shared.sequencer.with(|core, _| core.open_table(spec))?;
        self.shared.learn_names();
        Ok(id)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.check_open()?;
        self.shared.sequencer.look(|core, _| core.check_foreign(&txn))?;
        let names = self.names();
        let _sent = self.shared.sent.on_its_way(&txn);
        let outcome = self.shared.remote.commit(RemoteTxn { txn: &txn, tables: &names }).await?;
        match outcome {
            RemoteOutcome::Changed(revision) => {
                self.arrival(revision).await.map_err(|_| CommitError::UnknownOutcome)?;
                self.committed(&txn, revision)
            }
            RemoteOutcome::Unchanged(revision) => {
                self.reached(revision).await?;
                let outcomes = txn.ops.iter().map(|_| Outcome::default()).collect();
                Ok(Committed { revision, outcomes })
            }
            RemoteOutcome::Conflict(revision) => {
                self.reached(revision).await?;
                Err(self.conflict(&txn, revision))
            }
        }
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.check_open()?;
        let revision = self.shared.remote.barrier().await.map_err(RemoteError::into_store)?;
        self.reached(revision).await?;
        Ok(revision)
    }

    fn snapshot(&self) -> Snapshot {
        self.shared.sequencer.published.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        Watch::new(self.shared.sequencer.published.clone(), request)
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.check_open()?;
        let published = self.snapshot().revision();
        if floor > published {
            return Err(StoreError::Future { asked: floor, published });
        }
        self.shared.remote.compact(floor).await.map_err(RemoteError::into_store)?;
        self.shared.sequencer.with(|core, _| core.compact(floor))?;
        while self.shared.sequencer.with(|core, _| core.is_dirty()) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// The revisions of a back-up can't be given to a database that makes its own.
    async fn restore(&self, _: BackupReader) -> Result<Revision, RestoreError> {
        Err(StoreError::Unsupported {
            what: "restoring a back-up into a database that numbers revisions itself",
        }
        .into())
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        self.check_open()?;
        let leases = self.leases(None).await.map_err(|error| StoreError::Backend(Arc::new(error)))?;
        let last = leases.iter().map(|lease| lease.id.get()).max().unwrap_or_default();
        let leases = leases.iter().map(|lease| (lease.id, lease.ttl, lease.remaining)).collect();
        Ok(Backup::new(self.snapshot(), leases, last))
    }
}
