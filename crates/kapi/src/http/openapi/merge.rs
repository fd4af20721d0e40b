//! The documents of aggregated servers beside the server's own: the index names where they are, and the one document of
//! everything has their paths and what these refer to (kube-openapi's aggregator). Documents of single group versions are
//! handed on by the other server itself.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{aggregate::Remote, server::Inner};

/// What a reference to a definition begins with.
const DEFINITIONS: &str = "#/definitions/";
/// How deep a document may be nested.
const DEPTH_MAX: usize = 128;

/// A hash of another one and of what is added.
pub(super) fn hash_with<'a>(hash: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut digest = Sha256::new();
    digest.update(hash);
    parts.into_iter().for_each(|part| digest.update(part));
    super::super::discovery::hex(&digest.finalize())
}

/// Asks every other server for a document. Those that don't answer are left out, as in discovery.
async fn fetch(server: &Arc<Inner>, path: &str) -> Vec<(Arc<Remote>, Bytes)> {
    let remotes = server.aggregation.all(&server.objects);
    let answers = join_all(remotes.iter().map(|remote| remote.fetch(server, path))).await;
    remotes.into_iter().zip(answers).filter_map(|(remote, answer)| Some((remote, answer.ok()?))).collect()
}

/// Adds to the index where the documents of other servers are; whether there are any.
pub(super) async fn add_indexes(server: &Arc<Inner>, index: &mut Value) -> bool {
    let mut added = false;
    for (remote, bytes) in fetch(server, "/openapi/v3").await {
        let Ok(other) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let root = format!("apis/{}/{}", remote.group, remote.version);
        if let Some(entry) = other["paths"].get(&root).filter(|entry| entry["serverRelativeURL"].is_string())
        {
            index["paths"][root] = entry.clone();
            added = true;
        }
    }
    added
}

/// The server's own document of everything with those of other servers, and the hash of both. Put together at each request, as
/// it is what older clients ask for alone; the servers' own documents are kept by themselves.
pub(super) async fn documents(server: &Arc<Inner>, own: Bytes, hash: String) -> (Bytes, String) {
    let others = fetch(server, "/openapi/v2").await;
    if others.is_empty() {
        return (own, hash);
    }
    let hash = hash_with(&hash, others.iter().map(|(_, bytes)| &bytes[..]));
    let Ok(mut document) = serde_json::from_slice::<Value>(&own) else { return (own, hash) };
    for (remote, bytes) in others {
        if let Ok(other) = serde_json::from_slice(&bytes) {
            merge(&mut document, &other, &format!("/apis/{}/{}/", remote.group, remote.version));
        }
    }
    (Bytes::from(document.to_string()), hash)
}

/// Adds the paths of `other` that begin with `prefix`, or are it but for the slash, and the definitions that they refer to. A
/// definition whose name is taken by another one gets a new name.
fn merge(document: &mut Value, other: &Value, prefix: &str) {
    let is_own = |path: &str| path.starts_with(prefix) || prefix.strip_suffix('/') == Some(path);
    let paths = other["paths"].as_object().into_iter().flatten().filter(|(path, _)| is_own(path));
    let mut paths: Map<String, Value> = paths.map(|(path, value)| (path.clone(), value.clone())).collect();
    let definitions = &other["definitions"];
    let mut wanted: BTreeMap<String, Value> = BTreeMap::new();
    let mut open = Vec::new();
    paths.values().for_each(|value| references(value, &mut open, 0));
    while let Some(name) = open.pop() {
        let Some(definition) = definitions.get(&name).filter(|_| !wanted.contains_key(&name)) else {
            continue;
        };
        references(definition, &mut open, 0);
        wanted.insert(name, definition.clone());
    }
    let names: BTreeMap<String, String> = wanted
        .iter()
        .map(|(name, definition)| {
            (name.clone(), free_name(&document["definitions"], &wanted, name, definition))
        })
        .collect();
    let renamed = names.iter().any(|(name, new)| name != new);
    if renamed {
        paths.values_mut().chain(wanted.values_mut()).for_each(|value| rename(value, &names, 0));
    }
    if let Some(all) = document["definitions"].as_object_mut() {
        for (name, definition) in wanted {
            all.entry(names[&name].clone()).or_insert(definition);
        }
    }
    if let Some(all) = document["paths"].as_object_mut() {
        for (path, value) in paths {
            // What the server itself serves it describes itself.
            all.entry(path).or_insert(value);
        }
    }
}

/// The name that a definition gets: its own, if that is free or stands for the same.
fn free_name(taken: &Value, wanted: &BTreeMap<String, Value>, name: &str, definition: &Value) -> String {
    let fits = |name: &str| taken.get(name).is_none_or(|other| other == definition);
    if fits(name) {
        return name.to_owned();
    }
    let mut number = 2_u32;
    loop {
        let candidate = format!("{name}_v{number}");
        if fits(&candidate) && !wanted.contains_key(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

/// The names of the definitions that a part of a document refers to.
fn references(value: &Value, names: &mut Vec<String>, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix(DEFINITIONS))
                {
                    Some(name) => names.push(name.to_owned()),
                    None => references(value, names, depth + 1),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, names, depth + 1)),
        _ => {}
    }
}

/// Puts new names of definitions in place of the old ones.
fn rename(value: &mut Value, names: &BTreeMap<String, String>, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name =
                    value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix(DEFINITIONS));
                match name.and_then(|name| names.get(name)) {
                    Some(new) => *value = Value::String(format!("{DEFINITIONS}{new}")),
                    None => rename(value, names, depth + 1),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename(value, names, depth + 1)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_put_together() {
        let to = |name: &str| json!({"schema": {"$ref": format!("{DEFINITIONS}{name}")}});
        let mut document = json!({
            "swagger": "2.0",
            "paths": {"/api/v1/pods": to("Pod")},
            "definitions": {"Pod": {"a": 1}, "Meta": {"b": 1}, "Same": {"c": 1}},
        });
        let other = json!({
            "swagger": "2.0",
            "paths": {"/apis/g/v1/": {}, "/apis/g/v1/shirts": to("Shirt"), "/apis/g/v2/shirts": to("Other"), "/api/v1/pods": to("Mine")},
            "definitions": {
                "Shirt": {"p": [to("Meta"), to("Same"), to("Shirt")]}, "Meta": {"b": 2, "m": to("Shirt")}, "Same": {"c": 1},
                "Other": {}, "Mine": {},
            },
        });
        merge(&mut document, &other, "/apis/g/v1/");
        let expected = json!({
            "swagger": "2.0",
            "paths": {"/api/v1/pods": to("Pod"), "/apis/g/v1/": {}, "/apis/g/v1/shirts": to("Shirt")},
            "definitions": {
                "Pod": {"a": 1}, "Meta": {"b": 1}, "Same": {"c": 1},
                "Shirt": {"p": [to("Meta_v2"), to("Same"), to("Shirt")]}, "Meta_v2": {"b": 2, "m": to("Shirt")},
            },
        });
        assert_eq!(document, expected);
        // Once more changes nothing but what got a new name, which is found under it.
        merge(&mut document, &other, "/apis/g/v1/");
        assert_eq!(document["paths"], expected["paths"]);
    }
}
