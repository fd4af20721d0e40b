//! `fieldsV1`: the JSON that a set of fields is kept as in `managedFields` (KEP-555).

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{path::PathElement, set::Set};
use crate::structural::GoFloat;

/// How deep a set may be nested; nothing that the server itself writes comes near.
const DEPTH_MAX: usize = 256;

/// A `fieldsV1` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FieldsError(String);

impl Set {
    /// Reads a set from `fieldsV1`.
    ///
    /// # Errors
    /// For a key that is no path element. Elements of an unknown type are passed over, as upstream does.
    pub fn from_fields_v1(fields: &Value) -> Result<Self, FieldsError> {
        Ok(read(fields, 0)?.0.unwrap_or_default())
    }

    /// The set as `fieldsV1`.
    #[must_use]
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(write(self, false))
    }

    /// The set as the text of `fieldsV1`, in the order that upstream writes: the tree of
    /// [`to_fields_v1`](Self::to_fields_v1) sorts its keys as text instead.
    #[must_use]
    pub fn to_fields_v1_text(&self) -> String {
        let mut text = String::new();
        write_text(self, false, &mut text);
        text
    }
}

/// The set below this point, and whether the point itself is a member.
fn read(fields: &Value, depth: usize) -> Result<(Option<Set>, bool), FieldsError> {
    if depth > DEPTH_MAX {
        return Err(FieldsError("nested too deeply".to_owned()));
    }
    let Value::Object(map) = fields else {
        return if fields.is_null() {
            Ok((None, true))
        } else {
            Err(FieldsError("expected an object".to_owned()))
        };
    };
    let (mut set, mut is_member) = (None::<Set>, false);
    for (key, below) in map {
        if key == "." {
            is_member = true;
            continue;
        }
        let Some(element) = parse_element(key)? else { continue };
        let (children, is_child_member) = read(below, depth + 1)?;
        let set = set.get_or_insert_with(Set::default);
        if let Some(children) = children {
            *set.descend(element.clone()) = children;
        }
        if is_child_member {
            set.insert_member(element);
        }
    }
    let is_leaf = set.is_none();
    Ok((set, is_member || is_leaf))
}

/// Adds the members of `set` to what is stored.
pub(crate) fn insert(fields: &mut Map<String, Value>, set: &Set) {
    for (element, child) in set.children.iter().filter(|(_, child)| !child.is_empty()) {
        match fields.get_mut(&element_text(element)).and_then(Value::as_object_mut) {
            Some(below) => {
                if below.is_empty() {
                    // A leaf is a member; with something below it that has to be said.
                    below.insert(".".to_owned(), Value::Object(Map::new()));
                }
                insert(below, child);
            }
            None => {
                fields.insert(element_text(element), Value::Object(write(child, false)));
            }
        }
    }
    for element in &set.members {
        let below = fields.entry(element_text(element)).or_insert_with(|| Value::Object(Map::new()));
        if let Some(below) = below.as_object_mut().filter(|below| !below.is_empty()) {
            below.entry(".").or_insert_with(|| Value::Object(Map::new()));
        }
    }
}

/// Takes the members of `set` out of what is stored; what lies below a member stays unless it is one itself. With `deep` it
/// goes, too.
pub(crate) fn remove(fields: &mut Map<String, Value>, set: &Set, deep: bool) {
    for (element, child) in &set.children {
        let text = element_text(element);
        let Some(below) = fields.get_mut(&text).and_then(Value::as_object_mut) else { continue };
        if below.is_empty() {
            continue;
        }
        remove(below, child, deep);
        if below.is_empty() {
            fields.remove(&text);
        } else {
            collapse(below);
        }
    }
    for element in &set.members {
        let text = element_text(element);
        let Some(below) = fields.get_mut(&text).and_then(Value::as_object_mut) else { continue };
        if deep || below.is_empty() {
            fields.remove(&text);
        } else {
            below.remove(".");
            if below.is_empty() {
                fields.remove(&text);
            }
        }
    }
}

/// A member with nothing below it is written without saying so.
fn collapse(fields: &mut Map<String, Value>) {
    if fields.len() == 1 && fields.contains_key(".") {
        fields.clear();
    }
}

/// Whether a place that stands in a `fieldsV1` is a member itself, and not only on the way to one.
pub(crate) fn is_member(fields: &Value) -> bool {
    fields.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."))
}

fn parse_element(text: &str) -> Result<Option<PathElement>, FieldsError> {
    let bad = |why: &str| FieldsError(format!("parsing key {text:?} as path element: {why}"));
    if text.len() < 2 {
        return Err(bad("key must be 2 characters long:"));
    }
    if text.as_bytes()[1] != b':' {
        return Err(bad("missing colon"));
    }
    let rest = &text[2..];
    match text.as_bytes()[0] {
        b'f' => Ok(Some(PathElement::field(rest))),
        b'v' => {
            Ok(Some(PathElement::Value(serde_json::from_str(rest).map_err(|error| bad(&error.to_string()))?)))
        }
        b'k' => {
            let fields: Map<String, Value> =
                serde_json::from_str(rest).map_err(|error| bad(&error.to_string()))?;
            let fields = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
            Ok(Some(PathElement::key(fields)))
        }
        b'i' => Ok(Some(PathElement::Index(rest.parse().map_err(|_| bad("not a number"))?))),
        _ => Ok(None),
    }
}

fn write(set: &Set, is_member: bool) -> Map<String, Value> {
    let mut map = Map::new();
    if is_member && !(set.members.is_empty() && set.children.is_empty()) {
        map.insert(".".to_owned(), Value::Object(Map::new()));
    }
    for (element, child) in &set.children {
        map.insert(element_text(element), Value::Object(write(child, set.has_member(element))));
    }
    for element in set.members.iter().filter(|element| set.child(element).is_none()) {
        map.insert(element_text(element), Value::Object(Map::new()));
    }
    map
}

fn write_text(set: &Set, is_member: bool, out: &mut String) {
    out.push('{');
    let start = out.len();
    let entry = |element: Option<&PathElement>, child: Option<&Set>, out: &mut String| {
        if out.len() > start {
            out.push(',');
        }
        let key = element.map_or_else(|| ".".to_owned(), element_text);
        out.push_str(&Value::String(key).to_string());
        out.push(':');
        match (element, child) {
            (Some(element), Some(child)) => write_text(child, set.has_member(element), out),
            _ => out.push_str("{}"),
        }
    };
    if is_member && !(set.members.is_empty() && set.children.is_empty()) {
        entry(None, None, out);
    }
    let mut elements: Vec<&PathElement> =
        set.members.iter().chain(set.children.iter().map(|(element, _)| element)).collect();
    elements.sort();
    elements.dedup();
    for element in elements {
        entry(Some(element), set.child(element), out);
    }
    out.push('}');
}

/// `f:name`.
pub(crate) fn field_text(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// `f:name`, `k:{"name":"a"}`, `v:1` or `i:0`.
pub(crate) fn element_text(element: &PathElement) -> String {
    match element {
        PathElement::Field(name) => field_text(name),
        PathElement::Value(value) => {
            let mut text = "v:".to_owned();
            push_json(value, &mut text);
            text
        }
        PathElement::Index(index) => format!("i:{index}"),
        PathElement::Key(fields) => {
            let mut text = "k:{".to_owned();
            for (index, (name, value)) in fields.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                push_text(name, &mut text);
                text.push(':');
                push_json(value, &mut text);
            }
            text.push('}');
            text
        }
    }
}

/// JSON with `<`, `>` and `&` escaped, as Go's encoder does.
fn push_json(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => push_text(text, out),
        Value::Number(number) if number.is_f64() => {
            let _ = write!(out, "{}", GoFloat(number.as_f64().unwrap_or_default()));
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn push_text(text: &str, out: &mut String) {
    let plain = |c: char| c >= ' ' && !matches!(c, '"' | '\\' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if text.chars().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
        return;
    }
    let json = Value::String(text.to_owned()).to_string();
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_are_written_as_upstream_writes_them() {
        // structured-merge-diff, fieldpath/serialize_test.go.
        for text in [
            r#"{}"#,
            r#"{"f:a":{}}"#,
            r#"{"f:a":{".":{},"f:b":{}}}"#,
            r#"{"f:a":{"f:b":{}},"f:c":{}}"#,
            r#"{"f:l":{".":{},"k:{\"name\":\"x\"}":{".":{},"f:name":{}},"v:1":{},"v:\"b\"":{},"i:3":{}}}"#,
            r#"{"f:p":{"k:{\"port\":80,\"protocol\":\"TCP\"}":{},"k:{\"port\":443,\"protocol\":\"TCP\"}":{}}}"#,
        ] {
            let set = Set::from_fields_v1(&serde_json::from_str(text).unwrap()).unwrap();
            assert_eq!(set.to_fields_v1_text(), text);
            assert_eq!(set.to_fields_v1(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_or_passed_over() {
        for bad in [
            json!({"f": {}}),
            json!({"fa": {}}),
            json!({"k:{": {}}),
            json!({"v:": {}}),
            json!({"i:x": {}}),
            json!(3),
        ] {
            assert!(Set::from_fields_v1(&bad).is_err(), "{bad}");
        }
        assert_eq!(Set::from_fields_v1(&json!({"z:new": {"f:a": {}}, "f:b": {}})).unwrap().paths(), [".b"]);
        let deep = (0..1000).fold(json!({}), |below, _| json!({ "f:a": below }));
        assert!(Set::from_fields_v1(&deep).is_err());
    }

    fn any_set() -> impl Strategy<Value = Set> {
        let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| Set::of(paths.iter().map(Vec::as_slice)))
    }

    proptest! {
        #[test]
        fn every_set_survives_the_way_through_json(
            paths in prop::collection::vec(prop::collection::vec(0..6_usize, 1..5), 0..10),
        ) {
            let elements = [
                PathElement::field("a"),
                PathElement::field("b.c/d\"<"),
                PathElement::key(vec![("name".into(), json!("x<>&\u{2028}\"y"))]),
                PathElement::key(vec![("port".into(), json!(80)), ("protocol".into(), json!("TCP"))]),
                PathElement::Value(json!("v")),
                PathElement::Value(json!(7)),
            ];
            let mut set = Set::default();
            for path in paths {
                set.insert(path.into_iter().map(|index| elements[index].clone()));
            }
            prop_assert_eq!(&Set::from_fields_v1(&set.to_fields_v1()).unwrap(), &set);
            let text: Value = serde_json::from_str(&set.to_fields_v1_text()).unwrap();
            prop_assert_eq!(Set::from_fields_v1(&text).unwrap(), set);
        }

        #[test]
        fn what_is_stored_is_changed_as_the_set_is(a in any_set(), b in any_set()) {
            let change = |act: &dyn Fn(&mut Map<String, Value>)| {
                let mut fields = a.to_fields_v1();
                act(fields.as_object_mut().unwrap());
                fields
            };
            prop_assert_eq!(change(&|fields| insert(fields, &b)), a.union(&b).to_fields_v1());
            prop_assert_eq!(change(&|fields| remove(fields, &b, false)), a.difference(&b).to_fields_v1());
            prop_assert_eq!(change(&|fields| remove(fields, &b, true)), a.recursive_difference(&b).to_fields_v1());
        }
    }
}
