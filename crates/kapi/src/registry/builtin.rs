//! The built-in resources: names from `builtin.txt`, rules that upstream's strategies state, and the order of groups.

use std::sync::Arc;

use super::{Origin, ResourceDef, Traits, Verbs, Version};
use crate::{
    custom,
    kinds::strategies::{self, Strategies},
    schema::{Catalog, Type, builtin as schemas},
    strategy::Strategy,
};

const TABLE: &str = include_str!("builtin.txt");

/// Kinds whose `metadata.generation` counts.
const GENERATION: &[&str] = &[
    "apiservices.apiregistration.k8s.io",
    "cronjobs.batch",
    "csidrivers.storage.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
    "daemonsets.apps",
    "deployments.apps",
    "deviceclasses.resource.k8s.io",
    "devicetaintrules.resource.k8s.io",
    "endpointslices.discovery.k8s.io",
    "flowschemas.flowcontrol.apiserver.k8s.io",
    "ingressclasses.networking.k8s.io",
    "ingresses.networking.k8s.io",
    "jobs.batch",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "pods",
    "podtemplates",
    "priorityclasses.scheduling.k8s.io",
    "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
    "replicasets.apps",
    "replicationcontrollers",
    "resourceslices.resource.k8s.io",
    "statefulsets.apps",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
];

/// Kinds whose PUT must carry a resource version.
const NEEDS_REVISION: &[&str] = &[
    "apiservices.apiregistration.k8s.io",
    "clustertrustbundles.certificates.k8s.io",
    "csidrivers.storage.k8s.io",
    "csinodes.storage.k8s.io",
    "csistoragecapacities.storage.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
    "leasecandidates.coordination.k8s.io",
    "leases.coordination.k8s.io",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "podcertificaterequests.certificates.k8s.io",
    "poddisruptionbudgets.policy",
    "resourcepoolstatusrequests.resource.k8s.io",
    "runtimeclasses.node.k8s.io",
    "storageversionmigrations.storagemigration.k8s.io",
    "storageversions.internal.apiserver.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "volumeattachments.storage.k8s.io",
];

/// Kinds that a PUT creates when they are missing.
const CREATE_ON_UPDATE: &[&str] = &[
    "clusterrolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "endpoints",
    "events",
    "events.events.k8s.io",
    "leasecandidates.coordination.k8s.io",
    "leases.coordination.k8s.io",
    "limitranges",
    "rolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "runtimeclasses.node.k8s.io",
    "services",
];

/// Kinds whose deletion answers with the object.
const RETURNS_DELETED: &[&str] = &[
    "csidrivers.storage.k8s.io",
    "csinodes.storage.k8s.io",
    "deviceclasses.resource.k8s.io",
    "devicetaintrules.resource.k8s.io",
    "namespaces",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims.resource.k8s.io",
    "resourceclaimtemplates.resource.k8s.io",
    "resourcepoolstatusrequests.resource.k8s.io",
    "resourcequotas",
    "resourceslices.resource.k8s.io",
    "serviceaccounts",
    "services",
    "storageclasses.storage.k8s.io",
    "volumeattachments.storage.k8s.io",
    "volumeattributesclasses.storage.k8s.io",
];

/// The fields of events that selectors may name.
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// The fields that selectors may name, beside name and namespace; those with `*` are indexed.
const SELECTABLE: &[(&str, &[&str])] = &[
    ("certificatesigningrequests.certificates.k8s.io", &["spec.signerName"]),
    ("events", EVENT_FIELDS),
    // In the names of the stored form, which selectors are turned into.
    ("events.events.k8s.io", EVENT_FIELDS),
    ("jobs.batch", &["status.successful"]),
    ("namespaces", &["status.phase"]),
    ("nodes", &["spec.unschedulable"]),
    (
        "pods",
        &[
            "*spec.nodeName",
            "spec.hostNetwork",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.nominatedNodeName",
            "status.phase",
            "status.podIP",
            "status.podIPs",
        ],
    ),
    ("podcertificaterequests.certificates.k8s.io", &["spec.nodeName", "spec.signerName"]),
    ("replicasets.apps", &["status.replicas"]),
    ("replicationcontrollers", &["status.replicas"]),
    ("resourceslices.resource.k8s.io", &["*spec.nodeName", "spec.driver"]),
    ("secrets", &["type"]),
    ("services", &["spec.clusterIP", "spec.type"]),
];

/// The groups in the order in which upstream lists them (`pkg/controlplane/apiserver`, "group priority").
const GROUPS: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "resource.k8s.io",
];

/// Where a group stands among all groups.
pub(crate) fn group_priority(group: &str) -> usize {
    GROUPS.iter().position(|candidate| *candidate == group).unwrap_or(GROUPS.len())
}

/// All built-in resources.
#[must_use]
pub fn resources(catalog: &Arc<Catalog>, strategies: &Strategies) -> Vec<ResourceDef> {
    let schemas: ahash::HashMap<_, _> = schemas::kinds(catalog)
        .map(|(group, version, kind, id)| ((group, version, kind), Type::Named(id)))
        .collect();
    let mut defs: Vec<ResourceDef> = Vec::with_capacity(96);
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let [group, version, plural, kind, scope, verbs, singular, short_names, categories, subresources] =
            words[..]
        else {
            continue;
        };
        let group = if group == "core" { "" } else { group };
        let schema = schemas.get(&(group, version, kind)).cloned().unwrap_or(Type::Any);
        let version = Version { name: version.to_owned(), schema, structure: None };
        if let Some(def) = defs.iter_mut().find(|def| def.group == group && def.plural == plural) {
            def.versions.push(version);
            continue;
        }
        let list = |text: &str| -> Vec<String> {
            if text == "-" { Vec::new() } else { text.split(',').map(str::to_owned).collect() }
        };
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let fields =
            SELECTABLE.iter().find(|(name, _)| *name == qualified).map_or(&[][..], |(_, fields)| fields);
        defs.push(ResourceDef {
            group: group.to_owned(),
            versions: vec![version],
            plural: plural.to_owned(),
            singular: singular.to_owned(),
            kind: kind.to_owned(),
            short_names: list(short_names),
            categories: list(categories),
            namespaced: scope == "ns",
            verbs: match verbs {
                "+" => Verbs::NoDeleteCollection,
                "c" => Verbs::CreateOnly,
                "g" => Verbs::ReadOnly,
                _ => Verbs::All,
            },
            subresources: list(subresources),
            selectable: fields.iter().map(|field| field.trim_start_matches('*').into()).collect(),
            indexed: fields.iter().filter_map(|field| field.strip_prefix('*')).map(Into::into).collect(),
            traits: Traits {
                generation: GENERATION.contains(&&*qualified),
                needs_revision: NEEDS_REVISION.contains(&&*qualified),
                create_on_update: CREATE_ON_UPDATE.contains(&&*qualified),
                returns_deleted: RETURNS_DELETED.contains(&&*qualified),
            },
            strategy: strategy_of(catalog, &qualified, strategies),
            origin: Origin::BuiltIn,
            seal: None,
        });
    }
    defs
}

/// The strategy of a built-in resource; definitions of custom resources are checked with what serves them, too.
fn strategy_of(catalog: &Arc<Catalog>, qualified: &str, strategies: &Strategies) -> Arc<dyn Strategy> {
    let rest = strategies::builtin(qualified, strategies);
    if qualified == "customresourcedefinitions.apiextensions.k8s.io" {
        return Arc::new(custom::Definitions { rest, catalog: Arc::clone(catalog) });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is stored is read again and written again: neither may change it.
    #[test]
    fn checking_and_defaulting_twice_is_doing_it_once() {
        let catalog = schemas::catalog();
        let mut count = 0;
        for def in resources(&catalog, &Strategies::default()) {
            let Type::Named(id) = def.versions[0].schema else { continue };
            for seed in 0..20 {
                let kind = (&*def.group, def.storage_version(), &*def.kind);
                let mut object = kschema::testing::object_of(&catalog, kind, id, seed);
                let settle = |object: &mut serde_json::Value| {
                    let unknown = kschema::check::check(&catalog, &def.versions[0].schema, object);
                    assert_eq!(unknown, Ok(Vec::new()), "{kind:?}");
                    def.strategy.default(object);
                };
                settle(&mut object);
                let once = object.clone();
                settle(&mut object);
                assert_eq!(object, once, "{kind:?} {seed}");
                count += 1;
            }
        }
        assert!(count > 1_000, "only {count} objects");
    }

    #[test]
    fn every_resource_has_a_schema_and_every_rule_a_resource() {
        let catalog = schemas::catalog();
        let defs = resources(&catalog, &Strategies::default());
        for def in &defs {
            for version in &def.versions {
                assert!(!matches!(version.schema, Type::Any), "{} {}", def.qualified(), version.name);
            }
        }
        let names: Vec<_> = defs.iter().map(ResourceDef::qualified).collect();
        let ruled = [GENERATION, NEEDS_REVISION, CREATE_ON_UPDATE, RETURNS_DELETED].concat();
        for name in ruled.into_iter().chain(SELECTABLE.iter().map(|(name, _)| *name)) {
            assert!(names.iter().any(|candidate| candidate == name), "{name}");
        }
    }
}
