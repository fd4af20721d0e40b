//! What the pods and nodes of this process use, for the resource metrics API.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use async_trait::async_trait;
use kapi::usage::{Measured, Usage, UsageSource};
use kruntime::{NodeAgent, PodUid};

/// Asks the agent of the nodes. Nodes elsewhere are not known to it.
#[derive(Default)]
pub(crate) struct LocalUsage {
    /// Weak, because the agent's clients hold the server, and the server holds this.
    agent: OnceLock<Weak<NodeAgent>>,
}

impl LocalUsage {
    /// Tells which agent the nodes have; only the first one counts.
    pub(crate) fn set(&self, agent: &Arc<NodeAgent>) {
        self.agent.get_or_init(|| Arc::downgrade(agent));
    }

    fn agent(&self) -> Option<Arc<NodeAgent>> {
        self.agent.get().and_then(Weak::upgrade)
    }
}

impl fmt::Debug for LocalUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalUsage").finish_non_exhaustive()
    }
}

#[async_trait]
impl UsageSource for LocalUsage {
    async fn pods(&self, uids: &[Box<str>]) -> Vec<Option<Measured<Vec<(Arc<str>, Usage)>>>> {
        let Some(agent) = self.agent() else { return vec![None; uids.len()] };
        let uids: Vec<PodUid> = uids.iter().map(|uid| PodUid::from(&**uid)).collect();
        let measured = |pod: kruntime::stats::PodStats| {
            let containers = pod.containers.into_iter().map(|container| {
                let usage =
                    Usage { cpu_nanocores: container.cpu_nanocores, memory_bytes: container.memory_bytes };
                (container.name, usage)
            });
            Measured { at: pod.at, window: pod.window, usage: containers.collect() }
        };
        agent.pod_stats(&uids).await.into_iter().map(|pod| pod.map(measured)).collect()
    }

    async fn nodes(&self, names: &[Box<str>]) -> Vec<Option<Measured<Usage>>> {
        let Some(agent) = self.agent() else { return vec![None; names.len()] };
        let mut all = Vec::with_capacity(names.len());
        for stats in agent.node_stats(names).await {
            all.push(stats.map(|node| Measured {
                at: node.at,
                window: node.window,
                usage: Usage { cpu_nanocores: node.cpu_nanocores, memory_bytes: node.memory_bytes },
            }));
        }
        all
    }
}
