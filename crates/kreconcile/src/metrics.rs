//! What controllers count about themselves, as Prometheus reads it, under the names of client-go's queues and of controller-runtime
//! (Kubernetes, "Metrics Reference"; Kubebuilder, "Default Exported Metrics References").

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::controller::ControllerStats;

/// The bounds of durations in seconds: powers of ten from 10 ns on, as controller-runtime's; client-go's end at 10 s.
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
    /// Items that were added and not taken since, those that are being worked on among them.
    pub(crate) depth: AtomicU64,
    /// How long items waited from when they were added until they were taken.
    pub(crate) waits: Durations,
    under_way: Mutex<UnderWay>,
}

/// Names the work on one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkNumber(u64);

/// When the work began that has not ended yet. There are as many entries as a controller has workers, at most.
#[derive(Debug, Default)]
struct UnderWay {
    last: u64,
    began: BTreeMap<WorkNumber, Instant>,
}

impl QueueCounts {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work on an item begins.
    pub(crate) fn begin(&self, now: Instant) -> WorkNumber {
        let mut under_way = self.under_way();
        under_way.last += 1;
        let number = WorkNumber(under_way.last);
        under_way.began.insert(number, now);
        number
    }

    /// It has ended.
    pub(crate) fn end(&self, number: WorkNumber) {
        self.under_way().began.remove(&number);
    }

    /// How long all work that is under way has taken together, and the longest of it.
    fn unfinished(&self, now: Instant) -> (Duration, Duration) {
        let times = |began: &Instant| now.saturating_duration_since(*began);
        let under_way = self.under_way();
        let longest = under_way.began.values().map(times).max();
        (under_way.began.values().map(times).sum(), longest.unwrap_or_default())
    }
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
    waits: Histogram,
    work: Histogram,
    unfinished: Duration,
    longest: Duration,
}

/// The sums of [`Durations`].
#[derive(Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    nanos: u64,
}

impl Histogram {
    fn add(&mut self, durations: &Durations) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.count += read(&durations.count);
        self.nanos += read(&durations.sum_nanos);
        for (sum, bucket) in self.buckets.iter_mut().zip(&durations.buckets) {
            *sum += read(bucket);
        }
    }

    fn write(&self, out: &mut String, name: &str, controller: &str) {
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(self.buckets) {
            below += bucket;
            let _ = writeln!(out, "{name}_bucket{{name={controller:?},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{name={controller:?},le=\"+Inf\"}} {}", self.count);
        let seconds = Duration::from_nanos(self.nanos).as_secs_f64();
        let _ = writeln!(out, "{name}_sum{{name={controller:?}}} {seconds}");
        let _ = writeln!(out, "{name}_count{{name={controller:?}}} {}", self.count);
    }
}

impl Sums {
    fn add(&mut self, stats: &ControllerStats, now: Instant) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.depth += read(&stats.queue.depth);
        self.adds += read(&stats.queue.adds);
        self.retries += read(&stats.queue.retries);
        // What has ended is read first, so that never more has ended than was started.
        self.failures += read(&stats.failures);
        self.ended += read(&stats.work.count);
        self.started += read(&stats.reconciles);
        self.panics += read(&stats.panics);
        self.waits.add(&stats.queue.waits);
        self.work.add(&stats.work);
        let (unfinished, longest) = stats.queue.unfinished(now);
        self.unfinished += unfinished;
        self.longest = self.longest.max(longest);
    }
}

/// The counters of these controllers as text; those of one name are added up.
pub(crate) fn text(controllers: &[(Arc<str>, Arc<ControllerStats>)]) -> String {
    let mut all: BTreeMap<&str, Sums> = BTreeMap::new();
    let now = Instant::now();
    for (name, stats) in controllers {
        all.entry(name).or_default().add(stats, now);
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
        ("workqueue_depth", "gauge", "name", "Items that were added and not taken since.", |sums| sums.depth),
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
    type Time = fn(&Sums) -> Duration;
    let times: [(&str, &str, Time); 2] = [
        ("workqueue_unfinished_work_seconds", "How long all work that is under way has taken.", |sums| {
            sums.unfinished
        }),
        (
            "workqueue_longest_running_processor_seconds",
            "How long the longest work that is under way has taken.",
            |sums| sums.longest,
        ),
    ];
    for (name, help, time) in times {
        family(name, "gauge", help, &|out, controller, sums| {
            let _ = writeln!(out, "{name}{{name={controller:?}}} {}", time(sums).as_secs_f64());
        });
    }
    type Which = fn(&Sums) -> &Histogram;
    let histograms: [(&str, &str, Which); 2] = [
        ("workqueue_queue_duration_seconds", "How long an item waits to be taken.", |sums| &sums.waits),
        ("workqueue_work_duration_seconds", "How long it takes to work on an item.", |sums| &sums.work),
    ];
    for (name, help, which) in histograms {
        family(name, "histogram", help, &|out, controller, sums| which(sums).write(out, name, controller));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkQueue;

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
            "# TYPE workqueue_queue_duration_seconds histogram",
            "workqueue_queue_duration_seconds_count{name=\"twins\"} 0",
        ] {
            assert!(told.lines().any(|known| known == line), "{line}\n{told}");
        }
    }

    /// By client-go's rules: an item waits from when it was first added, also while it is being worked on; work that was taken and not
    /// done is unfinished, until the queue itself is gone.
    #[tokio::test(start_paused = true)]
    async fn waits_and_unfinished_work_are_told() {
        let (one, other) = (Arc::<ControllerStats>::default(), Arc::<ControllerStats>::default());
        let both: [(Arc<str>, _); 2] = [("x".into(), Arc::clone(&one)), ("x".into(), Arc::clone(&other))];
        let told = |expected: &[&str]| {
            let text = text(&both);
            for line in expected {
                assert!(text.lines().any(|known| known == *line), "{line}\n{text}");
            }
        };
        let (queue, second) =
            (WorkQueue::counting(Arc::clone(&one.queue)), WorkQueue::counting(Arc::clone(&other.queue)));
        let pass = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        queue.add("a");
        pass(2).await;
        queue.add("a");
        pass(3).await;
        queue.take().await;
        second.add("b");
        second.take().await;
        pass(4).await;
        queue.add("a");
        pass(6).await;
        told(&[
            "# TYPE workqueue_unfinished_work_seconds gauge",
            "workqueue_queue_duration_seconds_bucket{name=\"x\",le=\"1e-08\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"x\",le=\"1\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"x\",le=\"10\"} 2",
            "workqueue_queue_duration_seconds_sum{name=\"x\"} 5",
            "workqueue_depth{name=\"x\"} 1",
            "workqueue_unfinished_work_seconds{name=\"x\"} 20",
            "workqueue_longest_running_processor_seconds{name=\"x\"} 10",
        ]);
        queue.done(&"a");
        queue.take().await;
        pass(1).await;
        told(&[
            "workqueue_queue_duration_seconds_sum{name=\"x\"} 11",
            "workqueue_queue_duration_seconds_count{name=\"x\"} 3",
            "workqueue_depth{name=\"x\"} 0",
            "workqueue_unfinished_work_seconds{name=\"x\"} 12",
            "workqueue_longest_running_processor_seconds{name=\"x\"} 11",
        ]);
        drop((queue, second));
        told(&[
            "workqueue_unfinished_work_seconds{name=\"x\"} 0",
            "workqueue_longest_running_processor_seconds{name=\"x\"} 0",
        ]);
    }
}
