//! A store that does to its callers what networks, disks and other writers do.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::Random;
use crate::{
    Backup, BackupReader, CommitError, Committed, LeaseError, LeaseId, LeaseInfo, Leases, ReadError,
    RestoreError, Revision, Snapshot, Store, StoreError, TableId, TableSpec, Txn, Watch, WatchError,
    WatchRequest,
};

/// How often what goes wrong, in a thousand times. By default nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// What the sequence of faults follows from.
    pub seed: u64,
    /// A commit or barrier waits up to so long first.
    pub delay_max: Duration,
    /// A commit with comparisons fails as if another writer had come first; `current` is what is there.
    pub conflicts_per_mille: u16,
    /// A commit is done, and the answer lost.
    pub lost_answers_per_mille: u16,
    /// A commit is lost before it is done. The caller sees the same as with a lost answer.
    pub lost_commits_per_mille: u16,
    /// A watch is refused as if its past were compacted.
    pub refused_watches_per_mille: u16,
    /// A watch ends, instead of delivering a batch, as if it had fallen behind.
    pub ended_watches_per_mille: u16,
}

/// Wraps a store and injects the faults of a [`FaultPlan`], the same ones for the same seed and order of calls.
///
/// The store inside keeps all of its promises; what the callers are told is what changes.
///
/// ```
/// use kstore::{CommitError, MemoryStore, Op, Store, TableSpec, Txn, testing::{FaultPlan, FaultyStore}};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let plan = FaultPlan { seed: 1, lost_answers_per_mille: 1_000, ..FaultPlan::default() };
/// let store = FaultyStore::new(MemoryStore::new(), plan);
/// let table = store.open_table(TableSpec::new("pods"))?;
/// let lost = store.commit(Txn::create(table, "a", "")).await;
/// assert!(matches!(lost, Err(CommitError::UnknownOutcome)));
/// assert!(store.snapshot().get(table, b"a").is_some());
/// # Ok(()) }
/// ```
pub struct FaultyStore<S> {
    inner: S,
    plan: Arc<Mutex<(FaultPlan, Random)>>,
}

impl<S> FaultyStore<S> {
    /// Wraps a store.
    pub fn new(inner: S, plan: FaultPlan) -> FaultyStore<S> {
        FaultyStore { inner, plan: Arc::new(Mutex::new((plan, Random::new(plan.seed)))) }
    }

    /// Changes the plan from now on; the sequence of random numbers goes on.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).0 = plan;
    }

    /// The store inside.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn draw<T>(&self, draw: impl FnOnce(&FaultPlan, &mut Random) -> T) -> T {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let (plan, random) = &mut *plan;
        draw(plan, random)
    }

    async fn delay(&self) {
        let delay = self.draw(|plan, random| {
            let nanos = u64::try_from(plan.delay_max.as_nanos()).unwrap_or(u64::MAX);
            Duration::from_nanos(random.below(nanos))
        });
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyStore").field(&self.inner).finish()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Leases for FaultyStore<S> {
    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.delay().await;
        self.inner.grant(ttl, id).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.delay().await;
        self.inner.keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.delay().await;
        self.inner.revoke(id).await
    }
    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<LeaseInfo>, LeaseError> {
        self.delay().await;
        self.inner.leases(id).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for FaultyStore<S> {
    fn open_table(&self, spec: TableSpec) -> Result<TableId, StoreError> {
        self.inner.open_table(spec)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.delay().await;
        let (conflict, lost_commit, lost_answer) = self.draw(|plan, random| {
            let conflict = random.happens(plan.conflicts_per_mille);
            (
                conflict,
                random.happens(plan.lost_commits_per_mille),
                random.happens(plan.lost_answers_per_mille),
            )
        });
        if let Some(compare) = txn.compares().first().filter(|_| conflict) {
            let (table, key) = compare.target();
            let snapshot = self.inner.snapshot();
            let (current, revision) = (snapshot.get(table, key), snapshot.revision());
            return Err(CommitError::Conflict { index: 0, current, revision });
        }
        if lost_commit {
            return Err(CommitError::UnknownOutcome);
        }
        let result = self.inner.commit(txn).await;
        self.delay().await;
        if lost_answer { Err(CommitError::UnknownOutcome) } else { result }
    }

    async fn barrier(&self) -> Result<Revision, StoreError> {
        self.delay().await;
        self.inner.barrier().await
    }

    fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, ReadError> {
        let snapshot = self.inner.snapshot();
        if self.draw(|plan, random| random.happens(plan.refused_watches_per_mille)) {
            return Err(ReadError::Compacted { asked: request.after, floor: snapshot.revision() });
        }
        let plan = self.plan.clone();
        let watch = self.inner.watch(request)?;
        Ok(watch.with_hook(move |batch| {
            let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
            let (plan, random) = &mut *plan;
            let ends = random.happens(plan.ended_watches_per_mille);
            ends.then_some(WatchError::Compacted { floor: batch.revision })
        }))
    }

    async fn compact(&self, floor: Revision) -> Result<(), StoreError> {
        self.inner.compact(floor).await
    }

    async fn restore(&self, backup: BackupReader) -> Result<Revision, RestoreError> {
        self.inner.restore(backup).await
    }

    async fn backup(&self) -> Result<Backup, StoreError> {
        self.inner.backup().await
    }

    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.inner.snapshot_at(revision)
    }

    fn tables(&self) -> Vec<(String, TableId)> {
        self.inner.tables()
    }
}
