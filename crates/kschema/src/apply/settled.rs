//! Whether an apply asks for what is there already: told by one walk that makes nothing, before any set is read.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{
    fields_v1::element_text,
    last_applied, managed,
    manager::{FieldManager, UNOWNED, UNOWNED_METADATA, is_one_of},
    path::{PathElement, equal},
    set::Set,
    shape::{Kind, ListShape, MapShape, Shape},
};
use crate::types::Catalog;

impl FieldManager<'_> {
    /// Whether applying `patch` as `manager` certainly changes nothing, neither the object nor who owns what: the manager
    /// applied these very fields last, and the object has these values. `false` says nothing: then
    /// [`on_apply`](Self::on_apply) finds out.
    #[must_use]
    pub fn is_settled(&self, live: &Value, patch: &Value, manager: &str) -> bool {
        if manager == last_applied::MANAGER && last_applied::is_there(live) || !managed::of(patch).is_null() {
            return false;
        }
        let Some(schema) = self.versions.schema(self.api_version) else { return false };
        if self.versions.reset_fields(self.api_version).is_some_and(|reset| touches(patch, reset)) {
            return false;
        }
        let entries = managed::of(live).as_array().into_iter().flatten();
        let mut own = entries.filter(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            text("manager") == manager
                && text("operation") == "Apply"
                && text("subresource") == self.subresource
                && text("apiVersion") == self.api_version
        });
        let (Some(Value::Object(fields)), None) = (own.next().map(|entry| &entry["fieldsV1"]), own.next())
        else {
            return false;
        };
        let mut walk = Walk { catalog: self.catalog, text: String::new() };
        walk.map(Shape::of(schema, None), patch, live, fields, Place::Root)
    }
}

/// Whether an object has any of these fields.
fn touches(object: &Value, fields: &Set) -> bool {
    let below = |element: &PathElement| match element {
        PathElement::Field(name) => object.get(&**name),
        // A list: whether its entries are meant would have to be looked up.
        _ => Some(&Value::Null),
    };
    fields.members.iter().any(|element| below(element).is_some())
        || fields
            .children
            .iter()
            .any(|(element, child)| below(element).is_some_and(|value| touches(value, child)))
}

/// Where in an object the walk is, as far as fields that nobody owns are concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Metadata,
    Elsewhere,
}

impl Place {
    fn owns(self, name: &str) -> bool {
        match self {
            Self::Root => !is_one_of(name, &UNOWNED) || name == "metadata",
            Self::Metadata => !is_one_of(name, &UNOWNED_METADATA),
            Self::Elsewhere => true,
        }
    }

    fn below(self, name: &str) -> Self {
        if self == Self::Root && name == "metadata" { Self::Metadata } else { Self::Elsewhere }
    }
}

struct Walk<'a> {
    catalog: &'a Catalog,
    /// The key of a field as it is stored, made anew for each.
    text: String,
}

impl Walk<'_> {
    /// Whether `patch` has the values of `live` and the fields below it are just those stored. Each of the functions below asks
    /// this of one kind of value.
    fn value(
        &mut self,
        shape: Shape<'_>,
        patch: &Value,
        live: &Value,
        fields: &Map<String, Value>,
        place: Place,
    ) -> bool {
        match shape.kind(Some(patch)) {
            _ if patch.is_null() => false,
            Kind::Map => self.map(shape, patch, live, fields, place),
            Kind::List => self.list(shape.list(), patch, live, fields),
            Kind::Scalar => is_leaf(fields) && equal(patch, live),
        }
    }

    fn map(
        &mut self,
        shape: Shape<'_>,
        patch: &Value,
        live: &Value,
        fields: &Map<String, Value>,
        place: Place,
    ) -> bool {
        let (Some(patch_map), Some(live_map)) = (patch.as_object(), live.as_object()) else {
            return false;
        };
        let shape = shape.map(self.catalog);
        if shape.atomic {
            return is_leaf(fields) && equal(patch, live);
        }
        let mut found = usize::from(fields.contains_key("."));
        for (key, value) in patch_map {
            let Some(live) = live_map.get(key) else { return false };
            if !place.owns(key) {
                if !equal(value, live) {
                    return false;
                }
                continue;
            }
            match self.field(shape, key, value, live, fields, place) {
                Some(is_stored) => found += usize::from(is_stored),
                None => return false,
            }
        }
        found == fields.len()
    }

    /// Whether the field is stored; `None`: something about it is not as it was.
    fn field(
        &mut self,
        shape: MapShape<'_>,
        key: &str,
        value: &Value,
        live: &Value,
        fields: &Map<String, Value>,
        place: Place,
    ) -> Option<bool> {
        let child = shape.child(key)?;
        self.text.clear();
        let _ = write!(self.text, "f:{key}");
        let stored = fields.get(&self.text);
        let nothing = Map::new();
        let below = stored.map_or(Some(&nothing), Value::as_object)?;
        if !self.value(child, value, live, below, place.below(key)) {
            return None;
        }
        let is_whole = match child.kind(Some(value)) {
            Kind::Scalar => true,
            Kind::List => child.list().is_atomic(),
            Kind::Map => child.map(self.catalog).atomic,
        };
        let is_member = is_whole || value.as_object().is_some_and(Map::is_empty) || shape.find(key).is_none();
        let has_more = below.keys().any(|key| key != ".");
        // The metadata itself is nobody's.
        let is_member = is_member && !(place == Place::Root && key == "metadata");
        let fits = match (is_member, has_more) {
            (true, true) => below.contains_key("."),
            (true, false) => stored.is_some() && below.is_empty(),
            (false, true) => !below.contains_key("."),
            (false, false) => stored.is_none(),
        };
        fits.then_some(stored.is_some())
    }

    /// Entries must be there in the same order, too: an apply brings them into its own.
    fn list(
        &mut self,
        shape: ListShape<'_>,
        patch: &Value,
        live: &Value,
        fields: &Map<String, Value>,
    ) -> bool {
        let (Some(patch_list), Some(live_list)) = (patch.as_array(), live.as_array()) else {
            return false;
        };
        if shape.is_atomic() {
            return is_leaf(fields) && equal(patch, live);
        }
        let mut rest = live_list.iter();
        for entry in patch_list {
            let Ok(element) = shape.element(self.catalog, entry) else { return false };
            let mut same =
                |live: &&Value| shape.element(self.catalog, live).is_ok_and(|other| other == element);
            let Some(live) = rest.find(&mut same) else { return false };
            // Entries that stand twice are one value.
            if rest.clone().any(|live| same(&live)) {
                return false;
            }
            let Some(Value::Object(below)) = fields.get(&element_text(&element)) else { return false };
            if !self.value(shape.item, entry, live, below, Place::Elsewhere) {
                return false;
            }
            if !below.is_empty() && !below.contains_key(".") {
                return false;
            }
        }
        patch_list.len() + usize::from(fields.contains_key(".")) == fields.len()
    }
}

/// Whether nothing is stored below a place.
fn is_leaf(fields: &Map<String, Value>) -> bool {
    fields.is_empty()
}
