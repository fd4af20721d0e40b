//! What an informer knows: the objects, and the indexes over them.

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use ahash::RandomState;
use indexmap::{Equivalent, IndexSet};
use kcore::Stored;

use crate::change::Change;

/// Gives the values that an object is found under in an index: calls `emit` once for each.
///
/// It is called under the cache's lock, so it must be quick, and it must be pure: the same object gives the same values
/// every time.
pub type IndexFn = Arc<dyn Fn(&Stored, &mut dyn FnMut(&str)) + Send + Sync>;

/// A named index function. The name identifies it: adding a second index of the same name to an informer does nothing.
#[derive(Clone)]
pub struct Index {
    pub(crate) name: &'static str,
    pub(crate) function: IndexFn,
}

impl Index {
    /// Objects by their namespace.
    pub const NAMESPACE: &'static str = "namespace";
    /// Objects by the uid of their managing controller ([`Index::controller`]).
    pub const CONTROLLER: &'static str = "controller-uid";
    /// Objects by the uids of all their owners ([`Index::owner`]).
    pub const OWNER: &'static str = "owner-uid";

    /// An index with this name and function.
    ///
    /// ```
    /// use kreconcile::Index;
    /// let by_app = Index::new("app", |object, emit| {
    ///     if let Some(app) = object.header().labels.get("app") {
    ///         emit(app);
    ///     }
    /// });
    /// ```
    pub fn new(
        name: &'static str,
        function: impl Fn(&Stored, &mut dyn FnMut(&str)) + Send + Sync + 'static,
    ) -> Self {
        Self { name, function: Arc::new(function) }
    }

    /// Every informer has this one: namespaces, under [`Index::NAMESPACE`].
    #[must_use]
    pub fn namespace() -> Self {
        Self::new(Self::NAMESPACE, |object, emit| emit(&object.header().namespace))
    }

    /// The managing controller's uid; nothing for objects without one. Under [`Index::CONTROLLER`].
    #[must_use]
    pub fn controller() -> Self {
        Self::new(Self::CONTROLLER, |object, emit| {
            if let Some(owner) = object.header().controller() {
                emit(&owner.uid);
            }
        })
    }

    /// The uids of all owners. Under [`Index::OWNER`].
    #[must_use]
    pub fn owner() -> Self {
        Self::new(Self::OWNER, |object, emit| {
            for owner in &object.header().owners {
                emit(&owner.uid);
            }
        })
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Index").field(&self.name).finish()
    }
}

/// An object in a set that is keyed by namespace and name, so that no key is kept beside it.
#[derive(Clone)]
pub(crate) struct Entry(pub(crate) Arc<Stored>);

impl Entry {
    fn key(&self) -> KeyRef<'_> {
        KeyRef { namespace: &self.0.header().namespace, name: &self.0.header().name }
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Namespace and name, borrowed; finds an [`Entry`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyRef<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl Equivalent<Entry> for KeyRef<'_> {
    fn equivalent(&self, entry: &Entry) -> bool {
        *self == entry.key()
    }
}

pub(crate) type Entries = IndexSet<Entry, RandomState>;

struct IndexTable {
    index: Index,
    values: HashMap<Box<str>, Entries, RandomState>,
}

impl IndexTable {
    fn insert(&mut self, object: &Arc<Stored>) {
        let Self { index, values } = self;
        (index.function)(object, &mut |value| match values.get_mut(value) {
            Some(entries) => {
                entries.replace(Entry(Arc::clone(object)));
            }
            None => {
                let mut entries = Entries::default();
                entries.insert(Entry(Arc::clone(object)));
                values.insert(value.into(), entries);
            }
        });
    }

    fn remove(&mut self, object: &Arc<Stored>) {
        let Self { index, values } = self;
        (index.function)(object, &mut |value| {
            if let Some(entries) = values.get_mut(value) {
                entries.swap_remove(&Entry(Arc::clone(object)));
                if entries.is_empty() {
                    values.remove(value);
                }
            }
        });
    }
}

/// The objects and their indexes; plain data, guarded by whoever owns it.
pub(crate) struct Cache {
    objects: Entries,
    indexes: Vec<IndexTable>,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let mut cache = Self { objects: Entries::default(), indexes: Vec::new() };
        cache.add_index(Index::namespace());
        cache
    }

    pub(crate) fn add_index(&mut self, index: Index) {
        if self.indexes.iter().any(|table| table.index.name == index.name) {
            return;
        }
        let mut table = IndexTable { index, values: HashMap::default() };
        for Entry(object) in &self.objects {
            table.insert(object);
        }
        self.indexes.push(table);
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Stored>> {
        self.objects.get(&KeyRef { namespace, name }).map(|entry| &entry.0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.iter().map(|entry| &entry.0)
    }

    /// The objects under `value`; `None` when there is no such index.
    pub(crate) fn by_index(&self, name: &str, value: &str) -> Option<impl Iterator<Item = &Arc<Stored>>> {
        let table = self.indexes.iter().find(|table| table.index.name == name)?;
        Some(table.values.get(value).into_iter().flatten().map(|entry| &entry.0))
    }

    /// Puts an object in; `None` when that changes nothing because this revision or a later one is there already.
    pub(crate) fn put(&mut self, object: Arc<Stored>) -> Option<Change> {
        self.put_unless(object, |old, new| old.revision() >= new.revision())
    }

    fn put_unless(
        &mut self,
        object: Arc<Stored>,
        known: impl FnOnce(&Stored, &Stored) -> bool,
    ) -> Option<Change> {
        let old = self.objects.get(&Entry(Arc::clone(&object))).map(|entry| Arc::clone(&entry.0));
        if let Some(old) = &old
            && old.header().uid == object.header().uid
            && known(old, &object)
        {
            return None;
        }
        for table in &mut self.indexes {
            if let Some(old) = &old {
                table.remove(old);
            }
            table.insert(&object);
        }
        self.objects.replace(Entry(Arc::clone(&object)));
        Some(Change { old, new: Some(object) })
    }

    /// Takes an object out; `None` when it is not there.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<Change> {
        let Entry(old) = self.objects.swap_take(&KeyRef { namespace, name })?;
        for table in &mut self.indexes {
            table.remove(&old);
        }
        Some(Change { old: Some(old), new: None })
    }

    /// Makes `objects` the whole content, and says what that changed: the deletions too. Older revisions are taken as
    /// well, for the server may have been restored from a backup.
    pub(crate) fn replace(&mut self, objects: Vec<Arc<Stored>>) -> Vec<Change> {
        let keep: Entries = objects.iter().map(|object| Entry(Arc::clone(object))).collect();
        let gone: Vec<Entry> = self.objects.iter().filter(|entry| !keep.contains(*entry)).cloned().collect();
        let removed = gone.iter().filter_map(|entry| {
            let header = entry.0.header();
            self.remove(&header.namespace, &header.name)
        });
        let mut changes: Vec<Change> = removed.collect();
        changes.extend(
            objects
                .into_iter()
                .filter_map(|object| self.put_unless(object, |old, new| old.revision() == new.revision())),
        );
        changes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, app: &str, revision: u64) -> Arc<Stored> {
        let metadata = json!({"namespace": "n", "name": name, "uid": name, "labels": {"app": app},
            "resourceVersion": revision.to_string()});
        Arc::new(Stored::from_value(json!({"metadata": metadata})).unwrap())
    }

    fn names(cache: &Cache, index: &str, value: &str) -> Vec<String> {
        let mut names: Vec<String> =
            cache.by_index(index, value).unwrap().map(|object| object.header().name.to_string()).collect();
        names.sort_unstable();
        names
    }

    fn by_app() -> Index {
        Index::new("app", |object, emit| emit(object.header().labels.get("app").unwrap_or_default()))
    }

    #[test]
    fn indexes_follow_every_kind_of_change() {
        let mut cache = Cache::new();
        cache.put(object("before", "a", 1));
        cache.add_index(by_app());
        cache.put(object("x", "a", 2));
        assert_eq!(names(&cache, "app", "a"), ["before", "x"]);
        cache.put(object("x", "b", 3));
        assert_eq!(names(&cache, "app", "a"), ["before"]);
        assert_eq!(names(&cache, "app", "b"), ["x"]);
        cache.remove("n", "x");
        assert_eq!(names(&cache, "app", "b"), [""; 0]);
        assert_eq!(names(&cache, Index::NAMESPACE, "n"), ["before"]);
        assert!(cache.by_index("nowhere", "a").is_none());
    }

    #[test]
    fn replacing_reports_the_differences_only() {
        let mut cache = Cache::new();
        cache.put(object("same", "a", 1));
        cache.put(object("gone", "a", 2));
        cache.put(object("changed", "a", 3));
        let changes =
            cache.replace(vec![object("same", "a", 1), object("changed", "b", 9), object("new", "a", 5)]);
        let mut seen: Vec<_> = changes
            .iter()
            .map(|change| (change.header().name.to_string(), change.old.is_some(), change.new.is_some()))
            .collect();
        seen.sort_unstable();
        let expected = [("changed", true, true), ("gone", true, false), ("new", false, true)]
            .map(|(n, o, w)| (n.to_owned(), o, w));
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_older_revision_does_not_come_back() {
        let mut cache = Cache::new();
        cache.put(object("x", "new", 5));
        assert!(cache.put(object("x", "old", 4)).is_none());
        assert_eq!(cache.get("n", "x").unwrap().revision(), 5);
    }
}
