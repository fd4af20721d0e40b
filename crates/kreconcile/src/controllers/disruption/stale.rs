//! Pods that were about to be disrupted, and then were not.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kcore::{Clock, Stored, clock::format_time};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{Context, disruption::STALE_DISRUPTION_AGE, pod_state},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::Selection,
    trigger::{MapTo, Predicate, Trigger},
};

pub(super) fn stale_conditions(context: &Context, name: &'static str) -> Controller {
    let pods = context.informers().of::<Pod>(Selection::all());
    let reconciler = StaleConditions {
        pods: pods.clone(),
        requests: context.requests(name),
        clock: Arc::clone(context.clock()),
    };
    let marked =
        Predicate::when(|change| change.new_as::<Pod>().is_some_and(|pod| marked_since(&pod).is_some()));
    Controller::new(name, reconciler).on(Trigger::new(&pods, MapTo::Itself).when(marked))
}

/// Since when a pod that lives says that it is about to be disrupted. What its node says is not doubted: it may take any
/// time until such a pod goes.
fn marked_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod_state::condition(pod, "DisruptionTarget")?;
    let by_node = condition.reason.as_deref() == Some("TerminationByKubelet");
    let counts = condition.status == "True" && !by_node && pod_state::is_active(pod);
    counts.then(|| condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// How long until the pod's condition is stale; `None` when it has none that could be
/// (`nonTerminatingPodHasStaleDisruptionCondition`).
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let age = Duration::try_from(now.duration_since(marked_since(pod)?)).unwrap_or_default();
    Some(STALE_DISRUPTION_AGE.saturating_sub(age))
}

struct StaleConditions {
    pods: Informer<Pod>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for StaleConditions {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.pods.lister().get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        let now = self.clock.now();
        match stale_in(&*stored.typed::<Pod>()?, now) {
            None => return Ok(Action::Done),
            Some(wait) if !wait.is_zero() => return Ok(Action::After(wait)),
            Some(_) => {}
        }
        let patch = taken_back(&stored, now)?;
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", key.namespace, key.name);
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }
}

/// The patch that sets the condition to False, for exactly this revision of the pod.
fn taken_back(stored: &Stored, now: Timestamp) -> Result<Value, serde_json::Error> {
    let pod = stored.value()?;
    let mut conditions = pod["status"]["conditions"].clone();
    let all = conditions.as_array_mut().into_iter().flatten();
    for condition in all.filter(|condition| condition["type"] == "DisruptionTarget") {
        *condition =
            json!({"type": "DisruptionTarget", "status": "False", "lastTransitionTime": format_time(now)});
        if let Some(generation) = pod["metadata"]["generation"].as_i64() {
            condition["observedGeneration"] = generation.into();
        }
    }
    Ok(json!({
        "metadata": {"resourceVersion": stored.revision().to_string()},
        "status": {"conditions": conditions},
    }))
}
