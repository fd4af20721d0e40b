//! Shared informers: one list and watch per kind and selection, however many read it.

use std::{
    collections::HashMap,
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use ahash::RandomState;
use kcore::{Stored, selector::LabelSelector};
use kube::Client;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    cache::{Cache, Index},
    change::{Change, Pending, Subscription},
    reflector,
    resource::{ResourceType, Selection},
};

/// Makes informers and shares them: the same kind and [`Selection`] give the same one.
///
/// Each component has its own, from its own [`Client`]: what it may see is decided by the server, by that client's
/// identity. An informer's list and watch start when it is first asked for, so that must happen inside a tokio runtime.
/// When the last clone of the factory is dropped its tasks end; caches that are still held then stand still.
///
/// ```no_run
/// # async fn example(client: kube::Client) {
/// use k8s_openapi::api::core::v1::Pod;
/// use kreconcile::{Index, Informers, Selection};
///
/// let informers = Informers::new(client);
/// let pods = informers.of::<Pod>(Selection::all().labels("app=web"));
/// pods.add_index(Index::controller());
/// pods.synced().await;
/// for pod in pods.in_namespace("shop") {
///     println!("{:?}", pod.metadata.name);
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    informers: Mutex<HashMap<(ResourceType, Selection), Arc<Shared>, RandomState>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _stop_on_drop: DropGuard,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informers").field("stopped", &self.stop.is_cancelled()).finish_non_exhaustive()
    }
}

impl Informers {
    /// A factory whose informers read through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let stop = CancellationToken::new();
        let inner = Inner {
            client,
            informers: Mutex::default(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The client that the informers read through.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The informer of a kind that is known as a Rust type.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn of<K>(&self, selection: Selection) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()>,
        K::Scope: 'static,
    {
        self.dynamic(ResourceType::of::<K>(), selection)
    }

    /// The informer of a kind that is known at run time only. `K` is the type that its objects are decoded to on
    /// demand, such as [`kube::api::DynamicObject`] or [`serde_json::Value`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn dynamic<K>(&self, resource: ResourceType, selection: Selection) -> Informer<K> {
        let mut informers = self.inner.informers.lock().unwrap_or_else(PoisonError::into_inner);
        if selection.metadata_only {
            let whole = Selection { metadata_only: false, ..selection.clone() };
            if let Some(shared) = informers.get(&(resource.clone(), whole)) {
                return Informer::new(Arc::clone(shared));
            }
        }
        let shared = informers.entry((resource.clone(), selection.clone())).or_insert_with(|| {
            let shared = Arc::new(Shared::new(resource, selection, self.inner.stop.child_token()));
            let run = reflector::run(Arc::clone(&shared), self.inner.client.clone());
            self.inner.tasks.spawn(run);
            shared
        });
        Informer::new(Arc::clone(shared))
    }

    /// Ends the list and watch of one kind and forgets its informer, as when a custom resource definition was deleted.
    pub fn forget(&self, resource: &ResourceType, selection: &Selection) {
        let mut informers = self.inner.informers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = informers.remove(&(resource.clone(), selection.clone())) {
            shared.stop.cancel();
        }
    }

    /// Waits until every informer that was asked for so far has its first list.
    pub async fn synced(&self) {
        let all: Vec<_> = {
            let informers = self.inner.informers.lock().unwrap_or_else(PoisonError::into_inner);
            informers.values().cloned().collect()
        };
        for shared in all {
            shared.synced().await;
        }
    }

    /// Ends all lists and watches and waits until they have ended.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// What the reflector writes and the readers read.
pub(crate) struct Shared {
    pub(crate) resource: ResourceType,
    pub(crate) selection: Selection,
    pub(crate) stop: CancellationToken,
    cache: RwLock<Cache>,
    /// Taken before `cache`, and held while the readers are told, so that a new reader's first view and its first
    /// change fit together.
    readers: Mutex<Vec<std::sync::Weak<Pending>>>,
    synced: watch::Sender<bool>,
    /// Whether the server has said, since the last list, that it does not have such a kind.
    absent: watch::Sender<bool>,
    revision: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(resource: ResourceType, selection: Selection, stop: CancellationToken) -> Self {
        Self {
            resource,
            selection,
            stop,
            cache: RwLock::new(Cache::new()),
            readers: Mutex::default(),
            synced: watch::Sender::new(false),
            absent: watch::Sender::new(false),
            revision: watch::Sender::new(0),
        }
    }

    fn cache(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the cache and tells the readers.
    fn update(&self, revision: u64, change: impl FnOnce(&mut Cache) -> Vec<Change>) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = change(&mut self.cache.write().unwrap_or_else(PoisonError::into_inner));
        readers.retain(|reader| match reader.upgrade() {
            Some(reader) => {
                reader.push(&changes);
                true
            }
            None => false,
        });
        drop(readers);
        if revision > 0 {
            self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        }
    }

    /// A batch of steps of a watch, in order, which leads to `revision`.
    pub(crate) fn apply(&self, steps: Vec<Step>, revision: u64) {
        self.update(revision, |cache| {
            let apply = |step| match step {
                Step::Put(object) => cache.put(object),
                Step::Remove(object) => cache.remove(&object.header().namespace, &object.header().name),
            };
            steps.into_iter().filter_map(apply).collect()
        });
    }

    /// A whole new state, as of `revision`.
    pub(crate) fn replace(&self, objects: Vec<Arc<Stored>>, revision: u64) {
        self.update(revision, |cache| cache.replace(objects));
        self.absent.send_replace(false);
        self.synced.send_replace(true);
    }

    /// The server does not have such a kind. Whether that is news.
    pub(crate) fn is_absent(&self) -> bool {
        !self.absent.send_replace(true)
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.stop.cancel();
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for reader in readers.drain(..).filter_map(|reader| reader.upgrade()) {
            reader.close();
        }
    }

    fn subscribe(&self) -> Subscription {
        let pending = Arc::new(Pending::default());
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let first: Vec<Change> = {
            let cache = self.cache();
            cache.iter().map(|object| Change { old: None, new: Some(Arc::clone(object)) }).collect()
        };
        pending.push(&first);
        if self.stop.is_cancelled() {
            pending.close();
        } else {
            readers.push(Arc::downgrade(&pending));
        }
        Subscription { pending }
    }

    async fn synced(&self) -> bool {
        let mut synced = self.synced.subscribe();
        tokio::select! {
            biased;
            done = synced.wait_for(|synced| *synced) => done.is_ok(),
            () = self.stop.cancelled() => false,
        }
    }

    async fn settled(&self) -> bool {
        let mut absent = self.absent.subscribe();
        tokio::select! {
            biased;
            synced = self.synced() => synced,
            _ = absent.wait_for(|absent| *absent) => false,
        }
    }
}

/// One step of a watch.
pub(crate) enum Step {
    Put(Arc<Stored>),
    Remove(Arc<Stored>),
}

/// A live copy of the objects of one kind, kept by one list and watch that all users share.
///
/// Reading never waits and never asks the server; what is read is as of a moment ago. Lists have no particular order.
/// Cloning gives another handle on the same copy. `K` is what the typed methods decode to; each object is decoded at
/// most once, on first use. [`lister`](Self::lister) reads without decoding.
pub struct Informer<K> {
    lister: Lister,
    decodes_to: PhantomData<fn() -> K>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.lister.shared))
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Informer").field(&self.lister).finish()
    }
}

impl<K> Informer<K> {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { lister: Lister { shared }, decodes_to: PhantomData }
    }

    /// The same informer for those who don't decode.
    #[must_use]
    pub fn untyped(&self) -> Informer<()> {
        Informer::new(Arc::clone(&self.lister.shared))
    }

    /// The kind whose objects are held.
    #[must_use]
    pub fn resource(&self) -> &ResourceType {
        &self.lister.shared.resource
    }

    /// Reads the objects as they came, without decoding them.
    #[must_use]
    pub fn lister(&self) -> &Lister {
        &self.lister
    }

    /// Adds an index. It can be used at once, and covers what is there already.
    pub fn add_index(&self, index: Index) {
        self.lister.shared.cache.write().unwrap_or_else(PoisonError::into_inner).add_index(index);
    }

    /// Waits for the first list; `false` when the informer stopped before that.
    pub async fn synced(&self) -> bool {
        self.lister.shared.synced().await
    }

    /// Waits for the first list, or until the server says that it does not have such a kind (404), as before a custom resource
    /// definition is made. Whether there was a list; without one the informer goes on trying, at least every
    /// [`RETRY_MAX`](crate::reflector::RETRY_MAX), and has the objects when the kind is there.
    pub async fn settled(&self) -> bool {
        self.lister.shared.settled().await
    }

    /// Whether the first list has arrived.
    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.lister.shared.synced.borrow()
    }

    /// The revision up to which every change has been seen; 0 before the first list.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.lister.revision()
    }

    /// Waits until every change up to `revision` has been seen: read your own writes. `false` when the informer stopped
    /// before that.
    pub async fn reached(&self, revision: u64) -> bool {
        self.lister.reached(revision).await
    }

    /// The changes from now on; first, everything that is there.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.lister.shared.subscribe()
    }
}

impl<K: DeserializeOwned + Send + Sync + 'static> Informer<K> {
    /// The object with this namespace (empty for cluster-scoped kinds) and name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.lister.get(namespace, name).as_deref().and_then(decode)
    }

    /// All objects.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        decode_all(self.lister.list())
    }

    /// All objects in a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        decode_all(self.lister.in_namespace(namespace))
    }

    /// The objects in a namespace (all namespaces when empty) whose labels match.
    #[must_use]
    pub fn select(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<K>> {
        decode_all(self.lister.select(namespace, selector))
    }

    /// The objects under a value of an index; empty when there is no such index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        decode_all(self.lister.by_index(index, value))
    }
}

/// Reads an informer's objects as they came: header, revision, bytes.
#[derive(Clone)]
pub struct Lister {
    shared: Arc<Shared>,
}

impl fmt::Debug for Lister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lister")
            .field("resource", &self.shared.resource.plural)
            .field("selection", &self.shared.selection)
            .field("objects", &self.len())
            .finish()
    }
}

impl Lister {
    /// The object with this namespace (empty for cluster-scoped kinds) and name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.shared.cache().get(namespace, name).cloned()
    }

    /// All objects.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Stored>> {
        self.shared.cache().iter().cloned().collect()
    }

    /// All objects in a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Stored>> {
        self.by_index(Index::NAMESPACE, namespace)
    }

    /// The objects in a namespace (all namespaces when empty) whose labels match.
    #[must_use]
    pub fn select(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Stored>> {
        let matches = |object: &&Arc<Stored>| selector.matches(&object.header().labels);
        let cache = self.shared.cache();
        if namespace.is_empty() {
            return cache.iter().filter(matches).cloned().collect();
        }
        cache.by_index(Index::NAMESPACE, namespace).into_iter().flatten().filter(matches).cloned().collect()
    }

    /// The objects under a value of an index; empty when there is no such index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<Stored>> {
        self.shared.cache().by_index(index, value).into_iter().flatten().cloned().collect()
    }

    /// How many objects there are under a value of an index.
    #[must_use]
    pub fn count_by_index(&self, index: &str, value: &str) -> usize {
        self.shared.cache().by_index(index, value).into_iter().flatten().count()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.cache().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision up to which every change has been seen; 0 before the first list.
    #[must_use]
    pub fn revision(&self) -> u64 {
        *self.shared.revision.borrow()
    }

    /// Waits until every change up to `revision` has been seen; `false` when the informer stopped before that.
    pub async fn reached(&self, revision: u64) -> bool {
        let mut seen = self.shared.revision.subscribe();
        tokio::select! {
            biased;
            done = seen.wait_for(|seen| *seen >= revision) => done.is_ok(),
            () = self.shared.stop.cancelled() => false,
        }
    }
}

/// An object as its Rust type. The server has checked what it stores, so one that does not fit is a fault between the
/// two; it is reported and left out rather than stopping every reader.
pub(crate) fn decode<K: DeserializeOwned + Send + Sync + 'static>(object: &Stored) -> Option<Arc<K>> {
    let header = object.header();
    object
        .typed::<K>()
        .inspect_err(|error| {
            tracing::error!(%error, namespace = %header.namespace, name = %header.name, "object does not fit its type");
        })
        .ok()
}

fn decode_all<K: DeserializeOwned + Send + Sync + 'static>(objects: Vec<Arc<Stored>>) -> Vec<Arc<K>> {
    objects.iter().filter_map(|object| decode(object)).collect()
}
