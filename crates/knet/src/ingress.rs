//! Ingresses: from outside of the cluster to its Services, by host and path.
//!
//! [`compile`] is the pure function from Ingresses and what they refer to, to a [`RouteTable`](crate::http_proxy::RouteTable);
//! [`IngressAgent`] follows an API server, tells an [`HttpProxy`](crate::http_proxy::HttpProxy), and writes into each Ingress
//! where it is served.
//!
//! What the documentation of Ingress leaves to the controller is done so:
//! - Paths of the type `ImplementationSpecific` are prefixes.
//! - A request that no path of its host matches goes on to wildcards and to rules without a host, and to the default backend
//!   at last: first that of an Ingress that names the host, then the oldest of all.
//! - Of several Ingresses with the same host and path the oldest counts; so it is for certificates.
//! - Every host is served at both ports; nothing is redirected from the one to the other.
//! - Backends that are no Services are refused, with an event; a Service that is not there is answered with 503.

mod agent;
mod compile;

pub use self::{
    agent::IngressAgent,
    compile::{Compiled, Problem, compile},
};

/// The name of this controller in `IngressClass.spec.controller`.
pub const CONTROLLER: &str = "kplane.dev/ingress";
/// The port for HTTP in the table.
pub const HTTP_PORT: u16 = 80;
/// The port for HTTPS in the table.
pub const HTTPS_PORT: u16 = 443;
/// The annotation that named an Ingress's class before there was a field for it. It still counts where the field is not there.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
