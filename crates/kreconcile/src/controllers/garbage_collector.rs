//! Objects whose owners are gone, and owners that wait for what they own.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use futures::stream;
use kcore::{Header, OwnerRef, Stored, kind};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::Index,
    change::Change,
    controller::{Controller, ControllerStats},
    controllers::Context,
    discovery,
    events::{EventRecorder, EventType, Regarding},
    informer::{Informer, Informers},
    key::ObjectKey,
    manager::{RunError, Runnable},
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::Trigger,
};

mod verdict;

use verdict::{FOREGROUND, ORPHAN, OwnerState, Verdict, verdict};

/// How many objects are worked on at once (`--concurrent-gc-syncs`).
pub const CONCURRENT_GC_MAX: usize = 20;
/// How often the server is asked for kinds that are new or gone (upstream's period of `Sync`).
pub const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// How many owners are remembered as absent (upstream's cache of absent owners).
pub const ABSENT_OWNERS_MAX: usize = 500;
/// How long the first look at changes waits for the first lists of all kinds.
const FIRST_LISTS_WAIT_MAX: Duration = Duration::from_secs(5);
/// How many items wait to be queued, before reading changes waits.
const WAITING_ITEMS_MAX: usize = 1024;

/// The controller `garbage-collector-controller`: deletes objects all of whose owners are gone (background deletion),
/// holds owners until what blocks their deletion is gone (finalizer `foregroundDeletion`), and takes owners out of what
/// they leave behind (finalizer `orphan`).
///
/// It watches the metadata of every kind that can be listed, watched and deleted, as discovery tells. Whether an owner is
/// there is first looked up in these caches; that it is *not* there only the server itself is believed.
pub fn garbage_collector(context: &Context) -> GarbageCollector {
    const NAME: &str = "garbage-collector-controller";
    let (sender, receiver) = mpsc::channel(WAITING_ITEMS_MAX);
    let collector = Arc::new(Collector {
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        sender,
        informers: context.informers().clone(),
        kinds: RwLock::default(),
        absent: Mutex::default(),
    });
    let items = stream::unfold(receiver, |mut receiver: mpsc::Receiver<ObjectKey>| async move {
        receiver.recv().await.map(|key| (key, receiver))
    });
    let controller =
        Controller::new(NAME, Arc::clone(&collector)).workers(CONCURRENT_GC_MAX).on(Trigger::stream(items));
    GarbageCollector { collector, controller }
}

/// Runs the garbage collection; made by [`garbage_collector`].
pub struct GarbageCollector {
    collector: Arc<Collector>,
    controller: Controller,
}

impl fmt::Debug for GarbageCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GarbageCollector").field("controller", &self.controller).finish_non_exhaustive()
    }
}

#[async_trait]
impl Runnable for GarbageCollector {
    fn name(&self) -> &str {
        self.controller.name()
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        let watching = self.watch_kinds();
        tokio::select! {
            () = self.controller.run(stop.clone()) => {}
            () = watching => {}
        }
        Ok(())
    }

    fn stats(&self) -> Vec<(Arc<str>, Arc<ControllerStats>)> {
        Runnable::stats(&self.controller)
    }
}

impl GarbageCollector {
    /// Keeps one reader per kind, and looks for new kinds from time to time.
    async fn watch_kinds(&self) {
        let mut readers = JoinSet::new();
        let mut running: HashMap<ResourceType, AbortHandle, RandomState> = HashMap::default();
        let mut discovery = discovery::Repeated::default();
        loop {
            match self.collector.find_kinds(&mut discovery).await {
                Err(error) => tracing::warn!(%error, "the server's kinds can't be found"),
                Ok(None) => {}
                Ok(Some((kinds, complete))) => {
                    // A group that does not answer is not one that is gone.
                    let gone = |kind: &ResourceType| complete && !kinds.contains(kind);
                    running.retain(|kind, reader| {
                        if gone(kind) {
                            reader.abort();
                            self.collector.forget(kind);
                        }
                        !gone(kind)
                    });
                    let new: Vec<ResourceType> =
                        kinds.into_iter().filter(|kind| !running.contains_key(kind)).collect();
                    let informers: Vec<_> = new.iter().map(|kind| self.collector.add(kind)).collect();
                    // An owner that is not known yet would have to be asked for. A kind that can't be read does not
                    // hold up the others for long.
                    let synced = async {
                        for informer in &informers {
                            informer.synced().await;
                        }
                    };
                    let _ = tokio::time::timeout(FIRST_LISTS_WAIT_MAX, synced).await;
                    for (kind, informer) in new.into_iter().zip(informers) {
                        let reader = readers.spawn(read(Arc::clone(&self.collector), informer));
                        running.insert(kind, reader);
                    }
                }
            }
            while readers.try_join_next().is_some() {}
            tokio::time::sleep(DISCOVERY_PERIOD).await;
        }
    }
}

/// Reads the changes of one kind, and queues what they concern.
async fn read(collector: Arc<Collector>, informer: Informer<()>) {
    let mut changes = informer.subscribe();
    while let Some(batch) = changes.next().await {
        for change in batch {
            for key in collector.concerned(informer.resource(), &change) {
                if collector.sender.send(key).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One object to look at. It travels as an [`ObjectKey`] whose name says kind, uid and name; no name of Kubernetes has a
/// slash in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    group: String,
    plural: String,
    uid: String,
    namespace: String,
    name: String,
}

impl Item {
    fn of(resource: &ResourceType, header: &Header) -> Self {
        Self {
            group: resource.group.clone(),
            plural: resource.plural.clone(),
            uid: header.uid.to_string(),
            namespace: header.namespace.to_string(),
            name: header.name.to_string(),
        }
    }

    fn key(&self) -> ObjectKey {
        let Self { group, plural, uid, namespace, name } = self;
        ObjectKey::new(&**namespace, format!("{group}/{plural}/{uid}/{name}"))
    }

    fn from_key(key: &ObjectKey) -> Option<Self> {
        let mut parts = key.name.splitn(4, '/').map(str::to_owned);
        let (group, plural, uid, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Self { group, plural, uid, namespace: key.namespace.to_string(), name })
    }
}

struct Collector {
    requests: Requests,
    recorder: EventRecorder,
    sender: mpsc::Sender<ObjectKey>,
    informers: Informers,
    kinds: RwLock<Vec<Informer<()>>>,
    /// The uids of owners that the server said are not there. A uid never comes back.
    absent: Mutex<HashSet<Box<str>, RandomState>>,
}

/// The kinds that can be collected, and whether those are all.
type Kinds = (HashSet<ResourceType, RandomState>, bool);

impl Collector {
    /// Every kind that can be collected, and whether all groups have answered; `None` if nothing has changed.
    async fn find_kinds(&self, discovery: &mut discovery::Repeated) -> Result<Option<Kinds>, kube::Error> {
        let Some(found) = discovery.discover(&self.requests).await? else { return Ok(None) };
        let complete = found.failures.is_empty();
        let collectable = found.resources.into_iter().filter(|found| {
            let events =
                found.resource.plural == "events" && matches!(&*found.resource.group, "" | "events.k8s.io");
            !events && ["list", "watch", "delete"].iter().all(|verb| found.can(verb))
        });
        Ok(Some((collectable.map(|found| found.resource).collect(), complete)))
    }

    fn add(&self, kind: &ResourceType) -> Informer<()> {
        let selection = Selection::all().metadata_only();
        let informer: Informer<()> = self.informers.dynamic(kind.clone(), selection);
        informer.add_index(Index::owner());
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        if !kinds.iter().any(|known| known.resource() == kind) {
            kinds.push(informer.clone());
        }
        informer
    }

    fn forget(&self, kind: &ResourceType) {
        self.kinds.write().unwrap_or_else(PoisonError::into_inner).retain(|known| known.resource() != kind);
        self.informers.forget(kind, &Selection::all().metadata_only());
    }

    fn kind(&self, matches: impl Fn(&ResourceType) -> bool) -> Option<Informer<()>> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().find(|known| matches(known.resource())).cloned()
    }

    fn kind_of_item(&self, item: &Item) -> Option<Informer<()>> {
        self.kind(|kind| kind.group == item.group && kind.plural == item.plural)
    }

    fn kind_of_owner(&self, owner: &OwnerRef) -> Option<Informer<()>> {
        let group = kind::split_api_version(&owner.api_version).0;
        self.kind(|kind| kind.group == group && kind.kind == *owner.kind)
    }

    /// Everything that names this uid as an owner.
    fn dependents(&self, uid: &str) -> Vec<(ResourceType, Arc<Stored>)> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        let of_kind = |kind: &Informer<()>| {
            let objects = kind.lister().by_index(Index::OWNER, uid);
            objects.into_iter().map(|object| (kind.resource().clone(), object)).collect::<Vec<_>>()
        };
        kinds.iter().flat_map(of_kind).collect()
    }

    /// What has to be looked at after a change.
    fn concerned(&self, resource: &ResourceType, change: &Change) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let gone = change.new.is_none() || change.is_recreated();
        if let Some(old) = change.old.as_deref().map(Stored::header) {
            if gone {
                let of = |(kind, object): (ResourceType, Arc<Stored>)| Item::of(&kind, object.header()).key();
                keys.extend(self.dependents(&old.uid).into_iter().map(of));
            }
            // Owners that wait for this object: it may no longer be in their way.
            let moved = change.new.as_deref().is_none_or(|new| new.header().owners != old.owners);
            if gone || moved {
                let waiting = old.owners.iter().filter_map(|owner| self.cached_owner(owner, &old.namespace));
                let waiting = waiting.filter(|(_, owner)| verdict::waits(owner.header()));
                keys.extend(waiting.map(|(kind, owner)| Item::of(&kind, owner.header()).key()));
            }
        }
        if let Some(new) = change.new.as_deref().map(Stored::header) {
            let goes = new.deletion.is_some()
                && new.finalizers.iter().any(|finalizer| matches!(&**finalizer, FOREGROUND | ORPHAN));
            let uncertain = || new.owners.iter().any(|owner| !self.is_solid(owner, &new.namespace));
            if goes || uncertain() {
                keys.push(Item::of(resource, new).key());
            }
        }
        keys
    }

    fn cached_owner(&self, owner: &OwnerRef, namespace: &str) -> Option<(ResourceType, Arc<Stored>)> {
        let kind = self.kind_of_owner(owner)?;
        let namespace = if kind.resource().namespaced { namespace } else { "" };
        let object = kind.lister().get(namespace, &owner.name)?;
        (object.header().uid == owner.uid).then(|| (kind.resource().clone(), object))
    }

    fn is_solid(&self, owner: &OwnerRef, namespace: &str) -> bool {
        self.cached_owner(owner, namespace).is_some_and(|(_, object)| !verdict::waits(object.header()))
    }

    /// Whether an owner is there. That it is not is asked of the server itself.
    async fn owner_state(&self, owner: &OwnerRef, namespace: &str) -> Result<OwnerState, ReconcileError> {
        if self.absent.lock().unwrap_or_else(PoisonError::into_inner).contains(&owner.uid) {
            return Ok(OwnerState::Absent);
        }
        let state = |header: &Header| {
            if verdict::waits(header) { OwnerState::Waiting } else { OwnerState::Solid }
        };
        if let Some((_, object)) = self.cached_owner(owner, namespace) {
            return Ok(state(object.header()));
        }
        let Some(kind) = self.kind_of_owner(owner) else {
            let error =
                format!("no matches for kind \"{}\" in version \"{}\"", owner.kind, owner.api_version);
            return Err(ReconcileError::other(error));
        };
        let resource = kind.resource();
        if resource.namespaced && namespace.is_empty() {
            let error = "cluster-scoped objects cannot refer to namespaced owners";
            return Err(ReconcileError::terminal(error));
        }
        let namespace = if resource.namespaced { namespace } else { "" };
        match self.requests.get::<Value>(&resource.path(namespace, &owner.name)).await {
            Ok(object) => {
                let header = Header::of(&object);
                if header.uid == owner.uid {
                    return Ok(state(&header));
                }
            }
            Err(error) if request::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() >= ABSENT_OWNERS_MAX {
            absent.clear();
        }
        absent.insert(owner.uid.clone());
        Ok(OwnerState::Absent)
    }

    /// Records the event `OwnerRefInvalidNamespace` if an owner that is not in the dependent's namespace is in another one: it does
    /// not count there, and people will want to know why the dependent goes (Kubernetes' page "Owners and Dependents").
    ///
    /// It is looked for by its name in every namespace. One that is known by another name or kind than the reference gives is not found.
    fn tell_of_foreign(&self, resource: &ResourceType, dependent: &Stored, owner: &OwnerRef) {
        let namespaces = self.kind(|kind| kind.group.is_empty() && kind.plural == "namespaces");
        let Some((kind, namespaces)) = self.kind_of_owner(owner).zip(namespaces) else { return };
        if !kind.resource().namespaced {
            return;
        }
        let is_there = |namespace: &Stored| {
            let found = kind.lister().get(&namespace.header().name, &owner.name);
            found.is_some_and(|found| found.header().uid == owner.uid)
        };
        if !namespaces.lister().list().iter().any(|namespace| is_there(namespace)) {
            return;
        }
        let namespace = &dependent.header().namespace;
        let message = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        let about = Regarding::of(dependent, resource);
        self.recorder.record(&about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    async fn look_at(&self, item: &Item) -> Result<Action, ReconcileError> {
        let Some(kind) = self.kind_of_item(item) else { return Ok(Action::Done) };
        let path = kind.resource().path(&item.namespace, &item.name);
        let latest = match self.requests.get::<Value>(&path).await {
            Ok(latest) => latest,
            Err(error) if request::is_not_found(&error) => return Ok(Action::Done),
            Err(error) => return Err(error.into()),
        };
        let object = Stored::from_value(latest).map_err(ReconcileError::other)?;
        let header = object.header();
        if *header.uid != *item.uid {
            return Ok(Action::Done);
        }
        let mut owners = Vec::with_capacity(header.owners.len());
        if header.deletion.is_none() {
            for owner in &header.owners {
                let state = self.owner_state(owner, &header.namespace).await;
                if !matches!(state, Ok(OwnerState::Solid | OwnerState::Waiting)) {
                    self.tell_of_foreign(kind.resource(), &object, owner);
                }
                owners.push(state?);
            }
        }
        let dependents = self.dependents(&item.uid);
        let headers: Vec<&Header> = dependents.iter().map(|(_, object)| object.header()).collect();
        let verdict = verdict(header, &owners, &headers);
        self.carry_out(&path, &object, &dependents, verdict).await
    }

    async fn carry_out(
        &self,
        path: &str,
        object: &Stored,
        dependents: &[(ResourceType, Arc<Stored>)],
        verdict: Verdict,
    ) -> Result<Action, ReconcileError> {
        match verdict {
            Verdict::Keep => {}
            Verdict::DropOwners(uids) => self.drop_owners(path, object, &uids).await?,
            Verdict::Unblock(finalizer) => self.drop_finalizer(path, object, finalizer).await?,
            Verdict::Delete { propagation, unblock_owners } => {
                if unblock_owners {
                    self.unblock_owners(path, object).await?;
                }
                let revision = (!unblock_owners).then(|| object.revision());
                let uid = Some(object.header().uid.to_string());
                let how = DeleteHow { uid, revision, propagation: Some(propagation), grace_seconds: None };
                let deleted = self.requests.delete(path, &how).await.map(drop);
                ignore_not_found(deleted)?;
            }
            Verdict::DeleteDependents => {
                for (kind, dependent) in dependents {
                    if dependent.header().deletion.is_none() {
                        // A receiver that is gone means that the collector stops.
                        let _ = self.sender.send(Item::of(kind, dependent.header()).key()).await;
                    }
                }
            }
            Verdict::Orphan => {
                let uid = object.header().uid.to_string();
                for (kind, dependent) in dependents {
                    let header = dependent.header();
                    let path = kind.path(&header.namespace, &header.name);
                    self.drop_owners(&path, dependent, std::slice::from_ref(&uid)).await?;
                }
                self.drop_finalizer(path, object, ORPHAN).await?;
            }
        }
        Ok(Action::Done)
    }

    async fn drop_owners(&self, path: &str, object: &Stored, uids: &[String]) -> Result<(), ReconcileError> {
        self.patch_owners(path, object, |owners| {
            owners.retain(|owner| !uids.iter().any(|uid| owner["uid"] == **uid));
        })
        .await
    }

    async fn unblock_owners(&self, path: &str, object: &Stored) -> Result<(), ReconcileError> {
        self.patch_owners(path, object, |owners| {
            for owner in owners {
                if owner["blockOwnerDeletion"] == true {
                    owner["blockOwnerDeletion"] = false.into();
                }
            }
        })
        .await
    }

    async fn patch_owners(
        &self,
        path: &str,
        object: &Stored,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<(), ReconcileError> {
        let value = object.value()?;
        let old = value["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let mut new = old.clone();
        change(&mut new);
        if old == new {
            return Ok(());
        }
        let owners = if new.is_empty() { Value::Null } else { Value::Array(new) };
        self.patch(path, object, "ownerReferences", owners).await
    }

    async fn drop_finalizer(
        &self,
        path: &str,
        object: &Stored,
        finalizer: &str,
    ) -> Result<(), ReconcileError> {
        let finalizers = object.header().finalizers.iter().filter(|known| ***known != *finalizer);
        let left: Vec<Value> = finalizers.map(|known| Value::from(&**known)).collect();
        let left = if left.is_empty() { Value::Null } else { Value::Array(left) };
        self.patch(path, object, "finalizers", left).await
    }

    /// Writes one field of the metadata of exactly this revision of an object.
    async fn patch(
        &self,
        path: &str,
        object: &Stored,
        field: &str,
        value: Value,
    ) -> Result<(), ReconcileError> {
        let mut patch = json!({"metadata": {
            "uid": &*object.header().uid,
            "resourceVersion": object.revision().to_string(),
        }});
        patch["metadata"][field] = value;
        let written = self.requests.patch::<Written>(path, PatchKind::Merge, &patch).await;
        Ok(ignore_not_found(written.map(drop))?)
    }
}

fn ignore_not_found(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if request::is_not_found(&error) => Ok(()),
        result => result,
    }
}

#[async_trait]
impl Reconciler for Collector {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        match Item::from_key(key) {
            Some(item) => self.look_at(&item).await,
            None => Ok(Action::Done),
        }
    }
}
