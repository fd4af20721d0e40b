//! What priority and fairness counts, under upstream's names (`apiserver_flowcontrol_*`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::level::{Limits, Refusal};
use crate::metrics::head;

/// The upper bounds of the histograms, in seconds.
const BUCKETS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// The upper bounds of the histogram of seats.
const WIDTHS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 100];
/// How many pairs of a level and a schema are counted apart; those that come later are counted together. Only who may change
/// the configuration makes any.
const FLOWS_MAX: usize = 1_000;

const REFUSALS: [(Refusal, &str); 4] = [
    (Refusal::Cancelled, "cancelled"),
    (Refusal::ConcurrencyLimit, "concurrency-limit"),
    (Refusal::QueueFull, "queue-full"),
    (Refusal::TimeOut, "time-out"),
];

/// The name, kind, words and value of a number that a flow has.
type Simple = (&'static str, &'static str, &'static str, fn(&Flow) -> i64);
/// The name, words and value of a number that a level has.
type Gauge = (&'static str, &'static str, fn(&Limits) -> usize);

/// The counters of all flow schemas. What has been counted stays when a schema goes.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<BTreeMap<(String, String), Arc<Flow>>>);

/// The counters of one flow schema at one priority level.
#[derive(Debug, Default)]
pub(super) struct Flow {
    dispatched: AtomicU64,
    rejected: [AtomicU64; REFUSALS.len()],
    waiting: AtomicI64,
    waiting_seats: AtomicI64,
    executing: AtomicI64,
    seats: AtomicI64,
    estimated: Widths,
    /// How long those waited who were sent away, and those who were not.
    waited: [Histogram; 2],
    executed: Histogram,
}

/// How many seats requests were to take.
#[derive(Debug, Default)]
struct Widths {
    buckets: [AtomicU64; WIDTHS.len()],
    count: AtomicU64,
    sum: AtomicU64,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    nanos: AtomicU64,
}

/// A request that is being worked on, as long as this lives.
#[derive(Debug)]
pub(crate) struct Stay {
    flow: Arc<Flow>,
    seats: i64,
    began: Instant,
}

/// A request that waits. Dropped without an end it has been given up.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    flow: &'a Flow,
    seats: i64,
    began: Instant,
    ended: bool,
}

impl Counters {
    /// The counters of a schema at a level.
    pub(super) fn flow(&self, level: &str, schema: &str) -> Arc<Flow> {
        let mut flows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (level.to_owned(), schema.to_owned());
        let key = if flows.len() < FLOWS_MAX || flows.contains_key(&key) { key } else { Default::default() };
        Arc::clone(flows.entry(key).or_default())
    }

    pub(super) fn write(&self, out: &mut String) {
        let flows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let label =
            |level: &str, schema: &str| format!("flow_schema=\"{schema}\",priority_level=\"{level}\"");
        let all: Vec<(String, &Flow)> =
            flows.iter().map(|((level, schema), flow)| (label(level, schema), &**flow)).collect();
        let simple: [Simple; 5] = [
            ("dispatched_requests_total", "counter", "Requests that were worked on.", |flow| {
                i64::try_from(flow.dispatched.load(Ordering::Relaxed)).unwrap_or(i64::MAX)
            }),
            ("current_inqueue_requests", "gauge", "Requests that wait.", |flow| {
                flow.waiting.load(Ordering::Relaxed)
            }),
            ("current_executing_requests", "gauge", "Requests that are being worked on.", |flow| {
                flow.executing.load(Ordering::Relaxed)
            }),
            ("current_inqueue_seats", "gauge", "Seats that those who wait will take.", |flow| {
                flow.waiting_seats.load(Ordering::Relaxed)
            }),
            ("current_executing_seats", "gauge", "Seats that are taken.", |flow| {
                flow.seats.load(Ordering::Relaxed)
            }),
        ];
        for (name, kind, help, value) in simple {
            let name = format!("apiserver_flowcontrol_{name}");
            head(out, &name, kind, help);
            for (labels, flow) in &all {
                let _ = writeln!(out, "{name}{{{labels}}} {}", value(flow));
            }
        }
        let name = "apiserver_flowcontrol_rejected_requests_total";
        head(out, name, "counter", "Requests that were sent away.");
        for (labels, flow) in &all {
            for ((_, reason), count) in REFUSALS.iter().zip(&flow.rejected) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let _ = writeln!(out, "{name}{{{labels},reason=\"{reason}\"}} {count}");
                }
            }
        }
        let name = "apiserver_flowcontrol_work_estimated_seats";
        head(out, name, "histogram", "How many seats requests were to take.");
        for (labels, flow) in &all {
            flow.estimated.write(name, labels, out);
        }
        let name = "apiserver_flowcontrol_request_wait_duration_seconds";
        head(out, name, "histogram", "How long requests waited, in seconds.");
        for (labels, flow) in &all {
            for (execute, histogram) in ["false", "true"].iter().zip(&flow.waited) {
                histogram.write(name, &format!("execute=\"{execute}\",{labels}"), out);
            }
        }
        let name = "apiserver_flowcontrol_request_execution_seconds";
        head(out, name, "histogram", "How long requests were worked on, in seconds.");
        for (labels, flow) in &all {
            flow.executed.write(name, &format!("{labels},type=\"regular\""), out);
        }
    }
}

/// The seats of the levels.
pub(super) fn write_limits(limits: &[Limits], out: &mut String) {
    let gauges: [Gauge; 4] = [
        ("nominal_limit_seats", "The seats that a level has.", |limits| limits.nominal),
        ("lower_limit_seats", "The seats that a level never lends.", |limits| limits.lower),
        ("upper_limit_seats", "The seats that a level may take with those that are lent.", |limits| {
            limits.upper
        }),
        ("current_limit_seats", "The seats that a level may take now with those that are lent.", |limits| {
            limits.current
        }),
    ];
    for (name, help, value) in gauges {
        let name = format!("apiserver_flowcontrol_{name}");
        head(out, &name, "gauge", help);
        for level in limits {
            let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", level.name, value(level));
        }
    }
}

impl Flow {
    /// A request got its turn.
    pub(super) fn dispatched(&self) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was sent away.
    pub(super) fn rejected(&self, why: Refusal) {
        if let Some(index) = REFUSALS.iter().position(|(refusal, _)| *refusal == why) {
            self.rejected[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is to take so many seats.
    pub(super) fn estimated(&self, seats: usize) {
        self.estimated.count.fetch_add(1, Ordering::Relaxed);
        self.estimated.sum.fetch_add(seats as u64, Ordering::Relaxed);
        if let Some(bucket) = WIDTHS.iter().position(|bound| seats <= *bound) {
            self.estimated.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is being worked on, on so many seats.
    pub(super) fn enter(self: &Arc<Self>, seats: usize) -> Stay {
        let seats = i64::try_from(seats).unwrap_or(i64::MAX);
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.seats.fetch_add(seats, Ordering::Relaxed);
        Stay { flow: Arc::clone(self), seats, began: Instant::now() }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.flow.executing.fetch_sub(1, Ordering::Relaxed);
        self.flow.seats.fetch_sub(self.seats, Ordering::Relaxed);
        self.flow.executed.add(self.began.elapsed());
    }
}

impl<'a> Waiting<'a> {
    pub(super) fn new(flow: &'a Flow, seats: usize) -> Self {
        let seats = i64::try_from(seats).unwrap_or(i64::MAX);
        flow.waiting.fetch_add(1, Ordering::Relaxed);
        flow.waiting_seats.fetch_add(seats, Ordering::Relaxed);
        Self { flow, seats, began: Instant::now(), ended: false }
    }

    /// The request got a seat, or waited too long.
    pub(super) fn end(mut self, with_seat: bool) {
        self.flow.waited[usize::from(with_seat)].add(self.began.elapsed());
        self.ended = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.flow.waiting.fetch_sub(1, Ordering::Relaxed);
        self.flow.waiting_seats.fetch_sub(self.seats, Ordering::Relaxed);
        if !self.ended {
            self.flow.waited[0].add(self.began.elapsed());
            self.flow.rejected(Refusal::Cancelled);
        }
    }
}

impl Widths {
    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (bound, bucket) in WIDTHS.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let sum = self.sum.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

impl Histogram {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let seconds = time.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nothing is written of what has never been.
    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        #[allow(clippy::cast_precision_loss, reason = "a sum of seconds need not be exact to the nanosecond")]
        let seconds = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
    }
}
