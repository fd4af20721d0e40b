//! What the kernel has been told, and the input of `iptables-restore` that brings it to another table: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use super::{
    IptablesConfig,
    chains::{self, Fragment},
    names,
};
use crate::{
    policy::Cidr,
    proxy::conntrack::{self, Flow},
    rules::{Rule, Table},
};

/// Where the kernel's chains lead to upstream's: table, chain, from where, on what condition, and why.
const JUMPS: [(&str, &str, &str, &str, &str); 12] = [
    ("filter", "KUBE-EXTERNAL-SERVICES", "INPUT", NEW, "kubernetes externally-visible service portals"),
    ("filter", "KUBE-EXTERNAL-SERVICES", "FORWARD", NEW, "kubernetes externally-visible service portals"),
    ("filter", "KUBE-NODEPORTS", "INPUT", "", "kubernetes health check service ports"),
    ("filter", "KUBE-SERVICES", "FORWARD", NEW, "kubernetes service portals"),
    ("filter", "KUBE-SERVICES", "OUTPUT", NEW, "kubernetes service portals"),
    ("filter", "KUBE-FORWARD", "FORWARD", "", "kubernetes forwarding rules"),
    ("filter", "KUBE-PROXY-FIREWALL", "INPUT", NEW, "kubernetes load balancer firewall"),
    ("filter", "KUBE-PROXY-FIREWALL", "OUTPUT", NEW, "kubernetes load balancer firewall"),
    ("filter", "KUBE-PROXY-FIREWALL", "FORWARD", NEW, "kubernetes load balancer firewall"),
    ("nat", "KUBE-SERVICES", "OUTPUT", "", "kubernetes service portals"),
    ("nat", "KUBE-SERVICES", "PREROUTING", "", "kubernetes service portals"),
    ("nat", "KUBE-POSTROUTING", "POSTROUTING", "", "kubernetes postrouting rules"),
];
const NEW: &str = "-m conntrack --ctstate NEW ";
/// The chains that all Services share.
const FILTER: [&str; 5] =
    ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"];
const NAT: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];

/// What one family's tables have.
#[derive(Debug, Default)]
pub(super) struct State {
    services: BTreeMap<Arc<str>, (Arc<[Rule]>, Fragment)>,
}

/// From one state to another.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) state: State,
    /// What `iptables-restore` reads; empty when there is nothing to do.
    pub(super) script: String,
    /// The UDP flows that must not go on.
    pub(super) ended: Vec<Flow>,
}

/// The input that changes some chains: first they are all made or flushed, then filled, then those that are gone are deleted.
#[derive(Default)]
struct Input {
    tables: BTreeMap<&'static str, [String; 3]>,
}

impl Input {
    fn chain(&mut self, table: &'static str, name: &str) {
        let _ = writeln!(self.tables.entry(table).or_default()[0], ":{name} - [0:0]");
    }

    fn rule(&mut self, table: &'static str, line: &str) {
        let _ = writeln!(self.tables.entry(table).or_default()[1], "{line}");
    }

    fn delete(&mut self, table: &'static str, name: &str) {
        self.chain(table, name);
        let _ = writeln!(self.tables.entry(table).or_default()[2], "-X {name}");
    }

    fn text(self) -> String {
        let tables = self.tables.into_iter();
        tables.map(|(table, parts)| format!("*{table}\n{}COMMIT\n", parts.concat())).collect()
    }
}

/// The chains of a table that `iptables-save` tells of, and its rules.
fn parts<'a>(saved: &'a str, wanted: &str) -> (BTreeSet<&'a str>, Vec<&'a str>) {
    let (mut chains, mut rules, mut table) = (BTreeSet::new(), Vec::new(), "");
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if table != wanted {
        } else if let Some(chain) = line.strip_prefix(':') {
            chains.insert(chain.split(' ').next().unwrap_or_default());
        } else if line.starts_with("-A ") {
            rules.push(line);
        }
    }
    (chains, rules)
}

/// The input that leaves nothing of the proxy's.
pub(super) fn removal(saved: &str) -> String {
    let mut input = Input::default();
    for (table, shared) in [("filter", &FILTER[..]), ("nat", &NAT[..])] {
        let (chains, rules) = parts(saved, table);
        for rule in rules {
            let jumps = JUMPS.iter().any(|(of, to, from, ..)| {
                *of == table
                    && rule.starts_with(&format!("-A {from} "))
                    && rule.ends_with(&format!(" -j {to}"))
            });
            if jumps {
                input.rule(table, &rule.replacen("-A ", "-D ", 1));
            }
        }
        for chain in chains {
            if shared.contains(&chain) || names::PREFIXES.iter().any(|prefix| chain.starts_with(prefix)) {
                input.delete(table, chain);
            }
        }
    }
    input.text()
}

impl State {
    /// Everything anew, in place of what is there.
    pub(super) fn fresh(config: &IptablesConfig, v4: bool, table: &Table, saved: &str) -> Change {
        let mut input = Input::default();
        let mut change = Self::default().step(config, v4, table, true, &mut input);
        for (of, to, from, condition, why) in JUMPS {
            let (_, rules) = parts(saved, of);
            let known = rules
                .iter()
                .any(|rule| rule.starts_with(&format!("-A {from} ")) && rule.ends_with(&format!(" -j {to}")));
            if !known {
                input.rule(of, &format!("-I {from} 1 {condition}-m comment --comment \"{why}\" -j {to}"));
            }
        }
        let own: BTreeSet<&String> =
            change.state.services.values().flat_map(|(_, fragment)| fragment.chains.keys()).collect();
        for chain in parts(saved, "nat").0 {
            let of_service = names::PREFIXES.iter().any(|prefix| chain.starts_with(prefix));
            if of_service && !own.contains(&chain.to_owned()) {
                input.delete("nat", chain);
            }
        }
        change.script = input.text();
        // Nobody knows what was there before, so no flow is told to end.
        change.ended.clear();
        change
    }

    /// The way from here to a table. What costs is what differs.
    pub(super) fn change(self, config: &IptablesConfig, v4: bool, table: &Table) -> Change {
        let mut input = Input::default();
        let mut change = self.step(config, v4, table, false, &mut input);
        change.script = input.text();
        change
    }

    fn step(
        mut self,
        config: &IptablesConfig,
        v4: bool,
        table: &Table,
        mut shared_changed: bool,
        input: &mut Input,
    ) -> Change {
        let mut ended = Vec::new();
        let gone = self.services.keys().filter(|service| !table.services.contains_key(*service));
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        let none: Arc<[Rule]> = Arc::from([]);
        let changed = table.services.iter().filter(|(service, rules)| {
            let known = self.services.get(*service);
            !known.is_some_and(|(known, _)| Arc::ptr_eq(known, rules) || known == *rules)
        });
        let changed: Vec<_> =
            changed.map(|(service, rules)| (Arc::clone(service), Arc::clone(rules))).collect();
        let steps = gone.into_iter().map(|service| (service, Arc::clone(&none))).chain(changed);
        for (service, rules) in steps {
            let after = chains::fragment(config, v4, &rules);
            let (known, before) = self.services.remove(&service).unwrap_or_default();
            ended.extend(conntrack::between(&known, &rules, v4));
            shared_changed |= (&before.filter, &before.nat) != (&after.filter, &after.nat);
            for (name, lines) in &after.chains {
                if before.chains.get(name) != Some(lines) {
                    input.chain("nat", name);
                    lines.iter().for_each(|line| input.rule("nat", line));
                }
            }
            for name in before.chains.keys().filter(|name| !after.chains.contains_key(*name)) {
                input.delete("nat", name);
            }
            if table.services.contains_key(&service) {
                self.services.insert(service, (rules, after));
            }
        }
        if shared_changed {
            self.write_shared(config, v4, input);
        }
        Change { state: self, script: String::new(), ended }
    }

    /// The chains that all Services share, written whole.
    fn write_shared(&self, config: &IptablesConfig, v4: bool, input: &mut Input) {
        FILTER.iter().for_each(|chain| input.chain("filter", chain));
        NAT.iter().for_each(|chain| input.chain("nat", chain));
        let mark = config.masquerade_mark;
        let own = if v4 { "127.0.0.0/8" } else { "::1/128" };
        if config.loopback_endpoints {
            input.rule("nat", &format!("-A KUBE-POSTROUTING -d {own} -j RETURN"));
        }
        for line in [
            format!("-A KUBE-POSTROUTING -m mark ! --mark {mark:#x}/{mark:#x} -j RETURN"),
            format!("-A KUBE-POSTROUTING -j MARK --xor-mark {mark:#x}"),
            "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully"
                .to_owned(),
            format!("-A KUBE-MARK-MASQ -j MARK --or-mark {mark:#x}"),
        ] {
            input.rule("nat", &line);
        }
        for (_, fragment) in self.services.values() {
            fragment.filter.iter().for_each(|line| input.rule("filter", line));
            fragment.nat.iter().for_each(|line| input.rule("nat", line));
        }
        let ranges = config.node_port_addresses.iter().filter_map(|range| Cidr::parse(range));
        let ranges: Vec<Cidr> = ranges.filter(|range| range.network.is_ipv4() == v4).collect();
        let mut destinations: Vec<String> =
            ranges.iter().map(|range| format!("-m addrtype --dst-type LOCAL -d {range}")).collect();
        if config.node_port_addresses.is_empty() {
            destinations.push(format!("-m addrtype --dst-type LOCAL ! -d {own}"));
        }
        for destination in destinations {
            input.rule(
                "nat",
                &format!(
                    "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" {destination} -j KUBE-NODEPORTS"
                ),
            );
        }
        for line in [
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
            format!(
                "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT"
            ),
            "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                .to_owned(),
        ] {
            input.rule("filter", &line);
        }
    }
}
