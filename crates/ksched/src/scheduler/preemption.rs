//! Removing the pods that are in the way of another one (KEP-4832: beside the decisions about other pods).

use std::sync::Arc;

use futures::{StreamExt, stream};
use kcore::{Clock, clock::format_time};
use kreconcile::{EventRecorder, EventType};
use kube::{
    Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::Request,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    plugin::Rejection,
    pod::PodInfo,
    scheduler::{binding::Done, report::regarding},
    waiting::WaitingPods,
};

/// How many victims of one pod are being removed at once.
pub(super) const VICTIM_REQUESTS_MAX: usize = 16;

/// Who has to go, where and why.
pub(super) struct Preemption {
    pub(super) client: Client,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) recorder: EventRecorder,
    pub(super) waiting: WaitingPods,
    /// The pod that room is made for.
    pub(super) pod: Arc<PodInfo>,
    pub(super) node: Arc<str>,
    pub(super) victims: Vec<Arc<PodInfo>>,
    /// Pods of lower priority that were to get the same room.
    pub(super) displaced: Vec<Arc<PodInfo>>,
}

pub(super) async fn run(job: Preemption) -> Done {
    let since = Instant::now();
    let displaced: Vec<_> = job.displaced.iter().map(|other| clear_nomination(&job.client, other)).collect();
    stream::iter(displaced).buffer_unordered(VICTIM_REQUESTS_MAX).collect::<()>().await;
    // Those that go already need no second request.
    let victims = job.victims.iter().filter(|victim| !victim.deleting);
    let removals: Vec<_> = victims.map(|victim| remove(&job, victim)).collect();
    let results: Vec<_> = stream::iter(removals).buffer_unordered(VICTIM_REQUESTS_MAX).collect().await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    for error in &failed {
        tracing::warn!(%error, pod = %job.pod.name, namespace = %job.pod.namespace, "a victim can't be removed");
    }
    Done::Preemption { uid: Arc::clone(&job.pod.uid), failed: !failed.is_empty(), took: since.elapsed() }
}

async fn remove(job: &Preemption, victim: &Arc<PodInfo>) -> Result<(), kube::Error> {
    let mut message = format!("Preempted by pod {} on node {}", job.pod.uid, job.node);
    if job.waiting.reject(&victim.uid, "DefaultPreemption", Rejection::unschedulable("preempted")) {
        // It has a node in this scheduler's memory only, and goes back into the queue.
        message.push_str(" (in kube-scheduler memory).");
    } else {
        let told = write_status(&job.client, victim, disruption(job, victim)).await;
        let gone = match told {
            Ok(()) => delete(&job.client, victim).await,
            Err(error) => Err(error),
        };
        match gone {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            gone => gone?,
        }
    }
    job.recorder.record(&regarding(victim), EventType::Normal, "Preempted", message);
    Ok(())
}

/// The condition `DisruptionTarget` (KEP-3329).
fn disruption(job: &Preemption, victim: &PodInfo) -> Value {
    let scheduler = &job.pod.scheduler_name;
    let mut condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastProbeTime": null,
        "lastTransitionTime": format_time(job.clock.now()),
    });
    if victim.generation > 0 {
        condition["observedGeneration"] = victim.generation.into();
    }
    json!({"conditions": [condition]})
}

async fn delete(client: &Client, victim: &PodInfo) -> Result<(), kube::Error> {
    let uid = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
    let request = Request::new(format!("/api/v1/namespaces/{}/pods", victim.namespace));
    let request = request.delete(&victim.name, &parameters).map_err(kube::Error::BuildRequest)?;
    client.request::<IgnoredAny>(request).await.map(drop)
}

async fn clear_nomination(client: &Client, pod: &PodInfo) {
    if pod.nominated_node.is_none() {
        return;
    }
    if let Err(error) = write_status(client, pod, json!({"nominatedNodeName": null})).await {
        // It is told again when the pod is tried the next time.
        tracing::debug!(%error, pod = %pod.name, "the nominated node of a pod can't be cleared");
    }
}

/// Writes a part of a pod's status. The uid keeps the patch from hitting another pod of the same name.
pub(super) async fn write_status(client: &Client, pod: &PodInfo, status: Value) -> Result<(), kube::Error> {
    let patch = Patch::Strategic(json!({"metadata": {"uid": &*pod.uid}, "status": status}));
    let request = Request::new(format!("/api/v1/namespaces/{}/pods", pod.namespace));
    let request = request.patch_subresource("status", &pod.name, &PatchParams::default(), &patch);
    client.request::<IgnoredAny>(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}
