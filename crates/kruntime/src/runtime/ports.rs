//! The protocols of ports, by their names in the API.

use knet::policy::Protocol;

/// The protocol's name in the API.
#[cfg_attr(
    not(all(feature = "oci", target_os = "linux")),
    allow(dead_code, reason = "for what keeps ports in files")
)]
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// The protocol of that name; `None` when it is unknown here.
pub(crate) fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}
