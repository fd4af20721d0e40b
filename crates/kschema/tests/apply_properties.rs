//! What holds of apply for any objects.

use std::sync::Arc;

use kschema::{
    Catalog, Type,
    apply::{ConvertError, FieldManager, Set, Versions},
    builtin,
    structural::Structural,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

struct Kind(Type);

impl Versions for Kind {
    fn schema(&self, _: &str) -> Option<&Type> {
        Some(&self.0)
    }

    fn convert(&self, object: &Value, _: &str) -> Result<Value, ConvertError> {
        Ok(object.clone())
    }
}

/// Every way of being merged.
fn schema() -> Type {
    let entry = json!({"type": "object", "properties":
        {"name": {"type": "string"}, "value": {"type": "integer"}, "labels": {"type": "object", "additionalProperties": {"type": "integer"}}}});
    let schema = json!({"type": "object", "properties": {
        "scalar": {"type": "integer"},
        "struct": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        "one": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "integer"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": entry},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    Type::Structural(Arc::new(Structural::compile(&schema).expect("a schema")))
}

fn small_map() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(prop::sample::select(vec!["a", "b"]), 0..3_i64, 1..3)
        .prop_map(|map| json!(map))
}

/// Nothing is empty: a container that is applied empty after it had something takes upstream, too, a second apply to settle.
fn config() -> impl Strategy<Value = Value> {
    let entry = (prop::option::of(0..3_i64), prop::option::of(small_map()));
    let list =
        prop::collection::btree_map(prop::sample::select(vec!["x", "y", "z"]), entry, 1..3).prop_map(|map| {
            let entries = map.into_iter().map(|(name, (value, labels))| {
                let mut entry = json!({ "name": name });
                if let Some(value) = value {
                    entry["value"] = json!(value);
                }
                if let Some(labels) = labels {
                    entry["labels"] = labels;
                }
                entry
            });
            Value::Array(entries.collect())
        });
    let set = prop::collection::btree_set(0..4_i64, 1..4).prop_map(|set| json!(set));
    let any = small_map().prop_map(|below| json!({"deep": below, "list": [1]}));
    let field = |name: &'static str, value: BoxedStrategy<Value>| {
        prop::option::of(value).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let fields = vec![
        field("scalar", (0..3_i64).prop_map(|value| json!(value)).boxed()).boxed(),
        field("struct", small_map().boxed()).boxed(),
        field("one", small_map().boxed()).boxed(),
        field("set", set.boxed()).boxed(),
        field("list", list.boxed()).boxed(),
        field("any", any.boxed()).boxed(),
    ];
    fields.prop_map(|fields| {
        let mut object: Map<String, Value> = fields.into_iter().flatten().collect();
        object.insert("apiVersion".to_owned(), json!("v1"));
        object.insert("kind".to_owned(), json!("Thing"));
        Value::Object(object)
    })
}

fn apply(
    catalog: &Catalog,
    kind: &Kind,
    live: &Value,
    config: &Value,
    who: &str,
    force: bool,
) -> Option<Value> {
    let manager = FieldManager { catalog, versions: kind, api_version: "v1", kind: "Thing", subresource: "" };
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    manager.on_apply(live, config, who, force, now).ok().map(|new| new.unwrap_or_else(|| live.clone()))
}

/// Two orders of writes may leave entries of sets and lists in two orders, and name the time of another one.
fn sorted(mut object: Value) -> Value {
    for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
        entry.as_object_mut().expect("an entry").remove("time");
    }
    if let Some(entries) = object["metadata"]["managedFields"].as_array_mut() {
        entries.sort_by_key(ToString::to_string);
    }
    for name in ["set", "list"] {
        if let Some(list) = object[name].as_array_mut() {
            list.sort_by_key(ToString::to_string);
        }
    }
    // Indexing for writing leaves nulls behind.
    object.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    object
}

/// Anything that JSON can say, with the names that count here.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["", "Apply", "Update", "v1", "FieldsV1", "kubectl", "u", "a"])
            .prop_map(Value::from),
    ];
    let names = vec![
        "apiVersion",
        "kind",
        "metadata",
        "managedFields",
        "manager",
        "operation",
        "fieldsType",
        "fieldsV1",
        "f:set",
        "f:list",
        "k:{\"name\":\"x\"}",
        "v:1",
        "i:0",
        ".",
        "set",
        "list",
        "name",
        "one",
        "any",
        "annotations",
        "uid",
        "kubectl.kubernetes.io/last-applied-configuration",
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(prop::sample::select(names.clone()), inner, 0..5)
                .prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_that_is_sent_breaks_the_bookkeeping(live in anything(), new in anything(), list in anything(), who in "[a-z]{0,2}") {
        let (catalog, kind) = (builtin::catalog(), Kind(schema()));
        let manager = FieldManager { catalog: &catalog, versions: &kind, api_version: "v1", kind: "Thing", subresource: "" };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for (mut live, new) in [(live.clone(), new.clone()), (json!({"metadata": {"uid": "u", "managedFields": list}, "set": live}), json!({"metadata": {"managedFields": list}, "set": new}))] {
            let mut updated = new.clone();
            manager.on_update(&live, &mut updated, &who, now);
            kschema::apply::keep_times(&live, &mut updated);
            let mut patch = new;
            if let Some(map) = patch.as_object_mut() {
                map.insert("apiVersion".to_owned(), json!("v1"));
                map.insert("kind".to_owned(), json!("Thing"));
                map.remove("metadata");
            }
            if let Some(map) = live.as_object_mut() {
                map.insert("kind".to_owned(), json!("Thing"));
            }
            for force in [false, true] {
                let _ = manager.on_apply(&live, &patch, "kubectl", force, now);
            }
        }
    }

    #[test]
    fn applying_again_changes_nothing(first in config(), other in config(), again in config()) {
        let (catalog, kind) = (builtin::catalog(), Kind(schema()));
        let mut live = json!({});
        for (config, who) in [(&first, "a"), (&other, "b"), (&again, "a")] {
            live = apply(&catalog, &kind, &live, config, who, true).expect("forced");
        }
        let same = apply(&catalog, &kind, &live, &again, "a", false).expect("no conflict over what is owned already");
        prop_assert_eq!(&same, &live);
        // What is applied is there.
        let manager = FieldManager { catalog: &catalog, versions: &kind, api_version: "v1", kind: "Thing", subresource: "" };
        let merged = manager.on_apply(&live, &again, "c", false, "2026-01-01T00:00:00Z".parse().unwrap());
        prop_assert!(merged.is_ok());
    }

    #[test]
    fn what_is_settled_is_not_changed_by_an_apply(a in config(), b in config(), c in config()) {
        let (catalog, kind) = (builtin::catalog(), Kind(schema()));
        let manager = FieldManager { catalog: &catalog, versions: &kind, api_version: "v1", kind: "Thing", subresource: "" };
        let once = apply(&catalog, &kind, &json!({}), &a, "a", false).expect("nobody there");
        // Who applied nothing owns nothing, which is not seen at once.
        let owns = a.as_object().is_some_and(|map| map.len() > 2);
        prop_assert_eq!(manager.is_settled(&once, &a, "a"), owns);
        prop_assert!(!manager.is_settled(&once, &a, "b"));
        prop_assert_eq!(manager.is_settled(&once, &b, "a"), owns && a == b);
        let mut live = once;
        for (config, who) in [(&b, "b"), (&c, "a"), (&a, "b")] {
            live = apply(&catalog, &kind, &live, config, who, true).expect("forced");
            for (config, who) in [&a, &b, &c].into_iter().flat_map(|config| [(config, "a"), (config, "b")]) {
                if manager.is_settled(&live, config, who) {
                    let again = apply(&catalog, &kind, &live, config, who, false);
                    prop_assert_eq!(again.as_ref(), Some(&live));
                }
            }
        }
    }

    #[test]
    fn applies_commute_where_there_is_no_conflict(a in config(), b in config()) {
        let (catalog, kind) = (builtin::catalog(), Kind(schema()));
        let run = |order: [(&Value, &str); 2]| {
            order.into_iter().try_fold(json!({}), |live, (config, who)| apply(&catalog, &kind, &live, config, who, false))
        };
        let (ab, ba) = (run([(&a, "a"), (&b, "b")]), run([(&b, "b"), (&a, "a")]));
        prop_assert_eq!(ab.is_some(), ba.is_some());
        if let (Some(ab), Some(ba)) = (ab, ba) {
            prop_assert_eq!(sorted(ab), sorted(ba));
        }
    }

    #[test]
    fn what_nobody_applies_any_more_goes(a in config(), b in config()) {
        let (catalog, kind) = (builtin::catalog(), Kind(schema()));
        let nothing = json!({"apiVersion": "v1", "kind": "Thing"});
        let alone = apply(&catalog, &kind, &json!({}), &b, "b", false).expect("nobody there");
        let both = apply(&catalog, &kind, &json!({}), &a, "a", false)
            .and_then(|live| apply(&catalog, &kind, &live, &b, "b", false));
        if let Some(both) = both {
            let left = apply(&catalog, &kind, &both, &nothing, "a", false).expect("nothing taken");
            let fields = |object: &Value| {
                let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
                entries.iter().map(|entry| Set::from_fields_v1(&entry["fieldsV1"]).expect("fields").paths()).collect::<Vec<_>>()
            };
            prop_assert_eq!(fields(&left), fields(&alone));
        }
    }
}
