//! The rules of Kubernetes' built-in kinds that no schema can say: defaults, what may change, what is valid.
//!
//! [`strategies::builtin`] gives the [`Strategy`](kschema::strategy::Strategy) of a resource; `kapi` asks it on each write. A
//! module is named after the kinds it holds.

mod batch;
mod certificate_names;
mod check;
mod claim_spec;
mod misc;
mod namespace;
mod node;
mod node_labels;
mod pod;
mod service;
pub mod strategies;
mod volume_source;
mod workload;

pub use self::{service::ServiceAddresses, strategies::Strategies, workload::selects};
