//! `metadata.managedFields` as text: it is the larger half of many objects, and most writes leave most of it alone. As trees its
//! sets, a map for each field, cost several times what the rest of the object does.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::json;

const OPEN: &[u8] = b"\"managedFields\":[";
const FIELDS: &str = "fieldsV1";
const FIELDS_OPEN: &str = "\"fieldsV1\":{";

/// Where `managedFields` with its key is in the metadata that begins at `from`. The text can't stand for anything else there:
/// in a string its quotes would be escaped, and all other keys of metadata that callers choose have texts as values.
pub(super) fn find(raw: &[u8], from: usize) -> Option<Range<usize>> {
    let metadata = &raw[from..];
    let at = memchr::memmem::find(metadata, OPEN)?;
    let list = at + OPEN.len();
    // The first one may be that of an object within this one: then the metadata has ended before.
    (at < end_of(metadata, b'{', b'}'))
        .then(|| from + at..from + list + end_of(&metadata[list..], b'[', b']'))
}

/// Where the object or list ends that `bytes` begins within, after what closes it.
pub(super) fn end_of(bytes: &[u8], open: u8, close: u8) -> usize {
    closed_at(bytes, open, close).unwrap_or(bytes.len())
}

fn closed_at(bytes: &[u8], open: u8, close: u8) -> Option<usize> {
    let mut depth = 1_usize;
    let mut at = 0;
    // Most of it is text: from quote to quote nothing else counts.
    while let Some(found) = memchr::memchr3(b'"', open, close, &bytes[at..]) {
        at += found + 1;
        match bytes[at - 1] {
            b'"' => at += after_text(&bytes[at..])?,
            byte if byte == open => depth += 1,
            _ if depth == 1 => return Some(at),
            _ => depth -= 1,
        }
    }
    None
}

/// Where the text ends that `bytes` begins within, after its quote.
fn after_text(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let found = at + memchr::memchr2(b'"', b'\\', &bytes[at..])?;
        if bytes[found] == b'"' {
            return Some(found + 1);
        }
        at = found + 2;
        if at > bytes.len() {
            return None;
        }
    }
}

/// The object as a tree whose sets of owned fields are texts. `owners` is where they are.
pub(super) fn sealed(text: &str, owners: Range<usize>) -> Result<Value, serde_json::Error> {
    let mut rest = String::with_capacity(text.len());
    let mut sets = Vec::new();
    let (mut copied, mut at) = (0, owners.start);
    while let Some(found) = memchr::memmem::find(&text.as_bytes()[at..owners.end], FIELDS_OPEN.as_bytes()) {
        let start = at + found + FIELDS_OPEN.len() - 1;
        let end = start + 1 + end_of(&text.as_bytes()[start + 1..owners.end], b'{', b'}');
        rest.push_str(&text[copied..start]);
        rest.push_str("\"\"");
        sets.push(&text[start..end]);
        (copied, at) = (end, end);
    }
    rest.push_str(&text[copied..]);
    let mut object: Value = serde_json::from_str(&rest)?;
    let mut sets = sets.into_iter();
    for set in sets_of(&mut object) {
        if matches!(set, Value::String(text) if text.is_empty()) {
            *set = sets.next().map_or(Value::Null, Value::from);
        }
    }
    Ok(object)
}

/// Reads the sets of owned fields that [`Stored::sealed`](super::Stored::sealed) has left as texts.
pub fn open(object: &mut Value) {
    for set in sets_of(object) {
        if let Value::String(text) = set
            && let Ok(tree) = serde_json::from_str(text)
        {
            *set = tree;
        }
    }
}

fn sets_of(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    let list = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("managedFields"));
    let entries = list.and_then(Value::as_array_mut).into_iter().flatten();
    entries.filter_map(|entry| entry.get_mut(FIELDS))
}

/// Writes an object's metadata, whose sets of owned fields may be texts.
pub(super) fn write_metadata(out: &mut Vec<u8>, metadata: &Value) {
    let Value::Object(map) = metadata else {
        return json::write(out, metadata);
    };
    write_map(out, map, &|out, key, value| match value {
        Value::Array(list) if key == "managedFields" => {
            out.push(b'[');
            for (index, entry) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match entry {
                    Value::Object(entry) => write_map(out, entry, &write_set),
                    other => json::write(out, other),
                }
            }
            out.push(b']');
        }
        _ => json::write(out, value),
    });
}

fn write_set(out: &mut Vec<u8>, key: &str, value: &Value) {
    match value {
        // Nothing but an object may be put there as it is.
        Value::String(text) if key == FIELDS && is_object(text.as_bytes()) => {
            out.extend_from_slice(text.as_bytes());
        }
        _ => json::write(out, value),
    }
}

fn is_object(text: &[u8]) -> bool {
    matches!(text.split_first(), Some((b'{', rest)) if closed_at(rest, b'{', b'}') == Some(rest.len()))
}

fn write_map(out: &mut Vec<u8>, map: &Map<String, Value>, write: &dyn Fn(&mut Vec<u8>, &str, &Value)) {
    out.push(b'{');
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::write_text(out, key);
        out.push(b':');
        write(out, key, value);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::{Stored, encode};

    #[test]
    fn sealed_objects_are_stored_and_opened_as_they_were() {
        let set =
            |name: &str| json!({"f:spec": {name: {}, "k:{\"a\":\"}\\\"\"}": {".": {}, "fieldsV1": {}}}});
        for owners in [
            json!([]),
            json!([{"fieldsV1": set("f:a"), "manager": "\"fieldsV1\":{"}]),
            json!([{"fieldsV1": set("f:a")}, {"manager": "x"}, {"fieldsV1": {}, "manager": "y"}, 7]),
            json!([{"fieldsV1": "text"}, {"fieldsV1": ""}, {"fieldsV1": null}]),
        ] {
            let value = json!({
                "kind": "X", "metadata": {"labels": {"a": "]"}, "managedFields": owners, "name": "a", "resourceVersion": "7"},
                "spec": {"metadata": {"managedFields": [{"fieldsV1": {"f:b": {}}}]}},
            });
            let stored = Stored::from_value(value.clone()).unwrap();
            let mut sealed = stored.sealed().unwrap();
            for set in sets_of(&mut sealed) {
                assert!(!set.is_object(), "{set}");
            }
            let mut bare = sealed.clone();
            bare["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            if !owners.to_string().contains("\"fieldsV1\":\"") {
                assert_eq!(encode(&bare), **stored.raw(), "{owners}");
                open(&mut sealed);
                assert_eq!(sealed, value);
            }
        }
    }

    #[test]
    fn a_text_that_is_no_object_stays_a_text() {
        for text in ["", "{", "{}{", "{},\"x\":1", "[]", "{\"}"] {
            let object = json!({"metadata": {"managedFields": [{"fieldsV1": text}]}});
            let read: Value = serde_json::from_slice(&encode(&object)).unwrap();
            assert_eq!(read, object);
        }
    }
}
