//! What is promised of leases, for engines whose time can't be paused: the same promises as those of [`lease`](super::lease),
//! waited for by their events. Leases live for two seconds at least, as short as etcd's can be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    commit::{done, open},
    lease::leased,
};
use crate::{CommitError, EventKind, LeaseError, LeaseId, Op, Store, TableId, Txn, Watch, WatchRequest};

/// As short as etcd lets a lease be.
const SHORT: Duration = Duration::from_secs(2);
/// Long enough to be kept alive from the end of one short lease to that of the next, and shorter than three of them.
const KEPT: Duration = Duration::from_secs(5);
/// Nothing here waits for its end.
const LONG: Duration = Duration::from_secs(3_600);

async fn grant(store: &Arc<dyn Store>, ttl: Duration) -> LeaseId {
    store.grant(ttl, None).await.unwrap_or_else(|error| panic!("the lease is granted: {error}"))
}

fn watch(store: &Arc<dyn Store>, table: TableId) -> Watch {
    let request = WatchRequest::new(table, store.snapshot().revision());
    store.watch(request).unwrap_or_else(|error| panic!("the watch begins: {error}"))
}

/// Waits until so many keys were deleted; how many of them went with the first revision that deleted any.
async fn deletions(watch: &mut Watch, count: usize) -> usize {
    let (mut seen, mut together) = (0, 0);
    while seen < count {
        let batch = watch.next().await.unwrap_or_else(|error| panic!("the watch goes on: {error}"));
        let mut deleted = batch.events.iter().filter(|event| event.kind == EventKind::Delete).peekable();
        if seen == 0
            && let Some(first) = deleted.peek().map(|event| event.revision)
        {
            together = batch.events.iter().filter(|event| event.revision == first).count();
        }
        seen += deleted.count();
    }
    together
}

fn there(store: &Arc<dyn Store>, table: TableId, key: &str) -> bool {
    store.snapshot().get(table, key.as_bytes()).is_some()
}

/// When a lease's time is over its keys are deleted together, not before, and watches see it.
pub async fn keys_go_with_their_lease(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let mut watch = watch(&store, table);
    let begun = Instant::now();
    let lease = grant(&store, SHORT).await;
    for key in ["a", "b"] {
        done(&store, leased(table, key, lease)).await;
    }
    done(&store, Txn::create(table, "free", "")).await;
    let infos = store.leases(Some(lease)).await.unwrap_or_else(|error| panic!("{error}"));
    let info = infos.first().unwrap_or_else(|| panic!("the lease is known"));
    assert_eq!((info.id, info.ttl, info.keys.len()), (lease, SHORT, 2));
    assert!(info.remaining <= SHORT, "{info:?}");
    assert_eq!(deletions(&mut watch, 2).await, 2, "both at one revision");
    assert!(begun.elapsed() >= SHORT, "after {:?}, not before its time", begun.elapsed());
    assert!(there(&store, table, "free"), "the others stay");
    let known = store.leases(None).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(known.iter().all(|info| info.id != lease), "{known:?}");
}

/// A lease that is kept alive outlives its time; without that it ends, and can't be brought back.
pub async fn a_lease_kept_alive_stays(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let begun = Instant::now();
    let kept = grant(&store, KEPT).await;
    done(&store, leased(table, "kept", kept)).await;
    let mut watch = watch(&store, table);
    while begun.elapsed() <= KEPT {
        // Time is told by leases that end.
        let clock = grant(&store, SHORT).await;
        done(&store, leased(table, "clock", clock)).await;
        deletions(&mut watch, 1).await;
        assert_eq!(store.keep_alive(kept).await.ok(), Some(KEPT));
    }
    assert!(there(&store, table, "kept"), "after {:?}", begun.elapsed());
    deletions(&mut watch, 1).await;
    assert!(!there(&store, table, "kept"));
    let ended = store.keep_alive(kept).await;
    assert!(matches!(ended, Err(LeaseError::NotFound(id)) if id == kept), "{ended:?}");
}

/// A put without the lease detaches the key; a put with another moves it; a key that was deleted and made again is free.
pub async fn a_detached_key_stays(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let (short, long) = (grant(&store, SHORT).await, grant(&store, LONG).await);
    for key in ["detached", "moved", "renewed", "gone"] {
        done(&store, leased(table, key, short)).await;
    }
    done(&store, Txn::new().op(Op::put(table, "detached", ""))).await;
    done(&store, leased(table, "moved", long)).await;
    done(&store, Txn::new().op(Op::delete(table, "renewed"))).await;
    done(&store, Txn::create(table, "renewed", "")).await;
    let mut watch = watch(&store, table);
    assert_eq!(deletions(&mut watch, 1).await, 1, "of the four only the one that was left");
    let left = ["detached", "moved", "renewed", "gone"].map(|key| there(&store, table, key));
    assert_eq!(left, [true, true, true, false]);
    store.revoke(long).await.unwrap_or_else(|error| panic!("{error}"));
    store.barrier().await.unwrap_or_else(|error| panic!("{error}"));
    assert!(!there(&store, table, "moved"));
}

/// Revoking deletes the keys, in all tables, at one revision, now.
pub async fn revoking_deletes_at_one_revision(store: Arc<dyn Store>) {
    let tables = [open(&store, "a"), open(&store, "b")];
    let lease = grant(&store, LONG).await;
    for table in tables {
        done(&store, leased(table, "k", lease)).await;
    }
    let revoked = store.revoke(lease).await.unwrap_or_else(|error| panic!("{error}"));
    let reached = store.barrier().await.unwrap_or_else(|error| panic!("{error}"));
    assert!(reached >= revoked, "{reached:?} after {revoked:?}");
    let snapshot = store.snapshot();
    assert_eq!(tables.map(|table| snapshot.len(table)), [0; 2]);
    let [first, second] = tables.map(|table| snapshot.table_revision(table));
    assert_eq!(first, second);
    let again = store.revoke(lease).await;
    assert!(matches!(again, Err(LeaseError::NotFound(_))), "{again:?}");
}

/// Numbers can be asked for, are not given twice, and are free again after the end.
pub async fn numbers_are_unique(store: Arc<dyn Store>) {
    let asked = LeaseId::new(77_001);
    assert_eq!(store.grant(LONG, asked).await.ok(), asked);
    let taken = store.grant(LONG, asked).await;
    assert!(matches!(taken, Err(LeaseError::Exists(id)) if Some(id) == asked), "{taken:?}");
    let mut given = vec![asked];
    for _ in 0..5 {
        let id = Some(grant(&store, LONG).await);
        assert!(!given.contains(&id), "{id:?} was given before");
        given.push(id);
    }
    for id in given.into_iter().flatten() {
        store.revoke(id).await.unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(store.grant(SHORT, asked).await.ok(), asked);
}

/// A put that names a lease that has ended is refused.
pub async fn an_ended_lease_takes_no_keys(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let lease = grant(&store, SHORT).await;
    done(&store, leased(table, "first", lease)).await;
    deletions(&mut watch(&store, table), 1).await;
    let refused = store.commit(leased(table, "second", lease)).await;
    assert!(matches!(refused, Err(CommitError::UnknownLease(id)) if id == lease), "{refused:?}");
    let put = Op::put(table, "second", Bytes::new());
    done(&store, Txn::new().op(put)).await;
}

/// Many leases that end at about the same time all end, and each one's keys go whole.
pub async fn many_leases_end_together(store: Arc<dyn Store>) {
    const LEASES: usize = 100;
    let table = open(&store, "t");
    let mut watch = watch(&store, table);
    let begun = Instant::now();
    for number in 0..LEASES {
        let lease = grant(&store, SHORT).await;
        let keys = Txn::new().op(leased_op(table, format!("{number}/a"), lease));
        done(&store, keys.op(leased_op(table, format!("{number}/b"), lease))).await;
    }
    deletions(&mut watch, 2 * LEASES).await;
    assert!(begun.elapsed() >= SHORT);
    assert_eq!(store.snapshot().len(table), 0);
    store.snapshot().verify().unwrap_or_else(|error| panic!("{error}"));
}

fn leased_op(table: TableId, key: String, lease: LeaseId) -> Op {
    Op::Put { table, key: key.into(), value: Bytes::new(), lease: Some(lease), hint: None }
}
