//! What the benchmarks share: measuring and printing.
//!
//! Each prints a table for people and, for every figure, a line `figure <name> <value> <unit>` for programs.

mod allocation;
mod meter;

use std::time::Duration;

pub use self::{
    allocation::{Allocations, CountingAllocator},
    meter::{Cost, Growth, Meter, measure},
};

/// Prints one figure, for people and for programs.
pub fn figure(name: &str, value: f64, unit: &str) {
    let shown = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    println!("{name:<44} {shown:>12} {unit}");
    println!("figure {name} {shown} {unit}");
}

/// The value below which the share `at` (0 to 1) of the samples lies. Sorts the samples.
#[must_use]
pub fn percentile(samples: &mut [Duration], at: f64) -> Duration {
    samples.sort_unstable();
    let index = ((samples.len() as f64 - 1.0) * at).round();
    samples.get(index as usize).copied().unwrap_or_default()
}

/// This process's resident memory, in bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The CPU time that this process has used, user and system.
#[must_use]
pub fn cpu_time() -> Duration {
    // SAFETY: `usage` is a plain struct of integers that the call fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let part = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    part(usage.ru_utime) + part(usage.ru_stime)
}
