//! The loads of upstream's `scheduler_perf` (`test/integration/scheduler_perf`): the same nodes and pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// A load: nodes, pods that are there, pods that are measured.
pub(crate) struct Workload {
    /// As upstream calls it.
    pub(crate) name: &'static str,
    /// The values of the nodes' zone label, in turn; none when empty.
    pub(crate) zones: &'static [&'static str],
    /// The pods that are there before, as a share of the nodes in percent.
    pub(crate) before_percent: usize,
    /// What they are like.
    pub(crate) before: fn() -> Value,
    /// What the measured ones are like.
    pub(crate) measured: fn() -> Value,
    /// How many of them each node takes at most, as with anti-affinity.
    pub(crate) per_node_max: usize,
    /// What else happens meanwhile.
    pub(crate) churn: Churn,
    /// How many of the measured pods are a gang; 0 when each is on its own.
    pub(crate) gang: usize,
    /// The pods a second that upstream's own runs of this load must reach with 5,000 nodes (`threshold`).
    pub(crate) upstream: f64,
}

/// What happens beside the measured pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Churn {
    /// Nothing.
    None,
    /// Pods come that no node would take, five a second.
    Unschedulable,
    /// Each second a node, such a pod and a service come, and those of the second before go.
    Mixed,
}

impl Churn {
    /// How often upstream's load does it (`intervalMilliseconds`).
    pub(crate) fn interval(self) -> Duration {
        Duration::from_millis(if self == Self::Mixed { 1_000 } else { 200 })
    }

    /// After how many decisions it happens once, at the rate that upstream's threshold asks for.
    pub(crate) fn every(self, upstream: f64) -> usize {
        (upstream * self.interval().as_secs_f64()) as usize
    }
}

/// Where the pods of the DaemonSet go.
const DAEMON_NODE: &str = "scheduler-perf-00007";
/// The class of the pods that preempt others.
pub(crate) const PRIORITY_CLASS: (&str, i32) = ("high", 10);

/// All loads.
pub(crate) const WORKLOADS: [Workload; 12] = [
    Workload {
        name: "SchedulingBasic",
        zones: &[],
        before_percent: 20,
        before: plain,
        measured: plain,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 270.0,
    },
    Workload {
        name: "SchedulingPodAntiAffinity",
        zones: &[],
        before_percent: 20,
        before: anti_affinity,
        measured: anti_affinity,
        per_node_max: 1,
        churn: Churn::None,
        gang: 0,
        upstream: 60.0,
    },
    Workload {
        name: "SchedulingPodAffinity",
        zones: &["zone1"],
        before_percent: 100,
        before: affinity,
        measured: affinity,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 35.0,
    },
    Workload {
        name: "SchedulingPreferredPodAffinity",
        zones: &[],
        before_percent: 100,
        before: preferred_affinity,
        measured: preferred_affinity,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 90.0,
    },
    Workload {
        name: "TopologySpreading",
        zones: &["moon-1", "moon-2", "moon-3"],
        before_percent: 100,
        before: plain,
        measured: spreading,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 85.0,
    },
    Workload {
        name: "PreferredTopologySpreading",
        zones: &["moon-1", "moon-2", "moon-3"],
        before_percent: 100,
        before: plain,
        measured: preferred_spreading,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 125.0,
    },
    Workload {
        name: "SchedulingNodeAffinity",
        zones: &["zone1"],
        before_percent: 100,
        before: node_affinity,
        measured: node_affinity,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 220.0,
    },
    Workload {
        name: "SchedulingDaemonset",
        zones: &[],
        before_percent: 0,
        before: plain,
        measured: daemon,
        per_node_max: 20,
        churn: Churn::None,
        gang: 0,
        upstream: 390.0,
    },
    Workload {
        name: "PreemptionBasic",
        zones: &[],
        before_percent: 400,
        before: low_priority,
        measured: high_priority,
        per_node_max: 1,
        churn: Churn::None,
        gang: 0,
        upstream: 160.0,
    },
    Workload {
        name: "Unschedulable",
        zones: &[],
        before_percent: 2,
        before: plain,
        measured: plain,
        per_node_max: 20,
        churn: Churn::Unschedulable,
        gang: 0,
        upstream: 170.0,
    },
    Workload {
        name: "SchedulingWithMixedChurn",
        zones: &[],
        before_percent: 0,
        before: plain,
        measured: plain,
        per_node_max: 20,
        churn: Churn::Mixed,
        gang: 0,
        upstream: 265.0,
    },
    // Upstream has no threshold for gangs; it is compared with pods that are on their own.
    Workload {
        name: "Gang",
        zones: &[],
        before_percent: 20,
        before: plain,
        measured: plain,
        per_node_max: 20,
        churn: Churn::None,
        gang: 10,
        upstream: 270.0,
    },
];

/// The node with this number.
pub(crate) fn node(workload: &Workload, number: usize) -> Node {
    let name = format!("scheduler-perf-{number:05}");
    let mut labels = json!({"kubernetes.io/hostname": name});
    if let Some(zone) = workload.zones.get(number % workload.zones.len().max(1)) {
        labels["topology.kubernetes.io/zone"] = (*zone).into();
    }
    // As upstream's node with a name of its own, which takes all pods of the DaemonSet.
    let pods = if name == DAEMON_NODE { "90000" } else { "110" };
    let resources = json!({"pods": pods, "cpu": "4", "memory": "32Gi"});
    let node = json!({"metadata": {"name": name, "labels": labels},
        "status": {"capacity": resources, "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True"}]}});
    serde_json::from_value(node).expect("a node")
}

/// A pod of one of the kinds below, by name.
pub(crate) fn pod(kind: fn() -> Value, namespace: &str, name: &str) -> Pod {
    let mut pod = kind();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = namespace.into();
    serde_json::from_value(pod).expect("a pod")
}

fn with(labels: &Value, spec: &Value, cpu: &str) -> Value {
    let resources = json!({"cpu": cpu, "memory": "500Mi"});
    let mut pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{
        "name": "pause", "image": "registry.k8s.io/pause:3.10.2", "ports": [{"containerPort": 80}],
        "resources": {"limits": resources, "requests": resources}}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn plain() -> Value {
    with(&json!({}), &json!({}), "100m")
}

/// The pod of a churn (`pod-high-priority-large-cpu.yaml`).
pub(crate) fn too_large() -> Value {
    with(&json!({}), &json!({"priority": PRIORITY_CLASS.1, "priorityClassName": PRIORITY_CLASS.0}), "9")
}

/// The group of the measured pod with this number.
pub(crate) fn group(workload: &Workload, number: usize) -> Option<String> {
    number.checked_div(workload.gang).map(|group| format!("gang-{group}"))
}

fn term(color: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": key, "namespaces": ["sched-1", "sched-0"]})
}

fn anti_affinity() -> Value {
    let terms = [term("green", "kubernetes.io/hostname")];
    let spec =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}});
    with(&json!({"color": "green"}), &spec, "100m")
}

fn affinity() -> Value {
    let terms = [term("blue", "topology.kubernetes.io/zone")];
    let spec =
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}});
    with(&json!({"color": "blue"}), &spec, "100m")
}

fn preferred_affinity() -> Value {
    let terms = [json!({"weight": 1, "podAffinityTerm": term("red", "kubernetes.io/hostname")})];
    let spec =
        json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}});
    with(&json!({"color": "red"}), &spec, "100m")
}

fn spread(otherwise: &str) -> Value {
    let constraint = json!({"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": otherwise, "labelSelector": {"matchLabels": {"color": "blue"}}});
    with(&json!({"color": "blue"}), &json!({"topologySpreadConstraints": [constraint]}), "100m")
}

fn spreading() -> Value {
    spread("DoNotSchedule")
}

fn preferred_spreading() -> Value {
    spread("ScheduleAnyway")
}

fn on_nodes(term: &Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
}

fn node_affinity() -> Value {
    let zones = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone1", "zone2"]});
    with(&json!({}), &on_nodes(&json!({"matchExpressions": [zones]})), "100m")
}

fn daemon() -> Value {
    let name = json!({"key": "metadata.name", "operator": "In", "values": [DAEMON_NODE]});
    let mut pod = with(&json!({}), &on_nodes(&json!({"matchFields": [name]})), "0");
    pod["spec"]["containers"][0]["resources"] = json!({});
    pod
}

fn low_priority() -> Value {
    with(&json!({}), &json!({"terminationGracePeriodSeconds": 0}), "900m")
}

fn high_priority() -> Value {
    with(&json!({}), &json!({"priority": PRIORITY_CLASS.1, "priorityClassName": PRIORITY_CLASS.0}), "3")
}
