//! The face of etcd: a store served to clients of etcd's v3 API over gRPC, behind the feature `serve`.
//!
//! `etcdctl`, upstream's kube-apiserver and every client library of etcd find in it what they find in an etcd with one
//! member. The keys of the clients are those of one table of the store, which belongs to the face: nothing else may write it.
//!
//! | service | what is there |
//! |---|---|
//! | `KV` | all of it, nested transactions and comparisons of ranges included |
//! | `Watch` | all of it: previous values, filters, fragments, progress on demand and by time |
//! | `Lease` | all of it |
//! | `Maintenance` | status, hash, hash of a revision, snapshot (a back-up of this crate, not a bbolt file), alarms (there are none), defragmentation (there is nothing to do) |
//! | `Cluster` | the list of its one member |
//! | `Auth` | the status, which is "disabled" |
//! | `grpc.health.v1.Health` | `Check` |
//!
//! What is not there answers `UNIMPLEMENTED`. Over HTTP/1.1 and HTTP/2 on the same port: `/health`, `/readyz`, `/livez`,
//! `/version`, and etcd's JSON gateway (`POST /v3/kv/range` and so on) for everything above.
//!
//! ```text
//! curl http://127.0.0.1:2379/v3/kv/put -d '{"key": "Zm9v", "value": "YmFy"}'
//! curl http://127.0.0.1:2379/v3/watch -N -d '{"create_request": {"key": "Zm9v", "start_revision": "1"}}'
//! ```
//!
//! A newcomer starts at [`EtcdServer`].

mod calls;
mod cluster;
mod compare;
#[cfg(all(test, feature = "etcd"))]
mod differential;
mod digest;
mod faults;
mod gateway;
mod gather;
mod grpc;
mod http1;
mod intervals;
mod kv;
mod lease;
mod listen;
mod maintenance;
mod plan;
mod range;
mod turn;
mod unary;
mod watch;
mod watching;

use std::{
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    CommitError, Compare, HistoryLimits, Op, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn,
    proto::ResponseHeader,
};

pub use listen::ServeError;

/// The version of etcd that clients are told: they use what that version has.
pub const ETCD_VERSION: &str = "3.6.5";
/// The version of the cluster, which goes by minor versions.
pub(crate) const CLUSTER_VERSION: &str = "3.6.0";
/// How many operations a transaction may have in one of its lists: etcd's default of `--max-txn-ops`.
pub const TXN_OPS_DEFAULT: usize = 128;
/// How large a request may be in bytes: etcd's default of `--max-request-bytes`.
pub const REQUEST_BYTES_DEFAULT: usize = 1_572_864;
/// What a message may have beside the request that it carries, as in etcd.
pub(crate) const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;
/// After how long without an event a watch that wants to is told where the store is: etcd's default.
pub const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(10 * 60);
/// How many earlier states are kept at hand for clients that read page after page at one revision.
const PAST_MAX: usize = 8;

/// A store as a server of etcd's v3 API.
///
/// ```
/// use std::sync::Arc;
/// use kstore::{EtcdServer, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = EtcdServer::new(Arc::new(MemoryStore::new())).await?;
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// println!("etcdctl --endpoints {} get --prefix /", listener.local_addr()?);
/// // It serves until the future that it is given is there; here at once.
/// server.serve(listener, async {}).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EtcdServer {
    pub(crate) face: Arc<Face>,
}

/// How an [`EtcdServer`] is made.
///
/// | setting | default |
/// |---|---|
/// | `table` | `keys` |
/// | `name` | `default` |
/// | `client_urls` | none |
/// | `txn_ops_max` | [`TXN_OPS_DEFAULT`] |
/// | `request_bytes_max` | [`REQUEST_BYTES_DEFAULT`] |
/// | `progress_interval` | [`PROGRESS_INTERVAL_DEFAULT`] |
/// | `history` | of any age, otherwise the limits of [`HistoryLimits`] |
#[derive(Clone)]
pub struct EtcdServerBuilder {
    store: Arc<dyn Store>,
    table: String,
    settings: Settings,
    history: HistoryLimits,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) client_urls: Vec<String>,
    pub(crate) txn_ops_max: usize,
    pub(crate) request_bytes_max: usize,
    pub(crate) progress_interval: Duration,
}

/// What all connections share.
pub(crate) struct Face {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) table: TableId,
    pub(crate) settings: Settings,
    cluster_id: u64,
    /// The revision that clients compacted at: reads before it are refused, though the store may still have it.
    compacted: AtomicU64,
    /// Held alone by a transaction that the store can't check by itself, and by everything else that writes together.
    pub(crate) alone: tokio::sync::RwLock<()>,
    /// Earlier states that were read lately, newest first.
    past: Mutex<Vec<Snapshot>>,
    /// As of when someone asked last.
    digest: tokio::sync::Mutex<digest::Digest>,
}

impl EtcdServerBuilder {
    /// The table that holds the keys.
    #[must_use]
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// The name of the member.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where clients are told that the member is found.
    #[must_use]
    pub fn client_urls(mut self, urls: impl IntoIterator<Item = String>) -> Self {
        self.settings.client_urls = urls.into_iter().collect();
        self
    }

    /// How many operations a transaction may have in one of its lists.
    #[must_use]
    pub fn txn_ops_max(mut self, max: usize) -> Self {
        self.settings.txn_ops_max = max;
        self
    }

    /// How large a request may be, in bytes.
    #[must_use]
    pub fn request_bytes_max(mut self, max: usize) -> Self {
        self.settings.request_bytes_max = max;
        self
    }

    /// After how long without an event a watch that wants to is told where the store is.
    #[must_use]
    pub fn progress_interval(mut self, interval: Duration) -> Self {
        self.settings.progress_interval = interval.max(Duration::from_millis(100));
        self
    }

    /// How much of the past is kept, beside what clients compact; holds when the table is opened for the first time. It is
    /// what etcd calls automatic compaction.
    #[must_use]
    pub fn history(mut self, history: HistoryLimits) -> Self {
        self.history = history;
        self
    }

    /// Makes the server. In a store in which nothing was ever written, it takes the first revision for a name of the
    /// cluster, so that clients find revision 1 in an empty etcd, as they are used to.
    ///
    /// # Errors
    /// When the tables can't be opened or written.
    pub async fn build(self) -> Result<EtcdServer, CommitError> {
        let table = self.store.open_table(TableSpec::new(self.table.clone()).history(self.history))?;
        let about = self.store.open_table(TableSpec::new(format!("{}.about", self.table)))?;
        let cluster_id = cluster_id(&*self.store, about).await?;
        let face = Face {
            store: self.store,
            table,
            settings: self.settings,
            cluster_id,
            compacted: AtomicU64::new(0),
            alone: tokio::sync::RwLock::new(()),
            past: Mutex::default(),
            digest: tokio::sync::Mutex::default(),
        };
        Ok(EtcdServer { face: Arc::new(face) })
    }
}

/// The number that was given to this cluster, or a new one.
async fn cluster_id(store: &dyn Store, table: TableId) -> Result<u64, CommitError> {
    const KEY: &[u8] = b"cluster-id";
    let kept = |snapshot: &Snapshot| {
        let entry = snapshot.get(table, KEY)?;
        Some(u64::from_be_bytes(entry.value()[..].try_into().ok()?))
    };
    store.barrier().await?;
    if let Some(kept) = kept(&store.snapshot()) {
        return Ok(kept);
    }
    // The standard library's hasher begins with what the system has of chance.
    let id = std::hash::RandomState::new().build_hasher().finish();
    let txn =
        Txn::new().compare(Compare::absent(table, KEY)).op(Op::put(table, KEY, id.to_be_bytes().to_vec()));
    match store.commit(txn).await {
        Ok(_) => Ok(id),
        // Another server over the same store was faster.
        Err(CommitError::Conflict { .. }) => kept(&store.snapshot()).ok_or(CommitError::UnknownOutcome),
        Err(error) => Err(error),
    }
}

impl EtcdServer {
    /// A server with the defaults of [`EtcdServerBuilder`].
    ///
    /// # Errors
    /// As of [`EtcdServerBuilder::build`].
    pub async fn new(store: Arc<dyn Store>) -> Result<Self, CommitError> {
        Self::builder(store).build().await
    }

    /// Sets what is not to be the default.
    pub fn builder(store: Arc<dyn Store>) -> EtcdServerBuilder {
        let settings = Settings {
            name: "default".to_owned(),
            client_urls: Vec::new(),
            txn_ops_max: TXN_OPS_DEFAULT,
            request_bytes_max: REQUEST_BYTES_DEFAULT,
            progress_interval: PROGRESS_INTERVAL_DEFAULT,
        };
        // etcd keeps the past until it is told to compact it.
        let history = HistoryLimits { age_max: Duration::MAX, ..HistoryLimits::default() };
        EtcdServerBuilder { store, table: "keys".to_owned(), settings, history }
    }
}

impl fmt::Debug for EtcdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServer").field("store", &self.face.store).finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServerBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Face {
    /// The number of the one member, which is any number but 0.
    pub(crate) fn member_id(&self) -> u64 {
        self.cluster_id.rotate_left(32) | 1
    }

    pub(crate) fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id(),
            revision: number(revision.0),
            raft_term: 1,
        }
    }

    /// Where the store is, for answers that read nothing.
    pub(crate) fn header_now(&self) -> ResponseHeader {
        self.header(self.store.snapshot().revision())
    }

    /// The newest state; with `serializable`, as it is known here.
    pub(crate) async fn newest(&self, serializable: bool) -> Result<Snapshot, StoreError> {
        if !serializable {
            self.store.barrier().await?;
        }
        Ok(self.store.snapshot())
    }

    /// The revision before which nothing can be read.
    pub(crate) fn compacted(&self, snapshot: &Snapshot) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire)).max(snapshot.table_floor(self.table))
    }

    pub(crate) fn compact_to(&self, revision: Revision) {
        self.compacted.fetch_max(revision.0, Ordering::AcqRel);
        self.past().retain(|past| past.revision() >= revision);
    }

    /// The state at an earlier revision. Pages of one list ask for the same one again and again.
    pub(crate) fn at(&self, now: &Snapshot, revision: Revision) -> Result<Snapshot, crate::ReadError> {
        if revision == now.revision() {
            return Ok(now.clone());
        }
        if let Some(known) = self.past().iter().find(|past| past.revision() == revision) {
            return Ok(known.clone());
        }
        let past = now.at_table(self.table, revision)?;
        let mut known = self.past();
        known.insert(0, past.clone());
        known.truncate(PAST_MAX);
        Ok(past)
    }

    fn past(&self) -> std::sync::MutexGuard<'_, Vec<Snapshot>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers are signed on the wire, and none of ours comes near the limit.
pub(crate) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
