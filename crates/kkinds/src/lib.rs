//! The rules of Kubernetes' built-in kinds that no schema can say: defaults, what may change, what is valid.
//!
//! [`strategies::builtin`] gives the [`Strategy`](kschema::strategy::Strategy) of a resource; `kapi` asks it on each write. A
//! module is named after the kinds it holds.

mod batch;
mod misc;
mod namespace;
mod node;
mod pod;
mod pod_spec;
mod service;
pub mod strategies;
mod workload;

pub use self::{service::ServiceAddresses, strategies::Strategies, workload::selects};
