//! Whether a schema is structural, and keeps the other rules that CustomResourceDefinitions set for schemas.
//!
//! The rules, their order and their words are those of apiextensions-apiserver: `apiserver/schema/validation.go` and
//! `complete.go` (what structural means), `pkg/apis/apiextensions/validation` (keywords, list types, defaults).

use serde_json::{Map, Value};

use super::{Structural, keywords, nested};
use crate::{error::FieldError, types::Catalog};

/// Where in a schema a part stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Root,
    Item,
    Field,
}

/// What [`validate_schema`] needs to know beside the schema.
#[derive(Clone, Copy, Debug, Default)]
pub struct SchemaRules {
    /// Whether the version has the status subresource: then the schema's root may say little.
    pub status: bool,
    /// Why defaults may not be given, if they may not: `(field spec.preserveUnknownFields must be false)`.
    pub no_defaults: Option<&'static str>,
}

/// Keywords that may stand at the root of a schema whose status is a subresource, as Go names them and as JSON does.
const ROOT_KEYWORDS: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// Checks the `openAPIV3Schema` of a version of a CustomResourceDefinition, which stands at `path`
/// (`spec.versions[0].schema.openAPIV3Schema`). Rules in the expression language are checked for their form only.
///
/// ```
/// use kschema::{builtin, structural::{SchemaRules, validate_schema}};
/// use serde_json::json;
///
/// let schema = json!({"type": "object", "properties": {"x": {}}});
/// let errors = validate_schema(&builtin::catalog(), &schema, "schema", SchemaRules::default());
/// assert_eq!(errors[0].to_string(), "schema.properties[x].type: Required value: must not be empty for specified object fields");
/// ```
#[must_use]
pub fn validate_schema(catalog: &Catalog, schema: &Value, path: &str, rules: SchemaRules) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if rules.status {
        validate_root(schema, path, &mut errors);
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    let compiled = Structural::compile(schema);
    match &compiled {
        Ok(compiled) => {
            let mut faults = Vec::new();
            invariants(schema, Level::Root, path, &mut faults);
            nested::completeness(schema, Some(schema), path, path, &mut faults);
            faults.sort_by_key(ToString::to_string);
            if faults.is_empty() {
                validate_defaults(catalog, compiled, schema, path, &mut faults);
            }
            errors.extend(faults);
        }
        Err(super::CompileError::Pattern(_)) => {
            let mut faults = Vec::new();
            invariants(schema, Level::Root, path, &mut faults);
            faults.sort_by_key(ToString::to_string);
            errors.extend(faults);
        }
        Err(_) => {}
    }
    let context = keywords::Context { no_defaults: rules.no_defaults.map(str::to_owned), in_metadata: false };
    keywords::validate(schema, path, &context, true, 0, &mut errors);
    if errors.is_empty()
        && let Err(error) = compiled
    {
        errors.push(FieldError::invalid_text(path, "", error));
    }
    errors
}

fn validate_root(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(map) = schema.as_object() else { return };
    let kind = text(schema, "type");
    if !kind.is_empty() && kind != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid_text(format!("{path}.type"), kind, why));
        return;
    }
    let is_allowed = |key: &str| ROOT_KEYWORDS.iter().any(|(_, json)| *json == key);
    if map.iter().any(|(key, value)| !is_allowed(key) && !is_zero(value)) {
        let names: Vec<&str> = ROOT_KEYWORDS.iter().map(|(go, _)| *go).collect();
        let why = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.push(FieldError::invalid(path, schema, why));
    }
}

/// A keyword that says what its absence says.
pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

pub(super) fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

pub(super) fn flag(schema: &Value, key: &str) -> bool {
    schema[key].as_bool().unwrap_or_default()
}

pub(super) fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// What must hold of every part that is not below `allOf` and its like. [`Structural::compile`] has seen to the depth.
fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    let is_embedded = flag(schema, "x-kubernetes-embedded-resource");
    let at = |key: &str| format!("{path}.{key}");
    if kind == "array" && schema["items"].is_null() {
        errors.push(FieldError::required(at("items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(&schema["items"], Level::Item, &at("items"), errors);
    }
    for (name, property) in properties(schema) {
        invariants(property, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        if level == Level::Root {
            errors.push(FieldError::forbidden(at("additionalProperties"), "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &at("additionalProperties"), errors);
        }
        if is_embedded {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(at("additionalProperties"), why));
        }
    }
    extensions(schema, path, errors);
    nested::value_validation(schema, nested::Skip::of(schema), path, errors);
    type_invariants(schema, level, path, errors);
    let is_object = level == Level::Root || is_embedded;
    object_invariants(schema, level, is_object, path, errors);
    if is_embedded && !flag(schema, "x-kubernetes-preserve-unknown-fields") && is_zero(&schema["properties"])
    {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(at("properties"), why));
    }
}

fn extensions(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if flag(schema, "x-kubernetes-int-or-string") {
        for key in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
            if flag(schema, key) {
                let why = "must be false if x-kubernetes-int-or-string is true";
                errors.push(FieldError::invalid(format!("{path}.{key}"), true, why));
            }
        }
    }
}

fn type_invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    let at = format!("{path}.type");
    let is_free =
        flag(schema, "x-kubernetes-int-or-string") || flag(schema, "x-kubernetes-preserve-unknown-fields");
    if flag(schema, "x-kubernetes-embedded-resource") && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if kind.is_empty() {
            FieldError::required(&at, why)
        } else {
            FieldError::invalid_text(&at, kind, why)
        });
    } else if kind.is_empty() && !is_free {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&at, why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid_text(at, kind, "must be object at the root"));
    }
}

/// What the schema may say of the fields that every object has.
fn object_invariants(
    schema: &Value,
    level: Level,
    is_object: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for key in ["kind", "apiVersion"] {
        if let Some(property) = properties.get(key).filter(|_| is_object)
            && text(property, "type") != "string"
        {
            let at = format!("{path}.properties[{key}].type");
            errors.push(FieldError::invalid_text(at, text(property, "type"), "must be string"));
        }
    }
    let Some(metadata) = properties.get("metadata") else { return };
    let at = format!("{path}.properties[metadata]");
    if is_object && text(metadata, "type") != "object" {
        errors.push(FieldError::invalid_text(format!("{at}.type"), text(metadata, "type"), "must be object"));
    }
    if level == Level::Root && !metadata.as_object().is_some_and(restricts_names_only) {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(at, why));
    }
}

fn restricts_names_only(metadata: &Map<String, Value>) -> bool {
    metadata.iter().all(|(key, value)| match key.as_str() {
        "type" | "default" => true,
        "properties" => value
            .as_object()
            .is_some_and(|map| map.keys().all(|name| name == "name" || name == "generateName")),
        _ => is_zero(value),
    })
}

/// Defaults must be what the schema asks for, and hold nothing that it does not describe.
fn validate_defaults(
    catalog: &Catalog,
    compiled: &Structural,
    schema: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(default) = &compiled.default {
        validate_default(catalog, compiled, default, &format!("{path}.default"), errors);
    }
    // Below additionalProperties there are none.
    if let Some(items) = &compiled.items {
        validate_defaults(catalog, items, &schema["items"], &format!("{path}.items"), errors);
    }
    for (name, property) in &compiled.properties {
        let below = &schema["properties"][&**name];
        validate_defaults(catalog, property, below, &format!("{path}.properties[{name}]"), errors);
    }
}

fn validate_default(
    catalog: &Catalog,
    compiled: &Structural,
    default: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let mut pruned = default.clone();
    compiled.prune(&mut pruned);
    if pruned != *default {
        errors.push(FieldError::invalid(path, default, "must not have unknown fields"));
    }
    let mut coerced = default.clone();
    if let Err(error) = compiled.coerce_metadata(catalog, &mut coerced, false) {
        errors.push(error.under(path));
        return;
    }
    let mut faults = Vec::new();
    compiled.validate_part_metadata(catalog, default, &mut faults);
    if faults.is_empty() {
        compiled.validate(default, None, &mut faults);
    }
    errors.extend(faults.into_iter().map(|fault| fault.under(path)));
}
