//! Strategic merge patch: a merge patch that knows from the schema which lists are merged, and by which key.
//!
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch`: `$patch: replace|delete`,
//! `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.

use ahash::{HashMap, HashSet};
use kcore::Status;
use serde_json::{Map, Value};

use super::order::{arrange, identity};
use crate::{
    error::{ApiError, ApiResult},
    types::{Catalog, Field, Type},
};

pub(super) const DIRECTIVE: &str = "$patch";
pub(super) const RETAIN: &str = "$retainKeys";
pub(super) const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
pub(super) const ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// `object` with `patch` merged into it.
pub(super) fn apply(catalog: &Catalog, schema: &Type, object: &Value, patch: &Value) -> ApiResult<Value> {
    let mut merged = object.clone();
    let (Some(target), Some(patch)) = (merged.as_object_mut(), patch.as_object()) else {
        return Err(bad("a strategic merge patch must be an object"));
    };
    merge_object(catalog, schema, target, patch)?;
    Ok(merged)
}

pub(super) fn bad(message: impl Into<String>) -> ApiError {
    Status::bad_request(message).into()
}

/// What the schema says of a field, and the type of its value.
pub(super) fn field_of<'a>(catalog: &'a Catalog, ty: &'a Type, key: &str) -> (Option<&'a Field>, &'a Type) {
    let field = catalog.resolve(ty).and_then(|object| object.field(key));
    match (field, ty) {
        (Some(field), _) => (Some(field), &field.ty),
        (None, Type::Map(item)) => (None, item),
        _ => (None, &Type::Any),
    }
}

pub(super) fn item_of(ty: &Type) -> &Type {
    if let Type::List(item) = ty { item } else { &Type::Any }
}

fn merge_object(catalog: &Catalog, ty: &Type, target: &mut Object, patch: &Object) -> ApiResult<()> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => {
                *target = patch.clone();
                target.remove(DIRECTIVE);
            }
            Some("delete") => target.clear(),
            _ => {
                let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
                return Err(bad(format!(
                    "unknown patch type: {directive} in map: {}",
                    Value::Object(patch.clone())
                )));
            }
        }
        return Ok(());
    }
    retain(target, patch)?;
    for (key, value) in patch {
        if key == RETAIN || (key.starts_with(ORDER) && patch.contains_key(&key[ORDER.len()..])) {
            continue;
        }
        if let Some(list) = key.strip_prefix(ORDER) {
            merge_ordered(catalog, ty, target, list, None, value)?;
        } else if let Some(list) = key.strip_prefix(DELETE_FROM) {
            let Some(gone) = value.as_array() else {
                return Err(bad("invalid patch format of primitive list"));
            };
            let gone: HashSet<String> = gone.iter().map(|item| identity(item, None)).collect();
            if let Some(list) = target.get_mut(list).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(&identity(item, None)));
            }
        } else if let Some(order) = patch.get(&format!("{ORDER}{key}")) {
            merge_ordered(catalog, ty, target, key, Some(value), order)?;
        } else {
            merge_key(catalog, ty, target, key, value)?;
        }
    }
    Ok(())
}

/// `$retainKeys`: only these fields stay, and the patch may set no others.
fn retain(target: &mut Object, patch: &Object) -> ApiResult<()> {
    let Some(kept) = patch.get(RETAIN) else { return Ok(()) };
    let wrong = || bad("invalid patch format of retainKeys");
    let kept = kept.as_array().ok_or_else(wrong)?;
    let is_kept = |key: &String| kept.iter().any(|name| name == key.as_str());
    let is_free = |key: &String| key == RETAIN || key.starts_with(DELETE_FROM) || key.starts_with(ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_free(key) && !is_kept(key)) {
        return Err(wrong());
    }
    target.retain(|key, _| is_kept(key));
    Ok(())
}

fn merge_key(catalog: &Catalog, ty: &Type, target: &mut Object, key: &str, value: &Value) -> ApiResult<()> {
    if value.is_null() {
        target.remove(key);
        return Ok(());
    }
    let (field, child_type) = field_of(catalog, ty, key);
    match (target.get_mut(key), value) {
        (Some(Value::Object(live)), Value::Object(patch)) => {
            if field.is_some_and(|field| field.patch_replace) {
                *live = patch.clone();
                return Ok(());
            }
            merge_object(catalog, child_type, live, patch)
        }
        (Some(Value::Array(live)), Value::Array(patch)) if field.is_some_and(|field| field.patch_merge) => {
            let merge_key = field.and_then(|field| field.merge_key.as_deref());
            let server = live.clone();
            *live = merge_list(catalog, item_of(child_type), std::mem::take(live), patch, merge_key)?;
            // Without an order of its own, the patch's is taken.
            *live = arrange(std::mem::take(live), patch, &server, merge_key);
            Ok(())
        }
        (Some(Value::Array(_)), Value::Array(_)) => {
            target.insert(key.to_owned(), value.clone());
            Ok(())
        }
        _ => {
            match fresh(value) {
                Some(value) => target.insert(key.to_owned(), value),
                None => target.remove(key),
            };
            Ok(())
        }
    }
}

/// A list whose order is told by `$setElementOrder`, with or without a patch of its entries.
fn merge_ordered(
    catalog: &Catalog,
    ty: &Type,
    target: &mut Object,
    key: &str,
    patch: Option<&Value>,
    order: &Value,
) -> ApiResult<()> {
    let wrong = || bad("invalid patch format of setElementOrder list");
    let order = order.as_array().ok_or_else(wrong)?;
    let (field, child_type) = field_of(catalog, ty, key);
    let merge_key = field.and_then(|field| field.merge_key.as_deref());
    let empty = Vec::new();
    let patch = match patch {
        None => None,
        Some(patch) => Some(patch.as_array().ok_or_else(wrong)?),
    };
    check_order(patch.unwrap_or(&empty), order, merge_key)?;
    let (merged, server) = match (target.get(key), patch) {
        (None | Some(Value::Null), None) => return Ok(()),
        (None | Some(Value::Null), Some(patch)) => (patch.iter().filter_map(fresh).collect(), Vec::new()),
        (Some(Value::Array(live)), None) => (live.clone(), live.clone()),
        (Some(Value::Array(live)), Some(patch)) if field.is_some_and(|field| field.patch_merge) => {
            (merge_list(catalog, item_of(child_type), live.clone(), patch, merge_key)?, live.clone())
        }
        (Some(Value::Array(live)), Some(patch)) => (patch.clone(), live.clone()),
        _ => return Err(wrong()),
    };
    target.insert(key.to_owned(), Value::Array(arrange(merged, order, &server, merge_key)));
    Ok(())
}

/// Entries of the patch stand in the order that it tells.
fn check_order(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> ApiResult<()> {
    let mut order_left = order.iter().map(|item| identity(item, merge_key));
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let wanted = identity(item, merge_key);
        if !order.is_empty() && !order_left.any(|known| known == wanted) {
            return Err(bad(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::Array(patch.to_vec()),
                Value::Array(order.to_vec())
            )));
        }
    }
    Ok(())
}

/// A value that there was none of before: without nulls and directives; `None` if it is nothing but a directive.
fn fresh(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.contains_key(DIRECTIVE) {
                return None;
            }
            let is_directive =
                |key: &str| key == RETAIN || key.starts_with(ORDER) || key.starts_with(DELETE_FROM);
            let kept = map.iter().filter(|(key, value)| !value.is_null() && !is_directive(key));
            Some(Value::Object(kept.filter_map(|(key, value)| Some((key.clone(), fresh(value)?))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.iter().filter_map(fresh).collect())),
        other => Some(other.clone()),
    }
}

/// Merges a list, without looking after its order.
fn merge_list(
    catalog: &Catalog,
    item: &Type,
    mut list: Vec<Value>,
    patch: &[Value],
    merge_key: Option<&str>,
) -> ApiResult<Vec<Value>> {
    let Some(merge_key) = merge_key else {
        let mut seen = HashSet::default();
        list.extend(patch.iter().cloned());
        list.retain(|item| seen.insert(identity(item, None)));
        return Ok(list);
    };
    let mut plain = Vec::with_capacity(patch.len());
    let (mut deleted, mut replaces) = (HashSet::default(), false);
    for entry in patch {
        let Some(map) = entry.as_object() else {
            return Err(bad(format!("expected a list of objects with the key {merge_key}")));
        };
        let no_key = || bad(format!("map: {entry} does not contain declared merge key: {merge_key}"));
        match map.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
            None => {
                map.get(merge_key).ok_or_else(no_key)?;
                plain.push(map);
            }
            Some("delete") => {
                map.get(merge_key).ok_or_else(no_key)?;
                deleted.insert(identity(entry, Some(merge_key)));
            }
            Some("replace") => replaces = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(bad(format!("unknown patch type: {other} in map: {entry}"))),
        }
    }
    if replaces {
        return Ok(plain.into_iter().map(|map| Value::Object(map.clone())).collect());
    }
    list.retain(|entry| !deleted.contains(&identity(entry, Some(merge_key))));
    let mut places: HashMap<String, usize> = HashMap::default();
    for (place, entry) in list.iter().enumerate() {
        places.entry(identity(entry, Some(merge_key))).or_insert(place);
    }
    for map in plain {
        let id = map.get(merge_key).map(ToString::to_string).unwrap_or_default();
        match places.get(&id).and_then(|place| list.get_mut(*place)).and_then(Value::as_object_mut) {
            Some(live) => merge_object(catalog, item, live, map)?,
            None => {
                places.insert(id, list.len());
                list.extend(fresh(&Value::Object(map.clone())));
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    fn patched(object: &Value, patch: &Value) -> Result<Value, String> {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        apply(&catalog, &ty, object, patch).map_err(|error| error.0.message)
    }

    fn check(object: Value, patch: Value, expected: Value) {
        assert_eq!(patched(&object, &patch), Ok(expected), "{patch}");
    }

    fn spec(spec: Value) -> Value {
        json!({ "spec": spec })
    }

    /// The order is that of upstream's `normalizeElementOrder`: what the patch adds stands before what only the server has, as
    /// in "Update API Objects in Place Using kubectl patch".
    #[test]
    fn lists_are_merged_by_their_keys() {
        let pod = spec(json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}));
        for (containers, expected) in [
            (
                json!([{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}]),
                json!([{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}, {"name": "b"}]),
            ),
            (
                json!([{"name": "c"}]),
                json!([{"name": "c"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]),
            ),
            (
                json!([{"name": "b", "image": "3"}]),
                json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "3"}]),
            ),
            (json!([{"name": "a", "$patch": "delete"}]), json!([{"name": "b"}])),
            (json!([{"$patch": "replace"}, {"name": "z"}]), json!([{"name": "z"}])),
        ] {
            check(
                pod.clone(),
                spec(json!({"containers": containers})),
                spec(json!({"containers": expected})),
            );
        }
        check(
            pod,
            spec(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})),
            spec(json!({"containers": [{"name": "b"}, {"name": "a", "image": "1", "args": ["x"]}]})),
        );
        let three = spec(json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "c"}]}));
        check(
            three,
            spec(
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "new"}, {"name": "a"}], "containers": [{"name": "new"}]}),
            ),
            spec(json!({"containers": [{"name": "server"}, {"name": "c"}, {"name": "new"}, {"name": "a"}]})),
        );
    }

    #[test]
    fn directives_of_objects_and_scalars_lists() {
        check(
            json!({"metadata": {"finalizers": ["a/a", "b/b"], "labels": {"x": "1", "y": "2"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/a"], "finalizers": ["c/c"], "labels": {"x": null}}}),
            json!({"metadata": {"finalizers": ["c/c", "b/b"], "labels": {"y": "2"}}}),
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
        check(
            spec(json!({"nodeSelector": {"a": "b"}})),
            spec(json!({"nodeSelector": {"$patch": "delete"}, "affinity": {"$patch": "delete"}})),
            spec(json!({"nodeSelector": {}})),
        );
        check(
            spec(json!({})),
            spec(
                json!({"nodeSelector": {"a": "b", "c": null}, "containers": [{"name": "a", "image": null}]}),
            ),
            spec(json!({"nodeSelector": {"a": "b"}, "containers": [{"name": "a"}]})),
        );
    }

    /// A budget's selector is replaced as a whole, by its patch strategy.
    #[test]
    fn what_is_to_be_replaced_is_not_merged() {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~policy.v1.PodDisruptionBudget").unwrap());
        let budget = spec(json!({"selector": {"matchLabels": {"a": "b"}}}));
        let patch = spec(json!({"selector": {"matchLabels": {"c": "d"}}}));
        assert_eq!(apply(&catalog, &ty, &budget, &patch).unwrap(), patch);
    }

    /// The texts of `k8s.io/apimachinery/pkg/util/mergepatch`.
    #[test]
    fn patches_that_make_no_sense_are_refused() {
        let pod = spec(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v"}]}));
        for (patch, expected) in [
            (json!({"containers": [{"image": "x"}]}), "does not contain declared merge key: name"),
            (json!({"containers": [{"name": "a", "$patch": "x"}]}), "unknown patch type: x in map"),
            (json!({"$patch": "merge"}), "unknown patch type: merge in map"),
            (
                json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}),
                "invalid patch format of retainKeys",
            ),
            (json!({"$setElementOrder/containers": "x"}), "invalid patch format of setElementOrder list"),
            (
                json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}),
                "doesn't match $setElementOrder list",
            ),
            (json!({"$deleteFromPrimitiveList/x": "x"}), "invalid patch format of primitive list"),
        ] {
            let error = patched(&pod, &spec(patch.clone())).unwrap_err();
            assert!(error.contains(expected), "{patch}: {error}");
        }
    }
}
