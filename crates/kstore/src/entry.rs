//! What stands under a key at one revision.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{LeaseId, Revision, Term};

/// A value that callers attach to an entry; opaque to kstore.
pub type Opaque = Arc<dyn Any + Send + Sync>;

/// One state of one key: never changed once it is published, and shared by everyone who reads it.
///
/// A deletion makes a *tombstone*: an entry that carries key, value and history of the last state, with `modified` set to
/// the revision of the deletion. Tombstones stand in events only; a snapshot never yields one.
pub struct Entry {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) create: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) tombstone: bool,
    pub(crate) hint: Option<Opaque>,
    /// Filled by the first reader that asks; everyone after gets the same.
    pub(crate) derived: OnceLock<Opaque>,
    /// Sorted and without repeats; shared with the previous version where it did not change.
    pub(crate) terms: Option<Arc<[Term]>>,
}

impl Entry {
    /// The key, without the table.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The value; of a tombstone, the last one before the deletion.
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// The revision that created the key, after its last deletion.
    pub fn create(&self) -> Revision {
        self.create
    }

    /// The revision of this state; of a tombstone, of the deletion.
    pub fn modified(&self) -> Revision {
        self.modified
    }

    /// How often the key was written since it was created: 1 for the first state. A tombstone has that of the last state.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The lease whose end deletes the key.
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// What the writer handed in beside the value; gone after a restart or a restore, so it may only save work.
    pub fn hint(&self) -> Option<&Opaque> {
        self.hint.as_ref()
    }

    /// Whether this is the record of a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.tombstone
    }

    /// The terms the table's index function named, sorted.
    pub fn terms(&self) -> &[Term] {
        self.terms.as_deref().unwrap_or_default()
    }

    pub(crate) fn has_term(&self, term: &Term) -> bool {
        self.terms().binary_search(term).is_ok()
    }

    /// What can be worked out from the entry (a parsed form), made by the first caller and shared with all others.
    ///
    /// There is one cell: whoever holds the table decides on one type for it. If the cell holds another type, `make` is
    /// called and its result returned, but not kept. `make` must not ask the same entry for its derived value.
    ///
    /// ```
    /// # use kstore::{MemoryStore, Store, TableSpec, Txn};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let table = store.open_table(TableSpec::new("numbers"))?;
    /// store.commit(Txn::create(table, "a", "42")).await?;
    /// let entry = store.snapshot().get(table, b"a").ok_or("absent")?;
    /// let number = entry.derived(|entry| std::sync::Arc::new(entry.value().len()));
    /// assert_eq!(*number, 2);
    /// # Ok(()) }
    /// ```
    pub fn derived<T: Any + Send + Sync>(&self, make: impl FnOnce(&Entry) -> Arc<T>) -> Arc<T> {
        if let Some(present) = self.derived.get() {
            return match present.clone().downcast::<T>() {
                Ok(value) => value,
                Err(_) => make(self),
            };
        }
        // Made inside the cell, so that two readers that come together don't both do the work.
        let mut make = Some(make);
        let cell = self.derived.get_or_init(|| match make.take() {
            Some(make) => make(self) as Opaque,
            None => Arc::new(()),
        });
        match (cell.clone().downcast::<T>(), make) {
            (Ok(value), _) => value,
            (Err(_), Some(make)) => make(self),
            // The cell was filled by this very call, so it holds a T.
            (Err(_), None) => unreachable!("the derived cell holds what was just put into it"),
        }
    }

    /// Whether both are the same state of the key.
    pub(crate) fn same(&self, other: &Entry) -> bool {
        std::ptr::eq(self, other)
            || (self.key == other.key
                && self.create == other.create
                && self.modified == other.modified
                && self.version == other.version
                && self.lease == other.lease
                && self.value == other.value)
    }

    /// The same state, with nothing worked out from it.
    pub(crate) fn renewed(&self) -> Entry {
        Entry {
            key: self.key.clone(),
            value: self.value.clone(),
            create: self.create,
            modified: self.modified,
            version: self.version,
            lease: self.lease,
            tombstone: self.tombstone,
            hint: self.hint.clone(),
            derived: OnceLock::new(),
            terms: None,
        }
    }

    /// The record of this entry's deletion at `revision`.
    pub(crate) fn tombstone(&self, revision: Revision) -> Entry {
        Entry { modified: revision, tombstone: true, terms: self.terms.clone(), ..self.renewed() }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(if self.tombstone { "Tombstone" } else { "Entry" })
            .field("key", &self.key)
            .field("value_bytes", &self.value.len())
            .field("create", &self.create.0)
            .field("modified", &self.modified.0)
            .field("version", &self.version)
            .field("lease", &self.lease)
            .field("terms", &self.terms())
            .finish()
    }
}
