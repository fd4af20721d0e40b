//! The pod's status as a whole: phase, addresses, conditions.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ContainerStatus, HostIP, PodCondition, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use super::{Input, NodeEnd, PodMachine, containers::Role, find, is_sidecar, phase::phase, restart_all};
use crate::runtime::ContainerPhase;

/// The conditions that are the node's to say. All others are left as the API has them.
const OWNED: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// These are there only while they are true (KEP-1287).
pub(crate) const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn is_owned(type_: &str) -> bool {
    OWNED.contains(&type_) || RESIZE.contains(&type_) || type_ == restart_all::CONDITION
}

/// Others say this one, too: it is added when the node ends the pod.
const DISRUPTION: &str = "DisruptionTarget";

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { status: false, reason: Some(reason), message }
    }
}

impl PodMachine {
    /// What to tell the API.
    pub(super) fn status(&self, input: &Input<'_>, spec: &PodSpec, ending: bool) -> PodStatus {
        let old = self.last.as_ref().or(input.pod.status.as_ref());
        if let Some(end) = self.ended.as_ref().filter(|end| end.is_refusal) {
            return refused(input, spec, old, end);
        }
        let list = |containers: &[k8s_openapi::api::core::v1::Container], role| -> Vec<ContainerStatus> {
            containers.iter().map(|c| self.container_status(input, spec, c, role, ending)).collect()
        };
        let main = list(&spec.containers, Role::Main);
        let init = list(spec.init_containers.as_deref().unwrap_or_default(), Role::Init);
        let ephemeral: Vec<_> = spec
            .ephemeral_containers
            .iter()
            .flatten()
            .map(|c| k8s_openapi::api::core::v1::Container {
                name: c.name.clone(),
                image: c.image.clone(),
                ..Default::default()
            })
            .map(|c| self.container_status(input, spec, &c, Role::Ephemeral, ending))
            .collect();
        let mut status =
            PodStatus { observed_generation: input.pod.metadata.generation, ..PodStatus::default() };
        self.set_phase(input, spec, ending, old, &init, &main, &mut status);
        status.start_time = old.and_then(|old| old.start_time.clone()).or(Some(Time(input.now)));
        status.qos_class = old.and_then(|old| old.qos_class.clone()).or_else(|| Some(qos(spec).to_owned()));
        status.nominated_node_name = old.and_then(|old| old.nominated_node_name.clone());
        set_addresses(input, old, &mut status);
        status.conditions = Some(self.conditions(input, spec, old, &init, &main, &status));
        status.container_statuses = Some(main);
        status.init_container_statuses = (!init.is_empty()).then_some(init);
        status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
        status
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one decision, used once")]
    fn set_phase(
        &self,
        input: &Input<'_>,
        spec: &PodSpec,
        ending: bool,
        old: Option<&PodStatus>,
        init: &[ContainerStatus],
        main: &[ContainerStatus],
        status: &mut PodStatus,
    ) {
        let known = |status: Option<&PodStatus>| {
            let phase = status?.phase.clone()?;
            matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase)
        };
        let stopped = input
            .observed
            .containers
            .iter()
            .all(|container| matches!(container.phase, ContainerPhase::Exited(_)));
        let computed = phase(spec, init, main, ending && stopped, self.initialized);
        // A phase that is final stays, whatever the containers show later.
        let last = known(old).or_else(|| known(input.pod.status.as_ref()));
        if let Some(last) = last {
            status.phase = Some(last);
        } else if let (true, Some((reason, message))) = (stopped, self.failure()) {
            // While a container runs, what the pod holds of the node is not free, and the phase says so.
            status.phase = Some("Failed".to_owned());
            status.reason = Some(reason.to_owned());
            status.message = Some(message.to_owned());
            return;
        } else {
            status.phase = Some(computed.to_owned());
        }
        if let Some(old) = old.filter(|old| old.phase == status.phase) {
            status.reason = old.reason.clone();
            status.message = old.message.clone();
        }
    }

    /// Why the pod fails whatever its containers' ends were.
    fn failure(&self) -> Option<(&str, &str)> {
        let deadline = "Pod was active on the node longer than the specified deadline";
        let by_node = self.ended.as_ref().map(|end| (&*end.reason, &*end.message));
        by_node.or_else(|| self.deadline_exceeded.then_some(("DeadlineExceeded", deadline)))
    }

    fn conditions(
        &self,
        input: &Input<'_>,
        spec: &PodSpec,
        old: Option<&PodStatus>,
        init: &[ContainerStatus],
        main: &[ContainerStatus],
        status: &PodStatus,
    ) -> Vec<PodCondition> {
        let phase = status.phase.as_deref().unwrap_or_default();
        let foreign = input.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let mut conditions: Vec<PodCondition> =
            foreign.into_iter().flatten().filter(|c| !is_owned(&c.type_)).cloned().collect();
        let containers_ready = containers_ready(spec, init, main, phase);
        let ready = if containers_ready.status {
            gates_ready(spec, &conditions)
        } else {
            Verdict {
                status: false,
                reason: containers_ready.reason,
                message: containers_ready.message.clone(),
            }
        };
        // A pod that has ended for good starts nothing any more.
        let ready_to_start = input.observed.addresses.is_some() && !matches!(phase, "Succeeded" | "Failed");
        let sandbox = Verdict { status: ready_to_start, reason: None, message: None };
        let mut begun = initialized(input, spec, init, phase);
        let mut known = old.iter().flat_map(|old| old.conditions.iter().flatten());
        let was_begun = known.any(|known| known.type_ == OWNED[1] && known.status == "True");
        if restart_all::can_happen(spec) && was_begun && !begun.status {
            // Init containers that run once more don't take that back.
            begun = Verdict::yes();
        }
        let all = [sandbox, begun, ready, containers_ready, Verdict::yes()];
        for (type_, verdict) in OWNED.into_iter().zip(all) {
            conditions.push(condition(input, old, type_, verdict));
        }
        if restart_all::can_happen(spec) {
            let verdict = match (phase, self.restart_all.goes_on) {
                ("Succeeded", _) => Verdict::no("PodCompleted", None),
                ("Failed", _) => Verdict::no("PodFailed", None),
                (_, false) => Verdict { status: false, reason: None, message: None },
                (_, true) => Verdict {
                    status: true,
                    reason: Some("RestartAllContainersStarted"),
                    message: Some("container exited with restart policy rule".to_owned()),
                },
            };
            conditions.push(condition(input, old, restart_all::CONDITION, verdict));
        }
        if !matches!(phase, "Succeeded" | "Failed") {
            if let Some(pending) = &self.pending {
                let (reason, message) = pending.words();
                let verdict =
                    Verdict { status: true, reason: Some(reason), message: Some(message.to_owned()) };
                conditions.push(condition(input, old, RESIZE[0], verdict));
            }
            if let Some(wrong) = self.resize_in_progress(spec) {
                let (reason, message) = (wrong.map(|_| "Error"), wrong.map(str::to_owned));
                conditions.push(condition(input, old, RESIZE[1], Verdict { status: true, reason, message }));
            }
        }
        if let Some(end) = self.ended.as_ref().filter(|end| end.is_disruption && phase == "Failed") {
            conditions.retain(|condition| condition.type_ != DISRUPTION);
            let message = Some(end.message.clone());
            let verdict = Verdict { status: true, reason: Some("TerminationByKubelet"), message };
            conditions.push(condition(input, old, DISRUPTION, verdict));
        }
        conditions
    }
}

/// The status of a pod that the node does not take: nothing was begun.
fn refused(input: &Input<'_>, spec: &PodSpec, old: Option<&PodStatus>, end: &NodeEnd) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(end.reason.clone()),
        message: Some(end.message.clone()),
        qos_class: old.and_then(|old| old.qos_class.clone()).or_else(|| Some(qos(spec).to_owned())),
        start_time: old.and_then(|old| old.start_time.clone()).or(Some(Time(input.now))),
        conditions: old.and_then(|old| old.conditions.clone()),
        observed_generation: input.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// Fills in the time of the last change: that of the old condition while the status is the same.
fn condition(input: &Input<'_>, old: Option<&PodStatus>, type_: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let before = old
        .and_then(|old| old.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_))
        .filter(|before| before.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_probe_time: None,
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(input.now))),
        observed_generation: input.pod.metadata.generation,
    }
}

fn named(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
}

fn containers_ready(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    phase: &str,
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", None),
        "Failed" => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let unready: Vec<&str> = sidecars
        .filter_map(|container| init.iter().find(|status| status.name == container.name))
        .chain(main)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    match named("unready", &unready) {
        Some(message) => Verdict::no("ContainersNotReady", Some(message)),
        None => Verdict::yes(),
    }
}

/// `spec.readinessGates`: each names a condition that somebody else sets (KEP-580).
fn gates_ready(spec: &PodSpec, conditions: &[PodCondition]) -> Verdict {
    let mut messages = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        match conditions.iter().find(|condition| condition.type_ == gate.condition_type) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )),
            Some(condition) if condition.status != "True" => messages.push(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, condition.status
            )),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}

fn initialized(input: &Input<'_>, spec: &PodSpec, init: &[ContainerStatus], phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { status: true, reason: Some("PodCompleted"), message: None };
    }
    if spec.containers.iter().any(|container| find(input.observed, &container.name).is_some()) {
        return Verdict::yes();
    }
    let done = |status: &ContainerStatus| {
        let sidecar = spec.init_containers.iter().flatten().any(|c| c.name == status.name && is_sidecar(c));
        if sidecar { status.started == Some(true) } else { status.ready }
    };
    let incomplete: Vec<&str> = init.iter().filter(|s| !done(s)).map(|status| status.name.as_str()).collect();
    match named("incomplete", &incomplete) {
        Some(message) => Verdict::no("ContainersNotInitialized", Some(message)),
        None => Verdict::yes(),
    }
}

fn set_addresses(input: &Input<'_>, old: Option<&PodStatus>, status: &mut PodStatus) {
    if let Some(first) = input.host_ips.first() {
        status.host_ip = Some(first.to_string());
        status.host_ips = Some(input.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect());
    }
    match &input.observed.addresses {
        Some(addresses) => {
            status.pod_ip = addresses.first().map(ToString::to_string);
            let ips = addresses.iter().map(|ip| PodIP { ip: ip.to_string() }).collect::<Vec<_>>();
            status.pod_ips = (!ips.is_empty()).then_some(ips);
        }
        None => {
            status.pod_ip = old.and_then(|old| old.pod_ip.clone());
            status.pod_ips = old.and_then(|old| old.pod_ips.clone());
        }
    }
}

/// The quality-of-service class, for pods whose API server did not set it: from requests and limits of cpu and memory.
pub(crate) fn qos(spec: &PodSpec) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        let empty = BTreeMap::new();
        let requests = resources.and_then(|r| r.requests.as_ref()).unwrap_or(&empty);
        let limits = resources.and_then(|r| r.limits.as_ref()).unwrap_or(&empty);
        for name in ["cpu", "memory"] {
            let amount = |list: &BTreeMap<String, Quantity>| {
                list.get(name)
                    .and_then(|quantity| kcore::Quantity::parse(&quantity.0).ok())
                    .map(|q| q.milli())
            };
            let (request, limit) = (amount(requests), amount(limits));
            any |= request.is_some_and(|amount| amount > 0) || limit.is_some_and(|amount| amount > 0);
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
