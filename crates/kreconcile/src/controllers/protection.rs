//! Claims and volumes that are in use stay until they no longer are (KEP-498).

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kcore::{Header, Stored};
use serde::Deserialize;

use crate::{
    controller::Controller,
    controllers::{Context, pod_state},
    finalizer::{self, Finalizer, FinalizerStep},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{Query, Requests},
    resource::Selection,
    trigger::{MapTo, Predicate, Trigger},
};

/// How many pods one page of a live list has.
const PAGE_PODS_MAX: usize = 500;

/// The controller `persistentvolumeclaim-protection-controller`: gives every PersistentVolumeClaim the finalizer
/// `kubernetes.io/pvc-protection`, and takes it off one that is being deleted when no pod on a node uses it.
pub fn claim_protection(context: &Context) -> Controller {
    const NAME: &str = "persistentvolumeclaim-protection-controller";
    let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let requests = context.requests(NAME);
    let finalizer = requests.finalizer(claims.resource(), CLAIM_FINALIZER);
    let reconciler = ClaimProtection { finalizer, requests, claims: claims.clone(), pods: pods.clone() };
    Controller::new(NAME, reconciler).on(Trigger::new(&claims, MapTo::Itself).when(open(CLAIM_FINALIZER))).on(
        Trigger::new(&pods, MapTo::each(|pod, keys| claims_of(pod, keys))).when(Predicate::when(|change| {
            // Others can't be what a claim has been waiting for.
            change
                .new_as::<Pod>()
                .is_none_or(|pod| is_shut_down(&pod) || pod_state::node_name(&pod).is_empty())
        })),
    )
}

/// The controller `persistentvolume-protection-controller`: gives every PersistentVolume the finalizer
/// `kubernetes.io/pv-protection`, and takes it off one that is being deleted when it is not bound.
pub fn volume_protection(context: &Context) -> Controller {
    const NAME: &str = "persistentvolume-protection-controller";
    let volumes = context.informers().of::<PersistentVolume>(Selection::all());
    let finalizer = context.requests(NAME).finalizer(volumes.resource(), VOLUME_FINALIZER);
    let reconciler = VolumeProtection { finalizer, volumes: volumes.clone() };
    Controller::new(NAME, reconciler).on(Trigger::new(&volumes, MapTo::Itself).when(open(VOLUME_FINALIZER)))
}

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// Whether there is anything to do about an object's finalizer.
fn is_open(object: &Header, finalizer: &str) -> bool {
    matches!(finalizer::step(object, finalizer), FinalizerStep::Add | FinalizerStep::CleanUp)
}

pub(super) fn open(finalizer: &'static str) -> Predicate {
    Predicate::when(move |change| {
        change.new.as_deref().is_some_and(|object| is_open(object.header(), finalizer))
    })
}

/// The claims that a pod's volumes may be about.
pub(crate) fn claims_of(pod: &Stored, keys: &mut Vec<ObjectKey>) {
    let Ok(typed) = pod.typed::<Pod>() else { return };
    let volumes = typed.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let namespace = &pod.header().namespace;
    keys.extend(volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        let made = || volume.ephemeral.is_some().then(|| format!("{}-{}", pod.header().name, volume.name));
        Some(ObjectKey::new(&**namespace, named.or_else(made)?))
    }));
}

/// Whether the node is done with a pod, or it was deleted by force. What then holds it up may wait for the claim itself.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Whether a pod keeps a claim from being deleted. One that is on no node yet does not: a node won't start it.
fn uses(pod: &Pod, claim: &Header) -> bool {
    let owned = || claim.controller().is_some_and(|owner| *owner.uid == *pod_state::uid(pod));
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut using = volumes.filter(|volume| {
        let named = volume.persistent_volume_claim.as_ref();
        let made = || {
            volume.ephemeral.is_some() && *claim.name == *format!("{}-{}", pod_state::name(pod), volume.name)
        };
        named.is_some_and(|source| *source.claim_name == *claim.name)
            || (!is_shut_down(pod) && made() && owned())
    });
    !pod_state::node_name(pod).is_empty() && using.next().is_some()
}

struct ClaimProtection {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    finalizer: Finalizer,
    requests: Requests,
}

#[async_trait]
impl Reconciler for ClaimProtection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(claim) = self.claims.lister().get(&key.namespace, &key.name) else {
            return Ok(Action::Done);
        };
        match self.finalizer.step(&claim) {
            FinalizerStep::Nothing | FinalizerStep::Work => Ok(Action::Done),
            FinalizerStep::Add => self.finalizer.add(&claim).await,
            FinalizerStep::CleanUp => {
                let known = self.pods.in_namespace(&key.namespace);
                if known.iter().any(|pod| uses(pod, claim.header())) || self.is_used(claim.header()).await? {
                    return Ok(Action::Done);
                }
                self.finalizer.release(&claim).await
            }
        }
    }
}

/// One page of a list of pods.
#[derive(Deserialize)]
struct PodPage {
    items: Vec<Pod>,
    metadata: PageMeta,
}

#[derive(Deserialize)]
struct PageMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

impl ClaimProtection {
    /// Asks the server itself: the informer may not know of a pod yet.
    async fn is_used(&self, claim: &Header) -> Result<bool, kube::Error> {
        let mut next = String::new();
        loop {
            let mut query = Query::new(self.pods.resource().path(&claim.namespace, ""));
            query.add("limit", &PAGE_PODS_MAX.to_string());
            query.add_unless_empty("continue", &next);
            let page: PodPage = self.requests.get(&query.finish()).await?;
            if page.items.iter().any(|pod| uses(pod, claim)) {
                return Ok(true);
            }
            if page.metadata.next.is_empty() {
                return Ok(false);
            }
            next = page.metadata.next;
        }
    }
}

struct VolumeProtection {
    volumes: Informer<PersistentVolume>,
    finalizer: Finalizer,
}

#[async_trait]
impl Reconciler for VolumeProtection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(volume) = self.volumes.lister().get("", &key.name) else { return Ok(Action::Done) };
        let typed = volume.typed::<PersistentVolume>()?;
        let phase = typed.status.as_ref().and_then(|status| status.phase.as_deref());
        match self.finalizer.step(&volume) {
            FinalizerStep::Add => self.finalizer.add(&volume).await,
            FinalizerStep::CleanUp if phase != Some("Bound") => self.finalizer.release(&volume).await,
            _ => Ok(Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The rules of upstream's `podUsesPVCForDeletion`.
    #[test]
    fn claims_are_used_by_pods_on_nodes() {
        let claim = |name: &str, owner: Option<&str>| {
            let owners = owner.map(|uid| json!([{"apiVersion": "v1", "kind": "Pod", "name": uid, "uid": uid, "controller": true}]));
            let metadata =
                json!({"name": name, "namespace": "n", "resourceVersion": "1", "ownerReferences": owners});
            Stored::from_value(json!({"metadata": metadata})).unwrap()
        };
        let named = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        let made = json!([{"name": "v", "ephemeral": {}}]);
        let gone = json!({"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        let none = json!({});
        let cases = [
            (&named, "node", &none, claim("data", None), true),
            (&named, "node", &none, claim("other", None), false),
            (&named, "", &none, claim("data", None), false),
            (&named, "node", &gone, claim("data", None), true),
            (&made, "node", &none, claim("p-v", Some("p")), true),
            (&made, "node", &none, claim("p-v", None), false),
            (&made, "node", &gone, claim("p-v", Some("p")), false),
        ];
        for (volumes, node, metadata, claim, expected) in cases {
            let mut pod = json!({"metadata": metadata, "spec": {"containers": [], "nodeName": node, "volumes": volumes}});
            pod["metadata"]["name"] = "p".into();
            pod["metadata"]["uid"] = "p".into();
            let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(uses(&typed, claim.header()), expected, "{pod} {}", claim.header().name);
        }
    }
}
