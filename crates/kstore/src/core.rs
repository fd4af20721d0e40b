//! The state machine: what a transaction does to the tables. No I/O, no clock, no threads; the same calls lead to the same
//! state.

#[cfg(feature = "replica")]
pub(crate) mod foreign;
mod index;
#[cfg(feature = "disk")]
mod replay;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    CommitError, Committed, Compare, Durability, Entry, Event, EventKind, HistoryLimits, IndexFn, LeaseId,
    Op, Outcome, RestoreError, Revision, StoreError, TableId, TableSpec, Txn,
    backup::{Image, ImageTable},
    compaction::History,
    entry::Opaque,
    events::Log,
    hub::Hub,
    lease::{LEASES_ENDED_MAX, LeaseBook},
    root::{Root, TableRoot, Tables},
    table::TABLES_MAX,
    tree::Tree,
    txn::{KEY_BYTES_MAX, TXN_CHANGES_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX},
};

pub(crate) use index::reindexed;
use index::terms_of;

/// The store as it will be published next.
pub(crate) struct Core {
    pub(crate) revision: Revision,
    tables: Vec<TableState>,
    names: HashMap<Arc<str>, TableId>,
    /// The tables as they were published last.
    published: Tables,
    /// Those that differ from it.
    dirty: Vec<TableId>,
    pub(crate) leases: LeaseBook,
    /// Bytes of the live keys and values.
    bytes: u64,
    bytes_max: u64,
    /// The greatest floor that was asked for; where the history of a table begins that is opened after.
    floor: Revision,
    /// The revision has moved without a table being changed.
    moved: bool,
}

/// One table, and what its writer knows beside.
struct TableState {
    now: TableRoot,
    history: History,
    index: Option<Arc<dyn IndexFn>>,
    durability: Durability,
    /// Whether a caller has opened it; one that a restore brought takes the first caller's specification.
    opened: bool,
    dirty: bool,
    /// Events since the last publication.
    added: usize,
}

/// A change that has been decided on.
struct Change {
    table: TableId,
    old: Option<Arc<Entry>>,
    /// The new state, or the tombstone.
    new: Arc<Entry>,
}

type Changes = SmallVec<[Change; 1]>;

/// Transactions of few operations are checked for repeated keys without a set.
const FEW_OPS: usize = 16;

impl Core {
    pub(crate) fn new(bytes_max: u64) -> Core {
        Core {
            revision: Revision::ZERO,
            tables: Vec::new(),
            names: HashMap::new(),
            published: Tables::default(),
            dirty: Vec::new(),
            leases: LeaseBook::default(),
            bytes: 0,
            bytes_max,
            floor: Revision::ZERO,
            moved: false,
        }
    }

    /// The same state, to be continued apart from this one.
    pub(crate) fn fork(&self) -> Core {
        let mut published = Tables::default();
        let mut tables = Vec::with_capacity(self.tables.len());
        for (index, table) in self.tables.iter().enumerate() {
            let mut now = table.now.clone();
            now.log = now.log.fork();
            now.hub = Arc::new(Hub::new(now.log.end()));
            published.set(TableId(index as u32), Arc::new(now.clone()));
            tables.push(TableState {
                now,
                history: table.history.clone(),
                index: table.index.clone(),
                durability: table.durability,
                opened: table.opened,
                dirty: false,
                added: 0,
            });
        }
        Core {
            revision: self.revision,
            tables,
            names: self.names.clone(),
            published,
            dirty: Vec::new(),
            leases: self.leases.clone(),
            bytes: self.bytes,
            bytes_max: self.bytes_max,
            floor: self.floor,
            moved: self.moved,
        }
    }

    pub(crate) fn open_table(&mut self, spec: TableSpec) -> Result<TableId, StoreError> {
        if spec.name.is_empty() || spec.name.len() > KEY_BYTES_MAX {
            return Err(StoreError::BadTableName { name: spec.name });
        }
        let Some(id) = self.names.get(&*spec.name).copied() else {
            let id = self.add_table(spec.name.into(), Revision::ZERO)?;
            let table = &mut self.tables[id.index()];
            table.index = spec.index;
            table.durability = spec.durability;
            table.history.set_limits(spec.history);
            table.opened = true;
            return Ok(id);
        };
        if !self.tables[id.index()].opened {
            if let Some(index) = &spec.index {
                self.reindex(id, &**index)?;
            }
            let table = &mut self.tables[id.index()];
            table.opened = true;
            table.history.set_limits(spec.history);
            table.durability = spec.durability;
            table.index = spec.index;
        }
        Ok(id)
    }

    /// Adds a table whose last change was at `before`, and whose history is known from there on.
    pub(crate) fn add_table(&mut self, name: Arc<str>, before: Revision) -> Result<TableId, StoreError> {
        if self.tables.len() >= TABLES_MAX {
            return Err(StoreError::TooManyTables { max: TABLES_MAX });
        }
        let id = TableId(self.tables.len() as u32);
        let now = TableRoot::new(name.clone(), Log::new(self.floor, before));
        let history = History::new(HistoryLimits::default(), 0);
        let durability = Durability::default();
        self.tables.push(TableState {
            now,
            history,
            index: None,
            durability,
            opened: false,
            dirty: false,
            added: 0,
        });
        self.names.insert(name, id);
        self.touch(id);
        Ok(id)
    }

    /// Gives every entry of a table its terms.
    fn reindex(&mut self, id: TableId, index: &dyn IndexFn) -> Result<(), StoreError> {
        let table = &mut self.tables[id.index()];
        table.now = reindexed(&table.now, index)?;
        self.touch(id);
        Ok(())
    }

    fn touch(&mut self, id: TableId) {
        let table = &mut self.tables[id.index()];
        if !table.dirty {
            table.dirty = true;
            self.dirty.push(id);
        }
    }

    fn table(&self, id: TableId) -> Result<&TableState, StoreError> {
        self.tables.get(id.index()).ok_or(StoreError::UnknownTable(id))
    }

    /// Does a transaction, or nothing at all. It panics only where an index function does, and then nothing has changed.
    pub(crate) fn apply(&mut self, txn: Txn, now: Duration) -> Result<Committed, CommitError> {
        let Txn { compares, ops, .. } = txn;
        self.check_sizes(&compares, &ops)?;
        let known = self.check_compares(&compares)?;
        check_repeats(&ops)?;
        let revision = self.revision.next();
        let mut changes = Changes::new();
        let mut outcomes = Vec::with_capacity(ops.len());
        for op in ops {
            let old = match (&op, &known) {
                (Op::DeleteRange { .. }, _) => None,
                (Op::Put { table, key, .. } | Op::Delete { table, key }, Some((place, entry)))
                    if *place == (*table, key.clone()) =>
                {
                    entry.clone()
                }
                (Op::Put { table, key, .. } | Op::Delete { table, key }, _) => {
                    self.table(*table)?.now.get(key).cloned()
                }
            };
            outcomes.push(self.decide(op, old, revision, &mut changes)?);
        }
        if changes.is_empty() {
            return Ok(Committed { revision: self.revision, outcomes });
        }
        self.check_quota(&changes)?;
        self.perform(changes, revision, now);
        Ok(Committed { revision, outcomes })
    }

    fn check_sizes(&self, compares: &[Compare], ops: &[Op]) -> Result<(), CommitError> {
        limit("the number of comparisons", compares.len(), TXN_OPS_MAX)?;
        limit("the number of operations", ops.len(), TXN_OPS_MAX)?;
        for (index, op) in ops.iter().enumerate() {
            self.table(op.table())?;
            let (Op::Put { key, .. } | Op::Delete { key, .. }) = op else { continue };
            limit("a key in bytes", key.len(), KEY_BYTES_MAX)?;
            if key.is_empty() {
                return Err(CommitError::EmptyKey { index });
            }
            if let Op::Put { value, lease, .. } = op {
                limit("a value in bytes", value.len(), VALUE_BYTES_MAX)?;
                if let Some(lease) = lease.filter(|lease| !self.leases.contains(*lease)) {
                    return Err(CommitError::UnknownLease(lease));
                }
            }
        }
        Ok(())
    }

    /// What stands under the key of the last comparison, since the operation is most often on the same key.
    #[allow(clippy::type_complexity, reason = "a name for it would say less")]
    fn check_compares(
        &self,
        compares: &[Compare],
    ) -> Result<Option<((TableId, Bytes), Option<Arc<Entry>>)>, CommitError> {
        let mut known = None;
        for (index, compare) in compares.iter().enumerate() {
            let (table, key) = compare.target();
            let current = self.table(table)?.now.get(key);
            if !compare.holds(current.map(|entry| &**entry)) {
                return Err(CommitError::Conflict {
                    index,
                    current: current.cloned(),
                    revision: self.revision,
                });
            }
            known = Some(((table, key.clone()), current.cloned()));
        }
        Ok(known)
    }

    /// Works out what an operation changes.
    fn decide(
        &self,
        op: Op,
        old: Option<Arc<Entry>>,
        revision: Revision,
        changes: &mut Changes,
    ) -> Result<Outcome, CommitError> {
        match op {
            Op::Put { table, key, value, lease, hint } => {
                let new = self.entry(table, key, value, lease, hint, old.as_ref(), revision)?;
                changes.push(Change { table, old: old.clone(), new: new.clone() });
                Ok(Outcome { entry: Some(new), previous: old, deleted: Vec::new() })
            }
            Op::Delete { table, .. } => {
                let Some(old) = old else { return Ok(Outcome::default()) };
                let new = Arc::new(old.tombstone(revision));
                changes.push(Change { table, old: Some(old.clone()), new: new.clone() });
                Ok(Outcome { entry: Some(new), previous: Some(old), deleted: Vec::new() })
            }
            Op::DeleteRange { table, range } => {
                let found = self.table(table)?.now.range(&range);
                limit("the number of keys changed", changes.len() + found.len(), TXN_CHANGES_MAX)?;
                let deleted: Vec<Arc<Entry>> = found.collect();
                changes.extend(deleted.iter().map(|old| Change {
                    table,
                    old: Some(old.clone()),
                    new: Arc::new(old.tombstone(revision)),
                }));
                Ok(Outcome { entry: None, previous: None, deleted })
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of an entry, used in one place")]
    fn entry(
        &self,
        table: TableId,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        hint: Option<Opaque>,
        old: Option<&Arc<Entry>>,
        revision: Revision,
    ) -> Result<Arc<Entry>, CommitError> {
        let mut entry = Entry {
            // The key of the version before is the same: one copy of it is enough. A new one is copied, since it may be a piece of
            // a whole request, which would be kept in memory for as long as the key lives.
            key: old.map_or_else(|| Bytes::copy_from_slice(&key), |old| old.key.clone()),
            value,
            create: old.map_or(revision, |old| old.create),
            modified: revision,
            version: old.map_or(1, |old| old.version + 1),
            lease,
            tombstone: false,
            hint,
            derived: OnceLock::new(),
            terms: None,
        };
        let table = self.table(table)?;
        if let Some(index) = &table.index {
            entry.terms = terms_of(&**index, &entry, old.map(|old| &**old), &table.now)?;
        }
        Ok(Arc::new(entry))
    }

    fn check_quota(&self, changes: &Changes) -> Result<(), CommitError> {
        let (mut more, mut less) = (0, 0);
        for change in changes {
            less += change.old.as_ref().map_or(0, |old| live_bytes(old));
            more += if change.new.tombstone { 0 } else { live_bytes(&change.new) };
        }
        let bytes = (self.bytes + more).saturating_sub(less);
        if more > less && bytes > self.bytes_max {
            return Err(CommitError::QuotaExceeded { bytes, bytes_max: self.bytes_max });
        }
        Ok(())
    }

    /// Does what was decided. Nothing here can fail.
    fn perform(&mut self, changes: Changes, revision: Revision, now: Duration) {
        self.revision = revision;
        for Change { table: id, old, new } in changes {
            self.attach(id, old.as_deref(), &new);
            self.touch(id);
            let live = (!new.tombstone).then_some(&new);
            self.bytes += live.map_or(0, |new| live_bytes(new));
            self.bytes = self.bytes.saturating_sub(old.as_ref().map_or(0, |old| live_bytes(old)));
            let table = &mut self.tables[id.index()];
            table.now.replace(old.as_ref(), live);
            let kind = if live.is_some() { EventKind::Put } else { EventKind::Delete };
            let event = Event { revision, kind, entry: new, previous: old };
            table.history.count(&event, table.now.log.end(), now);
            table.now.log.append(event);
            table.added += 1;
        }
    }

    fn attach(&mut self, table: TableId, old: Option<&Entry>, new: &Entry) {
        let before = old.and_then(|old| old.lease);
        let after = new.lease.filter(|_| !new.tombstone);
        if before == after {
            return;
        }
        if let Some(lease) = before {
            self.leases.detach(lease, table, &new.key);
        }
        if let Some(lease) = after {
            self.leases.attach(lease, table, &new.key);
        }
    }

    /// Fills an empty store. Nothing has changed if it fails.
    pub(crate) fn load(&mut self, image: Image, now: Duration) -> Result<(), RestoreError> {
        if self.revision > Revision::ZERO || !self.leases.is_empty() {
            return Err(RestoreError::NotEmpty { revision: self.revision });
        }
        let mut loaded = Vec::with_capacity(image.tables.len());
        for ImageTable { name, last, entries } in image.tables {
            let state = self.names.get(&*name).map(|id| &self.tables[id.index()]);
            let mut table = TableRoot::new(name, Log::restored(image.revision, last));
            let mut entries = entries;
            if let Some(index) = state.and_then(|state| state.index.as_deref()) {
                for entry in &mut entries {
                    let terms = terms_of(index, entry, None, &table)?;
                    // Nobody else has it yet.
                    if let Some(entry) = Arc::get_mut(entry) {
                        entry.terms = terms;
                    }
                    table.add_terms(entry);
                }
            }
            table.entries = Tree::from_sorted(entries.into_iter());
            loaded.push(table);
        }
        let fresh = loaded.iter().filter(|table| !self.names.contains_key(&table.name)).count();
        if self.tables.len() + fresh > TABLES_MAX {
            return Err(StoreError::TooManyTables { max: TABLES_MAX }.into());
        }
        self.revision = image.revision;
        self.floor = image.revision;
        self.leases.load(image.leases, image.last_lease, now);
        for table in loaded {
            self.load_table(table)?;
        }
        for index in 0..self.tables.len() {
            let id = TableId(index as u32);
            self.tables[index].now.log.raise_floor(image.revision);
            self.touch(id);
        }
        Ok(())
    }

    fn load_table(&mut self, mut loaded: TableRoot) -> Result<(), StoreError> {
        let id = match self.names.get(&loaded.name) {
            Some(id) => *id,
            None => self.add_table(loaded.name.clone(), Revision::ZERO)?,
        };
        for entry in loaded.entries.iter() {
            self.bytes += live_bytes(&entry);
            if let Some(lease) = entry.lease {
                self.leases.attach(lease, id, &entry.key);
            }
        }
        let table = &mut self.tables[id.index()];
        loaded.hub = table.now.hub.clone();
        table.history.restart(loaded.log.end());
        table.now = loaded;
        Ok(())
    }

    /// Ends a lease: its keys are deleted at one revision. None if there is no such lease.
    pub(crate) fn end_lease(&mut self, id: LeaseId, now: Duration) -> Option<Revision> {
        let keys = self.leases.end(id)?;
        let revision = self.revision.next();
        let mut changes = Changes::new();
        for (table, key) in keys {
            let Some(old) = self.tables.get(table.index()).and_then(|table| table.now.get(&key)) else {
                continue;
            };
            changes.push(Change { table, old: Some(old.clone()), new: Arc::new(old.tombstone(revision)) });
        }
        if !changes.is_empty() {
            self.perform(changes, revision, now);
        }
        Some(self.revision)
    }

    /// Ends the leases whose time has come, a bounded number of them; whether any did.
    pub(crate) fn advance(&mut self, now: Duration) -> bool {
        let mut ended = 0;
        while ended < LEASES_ENDED_MAX
            && let Some(id) = self.leases.due(now)
        {
            self.end_lease(id, now);
            ended += 1;
        }
        ended > 0
    }

    /// Raises the floor of every table; the memory is freed by the publications that follow.
    pub(crate) fn compact(&mut self, floor: Revision) -> Result<(), StoreError> {
        if floor > self.revision {
            return Err(StoreError::Future { asked: floor, published: self.revision });
        }
        self.floor = self.floor.max(floor);
        for index in 0..self.tables.len() {
            if self.tables[index].now.log.floor() < floor {
                self.tables[index].now.log.raise_floor(floor);
                self.touch(TableId(index as u32));
            }
        }
        Ok(())
    }

    /// Whether there is something to publish.
    pub(crate) fn is_dirty(&self) -> bool {
        self.moved || !self.dirty.is_empty()
    }

    /// The root that shows everything done so far. Tables that still have history to let go of stay marked, and are taken up
    /// again by the next publication.
    pub(crate) fn publish(&mut self, now: Duration) -> Root {
        let mut left = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let table = &mut self.tables[id.index()];
            table.dirty = table.history.trim(&mut table.now.log, now, table.added);
            table.added = 0;
            if table.dirty {
                left.push(id);
            }
            self.published.set(id, Arc::new(table.now.clone()));
        }
        self.dirty = left;
        self.moved = false;
        Root { revision: self.revision, tables: self.published.clone() }
    }

    /// Collects whom a publication wakes; to be called after it, for the tables that were dirty before it.
    pub(crate) fn tell(&self, tables: &[TableId], wakers: &mut Vec<Waker>) {
        for id in tables {
            let table = &self.tables[id.index()];
            table.now.hub.tell(&table.now.log, wakers);
        }
    }

    pub(crate) fn dirty(&self) -> SmallVec<[TableId; 4]> {
        self.dirty.iter().copied().collect()
    }

    /// What the past of all tables keeps in memory, in bytes.
    pub(crate) fn history_bytes(&self) -> usize {
        self.tables.iter().map(|table| table.history.bytes()).sum()
    }
}

fn live_bytes(entry: &Entry) -> u64 {
    (entry.key.len() + entry.value.len()) as u64
}

fn limit(what: &'static str, size: usize, max: usize) -> Result<(), CommitError> {
    if size > max { Err(CommitError::TooLarge { what, size, max }) } else { Ok(()) }
}

/// No two operations may touch the same key.
fn check_repeats(ops: &[Op]) -> Result<(), CommitError> {
    if ops.len() < 2 {
        return Ok(());
    }
    let overlap = |a: &Op, b: &Op| a.table() == b.table() && overlaps(a, b);
    let ranges: SmallVec<[&Op; 4]> = ops.iter().filter(|op| matches!(op, Op::DeleteRange { .. })).collect();
    let mut seen = HashSet::new();
    for (index, op) in ops.iter().enumerate() {
        let repeated = match op {
            Op::DeleteRange { .. } => ops[..index].iter().any(|earlier| overlap(earlier, op)),
            _ if ops.len() <= FEW_OPS => ops[..index].iter().any(|earlier| overlap(earlier, op)),
            Op::Put { table, key, .. } | Op::Delete { table, key } => {
                let in_range = ranges.iter().any(|range| overlap(range, op));
                !seen.insert((*table, key))
                    || (in_range && ops[..index].iter().any(|earlier| overlap(earlier, op)))
            }
        };
        if repeated {
            return Err(CommitError::RepeatedKey { index });
        }
    }
    Ok(())
}

fn overlaps(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::DeleteRange { range: a, .. }, Op::DeleteRange { range: b, .. }) => {
            let before = |end: &Option<Bytes>, start: &Bytes| end.as_ref().is_some_and(|end| end <= start);
            !before(&a.end, &b.start) && !before(&b.end, &a.start)
        }
        (Op::DeleteRange { range, .. }, Op::Put { key, .. } | Op::Delete { key, .. })
        | (Op::Put { key, .. } | Op::Delete { key, .. }, Op::DeleteRange { range, .. }) => {
            range.contains(key)
        }
        (
            Op::Put { key: a, .. } | Op::Delete { key: a, .. },
            Op::Put { key: b, .. } | Op::Delete { key: b, .. },
        ) => a == b,
    }
}
