//! What pods use.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, Pod, PodAffinityTerm, PodSpec, ResourceRequirements,
        ScopedResourceSelectorRequirement,
    },
    apimachinery::pkg::api::resource,
};
use kcore::Quantity;

use super::{Amounts, add, amounts, scopes::names_match};

/// The names that every pod may be charged under.
const POD_RESOURCES: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const HUGE_PAGES: &str = "hugepages-";
const REQUESTS: &str = "requests.";
/// Devices that are asked for as if they were a resource (KEP-5004).
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether pods are charged under this name.
pub(super) fn is_pod_resource(name: &str) -> bool {
    let asked = name.strip_prefix(REQUESTS);
    POD_RESOURCES.contains(&name)
        || name.starts_with(HUGE_PAGES)
        || asked.is_some_and(|asked| {
            asked.starts_with(HUGE_PAGES) || asked.starts_with(DEVICE_CLASS) || !is_native(name)
        })
}

/// Whether a pod still uses what it asks for: not once it has ended, nor when it should long have gone, as on a node that
/// is lost (upstream's `QuotaV1Pod`).
#[must_use]
pub fn is_charged(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return false;
    }
    let deletion = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let (Some(deletion), Some(grace)) = (deletion, pod.metadata.deletion_grace_period_seconds) else {
        return true;
    };
    deletion.checked_add(SignedDuration::from_secs(grace)).map_or(true, |end| now <= end)
}

/// What one pod uses. It counts as an object as long as it is there, and under all other names as long as it
/// [is charged](is_charged).
#[must_use]
pub fn pod_usage(pod: &Pod, now: Timestamp) -> Amounts {
    let mut usage: Amounts = [("count/pods".to_owned(), Quantity::from_value(1))].into();
    if !is_charged(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), Quantity::from_value(1));
    let (requests, limits) = (effective(pod, Side::Requests), effective(pod, Side::Limits));
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = requests.get(name) {
            usage.insert(name.to_owned(), *amount);
            usage.insert(format!("{REQUESTS}{name}"), *amount);
        }
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    for (name, amount) in requests {
        let huge = name.starts_with(HUGE_PAGES);
        let extended = !is_native(&name) && !name.starts_with(REQUESTS);
        if huge || extended || name.starts_with(DEVICE_CLASS) {
            usage.insert(format!("{REQUESTS}{name}"), amount);
        }
        if huge {
            usage.insert(name, amount);
        }
    }
    usage
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Requests,
    Limits,
}

type List = BTreeMap<String, resource::Quantity>;

impl Side {
    fn of(self, resources: Option<&ResourceRequirements>) -> Option<&List> {
        match self {
            Self::Requests => resources?.requests.as_ref(),
            Self::Limits => resources?.limits.as_ref(),
        }
    }
}

/// What a pod asks for as its specification says, whatever it has now.
#[must_use]
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let pod = Pod { spec: Some(spec.clone()), ..Pod::default() };
    effective(&pod, Side::Requests)
}

/// What a pod asks for as a whole (`component-helpers/resource.PodRequests` and `PodLimits`, KEP-753, KEP-1287, KEP-2837).
fn effective(pod: &Pod, side: Side) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add(&mut sum, &of_container(pod, container, side, true));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        let mut while_it_starts = of_container(pod, container, side, is_sidecar);
        if is_sidecar {
            add(&mut sum, &while_it_starts);
            add(&mut sidecars, &while_it_starts);
            while_it_starts.clone_from(&sidecars);
        } else {
            add(&mut while_it_starts, &sidecars);
        }
        raise(&mut most, &while_it_starts);
    }
    raise(&mut sum, &most);
    for (name, amount) in amounts(side.of(spec.resources.as_ref())) {
        if matches!(&*name, "cpu" | "memory") || name.starts_with(HUGE_PAGES) {
            sum.insert(name, amount);
        }
    }
    for (name, amount) in amounts(spec.overhead.as_ref()) {
        match side {
            Side::Requests => add(&mut sum, &[(name, amount)].into()),
            Side::Limits => {
                if let Some(limit) = sum.get_mut(&name).filter(|limit| !limit.is_zero()) {
                    *limit += amount;
                }
            }
        }
    }
    sum
}

/// The larger amount of each name.
fn raise(list: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = list.entry(name.clone()).or_insert(*amount);
        if *amount > *known {
            *known = *amount;
        }
    }
}

/// What one container asks for; while it is being resized, what it has if that is more.
fn of_container(pod: &Pod, container: &Container, side: Side, resizable: bool) -> Amounts {
    let asked = amounts(side.of(container.resources.as_ref()));
    let status = status_of(pod, &container.name).filter(|status| resizable && status.resources.is_some());
    let Some(status) = status else { return asked };
    let mut has = amounts(side.of(status.resources.as_ref()));
    if side == Side::Requests {
        raise(&mut has, &amounts(status.allocated_resources.as_ref()));
    }
    if !is_infeasible(pod) {
        raise(&mut has, &asked);
    }
    has
}

fn status_of<'p>(pod: &'p Pod, container: &str) -> Option<&'p ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|status| status.name == container)
}

/// Whether the node has said that it can't give what is asked for.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut pending = conditions.filter(|condition| condition.type_ == "PodResizePending");
    pending.next().is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"))
}

/// Whether a pod is within a scope.
#[must_use]
pub fn pod_in_scope(pod: &Pod, scope: &ScopedResourceSelectorRequirement) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ends = || spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0);
    match &*scope.scope_name {
        "Terminating" => ends(),
        "NotTerminating" => !ends(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = spec.priority_class_name.as_deref().filter(|class| !class.is_empty());
            names_match(scope, class.as_slice())
        }
        "CrossNamespacePodAffinity" => looks_across_namespaces(pod),
        _ => false,
    }
}

/// What may change about the scopes of a pod that is there.
pub(super) fn scope_facts(pod: &Pod) -> Vec<String> {
    let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let class = pod.spec.as_ref().and_then(|spec| spec.priority_class_name.clone());
    vec![
        deadline.is_some_and(|seconds| seconds >= 0).to_string(),
        is_best_effort(pod).to_string(),
        class.unwrap_or_default(),
    ]
}

/// Whether a pod asks for no CPU and no memory (`qos.GetPodQOS`).
fn is_best_effort(pod: &Pod) -> bool {
    let class = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        return class == "BestEffort";
    }
    let Some(spec) = &pod.spec else { return true };
    let asks = |resources: Option<&ResourceRequirements>| {
        [Side::Requests, Side::Limits].into_iter().any(|side| {
            let list = amounts(side.of(resources));
            let counts = |name: &str| list.get(name).is_some_and(|amount| *amount > Quantity::ZERO);
            counts("cpu") || counts("memory")
        })
    };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !asks(spec.resources.as_ref()) && !containers.any(|container| asks(container.resources.as_ref()))
}

fn looks_across_namespaces(pod: &Pod) -> bool {
    let across = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|names| !names.is_empty()) || term.namespace_selector.is_some()
    };
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return false };
    let to = affinity.pod_affinity.as_ref();
    let from = affinity.pod_anti_affinity.as_ref();
    let required =
        to.iter().flat_map(|to| to.required_during_scheduling_ignored_during_execution.iter().flatten());
    let required = required.chain(
        from.iter()
            .flat_map(|from| from.required_during_scheduling_ignored_during_execution.iter().flatten()),
    );
    let preferred =
        to.iter().flat_map(|to| to.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    let preferred = preferred.chain(
        from.iter()
            .flat_map(|from| from.preferred_during_scheduling_ignored_during_execution.iter().flatten()),
    );
    required.chain(preferred.map(|weighted| &weighted.pod_affinity_term)).any(across)
}
