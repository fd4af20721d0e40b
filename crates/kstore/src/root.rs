//! Published roots: the whole store at one revision, immutable and shared.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    Entry, Event, Range, ReadError, Revision, TableId, Term,
    events::{EventKind, Log},
    tree::{self, Item, Slice, Tree},
    watch::Hub,
};

/// Tables are published in groups, so that a commit copies a few pointers and not one per table.
const GROUP_TABLES: usize = 16;

impl Item for Arc<Entry> {
    type Key = Bytes;
    fn key(&self) -> &Bytes {
        &self.key
    }
}

/// An entry's place under one of its terms.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TermKey {
    term: Term,
    key: Bytes,
}

impl Item for TermKey {
    type Key = TermKey;
    fn key(&self) -> &TermKey {
        self
    }
}

/// One table at one revision.
#[derive(Clone)]
pub(crate) struct TableRoot {
    pub(crate) name: Arc<str>,
    pub(crate) entries: Tree<Arc<Entry>>,
    /// Keys only, so that a write that leaves the terms as they are doesn't touch it.
    pub(crate) terms: Tree<TermKey>,
    pub(crate) log: Log,
    /// Where the watches of this table wait; the same for all roots of one store.
    pub(crate) hub: Arc<Hub>,
}

impl TableRoot {
    pub(crate) fn new(name: Arc<str>, log: Log) -> TableRoot {
        TableRoot { name, entries: Tree::default(), terms: Tree::default(), log, hub: Arc::default() }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.entries.get(|other| other[..].cmp(key))
    }

    /// Puts `new` where `old` was; either may be absent.
    pub(crate) fn replace(&mut self, old: Option<&Arc<Entry>>, new: Option<&Arc<Entry>>) {
        let terms = |entry: Option<&Arc<Entry>>| entry.and_then(|entry| entry.terms.clone());
        match (old, new) {
            (_, Some(new)) => drop(self.entries.insert(new.clone())),
            (Some(old), None) => drop(self.entries.remove(&old.key)),
            (None, None) => return,
        }
        let (before, after) = (terms(old), terms(new));
        let same = match (&before, &after) {
            (None, None) => true,
            (Some(before), Some(after)) => Arc::ptr_eq(before, after),
            _ => false,
        };
        if same {
            return;
        }
        let (before, after) = (before.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
        if let Some(old) = old {
            for term in before.iter().filter(|term| after.binary_search(term).is_err()) {
                self.terms.remove(&TermKey { term: term.clone(), key: old.key.clone() });
            }
        }
        if let Some(new) = new {
            for term in after.iter().filter(|term| before.binary_search(term).is_err()) {
                self.terms.insert(TermKey { term: term.clone(), key: new.key.clone() });
            }
        }
    }

    /// The term as it is kept already, so that equal terms share their bytes.
    pub(crate) fn intern(&self, term: Term) -> Term {
        let (from, to) = self.term_ranks(&term);
        if from == to { term } else { self.terms.slice(from, to).next().map_or(term, |kept| kept.term) }
    }

    fn term_ranks(&self, term: &Term) -> (usize, usize) {
        let from = self.terms.rank(|other| other.term.cmp(term));
        let to =
            self.terms.rank(|other| if other.term <= *term { Ordering::Less } else { Ordering::Greater });
        (from, to)
    }

    fn range_ranks(&self, range: &Range) -> (usize, usize) {
        let from = self.entries.rank(|key| key[..].cmp(&range.start));
        let to = match &range.end {
            Some(end) => self.entries.rank(|key| key[..].cmp(end)),
            None => self.entries.len(),
        };
        (from, to.max(from))
    }

    pub(crate) fn range(&self, range: &Range) -> Slice<Arc<Entry>> {
        let (from, to) = self.range_ranks(range);
        self.entries.slice(from, to)
    }

    /// The table as it was at `revision`, which must not be below the floor: the changes after it are taken back on a copy.
    fn rolled_back(&self, revision: Revision) -> TableRoot {
        let mut past = self.clone();
        let since = self.log.seek(revision);
        for (_, event) in self.log.iter(since, self.log.end()).rev() {
            let current = (event.kind == EventKind::Put).then_some(&event.entry);
            past.replace(current, event.previous.as_ref());
        }
        past.log = self.log.cut(since);
        past
    }

    /// Whether the index and the log agree with the entries; what is wrong otherwise.
    pub(crate) fn verify(&self, revision: Revision) -> Result<(), &'static str> {
        self.entries.verify()?;
        self.terms.verify()?;
        let mut indexed = 0;
        for entry in self.entries.iter() {
            if entry.tombstone
                || entry.modified > revision
                || entry.create > entry.modified
                || entry.version == 0
            {
                return Err("an entry contradicts itself");
            }
            for term in entry.terms() {
                indexed += 1;
                let place = TermKey { term: term.clone(), key: entry.key.clone() };
                self.terms.get(|other| other.cmp(&place)).ok_or("an entry is not found under its term")?;
            }
        }
        if indexed != self.terms.len() {
            return Err("a term leads to an entry that doesn't have it");
        }
        let mut last = self.log.floor();
        for (_, event) in self.log.iter(self.log.floor_seq(), self.log.end()) {
            if event.revision < last || event.revision > revision || event.entry.modified != event.revision {
                return Err("the events are out of order");
            }
            last = event.revision;
        }
        // Taking everything back and doing it again leads to where we are.
        let mut again = self.rolled_back(self.log.floor());
        for (_, event) in self.log.iter(self.log.floor_seq(), self.log.end()) {
            if again.get(&event.entry.key).map(Arc::as_ptr) != event.previous.as_ref().map(Arc::as_ptr) {
                return Err("an event does not follow from the one before");
            }
            let new = (event.kind == EventKind::Put).then_some(&event.entry);
            again.replace(event.previous.as_ref(), new);
        }
        match tree::diff(&again.entries, &self.entries, Arc::ptr_eq).is_empty() {
            true => Ok(()),
            false => Err("the log does not lead to the entries"),
        }
    }
}

/// The tables of a root, by number.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    groups: Arc<Vec<Arc<Vec<Arc<TableRoot>>>>>,
}

impl Tables {
    pub(crate) fn get(&self, id: TableId) -> Option<&Arc<TableRoot>> {
        self.groups.get(id.index() / GROUP_TABLES)?.get(id.index() % GROUP_TABLES)
    }

    /// Replaces a table, or adds the next one.
    pub(crate) fn set(&mut self, id: TableId, table: Arc<TableRoot>) {
        let groups = Arc::make_mut(&mut self.groups);
        let (group, at) = (id.index() / GROUP_TABLES, id.index() % GROUP_TABLES);
        if group == groups.len() {
            groups.push(Arc::default());
        }
        let tables = Arc::make_mut(&mut groups[group]);
        if at == tables.len() {
            tables.push(table);
        } else {
            tables[at] = table;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TableId, &Arc<TableRoot>)> {
        let tables = self.groups.iter().flat_map(|group| group.iter());
        tables.enumerate().map(|(index, table)| (TableId(index as u32), table))
    }
}

/// The whole store at one revision.
#[derive(Clone, Default)]
pub(crate) struct Root {
    pub(crate) revision: Revision,
    pub(crate) tables: Tables,
}

/// Where an engine publishes and readers look.
pub(crate) struct Published {
    root: ArcSwap<Root>,
    pub(crate) closed: AtomicBool,
}

impl Published {
    pub(crate) fn new(root: Root) -> Published {
        Published { root: ArcSwap::from_pointee(root), closed: AtomicBool::new(false) }
    }

    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Root>> {
        self.root.load()
    }

    /// The root before; the caller drops it where that holds nobody up.
    pub(crate) fn swap(&self, root: Root) -> Arc<Root> {
        self.root.swap(Arc::new(root))
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { root: self.root.load_full(), past: None }
    }
}

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
            Some(table) => {
                let (from, to) = table.term_ranks(term);
                Entries(Source::Term(table.terms.slice(from, to), table.entries.clone()))
            }
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
    Term(Slice<TermKey>, Tree<Arc<Entry>>),
}

impl Iterator for Entries {
    type Item = Arc<Entry>;

    fn next(&mut self) -> Option<Arc<Entry>> {
        match &mut self.0 {
            Source::Range(entries) => entries.next(),
            Source::Term(keys, entries) => {
                let place = keys.next()?;
                entries.get(|key| key.cmp(&place.key)).cloned()
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Source::Range(entries) => entries.size_hint(),
            Source::Term(keys, _) => keys.size_hint(),
        }
    }
}

impl ExactSizeIterator for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("remaining", &self.len()).finish()
    }
}
