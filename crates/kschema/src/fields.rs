//! Reading, checking and changing fields of a JSON object by name, as strategies do.

use serde_json::Value;

use crate::error::FieldError;

/// Takes the status away.
pub fn drop_status(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
}

/// Checks that a number is not negative.
pub fn not_negative(object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let value = path.split('.').try_fold(object, |value, key| value.get(key)).and_then(Value::as_i64);
    if let Some(value) = value.filter(|value| *value < 0) {
        errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// Checks that a field has not changed.
pub fn immutable(object: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let find = |object| {
        path.split('.').try_fold(object, |value: &Value, key| value.get(key)).cloned().unwrap_or(Value::Null)
    };
    let new = find(object);
    if new != find(old) {
        errors.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

/// Checks that a text is one of those supported.
pub fn one_of(object: &Value, path: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    let value = path.split('.').try_fold(object, |value, key| value.get(key)).and_then(Value::as_str);
    if let Some(value) = value.filter(|value| !supported.contains(value)) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

/// [`one_of`] for a key of the object that stands at `path`.
pub fn one_of_at(object: &Value, key: &str, path: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(value) = object[key].as_str().filter(|value| !supported.contains(value)) {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), value, supported));
    }
}

/// [`not_negative`] for a key of the object that stands at `path`.
pub fn not_negative_at(object: &Value, key: &str, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(value) = object[key].as_i64().filter(|value| *value < 0) {
        errors.push(FieldError::invalid(
            format!("{path}.{key}"),
            value,
            "must be greater than or equal to 0",
        ));
    }
}

/// `object[key]`, made an object if it is missing.
pub fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    let entry = &mut object[key];
    if entry.is_null() {
        *entry = Value::Object(serde_json::Map::new());
    }
    entry
}

/// Sets `object[key]` unless it is there.
pub fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && !map.contains_key(key)
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// The entries of the list `object[key]`, to be changed; none if there is no such list. (Indexing a missing key for writing
/// would leave a null behind.)
pub fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Makes `object[key]` what `old[key]` is: the same value, or missing.
pub fn keep(object: &mut Value, old: &Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        match old.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}
