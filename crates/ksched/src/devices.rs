//! Which devices a pod's claims get on a node (structured parameters, KEP-4381).
//!
//! A pure function of four things: the [`Inventory`] of devices that drivers offer in `ResourceSlice`s, what of it is
//! [`Allocated`], the [`Demand`] of the claims, and a node. [`allocate`] gives the results that are to be written into the
//! claims' status, or `None` when that node can't satisfy them.
//!
//! What Kubernetes 1.37 has on by default is all here: pools with generations that may be incomplete or invalid, requests
//! for exactly so many devices, for all, or for the first of several alternatives (KEP-4816), constraints, admin access
//! (KEP-5018), taints of devices (KEP-5055), counters that partitions of a device share (KEP-4815), devices that many claims
//! take parts of (KEP-5075), and conditions that must hold before a pod is bound (KEP-5007). The first solution counts, in
//! the order of drivers, pools, slices and devices, so that drivers can say by names what is taken first.
//!
//! ```
//! use ksched::{Snapshot, build::node, devices::{Allocated, Demand, Inventory, Selectors, allocate}};
//! use serde_json::{from_value, json};
//!
//! let mut snapshot = Snapshot::new();
//! let catalog = snapshot.catalog_mut();
//! catalog.set(std::sync::Arc::new(from_value::<k8s_openapi::api::resource::v1::DeviceClass>(json!({
//!     "metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}
//! }))?));
//! catalog.set(std::sync::Arc::new(from_value::<k8s_openapi::api::resource::v1::ResourceSlice>(json!({
//!     "metadata": {"name": "a-gpus"},
//!     "spec": {
//!         "driver": "gpu.example.com", "nodeName": "a",
//!         "pool": {"name": "a", "generation": 1, "resourceSliceCount": 1},
//!         "devices": [{"name": "gpu-0"}, {"name": "gpu-1"}]
//!     }
//! }))?));
//! let claim = from_value(json!({
//!     "metadata": {"namespace": "default", "name": "mine"},
//!     "spec": {"devices": {"requests": [{"name": "gpus", "exactly": {"deviceClassName": "gpu", "count": 2}}]}}
//! }))?;
//!
//! let inventory = Inventory::of(&catalog);
//! let demand = Demand::read(&[std::sync::Arc::new(claim)], catalog, &Selectors::default())?;
//! let on = |name: &str| allocate(&demand, &inventory, &Allocated::default(), &node(name).info());
//! let results = on("a")?.expect("both are free");
//! assert_eq!(results[0].devices.as_ref().and_then(|devices| devices.results.as_ref()).map(Vec::len), Some(2));
//! assert_eq!(on("b")?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocated;
mod capacity;
mod constraint;
mod counters;
mod demand;
mod inventory;
mod pool;
mod result;
mod search;
mod selector;
mod totals;

pub use allocated::{Allocated, DeviceId};
pub use demand::Demand;
pub use inventory::Inventory;
pub use search::{RESULTS_MAX, STEPS_LIMIT_MAX, STEPS_MAX, allocate, allocate_within};
pub use selector::{SELECTORS_MAX, Selectors};
pub use totals::totals;

/// Why nothing can be allocated to a claim, on this node or on any; worded as upstream's. That devices are taken is no
/// error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// A claim or a class asks for something that can't be had anywhere.
    #[error("{0}")]
    Claim(String),
    /// No device was found, and some pools on the node were not looked at because they contradict themselves.
    #[error("invalid resource pools were encountered")]
    InvalidPools,
    /// The search took more steps than it may; see [`STEPS_MAX`].
    #[error("node {0}: timed out trying to allocate devices")]
    TooLong(String),
}
