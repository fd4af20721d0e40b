//! Strategic merge patch: a merge patch that knows from the schema which lists are merged, and by which key.
//!
//! The rules are those of the community's "Strategic Merge Patch" document: `$patch: replace|delete|merge`,
//! `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.

use kcore::Status;
use serde_json::{Map, Value};

use crate::{
    error::ApiResult,
    types::{Catalog, Field, Type},
};

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// `object` with `patch` merged into it.
pub(super) fn apply(catalog: &Catalog, schema: &Type, object: &Value, patch: &Value) -> ApiResult<Value> {
    let mut merged = object.clone();
    let (Some(target), Some(patch)) = (merged.as_object_mut(), patch.as_object()) else {
        return Err(Status::bad_request("a strategic merge patch must be an object").into());
    };
    merge_object(catalog, schema, target, patch)?;
    Ok(merged)
}

fn bad(message: impl Into<String>) -> crate::error::ApiError {
    Status::bad_request(message).into()
}

fn field_of<'a>(catalog: &'a Catalog, ty: &'a Type, key: &str) -> Option<&'a Field> {
    catalog.resolve(ty)?.field(key)
}

fn merge_object(
    catalog: &Catalog,
    ty: &Type,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> ApiResult<()> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = patch
                .iter()
                .filter(|(key, _)| *key != "$patch")
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(bad(format!("Unknown patch type found: {other}"))),
    }
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| kept.iter().any(|name| name == key));
    }
    for (key, value) in patch {
        if key == "$patch" || key == "$retainKeys" || key.starts_with(ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
                let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        merge_key(catalog, ty, target, key, value, patch.get(&format!("{ORDER}{key}")))?;
    }
    // An order alone, without a patch of the list, still orders it.
    for (key, order) in patch.iter().filter_map(|(key, order)| Some((key.strip_prefix(ORDER)?, order))) {
        if !patch.contains_key(key)
            && let Some(field) = field_of(catalog, ty, key)
            && let Some(list) = target.get_mut(key).and_then(Value::as_array_mut)
        {
            reorder(list, order, &[], field.merge_key.as_deref());
        }
    }
    Ok(())
}

fn merge_key(
    catalog: &Catalog,
    ty: &Type,
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    order: Option<&Value>,
) -> ApiResult<()> {
    if value.is_null() {
        target.remove(key);
        return Ok(());
    }
    let field = field_of(catalog, ty, key);
    let child_type = match (field, ty) {
        (Some(field), _) => &field.ty,
        (None, Type::Map(item)) => item,
        _ => &Type::Any,
    };
    match value {
        Value::Object(patch) => {
            if patch.get("$patch").is_some_and(|directive| directive == "delete") {
                target.remove(key);
                return Ok(());
            }
            let entry = target.entry(key.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            if let Some(map) = entry.as_object_mut() {
                merge_object(catalog, child_type, map, patch)?;
            }
        }
        Value::Array(patch) if field.is_some_and(|field| field.patch_merge) => {
            let merge_key = field.and_then(|field| field.merge_key.as_deref());
            let item = if let Type::List(item) = child_type { item } else { &Type::Any };
            let entry = target.entry(key.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
            let mut list = entry.as_array().cloned().unwrap_or_default();
            match merge_key {
                Some(merge_key) => merge_list(catalog, item, &mut list, patch, merge_key)?,
                None => {
                    for item in patch.iter().filter(|item| !list.contains(item)).cloned().collect::<Vec<_>>()
                    {
                        list.push(item);
                    }
                }
            }
            if let Some(order) = order {
                reorder(&mut list, order, patch, merge_key);
            }
            *entry = Value::Array(list);
        }
        _ => {
            target.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

fn merge_list(
    catalog: &Catalog,
    item: &Type,
    list: &mut Vec<Value>,
    patch: &[Value],
    merge_key: &str,
) -> ApiResult<()> {
    let replaces = patch.iter().any(|entry| entry["$patch"] == "replace");
    if replaces {
        *list = patch.iter().filter(|entry| entry.get("$patch").is_none()).cloned().collect();
        return Ok(());
    }
    for entry in patch {
        let Some(map) = entry.as_object() else {
            return Err(bad(format!("expected a list of objects with the key {merge_key}")));
        };
        let Some(key) = map.get(merge_key) else {
            return Err(bad(format!("map: {entry} does not contain declared merge key: {merge_key}")));
        };
        let deletes = map.get("$patch").is_some_and(|directive| directive == "delete");
        if deletes {
            list.retain(|candidate| candidate.get(merge_key) != Some(key));
            continue;
        }
        match list
            .iter_mut()
            .find(|candidate| candidate.get(merge_key) == Some(key))
            .and_then(Value::as_object_mut)
        {
            Some(target) => merge_object(catalog, item, target, map)?,
            None => {
                let mut fresh = Map::new();
                merge_object(catalog, item, &mut fresh, map)?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// Brings the entries that `order` names into its order; entries that only the server has stay where they were relative to
/// the entry before them.
fn reorder(list: &mut Vec<Value>, order: &Value, _patch: &[Value], merge_key: Option<&str>) {
    let order = order.as_array().map(Vec::as_slice).unwrap_or_default();
    let rank = |item: &Value| match merge_key {
        Some(key) => order.iter().position(|wanted| wanted.get(key) == item.get(key)),
        None => order.iter().position(|wanted| wanted == item),
    };
    let mut named: Vec<(usize, Value)> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for (index, item) in list.drain(..).enumerate() {
        match rank(&item) {
            Some(rank) => named.push((rank, item)),
            None => others.push((index, item)),
        }
    }
    named.sort_by_key(|(rank, _)| *rank);
    list.extend(named.into_iter().map(|(_, item)| item));
    for (index, item) in others {
        list.insert(index.min(list.len()), item);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    fn check(object: Value, patch: Value, expected: Value) {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        assert_eq!(apply(&catalog, &ty, &object, &patch).unwrap(), expected, "{patch}");
    }

    fn spec(spec: Value) -> Value {
        json!({ "spec": spec })
    }

    #[test]
    fn lists_are_merged_by_their_keys() {
        let pod = spec(json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}));
        check(
            pod.clone(),
            spec(json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}]})),
            spec(
                json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "b"}, {"name": "c"}]}),
            ),
        );
        check(
            pod.clone(),
            spec(json!({"containers": [{"name": "a", "$patch": "delete"}]})),
            spec(json!({"containers": [{"name": "b"}]})),
        );
        check(
            pod.clone(),
            spec(json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})),
            spec(json!({"containers": [{"name": "z"}]})),
        );
        check(
            pod,
            spec(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})),
            spec(json!({"containers": [{"name": "b"}, {"name": "a", "image": "1", "args": ["x"]}]})),
        );
    }

    #[test]
    fn directives_of_objects_and_scalars_lists() {
        check(
            json!({"metadata": {"finalizers": ["a/a", "b/b"], "labels": {"x": "1", "y": "2"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/a"], "finalizers": ["c/c"], "labels": {"x": null}}}),
            json!({"metadata": {"finalizers": ["b/b", "c/c"], "labels": {"y": "2"}}}),
        );
        check(
            spec(json!({"volumes": [{"name": "v", "emptyDir": {}}]})),
            spec(
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}),
            ),
            spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
        );
        check(
            spec(json!({"nodeSelector": {"a": "b"}})),
            spec(json!({"nodeSelector": {"$patch": "replace", "c": "d"}})),
            spec(json!({"nodeSelector": {"c": "d"}})),
        );
    }

    #[test]
    fn a_list_entry_without_its_key_is_refused() {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        let patch = spec(json!({"containers": [{"image": "x"}]}));
        let error = apply(&catalog, &ty, &spec(json!({"containers": []})), &patch).unwrap_err();
        assert!(error.0.message.contains("does not contain declared merge key: name"), "{error}");
    }
}
