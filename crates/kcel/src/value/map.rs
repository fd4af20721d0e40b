//! Maps: JSON objects as they are, or entries that an expression made.

use std::{collections::BTreeMap, sync::Arc};

use super::{Value, json};
use crate::{
    decl::{Decl, ObjectDecl},
    error::EvalError,
};

/// A map, or an object read from JSON.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Map<'a> {
    /// A JSON object.
    Json(JsonMap<'a>),
    /// Entries.
    Values(Arc<Entries<'a>>),
}

/// A JSON object and how it is to be read.
#[derive(Clone, Copy, Debug)]
pub struct JsonMap<'a> {
    pub(crate) fields: &'a serde_json::Map<String, serde_json::Value>,
    pub(crate) shape: MapShape<'a>,
}

/// How the values of a JSON object are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MapShape<'a> {
    /// By what they are.
    Dyn,
    /// All alike.
    Values(&'a Decl),
    /// Each field by its own declaration; fields that are not declared can't be named.
    Object(&'a ObjectDecl),
}

/// Entries, ordered by key so that the same expression always gives the same result.
#[derive(Clone, Debug, Default)]
pub struct Entries<'a> {
    entries: BTreeMap<Key, (Value<'a>, Value<'a>)>,
    /// What is found where no entry is.
    default: Option<Arc<Value<'a>>>,
}

/// A key by which entries are found: numbers of different types are the same key when they are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Bool(bool),
    Number(i128),
    Text(String),
}

impl Key {
    /// The key that a value is; none if it can't be one of any map's.
    pub(crate) fn of(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Int(value) => Some(Self::Number(i128::from(*value))),
            Value::Uint(value) => Some(Self::Number(i128::from(*value))),
            Value::Double(value) if value.fract() == 0.0 && value.abs() < 1e30 => {
                Some(Self::Number(*value as i128))
            }
            Value::String(text) => Some(Self::Text((**text).to_owned())),
            _ => None,
        }
    }
}

impl<'a> Entries<'a> {
    pub(crate) fn insert(&mut self, key: Key, shown: Value<'a>, value: Value<'a>) {
        self.entries.insert(key, (shown, value));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn set_default(&mut self, value: Value<'a>) {
        self.default = Some(Arc::new(value));
    }

    fn get(&self, key: Option<&Key>) -> Option<Value<'a>> {
        match key.and_then(|key| self.entries.get(key)) {
            Some((_, value)) => Some(value.clone()),
            None => self.default.as_deref().cloned(),
        }
    }
}

impl<'a> Map<'a> {
    /// The number of entries, also of those that no expression can name.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Json(map) => map.fields.len(),
            Self::Values(entries) => entries.entries.len(),
        }
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at a key that is text.
    ///
    /// # Errors
    /// When the value has another form than was declared.
    pub fn field(&self, name: &str) -> Result<Option<Value<'a>>, EvalError> {
        let map = match self {
            Self::Json(map) => map,
            Self::Values(entries) => {
                return Ok(entries.get(Some(&Key::Text(name.to_owned()))));
            }
        };
        match map.shape {
            MapShape::Dyn => Ok(map.fields.get(name).map(json::dynamic)),
            MapShape::Values(decl) => map.fields.get(name).map(|value| json::read(value, decl)).transpose(),
            MapShape::Object(object) => match object.field(name) {
                Some(field) => match map.fields.get(&field.json) {
                    // A field of an object that is null is a field that is absent.
                    None | Some(serde_json::Value::Null) => Ok(None),
                    Some(value) => json::read(value, &field.decl).map(Some),
                },
                None => Ok(None),
            },
        }
    }

    /// The value of a field by its name in JSON.
    pub(crate) fn json_field(&self, json: &str) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Self::Json(JsonMap { fields, .. }) => Ok(fields.get(json).map(json::dynamic)),
            Self::Values(_) => self.field(json),
        }
    }

    /// The value at a key.
    ///
    /// # Errors
    /// When the key is of a type that the map's keys can't be of, or the value has another form than was declared.
    pub fn find(&self, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        match (self, key) {
            (_, Value::String(text)) => self.field(text),
            (Self::Json(_), _) => Err(EvalError::no_such_overload()),
            (Self::Values(entries), key) => Ok(entries.get(Key::of(key).as_ref())),
        }
    }

    /// Whether there is an entry at a key; a default is none.
    pub(crate) fn contains(&self, key: &Value<'a>) -> Result<bool, EvalError> {
        match self {
            Self::Json(_) => Ok(self.find(key)?.is_some()),
            Self::Values(entries) => Ok(Key::of(key).is_some_and(|key| entries.contains(&key))),
        }
    }

    /// The keys, as expressions see them.
    #[must_use]
    pub fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Json(map) => {
                let fields: &'a serde_json::Map<_, _> = map.fields;
                let names = fields.keys().filter_map(|name| match map.shape {
                    MapShape::Dyn | MapShape::Values(_) => Some(name.as_str()),
                    MapShape::Object(object) => object.json_field(name).map(|(name, _)| name),
                });
                names.map(Value::from).collect()
            }
            Self::Values(entries) => entries.entries.values().map(|entry| entry.0.clone()).collect(),
        }
    }

    /// The entries, as expressions see them.
    pub(crate) fn entries(&self) -> Result<Vec<(Value<'a>, Value<'a>)>, EvalError> {
        let mut entries = Vec::with_capacity(self.len());
        if let Self::Values(values) = self {
            entries.extend(values.entries.values().cloned());
            return Ok(entries);
        }
        for key in self.keys() {
            if let Some(value) = self.find(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }
}
