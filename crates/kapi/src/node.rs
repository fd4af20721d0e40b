//! The way from the server to the agents on the nodes, for logs, exec, attach and port forwarding.

use std::{fmt::Debug, io};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection to a node's agent: HTTP/1.1 in the kubelet's paths (`/containerLogs/...`, `/exec/...`).
pub trait NodeConnection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> NodeConnection for T {}

/// Reaches the agent of a node.
///
/// Called once per request that goes to a node. The connection belongs to the request and is dropped with it.
#[async_trait]
pub trait NodeDialer: Debug + Send + Sync + 'static {
    /// Opens a connection to the agent of the node of this name.
    ///
    /// # Errors
    /// When there is no such node or it can't be reached; the caller sees a 502.
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeConnection>>;
}
