//! The engine that keeps everything in memory and on a disk.

pub(crate) mod checkpoint;
mod error;
pub(crate) mod files;
pub(crate) mod frame;
pub(crate) mod identity;
pub(crate) mod pipeline;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod state;
pub(crate) mod wal;

use std::{
    fmt,
    future::poll_fn,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::{
    Backup, BackupReader, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, MemoryStore,
    ReadError, RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch,
    WatchRequest, root::Published,
};
pub use error::OpenError;
use files::{BLOCK_BYTES, Directory, Files};
use pipeline::{Engine, WallClock};
use record::Record;
pub use recovery::RecoveryReport;
use state::{Queued, SMALL_RECORD_BYTES, Settings, State};
use wal::SegmentBytes;

/// A [`Store`] that outlives its process: the memory engine, a log that every commit is written to before it is answered, and
/// checkpoints from time to time. For everything that must not be lost and lives on one machine.
///
/// Reads are those of [`MemoryStore`](crate::MemoryStore): from memory, without a lock, without waiting. A commit waits for the
/// disk; many that come at the same time share one write, and several writes are in the air at once. What is shown to anyone
/// is durable, unless a [`Durability`](crate::Durability) or a [`SyncPolicy`] says otherwise.
///
/// Opening reads the newest checkpoint and the log behind it, and says in a [`RecoveryReport`] what it found. Watches from
/// before go on where they were if the log reaches back so far, and are told that they missed something otherwise. Index
/// functions are not kept: each table is to be opened with its own again.
///
/// If the disk fails, the store is *fenced*: what is in the air ends as [`CommitError::UnknownOutcome`], everything after as
/// [`StoreError::Fenced`]; watches end, reads go on. Nothing is tried again, since after a failed `fsync` nobody can say what
/// is on the disk; the store has to be opened anew. If the disk is full, commits get [`StoreError::DiskFull`], deletions go on
/// as long as they can, and nothing is lost.
///
/// Dropping the store waits until everything is durable.
///
/// ```
/// use kstore::{DiskStore, Store, TableSpec, Txn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = DiskStore::open(directory)?;
/// let pods = store.open_table(TableSpec::new("pods"))?;
/// let created = store.commit(Txn::create(pods, "default/a", "spec")).await?;
/// drop(store);
///
/// let store = DiskStore::open(directory)?;
/// assert_eq!(store.recovery().revision, created.revision);
/// let pods = store.open_table(TableSpec::new("pods"))?;
/// assert!(store.snapshot().get(pods, b"default/a").is_some());
/// # Ok(()) }
/// ```
pub struct DiskStore {
    engine: Arc<Engine>,
    /// Commits wait a turn for each other.
    together: bool,
    report: RecoveryReport,
}

/// When what was written is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before each commit is answered. Commits that come together share it.
    #[default]
    EveryCommit,
    /// At least so often. Commits are answered when the operating system has them: the end of the process loses nothing, that
    /// of the machine the commits of so much time.
    Interval(Duration),
    /// When the operating system sees fit, and with checkpoints. The end of the process loses nothing, that of the machine
    /// may lose everything since the last checkpoint.
    Never,
}

/// Sets what is not to be the default: what [`DiskStore::builder`] gives.
pub struct DiskStoreBuilder {
    directory: PathBuf,
    policy: SyncPolicy,
    bytes_max: u64,
    segments: SegmentBytes,
    checkpoint_bytes: u64,
    wall: WallClock,
}

impl DiskStoreBuilder {
    /// When commits are made durable. Default: [`SyncPolicy::EveryCommit`].
    #[must_use]
    pub fn sync(mut self, policy: SyncPolicy) -> DiskStoreBuilder {
        self.policy = policy;
        self
    }

    /// How many bytes the live keys and values may have. A commit that would pass it is refused with
    /// [`CommitError::QuotaExceeded`], unless it makes them fewer. Default: no limit.
    #[must_use]
    pub fn bytes_max(mut self, bytes_max: u64) -> DiskStoreBuilder {
        self.bytes_max = bytes_max;
        self
    }

    /// How large files of the log become, in bytes. They begin with 1 MiB, or this if it is less, and each is twice as
    /// large as the one before. A transaction that is larger gets a file of its own. Default: 64 MiB. At least 64 KiB.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> DiskStoreBuilder {
        let max = bytes.next_multiple_of(BLOCK_BYTES as u64).max(SEGMENT_BYTES_MIN);
        self.segments = SegmentBytes { min: max.min(SEGMENT_BYTES_FIRST), max };
        self
    }

    /// After how many bytes of log a checkpoint is made, in the background; not before the log is as long as the last
    /// checkpoint, so that the work stays in proportion. Opening reads so much at most. Default: 64 MiB.
    #[must_use]
    pub fn checkpoint_bytes(mut self, bytes: u64) -> DiskStoreBuilder {
        self.checkpoint_bytes = bytes;
        self
    }

    /// Where the time of day comes from, counted from 1970: it is what the ends of leases are written down in. Default: the
    /// system's clock.
    #[must_use]
    pub fn wall_clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> DiskStoreBuilder {
        self.wall = Arc::new(clock);
        self
    }

    /// Opens the store, and makes it if the directory is empty or not there.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing has changed then.
    pub fn open(self) -> Result<DiskStore, OpenError> {
        let io = |source| OpenError::Io { file: self.directory.clone(), source: Arc::new(source) };
        let files: Arc<dyn Files> = Arc::new(Directory::open(&self.directory).map_err(io)?);
        self.open_files(files, false)
    }

    /// Opens the store in any file system. `by_hand`: its I/O is left to whoever drives it.
    pub(crate) fn open_files(self, files: Arc<dyn Files>, by_hand: bool) -> Result<DiskStore, OpenError> {
        let recovered = recovery::recover(&files, self.bytes_max, self.segments, (self.wall)())?;
        let mut core = recovered.core;
        let published = Arc::new(Published::new(core.publish(Duration::ZERO)));
        let settings = Settings { policy: self.policy, checkpoint_bytes: self.checkpoint_bytes };
        let state =
            State::new(core, recovered.wal, files, published.clone(), settings, recovered.checkpoint_bytes);
        let engine = Engine::new(state, published, self.wall, by_hand, recovered.lock);
        engine.enter(|_, _, _| ());
        // Whoever drives the engine by hand decides himself when what is done.
        let together = self.policy != SyncPolicy::EveryCommit && !by_hand;
        Ok(DiskStore { engine, together, report: recovered.report })
    }
}

impl fmt::Debug for DiskStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStoreBuilder")
            .field("directory", &self.directory)
            .field("sync", &self.policy)
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

/// The first file of a log, unless it is to be smaller.
const SEGMENT_BYTES_FIRST: u64 = 1024 * 1024;
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;

impl DiskStore {
    /// Opens the store in a directory with the defaults of [`DiskStoreBuilder`], and makes it if there is none. It does I/O
    /// and doesn't wait for anything else, so it may be called with or without a runtime.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another store has the directory open, [`OpenError::Corrupt`] when something that was
    /// acknowledged is damaged, the others as they say.
    pub fn open(directory: impl AsRef<Path>) -> Result<DiskStore, OpenError> {
        DiskStore::builder(directory).open()
    }

    /// Sets what is not to be the default.
    pub fn builder(directory: impl AsRef<Path>) -> DiskStoreBuilder {
        DiskStoreBuilder {
            directory: directory.as_ref().to_owned(),
            policy: SyncPolicy::default(),
            bytes_max: u64::MAX,
            segments: SegmentBytes { min: SEGMENT_BYTES_FIRST, max: SEGMENT_BYTES },
            checkpoint_bytes: CHECKPOINT_BYTES,
            wall: Arc::new(system_clock),
        }
    }

    /// What opening the store found and did.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    /// Makes a checkpoint now; its revision. It happens by itself; this is for those who want the next opening to be quick.
    ///
    /// # Errors
    /// [`StoreError::Backend`] when it could not be written. The store is as it was, and goes on.
    pub async fn checkpoint(&self) -> Result<Revision, StoreError> {
        let (to, from) = oneshot::channel();
        self.engine.enter(|state, _, _| state.checkpoint(to));
        from.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Ends the store: everything that was acknowledged, however loosely, is on the disk, and another may open the directory
    /// when it returns. Commits are refused from the first moment on, with [`StoreError::Closed`]; those that wait are done
    /// first. Watches deliver what there is and end; reads go on, on the last state. What is dropped without it does the
    /// same, but holds the thread meanwhile.
    ///
    /// ```
    /// use kstore::{DiskStore, Store, TableSpec, Txn};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let directory = directory.path();
    /// let store = DiskStore::open(directory)?;
    /// let pods = store.open_table(TableSpec::new("pods"))?;
    /// store.commit(Txn::create(pods, "default/a", "spec")).await?;
    /// store.close().await?;
    /// let next = DiskStore::open(directory)?;
    /// assert!(next.recovery().clean);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the disk has failed, now or before: then nobody knows what is on it. The directory is free
    /// all the same.
    ///
    /// # Cancel safety
    /// It goes on when the future is dropped. It may be called again, and then waits for the first.
    pub async fn close(&self) -> Result<(), StoreError> {
        let engine = self.engine.clone();
        let close = move || {
            engine.close();
            engine.fault()
        };
        let fault = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(close).await.unwrap_or(Some(StoreError::Closed)),
            Err(_) => close(),
        };
        fault.map_or(Ok(()), Err)
    }

    /// A store in memory with the same state and history, for a future of its own: neither sees what happens to the other, and
    /// nothing of it is ever written. Everything that was committed before is in it. Costs by the number of tables and leases,
    /// not by what is in them; tables keep their ids.
    ///
    /// ```
    /// use kstore::{DiskStore, Store, TableSpec, Txn};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// let store = DiskStore::open(directory.path())?;
    /// let pods = store.open_table(TableSpec::new("pods"))?;
    /// store.commit(Txn::create(pods, "a", "1")).await?;
    /// let what_if = store.fork().await?;
    /// what_if.commit(Txn::create(pods, "b", "2")).await?;
    /// assert_eq!((store.snapshot().len(pods), what_if.snapshot().len(pods)), (1, 2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError`] when the store is closed or its disk has failed.
    pub async fn fork(&self) -> Result<MemoryStore, StoreError> {
        // Of the pending state, and given away when that is published: nothing is shown that a crash can take back.
        let fork = |state: &mut State, _| Ok::<_, StoreError>(state.core.fork());
        let core = self.engine.act(0, false, fork).await?;
        Ok(MemoryStore::of_fork(core, self.engine.start()))
    }

    /// Checks everything in memory that is meant to agree; see [`Snapshot::verify`].
    ///
    /// # Errors
    /// What is wrong.
    pub fn verify(&self) -> Result<(), crate::VerifyError> {
        self.snapshot().verify()
    }

    /// How many bytes of keys and values are kept for the past only.
    pub fn history_bytes(&self) -> usize {
        self.engine.enter(|state, _, _| state.core.history_bytes())
    }
}

/// For simulations.
#[cfg(any(test, feature = "testing"))]
impl DiskStore {
    /// Everything that was done, durable or not.
    pub(crate) fn pending(&self) -> Snapshot {
        self.engine.enter(|state, moment, _| Snapshot::new(Arc::new(state.core.publish(moment.now))))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

#[allow(clippy::disallowed_methods, reason = "only the time of day means anything to the next process")]
fn system_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Waits until everything that is ready in this task has had its turn.
async fn turn_of_others() {
    let mut waited = false;
    poll_fn(|context| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.engine.close();
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiskStore").field(&self.snapshot()).finish()
    }
}

#[async_trait]
impl Leases for DiskStore {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        let grant = move |state: &mut State, moment: state::Moment| {
            let id = state.core.leases.grant(ttl, id, moment.now)?;
            state.record_lease(id, ttl, moment.wall);
            Ok(id)
        };
        self.engine.act(SMALL_RECORD_BYTES, false, grant).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        let keep = move |state: &mut State, moment: state::Moment| {
            // What is due has ended, even if nobody has got around to it: it can't be brought back.
            if state.core.leases.is_due(id, moment.now) {
                return Err(LeaseError::NotFound(id));
            }
            let ttl = state.core.leases.keep_alive(id, moment.now)?;
            state.record_lease(id, ttl, moment.wall);
            Ok(ttl)
        };
        self.engine.act(SMALL_RECORD_BYTES, false, keep).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        let revoke = move |state: &mut State, moment: state::Moment| {
            state.end_lease(id, moment.now).ok_or(LeaseError::NotFound(id))
        };
        self.engine.act(SMALL_RECORD_BYTES, false, revoke).await
    }

    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        let look =
            move |state: &mut State, moment: state::Moment| Ok(state.core.leases.infos(id, moment.now));
        self.engine.act(0, false, look).await
    }
}

#[async_trait]
impl Store for DiskStore {
    /// An index function that panics leaves the table as it was.
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.engine.enter(|state, _, _| state.open_table(spec))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.engine.check()?;
        let (to, from) = oneshot::channel();
        // What need not be synced is written at once by whoever is first; so that it isn't alone in its frame, whoever is about
        // to commit too comes before it.
        let in_company = txn.in_company || self.together;
        let submitted = self.engine.submit_later(Queued::Commit(txn, to));
        if in_company {
            turn_of_others().await;
        }
        drop(submitted);
        match from.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(CommitError::UnknownOutcome),
        }
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.engine.check()?;
        // A commit is answered after it is published, so what is published includes every answered commit.
        Ok(self.engine.published.load().revision)
    }

    fn snapshot(&self) -> Snapshot {
        self.engine.published.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        self.engine.check()?;
        Watch::new(self.engine.published.clone(), request)
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        let published = self.engine.published.load().revision;
        let compact = move |state: &mut State, _| {
            if floor > published {
                return Err(StoreError::Future { asked: floor, published });
            }
            state.core.compact(floor)?;
            state.record(&Record::Floor { floor });
            Ok(())
        };
        self.engine.act(SMALL_RECORD_BYTES, false, compact).await?;
        // Each round publishes a slice; others commit in between.
        while self.engine.act(0, false, |state, _| Ok::<_, StoreError>(state.core.is_dirty())).await? {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        let image = backup.image().await?;
        self.engine.act(0, true, move |state, moment| state.restore(image, moment)).await
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        let (to, from) = oneshot::channel();
        let back_up = move |state: &mut State, _| {
            state.back_up(to);
            Ok::<_, StoreError>(())
        };
        self.engine.act(0, false, back_up).await?;
        from.await.unwrap_or(Err(StoreError::Closed))
    }
}
