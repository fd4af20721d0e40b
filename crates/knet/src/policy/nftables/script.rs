//! The text of the table, its chains and elements, as `nft -f` reads it.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, sync::Arc};

use sha2::{Digest, Sha256};

use super::{Denied, Existing, NftablesPolicyConfig};
use crate::policy::{Allow, GroupId, Member, Peers, PodRules, Ports, Protocol};

/// How many elements one command has.
const ELEMENTS_MAX: usize = 500;
/// How much of a hash a name has, in bytes.
const HASH_BYTES: usize = 12;

/// Seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn map(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field of the header that has the peer's address.
    fn peer(self) -> &'static str {
        match self {
            Self::Ingress => "saddr",
            Self::Egress => "daddr",
        }
    }
}

const FAMILIES: [(&str, &str, &str); 2] = [("4", "ip", "ipv4_addr"), ("6", "ip6", "ipv6_addr")];

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "4" } else { "6" }
}

fn header(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(HASH_BYTES).fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The chain of these rules: all pods that have the same share it.
pub(super) fn chain_name(direction: Direction, allowed: &[Allow]) -> Arc<str> {
    format!("{}-{}", direction.map(), hash(&format!("{allowed:?}"))).into()
}

/// The groups of these rules whose members are ports at addresses.
pub(super) fn groups_of_ports(rules: &PodRules) -> impl Iterator<Item = &GroupId> {
    let allowed = rules.egress.iter().flat_map(|list| list.iter());
    allowed.filter_map(|allow| match &allow.peers {
        Peers::GroupPorts(id) => Some(id),
        Peers::Any | Peers::Group(_) | Peers::Block { .. } => None,
    })
}

/// The commands that leave nothing.
pub(super) fn removal(config: &NftablesPolicyConfig) -> String {
    let mut script = Script::new(config);
    script.drop_table();
    script.text
}

/// Commands about the table.
pub(super) struct Script<'a> {
    pub(super) text: String,
    config: &'a NftablesPolicyConfig,
}

impl<'a> Script<'a> {
    pub(super) fn new(config: &'a NftablesPolicyConfig) -> Self {
        Self { text: String::new(), config }
    }

    fn command(&mut self, what: &str, rest: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.text, "{what} inet {} {rest}", self.config.table);
    }

    fn drop_table(&mut self) {
        self.command("add table", format_args!(""));
        self.command("delete table", format_args!(""));
    }

    /// The table without pods, in place of what was there.
    pub(super) fn base(&mut self) {
        self.drop_table();
        self.command("add table", format_args!(""));
        for (family, _, kind) in FAMILIES {
            for map in ["ingress", "egress"] {
                self.command("add map", format_args!("{map}-pods-{family} {{ type {kind} : verdict ; }}"));
            }
            self.command("add set", format_args!("own-{family} {{ type {kind} . {kind} ; }}"));
        }
        self.command(
            "add chain",
            format_args!("forward {{ type filter hook forward priority -5 ; policy accept ; }}"),
        );
        let existing: &[&str] = match self.config.existing {
            Existing::Kept => &["ct state established,related accept"],
            Existing::Cut => &["ct state established ct direction reply accept", "ct state related accept"],
        };
        for rule in existing {
            self.command("add rule", format_args!("forward {rule}"));
        }
        // Neighbours that share a bridge have to find each other.
        let neighbours = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert";
        self.command("add rule", format_args!("forward icmpv6 type {{ {neighbours} }} accept"));
        for (family, header, _) in FAMILIES {
            let own = format!("{header} saddr . {header} daddr @own-{family} accept");
            self.command("add rule", format_args!("forward {own}"));
        }
        for (family, header, _) in FAMILIES {
            self.command("add rule", format_args!("forward {header} saddr vmap @egress-pods-{family}"));
            self.command("add rule", format_args!("forward {header} daddr vmap @ingress-pods-{family}"));
        }
    }

    /// Adds the sets of a group, without members.
    pub(super) fn add_group(&mut self, id: &GroupId, with_ports: bool) {
        let rest = if with_ports { " . inet_proto . inet_service" } else { "" };
        for (family, _, kind) in FAMILIES {
            self.command("add set", format_args!("group-{}-{family} {{ type {kind}{rest} ; }}", hash(id)));
        }
    }

    pub(super) fn flush_group(&mut self, id: &GroupId) {
        for (family, ..) in FAMILIES {
            self.command("flush set", format_args!("group-{}-{family}", hash(id)));
        }
    }

    pub(super) fn drop_group(&mut self, id: &GroupId) {
        for (family, ..) in FAMILIES {
            self.command("delete set", format_args!("group-{}-{family}", hash(id)));
        }
    }

    /// Adds or deletes members of a group.
    pub(super) fn elements<'m>(
        &mut self,
        what: &str,
        id: &GroupId,
        members: impl Iterator<Item = &'m Member>,
    ) {
        let mut by_family: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for member in members {
            let text = match member.port {
                None => member.address.to_string(),
                Some((of, port)) => format!("{} . {} . {port}", member.address, protocol(of)),
            };
            by_family.entry(family(member.address)).or_default().push(text);
        }
        for (family, members) in by_family {
            for some in members.chunks(ELEMENTS_MAX) {
                let elements = some.join(", ");
                self.command(
                    &format!("{what} element"),
                    format_args!("group-{}-{family} {{ {elements} }}", hash(id)),
                );
            }
        }
    }

    /// Makes an address lead to a chain.
    pub(super) fn place(&mut self, direction: Direction, address: IpAddr, chain: &str) {
        let map = format!("{}-pods-{}", direction.map(), family(address));
        self.command("add element", format_args!("{map} {{ {address} : jump {chain} }}"));
    }

    pub(super) fn unplace(&mut self, direction: Direction, address: IpAddr, chain: &str) {
        let map = format!("{}-pods-{}", direction.map(), family(address));
        self.command("delete element", format_args!("{map} {{ {address} : jump {chain} }}"));
    }

    /// Adds or deletes the traffic of an address with itself.
    pub(super) fn own(&mut self, what: &str, address: IpAddr) {
        let set = format!("own-{}", family(address));
        self.command(&format!("{what} element"), format_args!("{set} {{ {address} . {address} }}"));
    }

    pub(super) fn drop_chain(&mut self, chain: &str) {
        self.command("flush chain", format_args!("{chain}"));
        self.command("delete chain", format_args!("{chain}"));
    }

    /// Adds a chain: what is allowed goes back to the caller, for the packet's other end has a say, too.
    pub(super) fn add_chain(&mut self, chain: &str, direction: Direction, allowed: &[Allow]) {
        self.command("add chain", format_args!("{chain}"));
        for allow in allowed {
            for peers in peers(direction, &allow.peers) {
                for ports in ports(allow.ports.as_deref()) {
                    self.command("add rule", format_args!("{chain} {peers}{ports}return"));
                }
            }
        }
        let verdict = match self.config.denied {
            Denied::Dropped => "drop",
            Denied::Rejected => "reject",
        };
        self.command("add rule", format_args!("{chain} counter {verdict}"));
    }
}

/// The matches, one for each rule that it takes, with a space behind; none for everybody.
fn peers(direction: Direction, peers: &Peers) -> Vec<String> {
    let field = direction.peer();
    match peers {
        Peers::Any => vec![String::new()],
        Peers::Group(id) => FAMILIES
            .iter()
            .map(|(family, header, _)| format!("{header} {field} @group-{}-{family} ", hash(id)))
            .collect(),
        Peers::GroupPorts(id) => FAMILIES
            .iter()
            .map(|(family, header, _)| {
                format!("{header} {field} . meta l4proto . th dport @group-{}-{family} ", hash(id))
            })
            .collect(),
        Peers::Block { cidr, except } => {
            let header = header(cidr.network);
            // A range of all addresses matches nothing in particular, but those of its family.
            let mut text = if cidr.prefix == 0 {
                format!("meta nfproto {} ", if header == "ip" { "ipv4" } else { "ipv6" })
            } else {
                format!("{header} {field} {cidr} ")
            };
            let except: Vec<String> = except
                .iter()
                .filter(|range| range.network.is_ipv4() == cidr.network.is_ipv4())
                .map(ToString::to_string)
                .collect();
            // `nft` reads a prefix of no bits in a set as one address.
            if except.iter().any(|range| range.ends_with("/0")) {
                return Vec::new();
            }
            if !except.is_empty() {
                let _ = write!(text, "{header} {field} != {{ {} }} ", except.join(", "));
            }
            vec![text]
        }
    }
}

/// The same for ports.
fn ports(ports: Option<&[Ports]>) -> Vec<String> {
    let Some(ports) = ports else { return vec![String::new()] };
    let mut by_protocol: BTreeMap<Protocol, Option<Vec<String>>> = BTreeMap::new();
    for range in ports {
        let entry = by_protocol.entry(range.protocol).or_insert_with(|| Some(Vec::new()));
        if range.first == 0 && range.last == u16::MAX {
            *entry = None;
        } else if let Some(list) = entry {
            let Ports { first, last, .. } = range;
            list.push(if first == last { first.to_string() } else { format!("{first}-{last}") });
        }
    }
    let matches = by_protocol.into_iter().map(|(of, list)| match list {
        Some(list) => format!("{} dport {{ {} }} ", protocol(of), list.join(", ")),
        None => format!("meta l4proto {} ", protocol(of)),
    });
    matches.collect()
}
