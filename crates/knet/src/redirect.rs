//! Addresses that are served elsewhere.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

/// Where connections to an address really go. Shared by whoever could not listen where it should and by whoever
/// connects.
///
/// Without privileges nobody listens on a port below 1024. So a proxy that can't have port 80 of a cluster address
/// listens on another port and says so here, and a runtime that sees its processes' connections (by seccomp) sends them
/// there. The same holds for a pod's process that binds port 80. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Redirects {
    map: Arc<RwLock<HashMap<(Transport, SocketAddr), SocketAddr>>>,
}

/// What connections are carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The name as the kernel's tools have it: `tcp`, `udp`, `sctp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The one of a `protocol` as the API has it: `TCP`, `UDP`, `SCTP`.
    #[must_use]
    pub fn parse(protocol: &str) -> Option<Self> {
        match protocol {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl Redirects {
    /// Where a connection to `address` goes: `address` itself, if nothing else is known.
    #[must_use]
    pub fn resolve(&self, transport: Transport, address: SocketAddr) -> SocketAddr {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&(transport, address)).copied().unwrap_or(address)
    }

    /// Sends connections to `from` to `to` from now on.
    pub fn set(&self, transport: Transport, from: SocketAddr, to: SocketAddr) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert((transport, from), to);
    }

    /// Forgets what was set for `from`.
    pub fn remove(&self, transport: Transport, from: SocketAddr) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).remove(&(transport, from));
    }

    /// Forgets all that was set for addresses of `host`.
    pub fn remove_host(&self, host: std::net::IpAddr) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).retain(|(_, from), _| from.ip() != host);
    }
}

/// Binds `address`, or, when its port needs a privilege that is lacking, another port of the same address.
pub(crate) fn bind<T>(
    address: SocketAddr,
    bind: impl Fn(SocketAddr) -> std::io::Result<T>,
) -> std::io::Result<T> {
    match bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && address.port() < 1024 => {
            bind(SocketAddr::new(address.ip(), 0))
        }
        result => result,
    }
}
