//! The strategic merge patch that makes one object of another (`CreateTwoWayMergePatch` of upstream's `strategicpatch`).

use std::collections::BTreeMap;

use ahash::HashSet;
use serde_json::{Map, Value, json};

use super::{
    order::identity,
    strategic::{DELETE_FROM, DIRECTIVE, ORDER, RETAIN, bad, field_of, item_of},
};
use crate::{
    error::ApiResult,
    types::{Catalog, Type},
};

type Object = Map<String, Value>;

/// The strategic merge patch that makes `modified` of `original`, as `kubectl` and Go's clients make it.
///
/// What is equal is left out, what is gone is null; lists are merged by the keys that the schema names, with `$patch: delete`
/// for entries that are gone and `$setElementOrder` for the order, where the list has changed; `$retainKeys` where the schema asks
/// for it. Applying it to `original` gives `modified`, provided that neither has nulls, nor two entries of one list with the
/// same key.
///
/// ```
/// use kschema::{Type, builtin, patch};
/// use serde_json::json;
///
/// let catalog = builtin::catalog();
/// let pod = Type::Named(catalog.find("~core.v1.Pod").unwrap());
/// let a = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}});
/// let b = json!({"spec": {"containers": [{"name": "a", "image": "2"}]}});
/// let patch = patch::diff(&catalog, &pod, &a, &b).unwrap();
/// assert_eq!(patch, json!({"spec": {
///     "$setElementOrder/containers": [{"name": "a"}],
///     "containers": [{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}],
/// }}));
/// ```
///
/// # Errors
/// When one of the two is no object, or an entry of a list lacks the key by which the list is merged.
pub fn diff(catalog: &Catalog, schema: &Type, original: &Value, modified: &Value) -> ApiResult<Value> {
    let (Some(original), Some(modified)) = (original.as_object(), modified.as_object()) else {
        return Err(bad("only objects can be compared"));
    };
    diff_object(catalog, schema, original, modified, false).map(Value::Object)
}

fn diff_object(
    catalog: &Catalog,
    ty: &Type,
    original: &Object,
    modified: &Object,
    retains: bool,
) -> ApiResult<Object> {
    let mut patch = Object::new();
    for (key, new) in modified {
        let (field, child_type) = field_of(catalog, ty, key);
        match (original.get(key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                if field.is_some_and(|field| field.patch_replace) {
                    patch.insert(key.clone(), Value::Object(new.clone()));
                    continue;
                }
                let retains = field.is_some_and(|field| field.retain_keys);
                let below = diff_object(catalog, child_type, old, new, retains)?;
                if !below.is_empty() {
                    patch.insert(key.clone(), Value::Object(below));
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => match field.filter(|field| field.patch_merge) {
                Some(field) => {
                    let lists = match &field.merge_key {
                        Some(merge_key) => {
                            let item = item_of(child_type);
                            diff_entries(catalog, item, old, new, merge_key, field.retain_keys)?
                        }
                        None => diff_scalars(old, new),
                    };
                    lists.put(key, &mut patch);
                }
                None if old != new => drop(patch.insert(key.clone(), Value::Array(new.clone()))),
                None => {}
            },
            (Some(old), new) if old == new => {}
            (_, new) => drop(patch.insert(key.clone(), new.clone())),
        }
    }
    let gone: Vec<&String> = original.keys().filter(|key| !modified.contains_key(*key)).collect();
    let dropped = gone.iter().any(|key| !original[*key].is_null());
    patch.extend(gone.into_iter().map(|key| (key.clone(), Value::Null)));
    if retains && (!patch.is_empty() || dropped) {
        let kept: Value =
            modified.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| json!(key)).collect();
        if kept != json!([]) {
            patch.insert(RETAIN.to_owned(), kept);
        }
    }
    Ok(patch)
}

/// What a list's change is told by.
#[derive(Default)]
struct Lists {
    patch: Vec<Value>,
    gone: Vec<Value>,
    order: Vec<Value>,
}

impl Lists {
    fn put(self, key: &str, patch: &mut Object) {
        for (prefix, list) in [("", self.patch), (DELETE_FROM, self.gone), (ORDER, self.order)] {
            if !list.is_empty() {
                patch.insert(format!("{prefix}{key}"), Value::Array(list));
            }
        }
    }
}

/// Entries in the order of `modified`, then what is gone in the order of its keys, as upstream has it.
fn diff_entries(
    catalog: &Catalog,
    item: &Type,
    original: &[Value],
    modified: &[Value],
    merge_key: &str,
    retains: bool,
) -> ApiResult<Lists> {
    if original.is_empty() {
        return Ok(Lists { patch: modified.to_vec(), ..Lists::default() });
    }
    let entries = |list: &[Value]| -> ApiResult<Vec<(String, Object)>> {
        let entry = |entry: &Value| {
            let map = entry.as_object().filter(|map| map.contains_key(merge_key)).ok_or_else(|| {
                bad(format!("map: {entry} does not contain declared merge key: {merge_key}"))
            })?;
            Ok((identity(entry, Some(merge_key)), map.clone()))
        };
        list.iter().map(entry).collect()
    };
    let (original, modified) = (entries(original)?, entries(modified)?);
    let same_order = original.iter().map(|(id, _)| id).eq(modified.iter().map(|(id, _)| id));
    let mut old: BTreeMap<String, Object> = original.into_iter().collect();
    let mut patch = Vec::new();
    for (id, new) in &modified {
        match old.remove(id) {
            None => patch.push(Value::Object(new.clone())),
            Some(old) => {
                let mut below = diff_object(catalog, item, &old, new, retains)?;
                if !below.is_empty() {
                    below.insert(merge_key.to_owned(), new[merge_key].clone());
                    patch.push(Value::Object(below));
                }
            }
        }
    }
    patch.extend(old.into_values().map(|mut gone| {
        let key = gone.remove(merge_key).unwrap_or_default();
        json!({DIRECTIVE: "delete", merge_key: key})
    }));
    let changed = !patch.is_empty() || !same_order;
    let order = modified.into_iter().filter(|_| changed);
    let order = order.map(|(_, mut entry)| json!({merge_key: entry.remove(merge_key)})).collect();
    Ok(Lists { patch, gone: Vec::new(), order })
}

fn diff_scalars(original: &[Value], modified: &[Value]) -> Lists {
    if original.is_empty() {
        return Lists { patch: modified.to_vec(), ..Lists::default() };
    }
    let ids = |list: &[Value]| list.iter().map(|item| identity(item, None)).collect::<HashSet<_>>();
    let (old, new) = (ids(original), ids(modified));
    let patch = modified.iter().filter(|item| !old.contains(&identity(item, None))).cloned().collect();
    let gone: BTreeMap<String, Value> = original
        .iter()
        .map(|item| (identity(item, None), item.clone()))
        .filter(|(id, _)| !new.contains(id))
        .collect();
    let order = if original == modified { Vec::new() } else { modified.to_vec() };
    Lists { patch, gone: gone.into_values().collect(), order }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    /// Two objects and the patch between them (`strategicpatch/patch_test.go`: the two-way patches of its tables, in other
    /// words).
    #[test]
    fn patches_say_what_changed() {
        let catalog = builtin::catalog();
        for (kind, a, b, expected) in [
            (
                "~core.v1.Pod",
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({}),
            ),
            (
                "~core.v1.Pod",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": "3", "c": "4"}}}),
                json!({"metadata": {"labels": {"a": "3", "b": null, "c": "4"}}}),
            ),
            (
                "~core.v1.Pod",
                json!({"metadata": {"finalizers": ["a/a", "b/b"]}}),
                json!({"metadata": {"finalizers": ["c/c", "b/b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/a"], "$setElementOrder/finalizers": ["c/c", "b/b"],
                    "finalizers": ["c/c"]}}),
            ),
            (
                "~core.v1.Pod",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            ),
            (
                "~core.v1.Pod",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
                json!({"spec": {"$setElementOrder/volumes": [{"name": "v"}],
                    "volumes": [{"name": "v", "$retainKeys": ["hostPath", "name"], "emptyDir": null, "hostPath": {"path": "/"}}]}}),
            ),
            (
                "~apps.v1.Deployment",
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}}),
            ),
            (
                "~core.v1.Pod",
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
        ] {
            let ty = Type::Named(catalog.find(kind).unwrap());
            assert_eq!(diff(&catalog, &ty, &a, &b).unwrap(), expected, "{a} {b}");
        }
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        let keyless = json!({"spec": {"containers": [{}]}});
        assert!(diff(&catalog, &ty, &keyless, &keyless).is_err());
    }
}
