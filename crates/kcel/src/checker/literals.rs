//! Lists, maps and objects that are written out.

use super::Checker;
use crate::{
    ast::{Element, Entry, Expr, Id, Struct},
    types::{Fields, Type},
    unify::most_general,
};

impl Checker<'_> {
    pub(super) fn check_list(&mut self, id: Id, elements: &mut [Element]) {
        let mut joined = None;
        for element in elements {
            self.check(&mut element.value);
            let found = self.value_type(&element.value, element.optional);
            joined = Some(self.join(joined, found));
        }
        let joined = joined.unwrap_or_else(|| self.subs.fresh());
        self.set(id, Type::list(joined));
    }

    pub(super) fn check_map(&mut self, id: Id, entries: &mut [Entry]) {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            self.check(&mut entry.key);
            let key = self.type_of(&entry.key);
            keys = Some(self.join(keys, key));
            self.check(&mut entry.value);
            let value = self.value_type(&entry.value, entry.optional);
            values = Some(self.join(values, value));
        }
        let key = keys.unwrap_or_else(|| self.subs.fresh());
        let value = values.unwrap_or_else(|| self.subs.fresh());
        self.set(id, Type::map(key, value));
    }

    pub(super) fn check_struct(&mut self, id: Id, object: &mut Struct) {
        let name = object.name.trim_start_matches('.').to_owned();
        let Some(made) = self.object_type(&name) else {
            self.undeclared(id, &object.name.clone());
            return;
        };
        object.name = name;
        self.set(id, Type::Object(made.clone()));
        for field in &mut object.fields {
            self.check(&mut field.value);
            let found = self.value_type(&field.value, field.optional);
            let declared = made.field(&field.name).unwrap_or_else(|| {
                let name = &field.name;
                // Upstream's type of patches takes every field, and gives those that it does not know no type.
                let why = if matches!(made.fields, Fields::Patch) {
                    format!("expected type of field '{name}' is '' but provided type is '{found}'")
                } else {
                    format!("undefined field '{name}'")
                };
                self.report(field.id, why);
                Type::Error
            });
            if !self.subs.assignable(&declared, &found) {
                let name = &field.name;
                self.report(
                    field.id,
                    format!("expected type of field '{name}' is '{declared}' but provided type is '{found}'"),
                );
            }
        }
    }

    /// The type of an element; where it is marked optional, of what the optional holds.
    fn value_type(&mut self, value: &Expr, optional: bool) -> Type {
        let found = self.type_of(value);
        if !optional {
            return found;
        }
        let (inner, is_optional) = found.unwrapped();
        if !is_optional && !inner.is_dyn() {
            self.mismatch(value.id, &Type::optional(inner.clone()), inner);
        }
        inner.clone()
    }

    /// The type of all elements so far; of elements that don't fit each other dyn, which the validation of literals
    /// refuses where it matters.
    fn join(&mut self, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else {
            return current;
        };
        if self.subs.assignable(&previous, &current) { most_general(&previous, &current) } else { Type::Dyn }
    }
}
