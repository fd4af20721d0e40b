//! What a change leaves as it was.

use serde_json::Value;

/// What a change of the status may touch: the status, and the metadata that is not about the specification.
pub(super) fn keep_all_but_status(object: &mut Value, old: &Value) {
    for key in ["labels", "ownerReferences", "generation"] {
        crate::schema::fields::keep(&mut object["metadata"], &old["metadata"], key);
    }
    let (Some(map), Some(old)) = (object.as_object_mut(), old.as_object()) else { return };
    let is_free = |key: &str| matches!(key, "status" | "metadata");
    map.retain(|key, _| is_free(key) || old.contains_key(key));
    for (key, before) in old.iter().filter(|(key, _)| !is_free(key)) {
        // Mostly nothing else was touched, and looking costs far less than copying.
        match map.get_mut(key) {
            Some(value) if value == before => {}
            Some(value) => value.clone_from(before),
            None => drop(map.insert(key.clone(), before.clone())),
        }
    }
}

/// Whether two states differ in nothing that `metadata.generation` counts: all but metadata, and the status where it is not
/// a part of the specification.
pub(super) fn same_specification(one: &Value, other: &Value, counts_status: bool) -> bool {
    let counts = |key: &str| key != "metadata" && (counts_status || key != "status");
    let keys = |object: &Value| {
        let entries = object.as_object().into_iter().flatten();
        entries.filter(|(key, _)| counts(key)).count()
    };
    let entries = one.as_object().into_iter().flatten();
    let mut counted = entries.filter(|(key, _)| counts(key));
    keys(one) == keys(other) && counted.all(|(key, value)| other.get(key) == Some(value))
}
