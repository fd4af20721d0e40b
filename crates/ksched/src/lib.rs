//! The Kubernetes scheduler as a library: the framework to write one's own schedulers with, upstream's plug-ins, and
//! decisions that say why.
//!
//! It runs against an API server in its own process and, unchanged, against any other cluster, through
//! [`kube::Client`]. It also decides without any cluster, on a [`Snapshot`] made by hand.
//!
//! A newcomer starts at [`decide`], the pure function at the centre: profile, snapshot and pod in, [`Decision`] out. A
//! rule of one's own is a [`plugin`], most often a [`plugin::ScorePlugin`] or a [`plugin::FilterPlugin`]; a [`Profile`]
//! says which there are; a [`Scheduler`] runs profiles against a cluster.
//!
//! ```
//! use ksched::{NodeVerdict, Profile, Snapshot, build::{node, pod}, decide};
//!
//! let mut snapshot = Snapshot::new();
//! snapshot.set_node(node("a").resource("cpu", "4").resource("memory", "8Gi").info());
//! snapshot.set_node(node("b").resource("cpu", "1").resource("memory", "8Gi").info());
//!
//! let pod = pod("web").request("cpu", "2").request("memory", "1Gi").info();
//! let decision = decide(&Profile::default(), &snapshot, &pod);
//! assert_eq!(decision.node(), Some("a"));
//! for (node, verdict) in decision.verdicts() {
//!     match verdict {
//!         NodeVerdict::Feasible(total) => println!("{node}: {total}, of {:?}", decision.scores(node).collect::<Vec<_>>()),
//!         NodeVerdict::Rejected { plugin, rejection } => println!("{node}: {plugin}: {}", rejection.message()),
//!         NodeVerdict::NotAsked => println!("{node}: not asked"),
//!     }
//! }
//!
//! // What if there were one more like it?
//! let mut what_if = snapshot.clone();
//! what_if.place(&pod.into(), "a");
//! let another = ksched::build::pod("another").request("cpu", "3").info();
//! assert_eq!(decide(&Profile::default(), &snapshot, &another).node(), Some("a"));
//! assert_eq!(
//!     decide(&Profile::default(), &what_if, &another).failure().as_deref(),
//!     Some(
//!         "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: 0/2 nodes are \
//!          available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
//!     )
//! );
//! ```

pub use kreconcile::node_selector as affinity;
mod attachable;
pub mod booking;
pub mod build;
pub mod candidate;
pub mod config;
pub mod cycle;
pub mod decision;
pub mod devices;
pub mod event;
pub mod extender;
pub mod groups;
pub mod metrics;
pub mod node;
pub mod observer;
pub mod planner;
pub mod plugin;
pub mod plugins;
pub mod pod;
pub mod pod_affinity;
pub mod profile;
pub mod queue;
pub mod registry;
pub mod resources;
pub mod scheduler;
pub mod snapshot;
pub mod spread;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod track;
pub mod trial;
mod volumes;
pub mod waiting;
pub mod what_if;

pub use booking::Booking;
pub use candidate::Candidate;
pub use cycle::{decide, decide_among};
pub use decision::{Decision, Diagnosis, NodeVerdict, Nomination, Score};
pub use event::{ClusterEvent, Hint, ObjectEvent};
pub use extender::{Extender, ExtenderError};
pub use metrics::Metrics;
pub use node::NodeInfo;
pub use observer::Observer;
pub use planner::{Plan, Planner};
pub use plugin::{Rejection, Verdict};
pub use pod::PodInfo;
pub use profile::{BuildError, Profile, ProfileBuilder};
pub use queue::{QueuedPod, SchedulingQueue};
pub use resources::Resources;
pub use scheduler::{Scheduler, SchedulerBuilder};
pub use snapshot::{
    NodeIndex, NodeView, Snapshot,
    catalog::{Catalog, Interest},
};
pub use trial::{Attempt, Nominated, Trial};
pub use waiting::WaitingPods;
