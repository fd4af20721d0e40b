//! One step into an object, as `managedFields` and conflicts name it, and the order and equality of values that paths rest on.

use std::{cmp::Ordering, fmt, sync::Arc};

use serde_json::{Map, Value};

use super::fields_v1::{element_text, field_text};
use crate::structural::GoFloat;

/// A step from an object or list to one of its parts.
///
/// The order is that of structured-merge-diff: names, then keys, then values, then indexes.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of an object or map (`f:`).
    Field(Arc<str>),
    /// The entry of a list that has these values in its key fields, sorted by name (`k:`).
    Key(Arc<[(Box<str>, Value)]>),
    /// The entry of a set (`v:`).
    Value(Value),
    /// A place in a list (`i:`). Nothing here makes them; they are read and kept.
    Index(i64),
}

impl PathElement {
    /// The step to a field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The step to the entry of a list that has these values in its key fields.
    #[must_use]
    pub fn key(mut fields: Vec<(Box<str>, Value)>) -> Self {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields.into())
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_keys(a, b),
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

fn rank(element: &PathElement) -> u8 {
    match element {
        PathElement::Field(_) => 0,
        PathElement::Key(_) => 1,
        PathElement::Value(_) => 2,
        PathElement::Index(_) => 3,
    }
}

fn compare_keys(a: &[(Box<str>, Value)], b: &[(Box<str>, Value)]) -> Ordering {
    for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
        let order = a_name.cmp(b_name).then_with(|| compare(a_value, b_value));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// As conflicts and errors show it: `.spec`, `[name="a"]`, `[="x"]`, `[3]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (index, (name, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{name}={}", Shown(value))?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={}]", Shown(value)),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A value within a path.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => GoFloat(float).fmt(f),
                None => write!(f, "{number}"),
            },
            Value::String(text) => write!(f, "{text:?}"),
            Value::Array(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{}", Self(item))?;
                }
                f.write_str("]")
            }
            Value::Object(map) => map.iter().try_for_each(|(key, value)| write!(f, "{key}={}", Self(value))),
        }
    }
}

/// A path as a list of steps that stands on the stack while an object is walked; owned steps are made only where something
/// is put into a set.
#[derive(Clone, Copy)]
pub(crate) struct At<'p> {
    parent: Option<&'p At<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Element(&'p PathElement),
}

impl<'p> At<'p> {
    pub(crate) const ROOT: Self = Self { parent: None, step: Step::Root };

    pub(crate) fn field(&'p self, name: &'p str) -> At<'p> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    pub(crate) fn element(&'p self, element: &'p PathElement) -> At<'p> {
        At { parent: Some(self), step: Step::Element(element) }
    }

    /// What the last step starts from; `None` at the root.
    pub(crate) fn parent(&self) -> Option<&'p At<'p>> {
        self.parent
    }

    /// The last step as `fieldsV1` names it; empty at the root.
    pub(crate) fn text(&self) -> String {
        match self.step {
            Step::Root => String::new(),
            Step::Field(name) => field_text(name),
            Step::Element(element) => element_text(element),
        }
    }

    /// The steps from the root.
    pub(crate) fn steps(&self) -> Vec<PathElement> {
        let mut steps = Vec::with_capacity(8);
        let mut at = Some(self);
        while let Some(here) = at {
            match here.step {
                Step::Root => {}
                Step::Field(name) => steps.push(PathElement::field(name)),
                Step::Element(element) => steps.push(element.clone()),
            }
            at = here.parent;
        }
        steps.reverse();
        steps
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Element(element) => element.fmt(f),
        }
    }
}

/// Whether two values are the same; numbers are the same when they mean the same, so `1` is `1.0`.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            // Both are sorted by their keys.
            a.len() == b.len()
                && a.iter().zip(b).all(|((a_key, a), (b_key, b))| a_key == b_key && equal(a, b))
        }
        _ => a == b,
    }
}

/// The order of values of any type: numbers, text, truth values, lists, maps, null.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => a
            .iter()
            .zip(b)
            .map(|(a, b)| compare(a, b))
            .find(|order| *order != Ordering::Equal)
            .unwrap_or_else(|| a.len().cmp(&b.len())),
        (Value::Object(a), Value::Object(b)) => compare_maps(a, b),
        _ => value_rank(a).cmp(&value_rank(b)),
    }
}

fn compare_maps(a: &Map<String, Value>, b: &Map<String, Value>) -> Ordering {
    a.iter()
        .zip(b)
        .map(|((a_key, a), (b_key, b))| a_key.cmp(b_key).then_with(|| compare(a, b)))
        .find(|order| *order != Ordering::Equal)
        .unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn value_rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_are_ordered_and_shown_as_upstream_does() {
        let key = |fields: &[(&str, Value)]| {
            PathElement::key(fields.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
        };
        // structured-merge-diff, fieldpath/element_test.go and path_test.go.
        let sorted = [
            (PathElement::field("a"), ".a"),
            (PathElement::field("b"), ".b"),
            (key(&[("name", json!("a"))]), "[name=\"a\"]"),
            (key(&[("port", json!(80)), ("name", json!("b"))]), "[name=\"b\",port=80]"),
            (key(&[("port", json!(443)), ("name", json!("b"))]), "[name=\"b\",port=443]"),
            (PathElement::Value(json!(1.0)), "[=1]"),
            (PathElement::Value(json!(1.5)), "[=1.5]"),
            (PathElement::Value(json!(10)), "[=10]"),
            (PathElement::Value(json!("x")), "[=\"x\"]"),
            (PathElement::Value(json!(true)), "[=true]"),
            (PathElement::Value(json!(null)), "[=null]"),
            (PathElement::Index(2), "[2]"),
        ];
        assert!(sorted.is_sorted_by(|a, b| a.0 < b.0));
        for (element, text) in sorted {
            assert_eq!(element.to_string(), text);
        }
    }

    #[test]
    fn numbers_are_equal_when_they_mean_the_same() {
        assert!(equal(&json!({"a": [1, 2.0]}), &json!({"a": [1.0, 2]})));
        assert!(!equal(&json!({"a": [1]}), &json!({"a": [1, 1]})));
        assert!(!equal(&json!(null), &json!({})));
    }
}
