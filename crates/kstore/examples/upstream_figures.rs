//! Kubernetes' own two benchmarks of its storage layer, on the same shapes: `cargo run --release -p kstore --example
//! upstream_figures`.
//!
//! They are `BenchmarkStoreList` (150,000 pods in 50 namespaces on 5,000 nodes, listed by everything, node and namespace; the
//! newest state, one not older than a revision, one exactly at a revision; whole or in pages) and
//! `BenchmarkStoreWriteThroughput` (25 writers that patch, or delete and create, pods of the same set beside ten watchers), of
//! `k8s.io/apiserver/pkg/storage/{testing,cacher}`. There, a list is one of decoded structs that the watch cache holds; here, of
//! the shared entries that stand for them. Prints one line per figure: `figure <name> <value> <unit>`; times of lists are processor time.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kstore::{
    CommitError, Entry, MemoryStore, Op, Range, Revision, Snapshot, Store, StoreError, TableId, TableSpec,
    Term, Txn, WatchRequest, index_fn,
};
use tokio::time::Instant;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const NAMESPACES: usize = 50;
const PODS_PER_NAMESPACE: usize = 3_000;
const NODES: usize = 5_000;
const PODS: usize = NAMESPACES * PODS_PER_NAMESPACE;
const WRITERS: usize = 25;
const WATCHERS: usize = 10;
/// A pod with nothing but metadata and a node, in protobuf, and the room for the time of its writing.
const POD_BYTES: usize = 256;
/// How long traffic is measured.
const TRAFFIC: Duration = Duration::from_secs(3);

fn main() -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = Arc::new(MemoryStore::new());
        let pods = fill(&store).await?;
        // `lists` or `writes` as an argument: only those.
        let only = std::env::args().nth(1);
        if only.as_deref() != Some("writes") {
            lists(&store, pods)?;
        }
        if only.as_deref() == Some("lists") {
            return Ok(());
        }
        for (name, traffic) in [("patch", Traffic::Patch), ("delete_create", Traffic::DeleteCreate)] {
            for watchers in [0, WATCHERS] {
                writes(&store, pods, &format!("{name}_{watchers}_watchers"), traffic, watchers).await?;
            }
        }
        Ok(())
    })
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

fn namespace(number: usize) -> String {
    format!("ns{:08x}", number % NAMESPACES * 0x9e37)
}

fn key(number: usize) -> Bytes {
    format!("{}/p{:09x}", namespace(number), number.wrapping_mul(0x9e37_79b1) % 0xfff_ffff_ffff).into()
}

fn node(number: usize) -> String {
    format!("node{:06}", number % NODES)
}

/// The node is in the first ten bytes, the time of the writing in the next eight.
fn pod(number: usize, time: Duration) -> Bytes {
    let mut value = node(number.wrapping_mul(7_919)).into_bytes();
    value.extend((time.as_nanos() as u64).to_le_bytes());
    value.resize(POD_BYTES, b'x');
    value.into()
}

async fn fill(store: &MemoryStore) -> Result<TableId> {
    let index = index_fn(|entry, terms| terms.push(Term::from(&entry.value()[..10])));
    let pods = store.open_table(TableSpec::new("pods").index(index))?;
    for number in 0..PODS {
        store.commit(Txn::create(pods, key(number), pod(number, Duration::ZERO))).await?;
    }
    Ok(pods)
}

/// What is listed.
#[derive(Clone, Copy)]
enum Scope {
    Cluster,
    Node,
    Namespace,
}

/// Which state is listed.
#[derive(Clone, Copy)]
enum At {
    Newest,
    NotOlder,
    Exact,
}

fn lists(store: &MemoryStore, pods: TableId) -> Result {
    // Upstream asks for pages where there is more than one.
    let scopes: [(_, _, &[usize], _); 3] = [
        ("cluster", Scope::Cluster, &[0, 1_000], 20),
        ("node", Scope::Node, &[0], 20_000),
        ("namespace", Scope::Namespace, &[0, 1_000], 1_000),
    ];
    for (at_name, at) in [("newest", At::Newest), ("not_older", At::NotOlder), ("exact", At::Exact)] {
        for (scope_name, scope, limits, times) in scopes {
            for limit in limits {
                let how = if *limit == 0 { "whole".to_owned() } else { format!("pages_of_{limit}") };
                let name = format!("list_{at_name}_{scope_name}_{how}");
                list_row(store, pods, &name, (at, scope, *limit), times)?;
            }
        }
    }
    let begun = thread_cpu();
    for _ in 0..100_000 {
        black_box(store.snapshot().range(pods, Range::all()).next());
    }
    figure("list_newest_cluster_first_item", (thread_cpu() - begun) * 1e1, "us");
    Ok(())
}

fn list_row(
    store: &MemoryStore,
    pods: TableId,
    name: &str,
    (at, scope, limit): (At, Scope, usize),
    times: usize,
) -> Result {
    let (mut items, mut pages) = (0, 0);
    let begun = thread_cpu();
    for round in 0..times {
        let newest = store.snapshot();
        // One of the last hundred revisions, as upstream asks for.
        let asked = Revision(newest.revision().get() - 99 + (round % 100) as u64);
        let state = match at {
            At::Newest => newest,
            At::NotOlder if newest.revision() >= asked => newest,
            At::NotOlder => return Err("the store is behind what was asked for".into()),
            At::Exact => store.snapshot_at(asked)?,
        };
        let (found, asked_for) = list(&state, pods, scope, limit, round);
        (items, pages) = (items + found, pages + asked_for);
    }
    figure(name, (thread_cpu() - begun) * 1e3 / times as f64, "ms");
    figure(&format!("{name}_items"), items as f64 / times as f64, "items");
    figure(&format!("{name}_pages"), pages as f64 / times as f64, "pages");
    Ok(())
}

/// Lists, page by page at one state; how many items and pages there were.
fn list(state: &Snapshot, pods: TableId, scope: Scope, limit: usize, round: usize) -> (usize, usize) {
    let mut range = match scope {
        Scope::Cluster => Range::all(),
        Scope::Namespace => Range::prefix(format!("{}/", namespace(round))),
        Scope::Node => {
            let found: Vec<Arc<Entry>> = state.by_term(pods, &Term::from(node(round))).collect();
            return (black_box(found).len(), 1);
        }
    };
    let (mut items, mut pages) = (0, 0);
    loop {
        let page: Vec<Arc<Entry>> = match limit {
            0 => state.range(pods, range.clone()).collect(),
            limit => state.range(pods, range.clone()).take(limit).collect(),
        };
        (items, pages) = (items + page.len(), pages + 1);
        let full = limit > 0 && page.len() == limit;
        let Some(last) = page.last().filter(|_| full) else { return (items, pages) };
        // The next page begins with the key after the last one.
        range.start = [&last.key()[..], &[0]].concat().into();
        black_box(page);
    }
}

/// What writers do.
#[derive(Clone, Copy)]
enum Traffic {
    /// Read, change, and write if it is still what was read.
    Patch,
    /// Delete, and create again.
    DeleteCreate,
}

async fn writes(
    store: &Arc<MemoryStore>,
    pods: TableId,
    name: &str,
    traffic: Traffic,
    watchers: usize,
) -> Result {
    let start = Instant::now();
    let watches = (0..watchers).map(|_| {
        let watch = store.watch(WatchRequest::new(pods, store.snapshot().revision()));
        tokio::spawn(delays(watch, start))
    });
    let watches: Vec<_> = watches.collect();
    let (next, cpu) = (Arc::new(AtomicUsize::new(0)), cpu());
    let writers =
        (0..WRITERS).map(|_| tokio::spawn(write(store.clone(), pods, traffic, start, next.clone())));
    let writers: Vec<_> = writers.collect();
    let mut count = 0;
    for writer in writers {
        count += writer.await??;
    }
    let took = start.elapsed().as_secs_f64();
    let cpu = self::cpu() - cpu;
    // Each watcher ends with the event of this one.
    store.commit(Txn::new().op(Op::put(pods, "end", "end of this traffic"))).await?;
    let mut seen = Vec::new();
    for watch in watches {
        seen.extend(watch.await??);
    }
    figure(&format!("{name}_writes"), count as f64 / took, "per_second");
    figure(&format!("{name}_cpu"), cpu * 1e6 / count.max(1) as f64, "us_per_write");
    if !seen.is_empty() {
        seen.sort_unstable();
        let percentile = |part: usize| seen[(seen.len() - 1) * part / 100].as_secs_f64() * 1e3;
        figure(&format!("{name}_events"), seen.len() as f64 / took, "per_second");
        figure(&format!("{name}_delay_p50"), percentile(50), "ms");
        figure(&format!("{name}_delay_p99"), percentile(99), "ms");
    }
    Ok(())
}

async fn write(
    store: Arc<MemoryStore>,
    pods: TableId,
    traffic: Traffic,
    start: Instant,
    next: Arc<AtomicUsize>,
) -> std::result::Result<usize, CommitError> {
    let mut count = 0;
    while start.elapsed() < TRAFFIC {
        let number = next.fetch_add(1, Ordering::Relaxed).wrapping_mul(7_919) % PODS;
        let key = key(number);
        match traffic {
            Traffic::Patch => loop {
                let Some(entry) = store.snapshot().get(pods, &key) else { break };
                let changed = pod(number, start.elapsed());
                match store.commit(Txn::update(pods, key.clone(), entry.modified(), changed)).await {
                    Ok(_) => break,
                    Err(CommitError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            },
            Traffic::DeleteCreate => {
                store.commit(Txn::new().op(Op::delete(pods, key.clone()))).await?;
                store.commit(Txn::new().op(Op::put(pods, key, pod(number, start.elapsed())))).await?;
                count += 1;
            }
        }
        count += 1;
        // As a request that goes on to its next step would.
        tokio::task::yield_now().await;
    }
    Ok(count)
}

/// How long after its writing was begun each event came.
async fn delays(
    watch: std::result::Result<kstore::Watch, kstore::ReadError>,
    start: Instant,
) -> std::result::Result<Vec<Duration>, StoreError> {
    let mut watch = watch.map_err(|_| StoreError::Closed)?;
    let mut delays = Vec::new();
    while let Ok(batch) = watch.next().await {
        let now = start.elapsed();
        for event in &batch.events {
            if event.entry.key() == "end" {
                return Ok(delays);
            }
            if let Some(time) = event.entry.value().get(10..18).and_then(|time| time.try_into().ok()) {
                delays.push(now.saturating_sub(Duration::from_nanos(u64::from_le_bytes(time))));
            }
        }
    }
    Ok(delays)
}

/// The processor time of this thread, in seconds: it tells more than the time that passes, where others work on the machine too.
fn thread_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// The processor time of the process, in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = |at| after_name.split_whitespace().nth(at).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}
