//! Everything that a run writes, in a number: two runs that wrote the same at the same time have the same one.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use kstore::{
    Backup, BackupReader, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, Op, ReadError,
    RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch, WatchRequest,
};
use tokio::time::Instant;

use super::lock;

/// What a run wrote: how much, and a hash over each write's verb, table, key, value, revision and time since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// How many writes there were, those that were refused counted.
    pub writes: u64,
    /// The hash of all of them in their order. It is compared between runs of one build only.
    pub hash: u64,
    /// How long the run took, in the cluster's time.
    pub time: Duration,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} writes in {:?}, {:016x}", self.writes, self.time, self.hash)
    }
}

/// A store that keeps a [`Trace`] of what is committed to another one.
pub(super) struct TracedStore {
    store: Arc<dyn Store>,
    started: Instant,
    is_printed: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tables: Vec<(TableId, String)>,
    hasher: DefaultHasher,
    writes: u64,
}

impl fmt::Debug for TracedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracedStore").field("store", &self.store).finish_non_exhaustive()
    }
}

impl TracedStore {
    /// Traces what is written to `store`, and prints it as it comes if it `is_printed`.
    pub(super) fn new(store: Arc<dyn Store>, is_printed: bool) -> Self {
        Self { store, started: Instant::now(), is_printed, state: Mutex::default() }
    }

    /// What has been written up to now.
    pub(super) fn trace(&self) -> Trace {
        let state = lock(&self.state);
        Trace { writes: state.writes, hash: state.hasher.finish(), time: self.started.elapsed() }
    }

    fn note(&self, txn: &Txn, revision: Option<Revision>) {
        let mut state = lock(&self.state);
        let time = self.started.elapsed();
        for op in txn.ops() {
            let (verb, table, key, value): (_, _, &[u8], &[u8]) = match op {
                Op::Put { table, key, value, .. } => ("put", table, key, value),
                Op::Delete { table, key } => ("delete", table, key, &[]),
                Op::DeleteRange { table, .. } => ("delete all", table, &[], &[]),
            };
            let table = state.tables.iter().find(|(id, _)| id == table);
            let table = table.map(|(_, name)| name.clone()).unwrap_or_default();
            (time, verb, &table, key, value, revision).hash(&mut state.hasher);
            state.writes += 1;
            if self.is_printed {
                let (hash, key) = (state.hasher.finish(), String::from_utf8_lossy(key).replace('\0', "/"));
                let value = String::from_utf8_lossy(value);
                println!("{time:?} {verb} {table} {key} {revision:?} {hash:016x} {value}");
            }
        }
    }
}

#[async_trait]
impl Leases for TracedStore {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.store.grant(ttl, id).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.store.keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.store.revoke(id).await
    }
    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.store.leases(id).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for TracedStore {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        let id = self.store.open_table(spec)?;
        lock(&self.state).tables = self.store.tables().into_iter().map(|(name, id)| (id, name)).collect();
        Ok(id)
    }
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let asked = txn.clone();
        let committed = self.store.commit(txn).await;
        self.note(&asked, committed.as_ref().ok().map(|committed| committed.revision));
        committed
    }
    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.store.barrier().await
    }
    fn snapshot(&self) -> Snapshot {
        self.store.snapshot()
    }
    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        self.store.watch(request)
    }
    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.store.compact(floor).await
    }
    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        self.store.restore(backup).await
    }
    async fn backup(&self) -> Result<Backup, StoreError> {
        self.store.backup().await
    }
    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.store.snapshot_at(revision)
    }
    fn tables(&self) -> Vec<(String, TableId)> {
        self.store.tables()
    }
}
