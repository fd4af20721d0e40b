//! Which types fit where: assignability with type parameters, as cel-go's checker has it.

use crate::types::{Param, Type};

/// What the free type parameters stand for.
#[derive(Debug, Default)]
pub(crate) struct Substitutions {
    bound: Vec<Option<Type>>,
    /// What to restore when an attempt fails: the parameter and what it stood for.
    trail: Vec<(usize, Option<Type>)>,
}

impl Substitutions {
    /// A parameter of its own.
    pub(crate) fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Param(Param::Free((self.bound.len() - 1) as u32))
    }

    fn find(&self, of: &Type) -> Option<&Type> {
        match of {
            Type::Param(Param::Free(number)) => self.bound.get(*number as usize)?.as_ref(),
            _ => None,
        }
    }

    fn bind(&mut self, parameter: &Type, to: Type) {
        if let Type::Param(Param::Free(number)) = parameter
            && let Some(slot) = self.bound.get_mut(*number as usize)
        {
            let before = slot.replace(to);
            self.trail.push((*number as usize, before));
        }
    }

    /// Whether `found` may stand where `wanted` is; binds parameters if it may.
    pub(crate) fn assignable(&mut self, wanted: &Type, found: &Type) -> bool {
        self.attempt(|this| this.fits(wanted, found))
    }

    /// As [`Self::assignable`], for all of two lists together.
    pub(crate) fn assignable_lists(&mut self, wanted: &[Type], found: &[Type]) -> bool {
        self.attempt(|this| this.fit_all(wanted, found))
    }

    fn attempt(&mut self, try_it: impl FnOnce(&mut Self) -> bool) -> bool {
        self.trail.clear();
        let fits = try_it(self);
        if !fits {
            while let Some((slot, before)) = self.trail.pop() {
                self.bound[slot] = before;
            }
        }
        fits
    }

    fn fit_all(&mut self, wanted: &[Type], found: &[Type]) -> bool {
        wanted.len() == found.len()
            && wanted.iter().zip(found).all(|(wanted, found)| self.fits(wanted, found))
    }

    fn fits(&mut self, first: &Type, second: &Type) -> bool {
        if matches!(second, Type::Param(_)) {
            match self.substitutes(first, second) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if matches!(first, Type::Param(_)) {
            return self.substitutes(second, first).0;
        }
        if first.is_dyn_or_error() || second.is_dyn_or_error() {
            return true;
        }
        match (first, second) {
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null
                    | Type::Opaque(_)
                    | Type::Optional(_)
                    | Type::Object(_)
                    | Type::Duration
                    | Type::Timestamp
            ),
            (Type::List(first), Type::List(second)) | (Type::Optional(first), Type::Optional(second)) => {
                self.fits(first, second)
            }
            (Type::Map(first), Type::Map(second)) => {
                self.fits(&first.0, &second.0) && self.fits(&first.1, &second.1)
            }
            (Type::Type(_), Type::Type(_)) => true,
            (first, second) => first == second,
        }
    }

    /// Whether `parameter` can stand for `other`, and whether it stood for something already.
    fn substitutes(&mut self, other: &Type, parameter: &Type) -> (bool, bool) {
        if other == parameter {
            return (true, true);
        }
        if let Some(bound) = self.find(parameter).cloned() {
            if *other == bound {
                return (true, true);
            }
            if self.fits(other, &bound) {
                let general = most_general(other, &bound);
                if self.not_within(parameter, &general) {
                    self.bind(parameter, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.not_within(parameter, other) {
            self.bind(parameter, other.clone());
            return (true, false);
        }
        (false, false)
    }

    /// The occurs check: a parameter must not stand for something that contains it.
    fn not_within(&self, parameter: &Type, within: &Type) -> bool {
        if parameter == within {
            return false;
        }
        match within {
            Type::Param(_) => self.find(within).is_none_or(|bound| self.not_within(parameter, bound)),
            Type::List(inner) | Type::Optional(inner) | Type::Type(inner) => {
                self.not_within(parameter, inner)
            }
            Type::Map(entry) => self.not_within(parameter, &entry.0) && self.not_within(parameter, &entry.1),
            _ => true,
        }
    }

    /// `of` with every bound parameter replaced; unbound ones become dyn if `to_dyn`.
    pub(crate) fn substitute(&self, of: &Type, to_dyn: bool) -> Type {
        if let Some(bound) = self.find(of) {
            return self.substitute(bound, to_dyn);
        }
        match of {
            Type::Param(_) if to_dyn => Type::Dyn,
            Type::List(inner) => Type::list(self.substitute(inner, to_dyn)),
            Type::Optional(inner) => Type::optional(self.substitute(inner, to_dyn)),
            Type::Type(inner) => Type::Type(self.substitute(inner, to_dyn).into()),
            Type::Map(entry) => {
                Type::map(self.substitute(&entry.0, to_dyn), self.substitute(&entry.1, to_dyn))
            }
            other => other.clone(),
        }
    }
}

/// The more general of two types that fit each other.
pub(crate) fn most_general(first: &Type, second: &Type) -> Type {
    if equal_or_less_specific(first, second) { first.clone() } else { second.clone() }
}

fn equal_or_less_specific(first: &Type, second: &Type) -> bool {
    if first.is_dyn() || matches!(first, Type::Param(_)) {
        return true;
    }
    if second.is_dyn() || matches!(second, Type::Param(_)) {
        return false;
    }
    match (first, second) {
        (Type::List(first), Type::List(second)) | (Type::Optional(first), Type::Optional(second)) => {
            equal_or_less_specific(first, second)
        }
        (Type::Map(first), Type::Map(second)) => {
            equal_or_less_specific(&first.0, &second.0) && equal_or_less_specific(&first.1, &second.1)
        }
        (Type::Type(_), Type::Type(_)) => true,
        (first, second) => first == second,
    }
}

/// `of` with a function's named parameters replaced by those of one use: `fresh` gives and remembers them.
pub(crate) fn instantiate(of: &Type, fresh: &mut impl FnMut(char) -> Type) -> Type {
    match of {
        Type::Param(Param::Named(letter)) => fresh(*letter),
        Type::List(inner) => Type::list(instantiate(inner, fresh)),
        Type::Optional(inner) => Type::optional(instantiate(inner, fresh)),
        Type::Type(inner) => Type::Type(instantiate(inner, fresh).into()),
        Type::Map(entry) => {
            let key = instantiate(&entry.0, fresh);
            Type::map(key, instantiate(&entry.1, fresh))
        }
        other => other.clone(),
    }
}
