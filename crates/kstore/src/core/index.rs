//! What an index function makes of entries.

use std::sync::Arc;

use crate::{Entry, Event, IndexFn, StoreError, Term, root::TableRoot, table::TERMS_MAX, tree::Tree};

/// The same table, with the terms that `index` names, those of the history too. They are new entries, since published ones
/// don't change.
pub(crate) fn reindexed(table: &TableRoot, index: &dyn IndexFn) -> Result<TableRoot, StoreError> {
    let log = &table.log;
    let past = match log.end() > log.floor_seq() {
        true => table.rolled_back(log.floor()),
        false => table.clone(),
    };
    let mut now = TableRoot::new(table.name.clone(), log.emptied());
    now.hub = table.hub.clone();
    let mut fresh = Vec::with_capacity(past.entries.len());
    for old in past.entries.iter() {
        let mut new = old.renewed();
        new.terms = terms_of(index, &new, None, &now)?;
        now.add_terms(&new);
        fresh.push(Arc::new(new));
    }
    now.entries = Tree::from_sorted(fresh.into_iter());
    for (_, event) in log.iter(log.floor_seq(), log.end()) {
        let previous = now.get(&event.entry.key).cloned();
        let mut new = event.entry.renewed();
        new.tombstone = event.entry.tombstone;
        new.terms = match new.tombstone {
            true => previous.as_ref().and_then(|previous| previous.terms.clone()),
            false => terms_of(index, &new, previous.as_deref(), &now)?,
        };
        let new = Arc::new(new);
        now.replace(previous.as_ref(), (!new.tombstone).then_some(&new));
        now.log.append(Event { entry: new, previous, ..event.clone() });
    }
    Ok(now)
}

/// The terms of an entry, sharing what the version before or other entries have already.
pub(super) fn terms_of(
    index: &dyn IndexFn,
    entry: &Entry,
    old: Option<&Entry>,
    table: &TableRoot,
) -> Result<Option<Arc<[Term]>>, StoreError> {
    let mut terms = Vec::new();
    index.terms(entry, &mut terms);
    terms.sort_unstable();
    terms.dedup();
    if terms.len() > TERMS_MAX {
        return Err(StoreError::TooManyTerms { count: terms.len(), max: TERMS_MAX });
    }
    if terms.is_empty() {
        return Ok(None);
    }
    let before = old.map(|old| old.terms()).unwrap_or_default();
    if before == terms {
        return Ok(old.and_then(|old| old.terms.clone()));
    }
    Ok(Some(terms.into_iter().map(|term| table.terms.intern(term)).collect()))
}
