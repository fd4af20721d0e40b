//! What a database elsewhere did: its revisions, versions and tombstones are taken as they are.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;

use super::{Change, Changes, Core, check_repeats, limit, live_bytes, terms_of};
use crate::{
    CommitError, Entry, LeaseId, Op, Revision, StoreError, TableId, Txn,
    backup::{Image, ImageTable},
    entry::Opaque,
    events::Log,
    root::TableRoot,
    txn::{KEY_BYTES_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX},
};

/// A key as it stands elsewhere, or, without `state`, its deletion.
pub(crate) struct Foreign {
    pub(crate) table: Arc<str>,
    pub(crate) key: Bytes,
    pub(crate) state: Option<ForeignState>,
}

/// What stands under a key elsewhere.
pub(crate) struct ForeignState {
    pub(crate) value: Bytes,
    pub(crate) create: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) hint: Option<Opaque>,
}

impl ForeignState {
    pub(crate) fn entry(self, key: Bytes) -> Entry {
        Entry {
            key,
            value: self.value,
            create: self.create,
            modified: self.modified,
            version: self.version,
            lease: self.lease,
            tombstone: false,
            hint: self.hint,
            derived: OnceLock::new(),
            terms: None,
        }
    }
}

impl Core {
    /// Refuses what the tables here would refuse; whether comparisons hold is for others to say.
    pub(crate) fn check_foreign(&self, txn: &Txn) -> Result<(), CommitError> {
        limit("the number of comparisons", txn.compares.len(), TXN_OPS_MAX)?;
        limit("the number of operations", txn.ops.len(), TXN_OPS_MAX)?;
        for compare in &txn.compares {
            self.table(compare.target().0)?;
        }
        for (index, op) in txn.ops.iter().enumerate() {
            let table = self.table(op.table())?;
            let (Op::Put { key, .. } | Op::Delete { key, .. }) = op else { continue };
            limit("a key in bytes", key.len(), KEY_BYTES_MAX)?;
            if key.is_empty() {
                return Err(CommitError::EmptyKey { index });
            }
            if let Op::Put { value, lease, hint, .. } = op {
                limit("a value in bytes", value.len(), VALUE_BYTES_MAX)?;
                let old = table.now.get(key).cloned();
                let (value, hint) = (value.clone(), hint.clone());
                // Made for its terms, which may be too many.
                self.entry(op.table(), key.clone(), value, *lease, hint, old.as_ref(), self.revision.next())?;
            }
        }
        check_repeats(&txn.ops)
    }

    /// Does what was done elsewhere at one revision.
    pub(crate) fn perform_foreign(
        &mut self,
        revision: Revision,
        changes: Vec<Foreign>,
        now: Duration,
    ) -> Result<(), StoreError> {
        let mut made = Changes::new();
        for Foreign { table, key, state } in changes {
            let id = self.foreign_table(&table)?;
            let table = self.table(id)?;
            let old = table.now.get(&key).cloned();
            let new = match (state, &old) {
                (Some(state), _) => {
                    let mut entry = state.entry(old.as_ref().map_or(key, |old| old.key.clone()));
                    if let Some(index) = &table.index {
                        // A function that fails on what others wrote must not stop everything: the entry is then found under
                        // its key alone.
                        let terms = || terms_of(&**index, &entry, old.as_deref(), &table.now).ok().flatten();
                        entry.terms = catch_unwind(AssertUnwindSafe(terms)).unwrap_or_default();
                    }
                    Arc::new(entry)
                }
                (None, Some(old)) => Arc::new(old.tombstone(revision)),
                // It came and went between what is known.
                (None, None) => continue,
            };
            made.push(Change { table: id, old, new });
        }
        if !made.is_empty() {
            self.perform(made, revision, now);
        }
        self.reach(revision);
        Ok(())
    }

    /// The number of a table that is known.
    pub(crate) fn table_id(&self, name: &str) -> Option<TableId> {
        self.names.get(name).copied()
    }

    /// Nothing happened up to this revision that would not be here.
    pub(crate) fn reach(&mut self, revision: Revision) {
        if revision > self.revision {
            self.revision = revision;
        }
        self.moved = true;
    }

    fn foreign_table(&mut self, name: &Arc<str>) -> Result<TableId, StoreError> {
        match self.names.get(name) {
            Some(id) => Ok(*id),
            None => self.add_table(name.clone(), Revision::ZERO),
        }
    }

    /// Takes over what stands elsewhere at a revision, after what led there was lost: the history here ends, and begins anew.
    pub(crate) fn reload_foreign(&mut self, image: Image) -> Result<(), StoreError> {
        let mut known: HashMap<Arc<str>, ImageTable> =
            image.tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        let names: Vec<Arc<str>> = known.keys().cloned().collect();
        for name in names {
            self.foreign_table(&name)?;
        }
        self.floor = image.revision;
        self.revision = image.revision;
        self.bytes = 0;
        for index in 0..self.tables.len() {
            let id = TableId(index as u32);
            let state = &self.tables[index];
            let entries = known.remove(&state.now.name).map(|table| table.entries).unwrap_or_default();
            let last = entries.iter().map(|entry| entry.modified).max().unwrap_or_default();
            let log = Log::resumed(image.revision, last, state.now.log.end() + 1);
            let mut table = TableRoot::new(state.now.name.clone(), log);
            let mut bytes = 0;
            for mut entry in entries {
                if let Some(index) = state.index.as_deref() {
                    let terms = || terms_of(index, &entry, None, &table).ok().flatten();
                    let terms = catch_unwind(AssertUnwindSafe(terms)).unwrap_or_default();
                    // Nobody else has it yet.
                    if let Some(entry) = Arc::get_mut(&mut entry) {
                        entry.terms = terms;
                    }
                }
                bytes += live_bytes(&entry);
                table.replace(None, Some(&entry));
            }
            self.bytes += bytes;
            let state = &mut self.tables[index];
            table.hub = state.now.hub.clone();
            state.history.restart(table.log.end());
            state.now = table;
            self.touch(id);
        }
        self.moved = true;
        Ok(())
    }
}
