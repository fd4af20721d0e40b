//! What one manager owns, read from its entry only when it matters.

use std::cell::OnceCell;

use serde_json::{Map, Value};

use super::{
    fields_v1::{self, element_text, is_member},
    path::PathElement,
    set::Set,
};

/// What one manager owns.
///
/// Most writes touch little of what most managers own. So a set is kept as the `fieldsV1` it was stored as, small sets are
/// looked up in that, and it is read in full only if it changes, or for an apply.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    /// The version that the set's paths are of.
    pub(crate) api_version: String,
    /// As it is stored, as long as it is not read in full. In the form that this server writes.
    stored: Option<Fields>,
    set: OnceCell<Set>,
}

/// A stored `fieldsV1`: a text until somebody has to look into it.
#[derive(Clone, Debug)]
struct Fields {
    /// Unless the tree has been changed.
    text: Option<String>,
    tree: OnceCell<Value>,
}

impl Fields {
    fn of(stored: Value) -> Self {
        match stored {
            Value::String(text) => Self { text: Some(text), tree: OnceCell::new() },
            tree => Self { text: None, tree: OnceCell::from(tree) },
        }
    }

    fn tree(&self) -> &Value {
        self.tree.get_or_init(|| {
            let tree = self.text.as_deref().and_then(|text| serde_json::from_str(text).ok());
            tree.unwrap_or_else(|| Value::Object(Map::new()))
        })
    }

    fn change(&mut self) -> Option<&mut Map<String, Value>> {
        self.tree();
        self.text = None;
        self.tree.get_mut().and_then(Value::as_object_mut)
    }

    /// Whether any member of `set` is a member here. A text in which none of the set's first steps stands need not be read.
    fn meets(&self, set: &Set) -> bool {
        if let (Some(text), None) = (&self.text, self.tree.get()) {
            let stands = |element: &PathElement| {
                let key = element_text(element);
                key.contains(|c: char| c.is_control() || matches!(c, '"' | '\\')) || text.contains(&*key)
            };
            let mut steps = set.members.iter().chain(set.children.iter().map(|(element, _)| element));
            if !steps.any(stands) {
                return false;
            }
        }
        meets(self.tree(), set)
    }

    fn is_empty(&self) -> bool {
        match &self.text {
            Some(text) => text == "{}",
            None => self.tree().as_object().is_some_and(Map::is_empty),
        }
    }

    fn into_value(self) -> Value {
        match self.text {
            Some(text) => Value::String(text),
            None => self.tree.into_inner().unwrap_or_default(),
        }
    }
}

impl PartialEq for Owned {
    fn eq(&self, other: &Self) -> bool {
        self.api_version == other.api_version && self.set() == other.set()
    }
}

impl Owned {
    pub(crate) fn new(set: Set, api_version: &str) -> Self {
        Self { api_version: api_version.to_owned(), stored: None, set: OnceCell::from(set) }
    }

    /// Of an entry that this server has written: a tree, or the text of one.
    pub(crate) fn stored(fields: Value, api_version: &str) -> Self {
        Self { api_version: api_version.to_owned(), stored: Some(Fields::of(fields)), set: OnceCell::new() }
    }

    pub(crate) fn set(&self) -> &Set {
        self.set.get_or_init(|| {
            let stored = self.stored.as_ref();
            stored.and_then(|fields| Set::from_fields_v1(fields.tree()).ok()).unwrap_or_default()
        })
    }

    /// What is stored, as long as it is not read in full.
    pub(crate) fn unread(&self) -> Option<&Map<String, Value>> {
        self.stored.as_ref().filter(|_| self.set.get().is_none())?.tree().as_object()
    }

    pub(crate) fn replace(&mut self, set: Set) {
        self.stored = None;
        self.set = OnceCell::from(set);
    }

    /// What of `set` is owned.
    pub(crate) fn intersection(&self, set: &Set) -> Set {
        match (&self.stored, self.set.get()) {
            (Some(fields), None) if !fields.meets(set) => Set::default(),
            _ => self.set().intersection(set),
        }
    }

    /// Gives up what is in `set`.
    pub(crate) fn subtract(&mut self, set: &Set) {
        match (&mut self.stored, self.set.get()) {
            (Some(fields), None) => {
                if fields.meets(set)
                    && let Some(fields) = fields.change()
                {
                    fields_v1::remove(fields, set, false);
                }
            }
            _ => {
                let rest = self.set().difference(set);
                if rest != *self.set() {
                    self.replace(rest);
                }
            }
        }
    }

    /// Comes to own what is in `set`, too.
    pub(crate) fn add(&mut self, set: &Set) {
        match (&mut self.stored, self.set.get()) {
            (Some(fields), None) => {
                if !covers(fields.tree(), set)
                    && let Some(fields) = fields.change()
                {
                    fields_v1::insert(fields, set);
                }
            }
            _ => {
                let all = self.set().union(set);
                if all != *self.set() {
                    self.replace(all);
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match (&self.stored, self.set.get()) {
            (Some(fields), None) => fields.is_empty(),
            _ => self.set().is_empty(),
        }
    }

    /// The `fieldsV1` to store: a tree, or the text that it was before.
    pub(crate) fn into_fields_v1(self) -> Value {
        match self.stored {
            Some(fields) => fields.into_value(),
            None => self.set().to_fields_v1(),
        }
    }
}

/// Whether any member of `set` is a member of what is stored.
fn meets(fields: &Value, set: &Set) -> bool {
    set.members.iter().any(|element| fields.get(element_text(element)).is_some_and(is_member))
        || set.children.iter().any(|(element, child)| {
            fields.get(element_text(element)).is_some_and(|fields| meets(fields, child))
        })
}

/// Whether every member of `set` is a member of what is stored.
fn covers(fields: &Value, set: &Set) -> bool {
    set.members.iter().all(|element| fields.get(element_text(element)).is_some_and(is_member))
        && set.children.iter().all(|(element, child)| {
            child.is_empty() || fields.get(element_text(element)).is_some_and(|fields| covers(fields, child))
        })
}
