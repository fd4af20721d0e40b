//! Host ports and masquerade: the text of the tables, as `nft -f` reads it.

use std::fmt::Write as _;

use super::{BridgeOptions, leases::Lease};
use crate::policy::{Cidr, Protocol};

const FAMILIES: [(&str, bool, &str); 2] = [("ip", true, "127.0.0.0/8"), ("ip6", false, "::1")];

/// The commands that leave nothing.
pub(super) fn removal(options: &BridgeOptions) -> String {
    let mut out = String::new();
    for (family, ..) in FAMILIES {
        let _ = writeln!(out, "add table {family} {0}\ndelete table {family} {0}", options.table);
    }
    out
}

/// The tables of these pods, in place of what was there.
pub(super) fn rules<'a>(options: &BridgeOptions, leases: impl Iterator<Item = &'a Lease>) -> String {
    let leases: Vec<&Lease> = leases.collect();
    let mut out = removal(options);
    for (family, v4, loopback) in FAMILIES {
        let Some(own) = options.ranges.iter().find(|range| range.network.is_ipv4() == v4) else { continue };
        let table = format!("{family} {}", options.table);
        let mark = options.mark;
        let mut line = |text: std::fmt::Arguments<'_>| {
            let _ = writeln!(out, "{text}");
        };
        line(format_args!("add table {table}"));
        line(format_args!("add chain {table} host-ports"));
        for (hook, priority) in [("prerouting", -100), ("output", -100), ("postrouting", 100)] {
            line(format_args!("add chain {table} {hook} {{ type nat hook {hook} priority {priority} ; }}"));
        }
        for hook in ["prerouting", "output"] {
            line(format_args!(
                "add rule {table} {hook} fib daddr type local {family} daddr != {loopback} jump host-ports"
            ));
        }
        for lease in &leases {
            let Some(address) = lease.addresses.iter().find(|address| address.is_ipv4() == v4) else {
                continue;
            };
            for port in &lease.ports {
                let host = match port.host_address {
                    Some(host) if host.is_unspecified() => String::new(),
                    Some(host) if host.is_ipv4() == v4 => format!("{family} daddr {host} "),
                    Some(_) => continue,
                    None => String::new(),
                };
                let protocol = match port.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                    Protocol::Sctp => "sctp",
                };
                let to = std::net::SocketAddr::new(*address, port.pod_port);
                let at = format!("{host}{protocol} dport {}", port.host_port);
                line(format_args!(
                    "add rule {table} host-ports {at} meta mark set meta mark or {mark:#x} dnat to {to}"
                ));
            }
        }
        // A pod that comes to a host port of its neighbour, or of itself, must have its answer from the host.
        line(format_args!(
            "add rule {table} postrouting meta mark & {mark:#x} == {mark:#x} {family} saddr {own} masquerade"
        ));
        if options.masquerade {
            let cluster = options.cluster_ranges.iter().filter(|range| range.network.is_ipv4() == v4);
            let kept: Vec<String> = std::iter::once(own).chain(cluster).map(Cidr::to_string).collect();
            line(format_args!(
                "add rule {table} postrouting {family} saddr {own} {family} daddr != {{ {} }} masquerade",
                kept.join(", ")
            ));
        }
    }
    out
}
