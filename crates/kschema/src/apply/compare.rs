//! What one object has that another has not: the fields added, changed and removed between two states.

use serde_json::{Map, Value};

use super::{
    path::{At, PathElement, equal},
    set::Set,
    shape::{Kind, ListShape, MapShape, Shape},
    typed::{Faults, scalar_fault},
};
use crate::types::Catalog;

/// The difference between two objects, as sets of fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: Set,
    pub(crate) modified: Set,
    pub(crate) removed: Set,
}

impl Comparison {
    /// Takes fields out of consideration, with all that lies below them.
    pub(crate) fn exclude(&mut self, fields: &Set) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            *set = set.recursive_difference(fields);
        }
    }
}

/// Compares two objects of one type.
///
/// # Errors
/// When an entry of a list that is merged by keys has none.
pub(crate) fn compare(
    catalog: &Catalog,
    shape: Shape<'_>,
    old: &Value,
    new: &Value,
) -> Result<Comparison, Faults> {
    let mut walk = Walk { catalog, out: Comparison::default(), faults: Faults::default() };
    walk.value(shape, Some(old), Some(new), &At::ROOT);
    let Walk { out, faults, .. } = walk;
    faults.into_result().map(|()| out)
}

struct Walk<'a> {
    catalog: &'a Catalog,
    out: Comparison,
    faults: Faults,
}

impl Walk<'_> {
    fn value(&mut self, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) {
        // Most of an object is as it was; telling so costs far less than walking it with its type.
        if let (Some(old), Some(new)) = (old, new)
            && equal(old, new)
        {
            return;
        }
        let kinds = shape.kinds();
        let (old_kinds, new_kinds) = (kinds.narrow(old), kinds.narrow(new));
        let leaf = if new.is_none() {
            self.kind(old_kinds.first(), shape, old, new, at)
        } else if old.is_none() || old_kinds == new_kinds {
            self.kind(new_kinds.first(), shape, old, new, at)
        } else {
            // The value changed its kind: what lay below goes, what lies below now comes.
            self.kind(old_kinds.first(), shape, old, new, at);
            self.kind(new_kinds.first(), shape, old, new, at)
        };
        if !leaf {
            match (old, new) {
                (None, _) => self.out.added.insert_at(at),
                (_, None) => self.out.removed.insert_at(at),
                _ => {}
            }
        }
    }

    /// Returns whether the place was compared as one value.
    fn kind(
        &mut self,
        kind: Kind,
        shape: Shape<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        at: &At<'_>,
    ) -> bool {
        match kind {
            Kind::Scalar => {
                let fault = |side: Option<&Value>| side.and_then(|value| scalar_fault(shape.scalar(), value));
                if let (Some(old), Some(new)) = (fault(old), fault(new)) {
                    self.faults.push(at, format_args!("lhs: {old}"));
                    self.faults.push(at, format_args!("rhs: {new}"));
                    return false;
                }
                self.leaf(old, new, at)
            }
            Kind::List => self.list(shape.list(), old, new, at),
            Kind::Map => self.map(shape.map(self.catalog), old, new, at),
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) -> bool {
        match (old, new) {
            (None, _) => self.out.added.insert_at(at),
            (_, None) => self.out.removed.insert_at(at),
            (Some(old), Some(new)) if !equal(old, new) => self.out.modified.insert_at(at),
            _ => {}
        }
        true
    }

    fn map(&mut self, shape: MapShape<'_>, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) -> bool {
        let (old_map, new_map) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
        let is_empty = |map: Option<&Map<String, Value>>| {
            map.is_none_or(|map| map.is_empty() && shape.always().is_empty())
        };
        if shape.atomic || is_empty(old_map) && is_empty(new_map) {
            return self.leaf(old, new, at);
        }
        let has = |map: Option<&Map<String, Value>>, key: &str| map.is_some_and(|map| map.contains_key(key));
        for (key, value) in old_map.into_iter().flatten() {
            let other = new_map.and_then(|map| map.get(key).or_else(|| shape.always_value(key)));
            self.field(shape, key, Some(value), other, at);
        }
        for (key, value) in new_map.into_iter().flatten().filter(|(key, _)| !has(old_map, key)) {
            let other = old_map.and_then(|_| shape.always_value(key));
            self.field(shape, key, other, Some(value), at);
        }
        // A struct that comes or goes brings or takes the fields that every such struct has.
        if old_map.is_none() != new_map.is_none() {
            for (key, value) in
                shape.always().iter().filter(|(key, _)| !has(old_map, key) && !has(new_map, key))
            {
                let side = |map: Option<&Map<String, Value>>| map.map(|_| value);
                self.field(shape, key, side(old_map), side(new_map), at);
            }
        }
        false
    }

    fn field(
        &mut self,
        shape: MapShape<'_>,
        key: &str,
        old: Option<&Value>,
        new: Option<&Value>,
        at: &At<'_>,
    ) {
        // Fields that the schema doesn't know are nobody's; they are refused or dropped before they come here.
        if let Some(child) = shape.child(key) {
            self.value(child, old, new, &at.field(key));
        }
    }

    fn list(&mut self, shape: ListShape<'_>, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) -> bool {
        let (old_list, new_list) = (slice(old), slice(new));
        if shape.is_atomic() || old_list.is_empty() && new_list.is_empty() {
            return self.leaf(old, new, at);
        }
        let old_entries = self.index(shape, old_list, at);
        let new_entries = self.index(shape, new_list, at);
        let (mut i, mut j) = (0, 0);
        while i < old_entries.len() || j < new_entries.len() {
            let element = match (old_entries.get(i), new_entries.get(j)) {
                (Some(a), Some(b)) => {
                    if b.0 < a.0 {
                        &b.0
                    } else {
                        &a.0
                    }
                }
                (Some(a), None) => &a.0,
                (None, Some(b)) => &b.0,
                (None, None) => break,
            };
            let run = |entries: &[(PathElement, &Value)], from: usize| {
                entries[from..].iter().take_while(|(other, _)| other == element).count()
            };
            let (old_run, new_run) = (run(&old_entries, i), run(&new_entries, j));
            self.entries(shape, element, &old_entries[i..i + old_run], &new_entries[j..j + new_run], at);
            (i, j) = (i + old_run, j + new_run);
        }
        false
    }

    /// The entries with their path elements, sorted by them; those that stand twice stay in their order.
    fn index<'v>(
        &mut self,
        shape: ListShape<'_>,
        list: &'v [Value],
        at: &At<'_>,
    ) -> Vec<(PathElement, &'v Value)> {
        let mut entries = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            match shape.element(self.catalog, entry) {
                Ok(element) => entries.push((element, entry)),
                Err(fault) => self.faults.push(at, format_args!("element {index}: {fault}")),
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    /// Compares the entries under one path element. Entries that stand twice count as one value.
    fn entries(
        &mut self,
        shape: ListShape<'_>,
        element: &PathElement,
        old: &[(PathElement, &Value)],
        new: &[(PathElement, &Value)],
        at: &At<'_>,
    ) {
        let at = at.element(element);
        let (old_first, new_first) = (old.first().map(|entry| entry.1), new.first().map(|entry| entry.1));
        match (old.len(), new.len()) {
            (0..=1, 0..=1) => self.value(shape.item, old_first, new_first, &at),
            (2.., 2..) => {
                if old.len() != new.len() || old.iter().zip(new).any(|(a, b)| !equal(a.1, b.1)) {
                    self.out.modified.insert_at(&at);
                }
            }
            (2.., _) => {
                if new_first.is_some() {
                    self.value(shape.item, None, new_first, &at);
                }
                self.out.removed.insert_at(&at);
            }
            (_, 2..) => {
                if old_first.is_some() {
                    self.value(shape.item, old_first, None, &at);
                }
                self.out.added.insert_at(&at);
            }
        }
    }
}

fn slice(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
