//! From `JSONSchemaProps`, as a CustomResourceDefinition carries it, to a schema that can be used.

use serde_json::{Map, Value};

use super::{Additional, JsonType, Limits, Pattern, Rule, Structural, formats::Format};
use crate::types::ListKind;

/// How deep a schema may be nested. (JSON itself may be nested 128 deep, and every level of a schema takes two.)
pub const DEPTH_MAX: usize = 128;

/// Why there is no such schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A keyword that structural schemas do not have.
    #[error("OpenAPIV3Schema '{0}' is not supported")]
    Unsupported(&'static str),
    /// `items` is a list of schemas.
    #[error("OpenAPIV3Schema 'items' must be a schema, but is an array")]
    ItemsArray,
    /// `x-kubernetes-preserve-unknown-fields: false`
    #[error("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined")]
    PreserveFalse,
    /// A pattern that is no regular expression.
    #[error("must be a valid regular expression, but isn't: {0}")]
    Pattern(String),
    /// A type that there is not.
    #[error("unsupported type {0:?}")]
    Type(String),
    /// More than [`DEPTH_MAX`] levels.
    #[error("the schema is nested too deeply")]
    Depth,
}

impl Structural {
    /// Reads the `openAPIV3Schema` of a version of a CustomResourceDefinition.
    ///
    /// ```
    /// use kschema::structural::{JsonType, Structural};
    /// use serde_json::json;
    ///
    /// let schema = Structural::compile(&json!({"type": "object", "properties": {"spec": {"type": "object"}}}))?;
    /// assert_eq!(schema.properties["spec"].kind, JsonType::Object);
    /// # Ok::<(), kschema::structural::CompileError>(())
    /// ```
    ///
    /// # Errors
    /// For keywords that structural schemas do not have, and patterns that are none. Whether the schema is structural is
    /// another question.
    pub fn compile(schema: &Value) -> Result<Self, CompileError> {
        let mut root = node(schema, 0)?;
        root.is_object = true;
        Ok(root)
    }
}

/// Keywords that are refused where they are given, with the test for that.
const UNSUPPORTED: [&str; 7] =
    ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];

fn node(schema: &Value, depth: usize) -> Result<Structural, CompileError> {
    if depth > DEPTH_MAX {
        return Err(CompileError::Depth);
    }
    for keyword in UNSUPPORTED {
        if !is_unset(&schema[keyword]) {
            let shown = if keyword == "$schema" { "schema" } else { keyword };
            return Err(CompileError::Unsupported(shown));
        }
    }
    let flag = |key: &str| schema[key].as_bool().unwrap_or_default();
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        return Err(CompileError::PreserveFalse);
    }
    let mut properties = std::collections::BTreeMap::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        properties.insert(name.as_str().into(), node(property, depth + 1)?);
    }
    let items = match &schema["items"] {
        Value::Null => None,
        Value::Array(_) => return Err(CompileError::ItemsArray),
        items => Some(Box::new(node(items, depth + 1)?)),
    };
    Ok(Structural {
        kind: kind(schema["type"].as_str().unwrap_or_default())?,
        is_object: flag("x-kubernetes-embedded-resource"),
        nullable: flag("nullable"),
        default: schema.get("default").filter(|default| !default.is_null()).cloned(),
        properties,
        additional: additional(&schema["additionalProperties"], depth)?,
        items,
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        list: list_kind(schema),
        atomic: schema["x-kubernetes-map-type"] == "atomic",
        rules: schema["x-kubernetes-validations"].as_array().into_iter().flatten().map(rule).collect(),
        limits: limits(schema, depth)?,
    })
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn kind(name: &str) -> Result<JsonType, CompileError> {
    Ok(match name {
        "" => JsonType::Any,
        "object" => JsonType::Object,
        "array" => JsonType::Array,
        "string" => JsonType::String,
        "integer" => JsonType::Integer,
        "number" => JsonType::Number,
        "boolean" => JsonType::Boolean,
        other => return Err(CompileError::Type(other.to_owned())),
    })
}

fn additional(value: &Value, depth: usize) -> Result<Additional, CompileError> {
    Ok(match value {
        Value::Null => Additional::Unset,
        Value::Bool(allowed) => Additional::Allowed(*allowed),
        schema => Additional::Schema(Box::new(node(schema, depth + 1)?)),
    })
}

fn list_kind(schema: &Value) -> ListKind {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(words(&schema["x-kubernetes-list-map-keys"])),
        Some("atomic") => ListKind::Atomic,
        _ => ListKind::Unset,
    }
}

fn words(list: &Value) -> Vec<Box<str>> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
}

fn rule(rule: &Value) -> Rule {
    let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
    Rule {
        rule: text("rule"),
        message: text("message"),
        message_expression: text("messageExpression"),
        reason: rule["reason"].as_str().map(str::to_owned),
        field_path: text("fieldPath"),
        optional_old_self: rule["optionalOldSelf"].as_bool(),
    }
}

/// The keywords that restrict values; a schema with none of them, as most are, takes no room for them.
const LIMITS: [&str; 20] = [
    "format",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxProperties",
    "minProperties",
    "enum",
    "required",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

fn limits(schema: &Value, depth: usize) -> Result<Option<Box<Limits>>, CompileError> {
    let Some(map) = schema.as_object().filter(|map| LIMITS.iter().any(|key| map.contains_key(*key))) else {
        return Ok(None);
    };
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let count = |key: &str| map.get(key).and_then(Value::as_i64);
    let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or_default();
    let text = |key: &str| map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Ok(Some(Box::new(Limits {
        format: text("format").unwrap_or_default().into(),
        text_format: text("format").and_then(Format::find),
        maximum: number("maximum"),
        exclusive_maximum: flag("exclusiveMaximum"),
        minimum: number("minimum"),
        exclusive_minimum: flag("exclusiveMinimum"),
        multiple_of: number("multipleOf"),
        max_length: count("maxLength"),
        min_length: count("minLength"),
        pattern: match text("pattern").map(Pattern::new) {
            None => None,
            Some(Ok(pattern)) => Some(pattern),
            Some(Err(error)) => return Err(CompileError::Pattern(error.to_string())),
        },
        max_items: count("maxItems"),
        min_items: count("minItems"),
        unique_items: flag("uniqueItems"),
        max_properties: count("maxProperties"),
        min_properties: count("minProperties"),
        enumeration: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        required: map.get("required").map(words).unwrap_or_default(),
        all_of: schemas(map, "allOf", depth)?,
        any_of: schemas(map, "anyOf", depth)?,
        one_of: schemas(map, "oneOf", depth)?,
        not: match map.get("not") {
            None | Some(Value::Null) => None,
            Some(not) => Some(Box::new(node(not, depth + 1)?)),
        },
    })))
}

fn schemas(map: &Map<String, Value>, key: &str, depth: usize) -> Result<Vec<Structural>, CompileError> {
    let list = map.get(key).and_then(Value::as_array);
    list.into_iter().flatten().map(|schema| node(schema, depth + 1)).collect()
}
