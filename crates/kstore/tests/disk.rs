//! The disk engine keeps what the conformance suite asks for, and what it promises beyond that.
#![cfg(all(feature = "disk", unix))]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kstore::{
    CommitError, DiskStore, Durability, Interest, Leases, Op, OpenError, Revision, Store, StoreError,
    SyncPolicy, TableId, TableSpec, Term, Txn, WatchError, WatchRequest, testing,
};

/// Directories that go when the test ends.
struct Directories(tempfile::TempDir, AtomicUsize);

impl Directories {
    fn new() -> Arc<Directories> {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        Arc::new(Directories(directory, AtomicUsize::new(0)))
    }

    fn next(&self) -> std::path::PathBuf {
        self.0.path().join(self.1.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn store(&self, policy: SyncPolicy) -> Arc<dyn Store> {
        let store = DiskStore::builder(self.next()).sync(policy).segment_bytes(256 * 1024);
        Arc::new(store.checkpoint_bytes(64 * 1024).open().unwrap_or_else(|error| panic!("{error}")))
    }
}

async fn conforms(policy: SyncPolicy) {
    let directories = Directories::new();
    testing::conformance(|| {
        let directories = directories.clone();
        async move { directories.store(policy) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads() {
    conforms(SyncPolicy::EveryCommit).await;
}

#[tokio::test]
async fn conforms_on_one_thread() {
    conforms(SyncPolicy::EveryCommit).await;
}

#[tokio::test]
async fn conforms_with_an_interval() {
    conforms(SyncPolicy::Interval(Duration::from_millis(1))).await;
}

#[tokio::test]
async fn conforms_without_syncs() {
    conforms(SyncPolicy::Never).await;
}

#[tokio::test(start_paused = true)]
async fn leases_conform() {
    let directories = Directories::new();
    testing::lease_conformance(|| {
        let directories = directories.clone();
        async move { directories.store(SyncPolicy::EveryCommit) }
    })
    .await;
}

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

async fn put(store: &DiskStore, table: TableId, key: &str, value: &str) -> Result<Revision> {
    Ok(store.commit(Txn::new().op(Op::put(table, key.to_owned(), value.to_owned()))).await?.revision)
}

/// The conformance suite's model test with a restart between its steps: the store agrees with the model before and after.
#[tokio::test]
async fn a_store_that_is_reopened_agrees_with_the_model() -> Result {
    for seed in 0..8 {
        let directory = tempfile::tempdir()?;
        let (mut random, mut model) = (testing::Random::new(seed), testing::model::Model::default());
        for life in 0..6 {
            // Small enough that lives end with checkpoints of all ages.
            let store = DiskStore::builder(&directory).segment_bytes(0).checkpoint_bytes(20_000).open()?;
            assert_eq!(store.recovery().revision, model.revision, "seed {seed}, life {life}");
            assert_eq!(store.recovery().clean, life > 0, "seed {seed}, life {life}");
            let open = |name| store.open_table(testing::model::table_by_first_byte(name));
            let tables = [open("a")?, open("b")?];
            model.check(&store.snapshot(), &tables);
            store.verify()?;
            for _ in 0..30 {
                let txn = testing::model::random_txn(&mut random, tables, model.revision);
                if let Ok(committed) = store.commit(txn.clone()).await {
                    assert_eq!(model.commit(&txn), Ok(committed.revision), "seed {seed}: {txn:?}");
                }
            }
            model.check(&store.snapshot(), &tables);
            if random.happens(300) {
                store.checkpoint().await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_has_one_store_at_a_time() -> Result {
    let directory = tempfile::tempdir()?;
    let store = DiskStore::open(&directory)?;
    let second = DiskStore::open(&directory);
    assert!(matches!(&second, Err(OpenError::Locked { directory: named }) if named.starts_with(&directory)));
    drop(store);
    DiskStore::open(&directory)?;
    Ok(())
}

/// What was acknowledged is there for the next, which may open the directory at once; the old one refuses commits and serves reads.
#[tokio::test]
async fn a_closed_store_leaves_everything_to_the_next() -> Result {
    for policy in
        [SyncPolicy::EveryCommit, SyncPolicy::Interval(Duration::from_secs(3_600)), SyncPolicy::Never]
    {
        let directory = tempfile::tempdir()?;
        let store = Arc::new(DiskStore::builder(&directory).sync(policy).open()?);
        let table = store.open_table(TableSpec::new("t"))?;
        let mut watch = testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO))?;
        // Those that are under way are done or refused, and which it was is known.
        let racing = (0..32).map(|number| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, table, &format!("{number}"), "v").await.is_ok() })
        });
        let racing: Vec<_> = racing.collect();
        let first = put(&store, table, "first", "v").await?;
        let (one, other) = tokio::join!(store.close(), store.close());
        one?;
        other?;
        let mut acknowledged = 1;
        for commit in racing {
            acknowledged += usize::from(commit.await?);
        }
        let next = DiskStore::open(&directory)?;
        assert!(next.recovery().clean, "{policy:?}: {:?}", next.recovery());
        let again = next.open_table(TableSpec::new("t"))?;
        assert_eq!(next.snapshot().len(again), acknowledged, "{policy:?}");
        let refused = store.commit(Txn::create(table, "late", "")).await;
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Closed))), "{refused:?}");
        assert!(store.snapshot().get(table, b"first").is_some_and(|entry| entry.modified() == first));
        let mut seen = 0;
        let end = loop {
            match watch.next().await {
                Ok(batch) => seen += batch.events.len(),
                Err(end) => break end,
            }
        };
        assert!(matches!(end, WatchError::Closed), "{end:?}");
        assert_eq!(seen, acknowledged, "{policy:?}");
        assert!(matches!(store.fork().await, Err(StoreError::Closed)));
    }
    Ok(())
}

/// A fork has what was committed before, leases too, and goes its own way in memory.
#[tokio::test(start_paused = true)]
async fn a_fork_goes_its_own_way() -> Result {
    let directory = tempfile::tempdir()?;
    let store = DiskStore::open(&directory)?;
    let table = store.open_table(TableSpec::new("t"))?;
    let lease = store.grant(Duration::from_secs(10), None).await?;
    let leased = Op::Put { table, key: "leased".into(), value: "".into(), lease: Some(lease), hint: None };
    store.commit(Txn::new().op(leased)).await?;
    let before = put(&store, table, "a", "1").await?;
    let fork = store.fork().await?;
    assert_eq!(fork.snapshot().revision(), before);
    assert!(fork.snapshot().diff(&store.snapshot()).is_empty());
    put(&store, table, "a", "here").await?;
    fork.commit(Txn::new().op(Op::put(table, "a", "there"))).await?;
    let value = |snapshot: kstore::Snapshot| snapshot.get(table, b"a").map(|entry| entry.value().clone());
    assert_eq!(value(store.snapshot()).as_deref(), Some(&b"here"[..]));
    assert_eq!(value(fork.snapshot()).as_deref(), Some(&b"there"[..]));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!((fork.snapshot().len(table), store.snapshot().len(table)), (1, 1), "the lease ends in both");
    fork.verify()?;
    drop(store);
    let next = DiskStore::open(&directory)?;
    let table = next.open_table(TableSpec::new("t"))?;
    assert_eq!(value(next.snapshot()).as_deref(), Some(&b"here"[..]), "{table:?}");
    Ok(())
}

/// A watch that the restart ended goes on where it was, under its index.
#[tokio::test]
async fn watches_resume_after_a_restart() -> Result {
    let directory = tempfile::tempdir()?;
    let store = DiskStore::open(&directory)?;
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    put(&store, table, "a", "1").await?;
    let mut watch = testing::checked_watch(&store, WatchRequest::new(table, Revision::ZERO))?;
    let seen = watch.next().await?.revision;
    put(&store, table, "a", "2").await?;
    put(&store, table, "b", "1").await?;
    drop(store);
    assert_eq!(watch.next().await?.events.len(), 2, "what was published is delivered");
    assert_eq!(watch.next().await.map(|_| ()), Err(WatchError::Closed));

    let store = DiskStore::open(&directory)?;
    let table = store.open_table(testing::model::table_by_first_byte("t"))?;
    let mut all = testing::checked_watch(&store, WatchRequest::new(table, seen))?;
    let mut ones = testing::checked_watch(
        &store,
        WatchRequest::new(table, seen).interest(Interest::Term(Term::from("1"))),
    )?;
    put(&store, table, "c", "1").await?;
    let events = all.next().await?.events;
    let keys: Vec<_> = events.iter().map(|event| (&event.entry.key()[..], event.is_create())).collect();
    assert_eq!(keys, [(&b"a"[..], false), (b"b", true), (b"c", true)]);
    assert_eq!(events[0].previous.as_ref().map(|entry| entry.terms().to_vec()), Some(vec![Term::from("1")]));
    assert_eq!(ones.next().await?.events.len(), 3, "a had the term before");
    store.verify()?;
    Ok(())
}

/// Neither time spent closed nor a clock that is set back gives a lease more than it was granted.
#[tokio::test(start_paused = true)]
async fn leases_have_the_time_left_after_a_restart() -> Result {
    let directory = tempfile::tempdir()?;
    let wall = Arc::new(AtomicU64::new(1_000_000));
    let open = || {
        let wall = wall.clone();
        let clock = move || Duration::from_secs(wall.load(Ordering::Relaxed));
        DiskStore::builder(&directory).wall_clock(clock).open()
    };
    let left = async |store: &DiskStore| -> Result<Vec<u64>> {
        Ok(store.leases(None).await?.iter().map(|info| info.remaining.as_secs()).collect())
    };
    let store = open()?;
    let table = store.open_table(TableSpec::new("t"))?;
    for seconds in [100, 1_000] {
        let lease = Some(store.grant(Duration::from_secs(seconds), None).await?);
        let (key, value) = (seconds.to_string().into(), Default::default());
        store.commit(Txn::new().op(Op::Put { table, key, value, lease, hint: None })).await?;
    }
    drop(store);
    wall.fetch_add(60, Ordering::Relaxed);
    let store = open()?;
    assert_eq!(left(&store).await?, [40, 940]);
    store.checkpoint().await?;
    drop(store);
    wall.fetch_sub(500, Ordering::Relaxed);
    let store = open()?;
    assert_eq!(left(&store).await?, [100, 1_000], "the clock was set back");
    drop(store);
    wall.fetch_add(700, Ordering::Relaxed);
    let store = open()?;
    let table = store.open_table(TableSpec::new("t"))?;
    let deleted = store.barrier().await?;
    assert_eq!(left(&store).await?.len(), 1, "one ended meanwhile");
    assert_eq!(store.snapshot().len(table), 1);
    assert!(store.barrier().await? > deleted || store.snapshot().get(table, b"100").is_none());
    Ok(())
}

/// What is not written is gone, is not mistaken for something else, and says so to who has seen it.
#[tokio::test]
async fn tables_in_memory_are_empty_after_a_restart() -> Result {
    let directory = tempfile::tempdir()?;
    let memory = || TableSpec::new("memory").durability(Durability::Memory);
    let mut shown = Revision::ZERO;
    for life in 0..3 {
        let store = DiskStore::open(&directory)?;
        let (kept, lost) = (store.open_table(TableSpec::new("kept"))?, store.open_table(memory())?);
        assert_eq!((store.snapshot().len(kept), store.snapshot().len(lost)), (life, 0));
        assert!(life == 0 || store.snapshot().revision() > shown, "no revision comes twice");
        let resumed = testing::checked_watch(&store, WatchRequest::new(lost, shown));
        assert_eq!(resumed.is_ok(), life == 0, "a watch can't go on as if nothing had happened");
        put(&store, lost, "a", "1").await?;
        put(&store, kept, &format!("{life}"), "1").await?;
        shown = put(&store, lost, "b", "1").await?;
        if life == 1 {
            store.checkpoint().await?;
        }
    }
    Ok(())
}

/// With the clock at rest, nothing of a relaxed table is written until its time is over, and then all of it.
#[tokio::test(start_paused = true)]
async fn relaxed_tables_are_written_in_time() -> Result {
    let directory = tempfile::tempdir()?;
    let log_bytes = || -> Result<usize> {
        let log = std::fs::read(directory.path().join("log-00000001"))?;
        Ok(log.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1))
    };
    let store = DiskStore::open(&directory)?;
    let relaxed = Durability::Relaxed { max_loss: Duration::from_secs(5) };
    let table = store.open_table(TableSpec::new("t").durability(relaxed))?;
    // The first reserves revisions, and is written for that.
    put(&store, table, "0", "").await?;
    let before = log_bytes()?;
    for number in 1..100 {
        put(&store, table, &number.to_string(), &"x".repeat(1_000)).await?;
    }
    assert_eq!((store.snapshot().len(table), log_bytes()?), (100, before), "shown, and not written yet");
    tokio::time::sleep(Duration::from_secs(6)).await;
    // The keeper has begun the write; a look at the leases comes after it.
    store.leases(None).await?;
    assert!(log_bytes()? > before + 99_000, "{} bytes", log_bytes()?);
    Ok(())
}

fn damage(path: &std::path::Path, at: u64) -> Result {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 4], at)?;
    Ok(())
}

/// A frame that others come after was acknowledged: without it the store is not opened. The last one of a store that was not
/// closed may not have been, and is cut off.
#[tokio::test]
async fn a_damaged_middle_is_refused_and_a_torn_end_is_cut() -> Result {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log-00000001");
    let store = DiskStore::open(&directory)?;
    let table = store.open_table(TableSpec::new("t"))?;
    for number in 0..10 {
        put(&store, table, &number.to_string(), &"x".repeat(1_000)).await?;
    }
    drop(store);
    // Frames take one block each; the eleventh says that the store was closed.
    damage(&log, 4 * 4_096 + 500)?;
    match DiskStore::open(&directory) {
        Err(OpenError::Corrupt { file, offset, .. }) => assert_eq!((file, offset), (log.clone(), 4 * 4_096)),
        other => panic!("opened: {other:?}"),
    }
    damage(&log, 4 * 4_096 + 500)?;
    damage(&log, 10 * 4_096 + 3)?;
    let store = DiskStore::open(&directory)?;
    assert_eq!((store.recovery().clean, store.recovery().frames), (false, 10));
    let table = store.open_table(TableSpec::new("t"))?;
    assert_eq!(store.snapshot().len(table), 10);
    put(&store, table, "more", "").await?;
    drop(store);
    assert_eq!(DiskStore::open(&directory)?.recovery().revision, Revision(11));
    Ok(())
}

#[tokio::test]
async fn other_directories_and_formats_are_refused() -> Result {
    let directory = tempfile::tempdir()?;
    drop(DiskStore::open(&directory)?);
    let plate = directory.path().join("STORE");
    let good = std::fs::read(&plate)?;
    damage(&plate, 20)?;
    assert!(matches!(DiskStore::open(&directory), Err(OpenError::Corrupt { file, .. }) if file == plate));
    std::fs::write(&plate, &good)?;
    std::fs::rename(&plate, directory.path().join("elsewhere"))?;
    std::fs::write(directory.path().join("log-00000001"), [0; 4_096])?;
    assert!(matches!(DiskStore::open(&directory), Err(OpenError::NotAStore { .. })));
    Ok(())
}

#[tokio::test]
async fn the_quota_stops_growth_but_not_deletion() -> Result {
    let directory = tempfile::tempdir()?;
    let store = DiskStore::builder(&directory).bytes_max(100).open()?;
    let table = store.open_table(TableSpec::new("t"))?;
    put(&store, table, "a", &"x".repeat(60)).await?;
    let full = store.commit(Txn::create(table, "b", "x".repeat(60))).await;
    assert!(matches!(full, Err(CommitError::QuotaExceeded { bytes: 122, bytes_max: 100 })), "{full:?}");
    store.commit(Txn::new().op(Op::delete(table, "a"))).await?;
    put(&store, table, "b", &"x".repeat(60)).await?;
    Ok(())
}

/// What is restored outlives a restart, and a store that was restored into goes on.
#[tokio::test]
async fn a_restored_store_outlives_a_restart() -> Result {
    let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let origin = DiskStore::open(&from)?;
    let table = origin.open_table(TableSpec::new("t"))?;
    for number in 0..100 {
        put(&origin, table, &number.to_string(), "v").await?;
    }
    let store = DiskStore::open(&to)?;
    store.open_table(TableSpec::new("before"))?;
    assert_eq!(store.restore(origin.backup().await?.into()).await?, Revision(100));
    let table = store.open_table(TableSpec::new("t"))?;
    put(&store, table, "more", "v").await?;
    drop(store);
    let store = DiskStore::open(&to)?;
    let table = store.open_table(TableSpec::new("t"))?;
    assert_eq!((store.snapshot().revision(), store.snapshot().len(table)), (Revision(101), 101));
    assert!(store.recovery().checkpoint.is_some());
    Ok(())
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least of all runtimes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// Without a runtime, I/O is done by threads.
#[test]
fn no_runtime_is_needed() -> Result {
    let directory = tempfile::tempdir()?;
    let store = DiskStore::open(&directory)?;
    let table = store.open_table(TableSpec::new("t"))?;
    let many = (0..64).map(|number| store.commit(Txn::create(table, number.to_string(), "")));
    let done = block_on(futures::future::join_all(many));
    assert!(done.iter().all(std::result::Result::is_ok), "{done:?}");
    drop(store);
    assert_eq!(DiskStore::open(&directory)?.recovery().revision, Revision(64));
    Ok(())
}

/// The log doesn't grow with what was written, only with what is there: checkpoints let its files be used again.
#[tokio::test]
async fn the_log_is_used_again() -> Result {
    let directory = tempfile::tempdir()?;
    let store =
        DiskStore::builder(&directory).segment_bytes(256 * 1024).checkpoint_bytes(256 * 1024).open()?;
    let table = store.open_table(TableSpec::new("t"))?;
    for number in 0..400 {
        put(&store, table, &(number % 5).to_string(), &"x".repeat(20_000)).await?;
    }
    drop(store);
    let mut bytes = 0;
    for entry in std::fs::read_dir(&directory)? {
        bytes += entry?.metadata()?.len();
    }
    assert!(bytes < 3_000_000, "{bytes} bytes for 100,000 that are live, after 8,000,000 were written");
    Ok(())
}
