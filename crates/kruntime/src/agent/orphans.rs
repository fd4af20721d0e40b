//! Pods that a runtime still has from an earlier agent, and nobody wants any more: they were deleted while no agent was there.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;

use super::{Inner, Node, is_over};
use crate::{
    runtime::{ContainerPhase, ObservedContainer, PodUid},
    volumes::Volumes,
};

/// After how long a pod is tried again that could not be removed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Removes them once, as soon as it is known which pods there are: those of the API and those of the nodes' own files.
pub(super) async fn run(inner: &Inner) {
    if inner.pods.synced().await {
        inner.statics.were_read.cancelled().await;
        let nodes: Vec<Arc<Node>> = inner.nodes().values().cloned().collect();
        let owning = nodes.iter().filter(|node| node.config.owns_runtime || node.takes_plugins());
        futures::future::join_all(owning.map(|node| inner.remove_orphans(node))).await;
    }
    std::future::pending::<()>().await;
}

impl Inner {
    async fn remove_orphans(&self, node: &Node) {
        let runtime = &node.config.runtime;
        loop {
            // What there is is asked first: a pod that comes after that is no orphan.
            let of_runtime = if node.config.owns_runtime { runtime.pods() } else { Vec::new() };
            let with_volumes: Vec<PodUid> = match &node.volumes {
                Some(volumes) if node.takes_plugins() => volumes.pods(),
                _ => Vec::new(),
            };
            let pods = self.pods.list();
            let uids = |pods: &[Arc<Pod>]| -> HashSet<String> {
                pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect()
            };
            let known = uids(&pods);
            let unfinished: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| !is_over(pod)).collect();
            let unfinished = uids(&unfinished);
            let mut is_left = false;
            for uid in of_runtime {
                if known.contains(uid.as_str()) || self.entries().contains_key(&uid) {
                    continue;
                }
                tracing::info!(pod = %uid, "a pod that nobody knows any more is removed");
                if let Err(error) = runtime.remove_pod(&uid).await {
                    tracing::warn!(pod = %uid, %error, "a pod that nobody knows any more is left");
                    is_left = true;
                } else if let Some(volumes) = &node.volumes {
                    is_left |= tear_down(volumes, &uid).await;
                }
            }
            // Pods that have ended, or are gone, may have left volumes that others wait for.
            for uid in with_volumes {
                let runs = |seen: &ObservedContainer| matches!(seen.phase, ContainerPhase::Running { .. });
                let is_used = unfinished.contains(uid.as_str())
                    || self.entries().contains_key(&uid)
                    || runtime.observe(&uid).containers.iter().any(runs);
                if !is_used && let Some(volumes) = &node.volumes {
                    is_left |= tear_down(volumes, &uid).await;
                }
            }
            if !is_left {
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Says whether something is left.
async fn tear_down(volumes: &Volumes, uid: &PodUid) -> bool {
    let Err(error) = volumes.tear_down(uid).await else { return false };
    tracing::warn!(pod = %uid, %error, "the volumes of a pod that has ended are left");
    true
}
