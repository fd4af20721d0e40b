//! A store that has all of its watches checked.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::validate::Validator;
use crate::{
    Backup, BackupReader, Batch, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, ReadError,
    RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch, WatchError,
    WatchRequest, root::Published, watch::Hook,
};

/// Wraps a store and holds a [`Validator`] against every watch that is opened: what breaks one of the guarantees panics where
/// it is delivered. A watch that is dropped is compared with the list that its events must lead to, unless that list has been
/// compacted.
///
/// ```
/// use kstore::{MemoryStore, Store, TableSpec, Txn, WatchRequest, testing::CheckedStore};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = CheckedStore::new(MemoryStore::new());
/// let table = store.open_table(TableSpec::new("pods"))?;
/// let mut watch = store.watch(WatchRequest::new(table, store.snapshot().revision()))?;
/// store.commit(Txn::create(table, "a", "")).await?;
/// assert_eq!(watch.next().await?.events.len(), 1);
/// # Ok(()) }
/// ```
pub struct CheckedStore<S>(S);

impl<S> CheckedStore<S> {
    /// Wraps a store.
    pub fn new(store: S) -> Self {
        Self(store)
    }

    /// The store inside.
    pub fn inner(&self) -> &S {
        &self.0
    }
}

impl<S: fmt::Debug> fmt::Debug for CheckedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CheckedStore").field(&self.0).finish()
    }
}

/// Opens one watch that is checked as those of a [`CheckedStore`] are.
///
/// # Errors
/// As of [`Store::watch`].
pub fn checked_watch(store: &(impl Store + ?Sized), request: WatchRequest) -> Result<Watch, ReadError> {
    let watch = store.watch(request.clone())?;
    let list = store.snapshot().at_table(request.table, request.after);
    let validator = match &list {
        Ok(list) => Validator::new(list, request),
        Err(_) => Validator::without_list(request),
    };
    Ok(watch.hooked(Box::new(validator)))
}

impl Hook for Validator {
    fn batch(&mut self, batch: &Batch) -> Option<WatchError> {
        self.observe(batch);
        None
    }

    fn progress(&mut self, revision: Revision) {
        Validator::progress(self, revision);
    }

    fn dropped(&mut self, published: &Published) {
        // A test that has failed already says why by itself.
        if std::thread::panicking() {
            return;
        }
        let list = self.leads_to().map(|(table, at)| published.snapshot().at_table(table, at));
        if let Some(Ok(list)) = list {
            self.closes(&list);
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Leases for CheckedStore<S> {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.0.grant(ttl, id).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.0.keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.0.revoke(id).await
    }
    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.0.leases(id).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for CheckedStore<S> {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.0.open_table(spec)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.0.commit(txn).await
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.0.barrier().await
    }

    fn snapshot(&self) -> Snapshot {
        self.0.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        checked_watch(&self.0, request)
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.0.compact(floor).await
    }

    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        self.0.restore(backup).await
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        self.0.backup().await
    }

    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.0.snapshot_at(revision)
    }

    fn tables(&self) -> Vec<(String, TableId)> {
        self.0.tables()
    }
}
