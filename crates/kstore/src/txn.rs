//! What is committed: comparisons, and the operations that are done when all of them hold.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Entry, LeaseId, Range, Revision, TableId, entry::Opaque};

/// How many comparisons, and how many operations, one transaction may have.
pub const TXN_OPS_MAX: usize = 8_192;
/// How many keys one transaction may change, those of its ranges counted.
pub const TXN_CHANGES_MAX: usize = 131_072;
/// How long a key may be, in bytes.
pub const KEY_BYTES_MAX: usize = 4_096;
/// How long a value may be, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Comparisons and operations that are one step: either all comparisons hold and all operations are done at one new
/// revision, or nothing happens.
///
/// The comparisons see the state before the operations. A key may be touched by one operation only. A transaction that
/// changes nothing (it has no operations, or deletes what is not there) takes no revision.
///
/// ```
/// # use kstore::{Compare, MemoryStore, Op, Store, TableSpec, Txn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let (pods, quota) = (store.open_table(TableSpec::new("pods"))?, store.open_table(TableSpec::new("quota"))?);
/// let first = store.commit(Txn::create(quota, "used", "0")).await?;
/// let txn = Txn::new()
///     .compare(Compare::modified_at(quota, "used", first.revision))
///     .op(Op::put(quota, "used", "1"))
///     .op(Op::put(pods, "a", "spec"));
/// let both = store.commit(txn).await?;
/// assert_eq!(store.snapshot().table_revision(pods), both.revision);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
    pub(crate) in_company: bool,
}

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn compare(mut self, compare: Compare) -> Txn {
        self.compares.push(compare);
        self
    }

    /// Adds an operation.
    #[must_use]
    pub fn op(mut self, op: Op) -> Txn {
        self.ops.push(op);
        self
    }

    /// Says that whoever commits this runs others beside it in the same task, which may be about to commit too: a store that
    /// can do several at once may let them have their turn first. It changes nothing but the time.
    #[must_use]
    pub fn in_company(mut self) -> Txn {
        self.in_company = true;
        self
    }

    /// Writes a key that must not be there.
    pub fn create(table: TableId, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        Txn::new().compare(Compare::Absent { table, key: key.clone() }).op(Op::put(table, key, value))
    }

    /// Writes a key that must be as it was at `expected`.
    pub fn update(table: TableId, key: impl Into<Bytes>, expected: Revision, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        let compare = Compare::ModifiedAt { table, key: key.clone(), revision: expected };
        Txn::new().compare(compare).op(Op::put(table, key, value))
    }

    /// Deletes a key that must be as it was at `expected`.
    pub fn delete(table: TableId, key: impl Into<Bytes>, expected: Revision) -> Txn {
        let key = key.into();
        let compare = Compare::ModifiedAt { table, key: key.clone(), revision: expected };
        Txn::new().compare(compare).op(Op::Delete { table, key })
    }

    /// The conditions, in order.
    pub fn compares(&self) -> &[Compare] {
        &self.compares
    }

    /// The operations, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key is not there.
    Absent {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
    },
    /// The key is there.
    Exists {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
    },
    /// The key is there and was last written at `revision`.
    ModifiedAt {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The revision it must have.
        revision: Revision,
    },
    /// The key is there and was created at `revision`.
    CreatedAt {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The revision it must have.
        revision: Revision,
    },
    /// The key is there and was written `version` times since it was created.
    VersionIs {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The version it must have.
        version: u64,
    },
    /// The key is there and has this value.
    ValueIs {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The value it must have.
        value: Bytes,
    },
    /// The key is there and is attached to this lease, or to none.
    LeaseIs {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The lease it must have.
        lease: Option<LeaseId>,
    },
    /// The general form, with etcd's rule for a key that is not there: revisions, version and lease count as 0, and a
    /// value compares with nothing, so that any comparison of it fails.
    Is {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// How what is there relates to `operand`.
        relation: Relation,
        /// What is compared, and with what.
        operand: Operand,
    },
}

/// How what is there relates to what is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
    /// What is there comes before.
    Less,
    /// What is there comes after.
    Greater,
}

/// What [`Compare::Is`] compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The revision of the last write.
    Modified(Revision),
    /// The revision of the creation.
    Created(Revision),
    /// The number of writes.
    Version(u64),
    /// The value, byte by byte.
    Value(Bytes),
    /// The number of the lease; none is 0.
    Lease(Option<LeaseId>),
}

impl Compare {
    /// [`Compare::Absent`] of anything that makes a key.
    pub fn absent(table: TableId, key: impl Into<Bytes>) -> Compare {
        Compare::Absent { table, key: key.into() }
    }

    /// [`Compare::Exists`] of anything that makes a key.
    pub fn exists(table: TableId, key: impl Into<Bytes>) -> Compare {
        Compare::Exists { table, key: key.into() }
    }

    /// [`Compare::ModifiedAt`] of anything that makes a key.
    pub fn modified_at(table: TableId, key: impl Into<Bytes>, revision: Revision) -> Compare {
        Compare::ModifiedAt { table, key: key.into(), revision }
    }

    /// The table and key that are looked at.
    pub fn target(&self) -> (TableId, &Bytes) {
        match self {
            Compare::Absent { table, key }
            | Compare::Exists { table, key }
            | Compare::ModifiedAt { table, key, .. }
            | Compare::CreatedAt { table, key, .. }
            | Compare::VersionIs { table, key, .. }
            | Compare::ValueIs { table, key, .. }
            | Compare::LeaseIs { table, key, .. }
            | Compare::Is { table, key, .. } => (*table, key),
        }
    }

    /// Whether the condition holds when `current` is what stands under the key.
    pub fn holds(&self, current: Option<&Entry>) -> bool {
        let there = |check: &dyn Fn(&Entry) -> bool| current.is_some_and(check);
        match self {
            Compare::Absent { .. } => current.is_none(),
            Compare::Exists { .. } => current.is_some(),
            Compare::ModifiedAt { revision, .. } => there(&|entry| entry.modified == *revision),
            Compare::CreatedAt { revision, .. } => there(&|entry| entry.create == *revision),
            Compare::VersionIs { version, .. } => there(&|entry| entry.version == *version),
            Compare::ValueIs { value, .. } => there(&|entry| entry.value == *value),
            Compare::LeaseIs { lease, .. } => there(&|entry| entry.lease == *lease),
            Compare::Is { relation, operand, .. } => {
                operand.compare(current).is_some_and(|order| match relation {
                    Relation::Equal => order.is_eq(),
                    Relation::NotEqual => order.is_ne(),
                    Relation::Less => order.is_lt(),
                    Relation::Greater => order.is_gt(),
                })
            }
        }
    }
}

impl Operand {
    /// How what is there relates to this; none where nothing can be compared.
    fn compare(&self, current: Option<&Entry>) -> Option<std::cmp::Ordering> {
        let number = |read: fn(&Entry) -> u64| current.map_or(0, read);
        Some(match self {
            Operand::Modified(revision) => number(|entry| entry.modified.0).cmp(&revision.0),
            Operand::Created(revision) => number(|entry| entry.create.0).cmp(&revision.0),
            Operand::Version(version) => number(|entry| entry.version).cmp(version),
            Operand::Value(value) => current?.value.cmp(value),
            Operand::Lease(lease) => {
                number(|entry| entry.lease.map_or(0, LeaseId::get)).cmp(&lease.map_or(0, LeaseId::get))
            }
        })
    }
}

/// One change.
#[derive(Clone)]
pub enum Op {
    /// Writes a key, whether it is there or not.
    Put {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
        /// The value; it is shared, not copied.
        value: Bytes,
        /// The lease whose end deletes the key; none detaches it.
        lease: Option<LeaseId>,
        /// What the writer already knows about the value, for the index function and for [`Entry::derived`].
        hint: Option<Opaque>,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// The table.
        table: TableId,
        /// The key.
        key: Bytes,
    },
    /// Deletes every key of a range.
    DeleteRange {
        /// The table.
        table: TableId,
        /// The keys.
        range: Range,
    },
}

impl Op {
    /// A put without lease and hint.
    pub fn put(table: TableId, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
        Op::Put { table, key: key.into(), value: value.into(), lease: None, hint: None }
    }

    /// A deletion of one key.
    pub fn delete(table: TableId, key: impl Into<Bytes>) -> Op {
        Op::Delete { table, key: key.into() }
    }

    /// The table that is changed.
    pub fn table(&self) -> TableId {
        match self {
            Op::Put { table, .. } | Op::Delete { table, .. } | Op::DeleteRange { table, .. } => *table,
        }
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Put { table, key, value, lease, hint } => f
                .debug_struct("Put")
                .field("table", &table.0)
                .field("key", key)
                .field("value_bytes", &value.len())
                .field("lease", lease)
                .field("hint", &hint.is_some())
                .finish(),
            Op::Delete { table, key } => {
                f.debug_struct("Delete").field("table", &table.0).field("key", key).finish()
            }
            Op::DeleteRange { table, range } => {
                f.debug_struct("DeleteRange").field("table", &table.0).field("range", range).finish()
            }
        }
    }
}

/// What a commit did.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The revision it took, or, when it changed nothing, the store's revision at that moment.
    pub revision: Revision,
    /// One per operation, in order.
    pub outcomes: Vec<Outcome>,
}

/// What one operation did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The new entry of a put; the tombstone of a deletion that found something.
    pub entry: Option<Arc<Entry>>,
    /// What was there before.
    pub previous: Option<Arc<Entry>>,
    /// What a range deletion found, as it was, in the order of the keys; empty for the other operations.
    pub deleted: Vec<Arc<Entry>>,
}
