//! Runs controllers under faults: `fault_runs 7` runs one seed in this process, the same way each time; `fault_runs 0..10000` runs many,
//! each in a process of its own and as many at once as there are cores (or `--jobs N`). The seeds that fail are printed with what did
//! not hold and the command that repeats them. `fault_runs 7 --trace` prints every write.

mod random;

use std::{
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kplane_tests::faults;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut asked, mut is_traced, mut jobs) = ("0..100".to_owned(), false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--trace" => is_traced = true,
            "--jobs" => jobs = arguments.next().and_then(|text| text.parse().ok()).filter(|jobs| *jobs > 0),
            _ => asked = argument,
        }
    }
    if let Ok(seed) = asked.parse() {
        return one(seed, is_traced);
    }
    let range =
        asked.split_once("..").and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
    let Some((first, end)) = range else {
        eprintln!("usage: fault_runs SEED [--trace] | FIRST..END [--jobs N]");
        return ExitCode::from(2);
    };
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    many(first, end, jobs)
}

fn one(seed: u64, is_traced: bool) -> ExitCode {
    random::begin(seed);
    match faults::check(seed, is_traced) {
        Ok(trace) => {
            println!("seed {seed}: {trace}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("seed {seed}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn many(first: u64, end: u64, jobs: usize) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        eprintln!("this program does not know where it is");
        return ExitCode::from(2);
    };
    let next = Arc::new(AtomicU64::new(first));
    let failed = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..jobs)
        .map(|_| {
            let (next, failed, program) = (Arc::clone(&next), Arc::clone(&failed), program.clone());
            std::thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let why = match Command::new(&program).arg(seed.to_string()).output() {
                        Ok(output) if output.status.success() => continue,
                        Ok(output) => [output.stdout, output.stderr].concat(),
                        Err(error) => error.to_string().into_bytes(),
                    };
                    failed.fetch_add(1, Ordering::Relaxed);
                    let why = String::from_utf8_lossy(&why);
                    println!("{why}\n  cargo run -p kplane-tests --bin fault_runs -- {seed}");
                }
            })
        })
        .collect();
    let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).count();
    let failed = failed.load(Ordering::Relaxed);
    println!("{} seeds, {failed} failed", end.saturating_sub(first));
    ExitCode::from(u8::from(failed > 0 || panicked > 0))
}
