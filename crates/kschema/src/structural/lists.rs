//! Lists that are sets or maps: nothing may stand in them twice.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Structural, prune::Place};
use crate::{error::FieldError, types::ListKind};

impl Structural {
    /// Checks that no set has an entry, and no list that is a map has a key, twice. Upstream asks this on an update only if the
    /// old object kept it.
    pub fn validate_lists(&self, object: &Value, errors: &mut Vec<FieldError>) {
        validate(self, object, &Place::Root, errors);
    }
}

fn validate(schema: &Structural, value: &Value, at: &Place<'_>, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let place = if schema.properties.contains_key(key.as_str()) {
                    Place::Key(at, key)
                } else {
                    Place::Entry(at, key)
                };
                if let Some(child) = schema.child(key) {
                    validate(child, value, &place, errors);
                }
            }
        }
        Value::Array(list) => {
            match &schema.list {
                ListKind::Set => {
                    for index in repeated(list.iter().cloned()) {
                        errors.push(duplicate(at, index, &list[index]));
                    }
                }
                ListKind::Map(keys) => validate_map(keys, list, at, errors),
                _ => {}
            }
            let Some(items) = &schema.items else { return };
            for (index, item) in list.iter().enumerate() {
                validate(items, item, &Place::Index(at, index), errors);
            }
        }
        _ => {}
    }
}

fn validate_map(keys: &[Box<str>], list: &[Value], at: &Place<'_>, errors: &mut Vec<FieldError>) {
    if let Some(index) = list.iter().position(|item| !item.is_null() && !item.is_object()) {
        let place = Place::Index(at, index).to_string();
        errors.push(FieldError::invalid(
            place,
            &list[index],
            "must be an object for an array of list-type map",
        ));
        return;
    }
    let key_of = |item: &Value| {
        let fields = keys.iter().filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())));
        Value::Object(fields.collect::<Map<_, _>>())
    };
    let found: Vec<Value> = list.iter().map(key_of).collect();
    for index in repeated(found.iter().cloned()) {
        errors.push(duplicate(at, index, &found[index]));
    }
}

/// The places where a value stands for the second time. A third time is not told again.
fn repeated(values: impl Iterator<Item = Value>) -> Vec<usize> {
    let mut seen: HashMap<Value, usize, ahash::RandomState> = HashMap::default();
    let mut places = Vec::new();
    for (index, value) in values.enumerate() {
        let times = seen.entry(value).or_default();
        *times += 1;
        if *times == 2 {
            places.push(index);
        }
    }
    places
}

fn duplicate(at: &Place<'_>, index: usize, value: &Value) -> FieldError {
    FieldError::duplicate_value(Place::Index(at, index).to_string(), value)
}
