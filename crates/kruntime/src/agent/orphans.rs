//! Pods that a runtime still has from an earlier agent, and nobody wants any more: they were deleted while no agent was there.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{Inner, Node};
use crate::runtime::PodUid;

/// After how long a pod is tried again that could not be removed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Removes them once, as soon as it is known which pods there are: those of the API and those of the nodes' own files.
pub(super) async fn run(inner: &Inner) {
    if inner.pods.synced().await {
        inner.statics.were_read.cancelled().await;
        let nodes: Vec<Arc<Node>> = inner.nodes().values().cloned().collect();
        for node in nodes.iter().filter(|node| node.config.owns_runtime) {
            inner.remove_orphans(node).await;
        }
    }
    std::future::pending::<()>().await;
}

impl Inner {
    async fn remove_orphans(&self, node: &Node) {
        let runtime = &node.config.runtime;
        loop {
            // What the runtime has is asked first: a pod that comes after that is no orphan.
            let there = runtime.pods();
            let known: HashSet<String> =
                self.pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
            let is_known = |uid: &PodUid| known.contains(uid.as_str()) || self.entries().contains_key(uid);
            let mut is_left = false;
            for uid in there.into_iter().filter(|uid| !is_known(uid)) {
                tracing::info!(pod = %uid, "a pod that nobody knows any more is removed");
                if let Err(error) = runtime.remove_pod(&uid).await {
                    tracing::warn!(pod = %uid, %error, "a pod that nobody knows any more is left");
                    is_left = true;
                } else if let Some(volumes) = &node.volumes {
                    volumes.tear_down(&uid).await;
                }
            }
            if !is_left {
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}
