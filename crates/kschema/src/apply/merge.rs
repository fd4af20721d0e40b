//! The merge of what is applied into what is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::{
    path::{At, PathElement},
    shape::{Kind, ListShape, MapShape, Shape},
    typed::{Faults, scalar_fault},
};
use crate::types::Catalog;

/// `live` with `applied` merged into it: what is applied wins; what it does not speak of stays.
///
/// # Errors
/// For entries without their keys, entries that `applied` has twice, and values of a wrong type on both sides.
pub(crate) fn merge(
    catalog: &Catalog,
    shape: Shape<'_>,
    live: &Value,
    applied: &Value,
) -> Result<Value, Faults> {
    let mut walk = Walk { catalog, faults: Faults::default() };
    let merged = walk.value(shape, Some(live), Some(applied), &At::ROOT);
    walk.faults.into_result().map(|()| merged.unwrap_or(Value::Null))
}

struct Walk<'a> {
    catalog: &'a Catalog,
    faults: Faults,
}

type Side<'v> = Option<&'v Value>;

impl Walk<'_> {
    fn value(&mut self, shape: Shape<'_>, live: Side<'_>, applied: Side<'_>, at: &At<'_>) -> Option<Value> {
        // What is not touched by one side needs no walk: the result is the other side.
        let value = applied.or(live);
        match shape.kinds().narrow(value).first() {
            Kind::Scalar => {
                let fault = |side: Side<'_>| side.and_then(|value| scalar_fault(shape.scalar(), value));
                if let (Some(live), Some(applied)) = (fault(live), fault(applied)) {
                    self.faults.push(at, format_args!("lhs: {live}"));
                    self.faults.push(at, format_args!("rhs: {applied}"));
                }
                value.cloned()
            }
            Kind::List => self.list(shape.list(), live, applied, at),
            Kind::Map => self.map(shape.map(self.catalog), live, applied, at),
        }
    }

    fn map(&mut self, shape: MapShape<'_>, live: Side<'_>, applied: Side<'_>, at: &At<'_>) -> Option<Value> {
        let (live_map, applied_map) = (live.and_then(Value::as_object), applied.and_then(Value::as_object));
        let is_empty = |map: Option<&Map<String, Value>>| map.is_none_or(Map::is_empty);
        if shape.atomic || is_empty(live_map) && is_empty(applied_map) {
            return applied.or(live).cloned();
        }
        let mut out = Map::new();
        for (key, value) in live_map.into_iter().flatten() {
            let other = applied_map.and_then(|map| map.get(key));
            out.extend(self.field(shape, key, Some(value), other, at).map(|value| (key.clone(), value)));
        }
        for (key, value) in applied_map.into_iter().flatten() {
            if live_map.is_none_or(|map| !map.contains_key(key)) {
                out.extend(self.field(shape, key, None, Some(value), at).map(|value| (key.clone(), value)));
            }
        }
        (!out.is_empty()).then_some(Value::Object(out))
    }

    fn field(
        &mut self,
        shape: MapShape<'_>,
        key: &str,
        live: Side<'_>,
        applied: Side<'_>,
        at: &At<'_>,
    ) -> Option<Value> {
        match shape.child(key) {
            Some(child) => self.value(child, live, applied, &at.field(key)),
            None => applied.or(live).cloned(),
        }
    }

    fn list(
        &mut self,
        shape: ListShape<'_>,
        live: Side<'_>,
        applied: Side<'_>,
        at: &At<'_>,
    ) -> Option<Value> {
        let list = |side: Side<'_>| side.and_then(Value::as_array).is_none_or(Vec::is_empty);
        if shape.is_atomic() || list(live) && list(applied) {
            return applied.or(live).cloned();
        }
        let live = self.index(shape, live, true, at)?;
        let applied = self.index(shape, applied, false, at)?;
        let out = self.entries(shape, &live, &applied, at);
        (!out.is_empty()).then_some(Value::Array(out))
    }

    fn index<'v>(
        &mut self,
        shape: ListShape<'_>,
        side: Side<'v>,
        duplicates: bool,
        at: &At<'_>,
    ) -> Option<Indexed<'v>> {
        let list = side.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut indexed = Indexed { order: Vec::with_capacity(list.len()), by_element: BTreeMap::new() };
        let mut is_good = true;
        for (index, entry) in list.iter().enumerate() {
            let element = match shape.element(self.catalog, entry) {
                Ok(element) => element,
                Err(fault) => {
                    self.faults.push(at, format_args!("element {index}: {fault}"));
                    is_good = false;
                    continue;
                }
            };
            match indexed.by_element.get_mut(&element) {
                None => {
                    indexed.by_element.insert(element.clone(), Some(entry));
                }
                // Which of them would be meant? None is merged with.
                Some(known) if duplicates => *known = None,
                Some(_) => {
                    self.faults.push(at, format_args!("duplicate entries for key {element}"));
                    is_good = false;
                    continue;
                }
            }
            indexed.order.push((element, entry));
        }
        is_good.then_some(indexed)
    }

    /// The entries of both lists in one order: that of the applied list for those in it, with the others kept near the
    /// entries they stood by.
    fn entries(
        &mut self,
        shape: ListShape<'_>,
        live: &Indexed<'_>,
        applied: &Indexed<'_>,
        at: &At<'_>,
    ) -> Vec<Value> {
        let mut out = Vec::with_capacity(live.order.len().max(applied.order.len()));
        let mut shared: VecDeque<&PathElement> =
            applied.order.iter().map(|(element, _)| element).filter(|element| live.has(element)).collect();
        let mut next_shared = shared.pop_front();
        let mut merged = BTreeSet::new();
        let (mut l, mut a) = (0, 0);
        while l < live.order.len() || a < applied.order.len() {
            if let (Some((element, _)), Some((other, _))) = (live.order.get(l), applied.order.get(a)) {
                if element == other {
                    merged.insert(element);
                    out.extend(self.entry(shape, element, live, applied, at));
                    (l, a) = (l + 1, a + 1);
                    next_shared = shared.pop_front();
                    continue;
                }
                if applied.has(element) && next_shared.is_some_and(|next| next != element) {
                    // It comes up later, where the applied list wants it.
                    l += 1;
                    continue;
                }
            }
            if let Some((element, entry)) = live.order.get(l) {
                if !applied.has(element) {
                    out.extend(self.value(shape.item, Some(entry), None, &at.element(element)));
                    l += 1;
                    continue;
                }
                if merged.contains(element) {
                    l += 1;
                }
            }
            if let Some((element, _)) = applied.order.get(a) {
                merged.insert(element);
                out.extend(self.entry(shape, element, live, applied, at));
                a += 1;
                if next_shared == Some(element) {
                    next_shared = shared.pop_front();
                }
            }
        }
        out
    }

    fn entry(
        &mut self,
        shape: ListShape<'_>,
        element: &PathElement,
        live: &Indexed<'_>,
        applied: &Indexed<'_>,
        at: &At<'_>,
    ) -> Option<Value> {
        let live = live.by_element.get(element).copied().flatten();
        let applied = applied.by_element.get(element).copied().flatten();
        self.value(shape.item, live, applied, &at.element(element))
    }
}

struct Indexed<'v> {
    order: Vec<(PathElement, &'v Value)>,
    /// `None` stands for entries that are there more than once.
    by_element: BTreeMap<PathElement, Option<&'v Value>>,
}

impl Indexed<'_> {
    fn has(&self, element: &PathElement) -> bool {
        self.by_element.contains_key(element)
    }
}
