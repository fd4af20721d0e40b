//! The way from the server to the agents on the nodes, for logs, exec, attach, port forwarding and `nodes/proxy`.

mod kubelet;

use std::{fmt::Debug, io};

use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::kubelet::{
    ADDRESS_TYPES, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, KUBELET_PORT, KubeletDialer, KubeletDialerError,
    KubeletOptions, ServingAuthority,
};

/// A connection to a node's agent: HTTP/1.1 in the kubelet's paths (`/containerLogs/...`, `/exec/...`).
pub trait NodeConnection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> NodeConnection for T {}

/// A node that is to be reached, with what its status says of the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTarget {
    /// The node's name.
    pub name: String,
    /// The addresses of its status, each with its type (`InternalIP`, `Hostname`, ...), in their order. None for a node that has no
    /// Node object.
    pub addresses: Vec<(String, String)>,
    /// The port of its agent (`status.daemonEndpoints.kubeletEndpoint.Port`), if it has told one.
    pub port: Option<u16>,
}

impl NodeTarget {
    /// The node of this name by its object.
    #[must_use]
    pub fn of(name: &str, node: Option<&Value>) -> Self {
        let status = node.map(|node| &node["status"]);
        let addresses = status.and_then(|status| status["addresses"].as_array()).into_iter().flatten();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let pairs =
            addresses.filter_map(|address| Some((text(&address["type"])?, text(&address["address"])?)));
        let port = status.and_then(|status| status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64());
        Self {
            name: name.to_owned(),
            addresses: pairs.collect(),
            port: port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
        }
    }
}

/// Reaches the agent of a node.
///
/// Called once per request that goes to a node. The connection belongs to the request and is dropped with it. Whoever connects by a
/// network sees to it that it is the right agent, and that the agent knows it is asked by the server: [`KubeletDialer`] does so
/// by TLS.
#[async_trait]
pub trait NodeDialer: Debug + Send + Sync + 'static {
    /// Opens a connection to the agent of this node.
    ///
    /// # Errors
    /// When there is no such node or it can't be reached; the caller sees a 502, or a 503 where it asks for `nodes/proxy`.
    async fn dial(&self, node: &NodeTarget) -> io::Result<Box<dyn NodeConnection>>;
}

const _: Option<&dyn NodeDialer> = None;
