//! Reading fields of a JSON object the way Go reads a struct: what is missing is the zero value.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

/// Fields of a [`Value`] by name.
pub(crate) trait Look {
    /// The field, unless it is missing or null.
    fn get_some(&self, key: &str) -> Option<&Value>;
    /// The text in the field; empty if there is none.
    fn text(&self, key: &str) -> &str;
    /// The number in the field; 0 if there is none.
    fn int(&self, key: &str) -> i64;

    /// Whether the field is there (a pointer that is not nil).
    fn has(&self, key: &str) -> bool {
        self.get_some(key).is_some()
    }

    /// The text in the field, if it is there.
    fn some_text(&self, key: &str) -> Option<&str> {
        self.get_some(key).and_then(Value::as_str)
    }

    /// The number in the field, if it is there.
    fn some_int(&self, key: &str) -> Option<i64> {
        self.get_some(key).and_then(Value::as_i64)
    }

    /// The truth value in the field, if it is there.
    fn some_flag(&self, key: &str) -> Option<bool> {
        self.get_some(key).and_then(Value::as_bool)
    }

    /// Whether the field says true.
    fn flag(&self, key: &str) -> bool {
        self.some_flag(key).unwrap_or(false)
    }

    /// The entries of the list in the field.
    fn list(&self, key: &str) -> &[Value] {
        self.get_some(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The entries of the map in the field.
    fn map(&self, key: &str) -> Entries<'_> {
        Entries(self.get_some(key).and_then(Value::as_object).map(Map::iter))
    }

    /// How many entries the map or list in the field has.
    fn count(&self, key: &str) -> usize {
        match self.get_some(key) {
            Some(Value::Array(list)) => list.len(),
            Some(Value::Object(map)) => map.len(),
            _ => 0,
        }
    }
}

/// The entries of a map; none if there is no map.
pub(crate) struct Entries<'a>(Option<serde_json::map::Iter<'a>>);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, &'a Value);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.as_mut()?.next().map(|(key, value)| (key.as_str(), value))
    }
}

impl Look for Value {
    fn get_some(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn int(&self, key: &str) -> i64 {
        self.get(key).and_then(Value::as_i64).unwrap_or_default()
    }
}

/// The texts in a list.
pub(crate) fn texts(list: &[Value]) -> impl Iterator<Item = &str> {
    list.iter().map(|value| value.as_str().unwrap_or_default())
}

/// Scalar fields that are pointers in Go: their zero value is not the same as nothing. (Pod and workload fields only: those
/// are the kinds whose whole specification is compared.)
const POINTERS: [&str; 40] = [
    "activeDeadlineSeconds",
    "allowPrivilegeEscalation",
    "appArmorProfile",
    "automountServiceAccountToken",
    "backoffLimit",
    "backoffLimitPerIndex",
    "completionMode",
    "completions",
    "defaultMode",
    "devicePath",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "hostProcess",
    "hostUsers",
    "hostnameOverride",
    "manualSelector",
    "minDomains",
    "mode",
    "optional",
    "parallelism",
    "partition",
    "preemptionPolicy",
    "priority",
    "privileged",
    "readOnlyRootFilesystem",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "runtimeClassName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "storageClassName",
    "suspend",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "volumeAttributesClassName",
];

/// Whether two values are equal as `apiequality.Semantic.DeepEqual` sees it: what is empty and what is missing are the same.
/// (Quantities and times have their canonical form already.)
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let missing = |key: &str, value: &Value, map: &Map<String, Value>| {
                map.get(key).map_or_else(|| is_nothing(key, value), |found| same(value, found))
            };
            one.iter().all(|(key, value)| missing(key, value, other))
                && other.iter().all(|(key, value)| one.contains_key(key) || is_nothing(key, value))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Null, value) | (value, Value::Null) => is_nothing("", value),
        _ => one == other,
    }
}

/// Whether a field with this value says no more than a missing one.
fn is_nothing(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
        Value::Number(number) if number.as_i64() != Some(0) => false,
        Value::String(text) if !text.is_empty() => false,
        _ => !POINTERS.contains(&key),
    }
}

/// [`same`] for one field of two objects.
pub(crate) fn same_at(one: &Value, other: &Value, key: &str) -> bool {
    match (one.get(key).unwrap_or(&Value::Null), other.get(key).unwrap_or(&Value::Null)) {
        (Value::Null, value) | (value, Value::Null) => is_nothing(key, value),
        (one, other) => same(one, other),
    }
}

/// A field as Go shows it: a scalar that is missing is a zero unless it is a pointer. What was there tells the type.
pub(crate) fn shown_at<'v>(object: &'v Value, old: &Value, key: &str) -> Cow<'v, Value> {
    if let Some(value) = object.get(key) {
        return Cow::Borrowed(value);
    }
    let is_pointer = POINTERS.contains(&key);
    Cow::Owned(match old.get(key) {
        Some(Value::String(_)) if !is_pointer => json!(""),
        Some(Value::Number(_)) if !is_pointer => json!(0),
        Some(Value::Bool(_)) if !is_pointer => json!(false),
        _ => Value::Null,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_empty_is_the_same_as_what_is_missing() {
        for (one, other, equal) in [
            (json!({"a": []}), json!({}), true),
            (json!({"a": {"b": false}}), json!({"a": {}}), true),
            (json!({"hostUsers": false}), json!({}), false),
            (json!({"a": [1, {}]}), json!({"a": [1, {"b": null}]}), true),
            (json!({"a": "x"}), json!({"a": "y"}), false),
            (json!({}), json!({"a": 1}), false),
        ] {
            assert_eq!(same(&one, &other), equal, "{one} {other}");
            assert_eq!(same(&other, &one), equal, "{other} {one}");
        }
    }
}
