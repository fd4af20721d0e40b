//! Config maps.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::check::{Look, Path, Report, form};

/// The largest sum of the values of a ConfigMap or Secret, in bytes (Kubernetes API reference: 1 MiB).
pub(crate) const DATA_BYTES_MAX: usize = 1024 * 1024;

/// The strategy of `configmaps`.
#[derive(Debug)]
pub(crate) struct ConfigMaps;

/// How many bytes a text in base64 stands for.
pub(crate) fn decoded_bytes(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// Checks that what was made immutable is what it was.
pub(crate) fn validate_immutable(object: &Value, old: &Value, lists: &[&str], errors: &mut Vec<FieldError>) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if !old.flag("immutable") {
        return;
    }
    if !object.flag("immutable") {
        errors.forbidden(&Path::root("immutable"), WHY);
    }
    let of =
        |object: &'_ Value, list: &str| object.get_some(list).filter(|_| object.count(list) > 0).cloned();
    for list in lists.iter().filter(|list| of(object, list) != of(old, list)) {
        errors.forbidden(&Path::root(list), WHY);
    }
}

impl Strategy for ConfigMaps {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let mut bytes = 0;
        let path = Path::root("data");
        for (key, value) in object.map("data") {
            errors.faults(&path.key(key), key, form::config_key(key));
            if object["binaryData"].has(key) {
                errors.invalid(&path.key(key), key, "duplicate of key present in binaryData");
            }
            bytes += value.as_str().map_or(0, str::len);
        }
        let path = Path::root("binaryData");
        for (key, value) in object.map("binaryData") {
            errors.faults(&path.key(key), key, form::config_key(key));
            bytes += decoded_bytes(value);
        }
        if bytes > DATA_BYTES_MAX {
            errors.too_long(&Path::root(""), DATA_BYTES_MAX);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        validate_immutable(object, old, &["data", "binaryData"], errors);
        self.validate(object, errors);
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
