//! What a disk that fails in one way leads to, one way each.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{Failures, SimDisk};
use crate::{
    CommitError, DiskStore, Op, Revision, Store, StoreError, TableId, TableSpec, Txn, WatchError,
    WatchRequest,
    disk::pipeline::{Step, step},
};

fn open(disk: &SimDisk) -> DiskStore {
    let store = DiskStore::builder("sim").segment_bytes(0).open_files(Arc::new(disk.clone()), true);
    store.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits for a future and lets the disk work meanwhile.
fn drive<T>(store: &DiskStore, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut jobs = Vec::new();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        jobs.extend(store.engine().take_jobs());
        match jobs.pop().map(step) {
            Some(Step::More(job)) => jobs.push(job),
            Some(Step::Ended(ended)) => store.engine().enter(|state, _, after| state.ended(ended, after)),
            None => panic!("nothing is under way, and the future waits"),
        }
    }
}

fn table(store: &DiskStore) -> TableId {
    store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"))
}

fn put(store: &DiskStore, table: TableId, key: &str) -> Result<Revision, CommitError> {
    let txn = Txn::new().op(Op::put(table, key.to_owned(), vec![b'v'; 3_000]));
    drive(store, store.commit(txn)).map(|committed| committed.revision)
}

#[test]
fn a_full_disk_refuses_puts_lets_deletions_in_and_loses_nothing() {
    let disk = SimDisk::new(1);
    disk.plan(Failures { bytes_max: Some(150_000), ..Failures::default() });
    let store = open(&disk);
    let table = table(&store);
    let mut count = 0;
    let refused = loop {
        match put(&store, table, &format!("{count:03}")) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CommitError::Store(StoreError::DiskFull)), "{refused:?}");
    assert!((20..32).contains(&count), "{count} frames of 4 KiB in two files of 64 KiB");
    assert_eq!(store.snapshot().len(table), count, "reads go on");
    let delete = Txn::new().op(Op::delete(table, "000"));
    assert!(drive(&store, store.commit(delete)).is_ok(), "a deletion has room");
    assert!(put(&store, table, "more").is_err(), "the disk is still full");
    disk.plan(Failures::default());
    assert!(put(&store, table, "more").is_ok(), "once there is room, commits go on");
    let revision = store.snapshot().revision();
    drop(store);
    disk.restart(true);
    assert_eq!(open(&disk).recovery().revision, revision);
}

#[test]
fn a_failed_sync_ends_the_store_but_not_its_readers() {
    let disk = SimDisk::new(2);
    let store = open(&disk);
    let table = table(&store);
    let first = put(&store, table, "a").unwrap_or_else(|error| panic!("{error}"));
    let mut watch =
        store.watch(WatchRequest::new(table, Revision::ZERO)).unwrap_or_else(|error| panic!("{error}"));
    // Whichever of the next writes isn't written through is synced, which fails.
    disk.plan(Failures { sync_fails_at: Some(1), ..Failures::default() });
    let (mut shown, lost) = (
        first,
        loop {
            match put(&store, table, "b") {
                Ok(_) => {}
                Err(error) => break error,
            }
        },
    );
    assert!(matches!(lost, CommitError::UnknownOutcome), "{lost:?}");
    let after = put(&store, table, "c");
    assert!(matches!(after, Err(CommitError::Store(StoreError::Fenced(_)))), "{after:?}");
    assert!(matches!(drive(&store, store.barrier()), Err(StoreError::Fenced(_))));
    assert!(store.snapshot().get(table, b"a").is_some(), "reads go on");
    while let Ok(Some(batch)) = watch.try_next() {
        shown = batch.revision;
    }
    assert_eq!(shown, store.snapshot().revision(), "what was published is delivered");
    assert_eq!(watch.try_next().map(|_| ()), Err(WatchError::Closed));
    drop(store);
    disk.restart(false);
    assert!(open(&disk).recovery().revision >= shown);
}

/// A conflict tells of a state that a crash may take back, so it waits until that is durable.
#[test]
fn a_conflict_waits_for_what_it_conflicts_with() {
    let disk = SimDisk::new(3);
    let store = open(&disk);
    let table = table(&store);
    put(&store, table, "first").unwrap_or_else(|error| panic!("{error}"));
    let mut winner = pin!(store.commit(Txn::create(table, "k", "1")));
    let mut loser = pin!(store.commit(Txn::create(table, "k", "2")));
    let mut context = Context::from_waker(Waker::noop());
    assert!(winner.as_mut().poll(&mut context).is_pending());
    assert!(loser.as_mut().poll(&mut context).is_pending(), "nothing is durable yet");
    assert!(store.snapshot().get(table, b"k").is_none());
    let lost = drive(&store, loser);
    match lost {
        Err(CommitError::Conflict { current, revision, .. }) => {
            assert_eq!(current.map(|entry| entry.modified()), Some(revision));
            assert_eq!(store.snapshot().revision(), revision);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(winner.as_mut().poll(&mut context), Poll::Ready(Ok(_))));
}

/// Frames land in any order, and are published in theirs.
#[test]
fn what_lands_early_is_shown_late() {
    let disk = SimDisk::new(4);
    let store = open(&disk);
    let table = table(&store);
    put(&store, table, "first").unwrap_or_else(|error| panic!("{error}"));
    let mut early = pin!(store.commit(Txn::create(table, "a", "")));
    let mut late = pin!(store.commit(Txn::create(table, "b", "")));
    let mut context = Context::from_waker(Waker::noop());
    assert!(early.as_mut().poll(&mut context).is_pending() && late.as_mut().poll(&mut context).is_pending());
    let mut jobs = store.engine().take_jobs();
    assert_eq!(jobs.len(), 2, "two frames are in the air");
    let mut land = |at: usize| {
        let mut job = jobs.remove(at);
        loop {
            match step(job) {
                Step::More(more) => job = more,
                Step::Ended(ended) => {
                    return store.engine().enter(|state, _, after| state.ended(ended, after));
                }
            }
        }
    };
    land(1);
    assert!(late.as_mut().poll(&mut context).is_pending());
    assert_eq!(store.snapshot().len(table), 1, "the one before has not landed");
    land(0);
    assert_eq!(store.snapshot().len(table), 3);
    assert!(early.as_mut().poll(&mut context).is_ready() && late.as_mut().poll(&mut context).is_ready());
}
