//! Objects seen with their type: which fields one has, whether it fits, and what is left without some fields.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};

use super::{
    path::{At, PathElement},
    set::Set,
    shape::{Kind, ListShape, MapShape, Scalar, Shape},
};
use crate::types::Catalog;

/// The faults found in an object, each with its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults(Vec<String>);

/// How many faults are named.
const FAULTS_MAX: usize = 100;

impl Faults {
    pub(crate) fn push(&mut self, at: &At<'_>, message: impl fmt::Display) {
        if self.0.len() < FAULTS_MAX {
            let path = at.to_string();
            self.0.push(if path.is_empty() { message.to_string() } else { format!("{path}: {message}") });
        }
    }

    pub(crate) fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0.as_slice() {
            return f.write_str(one);
        }
        f.write_str("errors:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// Says what about `value` does not fit, as structured-merge-diff's validation does.
///
/// Lists and sets with entries that stand twice are refused unless `duplicates` allows them, as in what is stored already.
pub(crate) fn validate(
    catalog: &Catalog,
    shape: Shape<'_>,
    value: &Value,
    duplicates: bool,
) -> Result<(), Faults> {
    let mut walk = Validate { catalog, duplicates, faults: Faults::default() };
    walk.value(shape, value, &At::ROOT);
    walk.faults.into_result()
}

struct Validate<'a> {
    catalog: &'a Catalog,
    duplicates: bool,
    faults: Faults,
}

impl Validate<'_> {
    fn value(&mut self, shape: Shape<'_>, value: &Value, at: &At<'_>) {
        match (shape.kind(Some(value)), value) {
            (_, Value::Null) => {}
            (Kind::Scalar, value) => {
                if let Some(fault) = scalar_fault(shape.scalar(), value) {
                    self.faults.push(at, fault);
                }
            }
            (Kind::List, Value::Array(list)) => self.list(shape.list(), list, at),
            (Kind::List, other) => {
                self.faults.push(at, format_args!("expected list, got &{{{}}}", GoValue(other)))
            }
            (Kind::Map, Value::Object(map)) => self.map(shape.map(self.catalog), map, at),
            (Kind::Map, other) => {
                self.faults.push(at, format_args!("expected map, got &{{{}}}", GoValue(other)))
            }
        }
    }

    fn list(&mut self, shape: ListShape<'_>, list: &[Value], at: &At<'_>) {
        let mut seen = Vec::new();
        for (index, entry) in list.iter().enumerate() {
            let element = if shape.is_atomic() {
                PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX))
            } else {
                match shape.element(self.catalog, entry) {
                    Ok(element) => element,
                    Err(fault) => {
                        self.faults.push(at, format_args!("element {index}: {fault}"));
                        return;
                    }
                }
            };
            self.value(shape.item, entry, &at.element(&element));
            seen.push(element);
        }
        if !self.duplicates && !shape.is_atomic() {
            seen.sort();
            for pair in seen.windows(2).filter(|pair| pair[0] == pair[1]) {
                self.faults.push(at, format_args!("duplicate entries for key {}", pair[0]));
            }
        }
    }

    fn map(&mut self, shape: MapShape<'_>, map: &Map<String, Value>, at: &At<'_>) {
        for (key, value) in map {
            let at = at.field(key);
            match shape.child(key) {
                Some(child) => self.value(child, value, &at),
                None => {
                    self.faults.push(&at, "field not declared in schema");
                    return;
                }
            }
        }
    }
}

/// What is wrong with a scalar, in upstream's words.
pub(crate) fn scalar_fault(scalar: Scalar, value: &Value) -> Option<String> {
    match (scalar, value) {
        (_, Value::Null)
        | (Scalar::Number, Value::Number(_))
        | (Scalar::Text, Value::String(_))
        | (Scalar::Bool, Value::Bool(_))
        | (Scalar::Any, Value::Number(_) | Value::String(_) | Value::Bool(_)) => None,
        (Scalar::Number, other) => Some(format!("expected numeric (int or float), got {}", go_type(other))),
        (Scalar::Text, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", GoSyntax(other)))
        }
        (Scalar::Bool, other) => Some(format!("expected boolean, got &{{{}}}", GoValue(other))),
        (Scalar::Any, other) => Some(format!("expected any scalar, got &{{{}}}", GoValue(other))),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
struct GoValue<'a>(&'a Value);

impl fmt::Display for GoValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::String(text) => f.write_str(text),
            Value::Array(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    write!(f, "{}{}", if index > 0 { " " } else { "" }, Self(item))?;
                }
                f.write_str("]")
            }
            Value::Object(map) => {
                f.write_str("map[")?;
                for (index, (key, item)) in map.iter().enumerate() {
                    write!(f, "{}{key}:{}", if index > 0 { " " } else { "" }, Self(item))?;
                }
                f.write_str("]")
            }
            other => write!(f, "{other}"),
        }
    }
}

/// A value as Go's `%#v` prints it.
struct GoSyntax<'a>(&'a Value);

impl fmt::Display for GoSyntax<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = match self.0 {
            Value::Null => return f.write_str("interface {}(nil)"),
            Value::Array(_) => ("[]interface {}{", "}"),
            Value::Object(_) => ("map[string]interface {}{", "}"),
            other => return write!(f, "{other}"),
        };
        f.write_str(open)?;
        if let Value::Array(list) = self.0 {
            for (index, item) in list.iter().enumerate() {
                write!(f, "{}{}", if index > 0 { ", " } else { "" }, Self(item))?;
            }
        }
        if let Value::Object(map) = self.0 {
            for (index, (key, item)) in map.iter().enumerate() {
                write!(f, "{}{key:?}:{}", if index > 0 { ", " } else { "" }, Self(item))?;
            }
        }
        f.write_str(close)
    }
}

/// The fields that an object has.
///
/// # Errors
/// None for objects that [`validate`] lets pass.
pub(crate) fn to_set(catalog: &Catalog, shape: Shape<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    fields_of(catalog, shape, value, &mut set);
    set
}

/// Adds what lies below `value` to `set`; tells whether `value` itself is a field to be owned.
fn fields_of(catalog: &Catalog, shape: Shape<'_>, value: &Value, set: &mut Set) -> bool {
    match (shape.kind(Some(value)), value) {
        (Kind::Scalar, _) => true,
        (Kind::List, Value::Array(list)) => {
            let shape = shape.list();
            if !shape.is_atomic() {
                entries_of(catalog, shape, list, set);
            }
            shape.is_atomic()
        }
        (Kind::List, _) => shape.list().is_atomic(),
        (Kind::Map, Value::Object(map)) => {
            let shape = shape.map(catalog);
            if !shape.atomic {
                for (key, value) in map {
                    let Some(child) = shape.child(key) else { continue };
                    let mut below = Set::default();
                    let mut owned = fields_of(catalog, child, value, &mut below);
                    owned |= value.is_null()
                        || value.as_object().is_some_and(Map::is_empty)
                        || shape.find(key).is_none();
                    add(set, PathElement::field(key), below, owned);
                }
            }
            shape.atomic
        }
        (Kind::Map, _) => shape.map(catalog).atomic,
    }
}

fn entries_of(catalog: &Catalog, shape: ListShape<'_>, list: &[Value], set: &mut Set) {
    let mut entries: Vec<(PathElement, &Value)> =
        list.iter().filter_map(|entry| Some((shape.element(catalog, entry).ok()?, entry))).collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rest = entries.into_iter().peekable();
    while let Some((element, entry)) = rest.next() {
        let mut below = Set::default();
        if rest.peek().is_some_and(|(next, _)| *next == element) {
            // Entries that stand twice are owned as one.
            while rest.next_if(|(next, _)| *next == element).is_some() {}
        } else {
            fields_of(catalog, shape.item, entry, &mut below);
        }
        add(set, element, below, true);
    }
}

fn add(set: &mut Set, element: PathElement, below: Set, is_member: bool) {
    let has_children = !(below.members.is_empty() && below.children.is_empty());
    if has_children && is_member {
        *set.descend(element.clone()) = below;
        set.insert_member(element);
    } else if has_children {
        *set.descend(element) = below;
    } else if is_member {
        set.insert_member(element);
    }
}

/// `set` with every named field on the way to a member made a member.
pub(crate) fn with_named_fields(catalog: &Catalog, shape: Shape<'_>, set: &Set) -> Set {
    let map = matches!(shape.kinds().first(), Kind::Map).then(|| shape.map(catalog));
    let mut out = Set { members: set.members.clone(), children: Vec::with_capacity(set.children.len()) };
    for (element, child) in &set.children {
        let below = match (element, map) {
            (PathElement::Field(name), Some(map)) => {
                if map.find(name).is_some() {
                    out.insert_member(element.clone());
                }
                map.child(name)
            }
            (PathElement::Key(_), _) if has_lists(shape) => Some(shape.list().item),
            _ => None,
        };
        let child =
            below.map_or_else(|| child.clone(), |below| Arc::new(with_named_fields(catalog, below, child)));
        out.children.push((element.clone(), child));
    }
    out
}

fn has_lists(shape: Shape<'_>) -> bool {
    shape.kind(Some(&Value::Array(Vec::new()))) == Kind::List
}

/// `value` without the fields of `gone`; `None` when nothing is left of it.
///
/// A container that loses all it has becomes null, as in structured-merge-diff 6.4.2 (6.3.2 left it empty).
pub(crate) fn remove(catalog: &Catalog, shape: Shape<'_>, value: &Value, gone: &Set) -> Option<Value> {
    match (shape.kind(Some(value)), value) {
        (Kind::List, Value::Array(list)) => {
            let shape = shape.list();
            if shape.is_atomic() { None } else { remove_entries(catalog, shape, list, gone) }
        }
        (Kind::Map, Value::Object(map)) => {
            let shape = shape.map(catalog);
            if shape.atomic { None } else { remove_fields(catalog, shape, map, gone) }
        }
        (Kind::Scalar, value) => Some(value.clone()),
        _ => None,
    }
}

fn remove_entries(catalog: &Catalog, shape: ListShape<'_>, list: &[Value], gone: &Set) -> Option<Value> {
    let mut kept = Vec::with_capacity(list.len());
    for entry in list {
        let Ok(element) = shape.element(catalog, entry) else {
            kept.push(entry.clone());
            continue;
        };
        if gone.has_member(&element) {
            continue;
        }
        kept.push(match gone.child(&element).filter(|below| !below.is_empty()) {
            Some(below) => remove(catalog, shape.item, entry, below).unwrap_or(Value::Null),
            None => entry.clone(),
        });
    }
    (!kept.is_empty()).then_some(Value::Array(kept))
}

fn remove_fields(
    catalog: &Catalog,
    shape: MapShape<'_>,
    map: &Map<String, Value>,
    gone: &Set,
) -> Option<Value> {
    let mut kept = Map::new();
    for (key, value) in map {
        let element = PathElement::field(key);
        if gone.has_member(&element) {
            continue;
        }
        let below = gone.child(&element).filter(|below| !below.is_empty());
        let value = match (below, shape.child(key)) {
            (Some(below), Some(child)) => remove(catalog, child, value, below).unwrap_or(Value::Null),
            _ => value.clone(),
        };
        kept.insert(key.clone(), value);
    }
    (!kept.is_empty()).then_some(Value::Object(kept))
}
