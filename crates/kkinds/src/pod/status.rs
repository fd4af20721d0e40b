//! What the status of a pod may say (`ValidatePodStatusUpdate`).

use std::collections::BTreeSet;

use kcore::Quantity;
use kschema::{error::FieldError, fields::keep};
use serde_json::{Value, json};

use super::{annotations, container_status, options::Options};
use crate::check::{Internal, Look, Path, Report, address, form, labels, quantity};

type Errors = Vec<FieldError>;

/// Fills in what a status may leave out, and restores what it may not change.
pub(crate) fn prepare(object: &mut Value, old: &Value) {
    keep(&mut object["metadata"], &old["metadata"], "ownerReferences");
    let was = &old["status"];
    let Some(status) = object.get_mut("status").filter(|status| status.is_object()) else {
        return;
    };
    for key in ["qosClass", "observedGeneration"] {
        if status.text(key).is_empty() && status.int(key) == 0 {
            keep(status, was, key);
        }
    }
    let mut seen: Vec<&Value> = was.list("conditions").iter().collect();
    for condition in kschema::fields::items_mut(status, "conditions") {
        let Some(at) = seen.iter().position(|old| old.text("type") == condition.text("type")) else {
            continue;
        };
        let generation = seen.remove(at).int("observedGeneration");
        if condition.int("observedGeneration") == 0 && generation != 0 {
            condition["observedGeneration"] = json!(generation);
        }
    }
}

/// Checks a change of the status.
pub(crate) fn validate(object: &Value, old: &Value, options: Options, errors: &mut Errors) {
    let meta = Path::root("metadata");
    annotations::validate_update(object, old, options, &meta.field("annotations"), errors);
    let path = Path::root("status");
    let (status, was, spec) = (&object["status"], &old["status"], &object["spec"]);
    conditions(status, &path.field("conditions"), errors);
    nominated(status, was, &old["spec"], &path.field("nominatedNodeName"), errors);
    if status.int("observedGeneration") < 0 {
        let why = "must be a non-negative integer";
        errors.invalid(&path.field("observedGeneration"), status.int("observedGeneration"), why);
    }
    if status.text("qosClass") != was.text("qosClass") {
        errors.invalid(&path.field("qosClass"), status.text("qosClass"), "field is immutable");
    }
    container_status::validate_transitions(status, was, &old["spec"], &path, errors);
    claim_statuses(status, spec, &path.field("resourceClaimStatuses"), errors);
    extended_claim(status, spec, &path.field("extendedResourceClaimStatus"), errors);
    allocatable_claims(status, spec, &path.field("nodeAllocatableResourceClaimStatuses"), errors);
    addresses(status, was, "podIPs", "~core.v1.PodIP", &path, errors);
    let hosts = status.list("hostIPs");
    if let Some(first) =
        hosts.first().map(|first| first.text("ip")).filter(|first| *first != status.text("hostIP"))
    {
        let list = path.field("hostIPs");
        errors.invalid(&list.index(0).field("ip"), first, "must be equal to `hostIP`");
    }
    addresses(status, was, "hostIPs", "~core.v1.HostIP", &path, errors);
    container_status::validate(status, spec, &path, errors);
}

fn conditions(status: &Value, list: &Path<'_>, errors: &mut Errors) {
    for (index, condition) in status.list("conditions").iter().enumerate() {
        let (path, kind) = (list.index(index), condition.text("type"));
        let generation = condition.int("observedGeneration");
        if generation < 0 {
            errors.invalid(&path.field("observedGeneration"), generation, "must be a non-negative integer");
        }
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind) {
            labels::name(kind, &path.field("Type"), errors);
        }
    }
}

fn nominated(status: &Value, was: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let name = status.text("nominatedNodeName");
    if name.is_empty() || name == was.text("nominatedNodeName") {
        return;
    }
    errors.faults(path, name, form::dns_subdomain(name));
    if !spec.text("nodeName").is_empty() {
        errors.forbidden(path, "may not be set on pods that are already bound to a node");
    }
}

/// `shown`: the type that a message shows the entries in.
fn addresses(
    status: &Value,
    was: &Value,
    key: &str,
    shown: &'static str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = path.field(key);
    let of = |status: &'_ Value| -> Vec<String> {
        status.list(key).iter().map(|entry| entry.text("ip").to_owned()).collect()
    };
    let (new, old) = (of(status), of(was));
    for (index, ip) in new.iter().enumerate() {
        address::address(&list.index(index), ip, old.iter().map(String::as_str), errors);
    }
    if new.len() > 1 {
        let dual = address::is_dual_stack(new.iter().map(String::as_str)).unwrap_or_else(|fault| {
            let why = format!("failed to check for dual stack with error:{fault}");
            errors.fault(FieldError::internal(list.to_string(), why));
            false
        });
        if !dual || new.len() > 2 {
            errors.invalid(
                &list,
                Internal(shown, status.get(key)),
                "may specify no more than one IP for each IP family",
            );
        }
    }
}

fn claim_statuses(status: &Value, spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, entry) in status.list("resourceClaimStatuses").iter().enumerate() {
        let (path, name) = (list.index(index), entry.text("name"));
        if !spec.list("resourceClaims").iter().any(|claim| claim.text("name") == name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&path.field("name"), name, why);
        }
        if !names.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if let Some(claim) = entry.some_text("resourceClaimName") {
            errors.faults(&path.field("resourceClaimName"), claim, form::dns_subdomain(claim));
        }
    }
}

/// The claim that stands for extended resources which a device driver serves (KEP-5004).
fn extended_claim(status: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(claim) = status.get_some("extendedResourceClaimStatus") else {
        return;
    };
    let list = path.field("requestMappings");
    if claim.count("requestMappings") == 0 {
        errors.required(&list, "at least one request mapping is required");
    }
    let mut seen = BTreeSet::new();
    let containers = || spec.list("initContainers").iter().chain(spec.list("containers"));
    for (index, mapping) in claim.list("requestMappings").iter().enumerate() {
        let item = list.index(index);
        let (container, resource, request) =
            (mapping.text("containerName"), mapping.text("resourceName"), mapping.text("requestName"));
        match containers().find(|one| one.text("name") == container) {
            None => {
                let why =
                    "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                errors.invalid(&item.field("containerName"), container, why);
            }
            Some(one) if !one["resources"]["requests"].has(resource) => {
                let why = "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests";
                errors.invalid(&item.field("resourceName"), resource, why);
            }
            Some(_) => {}
        }
        errors.faults(&path.field("requestName"), request, form::dns_label(request));
        if !seen.insert((container, resource, request)) {
            for (key, value) in
                [("containerName", container), ("resourceName", resource), ("requestName", request)]
            {
                errors.duplicate(&item.field(key), value);
            }
        }
    }
    errors.name(&path.field("resourceClaimName"), claim.text("resourceClaimName"), form::dns_subdomain);
}

/// Claims of what the node itself gives out (KEP-5517).
fn allocatable_claims(status: &Value, spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    for (index, entry) in status.list("nodeAllocatableResourceClaimStatuses").iter().enumerate() {
        let (path, name) = (list.index(index), entry.text("resourceClaimName"));
        if name.is_empty() {
            errors.required(&path.field("resourceClaimName"), "must not be empty");
        }
        let mut known = spec.list("resourceClaims").iter().chain(status.list("resourceClaimStatuses"));
        if !known.any(|claim| claim.some_text("resourceClaimName") == Some(name)) {
            errors.invalid(&path.field("resourceClaimName"), name, "no mapping found in pod reference");
        }
        for key in ["containers", "resources"] {
            if entry.count(key) == 0 {
                errors.required(&path.field(key), "must not be empty");
            }
        }
        let resources = path.field("resources");
        for (resource, amount) in entry.map("resources") {
            if !quantity::is_native(resource) {
                errors.invalid(
                    &resources.key(resource),
                    resource,
                    "must be a node allocatable resource name",
                );
            }
            if quantity::amount(amount) < Quantity::default() {
                errors.invalid(&resources.key(resource), amount, "must be non-negative");
            }
        }
    }
}
