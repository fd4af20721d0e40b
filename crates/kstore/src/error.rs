//! What can go wrong, one type per way of asking.

use std::sync::Arc;

use crate::{Entry, LeaseId, Revision, TableId};

/// The store itself cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was shut down, or fenced itself after a fault; it must be opened anew.
    #[error("the store is closed")]
    Closed,
    /// There is no such table in this store.
    #[error("there is no table {}", .0.index())]
    UnknownTable(TableId),
    /// The name of a table is empty or longer than [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX).
    #[error("{name:?} cannot be the name of a table")]
    BadTableName {
        /// The name.
        name: String,
    },
    /// There are [`TABLES_MAX`](crate::TABLES_MAX) tables already.
    #[error("the store holds no more than {max} tables")]
    TooManyTables {
        /// The limit.
        max: usize,
    },
    /// An index function gave an entry more than [`TERMS_MAX`](crate::TERMS_MAX) terms.
    #[error("an entry has {count} terms, at most {max} are allowed")]
    TooManyTerms {
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The revision has not been reached.
    #[error("revision {asked} is not there yet, the store is at {published}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// Where the store is.
        published: Revision,
    },
    /// This engine can't do it.
    #[error("{what} is not supported by this engine")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The disk has no room for what is to be logged. Nothing is lost and reads go on; once there is room, so do commits.
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed in a way after which nobody can say what it holds. Reads go on; the store must be opened anew.
    #[error("the disk failed, the store must be opened anew")]
    Fenced(#[source] Arc<std::io::Error>),
    /// What lies under the store failed: a disk, a connection. It may be tried again.
    #[error("the store's backend failed")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// Why a commit was not done, or is not known to have been done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// A comparison failed and nothing was done. Read again, decide again.
    #[error("comparison {index} does not hold at revision {revision}")]
    Conflict {
        /// Which comparison, counted from 0: the first that failed.
        index: usize,
        /// What stands under its key.
        current: Option<Arc<Entry>>,
        /// The published revision at which that is so.
        revision: Revision,
    },
    /// It may have been done or not: the answer was lost. Read the keys before trying again.
    #[error("the outcome of the commit is not known")]
    UnknownOutcome,
    /// The store is full: what is live may not grow. Deletions are still done.
    #[error("the commit would take the store to {bytes} bytes, {bytes_max} are allowed")]
    QuotaExceeded {
        /// What the commit would lead to.
        bytes: u64,
        /// The quota.
        bytes_max: u64,
    },
    /// A key, a value or the whole transaction is larger than allowed.
    #[error("{what} is too large: {size}, at most {max} are allowed")]
    TooLarge {
        /// What is too large, and its unit.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// A key is empty.
    #[error("operation {index} has an empty key")]
    EmptyKey {
        /// Which operation, counted from 0.
        index: usize,
    },
    /// Two operations touch the same key.
    #[error("operation {index} touches a key that an earlier operation touches")]
    RepeatedKey {
        /// The later of the two, counted from 0.
        index: usize,
    },
    /// A put names a lease that is not there (any more).
    #[error("there is no lease {0}")]
    UnknownLease(LeaseId),
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a snapshot or a watch cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The past that was asked for is gone. Begin anew from a snapshot.
    #[error("revision {asked} has been compacted, history begins at {floor}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The earliest revision that can be asked for.
        floor: Revision,
    },
    /// The revision has not been reached.
    #[error("revision {asked} is not there yet, the store is at {published}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// Where the store is.
        published: Revision,
    },
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Events that this watch had not read are gone. Begin anew from a snapshot.
    #[error("the watch fell behind, history begins at {floor}")]
    Compacted {
        /// The earliest revision from which a watch can be had.
        floor: Revision,
    },
    /// The store is closed, and every event has been delivered.
    #[error("the store is closed")]
    Closed,
}

/// Why a lease could not be had or changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// There is no such lease: never, or it ended.
    #[error("there is no lease {0}")]
    NotFound(LeaseId),
    /// The number is taken.
    #[error("lease {0} is there already")]
    Exists(LeaseId),
    /// The time to live is zero or longer than [`LEASE_TTL_MAX`](crate::LEASE_TTL_MAX).
    #[error("a lease cannot live for {ttl:?}")]
    BadTtl {
        /// What was asked for.
        ttl: std::time::Duration,
    },
    /// There are [`LEASES_MAX`](crate::LEASES_MAX) leases already.
    #[error("the store holds no more than {max} leases")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a back-up was refused. Nothing was restored.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Something has been written to the store already; only a fresh one can be restored into.
    #[error("the store is not empty, it is at revision {revision}")]
    NotEmpty {
        /// Where the store is.
        revision: Revision,
    },
    /// It is not a back-up, or one of a later format.
    #[error("this is not a back-up that can be read here")]
    NotABackup,
    /// A frame is damaged, missing, repeated or out of order.
    #[error("frame {frame} of the back-up is damaged: {reason}")]
    Damaged {
        /// Which frame, counted from 0.
        frame: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The back-up could not be read.
    #[error("the back-up could not be read")]
    Read(#[source] Arc<std::io::Error>),
    /// The end is missing.
    #[error("the back-up ends after frame {frames}, before its end mark")]
    Truncated {
        /// How many whole frames there are.
        frames: u64,
    },
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
