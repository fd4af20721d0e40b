//! Doing again what was done before: how a log leads to the state that it is the log of.

use std::{sync::Arc, time::Duration};

use super::{Changes, Core};
use crate::{
    Durability, LEASE_TTL_MAX, LeaseId, Op, Revision, StoreError, TableId, TableSpec, events::Log,
    root::TableRoot,
};

/// Why a record cannot follow from the state before it.
pub(crate) type Contradiction = &'static str;

impl Core {
    /// Does the operations of a transaction that took `revision`.
    pub(crate) fn replay_txn(&mut self, revision: Revision, ops: Vec<Op>) -> Result<(), Contradiction> {
        if revision <= self.revision {
            return Err("its revision was taken before");
        }
        let impossible = |_| "one of its operations is impossible";
        self.check_sizes(&[], &ops).map_err(impossible)?;
        super::check_repeats(&ops).map_err(impossible)?;
        let mut changes = Changes::new();
        for op in ops {
            let old = match &op {
                Op::DeleteRange { .. } => None,
                Op::Put { table, key, .. } | Op::Delete { table, key } => {
                    self.tables.get(table.index()).and_then(|table| table.now.get(key).cloned())
                }
            };
            self.decide(op, old, revision, &mut changes).map_err(impossible)?;
        }
        self.perform(changes, revision, Duration::ZERO);
        Ok(())
    }

    /// Ends a lease, which led to `revision`.
    pub(crate) fn replay_lease_end(&mut self, id: LeaseId, revision: Revision) -> Result<(), Contradiction> {
        if revision < self.revision || !self.leases.contains(id) {
            return Err("the lease that it ends is not there");
        }
        self.revision = if revision > self.revision { revision.previous() } else { revision };
        self.end_lease(id, Duration::ZERO);
        // Keys of tables that are not logged may have been deleted with it; they are not here.
        if self.revision > revision {
            return Err("the lease that it ends has keys that it does not know of");
        }
        self.revision = revision;
        Ok(())
    }

    /// Makes a table that has `id`, or says how durable it is from now on.
    pub(crate) fn replay_table(
        &mut self,
        id: TableId,
        name: &str,
        durability: Durability,
    ) -> Result<(), Contradiction> {
        let found = match self.names.get(name) {
            Some(found) => *found,
            None => self.add_table(name.into(), Revision::ZERO).map_err(|_| "there are too many tables")?,
        };
        if found != id || name.is_empty() {
            return Err("a table has another number than it had");
        }
        self.tables[id.index()].durability = durability;
        Ok(())
    }

    /// How durable the table is; `Sync` if there is none.
    pub(crate) fn durability(&self, id: TableId) -> Durability {
        self.tables.get(id.index()).map(|table| table.durability).unwrap_or_default()
    }

    /// How durable each table is, in their order.
    pub(crate) fn durabilities(&self) -> impl Iterator<Item = Durability> {
        self.tables.iter().map(|table| table.durability)
    }

    /// The table of that name, and whether a caller has opened it.
    pub(crate) fn find_table(&self, name: &str) -> Option<(TableId, bool)> {
        let id = *self.names.get(name)?;
        Some((id, self.tables[id.index()].opened))
    }

    /// Opens a table; what it shows now.
    pub(crate) fn open_shown(&mut self, spec: TableSpec) -> Result<(TableId, Arc<TableRoot>), StoreError> {
        let id = self.open_table(spec)?;
        Ok((id, Arc::new(self.tables[id.index()].now.clone())))
    }

    /// Takes everything out of a table whose entries are not meant to outlive a restart.
    pub(crate) fn empty_table(&mut self, id: TableId) {
        let revision = self.revision;
        let gone: Vec<_> = self.tables[id.index()].now.entries.iter().collect();
        for entry in gone {
            self.bytes = self.bytes.saturating_sub(super::live_bytes(&entry));
            if let Some(lease) = entry.lease {
                self.leases.detach(lease, id, &entry.key);
            }
        }
        let table = &mut self.tables[id.index()];
        let log = Log::restored(revision, table.now.log.last_revision());
        let hub = table.now.hub.clone();
        table.now = TableRoot::new(table.now.name.clone(), log);
        table.now.hub = hub;
        table.history.restart(table.now.log.end());
        self.touch(id);
    }

    /// Goes on above `revision`; what may have happened up to there is not known, so no history reaches back behind it.
    pub(crate) fn skip_to(&mut self, revision: Revision) {
        if revision <= self.revision {
            return;
        }
        self.revision = revision;
        self.floor = revision;
        for index in 0..self.tables.len() {
            self.tables[index].now.log.raise_floor(revision);
            self.touch(TableId(index as u32));
        }
    }

    /// Puts a lease in as it was: it ends at `deadline`.
    pub(crate) fn replay_lease(
        &mut self,
        id: LeaseId,
        ttl: Duration,
        deadline: Duration,
        last: u64,
    ) -> Result<(), Contradiction> {
        if ttl.is_zero() || ttl > LEASE_TTL_MAX {
            return Err("a lease cannot live so long");
        }
        self.leases.set(id, ttl, deadline, last);
        Ok(())
    }
}
