//! Pods and pod templates.

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{child, drop_status, items_mut, keep, set_default},
    strategy::Strategy,
};

use crate::pod_spec;

/// The strategy of `pods`.
#[derive(Debug)]
pub(crate) struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        pod_spec::default(spec);
        set_default(spec, "enableServiceLinks", true);
        for list in ["containers", "initContainers"] {
            for container in items_mut(spec, list) {
                requests_from_limits(container);
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = qos_class(&object["spec"]);
        object["status"] = json!({"phase": "Pending", "qosClass": class});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if let Some(class) = old["status"].get("qosClass") {
            child(object, "status")["qosClass"] = class.clone();
        }
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        pod_spec::validate(&object["spec"], "spec", errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        validate_pod_update(object, old, errors);
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let period = requested.or_else(|| spec["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
        // Nobody would ever confirm the end of a pod that is on no node, and one that ended needs no grace.
        let unscheduled = spec["nodeName"].as_str().unwrap_or_default().is_empty();
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if unscheduled || ended { Some(0) } else { Some(if period < 0 { 1 } else { period }) }
    }
}

/// The strategy of `podtemplates`.
#[derive(Debug)]
pub(crate) struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        pod_spec::default(child(child(object, "template"), "spec"));
    }

    fn prepare_create(&self, object: &mut Value) {
        drop_status(object);
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        pod_spec::validate(&object["template"]["spec"], "template.spec", errors);
    }
}

/// A limit without a request means that the request is the limit.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let requests = child(child(container, "resources"), "requests");
    for (name, limit) in limits {
        set_default(requests, &name, limit);
    }
}

/// The quality-of-service class (Kubernetes, "Pod Quality of Service Classes").
fn qos_class(spec: &Value) -> &'static str {
    let lists = ["containers", "initContainers"];
    let containers: Vec<&Value> = lists.iter().filter_map(|list| spec[*list].as_array()).flatten().collect();
    let counted = |resources: &Value| {
        ["cpu", "memory"].iter().any(|name| {
            let text = resources[*name].as_str().unwrap_or("0");
            kcore::Quantity::parse(text).is_ok_and(|quantity| !quantity.is_zero())
        })
    };
    let pod_level = &spec["resources"];
    let holders: Vec<&Value> = if pod_level.is_object() {
        vec![pod_level]
    } else {
        containers.iter().map(|c| &c["resources"]).collect()
    };
    if !holders.iter().any(|resources| counted(&resources["requests"]) || counted(&resources["limits"])) {
        return "BestEffort";
    }
    let guaranteed = holders.iter().all(|resources| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = &resources["limits"][*name];
            limit.is_string()
                && (resources["requests"][*name].is_null() || resources["requests"][*name] == *limit)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// What of a pod may change: images, deadlines, tolerations (only more), gates (only fewer), and what the server writes.
fn validate_pod_update(object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut munged = object["spec"].clone();
    let before = &old["spec"];
    for list in ["containers", "initContainers"] {
        let (Some(new), Some(was)) =
            (munged.get_mut(list).and_then(Value::as_array_mut), before[list].as_array())
        else {
            continue;
        };
        if new.len() != was.len() {
            let field = format!("spec.{list}");
            errors.push(FieldError::forbidden(field, "pod updates may not add or remove containers"));
            return;
        }
        for (new, was) in new.iter_mut().zip(was) {
            keep(new, was, "image");
        }
    }
    for key in [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "schedulingGates",
        "nodeName",
        "ephemeralContainers",
    ] {
        keep(&mut munged, before, key);
    }
    let gates = |object: &Value| object["spec"]["schedulingGates"].as_array().cloned().unwrap_or_default();
    let gated = gates(old);
    if !gated.is_empty() {
        // KEP-3838: a gated pod's node selector may still be narrowed.
        keep(&mut munged, before, "nodeSelector");
        keep(&mut munged, before, "affinity");
    }
    if gates(object).iter().any(|gate| !gated.contains(gate)) {
        errors.push(FieldError::forbidden(
            "spec.schedulingGates",
            "only deletion is allowed, but found new scheduling gate",
        ));
    }
    let kept = before["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let now = object["spec"]["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !kept.iter().all(|toleration| now.contains(toleration)) {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    if munged != *before {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}
