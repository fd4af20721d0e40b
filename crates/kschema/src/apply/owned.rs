//! What one manager owns, read from its entry only when it matters.

use std::cell::OnceCell;

use serde_json::{Map, Value};

use super::{
    fields_v1::{self, element_text, is_member},
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
    /// As it is stored, if it is unchanged. In the form that this server writes.
    stored: Option<Value>,
    set: OnceCell<Set>,
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

    /// Of an entry that this server has written.
    pub(crate) fn stored(fields: Value, api_version: &str) -> Self {
        Self { api_version: api_version.to_owned(), stored: Some(fields), set: OnceCell::new() }
    }

    pub(crate) fn set(&self) -> &Set {
        self.set.get_or_init(|| {
            self.stored.as_ref().and_then(|fields| Set::from_fields_v1(fields).ok()).unwrap_or_default()
        })
    }

    /// What is stored, as long as it is not read in full.
    pub(crate) fn unread(&self) -> Option<&Map<String, Value>> {
        self.stored.as_ref().filter(|_| self.set.get().is_none()).and_then(Value::as_object)
    }

    pub(crate) fn replace(&mut self, set: Set) {
        self.stored = None;
        self.set = OnceCell::from(set);
    }

    /// What of `set` is owned.
    pub(crate) fn intersection(&self, set: &Set) -> Set {
        match (&self.stored, self.set.get()) {
            (Some(fields), None) if !meets(fields, set) => Set::default(),
            _ => self.set().intersection(set),
        }
    }

    /// Gives up what is in `set`.
    pub(crate) fn subtract(&mut self, set: &Set) {
        match (&mut self.stored, self.set.get()) {
            (Some(fields), None) if !meets(fields, set) => {}
            (Some(Value::Object(fields)), None) => fields_v1::remove(fields, set, false),
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
            (Some(fields), None) if covers(fields, set) => {}
            (Some(Value::Object(fields)), None) => fields_v1::insert(fields, set),
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
            (Some(Value::Object(fields)), None) => fields.is_empty(),
            _ => self.set().is_empty(),
        }
    }

    pub(crate) fn into_fields_v1(self) -> Value {
        match self.stored {
            Some(fields) => fields,
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
