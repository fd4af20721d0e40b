//! From a Kubernetes Service to a connection: service proxies, address allocation and cluster DNS.

pub mod allocator;
pub mod loopback;
pub mod redirect;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use allocator::{AddressRange, IpAllocator, PortRange};
pub use redirect::{Redirects, Transport};
