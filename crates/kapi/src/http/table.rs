//! Tables: what `kubectl get` shows.

mod access;
mod cluster;
mod columns;
mod custom;
mod devices;
mod duration;
mod labels;
mod partial;
mod pods;
mod policy;
mod rows;
mod services;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use self::rows::Rows;
use crate::{registry::Resource, request::Query};

/// How much of each object stands beside its row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Include {
    /// Its metadata; the default.
    #[default]
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl Include {
    pub(super) fn of_query(query: &Query) -> Self {
        match query.get("includeObject") {
            Some("Object") => Self::Object,
            Some("None") => Self::None,
            _ => Self::Metadata,
        }
    }

    /// Puts what is wanted of the object beside its row.
    fn put(self, row: &mut Value, object: &Value) {
        match self {
            Self::Metadata => row["object"] = super::resource::metadata_of(object),
            Self::Object => row["object"] = object.clone(),
            Self::None => {}
        }
    }
}

/// The table of these objects; `with_columns`: whether it defines its columns, which a watch does only once.
/// `now` is what ages are counted to.
pub(super) fn of(
    resource: &Resource,
    objects: &[Value],
    metadata: &Value,
    with_columns: bool,
    include: Include,
    now: Timestamp,
) -> Value {
    let kind = objects.first().and_then(|object| object["kind"].as_str()).unwrap_or_default();
    if let Some(structure) = resource.version().structure.as_ref().filter(|_| kind != "Scale") {
        return custom::of(&structure.columns, objects, metadata, with_columns, include, now);
    }
    let table = columns::of(&resource.def.qualified(), kind);
    let definitions = if with_columns { table.definitions() } else { Vec::new() };
    let mut ordered: Vec<&Value> = objects.iter().collect();
    if let Some(order) = table.order {
        ordered.sort_by_cached_key(|object| order(object));
    }
    let rows: Vec<Value> = ordered
        .into_iter()
        .map(|object| {
            let mut row = json!({"cells": table.cells(object, now)});
            if let Some(conditions) = table.conditions.and_then(|conditions| conditions(object)) {
                row["conditions"] = conditions;
            }
            include.put(&mut row, object);
            row
        })
        .collect();
    finish(metadata, definitions, rows)
}

fn finish(metadata: &Value, definitions: Vec<Value>, rows: Vec<Value>) -> Value {
    let metadata = if metadata.is_null() { json!({}) } else { metadata.clone() };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}
