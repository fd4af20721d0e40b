//! What to do next for a pod, and what to say about it: a function of the pod, of what the runtime shows, of the probes
//! and of the time.
//!
//! [`PodMachine`] keeps what can't be read back from there (back-off, the end before last, what was said before) and
//! does nothing by itself: the agent calls [`PodMachine::step`] after each change, carries the [`Action`]s out and
//! writes the status. The rules are those of upstream's kubelet (`pkg/kubelet/kuberuntime`, `pkg/kubelet/status`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, Pod, PodSpec, PodStatus};

use crate::runtime::{ContainerPhase, ObservedContainer, ObservedPod, ProbeKind};

mod conditions;
mod containers;
mod phase;
mod resize;
mod restart;
mod restart_all;
#[cfg(test)]
mod tests;

pub(crate) use conditions::{RESIZE, qos};
use resize::{Allocation, Resizing};
pub use resize::{DEFERRED_FOR, Pending, Room, decide};
pub use restart::{BACKOFF_MAX, BACKOFF_MIN, BACKOFF_RESET};
use restart::{Backoff, should_restart};
use restart_all::RestartAll;

/// The least time that a container gets to end, even when the pod's grace is used up
/// (`minimumGracePeriodInSeconds` of upstream's kubelet).
pub const GRACE_MIN: Duration = Duration::from_secs(2);
/// How long a failed sandbox or configuration waits before the next try.
pub const RETRY_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// The grace of a pod that names none, as the API server would have defaulted it.
pub const GRACE_DEFAULT: i64 = 30;

/// What the machine looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// Whether the pod is gone from the API: it is ended, and nothing more is said about it.
    pub gone: bool,
    /// The pod as the runtime has it.
    pub observed: &'a ObservedPod,
    /// The results of probes, by container and kind; missing means not known yet.
    pub probes: &'a BTreeMap<(Arc<str>, ProbeKind), bool>,
    /// What is being done and isn't finished.
    pub busy: &'a BTreeSet<Busy>,
    /// The node's addresses.
    pub host_ips: &'a [IpAddr],
    /// The scheme of container ids, such as `process`.
    pub scheme: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// An action that was begun and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Busy {
    /// The sandbox is being made, or taken away.
    Pod,
    /// The container is being started; its `postStart` hook belongs to that.
    Start(Arc<str>),
    /// The container is being stopped.
    Stop(Arc<str>),
    /// The container is being given more or less.
    Resize(Arc<str>),
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox and the volumes.
    RunPod,
    /// Start a container.
    Start {
        /// Its name.
        container: Arc<str>,
        /// How often it was started before.
        attempt: u32,
    },
    /// Stop a container. Given again, with less grace, when the pod's deletion was hastened.
    Stop {
        /// Its name.
        container: Arc<str>,
        /// How long its `preStop` hook and its end may take together.
        grace: Duration,
        /// Why, for the event.
        why: StopReason,
    },
    /// Give a container that runs what it has been given by now ([`PodMachine::resources_of`]).
    Resize {
        /// Its name.
        container: Arc<str>,
    },
    /// Nothing runs any more: write the last status, take sandbox and volumes away and, when the API still has the pod,
    /// delete it there for good.
    Finish,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod is deleted, over its deadline, or finished.
    PodEnds,
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// It gets more or less, and its policy asks for a restart.
    Resize,
    /// Another container's end asks for all to be restarted (KEP-5532).
    RestartAll,
}

/// What one step gives.
#[derive(Clone, Debug)]
pub struct Step {
    /// What to do, in order; independent of each other.
    pub actions: Vec<Action>,
    /// What to tell the API.
    pub status: PodStatus,
    /// When to step again even if nothing changes.
    pub wake_at: Option<Timestamp>,
    /// The containers that are in back-off, for the event.
    pub backing_off: Vec<Arc<str>>,
}

/// What the machine remembers of one container.
#[derive(Clone, Debug, Default)]
struct Memory {
    backoff: Backoff,
    /// The end before the present start.
    last: Option<ContainerStateTerminated>,
    /// The start that was seen last, to notice when it is replaced.
    seen: Option<ObservedContainer>,
    /// The runtime refused to make the container.
    refused: Option<Refusal>,
    /// When the stop that was asked for last is over.
    stop_by: Option<Timestamp>,
    resizing: Resizing,
}

#[derive(Clone, Debug)]
struct Refusal {
    reason: &'static str,
    message: String,
    retry_at: Timestamp,
    times: u32,
}

/// The machine of one pod.
///
/// ```
/// use std::collections::{BTreeMap, BTreeSet};
/// use kruntime::{machine::{Action, Input, PodMachine}, runtime::ObservedPod};
///
/// let pod = serde_json::from_value(serde_json::json!({
///     "metadata": {"name": "web", "namespace": "default", "uid": "1"},
///     "spec": {"containers": [{"name": "web", "image": "web"}]},
/// }))?;
/// let step = PodMachine::default().step(&Input {
///     pod: &pod,
///     gone: false,
///     observed: &ObservedPod::default(),
///     probes: &BTreeMap::new(),
///     busy: &BTreeSet::new(),
///     host_ips: &[],
///     scheme: "process",
///     now: jiff::Timestamp::UNIX_EPOCH,
/// });
/// assert_eq!(step.actions, [Action::RunPod]);
/// assert_eq!(step.status.phase.as_deref(), Some("Pending"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PodMachine {
    memory: BTreeMap<Arc<str>, Memory>,
    /// The status that the last step gave: what conditions are compared with.
    last: Option<PodStatus>,
    /// When the pod's grace ends, once it is ending.
    end_by: Option<Timestamp>,
    /// The sandbox could not be made; when to try again.
    sandbox_retry: Option<Timestamp>,
    /// Whether a main container was ever started: initialisation is over for good.
    initialized: bool,
    deadline_exceeded: bool,
    ended: Option<NodeEnd>,
    /// What the node has given the pod.
    allocation: Option<Allocation>,
    /// What the pod wants and is not given.
    pending: Option<Pending>,
    restart_all: RestartAll,
}

/// The node ends a pod that its owner did not delete: it is short of something, or shuts down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEnd {
    /// The reason in the pod's status, such as `Evicted`.
    pub reason: String,
    /// The message in the pod's status.
    pub message: String,
    /// How many seconds the pod gets at most, if that is less than its own grace; one at least.
    pub grace_seconds: Option<u64>,
    /// Whether the pod never began: then its status tells of nothing else, and of no disruption.
    pub is_refusal: bool,
    /// Whether it is no fault of the pod's own: only then its status tells of a disruption.
    pub is_disruption: bool,
}

impl PodMachine {
    /// Notes that the runtime refused to start `container`.
    pub fn start_refused(
        &mut self,
        container: &Arc<str>,
        reason: &'static str,
        message: String,
        now: Timestamp,
    ) {
        let memory = self.memory.entry(Arc::clone(container)).or_default();
        let times = memory.refused.as_ref().map_or(0, |refusal| refusal.times) + 1;
        let wait = if reason == "CreateContainerConfigError" { RETRY_AFTER } else { restart::wait(times) };
        memory.refused = Some(Refusal { reason, message, retry_at: later(now, wait), times });
    }

    /// Ends the pod for good: its containers are stopped, and when they have ended its phase is `Failed`. The first end counts. A pod
    /// that was running has the condition `DisruptionTarget` then, with the reason `TerminationByKubelet` (KEP-3329).
    pub fn end(&mut self, end: NodeEnd) {
        self.ended.get_or_insert(end);
    }

    /// Whether the node has ended the pod by itself.
    #[must_use]
    pub fn is_ended_by_node(&self) -> bool {
        self.ended.is_some()
    }

    /// Notes that the sandbox or the volumes could not be made.
    pub fn pod_refused(&mut self, now: Timestamp) {
        self.sandbox_retry = Some(later(now, RETRY_AFTER));
    }

    /// The next step.
    pub fn step(&mut self, input: &Input<'_>) -> Step {
        let empty = PodSpec::default();
        let spec = input.pod.spec.as_ref().unwrap_or(&empty);
        self.remember(input);
        self.watch_restart_all(input, spec);
        let left = self.restart_all.left(input.observed);
        let input = &Input { observed: left.as_ref().unwrap_or(input.observed), ..*input };
        self.initialized |= spec.containers.iter().any(|one| find(input.observed, &one.name).is_some());
        let mut plan = Plan { actions: Vec::new(), wake_at: None, backing_off: Vec::new() };
        self.watch_deadline(input, spec, &mut plan);
        let ending = self.is_ending(input);
        if ending {
            self.plan_end(input, spec, &mut plan);
        } else {
            self.plan_run(input, spec, &mut plan);
        }
        let status = self.status(input, spec, ending);
        self.last = Some(status.clone());
        Step { actions: plan.actions, status, wake_at: plan.wake_at, backing_off: plan.backing_off }
    }

    /// Takes note of starts that replaced earlier ones.
    fn remember(&mut self, input: &Input<'_>) {
        for container in &input.observed.containers {
            let memory = self.memory.entry(Arc::clone(&container.name)).or_default();
            if memory.seen.as_ref().is_some_and(|seen| seen == container) {
                continue;
            }
            if let Some(seen) = &memory.seen
                && seen.id != container.id
            {
                memory.stop_by = None;
                if self.restart_all.is_removed(seen) {
                    // What it ended with is said already.
                } else if let ContainerPhase::Exited(exit) = &seen.phase {
                    memory.last = Some(containers::terminated(exit, &seen.id, input.scheme));
                }
            }
            memory.refused = None;
            let is_new = memory.seen.as_ref().is_none_or(|seen| seen.id != container.id);
            memory.seen = Some(container.clone());
            if is_new {
                self.began(&container.name);
            }
        }
    }

    /// `spec.activeDeadlineSeconds`, counted from `status.startTime`.
    fn watch_deadline(&mut self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) {
        let Some(seconds) = spec.active_deadline_seconds else { return };
        let started =
            self.last.as_ref().or(input.pod.status.as_ref()).and_then(|status| status.start_time.as_ref());
        let deadline = later(started.map_or(input.now, |time| time.0), SignedDuration::from_secs(seconds));
        if deadline <= input.now {
            self.deadline_exceeded = true;
        } else {
            plan.wake(deadline);
        }
    }

    fn is_ending(&self, input: &Input<'_>) -> bool {
        let phase = input.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let said = self.last.as_ref().and_then(|status| status.phase.as_deref());
        input.gone
            || self.deadline_exceeded
            || self.ended.is_some()
            || input.pod.metadata.deletion_timestamp.is_some()
            || [phase, said].iter().any(|phase| matches!(phase, Some("Succeeded" | "Failed")))
    }

    fn plan_run(&mut self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) {
        if input.observed.addresses.is_none() {
            if !input.busy.contains(&Busy::Pod) {
                match self.sandbox_retry {
                    Some(at) if at > input.now => plan.wake(at),
                    _ => plan.actions.push(Action::RunPod),
                }
            }
            return;
        }
        self.sandbox_retry = None;
        if self.restart_all.goes_on {
            return self.plan_restart_all(input, spec, plan);
        }
        match self.plan_init(input, spec, plan) {
            Init::Waits => return,
            Init::Failed => return self.stop_sidecars(input, spec, plan),
            Init::Done => {}
        }
        let mut over = true;
        for container in &spec.containers {
            over &= self.plan_container(input, spec, container, plan) == Progress::Over;
        }
        if over {
            self.stop_sidecars(input, spec, plan);
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            if find(input.observed, &container.name).is_none() {
                self.try_start(input, &container.name, 0, plan);
            }
        }
    }

    /// Init containers one after the other; sidecars go on when they have started.
    fn plan_init(&mut self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) -> Init {
        for container in spec.init_containers.iter().flatten() {
            if self.initialized && !is_sidecar(container) {
                continue;
            }
            let progress = self.plan_container(input, spec, container, plan);
            if self.initialized {
                continue;
            }
            if is_sidecar(container) {
                if !(progress == Progress::Runs && started(input, container)) {
                    return Init::Waits;
                }
            } else {
                match (progress, find(input.observed, &container.name).map(|seen| &seen.phase)) {
                    (Progress::Over, Some(ContainerPhase::Exited(exit))) if exit.code == 0 => {}
                    (Progress::Over, _) => return Init::Failed,
                    _ => return Init::Waits,
                }
            }
        }
        Init::Done
    }

    /// Starts, restarts or kills one container of a pod that is to run.
    fn plan_container(
        &mut self,
        input: &Input<'_>,
        spec: &PodSpec,
        container: &Container,
        plan: &mut Plan,
    ) -> Progress {
        let Some(seen) = find(input.observed, &container.name) else {
            let attempt = self.removed_attempt(&container.name);
            let attempt = attempt.unwrap_or_else(|| containers::restart_count(input.pod, &container.name));
            self.try_start(input, &container.name, attempt, plan);
            return Progress::Waits;
        };
        match &seen.phase {
            ContainerPhase::Running { .. } => {
                self.kill_if_unhealthy(input, spec, container, plan);
                self.plan_resize(input, spec, container, plan);
                Progress::Runs
            }
            ContainerPhase::Exited(exit) => {
                if self.restarts_to_resize(&container.name) {
                    self.try_start(input, &container.name, seen.attempt + 1, plan);
                    return Progress::Waits;
                }
                let completed_init = exit.code == 0 && is_regular_init(spec, container);
                if completed_init || !should_restart(spec, container, exit.code) {
                    return Progress::Over;
                }
                let memory = self.memory.entry(Arc::clone(&seen.name)).or_default();
                if let Some(until) = memory.backoff.until(exit.finished_at, input.now) {
                    plan.wake(until);
                    plan.backing_off.push(Arc::clone(&seen.name));
                } else {
                    self.try_start(input, &container.name, seen.attempt + 1, plan);
                }
                Progress::Waits
            }
        }
    }

    fn try_start(&mut self, input: &Input<'_>, container: &str, attempt: u32, plan: &mut Plan) {
        let name: Arc<str> = container.into();
        if input.busy.contains(&Busy::Start(Arc::clone(&name)))
            || input.busy.contains(&Busy::Stop(Arc::clone(&name)))
        {
            return;
        }
        let memory = self.memory.entry(Arc::clone(&name)).or_default();
        if let Some(refusal) = &memory.refused
            && refusal.retry_at > input.now
        {
            return plan.wake(refusal.retry_at);
        }
        // Who was stopped to be given something else, or with all others, has not crashed.
        let is_removed = memory.seen.as_ref().is_some_and(|seen| self.restart_all.is_removed(seen));
        if memory.seen.is_some() && !memory.resizing.restarts && !is_removed {
            memory.backoff.next(input.now);
        }
        self.starts(&name);
        plan.actions.push(Action::Start { container: name, attempt });
    }

    fn kill_if_unhealthy(
        &mut self,
        input: &Input<'_>,
        spec: &PodSpec,
        container: &Container,
        plan: &mut Plan,
    ) {
        let kinds = [
            (ProbeKind::Startup, StopReason::Startup, &container.startup_probe),
            (ProbeKind::Liveness, StopReason::Liveness, &container.liveness_probe),
        ];
        let name: Arc<str> = container.name.as_str().into();
        for (kind, why, probe) in kinds {
            let Some(probe) = probe else { continue };
            if input.probes.get(&(Arc::clone(&name), kind)) == Some(&false) {
                let seconds = probe
                    .termination_grace_period_seconds
                    .or(spec.termination_grace_period_seconds)
                    .unwrap_or(GRACE_DEFAULT);
                self.try_stop(input, &name, later(input.now, SignedDuration::from_secs(seconds)), why, plan);
                return;
            }
        }
    }

    fn plan_end(&mut self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) {
        let seconds = input
            .pod
            .metadata
            .deletion_grace_period_seconds
            .or(spec.termination_grace_period_seconds)
            .unwrap_or(GRACE_DEFAULT);
        let seconds = self.node_grace().map_or(seconds, |node| node.min(seconds)).max(1);
        let end_by = later(input.now, SignedDuration::from_secs(seconds));
        // A deletion that is repeated with less grace hastens the end; nothing delays it.
        let end_by = self.end_by.map_or(end_by, |known| known.min(end_by));
        self.end_by = Some(end_by);
        let mut runs = false;
        for seen in &input.observed.containers {
            let sidecar =
                spec.init_containers.iter().flatten().any(|c| *c.name == *seen.name && is_sidecar(c));
            if !sidecar && matches!(seen.phase, ContainerPhase::Running { .. }) {
                runs = true;
                self.try_stop(input, &seen.name, end_by, StopReason::PodEnds, plan);
            }
        }
        if !runs {
            self.stop_sidecars(input, spec, plan);
        }
        let idle = input.busy.is_empty()
            && input.observed.containers.iter().all(|c| matches!(c.phase, ContainerPhase::Exited(_)));
        let deleted = input.gone || input.pod.metadata.deletion_timestamp.is_some();
        if idle && deleted {
            plan.actions.push(Action::Finish);
        }
    }

    fn node_grace(&self) -> Option<i64> {
        self.ended.as_ref().and_then(grace_of)
    }

    /// Stops the sidecars, the last one first, each after the one behind it has ended.
    fn stop_sidecars(&mut self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) {
        for container in spec.init_containers.iter().flatten().rev().filter(|c| is_sidecar(c)) {
            if let Some(seen) = find(input.observed, &container.name)
                && matches!(seen.phase, ContainerPhase::Running { .. })
            {
                let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT);
                let by = self.end_by.unwrap_or_else(|| later(input.now, SignedDuration::from_secs(grace)));
                return self.try_stop(input, &seen.name, by, StopReason::PodEnds, plan);
            }
        }
    }

    fn try_stop(
        &mut self,
        input: &Input<'_>,
        name: &Arc<str>,
        by: Timestamp,
        why: StopReason,
        plan: &mut Plan,
    ) {
        let memory = self.memory.entry(Arc::clone(name)).or_default();
        // A stop that was asked for is asked for again only when it is to be over a second earlier or more.
        let known = memory.stop_by.is_some_and(|known| later(by, SignedDuration::from_secs(1)) > known);
        if known && input.busy.contains(&Busy::Stop(Arc::clone(name))) {
            return;
        }
        memory.stop_by = Some(by);
        let grace = Duration::try_from(by.duration_since(input.now)).unwrap_or_default();
        let asked = input.pod.metadata.deletion_grace_period_seconds.unwrap_or(GRACE_DEFAULT);
        let asked = self.node_grace().map_or(asked, |node| node.min(asked));
        let least = GRACE_MIN.min(Duration::from_secs(asked.max(1).unsigned_abs()));
        plan.actions.push(Action::Stop { container: Arc::clone(name), grace: grace.max(least), why });
    }
}

fn grace_of(end: &NodeEnd) -> Option<i64> {
    end.grace_seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX))
}

struct Plan {
    actions: Vec<Action>,
    wake_at: Option<Timestamp>,
    backing_off: Vec<Arc<str>>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

#[derive(PartialEq)]
enum Init {
    Waits,
    Done,
    Failed,
}

#[derive(PartialEq)]
enum Progress {
    Waits,
    Runs,
    Over,
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

pub(crate) fn find<'a>(observed: &'a ObservedPod, name: &str) -> Option<&'a ObservedContainer> {
    observed.containers.iter().find(|container| *container.name == *name)
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether `container` is an init container that has to end before the next one starts.
fn is_regular_init(spec: &PodSpec, container: &Container) -> bool {
    !is_sidecar(container) && spec.init_containers.iter().flatten().any(|init| init.name == container.name)
}

/// Whether a running container counts as started: its startup probe has succeeded, or it has none.
fn started(input: &Input<'_>, container: &Container) -> bool {
    let name: Arc<str> = container.name.as_str().into();
    !input.busy.contains(&Busy::Start(Arc::clone(&name)))
        && (container.startup_probe.is_none()
            || input.probes.get(&(name, ProbeKind::Startup)).copied().unwrap_or(false))
}
