//! Defaulting: what a schema says of missing values is filled in.

use serde_json::Value;

use super::{Additional, Structural};

impl Structural {
    /// Fills in defaults. A null where there may be none counts as missing: it takes the default, or goes.
    pub fn default_in(&self, object: &mut Value) {
        drop_nulls(Some(self), object);
        default(self, object);
    }

    fn other(&self) -> Option<&Self> {
        match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        }
    }
}

/// Takes out nulls that the schema does not allow and has no default for. Those in lists stay, and are faults.
fn drop_nulls(schema: Option<&Structural>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let schema = schema.and_then(|schema| schema.child(key));
                let goes = value.is_null()
                    && schema.is_some_and(|schema| !schema.nullable && schema.default.is_none());
                if !goes {
                    drop_nulls(schema, value);
                }
                !goes
            });
        }
        Value::Array(list) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            list.iter_mut().for_each(|item| drop_nulls(items, item));
        }
        _ => {}
    }
}

fn default(schema: &Structural, value: &mut Value) {
    let is_missing = |value: &Value, schema: &Structural| value.is_null() && !schema.nullable;
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                if map.get(&**name).is_none_or(|value| is_missing(value, property)) {
                    map.insert(name.to_string(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(key.as_str()) {
                    default(property, value);
                } else if let Some(other) = schema.other() {
                    if is_missing(value, other) {
                        *value = other.default.clone().unwrap_or(Value::Null);
                    }
                    default(other, value);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for item in list {
                if is_missing(item, items) {
                    *item = items.default.clone().unwrap_or(Value::Null);
                }
                default(items, item);
            }
        }
        _ => {}
    }
}
