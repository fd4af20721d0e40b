//! The pods that wait to be scheduled.
//!
//! A pod is in one of four places: *active* pods are next, in the order of [`QueueSort`]; pods in *back-off* have failed
//! and may help themselves to another try soon; *unschedulable* pods wait for an event that could help them, or for five
//! minutes; *gated* pods are held back by a [`PreEnqueue`](crate::plugin::PreEnqueue). The queue has no clock and no
//! task: every call says what time it is, so that the same calls give the same order.

mod in_flight;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use ahash::RandomState;
use tokio::time::Instant;

pub use in_flight::IN_FLIGHT_EVENTS_MAX;
use in_flight::InFlight;

use crate::{
    event::{ClusterEvent, Hint},
    groups::Groups,
    metrics::{
        Family, Meter, Metrics,
        meter::{self, verdict_status},
    },
    plugin::{QueueSort, QueueingHint, Rejection, Verdict},
    pod::{PodInfo, ScheduledCondition},
    profile::{Entry as ProfileEntry, Profile},
};

type HintEntry = ProfileEntry<dyn QueueingHint>;

/// The back-off after the first failure (upstream's `podInitialBackoffSeconds`).
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off (upstream's `podMaxBackoffSeconds`).
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a pod waits for an event before it is tried again anyway (upstream's
/// `DefaultPodMaxInUnschedulablePodsDuration`).
pub const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

// Upstream's words for what brings pods into a queue, beside events.
const UNSCHEDULED_ADD: &str = "UnschedulablePodAdd";
const UNSCHEDULED_UPDATE: &str = "UnschedulablePodUpdate";
const FAILED: &str = "ScheduleAttemptFailure";
const BACKED_OFF: &str = "BackoffComplete";
const TIMED_OUT: &str = "UnschedulableTimeout";
const FORCED: &str = "ForceActivate";

/// A pod in the queue.
#[derive(Clone, Debug)]
pub struct QueuedPod {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// When it was last put into the queue.
    pub since: Instant,
    /// How many times it was tried.
    pub attempts: u32,
    /// The plug-ins that rejected it at the last try; empty when it was not rejected but something went wrong, or there
    /// were no nodes: then every event helps.
    pub rejected_by: Vec<Arc<str>>,
    /// The condition that was last written.
    pub(crate) written: Option<ScheduledCondition>,
    /// When it first could be tried.
    pub(crate) first: Option<Instant>,
    /// When the last try began.
    pub(crate) started: Instant,
    /// Whether it is tried because it has waited for so long, and not because something has happened.
    pub(crate) flushed: bool,
}

impl QueuedPod {
    /// A pod that was not tried yet.
    #[must_use]
    pub fn new(pod: Arc<PodInfo>, since: Instant) -> Self {
        let (rejected_by, written, first) = (Vec::new(), None, None);
        Self { pod, since, attempts: 0, rejected_by, written, first, started: since, flushed: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// After an error the back-off is kept to the end; else an idle scheduler may cut it short.
    Backoff {
        until: Instant,
        after_error: bool,
    },
    Unschedulable {
        until: Instant,
    },
    Gated,
}

#[derive(Debug)]
struct Entry {
    queued: Arc<QueuedPod>,
    place: Place,
    /// Names the entry's present place; what other orders hold under an older number is stale.
    ticket: u64,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLengths {
    /// Next to be tried.
    pub active: usize,
    /// Tried again soon.
    pub backoff: usize,
    /// Waiting for an event.
    pub unschedulable: usize,
    /// Held back.
    pub gated: usize,
}

/// The queue. Its length is that of the list of pods without a node; the API server's limits bound it.
pub struct SchedulingQueue {
    sort: Arc<dyn QueueSort>,
    profiles: Arc<[Profile]>,
    entries: HashMap<Arc<str>, Entry, RandomState>,
    active: Vec<(u64, Arc<QueuedPod>)>,
    /// By the end of the back-off, and ticket.
    backoff: BTreeMap<(Instant, u64), Arc<str>>,
    /// By when the pod is tried anyway, and ticket.
    unschedulable: BTreeMap<(Instant, u64), Arc<str>>,
    /// By ticket.
    gated: BTreeMap<u64, Arc<str>>,
    /// Pods with a nominated node, by uid.
    nominated: HashMap<Arc<str>, (Arc<PodInfo>, Arc<str>), RandomState>,
    in_flight: InFlight,
    tickets: u64,
    lengths: QueueLengths,
    backoff_limits: (Duration, Duration),
    groups: Groups,
    metrics: Metrics,
}

impl std::fmt::Debug for SchedulingQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchedulingQueue").field("lengths", &self.lengths).finish_non_exhaustive()
    }
}

impl SchedulingQueue {
    /// An empty queue for the pods of these profiles, ordered as the first one says.
    ///
    /// # Panics
    /// Without profiles; one that was built has an order.
    #[must_use]
    pub fn new(profiles: Arc<[Profile]>) -> Self {
        let sort = Arc::clone(&profiles[0].points.queue_sort[0].plugin);
        Self {
            sort,
            profiles,
            entries: HashMap::default(),
            active: Vec::new(),
            backoff: BTreeMap::new(),
            unschedulable: BTreeMap::new(),
            gated: BTreeMap::new(),
            nominated: HashMap::default(),
            in_flight: InFlight::default(),
            tickets: 0,
            lengths: QueueLengths::default(),
            backoff_limits: (BACKOFF_MIN, BACKOFF_MAX),
            groups: Groups::default(),
            metrics: Metrics::default(),
        }
    }

    /// Finds here how many pods of a group there are.
    #[must_use]
    pub fn with_groups(mut self, groups: Groups) -> Self {
        self.groups = groups;
        self
    }

    /// Counts here what comes in and what is rejected.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Another back-off than [`BACKOFF_MIN`] to [`BACKOFF_MAX`].
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff_limits = (first, longest);
        self
    }

    /// The back-off after so many tries: twice as long after each, by default 1, 2, 4, 8, 10, 10, ... seconds.
    fn backoff(&self, attempts: u32) -> Duration {
        let (first, longest) = self.backoff_limits;
        let doublings = attempts.saturating_sub(1).min(16);
        first.saturating_mul(2_u32.pow(doublings)).min(longest)
    }

    /// How many pods are where.
    #[must_use]
    pub fn lengths(&self) -> QueueLengths {
        self.lengths
    }

    /// Whether a pod is in the queue, by its uid.
    #[must_use]
    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// The pods for which room is being made, with their nodes.
    pub fn nominated(&self) -> impl Iterator<Item = (&Arc<PodInfo>, &Arc<str>)> {
        self.nominated.values().map(|(pod, node)| (pod, node))
    }

    /// Notes where room is being made for a pod, or that none is, before the API server shows it.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&Arc<str>>) {
        match node {
            Some(node) => {
                self.nominated.insert(Arc::clone(&pod.uid), (Arc::clone(pod), Arc::clone(node)));
            }
            None => {
                self.nominated.remove(&pod.uid);
            }
        }
    }

    /// Has another look at a pod that waits for an event, as if one had helped it.
    pub fn wake(&mut self, uid: &str, now: Instant) {
        self.wake_for(uid, FORCED, now);
    }

    /// As [`wake`](Self::wake), because of this.
    pub(crate) fn wake_for(&mut self, uid: &str, why: &'static str, now: Instant) {
        let waits = |entry: &Entry| matches!(entry.place, Place::Unschedulable { .. });
        if self.entries.get(uid).is_some_and(waits)
            && let Some(queued) = self.take(uid)
        {
            self.retry(queued, why, now);
        }
    }

    /// Puts a new pod into the queue, or takes over the changes of one that is there. Gives what holds it back if
    /// something does.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Instant) -> Option<Rejection> {
        match &pod.nominated_node {
            Some(node) => {
                self.nominated.insert(Arc::clone(&pod.uid), (Arc::clone(&pod), Arc::clone(node)));
            }
            // One that was noted and is not written yet stays.
            None if self
                .entries
                .get(&pod.uid)
                .is_some_and(|known| known.queued.pod.nominated_node.is_none()) => {}
            None => {
                self.nominated.remove(&pod.uid);
            }
        }
        let Some(entry) = self.entries.get(&pod.uid) else {
            let queued = QueuedPod::new(pod, now);
            return self.activate(queued, UNSCHEDULED_ADD, now);
        };
        let (place, mut queued) = (entry.place, (*entry.queued).clone());
        let old = std::mem::replace(&mut queued.pod, Arc::clone(&pod));
        match place {
            Place::Gated => self.activate(queued, UNSCHEDULED_UPDATE, now),
            Place::Unschedulable { .. } => {
                // A change of the status, such as the condition that the scheduler itself writes, helps nobody.
                let is_same =
                    old.generation > 0 && old.generation == pod.generation && old.labels == pod.labels;
                let event = ClusterEvent::TargetUpdated { old, new: pod };
                if !is_same && self.helps(&queued, &event) {
                    self.retry(queued, UNSCHEDULED_UPDATE, now)
                } else {
                    self.insert(queued, place);
                    None
                }
            }
            Place::Backoff { .. } | Place::Active => {
                self.insert(queued, place);
                None
            }
        }
    }

    /// Forgets a pod: it was deleted, or has a node.
    pub fn remove(&mut self, uid: &str) {
        self.nominated.remove(uid);
        self.take(uid);
    }

    /// The next pod to be tried, which leaves the queue; it comes back through [`failed`](Self::failed) or
    /// [`errored`](Self::errored). When no pod is active, one is taken out of its back-off early (KEP-5142), unless the
    /// back-off is due to an error.
    pub fn pop(&mut self, now: Instant) -> Option<QueuedPod> {
        self.flush(now);
        while let Some((ticket, queued)) = self.pop_active() {
            if self.entries.get(&queued.pod.uid).is_some_and(|entry| entry.ticket == ticket) {
                return self.taken(&queued.pod.uid, now);
            }
        }
        let early = self.backoff.values().find(|uid| {
            let entry = self.entries.get(&**uid);
            entry.is_some_and(|entry| matches!(entry.place, Place::Backoff { after_error: false, .. }))
        });
        let uid = Arc::clone(early?);
        self.taken(&uid, now)
    }

    /// As [`pop`](Self::pop), with this pod, unless something holds it back or it is not in the queue.
    pub(crate) fn pop_this(&mut self, uid: &str, now: Instant) -> Option<QueuedPod> {
        let place = self.entries.get(uid)?.place;
        if place == Place::Gated { None } else { self.taken(uid, now) }
    }

    fn taken(&mut self, uid: &str, now: Instant) -> Option<QueuedPod> {
        let mut queued = self.take(uid)?;
        queued.started = now;
        queued.first.get_or_insert(now);
        queued.attempts = queued.attempts.saturating_add(1);
        Some(queued)
    }

    /// Puts a pod back that no node would take; it waits for an event that helps against one of `rejected_by`.
    pub fn failed(&mut self, mut queued: QueuedPod, rejected_by: Vec<Arc<str>>, now: Instant) {
        queued.since = now;
        queued.flushed = false;
        queued.rejected_by = rejected_by;
        self.count_incoming("unschedulable", FAILED);
        self.insert(queued, Place::Unschedulable { until: now + UNSCHEDULABLE_MAX });
    }

    /// Puts a pod back for which something went wrong; it is tried again after its back-off.
    pub fn errored(&mut self, mut queued: QueuedPod, now: Instant) {
        queued.since = now;
        queued.rejected_by.clear();
        let until = now + self.backoff(queued.attempts);
        self.count_incoming("backoff", FAILED);
        self.insert(queued, Place::Backoff { until, after_error: true });
    }

    /// Has another look at the pods that an event may help.
    pub fn happened(&mut self, event: &ClusterEvent, now: Instant) {
        if let ClusterEvent::PodAdded(pod) = event {
            let mut hints = self.profiles.iter().flat_map(|profile| &profile.points.hints);
            if !hints.any(|entry| entry.plugin.wants_new_pod(pod)) {
                return;
            }
        }
        self.in_flight.note(event);
        let helped: Vec<_> = self
            .unschedulable
            .values()
            .chain(self.gated.values())
            .filter(|uid| self.entries.get(&**uid).is_some_and(|entry| self.helps(&entry.queued, event)))
            .cloned()
            .collect();
        for uid in helped {
            let gated = self.entries.get(&uid).is_some_and(|entry| entry.place == Place::Gated);
            if let Some(queued) = self.take(&uid) {
                // What was held back was not tried, and has no back-off.
                if gated {
                    self.activate(queued, event.label(), now)
                } else {
                    self.retry(queued, event.label(), now)
                };
            }
        }
    }

    /// When there will be something to do without any event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let first = |map: &BTreeMap<(Instant, u64), Arc<str>>| map.keys().next().map(|(instant, _)| *instant);
        [first(&self.backoff), first(&self.unschedulable)].into_iter().flatten().min()
    }

    /// Notes which condition was written for a pod, so that it is not written again.
    pub(crate) fn wrote(&mut self, uid: &str, condition: ScheduledCondition) {
        if let Some(entry) = self.entries.get_mut(uid) {
            Arc::make_mut(&mut entry.queued).written = Some(condition);
        }
    }

    pub(crate) fn written(&self, uid: &str) -> Option<&ScheduledCondition> {
        self.entries.get(uid).and_then(|entry| entry.queued.written.as_ref())
    }

    /// Moves the pods whose time has come.
    fn flush(&mut self, now: Instant) {
        while let Some((&(until, _), uid)) = self.backoff.iter().next() {
            if until > now {
                break;
            }
            let uid = Arc::clone(uid);
            if let Some(queued) = self.take(&uid) {
                self.activate(queued, BACKED_OFF, now);
            }
        }
        while let Some((&(until, _), uid)) = self.unschedulable.iter().next() {
            if until > now {
                break;
            }
            let uid = Arc::clone(uid);
            if let Some(mut queued) = self.take(&uid) {
                queued.flushed = true;
                self.retry(queued, TIMED_OUT, now);
            }
        }
    }

    fn helps(&self, queued: &QueuedPod, event: &ClusterEvent) -> bool {
        let added = if let ClusterEvent::PodAdded(pod) = event { Some(pod) } else { None };
        let is_asked_for = added.is_none();
        if queued.rejected_by.is_empty() {
            return is_asked_for;
        }
        let Some(profile) = self.profile(&queued.pod) else { return is_asked_for };
        queued.rejected_by.iter().any(|name| {
            let entry = profile.points.hints.iter().find(|entry| entry.name == *name);
            entry.map_or(is_asked_for, |entry| {
                added.is_none_or(|added| entry.plugin.wants_new_pod(added))
                    && self.hint(entry, queued, event) == Hint::Queue
            })
        })
    }

    /// Asks a plug-in; how long that takes is measured for a sample, as there may be very many pods.
    fn hint(&self, entry: &HintEntry, queued: &QueuedPod, event: &ClusterEvent) -> Hint {
        if !meter::is_sampled(&queued.pod, queued.attempts) {
            return entry.plugin.hint(&queued.pod, event);
        }
        let since = Instant::now();
        let hint = entry.plugin.hint(&queued.pod, event);
        Meter::queueing_hint(&self.metrics, &entry.name, event.label(), hint, since.elapsed());
        hint
    }

    fn profile(&self, pod: &PodInfo) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.scheduler_name == pod.scheduler_name)
    }

    /// Into the back-off if that has not ended, else next.
    fn retry(&mut self, queued: QueuedPod, why: &'static str, now: Instant) -> Option<Rejection> {
        let until = queued.since + self.backoff(queued.attempts);
        if until > now {
            self.count_incoming("backoff", why);
            self.insert(queued, Place::Backoff { until, after_error: false });
            return None;
        }
        self.activate(queued, why, now)
    }

    fn count_incoming(&self, queue: &'static str, why: &'static str) {
        self.metrics.add(Family::Incoming, [queue.into(), why.into()], 1);
    }

    /// Counts a pod among those that plug-ins have rejected, or not any more.
    fn count_rejected(&self, queued: &QueuedPod, number: i64) {
        for plugin in &queued.rejected_by {
            let labels = [plugin.into(), (&queued.pod.scheduler_name).into()];
            self.metrics.add(Family::Unschedulable, labels, number);
        }
    }

    /// What holds a pod back.
    fn held_back(&self, queued: &QueuedPod) -> Option<(Arc<str>, Rejection)> {
        let profile = self.profile(&queued.pod)?;
        let meter = Meter::new(&self.metrics, &queued.pod, queued.attempts);
        let all = meter.begin();
        let held_back = profile.points.pre_enqueue.iter().find_map(|entry| {
            let begin = meter.begin_plugin();
            let verdict = entry.plugin.pre_enqueue(&queued.pod, &self.groups);
            meter.plugin(&entry.name, "PreEnqueue", verdict_status(&verdict), begin);
            match verdict {
                Verdict::Pass => None,
                Verdict::Reject(rejection) => Some((Arc::clone(&entry.name), rejection)),
            }
        });
        let status =
            held_back.as_ref().map_or(meter::SUCCESS, |(_, said)| meter::finality_status(said.finality));
        meter.point("PreEnqueue", status, all);
        held_back
    }

    /// Next, unless something holds the pod back.
    fn activate(&mut self, mut queued: QueuedPod, why: &'static str, now: Instant) -> Option<Rejection> {
        match self.held_back(&queued) {
            None => {
                queued.first.get_or_insert(now);
                self.count_incoming("active", why);
                self.insert(queued, Place::Active);
                None
            }
            Some((plugin, rejection)) => {
                queued.rejected_by = vec![plugin];
                self.count_incoming("gated", why);
                self.insert(queued, Place::Gated);
                Some(rejection)
            }
        }
    }

    fn insert(&mut self, queued: QueuedPod, place: Place) {
        self.take(&queued.pod.uid);
        self.tickets += 1;
        let (ticket, queued, uid) = (self.tickets, Arc::new(queued.clone()), Arc::clone(&queued.pod.uid));
        match place {
            Place::Active => self.push_active(ticket, Arc::clone(&queued)),
            Place::Backoff { until, .. } => {
                self.backoff.insert((until, ticket), Arc::clone(&uid));
            }
            Place::Unschedulable { until } => {
                self.unschedulable.insert((until, ticket), Arc::clone(&uid));
            }
            Place::Gated => {
                self.gated.insert(ticket, Arc::clone(&uid));
            }
        }
        *self.count(place) += 1;
        self.count_rejected(&queued, 1);
        self.entries.insert(uid, Entry { queued, place, ticket });
    }

    fn take(&mut self, uid: &str) -> Option<QueuedPod> {
        let entry = self.entries.remove(uid)?;
        match entry.place {
            Place::Backoff { until, .. } => {
                self.backoff.remove(&(until, entry.ticket));
            }
            Place::Unschedulable { until } => {
                self.unschedulable.remove(&(until, entry.ticket));
            }
            Place::Gated => {
                self.gated.remove(&entry.ticket);
            }
            // What the heap holds is stale now; it is thrown away when it comes up.
            Place::Active => {}
        }
        *self.count(entry.place) -= 1;
        self.count_rejected(&entry.queued, -1);
        Some(Arc::unwrap_or_clone(entry.queued))
    }

    fn count(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Active => &mut self.lengths.active,
            Place::Backoff { .. } => &mut self.lengths.backoff,
            Place::Unschedulable { .. } => &mut self.lengths.unschedulable,
            Place::Gated => &mut self.lengths.gated,
        }
    }

    fn goes_first(&self, a: usize, b: usize) -> bool {
        let ((a_ticket, a), (b_ticket, b)) = (&self.active[a], &self.active[b]);
        self.sort.compare(a, b).then(a_ticket.cmp(b_ticket)) == Ordering::Less
    }

    fn push_active(&mut self, ticket: u64, queued: Arc<QueuedPod>) {
        self.active.push((ticket, queued));
        let mut at = self.active.len() - 1;
        while at > 0 && self.goes_first(at, (at - 1) / 2) {
            self.active.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn pop_active(&mut self) -> Option<(u64, Arc<QueuedPod>)> {
        if self.active.is_empty() {
            return None;
        }
        let first = self.active.swap_remove(0);
        let mut at = 0;
        loop {
            let mut best = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.active.len() && self.goes_first(child, best) {
                    best = child;
                }
            }
            if best == at {
                return Some(first);
            }
            self.active.swap(at, best);
            at = best;
        }
    }
}

#[cfg(test)]
mod tests;
