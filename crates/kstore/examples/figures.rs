//! What the memory engine costs, on one thread: `cargo run --release -p kstore --example figures`.
//!
//! Prints one line per figure: `figure <name> <value> <unit>`. It is for comparing two versions on one machine.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kstore::{
    Interest, MemoryStore, Range, Revision, Store, TableId, TableSpec, Term, Txn, WatchRequest, index_fn,
};

/// Counts what is allocated now.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const OBJECTS: usize = 100_000;
const VALUE_BYTES: usize = 1_024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let empty = MemoryStore::new();
    for table in 0..150 {
        empty.open_table(TableSpec::new(format!("table {table}")))?;
    }
    figure("idle_store_150_tables", (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / 1024.0, "KiB");

    let store = MemoryStore::new();
    let table = open(&store)?;
    let revisions = fill(&store, table).await?;
    update(&store, table, revisions).await?;
    reads(&store, table);
    watches(&store, table).await?;
    memory().await?;
    Ok(())
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

fn per_item(name: &str, since: f64, items: usize) {
    figure(name, (cpu() - since) * 1e6 / items as f64, "us");
}

/// The processor time of this thread in seconds: it tells more than the time that passes, where others work on the machine too.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn key(number: usize) -> Bytes {
    format!("namespace-{:03}/some-deployment-{:05x}-{:05}", number % 300, number / 20, number).into()
}

/// The first eight bytes of a value say on which of 5,000 nodes it is; its namespace is a term too.
fn open(store: &MemoryStore) -> Result<TableId, Box<dyn std::error::Error>> {
    let index = index_fn(|entry, terms| {
        terms.push(Term::from(&entry.value()[..8]));
        terms.push(Term::from(entry.key().split(|byte| *byte == b'/').next().unwrap_or_default()));
    });
    Ok(store.open_table(TableSpec::new("pods").index(index))?)
}

fn value(node: usize) -> Bytes {
    let mut value = format!("{node:08}").into_bytes();
    value.resize(VALUE_BYTES, b'x');
    value.into()
}

/// Spreads numbers, so that keys don't come in their order.
fn scattered(number: usize) -> usize {
    number.wrapping_mul(7_919) % OBJECTS
}

async fn fill(store: &MemoryStore, table: TableId) -> Result<Vec<Revision>, Box<dyn std::error::Error>> {
    let txns: Vec<Txn> =
        (0..OBJECTS).map(|n| Txn::create(table, key(scattered(n)), value(n % 5_000))).collect();
    let mut revisions = vec![Revision::ZERO; OBJECTS];
    let since = cpu();
    for (number, txn) in txns.into_iter().enumerate() {
        revisions[scattered(number)] = store.commit(txn).await?.revision;
    }
    per_item("create_1KiB_2_terms", since, OBJECTS);
    Ok(revisions)
}

async fn update(
    store: &MemoryStore,
    table: TableId,
    revisions: Vec<Revision>,
) -> Result<(), Box<dyn std::error::Error>> {
    let txns: Vec<Txn> = (0..OBJECTS)
        .map(|n| (n, scattered(n)))
        .map(|(n, at)| Txn::update(table, key(at), revisions[at], value(n % 5_000)))
        .collect();
    let since = cpu();
    for txn in txns {
        store.commit(txn).await?;
    }
    per_item("compare_and_update_1KiB", since, OBJECTS);
    Ok(())
}

fn reads(store: &MemoryStore, table: TableId) {
    let keys: Vec<Bytes> = (0..OBJECTS).map(|number| key(scattered(number))).collect();
    let since = cpu();
    for key in &keys {
        black_box(store.snapshot().get(table, key));
    }
    per_item("get", since, OBJECTS);
    let snapshot = store.snapshot();
    let since = cpu();
    for _ in 0..10 {
        black_box(
            snapshot.range(table, Range::all()).take(10_000).map(|entry| entry.value().len()).sum::<usize>(),
        );
    }
    per_item("list_10k", since, 10);
    let since = cpu();
    for node in 0..5_000 {
        black_box(snapshot.by_term(table, &Term::from(format!("{node:08}"))).count());
    }
    per_item("list_by_term_20_entries", since, 5_000);
    let since = cpu();
    for number in 0..1_000 {
        black_box(snapshot.count(table, Range::prefix(format!("namespace-{:03}", number % 300))));
    }
    per_item("count_prefix", since, 1_000);
    let past = Revision(snapshot.revision().get() - 10_000);
    let since = cpu();
    black_box(store.snapshot_at(past).map(|past| past.len(table)).ok());
    per_item("snapshot_10k_commits_ago", since, 1);
}

/// One watch per node, as 5,000 kubelets have; each event is for one of them.
async fn watches(store: &MemoryStore, table: TableId) -> Result<(), Box<dyn std::error::Error>> {
    let from = store.snapshot().revision();
    let begin = |node: usize, after| {
        let interest = Interest::Term(Term::from(format!("{node:08}")));
        store.watch(WatchRequest::new(table, after).interest(interest))
    };
    let mut watches = Vec::new();
    for node in 0..5_000 {
        let mut watch = begin(node, from)?;
        tokio::select! {
            biased;
            _ = watch.next() => {}
            () = std::future::ready(()) => {}
        }
        watches.push(watch);
    }
    let txns: Vec<Txn> =
        (0..20_000).map(|n| Txn::new().op(kstore::Op::put(table, key(n), value(n % 5_000)))).collect();
    let since = cpu();
    for txn in txns {
        store.commit(txn).await?;
    }
    per_item("update_with_5000_watches_by_node", since, 20_000);
    let since = cpu();
    let mut events = 0;
    for watch in &mut watches {
        events += watch.try_next()?.map_or(0, |batch| batch.events.len());
    }
    per_item("deliver_to_5000_watches_by_node", since, events);
    let after = Revision(store.snapshot().revision().get() - 100_000);
    let since = cpu();
    for node in 0..100 {
        black_box(begin(node, after)?.try_next()?);
    }
    per_item("resume_by_node_100k_events_behind", since, 100);
    Ok(())
}

async fn memory() -> Result<(), Box<dyn std::error::Error>> {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let store = Arc::new(MemoryStore::new());
    let table = open(&store)?;
    for number in 0..OBJECTS {
        store.commit(Txn::create(table, key(scattered(number)), value(number % 5_000))).await?;
    }
    store.compact(store.snapshot().revision()).await?;
    tokio::time::sleep(Duration::ZERO).await;
    let per_object = (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / OBJECTS as f64;
    figure("memory_over_key_and_value_per_object", per_object - (VALUE_BYTES + key(0).len()) as f64, "bytes");
    Ok(())
}
