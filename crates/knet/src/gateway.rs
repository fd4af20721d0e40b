//! The Gateway API: from outside of the cluster to its Services, by Gateways and the routes that are attached to them.
//!
//! [`compile`] is the pure function from the objects to a [`RouteTable`](crate::http_proxy::RouteTable) and to what their statuses say;
//! [`GatewayAgent`] follows an API server, tells an [`HttpProxy`](crate::http_proxy::HttpProxy), and writes the statuses.
//! [`types`] are the kinds; those whose definitions are not in the cluster are followed from when they are.
//!
//! What is done: GatewayClass, Gateway with listeners of `HTTP`, `HTTPS` and `TLS`
//! that is passed on, ListenerSet, HTTPRoute, GRPCRoute, TLSRoute, BackendTLSPolicy, ReferenceGrant. What the
//! specification leaves open is done so:
//! - All Gateways are served at the same addresses, so two that want the same host of the same port conflict: the older one has it, the
//!   listener of the other has `PortUnavailable`. So has a port that the embedder does not serve.
//! - A route that asks for something that is not there (regular expressions, session persistence, CORS, extensions) is
//!   not accepted, with `UnsupportedValue`, and serves nothing: it fails closed.
//! - Listeners of `HTTPS` and of `TLS` at one port conflict.
//! - Of the certificates of a listener the first that can be used counts.

mod agent;
mod compile;
mod features;
pub mod types;

pub use self::{
    agent::GatewayAgent,
    compile::{Compiled, Input, Key, compile},
    features::FEATURES,
};

/// The name of this controller in `GatewayClass.spec.controllerName`.
pub const CONTROLLER: &str = "kplane.dev/gateway";
