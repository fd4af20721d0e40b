//! Value validation below `allOf`, `anyOf`, `oneOf` and `not`: it may only restrict what is described outside of it.

use serde_json::{Value, json};

use super::Pattern;
use super::rules::{flag, is_zero, properties, text};
use crate::error::FieldError;

/// Which `anyOf`s of a schema only say again that a value is an integer or text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skip {
    any_of: bool,
    first_all_of: bool,
}

impl Skip {
    pub(super) fn of(schema: &Value) -> Self {
        let pattern = json!([{"type": "integer"}, {"type": "string"}]);
        Self { any_of: schema["anyOf"] == pattern, first_all_of: schema["allOf"][0]["anyOf"] == pattern }
    }
}

fn list<'a>(schema: &'a Value, key: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    schema[key].as_array().into_iter().flatten().enumerate()
}

/// What must hold of the value validation of a part.
pub(super) fn value_validation(schema: &Value, skip: Skip, path: &str, errors: &mut Vec<FieldError>) {
    if !skip.any_of {
        for (index, below) in list(schema, "anyOf") {
            nested(below, Skip::default(), &format!("{path}.anyOf[{index}]"), errors);
        }
    }
    for (index, below) in list(schema, "allOf") {
        let skip = Skip { any_of: skip.first_all_of && index == 0, first_all_of: false };
        nested(below, skip, &format!("{path}.allOf[{index}]"), errors);
    }
    for (index, below) in list(schema, "oneOf") {
        nested(below, Skip::default(), &format!("{path}.oneOf[{index}]"), errors);
    }
    if schema["not"].is_object() {
        nested(&schema["not"], Skip::default(), &format!("{path}.not"), errors);
    }
    let pattern = text(schema, "pattern");
    if let Err(error) = Pattern::new(pattern) {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid_text(format!("{path}.pattern"), pattern, why));
    }
}

fn nested(schema: &Value, skip: Skip, path: &str, errors: &mut Vec<FieldError>) {
    value_validation(schema, skip, path, errors);
    if schema["items"].is_object() {
        nested(&schema["items"], Skip::default(), &format!("{path}.items"), errors);
    }
    for (name, property) in properties(schema) {
        nested(property, Skip::default(), &format!("{path}.properties[{name}]"), errors);
    }
    let mut forbid = |key: &str, why: &str| errors.push(FieldError::forbidden(format!("{path}.{key}"), why));
    if !text(schema, "type").is_empty() {
        forbid("type", "must be empty to be structural");
    }
    if schema["additionalProperties"] == true || schema["additionalProperties"].is_object() {
        forbid("additionalProperties", "must be undefined to be structural");
    }
    if !schema["default"].is_null() {
        forbid("default", "must be undefined to be structural");
    }
    for key in ["title", "description"] {
        if !text(schema, key).is_empty() {
            forbid(key, "must be empty to be structural");
        }
    }
    for key in [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ] {
        if flag(schema, key) {
            forbid(key, "must be false to be structural");
        }
    }
    if !is_zero(&schema["x-kubernetes-list-map-keys"]) {
        forbid("x-kubernetes-list-map-keys", "must be empty to be structural");
    }
    for key in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        if !schema[key].is_null() {
            forbid(key, "must be undefined to be structural");
        }
    }
    if !is_zero(&schema["x-kubernetes-validations"]) {
        forbid("x-kubernetes-validations", "must be empty to be structural");
    }
    // Reasoning about it could restrict what the server fills in.
    if !schema["properties"]["metadata"].is_null() {
        forbid("properties[metadata]", "must not be specified in a nested context");
    }
}

/// What value validation speaks of must be described outside of it: `schema` is what restricts, `outer` what describes.
pub(super) fn completeness(
    schema: &Value,
    outer: Option<&Value>,
    outer_path: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(outer) = outer else {
        errors.push(FieldError::required(outer_path, &format!("because it is defined in {path}")));
        return;
    };
    if schema["not"].is_object() {
        nested_completeness(&schema["not"], Some(outer), outer_path, &format!("{path}.not"), errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, below) in list(schema, key) {
            nested_completeness(below, Some(outer), outer_path, &format!("{path}.{key}[{index}]"), errors);
        }
    }
}

fn nested_completeness(
    schema: &Value,
    outer: Option<&Value>,
    outer_path: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    completeness(schema, outer, outer_path, path, errors);
    let Some(outer) = outer else { return };
    if schema["items"].is_object() {
        let items = outer.get("items").filter(|items| items.is_object());
        nested_completeness(
            &schema["items"],
            items,
            &format!("{outer_path}.items"),
            &format!("{path}.items"),
            errors,
        );
    }
    for (name, property) in properties(schema) {
        let outer_path = format!("{outer_path}.properties[{name}]");
        let path = format!("{path}.properties[{name}]");
        match outer["properties"].get(name) {
            None => {
                errors.push(FieldError::required(outer_path, &format!("because it is defined in {path}")))
            }
            Some(outer) => nested_completeness(property, Some(outer), &outer_path, &path, errors),
        }
    }
}
