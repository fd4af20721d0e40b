//! Reading: snapshots, the iterators over them, and how two of them differ.

use std::{
    borrow::Borrow,
    fmt,
    sync::{Arc, OnceLock},
};

use crate::{
    Entry, Event, Range, ReadError, Revision, TableId, Term,
    root::{Root, TableRoot},
    terms::TermKeys,
    tree::{self, Slice, Tree},
};

/// The store at one revision: what [`Store::snapshot`](crate::Store::snapshot) gives.
///
/// It is immutable; taking and cloning one costs a reference count, and reading from it takes no lock and holds nobody up.
/// It keeps what it shows in memory for as long as it lives. A table that it doesn't know reads as empty.
///
/// ```
/// # use kstore::{MemoryStore, Range, Store, TableSpec, Txn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let table = store.open_table(TableSpec::new("pods"))?;
/// for name in ["a/1", "a/2", "b/1"] {
///     store.commit(Txn::create(table, name, "")).await?;
/// }
/// let snapshot = store.snapshot();
/// store.commit(Txn::create(table, "a/3", "")).await?;
/// // A page of one, and how many are left after it.
/// let page: Vec<_> = snapshot.range(table, Range::prefix("a/")).take(1).collect();
/// assert_eq!(&page[0].key()[..], b"a/1");
/// assert_eq!(snapshot.count(table, Range::prefix("a/").after(page[0].key())), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Snapshot {
    root: Arc<Root>,
    past: Option<Arc<Past>>,
}

/// What makes an earlier state of a root.
struct Past {
    revision: Revision,
    /// None: all tables.
    only: Option<TableId>,
    /// Rolled back by whoever reads the table first.
    tables: Box<[OnceLock<Arc<TableRoot>>]>,
}

impl Snapshot {
    pub(crate) fn new(root: Arc<Root>) -> Snapshot {
        Snapshot { root, past: None }
    }

    fn table(&self, id: TableId) -> Option<&TableRoot> {
        let current = self.root.tables.get(id)?;
        let Some(past) = &self.past else { return Some(current) };
        if past.only.is_some_and(|only| only != id) {
            return None;
        }
        if current.log.last_revision() <= past.revision {
            return Some(current);
        }
        let place = past.tables.get(id.index())?;
        Some(place.get_or_init(|| Arc::new(current.rolled_back(past.revision))))
    }

    /// The revision at which this is the state of the store.
    pub fn revision(&self) -> Revision {
        self.past.as_ref().map_or(self.root.revision, |past| past.revision)
    }

    /// The earliest revision at which the whole store can be read, starting from here: the greatest of the tables' floors.
    pub fn floor(&self) -> Revision {
        self.root.tables.iter().map(|(_, table)| table.log.floor()).max().unwrap_or_default()
    }

    /// The earliest revision at which this table can be read and from which it can be watched.
    pub fn table_floor(&self, table: TableId) -> Revision {
        self.root.tables.get(table).map(|table| table.log.floor()).unwrap_or_default()
    }

    /// The tables, in the order in which they were opened.
    pub fn tables(&self) -> impl Iterator<Item = (&str, TableId)> {
        self.root.tables.iter().map(|(id, table)| (&*table.name, id))
    }

    /// What stands under the key.
    pub fn get(&self, table: TableId, key: &[u8]) -> Option<Arc<Entry>> {
        self.table(table)?.get(key).cloned()
    }

    /// The entries of a range, in the order of the keys, lazily. How many there are is known at once (`len`).
    pub fn range(&self, table: TableId, range: impl Borrow<Range>) -> Entries {
        match self.table(table) {
            Some(table) => Entries(Source::Range(table.range(range.borrow()))),
            None => Entries(Source::Range(Tree::default().iter())),
        }
    }

    /// How many entries a range has, in O(log n).
    pub fn count(&self, table: TableId, range: impl Borrow<Range>) -> usize {
        self.table(table).map_or(0, |table| {
            let (from, to) = table.range_ranks(range.borrow());
            to - from
        })
    }

    /// How many entries the table has.
    pub fn len(&self, table: TableId) -> usize {
        self.table(table).map_or(0, |table| table.entries.len())
    }

    /// Whether the table has no entries.
    pub fn is_empty(&self, table: TableId) -> bool {
        self.len(table) == 0
    }

    /// The entries that have the term, in the order of the keys, lazily. How many there are is known at once (`len`).
    pub fn by_term(&self, table: TableId, term: &Term) -> Entries {
        match self.table(table) {
            Some(table) => Entries(Source::Term(table.terms.keys(term), table.entries.clone())),
            None => Entries(Source::Range(Tree::default().iter())),
        }
    }

    /// The revision of the last change of the table; `ZERO` if it never changed.
    pub fn table_revision(&self, table: TableId) -> Revision {
        self.table(table).map(|table| table.log.last_revision()).unwrap_or_default()
    }

    /// The table's events after `after`, as far as this snapshot shows, in order.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] below the table's floor.
    pub fn events(&self, table: TableId, after: Revision) -> Result<Vec<Event>, ReadError> {
        let Some(table) = self.table(table) else { return Ok(Vec::new()) };
        let floor = table.log.floor();
        if after < floor {
            return Err(ReadError::Compacted { asked: after, floor });
        }
        Ok(table.log.iter(table.log.seek(after), table.log.end()).map(|(_, event)| event.clone()).collect())
    }

    /// The store as it was at an earlier revision. A table is worked out when it is first read, at the cost of the
    /// table's events since then; tables that have not changed since cost nothing.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] below [`floor`](Snapshot::floor), [`ReadError::Future`] after this snapshot's revision.
    pub fn at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.travel(revision, None, self.floor())
    }

    /// One table as it was at an earlier revision; the others read as empty. Goes back as far as that table's history
    /// does, whatever was dropped of the others.
    ///
    /// # Errors
    /// As of [`at`](Snapshot::at), with the floor of the table.
    pub fn at_table(&self, table: TableId, revision: Revision) -> Result<Snapshot, ReadError> {
        self.travel(revision, Some(table), self.table_floor(table))
    }

    fn travel(
        &self,
        revision: Revision,
        only: Option<TableId>,
        floor: Revision,
    ) -> Result<Snapshot, ReadError> {
        if revision > self.revision() {
            return Err(ReadError::Future { asked: revision, published: self.revision() });
        }
        if revision < floor {
            return Err(ReadError::Compacted { asked: revision, floor });
        }
        if revision == self.revision() && only.is_none() {
            return Ok(self.clone());
        }
        let only = only.or_else(|| self.past.as_ref().and_then(|past| past.only));
        let tables = self.root.tables.iter().map(|_| OnceLock::new()).collect();
        Ok(Snapshot { root: self.root.clone(), past: Some(Arc::new(Past { revision, only, tables })) })
    }

    /// How two states of one store, or of a store and its fork, differ: what has to happen to `self` to make it `other`,
    /// by table and key. Costs what differs, not what is there.
    ///
    /// Entries count as the same when key, value, lease and revisions are.
    pub fn diff(&self, other: &Snapshot) -> Vec<Difference> {
        let mut differences = Vec::new();
        let (mine, theirs) = (self.root.tables.iter().count(), other.root.tables.iter().count());
        for index in 0..mine.max(theirs) {
            let table = TableId(index as u32);
            let entries = |snapshot: &Snapshot| {
                snapshot.table(table).map(|table| table.entries.clone()).unwrap_or_default()
            };
            let changes = tree::diff(&entries(self), &entries(other), |old, new| old.same(new));
            differences.extend(changes.into_iter().map(|(before, after)| Difference {
                table,
                before,
                after,
            }));
        }
        differences
    }

    /// Checks everything that is meant to agree: entries, index, counts and history of every table.
    ///
    /// # Errors
    /// What is wrong, and in which table.
    pub fn verify(&self) -> Result<(), VerifyError> {
        for (id, table) in self.root.tables.iter() {
            let table = self.table(id).unwrap_or(table);
            let wrong = |reason| VerifyError { table: table.name.to_string(), reason };
            table.verify(self.revision().max(table.log.floor())).map_err(wrong)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tables = f.debug_struct("Snapshot");
        tables.field("revision", &self.revision().0);
        for (name, id) in self.tables() {
            tables.field(name, &self.len(id));
        }
        tables.finish()
    }
}

/// The state of a store contradicts itself: a fault in the store, or in memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table:?} is damaged: {reason}")]
pub struct VerifyError {
    /// The name of the table.
    pub table: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// One key that differs between two snapshots.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The table.
    pub table: TableId,
    /// What stands under the key in the first; none if it isn't there.
    pub before: Option<Arc<Entry>>,
    /// What stands under the key in the second.
    pub after: Option<Arc<Entry>>,
}

/// Entries in the order of their keys; owns what it reads, so it can outlive the snapshot.
pub struct Entries(Source);

enum Source {
    Range(Slice<Arc<Entry>>),
    Term(TermKeys, Tree<Arc<Entry>>),
}

impl Iterator for Entries {
    type Item = Arc<Entry>;

    fn next(&mut self) -> Option<Arc<Entry>> {
        match &mut self.0 {
            Source::Range(entries) => entries.next(),
            Source::Term(keys, entries) => entries.find(keys.next()?).cloned(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Source::Range(entries) => entries.size_hint(),
            Source::Term(keys, _) => (keys.len(), Some(keys.len())),
        }
    }
}

impl ExactSizeIterator for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("remaining", &self.len()).finish()
    }
}
