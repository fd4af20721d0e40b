//! Changing fields of a JSON object by name, as strategies do.

use serde_json::Value;

/// Takes the status away.
pub fn drop_status(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
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
