//! What is promised of leases.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::commit::{done, open};
use crate::{
    CommitError, EventKind, LEASE_TTL_MAX, LeaseError, LeaseId, MemoryStore, Op, Store, TableId, TableSpec,
    Txn, WatchRequest,
};

const SECOND: Duration = Duration::from_secs(1);

async fn grant(store: &Arc<dyn Store>, seconds: u32) -> LeaseId {
    store.grant(SECOND * seconds, None).await.unwrap_or_else(|error| panic!("the lease is granted: {error}"))
}

pub(super) fn leased(table: TableId, key: &str, lease: LeaseId) -> Txn {
    Txn::new().op(Op::Put {
        table,
        key: key.to_owned().into(),
        value: Bytes::new(),
        lease: Some(lease),
        hint: None,
    })
}

/// When a lease's time is over its keys are deleted, not before, and watches see it.
pub async fn keys_go_with_their_lease(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let lease = grant(&store, 10).await;
    done(&store, leased(table, "a", lease)).await;
    let attached = done(&store, leased(table, "b", lease)).await;
    done(&store, Txn::create(table, "free", "")).await;
    assert_eq!(store.snapshot().get(table, b"a").and_then(|entry| entry.lease()), Some(lease));
    let mut watch =
        store.watch(WatchRequest::new(table, attached.next())).unwrap_or_else(|error| panic!("{error}"));
    tokio::time::sleep(SECOND * 9).await;
    assert_eq!(store.snapshot().len(table), 3, "not before its time");
    let info = store.leases(Some(lease)).await.unwrap_or_else(|error| panic!("{error}")).remove(0);
    assert_eq!((info.id, info.ttl, info.keys.len()), (lease, SECOND * 10, 2));
    assert!(info.remaining <= SECOND && !info.remaining.is_zero(), "{info:?}");
    let batch = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(batch.events.len(), 2, "both at one revision");
    assert!(batch.events.iter().all(|event| event.kind == EventKind::Delete));
    assert_eq!(store.snapshot().len(table), 1);
    assert_eq!(store.leases(None).await.unwrap_or_else(|error| panic!("{error}")), []);
}

/// A lease that is kept alive lives on; without it ends.
pub async fn a_lease_kept_alive_stays(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let lease = grant(&store, 10).await;
    done(&store, leased(table, "k", lease)).await;
    for _ in 0..5 {
        tokio::time::sleep(SECOND * 8).await;
        let ttl = store.keep_alive(lease).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ttl, SECOND * 10);
    }
    assert_eq!(store.snapshot().len(table), 1);
    tokio::time::sleep(SECOND * 11).await;
    assert_eq!(store.snapshot().len(table), 0);
    let ended = store.keep_alive(lease).await;
    assert!(matches!(ended, Err(LeaseError::NotFound(id)) if id == lease), "{ended:?}");
}

/// A put without the lease detaches the key; a put with another moves it; a key that was deleted and made again is free.
pub async fn a_detached_key_stays(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let (short, long) = (grant(&store, 10).await, grant(&store, 100).await);
    for key in ["detached", "moved", "renewed"] {
        done(&store, leased(table, key, short)).await;
    }
    done(&store, Txn::new().op(Op::put(table, "detached", ""))).await;
    done(&store, leased(table, "moved", long)).await;
    done(&store, Txn::new().op(Op::delete(table, "renewed"))).await;
    done(&store, Txn::create(table, "renewed", "")).await;
    tokio::time::sleep(SECOND * 11).await;
    assert_eq!(store.snapshot().len(table), 3);
    tokio::time::sleep(SECOND * 100).await;
    assert_eq!(store.snapshot().len(table), 2);
    assert!(store.snapshot().get(table, b"moved").is_none());
}

/// Revoking deletes the keys, in all tables, at one revision, now.
pub async fn revoking_deletes_at_one_revision(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let tables = [open(&store, "a"), open(&store, "b")];
    let lease = grant(&store, 100).await;
    for table in tables {
        done(&store, leased(table, "k", lease)).await;
    }
    let revoked = store.revoke(lease).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(revoked, begin.plus(3));
    let snapshot = store.snapshot();
    assert_eq!(tables.map(|table| snapshot.table_revision(table)), [revoked; 2]);
    assert_eq!(tables.map(|table| snapshot.len(table)), [0; 2]);
    let again = store.revoke(lease).await;
    assert!(matches!(again, Err(LeaseError::NotFound(_))), "{again:?}");
    let empty = grant(&store, 100).await;
    assert_eq!(store.revoke(empty).await.ok(), Some(revoked), "without keys it takes no revision");
}

/// Numbers can be asked for, are not given twice, and are free again after the end.
pub async fn numbers_are_unique(store: Arc<dyn Store>) {
    let asked = LeaseId::new(2);
    assert_eq!(store.grant(SECOND, asked).await.ok(), asked);
    let taken = store.grant(SECOND, asked).await;
    assert!(matches!(taken, Err(LeaseError::Exists(id)) if Some(id) == asked), "{taken:?}");
    let mut given = vec![asked];
    for _ in 0..5 {
        let id = Some(grant(&store, 1).await);
        assert!(!given.contains(&id), "{id:?} was given before");
        given.push(id);
    }
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(store.grant(SECOND, asked).await.ok(), asked);
}

/// A lease of no time, or of more than there is, is refused.
pub async fn impossible_leases_are_refused(store: Arc<dyn Store>) {
    for ttl in [Duration::ZERO, LEASE_TTL_MAX + SECOND, Duration::MAX] {
        let refused = store.grant(ttl, None).await;
        assert!(matches!(refused, Err(LeaseError::BadTtl { .. })), "{refused:?}");
    }
    let longest = store.grant(LEASE_TTL_MAX, None).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.keep_alive(longest).await.ok(), Some(LEASE_TTL_MAX));
}

/// A put that names a lease that has ended is refused.
pub async fn an_ended_lease_takes_no_keys(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let lease = grant(&store, 1).await;
    tokio::time::sleep(SECOND * 2).await;
    let refused = store.commit(leased(table, "k", lease)).await;
    assert!(matches!(refused, Err(CommitError::UnknownLease(id)) if id == lease), "{refused:?}");
}

/// A thousand leases that end at the same moment all end, and each one's keys go whole.
pub async fn many_leases_end_together(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for number in 0..1_000 {
        let lease = grant(&store, 5).await;
        done(&store, leased(table, &format!("{number}"), lease)).await;
    }
    let before = store.snapshot().revision();
    tokio::time::sleep(SECOND * 6).await;
    let snapshot = store.snapshot();
    assert_eq!((snapshot.len(table), snapshot.revision().get()), (0, before.get() + 1_000));
    snapshot.verify().unwrap_or_else(|error| panic!("{error}"));
}

/// A restored lease ends when it would have ended, counted from the restore.
pub async fn leases_are_restored_with_the_time_left(store: Arc<dyn Store>) {
    let origin: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let table = open(&origin, "t");
    let lease = grant(&origin, 10).await;
    done(&origin, leased(table, "k", lease)).await;
    tokio::time::sleep(SECOND * 4).await;
    let backup = origin.backup().await.unwrap_or_else(|error| panic!("{error}"));
    store.restore(backup.into()).await.unwrap_or_else(|error| panic!("{error}"));
    let table = store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"));
    tokio::time::sleep(SECOND * 5).await;
    assert_eq!(store.snapshot().len(table), 1);
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(store.snapshot().len(table), 0);
    assert!(!store.leases(None).await.is_ok_and(|leases| leases.iter().any(|info| info.id == lease)));
}
