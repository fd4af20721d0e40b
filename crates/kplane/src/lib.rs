//! A Kubernetes cluster inside your process.
//!
//! [`Cluster::builder`] composes kplane's crates: an API server over a store, the controllers, the scheduler and nodes. The
//! cluster is ready in milliseconds, needs no binaries and no root, and ends when it is dropped.
//!
//! A newcomer starts at [`ClusterBuilder`]; [`defaults`] lists what each part is unless it is replaced.

mod builder;
mod ca;
mod certificates;
mod cluster;
#[cfg(all(feature = "containers", target_os = "linux"))]
pub mod containers;
pub mod defaults;
pub mod explain;
pub mod faces;
mod gateway;
mod identities;
mod ingress;
mod kubeconfig;
mod network;
pub mod node;
mod nodes;
mod serve;
mod services;

#[cfg(all(feature = "containers", target_os = "linux"))]
pub use self::containers::Containers;
pub use self::{
    builder::{ClusterBuilder, NODES_MAX, ReconcilersFn, StartError},
    ca::{CaError, Credentials},
    cluster::{Cluster, DRAIN_MAX, SHUTDOWN_MAX, ServeError, ShutdownError, WaitError},
    ingress::IngressAddresses,
    node::{Node, NodeOptions},
    nodes::KubeletAuthority,
    serve::{CONNECTIONS_MAX, FIRST_REQUEST_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Serving},
    services::ProxyMode,
};

// The crates that a cluster is made of, so that one dependency is enough.
pub use {kapi, kcore, knet, kreconcile, kruntime, ksched, kstore};
