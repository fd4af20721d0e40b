//! Completing selectors by the values that the new pod's labels have (KEP-3243, KEP-3633).

use kschema::fields::{child, items_mut};
use serde_json::{Value, json};

use crate::check::{Look, texts};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Adds to selectors what `matchLabelKeys` and `mismatchLabelKeys` stand for. Called once for a new pod.
pub(crate) fn complete(pod: &mut Value) {
    let labels = pod["metadata"].get("labels").cloned().unwrap_or_default();
    let Some(spec) = pod.get_mut("spec") else {
        return;
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = spec.get_mut("affinity").and_then(|affinity| affinity.get_mut(kind)) else {
            continue;
        };
        for preferred in items_mut(pods, PREFERRED) {
            if let Some(term) = preferred.get_mut("podAffinityTerm") {
                complete_one(term, &labels);
            }
        }
        items_mut(pods, REQUIRED).for_each(|term| complete_one(term, &labels));
    }
    items_mut(spec, "topologySpreadConstraints").for_each(|constraint| complete_one(constraint, &labels));
}

fn complete_one(holder: &mut Value, labels: &Value) {
    let mut added = Vec::new();
    for (key, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for name in texts(holder.list(key)) {
            if let Some(value) = labels.get_some(name) {
                added.push(json!({"key": name, "operator": operator, "values": [value]}));
            }
        }
    }
    if let Some(selector) =
        holder.get_mut("labelSelector").filter(|selector| selector.is_object() && !added.is_empty())
    {
        let list = child(selector, "matchExpressions");
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            list.append(&mut added);
        }
    }
}
