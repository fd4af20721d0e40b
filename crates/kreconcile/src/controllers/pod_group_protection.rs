//! Groups of pods stay until none of their pods runs (KEP-5832).

use async_trait::async_trait;
use k8s_openapi::api::{core::v1::Pod, scheduling::v1beta1::PodGroup};
use kcore::Stored;

use crate::{
    cache::Index,
    change::Change,
    controller::Controller,
    controllers::Context,
    finalizer::{self, Finalizer, FinalizerStep},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    resource::Selection,
    trigger::{MapTo, Predicate, Trigger},
};

const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";
/// Pods that have not ended, by the groups that they are of.
const BY_GROUP: &str = "active-by-pod-group";

/// The controller `podgroup-protection-controller`: takes the finalizer `scheduling.k8s.io/podgroup-protection`, which admission
/// gives every PodGroup, off one that is being deleted when all its pods have ended or are gone.
pub fn pod_group_protection(context: &Context) -> Controller {
    const NAME: &str = "podgroup-protection-controller";
    let groups = context.informers().of::<PodGroup>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    pods.add_index(Index::new(BY_GROUP, |pod, emit| {
        if let Some(key) = group_of(pod) {
            emit(&key.to_string());
        }
    }));
    let reconciler = GroupProtection {
        finalizer: context.requests(NAME).finalizer(groups.resource(), FINALIZER),
        groups: groups.clone(),
        pods: pods.clone(),
    };
    let goes = Predicate::when(|change: &Change| {
        let group = change.new.as_deref();
        group.is_some_and(|group| finalizer::step(group.header(), FINALIZER) == FinalizerStep::CleanUp)
    });
    let left = MapTo::Keys(std::sync::Arc::new(|change: &Change, keys| {
        let of = |side: &Option<std::sync::Arc<Stored>>| side.as_deref().and_then(group_of);
        let (was, is) = (of(&change.old), of(&change.new));
        keys.extend(was.filter(|was| is.as_ref() != Some(was)));
    }));
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&groups, MapTo::Itself).when(goes))
        .on(Trigger::new(&pods, left))
}

/// The group of a pod that has not ended.
fn group_of(pod: &Stored) -> Option<ObjectKey> {
    let typed = pod.typed::<Pod>().ok()?;
    let phase = typed.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let group = typed.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_deref()?;
    Some(ObjectKey::new(&*pod.header().namespace, group))
}

struct GroupProtection {
    groups: Informer<PodGroup>,
    pods: Informer<Pod>,
    finalizer: Finalizer,
}

#[async_trait]
impl Reconciler for GroupProtection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(group) = self.groups.lister().get(&key.namespace, &key.name) else {
            return Ok(Action::Done);
        };
        let goes = self.finalizer.step(&group) == FinalizerStep::CleanUp;
        if !goes || !self.pods.lister().by_index(BY_GROUP, &key.to_string()).is_empty() {
            return Ok(Action::Done);
        }
        self.finalizer.release(&group).await
    }
}
