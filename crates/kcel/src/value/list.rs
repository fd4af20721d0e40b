//! Lists: of JSON as it is, or of values.

use std::sync::Arc;

use super::{Value, json};
use crate::{
    decl::{Decl, ListKind},
    error::EvalError,
};

/// A list, with what its schema says of its equality.
#[derive(Clone, Debug)]
pub struct List<'a> {
    pub(crate) items: Items<'a>,
    pub(crate) kind: &'a ListKind,
}

/// The elements of a list.
#[derive(Clone, Debug)]
pub(crate) enum Items<'a> {
    /// JSON, and how its elements are to be read.
    Json(&'a [serde_json::Value], Option<&'a Decl>),
    Values(Arc<Vec<Value<'a>>>),
    /// A sum, which costs nothing to make; as deep as sums are nested in an expression.
    Sum(Arc<Sum<'a>>),
}

/// Two lists one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Sum<'a> {
    first: List<'a>,
    second: List<'a>,
    /// The number of all elements.
    length: usize,
}

impl<'a> List<'a> {
    pub(crate) fn of(values: Vec<Value<'a>>) -> Self {
        Self { items: Items::Values(Arc::new(values)), kind: &ListKind::Atomic }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.items {
            Items::Json(items, _) => items.len(),
            Items::Values(values) => values.len(),
            Items::Sum(sum) => sum.length,
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at `index`, if there is one.
    ///
    /// # Errors
    /// When the element has another form than was declared.
    pub fn get(&self, index: usize) -> Result<Option<Value<'a>>, EvalError> {
        match &self.items {
            Items::Json(items, decl) => match (items.get(index), decl) {
                (None, _) => Ok(None),
                (Some(item), None) => Ok(Some(json::dynamic(item))),
                (Some(item), Some(decl)) => json::read(item, decl).map(Some),
            },
            Items::Values(values) => Ok(values.get(index).cloned()),
            Items::Sum(sum) => match index.checked_sub(sum.first.len()) {
                None => sum.first.get(index),
                Some(index) => sum.second.get(index),
            },
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Result<Value<'a>, EvalError>> {
        let list = self.clone();
        (0..self.len()).filter_map(move |index| list.get(index).transpose())
    }

    /// All elements.
    pub(crate) fn values(&self) -> Result<Vec<Value<'a>>, EvalError> {
        self.iter().collect()
    }

    /// The sum of two lists: appended, or what the first one's schema makes of it.
    pub(crate) fn plus(&self, other: &Self) -> Result<Self, EvalError> {
        if *self.kind == ListKind::Atomic {
            if self.is_empty() || other.is_empty() {
                return Ok(if self.is_empty() { other.clone() } else { self.clone() });
            }
            let length = self.len().saturating_add(other.len());
            let sum = Sum { first: self.clone(), second: other.clone(), length };
            return Ok(Self { items: Items::Sum(Arc::new(sum)), kind: self.kind });
        }
        let mut values = self.values()?;
        match self.kind {
            ListKind::Atomic => {}
            ListKind::Set => {
                for value in other.iter() {
                    let value = value?;
                    if !contains(&values, &value)? {
                        values.push(value);
                    }
                }
            }
            ListKind::Map(keys) => {
                let mut places = Vec::with_capacity(values.len());
                for value in &values {
                    places.push(map_key(value, keys)?);
                }
                for value in other.iter() {
                    let value = value?;
                    let key = map_key(&value, keys)?;
                    match places.iter().position(|place| *place == key) {
                        Some(place) => values[place] = value,
                        None => {
                            places.push(key);
                            values.push(value);
                        }
                    }
                }
            }
        }
        Ok(Self { items: Items::Values(Arc::new(values)), kind: self.kind })
    }

    /// Whether an element equals `wanted`; elements that can't be compared don't.
    pub(crate) fn contains(&self, wanted: &Value<'a>) -> Result<bool, EvalError> {
        for value in self.iter() {
            if super::equal(wanted, &value?).unwrap_or(false) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn contains<'a>(values: &[Value<'a>], wanted: &Value<'a>) -> Result<bool, EvalError> {
    for value in values {
        if super::equal(value, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What identifies an element of a list of type `map`: its key fields as JSON.
pub(crate) fn map_key(value: &Value<'_>, keys: &[String]) -> Result<Vec<Option<String>>, EvalError> {
    let Value::Map(map) = value else {
        return Err(EvalError::new(format!(
            "unexpected data format for element of array with x-kubernetes-list-type=map: {}",
            value.type_name()
        )));
    };
    keys.iter()
        .map(|key| map.json_field(key)?.map(|value| Ok(value.to_json()?.to_string())).transpose())
        .collect()
}
