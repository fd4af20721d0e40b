//! What makes a controller look at an object again.

use std::{fmt, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use kcore::{Stored, kind};
use tokio::sync::Mutex;

use crate::{change::Change, informer::Informer, key::ObjectKey, queue::WorkQueue, resource::ResourceType};

/// How much lower than a change the priority is of what is there at the start (controller-runtime's `LowPriority`): after a
/// restart, what somebody does now is not kept waiting by everything that has been there for long.
pub const INITIAL_PRIORITY: i32 = -100;

/// Gives the keys that a change concerns.
pub type MapFn = Arc<dyn Fn(&Change, &mut Vec<ObjectKey>) + Send + Sync>;
/// Decides whether a change counts.
pub type PredicateFn = Arc<dyn Fn(&Change) -> bool + Send + Sync>;
/// Keys from outside of the API.
pub type KeyStream = Pin<Box<dyn Stream<Item = ObjectKey> + Send>>;

/// Which keys to reconcile when a watched object changes.
#[derive(Clone)]
pub enum MapTo {
    /// The object itself.
    Itself,
    /// The object's managing controller, if that is of this kind: the pods of a ReplicaSet. When the controller
    /// reference changes, both the old and the new one.
    Controller(ResourceType),
    /// Every owner of this kind, managing or not.
    Owners(ResourceType),
    /// The object in the same namespace that the value of this label names.
    Label(&'static str),
    /// What the function says. It is called with both sides of the change and must not block.
    Keys(MapFn),
}

impl MapTo {
    /// What the closure says about one side of a change; it is called for the old and for the new one.
    pub fn each(map: impl Fn(&Arc<Stored>, &mut Vec<ObjectKey>) + Send + Sync + 'static) -> Self {
        Self::Keys(Arc::new(move |change, keys| {
            for side in change.sides() {
                map(side, keys);
            }
        }))
    }

    /// Always this key: for controllers that look at everything together.
    pub fn one(key: ObjectKey) -> Self {
        Self::Keys(Arc::new(move |_, keys| keys.push(key.clone())))
    }

    /// The keys that a change concerns, appended to `keys`; there may be duplicates.
    pub fn keys(&self, change: &Change, keys: &mut Vec<ObjectKey>) {
        match self {
            Self::Itself => keys.push(change.key()),
            Self::Controller(resource) => map_owners(change, resource, true, keys),
            Self::Owners(resource) => map_owners(change, resource, false, keys),
            Self::Label(label) => keys.extend(change.sides().filter_map(|side| {
                let header = side.header();
                header.labels.get(label).map(|name| ObjectKey::new(&*header.namespace, name))
            })),
            Self::Keys(map) => map(change, keys),
        }
    }
}

fn map_owners(change: &Change, resource: &ResourceType, controllers: bool, keys: &mut Vec<ObjectKey>) {
    for side in change.sides() {
        let header = side.header();
        for owner in &header.owners {
            let group = kind::split_api_version(&owner.api_version).0;
            let wanted = !controllers || owner.controller == Some(true);
            if wanted && *owner.kind == *resource.kind && group == resource.group {
                let namespace = if resource.namespaced { &*header.namespace } else { "" };
                keys.push(ObjectKey::new(namespace, &*owner.name));
            }
        }
    }
}

impl fmt::Debug for MapTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("Itself"),
            Self::Controller(resource) => f.debug_tuple("Controller").field(&resource.kind).finish(),
            Self::Owners(resource) => f.debug_tuple("Owners").field(&resource.kind).finish(),
            Self::Label(label) => f.debug_tuple("Label").field(label).finish(),
            Self::Keys(_) => f.write_str("Keys"),
        }
    }
}

/// Which changes count.
#[derive(Clone)]
pub enum Predicate {
    /// Additions, deletions, and updates that change the generation: not those of the status.
    GenerationChanged,
    /// Additions, deletions, and updates that change the labels.
    LabelsChanged,
    /// Additions and deletions only.
    Membership,
    /// What the function says. It must not block.
    If(PredicateFn),
}

impl Predicate {
    /// What the closure says.
    pub fn when(predicate: impl Fn(&Change) -> bool + Send + Sync + 'static) -> Self {
        Self::If(Arc::new(predicate))
    }

    /// Whether the change counts.
    #[must_use]
    pub fn holds(&self, change: &Change) -> bool {
        let (Some(old), Some(new)) = (&change.old, &change.new) else {
            return if let Self::If(predicate) = self { predicate(change) } else { true };
        };
        let (old, new) = (old.header(), new.header());
        match self {
            Self::If(predicate) => predicate(change),
            _ if old.uid != new.uid || old.deletion != new.deletion => true,
            Self::GenerationChanged => old.generation != new.generation,
            Self::LabelsChanged => old.labels != new.labels,
            Self::Membership => false,
        }
    }
}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GenerationChanged => "GenerationChanged",
            Self::LabelsChanged => "LabelsChanged",
            Self::Membership => "Membership",
            Self::If(_) => "If",
        })
    }
}

/// One reason to reconcile: a source of changes, and the keys that they lead to.
///
/// ```no_run
/// # fn example(informers: &kreconcile::Informers) {
/// use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
/// use kreconcile::{MapTo, Predicate, ResourceType, Selection, Trigger};
///
/// let sets = informers.of::<ReplicaSet>(Selection::all());
/// let pods = informers.of::<Pod>(Selection::all());
/// let triggers = [
///     Trigger::new(&sets, MapTo::Itself).when(Predicate::GenerationChanged),
///     Trigger::new(&pods, MapTo::Controller(ResourceType::of::<ReplicaSet>())),
/// ];
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Trigger {
    source: Source,
    predicates: Vec<Predicate>,
    priority: i32,
}

#[derive(Clone)]
enum Source {
    Watch(Informer<()>, MapTo),
    /// Kept in a lock, so that a controller that is started again goes on with the same stream.
    Stream(Arc<Mutex<KeyStream>>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watch(informer, map) => {
                f.debug_tuple("Watch").field(&informer.resource().kind).field(map).finish()
            }
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Trigger {
    /// Reconciles `map`'s keys when an object of `informer` changes, and for every object that is there at the start.
    #[must_use]
    pub fn new<K>(informer: &Informer<K>, map: MapTo) -> Self {
        Self { source: Source::Watch(informer.untyped(), map), predicates: Vec::new(), priority: 0 }
    }

    /// Reconciles each key that the stream gives: for what happens outside of the API.
    #[must_use]
    pub fn stream(keys: impl Stream<Item = ObjectKey> + Send + 'static) -> Self {
        let keys: KeyStream = Box::pin(keys);
        Self { source: Source::Stream(Arc::new(Mutex::new(keys))), predicates: Vec::new(), priority: 0 }
    }

    /// Only changes for which this holds count; with several, all must. Keys from a stream always count.
    #[must_use]
    pub fn when(mut self, predicate: Predicate) -> Self {
        self.predicates.push(predicate);
        self
    }

    /// The priority that the keys are queued with; 0 by default, higher is earlier. Those of objects that are there at the start
    /// have one that is lower by [`INITIAL_PRIORITY`].
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Waits until everything that is there at the start is known; `false` when it never will be.
    pub(crate) async fn synced(&self) -> bool {
        match &self.source {
            Source::Watch(informer, _) => informer.synced().await,
            Source::Stream(_) => true,
        }
    }

    /// Fills the queue until the source ends.
    pub(crate) async fn feed(&self, queue: &WorkQueue) {
        match &self.source {
            Source::Stream(stream) => {
                let mut stream = stream.lock().await;
                while let Some(key) = stream.next().await {
                    queue.add_with_priority(key, self.priority);
                }
            }
            Source::Watch(informer, map) => {
                let mut changes = informer.subscribe();
                // The first batch is what is there. The controller has waited for the list, so it is all of it.
                let first = changes.try_next();
                queue.add_all(self.keys_of(map, &first), self.priority.saturating_add(INITIAL_PRIORITY));
                while let Some(batch) = changes.next().await {
                    queue.add_all(self.keys_of(map, &batch), self.priority);
                }
            }
        }
    }

    fn keys_of(&self, map: &MapTo, batch: &[Change]) -> Vec<ObjectKey> {
        let mut keys = Vec::with_capacity(batch.len());
        for change in batch {
            if self.predicates.iter().all(|predicate| predicate.holds(change)) {
                map.keys(change, &mut keys);
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::{Value, json};

    use super::*;

    fn stored(metadata: &Value) -> Option<Arc<Stored>> {
        let mut object = json!({"metadata": metadata});
        object["metadata"]["namespace"] = "n".into();
        object["metadata"]["name"] = "pod".into();
        object["metadata"]["resourceVersion"] = "1".into();
        (!metadata.is_null()).then(|| Arc::new(Stored::from_value(object).unwrap()))
    }

    fn owner(kind: &str, name: &str, controller: bool) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": controller})
    }

    #[test]
    fn changes_map_to_keys() {
        let sets = ResourceType::of::<ReplicaSet>();
        let owned = |name: &str| json!({"ownerReferences": [owner("ReplicaSet", name, true)]});
        let other = json!({"ownerReferences": [owner("Job", "j", true), owner("ReplicaSet", "r", false)]});
        let labelled = json!({"labels": {"service": "web"}});
        let cases = [
            (MapTo::Itself, json!(null), json!({}), vec!["n/pod"]),
            (MapTo::Controller(sets.clone()), json!(null), owned("a"), vec!["n/a"]),
            (MapTo::Controller(sets.clone()), owned("a"), owned("b"), vec!["n/a", "n/b"]),
            (MapTo::Controller(sets.clone()), json!(null), other.clone(), vec![]),
            (MapTo::Owners(sets), json!(null), other, vec!["n/r"]),
            (MapTo::Label("service"), labelled, json!(null), vec!["n/web"]),
        ];
        for (map, old, new, expected) in cases {
            let mut keys = Vec::new();
            map.keys(&Change { old: stored(&old), new: stored(&new) }, &mut keys);
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            assert_eq!(keys, expected, "{map:?} {old} {new}");
        }
    }

    #[test]
    fn predicates_choose_updates() {
        let cases = [
            (Predicate::GenerationChanged, json!({"generation": 1}), json!({"generation": 1}), false),
            (Predicate::GenerationChanged, json!({"generation": 1}), json!({"generation": 2}), true),
            (Predicate::GenerationChanged, json!({}), json!({"deletionTimestamp": "t"}), true),
            (Predicate::GenerationChanged, json!(null), json!({}), true),
            (Predicate::LabelsChanged, json!({"labels": {"a": "b"}}), json!({"labels": {"a": "b"}}), false),
            (Predicate::LabelsChanged, json!({}), json!({"labels": {"a": "b"}}), true),
            (Predicate::Membership, json!({}), json!({"labels": {"a": "b"}}), false),
            (Predicate::Membership, json!({"uid": "1"}), json!({"uid": "2"}), true),
            (Predicate::when(|change| change.new.is_none()), json!({}), json!(null), true),
        ];
        for (predicate, old, new, expected) in cases {
            let change = Change { old: stored(&old), new: stored(&new) };
            assert_eq!(predicate.holds(&change), expected, "{predicate:?} {old} {new}");
        }
    }
}
