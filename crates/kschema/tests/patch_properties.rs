//! What holds of strategic merge patches for any two objects.

use kschema::{
    Type, builtin,
    patch::{Patch, STRATEGIC, diff},
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Some of these names, each once, in any order.
fn names() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(vec!["a", "b", "c", "d", "e"], 0..=5).prop_shuffle()
}

fn labels() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(prop::sample::select(vec!["x", "y", "z"]), "[12]", 0..3)
        .prop_map(|map| json!(map))
}

/// An object of those of the fields that are there.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields = fields.into_iter().map(|(name, value)| {
        prop::option::of(value).prop_map(move |value| value.map(|value| (name.to_owned(), value))).boxed()
    });
    let fields: Vec<_> = fields.collect();
    fields.prop_map(|fields| Value::Object(fields.into_iter().flatten().collect())).boxed()
}

/// A list of entries with different names.
fn entries(entry: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    let list = names().prop_flat_map(move |names| {
        let entries: Vec<_> = names
            .into_iter()
            .map(|name| {
                entry.clone().prop_map(move |mut entry| {
                    entry["name"] = json!(name);
                    entry
                })
            })
            .collect();
        entries
    });
    list.prop_map(Value::Array).boxed()
}

/// A pod with every way of being merged: maps, scalars, lists by a key within such lists, lists that are replaced, lists of
/// scalars, and entries that keep only the keys they are told of.
fn pod() -> BoxedStrategy<Value> {
    let word = || prop::sample::select(vec!["1", "2"]).prop_map(|word| json!(word)).boxed();
    let words = || prop::collection::vec("[12]", 0..3).prop_map(|words| json!(words)).boxed();
    let scalars = names().prop_map(|names| json!(names)).boxed();
    let env = entries(object(vec![("value", word())]));
    let resources = object(vec![("limits", labels().boxed()), ("requests", labels().boxed())]);
    let container =
        object(vec![("image", word()), ("args", words()), ("env", env), ("resources", resources)]);
    let directory = object(vec![("medium", word())]);
    let path = object(vec![("path", word())]);
    let volume = object(vec![("emptyDir", directory), ("hostPath", path)]);
    let spec = object(vec![
        ("containers", entries(container)),
        ("volumes", entries(volume)),
        ("nodeSelector", labels().boxed()),
        ("nodeName", word()),
    ]);
    let metadata = object(vec![("labels", labels().boxed()), ("finalizers", scalars)]);
    object(vec![("metadata", metadata), ("spec", spec)])
}

proptest! {
    #[test]
    fn the_patch_between_two_objects_makes_the_one_of_the_other(a in pod(), b in pod()) {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        let patch = diff(&catalog, &ty, &a, &b).unwrap();
        let parsed = Patch::parse(STRATEGIC, patch.clone()).unwrap();
        prop_assert_eq!(parsed.apply(&catalog, &ty, &a).unwrap(), b, "{}", patch);
        prop_assert_eq!(diff(&catalog, &ty, &a, &a).unwrap(), json!({}));
    }
}
