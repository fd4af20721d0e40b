//! How a pod gets onto the network: the [`PodNetwork`] trait.
//!
//! [`cni::CniNetwork`] runs any plug-in that speaks the Container Network Interface; `bridge::BridgeNetwork` (feature `bridge`) is
//! built in and needs no binaries.

#[cfg(feature = "bridge")]
pub mod bridge;
pub mod cni;

use std::{
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use async_trait::async_trait;

use crate::policy::Protocol;

/// A port of the host that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMapping {
    /// The host's address; `None`: all of them.
    pub host_address: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub pod_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// A pod that is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttachment {
    /// Names the pod's sandbox, uniquely on the node: letters, digits, `_`, `.` and `-`.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// Its network namespace, as a file; `None` when that is gone already, which only [`PodNetwork::detach`] takes.
    pub netns: Option<PathBuf>,
    /// Its host ports.
    pub ports: Vec<PortMapping>,
}

/// What a pod got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Its addresses, the first one being that of the pod's status.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod is not connected, or not disconnected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The network isn't ready: no configuration, or it says so itself.
    #[error("network is not ready: {0}")]
    NotReady(String),
    /// The attachment can't be: what was asked for has no meaning.
    #[error("{0}")]
    Invalid(String),
    /// A CNI plug-in reported an error.
    #[error(transparent)]
    Plugin(#[from] cni::PluginError),
    /// There is no free address.
    #[error("no pod address is free: {0}")]
    Addresses(#[from] crate::allocator::AllocateError),
    /// Another pod has the host port.
    #[error("host port {0} is in use by {1}")]
    PortTaken(SocketAddr, String),
    /// The machine refused.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

/// Connects pods to the network.
///
/// A runtime calls it with each pod's network namespace: calls for one pod come one after the other, those for several at once. A
/// call that is dropped is repeated, or undone by [`detach`](Self::detach).
#[async_trait]
pub trait PodNetwork: Debug + Send + Sync + 'static {
    /// Connects a pod. When the pod is connected already it says what it got.
    ///
    /// # Errors
    /// When it can't be; nothing is left of the attempt then, as far as that is possible.
    async fn attach(&self, pod: &PodAttachment) -> Result<Attached, NetworkError>;

    /// Disconnects a pod and takes back what it got. A pod that is not connected, or whose namespace is gone, is no error.
    ///
    /// # Errors
    /// When something may be left; it is to be repeated.
    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError>;

    /// Takes back what belongs to none of the pods that are alive, by id: called when a node's agent begins.
    ///
    /// # Errors
    /// When something may be left.
    async fn collect(&self, alive: &[String]) -> Result<(), NetworkError>;

    /// Whether pods can be connected: what the node's condition `Ready` goes by.
    ///
    /// # Errors
    /// [`NetworkError::NotReady`] with the reason.
    async fn ready(&self) -> Result<(), NetworkError>;
}

const _: Option<&dyn PodNetwork> = None;
