//! Pods on a node: the pod machine, the node agent and container runtimes.
//!
//! A newcomer starts at [`NodeAgent`], which brings the pods of its nodes to life, and at
//! [`ContainerRuntime`], the trait to implement for whatever runs containers: processes of the user, nothing at all
//! (simulated), images by runc or crun (feature `oci`: `runtime::oci`, with [`images`]), containerd or another server (feature
//! `cri`: `runtime::cri`), or something of one's own. What to do and what to say about a pod is decided by [`machine`], a pure
//! function. Around it, in the order of a pod's life: [`volumes`] and [`env`](mod@env) prepare, [`probe`] asks, [`logs`] and
//! [`serve`] (over WebSocket and [`spdy`]) let others look in, [`stats`] says what is used, [`signals`] what is left, [`managers`] who has processors alone, [`eviction`] who goes when that is too little, `plugins` (feature `plugins`) what programs add to a node, and [`node`] tells the API server that the node lives.

pub mod agent;
mod demand;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub(crate) mod devices;
mod disk;
pub mod downward;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub(crate) mod dra;
pub mod env;
pub mod eviction;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod grpc;
mod handler;
pub mod images;
pub mod logs;
pub mod machine;
pub mod managers;
pub mod node;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub mod plugins;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub mod pod_resources;
pub mod probe;
pub mod runtime;
pub mod serve;
pub mod signals;
pub mod sources;
pub mod spdy;
pub mod static_pods;
pub mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod volumes;

pub use agent::{NodeAgent, NodeConfig};
pub use runtime::{ContainerRuntime, PodUid, RuntimeError};
pub use serve::kubelet_service;
