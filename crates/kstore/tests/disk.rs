//! The disk engine keeps what the conformance suite asks for, and what it promises beyond that.
#![cfg(all(feature = "disk", unix))]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kstore::{DiskStore, Store, SyncPolicy, testing};

/// Directories that go when the test ends.
struct Directories(tempfile::TempDir, AtomicUsize);

impl Directories {
    fn new() -> Arc<Directories> {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        Arc::new(Directories(directory, AtomicUsize::new(0)))
    }

    fn next(&self) -> std::path::PathBuf {
        self.0.path().join(self.1.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn store(&self, policy: SyncPolicy) -> Arc<dyn Store> {
        let store = DiskStore::builder(self.next()).sync(policy).segment_bytes(256 * 1024);
        Arc::new(store.checkpoint_bytes(64 * 1024).open().unwrap_or_else(|error| panic!("{error}")))
    }
}

async fn conforms(policy: SyncPolicy) {
    let directories = Directories::new();
    testing::conformance(|| {
        let directories = directories.clone();
        async move { directories.store(policy) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads() {
    conforms(SyncPolicy::EveryCommit).await;
}

#[tokio::test]
async fn conforms_on_one_thread() {
    conforms(SyncPolicy::EveryCommit).await;
}

#[tokio::test]
async fn conforms_with_an_interval() {
    conforms(SyncPolicy::Interval(Duration::from_millis(1))).await;
}

#[tokio::test]
async fn conforms_without_syncs() {
    conforms(SyncPolicy::Never).await;
}

#[tokio::test(start_paused = true)]
async fn leases_conform() {
    let directories = Directories::new();
    testing::lease_conformance(|| {
        let directories = directories.clone();
        async move { directories.store(SyncPolicy::EveryCommit) }
    })
    .await;
}
