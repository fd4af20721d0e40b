//! The schemas of a definition that somebody creates or changes: they must be structural, and their rules must compile.

use std::sync::Arc;

use kschema::{
    error::FieldError,
    strategy::{NameRule, Strategy},
    structural::Structural,
};
use serde_json::Value;

use super::rules;

/// The rules of CustomResourceDefinitions, with those for their schemas.
#[derive(Debug)]
pub(crate) struct Definitions(pub(crate) Arc<dyn Strategy>);

/// Checks the schemas of all versions.
fn check(crd: &Value, errors: &mut Vec<FieldError>) {
    let versions: Vec<&Value> = crd["spec"]["versions"].as_array().into_iter().flatten().collect();
    let schema = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
    let first = versions.first().map(|version| schema(version));
    // Upstream keeps a schema that all versions share in one place, and names that place.
    if let Some(first) = first.filter(|first| versions.iter().all(|version| schema(version) == *first)) {
        check_one(&first, "spec.validation.openAPIV3Schema", errors);
        return;
    }
    for (index, version) in versions.into_iter().enumerate() {
        check_one(&schema(version), &format!("spec.versions[{index}].schema.openAPIV3Schema"), errors);
    }
}

fn check_one(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !source.is_object() {
        errors.push(FieldError::required(path, "schemas are required"));
        return;
    }
    let before = errors.len();
    match Structural::compile(source) {
        Ok(schema) if errors.len() == before => rules::check_definition(&schema, path, errors),
        Ok(_) => {}
        Err(error) if errors.len() == before => errors.push(FieldError::invalid_text(path, "", error)),
        Err(_) => {}
    }
}

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        self.0.prepare_create(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        self.0.prepare_update(object, old);
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        self.0.prepare_status(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        self.0.validate(object, errors);
        check(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.0.validate_change(object, old, errors);
        // A schema that has not changed is not held against the definition.
        if object["spec"]["versions"] != old["spec"]["versions"] {
            check(object, errors);
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.0.validate_status(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        self.0.warnings(object, old)
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        self.0.reset_fields(subresource)
    }

    fn name_rule(&self) -> NameRule {
        self.0.name_rule()
    }
}
