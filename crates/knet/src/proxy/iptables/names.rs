//! What chains are called: as upstream calls them (`pkg/proxy/iptables/proxier.go`), a prefix and the first characters of the base-32
//! text of a SHA-256.

use std::net::SocketAddr;

use sha2::{Digest, Sha256};

use crate::redirect::Transport;

/// How much of the hash a name has, in characters: names are 28 bytes at most.
const HASH_CHARACTERS: usize = 16;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

pub(super) const SERVICE: &str = "KUBE-SVC-";
pub(super) const LOCAL: &str = "KUBE-SVL-";
pub(super) const EXTERNAL: &str = "KUBE-EXT-";
pub(super) const FIREWALL: &str = "KUBE-FW-";
pub(super) const ENDPOINT: &str = "KUBE-SEP-";

/// The beginnings of names of chains that belong to one Service.
pub(super) const PREFIXES: [&str; 5] = [SERVICE, LOCAL, EXTERNAL, FIREWALL, ENDPOINT];

pub(super) fn protocol(transport: Transport) -> &'static str {
    transport.name()
}

/// The chain of a Service's port; `service` is `namespace/name:port`.
pub(super) fn of_service(prefix: &str, service: &str, transport: Transport) -> String {
    format!("{prefix}{}", hash(&[service, protocol(transport)]))
}

/// The chain of an endpoint of a Service's port.
pub(super) fn of_endpoint(service: &str, transport: Transport, endpoint: SocketAddr) -> String {
    format!("{ENDPOINT}{}", hash(&[service, protocol(transport), &endpoint.to_string()]))
}

fn hash(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.concat());
    let bit = |at: usize| digest.get(at / 8).map_or(0, |byte| (byte >> (7 - at % 8)) & 1);
    let character = |at: usize| (0..5).fold(0, |value, of| value << 1 | usize::from(bit(at * 5 + of)));
    (0..HASH_CHARACTERS).map(|at| char::from(ALPHABET[character(at)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that upstream's own tests expect (`pkg/proxy/iptables/proxier_test.go`).
    #[test]
    fn names_are_those_of_upstream() {
        let endpoint = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (found, expected) in [
            (of_service(SERVICE, "ns1/svc1:p80", Transport::Tcp), "KUBE-SVC-XPGD46QRK7WJZT7O"),
            (of_service(SERVICE, "ns2/svc2:p80", Transport::Tcp), "KUBE-SVC-GNZBNJ2PO5MGZ6GT"),
            (of_service(LOCAL, "ns2/svc2:p80", Transport::Tcp), "KUBE-SVL-GNZBNJ2PO5MGZ6GT"),
            (of_service(EXTERNAL, "ns2/svc2:p80", Transport::Tcp), "KUBE-EXT-GNZBNJ2PO5MGZ6GT"),
            (of_service(FIREWALL, "ns5/svc5:p80", Transport::Tcp), "KUBE-FW-NUKIZ6OKUXPJNT4C"),
            (
                of_endpoint("ns1/svc1:p80", Transport::Tcp, endpoint("10.180.0.1:80")),
                "KUBE-SEP-SXIVWICOYRO3J4NJ",
            ),
        ] {
            assert_eq!(found, expected);
        }
    }
}
