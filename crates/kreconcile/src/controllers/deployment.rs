//! Deployments: one ReplicaSet per template, and the way from one to the next.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1 as meta,
};
use kcore::{Clock, Stored, selector::LabelSelector};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    cache::Index,
    change::Change,
    controller::Controller,
    controllers::{
        Context,
        claim::{self, Owner, controller_reference},
        doubts::{Doubts, Live, live_objects},
        pod_state,
        pod_writes::error_message,
        replica_set::{PODS_BY_OWNER, pods_by_owner},
    },
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod annotations;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use rollout::{Decision, HASH_LABEL, Set, View};

/// The controller `deployment-controller`: makes a ReplicaSet for each template, moves replicas from old ones to the
/// newest (RollingUpdate within `maxSurge` and `maxUnavailable`, or Recreate), scales in proportion, keeps revisions, and
/// watches the progress deadline.
///
/// The pod template hash is FNV-1a of the template's JSON, not of Go's print of the structure, so the names of sets
/// differ from those that upstream would give; everything else is the same.
pub fn deployment(context: &Context) -> Controller {
    const NAME: &str = "deployment-controller";
    let deployments = context.informers().of::<Deployment>(Selection::all());
    let sets = context.informers().of::<ReplicaSet>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    sets.add_index(Index::controller());
    sets.add_index(orphans());
    pods.add_index(pods_by_owner());
    let reconciler = Deployments {
        resource: ResourceType::of::<Deployment>(),
        set_resource: ResourceType::of::<ReplicaSet>(),
        sized: Expectations::new(sets.lister().clone()),
        written: Expectations::new(deployments.lister().clone()),
        doubts: Doubts::default(),
        alone_at: Instant::now() + context.settings.predecessor_grace,
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        deployments: deployments.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
    };
    let for_pods = {
        let (deployments, sets) = (deployments.clone(), sets.clone());
        MapTo::Keys(Arc::new(move |change, keys| recreated_by(&deployments, &sets, change, keys)))
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&deployments, MapTo::Itself))
        .on(Trigger::new(
            &sets,
            claim::owners(&deployments, |it| pod_state::label_selector(&it.spec.selector)),
        ))
        .on(Trigger::new(&pods, for_pods))
}

const ORPHANS: &str = "orphans";

/// Objects without a controller, by namespace.
fn orphans() -> Index {
    Index::new(ORPHANS, |object, emit| {
        if object.header().controller().is_none() {
            emit(&object.header().namespace);
        }
    })
}

/// A Deployment that waits for its old pods to go is told when one has.
fn recreated_by(
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    change: &Change,
    keys: &mut Vec<ObjectKey>,
) {
    let gone = change.new.is_none() || change.is_recreated();
    let ended = || {
        let ended = |pod: Option<Arc<Pod>>| pod.is_some_and(|pod| pod_state::is_terminal(&pod));
        ended(change.new_as()) && !ended(change.old_as())
    };
    let Some(owner) = change.old.as_deref().and_then(|pod| pod.header().controller()) else { return };
    if &*owner.kind != "ReplicaSet" || !(gone || ended()) {
        return;
    }
    let namespace = &change.header().namespace;
    let Some(set) = sets.lister().get(namespace, &owner.name) else { return };
    let Some(parent) = set.header().controller() else { return };
    let waits = deployments.get(namespace, &parent.name).is_some_and(|deployment| {
        let strategy = deployment.spec.strategy.as_ref();
        strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
    });
    if waits {
        keys.push(ObjectKey::new(&**namespace, &*parent.name));
    }
}

struct Deployments {
    resource: ResourceType,
    set_resource: ResourceType,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    /// Sets that were made, sized or deleted and are not shown so yet.
    sized: Expectations,
    /// Deployments that were written and are not shown so yet.
    written: Expectations,
    /// Deployments of whose sets a write failed in a way that leaves open whether it was done.
    doubts: Doubts,
    /// When whoever led before is surely gone.
    alone_at: Instant,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Deployments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.deployments.lister().get(&key.namespace, &key.name) else {
            self.sized.forget(key);
            self.written.forget(key);
            self.doubts.forget(key);
            return Ok(Action::Done);
        };
        if !self.sized.met(key) || !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let deployment = stored.typed::<Deployment>()?;
        let Some(selector) = pod_state::label_selector(&deployment.spec.selector) else {
            return Ok(Action::Done);
        };
        if selector.is_empty() {
            return self.refuse(key, &stored, &deployment).await;
        }
        if self.doubts.has(key) {
            self.learn(key, &selector).await?;
            if !self.sized.met(key) {
                return Ok(Action::After(EXPECTATION_RECHECK));
            }
        }
        let owned = self.owned_sets(&stored, &selector).await?;
        let view = self.view(&deployment, &owned)?;
        if stored.header().deletion.is_some() {
            let status = rollout::status_only(view);
            self.write_status(key, &stored, &deployment, &status).await?;
            return Ok(Action::Done);
        }
        let decision = rollout::decide(view);
        let is_first = deployment.metadata.generation == Some(1);
        if decision.grows() && !is_first {
            let left = self.alone_at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Ok(Action::After(left));
            }
            if self.is_behind(key, &stored, &selector, &owned).await? {
                return Ok(Action::After(EXPECTATION_RECHECK));
            }
        }
        let applied = self.apply(key, &stored, &deployment, &owned, &decision).await;
        if let Err(ReconcileError::Api(error)) = &applied {
            self.doubts.note(key, error);
        }
        applied?;
        let changed = self.write_status(key, &stored, &deployment, &decision.status).await?;
        Ok(if changed { Action::Done } else { self.next_look(&deployment) })
    }
}

impl Deployments {
    /// Whether the server has other sets than the informer shows, as after a change of the leader: it is asked
    /// before pods are added beside others. Each set's size is guarded by its revision, but that the sizes of several together
    /// keep to the surge is not. At a Deployment's first generation there is one set. (Upstream does not ask.)
    async fn is_behind(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        selector: &LabelSelector,
        owned: &[Arc<Stored>],
    ) -> Result<bool, ReconcileError> {
        let live = live_objects(&self.requests, &self.set_resource, &key.namespace, selector).await?;
        let owned = owned.iter().map(|set| set.typed()).collect::<Result<Vec<Arc<ReplicaSet>>, _>>()?;
        // By generations, as statuses change all the time and are not what it is about.
        let same = |one: &meta::ObjectMeta, other: &meta::ObjectMeta| {
            one.uid == other.uid && one.generation == other.generation
        };
        let known = |set: &Live| owned.iter().any(|known| same(&known.metadata, &set.metadata));
        let unknown = live.iter().filter(|set| set.is_of(&stored.header().uid) && !known(set));
        let newest = unknown.map(Live::revision).max();
        newest.inspect(|newest| self.sized.wrote(key, *newest));
        Ok(newest.is_some())
    }

    /// Finds out which sets there are after a write that may have been done: nothing is decided before the informer shows them.
    /// (Upstream decides by what the informer shows, and can go beyond the surge that way.)
    async fn learn(&self, key: &ObjectKey, selector: &LabelSelector) -> Result<(), ReconcileError> {
        let sets = live_objects(&self.requests, &self.set_resource, &key.namespace, selector).await?;
        self.sized.wrote(key, sets.iter().map(Live::revision).max().unwrap_or_default());
        self.doubts.forget(key);
        Ok(())
    }

    /// A Deployment that selects all pods is told about, and nothing is done.
    async fn refuse(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        deployment: &Deployment,
    ) -> Result<Action, ReconcileError> {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        let about = Regarding::of(stored, &self.resource);
        self.recorder.record(&about, EventType::Warning, "SelectingAll", message);
        let mut status = deployment.status.clone().unwrap_or_default();
        status.observed_generation = deployment.metadata.generation;
        self.write_status(key, stored, deployment, &status).await?;
        Ok(Action::Done)
    }

    async fn owned_sets(
        &self,
        stored: &Stored,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<Stored>>, ReconcileError> {
        let header = stored.header();
        let mut candidates = self.sets.lister().by_index(Index::CONTROLLER, &header.uid);
        let orphans = self.sets.lister().by_index(ORPHANS, &header.namespace);
        candidates.extend(orphans.into_iter().filter(|set| selector.matches(&set.header().labels)));
        let owner = Owner { resource: &self.resource, header, selector };
        claim::claim_all(&self.requests, &owner, &self.set_resource, candidates).await
    }

    fn view<'a>(
        &self,
        deployment: &'a Deployment,
        owned: &[Arc<Stored>],
    ) -> Result<View<'a>, serde_json::Error> {
        let sets = owned.iter().map(|set| set.typed()).collect::<Result<Vec<_>, _>>()?;
        let strategy = deployment.spec.strategy.as_ref();
        let recreates = strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"));
        let has_pods = |set: &&Arc<Stored>| {
            let pods = self.pods.by_index(PODS_BY_OWNER, &set.header().uid);
            pods.iter().any(|pod| !pod_state::is_terminal(pod))
        };
        let with_pods = owned.iter().filter(|set| recreates && has_pods(set));
        let sets_with_pods = with_pods.map(|set| set.header().uid.to_string()).collect();
        Ok(View { deployment, sets, sets_with_pods, now: self.clock.now() })
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        deployment: &Deployment,
        owned: &[Arc<Stored>],
        decision: &Decision,
    ) -> Result<(), ReconcileError> {
        let about = Regarding::of(stored, &self.resource);
        // What is new comes before what goes, as upstream does it: if it can't be made, all stays as it is.
        let (new, known): (Vec<&Set>, Vec<&Set>) = decision.sets.iter().partition(|set| set.object.is_none());
        for set in new.into_iter().chain(known) {
            let Some(object) = &set.object else {
                self.create(key, stored, deployment, set, &about).await?;
                continue;
            };
            let known = owned.iter().find(|known| *known.header().name == *set.name);
            let Some(known) = known else { continue };
            if set.deleted {
                self.delete(key, known).await?;
            } else {
                self.update(key, object, known, set, &about).await?;
            }
        }
        let annotations = deployment.metadata.annotations.as_ref();
        let revision = annotations.and_then(|annotations| annotations.get(annotations::REVISION));
        if let Some(new) = &decision.revision
            && revision != Some(new)
        {
            let patch = json!({"metadata": {"annotations": {annotations::REVISION: new}}});
            let path = self.resource.path(&key.namespace, &key.name);
            let written: Written = self.requests.patch(&path, PatchKind::Merge, &patch).await?;
            self.written.wrote(key, written.revision());
        }
        Ok(())
    }

    async fn create(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        deployment: &Deployment,
        set: &Set,
        about: &Regarding,
    ) -> Result<(), ReconcileError> {
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = rollout::template_hash(&deployment.spec.template, collisions);
        let body = serde_json::to_vec(&self.new_set(stored, set, &hash)?)?;
        let path = self.set_resource.path(&key.namespace, "");
        match self.requests.create::<Written>(&path, body).await {
            Ok(written) => {
                self.sized.wrote(key, written.revision());
                if set.replicas > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {}", set.name, set.replicas);
                    self.recorder.record(about, EventType::Normal, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Err(error) if request::is_already_exists(&error) => {
                self.resolve_collision(key, stored, deployment, set).await?;
                Err(error.into())
            }
            Err(error) if request::is_namespace_terminating(&error) => Err(error.into()),
            Err(error) => {
                const REASON: &str = "ReplicaSetCreateError";
                // Before the status is written, which may fail in another way.
                self.doubts.note(key, &error);
                let why = error_message(&error);
                let message = format!("Failed to create new replica set \"{}\": {why}", set.name);
                if status::deadline(deployment).is_some() {
                    let mut status = deployment.status.clone().unwrap_or_default();
                    let now = self.clock.now();
                    let failed = status::new_condition(status::PROGRESSING, "False", REASON, &*message, now);
                    status::set_condition(&mut status, failed);
                    self.write_status(key, stored, deployment, &status).await?;
                }
                self.recorder.record(about, EventType::Warning, REASON, message);
                Err(error.into())
            }
        }
    }

    fn new_set(&self, stored: &Stored, set: &Set, hash: &str) -> Result<Value, serde_json::Error> {
        let mut deployment = stored.value()?;
        let mut spec = deployment["spec"].take();
        let mut template = spec["template"].take();
        let mut selector = spec["selector"].take();
        template["metadata"]["labels"][HASH_LABEL] = hash.into();
        selector["matchLabels"][HASH_LABEL] = hash.into();
        let mut object = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": set.name,
                "namespace": &*stored.header().namespace,
                "labels": template["metadata"]["labels"],
                "annotations": set.annotations,
                "ownerReferences": [controller_reference(&self.resource, stored.header())],
            },
            "spec": {"replicas": set.replicas, "selector": selector, "template": template},
        });
        if let Some(seconds) = set.min_ready_seconds.filter(|seconds| *seconds != 0) {
            object["spec"]["minReadySeconds"] = seconds.into();
        }
        Ok(object)
    }

    /// Another set has the name that this template gives: unless it is ours, the next try gets another name.
    async fn resolve_collision(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        deployment: &Deployment,
        set: &Set,
    ) -> Result<(), ReconcileError> {
        let path = self.set_resource.path(&key.namespace, &set.name);
        let known: ReplicaSet = self.requests.get(&path).await?;
        let uid = &*stored.header().uid;
        let owners = known.metadata.owner_references.iter().flatten();
        let ours = owners.into_iter().any(|owner| owner.uid == uid && owner.controller == Some(true));
        let template = known.spec.template.as_ref();
        if ours && template.is_some_and(|known| rollout::same_template(known, &deployment.spec.template)) {
            // The informer is behind; it will show the set.
            return Ok(());
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
        self.write_status(key, stored, deployment, &status).await?;
        Ok(())
    }

    async fn update(
        &self,
        key: &ObjectKey,
        object: &ReplicaSet,
        known: &Stored,
        set: &Set,
        about: &Regarding,
    ) -> Result<(), ReconcileError> {
        let old_replicas = object.spec.replicas.unwrap_or(1);
        let mut patch = json!({});
        if set.replicas != old_replicas {
            patch["spec"]["replicas"] = set.replicas.into();
        }
        if set.min_ready_seconds != object.spec.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = set.min_ready_seconds.into();
        }
        let old_annotations = object.metadata.annotations.as_ref();
        for (key, value) in &set.annotations {
            if old_annotations.and_then(|old| old.get(key)) != Some(value) {
                patch["metadata"]["annotations"][key] = value.as_str().into();
            }
        }
        if patch == json!({}) {
            return Ok(());
        }
        patch["metadata"]["resourceVersion"] = known.revision().to_string().into();
        let path = self.set_resource.path(&key.namespace, &set.name);
        let written: Written = self.requests.patch(&path, PatchKind::Merge, &patch).await?;
        self.sized.wrote(key, written.revision());
        if set.replicas != old_replicas {
            let (way, name, new) =
                (if set.replicas > old_replicas { "up" } else { "down" }, &set.name, set.replicas);
            let message = format!("Scaled {way} replica set {name} from {old_replicas} to {new}");
            self.recorder.record(about, EventType::Normal, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, set: &Stored) -> Result<(), ReconcileError> {
        let header = set.header();
        let how = DeleteHow { uid: Some(header.uid.to_string()), ..DeleteHow::default() };
        let path = self.set_resource.path(&header.namespace, &header.name);
        match self.requests.delete(&path, &how).await {
            Ok(_) => self.sized.deleted(key, ObjectKey::of(header), &header.uid),
            Err(error) if request::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes the status if it has changed, and says whether it has.
    async fn write_status(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        deployment: &Deployment,
        status: &DeploymentStatus,
    ) -> Result<bool, ReconcileError> {
        if deployment.status.as_ref().unwrap_or(&DeploymentStatus::default()) == status {
            return Ok(false);
        }
        let old = serde_json::to_value(deployment.status.clone().unwrap_or_default())?;
        let mut patch = request::status_patch(stored.revision(), &old, &serde_json::to_value(status)?);
        if !self.written.met(key) {
            // The revision annotation was written a moment ago, so the object is no longer at the revision that was
            // read. The status is this controller's own.
            patch["metadata"] = json!({"uid": &*stored.header().uid});
        }
        let path = self.resource.path(&key.namespace, &key.name) + "/status";
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Ok(written) => self.written.wrote(key, written.revision()),
            Err(error) if request::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// When the progress deadline has to be looked at.
    fn next_look(&self, deployment: &Deployment) -> Action {
        let none = DeploymentStatus::default();
        let status = deployment.status.as_ref().unwrap_or(&none);
        let Some(deadline) = status::deadline(deployment) else { return Action::Done };
        let Some(known) = status::condition(status, status::PROGRESSING) else { return Action::Done };
        let over = known.reason.as_deref() == Some(status::TIMED_OUT);
        if over || status::is_complete(deployment, status) {
            return Action::Done;
        }
        let since = known.last_update_time.as_ref().map(|time| time.0);
        let Some(at) = since.and_then(|since| since.checked_add(deadline).ok()) else { return Action::Done };
        let left = at.duration_since(self.clock.now()) + jiff::SignedDuration::from_secs(1);
        let least = std::time::Duration::from_secs(1);
        Action::After(std::time::Duration::try_from(left).unwrap_or_default().max(least))
    }
}
