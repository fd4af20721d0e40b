//! Everything at once for a while, under a ceiling: `cargo run --release -p kstore --example soak [seconds] [directory]`.
//!
//! Writers that create, change and delete, leases that end, lists, compactions, one watch that nobody reads and one that begins
//! anew all the time, over a disk store. Each second the store is checked (`verify`) and its memory compared with the ceiling.
//! At the end it is closed, opened again, and compared with what it was. Ten minutes and a temporary directory by default; ends
//! with an error when something is wrong.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kstore::{
    CommitError, DiskStore, HistoryLimits, Leases, Op, Range, Store, TableId, TableSpec, Txn, WatchRequest,
};
use tokio::time::Instant;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const KEYS: u64 = 20_000;
const VALUE_BYTES: usize = 1_024;
const WRITERS: u64 = 16;
/// The live values, the history's budget, the log's buffers, and as much again for what is being copied.
const RESIDENT_MIB_MAX: f64 = 400.0;
const HISTORY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What has been done so far, and whether to stop.
#[derive(Default)]
struct Done {
    stop: AtomicBool,
    commits: AtomicU64,
    conflicts: AtomicU64,
    events: AtomicU64,
    lists: AtomicU64,
    ended: AtomicU64,
}

#[tokio::main]
async fn main() -> Result {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(600), |seconds| seconds.parse())?;
    let base = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = base.join(format!("kstore-soak-{}", std::process::id()));
    let result = soak(Duration::from_secs(seconds), directory.clone()).await;
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn soak(time: Duration, directory: PathBuf) -> Result {
    let store = Arc::new(DiskStore::open(&directory)?);
    let history = HistoryLimits { bytes_max: HISTORY_BYTES_MAX, ..HistoryLimits::default() };
    let table = store.open_table(TableSpec::new("pods").history(history))?;
    let done = Arc::new(Done::default());
    let stuck = store.watch(WatchRequest::new(table, store.snapshot().revision()))?;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(write(store.clone(), table, done.clone(), writer));
    }
    tasks.spawn(leases(store.clone(), table, done.clone()));
    tasks.spawn(follow(store.clone(), table, done.clone()));
    tasks.spawn(list(store.clone(), table, done.clone()));
    let (begun, mut most) = (Instant::now(), 0.0_f64);
    while begun.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.verify()?;
        let now = store.snapshot().revision();
        store.compact(kstore::Revision(now.get().saturating_sub(50_000))).await?;
        most = most.max(resident_mib());
        if most > RESIDENT_MIB_MAX {
            return Err(format!("{most:.0} MiB are resident, more than {RESIDENT_MIB_MAX}").into());
        }
        if let Some(ended) = tasks.try_join_next() {
            ended??;
            return Err("a task ended before its time".into());
        }
    }
    done.stop.store(true, Ordering::Relaxed);
    // Whoever waits for an event has one more.
    store.commit(Txn::new().op(Op::put(table, "end", "end"))).await?;
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    drop(stuck);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    for (name, counter) in [
        ("commits", &done.commits),
        ("conflicts", &done.conflicts),
        ("events", &done.events),
        ("lists", &done.lists),
        ("leases_ended", &done.ended),
    ] {
        println!("figure soak_{name} {:.0} 1", count(counter));
    }
    println!("figure soak_resident_most {most:.0} MiB");
    println!("figure soak_history {:.1} MiB", store.history_bytes() as f64 / 1_048_576.0);
    reopen(&store, table, &directory).await
}

/// What the next one finds is what this one had.
async fn reopen(store: &DiskStore, table: TableId, directory: &PathBuf) -> Result {
    // Leases that are left end, and change it once more.
    while !store.leases(None).await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = store.snapshot();
    store.close().await?;
    let next = DiskStore::open(directory)?;
    let again = next.open_table(TableSpec::new("pods"))?;
    let now = next.snapshot();
    now.verify()?;
    let same = now.range(again, Range::all()).eq_by_state(last.range(table, Range::all()));
    println!("figure soak_reopened {:.3} s", next.recovery().took.as_secs_f64());
    if same { Ok(()) } else { Err("what was opened again is not what was closed".into()) }
}

/// Whether two lists are of the same states.
trait EqByState {
    fn eq_by_state(self, other: impl Iterator<Item = Arc<kstore::Entry>>) -> bool;
}

impl<I: Iterator<Item = Arc<kstore::Entry>>> EqByState for I {
    fn eq_by_state(self, other: impl Iterator<Item = Arc<kstore::Entry>>) -> bool {
        let state = |entry: Arc<kstore::Entry>| {
            (entry.key().clone(), entry.value().clone(), entry.modified(), entry.version())
        };
        self.map(state).eq(other.map(state))
    }
}

async fn write(store: Arc<DiskStore>, table: TableId, done: Arc<Done>, writer: u64) -> Result {
    let mut number = writer;
    while !done.stop.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("ns{}/pod-{:05}", (number >> 33) % 20, (number >> 33) % KEYS);
        let current = store.snapshot().get(table, key.as_bytes());
        let value = vec![b'a' + (number >> 60) as u8; VALUE_BYTES];
        let txn = match current {
            None => Txn::create(table, key, value),
            Some(entry) if (number >> 40).is_multiple_of(10) => Txn::delete(table, key, entry.modified()),
            Some(entry) => Txn::update(table, key, entry.modified(), value),
        };
        match store.commit(txn).await {
            Ok(_) => done.commits.fetch_add(1, Ordering::Relaxed),
            Err(CommitError::Conflict { .. }) => done.conflicts.fetch_add(1, Ordering::Relaxed),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

async fn leases(store: Arc<DiskStore>, table: TableId, done: Arc<Done>) -> Result {
    let mut number = 0_u64;
    while !done.stop.load(Ordering::Relaxed) {
        let lease = store.grant(Duration::from_millis(500), None).await?;
        let key = format!("leased/{}", number % 200);
        let put = Op::Put { table, key: key.into(), value: "".into(), lease: Some(lease), hint: None };
        match store.commit(Txn::new().op(put)).await {
            // On a disk that is very slow, the lease has ended before.
            Ok(_) | Err(CommitError::UnknownLease(_)) => {}
            Err(error) => return Err(error.into()),
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        done.ended.store(number - store.leases(None).await?.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// A watch that begins anew after every batch, where the last one ended.
async fn follow(store: Arc<DiskStore>, table: TableId, done: Arc<Done>) -> Result {
    let mut seen = store.snapshot().revision();
    while !done.stop.load(Ordering::Relaxed) {
        let Ok(mut watch) = store.watch(WatchRequest::new(table, seen)) else {
            seen = store.snapshot().revision();
            continue;
        };
        if let Ok(batch) = watch.next().await {
            if !batch.events.is_sorted_by(|a, b| a.revision <= b.revision) {
                return Err("events are out of order".into());
            }
            if batch.events.first().is_some_and(|event| event.revision <= seen) {
                return Err("an event came twice".into());
            }
            seen = batch.revision;
            done.events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn list(store: Arc<DiskStore>, table: TableId, done: Arc<Done>) -> Result {
    while !done.stop.load(Ordering::Relaxed) {
        let snapshot = store.snapshot();
        let newest = snapshot.range(table, Range::all()).map(|entry| entry.modified()).max();
        if newest.is_some_and(|newest| newest > snapshot.revision()) {
            return Err("a list has what came after it".into());
        }
        done.lists.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn resident_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
