//! The heart of apply: what a change does to the ownership of fields, and what an apply makes of an object.
//!
//! The rules are those of structured-merge-diff's `merge.Updater`.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};

use super::{
    ConvertError, Versions,
    compare::{self, Comparison, compare},
    conflict::Conflicts,
    fields_v1,
    managed::Manager,
    merge::merge,
    owned::Owned,
    path::equal,
    reconcile::{is_reconciled, reconcile},
    set::Set,
    shape::Shape,
    typed,
};
use crate::types::Catalog;

pub(crate) type Managers = BTreeMap<Manager, Owned>;

/// Why an apply is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Conflicts(Conflicts),
    Other(String),
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}

/// An object in one of its versions.
#[derive(Clone)]
pub(crate) struct Versioned<'a> {
    pub(crate) value: Cow<'a, Value>,
    pub(crate) api_version: Cow<'a, str>,
    pub(crate) shape: Shape<'a>,
}

/// `Ok(None)`: the version does not exist any more.
type Converted<'a> = Result<Option<Versioned<'a>>, String>;

pub(crate) struct Updater<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) versions: &'a dyn Versions,
}

impl<'a> Updater<'a> {
    pub(crate) fn shape(&self, api_version: &str) -> Option<Shape<'a>> {
        Some(Shape::of(self.versions.schema(api_version)?, None))
    }

    fn convert(&self, object: &Versioned<'a>, api_version: &str) -> Converted<'a> {
        if object.api_version == api_version {
            return Ok(Some(object.clone()));
        }
        let Some(shape) = self.shape(api_version) else { return Ok(None) };
        match self.versions.convert(&object.value, api_version) {
            Ok(value) => {
                let api_version = Cow::Owned(api_version.to_owned());
                Ok(Some(Versioned { value: Cow::Owned(value), api_version, shape }))
            }
            Err(ConvertError::NoSuchVersion) => Ok(None),
            Err(ConvertError::Failed(why)) => Err(why),
        }
    }

    fn compare(&self, old: &Versioned<'a>, new: &Versioned<'a>) -> Result<Comparison, String> {
        let mut comparison = compare(self.catalog, new.shape, &old.value, &new.value)
            .map_err(|faults| format!("failed to compare objects: {faults}"))?;
        if let Some(reset) = self.versions.reset_fields(&new.api_version) {
            comparison.exclude(reset);
        }
        Ok(comparison)
    }

    /// Takes from everybody but `acting` what changed between `old` and `new`, and what is gone. `heir` will own what changed
    /// anyway, and loses only what is gone.
    fn take_over(
        &self,
        old: &Versioned<'a>,
        new: &Versioned<'a>,
        managers: &mut Managers,
        acting: Option<&Manager>,
        heir: Option<&Manager>,
        force: bool,
    ) -> Result<Comparison, Refusal> {
        let own = self.compare(old, new)?;
        let mut foreign: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        let mut conflicts = Conflicts::default();
        let mut lost: Vec<(Manager, Set)> = Vec::new();
        let mut obsolete = Vec::new();
        for (manager, owned) in managers.iter().filter(|(manager, _)| Some(*manager) != acting) {
            let comparison = if owned.api_version == new.api_version {
                &own
            } else {
                if !foreign.contains_key(&owned.api_version) {
                    let comparison = self.compare_in(old, new, &owned.api_version)?;
                    foreign.insert(owned.api_version.clone(), comparison);
                }
                match foreign.get(&owned.api_version) {
                    Some(Some(comparison)) => comparison,
                    _ => {
                        obsolete.push(manager.clone());
                        continue;
                    }
                }
            };
            let changed = comparison.modified.union(&comparison.added);
            let taken = if Some(manager) == heir { Set::default() } else { owned.intersection(&changed) };
            if !taken.is_empty() {
                conflicts.add(manager, &taken);
            }
            if !taken.is_empty() || !comparison.removed.is_empty() {
                lost.push((manager.clone(), taken.union(&comparison.removed)));
            }
        }
        if !force && !conflicts.0.is_empty() {
            return Err(Refusal::Conflicts(conflicts));
        }
        for manager in obsolete {
            managers.remove(&manager);
        }
        for (manager, lost) in lost {
            if let Some(owned) = managers.get_mut(&manager) {
                owned.subtract(&lost);
            }
        }
        managers.retain(|_, owned| !owned.is_empty());
        Ok(own)
    }

    fn compare_in(
        &self,
        old: &Versioned<'a>,
        new: &Versioned<'a>,
        api_version: &str,
    ) -> Result<Option<Comparison>, String> {
        let convert = |object: &Versioned<'a>, which: &str| {
            self.convert(object, api_version)
                .map_err(|why| format!("failed to convert {which} object: {why}"))
        };
        match (convert(old, "old")?, convert(new, "new")?) {
            (Some(old), Some(new)) => self.compare(&old, &new).map(Some),
            _ => Ok(None),
        }
    }

    /// What the change from `live` to `new` gives to `heir`, who makes it; takes it from the others.
    pub(crate) fn update(
        &self,
        live: &Versioned<'a>,
        new: &Versioned<'a>,
        managers: &mut Managers,
        heir: &Manager,
    ) -> Result<Set, Refusal> {
        // Built-in schemas do not change under an object's feet; a later apply sees to what another release has written.
        if matches!(new.shape, Shape::Structural(..)) {
            self.reconcile(managers);
        }
        let comparison = self.take_over(live, new, managers, None, Some(heir), true)?;
        Ok(comparison.modified.union(&comparison.added))
    }

    /// What the change from `live` to `new` gives to whoever makes it, as `fieldsV1`, where nobody owns anything yet.
    pub(crate) fn new_fields(
        &self,
        live: &Versioned<'a>,
        new: &Versioned<'a>,
    ) -> Result<Map<String, Value>, String> {
        let mut fields = compare::new_fields(self.catalog, new.shape, &live.value, &new.value)
            .map_err(|faults| format!("failed to compare objects: {faults}"))?;
        if let Some(reset) = self.versions.reset_fields(&new.api_version) {
            fields_v1::remove(&mut fields, reset, true);
        }
        Ok(fields)
    }

    /// Applies `config`: the merged object, or `None` if that is what is there already. The acting manager owns what `config`
    /// has afterwards.
    pub(crate) fn apply(
        &self,
        live: &Versioned<'a>,
        config: &Versioned<'a>,
        managers: &mut Managers,
        acting: &Manager,
        force: bool,
    ) -> Result<Option<Value>, Refusal> {
        self.reconcile(managers);
        let merged = merge(self.catalog, config.shape, &live.value, &config.value)
            .map_err(|faults| format!("failed to merge config: {faults}"))?;
        let merged = Versioned { value: Cow::Owned(merged), ..config.clone() };
        let mut set = typed::to_set(self.catalog, config.shape, &config.value);
        if let Some(reset) = self.versions.reset_fields(&config.api_version) {
            set = set.recursive_difference(reset);
        }
        let owned = Owned::new(set, &config.api_version);
        let last = managers.insert(acting.clone(), owned);
        let kept = &managers[acting];
        // What was applied before and still is needs no removing, and that is the common case.
        let last = last.filter(|last| {
            last.api_version != config.api_version || !last.set().difference(kept.set()).is_empty()
        });
        let new = self
            .prune(&merged, managers, &config.api_version, last.as_ref())
            .map_err(|why| format!("failed to prune fields: {why}"))?
            .unwrap_or(merged);
        self.take_over(live, &new, managers, Some(acting), None, force)?;
        Ok((!equal(&live.value, &new.value)).then(|| new.value.into_owned()))
    }

    /// Removes what the manager applied before, applies no more, and nobody else owns. `None`: nothing to remove.
    fn prune(
        &self,
        merged: &Versioned<'a>,
        managers: &Managers,
        api_version: &str,
        last: Option<&Owned>,
    ) -> Converted<'a> {
        let Some(last) = last.filter(|last| !last.is_empty()) else { return Ok(None) };
        let Some(merged) = self
            .convert(merged, &last.api_version)
            .map_err(|why| format!("failed to convert merged object to last applied version: {why}"))?
        else {
            return Ok(None);
        };
        let gone = typed::with_named_fields(self.catalog, merged.shape, last.set());
        let pruned = self.without(&merged, &gone);
        let pruned = self
            .add_back_owned(&merged, pruned, &last.api_version, managers)
            .map_err(|why| format!("failed add back owned items: {why}"))?;
        let pruned = self
            .add_back_dangling(&merged, &pruned, &last.api_version, &gone)
            .map_err(|why| format!("failed add back dangling items: {why}"))?;
        self.convert(&pruned, api_version)
    }

    fn without(&self, object: &Versioned<'a>, gone: &Set) -> Versioned<'a> {
        let rest = typed::remove(self.catalog, object.shape, &object.value, gone);
        Versioned {
            value: Cow::Owned(rest.unwrap_or_else(|| Value::Object(serde_json::Map::new()))),
            ..object.clone()
        }
    }

    fn fields(&self, object: &Versioned<'a>) -> Set {
        let set = typed::to_set(self.catalog, object.shape, &object.value);
        typed::with_named_fields(self.catalog, object.shape, &set)
    }

    /// Puts back what other managers, or the applied configuration itself, own.
    fn add_back_owned(
        &self,
        merged: &Versioned<'a>,
        pruned: Versioned<'a>,
        pruned_version: &str,
        managers: &Managers,
    ) -> Result<Versioned<'a>, String> {
        let mut by_version: BTreeMap<&str, Set> = BTreeMap::new();
        for owned in managers.values() {
            let all = by_version.entry(&owned.api_version).or_default();
            *all = all.union(owned.set());
        }
        // The pruned version first: a conversion may need fields that are not back yet.
        let first = by_version.remove_entry(pruned_version);
        let (mut merged, mut pruned) = (merged.clone(), pruned);
        for (version, managed) in first.into_iter().chain(by_version) {
            let convert = |object: &Versioned<'a>, which: &str| {
                self.convert(object, version)
                    .map_err(|why| format!("failed to convert {which} object at version {version}: {why}"))
            };
            let (Some(m), Some(p)) = (convert(&merged, "merged")?, convert(&pruned, "pruned")?) else {
                continue;
            };
            let keep = self.fields(&p).union(&typed::with_named_fields(self.catalog, m.shape, &managed));
            pruned = self.without(&m, &self.fields(&m).difference(&keep));
            merged = m;
        }
        Ok(pruned)
    }

    /// Puts back what was removed only because what it lies in was: only fields that were applied before may go.
    fn add_back_dangling(
        &self,
        merged: &Versioned<'a>,
        pruned: &Versioned<'a>,
        last_version: &str,
        last: &Set,
    ) -> Result<Versioned<'a>, String> {
        let pruned = self
            .convert(pruned, last_version)
            .map_err(|why| format!("failed to convert pruned object to last applied version: {why}"))?;
        let Some(pruned) = pruned else { return Ok(merged.clone()) };
        let gone = self.fields(merged).difference(&self.fields(&pruned)).intersection(last);
        Ok(self.without(merged, &gone))
    }

    /// Brings sets that were made under another schema in line with the present one, and drops those of versions that are
    /// no more.
    fn reconcile(&self, managers: &mut Managers) {
        managers.retain(|_, owned| self.versions.schema(&owned.api_version).is_some());
        for owned in managers.values_mut() {
            let Some(shape) = self.shape(&owned.api_version) else { continue };
            if owned.unread().is_some_and(|fields| is_reconciled(self.catalog, shape, fields)) {
                continue;
            }
            if let Some(set) = reconcile(self.catalog, shape, owned.set()) {
                owned.replace(set);
            }
        }
    }
}
