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
    walk.value(shape, old, new, &At::ROOT);
    let Walk { out, faults, .. } = walk;
    faults.into_result().map(|()| out)
}

struct Walk<'a> {
    catalog: &'a Catalog,
    out: Comparison,
    faults: Faults,
}

impl Walk<'_> {
    fn value(&mut self, shape: Shape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        // Most of an object is as it was; telling so costs far less than walking it with its type.
        if equal(old, new) {
            return;
        }
        let kinds = shape.kinds();
        let (old_kinds, new_kinds) = (kinds.narrow(Some(old)), kinds.narrow(Some(new)));
        if old_kinds != new_kinds {
            // The value changed its kind: what lay below goes, what lies below now comes.
            self.kind(old_kinds.first(), shape, old, new, at);
        }
        self.kind(new_kinds.first(), shape, old, new, at);
    }

    fn kind(&mut self, kind: Kind, shape: Shape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        match kind {
            Kind::Scalar => {
                let faults = (scalar_fault(shape.scalar(), old), scalar_fault(shape.scalar(), new));
                if let (Some(old), Some(new)) = faults {
                    self.faults.push(at, format_args!("lhs: {old}"));
                    self.faults.push(at, format_args!("rhs: {new}"));
                } else {
                    self.out.modified.insert_at(at);
                }
            }
            Kind::List => self.list(shape.list(), old, new, at),
            Kind::Map => self.map(shape.map(self.catalog), old, new, at),
        }
    }

    /// Compares what may be on one side only.
    fn either(&mut self, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) {
        match (old, new) {
            (Some(old), Some(new)) => self.value(shape, old, new, at),
            (None, Some(new)) => {
                let below = self.whole(shape, new, at);
                self.out.added.graft(at, below);
            }
            (Some(old), None) => {
                let below = self.whole(shape, old, at);
                self.out.removed.graft(at, below);
            }
            (None, None) => {}
        }
    }

    /// All fields below a value that has come or gone as a whole.
    fn whole(&mut self, shape: Shape<'_>, value: &Value, at: &At<'_>) -> Set {
        let mut set = Set::default();
        match (shape.kind(Some(value)), value) {
            (Kind::Map, Value::Object(map)) => {
                let shape = shape.map(self.catalog);
                if shape.atomic {
                    return set;
                }
                let always = shape.always().iter().filter(|(key, _)| !map.contains_key(&**key));
                let always = always.map(|(key, value)| (&**key, value));
                for (key, value) in map.iter().map(|(key, value)| (key.as_str(), value)).chain(always) {
                    if let Some(child) = shape.child(key) {
                        let below = self.whole(child, value, &at.field(key));
                        set.add(PathElement::field(key), below);
                    }
                }
            }
            (Kind::List, Value::Array(list)) if !shape.list().is_atomic() => {
                let shape = shape.list();
                let entries = self.index(shape, list, at);
                let mut rest = entries.into_iter().peekable();
                while let Some((element, entry)) = rest.next() {
                    let mut is_single = true;
                    while rest.next_if(|(next, _)| *next == element).is_some() {
                        is_single = false;
                    }
                    // Entries that stand twice are owned as one.
                    let below = if is_single {
                        self.whole(shape.item, entry, &at.element(&element))
                    } else {
                        Set::default()
                    };
                    set.add(element, below);
                }
            }
            _ => {}
        }
        set
    }

    fn map(&mut self, shape: MapShape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        let (old, new) = (old.as_object(), new.as_object());
        let is_empty = |map: Option<&Map<String, Value>>| {
            map.is_none_or(|map| map.is_empty() && shape.always().is_empty())
        };
        if shape.atomic || is_empty(old) && is_empty(new) {
            self.out.modified.insert_at(at);
            return;
        }
        let always = |map: Option<&Map<String, Value>>, key: &str| map.and_then(|_| shape.always_value(key));
        let has = |map: Option<&Map<String, Value>>, key: &str| map.is_some_and(|map| map.contains_key(key));
        for (key, value) in old.into_iter().flatten() {
            let other = new.and_then(|map| map.get(key)).or_else(|| always(new, key));
            self.field(shape, key, Some(value), other, at);
        }
        for (key, value) in new.into_iter().flatten().filter(|(key, _)| !has(old, key)) {
            self.field(shape, key, always(old, key), Some(value), at);
        }
        // A struct that comes or goes brings or takes the fields that every such struct has.
        if old.is_none() != new.is_none() {
            for (key, value) in shape.always().iter().filter(|(key, _)| !has(old, key) && !has(new, key)) {
                self.field(shape, key, old.map(|_| value), new.map(|_| value), at);
            }
        }
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
            self.either(child, old, new, &at.field(key));
        }
    }

    fn list(&mut self, shape: ListShape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        let (old, new) = (slice(old), slice(new));
        if shape.is_atomic() || old.is_empty() && new.is_empty() {
            self.out.modified.insert_at(at);
            return;
        }
        let (old, new) = (self.index(shape, old, at), self.index(shape, new, at));
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            let element = match (old.get(i), new.get(j)) {
                (Some(a), Some(b)) if b.0 < a.0 => &b.0,
                (Some(a), _) => &a.0,
                (None, Some(b)) => &b.0,
                (None, None) => break,
            };
            let run = |entries: &[(PathElement, &Value)]| {
                entries.iter().take_while(|(other, _)| other == element).count()
            };
            let (old_run, new_run) = (run(&old[i..]), run(&new[j..]));
            self.entries(shape, element, &old[i..i + old_run], &new[j..j + new_run], at);
            (i, j) = (i + old_run, j + new_run);
        }
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
            (0..=1, 0..=1) => self.either(shape.item, old_first, new_first, &at),
            (2.., 2..) => {
                if old.len() != new.len() || old.iter().zip(new).any(|(a, b)| !equal(a.1, b.1)) {
                    self.out.modified.insert_at(&at);
                }
            }
            (2.., _) => {
                self.either(shape.item, None, new_first, &at);
                self.out.removed.insert_at(&at);
            }
            (_, 2..) => {
                self.either(shape.item, old_first, None, &at);
                self.out.added.insert_at(&at);
            }
        }
    }
}

fn slice(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
