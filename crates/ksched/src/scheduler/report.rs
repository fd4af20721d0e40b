//! Tells users what became of their pods: events and the condition `PodScheduled`.

use std::sync::Arc;

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
    plugin::BindError,
    pod::{PodInfo, ScheduledCondition},
    scheduler::binding::Done,
};

const UNSCHEDULABLE: &str = "Unschedulable";
const GATED: &str = "SchedulingGated";
const ERROR: &str = "SchedulerError";
/// The message of the condition of a gated pod, as the API server writes it when the pod is created.
const GATED_MESSAGE: &str = "Scheduling is blocked due to non-empty scheduling gates";

pub(super) struct Reporter {
    client: Client,
    clock: Arc<dyn Clock>,
    recorder: EventRecorder,
}

impl Reporter {
    pub(super) fn new(client: Client, clock: Arc<dyn Clock>, recorder: EventRecorder) -> Self {
        Self { client, clock, recorder }
    }

    pub(super) fn bound(&self, pod: &PodInfo, node: &str) {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
        self.recorder.record(&regarding(pod), EventType::Normal, "Scheduled", message);
    }

    /// Each of these gives the condition that the pod has now, for the next comparison.
    pub(super) fn unschedulable(
        &self,
        pod: &PodInfo,
        message: &str,
        nominated: Option<&str>,
        written: Option<ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        self.recorder.record(&regarding(pod), EventType::Warning, "FailedScheduling", message);
        self.set(pod, UNSCHEDULABLE, message, nominated, written.as_ref(), tasks).or(written)
    }

    pub(super) fn errored(
        &self,
        pod: &PodInfo,
        error: &BindError,
        written: Option<ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        let message = error.to_string();
        self.recorder.record(&regarding(pod), EventType::Warning, "FailedScheduling", message.as_str());
        self.set(pod, ERROR, &message, None, written.as_ref(), tasks).or(written)
    }

    pub(super) fn gated(
        &self,
        pod: &PodInfo,
        written: Option<&ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        self.set(pod, GATED, GATED_MESSAGE, None, written, tasks)
    }

    /// Writes the condition unless it is there already; gives it when it was written.
    fn set(
        &self,
        pod: &PodInfo,
        reason: &str,
        message: &str,
        nominated: Option<&str>,
        written: Option<&ScheduledCondition>,
        tasks: &mut JoinSet<Done>,
    ) -> Option<ScheduledCondition> {
        let known = written.or(pod.condition.as_ref());
        let is_same = known.is_some_and(|known| &*known.reason == reason && &*known.message == message);
        if is_same && (nominated.is_none() || nominated == pod.nominated_node.as_deref()) {
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
            status["nominatedNodeName"] = json!(node);
        }
        // The uid keeps the patch from hitting another pod of the same name.
        let patch = json!({"metadata": {"uid": &*pod.uid}, "status": status});
        tasks.spawn(write(self.client.clone(), Arc::clone(&pod.namespace), Arc::clone(&pod.name), patch));
        Some(ScheduledCondition { reason: reason.into(), message: message.into() })
    }
}

async fn write(client: Client, namespace: Arc<str>, name: Arc<str>, patch: Value) -> Done {
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods")).patch_subresource(
        "status",
        &name,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    );
    let result = match request {
        Ok(request) => client.request::<IgnoredAny>(request).await.map(|_| ()),
        Err(error) => Err(kube::Error::BuildRequest(error)),
    };
    if let Err(error) = result {
        // The next try of the pod writes it again if the pod still is as it was.
        tracing::debug!(%error, %namespace, %name, "the condition of a pod can't be written");
    }
    Done::Report
}

fn regarding(pod: &PodInfo) -> Regarding {
    Regarding {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        ..Regarding::default()
    }
}
