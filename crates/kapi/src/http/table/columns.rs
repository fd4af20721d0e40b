//! The columns of each kind, as upstream's printers have them (`pkg/printers/internalversion`).

use jiff::Timestamp;
use serde_json::{Value, json};

/// The columns of a resource.
pub(super) struct Columns;

/// The columns of a built-in resource; name and age for those without columns of their own.
pub(super) fn of(_qualified: &str) -> Columns {
    Columns
}

impl Columns {
    /// The columns' names, types and descriptions.
    pub(super) fn definitions(&self) -> Vec<Value> {
        let column = |name: &str, format: &str| json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0});
        vec![column("Name", "name"), column("Age", "")]
    }

    /// The cells of one object.
    pub(super) fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    }
}
