//! The rows of a list, written as bytes: a row shows little of its object, and its metadata is there as bytes already.

use std::sync::Arc;

use jiff::Timestamp;
use kcore::Stored;
use serde_json::Value;

use super::{
    Include,
    columns::{self, Table},
    custom,
    partial::Mask,
};
use crate::registry::Resource;

/// Writes the rows of stored objects of one resource, which are served as they are stored.
pub(in crate::http) struct Rows {
    resource: Arc<Resource>,
    table: &'static Table,
    mask: Mask,
    include: Include,
    now: Timestamp,
}

impl Rows {
    /// `now` is what ages are counted to.
    pub(in crate::http) fn new(resource: &Arc<Resource>, include: Include, now: Timestamp) -> Self {
        let table = columns::of(&resource.def.qualified(), &resource.def.kind);
        let mask = match table.reads {
            // The columns of a definition may show anything.
            _ if resource.version().structure.is_some() => Mask::All,
            [] => Mask::usual(),
            paths => Mask::paths(paths),
        };
        Self { resource: Arc::clone(resource), table, mask, include, now }
    }

    /// Everything before the rows.
    pub(in crate::http) fn head(&self, metadata: &Value) -> String {
        let definitions = Value::Array(match &self.resource.version().structure {
            Some(structure) => custom::definitions(&structure.columns),
            None => self.table.definitions(),
        });
        format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{definitions},\"rows\":["
        )
    }

    /// The objects in the order that the table shows them in.
    pub(in crate::http) fn ordered(&self, mut items: Vec<Arc<Stored>>) -> Vec<Arc<Stored>> {
        if let Some(order) = self.table.order {
            items.sort_by_cached_key(|item| order(&self.read(item)));
        }
        items
    }

    /// What the columns need of an object. What is stored is JSON; whatever else somebody put there shows nothing.
    fn read(&self, item: &Stored) -> Value {
        self.mask.read(item.raw()).unwrap_or_default()
    }

    /// Appends one row.
    pub(in crate::http) fn write(&self, item: &Stored, out: &mut Vec<u8>) {
        let object = self.read(item);
        let (cells, conditions) = match &self.resource.version().structure {
            Some(structure) => (custom::cells(&structure.columns, &object, self.now), None),
            None => {
                let conditions = self.table.conditions.and_then(|conditions| conditions(&object));
                (self.table.cells(&object, self.now), conditions)
            }
        };
        // Writing a `Value` into a `Vec` cannot fail.
        out.extend_from_slice(b"{\"cells\":");
        let _ = serde_json::to_writer(&mut *out, &cells);
        if let Some(conditions) = conditions {
            out.extend_from_slice(b",\"conditions\":");
            let _ = serde_json::to_writer(&mut *out, &conditions);
        }
        match self.include {
            Include::None => {}
            Include::Object => {
                out.extend_from_slice(b",\"object\":");
                item.write_json(out);
            }
            Include::Metadata => {
                const HEAD: &[u8] =
                    b",\"object\":{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":";
                out.extend_from_slice(HEAD);
                item.write_metadata(out);
                out.push(b'}');
            }
        }
        out.push(b'}');
    }
}
