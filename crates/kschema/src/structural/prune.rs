//! Pruning: fields that the schema does not describe go.

use std::fmt;

use serde_json::{Map, Value};

use super::{Additional, Structural};

/// Where a walk is; made on the stack and turned into text only when there is something to say.
#[derive(Clone, Copy)]
pub(super) enum Place<'p> {
    Root,
    Key(&'p Place<'p>, &'p str),
    /// A key of a map, which errors show in brackets.
    Entry(&'p Place<'p>, &'p str),
    Index(&'p Place<'p>, usize),
}

impl Place<'_> {
    pub(super) fn is_root(&self) -> bool {
        matches!(self, Self::Root)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Entry(parent, key) => write!(f, "{parent}[{key}]"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// The fields that every object has.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Structural {
    /// The schema of what stands under a key, if there is one: that of the field, or that of other fields.
    #[must_use]
    pub fn child(&self, key: &str) -> Option<&Self> {
        self.properties.get(key).or(match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        })
    }

    /// Drops the fields that the schema does not describe; returns their paths, sorted, as strict field validation and
    /// warnings name them (`unknown field "spec.x"`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        prune(Some(self), object, &Place::Root, &mut unknown);
        unknown.sort();
        unknown
    }
}

fn prune(schema: Option<&Structural>, value: &mut Value, at: &Place<'_>, unknown: &mut Vec<String>) {
    if let Some(schema) = schema.filter(|schema| schema.preserve_unknown) {
        keep(schema, value, at, unknown);
        return;
    }
    match value {
        Value::Object(map) => prune_map(schema, map, at, unknown),
        Value::Array(list) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            for (index, item) in list.iter_mut().enumerate() {
                prune(items, item, &Place::Index(at, index), unknown);
            }
        }
        _ => {}
    }
}

fn prune_map(
    schema: Option<&Structural>,
    map: &mut Map<String, Value>,
    at: &Place<'_>,
    unknown: &mut Vec<String>,
) {
    map.retain(|key, value| {
        let place = Place::Key(at, key);
        let Some(schema) = schema else {
            unknown.push(place.to_string());
            return false;
        };
        if schema.is_object && OBJECT_FIELDS.contains(&key.as_str()) {
            return true;
        }
        if let Some(property) = schema.properties.get(key.as_str()) {
            prune(Some(property), value, &place, unknown);
            return true;
        }
        match &schema.additional {
            Additional::Schema(schema) => prune(Some(schema), value, &place, unknown),
            Additional::Allowed(_) => prune(None, value, &place, unknown),
            Additional::Unset => {
                if !at.is_root() || !OBJECT_FIELDS.contains(&key.as_str()) {
                    unknown.push(place.to_string());
                }
                return false;
            }
        }
        true
    });
}

/// Below a schema that keeps unknown fields, those that it describes are pruned all the same.
fn keep(schema: &Structural, value: &mut Value, at: &Place<'_>, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if schema.is_object && OBJECT_FIELDS.contains(&key.as_str()) {
                    continue;
                }
                let place = Place::Key(at, key);
                match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => prune(Some(property), value, &place, unknown),
                    (None, Additional::Schema(schema)) => prune(Some(schema), value, &place, unknown),
                    (None, Additional::Allowed(_)) => prune(None, value, &place, unknown),
                    (None, Additional::Unset) => {}
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for (index, item) in list.iter_mut().enumerate() {
                keep(items, item, &Place::Index(at, index), unknown);
            }
        }
        _ => {}
    }
}
