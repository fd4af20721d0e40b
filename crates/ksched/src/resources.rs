//! Amounts of resources, counted as the scheduler counts them.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kcore::Quantity;

/// What a container without a CPU request counts as in scores, in thousandths (upstream's `DefaultMilliCPURequest`).
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts as in scores, in bytes (upstream's `DefaultMemoryRequest`).
pub const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

type Amounts = BTreeMap<String, Quantity>;

/// How much of each resource: CPU in thousandths, everything else in its own unit (bytes, pieces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Local ephemeral storage in bytes.
    pub ephemeral_storage: i64,
    /// Extended resources, huge pages and attachable volumes, by name.
    pub scalars: BTreeMap<Arc<str>, i64>,
}

impl Resources {
    /// Counts a resource list. Names that the scheduler does not count, such as `storage` and `pods`, are left out.
    pub fn of<'a>(list: impl IntoIterator<Item = (&'a str, Quantity)>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            match name {
                "cpu" => resources.milli_cpu = quantity.milli(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.value(),
                name if is_scalar(name) => {
                    resources.scalars.insert(name.into(), quantity.value());
                }
                _ => {}
            }
        }
        resources
    }

    /// Whether nothing is asked for; an extended resource of which zero is asked for counts as something, as upstream.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalars.is_empty()
    }

    /// The amount of one resource, by its Kubernetes name.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            name => self.scalars.get(name).copied().unwrap_or_default(),
        }
    }
}

/// Whether a resource is counted by its name: extended resources (a domain that is not `kubernetes.io`), huge pages,
/// attachable volumes (upstream's `IsScalarResourceName`).
#[must_use]
pub fn is_scalar(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    (!native && !name.starts_with("requests."))
        || name.starts_with("hugepages-")
        || name.starts_with("attachable-volumes-")
        || name.contains("kubernetes.io/")
}

/// Parses a resource list; what is no quantity counts as nothing, for the server has refused it before.
pub(crate) fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    list.into_iter()
        .flatten()
        .filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?)))
        .collect()
}

/// What a pod takes on its node (`PodRequests` of `component-helpers/resource`).
///
/// Containers add up; init containers run one after the other, so the largest counts; those that keep running
/// (sidecars, KEP-753) add to everything started after them; requests of the whole pod (KEP-2837) replace the sum;
/// overhead (KEP-688) comes on top. Where a container was resized in place (KEP-1287) the larger of what it wants and
/// has counts, but only what it has when its node said that it can never have more. `or_default` stands in for requests that are missing.
pub(crate) fn pod_requests(pod: &Pod, or_default: &[(&str, Quantity)]) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let statuses =
        pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let init_statuses =
        pod.status.as_ref().and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let infeasible = is_resize_infeasible(pod);
    let requests_of = |container: &Container, statuses: &[ContainerStatus]| {
        container_requests(container, statuses, infeasible, or_default)
    };
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add(&mut sum, &requests_of(container, statuses));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut requests = requests_of(container, init_statuses);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sum, &requests);
            add(&mut sidecars, &requests);
            requests.clone_from(&sidecars);
        } else {
            add(&mut requests, &sidecars);
        }
        max(&mut starting, &requests);
    }
    max(&mut sum, &starting);
    if let Some(resources) = &spec.resources {
        let whole = amounts(resources.requests.as_ref());
        sum.extend(
            whole.into_iter().filter(|(name, _)| {
                matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-")
            }),
        );
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// Whether the node has refused a resize for good.
fn is_resize_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
    pending.is_some_and(|pending| pending.reason.as_deref() == Some("Infeasible"))
}

fn container_requests(
    container: &Container,
    statuses: &[ContainerStatus],
    infeasible: bool,
    or_default: &[(&str, Quantity)],
) -> Amounts {
    let mut requests =
        amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    if let Some(status) = statuses.iter().find(|status| status.name == container.name) {
        if infeasible {
            requests.clear();
        }
        max(
            &mut requests,
            &amounts(status.resources.as_ref().and_then(|resources| resources.requests.as_ref())),
        );
        max(&mut requests, &amounts(status.allocated_resources.as_ref()));
    }
    for (name, quantity) in or_default {
        if !requests.contains_key(*name) {
            requests.insert((*name).to_owned(), *quantity);
        }
    }
    requests
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, quantity) in more {
        match sum.get_mut(name) {
            Some(known) => *known += *quantity,
            None => {
                sum.insert(name.clone(), *quantity);
            }
        }
    }
}

fn max(most: &mut Amounts, other: &Amounts) {
    for (name, quantity) in other {
        match most.get_mut(name) {
            Some(known) if *known >= *quantity => {}
            _ => {
                most.insert(name.clone(), *quantity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, milli_cpu: i64, memory: i64) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let requests = pod_requests(&pod, &[]);
        let resources = Resources::of(requests.iter().map(|(name, quantity)| (name.as_str(), *quantity)));
        assert_eq!((resources.milli_cpu, resources.memory), (milli_cpu, memory), "{:?}", pod.spec);
    }

    fn container(name: &str, cpu: &str, memory: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn a_pod_takes_what_its_containers_need_at_once() {
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "10"}}});
        let main = [container("a", "1", "100"), container("b", "500m", "1")];
        check(json!({"containers": main}), 1500, 101);
        check(json!({"containers": main, "initContainers": [container("i", "2", "3")]}), 2000, 101);
        check(json!({"containers": main, "initContainers": [sidecar, container("i", "2", "3")]}), 2100, 111);
        check(json!({"containers": main, "initContainers": [container("i", "2", "3"), sidecar]}), 2000, 111);
        check(json!({"containers": main, "overhead": {"cpu": "10m", "memory": "1"}}), 1510, 102);
        check(json!({"containers": main, "resources": {"requests": {"cpu": "3"}}}), 3000, 101);
        check(json!({"containers": [{"name": "a"}]}), 0, 0);
    }

    /// `determineContainerReqs` of `component-helpers/resource`.
    #[test]
    fn a_resize_counts_while_it_may_come_true() {
        let status = |reason: &str, allocated: &str| {
            json!({"conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": allocated}}]})
        };
        let spec = json!({"containers": [container("a", "2", "1")]});
        for (status, expected) in [
            (status("Deferred", "1"), 2000),
            (status("Deferred", "3"), 3000),
            (status("Infeasible", "1"), 1000),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap();
            assert_eq!(pod_requests(&pod, &[])["cpu"].milli(), expected, "{status}");
        }
    }

    #[test]
    fn only_countable_names_are_scalars() {
        for (name, expected) in [
            ("example.com/gpu", true),
            ("hugepages-2Mi", true),
            ("attachable-volumes-csi", true),
            ("requests.example.com/gpu", false),
            ("storage", false),
            ("pods", false),
        ] {
            assert_eq!(is_scalar(name), expected, "{name}");
        }
    }
}
