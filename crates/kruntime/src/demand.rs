//! What a pod asks of its node as a whole (upstream's `k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::machine::is_sidecar;

/// The unit in which a resource is counted: thousandths of processors, units of all others.
fn number(name: &str, quantity: &kcore::Quantity) -> i64 {
    if name == "cpu" { quantity.milli() } else { quantity.value() }
}

/// What the list says of `name`, in the unit of the resource.
pub(crate) fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    Some(number(name, &kcore::Quantity::parse(&list?.get(name)?.0).ok()?))
}

/// What a container requests of `name`.
pub(crate) fn requested(container: &Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref()?.requests.as_ref(), name)
}

/// What the pod requests of `name`, its overhead (KEP-688) included: the sum of its containers and sidecars, or what its init containers
/// need one after the other if that is more; what the pod says as a whole (KEP-2837) goes before both.
pub(crate) fn request(spec: &PodSpec, name: &str) -> i64 {
    request_with(spec, name, |container| requested(container, name))
}

/// As [`request`], with what each container is taken to request.
pub(crate) fn request_with(spec: &PodSpec, name: &str, of: impl Fn(&Container) -> Option<i64>) -> i64 {
    let of = |container: &Container| of(container).unwrap_or(0);
    let (mut sidecars, mut peak) = (0_i64, 0_i64);
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(of(container));
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(of(container)));
        }
    }
    let main = spec.containers.iter().map(of).fold(sidecars, i64::saturating_add);
    let own = spec.resources.as_ref().and_then(|own| amount(own.requests.as_ref(), name));
    own.unwrap_or_else(|| main.max(peak)).saturating_add(overhead(spec, name))
}

/// What the pod's sandbox takes beside its containers (`spec.overhead`).
pub(crate) fn overhead(spec: &PodSpec, name: &str) -> i64 {
    amount(spec.overhead.as_ref(), name).unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Cases of upstream's `TestPodResourceRequests` for containers, sidecars, init containers, overhead and pods as a whole.
    #[test]
    fn a_pods_request_counts_who_runs_at_the_same_time() {
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let init = |cpu: &str| json!({"name": "i", "resources": of(cpu)});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": of(cpu)});
        let cases = [
            (json!({"containers": [init("1"), init("2")]}), 3000),
            (json!({"containers": [init("1")], "initContainers": [init("4"), init("2")]}), 4000),
            (json!({"containers": [init("1")], "initContainers": [sidecar("2"), init("4")]}), 6000),
            (json!({"containers": [init("1")], "initContainers": [init("2"), sidecar("2")]}), 3000),
            (json!({"containers": [init("1")], "overhead": {"cpu": "250m", "memory": "1Gi"}}), 1250),
            (json!({"containers": [init("1")], "resources": of("5"), "overhead": {"cpu": "250m"}}), 5250),
            (json!({"containers": [{"name": "none"}]}), 0),
        ];
        for (spec, expected) in cases {
            let parsed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(request(&parsed, "cpu"), expected, "{spec}");
        }
    }
}
