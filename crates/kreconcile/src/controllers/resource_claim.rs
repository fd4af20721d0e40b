//! Resource claims of pods (KEP-4381): made from templates, reserved, and given back when nobody uses them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Pod, PodResourceClaim},
    resource::v1::{
        ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus, ResourceClaimTemplate,
    },
};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    cache::Index,
    change::Change,
    controller::Controller,
    controllers::{
        Context, claim::controller_reference, pod_state, pod_writes::error_message, together::Together,
    },
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    manager::Runnable,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

const NAME: &str = "resourceclaim-controller";
/// Stands on a claim that was made for a pod: the name of the pod's entry.
const CLAIM_OF: &str = "resource.kubernetes.io/pod-claim-name";
/// Stands on claims that a scheduler has allocated, until they are deallocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// The longest beginning of a generated name: a dash and five characters follow.
const NAME_BASE_BYTES_MAX: usize = 57;

/// Pods by the claims that they use, as `namespace/name`.
const PODS_BY_CLAIM: &str = "pods-by-resource-claim";
/// Pods by the templates of their claims, as `namespace/name`.
const PODS_BY_TEMPLATE: &str = "pods-by-resource-claim-template";

/// The controller `resourceclaim-controller`: makes a claim for each of a pod's entries that name a template, and tells its
/// name in `status.resourceClaimStatuses`; reserves allocated claims for pods that came to a node without the scheduler;
/// takes pods that have ended out of `status.reservedFor`, deallocates a claim when its last user is gone, and deletes it
/// when it was made for that pod.
pub fn resource_claim(context: &Context) -> impl Runnable + use<> {
    let pods = context.informers().of::<Pod>(Selection::all());
    let claims = context.informers().of::<ResourceClaim>(Selection::all());
    let templates = context.informers().of::<ResourceClaimTemplate>(Selection::all());
    pods.add_index(by_claim());
    pods.add_index(by_template());
    claims.add_index(Index::controller());
    let for_pods = PodClaims {
        resource: ResourceType::of::<Pod>(),
        requests: context.requests(NAME),
        recorder: context.recorder("resource_claim"),
        pods: pods.clone(),
        claims: claims.clone(),
        templates: templates.clone(),
        written: Mutex::default(),
    };
    let for_claims = Users { requests: context.requests(NAME), pods: pods.clone(), claims: claims.clone() };
    let needing = Predicate::when(wants_claims);
    let pods_part = Controller::new(NAME, for_pods)
        .on(Trigger::new(&pods, MapTo::Itself).when(needing))
        .on(Trigger::new(&claims, pods_by(&pods, PODS_BY_CLAIM)))
        .on(Trigger::new(&templates, pods_by(&pods, PODS_BY_TEMPLATE)));
    let claims_part = Controller::new(NAME, for_claims)
        .on(Trigger::new(&claims, MapTo::Itself).when(Predicate::when(|change| change.new.is_some())))
        .on(Trigger::new(&pods, MapTo::each(claims_of)).when(Predicate::when(needs_no_claims)));
    Together::new(NAME, [pods_part, claims_part])
}

/// The pods that an index knows under an object's name.
fn pods_by(pods: &Informer<Pod>, index: &'static str) -> MapTo {
    let pods = pods.clone();
    MapTo::Keys(Arc::new(move |change, keys| {
        let header = change.header();
        let found = pods.lister().by_index(index, &format!("{}/{}", header.namespace, header.name));
        keys.extend(found.iter().map(|pod| ObjectKey::of(pod.header())));
    }))
}

fn by_claim() -> Index {
    Index::new(PODS_BY_CLAIM, |object, emit| {
        let Ok(pod) = object.typed::<Pod>() else { return };
        for name in entries(&pod).iter().filter_map(|entry| name_of(&pod, entry)) {
            emit(&format!("{}/{name}", object.header().namespace));
        }
    })
}

fn by_template() -> Index {
    Index::new(PODS_BY_TEMPLATE, |object, emit| {
        let Ok(pod) = object.typed::<Pod>() else { return };
        for template in entries(&pod).iter().filter_map(|entry| entry.resource_claim_template_name.as_ref()) {
            emit(&format!("{}/{template}", object.header().namespace));
        }
    })
}

fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

/// What the status of a pod says about an entry: nothing, that there is no claim, or the claim's name.
fn told<'a>(pod: &'a Pod, entry: &PodResourceClaim) -> Option<Option<&'a str>> {
    let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    let mut statuses = statuses.into_iter().flatten();
    let told = statuses.find(|told| told.name == entry.name)?;
    Some(told.resource_claim_name.as_deref())
}

/// The name of an entry's claim, once there is one.
fn name_of<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Option<&'a str> {
    entry.resource_claim_name.as_deref().or_else(|| told(pod, entry).flatten())
}

/// Whether a pod will not run any more, nor ever has to.
fn is_done(pod: &Pod) -> bool {
    let unbound = pod_state::node_name(pod).is_empty();
    pod_state::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some() && unbound
}

fn wants_claims(change: &Change) -> bool {
    let pod = change.new_as::<Pod>();
    pod.is_some_and(|pod| !entries(&pod).is_empty() && pod.metadata.deletion_timestamp.is_none())
}

fn needs_no_claims(change: &Change) -> bool {
    let known = change.new_as::<Pod>();
    change.is_recreated() || known.is_none_or(|pod| !entries(&pod).is_empty() && is_done(&pod))
}

/// The claims that a pod uses.
fn claims_of(pod: &Arc<Stored>, keys: &mut Vec<ObjectKey>) {
    let Ok(typed) = pod.typed::<Pod>() else { return };
    let names = entries(&typed).iter().filter_map(|entry| name_of(&typed, entry));
    keys.extend(names.map(|name| ObjectKey::new(&*pod.header().namespace, name)));
}

struct PodClaims {
    resource: ResourceType,
    requests: Requests,
    recorder: EventRecorder,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    /// The revisions of the statuses that were written and not seen yet; until then a look at the pod would make its claims
    /// again. No more than there are pods whose event is on its way.
    written: Mutex<HashMap<ObjectKey, u64>>,
}

#[async_trait]
impl Reconciler for PodClaims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let stored = self.pods.lister().get(&key.namespace, &key.name);
        if self.is_behind(key, stored.as_deref()) {
            return Ok(Action::Done);
        }
        let Some(stored) = stored.filter(|stored| stored.header().deletion.is_none()) else {
            return Ok(Action::Done);
        };
        let pod = stored.typed::<Pod>()?;
        if is_done(&pod) {
            // Its claims are about to go; they must not come back.
            return Ok(Action::Done);
        }
        let mut made = Vec::new();
        for entry in entries(&pod) {
            match self.make(&stored, &pod, entry).await {
                Ok(Some(name)) => made.push((entry.name.clone(), name)),
                Ok(None) => {}
                Err((why, error)) => {
                    let about = Regarding::of(&stored, &self.resource);
                    let message = format!("PodResourceClaim {}: {why}", entry.name);
                    self.recorder.record(&about, EventType::Warning, "FailedResourceClaimCreation", message);
                    self.tell(key, &pod, &made).await?;
                    return Err(error);
                }
            }
        }
        self.tell(key, &pod, &made).await?;
        if !pod_state::node_name(&pod).is_empty() {
            self.reserve(&pod, key).await?;
        }
        Ok(Action::Done)
    }
}

impl PodClaims {
    fn is_behind(&self, key: &ObjectKey, pod: Option<&Stored>) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = pod.zip(written.get(key)).is_some_and(|(pod, written)| pod.revision() < *written);
        if !behind {
            written.remove(key);
        }
        behind
    }

    /// Makes the claim of an entry and gives its name, unless it is there already; an error with what to tell about it.
    async fn make(
        &self,
        stored: &Stored,
        pod: &Pod,
        entry: &PodResourceClaim,
    ) -> Result<Option<String>, (String, ReconcileError)> {
        let header = stored.header();
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        match told(pod, entry) {
            Some(None) => return Ok(None),
            Some(Some(name)) if self.is_ours(&header.namespace, name, &header.uid).await => return Ok(None),
            _ => {}
        }
        for claim in self.claims.lister().by_index(Index::CONTROLLER, &header.uid) {
            // Made, but never told.
            let typed = claim.typed::<ResourceClaim>().ok();
            let annotations = typed.and_then(|claim| claim.metadata.annotations.clone());
            if annotations.is_some_and(|all| all.get(CLAIM_OF) == Some(&entry.name)) {
                return Ok(Some(claim.header().name.to_string()));
            }
        }
        let missing = || {
            let why = format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
            (why.clone(), ReconcileError::other(why))
        };
        let template = self.templates.lister().get(&header.namespace, template).ok_or_else(missing)?;
        let failed = |error: serde_json::Error| (error.to_string(), ReconcileError::from(error));
        let template = serde_json::from_slice(&template.json()).map_err(failed)?;
        let body = body(&template, controller_reference(&self.resource, header), &header.name, &entry.name);
        let path = self.claims.resource().path(&header.namespace, "");
        match self.requests.create::<Written>(&path, body.to_string()).await {
            Ok(created) => Ok(Some(created.metadata.name)),
            Err(error) if request::is_namespace_terminating(&error) => Ok(None),
            Err(error) => Err((format!("create ResourceClaim : {}", error_message(&error)), error.into())),
        }
    }

    /// Whether a claim is there and was made for this pod. The informer may not have seen it yet.
    async fn is_ours(&self, namespace: &str, name: &str, uid: &str) -> bool {
        if let Some(claim) = self.claims.lister().get(namespace, name) {
            return claim.header().controller().is_some_and(|owner| *owner.uid == *uid);
        }
        let path = self.claims.resource().path(namespace, name);
        match self.requests.get::<Value>(&path).await {
            Ok(claim) => {
                let owners = claim["metadata"]["ownerReferences"].as_array();
                owners.into_iter().flatten().any(|owner| owner["controller"] == true && owner["uid"] == *uid)
            }
            // What can't be told is not made a second time.
            Err(error) => !request::is_not_found(&error),
        }
    }

    /// Writes the names of claims that were made into the pod's status.
    async fn tell(
        &self,
        key: &ObjectKey,
        pod: &Pod,
        made: &[(String, String)],
    ) -> Result<(), ReconcileError> {
        if made.is_empty() {
            return Ok(());
        }
        // What was told before stays only if it is told again.
        let known = entries(pod).iter().filter_map(|entry| Some((&entry.name, told(pod, entry)?)));
        let known = known.filter(|(entry, _)| made.iter().all(|(new, _)| new != *entry));
        let made = made.iter().map(|(entry, claim)| (entry, Some(claim.as_str())));
        let statuses: Vec<_> = known
            .chain(made)
            .map(|(entry, claim)| json!({"name": entry, "resourceClaimName": claim}))
            .collect();
        let apply = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": pod.metadata.uid},
            "status": {"resourceClaimStatuses": statuses},
        });
        let path = self.resource.path(&key.namespace, &key.name);
        let path = format!("{path}/status?fieldManager=ResourceClaimController&force=true");
        match self.requests.patch::<Written>(&path, PatchKind::Apply, &apply).await {
            Ok(written) => {
                let mut known = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(key.clone(), written.revision());
                Ok(())
            }
            Err(error) if request::is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reserves what is allocated for a pod that the scheduler has not brought to its node.
    async fn reserve(&self, pod: &Pod, key: &ObjectKey) -> Result<(), ReconcileError> {
        for name in entries(pod).iter().filter_map(|entry| name_of(pod, entry)) {
            let Some(stored) = self.claims.lister().get(&key.namespace, name) else { continue };
            let claim = stored.typed::<ResourceClaim>()?;
            let Some(status) = claim.status.as_ref().filter(|status| status.allocation.is_some()) else {
                continue;
            };
            let uid = pod_state::uid(pod);
            if status.reserved_for.iter().flatten().any(|user| *user.uid == *uid) {
                continue;
            }
            let mut new = status.clone();
            new.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: key.name.to_string(),
                uid: uid.to_string(),
            });
            let path = self.claims.resource().path(&key.namespace, name);
            self.requests.write_status(&path, stored.revision(), Some(status), &new).await?;
        }
        Ok(())
    }
}

/// The claim that a template asks for.
fn body(template: &Value, owner: impl serde::Serialize, pod: &str, entry: &str) -> Value {
    let mut metadata = json!({"generateName": name_base(pod, entry), "ownerReferences": [owner]});
    for key in ["annotations", "labels"] {
        if let Value::Object(known) = &template["spec"]["metadata"][key] {
            metadata[key] = Value::Object(known.clone());
        }
    }
    metadata["annotations"][CLAIM_OF] = entry.into();
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": template["spec"]["spec"],
    })
}

/// `POD-ENTRY-`; of names that are too long together, a part of each that is left in proportion.
fn name_base(pod: &str, entry: &str) -> String {
    let whole = format!("{pod}-{entry}-");
    if whole.len() <= NAME_BASE_BYTES_MAX {
        return whole;
    }
    let part = |text: &str, of: usize| {
        let end = text.len() * NAME_BASE_BYTES_MAX / of;
        text.get(..end).unwrap_or(text).to_owned()
    };
    let pod = part(pod, whole.len());
    // As upstream: the second part is measured by the name that the first one has already shortened.
    format!("{pod}-{}", part(entry, whole.len()))
}

struct Users {
    requests: Requests,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
}

#[async_trait]
impl Reconciler for Users {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.claims.lister().get(&key.namespace, &key.name) else {
            return Ok(Action::Done);
        };
        let claim = stored.typed::<ResourceClaim>()?;
        let status = claim.status.clone().unwrap_or_default();
        let users = status.reserved_for.clone().unwrap_or_default();
        let mut left = Vec::new();
        for user in &users {
            if self.is_used_by(&key.namespace, user).await? {
                left.push(user.clone());
            }
        }
        let is_unused = left.is_empty();
        let has_finalizer = stored.header().finalizers.iter().any(|known| **known == *FINALIZER);
        let is_freed = left.len() < users.len();
        let path = self.claims.resource().path(&key.namespace, &key.name);
        if is_freed || is_unused && has_finalizer && stored.header().deletion.is_some() {
            self.release(&path, &stored, &status, left, has_finalizer).await?;
        }
        if is_unused && self.was_made_for_nobody(&stored) {
            let uid = Some(stored.header().uid.to_string());
            match self.requests.delete(&path, &DeleteHow { uid, ..DeleteHow::default() }).await {
                Err(error) if !request::is_not_found(&error) && !request::is_conflict(&error) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(Action::Done)
    }
}

impl Users {
    /// Whether a user may still need the claim. Others than pods are somebody else's business.
    async fn is_used_by(
        &self,
        namespace: &str,
        user: &ResourceClaimConsumerReference,
    ) -> Result<bool, ReconcileError> {
        if user.resource != "pods" || user.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
            return Ok(true);
        }
        if let Some(stored) = self.pods.lister().get(namespace, &user.name) {
            let pod = stored.typed::<Pod>()?;
            return Ok(*stored.header().uid == *user.uid && !is_done(&pod));
        }
        // The informer may not know it yet, while the scheduler is about to bind it.
        let path = self.pods.resource().path(namespace, &user.name);
        match self.requests.get::<Value>(&path).await {
            Ok(pod) => Ok(pod["metadata"]["uid"] == *user.uid),
            Err(error) if request::is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes who is left. When that is nobody, the devices are given back, and the claim may be deleted.
    async fn release(
        &self,
        path: &str,
        stored: &Stored,
        status: &ResourceClaimStatus,
        left: Vec<ResourceClaimConsumerReference>,
        has_finalizer: bool,
    ) -> Result<(), ReconcileError> {
        let mut new = status.clone();
        if left.is_empty() && has_finalizer {
            new.allocation = None;
        }
        new.reserved_for = (!left.is_empty()).then_some(left);
        let written = self.requests.write_status(path, stored.revision(), Some(status), &new).await?;
        let revision = if *status == new { stored.revision() } else { written };
        if !has_finalizer || new.allocation.is_some() || revision == 0 {
            return Ok(());
        }
        let finalizers = stored.header().finalizers.iter().filter(|known| ***known != *FINALIZER);
        let finalizers: Vec<Value> = finalizers.map(|known| (&**known).into()).collect();
        let patch = json!({"metadata": {
            "resourceVersion": revision.to_string(),
            "finalizers": if finalizers.is_empty() { Value::Null } else { finalizers.into() },
        }});
        match self.requests.patch::<Written>(path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the claim was made for a pod that does not need it any more. A pod that is not known may be on its way: the
    /// garbage collector knows better.
    fn was_made_for_nobody(&self, claim: &Stored) -> bool {
        let header = claim.header();
        let Some(owner) = header.controller().filter(|owner| *owner.kind == *"Pod") else { return false };
        let pod = self.pods.lister().get(&header.namespace, &owner.name);
        pod.is_some_and(|stored| {
            let done = stored.typed::<Pod>().is_ok_and(|pod| is_done(&pod));
            stored.header().uid != owner.uid || done
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `handleClaim` in `pkg/controller/resourceclaim/controller.go`.
    #[test]
    fn names_are_shortened_in_proportion() {
        let long = "a".repeat(60);
        for (pod, entry, expected) in [
            ("web", "gpu", "web-gpu-".to_owned()),
            (&*long, "gpu", format!("{}-{}", "a".repeat(52), "gp")),
            (&*long, &*"b".repeat(60), format!("{}-{}", "a".repeat(28), "b".repeat(28))),
        ] {
            let base = name_base(pod, entry);
            assert_eq!(base, expected);
            assert!(base.len() <= NAME_BASE_BYTES_MAX);
        }
    }

    #[test]
    fn a_claim_is_made_as_its_template_says() {
        let template = json!({"spec": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"devices": {"requests": []}}
        }});
        let owner = json!({"kind": "Pod", "name": "web"});
        assert_eq!(
            body(&template, &owner, "web", "gpu"),
            json!({
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
                "metadata": {
                    "generateName": "web-gpu-", "ownerReferences": [owner], "labels": {"a": "b"},
                    "annotations": {"c": "d", CLAIM_OF: "gpu"}
                },
                "spec": {"devices": {"requests": []}}
            })
        );
    }
}
