//! Runs controllers under faults from many seeds, or from one: `fault_runs 7`, `fault_runs 0..10000`. Each core takes seeds in turn; the
//! seeds that fail are printed with what did not hold, and the command that repeats them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

fn main() -> std::process::ExitCode {
    let asked = std::env::args().nth(1).unwrap_or_else(|| "0..100".to_owned());
    let (first, end) = match asked.split_once("..") {
        Some((first, end)) => (first.parse(), end.parse()),
        None => (asked.parse(), asked.parse().map(|seed: u64| seed + 1)),
    };
    let (Ok(first), Ok(end)) = (first, end) else {
        eprintln!("usage: fault_runs SEED | FIRST..END");
        return std::process::ExitCode::from(2);
    };
    let next = Arc::new(AtomicU64::new(first));
    let failed = Arc::new(AtomicU64::new(0));
    let threads = std::env::var("THREADS").ok().and_then(|text| text.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (next, failed) = (Arc::clone(&next), Arc::clone(&failed));
            std::thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    if let Err(why) = kplane_tests::faults::check(seed) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("seed {seed}: {why}\n  cargo run --release -p kplane-tests --example fault_runs -- {seed}");
                    }
                }
            })
        })
        .collect();
    let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).count();
    let failed = failed.load(Ordering::Relaxed);
    println!("{} seeds, {failed} failed", end.saturating_sub(first));
    std::process::ExitCode::from(u8::from(failed > 0 || panicked > 0))
}
