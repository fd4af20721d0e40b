//! The schemas of a definition that somebody creates or changes: they must be structural, and their rules must compile.

use std::sync::Arc;

use kschema::{
    Catalog,
    error::FieldError,
    strategy::{NameRule, Strategy},
    structural::{
        SchemaRules, Structural, validate_columns, validate_scale, validate_schema,
        validate_selectable_fields,
    },
};
use serde_json::Value;

use super::rules;

/// The rules of CustomResourceDefinitions, with those for their schemas.
#[derive(Debug)]
pub(crate) struct Definitions {
    /// The rules for everything else.
    pub(crate) rest: Arc<dyn Strategy>,
    pub(crate) catalog: Arc<Catalog>,
}

/// What all versions say in the same words stands in one place upstream, which is the one that is named.
fn places<'a>(crd: &'a Value, path: &[&str], shared: &str) -> Vec<(&'a Value, String)> {
    let versions = crd["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = |version: &'a Value| path.iter().fold(version, |value, key| &value[*key]);
    match versions {
        [] => Vec::new(),
        [first, rest @ ..] if rest.iter().all(|version| found(version) == found(first)) => {
            vec![(found(first), format!("spec.{shared}"))]
        }
        versions => {
            let own = |index: usize| format!("spec.versions[{index}].{}", path.join("."));
            versions.iter().enumerate().map(|(index, version)| (found(version), own(index))).collect()
        }
    }
}

impl Definitions {
    fn check(&self, crd: &Value, errors: &mut Vec<FieldError>) {
        let versions = crd["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let status = versions.iter().any(|version| version["subresources"]["status"].is_object());
        for (source, path) in places(crd, &["schema", "openAPIV3Schema"], "validation.openAPIV3Schema") {
            if !source.is_object() {
                errors.push(FieldError::required(path, "schemas are required"));
                continue;
            }
            let found = validate_schema(
                &self.catalog,
                source,
                &path,
                SchemaRules { status, ..SchemaRules::default() },
            );
            match (found.is_empty(), Structural::compile(source)) {
                (true, Ok(schema)) => rules::check_definition(&schema, &path, errors),
                (true, Err(error)) => errors.push(FieldError::invalid_text(path, "", error)),
                (false, _) => errors.extend(found),
            }
        }
        for (columns, path) in places(crd, &["additionalPrinterColumns"], "additionalPrinterColumns") {
            validate_columns(columns, &path, errors);
        }
        for (scale, path) in places(crd, &["subresources", "scale"], "subresources.scale") {
            validate_scale(scale, &path, errors);
        }
        for (index, version) in versions.iter().enumerate() {
            let path = format!("spec.versions[{index}].selectableFields");
            let schema = &version["schema"]["openAPIV3Schema"];
            validate_selectable_fields(&version["selectableFields"], schema, &path, errors);
        }
    }
}

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        self.rest.default(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        self.rest.prepare_create(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        self.rest.prepare_update(object, old);
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        self.rest.prepare_status(object, old);
    }

    fn validate_create(&self, object: &Value, errors: &mut Vec<FieldError>) {
        self.rest.validate_create(object, errors);
        self.check(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.rest.validate_change(object, old, errors);
        // A schema that has not changed is not held against the definition.
        if object["spec"]["versions"] != old["spec"]["versions"] {
            self.check(object, errors);
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.rest.validate_status(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        self.rest.warnings(object, old)
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        self.rest.reset_fields(subresource)
    }

    fn name_rule(&self) -> NameRule {
        self.rest.name_rule()
    }
}
