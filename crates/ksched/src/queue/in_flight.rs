//! What happens while pods that have left the queue may still be refused.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use ahash::RandomState;

use super::{FORCED, QueuedPod, SchedulingQueue};
use crate::{
    event::ClusterEvent,
    metrics::{Family, Metrics},
    pod::PodInfo,
};

/// How many events are kept for pods that wait for a permission. A pod that has waited for longer than these have been counts as
/// helped when it is refused.
pub const IN_FLIGHT_EVENTS_MAX: usize = 4_096;
/// Upstream's word for the pods among the events (`PodPoppedInFlightEvent`).
const POPPED: &str = "PodPopped";

/// What happened while a pod was in flight.
#[derive(Debug)]
pub(crate) struct Missed {
    /// Whether more has happened than was kept.
    pub(crate) is_cut: bool,
    pub(crate) events: Vec<ClusterEvent>,
}

/// Pods that have left the queue and may come back refused, and what has happened since each left. Most pods are decided on and
/// put back at one go, between two events, and never get here: only those do that wait for a permission.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// The number of the first event that each has missed, by uid.
    pods: HashMap<Arc<str>, u64, RandomState>,
    /// How many pods have which number.
    since: BTreeMap<u64, usize>,
    events: VecDeque<ClusterEvent>,
    /// The number of the first event that is kept.
    first: u64,
    counts: BTreeMap<&'static str, usize>,
}

impl InFlight {
    pub(super) fn takes_off(&mut self, uid: &Arc<str>) {
        self.lands(uid);
        let next = self.first + self.events.len() as u64;
        self.pods.insert(Arc::clone(uid), next);
        *self.since.entry(next).or_default() += 1;
    }

    pub(super) fn note(&mut self, event: &ClusterEvent) {
        if self.pods.is_empty() {
            return;
        }
        if self.events.len() == IN_FLIGHT_EVENTS_MAX {
            self.drop_first();
        }
        *self.counts.entry(event.label()).or_default() += 1;
        self.events.push_back(event.clone());
    }

    /// The pod is bound, or back: what it has missed, if it was in flight. What nobody else has missed is forgotten.
    pub(super) fn lands(&mut self, uid: &str) -> Option<Missed> {
        let since = self.pods.remove(uid)?;
        if let Some(count) = self.since.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.since.remove(&since);
            }
        }
        let skip = usize::try_from(since.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let events = self.events.iter().skip(skip).cloned().collect();
        let missed = Missed { is_cut: since < self.first, events };
        let needed = self.since.keys().next().copied().unwrap_or(u64::MAX);
        while self.first < needed && !self.events.is_empty() {
            self.drop_first();
        }
        Some(missed)
    }

    fn drop_first(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.first += 1;
            if let Some(count) = self.counts.get_mut(event.label()) {
                *count -= 1;
            }
        }
    }

    pub(super) fn measure(&self, metrics: &Metrics) {
        metrics.set(Family::InFlightEvents, POPPED, self.pods.len());
        for (label, count) in &self.counts {
            metrics.set(Family::InFlightEvents, label, *count);
        }
    }
}

impl SchedulingQueue {
    /// A pod that has left the queue waits for a permission: what happens meanwhile is kept for it.
    pub(crate) fn takes_off(&mut self, pod: &PodInfo) {
        self.in_flight.takes_off(&pod.uid);
    }

    /// Its wait and its binding have ended: what it has missed, if it had to wait.
    pub(crate) fn lands(&mut self, pod: &PodInfo) -> Option<Missed> {
        self.in_flight.lands(&pod.uid)
    }

    /// The first of the missed events that helps against this plug-in's refusal, by its name (upstream's
    /// `determineSchedulingHintForInFlightPod`).
    pub(crate) fn helped_by(
        &self,
        queued: &QueuedPod,
        plugin: &Arc<str>,
        missed: &Missed,
    ) -> Option<&'static str> {
        let mut refused = queued.clone();
        refused.rejected_by = vec![Arc::clone(plugin)];
        let helps = missed.events.iter().find(|event| self.helps(&refused, event)).map(ClusterEvent::label);
        helps.or(missed.is_cut.then_some(FORCED))
    }

    /// Counts what is kept for pods in flight.
    pub(crate) fn measure(&self) {
        self.in_flight.measure(&self.metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> ClusterEvent {
        ClusterEvent::Other(name.into())
    }

    fn names(missed: &Missed) -> Vec<String> {
        let name = |event: &ClusterEvent| match event {
            ClusterEvent::Other(name) => name.to_string(),
            other => format!("{other:?}"),
        };
        missed.events.iter().map(name).collect()
    }

    #[test]
    fn each_pod_is_told_what_it_has_missed_and_no_more_is_kept() {
        let (mut flight, [one, two]) = (InFlight::default(), ["one", "two"].map(Arc::<str>::from));
        flight.note(&event("before all"));
        flight.takes_off(&one);
        flight.note(&event("a"));
        flight.takes_off(&two);
        flight.note(&event("b"));
        assert_eq!(names(&flight.lands("one").unwrap()), ["a", "b"]);
        assert!(flight.lands("one").is_none(), "it has landed");
        assert_eq!(flight.events.len(), 1, "the other one has not missed the first");
        flight.note(&event("c"));
        let metrics = Metrics::default();
        flight.measure(&metrics);
        for line in ["inflight_events{event=\"PodPopped\"} 1", "inflight_events{event=\"Other\"} 2"] {
            assert!(metrics.text().contains(line), "{line} is not in\n{}", metrics.text());
        }
        assert_eq!(names(&flight.lands("two").unwrap()), ["b", "c"]);
        assert!(flight.events.is_empty() && flight.since.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let (mut flight, uid) = (InFlight::default(), Arc::from("one"));
        flight.takes_off(&uid);
        for number in 0..=IN_FLIGHT_EVENTS_MAX {
            flight.note(&event(&number.to_string()));
        }
        let missed = flight.lands("one").unwrap();
        assert!(missed.is_cut);
        assert_eq!((missed.events.len(), &*names(&missed)[0]), (IN_FLIGHT_EVENTS_MAX, "1"));
    }
}
