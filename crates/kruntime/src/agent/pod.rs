//! The work on one pod: look, decide, act, tell.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::poll;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use kreconcile::{EventType, Regarding};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Inner, Node, act::Outcome};
use crate::{
    machine::{Action, Busy, Input, NodeEnd, PodMachine, Room, Step, find},
    probe,
    runtime::{ContainerPhase, ObservedContainer, ObservedPod, PodUid, ProbeKind},
};

/// How many steps one piece of work may take before it lets others go first.
const STEPS_MAX: usize = 16;
/// How often a pod that uses files of ConfigMaps, Secrets and tokens is looked at again (upstream's `syncFrequency`).
pub(crate) const REFRESH: Duration = Duration::from_secs(60);

/// Whether a pod with this status holds nothing of its node any more.
pub(super) fn is_final(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// A pod that an agent looks after.
#[derive(Debug)]
pub(crate) struct PodEntry {
    pub(crate) uid: PodUid,
    pub(crate) node: Arc<Node>,
    state: Mutex<State>,
    /// Whether it comes from a file of the node: the API has a mirror of it at most.
    pub(crate) is_static: bool,
    /// Ends everything that runs on the pod's behalf.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    pod: Arc<Pod>,
    /// What the API has of a static pod.
    mirror: Option<Arc<Pod>>,
    gone: bool,
    machine: PodMachine,
    busy: BTreeSet<Busy>,
    probes: BTreeMap<(Arc<str>, ProbeKind), bool>,
    /// The probers that run, with the id of the container they are for.
    probers: HashMap<(Arc<str>, ProbeKind), (String, AbortOnDropHandle<()>)>,
    written: Option<PodStatus>,
    /// The containers whose back-off was told about, with their number of starts.
    told: BTreeMap<Arc<str>, u32>,
    /// The containers whose image could not be fetched just now.
    without_image: BTreeSet<Arc<str>>,
}

impl PodEntry {
    pub(crate) fn new(uid: PodUid, node: Arc<Node>, pod: Arc<Pod>, machine: PodMachine) -> Self {
        let stop = node.stop.child_token();
        let state = State {
            written: pod.status.clone(),
            pod,
            mirror: None,
            gone: false,
            machine,
            busy: BTreeSet::new(),
            probes: BTreeMap::new(),
            probers: HashMap::new(),
            told: BTreeMap::new(),
            without_image: BTreeSet::new(),
        };
        Self { uid, node, is_static: false, state: Mutex::new(state), stop }
    }

    /// A pod from a file.
    pub(crate) fn new_static(uid: PodUid, node: Arc<Node>, pod: Arc<Pod>, machine: PodMachine) -> Self {
        Self { is_static: true, ..Self::new(uid, node, pod, machine) }
    }

    /// Takes the mirror as it is now. Says whether it is another one, which knows nothing of the pod yet.
    pub(crate) fn set_mirror(&self, mirror: Arc<Pod>) -> bool {
        let mut state = self.state();
        let is_new = state.mirror.as_ref().is_none_or(|known| known.metadata.uid != mirror.metadata.uid);
        if is_new {
            state.written = mirror.status.clone();
        }
        state.mirror = Some(mirror);
        is_new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.state().pod)
    }

    /// Takes a newer state of the pod. Says whether it asks for work: the agent's own writes don't.
    pub(crate) fn set_pod(&self, pod: Arc<Pod>) -> bool {
        let mut state = self.state();
        let old = std::mem::replace(&mut state.pod, pod);
        let new = &state.pod;
        let foreign = |pod: &Pod| -> Vec<(String, String)> {
            let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            let wanted = |type_: &str| gates.into_iter().flatten().any(|gate| gate.condition_type == type_);
            let conditions = conditions.into_iter().flatten().filter(|c| wanted(&c.type_));
            conditions.map(|c| (c.type_.clone(), c.status.clone())).collect()
        };
        old.spec != new.spec
            || old.metadata.generation != new.metadata.generation
            || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
            || old.metadata.labels != new.metadata.labels
            || old.metadata.annotations != new.metadata.annotations
            || foreign(&old) != foreign(new)
            || new.status.as_ref().and_then(|status| status.phase.as_ref())
                != state.written.as_ref().and_then(|status| status.phase.as_ref())
    }

    /// The node ends the pod by itself; see [`PodMachine::end`].
    pub(crate) fn end(&self, end: NodeEnd) {
        self.state().machine.end(end);
    }

    /// What a container was given, or, with `is_start`, is to be started with.
    pub(super) fn resources_of(&self, container: &str, is_start: bool) -> Option<ResourceRequirements> {
        self.state().machine.resources_of(container, is_start)
    }

    /// Whether the pod wants what it was not given, and whether that was known.
    pub(super) fn wants_resize(&self) -> (bool, bool) {
        let mut state = self.state();
        let State { pod, machine, .. } = &mut *state;
        let was_pending = machine.is_resize_pending();
        (machine.wants_resize(pod), was_pending)
    }

    /// Gives the pod what it wants, if there is room. Says whether it was given something else, and whether it still waits.
    pub(super) fn give(&self, room: &Room) -> (bool, bool) {
        let mut state = self.state();
        let State { pod, machine, .. } = &mut *state;
        let is_changed = machine.consider_resize(pod, self.is_static, room);
        (is_changed, machine.is_resize_pending())
    }

    /// What the pod was given of its node; nothing when it has ended.
    pub(super) fn allocated(&self) -> [i64; 2] {
        let state = self.state();
        let spec = state.pod.spec.as_ref().filter(|_| !state.written.as_ref().is_some_and(is_final));
        spec.map_or([0; 2], |spec| state.machine.allocated(spec))
    }

    pub(super) fn priority(&self) -> i32 {
        self.state().pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
    }

    /// Whether something is being done to it.
    pub(super) fn is_busy(&self) -> bool {
        !self.state().busy.is_empty()
    }

    pub(crate) fn is_ended_by_node(&self) -> bool {
        self.state().machine.is_ended_by_node()
    }

    pub(crate) fn set_gone(&self) {
        self.state().gone = true;
    }

    /// Stops all work on the pod.
    pub(crate) fn abandon(&self) {
        self.stop.cancel();
        self.state().probers.clear();
    }

    pub(crate) fn set_probe(&self, container: &Arc<str>, kind: ProbeKind, result: bool) -> bool {
        self.state().probes.insert((Arc::clone(container), kind), result) != Some(result)
    }

    fn apply(&self, busy: &Busy, outcome: Outcome, inner: &Inner) {
        let now = inner.clock.now();
        let mut state = self.state();
        state.busy.remove(busy);
        match outcome {
            Outcome::Done => {}
            Outcome::PodRefused => state.machine.pod_refused(now),
            Outcome::Resized { container, outcome } => state.machine.resized(&container, outcome, now),
            Outcome::StartRefused { container, reason, message } => {
                if reason == "ErrImagePull" {
                    state.without_image.insert(Arc::clone(&container));
                }
                state.machine.start_refused(&container, reason, message, now);
            }
        }
    }

    fn step(&self, observed: &ObservedPod, inner: &Inner) -> Step {
        let mut state = self.state();
        let State { pod, gone, machine, busy, probes, .. } = &mut *state;
        machine.step(&Input {
            pod,
            gone: *gone,
            observed,
            probes,
            busy,
            host_ips: &self.node.config.addresses,
            scheme: &self.node.scheme,
            now: inner.clock.now(),
        })
    }
}

impl Inner {
    /// One of the workers.
    pub(super) async fn work(self: &Arc<Self>) {
        while let Some(uid) = self.queue.take().await {
            if let Some(entry) = self.entry(&uid) {
                let stop = entry.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.sync(&entry) => {}
                }
            }
            self.queue.done(&uid);
        }
    }

    async fn sync(self: &Arc<Self>, entry: &Arc<PodEntry>) {
        self.consider_resize(entry);
        for _ in 0..STEPS_MAX {
            let observed = entry.node.config.runtime.observe(&entry.uid);
            let step = entry.step(&observed, self);
            let mut progress = false;
            for action in &step.actions {
                if *action == Action::Finish {
                    return self.finish(entry, &step.status).await;
                }
                progress |= self.begin(entry, action).await;
            }
            if progress {
                continue;
            }
            self.sync_probers(entry, &observed);
            self.tell_back_off(entry, &step);
            if let Some(at) = step.wake_at {
                let wait = Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default();
                self.queue.add_after(entry.uid.clone(), wait);
            }
            if self.is_over_here(entry, &step.status, &observed) {
                // Others may get what the pod has claimed as soon as it says that it has ended.
                if !self.give_back_claims(entry).await {
                    return;
                }
                self.release_shares(entry);
                // What its volumes hold is free from here on, also for the node that had to end the pod because its disk is full.
                if let Some(volumes) = &entry.node.volumes
                    && let Err(error) = volumes.tear_down(&entry.uid).await
                {
                    tracing::warn!(pod = %entry.uid, %error, "the volumes of a pod that has ended are left");
                    self.queue.add_rate_limited(entry.uid.clone());
                }
            } else {
                self.refresh_volumes(entry).await;
            }
            return self.write(entry, &step.status).await;
        }
        self.queue.add(entry.uid.clone());
    }

    /// Begins an action. Says whether it is done already; otherwise it goes on beside the workers, and the pod is looked
    /// at again when it is done.
    async fn begin(self: &Arc<Self>, entry: &Arc<PodEntry>, action: &Action) -> bool {
        let busy = match action {
            Action::RunPod | Action::Finish => Busy::Pod,
            Action::Start { container, .. } => Busy::Start(Arc::clone(container)),
            Action::Stop { container, .. } => Busy::Stop(Arc::clone(container)),
            Action::Resize { container } => Busy::Resize(Arc::clone(container)),
        };
        entry.state().busy.insert(busy.clone());
        let mut acting = Box::pin(self.clone().act(Arc::clone(entry), action.clone()));
        if let std::task::Poll::Ready(outcome) = poll!(&mut acting) {
            let refused = !matches!(outcome, Outcome::Done | Outcome::Resized { outcome: Ok(_), .. });
            entry.apply(&busy, outcome, self);
            return !refused || !matches!(action, Action::RunPod | Action::Resize { .. });
        }
        let (inner, entry) = (Arc::downgrade(self), Arc::clone(entry));
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                () = entry.stop.cancelled() => return,
                outcome = acting => outcome,
            };
            if let Some(inner) = inner.upgrade() {
                entry.apply(&busy, outcome, &inner);
                inner.queue.add(entry.uid.clone());
            }
        });
        false
    }

    /// Nothing runs any more: the last words, then the pod is taken away.
    async fn finish(self: &Arc<Self>, entry: &Arc<PodEntry>, status: &PodStatus) {
        entry.state().probers.clear();
        if !self.give_back_claims(entry).await {
            return;
        }
        let gone = entry.state().gone;
        if !gone {
            self.write(entry, status).await;
        }
        if let Err(error) = entry.node.config.runtime.remove_pod(&entry.uid).await {
            tracing::warn!(pod = %entry.uid, %error, "the pod's sandbox is not removed yet");
            self.queue.add_rate_limited(entry.uid.clone());
            return;
        }
        if let Some(volumes) = &entry.node.volumes
            && let Err(error) = volumes.tear_down(&entry.uid).await
        {
            tracing::warn!(pod = %entry.uid, %error, "the pod's volumes are not given back yet");
            self.queue.add_rate_limited(entry.uid.clone());
            return;
        }
        self.release_shares(entry);
        if gone || self.delete(&entry.pod()).await {
            entry.abandon();
            self.entries().remove(&entry.uid);
            self.retry_resizes(&entry.node);
            if entry.is_static {
                self.statics.ended(&entry.uid);
            }
            self.queue.forget(&entry.uid);
        } else {
            self.queue.add_rate_limited(entry.uid.clone());
        }
    }

    async fn write(&self, entry: &Arc<PodEntry>, status: &PodStatus) {
        let (pod, old) = {
            let state = entry.state();
            if state.gone || state.written.as_ref() == Some(status) {
                return;
            }
            let shown = if entry.is_static { state.mirror.as_ref() } else { Some(&state.pod) };
            // Nobody is told of a static pod before it has a mirror.
            let Some(shown) = shown else { return };
            (Arc::clone(shown), state.written.clone())
        };
        match self.patch_status(&pod, old.as_ref(), status).await {
            Ok(()) => {
                entry.state().written = Some(status.clone());
                self.queue.forget(&entry.uid);
                if is_final(status) {
                    self.retry_resizes(&entry.node);
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) => {
                tracing::debug!(pod = %entry.uid, %error, "the status is not written yet");
                self.queue.add_rate_limited(entry.uid.clone());
            }
        }
    }

    /// Whether the pod has ended for good, or was ended by the node, and nothing of it runs.
    fn is_over_here(&self, entry: &PodEntry, status: &PodStatus, observed: &ObservedPod) -> bool {
        let runs = |container: &ObservedContainer| matches!(container.phase, ContainerPhase::Running { .. });
        let has_ended = match status.phase.as_deref() {
            // Without plug-ins and managers it has nothing that others might wait for.
            Some("Succeeded" | "Failed")
                if entry.node.takes_plugins() || entry.node.config.managers.is_some() =>
            {
                true
            }
            Some("Failed") => entry.is_ended_by_node(),
            _ => false,
        };
        has_ended && !observed.containers.iter().any(runs)
    }

    async fn refresh_volumes(&self, entry: &Arc<PodEntry>) {
        let Some(volumes) = &entry.node.volumes else { return };
        let pod = entry.pod();
        if !volumes.is_live(&pod) || entry.node.config.runtime.observe(&entry.uid).addresses.is_none() {
            return;
        }
        let now = self.clock.now();
        if volumes.needs_refresh(&entry.uid, now) {
            match volumes.refresh(&pod, &entry.node.config, &self.sources, now).await {
                Ok(notes) => self.tell_notes(entry, notes),
                Err(error) => {
                    tracing::debug!(pod = %entry.uid, %error, "the pod's volumes are not fresh");
                    self.queue.add_rate_limited(entry.uid.clone());
                }
            }
        }
        self.queue.add_after(entry.uid.clone(), REFRESH);
    }

    /// Runs a prober for each probe of each container that runs, and no others.
    fn sync_probers(self: &Arc<Self>, entry: &Arc<PodEntry>, observed: &ObservedPod) {
        let pod = entry.pod();
        let Some(spec) = &pod.spec else { return };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let probed = containers.filter(|c| {
            c.startup_probe.is_some() || c.liveness_probe.is_some() || c.readiness_probe.is_some()
        });
        let mut state = entry.state();
        for container in probed {
            let running = find(observed, &container.name)
                .filter(|seen| matches!(seen.phase, ContainerPhase::Running { .. }))
                .filter(|seen| !state.busy.contains(&Busy::Start(Arc::clone(&seen.name))));
            self.sync_prober(entry, &mut state, container, running.map(|seen| seen.id.as_str()));
        }
    }

    fn sync_prober(
        self: &Arc<Self>,
        entry: &Arc<PodEntry>,
        state: &mut State,
        container: &Container,
        id: Option<&str>,
    ) {
        let name: Arc<str> = container.name.as_str().into();
        let kinds = [
            (ProbeKind::Startup, &container.startup_probe),
            (ProbeKind::Liveness, &container.liveness_probe),
            (ProbeKind::Readiness, &container.readiness_probe),
        ];
        for (kind, wanted) in kinds {
            let Some(wanted) = wanted else { continue };
            let key = (Arc::clone(&name), kind);
            if state.probers.get(&key).is_some_and(|(known, _)| id != Some(known.as_str())) {
                state.probers.remove(&key);
                state.probes.remove(&key);
            }
            // The other two wait until the startup probe has succeeded.
            let started = container.startup_probe.is_none()
                || kind == ProbeKind::Startup
                || state.probes.get(&(Arc::clone(&name), ProbeKind::Startup)) == Some(&true);
            if let Some(id) = id
                && started
                && !state.probers.contains_key(&key)
            {
                let run = probe::run(
                    Arc::downgrade(self),
                    Arc::downgrade(entry),
                    container.clone(),
                    kind,
                    wanted.clone(),
                );
                let task = AbortOnDropHandle::new(self.tasks.spawn(run));
                state.probers.insert(key, (id.to_owned(), task));
            }
        }
    }

    /// Tells of images that are waited for longer each time, once after each try.
    fn tell_image_back_off(&self, entry: &PodEntry, step: &Step) {
        let refused = std::mem::take(&mut entry.state().without_image);
        let lists = [&step.status.container_statuses, &step.status.init_container_statuses];
        for status in
            lists.into_iter().flatten().flatten().filter(|status| refused.contains(status.name.as_str()))
        {
            let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
            let waiting = waiting.filter(|waiting| waiting.reason.as_deref() == Some("ImagePullBackOff"));
            if let Some(message) = waiting.and_then(|waiting| waiting.message.clone()) {
                self.event(entry, Some(&status.name), EventType::Normal, "BackOff", message);
                let message = "Error: ImagePullBackOff".to_owned();
                self.event(entry, Some(&status.name), EventType::Warning, "Failed", message);
            }
        }
    }

    fn tell_back_off(&self, entry: &PodEntry, step: &Step) {
        self.tell_image_back_off(entry, step);
        for name in &step.backing_off {
            let starts = {
                let mut state = entry.state();
                let statuses = [&step.status.container_statuses, &step.status.init_container_statuses];
                let known = statuses.into_iter().flatten().flatten().find(|status| *status.name == **name);
                let starts = known.map_or(0, |status| status.restart_count.unsigned_abs());
                (state.told.insert(Arc::clone(name), starts) != Some(starts)).then_some(starts)
            };
            if starts.is_some() {
                let pod = entry.pod();
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    pod.metadata.name.as_deref().unwrap_or_default(),
                    pod.metadata.namespace.as_deref().unwrap_or_default(),
                    entry.uid,
                );
                self.event(entry, Some(name), EventType::Warning, "BackOff", message);
            }
        }
    }

    pub(crate) fn event(
        &self,
        entry: &PodEntry,
        container: Option<&str>,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        if !entry.node.config.events {
            return;
        }
        let pod = entry.pod();
        let spec = pod.spec.as_ref();
        let is_init = |name: &str| {
            spec.is_some_and(|spec| spec.init_containers.iter().flatten().any(|init| init.name == name))
        };
        let field_path = container.map_or_else(String::new, |name| {
            let list = if is_init(name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let about = Regarding {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: entry.uid.to_string(),
            resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
            field_path,
        };
        self.recorder.record(&about, kind, reason, message);
    }
}
