//! Questions about what someone may do, which are answered and not stored.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::{Map, Value};

use crate::check::{Internal, Look, Path, Report, form, labels, texts};

type Errors = Vec<FieldError>;

/// The strategy of `subjectaccessreviews` and of the kinds like it.
#[derive(Debug)]
pub(crate) struct AccessReviews {
    /// Whether the question names who is meant, and is not about the caller.
    pub(crate) of_others: bool,
    /// Whether it is about one namespace.
    pub(crate) local: bool,
}

/// Selectors are checked but for their operators, as authorizers may know more of them.
fn selector(found: &Value, of_labels: bool, path: &Path<'_>, errors: &mut Errors) {
    let (raw, requirements) = (found.text("rawSelector"), found.list("requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.invalid(&path.field("rawSelector"), raw, why);
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.required(&path.field("requirements"), &why);
    }
    let list = path.field("requirements");
    for (index, requirement) in requirements.iter().enumerate() {
        let item = list.index(index);
        let (operator, key) = (requirement.text("operator"), requirement.text("key"));
        if !of_labels && key.is_empty() {
            errors.required(&item.field("key"), "must be specified");
        }
        labels::operator_fits(operator, requirement.list("values"), &item, errors);
        if of_labels {
            labels::name(key, &item.field("key"), errors);
            let values = item.field("values");
            for (index, value) in texts(requirement.list("values")).enumerate() {
                errors.faults(&values.index(index), value, form::label_value(value));
            }
        }
    }
}

/// Whether the metadata says anything but what it may.
fn is_bare(meta: Option<&Value>, local: bool) -> bool {
    let none = Map::new();
    let meta = meta.and_then(Value::as_object).unwrap_or(&none);
    meta.iter().all(|(key, value)| {
        key == "managedFields"
            || (local && key == "namespace")
            || value.is_null()
            || value.as_str() == Some("")
    })
}

impl Strategy for AccessReviews {
    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        let (resource, other) = (spec.get_some("resourceAttributes"), spec.get_some("nonResourceAttributes"));
        match (resource, other) {
            (Some(_), Some(other)) => {
                let why = "cannot be specified in combination with resourceAttributes";
                errors.invalid(
                    &path.field("nonResourceAttributes"),
                    Internal("~authorization.v1.NonResourceAttributes", Some(other)),
                    why,
                );
            }
            (None, None) => {
                let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                errors.invalid(&path.field("resourceAttributes"), None, why);
            }
            _ => {}
        }
        if self.of_others && spec.text("user").is_empty() && spec.count("groups") == 0 {
            errors.invalid(&path.field("user"), "", "at least one of user or group must be specified");
        }
        let field = path.field("resourceAttributes");
        for (key, of_labels) in [("fieldSelector", false), ("labelSelector", true)] {
            if let Some(found) = resource.and_then(|resource| resource.get_some(key)) {
                selector(found, of_labels, &field.field(key), errors);
            }
        }
        let meta = object.get_some("metadata");
        if !is_bare(meta, self.local) {
            let why = if self.local { "must be empty except for namespace" } else { "must be empty" };
            errors.invalid(&Path::root("metadata"), Internal("^ObjectMeta", meta), why);
        }
        if !self.local {
            return;
        }
        let namespace = meta.map_or("", |meta| meta.text("namespace"));
        if let Some(named) =
            resource.map(|resource| resource.text("namespace")).filter(|named| *named != namespace)
        {
            errors.invalid(&field.field("namespace"), named, "must match metadata.namespace");
        }
        if let Some(other) = other {
            let why = "disallowed on this kind of request";
            errors.invalid(
                &path.field("nonResourceAttributes"),
                Internal("~authorization.v1.NonResourceAttributes", Some(other)),
                why,
            );
        }
    }
}
