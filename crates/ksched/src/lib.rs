//! The Kubernetes scheduler as a library: framework, plug-ins and explained decisions.

pub mod affinity;
pub mod build;
pub mod cycle;
pub mod decision;
pub mod event;
pub mod node;
pub mod plugin;
pub mod plugins;
pub mod pod;
pub mod profile;
pub mod queue;
pub mod resources;
pub mod scheduler;
pub mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod waiting;

pub use cycle::decide;
pub use decision::{Decision, NodeVerdict, Score};
pub use node::NodeInfo;
pub use pod::PodInfo;
pub use profile::{BuildError, Profile, ProfileBuilder};
pub use queue::SchedulingQueue;
pub use scheduler::{Scheduler, SchedulerBuilder};
pub use snapshot::{NodeView, Snapshot};
pub use waiting::WaitingPods;
