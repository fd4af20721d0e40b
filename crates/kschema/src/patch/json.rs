//! JSON patch (RFC 6902) as upstream's library applies it (evanphx/json-patch v4), which is laxer than the RFC: a missing key
//! is null to `test`, `replace` may set a key that is not there, and `-1` is the last entry of a list.

use serde::Deserialize;
use serde_json::Value;

use super::PATCHED_BYTES_MAX;

/// One operation.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Operation {
    /// `add`, `remove`, `replace`, `move`, `copy` or `test`.
    pub op: String,
    /// Where, as a JSON pointer.
    pub path: String,
    /// Whence, for `move` and `copy`.
    #[serde(default)]
    pub from: Option<String>,
    /// What, for `add`, `replace` and `test`.
    #[serde(default)]
    pub value: Value,
}

/// Why a patch does not apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonPatchError {
    /// There is nothing at a path that must be there.
    #[error("{op} operation does not apply: doc is missing path: {path:?}")]
    Missing {
        /// The operation.
        op: String,
        /// The path.
        path: String,
    },
    /// The value is another than the one that was expected.
    #[error("testing value {0} failed")]
    Test(String),
    /// An operation that there is not.
    #[error("unexpected kind: {0}")]
    Operation(String),
    /// Copies make the document larger than [`PATCHED_BYTES_MAX`].
    #[error(
        "unable to complete the copy, the accumulated size increase of copy is larger than the limit {PATCHED_BYTES_MAX}"
    )]
    Copies,
}

/// Applies all operations in their order, or none.
///
/// # Errors
/// When one of them does not apply.
pub fn apply(object: &Value, operations: &[Operation]) -> Result<Value, JsonPatchError> {
    let mut document = object.clone();
    let mut copied = 0;
    for operation in operations {
        one(&mut document, operation, &mut copied)?;
    }
    Ok(document)
}

fn one(document: &mut Value, operation: &Operation, copied: &mut usize) -> Result<(), JsonPatchError> {
    let Operation { op, path, from, value } = operation;
    let missing = |path: &str| JsonPatchError::Missing { op: op.clone(), path: path.to_owned() };
    let whence = || from.as_deref().ok_or_else(|| missing(""));
    match op.as_str() {
        "add" => add(document, path, value.clone()).ok_or_else(|| missing(path)),
        "remove" => remove(document, path).map(drop).ok_or_else(|| missing(path)),
        "replace" => replace(document, path, value.clone()).ok_or_else(|| missing(path)),
        "test" => {
            let found = find(document, path).ok_or_else(|| missing(path))?;
            if found == *value { Ok(()) } else { Err(JsonPatchError::Test(path.clone())) }
        }
        "move" => {
            let from = whence()?;
            let moved = remove(document, from).ok_or_else(|| missing(from))?;
            add(document, path, moved).ok_or_else(|| missing(path))
        }
        "copy" => {
            let from = whence()?;
            let value = find(document, from).ok_or_else(|| missing(from))?;
            *copied += value.to_string().len();
            if *copied > PATCHED_BYTES_MAX {
                return Err(JsonPatchError::Copies);
            }
            add(document, path, value).ok_or_else(|| missing(path))
        }
        other => Err(JsonPatchError::Operation(other.to_owned())),
    }
}

/// `~1` is a slash and `~0` a tilde.
fn unescape(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

/// The index that a key stands for in a list; `length` is one more than that of the list where something is added.
fn index(key: &str, length: usize) -> Option<usize> {
    let number: i64 = key.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let number = if number < 0 { number + length } else { number };
    usize::try_from(number).ok().filter(|_| number < length)
}

/// The object or list that holds what a path names, and the last key.
fn holder<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parents, last) = path
        .strip_prefix('/')?
        .rsplit_once('/')
        .map_or_else(|| ("", path.strip_prefix('/').unwrap_or_default()), |(parents, last)| (parents, last));
    let mut place = document;
    let steps = parents.split('/').filter(|_| path.matches('/').count() > 1);
    for key in steps {
        let key = unescape(key);
        place = match place {
            Value::Object(map) => map.get_mut(&key)?,
            Value::Array(list) => {
                let index = index(&key, list.len())?;
                list.get_mut(index)?
            }
            _ => return None,
        };
    }
    matches!(place, Value::Object(_) | Value::Array(_)).then(|| (place, unescape(last)))
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    match holder(document, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(list), key) if key == "-" => list.push(value),
        (Value::Array(list), key) => {
            let index = index(&key, list.len() + 1)?;
            list.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    match holder(document, path)? {
        (Value::Object(map), key) => map.remove(&key),
        (Value::Array(list), key) => {
            let index = index(&key, list.len())?;
            Some(list.remove(index))
        }
        _ => None,
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return None;
        }
        *document = value;
        return Some(());
    }
    match holder(document, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(list), key) => {
            let index = index(&key, list.len())?;
            *list.get_mut(index)? = value;
        }
        _ => return None,
    }
    Some(())
}

/// What a path names; a key that is missing in its object is null.
fn find(document: &mut Value, path: &str) -> Option<Value> {
    if path.is_empty() {
        return Some(document.clone());
    }
    match holder(document, path)? {
        (Value::Object(map), key) => Some(map.get(&key).cloned().unwrap_or_default()),
        (Value::Array(list), key) => {
            let index = index(&key, list.len())?;
            list.get(index).cloned()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(object: Value, operations: Value) -> Result<Value, String> {
        let operations: Vec<Operation> = serde_json::from_value(operations).unwrap();
        apply(&object, &operations).map_err(|error| error.to_string())
    }

    /// Expected results from the tests of evanphx/json-patch v4 and from RFC 6902, appendix A.
    #[test]
    fn operations_do_what_upstream_does() {
        for (object, operations, expected) in [
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": [1]}]),
                Ok(json!({"a": 1, "b": [1]})),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "add", "path": "/a/1", "value": 9}]),
                Ok(json!({"a": [1, 9, 2]})),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "add", "path": "/a/-", "value": 3}]),
                Ok(json!({"a": [1, 2, 3]})),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "add", "path": "/a/-1", "value": 3}]),
                Ok(json!({"a": [1, 2, 3]})),
            ),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/-1"}]), Ok(json!({"a": [1]}))),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/5", "value": 3}]),
                Err("add operation does not apply: doc is missing path: \"/a/5\""),
            ),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "remove", "path": "/a/c"}]),
                Err("remove operation does not apply: doc is missing path: \"/a/c\""),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/b", "value": 2}]),
                Ok(json!({"a": 1, "b": 2})),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/b/c", "value": 2}]),
                Err("replace operation does not apply: doc is missing path: \"/b/c\""),
            ),
            (json!({"a": 1}), json!([{"op": "test", "path": "/b", "value": null}]), Ok(json!({"a": 1}))),
            (
                json!({"a": 1}),
                json!([{"op": "test", "path": "/a", "value": 2}]),
                Err("testing value /a failed"),
            ),
            (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/b"}]), Ok(json!({"b": 1}))),
            (
                json!({"a": {"x": 1}}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                Ok(json!({"a": {"x": 1}, "b": {"x": 1}})),
            ),
            (
                json!({"a/b": 1, "c~d": 2}),
                json!([{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0d"}]),
                Ok(json!({})),
            ),
            (json!({"": 1}), json!([{"op": "remove", "path": "/"}]), Ok(json!({}))),
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 9}]),
                Err("testing value /a failed"),
            ),
            (json!({"a": 1}), json!([{"op": "frob", "path": "/a"}]), Err("unexpected kind: frob")),
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "", "value": 1}]),
                Err("add operation does not apply: doc is missing path: \"\""),
            ),
        ] {
            assert_eq!(
                run(object.clone(), operations.clone()),
                expected.map_err(str::to_owned),
                "{object} {operations}"
            );
        }
    }

    #[test]
    fn copies_can_not_make_a_document_grow_without_end() {
        let big = json!({"a": "x".repeat(PATCHED_BYTES_MAX / 2)});
        let operations: Vec<Value> =
            (0..3).map(|number| json!({"op": "copy", "from": "/a", "path": format!("/b{number}")})).collect();
        assert!(run(big, json!(operations)).unwrap_err().starts_with("unable to complete the copy"));
    }
}
