//! From a Kubernetes Service to a connection: service proxies, address allocation and cluster DNS.
//!
//! A newcomer starts at [`rules`], the pure function from Services and EndpointSlices to what a proxy has to do, and at
//! [`ServiceProxy`], the trait of whatever does it. [`ProxyAgent`] brings the two together. [`allocator`] hands out the
//! addresses, [`loopback`] finds some that need no privileges, and [`redirect`] says where they are really served. [`dns`]
//! gives them names. [`policy`] says who may talk to whom, and
//! [`network`] how a pod gets onto the network. [`health`] tells load balancers how a node does.
//!
//! With the feature `ingress`, `http_proxy` brings requests from outside to endpoints, one by one, and `ingress` tells it which; so does `gateway`, with
//! the feature of that name.

pub mod agent;
pub mod allocator;
#[cfg(feature = "ingress")]
pub mod backends;
pub mod balance;
mod commits;
pub mod dns;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod health;
#[cfg(feature = "ingress")]
pub mod http_proxy;
#[cfg(feature = "ingress")]
pub mod ingress;
pub mod loopback;
mod netlink;
pub mod network;
mod nft;
pub mod policy;
mod program;
pub mod proxy;
pub mod redirect;
pub mod rules;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use agent::ProxyAgent;
pub use allocator::{AddressRange, IpAllocator, PortRange};
pub use network::PodNetwork;
pub use policy::{PolicyAgent, PolicyEnforcer};
pub use proxy::ServiceProxy;
pub use redirect::{Redirects, Transport};
