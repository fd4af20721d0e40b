//! The memory engine keeps what the conformance suite asks for, and what it promises beyond that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, task::noop_waker};
use kstore::{
    CommitError, Compare, HistoryLimits, Interest, LeaseError, MemoryStore, Op, Range, ReadError, Revision,
    Store, StoreError, TableSpec, Term, Txn, WatchError, WatchRequest, index_fn, testing,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

async fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads() {
    testing::conformance(memory).await;
}

#[tokio::test]
async fn conforms_on_one_thread() {
    testing::conformance(memory).await;
}

#[tokio::test(start_paused = true)]
async fn leases_conform() {
    testing::lease_conformance(memory).await;
}

#[tokio::test]
async fn pointers_and_forks_conform() {
    testing::conformance(|| async { Arc::new(Box::new(Arc::new(MemoryStore::new()))) as Arc<dyn Store> })
        .await;
    testing::conformance(|| async { Arc::new(MemoryStore::new().fork()) as Arc<dyn Store> }).await;
}

async fn put(store: &MemoryStore, table: kstore::TableId, key: &str, value: &str) -> Result<Revision> {
    Ok(store.commit(Txn::new().op(Op::put(table, key.to_owned(), value.to_owned()))).await?.revision)
}

#[tokio::test]
async fn a_fork_and_its_origin_go_their_own_ways() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    for number in 0..500 {
        put(&store, table, &format!("{number:03}"), "1").await?;
    }
    let mut watch = testing::checked_watch(&store, WatchRequest::new(table, Revision(500)))?;
    let fork = store.fork();
    let mut fork_watch = testing::checked_watch(&fork, WatchRequest::new(table, Revision(490)))?;
    for number in 0..20 {
        put(&store, table, &format!("{number:03}"), "2 origin").await?;
        put(&fork, table, &format!("{:03}", number + 10), "3 fork").await?;
    }
    fork.commit(Txn::new().op(Op::delete(table, "499"))).await?;
    store.verify()?;
    fork.verify()?;
    // Each shows its own future, and both the past they share.
    let count = |store: &MemoryStore, term: &str| store.snapshot().by_term(table, &Term::from(term)).len();
    assert_eq!(
        (count(&store, "2"), count(&store, "3"), count(&fork, "2"), count(&fork, "3")),
        (20, 0, 0, 20)
    );
    assert_eq!((store.snapshot().revision(), fork.snapshot().revision()), (Revision(520), Revision(521)));
    assert!(store.snapshot_at(Revision(500))?.diff(&fork.snapshot_at(Revision(500))?).is_empty());
    // 20 that the origin changed, 20 that the fork did, 10 of them the same, and the deletion.
    let differences = store.snapshot().diff(&fork.snapshot());
    assert_eq!(differences.len(), 31);
    let deleted = differences.last().ok_or("no difference")?;
    assert_eq!((deleted.before.is_some(), deleted.after.is_none()), (true, true));
    assert_eq!(watch.next().await?.events.len(), 20);
    assert_eq!(fork_watch.next().await?.events.len(), 31, "ten from before the fork, 21 of its own");
    drop(store);
    assert_eq!(watch.next().await.map(|_| ()), Err(WatchError::Closed));
    put(&fork, table, "x", "1").await?;
    assert_eq!(fork_watch.next().await?.events.len(), 1, "the fork outlives its origin");
    Ok(())
}

#[tokio::test]
async fn a_dropped_store_lets_its_watches_read_to_the_end() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let mut reading = testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO))?;
    let mut waiting = testing::checked_watch(
        &store,
        WatchRequest::new(table, Revision(1)).interest(Interest::Key("x".into())),
    )?;
    put(&store, table, "k", "v").await?;
    let snapshot = store.snapshot();
    let waiter = tokio::spawn(async move { waiting.next().await.map(|_| ()) });
    tokio::task::yield_now().await;
    drop(store);
    assert_eq!(waiter.await?, Err(WatchError::Closed));
    assert_eq!(reading.next().await?.events.len(), 1);
    assert_eq!(reading.next().await.map(|_| ()), Err(WatchError::Closed));
    assert_eq!(snapshot.len(table), 1, "a snapshot outlives its store");
    Ok(())
}

#[tokio::test]
async fn the_quota_stops_growth_but_not_deletion() -> Result {
    let store = MemoryStore::builder().bytes_max(100).build();
    let table = store.open_table(TableSpec::new("t"))?;
    put(&store, table, "a", &"x".repeat(60)).await?;
    let full = store.commit(Txn::create(table, "b", "x".repeat(60))).await;
    assert!(matches!(full, Err(CommitError::QuotaExceeded { bytes: 122, bytes_max: 100 })), "{full:?}");
    assert_eq!(store.snapshot().revision(), Revision(1));
    // Replacing something by something smaller is no growth.
    put(&store, table, "a", &"x".repeat(50)).await?;
    store.commit(Txn::new().op(Op::delete(table, "a"))).await?;
    put(&store, table, "b", &"x".repeat(60)).await?;
    Ok(())
}

fn limits(events_max: usize, bytes_max: usize, age_max: Duration) -> HistoryLimits {
    HistoryLimits { events_max, bytes_max, age_max }
}

#[tokio::test]
async fn history_is_limited_by_events_and_each_table_for_itself() -> Result {
    let store = MemoryStore::new();
    let busy = TableSpec::new("busy").history(limits(1_000, usize::MAX, Duration::MAX));
    let (busy, quiet) = (store.open_table(busy)?, store.open_table(TableSpec::new("quiet"))?);
    put(&store, quiet, "k", "v").await?;
    for number in 0..5_000 {
        put(&store, busy, &(number % 7).to_string(), "v").await?;
    }
    let snapshot = store.snapshot();
    assert_eq!(snapshot.table_floor(busy), Revision(4_001));
    assert_eq!(snapshot.events(busy, Revision(4_001))?.len(), 1_000);
    assert_eq!(
        snapshot.table_floor(quiet),
        Revision::ZERO,
        "a busy table does not cost a quiet one its history"
    );
    assert_eq!(snapshot.len(busy), 7, "what is live stays");
    assert!(testing::checked_watch(&store, WatchRequest::new(quiet, Revision::ZERO)).is_ok());
    assert!(matches!(store.snapshot_at(Revision(10)), Err(ReadError::Compacted { .. })));
    assert_eq!(snapshot.at_table(quiet, Revision(1))?.len(quiet), 1);
    store.verify()?;
    Ok(())
}

#[tokio::test]
async fn history_is_limited_by_bytes() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t").history(limits(usize::MAX, 1 << 20, Duration::MAX)))?;
    for _ in 0..2_000 {
        put(&store, table, "k", &"x".repeat(4_096)).await?;
        assert!(store.history_bytes() <= (1 << 20) + 8_192, "{}", store.history_bytes());
    }
    let kept = store.snapshot().events(table, store.snapshot().table_floor(table))?.len();
    assert!((200..256).contains(&kept), "{kept} events of more than 4 KiB in 1 MiB");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn history_is_limited_by_age_and_kept_until_then() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let old = put(&store, table, "k", "old").await?;
    tokio::time::advance(Duration::from_secs(5 * 60)).await;
    let young = put(&store, table, "k", "young").await?;
    assert!(
        testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO)).is_ok(),
        "five minutes are kept"
    );
    tokio::time::advance(HistoryLimits::AGE_MAX - Duration::from_secs(2 * 60)).await;
    put(&store, table, "k", "younger").await?;
    assert_eq!(store.snapshot().table_floor(table), old, "what is older than the limit is gone");
    assert_eq!(store.snapshot_at(young)?.get(table, b"k").map(|entry| entry.modified()), Some(young));
    tokio::time::advance(HistoryLimits::AGE_MAX * 2).await;
    let last = put(&store, table, "k", "youngest").await?;
    assert!(store.snapshot().table_floor(table) >= last.previous());
    store.verify()?;
    Ok(())
}

#[tokio::test]
async fn compaction_frees_what_it_promises() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let value: Arc<[u8]> = Arc::from(vec![0; 1_024]);
    for _ in 0..1_000 {
        let owned = bytes::Bytes::from_owner(value.clone());
        store.commit(Txn::new().op(Op::put(table, "k", owned))).await?;
    }
    assert_eq!(Arc::strong_count(&value), 1_001, "history keeps every value");
    store.compact(Revision(1_000)).await?;
    // The live one, ours, and those of the piece of the log that is being filled.
    assert!(Arc::strong_count(&value) <= 2 + 256, "{} are kept", Arc::strong_count(&value));
    assert_eq!(store.history_bytes(), 0);
    Ok(())
}

#[tokio::test]
async fn a_panicking_index_fails_its_own_commit_only() -> Result {
    let store = Arc::new(MemoryStore::new());
    let picky = index_fn(|entry, _| assert_ne!(&entry.value()[..], b"bad", "the index does not like this"));
    let table = store.open_table(TableSpec::new("t").index(picky))?;
    put(&store, table, "k", "good").await?;
    let bad = {
        let store = store.clone();
        tokio::spawn(async move { store.commit(Txn::new().op(Op::put(table, "k", "bad"))).await.map(|_| ()) })
    };
    assert!(bad.await.is_err_and(|error| error.is_panic()));
    assert_eq!(put(&store, table, "k", "better").await?, Revision(2));
    store.verify()?;
    Ok(())
}

#[tokio::test]
async fn the_index_of_a_restored_table_comes_with_its_first_opening() -> Result {
    let origin = MemoryStore::new();
    let table = origin.open_table(TableSpec::new("t"))?;
    put(&origin, table, "k", "1").await?;
    let store = MemoryStore::new();
    store.restore(origin.backup().await?.into()).await?;
    let plain = store.tables();
    // An index that can't do it leaves the table as it was, for the next to open.
    let bad = index_fn(|_, terms| {
        terms.extend((0..=kstore::TERMS_MAX).map(|number| Term::from(number.to_string())))
    });
    let refused = store.open_table(TableSpec::new("t").index(bad));
    assert!(matches!(refused, Err(StoreError::TooManyTerms { .. })), "{refused:?}");
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    assert_eq!(plain, [("t".to_owned(), table)]);
    assert_eq!(store.snapshot().by_term(table, &Term::from("1")).len(), 1);
    store.verify()?;
    Ok(())
}

/// Counts how often it is woken.
struct Counter(AtomicUsize);

impl futures::task::ArcWake for Counter {
    fn wake_by_ref(counter: &Arc<Counter>) {
        counter.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn an_event_wakes_only_who_wants_it_and_a_transaction_wakes_once() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    let interests = [
        Interest::Term("1".into()),
        Interest::Term("2".into()),
        Interest::Key("a".into()),
        Interest::Prefix("b".into()),
        Interest::All,
    ];
    let counters: Vec<Arc<Counter>> =
        interests.iter().map(|_| Arc::new(Counter(AtomicUsize::new(0)))).collect();
    let mut watches = Vec::new();
    for (interest, counter) in interests.iter().zip(&counters) {
        let mut watch = testing::checked_watch(
            &store,
            WatchRequest::new(table, Revision::ZERO).interest(interest.clone()),
        )?;
        let waker = futures::task::waker(counter.clone());
        assert!(watch.poll_next(&mut std::task::Context::from_waker(&waker)).is_pending());
        // Waiting twice is waiting once.
        assert!(watch.poll_next(&mut std::task::Context::from_waker(&waker)).is_pending());
        watches.push(watch);
    }
    let woken =
        || -> Vec<usize> { counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).collect() };
    let many = (0..50).fold(Txn::new(), |txn, number| txn.op(Op::put(table, format!("b{number}"), "1")));
    store.commit(many).await?;
    assert_eq!(woken(), [1, 0, 0, 1, 1]);
    put(&store, table, "a", "2").await?;
    assert_eq!(woken(), [1, 1, 1, 1, 1], "who has been woken and has not come back is left alone");
    Ok(())
}

#[tokio::test]
async fn watches_that_come_and_go_leave_nothing_behind() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let before = Arc::new(());
    let noop = noop_waker();
    for number in 0..1_000 {
        for interest in
            [Interest::All, Interest::Key(number.to_string().into()), Interest::Prefix("x".into())]
        {
            let mut watch =
                testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO).interest(interest))?;
            assert!(watch.poll_next(&mut std::task::Context::from_waker(&noop)).is_pending());
            // A waker that owns something shows whether the store still holds it.
            let held = before.clone();
            let waker = futures::task::waker(Arc::new(Holder(held)));
            assert!(watch.poll_next(&mut std::task::Context::from_waker(&waker)).is_pending());
        }
    }
    assert_eq!(Arc::strong_count(&before), 1, "no waker of a dropped watch is kept");
    Ok(())
}

struct Holder(#[expect(dead_code, reason = "held for its reference count")] Arc<()>);

impl futures::task::ArcWake for Holder {
    fn wake_by_ref(_: &Arc<Holder>) {}
}

/// A waker may own the very watch that waits with it (a future that is dropped with its last waker); letting go of it must
/// not happen under the lock that the watch needs to leave.
#[test]
fn a_waker_may_own_a_watch() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let begin = || testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO));
    let mut watch = begin()?;
    for _ in 0..3 {
        let waker = futures::task::waker(Arc::new(Owner(std::sync::Mutex::new(begin()?))));
        assert!(watch.poll_next(&mut std::task::Context::from_waker(&waker)).is_pending());
    }
    drop(watch);
    Ok(())
}

struct Owner(
    #[expect(dead_code, reason = "owned, to be dropped with the waker")] std::sync::Mutex<kstore::Watch>,
);

impl futures::task::ArcWake for Owner {
    fn wake_by_ref(_: &Arc<Owner>) {}
}

#[test]
fn without_a_runtime_commits_work_and_due_leases_end_with_the_next() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let now = |result: Option<std::result::Result<kstore::Committed, CommitError>>| result.ok_or("it waited");
    now(store.commit(Txn::create(table, "k", "v")).now_or_never())??;
    use kstore::Leases;
    let lease = store.grant(Duration::from_secs(60), None).now_or_never().ok_or("it waited")??;
    assert_eq!(store.leases(Some(lease)).now_or_never().ok_or("it waited")??.len(), 1);
    let unknown =
        store.keep_alive(kstore::LeaseId::new(9).ok_or("zero")?).now_or_never().ok_or("it waited")?;
    assert!(matches!(unknown, Err(LeaseError::NotFound(_))));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_lease_task_ends_with_the_store() -> Result {
    use kstore::Leases;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let store = MemoryStore::new();
    assert_eq!(metrics.num_alive_tasks(), before, "no lease, no task");
    store.grant(Duration::from_secs(3_600), None).await?;
    store.grant(Duration::from_secs(3_600), None).await?;
    assert_eq!(metrics.num_alive_tasks(), before + 1);
    drop(store);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(metrics.num_alive_tasks(), before);
    Ok(())
}

#[tokio::test]
async fn a_hint_and_a_derived_value_travel_with_the_entry() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(TableSpec::new("t"))?;
    let hint: kstore::Opaque = Arc::new(41_u64);
    let op = Op::Put { table, key: "k".into(), value: "v".into(), lease: None, hint: Some(hint) };
    let committed = store.commit(Txn::new().compare(Compare::absent(table, "k")).op(op)).await?;
    let entry = store.snapshot().get(table, b"k").ok_or("absent")?;
    assert!(
        Arc::ptr_eq(&entry, committed.outcomes[0].entry.as_ref().ok_or("no entry")?),
        "one entry for all"
    );
    let made = AtomicUsize::new(0);
    let derive = || {
        entry.derived(|entry| {
            made.fetch_add(1, Ordering::Relaxed);
            Arc::new(entry.hint().and_then(|hint| hint.downcast_ref::<u64>()).map_or(0, |hint| hint + 1))
        })
    };
    assert_eq!((*derive(), *derive(), made.load(Ordering::Relaxed)), (42, 42, 1));
    // Another type is worked out, but does not take the place of the first.
    assert_eq!(*entry.derived(|_| Arc::new("text")), "text");
    assert_eq!(*derive(), 42);
    Ok(())
}

#[tokio::test]
async fn many_keys_in_random_order_stay_sound_as_they_come_and_go() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    let mut random = testing::Random::new(23);
    for round in 0..6 {
        for _ in 0..3_000 {
            let key = random.below(5_000).to_string();
            let removes = if round % 2 == 0 { 200 } else { 800 };
            let op = match random.happens(removes) {
                true => Op::delete(table, key),
                false => Op::put(table, key, random.below(4).to_string()),
            };
            store.commit(Txn::new().op(op)).await?;
        }
        store.verify()?;
    }
    store.commit(Txn::new().op(Op::DeleteRange { table, range: Range::all() })).await?;
    store.verify()?;
    assert!(store.snapshot().is_empty(table));
    Ok(())
}

#[tokio::test]
async fn another_stores_table_is_refused() -> Result {
    let (one, two) = (MemoryStore::new(), MemoryStore::new());
    one.open_table(TableSpec::new("a"))?;
    let table = one.open_table(TableSpec::new("b"))?;
    let refused = two.commit(Txn::create(table, "k", "")).await;
    assert!(matches!(refused, Err(CommitError::Store(StoreError::UnknownTable(_)))));
    assert!(two.snapshot().get(table, b"k").is_none());
    Ok(())
}

/// Entries of one term that fill several leaves of the index are all found. (A search for the first went to the last leaf
/// that begins with the term.)
#[tokio::test]
async fn a_term_of_many_entries_leads_to_all_of_them() -> Result {
    let store = MemoryStore::new();
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    for number in 0..2_000 {
        put(&store, table, &format!("{number:04}"), if number % 5 == 0 { "a" } else { "b" }).await?;
    }
    let snapshot = store.snapshot();
    for (term, count) in [("a", 400), ("b", 1_600), ("c", 0)] {
        let entries = snapshot.by_term(table, &Term::from(term));
        assert_eq!(entries.len(), count);
        assert_eq!(entries.count(), count);
    }
    Ok(())
}
