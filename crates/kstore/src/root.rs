//! Published roots: the whole store at one revision, immutable and shared.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Entry, Range, Revision, Snapshot, TableId,
    events::{EventKind, Log},
    hub::Hub,
    sync::{AtomicBool, Held, Pointer},
    terms::TermIndex,
    tree::{self, Item, Slice, Tree},
};

/// Tables are published in groups, so that a commit copies a few pointers and not one per table.
const GROUP_TABLES: usize = 16;

impl Item for Arc<Entry> {
    type Key = Bytes;
    fn key(&self) -> &Bytes {
        &self.key
    }

    fn touch(&self) {
        tree::touch(self);
    }
}

/// One table at one revision.
#[derive(Clone)]
pub(crate) struct TableRoot {
    pub(crate) name: Arc<str>,
    pub(crate) entries: Tree<Arc<Entry>>,
    /// Keys only, so that a write that leaves the terms as they are doesn't touch it.
    pub(crate) terms: TermIndex,
    pub(crate) log: Log,
    /// Where the watches of this table wait; the same for all roots of one store.
    pub(crate) hub: Arc<Hub>,
}

impl TableRoot {
    pub(crate) fn new(name: Arc<str>, log: Log) -> TableRoot {
        TableRoot { name, entries: Tree::default(), terms: TermIndex::default(), log, hub: Arc::default() }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.entries.find(key)
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
                self.terms.remove(term, &old.key);
            }
        }
        if let Some(new) = new {
            for term in after.iter().filter(|term| before.binary_search(term).is_err()) {
                self.terms.insert(term, &new.key);
            }
        }
    }

    /// Puts an entry that is not there yet under its terms.
    pub(crate) fn add_terms(&mut self, entry: &Entry) {
        for term in entry.terms() {
            self.terms.insert(term, &entry.key);
        }
    }

    pub(crate) fn range_ranks(&self, range: &Range) -> (usize, usize) {
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
    pub(crate) fn rolled_back(&self, revision: Revision) -> TableRoot {
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
                self.terms
                    .has(term, &entry.key)
                    .then_some(())
                    .ok_or("an entry is not found under its term")?;
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
    root: Pointer<Root>,
    pub(crate) closed: AtomicBool,
}

impl Published {
    pub(crate) fn new(root: Root) -> Published {
        Published { root: Pointer::new(root), closed: AtomicBool::new(false) }
    }

    pub(crate) fn load(&self) -> Held<Root> {
        self.root.load()
    }

    /// The root before; the caller drops it where that holds nobody up.
    pub(crate) fn swap(&self, root: Root) -> Arc<Root> {
        self.root.swap(Arc::new(root))
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.root.load_full())
    }
}
