//! The text of tables, chains and elements, as `nft -f` reads it.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use sha2::{Digest, Sha256};

use super::{IpvsConfig, servers::Key};
use crate::{policy::Cidr, redirect::Transport};

/// How much of a hash the name of a chain has.
const HASH_BYTES: usize = 8;

/// Who may come to a virtual server; what nothing is said of is let through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Guard {
    pub(super) v4: bool,
    /// The ranges that clients come from, as text; empty means that nobody may come.
    pub(super) ranges: Option<Vec<String>>,
    /// Whether the node itself is in one of them. It comes from the address that it goes to.
    pub(super) with_node: bool,
    /// Whether only pods and the node itself may come.
    pub(super) only_inside: bool,
}

impl Guard {
    /// The name of its chain, the same in each life of the proxy.
    pub(super) fn chain(&self) -> String {
        let digest = Sha256::digest(format!("{:?}", (&self.ranges, self.with_node, self.only_inside)));
        let name: String = digest.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
        format!("guard-{name}")
    }
}

/// A set or map, and what it says of an address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) set: &'static str,
    /// For maps.
    pub(super) verdict: Option<String>,
}

impl Element {
    pub(super) fn of(set: &'static str) -> Self {
        Self { set, verdict: None }
    }
}

/// The commands that leave nothing.
pub(super) fn removal(config: &IpvsConfig) -> String {
    let mut out = String::new();
    for v4 in [true, false] {
        Writer { out: &mut out, config, v4 }.drop_table();
    }
    out
}

/// Writes commands for the table of one family.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut String,
    pub(super) config: &'a IpvsConfig,
    pub(super) v4: bool,
}

impl Writer<'_> {
    /// The family's name, which is also that of its header.
    fn header(&self) -> &'static str {
        if self.v4 { "ip" } else { "ip6" }
    }

    fn command(&mut self, what: &str, rest: &str) {
        let (family, table) = (self.header(), &self.config.table);
        let _ = writeln!(self.out, "{what} {family} {table} {rest}");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.command("add rule", &format!("{chain} {rule}"));
    }

    /// Deletes the table, whether it is there or not.
    fn drop_table(&mut self) {
        self.command("add table", "");
        self.command("delete table", "");
    }

    /// The ranges of pods of the family.
    fn pods(&self) -> String {
        ranges(&self.config.pod_ranges, self.v4).join(", ")
    }

    /// The table with everything that does not depend on Services, in place of whatever is there.
    pub(super) fn base(&mut self) {
        self.drop_table();
        self.command("add table", "");
        let kind = if self.v4 { "ipv4_addr" } else { "ipv6_addr" };
        self.command("add set", &format!("addresses {{ type {kind} ; }}"));
        self.command("add set", &format!("hairpins {{ type {kind} . {kind} ; }}"));
        for set in ["services", "inside", "masked"] {
            self.command("add set", &format!("{set} {{ type {kind} . inet_proto . inet_service ; }}"));
        }
        for map in ["no-endpoints", "guarded"] {
            let kind = format!("{kind} . inet_proto . inet_service");
            self.command("add map", &format!("{map} {{ type {kind} : verdict ; }}"));
        }
        for chain in ["refuse", "mark-for-masquerade", "sources", "clients"] {
            self.command("add chain", chain);
        }
        let header = self.header();
        let port = format!("{header} daddr . meta l4proto . th dport");
        let mark = self.config.masquerade_mark;
        self.rule("refuse", "reject");
        self.rule("mark-for-masquerade", &format!("meta mark set meta mark or {mark:#x}"));
        self.rule("sources", &format!("{port} @masked goto mark-for-masquerade"));
        let pods = self.pods();
        if !pods.is_empty() {
            let rule = format!("{header} saddr != {{ {pods} }} {port} @inside goto mark-for-masquerade");
            self.rule("sources", &rule);
        }
        // The node has the Services' addresses, so it comes from the one that it goes to. Answers to that would not come back.
        self.rule("sources", &format!("{header} saddr @addresses {port} @services goto mark-for-masquerade"));
        for hook in ["prerouting", "output"] {
            self.command("add chain", &format!("nat-{hook} {{ type nat hook {hook} priority -100 ; }}"));
            self.rule(&format!("nat-{hook}"), "jump sources");
        }
        self.command("add chain", "nat-postrouting { type nat hook postrouting priority 100 ; }");
        if self.config.loopback_endpoints {
            let loopback = if self.v4 { "127.0.0.0/8" } else { "::1" };
            self.rule("nat-postrouting", &format!("{header} daddr {loopback} return"));
        }
        let marked = format!("meta mark & {mark:#x} == {mark:#x}");
        let masquerade = format!("{marked} meta mark set meta mark xor {mark:#x} masquerade fully-random");
        self.rule("nat-postrouting", &masquerade);
        // A pod that reaches itself by its Service must see another source than its own address.
        let hairpin = format!("{header} saddr . {header} daddr @hairpins masquerade fully-random");
        self.rule("nat-postrouting", &hairpin);
        self.rule("clients", &format!("{port} vmap @no-endpoints"));
        self.rule("clients", &format!("{port} vmap @guarded"));
        // IPVS takes what comes in after these, and what the node itself sends before filters of its usual priority.
        self.command("add chain", "filter-input { type filter hook input priority 0 ; }");
        self.command("add chain", "filter-output { type filter hook output priority -150 ; }");
        self.rule("filter-input", "ct state new jump clients");
        self.rule("filter-output", "ct state new jump clients");
        // The node's own servers are not reached by the Services' addresses.
        self.rule(
            "filter-input",
            &format!("ct state new {header} daddr @addresses {port} != @services reject"),
        );
    }

    /// Adds or takes away an element that holds an address, or two of them.
    pub(super) fn address(&mut self, adds: bool, set: &str, address: IpAddr) {
        let twice = if set == "hairpins" { format!("{address} . {address}") } else { address.to_string() };
        let what = if adds { "add element" } else { "delete element" };
        self.command(what, &format!("{set} {{ {twice} }}"));
    }

    /// Adds what is said of a virtual server, or takes it away.
    pub(super) fn element(&mut self, adds: bool, key: Key, element: &Element) {
        let set = element.set;
        let at = format!("{} . {} . {}", key.address, protocol(key.transport), key.port);
        match (adds, &element.verdict) {
            (true, Some(verdict)) => self.command("add element", &format!("{set} {{ {at} : {verdict} }}")),
            (true, None) => self.command("add element", &format!("{set} {{ {at} }}")),
            (false, _) => self.command("delete element", &format!("{set} {{ {at} }}")),
        }
    }

    /// Makes the chain of a guard.
    pub(super) fn guard(&mut self, guard: &Guard) {
        let chain = &guard.chain();
        self.command("add chain", chain);
        let header = self.header();
        if guard.only_inside {
            let pods = self.pods();
            let pods = if pods.is_empty() { pods } else { format!("{header} saddr != {{ {pods} }} ") };
            self.rule(chain, &format!("fib saddr type != local {pods}drop"));
        }
        match guard.ranges.as_deref() {
            None => {}
            Some([]) => self.rule(chain, "drop"),
            Some(ranges) => {
                let node =
                    if guard.with_node { format!("{header} saddr != @addresses ") } else { String::new() };
                self.rule(chain, &format!("{header} saddr != {{ {} }} {node}drop", ranges.join(", ")));
            }
        }
    }

    pub(super) fn drop_chain(&mut self, chain: &str) {
        self.command("flush chain", chain);
        self.command("delete chain", chain);
    }
}

fn protocol(transport: Transport) -> &'static str {
    transport.name()
}

/// The ranges of one family, without those that others contain; what is none is left out.
pub(super) fn ranges(all: &[String], v4: bool) -> Vec<String> {
    let parsed: Vec<Cidr> = all.iter().filter_map(|range| Cidr::parse(range)).collect();
    let own = parsed.iter().filter(|range| range.network.is_ipv4() == v4);
    let mut widest: Vec<String> = own
        .filter(|range| {
            let within = |other: &&Cidr| other.prefix < range.prefix && other.contains(range.network);
            !parsed.iter().any(|other| within(&other))
        })
        .map(ToString::to_string)
        .collect();
    widest.sort();
    widest.dedup();
    widest
}

/// The endpoints of one family.
pub(super) fn in_family(endpoints: &[SocketAddr], v4: bool) -> Vec<SocketAddr> {
    endpoints.iter().filter(|endpoint| endpoint.is_ipv4() == v4).copied().collect()
}
