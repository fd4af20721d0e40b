//! The Kubernetes API server as a [`tower::Service`].
//!
//! [`ApiServer::builder`] makes one: all built-in kinds, over a store of your choice, with admission, authentication and
//! authorization that can be added to or replaced. It answers `http::Request`s, so it can stand behind hyper, inside axum, or
//! be handed straight to `kube::Client::new` without any socket.
//!
//! A newcomer starts at [`ApiServer`], then reads [`registry`] for how a kind is described and [`admission`] for how writes are
//! changed and refused.

// What is served.
pub mod registry;
pub use kkinds as kinds;
pub use kschema::{self as schema, error, patch, strategy};

// How objects are kept and read.
mod convert;
pub mod custom;
pub mod derived;
pub mod encrypt;
mod list;
mod meta;
pub mod objects;
pub mod usage;
mod watch;

// How they are written.
pub mod admission;
mod delete;
mod ownership;
mod requester;
mod subresource;
mod write;

// Who asks and may.
pub mod audit;
pub mod authn;
pub mod authz;
pub mod fairness;
mod impersonate;

// The server.
mod aggregate;
pub mod body;
pub mod bootstrap;
pub mod config;
mod http;
pub mod metrics;
pub mod node;
pub mod outbound;
pub mod request;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use self::{
    body::Body,
    server::{ApiServer, ApiServerBuilder, AsUser, BuildError},
};
pub use kkinds::ServiceAddresses;
