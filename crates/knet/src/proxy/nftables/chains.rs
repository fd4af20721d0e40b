//! The text of tables, chains and elements, as `nft -f` reads it.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::{
    NftablesConfig,
    names::{self, protocol},
};
use crate::rules::{Frontend, Rule};

/// One of the two tables: addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family's name, which is also that of its header.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// The addresses that node ports are not served on: those that only the node itself has.
    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.0/8",
            Self::V6 => "::1",
        }
    }
}

/// What the names of shared chains for node ports begin with.
const NODE: &str = "node-";

/// Whose source is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That of clients outside of the pods' ranges.
    Inside,
    /// Everybody's: the answer has to come back here.
    Masked,
    /// Nobody's.
    Bare,
}

impl Kind {
    pub(super) fn of(rule: &Rule) -> Self {
        match (rule.external, rule.local) {
            (false, _) => Self::Inside,
            (true, false) => Self::Masked,
            (true, true) => Self::Bare,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Masked => "masked",
            Self::Bare => "bare",
        }
    }
}

/// Where connections of a rule go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// They are told that there is nobody.
    Refused,
    /// They are told nothing: who asked a node without local endpoints should ask another one.
    Dropped,
    /// To a chain that all rules of a kind with so many endpoints share; which ones these are stands in maps, one for each turn.
    Shared(String),
    /// To a chain of the rule's own.
    Own(String),
}

impl Target {
    /// Where a rule with these endpoints of one family leads.
    pub(super) fn of(rule: &Rule, endpoints: &[SocketAddr]) -> Self {
        if endpoints.is_empty() {
            return if rule.external && rule.local { Self::Dropped } else { Self::Refused };
        }
        if rule.affinity.is_some() || !rule.sources.is_empty() {
            return Self::Own(names::service(rule));
        }
        let place = match rule.frontend {
            Frontend::Address(_) => "address-",
            Frontend::Node => NODE,
        };
        Self::Shared(format!("{place}{}-{}", Kind::of(rule).name(), endpoints.len()))
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Refused | Self::Dropped => "no-endpoint-",
            Self::Shared(_) | Self::Own(_) => "",
        }
    }
}

/// The map in which connections find a rule, and their key.
fn place(rule: &Rule) -> (&'static str, String) {
    let (protocol, port) = (protocol(rule.transport), rule.port);
    match rule.frontend {
        Frontend::Address(address) => ("service-ips", format!("{address} . {protocol} . {port}")),
        Frontend::Node => ("service-nodeports", format!("{protocol} . {port}")),
    }
}

/// Writes commands for one table.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut String,
    pub(super) config: &'a NftablesConfig,
    pub(super) family: Family,
}

impl Writer<'_> {
    /// A command about something of the table: `add chain`, `flush chain`.
    fn command(&mut self, what: &str, rest: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.out, "{what} {} {} {rest}", self.family.name(), self.config.table);
    }

    fn rule(&mut self, chain: &str, rule: std::fmt::Arguments<'_>) {
        self.command("add rule", format_args!("{chain} {rule}"));
    }

    /// The table without Services, in place of what was there.
    pub(super) fn base(&mut self) {
        let Self { family, .. } = *self;
        let (header, addresses, loopback) = (family.name(), family.address_type(), family.loopback());
        self.drop_table();
        self.command("add table", format_args!(""));
        for set in ["cluster-ips", "hairpins"] {
            let kind =
                if set == "hairpins" { format!("{addresses} . {addresses}") } else { addresses.to_owned() };
            self.command("add set", format_args!("{set} {{ type {kind} ; }}"));
        }
        for (map, key) in [("service-ips", format!("{addresses} . ")), ("service-nodeports", String::new())] {
            for prefix in ["", "no-endpoint-"] {
                self.command(
                    "add map",
                    format_args!("{prefix}{map} {{ type {key}inet_proto . inet_service : verdict ; }}"),
                );
            }
        }
        for chain in ["refuse", "mark-for-masquerade", "services", "no-endpoints"] {
            self.command("add chain", format_args!("{chain}"));
        }
        let mark = self.config.masquerade_mark;
        self.rule("refuse", format_args!("reject"));
        self.rule("mark-for-masquerade", format_args!("meta mark set meta mark or {mark:#x}"));
        for (chain, prefix) in [("services", ""), ("no-endpoints", "no-endpoint-")] {
            let port = "meta l4proto . th dport vmap";
            self.rule(chain, format_args!("{header} daddr . {port} @{prefix}service-ips"));
            let ranges = in_family(&self.config.node_port_addresses, family);
            let own = match (self.config.node_port_addresses.is_empty(), ranges.is_empty()) {
                (true, _) => format!("{header} daddr != {loopback}"),
                (false, false) => format!("{header} daddr {{ {} }}", ranges.join(", ")),
                // The node's addresses of this family serve none.
                (false, true) => continue,
            };
            self.rule(chain, format_args!("fib daddr type local {own} {port} @{prefix}service-nodeports"));
        }
        for (hook, priority) in [("prerouting", -100), ("output", -100), ("postrouting", 100)] {
            self.command(
                "add chain",
                format_args!("nat-{hook} {{ type nat hook {hook} priority {priority} ; }}"),
            );
        }
        self.rule("nat-prerouting", format_args!("jump services"));
        self.rule("nat-output", format_args!("jump services"));
        if self.config.loopback_endpoints {
            self.rule("nat-postrouting", format_args!("{header} daddr {loopback} return"));
        }
        self.rule(
            "nat-postrouting",
            format_args!(
                "meta mark & {mark:#x} == {mark:#x} meta mark set meta mark xor {mark:#x} masquerade fully-random"
            ),
        );
        // A pod that reaches itself by its Service must see another source than its own address.
        self.rule(
            "nat-postrouting",
            format_args!("{header} saddr . {header} daddr @hairpins masquerade fully-random"),
        );
        // What still has a Service's address here was not rewritten: it has no endpoint, or no such port.
        for hook in ["input", "forward", "output"] {
            self.command(
                "add chain",
                format_args!("filter-{hook} {{ type filter hook {hook} priority 0 ; }}"),
            );
            self.rule(&format!("filter-{hook}"), format_args!("ct state new jump no-endpoints"));
            self.rule(
                &format!("filter-{hook}"),
                format_args!("ct state new {header} daddr @cluster-ips reject"),
            );
        }
    }

    /// Deletes the table, whether it is there or not.
    pub(super) fn drop_table(&mut self) {
        self.command("add table", format_args!(""));
        self.command("delete table", format_args!(""));
    }

    /// Adds or takes away an element that holds an address, or two of them.
    pub(super) fn address(&mut self, what: &str, set: &str, address: IpAddr) {
        let twice = if set == "hairpins" { format!("{address} . {address}") } else { address.to_string() };
        self.command(what, format_args!("{set} {{ {twice} }}"));
    }

    /// Adds the element by which connections find a rule.
    pub(super) fn find(&mut self, rule: &Rule, target: &Target) {
        let verdict = match target {
            Target::Refused => "goto refuse".to_owned(),
            Target::Dropped => "drop".to_owned(),
            Target::Shared(chain) => format!("goto {chain}"),
            Target::Own(chain) => format!("goto {chain}"),
        };
        let (map, key) = place(rule);
        self.command("add element", format_args!("{}{map} {{ {key} : {verdict} }}", target.prefix()));
    }

    /// Takes that element away.
    pub(super) fn lose(&mut self, rule: &Rule, target: &Target) {
        let (map, key) = place(rule);
        self.command("delete element", format_args!("{}{map} {{ {key} }}", target.prefix()));
    }

    /// Brings the turns of a rule whose chain is shared from some endpoints to others.
    pub(super) fn turns(&mut self, rule: &Rule, before: &[SocketAddr], after: &[SocketAddr]) {
        let node = if rule.frontend == Frontend::Node { NODE } else { "" };
        let key = place(rule).1;
        for turn in 0..before.len().max(after.len()) {
            let (old, new) = (before.get(turn), after.get(turn));
            if old == new {
                continue;
            }
            if old.is_some() {
                self.command("delete element", format_args!("{node}endpoints-{turn} {{ {key} }}"));
            }
            if let Some(new) = new {
                let (address, port) = (new.ip(), new.port());
                self.command(
                    "add element",
                    format_args!("{node}endpoints-{turn} {{ {key} : {address} . {port} }}"),
                );
            }
        }
    }

    /// Makes the map of the endpoints whose turn it is, and the chain that looks there.
    pub(super) fn turn(&mut self, is_node: bool, turn: usize) {
        let (header, addresses) = (self.family.name(), self.family.address_type());
        let (node, kind, key) = if is_node {
            (NODE, String::new(), String::new())
        } else {
            ("", format!("{addresses} . "), format!("{header} daddr . "))
        };
        self.command(
            "add map",
            format_args!(
                "{node}endpoints-{turn} {{ type {kind}inet_proto . inet_service : {addresses} . inet_service ; }}"
            ),
        );
        self.command("add chain", format_args!("{node}turn-{turn}"));
        self.rule(
            &format!("{node}turn-{turn}"),
            format_args!(
                "meta l4proto {{ tcp, udp, sctp }} dnat {header} addr . port to \
                 {key}meta l4proto . th dport map @{node}endpoints-{turn}"
            ),
        );
    }

    /// Takes these away.
    pub(super) fn drop_turn(&mut self, is_node: bool, turn: usize) {
        let node = if is_node { NODE } else { "" };
        self.drop_chain(&format!("{node}turn-{turn}"));
        self.command("delete map", format_args!("{node}endpoints-{turn}"));
    }

    /// Makes a chain that all rules of a kind with as many endpoints share.
    pub(super) fn shared(&mut self, chain: &str, kind: Kind, count: usize) {
        let node = if chain.starts_with(NODE) { NODE } else { "" };
        self.command("add chain", format_args!("{chain}"));
        self.mark(chain, kind);
        let turns: Vec<String> = (0..count).map(|turn| format!("{turn} : goto {node}turn-{turn}")).collect();
        self.rule(chain, format_args!("numgen inc mod {count} vmap {{ {} }}", turns.join(", ")));
    }

    pub(super) fn drop_chain(&mut self, chain: &str) {
        self.command("flush chain", format_args!("{chain}"));
        self.command("delete chain", format_args!("{chain}"));
    }

    /// Marks what is to get another source.
    fn mark(&mut self, chain: &str, kind: Kind) {
        let pods = in_family(&self.config.pod_ranges, self.family).join(", ");
        match kind {
            Kind::Masked => self.rule(chain, format_args!("jump mark-for-masquerade")),
            Kind::Inside if !pods.is_empty() => {
                let header = self.family.name();
                self.rule(chain, format_args!("{header} saddr != {{ {pods} }} jump mark-for-masquerade"));
            }
            Kind::Inside | Kind::Bare => {}
        }
    }

    /// Makes the chains of a rule with endpoints; they must not be there.
    pub(super) fn chains(&mut self, rule: &Rule, endpoints: &[SocketAddr]) {
        let chain = names::service(rule);
        self.command("add chain", format_args!("{chain}"));
        if let Some(time) = rule.affinity {
            for endpoint in endpoints {
                self.endpoint(rule, &chain, *endpoint, time.as_secs().max(1));
            }
        }
        self.fill(rule, &chain, endpoints);
    }

    /// The chain of an endpoint that clients stay with.
    fn endpoint(&mut self, rule: &Rule, chain: &str, endpoint: SocketAddr, seconds: u64) {
        let (name, addresses, header) =
            (names::endpoint(chain, endpoint), self.family.address_type(), self.family.name());
        self.command(
            "add set",
            format_args!(
                "affinity-{name} {{ type {addresses} ; flags dynamic,timeout ; timeout {seconds}s ; }}"
            ),
        );
        self.command("add chain", format_args!("endpoint-{name}"));
        let own = format!("endpoint-{name}");
        self.rule(&own, format_args!("update @affinity-{name} {{ {header} saddr }}"));
        self.rule(
            &own,
            format_args!("meta l4proto {} dnat {header} to {endpoint}", protocol(rule.transport)),
        );
    }

    fn fill(&mut self, rule: &Rule, chain: &str, endpoints: &[SocketAddr]) {
        let header = self.family.name();
        let ranges = in_family(&rule.sources, self.family);
        if !ranges.is_empty() {
            self.rule(chain, format_args!("{header} saddr != {{ {} }} drop", ranges.join(", ")));
        } else if !rule.sources.is_empty() {
            self.rule(chain, format_args!("drop"));
        }
        self.mark(chain, Kind::of(rule));
        let count = endpoints.len();
        if rule.affinity.is_some() {
            let names: Vec<String> = endpoints.iter().map(|one| names::endpoint(chain, *one)).collect();
            for name in &names {
                self.rule(chain, format_args!("{header} saddr @affinity-{name} goto endpoint-{name}"));
            }
            let turns: Vec<String> = names
                .iter()
                .enumerate()
                .map(|(turn, name)| format!("{turn} : goto endpoint-{name}"))
                .collect();
            self.rule(chain, format_args!("numgen inc mod {count} vmap {{ {} }}", turns.join(", ")));
            return;
        }
        let protocol = protocol(rule.transport);
        if let [one] = endpoints {
            self.rule(chain, format_args!("meta l4proto {protocol} dnat {header} to {one}"));
            return;
        }
        let turns = endpoints.iter().enumerate();
        let turns: Vec<String> =
            turns.map(|(turn, one)| format!("{turn} : {} . {}", one.ip(), one.port())).collect();
        self.rule(
            chain,
            format_args!(
                "meta l4proto {protocol} dnat {header} addr . port to numgen inc mod {count} map {{ {} }}",
                turns.join(", ")
            ),
        );
    }

    /// Writes a chain anew that has other endpoints now. Endpoints that stay keep their clients.
    pub(super) fn refill(&mut self, rule: &Rule, before: &[SocketAddr], endpoints: &[SocketAddr]) {
        let chain = names::service(rule);
        if let Some(time) = rule.affinity {
            for endpoint in endpoints.iter().filter(|one| !before.contains(one)) {
                self.endpoint(rule, &chain, *endpoint, time.as_secs().max(1));
            }
        }
        self.command("flush chain", format_args!("{chain}"));
        self.fill(rule, &chain, endpoints);
        if rule.affinity.is_some() {
            for endpoint in before.iter().filter(|one| !endpoints.contains(one)) {
                self.drop_endpoint(&chain, *endpoint);
            }
        }
    }

    /// Takes the chains of a rule away; nothing leads to them any more.
    pub(super) fn drop_chains(&mut self, rule: &Rule, endpoints: &[SocketAddr]) {
        let chain = names::service(rule);
        self.drop_chain(&chain);
        if rule.affinity.is_some() {
            for endpoint in endpoints {
                self.drop_endpoint(&chain, *endpoint);
            }
        }
    }

    fn drop_endpoint(&mut self, chain: &str, endpoint: SocketAddr) {
        let name = names::endpoint(chain, endpoint);
        self.drop_chain(&format!("endpoint-{name}"));
        self.command("delete set", format_args!("affinity-{name}"));
    }
}

/// The ranges of one family; what is none is left out.
fn in_family(ranges: &[String], family: Family) -> Vec<String> {
    let parsed = ranges.iter().filter_map(|range| {
        let (network, prefix) = range.trim().split_once('/')?;
        let (network, prefix): (IpAddr, u8) = (network.parse().ok()?, prefix.parse().ok()?);
        let widest = if network.is_ipv4() { 32 } else { 128 };
        (prefix <= widest && Family::of(network) == family).then(|| format!("{network}/{prefix}"))
    });
    parsed.collect()
}
