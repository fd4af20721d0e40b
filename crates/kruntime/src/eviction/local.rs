//! Limits of what a pod has on its node's disks: of an emptyDir, of a container, of the pod as a whole (Kubernetes, "Local ephemeral
//! storage"; upstream's `localStorageEviction`). Who has more goes, whether the node is short of anything or not.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kcore::Quantity;

use crate::{demand, runtime::ContainerDisk};

/// The resource of disks.
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// What a pod has on the node's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// Its containers, as far as the runtime tells.
    pub containers: Vec<ContainerDisk>,
    /// Its emptyDirs, by the names of the volumes, in bytes.
    pub volumes: BTreeMap<String, u64>,
}

impl PodDisk {
    /// All of it in bytes, but for what `pod` has in memory.
    #[must_use]
    pub fn total(&self, pod: &Pod) -> u64 {
        let in_memory = |name: &str| {
            let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
            let volume = volumes.iter().find(|volume| volume.name == name);
            let medium = volume.and_then(|volume| volume.empty_dir.as_ref()?.medium.as_deref());
            medium.is_some_and(|medium| !medium.is_empty())
        };
        let volumes = self.volumes.iter().filter(|(name, _)| !in_memory(name)).map(|(_, bytes)| *bytes);
        let containers = self.containers.iter().map(|one| one.root_bytes.saturating_add(one.log_bytes));
        volumes.chain(containers).fold(0, u64::saturating_add)
    }
}

fn positive(text: &Text) -> Option<Quantity> {
    Quantity::parse(&text.0).ok().filter(|quantity| quantity.value() > 0)
}

fn limit(container: &Container) -> Option<Quantity> {
    Quantity::parse(&container.resources.as_ref()?.limits.as_ref()?.get(EPHEMERAL_STORAGE)?.0).ok()
}

/// Whether the pod has any such limit: only then it needs to be measured.
#[must_use]
pub fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let dirs = spec.volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref());
    dirs.into_iter().any(|dir| dir.size_limit.as_ref().and_then(positive).is_some())
        || all(spec).any(|container| limit(container).is_some())
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// The limit of the pod as a whole: what its containers may have at the same time, in the form of the first that is given. `None`
/// where no container has one. Containers without a limit add nothing, as upstream.
fn pod_limit(spec: &PodSpec) -> Option<Quantity> {
    let form = all(spec).find_map(limit)?.format();
    let own = PodSpec { resources: None, overhead: None, ..spec.clone() };
    let sum = demand::request_with(&own, EPHEMERAL_STORAGE, |one| limit(one).map(|limit| limit.value()));
    Some(Quantity::with_format(sum.saturating_add(demand::overhead(spec, EPHEMERAL_STORAGE)), form))
}

fn exceeds(used: u64, limit: &Quantity) -> bool {
    i128::from(used) > i128::from(limit.value())
}

/// Why the pod has to go, in upstream's words; `None` while it keeps to its limits. The first that is exceeded counts: emptyDirs in
/// their order, then the pod, then its containers in their order.
///
/// ```
/// use k8s_openapi::api::core::v1::Pod;
/// use kruntime::eviction::{PodDisk, excess};
/// let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [],
///     "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]}})).unwrap();
/// let used = PodDisk { volumes: [("cache".to_owned(), 2 << 20)].into(), ..PodDisk::default() };
/// assert_eq!(excess(&pod, &used).unwrap(), "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
/// ```
#[must_use]
pub fn excess(pod: &Pod, used: &PodDisk) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let size = volume.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref()).and_then(positive);
        if let (Some(size), Some(bytes)) = (size, used.volumes.get(&volume.name))
            && exceeds(*bytes, &size)
        {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name,
                size.to_string()
            ));
        }
    }
    if let Some(limit) = pod_limit(spec).filter(|limit| exceeds(used.total(pod), limit)) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    spec.containers.iter().find_map(|container| {
        // A limit of nothing counts for the pod alone.
        let limit = limit(container).filter(|limit| limit.value() != 0)?;
        let disk = used.containers.iter().find(|disk| *disk.name == *container.name)?;
        let bytes = disk.root_bytes.saturating_add(disk.log_bytes);
        exceeds(bytes, &limit).then(|| {
            let (name, limit) = (&container.name, limit.to_string());
            format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ")
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(spec: &Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn container(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    /// After `localStorageEviction` of upstream's eviction manager; what is used is in MiB.
    #[test]
    fn who_has_more_than_it_may_has_to_go() {
        let dirs = json!([{"name": "v", "emptyDir": {"sizeLimit": "2Mi"}}, {"name": "w", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}, {"name": "free", "emptyDir": {}},
            {"name": "zero", "emptyDir": {"sizeLimit": "0"}}]);
        let plain = json!([{"name": "c"}]);
        let with_dirs = json!({"containers": plain, "volumes": dirs});
        let two = json!({"containers": [container("a", "3Mi"), container("b", "2Mi")], "volumes": dirs});
        let half = json!({"containers": [container("a", "3Mi"), {"name": "c"}]});
        let init = json!({"containers": [container("a", "1Mi")], "initContainers": [container("i", "9Mi")]});
        let none = json!({"containers": [container("a", "0")]});
        let over = json!({"containers": [container("a", "1Mi")], "overhead": {"ephemeral-storage": "1Mi"}});
        let of_dir = |name: &str, size: &str| {
            format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{size}\". ")
        };
        let of_pod = |size: &str| {
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {size}. ")
        };
        let of = |name: &str, size: &str| {
            format!("Container {name} exceeded its local ephemeral storage limit \"{size}\". ")
        };
        /// A pod, what its volumes take, what each container and its log take, and why it has to go.
        type Case<'a> = (&'a Value, &'a [(&'a str, u64)], &'a [(&'a str, u64, u64)], Option<String>);
        let cases: [Case<'_>; 17] = [
            (&with_dirs, &[("v", 2), ("w", 1), ("m", 4), ("free", 99), ("zero", 99)], &[("c", 99, 99)], None),
            (&with_dirs, &[("v", 3)], &[], Some(of_dir("v", "2Mi"))),
            (&with_dirs, &[("w", 2), ("v", 3)], &[], Some(of_dir("v", "2Mi"))),
            (&with_dirs, &[("w", 2)], &[], Some(of_dir("w", "1Mi"))),
            (&with_dirs, &[("m", 5)], &[], Some(of_dir("m", "4Mi"))),
            (&two, &[("v", 2)], &[("a", 2, 0), ("b", 1, 0)], None),
            (&two, &[("v", 2)], &[("a", 2, 0), ("b", 1, 1)], Some(of_pod("5Mi"))),
            (&two, &[("m", 4)], &[("a", 3, 0), ("b", 2, 0)], None),
            (&two, &[("free", 9)], &[], Some(of_pod("5Mi"))),
            (&two, &[], &[("a", 0, 0), ("b", 2, 1)], Some(of("b", "2Mi"))),
            (&two, &[], &[("b", 0, 3), ("a", 1, 0)], Some(of("b", "2Mi"))),
            // Of a container without a limit only the sum of the others is known.
            (&half, &[], &[("c", 4, 0)], Some(of_pod("3Mi"))),
            (&half, &[], &[("c", 3, 0)], None),
            (&init, &[], &[("a", 1, 0), ("i", 7, 0)], None),
            (&init, &[], &[("a", 2, 0)], Some(of("a", "1Mi"))),
            (&none, &[], &[("a", 1, 0)], Some(of_pod("0"))),
            (&over, &[("v", 1)], &[("a", 1, 0)], None),
        ];
        for (spec, volumes, containers, expected) in cases {
            let used = PodDisk {
                volumes: volumes.iter().map(|(name, size)| ((*name).to_owned(), size * MIB)).collect(),
                containers: containers
                    .iter()
                    .map(|(name, root, log)| ContainerDisk {
                        name: (*name).into(),
                        root_bytes: root * MIB,
                        log_bytes: log * MIB,
                    })
                    .collect(),
            };
            let pod = pod(spec);
            assert!(is_limited(&pod), "{spec}");
            assert_eq!(excess(&pod, &used), expected, "{spec} {volumes:?} {containers:?}");
        }
    }

    #[test]
    fn pods_without_limits_are_not_measured() {
        for (spec, expected) in [
            (json!({"containers": [{"name": "c"}]}), false),
            (json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {}}]}), false),
            (json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "0"}}]}), false),
            (json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1"}}]}), true),
            (json!({"containers": [], "initContainers": [container("i", "1Gi")]}), true),
            (json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "1Gi"}}}]}), false),
        ] {
            assert_eq!(is_limited(&pod(&spec)), expected, "{spec}");
        }
    }
}
