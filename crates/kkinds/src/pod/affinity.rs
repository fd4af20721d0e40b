//! Where a pod wants to run: node affinity, and affinity to other pods.

use kschema::error::FieldError;
use serde_json::Value;

use super::{options::Options, spread};
use crate::check::{Look, Path, Report, form, labels, texts};

type Errors = Vec<FieldError>;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks `affinity`.
pub(crate) fn validate(spec: &Value, options: Options, path: &Path<'_>, errors: &mut Errors) {
    let Some(affinity) = spec.get_some("affinity") else {
        return;
    };
    if let Some(node) = affinity.get_some("nodeAffinity") {
        let path = path.field("nodeAffinity");
        if let Some(required) = node.get_some(REQUIRED) {
            node_selector(required, options.lax_node_values, &path.field(REQUIRED), errors);
        }
        let list = path.field(PREFERRED);
        for (index, preferred) in node.list(PREFERRED).iter().enumerate() {
            let path = list.index(index);
            weight(preferred, &path, errors);
            node_term(&preferred["preference"], true, &path.field("preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get_some(kind) else {
            continue;
        };
        let path = path.field(kind);
        let list = path.field(REQUIRED);
        for (index, term) in pods.list(REQUIRED).iter().enumerate() {
            pod_term(term, options.lax_affinity, &list.index(index), errors);
        }
        let list = path.field(PREFERRED);
        for (index, preferred) in pods.list(PREFERRED).iter().enumerate() {
            let path = list.index(index);
            weight(preferred, &path, errors);
            let term = &preferred["podAffinityTerm"];
            pod_term(term, options.lax_affinity, &path.field("podAffinityTerm"), errors);
        }
    }
}

fn weight(preferred: &Value, path: &Path<'_>, errors: &mut Errors) {
    let weight = preferred.int("weight");
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.field("weight"), weight, "must be in the range 1-100");
    }
}

/// Checks a `NodeSelector`. `lax`: values may be faulty.
pub(crate) fn node_selector(selector: &Value, lax: bool, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("nodeSelectorTerms");
    if selector.count("nodeSelectorTerms") == 0 {
        errors.required(&list, "must have at least one node selector term");
    }
    for (index, term) in selector.list("nodeSelectorTerms").iter().enumerate() {
        node_term(term, lax, &list.index(index), errors);
    }
}

fn node_term(term: &Value, lax: bool, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("matchExpressions");
    for (index, requirement) in term.list("matchExpressions").iter().enumerate() {
        node_requirement(requirement, lax, &list.index(index), errors);
    }
    let list = path.field("matchFields");
    for (index, requirement) in term.list("matchFields").iter().enumerate() {
        field_requirement(requirement, &list.index(index), errors);
    }
}

fn node_requirement(requirement: &Value, lax: bool, path: &Path<'_>, errors: &mut Errors) {
    let (operator, values) = (requirement.text("operator"), requirement.list("values"));
    labels::operator_fits(operator, values, path, errors);
    match operator {
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        "Gt" | "Lt" if values.len() == 1 => {}
        "Gt" | "Lt" => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.required(&path.field("values"), why);
        }
        _ => errors.invalid(&path.field("operator"), operator, "not a valid selector operator"),
    }
    labels::name(requirement.text("key"), &path.field("key"), errors);
    if !lax {
        let list = path.field("values");
        for (index, value) in texts(values).enumerate() {
            errors.faults(&list.index(index), value, form::label_value(value));
        }
    }
}

fn field_requirement(requirement: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (operator, values) = (requirement.text("operator"), requirement.list("values"));
    match operator {
        "In" | "NotIn" if values.len() == 1 => {}
        "In" | "NotIn" => {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(&path.field("values"), why);
        }
        _ => errors.invalid(&path.field("operator"), operator, "not a valid selector operator"),
    }
    let key = requirement.text("key");
    if key != "metadata.name" {
        errors.invalid(&path.field("key"), key, "not a valid field selector key");
        return;
    }
    let list = path.field("values");
    for (index, value) in texts(values).enumerate() {
        errors.faults(&list.index(index), value, form::dns_subdomain(value));
    }
}

fn pod_term_selectors(term: &Value, lax: bool, path: &Path<'_>, errors: &mut Errors) {
    for key in ["labelSelector", "namespaceSelector"] {
        labels::selector(term.get_some(key), &path.field(key), lax, errors);
    }
}

fn pod_term(term: &Value, lax: bool, path: &Path<'_>, errors: &mut Errors) {
    pod_term_selectors(term, lax, path, errors);
    for namespace in texts(term.list("namespaces")) {
        errors.faults(&path.field("namespace"), namespace, form::dns_label(namespace));
    }
    spread::label_keys(term, path, errors);
    let key = term.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.field("topologyKey"), "can not be empty");
    }
    labels::name(key, &path.field("topologyKey"), errors);
}

/// All terms of affinity to other pods.
pub(crate) fn pod_terms(spec: &Value) -> impl Iterator<Item = &Value> {
    let kinds = ["podAffinity", "podAntiAffinity"];
    let affinity = spec.get_some("affinity");
    kinds.into_iter().filter_map(move |kind| affinity?.get_some(kind)).flat_map(|pods| {
        let preferred = pods.list(PREFERRED).iter().filter_map(|preferred| preferred.get("podAffinityTerm"));
        pods.list(REQUIRED).iter().chain(preferred)
    })
}

/// Whether a term's selectors are faulty.
pub(crate) fn selectors_are_faulty(spec: &Value) -> bool {
    let mut errors = Vec::new();
    pod_terms(spec).for_each(|term| pod_term_selectors(term, false, &Path::root(""), &mut errors));
    !errors.is_empty()
}

/// Whether values of the required node affinity are faulty.
pub(crate) fn node_values_are_faulty(spec: &Value) -> bool {
    let required =
        spec.get("affinity").and_then(|all| all.get("nodeAffinity")).and_then(|all| all.get(REQUIRED));
    required.is_some_and(selector_values_are_faulty)
}

/// Whether values of a `NodeSelector` are faulty.
pub(crate) fn selector_values_are_faulty(selector: &Value) -> bool {
    let terms = selector.list("nodeSelectorTerms").iter();
    let mut expressions = terms.flat_map(|term| term.list("matchExpressions"));
    expressions.any(|one| texts(one.list("values")).any(|value| !form::label_value(value).is_empty()))
}
