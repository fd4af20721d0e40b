//! What a database must offer.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    CommitError, Compare, LeaseError, LeaseId, Revision, StoreError, TableId, Txn,
    core::foreign::ForeignState,
};

/// A database that a [`Replica`](crate::Replica) follows.
///
/// It numbers its revisions itself, may have gaps in them, and may be written by others. Tables are names to it.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug + 'static {
    /// Everything there is, at one revision.
    ///
    /// # Errors
    /// When it can't be had.
    async fn load(&self) -> Result<RemoteLoad, RemoteError>;

    /// What happens after `after`, in order and without a gap, until the connection fails.
    ///
    /// # Errors
    /// [`RemoteError::Compacted`] when the database has forgotten what came next; others when it can't be reached.
    async fn changes(
        &self,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<RemoteChange, RemoteError>>, RemoteError>;

    /// Does a transaction, or nothing at all.
    ///
    /// # Errors
    /// As of [`Store::commit`](crate::Store::commit), but for conflicts.
    async fn commit(&self, txn: RemoteTxn<'_>) -> Result<RemoteOutcome, CommitError>;

    /// A revision that includes every commit that was answered anywhere before the call.
    ///
    /// # Errors
    /// When it can't be had.
    async fn barrier(&self) -> Result<Revision, RemoteError>;

    /// Lets the stream of changes say that it has reached `revision`, soon.
    ///
    /// # Errors
    /// When it can't be asked for.
    async fn ask_progress(&self, revision: Revision) -> Result<(), RemoteError>;

    /// Forgets what happened before `floor`; a floor that is passed already is no error.
    ///
    /// # Errors
    /// When it can't be done.
    async fn compact(&self, floor: Revision) -> Result<(), RemoteError>;

    /// As [`Leases::grant`](crate::Leases::grant). A database without leases leaves this and the following three as they are.
    ///
    /// # Errors
    /// The same; by default [`StoreError::Unsupported`].
    async fn grant(&self, _ttl: Duration, _id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        Err(StoreError::Unsupported { what: "a lease" }.into())
    }

    /// As [`Leases::keep_alive`](crate::Leases::keep_alive).
    ///
    /// # Errors
    /// The same.
    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        Err(LeaseError::NotFound(id))
    }

    /// As [`Leases::revoke`](crate::Leases::revoke).
    ///
    /// # Errors
    /// The same.
    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        Err(LeaseError::NotFound(id))
    }

    /// As [`Leases::leases`](crate::Leases::leases), with the names of tables.
    ///
    /// # Errors
    /// The same.
    async fn leases(&self, _id: Option<LeaseId>) -> Result<Vec<RemoteLease>, LeaseError> {
        Ok(Vec::new())
    }
}

/// Everything in a database, at one revision.
#[derive(Debug, Default)]
pub struct RemoteLoad {
    /// The revision.
    pub revision: Revision,
    /// What is there, in the order of tables and keys.
    pub entries: Vec<RemoteEntry>,
}

/// A key and what stands under it.
#[derive(Clone, Debug)]
pub struct RemoteEntry {
    /// The table's name.
    pub table: Arc<str>,
    /// The key in the table.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came to be.
    pub create: Revision,
    /// The revision of the last write.
    pub modified: Revision,
    /// How often it was written since it came to be.
    pub version: u64,
    /// The lease whose end deletes it.
    pub lease: Option<LeaseId>,
}

impl RemoteEntry {
    /// Whether a comparison holds where this, or nothing, stands under its key: for databases that compare in their own process.
    pub fn meets(this: Option<&RemoteEntry>, compare: &Compare) -> bool {
        let entry = this.cloned().map(|entry| {
            let RemoteEntry { key, value, create, modified, version, lease, .. } = entry;
            ForeignState { value, create, modified, version, lease, hint: None }.entry(key)
        });
        compare.holds(entry.as_ref())
    }
}

/// A piece of the stream of changes.
#[derive(Debug, Default)]
pub struct RemoteChange {
    /// Everything up to here has been told with this piece.
    pub revision: Revision,
    /// In the order of their revisions; the events of a revision are in one piece.
    pub events: Vec<(Revision, RemoteEvent)>,
}

/// What happened to a key.
#[derive(Clone, Debug)]
pub enum RemoteEvent {
    /// It was written.
    Put(RemoteEntry),
    /// It was deleted.
    Delete {
        /// The table's name.
        table: Arc<str>,
        /// The key in the table.
        key: Bytes,
    },
}

/// A transaction, and what its tables are called.
#[derive(Clone, Copy, Debug)]
pub struct RemoteTxn<'a> {
    /// The transaction.
    pub txn: &'a Txn,
    pub(crate) tables: &'a [Arc<str>],
}

impl RemoteTxn<'_> {
    /// What a table is called.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`].
    pub fn name(&self, table: TableId) -> Result<&Arc<str>, StoreError> {
        self.tables.get(table.index()).ok_or(StoreError::UnknownTable(table))
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteOutcome {
    /// It was done at this revision.
    Changed(Revision),
    /// All comparisons held, and there was nothing to do; the database was at this revision.
    Unchanged(Revision),
    /// A comparison did not hold at this revision, and nothing was done.
    Conflict(Revision),
}

/// What there is to know about a lease.
#[derive(Clone, Debug)]
pub struct RemoteLease {
    /// Its number.
    pub id: LeaseId,
    /// How long it lives after being granted or kept alive.
    pub ttl: Duration,
    /// How long it still lives.
    pub remaining: Duration,
    /// The keys that go with it, by table.
    pub keys: Vec<(Arc<str>, Bytes)>,
}

/// Why a database did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It has forgotten what was asked for.
    #[error("the database has compacted what was asked for")]
    Compacted,
    /// It can't be reached, or failed.
    #[error("the database can't be used")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl RemoteError {
    pub(crate) fn into_store(self) -> StoreError {
        match self {
            RemoteError::Failed(source) => StoreError::Backend(source),
            RemoteError::Compacted => StoreError::Backend(Arc::new(RemoteError::Compacted)),
        }
    }
}
