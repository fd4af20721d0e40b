//! Namespaces: the finalizer in their specification, their phase, and the label with their name.

use kschema::{
    error::FieldError,
    fields::{child, keep},
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::check::{Look, Path, Report, form, texts};

/// The strategy of `namespaces`.
#[derive(Debug)]
pub(crate) struct Namespaces;

/// Checks the name of a finalizer.
fn validate_finalizer(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    errors.faults(path, name, form::qualified_name(name));
    if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
        errors.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

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

    fn prepare_subresource(&self, _subresource: &str, object: &mut Value, old: &Value) {
        keep(object, old, "status");
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        for name in texts(object["spec"].list("finalizers")) {
            validate_finalizer(name, &Path::root("spec.finalizers"), errors);
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Vec<FieldError>) {
        let (phase, path) = (object["status"].text("phase"), Path::root("status.Phase"));
        let ending = object["metadata"].has("deletionTimestamp");
        if !ending && phase != "Active" {
            errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        } else if ending && phase != "Terminating" {
            errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }

    fn validate_subresource(
        &self,
        subresource: &str,
        object: &Value,
        _old: &Value,
        errors: &mut Vec<FieldError>,
    ) -> bool {
        let path = Path::root("spec.finalizers");
        for (index, name) in texts(object["spec"].list("finalizers")).enumerate() {
            validate_finalizer(name, &path.index(index), errors);
        }
        subresource == "finalize"
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        if subresource == "status" { &["spec"] } else { &["status"] }
    }
}
