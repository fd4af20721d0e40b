//! Every default of a cluster, in one place.
//!
//! | part | default | replaced by |
//! |---|---|---|
//! | store | `kstore::MemoryStore` | [`ClusterBuilder::store`](crate::ClusterBuilder::store) |
//! | clock | `kcore::TokioClock` | [`ClusterBuilder::clock`](crate::ClusterBuilder::clock) |
//! | admission, authentication, authorization | `kapi`'s | [`ClusterBuilder::api`](crate::ClusterBuilder::api) |
//! | controllers | all of `kreconcile::controllers::defaults` | [`ClusterBuilder::without`](crate::ClusterBuilder::without), [`ClusterBuilder::reconcilers`](crate::ClusterBuilder::reconcilers) |
//! | scheduler | one default profile of `ksched` | [`ClusterBuilder::scheduler`](crate::ClusterBuilder::scheduler), [`ClusterBuilder::without_scheduler`](crate::ClusterBuilder::without_scheduler) |
//! | nodes | one, `node-1` | [`ClusterBuilder::nodes`](crate::ClusterBuilder::nodes) |
//! | runtime | simulated | [`ClusterBuilder::runtime`](crate::ClusterBuilder::runtime), [`ClusterBuilder::processes`](crate::ClusterBuilder::processes) |
//! | service proxy | none; userspace with processes | [`ClusterBuilder::proxy`](crate::ClusterBuilder::proxy) |

use std::sync::Arc;

use kcore::Clock;
use kruntime::{ContainerRuntime, runtime::simulated::SimulatedRuntime};

/// How many nodes a cluster has.
pub const NODES: usize = 1;
/// What nodes are called, before their number.
pub const NODE_PREFIX: &str = "node-";

/// What runs containers: nothing really runs, so a cluster in a test needs nothing of its machine.
#[must_use]
pub fn runtime(clock: &Arc<dyn Clock>) -> Arc<dyn ContainerRuntime> {
    Arc::new(SimulatedRuntime::new(Arc::clone(clock)))
}
