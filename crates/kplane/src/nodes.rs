//! The way from the API server to the nodes: to those of this process without a socket, to others by TLS.

mod usage;

use std::{
    fmt, io,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use async_trait::async_trait;
use kapi::node::{KubeletDialer, KubeletOptions, NodeConnection, NodeDialer, NodeTarget, ServingAuthority};
use kruntime::{NodeAgent, serve::kubelet_service};
use tokio::time::Instant;

use crate::{
    ca::{Ca, RENEWAL},
    identities,
    serve::{DUPLEX_BYTES, Tasks},
};

pub(crate) use self::usage::NodesUsage;

/// Whose serving certificates of nodes elsewhere are believed: for [`ClusterBuilder::kubelet_authority`](crate::ClusterBuilder::kubelet_authority).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum KubeletAuthority {
    /// The cluster's own, which signs what nodes ask for.
    #[default]
    Cluster,
    /// This one, in PEM.
    Pem(String),
    /// Any certificate is taken, as upstream does by default: who can answer at a node's address sees what is sent to its pods.
    Unchecked,
}

impl KubeletAuthority {
    pub(crate) fn serving(self, ca: &Ca) -> ServingAuthority {
        match self {
            Self::Cluster => ServingAuthority::Pem(ca.certificate_pem().to_owned()),
            Self::Pem(pem) => ServingAuthority::Pem(pem),
            Self::Unchecked => ServingAuthority::Unchecked,
        }
    }
}

/// Connects to a node's agent, in this process or elsewhere.
pub(crate) struct Nodes {
    /// Weak, because the agent's clients hold the server, and the server holds this.
    agent: OnceLock<Weak<NodeAgent>>,
    remote: Remote,
    tasks: Tasks,
}

/// Connects to nodes elsewhere, as a user that the cluster's authority vouches for.
struct Remote {
    ca: Arc<Ca>,
    /// Whose serving certificates are believed.
    authority: ServingAuthority,
    /// Made at the first use, and again before its certificate ends.
    made: Mutex<Option<(Instant, KubeletDialer)>>,
}

impl Remote {
    fn dialer(&self) -> io::Result<KubeletDialer> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, dialer)) = &*made
            && at.elapsed() < RENEWAL
        {
            return Ok(dialer.clone());
        }
        let user = self.ca.client(identities::KUBELET_CLIENT, &[]).map_err(io::Error::other)?;
        let options = KubeletOptions {
            identity: Some((user.certificate_pem, user.key_pem)),
            authority: self.authority.clone(),
            // Nodes may be processes of this machine.
            loopback: true,
            ..KubeletOptions::default()
        };
        let dialer = KubeletDialer::new(options).map_err(io::Error::other)?;
        *made = Some((Instant::now(), dialer.clone()));
        Ok(dialer)
    }
}

impl Nodes {
    /// `authority`: whose serving certificates of nodes elsewhere are believed.
    pub(crate) fn new(tasks: Tasks, ca: Arc<Ca>, authority: ServingAuthority) -> Self {
        let remote = Remote { ca, authority, made: Mutex::default() };
        Self { agent: OnceLock::new(), remote, tasks }
    }

    /// Tells which agent the nodes of this process have; only the first one counts.
    pub(crate) fn set(&self, agent: &Arc<NodeAgent>) {
        self.agent.get_or_init(|| Arc::downgrade(agent));
    }

    /// The agent, if it has the node.
    fn local(&self, node: &str) -> Option<Arc<NodeAgent>> {
        let agent = self.agent.get()?.upgrade()?;
        agent.nodes().iter().any(|name| **name == *node).then_some(agent)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

#[async_trait]
impl NodeDialer for Nodes {
    async fn dial(&self, node: &NodeTarget) -> io::Result<Box<dyn NodeConnection>> {
        let Some(agent) = self.local(&node.name) else {
            return self.remote.dialer()?.dial(node).await;
        };
        let service = kubelet_service(&agent, &*node.name);
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        self.tasks.spawn(async move {
            if let Err(error) = service.serve(far).await {
                tracing::debug!(%error, "a connection to a node ended");
            }
        });
        Ok(Box::new(near))
    }
}
