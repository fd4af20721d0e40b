//! A store of your own under the API server: this one wraps the memory store and counts what is written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::ConfigMap;
use kplane::Cluster;
use kstore::{
    Backup, BackupReader, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, MemoryStore,
    ReadError, RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch,
    WatchRequest,
};
use kube::{Api, api::PostParams};
use serde_json::json;

#[derive(Debug, Default)]
struct Counting {
    inner: MemoryStore,
    commits: AtomicU64,
    conflicts: AtomicU64,
}

#[async_trait]
impl Store for Counting {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.inner.open_table(spec)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let result = self.inner.commit(txn).await;
        let counter =
            if matches!(result, Err(CommitError::Conflict { .. })) { &self.conflicts } else { &self.commits };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.inner.barrier().await
    }

    fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        self.inner.watch(request)
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.inner.compact(floor).await
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        self.inner.backup().await
    }

    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        self.inner.restore(backup).await
    }
}

#[async_trait]
impl Leases for Counting {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.inner.grant(ttl, id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.inner.keep_alive(id).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.inner.revoke(id).await
    }

    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.inner.leases(id).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let store = Arc::new(Counting::default());
    let cluster =
        Cluster::builder().nodes(0).without_controllers().store(Arc::clone(&store) as _).start().await?;
    let before = store.commits.load(Ordering::Relaxed);
    println!("a fresh cluster took {before} commits");
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let map = serde_json::from_value(json!({"metadata": {"name": "a"}}))?;
    maps.create(&PostParams::default(), &map).await?;
    ensure!(maps.create(&PostParams::default(), &map).await.is_err());
    let (commits, conflicts) =
        (store.commits.load(Ordering::Relaxed), store.conflicts.load(Ordering::Relaxed));
    println!("then {} commits, and {conflicts} that lost against what was there", commits - before);
    ensure!((commits - before, conflicts) == (1, 1));
    cluster.shutdown().await?;
    Ok(())
}
