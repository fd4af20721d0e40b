//! What chains and sets are called. A name begins with a hash, so that it is the same in each life of the proxy, and short; what
//! follows is for people.

use std::net::SocketAddr;

use crate::{
    redirect::Transport,
    rules::{Frontend, Rule},
};

/// How long a name may be: the kernel takes 255 bytes, people read less.
const NAME_BYTES_MAX: usize = 120;

/// The protocol's name to nftables.
pub(super) fn protocol(transport: Transport) -> &'static str {
    transport.name()
}

/// The chain of a rule.
pub(super) fn service(rule: &Rule) -> String {
    let frontend = match rule.frontend {
        Frontend::Address(address) => address.to_string(),
        Frontend::Node => "node".to_owned(),
    };
    let protocol = protocol(rule.transport);
    let hash = hash(&[&rule.service, &frontend, protocol, &rule.port.to_string()]);
    let mut name = format!("service-{hash}-{}/{protocol}/{}", rule.service.replace(':', "/"), rule.port);
    name.truncate(NAME_BYTES_MAX);
    name
}

/// What an endpoint of a rule with affinity is told apart by.
pub(super) fn endpoint(chain: &str, endpoint: SocketAddr) -> String {
    hash(&[chain, &endpoint.to_string()])
}

/// FNV-1a: the same on every machine and in every release.
fn hash(parts: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}
