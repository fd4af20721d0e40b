//! The rules of custom objects: their structural schema, in the version they are in, and their scale.

use std::sync::Arc;

use ahash::HashMap;
use kschema::{
    Catalog,
    error::FieldError,
    fields::{drop_status, keep},
    strategy::{NameRule, Strategy},
};
use serde_json::Value;

use super::{ScalePaths, Structure};
use crate::registry::Version;

/// The rules of the objects of one definition.
#[derive(Debug)]
pub(super) struct CustomStrategy {
    catalog: Arc<Catalog>,
    versions: HashMap<String, Arc<Structure>>,
}

impl CustomStrategy {
    pub(super) fn new(catalog: &Arc<Catalog>, versions: &[Version]) -> Self {
        let structures = versions
            .iter()
            .filter_map(|version| Some((version.name.clone(), Arc::clone(version.structure.as_ref()?))));
        Self { catalog: Arc::clone(catalog), versions: structures.collect() }
    }

    /// The structure of the version that the object is in.
    fn structure(&self, object: &Value) -> Option<&Structure> {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        self.versions.get(kcore::kind::split_api_version(api_version).1).map(|structure| &**structure)
    }

    fn has_status(&self, object: &Value) -> bool {
        self.structure(object)
            .is_some_and(|structure| structure.subresources.iter().any(|name| name == "status"))
    }
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        if let Some(structure) = self.structure(object) {
            structure.schema.default_in(object);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.has_status(object) {
            drop_status(object);
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if self.has_status(object) {
            keep(object, old, "status");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let Some(structure) = self.structure(object) else {
            return;
        };
        structure.validate(&self.catalog, object, None, errors);
        if let Some(scale) = &structure.scale {
            validate_scale(object, scale, errors);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        if let Some(structure) = self.structure(object) {
            structure.validate(&self.catalog, object, Some(old), errors);
            if let Some(scale) = &structure.scale {
                validate_scale(object, scale, errors);
            }
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.validate_change(object, old, errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
}

/// The value at a dotted path.
pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, key| value.get(key))
}

fn validate_scale(object: &Value, scale: &ScalePaths, errors: &mut Vec<FieldError>) {
    for path in [&scale.spec_replicas, &scale.status_replicas] {
        let Some(value) = at(object, path) else {
            continue;
        };
        let shown = format!(".{path}");
        match value.as_i64() {
            None => {
                let why = format!(".{path} accessor error: {value} is of the wrong type, expected int64");
                errors.push(FieldError::invalid(shown, 0, why));
            }
            Some(count) if count < 0 => {
                errors.push(FieldError::invalid(shown, count, "should be a non-negative integer"));
            }
            Some(count) if count > i64::from(i32::MAX) => {
                let why = format!("should be less than or equal to {}", i32::MAX);
                errors.push(FieldError::invalid(shown, count, why));
            }
            Some(_) => {}
        }
    }
    if let Some(path) = &scale.selector
        && let Some(value) = at(object, path)
        && !value.is_string()
    {
        let why = format!(".{path} accessor error: {value} is of the wrong type, expected string");
        errors.push(FieldError::invalid_text(format!(".{path}"), "", why));
    }
}
