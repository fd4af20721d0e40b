//! The defects that others' tests and users found in etcd ("Robustness track record" of its robustness tests) and that
//! `mem_etcd` has, each by its number: what must not happen, tried on any store.
//!
//! Those that need a crash are tried on the disk engine: #13766, #14370, #14685 and #17780 in `tests/crashes.rs` (at every
//! operation on a simulated disk) and `tests/kill.rs`. #14571 (users and roles make members differ) has no counterpart: stores
//! have no users. Of `mem_etcd`'s four defects the first, two winners, is `commit::creators_exclude_each_other`; the second is here;
//! that revisions are told before they are durable, and that the log can't be read back, are among what `tests/crashes.rs` tries.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{
    Random,
    commit::{done, open},
    model::random_txn,
};
use crate::{
    CommitError, Compare, Event, EventKind, Interest, Op, Range, ReadError, Revision, Store, Txn, Watch,
    WatchRequest,
};

fn watch(store: &Arc<dyn Store>, request: WatchRequest) -> Watch {
    store.watch(request).unwrap_or_else(|error| panic!("the watch begins: {error}"))
}

/// Everything that waits to be read.
fn waiting(watch: &mut Watch) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match watch.try_next() {
            Ok(Some(batch)) => events.extend(batch.events),
            Ok(None) => return events,
            Err(error) => panic!("the watch goes on: {error}"),
        }
    }
}

/// etcd #15220: progress was told on a stream before the events that it covers.
pub async fn etcd_15220_progress_comes_after_its_events(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let begin = store.snapshot().revision();
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|number| {
            let interest =
                if number % 2 == 0 { Interest::All } else { Interest::Prefix(Bytes::from_static(b"k1")) };
            let mut watch = watch(&store, WatchRequest::new(table, begin).interest(interest));
            let over = over.clone();
            tokio::spawn(async move {
                let mut told = begin;
                let mut last = false;
                while !last {
                    last = over.load(Ordering::Acquire);
                    let progress = watch.progress();
                    assert!(progress >= told, "progress goes back from {told} to {progress}");
                    told = progress;
                    if let Ok(Some(batch)) = watch.try_next() {
                        let first = batch.events[0].revision;
                        assert!(first > told, "an event of {first} comes after progress to {told}");
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for number in 0..500 {
        done(&store, Txn::new().op(Op::put(table, format!("k{}", number % 20), ""))).await;
        tokio::task::yield_now().await;
    }
    over.store(true, Ordering::Release);
    for reader in readers {
        reader.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// etcd #15271: a watch that went on after an interruption was told what it had been told before.
pub async fn etcd_15271_a_resumed_watch_does_not_go_back(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let mut seen = store.snapshot().revision();
    for round in 0..50 {
        let mut watch = watch(&store, WatchRequest::new(table, seen));
        for number in 0..10 {
            done(&store, Txn::new().op(Op::put(table, format!("k{}", (round + number) % 7), ""))).await;
        }
        // Interrupted with some read, and some not.
        let batch = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
        assert!(batch.events.iter().all(|event| event.revision > seen), "round {round}: {batch:?}");
        seen = batch.revision;
    }
}

/// etcd #17247: one change was told twice, since a transaction was looked at before it was done.
pub async fn etcd_17247_a_change_is_told_once(store: Arc<dyn Store>) {
    let tables = [open(&store, "a"), open(&store, "b")];
    let begin = store.snapshot().revision();
    let mut watches = tables.map(|table| watch(&store, WatchRequest::new(table, begin)));
    let mut random = Random::new(17_247);
    let mut refused = 0;
    for _ in 0..400 {
        let revision = store.snapshot().revision();
        match store.commit(random_txn(&mut random, tables, revision)).await {
            Ok(_) | Err(CommitError::RepeatedKey { .. }) => {}
            Err(CommitError::Conflict { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 10, "there are transactions that are not done: {refused}");
    for watch in &mut watches {
        let events = waiting(watch);
        let places = events.iter().map(|event| (event.revision, event.entry.key().clone()));
        assert_eq!(places.collect::<BTreeSet<_>>().len(), events.len(), "a change was told twice");
    }
}

/// etcd #17529: watches that were not read for a while lost events.
pub async fn etcd_17529_starved_watches_lose_nothing(store: Arc<dyn Store>) {
    const WATCHES: usize = 100;
    const WRITES: usize = 2_000;
    let table = open(&store, "t");
    let begin = store.snapshot().revision();
    let mut starved: Vec<Watch> = (0..WATCHES)
        .map(|number| {
            let interest = Interest::Prefix(Bytes::from(format!("{}/", number % 10)));
            watch(&store, WatchRequest::new(table, begin).interest(interest))
        })
        .collect();
    let value = Bytes::from(vec![b'v'; 1_000]);
    for number in 0..WRITES {
        done(
            &store,
            Txn::new().op(Op::put(table, format!("{}/{}", number % 10, number % 97), value.clone())),
        )
        .await;
    }
    for watch in &mut starved {
        assert_eq!(waiting(watch).len(), WRITES / 10, "{watch:?}");
        assert_eq!(watch.progress(), store.snapshot().revision());
    }
}

/// etcd #18089: a compaction up to a deletion took the event of the deletion from a watch that had not read it.
pub async fn etcd_18089_compaction_at_a_deletion_drops_no_event(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for rounds in 1..4 {
        let created = done(&store, Txn::create(table, "k", "")).await;
        let deleted = done(&store, Txn::delete(table, "k", created)).await;
        // Up to the deletion itself, for who has seen it; the one after it is still to be told.
        store.compact(deleted).await.unwrap_or_else(|error| panic!("{error}"));
        let mut resumed = watch(&store, WatchRequest::new(table, deleted));
        let again = done(&store, Txn::create(table, "k", "")).await;
        let gone = done(&store, Txn::delete(table, "k", again)).await;
        store.compact(again).await.unwrap_or_else(|error| panic!("{error}"));
        // The watch is behind the floor or has what is above it; it never passes over the deletion.
        let mut late = watch(&store, WatchRequest::new(table, again));
        let events = waiting(&mut late);
        assert_eq!(
            (events.len(), events[0].kind, events[0].revision),
            (1, EventKind::Delete, gone),
            "{rounds}"
        );
        match resumed.try_next() {
            Ok(Some(batch)) => assert_eq!(batch.events.len(), 2, "both or an error: {batch:?}"),
            Ok(None) => panic!("the events are passed over"),
            Err(error) => assert!(matches!(error, crate::WatchError::Compacted { .. }), "{error}"),
        }
    }
}

/// etcd #18667: what a read of a compacted revision in a transaction did differed from member to member. Here it is refused
/// wherever it is asked for, and changes nothing.
pub async fn etcd_18667_reads_of_what_is_compacted_are_refused_everywhere(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let first = done(&store, Txn::create(table, "k", "1")).await;
    let second = done(&store, Txn::new().op(Op::put(table, "k", "2"))).await;
    store.compact(second).await.unwrap_or_else(|error| panic!("{error}"));
    let compacted =
        |error: &ReadError| matches!(error, ReadError::Compacted { floor, .. } if *floor == second);
    for _ in 0..2 {
        let before = store.snapshot();
        assert!(store.snapshot_at(first).is_err_and(|error| compacted(&error)));
        assert!(before.at(first).is_err_and(|error| compacted(&error)));
        assert!(before.events(table, first).is_err_and(|error| compacted(&error)));
        assert!(store.watch(WatchRequest::new(table, first)).is_err_and(|error| compacted(&error)));
        assert_eq!(store.snapshot().revision(), before.revision());
    }
    // A comparison looks at what is there, not at the past.
    let compare = Compare::ModifiedAt { table, key: Bytes::from_static(b"k"), revision: first };
    let refused = store.commit(Txn::new().compare(compare).op(Op::put(table, "k", "3"))).await;
    assert!(matches!(refused, Err(CommitError::Conflict { .. })), "{refused:?}");
    assert_eq!(store.snapshot().revision(), second);
}

/// etcd #19179: a watch that began at the compacted revision missed a deletion at it.
pub async fn etcd_19179_a_watch_from_the_compaction_sees_the_deletion(store: Arc<dyn Store>) {
    super::watch::a_deletion_right_after_the_floor_is_seen(store).await;
}

/// etcd #20221: a watch from a revision that was still to come was told of earlier ones, or that they were complete.
pub async fn etcd_20221_a_watch_of_the_future_tells_nothing_of_the_past(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let future = store.snapshot().revision().plus(5);
    let mut watches =
        [Interest::All, Interest::Key(Bytes::from_static(b"k")), Interest::Prefix(Bytes::from_static(b"k"))]
            .map(|interest| watch(&store, WatchRequest::new(table, future).interest(interest)));
    let mut last = Revision::ZERO;
    while last < future.plus(3) {
        last = done(&store, Txn::new().op(Op::put(table, "k", ""))).await;
        for watch in &mut watches {
            let told = watch.progress();
            assert!(told >= future, "{told} is told as complete, which nobody has asked for");
            let revisions: Vec<Revision> = waiting(watch).iter().map(|event| event.revision).collect();
            let expected: Vec<Revision> = Some(last).filter(|last| *last > future).into_iter().collect();
            assert_eq!(revisions, expected);
        }
    }
}

/// mem_etcd: a list lacked keys that were older than its own revision.
pub async fn mem_etcd_2_a_list_has_everything_up_to_its_revision(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                done(&store, Txn::create(table, format!("{number:04}"), "")).await;
                tokio::task::yield_now().await;
            }
        })
    };
    let begin = store.snapshot();
    let (start, there) = (begin.revision(), begin.len(table));
    while !writer.is_finished() {
        let list = store.snapshot();
        // Nothing but these creations takes a revision.
        let expected = there + usize::try_from(list.revision().get() - start.get()).unwrap_or_default();
        let found = list.range(table, Range::all()).count();
        assert_eq!((found, list.len(table)), (expected, expected), "at {}", list.revision());
        tokio::task::yield_now().await;
    }
    writer.await.unwrap_or_else(|error| panic!("{error}"));
}
