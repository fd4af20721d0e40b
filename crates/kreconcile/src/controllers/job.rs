//! Jobs: pods that run until enough of them have succeeded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::SignedDuration;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::Pod,
};
use kcore::{Clock, Stored};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        claim::{self, Owner},
        doubts::Doubts,
        pod_state,
        pod_writes::{PodWriter, in_parallel, pod_from_template},
        replica_set::{PODS_BY_OWNER, pods_by_owner},
    },
    events::{EventRecorder, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Query, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod decide;
mod indexes;
mod per_index;
mod policy;
#[cfg(test)]
mod tests;

use decide::{Decision, TRACKING, View, decide};
pub use decide::{PODS_PER_LOOK_MAX, UNCOUNTED_PODS_MAX};
use indexes::COMPLETION_INDEX;
use per_index::{FAILURE_COUNT, IGNORED_FAILURE_COUNT, IndexFailures};
use policy::Failures;
pub use policy::{POD_FAILURE_BACKOFF_MAX, POD_FAILURE_BACKOFF_MIN};

/// The name by which `managedBy` means this controller.
const MANAGED_BY: &str = "kubernetes.io/job-controller";

/// The controller `job-controller`: runs each Job's pods to their completions, with back-off, deadlines, suspension,
/// Indexed completion, pod failure policy and success policy; each ended pod is counted exactly once, by the finalizer
/// `batch.kubernetes.io/job-tracking`.
pub fn job(context: &Context) -> Controller {
    const NAME: &str = "job-controller";
    let jobs = context.informers().of::<Job>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    pods.add_index(pods_by_owner());
    let reconciler = Jobs {
        resource: ResourceType::of::<Job>(),
        pod_resource: ResourceType::of::<Pod>(),
        acted: Expectations::new(pods.lister().clone()),
        doubts: Doubts::default(),
        written: Expectations::new(jobs.lister().clone()),
        failures: Mutex::default(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        jobs: jobs.clone(),
        pods: pods.clone(),
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&jobs, MapTo::Itself))
        .on(Trigger::new(&pods, MapTo::Controller(ResourceType::of::<Job>())))
}

struct Jobs {
    resource: ResourceType,
    pod_resource: ResourceType,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    /// Pods that were made, deleted or released and are not shown so yet.
    acted: Expectations,
    /// Jobs of whose pods a write failed in a way that leaves open whether it was done.
    doubts: Doubts,
    written: Expectations,
    failures: Mutex<HashMap<ObjectKey, Failures, RandomState>>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Jobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.jobs.lister().get(&key.namespace, &key.name) else {
            self.forget(key);
            return self.release_orphans(key).await;
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let job = stored.typed::<Job>()?;
        let Some(spec) = &job.spec else { return Ok(Action::Done) };
        if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGED_BY) {
            return Ok(Action::Done);
        }
        if decide::is_finished(&job) {
            // A pod that was not seen in time must not be held for ever.
            let mut left = self.pods.lister().by_index(PODS_BY_OWNER, &stored.header().uid);
            left.retain(|pod| pod.header().finalizers.iter().any(|finalizer| **finalizer == *TRACKING));
            self.release(key, left).await?;
            self.forget(key);
            return Ok(Action::Done);
        }
        let Some(selector) = spec.selector.as_ref().and_then(pod_state::label_selector) else {
            return Ok(Action::Done);
        };
        let owner = Owner { resource: &self.resource, header: stored.header(), selector: &selector };
        let seen = (self.pods.lister(), &self.acted);
        self.doubts.settle(key, &owner, &self.pod_resource, &self.requests, seen).await?;
        if !self.acted.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        // Read before the pods are: what is seen of them then is at least as new.
        let is_behind = self.pods.lister().revision() < stored.revision();
        let mut owned = self.owned_pods(&owner).await?;
        let failures = self.failures().get(key).copied().unwrap_or_default();
        let now = self.clock.now();
        let decide_on = |owned: &[Arc<Stored>]| {
            let pods = owned.iter().map(|pod| pod.typed()).collect::<Result<Vec<Arc<Pod>>, _>>()?;
            let decision = decide(View { job: &job, spec, pods: &pods, failures, now });
            let counts = decide::counts_anything(&job, &pods, &decision);
            Ok::<_, ReconcileError>((decision, counts))
        };
        let (mut decision, counts) = decide_on(&owned)?;
        if is_behind && counts {
            owned = self.live_pods(&stored, spec).await?;
            decision = decide_on(&owned)?.0;
        }
        if !decision.create.is_empty() && self.is_behind(key, &stored, &job, &owned).await? {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        self.carry_out(key, &stored, &job, &owned, &decision).await?;
        Ok(decision.after.map_or(Action::Done, Action::After))
    }
}

impl Jobs {
    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Failures, RandomState>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: &ObjectKey) {
        self.acted.forget(key);
        self.doubts.forget(key);
        self.written.forget(key);
        self.failures().remove(key);
    }

    async fn owned_pods(&self, owner: &Owner<'_>) -> Result<Vec<Arc<Stored>>, ReconcileError> {
        let candidates = claim::candidates(self.pods.lister(), PODS_BY_OWNER, owner);
        claim::claim_all(&self.requests, owner, &self.pod_resource, candidates).await
    }

    /// Whether the server has another Job than the informer shows. It is asked where pods are seen to be counted that this Job has not
    /// counted, as can be after a change of the leader: it may have come to its end, and needs no more pods. That a pod's revision
    /// can be compared with a Job's is only used to ask in more cases.
    async fn is_behind(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        job: &Job,
        owned: &[Arc<Stored>],
    ) -> Result<bool, ReconcileError> {
        let pods = owned.iter().map(|pod| pod.typed()).collect::<Result<Vec<Arc<Pod>>, _>>()?;
        let since = owned.iter().zip(&pods).filter(|(known, _)| known.revision() > stored.revision());
        if !decide::shows_more_than_counted(job, &pods)
            && !decide::was_counted_since(job, since.map(|(_, pod)| &**pod))
        {
            return Ok(false);
        }
        let live: Written = self.requests.get(&self.resource.path(&key.namespace, &key.name)).await?;
        let is_behind = live.revision() != stored.revision();
        if is_behind {
            self.written.wrote(key, live.revision());
        }
        Ok(is_behind)
    }

    /// The Job's pods as the server has them. A cache of pods that is older than the Job, as it can be after a change of the leader,
    /// shows pods as uncounted that the Job has counted already, and pods as gone that it has yet to show: either would be
    /// counted twice. What the server says after the Job was read can't be older, and the status is only written to that
    /// Job. That a pod's revision can be compared with a Job's is only used to save this request.
    async fn live_pods(&self, stored: &Stored, spec: &JobSpec) -> Result<Vec<Arc<Stored>>, ReconcileError> {
        let header = stored.header();
        let labels = spec.selector.iter().flat_map(|selector| selector.match_labels.iter().flatten());
        let labels = labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let mut query = Query::new(self.pod_resource.path(&header.namespace, ""));
        query.add_unless_empty("labelSelector", &labels);
        let mut list = self.requests.get::<Value>(&query.finish()).await?;
        let mut owned = Vec::new();
        for mut pod in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            let pod = Stored::from_value(pod).map_err(ReconcileError::other)?;
            if pod.header().controller().is_some_and(|owner| owner.uid == header.uid) {
                owned.push(Arc::new(pod));
            }
        }
        Ok(owned)
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        job: &Job,
        owned: &[Arc<Stored>],
        decision: &Decision,
    ) -> Result<(), ReconcileError> {
        let about = Arc::new(Regarding::of(stored, &self.resource));
        let writer = PodWriter {
            requests: self.requests.clone(),
            recorder: self.recorder.clone(),
            about: Arc::clone(&about),
        };
        if !decision.create.is_empty() {
            let bodies = pod_bodies(stored, &self.resource, decision)?;
            writer.create_slowly(bodies, (key, &self.acted, &self.doubts)).await.1?;
        }
        writer.delete_expected(decision.delete.clone(), (key, &self.acted, &self.doubts)).await?;
        self.write_status(key, stored, job, decision).await?;
        for (kind, reason, message) in &decision.events {
            self.recorder.record(&about, *kind, reason, &**message);
        }
        self.failures().insert(key.clone(), decision.failures);
        let released =
            owned.iter().filter(|pod| decision.release.iter().any(|name| **name == *pod.header().name));
        self.release(key, released.cloned().collect()).await
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        job: &Job,
        decision: &Decision,
    ) -> Result<(), ReconcileError> {
        let old = job.status.clone().unwrap_or_default();
        if old == decision.status {
            return Ok(());
        }
        let new = serde_json::to_value(&decision.status)?;
        let patch = request::status_patch(stored.revision(), &serde_json::to_value(&old)?, &new);
        let path = self.resource.path(&key.namespace, &key.name) + "/status";
        let written: Written = self.requests.patch(&path, PatchKind::Merge, &patch).await?;
        self.written.wrote(key, written.revision());
        Ok(())
    }

    /// Takes the finalizer off pods that are counted.
    async fn release(&self, key: &ObjectKey, pods: Vec<Arc<Stored>>) -> Result<(), ReconcileError> {
        let results = in_parallel(pods, |pod| {
            let requests = self.requests.clone();
            async move { release(&requests, &pod).await }
        });
        let mut failure = None;
        for result in results.await {
            match result {
                Ok(revision) => self.acted.wrote(key, revision),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Pods of a Job that is gone need not be counted any more.
    async fn release_orphans(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let is_orphan = |pod: &Arc<Stored>| {
            let header = pod.header();
            let tracked = header.finalizers.iter().any(|finalizer| **finalizer == *TRACKING);
            let owner = header.controller().filter(|owner| &*owner.kind == "Job" && *owner.name == *key.name);
            tracked && owner.is_some()
        };
        let mut pods = self.pods.lister().in_namespace(&key.namespace);
        pods.retain(is_orphan);
        if pods.is_empty() {
            return Ok(Action::Done);
        }
        match self.requests.get::<Value>(&self.resource.path(&key.namespace, &key.name)).await {
            // The informer is behind.
            Ok(_) => Ok(Action::After(EXPECTATION_RECHECK)),
            Err(error) if request::is_not_found(&error) => {
                self.release(key, pods).await?;
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the tracking finalizer off exactly this revision of a pod. Gives the new revision; 0 when the pod is gone.
async fn release(requests: &Requests, pod: &Stored) -> Result<u64, kube::Error> {
    let header = pod.header();
    let left: Vec<Value> = header
        .finalizers
        .iter()
        .filter(|known| ***known != *TRACKING)
        .map(|known| (&**known).into())
        .collect();
    let left = if left.is_empty() { Value::Null } else { left.into() };
    let patch = json!({"metadata": {
        "uid": &*header.uid,
        "resourceVersion": pod.revision().to_string(),
        "finalizers": left,
    }});
    let path = format!("/api/v1/namespaces/{}/pods/{}", header.namespace, header.name);
    match requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
        Ok(written) => Ok(written.revision()),
        Err(error) if request::is_not_found(&error) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The bodies of the requests that make these pods; without an index they are all the same bytes.
fn pod_bodies(
    stored: &Stored,
    resource: &ResourceType,
    decision: &Decision,
) -> Result<Vec<Bytes>, serde_json::Error> {
    let job = stored.value()?;
    let mut pod = pod_from_template(&job["spec"]["template"], resource, stored.header());
    let finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|known| known == TRACKING) {
        pod["metadata"]["finalizers"] = finalizers.into_iter().chain([TRACKING.into()]).collect();
    }
    let mut plain: Option<Bytes> = None;
    let mut bodies = Vec::with_capacity(decision.create.len());
    for index in &decision.create {
        let body = match (index, &plain) {
            (None, Some(plain)) => plain.clone(),
            (None, None) => {
                let body = Bytes::from(serde_json::to_vec(&pod)?);
                plain = Some(body.clone());
                body
            }
            (Some(index), _) => {
                let mut pod = indexed(pod.clone(), &stored.header().name, *index);
                if let Some(failed) = &decision.failed_before {
                    note_failures(&mut pod, failed.get(index).copied().unwrap_or_default());
                }
                serde_json::to_vec(&pod)?.into()
            }
        };
        bodies.push(body);
    }
    Ok(bodies)
}

fn indexed(mut pod: Value, job: &str, index: i32) -> Value {
    let text = index.to_string();
    let name = format!("{job}-{index}");
    pod["metadata"]["generateName"] = format!("{name}-").into();
    pod["metadata"]["annotations"][COMPLETION_INDEX] = text.as_str().into();
    pod["metadata"]["labels"][COMPLETION_INDEX] = text.into();
    pod["spec"]["hostname"] = name.into();
    let field = format!("metadata.labels['{COMPLETION_INDEX}']");
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": field}}});
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            match container["env"].as_array_mut() {
                Some(known) if known.iter().any(|known| known["name"] == variable["name"]) => {}
                Some(known) => known.push(variable.clone()),
                None => container["env"] = json!([variable]),
            }
        }
    }
    pod
}

fn note_failures(pod: &mut Value, before: IndexFailures) {
    let annotations = &mut pod["metadata"]["annotations"];
    annotations[FAILURE_COUNT] = before.counted.to_string().into();
    if before.ignored > 0 {
        annotations[IGNORED_FAILURE_COUNT] = before.ignored.to_string().into();
    }
}

/// The controller `ttl-after-finished-controller`: deletes Jobs `ttlSecondsAfterFinished` after they have ended.
pub fn ttl_after_finished(context: &Context) -> Controller {
    const NAME: &str = "ttl-after-finished-controller";
    let jobs = context.informers().of::<Job>(Selection::all());
    let reconciler = TtlAfterFinished {
        resource: ResourceType::of::<Job>(),
        jobs: jobs.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&jobs, MapTo::Itself))
}

struct TtlAfterFinished {
    resource: ResourceType,
    jobs: Informer<Job>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

/// How long until a Job has to go; `None` when it has not ended, or stays.
fn time_left(job: &Job, now: jiff::Timestamp) -> Option<SignedDuration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    let ended = conditions
        .into_iter()
        .find(|condition| matches!(&*condition.type_, "Complete" | "Failed") && condition.status == "True")?;
    let at =
        ended.last_transition_time.as_ref()?.0.checked_add(SignedDuration::from_secs(ttl.into())).ok()?;
    Some(at.duration_since(now))
}

#[async_trait]
impl Reconciler for TtlAfterFinished {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let Some(left) = time_left(&job, self.clock.now()) else { return Ok(Action::Done) };
        if left.is_positive() {
            return Ok(Action::After(Duration::try_from(left).unwrap_or_default()));
        }
        // The time to live may have been made longer a moment ago.
        let path = self.resource.path(&key.namespace, &key.name);
        let fresh = match self.requests.get::<Job>(&path).await {
            Ok(fresh) => fresh,
            Err(error) if request::is_not_found(&error) => return Ok(Action::Done),
            Err(error) => return Err(error.into()),
        };
        let due = time_left(&fresh, self.clock.now()).is_some_and(|left| !left.is_positive());
        if due && fresh.metadata.uid == job.metadata.uid {
            let uid = fresh.metadata.uid.clone();
            let how = DeleteHow { uid, propagation: Some("Foreground"), ..DeleteHow::default() };
            match self.requests.delete(&path, &how).await {
                Err(error) if !request::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Action::Done)
    }
}
