//! What a table's columns are and where their cells come from. Each kind's table is a list of [`Column`]s; the files beside
//! this one hold the lists, grouped as the kinds are.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{access, cluster, devices, duration, pods, policy, services, storage, workloads};

/// What a row is ordered by.
type Order = fn(&Value) -> (i64, String);

/// The table of one kind, as `pkg/printers/internalversion` upstream defines it.
pub(super) struct Table {
    /// The resource, as `plural.group`.
    pub(super) resource: &'static str,
    pub(super) columns: &'static [Column],
    /// What a row says about its object beside the cells, such as that it is completed.
    pub(super) conditions: Option<fn(&Value) -> Option<Value>>,
    /// What rows are ordered by, where it is not their keys.
    pub(super) order: Option<Order>,
    /// The paths of all that the cells, the conditions and the order read, for kinds whose objects have much else; none: everything may be
    /// read.
    pub(super) reads: &'static [&'static str],
}

/// One column.
#[derive(Clone, Copy)]
pub(super) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
    /// 0 is always shown, 1 only by `-o wide`.
    priority: u8,
    cell: Cell,
}

/// Where a cell comes from; paths are dotted.
#[derive(Clone, Copy)]
pub(super) enum Cell {
    /// The text at a path, or nothing.
    Field(&'static str),
    /// The text at a path, or else this.
    FieldOr(&'static str, &'static str),
    /// The number at a path, or 0.
    Number(&'static str),
    /// The flag at a path, or else this.
    Flag(&'static str, bool),
    /// How many entries the list or map at a path has.
    Count(&'static str),
    /// How long ago the time at a path was, or else this.
    Since(&'static str, &'static str),
    /// What this makes of the object.
    Text(fn(&Value) -> String),
    /// What this makes of the object at a time.
    Timed(fn(&Value, Timestamp) -> String),
    /// A cell that is not always text.
    Json(fn(&Value) -> Value),
    /// This cell and those of the columns after it that say so, from what is found out once for all of them.
    Several(fn(&Value, Timestamp) -> Vec<String>),
    /// A cell that a column before has made.
    Made,
}

pub(super) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "The object's name, unique among objects of its kind in its namespace.",
    priority: 0,
    cell: Cell::Field("metadata.name"),
};

pub(super) const AGE: Column = Column::text(
    "Age",
    "How long ago the object was created.",
    Cell::Since("metadata.creationTimestamp", duration::UNKNOWN),
);

/// What upstream shows of kinds that have no printer of their own.
pub(super) const CREATED_AT: Column = Column {
    name: "Created At",
    kind: "date",
    format: "",
    description: "When the object was created.",
    priority: 0,
    cell: Cell::Field("metadata.creationTimestamp"),
};

/// Kinds of embedders and custom resources that define no columns.
static DEFAULT: Table = Table::new("", &[NAME, AGE]);

/// The `scale` subresource of any kind.
static SCALE: Table = Table::new(
    "",
    &[
        Column::text("Name", "The name of the scaled object.", Cell::Field("metadata.name")),
        Column::integer("Desired", "How many replicas are wanted.", Cell::Number("spec.replicas")),
        Column::integer("Available", "How many replicas there are.", Cell::Number("status.replicas")),
        AGE,
    ],
);

const ALL: &[&[Table]] = &[
    pods::TABLES,
    workloads::TABLES,
    services::TABLES,
    cluster::TABLES,
    policy::TABLES,
    storage::TABLES,
    access::TABLES,
    devices::TABLES,
];

/// The table of a resource, given as `plural.group`, whose objects are of this kind.
pub(super) fn of(resource: &str, kind: &str) -> &'static Table {
    if kind == "Scale" {
        return &SCALE;
    }
    let mut all = ALL.iter().flat_map(|tables| tables.iter());
    all.find(|table| table.resource == resource).unwrap_or(&DEFAULT)
}

impl Table {
    pub(super) const fn new(resource: &'static str, columns: &'static [Column]) -> Self {
        Self { resource, columns, conditions: None, order: None, reads: &[] }
    }

    pub(super) fn definitions(&self) -> Vec<Value> {
        let define = |column: &Column| json!({"name": column.name, "type": column.kind, "format": column.format, "description": column.description, "priority": column.priority});
        self.columns.iter().map(define).collect()
    }

    pub(super) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = Vec::with_capacity(self.columns.len());
        for column in self.columns {
            match column.cell {
                Cell::Several(make) => cells.extend(make(object, now).into_iter().map(Value::from)),
                Cell::Made => {}
                cell => cells.push(cell.of(object, now)),
            }
        }
        cells
    }
}

impl Column {
    pub(super) const fn text(name: &'static str, description: &'static str, cell: Cell) -> Self {
        Self { name, kind: "string", format: "", description, priority: 0, cell }
    }

    pub(super) const fn integer(name: &'static str, description: &'static str, cell: Cell) -> Self {
        Self { name, kind: "integer", format: "", description, priority: 0, cell }
    }

    pub(super) const fn boolean(name: &'static str, description: &'static str, cell: Cell) -> Self {
        Self { name, kind: "boolean", format: "", description, priority: 0, cell }
    }

    /// Shown only by `-o wide`.
    pub(super) const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    /// Holds a name.
    pub(super) const fn named(mut self) -> Self {
        self.format = "name";
        self
    }
}

impl Cell {
    fn of(self, object: &Value, now: Timestamp) -> Value {
        match self {
            Self::Field(path) => Value::from(text(object, path)),
            Self::FieldOr(path, otherwise) => Value::from(text_or(object, path, otherwise)),
            Self::Number(path) => Value::from(number(object, path)),
            Self::Flag(path, otherwise) => Value::from(at(object, path).as_bool().unwrap_or(otherwise)),
            Self::Count(path) => Value::from(count(at(object, path))),
            Self::Since(path, otherwise) => match at(object, path) {
                Value::Null => Value::from(otherwise),
                time => Value::from(duration::since(time, now)),
            },
            Self::Text(make) => Value::from(make(object)),
            Self::Timed(make) => Value::from(make(object, now)),
            Self::Json(make) => make(object),
            Self::Several(_) | Self::Made => Value::Null,
        }
    }
}

/// The value at a dotted path; null if there is none.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').try_fold(object, |value, key| value.get(key)).unwrap_or(&Value::Null)
}

pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).as_str().unwrap_or_default()
}

/// The text at a path; `otherwise` if it is empty or missing.
pub(super) fn text_or<'a>(object: &'a Value, path: &str, otherwise: &'a str) -> &'a str {
    let found = text(object, path);
    if found.is_empty() { otherwise } else { found }
}

pub(super) fn number(object: &Value, path: &str) -> i64 {
    at(object, path).as_i64().unwrap_or_default()
}

pub(super) fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn count(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

/// The condition of this type, if there is one.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "status.conditions").iter().find(|condition| condition["type"] == kind)
}

pub(super) fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

pub(super) fn is_deleting(object: &Value) -> bool {
    !at(object, "metadata.deletionTimestamp").is_null()
}

/// A string, number or flag as it is written; empty for anything else.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => String::new(),
    }
}

/// The texts at `path` in each of `values`, joined.
pub(super) fn join(values: &[Value], path: &str, separator: &str) -> String {
    values.iter().map(|value| text(value, path)).collect::<Vec<_>>().join(separator)
}

/// The first three of a list, and how many there are beyond.
pub(super) fn first_three(all: &[String], empty: &str) -> String {
    const SHOWN: usize = 3;
    if all.is_empty() {
        return empty.to_owned();
    }
    let shown = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN { format!("{shown} + {} more...", all.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kinds::Strategies, registry::builtin, schema};

    #[test]
    fn every_table_has_a_resource_and_no_two_have_the_same() {
        let catalog = schema::builtin::catalog();
        let known: Vec<String> = builtin::resources(&catalog, &Strategies::default())
            .iter()
            .map(crate::registry::ResourceDef::qualified)
            .collect();
        let mut seen = std::collections::HashSet::new();
        for table in ALL.iter().flat_map(|tables| tables.iter()) {
            assert!(known.iter().any(|resource| resource == table.resource), "{}", table.resource);
            assert!(seen.insert(table.resource), "{}", table.resource);
        }
    }
}
