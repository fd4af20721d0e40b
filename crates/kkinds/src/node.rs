//! Nodes.

use serde_json::Value;

use kschema::{
    error::FieldError,
    fields::{immutable, set_default},
    strategy::Strategy,
};

/// The strategy of `nodes`.
#[derive(Debug)]
pub(crate) struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        // What can't be allocated is the difference; without one, all of the capacity can.
        let capacity = object.pointer("/status/capacity").cloned();
        if let Some((status, capacity)) = object.get_mut("status").zip(capacity) {
            set_default(status, "allocatable", capacity);
        }
    }

    /// Nodes may be created with their status: that is how they register.
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        for (index, taint) in object["spec"]["taints"].as_array().into_iter().flatten().enumerate() {
            let effect = taint["effect"].as_str().unwrap_or_default();
            let supported = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            if !supported.contains(&effect) {
                errors.push(FieldError::not_supported(
                    format!("spec.taints[{index}].effect"),
                    effect,
                    &supported,
                ));
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        if old["spec"]["providerID"].as_str().is_some_and(|id| !id.is_empty()) {
            immutable(object, old, "spec.providerID", errors);
        }
    }
}
