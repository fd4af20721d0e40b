//! The engine that keeps everything in memory, and nothing else.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle, time::Instant};

use crate::{
    Backup, BackupReader, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, ReadError,
    RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch, WatchRequest,
    core::Core, sequencer::Sequencer,
};

/// The lease keeper looks at the time at least so often, so that no sleep is longer than a timer can be.
const KEEPER_SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// A [`Store`] in memory: the default engine, and the one for tests and for clusters that need not outlive their process.
///
/// A commit costs a few microseconds and doesn't wait. It needs no runtime, except for leases to end by themselves: that is
/// done by a task that the first grant starts on the runtime it is called in, and that ends with the store. Without a
/// runtime, a lease that is due ends with the next commit.
///
/// Dropping the store closes it: watches deliver what there is and end. Snapshots stay.
///
/// ```
/// use kstore::{MemoryStore, Store, TableSpec, Txn, WatchRequest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let pods = store.open_table(TableSpec::new("pods"))?;
/// let snapshot = store.snapshot();
/// let mut watch = store.watch(WatchRequest::new(pods, snapshot.revision()))?;
/// let first = store.commit(Txn::create(pods, "default/a", "spec")).await?;
/// assert!(store.commit(Txn::create(pods, "default/a", "spec")).await.is_err());
/// assert_eq!(watch.next().await?.events[0].revision, first.revision);
/// # Ok(()) }
/// ```
pub struct MemoryStore {
    sequencer: Arc<Sequencer>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Told when the next deadline may have come nearer.
    leases_changed: Arc<Notify>,
}

/// How a [`MemoryStore`] is made.
///
/// | setting | default |
/// |---|---|
/// | `bytes_max` | no quota |
#[derive(Clone, Debug)]
pub struct MemoryStoreBuilder {
    bytes_max: u64,
}

impl MemoryStoreBuilder {
    /// How many bytes the live keys and values may have. A commit that would pass it is refused, unless it makes them fewer.
    #[must_use]
    pub fn bytes_max(mut self, bytes_max: u64) -> MemoryStoreBuilder {
        self.bytes_max = bytes_max;
        self
    }

    /// Makes the store. Nothing can fail.
    pub fn build(self) -> MemoryStore {
        MemoryStore::with_core(Core::new(self.bytes_max), Instant::now())
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl MemoryStore {
    /// An empty store with the defaults of [`MemoryStoreBuilder`].
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Sets what is not to be the default.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder { bytes_max: u64::MAX }
    }

    fn with_core(core: Core, start: Instant) -> MemoryStore {
        let sequencer = Arc::new(Sequencer::new(core, start));
        MemoryStore { sequencer, keeper: Mutex::default(), leases_changed: Arc::default() }
    }

    /// A second store with the same state and history, for a future of its own: neither sees what happens to the other.
    /// Costs by the number of tables and leases, not by what is in them. Tables keep their ids. Watches stay with the
    /// store they were had from.
    ///
    /// ```
    /// # use kstore::{MemoryStore, Store, TableSpec, Txn};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let table = store.open_table(TableSpec::new("pods"))?;
    /// store.commit(Txn::create(table, "a", "1")).await?;
    /// let what_if = store.fork();
    /// what_if.commit(Txn::create(table, "b", "2")).await?;
    /// assert!(store.snapshot().get(table, b"b").is_none());
    /// assert_eq!(store.snapshot().diff(&what_if.snapshot()).len(), 1);
    /// # Ok(()) }
    /// ```
    pub fn fork(&self) -> MemoryStore {
        MemoryStore::of_fork(self.sequencer.look(|core, _| core.fork()), self.sequencer.start())
    }

    /// A store that goes on from a core that was forked; its times are counted from `start`.
    pub(crate) fn of_fork(core: Core, start: Instant) -> MemoryStore {
        let leases = !core.leases.is_empty();
        let fork = MemoryStore::with_core(core, start);
        if leases {
            fork.keep_leases();
        }
        fork
    }

    /// Checks everything that is meant to agree; see [`Snapshot::verify`].
    ///
    /// # Errors
    /// What is wrong.
    pub fn verify(&self) -> Result<(), crate::VerifyError> {
        self.snapshot().verify()
    }

    /// How many bytes of keys and values are kept for the past only.
    pub fn history_bytes(&self) -> usize {
        self.sequencer.look(|core, _| core.history_bytes())
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match self.sequencer.published.closed.load(Ordering::Acquire) {
            true => Err(StoreError::Closed),
            false => Ok(()),
        }
    }

    /// Starts the task that ends leases, unless it runs already.
    fn keep_leases(&self) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            let task = keep_leases(Arc::downgrade(&self.sequencer), self.leases_changed.clone());
            *keeper = Some(runtime.spawn(task));
        }
        self.leases_changed.notify_one();
    }
}

/// Ends leases in time, until the store is gone.
async fn keep_leases(sequencer: Weak<Sequencer>, changed: Arc<Notify>) {
    loop {
        let sleep = {
            let Some(sequencer) = sequencer.upgrade() else { return };
            sequencer.with(|core, now| {
                core.advance(now);
                core.leases.next_deadline().map(|deadline| deadline.saturating_sub(now))
            })
        };
        match sleep {
            // There were more than one step ends.
            Some(Duration::ZERO) => tokio::task::yield_now().await,
            Some(sleep) => {
                tokio::select! {
                    () = tokio::time::sleep(sleep.min(KEEPER_SLEEP_MAX)) => {}
                    () = changed.notified() => {}
                }
            }
            None => changed.notified().await,
        }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
        self.sequencer.close();
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryStore").field(&self.snapshot()).finish()
    }
}

#[async_trait]
impl Leases for MemoryStore {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.check_open()?;
        let id = self.sequencer.with(|core, now| {
            core.advance(now);
            core.leases.grant(ttl, id, now)
        })?;
        self.keep_leases();
        Ok(id)
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.check_open()?;
        // What is due has ended, even if nobody has got around to it: it can't be brought back.
        let ttl = self.sequencer.with(|core, now| {
            core.advance(now);
            core.leases.keep_alive(id, now)
        })?;
        self.keep_leases();
        Ok(ttl)
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.check_open()?;
        self.sequencer.with(|core, now| core.end_lease(id, now)).ok_or(LeaseError::NotFound(id))
    }

    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.check_open()?;
        Ok(self.sequencer.look(|core, now| core.leases.infos(id, now)))
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.check_open()?;
        self.sequencer.with(|core, _| core.open_table(spec))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.sequencer.commit(txn).await
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.check_open()?;
        // A commit is answered after it is published, so what is published includes every answered commit.
        Ok(self.sequencer.published.load().revision)
    }

    fn snapshot(&self) -> Snapshot {
        self.sequencer.published.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        Watch::new(self.sequencer.published.clone(), request)
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.check_open()?;
        self.sequencer.with(|core, _| core.compact(floor))?;
        // Each round publishes a slice; others commit in between.
        while self.sequencer.with(|core, _| core.is_dirty()) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        let image = backup.image().await?;
        let revision = self.sequencer.load(image)?;
        self.keep_leases();
        Ok(revision)
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        self.check_open()?;
        // Leases and entries are of one moment, since nothing is published while the core is looked at.
        Ok(self.sequencer.look(|core, now| {
            Backup::new(self.sequencer.published.snapshot(), core.leases.times(now), core.leases.last())
        }))
    }
}
