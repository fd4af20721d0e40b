//! The asynchronous extension points: what is told to the API server.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use kcore::Clock;

use crate::{
    extender::ExtenderError, metrics::Metrics, observer::Observer, plugin::cycle_state::CycleState,
    pod::PodInfo, snapshot::catalog::Catalog,
};

/// Something that is done beside the decisions on other pods, so that a pod may find a node the next time: see
/// [`PostFilterVerdict::Repair`](crate::plugin::PostFilterVerdict::Repair). What it changes must be something that a
/// [`QueueingHint`](crate::plugin::QueueingHint) waits for.
#[async_trait]
pub trait Repair: fmt::Debug + Send + Sync + 'static {
    /// Does it, once. It is dropped when the scheduler stops.
    ///
    /// # Errors
    /// When it could not be done; then the pod is tried again after its back-off.
    async fn repair(&self, client: &kube::Client) -> Result<(), BindError>;
}

/// Why a pod could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The API server refused, or can't be reached.
    #[error("{0}")]
    Api(#[source] Box<kube::Error>),
    /// A plug-in could not do its part.
    #[error("running PreBind plugin {plugin:?}: {source}")]
    Plugin {
        /// Its name.
        plugin: Arc<str>,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An [extender](crate::extender) could not bind it.
    #[error("{0}")]
    Extender(#[source] ExtenderError),
    /// No [`Bind`] plug-in took it on.
    #[error("no plugin could bind the pod")]
    NotHandled,
}

/// Whether a [`Bind`] took the pod on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BindOutcome {
    /// It is bound.
    Bound,
    /// Ask the next one.
    Skip,
}

/// What the asynchronous extension points are told.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The way to the API server.
    pub client: &'a kube::Client,
    /// What the plug-ins noted while deciding.
    pub cycle: &'a CycleState,
    /// Sees what the scheduler sees of the cluster.
    pub observer: &'a Observer,
    /// Says what time it is.
    pub clock: &'a dyn Clock,
    /// Where the scheduler counts.
    pub metrics: &'a Metrics,
    /// The pod.
    pub pod: &'a PodInfo,
    /// The node that it goes to.
    pub node: &'a str,
}

impl fmt::Debug for Binding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("pod", &self.pod.name)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Does what must be done before a pod is bound, such as attaching a volume. Pods are bound at the same time; one pod's
/// plug-ins are called in turn. The future is dropped when the scheduler stops.
#[async_trait]
pub trait PreBind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether it has anything to do for this pod (KEP-5229 asks the same); see
    /// [`Reserve::concerns`](crate::plugin::Reserve::concerns). `true` by default.
    fn concerns(&self, _pod: &PodInfo, _catalog: &Catalog) -> bool {
        true
    }

    /// A failure gives the pod's place back, and the pod is tried again after a back-off.
    ///
    /// # Errors
    /// When the pod must not be bound now.
    async fn pre_bind(&self, binding: Binding<'_>) -> Result<(), BindError>;
}

/// Binds a pod to its node.
#[async_trait]
pub trait Bind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked in turn until one takes the pod on.
    ///
    /// # Errors
    /// When it did not work; the pod's place is given back, and it is tried again after a back-off.
    async fn bind(&self, binding: Binding<'_>) -> Result<BindOutcome, BindError>;
}

/// Is told that a pod was bound.
#[async_trait]
pub trait PostBind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked once per pod, after it was bound.
    async fn post_bind(&self, binding: Binding<'_>);
}
