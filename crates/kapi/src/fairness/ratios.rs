//! Histograms of how much of a limit is in use, weighted by time: upstream's `TimingRatioHistogram`s, which count a nanosecond
//! as one observation.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;

use crate::metrics::head;

/// The upper bounds of each histogram (`flowcontrol/metrics/metrics.go`).
const SEATS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
const REQUESTS: &[f64] = &[0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0];
const DEMAND: &[f64] = &[0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0, 6.0];
const KINDS: &[f64] = &[0.0, 0.001, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// One histogram. What it is told counts from then on.
#[derive(Clone, Debug)]
struct Ratio {
    bounds: &'static [f64],
    /// Nanoseconds in each bucket; the last is for what is greater than all bounds.
    nanos: Vec<u64>,
    sum: f64,
    value: f64,
    since: Option<Instant>,
}

impl Ratio {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, nanos: vec![0; bounds.len() + 1], sum: 0.0, value: 0.0, since: None }
    }

    #[allow(clippy::cast_precision_loss, reason = "ratios and times need not be exact to the last bit")]
    fn set(&mut self, now: Instant, part: usize, whole: usize) {
        if let Some(since) = self.since {
            let passed = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
            let bucket = self.bounds.partition_point(|bound| *bound < self.value);
            self.nanos[bucket] = self.nanos[bucket].saturating_add(passed);
            self.sum += self.value * passed as f64;
        }
        self.since = Some(now);
        self.value = part as f64 / whole.max(1) as f64;
    }

    fn write(&self, name: &str, labels: &str, now: Instant, out: &mut String) {
        // What has not been told yet is up to now.
        let mut told = self.clone();
        told.set(now, 0, 1);
        let mut below = 0;
        for (bound, nanos) in self.bounds.iter().zip(&told.nanos) {
            below += nanos;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        below += told.nanos[self.bounds.len()];
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {below}", told.sum);
    }
}

/// What a level has in use.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    seats: Ratio,
    executing: Ratio,
    waiting: Ratio,
    demand: Ratio,
}

impl Default for Usage {
    fn default() -> Self {
        let (seats, requests, demand) = (Ratio::new(SEATS), Ratio::new(REQUESTS), Ratio::new(DEMAND));
        Self { seats, executing: requests.clone(), waiting: requests, demand }
    }
}

impl Usage {
    /// A level of so many seats and places in queues has so many requests.
    pub(super) fn set(
        &mut self,
        now: Instant,
        (executing, seats): (usize, usize),
        (waiting, places): (usize, usize),
    ) {
        self.seats.set(now, executing, seats);
        self.executing.set(now, executing, seats);
        self.waiting.set(now, waiting, places);
        self.demand.set(now, executing + waiting, seats);
    }
}

/// Writes what the levels have in use.
pub(super) fn write_usage(levels: &[(String, Usage)], out: &mut String) {
    let now = Instant::now();
    let level = |name: &str| format!("priority_level=\"{name}\"");
    let name = "apiserver_flowcontrol_priority_level_seat_utilization";
    head(out, name, "histogram", "Time with this part of a level's seats taken, in nanoseconds.");
    for (named, usage) in levels {
        usage.seats.write(name, &format!("phase=\"executing\",{}", level(named)), now, out);
    }
    let name = "apiserver_flowcontrol_priority_level_request_utilization";
    head(
        out,
        name,
        "histogram",
        "Time with this part of a level's limit of requests reached, in nanoseconds.",
    );
    for (named, usage) in levels {
        for (phase, ratio) in [("executing", &usage.executing), ("waiting", &usage.waiting)] {
            ratio.write(name, &format!("phase=\"{phase}\",{}", level(named)), now, out);
        }
    }
    let name = "apiserver_flowcontrol_demand_seats";
    head(out, name, "histogram", "Time with a demand for this part of a level's own seats, in nanoseconds.");
    for (named, usage) in levels {
        usage.demand.write(name, &level(named), now, out);
    }
}

/// Requests that read and that write, of all levels.
#[derive(Debug, Default)]
pub(super) struct Kinds(Mutex<State>);

#[derive(Debug)]
struct State {
    /// How many may be worked on, and how many may wait.
    limits: (usize, usize),
    sides: [Side; 2],
}

#[derive(Clone, Debug)]
struct Side {
    counts: [usize; 2],
    ratios: [Ratio; 2],
}

impl Default for State {
    fn default() -> Self {
        let ratio = Ratio::new(KINDS);
        let side = Side { counts: [0; 2], ratios: [ratio.clone(), ratio] };
        Self { limits: (1, 1), sides: [side.clone(), side] }
    }
}

/// Whether a request is being worked on or waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Executing = 0,
    Waiting = 1,
}

/// A request in a phase, as long as this lives.
#[derive(Debug)]
pub(crate) struct Busy {
    kinds: Arc<Kinds>,
    mutating: bool,
    phase: Phase,
}

impl Kinds {
    /// How many requests may be worked on at the same time, and how many may wait.
    pub(super) fn configure(&self, executing: usize, waiting: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).limits = (executing, waiting);
    }

    /// A request that changes something, or not, enters a phase.
    pub(super) fn enter(self: &Arc<Self>, mutating: bool, phase: Phase) -> Busy {
        self.step(mutating, phase, usize::wrapping_add);
        Busy { kinds: Arc::clone(self), mutating, phase }
    }

    fn step(&self, mutating: bool, phase: Phase, by: fn(usize, usize) -> usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if phase == Phase::Executing { state.limits.0 } else { state.limits.1 };
        let side = &mut state.sides[usize::from(mutating)];
        let count = by(side.counts[phase as usize], 1);
        side.counts[phase as usize] = count;
        side.ratios[phase as usize].set(Instant::now(), count, limit);
    }

    pub(super) fn write(&self, out: &mut String) {
        let sides = self.0.lock().unwrap_or_else(PoisonError::into_inner).sides.clone();
        let now = Instant::now();
        let name = "apiserver_flowcontrol_read_vs_write_current_requests";
        head(
            out,
            name,
            "histogram",
            "Time with this part of the server's limit of requests reached, in nanoseconds.",
        );
        for (phase, index) in [("executing", Phase::Executing), ("waiting", Phase::Waiting)] {
            for (kind, side) in ["readOnly", "mutating"].iter().zip(&sides) {
                let labels = format!("phase=\"{phase}\",request_kind=\"{kind}\"");
                side.ratios[index as usize].write(name, &labels, now, out);
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.kinds.step(self.mutating, self.phase, usize::wrapping_sub);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lines(write: impl FnOnce(&mut String)) -> Vec<String> {
        let mut out = String::new();
        write(&mut out);
        out.lines().map(str::to_owned).collect()
    }

    /// The sums are those of upstream's `TimingRatioHistogram`: each nanosecond is one observation.
    #[tokio::test(start_paused = true)]
    async fn time_is_counted_where_the_ratio_was() {
        let mut usage = Usage::default();
        usage.set(Instant::now(), (0, 10), (0, 100));
        tokio::time::advance(Duration::from_secs(1)).await;
        usage.set(Instant::now(), (5, 10), (2, 100));
        tokio::time::advance(Duration::from_secs(3)).await;
        usage.set(Instant::now(), (15, 10), (0, 100));
        tokio::time::advance(Duration::from_secs(2)).await;
        let found = lines(|out| write_usage(&[("l".to_owned(), usage)], out));
        let name = "apiserver_flowcontrol_priority_level";
        let executing = "phase=\"executing\",priority_level=\"l\"";
        for line in [
            format!("{name}_seat_utilization_bucket{{{executing},le=\"0\"}} 1000000000"),
            format!("{name}_seat_utilization_bucket{{{executing},le=\"0.4\"}} 1000000000"),
            format!("{name}_seat_utilization_bucket{{{executing},le=\"0.5\"}} 4000000000"),
            format!("{name}_seat_utilization_bucket{{{executing},le=\"1\"}} 4000000000"),
            format!("{name}_seat_utilization_bucket{{{executing},le=\"+Inf\"}} 6000000000"),
            format!("{name}_seat_utilization_sum{{{executing}}} 4500000000"),
            format!(
                "{name}_request_utilization_bucket{{phase=\"waiting\",priority_level=\"l\",le=\"0.01\"}} 3000000000"
            ),
            format!(
                "{name}_request_utilization_bucket{{phase=\"waiting\",priority_level=\"l\",le=\"0.03\"}} 6000000000"
            ),
            "apiserver_flowcontrol_demand_seats_bucket{priority_level=\"l\",le=\"0.8\"} 4000000000"
                .to_owned(),
            "apiserver_flowcontrol_demand_seats_count{priority_level=\"l\"} 6000000000".to_owned(),
        ] {
            assert!(found.contains(&line), "{line}\nis not in\n{}", found.join("\n"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readers_and_writers_are_counted_apart() {
        let kinds = Arc::new(Kinds::default());
        kinds.configure(100, 10);
        let writer = kinds.enter(true, Phase::Executing);
        let reader = kinds.enter(false, Phase::Waiting);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop((writer, reader));
        tokio::time::advance(Duration::from_secs(1)).await;
        let found = lines(|out| kinds.write(out));
        let name = "apiserver_flowcontrol_read_vs_write_current_requests";
        for line in [
            format!("{name}_bucket{{phase=\"executing\",request_kind=\"mutating\",le=\"0\"}} 1000000000"),
            format!("{name}_bucket{{phase=\"executing\",request_kind=\"mutating\",le=\"0.01\"}} 2000000000"),
            format!("{name}_bucket{{phase=\"waiting\",request_kind=\"readOnly\",le=\"0.1\"}} 2000000000"),
            format!("{name}_count{{phase=\"waiting\",request_kind=\"mutating\"}} 0"),
        ] {
            assert!(found.contains(&line), "{line}\nis not in\n{}", found.join("\n"));
        }
    }
}
