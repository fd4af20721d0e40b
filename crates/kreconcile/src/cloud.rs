//! What a cluster has of the place that it runs in: machines, load balancers, routes. The controllers of
//! cloud-controller-manager, over a [`CloudProvider`] (`k8s.io/cloud-provider`).
//!
//! A provider says which of the three it has; each has a controller of its own. [`LocalCloud`] is the provider of one machine.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, NodeAddress, Service};

mod lifecycle;
mod local;
mod node;
mod route;
mod service;

pub use lifecycle::{SHUTDOWN_TAINT, cloud_node_lifecycle};
pub use local::{LOCAL_BALANCERS_MAX, LocalCloud};
pub use node::{NODE_ADDRESSES_PERIOD, UNINITIALIZED_TAINT, cloud_node};
pub use route::{CONCURRENT_ROUTES_MAX, ROUTES_PERIOD, node_route};
pub use service::{LOAD_BALANCER_FINALIZER, service_lb};

/// What the place offers. What a provider doesn't have is `None`, and there is no controller for it.
pub trait CloudProvider: fmt::Debug + Send + Sync + 'static {
    /// The provider's name, as in `--cloud-provider`.
    fn name(&self) -> &str;

    /// The machines that nodes run on.
    fn instances(&self) -> Option<Arc<dyn Instances>> {
        None
    }

    /// What brings connections from outside to services.
    fn load_balancers(&self) -> Option<Arc<dyn LoadBalancers>> {
        None
    }

    /// The routes between the pods of different nodes.
    fn routes(&self) -> Option<Arc<dyn Routes>> {
        None
    }
}

const _: Option<&dyn CloudProvider> = None;

/// Why a provider could not do what it was asked. The words are shown in events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// Somebody else does this; nothing is said or written about it.
    #[error("implemented by alternate to cloud provider")]
    Elsewhere,
    /// It is to be tried again after this time, not after a back-off.
    #[error("{source}")]
    Later {
        /// How long to wait.
        after: Duration,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It failed, and is tried again after a back-off.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CloudError {
    /// Wraps any error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

/// What is known of the machine of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceMetadata {
    /// Becomes `spec.providerID`, once. Needed, unless the node has one.
    pub provider_id: String,
    /// The kind of machine; empty sets no label.
    pub instance_type: String,
    /// The node's addresses; none leaves those that it has.
    pub addresses: Vec<NodeAddress>,
    /// The zone; empty sets no label.
    pub zone: String,
    /// The region; empty sets no label.
    pub region: String,
    /// Further labels, outside of `kubernetes.io` and `k8s.io`; those that the node has already stay.
    pub labels: Vec<(String, String)>,
}

/// What became of the machine of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It runs.
    Running,
    /// It is there, and switched off.
    ShutDown,
    /// It is no more.
    Gone,
}

/// The machines of the place (upstream's `InstancesV2`). Calls for different nodes overlap, and may be repeated.
#[async_trait]
pub trait Instances: fmt::Debug + Send + Sync + 'static {
    /// What is known of a node's machine. `None` leaves the node alone for now.
    ///
    /// # Errors
    /// The node stays uninitialized, and is tried again.
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError>;

    /// What became of a node's machine. Asked for nodes that are not ready.
    ///
    /// # Errors
    /// The node is left as it is, and looked at again.
    async fn state(&self, node: &Node) -> Result<InstanceState, CloudError>;
}

const _: Option<&dyn Instances> = None;

/// What brings connections from outside to services of the type LoadBalancer. Calls for one service never overlap; each may be
/// repeated, and must then change nothing.
#[async_trait]
pub trait LoadBalancers: fmt::Debug + Send + Sync + 'static {
    /// Called once, before anything else, with the services that have a load balancer by their status.
    async fn adopt(&self, _services: &[Arc<Service>]) {}

    /// Whether a service has a load balancer.
    ///
    /// # Errors
    /// It is tried again.
    async fn exists(&self, service: &Service) -> Result<bool, CloudError>;

    /// Makes the service's load balancer, or brings it up to date, and says where it is. The service keeps its finalizer as long
    /// as it may have one.
    ///
    /// # Errors
    /// It is tried again.
    async fn ensure(&self, service: &Service, nodes: &[Arc<Node>]) -> Result<LoadBalancerStatus, CloudError>;

    /// Makes an existing load balancer use these nodes.
    ///
    /// # Errors
    /// It is tried again.
    async fn update(&self, service: &Service, nodes: &[Arc<Node>]) -> Result<(), CloudError>;

    /// Takes a load balancer away. One that isn't there is no error.
    ///
    /// # Errors
    /// It is tried again; the service stays until it succeeds.
    async fn delete(&self, service: &Service) -> Result<(), CloudError>;
}

const _: Option<&dyn LoadBalancers> = None;

/// A route to the pods of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// The provider's name for it.
    pub name: String,
    /// The node; empty when it leads nowhere that is known.
    pub node: String,
    /// The addresses that it leads to, if the provider keeps them: then it is made anew when the node's change.
    pub addresses: Option<Vec<NodeAddress>>,
    /// The range of pod addresses.
    pub destination: String,
    /// Whether what it gets is thrown away: its machine is no more.
    pub blackhole: bool,
}

/// The routes of the place. Up to [`CONCURRENT_ROUTES_MAX`] are made or deleted at a time.
#[async_trait]
pub trait Routes: fmt::Debug + Send + Sync + 'static {
    /// All routes.
    ///
    /// # Errors
    /// It is tried again.
    async fn list(&self) -> Result<Vec<Route>, CloudError>;

    /// Makes a route; `hint` is the node's uid, for its name.
    ///
    /// # Errors
    /// The node's network counts as unavailable, and it is tried again.
    async fn create(&self, hint: &str, route: &Route) -> Result<(), CloudError>;

    /// Deletes a route that [`list`](Self::list) gave.
    ///
    /// # Errors
    /// It is tried again.
    async fn delete(&self, route: &Route) -> Result<(), CloudError>;
}

const _: Option<&dyn Routes> = None;
