//! Measuring a run of equal operations.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Allocations, cpu_time, figure, resident_bytes};

/// Measures from its start to its stop.
#[derive(Debug)]
pub struct Meter {
    begin: Instant,
    cpu: Duration,
    allocations: Allocations,
}

/// What one operation of a run cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Time from one operation to the next, in microseconds.
    pub wall_us: f64,
    /// CPU time of the whole process, in microseconds.
    pub cpu_us: f64,
    /// Allocations of the measuring thread.
    pub allocations: f64,
    /// Bytes that the measuring thread allocated.
    pub allocated_bytes: f64,
}

impl Meter {
    /// Starts to measure.
    #[must_use]
    pub fn start() -> Self {
        Self { begin: Instant::now(), cpu: cpu_time(), allocations: Allocations::now() }
    }

    /// What each of `count` operations cost since the start.
    #[must_use]
    pub fn stop(&self, count: usize) -> Cost {
        let (wall, cpu, now) = (self.begin.elapsed(), cpu_time() - self.cpu, Allocations::now());
        let each = |sum: f64| sum / count.max(1) as f64;
        Cost {
            wall_us: each(wall.as_secs_f64() * 1e6),
            cpu_us: each(cpu.as_secs_f64() * 1e6),
            allocations: each((now.count - self.allocations.count) as f64),
            allocated_bytes: each((now.bytes - self.allocations.bytes) as f64),
        }
    }
}

impl Cost {
    /// Prints `<name>_per_second`, `<name>_cpu` and `<name>_allocations`.
    pub fn print(&self, name: &str) {
        figure(&format!("{name}_per_second"), 1e6 / self.wall_us, "1/s");
        figure(&format!("{name}_cpu"), self.cpu_us, "us");
        figure(&format!("{name}_allocations"), self.allocations, "1");
    }

    /// Prints `<name>_cpu_per_event` and `<name>_allocations_per_event`.
    pub fn print_event(&self, name: &str) {
        figure(&format!("{name}_cpu_per_event"), self.cpu_us, "us");
        figure(&format!("{name}_allocations_per_event"), self.allocations, "1");
    }

    /// Prints `<name>` and `<name>_cpu` in milliseconds and `<name>_allocations`: for operations that take long.
    pub fn print_long(&self, name: &str) {
        figure(name, self.wall_us / 1e3, "ms");
        figure(&format!("{name}_cpu"), self.cpu_us / 1e3, "ms");
        figure(&format!("{name}_allocations"), self.allocations, "1");
    }
}

/// Does an operation `count` times, one after the other, and tells what each cost. The operation gets its number.
pub async fn measure(count: usize, mut operation: impl AsyncFnMut(usize)) -> Cost {
    let meter = Meter::start();
    for index in 0..count {
        operation(index).await;
    }
    meter.stop(count)
}

/// Measures how far memory grows.
#[derive(Debug)]
pub struct Growth {
    resident: u64,
    live: i64,
}

impl Growth {
    /// Starts to measure.
    #[must_use]
    pub fn start() -> Self {
        Self { resident: resident_bytes(), live: Allocations::now().live_bytes }
    }

    /// Prints what each of `count` objects added: `resident_per_<name>`, what the process grew by, and `heap_per_<name>`, what
    /// is allocated and not given back.
    pub fn print(&self, name: &str, count: usize) {
        let resident = resident_bytes() as f64 - self.resident as f64;
        let live = (Allocations::now().live_bytes - self.live) as f64;
        figure(&format!("resident_per_{name}"), resident / count as f64, "bytes");
        figure(&format!("heap_per_{name}"), live / count as f64, "bytes");
    }
}
