//! Extended resources that devices stand for (KEP-5004): a device class names the extended resource that its devices are, and a
//! pod that asks for it in the old way gets devices where the node does not have the resource itself.
//!
//! Who asks so has no claim. One is made up for each pod, and written once the pod has its node.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::{
    api::{
        core::v1::{Container, ContainerExtendedResourceRequest},
        resource::v1::{
            DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
        },
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kcore::Quantity;

use crate::{node::NodeInfo, pod::PodInfo, snapshot::catalog::Catalog};

/// Stands before the name of a class in the extended resource that every class has (`ResourceDeviceClassPrefix`).
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// Says that a claim was made for a pod's extended resources (`ExtendedResourceClaimAnnotation`).
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// How the names of claims begin that are not written yet; no object can be called so.
const IN_MEMORY: &str = "<extended-resources>";

/// The class whose devices are this extended resource. The newest class counts when several name it, then the first by name.
/// Costs time in the order of the number of classes.
pub(crate) fn class<'a>(catalog: &'a Catalog, resource: &str) -> Option<&'a Arc<DeviceClass>> {
    if let Some(class) = resource.strip_prefix(IMPLICIT) {
        return catalog.get::<DeviceClass>("", class);
    }
    let names_it = |class: &&Arc<DeviceClass>| resource_of(class) == Some(resource);
    catalog.list::<DeviceClass>().filter(names_it).max_by_key(|class| {
        let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, Reverse(class.metadata.name.as_deref()))
    })
}

fn resource_of(class: &DeviceClass) -> Option<&str> {
    class.spec.as_ref()?.extended_resource_name.as_deref()
}

/// Whether devices of this class are this extended resource, unless a newer class says so, too.
pub(crate) fn is_of(class: &DeviceClass, resource: &str) -> bool {
    let implicit = resource.strip_prefix(IMPLICIT);
    resource_of(class) == Some(resource) || implicit.is_some() && implicit == class.metadata.name.as_deref()
}

/// Whether devices may stand for a resource: extended ones, and those that name a class (`IsDRAExtendedResourceName`).
pub(crate) fn may_be(resource: &str) -> bool {
    resource.starts_with(IMPLICIT) || resource.contains('/') && !resource.contains("kubernetes.io/")
}

/// The resources that a pod asks for and that devices may stand for.
fn asked(pod: &PodInfo) -> impl Iterator<Item = &Arc<str>> {
    let scalars = pod.requests.scalars.iter().filter(|(_, amount)| **amount != 0);
    scalars.map(|(name, _)| name).filter(|name| may_be(name))
}

/// Whether devices stand for any of the resources that a pod asks for.
pub(super) fn concerns(pod: &PodInfo, catalog: &Catalog) -> bool {
    asked(pod).any(|name| class(catalog, name).is_some())
}

/// Whether a pod asks for a resource that devices might stand for.
pub(super) fn may_concern(pod: &PodInfo) -> bool {
    asked(pod).next().is_some()
}

/// Whether this is a claim that is not written yet.
pub(super) fn is_in_memory(claim: &ResourceClaim) -> bool {
    claim.metadata.name.as_deref().is_some_and(|name| name.starts_with(IN_MEMORY))
}

/// The pod that a claim was made for, if it was for extended resources.
pub(super) fn owner(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    let owner =
        claim.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    (annotations.get(ANNOTATION).map(String::as_str) == Some("true")).then_some(&owner.uid)
}

/// What a pod asks for in the old way.
#[derive(Debug)]
pub(super) struct Extended {
    /// The resources with the names of their classes.
    classes: BTreeMap<Arc<str>, String>,
    /// Those without a class, which nodes must have themselves.
    plain: Vec<Arc<str>>,
    /// The claim that an earlier try left behind.
    pub(super) stale: Option<Arc<ResourceClaim>>,
}

/// Which container gets the devices of which request.
pub(super) type Mappings = Vec<ContainerExtendedResourceRequest>;

impl Extended {
    /// `None` if no device stands for anything that the pod asks for.
    pub(super) fn read(pod: &PodInfo, catalog: &Catalog) -> Option<Self> {
        let (mut classes, mut plain) = (BTreeMap::new(), Vec::new());
        for name in asked(pod) {
            match class(catalog, name) {
                Some(class) => {
                    classes.insert(Arc::clone(name), class.metadata.name.clone().unwrap_or_default());
                }
                None => plain.push(Arc::clone(name)),
            }
        }
        let is_stale = |claim: &&Arc<ResourceClaim>| owner(claim) == Some(&*pod.uid);
        let stale = |catalog: &Catalog| catalog.list::<ResourceClaim>().find(is_stale).cloned();
        (!classes.is_empty()).then(|| Self { stale: stale(catalog), classes, plain })
    }

    /// What devices must stand for on a node, because it does not have it itself.
    ///
    /// # Errors
    /// When it lacks what no device stands for.
    pub(super) fn missing(&self, node: &NodeInfo) -> Result<BTreeMap<Arc<str>, String>, String> {
        if self.plain.iter().any(|name| !node.allocatable.scalars.contains_key(name)) {
            return Err("cannot fit resource".to_owned());
        }
        let missing = self.classes.iter().filter(|(name, _)| node.allocatable.get(name) <= 0);
        Ok(missing.map(|(name, class)| (Arc::clone(name), class.clone())).collect())
    }
}

/// A claim for some of a pod's resources, and who gets what of it.
pub(super) fn claim(pod: &PodInfo, missing: &BTreeMap<Arc<str>, String>) -> (ResourceClaim, Mappings) {
    let (requests, mappings) = requests(pod, missing);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let metadata = ObjectMeta {
        namespace: Some(pod.namespace.to_string()),
        name: Some(format!("{IN_MEMORY}{}", pod.uid)),
        generate_name: Some(format!("{}-extended-resources-", pod.name)),
        uid: Some(format!("{IN_MEMORY}{}", pod.uid)),
        owner_references: Some(vec![owner]),
        annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
    let spec = ResourceClaimSpec { devices: Some(devices) };
    (ResourceClaim { metadata, spec: Some(spec), status: None }, mappings)
}

/// The claim as it is to be created.
pub(super) fn to_create(claim: &ResourceClaim) -> ResourceClaim {
    let mut claim = claim.clone();
    (claim.metadata.name, claim.metadata.uid, claim.status) = (None, None, None);
    claim
}

/// What one container asks for: what it takes of requests that come to be free for it, and what it needs besides.
fn of_container(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Mappings) {
    let asked = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let Some(asked) = asked else { return (None, Vec::new()) };
    let amount =
        asked.get(resource).and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |amount| amount.value());
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let (mut mappings, mut covered) = (Vec::new(), 0);
    if amount == 0 {
        return (None, mappings);
    }
    for request in reusable.iter().flatten() {
        covered += count(request);
        mappings.push(mapping(&request.name));
        if covered >= amount {
            return (None, mappings);
        }
    }
    // A request is named by its container and by where its resource comes in the order of names.
    let place = asked.keys().position(|name| name == resource).unwrap_or_default();
    let name = format!("container-{index}-request-{place}");
    mappings.push(mapping(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(amount - covered),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), first_available: None }), mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exactly| exactly.count).unwrap_or_default()
}

/// The requests for all containers, and which container gets which. Init containers run before the others and one after
/// another, so they use what the later ones will, and share what they need besides (upstream's `createRequestsAndMappings`).
fn requests(pod: &PodInfo, missing: &BTreeMap<Arc<str>, String>) -> (Vec<DeviceRequest>, Mappings) {
    let spec = pod.object.spec.as_ref();
    let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let init: Vec<&Container> = init.collect();
    let is_short = |container: &Container| container.restart_policy.as_deref() != Some("Always");
    let containers = init.iter().map(|container| (*container, is_short(container)));
    let others = spec.iter().flat_map(|spec| &spec.containers).map(|container| (container, false));
    let containers: Vec<(&Container, bool)> = containers.chain(others).collect();
    let (mut all, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in missing {
        let mut long: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for (index, (container, _)) in containers.iter().enumerate().filter(|(_, (_, short))| !short) {
            let (request, its) = of_container(index, container, resource, class, &[]);
            long[index] = request;
            mappings.extend(its);
        }
        let (mut largest, mut names): (Option<DeviceRequest>, HashSet<String, RandomState>) =
            Default::default();
        let mut short = Vec::new();
        for (index, (container, _)) in containers.iter().enumerate().filter(|(_, (_, short))| *short) {
            let (request, its) = of_container(index, container, resource, class, &long[index..]);
            if let Some(request) = request {
                names.insert(request.name.clone());
                if largest.as_ref().is_none_or(|largest| count(largest) < count(&request)) {
                    largest = Some(request);
                }
            }
            short.extend(its);
        }
        if let Some(largest) = &largest {
            for mapping in short.iter_mut().filter(|mapping| names.contains(&mapping.request_name)) {
                mapping.request_name.clone_from(&largest.name);
            }
        }
        all.extend(largest.into_iter().chain(long.into_iter().flatten()));
        mappings.extend(short);
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    (all, mappings)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::{Snapshot, build::pod};

    fn with(containers: Value, init: Value) -> PodInfo {
        let edited = pod("p").edit(|pod| {
            let spec = pod.spec.get_or_insert_default();
            spec.containers = from_value(containers).unwrap();
            spec.init_containers = from_value(init).unwrap();
        });
        edited.info()
    }

    fn container(name: &str, requests: Value) -> Value {
        json!({"name": name, "resources": {"requests": requests}})
    }

    /// Cases of upstream's `extendeddynamicresources_test.go` (`Test_createRequestsAndMappings_requests` and `_mappings`).
    #[test]
    fn containers_share_what_they_do_not_use_at_once() {
        let sidecar = |name: &str, requests: Value| {
            let mut container = container(name, requests);
            container["restartPolicy"] = json!("Always");
            container
        };
        let implicit = "deviceclass.resource.kubernetes.io/classInit";
        type Case = (&'static str, Value, Value, Vec<(&'static str, i64)>, Vec<(&'static str, &'static str)>);
        let cases: Vec<Case> = vec![
            (
                "one container, two resources",
                json!([container("con0", json!({"example.com/gpu": "1", "example.com/gpu1": "2"}))]),
                json!([]),
                vec![("container-0-request-0", 1), ("container-0-request-1", 2)],
                vec![("con0", "container-0-request-0"), ("con0", "container-0-request-1")],
            ),
            (
                "a native resource counts for the place",
                json!([container("con0", json!({"cpu": "1", "example.com/gpu": "1"}))]),
                json!([]),
                vec![("container-0-request-1", 1)],
                vec![("con0", "container-0-request-1")],
            ),
            (
                "an init container uses what comes later",
                json!([container("con0", json!({"example.com/gpu": "3"}))]),
                json!([container("init0", json!({"example.com/gpu": "2"}))]),
                vec![("container-1-request-0", 3)],
                vec![("con0", "container-1-request-0"), ("init0", "container-1-request-0")],
            ),
            (
                "and asks for more when that is not enough",
                json!([container("con0", json!({"example.com/gpu": "1"}))]),
                json!([
                    container("init0", json!({"example.com/gpu": "2"})),
                    container("init1", json!({"example.com/gpu": "4"}))
                ]),
                vec![("container-1-request-0", 3), ("container-2-request-0", 1)],
                vec![
                    ("con0", "container-2-request-0"),
                    ("init0", "container-1-request-0"),
                    ("init0", "container-2-request-0"),
                    ("init1", "container-1-request-0"),
                    ("init1", "container-2-request-0"),
                ],
            ),
            (
                "a sidecar runs on, so its devices are free only for those before it",
                json!([container("con0", json!({"example.com/gpu": "1"}))]),
                json!([
                    container("init0", json!({"example.com/gpu1": "1"})),
                    sidecar("side", json!({"example.com/gpu1": "1"})),
                    container("init1", json!({"example.com/gpu1": "2"})),
                ]),
                vec![
                    ("container-1-request-0", 1),
                    ("container-2-request-0", 2),
                    ("container-3-request-0", 1),
                ],
                vec![
                    ("con0", "container-3-request-0"),
                    ("init0", "container-1-request-0"),
                    ("init1", "container-2-request-0"),
                    ("side", "container-1-request-0"),
                ],
            ),
            (
                "a class by its own name",
                json!([container("con0", json!({}))]),
                json!([container("init0", json!({implicit: "2", "example.com/gpu": "1"}))]),
                vec![("container-0-request-0", 2), ("container-0-request-1", 1)],
                vec![("init0", "container-0-request-0"), ("init0", "container-0-request-1")],
            ),
        ];
        for (what, containers, init, expected, mapped) in cases {
            let pod = with(containers, init);
            let missing = asked(&pod).map(|name| (Arc::clone(name), "class".to_owned())).collect();
            let (requests, mappings) = requests(&pod, &missing);
            let found: Vec<_> =
                requests.iter().map(|request| (request.name.as_str(), count(request))).collect();
            assert_eq!(found, expected, "{what}");
            let mut found: Vec<_> =
                mappings.iter().map(|mapping| (&*mapping.container_name, &*mapping.request_name)).collect();
            found.sort_unstable();
            assert_eq!(found, mapped, "{what}");
        }
    }

    /// `extendedresourcecache_test.go`: the newest class counts, then the first name.
    #[test]
    fn the_newest_class_of_a_resource_counts() {
        let mut snapshot = Snapshot::new();
        for (name, resource, hour) in [
            ("old", Some("example.com/gpu"), 1),
            ("b", Some("example.com/gpu"), 2),
            ("a", Some("example.com/gpu"), 2),
            ("plain", None, 3),
        ] {
            let class = json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T0{hour}:00:00Z")},
                "spec": {"extendedResourceName": resource},
            });
            snapshot.catalog_mut().set(Arc::new(from_value::<DeviceClass>(class).unwrap()));
        }
        for (resource, expected) in [
            ("example.com/gpu", Some("a")),
            ("example.com/tpu", None),
            ("deviceclass.resource.kubernetes.io/plain", Some("plain")),
            ("deviceclass.resource.kubernetes.io/none", None),
        ] {
            let found = class(snapshot.catalog(), resource).and_then(|class| class.metadata.name.as_deref());
            assert_eq!(found, expected, "{resource}");
        }
    }
}
