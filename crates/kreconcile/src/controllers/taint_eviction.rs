//! Pods on nodes that they do not tolerate any longer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kcore::{Clock, Stored};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        node_lifecycle::{PODS_BY_NODE, pods_by_node},
        pod_gc::mark_disrupted,
        pod_state,
    },
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, Requests},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// The controller `taint-eviction-controller`: deletes pods from nodes with a taint of the effect NoExecute that they do
/// not tolerate, at once or when their `tolerationSeconds` are over.
///
/// The time runs from the taint's `timeAdded`, so a restart of the controller does not start it anew.
pub fn taint_eviction(context: &Context) -> Controller {
    const NAME: &str = "taint-eviction-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    pods.add_index(pods_by_node());
    let reconciler = Evictions {
        resource: ResourceType::of::<Pod>(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        nodes: nodes.clone(),
        pods: pods.clone(),
        since: Mutex::default(),
    };
    let of_node = {
        let pods = pods.clone();
        MapTo::Keys(Arc::new(move |change, keys| {
            let (old, new) = (taints_of(change.old.as_deref()), taints_of(change.new.as_deref()));
            if old != new {
                let on_node = pods.lister().by_index(PODS_BY_NODE, &change.header().name);
                keys.extend(on_node.iter().map(|pod| ObjectKey::of(pod.header())));
            }
        }))
    };
    Controller::new(NAME, reconciler).workers(8).on(Trigger::new(&nodes, of_node)).on(Trigger::new(
        &pods,
        MapTo::Itself,
    )
    .when(crate::trigger::Predicate::when(|change| {
        // Only a pod that is newly bound, or tolerates something else, can have to go.
        fn what(pod: Option<&Pod>) -> Option<(Option<&str>, Option<&[Toleration]>)> {
            let spec = pod?.spec.as_ref()?;
            Some((spec.node_name.as_deref(), spec.tolerations.as_deref()))
        }
        let (old, new) = (change.old_as(), change.new_as());
        new.is_some() && (change.is_recreated() || what(old.as_deref()) != what(new.as_deref()))
    })))
}

fn taints_of(node: Option<&Stored>) -> Vec<Taint> {
    let node = node.and_then(|node| node.typed::<Node>().ok());
    let taints = node.and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect()
}

/// Whether a toleration covers a taint (`Toleration.ToleratesTaint`).
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        operator @ ("Lt" | "Gt") => {
            let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<i64>().ok());
            let values = number(&taint.value).zip(number(&toleration.value));
            values.is_some_and(|(taint, limit)| if operator == "Lt" { taint < limit } else { taint > limit })
        }
        _ => false,
    }
}

/// When a pod has to go from a node with these taints; `None` when it may stay for ever.
fn leaves_at(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Timestamp> {
    let leave = |taint: &Taint| {
        let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if tolerating.peek().is_none() {
            return Some(now);
        }
        let seconds = tolerating.filter_map(|toleration| toleration.toleration_seconds).min()?;
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    };
    taints.iter().filter_map(leave).min()
}

struct Evictions {
    resource: ResourceType,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    since: Mutex<HashMap<ObjectKey, Seen>>,
}

/// What is known of a pod.
struct Seen {
    uid: Arc<str>,
    /// Since when it has been seen with taints that it does not tolerate for ever (upstream's `CreatedAt` of what is timed).
    since: Timestamp,
    /// When it is to go, if that has been decided.
    leaves_at: Option<Timestamp>,
}

#[async_trait]
impl Reconciler for Evictions {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.pods.lister().get(&key.namespace, &key.name) else {
            self.since().remove(key);
            return Ok(Action::Done);
        };
        let pod = stored.typed::<Pod>()?;
        if stored.header().deletion.is_some() || pod_state::is_terminal(&pod) {
            self.since().remove(key);
            return Ok(Action::Done);
        }
        let node = self.nodes.lister().get("", pod_state::node_name(&pod));
        let taints = taints_of(node.as_deref());
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let now = self.clock.now();
        // A taint that does not say since when it is there counts from the first look.
        let since = self.seen_since(key, &stored.header().uid, now);
        let Some(at) = leaves_at(&taints, tolerations, since) else {
            let known = self.since().remove(key);
            if known.is_some_and(|known| known.leaves_at.is_some()) {
                self.tell_cancelled(key, &stored);
            }
            return Ok(Action::Done);
        };
        if at > now {
            if let Some(known) = self.since().get_mut(key) {
                known.leaves_at = Some(at);
            }
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            return Ok(Action::After(wait));
        }
        // It was to go later, and has to go now.
        let planned = self.since().get_mut(key).and_then(|known| known.leaves_at.take());
        if planned.is_some_and(|planned| planned > now) {
            self.tell_cancelled(key, &stored);
        }
        self.evict(key, &stored, &pod).await?;
        self.since().remove(key);
        Ok(Action::Done)
    }
}

impl Evictions {
    fn since(&self) -> MutexGuard<'_, HashMap<ObjectKey, Seen>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when a pod is looked at; one of the same name begins anew.
    fn seen_since(&self, key: &ObjectKey, uid: &str, now: Timestamp) -> Timestamp {
        let mut since = self.since();
        let fresh = || Seen { uid: uid.into(), since: now, leaves_at: None };
        let entry = since.entry(key.clone()).or_insert_with(fresh);
        if *entry.uid != *uid {
            *entry = fresh();
        }
        entry.since
    }

    /// What was planned is not done; upstream tells so (`cancelWorkWithEvent`).
    fn tell_cancelled(&self, key: &ObjectKey, stored: &Stored) {
        let about = Regarding::of(stored, &self.resource);
        let message = format!("Cancelling deletion of Pod {key}");
        self.recorder.record(&about, EventType::Normal, "TaintManagerEviction", message);
    }

    async fn evict(&self, key: &ObjectKey, stored: &Stored, pod: &Pod) -> Result<(), ReconcileError> {
        let about = Regarding::of(stored, &self.resource);
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.record(&about, EventType::Normal, "TaintManagerEviction", message);
        let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        mark_disrupted(&self.requests, stored, pod, why, None, self.clock.now()).await?;
        let how = DeleteHow { uid: Some(stored.header().uid.to_string()), ..DeleteHow::default() };
        match self.requests.delete(&self.resource.path(&key.namespace, &key.name), &how).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pods_leave_when_they_no_longer_tolerate() {
        let taint = json!({"key": "gone", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"});
        let check = |taints: Value, tolerations: Value, expected: Option<i64>| {
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            let known: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            let now = Timestamp::from_second(500).unwrap();
            let at = leaves_at(&taints, &known, now).map(Timestamp::as_second);
            assert_eq!(at, expected, "{tolerations}");
        };
        check(json!([]), json!([]), None);
        check(json!([taint]), json!([]), Some(500));
        check(json!([taint]), json!([{"operator": "Exists"}]), None);
        check(
            json!([taint]),
            json!([{"key": "gone", "operator": "Exists", "tolerationSeconds": 300}]),
            Some(400),
        );
        check(json!([taint]), json!([{"key": "gone", "value": "other"}]), Some(500));
        check(
            json!([taint]),
            json!([{"key": "gone", "operator": "Exists", "effect": "NoSchedule"}]),
            Some(500),
        );
        check(
            json!([taint, {"key": "more", "effect": "NoExecute"}]),
            json!([{"key": "gone", "operator": "Exists", "tolerationSeconds": 900}, {"key": "more", "operator": "Exists"}]),
            Some(1000),
        );
    }
}
