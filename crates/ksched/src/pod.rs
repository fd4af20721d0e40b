//! What the scheduler needs to know of a pod, read once when the pod is first seen.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use kcore::{Labels, Quantity, Stored};
use smallvec::SmallVec;

use crate::{
    affinity::{self, RequiredAffinity, Term},
    plugins::Features,
    pod_affinity::PodAffinity,
    resources::{self, DEFAULT_MEMORY_BYTES, DEFAULT_MILLI_CPU, Resources},
    spread::SpreadConstraint,
};

/// The scheduler that a pod without `spec.schedulerName` is for.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// A port of a container that takes a port of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The host's address; `0.0.0.0` stands for all of them.
    pub ip: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Whether the two can't be on one host: the same port and protocol, and addresses that meet.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        const ALL: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || &*self.ip == ALL || &*other.ip == ALL)
    }
}

/// The condition `PodScheduled`, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledCondition {
    /// `Unschedulable`, `SchedulingGated` or `SchedulerError`.
    pub reason: Box<str>,
    /// What people read.
    pub message: Box<str>,
}

/// A pod, prepared for scheduling. Made with [`PodInfo::new`] and not changed afterwards.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The uid, by which the pod is known to queue and snapshot.
    pub uid: Arc<str>,
    /// `spec.schedulerName`.
    pub scheduler_name: Arc<str>,
    /// The node that it is on; `None` while it waits for one.
    pub node_name: Option<Arc<str>>,
    /// `status.nominatedNodeName`.
    pub nominated_node: Option<Arc<str>>,
    /// `spec.priority`; 0 by default.
    pub priority: i32,
    /// What it takes on a node.
    pub requests: Resources,
    /// CPU for scores, in thousandths: containers without a request count as [`DEFAULT_MILLI_CPU`].
    pub score_milli_cpu: i64,
    /// Memory for scores, in bytes: containers without a request count as [`DEFAULT_MEMORY_BYTES`].
    pub score_memory: i64,
    /// The host's ports that it takes.
    pub host_ports: Vec<HostPort>,
    /// Its tolerations.
    pub tolerations: Vec<Toleration>,
    /// What it asks of its node's labels.
    pub required_affinity: Option<RequiredAffinity>,
    /// What it would like of its node's labels, with weights.
    pub preferred_affinity: Vec<(i64, Term)>,
    /// What it says about other pods.
    pub pod_affinity: Arc<PodAffinity>,
    /// How it wants to be spread.
    pub spread: Vec<SpreadConstraint>,
    /// The images of containers, init containers and image volumes, with their tags.
    pub images: SmallVec<[Arc<str>; 2]>,
    /// The number of its containers and init containers.
    pub containers: usize,
    /// What it needs of its node that not every node can do.
    pub features: Features,
    /// The names of its scheduling gates.
    pub gates: Vec<String>,
    /// The name of the `PodGroup` that it is of (`spec.schedulingGroup`).
    pub group: Option<Arc<str>>,
    /// Whether it takes more than its spec asks for, because a resize (KEP-1287) is not finished.
    pub resizing: bool,
    /// Whether it has ended and takes nothing any more.
    pub terminal: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its labels.
    pub labels: Labels,
    /// `PodScheduled` when it is `False`.
    pub condition: Option<ScheduledCondition>,
    /// `metadata.generation`; 0 when there is none.
    pub generation: i64,
    /// The object that it was read from, for plug-ins that need more. That of a pod on a node may be one from before it came there:
    /// later ones are read only when they differ in what is noted here.
    pub object: Arc<Pod>,
}

impl PodInfo {
    /// This pod once it is bound to a node, without reading it again, if the binding is all that has happened to it: a server in
    /// the same process, whose headers say enough, counts the binding as one change of the specification. What the pod's status
    /// says besides is not read; [`PodInfo::object`] stays the one from before the binding.
    pub(crate) fn bound(&self, node: &Arc<str>, stored: &Stored) -> Option<Self> {
        let header = stored.header();
        let only_bound = self.generation > 0
            && header.generation == self.generation + 1
            && self.node_name.is_none()
            && header.field("spec.nodeName") == Some(node)
            && matches!(header.field("status.phase"), Some("Pending" | "Running"))
            && header.deletion.is_none()
            && !self.deleting
            && !self.resizing
            && header.labels == self.labels;
        only_bound.then(|| Self {
            node_name: Some(Arc::clone(node)),
            generation: header.generation,
            nominated_node: None,
            condition: None,
            ..self.clone()
        })
    }

    /// Reads a pod.
    #[must_use]
    pub fn new(pod: impl Into<Arc<Pod>>) -> Self {
        let object: Arc<Pod> = pod.into();
        let text = |text: &Option<String>| Arc::<str>::from(text.as_deref().unwrap_or_default());
        let set =
            |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Arc::<str>::from);
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.as_ref();
        let requests = resources::pod_requests(&object, &[]);
        let defaults = [
            ("cpu", Quantity::from_milli(DEFAULT_MILLI_CPU)),
            ("memory", Quantity::from_value(DEFAULT_MEMORY_BYTES)),
        ];
        let for_scores = resources::pod_requests(&object, &defaults);
        let phase = status.and_then(|status| status.phase.as_deref());
        let meta = &object.metadata;
        let namespace = text(&meta.namespace);
        let labels: Labels = meta.labels.iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Self {
            pod_affinity: Arc::new(PodAffinity::read(&object, &namespace)),
            spread: SpreadConstraint::of(&object, &labels),
            namespace,
            name: text(&meta.name),
            uid: text(&meta.uid),
            scheduler_name: set(&spec.scheduler_name).unwrap_or_else(|| DEFAULT_SCHEDULER_NAME.into()),
            node_name: set(&spec.node_name),
            nominated_node: status.and_then(|status| set(&status.nominated_node_name)),
            priority: spec.priority.unwrap_or_default(),
            requests: Resources::of(requests.iter().map(|(name, quantity)| (name.as_str(), *quantity))),
            score_milli_cpu: for_scores.get("cpu").map_or(0, Quantity::milli),
            score_memory: for_scores.get("memory").map_or(0, Quantity::value),
            host_ports: host_ports(&spec),
            required_affinity: RequiredAffinity::read(&spec),
            preferred_affinity: affinity::preferred(&spec),
            images: images(&spec),
            containers: spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len),
            features: Features::needed(&spec),
            gates: spec.scheduling_gates.iter().flatten().map(|gate| gate.name.clone()).collect(),
            group: spec.scheduling_group.as_ref().and_then(|group| set(&group.pod_group_name)),
            tolerations: spec.tolerations.unwrap_or_default(),
            resizing: is_resizing(&object, &requests),
            terminal: matches!(phase, Some("Succeeded" | "Failed")),
            deleting: meta.deletion_timestamp.is_some(),
            labels,
            condition: condition(&object),
            generation: meta.generation.unwrap_or_default(),
            object: Arc::clone(&object),
        }
    }

    /// Whether one of the pod's tolerations tolerates the taint.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    }
}

/// Whether a toleration tolerates a taint (`Toleration.ToleratesTaint`). An empty key with `Exists` tolerates all, an
/// empty effect all effects; `Gt` and `Lt` compare the taint's value as a number (KEP-5471).
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let is_other = |wanted: &Option<String>, known: &str| {
        wanted.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != known)
    };
    if is_other(&toleration.effect, &taint.effect) || is_other(&toleration.key, &taint.key) {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    let numbers = || Some((value.parse::<i64>().ok()?, wanted.parse::<i64>().ok()?));
    match set(&toleration.operator).as_deref() {
        None | Some("Equal") => value == wanted,
        Some("Exists") => true,
        Some("Gt") => numbers().is_some_and(|(value, wanted)| value > wanted),
        Some("Lt") => numbers().is_some_and(|(value, wanted)| value < wanted),
        Some(_) => false,
    }
}

fn is_resizing(pod: &Pod, requests: &BTreeMap<String, Quantity>) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut statuses =
        statuses.filter(|status| status.resources.is_some() || status.allocated_resources.is_some());
    if statuses.next().is_none() {
        return false;
    }
    let spec_only = Pod { spec: pod.spec.clone(), ..Pod::default() };
    resources::pod_requests(&spec_only, &[]) != *requests
}

fn host_ports(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<HostPort> {
    // Init containers that keep running take their ports like the others; those that end do not (upstream's
    // `GetHostPorts`).
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let or = |text: &Option<String>, default: &str| {
                text.as_deref().filter(|text| !text.is_empty()).unwrap_or(default).into()
            };
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                ip: or(&port.host_ip, "0.0.0.0"),
                protocol: or(&port.protocol, "TCP"),
                port: number,
            })
        })
        .collect()
}

fn images(spec: &k8s_openapi::api::core::v1::PodSpec) -> SmallVec<[Arc<str>; 2]> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let of_containers = containers.map(|container| container.image.as_deref().unwrap_or_default());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    let of_volumes = volumes.map(|image| image.reference.as_deref().unwrap_or_default());
    of_containers.chain(of_volumes).map(normalized_image).collect()
}

/// An image's name with its tag: `latest` unless it has one.
#[must_use]
pub fn normalized_image(name: &str) -> Arc<str> {
    if name.rfind(':') <= name.rfind('/') { format!("{name}:latest").into() } else { name.into() }
}

fn condition(pod: &Pod) -> Option<ScheduledCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let known = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    (known.status == "False").then(|| ScheduledCondition {
        reason: known.reason.as_deref().unwrap_or_default().into(),
        message: known.message.as_deref().unwrap_or_default().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as a server in the same process gives it.
    fn header(generation: i64, node: &str, phase: &str) -> kcore::Header {
        let mut header = kcore::Header::of(&serde_json::json!({"metadata": {
            "namespace": "default", "name": "p", "uid": "uid-p", "generation": generation, "labels": {"app": "web"}}}));
        header.fields = [("spec.nodeName", node), ("status.phase", phase)]
            .map(|(path, value)| (path.into(), value.into()))
            .into();
        header
    }

    #[test]
    fn a_pod_that_was_only_bound_is_not_read_again() {
        let mut waits = crate::build::pod("p").request("cpu", "1").info();
        waits.labels = [("app", "web")].into_iter().collect();
        waits.generation = 3;
        let node: Arc<str> = "a".into();
        let deleted =
            kcore::Header { deletion: Some("2026-01-01T00:00:00Z".into()), ..header(4, "a", "Pending") };
        let labelled =
            kcore::Header { labels: [("app", "db")].into_iter().collect(), ..header(4, "a", "Pending") };
        let cases = [
            ("bound", header(4, "a", "Pending"), true),
            ("the node was quick", header(4, "a", "Running"), true),
            ("somebody else changed it before", header(5, "a", "Pending"), false),
            ("not bound", header(4, "", "Pending"), false),
            ("bound elsewhere", header(4, "b", "Pending"), false),
            ("ended", header(4, "a", "Succeeded"), false),
            ("goes", deleted, false),
            ("another label", labelled, false),
            (
                "a server that says less",
                kcore::Header { fields: Box::default(), ..header(4, "a", "") },
                false,
            ),
        ];
        for (what, header, expected) in cases {
            let bound = waits.bound(&node, &Stored::new(header, 9, Vec::new().into()));
            assert_eq!(bound.is_some(), expected, "{what}");
            if let Some(bound) = bound {
                assert_eq!((bound.node_name.as_deref(), bound.generation), (Some("a"), 4));
                assert_eq!(bound.requests, waits.requests);
            }
        }
        waits.generation = 0;
        let stored = Stored::new(header(1, "a", "Pending"), 9, Vec::new().into());
        assert!(waits.bound(&node, &stored).is_none(), "nothing is counted");
    }
}
