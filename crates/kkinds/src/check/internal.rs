//! Values as upstream's messages show them: in the internal version of their kind, whose Go structs have no JSON names.
//!
//! `internal.txt` has the layout of these structs: see `xtask/src/internal.rs`, which writes it. It is read only when there is
//! something to report.

use std::borrow::Cow;

use kschema::quote::json_text;
use serde_json::{Map, Value};

const TABLE: &str = include_str!("internal.txt");
/// The deepest value that is shown with its types; what is below is shown as it is.
const DEPTH_MAX: usize = 64;

/// A value of a type, by the definition's short name (`~core.v1.PodIP`); of a list, its entries are of the type.
#[derive(Clone, Copy)]
pub(crate) struct Internal<'v>(pub(crate) &'static str, pub(crate) Option<&'v Value>);

impl Internal<'_> {
    /// The value as `json.Marshal` writes it.
    pub(crate) fn compact(&self) -> String {
        let mut text = String::new();
        self.node().write(None, &mut text);
        text
    }

    /// The value as `json.MarshalIndent` writes it with an indent of one space.
    pub(crate) fn pretty(&self) -> String {
        let mut text = String::new();
        self.node().write(Some(0), &mut text);
        text
    }

    fn node(&self) -> Node<'static> {
        match self.1 {
            None | Some(Value::Null) => Node::Text("null".into()),
            value => typed(self.0, value, DEPTH_MAX),
        }
    }
}

/// JSON whose objects keep the order in which they were made.
enum Node<'t> {
    Text(Cow<'t, str>),
    List(Vec<Self>),
    Object(Vec<(Cow<'t, str>, Self)>),
}

impl Node<'_> {
    /// `indent`: how deep it stands; `None` for everything on one line.
    fn write(&self, indent: Option<usize>, out: &mut String) {
        let below = indent.map(|indent| indent + 1);
        let line = |indent: Option<usize>, out: &mut String| {
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent));
            }
        };
        let (open, close, count) = match self {
            Self::Text(text) => return out.push_str(text),
            Self::List(entries) => ('[', ']', entries.len()),
            Self::Object(fields) => ('{', '}', fields.len()),
        };
        out.push(open);
        for index in 0..count {
            if index > 0 {
                out.push(',');
            }
            line(below, out);
            match self {
                Self::List(entries) => entries[index].write(below, out),
                Self::Object(fields) => {
                    out.push_str(&json_text(&fields[index].0));
                    out.push_str(if below.is_some() { ": " } else { ":" });
                    fields[index].1.write(below, out);
                }
                Self::Text(_) => {}
            }
        }
        if count > 0 {
            line(indent, out);
        }
        out.push(close);
    }
}

/// A value without a type: as it is.
fn plain(value: &Value) -> Node<'static> {
    match value {
        Value::String(text) => Node::Text(json_text(text).into()),
        Value::Array(list) => Node::List(list.iter().map(plain).collect()),
        Value::Object(map) => {
            Node::Object(map.iter().map(|(key, value)| (Cow::Owned(key.clone()), plain(value))).collect())
        }
        other => Node::Text(other.to_string().into()),
    }
}

fn typed(definition: &str, value: Option<&Value>, depth: usize) -> Node<'static> {
    let line = TABLE.lines().find_map(|line| line.strip_prefix(definition)?.strip_prefix('\t'));
    match (value, line) {
        (Some(Value::Array(list)), Some(_)) if depth > 0 => {
            Node::List(list.iter().map(|entry| typed(definition, Some(entry), depth - 1)).collect())
        }
        (None | Some(Value::Object(_)), Some(line)) if depth > 0 => {
            let moved = if definition == "~core.v1.PodSpec" { value.map(pod_spec) } else { None };
            let mut fields = Vec::new();
            promote(line, moved.as_ref().or(value).and_then(Value::as_object), &mut fields, depth);
            Node::Object(fields)
        }
        (Some(value), _) => plain(value),
        (None, _) => Node::Text("null".into()),
    }
}

/// A pod's namespaces of its host stand in its security context internally.
fn pod_spec(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let moved = ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];
    let found: Vec<(&str, Value)> =
        moved.into_iter().filter_map(|key| Some((key, spec.as_object_mut()?.remove(key)?))).collect();
    if spec["securityContext"].is_null() {
        spec["securityContext"] = Value::Object(Map::new());
    }
    for (key, value) in found {
        spec["securityContext"][key] = value;
    }
    spec
}

type Fields = Vec<(Cow<'static, str>, Node<'static>)>;

fn promote(line: &'static str, object: Option<&Map<String, Value>>, fields: &mut Fields, depth: usize) {
    for part in line.split('\t') {
        if let Some((key, definition)) = part.strip_prefix('+').and_then(|part| part.split_once('@')) {
            let inner = object.and_then(|object| object.get(key)).and_then(Value::as_object);
            if let Node::Object(promoted) =
                typed(definition, inner.cloned().map(Value::Object).as_ref(), depth - 1)
            {
                fields.extend(promoted);
            }
            continue;
        }
        let Some((name, (key, of))) =
            part.split_once('=').and_then(|(name, rest)| Some((name, rest.split_once(':')?)))
        else {
            continue;
        };
        // What is in no served field is in one of the same name that was moved here.
        let key = if key == "-" { moved_key(name) } else { Cow::Borrowed(key) };
        let value = object.and_then(|object| object.get(&*key)).filter(|value| !value.is_null());
        let omits = name.ends_with('?');
        let name = name.trim_end_matches('?');
        let zero = of.chars().next().unwrap_or('n');
        if omits && zero != '{' && value.is_none_or(is_empty) {
            continue;
        }
        fields.push((Cow::Borrowed(name), field(zero, of.get(1..).unwrap_or_default(), value, depth)));
    }
}

/// `HostPID` becomes `hostPID`, `CIDRs` is left to those who are asked by name.
fn moved_key(name: &str) -> Cow<'static, str> {
    let mut letters = name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect::<String>().into()
}

/// What Go leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

fn field(zero: char, of: &'static str, value: Option<&Value>, depth: usize) -> Node<'static> {
    match (value, zero) {
        (None, 's') => Node::Text("\"\"".into()),
        (None, '0') => Node::Text("0".into()),
        (None, 'f') => Node::Text("false".into()),
        (None, 'q') => Node::Text("\"0\"".into()),
        (None, '{') => typed(of.trim_start_matches('@'), None, depth.saturating_sub(1)),
        (None, _) => Node::Text("null".into()),
        (Some(value), _) => match (of.strip_prefix('@'), of.strip_prefix('%'), value) {
            (Some(definition), _, value) => typed(definition, Some(value), depth.saturating_sub(1)),
            (_, Some(definition), Value::Object(map)) => {
                let entry = |(key, value): (&String, &Value)| {
                    (Cow::Owned(key.clone()), typed(definition, Some(value), depth.saturating_sub(1)))
                };
                Node::Object(map.iter().map(entry).collect())
            }
            _ => plain(value),
        },
    }
}
