//! Which keywords a schema may use, and how those that belong together go together.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    DEPTH_MAX, field_path,
    rules::{flag, is_zero, properties, text},
};
use crate::error::FieldError;

/// What is known from above.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    /// Why there may be no defaults here.
    pub(super) no_defaults: Option<String>,
    /// Whether this is within `metadata`, `kind` or `apiVersion`.
    pub(super) in_metadata: bool,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

pub(super) fn validate(
    schema: &Value,
    path: &str,
    context: &Context,
    is_root: bool,
    depth: usize,
    errors: &mut Vec<FieldError>,
) {
    if !schema.is_object() || depth > DEPTH_MAX {
        return;
    }
    let at = |key: &str| format!("{path}.{key}");
    standard(schema, path, context, errors);
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(at("uniqueItems"), why));
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        if !is_zero(&schema["properties"]) && *additional != true {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(at("additionalProperties"), why));
        }
        let why = "inside additionalProperties applying to object metadata";
        let below = if context.in_metadata {
            Context { no_defaults: Some(why.to_owned()), ..context.clone() }
        } else {
            context.clone()
        };
        validate(additional, &at("additionalProperties"), &below, false, depth + 1, errors);
    }
    let is_object = is_root || flag(schema, "x-kubernetes-embedded-resource");
    for (name, property) in properties(schema) {
        let mut below = context.clone();
        if is_object && ["metadata", "kind", "apiVersion"].contains(&name.as_str()) {
            below.in_metadata = true;
            if is_root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        validate(property, &format!("{path}.properties[{name}]"), &below, false, depth + 1, errors);
    }
    validate(&schema["not"], &at("not"), context, false, depth + 1, errors);
    for key in ["allOf", "oneOf", "anyOf", "items"] {
        for (index, below) in schema[key].as_array().into_iter().flatten().enumerate() {
            validate(below, &format!("{path}.{key}[{index}]"), context, false, depth + 1, errors);
        }
    }
    validate(&schema["items"], &at("items"), context, false, depth + 1, errors);
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let at = at("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, false, "must be true or undefined"));
    }
    map_type(schema, path, errors);
    list_type(schema, path, errors);
    map_keys(schema, path, errors);
    required_keys(schema, path, errors);
    rules(schema, path, errors);
}

/// Keywords that no structural schema has.
fn standard(schema: &Value, path: &str, context: &Context, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    let at = |key: &str| format!("{path}.{key}");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(at("type"), kind, &TYPES));
    }
    if let Some(why) = context.no_defaults.as_ref().filter(|_| !schema["default"].is_null()) {
        errors.push(FieldError::forbidden(at("default"), format!("must not be set {why}")));
    }
    for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if !is_zero(&schema[key]) {
            errors.push(FieldError::forbidden(at(key), format!("{key} is not supported")));
        }
    }
    if kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(at("type"), why));
    }
    if schema["items"].is_array() {
        errors.push(FieldError::forbidden(at("items"), "items must be a schema object and not an array"));
    }
    if context.in_metadata && flag(schema, "x-kubernetes-embedded-resource") {
        let at = at("x-kubernetes-embedded-resource");
        errors.push(FieldError::forbidden(at, "must not be used inside of resource meta"));
    }
}

/// The type that another keyword asks for.
fn wants_type(schema: &Value, path: &str, wanted: &str, keyword: &str, errors: &mut Vec<FieldError>) -> bool {
    let kind = text(schema, "type");
    let why = format!("must be {wanted} if {keyword} is specified");
    if kind != wanted {
        let at = format!("{path}.type");
        errors.push(if kind.is_empty() {
            FieldError::required(at, &why)
        } else {
            FieldError::invalid_text(at, kind, why)
        });
    }
    kind == wanted
}

fn map_type(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(map_type) = schema["x-kubernetes-map-type"].as_str() else { return };
    wants_type(schema, path, "object", "x-kubernetes-map-type", errors);
    if !["atomic", "granular"].contains(&map_type) {
        let at = format!("{path}.x-kubernetes-map-type");
        errors.push(FieldError::not_supported(at, map_type, &["atomic", "granular"]));
    }
}

fn list_type(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(list_type) = schema["x-kubernetes-list-type"].as_str() else { return };
    let items = &schema["items"];
    let is_list = wants_type(schema, path, "array", "x-kubernetes-list-type", errors);
    if is_list && list_type == "set" && items.is_object() {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let shown = || schema["items"]["x-kubernetes-list-type"].clone();
        match text(items, "type") {
            "array" if !["", "atomic"].contains(&text(items, "x-kubernetes-list-type")) => {
                let at = format!("{path}.items.x-kubernetes-list-type");
                errors.push(FieldError::invalid(at, shown(), why));
            }
            "object" if text(items, "x-kubernetes-map-type") != "atomic" => {
                let at = format!("{path}.items.x-kubernetes-map-type");
                errors.push(FieldError::invalid(at, shown(), why));
            }
            _ => {}
        }
    }
    if !["atomic", "set", "map"].contains(&list_type) {
        let at = format!("{path}.x-kubernetes-list-type");
        errors.push(FieldError::not_supported(at, list_type, &["atomic", "set", "map"]));
    }
}

fn keys(schema: &Value) -> impl Iterator<Item = &str> {
    schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn map_keys(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let at = |key: &str| format!("{path}.{key}");
    let keys_at = at("x-kubernetes-list-map-keys");
    let list_type = schema["x-kubernetes-list-type"].as_str();
    if keys(schema).next().is_some() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.push(FieldError::required(at("x-kubernetes-list-type"), why)),
            Some("map") => {}
            Some(other) => errors.push(FieldError::invalid_text(at("x-kubernetes-list-type"), other, why)),
        }
    }
    if list_type != Some("map") {
        return;
    }
    if keys(schema).next().is_none() {
        let why = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(&keys_at, why));
    }
    let items = &schema["items"];
    if items.is_null() {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(at("items"), why));
        return;
    }
    if text(items, "type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid_text(at("items.type"), text(items, "type"), why));
        return;
    }
    let mut seen = HashSet::new();
    let shown = &schema["x-kubernetes-list-map-keys"];
    for key in keys(schema) {
        match items["properties"].get(key) {
            Some(property) if ["array", "object"].contains(&text(property, "type")) => {
                let at = format!("{path}.items.properties[{key}].type");
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid_text(at, "object", why));
            }
            Some(_) => {}
            None => errors.push(FieldError::invalid(
                &keys_at,
                shown,
                "entries must all be names of item properties",
            )),
        }
        if !seen.insert(key) {
            errors.push(FieldError::invalid(&keys_at, shown, "must not contain duplicate entries"));
        }
    }
}

/// Entries of sets and maps are not null, and the keys of maps always there.
fn required_keys(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let list_type = text(schema, "x-kubernetes-list-type");
    let items = &schema["items"];
    if !items.is_object() || !["set", "map"].contains(&list_type) {
        return;
    }
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), why));
    }
    if list_type != "map" {
        return;
    }
    for key in keys(schema) {
        let Some(property) = items["properties"].get(key) else { continue };
        let at = format!("{path}.items.properties[{key}]");
        let is_required = items["required"].as_array().is_some_and(|list| list.contains(&json!(key)));
        if !is_required && property["default"].is_null() {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{at}.default"), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{at}.nullable"), why));
        }
    }
}

const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// The form of the rules in the expression language.
fn rules(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in schema["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("{path}.x-kubernetes-validations[{index}].{key}");
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.push(FieldError::required(at("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid_text(at("message"), message, "must be non-empty if specified"));
        } else if has_breaks(message.trim()) {
            errors.push(FieldError::invalid_text(at("message"), message, "must not contain line breaks"));
        } else if has_breaks(expression) && message.trim().is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(at("message"), why));
        }
        let message_expression = text(rule, "messageExpression");
        if !message_expression.is_empty() && message_expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(at("messageExpression"), why));
        }
        if let Some(reason) = rule["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
            errors.push(FieldError::not_supported(at("reason"), reason, &REASONS));
        }
        let field = text(rule, "fieldPath");
        if !field.is_empty() {
            let mut refuse = |why: &str| errors.push(FieldError::invalid_text(at("fieldPath"), field, why));
            if field.trim().is_empty() {
                refuse("must be non-empty if specified");
            }
            if has_breaks(field) {
                refuse("must not contain line breaks");
            }
            if field_path::resolve(schema, field, true).is_err() {
                refuse("must be a valid path");
            }
        }
    }
}
