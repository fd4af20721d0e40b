//! Sets of fields that were written under another schema: what is one value now is owned as one.

use serde_json::{Map, Value};

use super::{
    path::{At, PathElement},
    set::Set,
    shape::{Kind, Shape},
};
use crate::types::Catalog;

/// `set` with everything below a list or map that has become atomic replaced by the list or map itself; `None` when there is
/// no such thing, as nearly always.
pub(crate) fn reconcile(catalog: &Catalog, shape: Shape<'_>, set: &Set) -> Option<Set> {
    let mut changed = Set::default();
    walk(catalog, shape, Some(set), false, &At::ROOT, &mut changed);
    (!changed.is_empty()).then(|| set.recursive_difference(&changed).union(&changed))
}

/// Whether [`reconcile`] has nothing to do, told from `fieldsV1` as this server writes it.
pub(crate) fn is_reconciled(catalog: &Catalog, shape: Shape<'_>, fields: &Map<String, Value>) -> bool {
    let below = |value: &Value, shape: Shape<'_>| {
        value.as_object().is_some_and(|fields| is_reconciled(catalog, shape, fields))
    };
    match shape.kinds().first() {
        Kind::Scalar => true,
        Kind::List if shape.list().is_atomic() => fields.is_empty(),
        Kind::List => {
            let item = shape.list().item;
            fields.iter().filter(|(key, _)| *key != ".").all(|(_, value)| below(value, item))
        }
        Kind::Map => {
            let map = shape.map(catalog);
            if map.is_deduced() {
                return true;
            }
            if map.atomic {
                return fields.is_empty();
            }
            let named = fields.iter().filter_map(|(key, value)| Some((key.strip_prefix("f:")?, value)));
            let mut known = named.filter_map(|(name, value)| Some((map.child(name)?, value)));
            known.all(|(child, value)| below(value, child))
        }
    }
}

/// `is_leaf`: the place is a member, and nothing below it is.
fn walk(
    catalog: &Catalog,
    shape: Shape<'_>,
    set: Option<&Set>,
    is_leaf: bool,
    at: &At<'_>,
    changed: &mut Set,
) {
    match shape.kinds().first() {
        Kind::Scalar => {}
        Kind::List if shape.list().is_atomic() => {
            if !is_leaf {
                changed.insert_at(at);
            }
        }
        Kind::List => {
            let item = shape.list().item;
            each(set, |element, below| {
                walk(catalog, item, below, below.is_none(), &at.element(element), changed);
            });
        }
        Kind::Map => {
            let map = shape.map(catalog);
            if map.is_deduced() {
                return;
            }
            if map.atomic {
                if !is_leaf && set.is_some_and(|set| !set.is_empty()) {
                    changed.insert_at(at);
                }
                return;
            }
            each(set, |element, below| {
                let PathElement::Field(name) = element else { return };
                if let Some(child) = map.child(name) {
                    walk(catalog, child, below, below.is_none(), &at.element(element), changed);
                }
            });
        }
    }
}

/// Calls `visit` for everything at this level of the set, with what is below it.
fn each<'s>(set: Option<&'s Set>, mut visit: impl FnMut(&'s PathElement, Option<&'s Set>)) {
    let Some(set) = set else { return };
    for (element, child) in &set.children {
        visit(element, Some(child));
    }
    for element in set.members.iter().filter(|element| set.child(element).is_none()) {
        visit(element, None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{builtin, structural::Structural, types::Type};

    fn schema() -> Type {
        let number = json!({"type": "integer"});
        let entry = json!({"type": "object", "properties": {"name": {"type": "string"}, "a": number, "one": {"type": "object",
            "x-kubernetes-map-type": "atomic", "additionalProperties": number}}});
        let schema = json!({"type": "object", "properties": {
            "a": number,
            "one": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": number},
            "atomic": {"type": "array", "items": entry},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": entry},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        Type::Structural(Arc::new(Structural::compile(&schema).unwrap()))
    }

    proptest! {
        #[test]
        fn what_is_stored_tells_whether_there_is_something_to_do(
            paths in prop::collection::vec(prop::collection::vec(0..7_usize, 1..4), 0..6),
        ) {
            let elements = [
                PathElement::field("a"),
                PathElement::field("one"),
                PathElement::field("atomic"),
                PathElement::field("list"),
                PathElement::field("any"),
                PathElement::field("unknown"),
                PathElement::key(vec![("name".into(), json!("x"))]),
            ];
            let mut set = Set::default();
            for path in paths {
                set.insert(path.into_iter().map(|index| elements[index].clone()));
            }
            let (catalog, ty) = (builtin::catalog(), schema());
            let shape = Shape::of(&ty, None);
            let fields = set.to_fields_v1();
            let reconciled = is_reconciled(&catalog, shape, fields.as_object().unwrap());
            prop_assert_eq!(reconciled, reconcile(&catalog, shape, &set).is_none());
        }
    }
}
