//! Tells users what became of their pods: events and the condition `PodScheduled`.

use std::{fmt::Display, sync::Arc};

use k8s_openapi::{
    api::scheduling::v1beta1::PodGroup,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kcore::{Clock, clock::format_time};
use kreconcile::{EventRecorder, EventType, Regarding};
use kube::{
    Client,
    api::{Patch, PatchParams},
    core::Request,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    decision::Nomination,
    metrics::Metrics,
    pod::{PodInfo, ScheduledCondition},
    scheduler::{binding::Done, preemption::write_status},
};

const UNSCHEDULABLE: &str = "Unschedulable";
const GROUP_SCHEDULED: &str = "PodGroupScheduled";
const GATED: &str = "SchedulingGated";
const ERROR: &str = "SchedulerError";
/// The message of the condition of a gated pod, as the API server writes it when the pod is created.
const GATED_MESSAGE: &str = "Scheduling is blocked due to non-empty scheduling gates";

pub(super) struct Reporter {
    client: Client,
    clock: Arc<dyn Clock>,
    recorder: EventRecorder,
    metrics: Metrics,
}

impl Reporter {
    pub(super) fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        recorder: EventRecorder,
        metrics: Metrics,
    ) -> Self {
        Self { client, clock, recorder, metrics }
    }

    /// The clock and the recorder, for what is told elsewhere.
    pub(super) fn parts(&self) -> (Arc<dyn Clock>, EventRecorder) {
        (Arc::clone(&self.clock), self.recorder.clone())
    }

    pub(super) fn bound(&self, pod: &PodInfo, node: &str) {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
        self.recorder.record(&regarding(pod), EventType::Normal, "Scheduled", message);
    }

    /// Each of these gives the condition that the pod has now, for the next comparison.
    pub(super) fn unschedulable(
        &self,
        pod: &Arc<PodInfo>,
        message: &str,
        nomination: &Nomination,
        written: Option<ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        self.recorder.record(&regarding(pod), EventType::Warning, "FailedScheduling", message);
        self.set(pod, UNSCHEDULABLE, message, nomination, written.as_ref(), tasks).or(written)
    }

    pub(super) fn errored(
        &self,
        pod: &Arc<PodInfo>,
        error: &dyn Display,
        written: Option<ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        let message = error.to_string();
        self.recorder.record(&regarding(pod), EventType::Warning, "FailedScheduling", message.as_str());
        self.set(pod, ERROR, &message, &Nomination::Keep, written.as_ref(), tasks).or(written)
    }

    pub(super) fn gated(
        &self,
        pod: &Arc<PodInfo>,
        written: Option<&ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        self.set(pod, GATED, GATED_MESSAGE, &Nomination::Keep, written, tasks)
    }

    /// Writes into a `PodGroup` whether its pods have places, unless it says so already. One whose pods had places once keeps
    /// saying so (upstream's `updatePodGroupCondition`).
    pub(super) fn group(&self, group: &PodGroup, scheduled: bool, message: &str, tasks: &mut JoinSet<Done>) {
        let conditions = group.status.as_ref().and_then(|status| status.conditions.as_ref());
        let known = conditions.and_then(|all| all.iter().find(|known| known.type_ == GROUP_SCHEDULED));
        let (status, reason) = if scheduled { ("True", "Scheduled") } else { ("False", UNSCHEDULABLE) };
        let is_same =
            |known: &Condition| known.status == status && known.reason == reason && known.message == message;
        if known.is_some_and(|known| is_same(known) || (known.status == "True" && !scheduled)) {
            return;
        }
        let since =
            known.filter(|known| known.status == status).map(|known| json!(known.last_transition_time));
        let condition = json!({
            "type": GROUP_SCHEDULED,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| json!(format_time(self.clock.now()))),
            "observedGeneration": group.metadata.generation,
        });
        let patch = json!({"metadata": {"uid": group.metadata.uid}, "status": {"conditions": [condition]}});
        tasks.spawn(write_group(self.client.clone(), group.metadata.clone(), patch));
    }

    /// Writes the condition unless it is there already; gives it when it was written.
    fn set(
        &self,
        pod: &Arc<PodInfo>,
        reason: &str,
        message: &str,
        nomination: &Nomination,
        written: Option<&ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        let known = written.or(pod.condition.as_ref());
        let is_same = known.is_some_and(|known| &*known.reason == reason && &*known.message == message);
        let nominated = match nomination {
            Nomination::Keep => None,
            Nomination::Clear => pod.nominated_node.as_ref().map(|_| Value::Null),
            Nomination::Node(node) if pod.nominated_node.as_ref() == Some(node) => None,
            Nomination::Node(node) => Some(Value::from(&**node)),
        };
        if is_same && nominated.is_none() {
            return None;
        }
        let mut condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastProbeTime": null,
        });
        if pod.generation > 0 {
            condition["observedGeneration"] = json!(pod.generation);
        }
        if known.is_none() {
            condition["lastTransitionTime"] = json!(format_time(self.clock.now()));
        }
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = node;
        }
        tasks.spawn(write(self.client.clone(), pod.clone(), status, self.metrics.clone()));
        Some(ScheduledCondition { reason: reason.into(), message: message.into() })
    }
}

async fn write(client: Client, pod: Arc<PodInfo>, status: Value, metrics: Metrics) -> Done {
    let call = metrics.api_call("pod_status_patch");
    let written = write_status(&client, &pod, status).await;
    call.end(written.is_ok());
    if let Err(error) = written {
        // The next try of the pod writes it again if the pod still is as it was.
        tracing::debug!(%error, namespace = %pod.namespace, name = %pod.name, "the condition of a pod can't be written");
    }
    Done::Report
}

async fn write_group(client: Client, meta: ObjectMeta, patch: Value) -> Done {
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    let path = format!("/apis/scheduling.k8s.io/v1beta1/namespaces/{namespace}/podgroups");
    let patch = Patch::Strategic(patch);
    let request = Request::new(path).patch_subresource("status", &name, &PatchParams::default(), &patch);
    let written = match request {
        Ok(request) => client.request::<IgnoredAny>(request).await.map(drop),
        Err(error) => Err(kube::Error::BuildRequest(error)),
    };
    if let Err(error) = written {
        // The next try of the gang writes it again.
        tracing::debug!(%error, namespace, name, "the condition of a pod group can't be written");
    }
    Done::Report
}

pub(super) fn regarding(pod: &PodInfo) -> Regarding {
    Regarding {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        ..Regarding::default()
    }
}
