//! StatefulSets: pods with names, an order, and claims of their own.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kcore::{
    Clock, Stored,
    selector::{LabelSelector, Operator, Requirement},
};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        claim::{self, Owner},
        pod_state,
        pod_writes::{SLOW_START_INITIAL, error_message, in_parallel, pod_from_template},
        replica_set::{BURST_REPLICAS_MAX, PODS_BY_OWNER, pods_by_owner},
        revisions::{self, Draft, History, Revisions},
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

mod claims;
mod decide;
#[cfg(test)]
mod tests;

use decide::{Plan, Step, View};

/// The controller `statefulset-controller`: makes, replaces and deletes the pods of StatefulSets in order or at once, with
/// their claims, keeps their revisions and their status.
///
/// As upstream's with the gate `MaxUnavailableStatefulSet` on, as it is by default: an update has as many pods go at once
/// as `maxUnavailable` allows.
pub fn stateful_set(context: &Context) -> Controller {
    const NAME: &str = "statefulset-controller";
    let sets = context.informers().of::<StatefulSet>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
    pods.add_index(pods_by_owner());
    let requests = context.requests(NAME);
    let revisions = Revisions::new(context, requests.clone());
    let history = revisions.informer.clone();
    let shared = Shared {
        resource: ResourceType::of::<StatefulSet>(),
        pod_resource: ResourceType::of::<Pod>(),
        claim_resource: ResourceType::of::<PersistentVolumeClaim>(),
        pods_written: Expectations::new(pods.lister().clone()),
        claims_written: Expectations::new(claims.lister().clone()),
        revisions_written: Expectations::new(revisions.informer.lister().clone()),
        sets_written: Expectations::new(sets.lister().clone()),
        requests,
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        sets: sets.clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        revisions,
    };
    let controller = Controller::new(NAME, StatefulSets(Arc::new(shared)));
    // Without its history each set would begin one anew, and roll its pods to it.
    let controller = controller.reads(&claims).reads(&history).on(Trigger::new(&sets, MapTo::Itself));
    controller
        .on(Trigger::new(&pods, claim::owners(&sets, |set| pod_state::label_selector(&set.spec.selector))))
}

struct Shared {
    resource: ResourceType,
    pod_resource: ResourceType,
    claim_resource: ResourceType,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Revisions,
    pods_written: Expectations,
    claims_written: Expectations,
    revisions_written: Expectations,
    sets_written: Expectations,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

struct StatefulSets(Arc<Shared>);

/// What the steps for one set need, owned so that they can run side by side.
struct Work {
    shared: Arc<Shared>,
    key: ObjectKey,
    stored: Arc<Stored>,
    set: Arc<StatefulSet>,
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
    about: Regarding,
}

#[async_trait]
impl Reconciler for StatefulSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let shared = &self.0;
        let Some(stored) = shared.sets.lister().get(&key.namespace, &key.name) else {
            for expectations in shared.expectations() {
                expectations.forget(key);
            }
            return Ok(Action::Done);
        };
        if !shared.expectations().into_iter().all(|expectations| expectations.met(key)) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let set = stored.typed::<StatefulSet>()?;
        let Some(selector) = pod_state::label_selector(&set.spec.selector) else { return Ok(Action::Done) };
        let owner = Owner { resource: &shared.resource, header: stored.header(), selector: &selector };
        let history = shared.history(key, &owner, &stored, &set).await?;
        let pods = shared.owned_pods(&owner).await?;
        let now = shared.clock.now();
        let current_name = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let known = history.known.iter().find(|known| current_name == Some(revisions::name(known)));
        let current = Arc::clone(known.unwrap_or(&history.latest));
        let plan = shared.plan(&set, &pods, &current, &history, now);
        let work = Arc::new(Work {
            shared: Arc::clone(shared),
            key: key.clone(),
            about: Regarding::of(&stored, &shared.resource),
            stored: Arc::clone(&stored),
            set: Arc::clone(&set),
            current: Arc::clone(&current),
            update: Arc::clone(&history.latest),
        });
        let (mut status, result) = work.carry_out(plan).await;
        decide::complete(&set, &mut status);
        let path = shared.resource.path(&key.namespace, &key.name);
        let old = set.status.as_ref();
        let written = shared.requests.write_status(&path, stored.revision(), old, &status).await?;
        shared.sets_written.wrote(key, written);
        let used = |name: &str| {
            name == revisions::name(&current)
                || name == revisions::name(&history.latest)
                || pods.iter().any(|pod| decide::revision(pod) == name)
        };
        let idle: Vec<_> = history.known.iter().filter(|known| !used(revisions::name(known))).collect();
        if let Ok(limit) = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)) {
            shared.revisions.delete_oldest(&idle, idle.len().saturating_sub(limit)).await?;
        }
        result?;
        let min_ready = set.spec.min_ready_seconds.unwrap_or_default();
        let waits = pods.iter().filter_map(|pod| pod_state::available_in(pod, min_ready, now));
        Ok(waits.filter(|wait| !wait.is_zero()).min().map_or(Action::Done, Action::After))
    }
}

impl Shared {
    fn expectations(&self) -> [&Expectations; 4] {
        [&self.pods_written, &self.claims_written, &self.revisions_written, &self.sets_written]
    }

    async fn history(
        &self,
        key: &ObjectKey,
        owner: &Owner<'_>,
        stored: &Stored,
        set: &StatefulSet,
    ) -> Result<History, ReconcileError> {
        let none = BTreeMap::new();
        let template = set.spec.template.metadata.as_ref();
        let draft = Draft {
            data: Draft::template(&stored.value()?["spec"]["template"]),
            hash_label: revisions::HASH_LABEL,
            labels: template.and_then(|metadata| metadata.labels.as_ref()).unwrap_or(&none),
            annotations: set.metadata.annotations.as_ref().unwrap_or(&none),
        };
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or_default();
        let history = self.revisions.bring_up_to_date(owner, &draft, collisions).await?;
        if let Some(revision) = history.written {
            self.revisions_written.wrote(key, revision);
        }
        Ok(history)
    }

    fn plan(
        &self,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        current: &ControllerRevision,
        history: &History,
        now: Timestamp,
    ) -> Plan {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let view = View {
            set,
            pods,
            claim: &|name| self.claims.get(namespace, name),
            current: revisions::name(current),
            update: revisions::name(&history.latest),
            now,
        };
        decide::plan(&view, history.collisions)
    }

    /// The pods of a set. One whose name is not the set's is let go, whatever its labels.
    async fn owned_pods(&self, owner: &Owner<'_>) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let header = owner.header;
        let candidates = claim::candidates(self.pods.lister(), PODS_BY_OWNER, owner);
        let is_member = |pod: &Arc<Stored>| {
            decide::parent_and_ordinal(&pod.header().name).is_some_and(|(parent, _)| parent == &*header.name)
        };
        let (members, strangers): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_member);
        let strangers: Vec<_> =
            strangers.into_iter().filter(|pod| pod.header().controller().is_some()).collect();
        let nowhere = Requirement { key: "name".to_owned(), operator: Operator::In, values: Vec::new() };
        let nothing = LabelSelector::new(vec![nowhere]);
        let none = Owner { selector: &nothing, ..*owner };
        claim::claim_all(&self.requests, &none, &self.pod_resource, strangers).await?;
        let owned = claim::claim_all(&self.requests, owner, &self.pod_resource, members).await?;
        Ok(owned.iter().map(|pod| pod.typed::<Pod>()).collect::<Result<_, _>>()?)
    }
}

impl Work {
    /// Runs the phases, and gives the status with what was deleted taken off.
    async fn carry_out(self: &Arc<Self>, plan: Plan) -> (StatefulSetStatus, Result<(), ReconcileError>) {
        let Plan { phases, rollout, mut status } = plan;
        let parallel = decide::is_parallel(&self.set);
        for (index, steps) in phases.into_iter().enumerate() {
            let rolls = rollout == Some(index);
            let (done, result) =
                if parallel && !rolls { self.all_at_once(steps).await } else { self.one_by_one(steps).await };
            if rolls {
                let left = status.current_replicas.unwrap_or_default() - done;
                status.current_replicas = (left != 0).then_some(left);
            }
            if let Err(error) = result {
                return (status, Err(error));
            }
        }
        (status, Ok(()))
    }

    async fn one_by_one(self: &Arc<Self>, steps: Vec<Step>) -> (i32, Result<(), ReconcileError>) {
        let mut done = 0;
        for step in steps {
            if let Err(error) = self.step(step).await {
                return (done, Err(error));
            }
            done += 1;
        }
        (done, Ok(()))
    }

    /// In batches that double in size as long as they succeed.
    async fn all_at_once(self: &Arc<Self>, steps: Vec<Step>) -> (i32, Result<(), ReconcileError>) {
        let (mut done, mut batch) = (0, SLOW_START_INITIAL);
        let mut steps = steps.into_iter();
        while steps.len() > 0 {
            let results = in_parallel(steps.by_ref().take(batch).collect(), |step| {
                let work = Arc::clone(self);
                async move { work.step(step).await }
            });
            let mut failure = None;
            for result in results.await {
                match result {
                    Ok(()) => done += 1,
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if let Some(error) = failure {
                return (done, Err(error));
            }
            batch = (batch * 2).min(BURST_REPLICAS_MAX);
        }
        (done, Ok(()))
    }

    async fn step(&self, step: Step) -> Result<(), ReconcileError> {
        match step {
            Step::Create { ordinal, newest } => self.create(ordinal, newest).await,
            Step::Claims(pod) => {
                self.make_claims(pod_state::name(&pod)).await?;
                self.own_claims(&pod).await
            }
            Step::Mend(pod) => self.mend(&pod).await,
            Step::Retain(pod) => self.own_claims(&pod).await,
            Step::Delete(pod) => self.delete(&pod).await,
        }
    }

    /// `Create`, `Update` or `Delete` of a pod, as upstream words it.
    fn tell(&self, verb: &str, pod: &str, failure: Option<&str>) {
        let set = &self.key.name;
        match failure {
            None => self.record(
                EventType::Normal,
                &format!("Successful{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {set} successful"),
            ),
            Some(error) => self.record(
                EventType::Warning,
                &format!("Failed{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {set} failed error: {error}"),
            ),
        }
    }

    fn record(&self, kind: EventType, reason: &str, message: String) {
        self.shared.recorder.record(&self.about, kind, reason, message);
    }

    async fn create(&self, ordinal: i32, newest: bool) -> Result<(), ReconcileError> {
        let name = format!("{}-{ordinal}", self.key.name);
        if let Err(error) = self.make_claims(&name).await {
            self.tell("Create", &name, Some(&error.to_string()));
            return Err(error);
        }
        let revision = if newest { &self.update } else { &self.current };
        let body = self.pod(&name, ordinal, revision);
        let path = self.shared.pod_resource.path(&self.key.namespace, "");
        match self.shared.requests.create::<Pod>(&path, serde_json::to_vec(&body)?).await {
            Ok(pod) => {
                let written = pod.metadata.resource_version.as_deref().and_then(|text| text.parse().ok());
                self.shared.pods_written.wrote(&self.key, written.unwrap_or_default());
                self.tell("Create", &name, None);
                self.own_claims(&pod).await
            }
            Err(error) if request::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                if !request::is_already_exists(&error) {
                    self.tell("Create", &name, Some(&error_message(&error)));
                }
                Err(error.into())
            }
        }
    }

    /// The body of a pod: the revision's template with a name, a host name and its claims.
    fn pod(&self, name: &str, ordinal: i32, revision: &ControllerRevision) -> Value {
        let template = revisions::template_of(revision);
        let mut pod = pod_from_template(&template, &self.shared.resource, self.stored.header());
        pod["metadata"]["name"] = Value::from(name);
        pod["metadata"]["labels"][decide::POD_NAME_LABEL] = Value::from(name);
        pod["metadata"]["labels"][decide::POD_INDEX_LABEL] = Value::from(ordinal.to_string());
        pod["metadata"]["labels"][decide::REVISION_LABEL] = Value::from(revisions::name(revision));
        pod["spec"]["hostname"] = Value::from(name);
        if let Some(service) = self.set.spec.service_name.as_deref().filter(|service| !service.is_empty()) {
            pod["spec"]["subdomain"] = Value::from(service);
        }
        self.put_claims(&mut pod, ordinal);
        pod
    }

    /// Volumes of the claims take the place of the template's volumes of the same names.
    fn put_claims(&self, pod: &mut Value, ordinal: i32) {
        let templates = self.set.spec.volume_claim_templates.iter().flatten();
        let volume = |template: &PersistentVolumeClaim| {
            let claim = claims::name(template, &self.key.name, ordinal);
            json!({"name": template.metadata.name, "persistentVolumeClaim": {"claimName": claim}})
        };
        let mut volumes: Vec<Value> = templates.map(volume).collect();
        if volumes.is_empty() {
            return;
        }
        let others = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let taken: Vec<Value> = volumes.iter().map(|volume| volume["name"].clone()).collect();
        volumes.extend(others.into_iter().filter(|volume| !taken.contains(&volume["name"])));
        pod["spec"]["volumes"] = Value::Array(volumes);
    }

    /// Makes the claims that a pod lacks.
    async fn make_claims(&self, pod: &str) -> Result<(), ReconcileError> {
        let Some((_, ordinal)) = decide::parent_and_ordinal(pod) else { return Ok(()) };
        let mut failure = None;
        for (name, body) in claims::bodies(&self.set, ordinal) {
            if let Some(known) = self.shared.claims.get(&self.key.namespace, &name) {
                if known.metadata.deletion_timestamp.is_some() {
                    failure = Some(ReconcileError::other(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            let path = self.shared.claim_resource.path(&self.key.namespace, "");
            let set = &self.key.name;
            match self.shared.requests.create::<Written>(&path, serde_json::to_vec(&body)?).await {
                Ok(written) => {
                    self.shared.claims_written.wrote(&self.key, written.revision());
                    let message = format!("Create Claim {name} Pod {pod} in StatefulSet {set} success");
                    self.record(EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if request::is_already_exists(&error) => {}
                Err(error) => {
                    let text = error_message(&error);
                    let message = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {text}"
                    );
                    self.record(EventType::Warning, "FailedCreate", message);
                    failure = Some(ReconcileError::other(format!("failed to create PVC {name}: {text}")));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Has the claims of a pod owned as the policy says.
    async fn own_claims(&self, pod: &Pod) -> Result<(), ReconcileError> {
        let Some(ordinal) = decide::ordinal(pod) else { return Ok(()) };
        for template in self.set.spec.volume_claim_templates.iter().flatten() {
            let name = claims::name(template, &self.key.name, ordinal);
            let Some(claim) = self.shared.claims.get(&self.key.namespace, &name) else { continue };
            if claims::has_other_controller(&claim, &self.set, pod) {
                let message = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, \
                     the retention policy is ignored for this claim"
                );
                self.record(EventType::Warning, "ConflictingController", message);
            }
            let Some(owners) = claims::owners_wanted(&claim, &self.set, pod) else { continue };
            let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": owners,
            }});
            let path = self.shared.claim_resource.path(&self.key.namespace, &name);
            match self.shared.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
                Ok(written) => self.shared.claims_written.wrote(&self.key, written.revision()),
                Err(error) if request::is_not_found(&error) => {}
                Err(error) => {
                    self.tell("Update", pod_state::name(pod), Some(&error_message(&error)));
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Gives a pod its labels and volumes back. The server refuses what can't be changed, which is told.
    async fn mend(&self, pod: &Pod) -> Result<(), ReconcileError> {
        let Some(ordinal) = decide::ordinal(pod) else { return Ok(()) };
        let name = pod_state::name(pod);
        let storage_fits = decide::storage_fits(&self.set, pod);
        if !storage_fits && let Err(error) = self.make_claims(name).await {
            self.tell("Update", name, Some(&error.to_string()));
            return Err(error);
        }
        self.own_claims(pod).await?;
        if storage_fits && decide::identity_fits(&self.set, pod) {
            return Ok(());
        }
        let mut body = serde_json::to_value(pod)?;
        body["metadata"]["labels"][decide::POD_NAME_LABEL] = Value::from(name);
        body["metadata"]["labels"][decide::POD_INDEX_LABEL] = Value::from(ordinal.to_string());
        self.put_claims(&mut body, ordinal);
        let path = self.shared.pod_resource.path(&self.key.namespace, name);
        match self.shared.requests.replace::<Written>(&path, &body).await {
            Ok(written) => {
                self.shared.pods_written.wrote(&self.key, written.revision());
                self.tell("Update", name, None);
                Ok(())
            }
            Err(error) => {
                self.tell("Update", name, Some(&error_message(&error)));
                Err(error.into())
            }
        }
    }

    async fn delete(&self, pod: &Pod) -> Result<(), ReconcileError> {
        let (name, uid) = (pod_state::name(pod), pod_state::uid(pod));
        let path = self.shared.pod_resource.path(&self.key.namespace, name);
        let how = DeleteHow { uid: Some(uid.to_owned()), ..DeleteHow::default() };
        match self.shared.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => {
                self.tell("Delete", name, Some(&error_message(&error)));
                Err(error.into())
            }
            _ => {
                let object = ObjectKey::new(&*self.key.namespace, name);
                self.shared.pods_written.deleted(&self.key, object, uid);
                self.tell("Delete", name, None);
                Ok(())
            }
        }
    }
}
