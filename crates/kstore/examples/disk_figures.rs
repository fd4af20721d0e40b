//! What the disk engine costs: `cargo run --release -p kstore --example disk_figures [directory]`.
//!
//! Prints one line per figure: `figure <name> <value> <unit>`. It is for comparing two versions on one machine: durable puts of
//! 1 KiB by 1, 16 and 256 writers, with and without syncs; restart and memory with 500,000 objects. The directory should be on the
//! disk that is meant; by default it is the current one.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kstore::{DiskStore, Op, Store, SyncPolicy, TableId, TableSpec, Txn};
use tokio::time::Instant;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const VALUE_BYTES: usize = 1_024;
const OBJECTS: usize = 500_000;
/// How long each row is measured.
const ROW: Duration = Duration::from_secs(2);

fn main() -> Result {
    let base = std::env::args().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let directory = base.join(format!("kstore-figures-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(rows(&directory));
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn rows(directory: &Path) -> Result {
    for (name, policy) in [("synced", SyncPolicy::EveryCommit), ("unsynced", SyncPolicy::Never)] {
        for writers in [1, 16, 256] {
            let store = Arc::new(DiskStore::builder(directory.join(name)).sync(policy).open()?);
            puts(store, &format!("{name}_puts_{writers}_writers"), writers).await?;
        }
    }
    restart(&directory.join("restart")).await
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

fn key(number: usize) -> Bytes {
    format!("namespace-{:03}/some-deployment-{:05x}-{:05}", number % 300, number / 20, number).into()
}

/// What a line of `/proc/self/...` says; 0 where there is none.
fn proc(file: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// The processor time of the process, in microseconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = |at| after_name.split_whitespace().nth(at).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) * 10_000.0
}

async fn puts(store: Arc<DiskStore>, name: &str, writers: usize) -> Result {
    let table = store.open_table(TableSpec::new("pods"))?;
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let next = Arc::new(AtomicUsize::new(0));
    // Warm: the first files of the log are made.
    row(&store, table, &value, &next, writers, ROW / 8).await?;
    let (cpu_before, written_before, began) = (cpu(), proc("io", "write_bytes:"), Instant::now());
    let mut times = row(&store, table, &value, &next, writers, ROW).await?;
    let (took, count) = (began.elapsed().as_secs_f64(), times.len().max(1));
    times.sort_unstable();
    let percentile = |part: usize| times[(count - 1) * part / 100].as_secs_f64() * 1e6;
    figure(name, count as f64 / took, "per_second");
    figure(&format!("{name}_p50"), percentile(50), "us");
    figure(&format!("{name}_p99"), percentile(99), "us");
    figure(&format!("{name}_cpu"), (cpu() - cpu_before) / count as f64, "us_per_put");
    let payload = count as f64 * (VALUE_BYTES + key(0).len()) as f64;
    figure(
        &format!("{name}_written"),
        (proc("io", "write_bytes:") - written_before) / payload,
        "times_payload",
    );
    Ok(())
}

/// Writers that each wait for their own commits; how long each commit took.
async fn row(
    store: &Arc<DiskStore>,
    table: TableId,
    value: &Bytes,
    next: &Arc<AtomicUsize>,
    writers: usize,
    time: Duration,
) -> Result<Vec<Duration>> {
    let end = Instant::now() + time;
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (store, value, next) = (store.clone(), value.clone(), next.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    // Of 100,000 keys, so that memory stays what it is.
                    let key = key(next.fetch_add(1, Ordering::Relaxed).wrapping_mul(7_919) % 100_000);
                    let began = Instant::now();
                    store.commit(Txn::new().op(Op::put(table, key, value.clone()))).await?;
                    times.push(began.elapsed());
                }
                Ok::<_, kstore::CommitError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

async fn restart(directory: &Path) -> Result {
    let before = proc("status", "VmRSS:");
    let store = DiskStore::open(directory)?;
    let table = store.open_table(TableSpec::new("pods"))?;
    for from in (0..OBJECTS).step_by(1_000) {
        let put = |txn: Txn, number: usize| {
            txn.op(Op::put(table, key(number.wrapping_mul(7_919) % OBJECTS), vec![b'x'; VALUE_BYTES]))
        };
        store.commit((from..from + 1_000).fold(Txn::new(), put)).await?;
    }
    let began = Instant::now();
    store.checkpoint().await?;
    figure("checkpoint_500k", began.elapsed().as_secs_f64(), "s");
    figure("memory_500k", (proc("status", "VmRSS:") - before) / 1024.0, "MiB");
    drop(store);
    for (name, what) in [("checkpoint", 0), ("log", 20_000)] {
        let store = DiskStore::open(directory)?;
        let report = store.recovery();
        let table = store.open_table(TableSpec::new("pods"))?;
        assert_eq!(store.snapshot().len(table), OBJECTS);
        figure(&format!("restart_500k_{name}"), report.took.as_secs_f64(), "s");
        figure(&format!("restart_500k_{name}_frames"), report.frames as f64, "frames");
        for number in 0..what {
            store.commit(Txn::new().op(Op::put(table, key(number), vec![b'y'; VALUE_BYTES]))).await?;
        }
    }
    let store = DiskStore::open(directory)?;
    figure("restart_500k_and_20k_in_the_log", store.recovery().took.as_secs_f64(), "s");
    Ok(())
}
