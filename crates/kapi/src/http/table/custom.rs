//! Tables of custom objects, with the columns that their definition asks for.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Include, duration, finish};
use crate::custom::Column;

/// The table of these objects (`registry/customresource/tableconvertor` of the apiextensions server).
pub(super) fn of(
    columns: &[Column],
    objects: &[Value],
    metadata: &Value,
    with_columns: bool,
    include: Include,
    now: Timestamp,
) -> Value {
    let definitions = if with_columns { definitions(columns) } else { Vec::new() };
    let rows = objects.iter().map(|object| {
        let mut row = json!({"cells": cells(columns, object, now)});
        include.put(&mut row, object);
        row
    });
    finish(metadata, definitions, rows.collect())
}

/// The names of the objects, and the columns of their definition.
pub(super) fn definitions(columns: &[Column]) -> Vec<Value> {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "The object's name, unique among objects of its kind in its namespace.",
    });
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format, "description": column.description,
            "priority": column.priority,
        })
    };
    std::iter::once(name).chain(columns.iter().map(definition)).collect()
}

/// The cells of one object.
pub(super) fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let cells = columns.iter().map(|column| cell(column, object, now));
    std::iter::once(object["metadata"]["name"].clone()).chain(cells).collect()
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let Some(value) = column
        .path
        .as_ref()
        .and_then(|path| path.find(object).into_iter().next())
        .filter(|value| !value.is_null())
    else {
        return Value::Null;
    };
    match column.kind.as_str() {
        "string" => match value {
            Value::String(text) => json!(text),
            other => json!(other.to_string()),
        },
        "integer" => match (value.as_i64(), value.as_f64()) {
            (Some(number), _) => json!(number),
            #[allow(clippy::cast_possible_truncation, reason = "upstream cuts the fraction off")]
            (None, Some(number)) => json!(number as i64),
            _ => Value::Null,
        },
        "number" => value.as_f64().map_or(Value::Null, |number| json!(number)),
        "boolean" => value.as_bool().map_or(Value::Null, |flag| json!(flag)),
        "date" if value.is_string() => match duration::time(value) {
            Some(_) => json!(duration::since(value, now)),
            None => json!("<invalid>"),
        },
        _ => Value::Null,
    }
}
