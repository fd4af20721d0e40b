//! What controllers count about themselves, as Prometheus reads it, under the names of client-go's queues and of controller-runtime
//! (Kubernetes, "Metrics Reference"; Kubebuilder, "Default Exported Metrics References").

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::controller::ControllerStats;

/// The bounds of durations in seconds: powers of ten from 10 ns on, as client-go's.
const BOUNDS: [&str; 12] =
    ["1e-08", "1e-07", "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000"];
/// The first of them in nanoseconds.
const FIRST_BOUND_NANOS: u64 = 10;

/// How often something took how long.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum_nanos: AtomicU64,
}

impl Durations {
    pub(crate) fn note(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut bound = FIRST_BOUND_NANOS;
        for bucket in &self.buckets {
            if nanos <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
                break;
            }
            bound = bound.saturating_mul(10);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many there were.
    #[cfg(test)]
    pub(crate) fn ended(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// What a queue counts. It outlives the queue, which is a new one each time its controller starts.
#[derive(Debug, Default)]
pub(crate) struct QueueCounts {
    /// Items that were added and did not wait already.
    pub(crate) adds: AtomicU64,
    /// Items that were added after a failure.
    pub(crate) retries: AtomicU64,
    /// Items that can be taken.
    pub(crate) depth: AtomicU64,
}

/// The sums over the loops of one controller.
#[derive(Default)]
struct Sums {
    depth: u64,
    adds: u64,
    retries: u64,
    started: u64,
    ended: u64,
    failures: u64,
    panics: u64,
    buckets: [u64; BOUNDS.len()],
    nanos: u64,
}

impl Sums {
    fn add(&mut self, stats: &ControllerStats) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.depth += read(&stats.queue.depth);
        self.adds += read(&stats.queue.adds);
        self.retries += read(&stats.queue.retries);
        // What has ended is read first, so that never more has ended than was started.
        self.failures += read(&stats.failures);
        self.ended += read(&stats.work.count);
        self.started += read(&stats.reconciles);
        self.panics += read(&stats.panics);
        self.nanos += read(&stats.work.sum_nanos);
        for (sum, bucket) in self.buckets.iter_mut().zip(&stats.work.buckets) {
            *sum += read(bucket);
        }
    }
}

/// The counters of these controllers as text; those of one name are added up.
pub(crate) fn text(controllers: &[(Arc<str>, Arc<ControllerStats>)]) -> String {
    let mut all: BTreeMap<&str, Sums> = BTreeMap::new();
    for (name, stats) in controllers {
        all.entry(name).or_default().add(stats);
    }
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, line: &dyn Fn(&mut String, &str, &Sums)| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (controller, sums) in &all {
            line(&mut out, controller, sums);
        }
    };
    type Number = fn(&Sums) -> u64;
    let plain: [(&str, &str, &str, &str, Number); 6] = [
        ("workqueue_depth", "gauge", "name", "Items that can be taken.", |sums| sums.depth),
        ("workqueue_adds_total", "counter", "name", "Items that were added.", |sums| sums.adds),
        ("workqueue_retries_total", "counter", "name", "Items that were added after a failure.", |sums| {
            sums.retries
        }),
        (
            "controller_runtime_reconcile_errors_total",
            "counter",
            "controller",
            "Reconciles that failed.",
            |sums| sums.failures,
        ),
        (
            "controller_runtime_reconcile_panics_total",
            "counter",
            "controller",
            "Reconciles that panicked.",
            |sums| sums.panics,
        ),
        ("controller_runtime_active_workers", "gauge", "controller", "Reconciles under way.", |sums| {
            sums.started.saturating_sub(sums.ended)
        }),
    ];
    for (name, kind, label, help, number) in plain {
        family(name, kind, help, &|out, controller, sums| {
            let _ = writeln!(out, "{name}{{{label}={controller:?}}} {}", number(sums));
        });
    }
    let name = "controller_runtime_reconcile_total";
    family(name, "counter", "Reconciles that ended, and how.", &|out, controller, sums| {
        let good = sums.ended.saturating_sub(sums.failures);
        let _ = writeln!(out, "{name}{{controller={controller:?},result=\"error\"}} {}", sums.failures);
        let _ = writeln!(out, "{name}{{controller={controller:?},result=\"success\"}} {good}");
    });
    let name = "workqueue_work_duration_seconds";
    family(name, "histogram", "How long it takes to work on an item.", &|out, controller, sums| {
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(sums.buckets) {
            below += bucket;
            let _ = writeln!(out, "{name}_bucket{{name={controller:?},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{name={controller:?},le=\"+Inf\"}} {}", sums.ended);
        let seconds = Duration::from_nanos(sums.nanos).as_secs_f64();
        let _ = writeln!(out, "{name}_sum{{name={controller:?}}} {seconds}");
        let _ = writeln!(out, "{name}_count{{name={controller:?}}} {}", sums.ended);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_of_one_name_are_added_up() {
        let one = |failures: u64, times: &[Duration]| {
            let stats = ControllerStats::default();
            stats.reconciles.store(times.len() as u64 + 1, Ordering::Relaxed);
            stats.failures.store(failures, Ordering::Relaxed);
            stats.queue.adds.store(7, Ordering::Relaxed);
            times.iter().for_each(|time| stats.work.note(*time));
            (Arc::from("twins"), Arc::new(stats))
        };
        let second = Duration::from_secs(1);
        let told = text(&[one(1, &[Duration::ZERO, second, second]), one(0, &[second * 1001])]);
        for line in [
            "# TYPE workqueue_depth gauge",
            "workqueue_adds_total{name=\"twins\"} 14",
            "controller_runtime_active_workers{controller=\"twins\"} 2",
            "controller_runtime_reconcile_total{controller=\"twins\",result=\"error\"} 1",
            "controller_runtime_reconcile_total{controller=\"twins\",result=\"success\"} 3",
            "workqueue_work_duration_seconds_bucket{name=\"twins\",le=\"1e-08\"} 1",
            "workqueue_work_duration_seconds_bucket{name=\"twins\",le=\"0.1\"} 1",
            "workqueue_work_duration_seconds_bucket{name=\"twins\",le=\"1\"} 3",
            "workqueue_work_duration_seconds_bucket{name=\"twins\",le=\"1000\"} 3",
            "workqueue_work_duration_seconds_bucket{name=\"twins\",le=\"+Inf\"} 4",
            "workqueue_work_duration_seconds_sum{name=\"twins\"} 1003",
        ] {
            assert!(told.lines().any(|known| known == line), "{line}\n{told}");
        }
    }
}
