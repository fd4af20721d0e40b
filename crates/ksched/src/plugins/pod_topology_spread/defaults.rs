//! The selector of default constraints.

use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{ReplicationController, Service},
};
use kcore::selector::LabelSelector;

use crate::{
    pod::PodInfo,
    pod_affinity::{equals, read_selector},
    snapshot::catalog::Catalog,
};

/// What selects a pod: the Services that do, and its controller (upstream's `helper.DefaultSelector`). `None` when
/// nothing does.
pub(super) fn selector(pod: &PodInfo, catalog: &Catalog) -> Option<LabelSelector> {
    let mut requirements = Vec::new();
    for service in catalog.in_namespace::<Service>(&pod.namespace) {
        // A Service without a selector selects nothing; one with an empty selector adds nothing.
        let labels = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some(labels) = labels.filter(|labels| !labels.is_empty()) else { continue };
        if labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)) {
            requirements.extend(labels.iter().map(|(key, value)| equals(key, value)));
        }
    }
    let owners = pod.object.metadata.owner_references.iter().flatten();
    if let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) {
        let of_controller = match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("v1", "ReplicationController") => {
                let found = catalog.get::<ReplicationController>(&pod.namespace, &owner.name);
                let labels = found.and_then(|found| found.spec.as_ref()?.selector.as_ref());
                requirements.extend(labels.into_iter().flatten().map(|(key, value)| equals(key, value)));
                None
            }
            ("apps/v1", "ReplicaSet") => {
                let found = catalog.get::<ReplicaSet>(&pod.namespace, &owner.name);
                found.and_then(|found| read_selector(Some(&found.spec.selector)))
            }
            ("apps/v1", "StatefulSet") => {
                let found = catalog.get::<StatefulSet>(&pod.namespace, &owner.name);
                found.and_then(|found| read_selector(Some(&found.spec.selector)))
            }
            _ => None,
        };
        requirements
            .extend(of_controller.iter().flat_map(|selector| selector.requirements().iter().cloned()));
    }
    (!requirements.is_empty()).then(|| LabelSelector::new(requirements))
}
