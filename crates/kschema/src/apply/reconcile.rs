//! Sets of fields that were written under another schema: what is one value now is owned as one.

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
