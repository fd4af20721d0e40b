//! The part of a patched object that the patch may have changed: all else has been checked when it was stored.

use serde_json::{Map, Value};

/// How deep the part is told apart: the fields of `metadata`, `spec` and `status`. What a patch touches below is looked at
/// whole, as lists are merged there.
const DEPTH_MAX: usize = 2;

/// Takes what a merge patch or strategic merge patch touches out of the patched object.
pub(super) fn take(object: &mut Map<String, Value>, patch: &Map<String, Value>) -> Map<String, Value> {
    take_below(object, patch, 1)
}

fn take_below(
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Map<String, Value> {
    let mut part = Map::new();
    for (key, change) in patch {
        let value = match (object.get_mut(key), change) {
            (Some(Value::Object(value)), Value::Object(change)) if is_partial(change, depth) => {
                Value::Object(take_below(value, change, depth + 1))
            }
            _ => match object.remove(key) {
                Some(value) => value,
                None => continue,
            },
        };
        part.insert(key.clone(), value);
    }
    part
}

/// Whether only the named fields can have been changed: a directive of a strategic merge patch speaks of all.
fn is_partial(change: &Map<String, Value>, depth: usize) -> bool {
    depth < DEPTH_MAX && !change.keys().any(|key| key.starts_with('$'))
}

/// Puts the part back. What it has come to have beside is a default, which is not for what was there.
pub(super) fn put_back(
    object: &mut Map<String, Value>,
    part: Map<String, Value>,
    patch: &Map<String, Value>,
) {
    for (key, value) in part {
        match (object.get_mut(&key), value) {
            (None, value) => drop(object.insert(key, value)),
            (Some(Value::Object(below)), Value::Object(value)) => {
                if let Some(Value::Object(change)) = patch.get(&key) {
                    put_back(below, value, change);
                }
            }
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_touched_is_taken_and_put_back() {
        let object = json!({
            "kind": "X", "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}, "spec": {"a": 1, "deep": {"b": 2, "c": 3}},
        });
        for (patch, expected) in [
            (
                json!({"metadata": {"labels": {"x": "3"}}}),
                json!({"metadata": {"labels": {"x": "1", "y": "2"}}}),
            ),
            (json!({"spec": {"a": null, "none": 1}, "more": {}}), json!({"spec": {"a": 1}})),
            (json!({"spec": {"$patch": "replace", "a": 2}}), json!({"spec": object["spec"]})),
            (json!({"kind": {"x": 1}}), json!({"kind": "X"})),
            (
                json!({"spec": {"deep": {"b": 1}}, "metadata": {}}),
                json!({"metadata": {}, "spec": {"deep": {"b": 2, "c": 3}}}),
            ),
            (json!({}), json!({})),
        ] {
            let (Value::Object(mut map), Value::Object(patch)) = (object.clone(), patch) else { return };
            let part = take(&mut map, &patch);
            assert_eq!(Value::Object(part.clone()), expected);
            put_back(&mut map, part, &patch);
            assert_eq!(Value::Object(map), object);
        }
    }

    #[test]
    fn defaults_fill_in_what_is_missing_only() {
        let (Value::Object(mut object), Value::Object(patch)) =
            (json!({"spec": {"mode": "set", "size": 1}}), json!({"spec": {"size": 1, "kept": null}}))
        else {
            return;
        };
        let mut part = take(&mut object, &patch);
        for (key, default) in [("mode", "default"), ("kept", "default")] {
            part["spec"][key] = json!(default);
        }
        put_back(&mut object, part, &patch);
        assert_eq!(Value::Object(object), json!({"spec": {"mode": "set", "size": 1, "kept": "default"}}));
    }
}
