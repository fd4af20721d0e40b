//! The way from the API server to the nodes of the same process.

use std::{
    fmt, io,
    sync::{Arc, OnceLock, Weak},
};

use async_trait::async_trait;
use kapi::node::{NodeConnection, NodeDialer};
use kruntime::{NodeAgent, serve::kubelet_service};

use crate::serve::{DUPLEX_BYTES, Tasks};

/// Connects to a node's agent in this process, without a socket.
pub(crate) struct LocalNodes {
    /// Weak, because the agent's clients hold the server, and the server holds this.
    agent: OnceLock<Weak<NodeAgent>>,
    tasks: Tasks,
}

impl LocalNodes {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { agent: OnceLock::new(), tasks }
    }

    /// Tells which agent the nodes have; only the first one counts.
    pub(crate) fn set(&self, agent: &Arc<NodeAgent>) {
        self.agent.get_or_init(|| Arc::downgrade(agent));
    }
}

impl fmt::Debug for LocalNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalNodes").finish_non_exhaustive()
    }
}

#[async_trait]
impl NodeDialer for LocalNodes {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeConnection>> {
        let agent = self.agent.get().and_then(Weak::upgrade);
        let agent = agent.filter(|agent| agent.nodes().iter().any(|name| **name == *node));
        let agent = agent.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, format!("node {node} is not in this process"))
        })?;
        let service = kubelet_service(&agent, node);
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        self.tasks.spawn(async move {
            if let Err(error) = service.serve(far).await {
                tracing::debug!(%error, "a connection to a node ended");
            }
        });
        Ok(Box::new(near))
    }
}
