//! What is promised of watches.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures::FutureExt;

use super::{
    Random,
    commit::{done, open},
    model::{random_txn, table_by_first_byte},
    validate::Validator,
};
use crate::{
    BATCH_EVENTS_MAX, Batch, Event, EventKind, Interest, Op, Range, ReadError, Revision, Snapshot, Store,
    TableId, Term, Txn, Watch, WatchError, WatchRequest,
};

fn watch(store: &Arc<dyn Store>, request: WatchRequest) -> Watch {
    store.watch(request).unwrap_or_else(|error| panic!("the watch begins: {error}"))
}

async fn next(watch: &mut Watch) -> Batch {
    watch.next().await.unwrap_or_else(|error| panic!("the watch goes on: {error}"))
}

fn keys(events: &[Event]) -> Vec<&[u8]> {
    events.iter().map(|event| &event.entry.key()[..]).collect()
}

/// From any list, the events after it lead to any later list.
pub async fn a_list_continues_without_a_gap(store: Arc<dyn Store>) {
    let tables = [open(&store, "a"), open(&store, "b")];
    let mut random = Random::new(5);
    let mut lists: Vec<Snapshot> = vec![store.snapshot()];
    for _ in 0..100 {
        let revision = store.snapshot().revision();
        // Conflicts and refusals are as good as anything here.
        let _ = store.commit(random_txn(&mut random, tables, revision)).await;
        lists.push(store.snapshot());
    }
    for (at, list) in lists.iter().enumerate().step_by(7) {
        let request = WatchRequest::new(tables[at % 2], list.revision());
        let mut watch = watch(&store, request.clone());
        let mut validator = Validator::new(list, request);
        validator.drain(&mut watch, &store.snapshot());
        // And in a second watch that resumes where a first one ended.
        let middle = &lists[at + (lists.len() - at) / 2];
        let request = WatchRequest::new(tables[at % 2], middle.revision());
        Validator::new(middle, request.clone()).drain(&mut self::watch(&store, request), &store.snapshot());
    }
}

/// Watches of every kind, read while several writers are at it, keep every property; some are dropped and resumed.
pub async fn watches_hold_under_load(store: Arc<dyn Store>) {
    let table = |name| store.open_table(table_by_first_byte(name)).unwrap_or_else(|error| panic!("{error}"));
    let tables = [table("a"), table("b")];
    let interests = [
        Interest::All,
        Interest::Term(Term::from("2")),
        Interest::Key(Bytes::from_static(b"k03")),
        Interest::Prefix(Bytes::from_static(b"k0")),
    ];
    let end = b"~end";
    let watchers: Vec<_> = (0..8)
        .map(|number| {
            let (store, interest) = (store.clone(), interests[number % 4].clone());
            let table = tables[number / 4];
            tokio::spawn(async move { follow(store, table, interest, end).await })
        })
        .collect();
    let writers: Vec<_> = (0..4)
        .map(|seed| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut random = Random::new(seed);
                for _ in 0..150 {
                    let revision = store.snapshot().revision();
                    let _ = store.commit(random_txn(&mut random, tables, revision)).await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let last = tables.into_iter().fold(Txn::new(), |txn, table| txn.op(Op::put(table, &end[..], "2")));
    done(&store, last).await;
    for watcher in watchers {
        watcher.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Lists, watches and now and then resumes, until the key `end` is there.
async fn follow(store: Arc<dyn Store>, table: TableId, interest: Interest, end: &[u8]) {
    let list = store.snapshot();
    let request = WatchRequest::new(table, list.revision()).interest(interest.clone());
    let mut validator = Validator::new(&list, request.clone());
    let mut watch = watch(&store, request);
    let mut marker = self::watch(
        &store,
        WatchRequest::new(table, list.revision()).interest(Interest::Key(end.to_vec().into())),
    );
    let mut batches = 0;
    loop {
        tokio::select! {
            batch = next(&mut watch) => {
                validator.observe(&batch);
                batches += 1;
                if batches % 16 == 0 {
                    let request = WatchRequest::new(table, batch.revision).interest(interest.clone());
                    watch = self::watch(&store, request);
                }
            }
            _ = next(&mut marker) => break,
        }
    }
    validator.drain(&mut watch, &store.snapshot());
}

/// A watch is woken by what it asked for, and gets nothing else: what has a term before or after, what has a key, a prefix.
pub async fn interests_are_kept_to(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = store.open_table(table_by_first_byte("t")).unwrap_or_else(|error| panic!("{error}"));
    let watch = |interest| watch(&store, WatchRequest::new(table, begin).interest(interest));
    let mut term = watch(Interest::Term(Term::from("1")));
    let mut key = watch(Interest::Key(Bytes::from_static(b"b")));
    let mut prefix = watch(Interest::Prefix(Bytes::from_static(b"a/")));
    let steps = [("a/x", "1"), ("b", "2"), ("a/x", "2"), ("a/y", "3"), ("c", "1"), ("a/x", "3")];
    for (name, value) in steps {
        done(&store, Txn::new().op(Op::put(table, name, value))).await;
    }
    done(&store, Txn::new().op(Op::delete(table, "c"))).await;
    let batch = next(&mut term).await;
    // The third step takes the term away, which whoever watches it must see.
    assert_eq!(keys(&batch.events), [b"a/x", &b"a/x"[..], b"c", b"c"]);
    assert_eq!(batch.revision, begin.plus(7));
    assert_eq!(keys(&next(&mut key).await.events), [b"b"]);
    assert_eq!(keys(&next(&mut prefix).await.events), [b"a/x", b"a/x", b"a/y", b"a/x"]);
    for quiet in [&mut term, &mut key, &mut prefix] {
        assert!(quiet.next().now_or_never().is_none(), "nothing is left");
        assert_eq!(quiet.progress(), begin.plus(7));
    }
}

/// A watch of a term, a key or a prefix from far back gets what a watch of everything gets, less what it does not want.
pub async fn far_back_nothing_is_overlooked(store: Arc<dyn Store>) {
    let table = store.open_table(table_by_first_byte("t")).unwrap_or_else(|error| panic!("{error}"));
    let mut random = Random::new(29);
    let begin = store.snapshot().revision();
    for _ in 0..3_000 {
        let (key, value) = (random.below(200).to_string(), random.below(40).to_string());
        done(&store, Txn::new().op(Op::put(table, key, value))).await;
    }
    for interest in [
        Interest::Term(Term::from("1")),
        Interest::Term(Term::from("9")),
        Interest::Term(Term::from("none")),
        Interest::Key(Bytes::from_static(b"17")),
        Interest::Prefix(Bytes::from_static(b"18")),
    ] {
        for after in [0, 7, 8, 255, 256, 1_111, 2_990].map(|step| begin.plus(step)) {
            let all = store.snapshot().events(table, after).unwrap_or_else(|error| panic!("{error}"));
            let expected: Vec<Revision> =
                all.iter().filter(|event| interest.wants(event)).map(|event| event.revision).collect();
            let mut watch = watch(&store, WatchRequest::new(table, after).interest(interest.clone()));
            let mut found = Vec::new();
            while let Ok(Some(batch)) = watch.try_next() {
                found.extend(batch.events.iter().map(|event| event.revision));
            }
            assert_eq!(found, expected, "{interest:?} after {after}");
        }
    }
}

/// At the floor exactly a watch is legal, and sees the deletion right behind it. (etcd #19179, #18089.)
pub async fn a_deletion_right_after_the_floor_is_seen(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let created = done(&store, Txn::create(table, "k", "last words")).await;
    let deleted = done(&store, Txn::delete(table, "k", created)).await;
    store.compact(created).await.unwrap_or_else(|error| panic!("{error}"));
    let mut watch = watch(&store, WatchRequest::new(table, created));
    let batch = next(&mut watch).await;
    let event = &batch.events[0];
    assert_eq!((batch.events.len(), event.kind, event.revision), (1, EventKind::Delete, deleted));
    let previous = event.previous.as_ref().map(|entry| entry.value().clone());
    assert_eq!(previous, Some(Bytes::from_static(b"last words")), "what was deleted is still told");
}

/// Below the floor a watch is refused, and told where history begins.
pub async fn below_the_floor_is_refused(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = open(&store, "t");
    for number in 0..10 {
        done(&store, Txn::create(table, number.to_string(), "")).await;
    }
    store.compact(begin.plus(5)).await.unwrap_or_else(|error| panic!("{error}"));
    let refused = store.watch(WatchRequest::new(table, begin.plus(4)));
    assert!(
        matches!(refused, Err(ReadError::Compacted { floor, .. }) if floor == begin.plus(5)),
        "{refused:?}"
    );
    let events = next(&mut watch(&store, WatchRequest::new(table, begin.plus(5)))).await.events;
    assert_eq!(events.len(), 5);
    // Further back than the floor already is: nothing to do. Further than the store is: refused.
    store.compact(begin.plus(3)).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.snapshot().floor(), begin.plus(5));
    assert!(store.compact(begin.plus(11)).await.is_err());
    let unknown = store.watch(WatchRequest::new(TableId(4_000_000), begin.plus(5)));
    assert!(matches!(unknown, Err(ReadError::Store(_))), "{unknown:?}");
}

/// A watch that nobody reads holds nobody up; when what it has not read is gone it is told so, once and for all.
pub async fn a_slow_watch_is_told_what_it_missed(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = store.open_table(table_by_first_byte("t")).unwrap_or_else(|error| panic!("{error}"));
    let mut all = watch(&store, WatchRequest::new(table, begin));
    let mut term = watch(&store, WatchRequest::new(table, begin).interest(Interest::Term(Term::from("1"))));
    for number in 0..3_000 {
        done(&store, Txn::new().op(Op::put(table, (number % 10).to_string(), "1"))).await;
    }
    store.compact(begin.plus(1_000)).await.unwrap_or_else(|error| panic!("{error}"));
    for slow in [&mut all, &mut term] {
        for _ in 0..2 {
            let error = slow.next().await.map(|batch| batch.revision);
            assert_eq!(error, Err(WatchError::Compacted { floor: begin.plus(1_000) }));
        }
        assert_eq!(slow.progress(), begin, "what was not delivered is not said to be");
    }
    assert!(
        next(&mut watch(&store, WatchRequest::new(table, begin.plus(1_000)))).await.events.len()
            >= BATCH_EVENTS_MAX
    );
}

/// A watch for which there was nothing is not ended by the compaction of what it didn't want.
pub async fn quiet_watches_outlive_compaction(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = store.open_table(table_by_first_byte("t")).unwrap_or_else(|error| panic!("{error}"));
    let other = open(&store, "other");
    let interests = [
        Interest::Term(Term::from("9")),
        Interest::Key(Bytes::from_static(b"quiet")),
        Interest::Prefix(Bytes::from_static(b"qu")),
    ];
    let mut quiet: Vec<Watch> = interests
        .into_iter()
        .map(|interest| watch(&store, WatchRequest::new(table, begin).interest(interest)))
        .collect();
    quiet.push(watch(&store, WatchRequest::new(other, begin)));
    for number in 0..500 {
        done(&store, Txn::new().op(Op::put(table, (number % 10).to_string(), "1"))).await;
    }
    store.compact(store.snapshot().revision()).await.unwrap_or_else(|error| panic!("{error}"));
    let both = Txn::new().op(Op::put(table, "quiet", "9")).op(Op::put(other, "quiet", "9"));
    let revision = done(&store, both).await;
    for watch in &mut quiet {
        let batch = next(watch).await;
        assert_eq!((batch.events.len(), batch.revision), (1, revision), "{watch:?}");
    }
}

/// A watch from a revision that is still to come delivers only what is after it.
pub async fn the_future_is_waited_for(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = open(&store, "t");
    let mut watch = watch(&store, WatchRequest::new(table, begin.plus(3)));
    for number in 1..=3 {
        done(&store, Txn::create(table, number.to_string(), "")).await;
        assert!(watch.next().now_or_never().is_none(), "revision {number} was not asked for");
    }
    done(&store, Txn::create(table, "4", "")).await;
    assert_eq!(keys(&next(&mut watch).await.events), [b"4"]);
}

/// Progress is that of the store when nothing of interest is left, and waits for what is not read yet.
pub async fn progress_moves_without_events(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let (table, other) = (open(&store, "t"), open(&store, "other"));
    let mut watch = watch(&store, WatchRequest::new(table, begin));
    let elsewhere = done(&store, Txn::create(other, "a", "")).await;
    assert_eq!(watch.progress(), elsewhere, "other tables' revisions move it");
    let here = done(&store, Txn::create(table, "a", "")).await;
    done(&store, Txn::create(other, "b", "")).await;
    assert!(watch.progress() < here, "an event that was not read holds it back");
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, store.snapshot().revision(), "a batch is complete up to what was published");
    assert_eq!(watch.progress(), batch.revision);
}

/// The events of one revision come in one batch however many they are; otherwise batches are bounded.
pub async fn revisions_are_not_split(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = open(&store, "t");
    let mut watch = watch(&store, WatchRequest::new(table, begin));
    let large = BATCH_EVENTS_MAX + 100;
    let txn = (0..large).fold(Txn::new(), |txn, number| txn.op(Op::put(table, format!("{number:05}"), "")));
    for number in 0..10 {
        done(&store, Txn::create(table, format!("before {number}"), "")).await;
    }
    done(&store, txn).await;
    for number in 0..2 * BATCH_EVENTS_MAX {
        done(&store, Txn::create(table, format!("after {number}"), "")).await;
    }
    let mut validator = Validator::new(
        &store.snapshot_at(begin).unwrap_or_else(|error| panic!("{error}")),
        WatchRequest::new(table, begin),
    );
    let (mut sizes, mut total) = (Vec::new(), 0);
    while let Ok(Some(batch)) = watch.try_next() {
        validator.observe(&batch);
        sizes.push(batch.events.len());
        total += batch.events.len();
    }
    assert_eq!(total, 10 + large + 2 * BATCH_EVENTS_MAX);
    assert_eq!(
        sizes.iter().filter(|size| **size > BATCH_EVENTS_MAX).count(),
        1,
        "only the large one: {sizes:?}"
    );
    validator.closes(&store.snapshot());
    let range = Op::DeleteRange { table, range: Range::all() };
    done(&store, Txn::new().op(range)).await;
    assert_eq!(next(&mut watch).await.events.len(), total);
}

/// A future of `next` that is dropped, pending or not, takes no event with it.
pub async fn dropped_futures_lose_nothing(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    let table = open(&store, "t");
    let request = WatchRequest::new(table, begin);
    let mut watch = watch(&store, request.clone());
    let mut validator = Validator::new(&store.snapshot(), request);
    for number in 0..200 {
        // Polled once and dropped, or never polled.
        assert!(watch.next().now_or_never().is_none());
        drop(watch.next());
        done(&store, Txn::create(table, number.to_string(), "")).await;
        drop(watch.next());
        if number % 3 == 0 {
            validator.observe(&next(&mut watch).await);
        } else {
            let taken = watch.next().now_or_never();
            let batch = taken
                .unwrap_or_else(|| panic!("there is an event"))
                .unwrap_or_else(|error| panic!("{error}"));
            validator.observe(&batch);
        }
    }
    validator.drain(&mut watch, &store.snapshot());
}

/// A ball goes to and fro between tasks that each wait for the other's write: a single lost wake-up would leave both
/// waiting.
pub async fn no_wake_up_is_lost(store: Arc<dyn Store>) {
    let begin = store.snapshot().revision();
    const ROUNDS: u64 = 1_000;
    let table = store.open_table(table_by_first_byte("t")).unwrap_or_else(|error| panic!("{error}"));
    let over = Arc::new(AtomicBool::new(false));
    let players: Vec<_> = [("ping", "pong"), ("pong", "ping")]
        .into_iter()
        .map(|(mine, theirs)| {
            let (store, over) = (store.clone(), over.clone());
            let interest = match mine {
                "ping" => Interest::Key(Bytes::from_static(b"pong")),
                _ => Interest::Prefix(Bytes::from_static(b"ping")),
            };
            let mut watch = watch(&store, WatchRequest::new(table, begin).interest(interest));
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    if mine == "pong" {
                        assert_eq!(keys(&next(&mut watch).await.events), [theirs.as_bytes()]);
                    }
                    done(&store, Txn::new().op(Op::put(table, mine, round.to_string()))).await;
                    if mine == "ping" {
                        assert_eq!(keys(&next(&mut watch).await.events), [theirs.as_bytes()]);
                    }
                }
                over.store(true, Ordering::Relaxed);
            })
        })
        .collect();
    for player in players {
        player.await.unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(store.snapshot().revision(), begin.plus(2 * ROUNDS));
}
