//! What a CustomResourceDefinition says of single fields: printer columns, selectable fields, the scale subresource.

use std::collections::HashSet;

use serde_json::Value;

use super::{field_path, rules::text};
use crate::error::FieldError;

/// How many fields of a version may be selectable.
pub const SELECTABLE_FIELDS_MAX: usize = 8;

const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// Checks `additionalPrinterColumns`, which stand at `path`.
pub fn validate_columns(columns: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (index, column) in columns.as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("{path}[{index}].{key}");
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(at("name"), ""));
        }
        let (kind, format) = (text(column, "type"), text(column, "format"));
        let why = format!("must be one of {}", TYPES.join(","));
        if kind.is_empty() {
            errors.push(FieldError::required(at("type"), &why));
        } else if !TYPES.contains(&kind) {
            errors.push(FieldError::invalid_text(at("type"), kind, why));
        }
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            errors.push(FieldError::invalid_text(at("format"), format, why));
        }
        let json_path = text(column, "jsonPath");
        if json_path.is_empty() {
            errors.push(FieldError::required(at("JSONPath"), ""));
        } else {
            errors.extend(simple_path_fault(json_path, at("JSONPath")));
        }
    }
}

fn simple_path_fault(json_path: &str, at: String) -> Option<FieldError> {
    let is_good = json_path.starts_with('.');
    (!is_good).then(|| FieldError::invalid_text(at, json_path, "must be a simple json path starting with ."))
}

/// Checks the `scale` subresource, which stands at `path` (`spec.versions[0].subresources.scale`).
pub fn validate_scale(scale: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !scale.is_object() {
        return;
    }
    let checks: [(&str, &[&str], &str, bool); 3] = [
        ("specReplicasPath", &[".spec."], "should be a json path under .spec", true),
        ("statusReplicasPath", &[".status."], "should be a json path under .status", true),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
            false,
        ),
    ];
    for (key, prefixes, why, is_required) in checks {
        let (json_path, at) = (text(scale, key), format!("{path}.{key}"));
        if json_path.is_empty() {
            errors.extend(is_required.then(|| FieldError::required(at, "")));
        } else if let Some(fault) = simple_path_fault(json_path, at.clone()) {
            errors.push(fault);
        } else if !prefixes.iter().any(|prefix| json_path.starts_with(prefix)) {
            errors.push(FieldError::invalid_text(at, json_path, why));
        }
    }
}

/// Checks `selectableFields`, which stand at `path`, against the version's `openAPIV3Schema`.
pub fn validate_selectable_fields(fields: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, field) in fields.as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}[{index}].jsonPath");
        let json_path = text(field, "jsonPath");
        if json_path.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let (found, names) = match field_path::resolve(schema, json_path, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(FieldError::invalid_text(at, json_path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if names.first().is_some_and(|name| name == "metadata") {
            errors.push(FieldError::invalid_text(&at, json_path, "must not point to fields in metadata"));
        }
        if !["string", "boolean", "integer"].contains(&text(found, "type")) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid_text(&at, json_path, why));
        }
        if !seen.insert(names) {
            errors.push(FieldError::duplicate(at, json_path));
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        errors.push(FieldError::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX));
    }
}
