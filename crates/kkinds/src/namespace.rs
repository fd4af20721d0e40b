//! Namespaces: the finalizer in their specification, their phase, and the label with their name.

use serde_json::{Value, json};

use kschema::{
    fields::{child, keep},
    strategy::{NameRule, Strategy},
};

/// The strategy of `namespaces`.
#[derive(Debug)]
pub(crate) struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        // KEP-2161: every namespace carries its name as a label.
        if let Some(name) = object.pointer("/metadata/name").cloned() {
            child(child(object, "metadata"), "labels")["kubernetes.io/metadata.name"] = name;
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        let finalizers = &mut child(object, "spec")["finalizers"];
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|item| item == "kubernetes") => {}
            Some(list) => list.push(json!("kubernetes")),
            None => *finalizers = json!(["kubernetes"]),
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(child(object, "spec"), &old["spec"], "finalizers");
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
}
