//! An embeddable, watchable, transactional key-value store with one revision space.
//!
//! Keys and values are bytes, in tables. A commit compares and changes any number of keys in one step and takes the next
//! revision. Reads work on immutable snapshots, take no lock and hold nobody up. Watches are places in a log that they
//! share, not queues. It is what an API server of Kubernetes needs of its database and of its watch cache, in one
//! structure; it knows nothing of Kubernetes.
//!
//! A newcomer starts at the trait [`Store`] and its engine [`MemoryStore`]:
//!
//! ```
//! use std::sync::Arc;
//! use kstore::{Interest, MemoryStore, Range, Store, TableSpec, Term, Txn, WatchRequest, index_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
//! // The first word of the value says on which node a pod is.
//! let by_node = index_fn(|entry, terms| {
//!     terms.extend(entry.value().split(|byte| *byte == b' ').next().map(Term::from));
//! });
//! let pods = store.open_table(TableSpec::new("pods").index(by_node))?;
//!
//! let created = store.commit(Txn::create(pods, "default/web", "node-1 running")).await?;
//! let snapshot = store.snapshot();
//! assert_eq!(snapshot.range(pods, Range::prefix("default/")).count(), 1);
//! assert_eq!(snapshot.by_term(pods, &Term::from("node-1")).count(), 1);
//!
//! // List, then watch: without a gap, and woken by nothing but node-1.
//! let request = WatchRequest::new(pods, snapshot.revision()).interest(Interest::Term("node-1".into()));
//! let mut watch = store.watch(request)?;
//! store.commit(Txn::update(pods, "default/web", created.revision, "node-2 running")).await?;
//! let batch = watch.next().await?;
//! assert_eq!(&batch.events[0].previous.as_ref().ok_or("no previous")?.value()[..], b"node-1 running");
//! # Ok(()) }
//! ```
//!
//! What an engine must keep is checked by `testing::conformance`, behind the feature `testing`.

#![forbid(unsafe_code)]
// What is asked for.
mod entry;
mod error;
mod range;
mod revision;
mod store;
mod table;
mod txn;

// What is read.
mod events;
mod snapshot;
mod watch;

// How it is done.
mod combine;
mod compaction;
mod core;
mod hub;
mod lease;
mod root;
mod sequencer;
mod sync;
mod terms;
mod tree;

// Engines and what they share.
mod backup;
mod checksum;
#[cfg(all(feature = "disk", unix))]
mod disk;
mod memory;

// What is spoken with etcd and its clients.
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(any(feature = "etcd", feature = "serve"))]
#[cfg_attr(
    not(feature = "serve"),
    allow(dead_code, reason = "the engine asks for less than the face answers")
)]
mod proto;
#[cfg(feature = "replica")]
mod replica;
#[cfg(feature = "serve")]
mod serve;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use backup::{Backup, BackupReader};
#[cfg(all(feature = "disk", unix))]
pub use disk::{DiskStore, DiskStoreBuilder, OpenError, RecoveryReport, SyncPolicy};
pub use entry::{Entry, Opaque};
pub use error::{CommitError, LeaseError, ReadError, RestoreError, StoreError, WatchError};
#[cfg(feature = "etcd")]
pub use etcd::{CALL_TIME_DEFAULT, Etcd, EtcdBuilder, EtcdError, EtcdStore, EtcdTls, PREFIX_DEFAULT};
pub use events::{Event, EventKind};
pub use lease::{LEASE_TTL_MAX, LEASES_MAX, LeaseId, LeaseInfo, Leases};
pub use memory::{MemoryStore, MemoryStoreBuilder};
pub use range::Range;
#[cfg(feature = "replica")]
pub use replica::{
    ARRIVAL_TIME_MAX, Remote, RemoteChange, RemoteEntry, RemoteError, RemoteEvent, RemoteLease, RemoteLoad,
    RemoteOutcome, RemoteTxn, Replica,
};
pub use revision::Revision;
#[cfg(feature = "serve")]
pub use serve::{
    ETCD_VERSION, EtcdServer, EtcdServerBuilder, PROGRESS_INTERVAL_DEFAULT, REQUEST_BYTES_DEFAULT,
    ServeError, TXN_OPS_DEFAULT,
};
pub use snapshot::{Difference, Entries, Snapshot, VerifyError};
pub use store::Store;
pub use table::{
    Durability, HistoryLimits, IndexFn, TABLES_MAX, TERMS_MAX, TableId, TableSpec, Term, index_fn,
};
pub use txn::{
    Committed, Compare, KEY_BYTES_MAX, Op, Operand, Outcome, Relation, TXN_CHANGES_MAX, TXN_OPS_MAX, Txn,
    VALUE_BYTES_MAX,
};
pub use watch::{BATCH_EVENTS_MAX, Batch, Interest, Watch, WatchRequest};
