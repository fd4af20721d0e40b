//! What the scheduler's task does at each turn.

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    scheduling::v1beta1::PodGroup,
};
use kcore::Stored;
use kreconcile::{Change, EventRecorder};
use kube::Client;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    decision::{Decision, Nomination},
    event::ClusterEvent,
    extender::{Extender, ExtenderError, decide_extended_measured},
    groups::{GroupPolicy, GroupState, Groups},
    metrics::{Attempt, Family, Metrics},
    node::NodeInfo,
    observer::{Observed, Observer},
    planner::{Plan, Planner},
    plugin::{CycleState, Rejection},
    plugins::GANG_SCHEDULING,
    pod::PodInfo,
    profile::Profile,
    queue::{QueuedPod, SchedulingQueue},
    scheduler::{
        REQUESTS_MAX, Scheduler,
        binding::{Bound, Done, Outcome},
        preemption::{self, Preemption},
        report::Reporter,
    },
    snapshot::catalog::Interest,
    waiting::WaitingPods,
};

pub(super) struct Core {
    pub(super) client: Client,
    pub(super) profiles: Arc<[Profile]>,
    pub(super) planner: Planner,
    pub(super) queue: SchedulingQueue,
    /// The uids of pods whose place counts although no informer has shown it yet. A pod that is neither here nor in the
    /// queue when its binding fails is not the scheduler's business any more.
    assumed: HashSet<Arc<str>, RandomState>,
    /// The uids of pods whose victims are being removed, and whether the pod was to be tried meanwhile.
    pub(super) preempting: HashMap<Arc<str>, bool, RandomState>,
    pub(super) tasks: JoinSet<Done>,
    /// How many of them bind a pod.
    pub(super) bindings: usize,
    pub(super) reporter: Reporter,
    pub(super) waiting: WaitingPods,
    pub(super) extenders: Arc<[Arc<dyn Extender>]>,
    pub(super) observer: Observer,
    observed: Observed,
    pub(super) metrics: Metrics,
    pub(super) groups: Groups,
}

impl Core {
    pub(super) fn new(scheduler: &Scheduler, recorder: EventRecorder) -> Self {
        let Scheduler { client, profiles, clock, waiting, extenders, backoff, metrics, .. } = scheduler;
        let (observer, observed) = Observed::new();
        let groups = Groups::default();
        let queue = SchedulingQueue::new(Arc::clone(profiles)).with_backoff(backoff.0, backoff.1);
        Self {
            queue: queue.with_metrics(metrics.clone()).with_groups(groups.clone()),
            groups,
            reporter: Reporter::new(client.clone(), Arc::clone(clock), recorder, metrics.clone()),
            client: client.clone(),
            planner: Planner::new(Arc::clone(profiles)),
            profiles: Arc::clone(profiles),
            assumed: HashSet::default(),
            preempting: HashMap::default(),
            tasks: JoinSet::new(),
            bindings: 0,
            waiting: waiting.clone(),
            extenders: Arc::clone(extenders),
            observer,
            observed,
            metrics: metrics.clone(),
        }
    }

    /// Counts how much there is.
    pub(super) fn measure(&self) {
        let lengths = self.queue.lengths();
        for (queue, number) in [
            ("active", lengths.active),
            ("backoff", lengths.backoff),
            ("unschedulable", lengths.unschedulable),
            ("gated", lengths.gated),
        ] {
            self.metrics.set(Family::Pending, queue, number);
        }
        let snapshot = self.planner.snapshot();
        self.metrics.set(Family::CacheSize, "nodes", snapshot.len());
        self.metrics.set(Family::CacheSize, "pods", snapshot.pods_len());
        self.metrics.set(Family::CacheSize, "assumed_pods", self.assumed.len());
        self.metrics.set(Family::Goroutines, "binding", self.bindings);
        self.queue.measure();
    }

    pub(super) fn node_changed(&mut self, change: &Change) {
        self.observed.changed();
        let now = Instant::now();
        if change.new.is_none() {
            let name = &change.header().name;
            let known = self
                .planner
                .snapshot()
                .find(name)
                .map(|index| Arc::clone(self.planner.snapshot().node(index).info()));
            self.planner.remove_node(name);
            if let Some(node) = known {
                self.happened(&ClusterEvent::NodeRemoved(node), now);
            }
            return;
        }
        let Some(node) = change.new_as::<Node>() else { return };
        let new = Arc::new(NodeInfo::new(node));
        let known = self
            .planner
            .snapshot()
            .find(&new.name)
            .map(|index| Arc::clone(self.planner.snapshot().node(index).info()));
        self.planner.set_node(Arc::clone(&new));
        match known {
            None => self.happened(&ClusterEvent::NodeAdded(new), now),
            Some(old) if !old.same_for_scheduling(&new) => {
                self.happened(&ClusterEvent::NodeUpdated { old, new }, now);
            }
            Some(_) => {}
        }
    }

    /// Takes over what happened to objects of other kinds.
    pub(super) fn object_changed(&mut self, interest: &Interest, change: &Change) {
        self.observed.changed();
        let now = Instant::now();
        let event = self.planner.object_changed(interest, change);
        if let Some(ClusterEvent::Object(event)) = &event
            && let Some((_, new)) = event.of::<PodGroup>()
        {
            let key = change.key();
            self.groups.set_policy(&key.namespace, &key.name, new.map(GroupPolicy::of));
        }
        match event {
            Some(event) => self.happened(&event, now),
            None => tracing::warn!(object = %change.key(), "an object can't be read and is left out"),
        }
    }

    pub(super) fn pod_changed(&mut self, change: &Change) {
        if (change.new.is_none() || change.is_recreated())
            && let Some(old) = &change.old
        {
            self.gone(&old.header().uid);
        }
        let Some(stored) = &change.new else { return };
        if self.is_known_as_it_is(stored) {
            return;
        }
        if let Some(pod) = self.bound_as_assumed(stored) {
            return self.is_on_node(&Arc::new(pod), true);
        }
        let Some(pod) = change.new_as::<Pod>() else { return };
        let pod = Arc::new(PodInfo::new(pod));
        let now = Instant::now();
        match &pod.node_name {
            _ if pod.terminal => self.gone(&pod.uid),
            Some(_) => self.is_on_node(&pod, false),
            None if pod.deleting => {
                self.queue.remove(&pod.uid);
                self.groups.gone(&pod.uid);
            }
            None if self.assumed.contains(&pod.uid) => {}
            None if self.profile_of(&pod).is_some() => self.enqueue(&pod, now),
            None => {}
        }
    }

    /// A pod is on a node. It `is_confirmed` when that is where its place counts already, and nothing else of it is new.
    fn is_on_node(&mut self, pod: &Arc<PodInfo>, is_confirmed: bool) {
        let Some(node) = &pod.node_name else { return };
        let now = Instant::now();
        self.assumed.remove(&pod.uid);
        self.queue.remove(&pod.uid);
        self.groups.placed(pod);
        let known = self.planner.snapshot().pod(&pod.uid).cloned();
        if is_confirmed {
            self.planner.confirm(pod, node);
        } else {
            self.planner.place(pod, node);
        }
        let event = match known {
            Some(old) if old.node_name.is_some() => ClusterEvent::PodUpdated { old, new: Arc::clone(pod) },
            _ => ClusterEvent::PodAssigned(Arc::clone(pod)),
        };
        self.happened(&event, now);
    }

    /// The pod whose place was assumed, if it came there and nothing else has happened to it.
    fn bound_as_assumed(&self, stored: &Stored) -> Option<PodInfo> {
        let uid = &*stored.header().uid;
        if !self.assumed.contains(uid) {
            return None;
        }
        let snapshot = self.planner.snapshot();
        snapshot.pod(uid)?.bound(snapshot.node_of(uid)?, stored)
    }

    /// Has the queue take over what has happened; it was seen at `seen`.
    fn happened(&mut self, event: &ClusterEvent, seen: Instant) {
        self.queue.happened(event, seen);
        self.metrics.handled(event.label(), seen.elapsed());
    }

    fn enqueue(&mut self, pod: &Arc<PodInfo>, now: Instant) {
        self.groups.waits(pod);
        let is_new = !self.queue.contains(&pod.uid);
        let held_back = self.queue.set(Arc::clone(pod), now);
        if is_new {
            self.happened(&ClusterEvent::PodAdded(Arc::clone(pod)), now);
        }
        // What else holds a pod back is nothing that its condition has a word for.
        if held_back.is_none() || pod.gates.is_empty() {
            return;
        }
        let written = self.queue.written(&pod.uid).cloned();
        if let Some(condition) = self.reporter.gated(pod, written.as_ref(), &mut self.tasks) {
            self.queue.wrote(&pod.uid, condition);
        }
    }

    /// Whether a pod on a node is the same as before as far as it counts, told without decoding it: most changes of
    /// pods are of their status. Only servers in the same process say enough in the header.
    fn is_known_as_it_is(&self, stored: &Stored) -> bool {
        let header = stored.header();
        let Some(known) = self.planner.snapshot().pod(&header.uid) else { return false };
        header.generation > 0
            && known.generation == header.generation
            && known.node_name.is_some()
            && known.node_name.as_deref() == header.field("spec.nodeName")
            && matches!(header.field("status.phase"), Some("Pending" | "Running"))
            && !known.resizing
    }

    fn gone(&mut self, uid: &str) {
        self.groups.gone(uid);
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.waiting.reject(uid, "", Rejection::unresolvable("the pod is gone"));
        if let Some(pod) = self.planner.snapshot().pod(uid).cloned() {
            let now = Instant::now();
            self.planner.remove_pod(uid);
            self.observed.changed();
            self.happened(&ClusterEvent::PodGone(pod), now);
        }
    }

    pub(super) fn profile_of(&self, pod: &PodInfo) -> Option<usize> {
        self.profiles.iter().position(|profile| profile.scheduler_name == pod.scheduler_name)
    }

    /// When there will be something to do without any event.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    /// Decides on up to `pods_max` pods; tells how many it were.
    pub(super) async fn schedule(&mut self, pods_max: usize) -> usize {
        let now = Instant::now();
        for done in 0..pods_max {
            if self.tasks.len() >= REQUESTS_MAX {
                return done;
            }
            let Some(queued) = self.queue.pop(now) else { return done };
            self.schedule_one(queued, now).await;
        }
        pods_max
    }

    async fn schedule_one(&mut self, mut queued: QueuedPod, now: Instant) {
        if let Some(tried) = self.preempting.get_mut(&queued.pod.uid) {
            // A second try would find other victims while the first ones are not yet seen to go.
            *tried = true;
            queued.attempts -= 1;
            let rejected_by = std::mem::take(&mut queued.rejected_by);
            self.queue.failed(queued, rejected_by, now);
            return;
        }
        let Some(number) = self.profile_of(&queued.pod) else { return };
        if let Some(GroupState { policy: Some(GroupPolicy::Gang(least)), .. }) = self.groups.of(&queued.pod)
            && self.profiles[number].points.permit.iter().any(|entry| *entry.name == *GANG_SCHEDULING)
        {
            return self.schedule_gang(number, queued, least, now).await;
        }
        queued.started = Instant::now();
        let plan = self.plan(number, &queued).await;
        self.metrics.observe(Family::AlgorithmDuration, [], queued.started.elapsed().as_secs_f64());
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.errored(queued, &error, now),
        };
        match self.placed(plan) {
            Ok((node, cycle)) => {
                self.assume(&queued.pod, &node);
                self.commit(number, queued, node, cycle, now);
            }
            Err(decision) => self.no_node(queued, *decision, now),
        }
    }

    /// The node, and what was noted; or the decision that there is none.
    pub(super) fn placed(&self, plan: Plan) -> Result<(Arc<str>, CycleState), Box<Decision>> {
        match plan {
            Plan::Node(node) => {
                Ok((Arc::clone(&self.planner.snapshot().names()[node]), CycleState::default()))
            }
            Plan::Decision(decision) => match decision.node_name().cloned() {
                Some(node) => Ok((node, decision.cycle)),
                None => Err(decision),
            },
        }
    }

    /// From here the place counts; the pod's own object still says that it has no node.
    pub(super) fn assume(&mut self, pod: &Arc<PodInfo>, node: &Arc<str>) {
        self.planner.place(pod, node);
        self.groups.placed(pod);
        self.assumed.insert(Arc::clone(&pod.uid));
    }

    /// Has the victims removed, and takes the place away from pods of lower priority that were to get it.
    fn preempt(&mut self, pod: Arc<PodInfo>, node: Arc<str>, victims: Vec<Arc<PodInfo>>, now: Instant) {
        let displaced = self
            .queue
            .nominated()
            .filter(|(other, on)| **on == node && other.uid != pod.uid && other.priority < pod.priority);
        let displaced: Vec<_> = displaced.map(|(other, _)| Arc::clone(other)).collect();
        for other in &displaced {
            self.queue.nominate(other, None);
            self.queue.wake(&other.uid, now);
        }
        if displaced.is_empty() && victims.iter().all(|victim| victim.deleting) {
            return;
        }
        self.preempting.insert(Arc::clone(&pod.uid), false);
        let (clock, recorder) = self.reporter.parts();
        let (client, waiting) = (self.client.clone(), self.waiting.clone());
        let job = Preemption { client, clock, recorder, waiting, pod, node, victims, displaced };
        self.tasks.spawn(preemption::run(job));
    }

    pub(super) fn no_node(&mut self, queued: QueuedPod, decision: Decision, now: Instant) {
        if !self.profile_of(&queued.pod).is_none_or(|at| self.profiles[at].points.post_filter.is_empty()) {
            self.metrics.add(Family::Preemptions, [], 1);
        }
        if !decision.victims.is_empty() {
            let victims = u32::try_from(decision.victims.len()).unwrap_or(u32::MAX);
            self.metrics.observe(Family::Victims, [], f64::from(victims));
        }
        let message = decision.diagnosis().message();
        let plugins = decision.diagnosis().plugins.clone();
        let pod = Arc::clone(&queued.pod);
        self.reject(queued, plugins, &message, &decision.nomination, now);
        for repair in decision.repairs {
            let (client, uid) = (self.client.clone(), Arc::clone(&pod.uid));
            self.tasks.spawn(async move {
                let done = repair.repair(&client).await;
                if let Err(error) = &done {
                    tracing::info!(%error, "what was to help a pod could not be done");
                }
                Done::Repair { uid, failed: done.is_err() }
            });
        }
        if let Nomination::Node(node) = decision.nomination {
            self.preempt(pod, node, decision.victims, now);
        }
    }

    /// Decides with the pods in place for which room is being made, if they come before this one.
    pub(super) async fn plan(&mut self, profile: usize, queued: &QueuedPod) -> Result<Plan, ExtenderError> {
        let (pod, meter) = (&queued.pod, self.meter(queued));
        let nominated: Vec<_> =
            self.queue.nominated().map(|(other, node)| (Arc::clone(other), Arc::clone(node))).collect();
        if self.extenders.iter().any(|extender| extender.is_interested(pod)) {
            let (profile, snapshot) = (&self.profiles[profile], self.planner.snapshot());
            let decision =
                decide_extended_measured(profile, &self.extenders, snapshot, pod, &nominated, &meter).await?;
            return Ok(Plan::Decision(Box::new(decision)));
        }
        Ok(self.planner.plan_measured(profile, pod, &nominated, &meter))
    }

    /// Something went wrong that has nothing to do with where pods can go.
    pub(super) fn errored(&mut self, mut queued: QueuedPod, error: &dyn Display, now: Instant) {
        let (written, pod) = (queued.written.take(), Arc::clone(&queued.pod));
        self.metrics.attempt(Attempt::Error, &pod.scheduler_name, queued.started.elapsed());
        queued.written = self.reporter.errored(&pod, error, written, &mut self.tasks);
        self.queue.errored(queued, now);
    }

    /// Gives the place back that was assumed; tells whether it still was.
    pub(super) fn forget(&mut self, uid: &str) -> bool {
        let was = self.assumed.remove(uid);
        if was {
            if let Some(pod) = self.planner.snapshot().pod(uid) {
                self.groups.waits(pod);
            }
            self.planner.remove_pod(uid);
        }
        was
    }

    pub(super) fn refused(
        &mut self,
        queued: QueuedPod,
        plugin: &Arc<str>,
        rejection: &Rejection,
        now: Instant,
    ) {
        if !self.forget(&queued.pod.uid) {
            return;
        }
        self.queue.happened(&ClusterEvent::PodGone(Arc::clone(&queued.pod)), now);
        // Upstream counts only the node that was chosen here.
        let message = format!("0/1 nodes are available: 1 {}.", rejection.message());
        self.reject(queued, vec![Arc::clone(plugin)], &message, &Nomination::Keep, now);
    }

    pub(super) fn reject(
        &mut self,
        mut queued: QueuedPod,
        plugins: Vec<Arc<str>>,
        message: &str,
        nomination: &Nomination,
        now: Instant,
    ) {
        let written = queued.written.take();
        let pod = Arc::clone(&queued.pod);
        self.metrics.attempt(Attempt::Unschedulable, &pod.scheduler_name, queued.started.elapsed());
        queued.written = self.reporter.unschedulable(&pod, message, nomination, written, &mut self.tasks);
        self.queue.failed(queued, plugins, now);
        match nomination {
            Nomination::Keep => {}
            Nomination::Clear => self.queue.nominate(&pod, None),
            Nomination::Node(node) => self.queue.nominate(&pod, Some(node)),
        }
    }

    /// Waits until a request has ended, and does what follows; waits forever when there is none.
    ///
    /// # Cancel safety
    /// A call that is dropped has taken nothing.
    pub(super) async fn finished(&mut self) {
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next() => match done {
                Ok(done) => self.done(done),
                Err(error) => tracing::error!(%error, "a binding ended unexpectedly"),
            },
            () = self.observed.asked() => {}
        }
    }

    /// Has those look at the cluster who wait for something there.
    pub(super) fn show(&mut self) {
        self.observed.show(self.planner.snapshot());
    }

    /// Does what follows from the requests that have ended.
    pub(super) fn take_finished(&mut self) {
        while let Some(done) = self.tasks.try_join_next() {
            match done {
                Ok(done) => self.done(done),
                Err(error) => tracing::error!(%error, "a binding ended unexpectedly"),
            }
        }
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        let Bound { queued, node, mut cycle, outcome } = match done {
            Done::Report => return,
            Done::Binding(bound) => {
                self.bindings = self.bindings.saturating_sub(1);
                *bound
            }
            Done::Repair { uid, failed } => {
                if failed {
                    self.queue.wake(&uid, now);
                }
                return;
            }
            Done::Preemption { uid, failed, took } => {
                self.metrics.preempted(!failed, took);
                let tried = self.preempting.remove(&uid).unwrap_or_default();
                if tried || failed {
                    self.queue.wake(&uid, now);
                }
                return;
            }
        };
        if let Some(profile) = self.profile_of(&queued.pod) {
            let is_bound = matches!(outcome, Outcome::Bound);
            self.end_booking(profile, &queued, &node, &mut cycle, is_bound);
        }
        let missed = self.queue.lands(&queued.pod);
        match outcome {
            Outcome::Bound => {
                let QueuedPod { pod, attempts, first, started, flushed, .. } = &queued;
                if *flushed {
                    self.metrics.add(Family::AfterFlush, [], 1);
                }
                self.metrics.attempt(Attempt::Scheduled, &pod.scheduler_name, started.elapsed());
                self.metrics.bound(*attempts, first.unwrap_or(*started).elapsed());
                self.reporter.bound(pod, &node);
            }
            Outcome::Refused(plugin, rejection) => {
                let helped = missed.and_then(|missed| self.queue.helped_by(&queued, &plugin, &missed));
                let uid = Arc::clone(&queued.pod.uid);
                self.refused(queued, &plugin, &rejection, now);
                if let Some(event) = helped {
                    self.queue.wake_for(&uid, event, now);
                }
            }
            Outcome::Failed(error) => {
                // The informer may have shown the pod on its node, or gone, in the meantime.
                if !self.forget(&queued.pod.uid) {
                    return;
                }
                self.queue.happened(&ClusterEvent::PodGone(Arc::clone(&queued.pod)), now);
                self.errored(queued, &error, now);
            }
        }
    }
}
