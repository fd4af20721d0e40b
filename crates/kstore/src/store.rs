//! The trait that every engine implements.

use std::{fmt, ops::Deref, sync::Arc};

use async_trait::async_trait;

use crate::{
    Backup, BackupReader, CommitError, Committed, Leases, ReadError, RestoreError, Revision, Snapshot,
    StoreError, TableId, TableSpec, Txn, Watch, WatchRequest,
};

/// A store: tables of keys and values with one revision space, atomic commits, snapshots and watches.
///
/// It is held as `Arc<dyn Store>` and may be used from any number of tasks at once. What an engine promises, and what
/// `testing::conformance` checks:
///
/// - **Atomic.** A commit's comparisons and operations are one step, over all tables; of two commits that exclude each
///   other one gets [`CommitError::Conflict`].
/// - **Sequential.** Each commit that changes something takes the next revision.
/// - **Published whole.** A snapshot has everything up to its revision and nothing after. A commit is answered once a new
///   snapshot shows it, and so is a conflict, with what it conflicts with.
/// - **Watched whole.** From a snapshot's revision on a watch delivers each event exactly once, in order, the events of a
///   revision together; a slow watch holds nobody up and loses nothing before it gets
///   [`WatchError::Compacted`](crate::WatchError::Compacted).
/// - **Bounded.** History is dropped by its limits, live entries never.
///
/// `snapshot`, `snapshot_at` and `watch` don't wait: they work on what is published. What must be as new as the newest
/// commit anywhere, with several servers over one database, first awaits [`barrier`](Store::barrier).
///
/// # Cancel safety
/// A commit whose future is dropped may have been done or not.
#[async_trait]
pub trait Store: Leases + Send + Sync + fmt::Debug + 'static {
    /// Opens a table, making it if it isn't there. Idempotent by name: the specification of the first call holds.
    ///
    /// # Errors
    /// [`StoreError::BadTableName`], [`StoreError::TooManyTables`], [`StoreError::Closed`].
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError>;

    /// Does a transaction, or nothing at all; answers once it is published.
    ///
    /// # Errors
    /// [`CommitError::Conflict`]: read again, decide again. [`CommitError::UnknownOutcome`]: it may have been done; read the
    /// keys before trying again. All others: it has not been done, and the same will not succeed.
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError>;

    /// A revision that includes every commit answered anywhere before the call; it is published here when this returns.
    ///
    /// # Errors
    /// [`StoreError`], when it can't be had.
    async fn barrier(&self) -> Result<Revision, StoreError>;

    /// The newest published state. Takes no lock.
    fn snapshot(&self) -> Snapshot;

    /// Begins a watch.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when `request.after` is below the table's floor; at the floor exactly it is legal.
    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError>;

    /// Drops the history up to `floor`: reads and watches below it are refused from now on. Returns once the memory is free;
    /// commits go on meanwhile. A floor that is passed already is no error.
    ///
    /// # Errors
    /// [`StoreError::Future`] when the floor is not reached yet.
    async fn compact(&self, floor: Revision) -> Result<(), StoreError>;

    /// Fills an empty store with what a back-up holds: entries, revisions, leases with the time they had left. History begins
    /// at its revision. Tables keep their index when they have been opened before, and take that of the first opening
    /// otherwise. Either all of it is restored or nothing.
    ///
    /// # Errors
    /// [`RestoreError::NotEmpty`] when anything has been written before; the others when the back-up is damaged.
    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError>;

    /// A self-contained copy of the newest published state, as chunks of bytes to be written one after the other.
    ///
    /// # Errors
    /// [`StoreError`], when it can't be had.
    async fn backup(&self) -> Result<Backup, StoreError>;

    /// The state at an earlier revision: [`Snapshot::at`] of the newest one.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] below the floor, [`ReadError::Future`] after the published revision.
    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.snapshot().at(revision)
    }

    /// The tables by name, in the order in which they were opened.
    fn tables(&self) -> Vec<(String, TableId)> {
        self.snapshot().tables().map(|(name, id)| (name.to_owned(), id)).collect()
    }
}

/// The trait can be held as an object.
const _: Option<&dyn Store> = None;

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<S: Leases + ?Sized> Leases for $pointer<S> {
            async fn grant(
                &self,
                ttl: std::time::Duration,
                id: Option<crate::LeaseId>,
            ) -> Result<crate::LeaseId, crate::LeaseError> {
                self.deref().grant(ttl, id).await
            }
            async fn keep_alive(&self, id: crate::LeaseId) -> Result<std::time::Duration, crate::LeaseError> {
                self.deref().keep_alive(id).await
            }
            async fn revoke(&self, id: crate::LeaseId) -> Result<Revision, crate::LeaseError> {
                self.deref().revoke(id).await
            }
            async fn leases(
                &self,
                id: Option<crate::LeaseId>,
            ) -> Result<Vec<crate::LeaseInfo>, crate::LeaseError> {
                self.deref().leases(id).await
            }
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store + ?Sized> Store for $pointer<S> {
            fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
                self.deref().open_table(spec)
            }
            async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
                self.deref().commit(txn).await
            }
            async fn barrier(&self) -> Result<Revision, StoreError> {
                self.deref().barrier().await
            }
            fn snapshot(&self) -> Snapshot {
                self.deref().snapshot()
            }
            fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
                self.deref().watch(request)
            }
            async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
                self.deref().compact(floor).await
            }
            async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
                self.deref().restore(backup).await
            }
            async fn backup(&self) -> Result<Backup, StoreError> {
                self.deref().backup().await
            }
            fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
                self.deref().snapshot_at(revision)
            }
            fn tables(&self) -> Vec<(String, TableId)> {
                self.deref().tables()
            }
        }
    };
}

forward!(Arc);
forward!(Box);
