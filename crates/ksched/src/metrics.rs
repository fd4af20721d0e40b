//! What the scheduler counts about itself, under upstream's names (Kubernetes, "Metrics Reference").
//!
//! Counting costs a look-up per observation, a handful for each try of a pod, and nothing per node.

mod family;
mod label;
pub(crate) mod meter;

use std::{
    collections::HashMap,
    fmt,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

pub use self::meter::PLUGIN_SAMPLE_PERCENT;
pub(crate) use self::{family::Family, label::Label, meter::Meter};

/// How many series are kept; what comes beyond is not counted. Names of plug-ins and profiles come from configurations.
pub const SERIES_MAX: usize = 4_096;
/// Pods with so many tries or more count as one (upstream's `getAttemptsLabel`).
const ATTEMPTS_MAX: u32 = 15;

type Labels = SmallVec<[Label; 3]>;
type All = HashMap<(Family, Labels), Series, RandomState>;

enum Series {
    Number(i64),
    Histogram { buckets: Vec<u64>, count: u64, sum: f64 },
}

/// The counters of one scheduler, or of several that share them; a handle.
///
/// ```
/// let metrics = ksched::Metrics::default();
/// assert_eq!(metrics.text(), "", "nothing was counted yet");
/// ```
#[derive(Clone, Default)]
pub struct Metrics {
    series: Arc<Mutex<All>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("series", &self.all().len()).finish()
    }
}

/// How the try of a pod ended (upstream's `result`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        }
    }
}

/// A request that is under way.
#[must_use]
pub(crate) struct ApiCall {
    metrics: Metrics,
    kind: &'static str,
    since: Instant,
}

impl ApiCall {
    pub(crate) fn end(self, ok: bool) {
        let labels = || [self.kind.into(), Label::from(if ok { "success" } else { "error" })];
        self.metrics.add(Family::ApiCalls, labels(), 1);
        self.metrics.observe(Family::ApiCallDuration, labels(), self.since.elapsed().as_secs_f64());
    }
}

impl Drop for ApiCall {
    fn drop(&mut self) {
        self.metrics.add(Family::ApiCallsPending, [self.kind.into()], -1);
    }
}

impl Metrics {
    fn all(&self) -> MutexGuard<'_, All> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(
        &self,
        family: Family,
        labels: impl IntoIterator<Item = Label>,
        change: impl FnOnce(&mut Series),
    ) {
        let (mut all, key) = (self.all(), (family, labels.into_iter().collect()));
        if let Some(series) = all.get_mut(&key) {
            return change(series);
        }
        if all.len() < SERIES_MAX {
            let buckets = family.bounds().count();
            let new = if buckets == 0 {
                Series::Number(0)
            } else {
                Series::Histogram { buckets: vec![0; buckets], count: 0, sum: 0.0 }
            };
            change(all.entry(key).or_insert(new));
        }
    }

    /// Counts up, or down.
    pub(crate) fn add(&self, family: Family, labels: impl IntoIterator<Item = Label>, number: i64) {
        self.with(family, labels, |series| {
            if let Series::Number(known) = series {
                *known += number;
            }
        });
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, family: Family, label: &'static str, number: usize) {
        self.with(family, [label.into()], |series| {
            *series = Series::Number(i64::try_from(number).unwrap_or(i64::MAX));
        });
    }

    /// Puts a value into a histogram.
    pub(crate) fn observe(&self, family: Family, labels: impl IntoIterator<Item = Label>, value: f64) {
        self.with(family, labels, |series| {
            if let Series::Histogram { buckets, count, sum } = series {
                if let Some(at) = family.bounds().position(|bound| value <= bound) {
                    buckets[at] += 1;
                }
                *count += 1;
                *sum += value;
            }
        });
    }

    /// A try of a pod has ended.
    pub(crate) fn attempt(&self, attempt: Attempt, profile: &Arc<str>, took: Duration) {
        let labels = || [attempt.name().into(), profile.into()];
        self.add(Family::ScheduleAttempts, labels(), 1);
        self.observe(Family::AttemptDuration, labels(), took.as_secs_f64());
    }

    /// A pod is bound, so long after it first could be scheduled.
    pub(crate) fn bound(&self, attempts: u32, took: Duration) {
        let label = if attempts < ATTEMPTS_MAX { attempts.to_string() } else { format!("{ATTEMPTS_MAX}+") };
        self.observe(Family::SliDuration, [Label::from(&Arc::from(label))], took.as_secs_f64());
        self.observe(Family::Attempts, [], f64::from(attempts));
    }

    /// The victims of a pod were told to go, or some could not be.
    pub(crate) fn preempted(&self, ok: bool, took: Duration) {
        let result = if ok { "success" } else { "error" };
        self.observe(Family::PreemptionDuration, [result.into()], took.as_secs_f64());
        self.add(Family::PreemptionExecutions, [result.into()], 1);
    }

    /// A try of a pod group has ended.
    pub(crate) fn group(&self, result: &'static str, profile: &Arc<str>, decision: Duration, took: Duration) {
        let labels = || [result.into(), profile.into()];
        self.add(Family::GroupAttempts, labels(), 1);
        self.observe(Family::GroupDuration, labels(), took.as_secs_f64());
        self.observe(Family::GroupAlgorithm, [], decision.as_secs_f64());
    }

    /// A request beside the decisions begins; dropped without an end, it counts as under way no more, and as nothing else.
    pub(crate) fn api_call(&self, kind: &'static str) -> ApiCall {
        self.add(Family::ApiCallsPending, [kind.into()], 1);
        ApiCall { metrics: self.clone(), kind, since: Instant::now() }
    }

    /// Something that happened in the cluster was taken over.
    pub(crate) fn handled(&self, event: &'static str, took: Duration) {
        self.observe(Family::EventHandling, [event.into()], took.as_secs_f64());
    }

    /// All plug-ins of an extension point have been asked about a pod.
    fn point(&self, point: &'static str, status: &'static str, profile: &Arc<str>, took: Duration) {
        let labels = [point.into(), status.into(), profile.into()];
        self.observe(Family::ExtensionPoint, labels, took.as_secs_f64());
    }

    /// Everything in the text form of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let all = self.all();
        let mut sorted: Vec<_> = all.iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        let mut out = String::new();
        let mut last = None;
        for ((family, labels), series) in sorted {
            if last.replace(*family) != Some(*family) {
                let (name, kind, help) = (family.name(), family.kind(), family.help());
                // Writing into a string can't fail.
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
            write_series(&mut out, *family, labels, series);
        }
        out
    }
}

fn write_series(out: &mut String, family: Family, labels: &[Label], series: &Series) {
    let name = family.name();
    let pairs = family.labels().iter().zip(labels);
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}=\"{}\"", value.escaped())).collect();
    let labels = pairs.join(",");
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    match series {
        Series::Number(number) => {
            let _ = writeln!(out, "{name}{braced} {number}");
        }
        Series::Histogram { buckets, count, sum } => {
            let (comma, mut below) = (if labels.is_empty() { "" } else { "," }, 0);
            for (bound, number) in family.bounds().zip(buckets) {
                below += number;
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{braced} {sum}\n{name}_count{braced} {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_written_as_prometheus_reads_it() {
        let (metrics, profile) = (Metrics::default(), Arc::from("de\"fault"));
        metrics.attempt(Attempt::Unschedulable, &profile, Duration::from_millis(3));
        metrics.attempt(Attempt::Unschedulable, &profile, Duration::from_secs(100));
        metrics.set(Family::Pending, "active", 7);
        metrics.set(Family::Pending, "active", 5);
        metrics.bound(20, Duration::from_millis(10));
        let text = metrics.text();
        for line in [
            "# TYPE scheduler_schedule_attempts_total counter",
            "scheduler_schedule_attempts_total{result=\"unschedulable\",profile=\"de\\\"fault\"} 2",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"unschedulable\",profile=\"de\\\"fault\",le=\"0.002\"} 0",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"unschedulable\",profile=\"de\\\"fault\",le=\"0.004\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"unschedulable\",profile=\"de\\\"fault\",le=\"16.384\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"unschedulable\",profile=\"de\\\"fault\",le=\"+Inf\"} 2",
            "scheduler_scheduling_attempt_duration_seconds_sum{result=\"unschedulable\",profile=\"de\\\"fault\"} 100.003",
            "scheduler_pending_pods{queue=\"active\"} 5",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"15+\",le=\"0.01\"} 1",
            "scheduler_pod_scheduling_attempts_bucket{le=\"16\"} 0",
            "scheduler_pod_scheduling_attempts_sum 20",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# HELP scheduler_pending_pods ").count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_while_they_last_and_by_their_ends() {
        let metrics = Metrics::default();
        let (one, other, dropped) = (
            metrics.api_call("pod_binding"),
            metrics.api_call("pod_binding"),
            metrics.api_call("pod_binding"),
        );
        tokio::time::advance(Duration::from_millis(3)).await;
        one.end(true);
        drop(dropped);
        let has =
            |line: &str| assert!(metrics.text().lines().any(|known| known == line), "{}", metrics.text());
        has("scheduler_pending_async_api_calls{call_type=\"pod_binding\"} 1");
        has("scheduler_async_api_call_execution_total{call_type=\"pod_binding\",result=\"success\"} 1");
        has(
            "scheduler_async_api_call_execution_duration_seconds_sum{call_type=\"pod_binding\",result=\"success\"} 0.003",
        );
        other.end(false);
        has("scheduler_pending_async_api_calls{call_type=\"pod_binding\"} 0");
        has("scheduler_async_api_call_execution_total{call_type=\"pod_binding\",result=\"error\"} 1");
    }

    #[test]
    fn there_is_an_end_to_series() {
        let metrics = Metrics::default();
        for number in 0..SERIES_MAX + 10 {
            metrics.attempt(Attempt::Error, &Arc::from(number.to_string()), Duration::ZERO);
        }
        assert_eq!(metrics.all().len(), SERIES_MAX);
    }
}
