//! The objects besides pods and nodes that plug-ins look at: namespaces, workloads, volumes, claims, kinds of one's own.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ahash::RandomState;
use kcore::Stored;
use kreconcile::{Change, ResourceType};
use kube::Resource;
use serde::de::DeserializeOwned;

use crate::event::{ClusterEvent, ObjectEvent};

/// Objects by kind, namespace and name, as part of a [`Snapshot`](crate::Snapshot).
///
/// A clone shares everything with the original until one of the two is changed; then the changed namespace of the changed
/// kind is copied, once. Objects of cluster scope have the namespace `""`.
///
/// What a plug-in is about to write can be [assumed](Self::assume): the assumed object is what everyone sees until the
/// API server shows a newer revision (upstream's assume cache).
///
/// ```
/// use k8s_openapi::api::core::v1::Namespace;
/// use ksched::snapshot::catalog::Catalog;
///
/// let mut catalog = Catalog::default();
/// let mut shop = Namespace::default();
/// shop.metadata.name = Some("shop".to_owned());
/// catalog.set(std::sync::Arc::new(shop));
/// assert!(catalog.get::<Namespace>("", "shop").is_some());
/// assert_eq!(catalog.list::<Namespace>().count(), 1);
/// ```
#[derive(Clone, Default)]
pub struct Catalog {
    /// `Objects<K>` by the type id of `K`.
    tables: Arc<HashMap<TypeId, Arc<dyn Any + Send + Sync>, RandomState>>,
    /// Raised with each change.
    edition: u64,
    /// The edition that each kind was last changed in; as many as there are kinds.
    changed: Vec<(TypeId, u64)>,
    reads: Reads,
}

/// Which kinds are looked at, while somebody wants to know. What depends on no other kind need not be made anew when one changes.
#[derive(Default)]
struct Reads {
    is_wanted: AtomicBool,
    noted: Mutex<ReadKinds>,
}

/// The kinds that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadKinds {
    pub(crate) kinds: Vec<TypeId>,
    /// Somebody asked whether anything at all has changed.
    pub(crate) all: bool,
}

impl ReadKinds {
    pub(crate) fn add(&mut self, other: &Self) {
        self.all |= other.all;
        for kind in &other.kinds {
            if !self.kinds.contains(kind) {
                self.kinds.push(*kind);
            }
        }
    }
}

impl Clone for Reads {
    /// What a copy is asked is its own.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Reads {
    fn note(&self, note: impl FnOnce(&mut ReadKinds)) {
        if self.is_wanted.load(Ordering::Relaxed) {
            note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

struct Objects<K> {
    namespaces: BTreeMap<Arc<str>, Arc<Namespaced<K>>>,
}

struct Namespaced<K> {
    objects: BTreeMap<Arc<str>, Entry<K>>,
}

struct Entry<K> {
    /// What everyone sees.
    latest: Arc<K>,
    /// What the API server showed; another object than `latest` while something is assumed.
    shown: Arc<K>,
}

// Derived, these would ask for `K: Clone`.
impl<K> Clone for Objects<K> {
    fn clone(&self) -> Self {
        Self { namespaces: self.namespaces.clone() }
    }
}

impl<K> Clone for Namespaced<K> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone() }
    }
}

impl<K> Clone for Entry<K> {
    fn clone(&self) -> Self {
        Self { latest: Arc::clone(&self.latest), shown: Arc::clone(&self.shown) }
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("kinds", &self.tables.len()).finish()
    }
}

/// The objects of a kind at some time; see [`Catalog::version`].
#[derive(Clone, Default)]
pub struct Version(Option<Arc<dyn Any + Send + Sync>>);

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Version")
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(this), Some(other)) => Arc::ptr_eq(this, other),
            (None, None) => true,
            _ => false,
        }
    }
}

/// An object can't be assumed: it was made from another revision than the newest, or the API server never showed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object is not made from the newest revision that is known")]
pub struct StaleError;

impl Catalog {
    /// An object, or what is assumed in its place.
    #[must_use]
    pub fn get<K: Send + Sync + 'static>(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.namespace(namespace)?.objects.get(name).map(|entry| &entry.latest)
    }

    /// An object as the API server showed it, whatever is assumed.
    #[must_use]
    pub fn shown<K: Send + Sync + 'static>(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.namespace(namespace)?.objects.get(name).map(|entry| &entry.shown)
    }

    /// A number that is another one after each change.
    pub(crate) fn edition(&self) -> u64 {
        self.reads.note(|noted| noted.all = true);
        self.edition
    }

    /// Does something, and tells which kinds were looked at for it.
    pub(crate) fn reads_of<T>(&self, ask: impl FnOnce() -> T) -> (T, ReadKinds) {
        self.reads.is_wanted.store(true, Ordering::Relaxed);
        let answer = ask();
        self.reads.is_wanted.store(false, Ordering::Relaxed);
        let noted = &mut *self.reads.noted.lock().unwrap_or_else(PoisonError::into_inner);
        (answer, std::mem::take(noted))
    }

    /// The kinds that were changed after an edition.
    pub(crate) fn changed_since(&self, edition: u64) -> impl Iterator<Item = TypeId> {
        self.changed.iter().filter(move |(_, last)| *last > edition).map(|(kind, _)| *kind)
    }

    /// All objects of a kind, ordered by namespace and name.
    pub fn list<K: Send + Sync + 'static>(&self) -> impl Iterator<Item = &Arc<K>> {
        let namespaces = self.objects::<K>().into_iter().flat_map(|objects| objects.namespaces.values());
        namespaces.flat_map(|namespace| namespace.objects.values().map(|entry| &entry.latest))
    }

    /// The objects of a kind in one namespace, ordered by name.
    pub fn in_namespace<K: Send + Sync + 'static>(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        let namespace = self.namespace(namespace).into_iter();
        namespace.flat_map(|namespace| namespace.objects.values().map(|entry| &entry.latest))
    }

    /// Takes over an object as the API server shows it. While another one is assumed, only a newer revision counts.
    pub fn set<K: Resource + Send + Sync + 'static>(&mut self, object: Arc<K>) {
        let (namespace, name) = (text(&object.meta().namespace), text(&object.meta().name));
        let objects = &mut self.namespace_mut::<K>(namespace).objects;
        if let Some(known) = objects.get_mut(&name)
            && !Arc::ptr_eq(&known.latest, &known.shown)
            && let (Some(known), Some(new)) = (revision(&*known.shown), revision(&*object))
            && new <= known
        {
            return;
        }
        objects.insert(name, Entry { latest: Arc::clone(&object), shown: object });
    }

    /// Keeps something under a name that is no object of the API, such as what a plug-in has booked; takes the place of what is
    /// there.
    pub fn put<K: Send + Sync + 'static>(&mut self, namespace: &str, name: &str, entry: Arc<K>) {
        let entry = Entry { latest: Arc::clone(&entry), shown: entry };
        self.namespace_mut::<K>(namespace.into()).objects.insert(name.into(), entry);
    }

    /// Tells later whether anything of a kind has changed. As long as it is kept, the first change costs a copy of the
    /// kind's names.
    #[must_use]
    pub fn version<K: Send + Sync + 'static>(&self) -> Version {
        self.note_read(TypeId::of::<K>());
        Version(self.tables.get(&TypeId::of::<K>()).cloned())
    }

    /// Forgets an object; tells whether it was there.
    pub fn remove<K: Send + Sync + 'static>(&mut self, namespace: &str, name: &str) -> bool {
        if self.get::<K>(namespace, name).is_none() {
            return false;
        }
        self.namespace_mut::<K>(namespace.into()).objects.remove(name);
        true
    }

    /// Shows everyone this object until the API server shows a newer revision than the one that it was made from.
    ///
    /// # Errors
    /// When it was made from another revision than the newest that is known.
    pub fn assume<K: Resource + Send + Sync + 'static>(&mut self, object: Arc<K>) -> Result<(), StaleError> {
        let (namespace, name) = (text(&object.meta().namespace), text(&object.meta().name));
        let entry = self.namespace_mut::<K>(namespace).objects.get_mut(&name).ok_or(StaleError)?;
        if entry.shown.meta().resource_version != object.meta().resource_version {
            return Err(StaleError);
        }
        entry.latest = object;
        Ok(())
    }

    /// Takes an assumption back: what the API server showed counts again.
    pub fn restore<K: Send + Sync + 'static>(&mut self, namespace: &str, name: &str) {
        if self.get::<K>(namespace, name).is_none() {
            return;
        }
        if let Some(entry) = self.namespace_mut::<K>(namespace.into()).objects.get_mut(name) {
            entry.latest = Arc::clone(&entry.shown);
        }
    }

    fn note_read(&self, kind: TypeId) {
        self.reads.note(|noted| {
            if !noted.kinds.contains(&kind) {
                noted.kinds.push(kind);
            }
        });
    }

    fn objects<K: Send + Sync + 'static>(&self) -> Option<&Objects<K>> {
        self.note_read(TypeId::of::<K>());
        self.tables.get(&TypeId::of::<K>())?.downcast_ref()
    }

    fn namespace<K: Send + Sync + 'static>(&self, namespace: &str) -> Option<&Namespaced<K>> {
        self.objects::<K>()?.namespaces.get(namespace).map(|namespace| &**namespace)
    }

    fn namespace_mut<K: Send + Sync + 'static>(&mut self, namespace: Arc<str>) -> &mut Namespaced<K> {
        self.edition += 1;
        match self.changed.iter_mut().find(|(kind, _)| *kind == TypeId::of::<K>()) {
            Some((_, last)) => *last = self.edition,
            None => self.changed.push((TypeId::of::<K>(), self.edition)),
        }
        let table = Arc::make_mut(&mut self.tables)
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Arc::new(Objects::<K> { namespaces: BTreeMap::new() }));
        if Arc::get_mut(table).is_none()
            && let Some(shared) = table.downcast_ref::<Objects<K>>()
        {
            *table = Arc::new(shared.clone());
        }
        // Both always hold: the table was made unshared above, and its key is the type that it is made of.
        let objects = Arc::get_mut(table).and_then(|table| table.downcast_mut::<Objects<K>>());
        let objects = objects.unwrap_or_else(|| unreachable!("a table holds what its key says"));
        let namespace = objects.namespaces.entry(namespace);
        Arc::make_mut(namespace.or_insert_with(|| Arc::new(Namespaced { objects: BTreeMap::new() })))
    }
}

/// A kind of objects, besides pods and nodes, that a plug-in looks at; see
/// [`QueueingHint::interests`](crate::plugin::QueueingHint::interests).
#[derive(Clone)]
pub struct Interest {
    kind: TypeId,
    resource: ResourceType,
    apply: fn(&mut Catalog, &Change) -> Option<ClusterEvent>,
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interest").field(&self.resource).finish()
    }
}

impl PartialEq for Interest {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Interest {
    /// In all objects of this kind.
    #[must_use]
    pub fn of<K>() -> Self
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
        K::Scope: 'static,
    {
        Self { kind: TypeId::of::<K>(), resource: ResourceType::of::<K>(), apply: apply::<K> }
    }

    pub(crate) fn kind(&self) -> TypeId {
        self.kind
    }

    /// The kind.
    #[must_use]
    pub fn resource(&self) -> &ResourceType {
        &self.resource
    }

    /// Takes a change over into the catalog, and gives the event that hints are asked about; `None` when the object can't
    /// be read as its type.
    pub fn apply(&self, catalog: &mut Catalog, change: &Change) -> Option<ClusterEvent> {
        (self.apply)(catalog, change)
    }
}

fn apply<K: Resource + DeserializeOwned + Send + Sync + 'static>(
    catalog: &mut Catalog,
    change: &Change,
) -> Option<ClusterEvent> {
    let old = change.old_as::<K>();
    let new = match change.new_as::<K>() {
        Some(new) => Some(new),
        None if change.new.is_none() => None,
        None => return None,
    };
    match &new {
        Some(new) => catalog.set(Arc::clone(new)),
        None => {
            let header = change.old.as_deref().map(Stored::header)?;
            catalog.remove::<K>(&header.namespace, &header.name);
        }
    }
    Some(ClusterEvent::Object(ObjectEvent::new(old, new)))
}

fn text(text: &Option<String>) -> Arc<str> {
    text.as_deref().unwrap_or_default().into()
}

fn revision<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};

    use super::*;
    use crate::volumes;

    fn claim(name: &str, revision: u64, volume: &str) -> Arc<PersistentVolumeClaim> {
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.namespace = Some("default".to_owned());
        claim.metadata.name = Some(name.to_owned());
        claim.metadata.resource_version = Some(revision.to_string());
        claim.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
        Arc::new(claim)
    }

    fn volume(catalog: &Catalog, name: &str) -> Option<String> {
        catalog.get::<PersistentVolumeClaim>("default", name)?.spec.clone()?.volume_name
    }

    #[test]
    fn kinds_and_namespaces_are_kept_apart() {
        let mut catalog = Catalog::default();
        catalog.set(claim("a", 1, "one"));
        catalog.set(claim("b", 1, "two"));
        assert_eq!(catalog.list::<PersistentVolumeClaim>().count(), 2);
        assert_eq!(catalog.in_namespace::<PersistentVolumeClaim>("default").count(), 2);
        assert_eq!(catalog.in_namespace::<PersistentVolumeClaim>("other").count(), 0);
        assert_eq!(catalog.list::<Namespace>().count(), 0);
        assert!(catalog.remove::<PersistentVolumeClaim>("default", "a"));
        assert!(!catalog.remove::<PersistentVolumeClaim>("default", "a"));
        assert_eq!(volume(&catalog, "a"), None);
    }

    #[test]
    fn a_version_is_another_one_after_a_change_of_its_kind() {
        let mut catalog = Catalog::default();
        let before = catalog.version::<PersistentVolumeClaim>();
        catalog.set(claim("a", 1, "one"));
        let after = catalog.version::<PersistentVolumeClaim>();
        assert_ne!(before, after);
        catalog.put("default", "a", Arc::new("booked"));
        assert_eq!(catalog.version::<PersistentVolumeClaim>(), after);
        assert_eq!(catalog.get::<&str>("default", "a").map(|kept| **kept), Some("booked"));
        catalog.remove::<PersistentVolumeClaim>("default", "a");
        assert_ne!(catalog.version::<PersistentVolumeClaim>(), after);
    }

    #[test]
    fn it_is_noted_which_kinds_are_looked_at() {
        let mut catalog = Catalog::default();
        catalog.set(claim("a", 1, "one"));
        let before = catalog.edition();
        let claims = TypeId::of::<PersistentVolumeClaim>();
        let (found, reads) =
            catalog.reads_of(|| catalog.get::<PersistentVolumeClaim>("default", "b").is_some());
        assert!(!found, "that there is none is something that was found out, too");
        assert_eq!(reads, ReadKinds { kinds: vec![claims], all: false });
        let (_, reads) = catalog.reads_of(|| catalog.edition());
        assert_eq!(reads, ReadKinds { kinds: Vec::new(), all: true });
        assert_eq!(catalog.clone().changed_since(before).count(), 0);
        catalog.put("default", "a", Arc::new("booked"));
        assert_eq!(catalog.changed_since(before).collect::<Vec<_>>(), [TypeId::of::<&str>()]);
    }

    #[test]
    fn a_clone_does_not_see_what_the_original_does() {
        let mut catalog = Catalog::default();
        catalog.set(claim("a", 1, "one"));
        let what_if = catalog.clone();
        catalog.set(claim("a", 2, "two"));
        assert_eq!((volume(&catalog, "a"), volume(&what_if, "a")), (Some("two".into()), Some("one".into())));
    }

    /// The rules of upstream's `util/assumecache`: an assumption is made on the newest revision, outlives repetitions of
    /// that revision, and ends with a newer one or with `restore`.
    #[test]
    fn an_assumed_object_wins_until_a_newer_one_is_shown() {
        let mut catalog = Catalog::default();
        assert_eq!(catalog.assume(claim("a", 1, "assumed")), Err(StaleError));
        catalog.set(claim("a", 5, ""));
        assert_eq!(catalog.assume(claim("a", 4, "assumed")), Err(StaleError));
        assert_eq!(catalog.assume(claim("a", 5, "assumed")), Ok(()));
        catalog.set(claim("a", 5, ""));
        assert_eq!(volume(&catalog, "a").as_deref(), Some("assumed"));
        let shown = catalog.shown::<PersistentVolumeClaim>("default", "a").unwrap();
        assert_eq!(volumes::volume_name(shown), "", "what is assumed is not what was shown");
        catalog.restore::<PersistentVolumeClaim>("default", "a");
        assert_eq!(volume(&catalog, "a").as_deref(), Some(""));
        assert_eq!(catalog.assume(claim("a", 5, "assumed")), Ok(()));
        catalog.set(claim("a", 6, "bound"));
        assert_eq!(volume(&catalog, "a").as_deref(), Some("bound"));
    }
}
