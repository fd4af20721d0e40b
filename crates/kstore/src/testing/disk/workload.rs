//! What clients do in a simulation, and what they were told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::Lease;
use crate::{
    CommitError, DiskStore, LeaseError, LeaseId, Leases, Op, Outcome, Revision, Store, StoreError, TableId,
    Txn,
    testing::{Random, model::random_txn},
};

/// What each client does in one life.
const STEPS: u64 = 40;

/// What the clients of all lives were told.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    acknowledged: u64,
    full: u64,
    fenced: u64,
    /// The last acknowledged revision that no crash may lose.
    synced: Revision,
    /// Leases that live, and have not been touched since without an answer.
    leases: BTreeMap<LeaseId, Lease>,
    ended: Vec<LeaseId>,
}

impl Told {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acknowledged commits, refusals of a full disk, fences.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let known = self.known();
        (known.acknowledged, known.full, known.fenced)
    }

    pub(super) fn synced(&self) -> Revision {
        self.known().synced
    }

    /// What was found after a crash is durable from then on; what was lost may have been acknowledged by a looser policy.
    pub(super) fn recovered(&self, found: Revision) {
        self.known().synced = found;
    }

    /// Every lease that was granted has the time it should have, and every one that was ended is gone.
    pub(super) fn check_leases(&self, store: &DiskStore, seed: u64, wall: Duration) {
        let leases = store.engine().enter(|state, moment, _| state.core.leases.infos(None, moment.now));
        let mut known = self.known();
        for lease in known.leases.values() {
            let remaining = leases.iter().find(|info| info.id == lease.id).map(|info| info.remaining);
            // One that is due may still wait for its end.
            let remaining = remaining.filter(|remaining| !remaining.is_zero());
            let expected = lease.ends.checked_sub(wall).filter(|remaining| !remaining.is_zero());
            assert_eq!(remaining, expected, "seed {seed}: the time that {lease:?} has left");
        }
        for id in &known.ended {
            let there = leases.iter().any(|info| info.id == *id);
            assert!(!there, "seed {seed}: lease {id} was ended, and lives");
        }
        known.leases.retain(|_, lease| lease.ends > wall);
    }

    /// Whether the client can go on.
    fn store_error(&self, error: &StoreError) -> bool {
        let mut known = self.known();
        match error {
            StoreError::DiskFull => known.full += 1,
            StoreError::Fenced(_) => known.fenced += 1,
            _ => {}
        }
        matches!(error, StoreError::DiskFull)
    }
}

/// Commits, leases, checkpoints, compactions, until it has done enough or the store is gone.
pub(super) async fn client(store: Arc<DiskStore>, tables: Vec<TableId>, mut random: Random, told: Told) {
    let loose = tables.len() > 2;
    let mut leases: Vec<LeaseId> = Vec::new();
    for _ in 0..STEPS {
        let goes_on = match random.below(24) {
            0 | 1 => grant(&store, &mut random, &mut leases, &told).await,
            2 => match leases.last().copied() {
                Some(id) => keep_alive(&store, id, &told).await,
                None => true,
            },
            3 if random.happens(400) => match leases.pop() {
                Some(id) => revoke(&store, id, &told).await,
                None => true,
            },
            4 if random.happens(300) => store.checkpoint().await.is_ok() || store.engine().check().is_ok(),
            5 if random.happens(200) => {
                let floor = Revision(random.below(store.snapshot().revision().get() + 1));
                store.compact(floor).await.is_ok() || store.engine().check().is_ok()
            }
            _ => {
                let (txn, synchronous) = txn(&store, &tables, &mut random, &leases, loose);
                commit(&store, txn, synchronous, &told).await
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// A transaction, and whether a crash may not lose it.
fn txn(
    store: &DiskStore,
    tables: &[TableId],
    random: &mut Random,
    leases: &[LeaseId],
    loose: bool,
) -> (Txn, bool) {
    if loose && random.happens(400) {
        let table = tables[2 + random.below(2) as usize];
        let key = format!("k{}", random.below(8));
        let mut txn = Txn::new().op(Op::put(table, key.clone(), format!("{}", random.number())));
        let synchronous = random.happens(200);
        if synchronous {
            txn = txn.op(Op::put(tables[0], key, "1-with"));
        }
        return (txn, synchronous);
    }
    if random.happens(250) {
        // Frames of one block and of several, with and without a lease.
        let size = [10, 3_900, 4_200, 9_000, 20_000][random.below(5) as usize];
        let value = Bytes::from(vec![b'0' + random.below(4) as u8; size]);
        let lease = leases.get(random.below(leases.len() as u64) as usize).copied();
        let key = format!("large{}", random.below(4)).into();
        return (Txn::new().op(Op::Put { table: tables[0], key, value, lease, hint: None }), true);
    }
    (random_txn(random, [tables[0], tables[1]], store.snapshot().revision()), true)
}

async fn commit(store: &DiskStore, txn: Txn, synchronous: bool, told: &Told) -> bool {
    match store.commit(txn).await {
        Ok(committed) => {
            let shown = store.snapshot().revision();
            assert!(
                shown >= committed.revision,
                "{} was acknowledged before it was shown",
                committed.revision
            );
            let mut known = told.known();
            known.acknowledged += 1;
            // What changes nothing is answered with a revision that is not its own.
            let changed = |outcome: &Outcome| outcome.entry.is_some() || !outcome.deleted.is_empty();
            if synchronous && committed.outcomes.iter().any(changed) {
                known.synced = known.synced.max(committed.revision);
            }
            true
        }
        Err(CommitError::Conflict { revision, .. }) => {
            assert!(store.snapshot().revision() >= revision, "a conflict tells of what is not shown");
            true
        }
        Err(CommitError::RepeatedKey { .. } | CommitError::UnknownLease(_)) => true,
        Err(CommitError::UnknownOutcome) => {
            told.known().fenced += 1;
            false
        }
        Err(CommitError::Store(error)) => told.store_error(&error),
        Err(error) => panic!("{error}"),
    }
}

async fn grant(store: &DiskStore, random: &mut Random, leases: &mut Vec<LeaseId>, told: &Told) -> bool {
    let ttl = Duration::from_millis(500 + random.below(20_000));
    match store.grant(ttl, None).await {
        Ok(id) => {
            leases.push(id);
            note(store, id, told);
            true
        }
        Err(LeaseError::Store(error)) => told.store_error(&error),
        Err(error) => panic!("{error}"),
    }
}

/// What the lease is now is what was acknowledged: no other client touches it.
fn note(store: &DiskStore, id: LeaseId, told: &Told) {
    let ends = store.engine().enter(|state, moment, _| {
        let info = state.core.leases.infos(Some(id), moment.now).pop();
        info.map(|info| moment.wall.saturating_add(info.remaining))
    });
    if let Some(ends) = ends {
        told.known().leases.insert(id, Lease { id, ends });
    }
}

async fn keep_alive(store: &DiskStore, id: LeaseId, told: &Told) -> bool {
    told.known().leases.remove(&id);
    match store.keep_alive(id).await {
        Ok(_) => {
            note(store, id, told);
            true
        }
        Err(LeaseError::NotFound(_)) => true,
        Err(LeaseError::Store(error)) => told.store_error(&error),
        Err(error) => panic!("{error}"),
    }
}

async fn revoke(store: &DiskStore, id: LeaseId, told: &Told) -> bool {
    told.known().leases.remove(&id);
    match store.revoke(id).await {
        Ok(_) => {
            told.known().ended.push(id);
            true
        }
        Err(LeaseError::NotFound(_)) => true,
        Err(LeaseError::Store(error)) => told.store_error(&error),
        Err(error) => panic!("{error}"),
    }
}
