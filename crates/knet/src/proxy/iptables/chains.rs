//! The rules of one Service, as lines for `iptables-restore`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{IptablesConfig, names};
use crate::{
    policy::Cidr,
    redirect::Transport,
    rules::{Frontend, Rule},
};

/// What a Service adds to the chains that all share, and its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Rules of shared chains in the table `filter`.
    pub(super) filter: Vec<String>,
    /// Rules of shared chains in the table `nat`.
    pub(super) nat: Vec<String>,
    /// The Service's own chains, by name, all in `nat`.
    pub(super) chains: BTreeMap<String, Vec<String>>,
}

/// What all rules of one port of a Service say.
struct Port<'a> {
    config: &'a IptablesConfig,
    v4: bool,
    service: &'a str,
    transport: Transport,
    rules: Vec<&'a Rule>,
}

fn is_of(address: IpAddr, v4: bool) -> bool {
    address.is_ipv4() == v4
}

/// The endpoints of one family.
pub(super) fn endpoints(rule: &Rule, v4: bool) -> Vec<SocketAddr> {
    rule.endpoints.iter().filter(|endpoint| is_of(endpoint.ip(), v4)).copied().collect()
}

/// The fragment of a Service for one family.
pub(super) fn fragment(config: &IptablesConfig, v4: bool, rules: &[Rule]) -> Fragment {
    let mut ports: BTreeMap<(&str, Transport), Vec<&Rule>> = BTreeMap::new();
    for rule in rules {
        if !matches!(rule.frontend, Frontend::Address(address) if !is_of(address, v4)) {
            ports.entry((&*rule.service, rule.transport)).or_default().push(rule);
        }
    }
    let mut fragment = Fragment::default();
    for ((service, transport), rules) in ports {
        Port { config, v4, service, transport, rules }.write(&mut fragment);
    }
    fragment
}

impl Port<'_> {
    /// The match of a rule's connections.
    fn matches(&self, rule: &Rule) -> String {
        let protocol = names::protocol(self.transport);
        let destination = match rule.frontend {
            Frontend::Address(address) => format!(" -d {address}"),
            Frontend::Node => String::new(),
        };
        format!("-m {protocol} -p {protocol}{destination} --dport {}", rule.port)
    }

    fn chain(&self, prefix: &str) -> String {
        names::of_service(prefix, self.service, self.transport)
    }

    /// The range of pods of the family.
    fn pods(&self) -> Option<Cidr> {
        let ranges = self.config.pod_ranges.iter().filter_map(|range| Cidr::parse(range));
        ranges.into_iter().find(|range| is_of(range.network, self.v4))
    }

    fn write(&self, out: &mut Fragment) {
        // Whether there are any endpoints, local or not: then who asks for local ones is not told that there are none.
        let any = self.rules.iter().any(|rule| !rule.local && !endpoints(rule, self.v4).is_empty());
        let has_address = self.rules.iter().any(|rule| matches!(rule.frontend, Frontend::Address(_)));
        for rule in &self.rules {
            let found = endpoints(rule, self.v4);
            // A Service without addresses of this family has nothing to say about its node ports either.
            if found.is_empty() && !has_address {
                continue;
            }
            if !found.is_empty() {
                self.write_endpoints(rule, &found, out);
            }
            if rule.external {
                self.write_external(rule, &found, any, out);
            } else {
                self.write_internal(rule, &found, any, out);
            }
        }
    }

    /// Where a rule's connections go.
    fn policy_chain(&self, rule: &Rule) -> String {
        self.chain(if rule.local { names::LOCAL } else { names::SERVICE })
    }

    /// Connections that find nobody are refused, or told nothing when others would have endpoints.
    fn write_none(&self, chain: &str, rule: &Rule, any: bool, out: &mut Fragment) {
        let dropped = rule.local && (any || rule.external);
        let (target, what) =
            if dropped { ("DROP", "no local endpoints") } else { ("REJECT", "no endpoints") };
        let local = if rule.frontend == Frontend::Node { "-m addrtype --dst-type LOCAL " } else { "" };
        out.filter.push(format!(
            "-A {chain} -m comment --comment \"{} has {what}\" {local}{} -j {target}",
            self.service,
            self.matches(rule)
        ));
    }

    fn write_internal(&self, rule: &Rule, found: &[SocketAddr], any: bool, out: &mut Fragment) {
        if found.is_empty() {
            self.write_none("KUBE-SERVICES", rule, any, out);
            return;
        }
        let comment = format!("-m comment --comment \"{} cluster IP\"", self.service);
        let (matches, chain) = (self.matches(rule), self.policy_chain(rule));
        out.nat.push(format!("-A KUBE-SERVICES {comment} {matches} -j {chain}"));
        if let Some(pods) = self.pods() {
            let line = format!("-A {chain} {comment} {matches} ! -s {pods} -j KUBE-MARK-MASQ");
            out.chains.entry(chain).or_default().insert(0, line);
        }
    }

    fn write_external(&self, rule: &Rule, found: &[SocketAddr], any: bool, out: &mut Fragment) {
        if found.is_empty() {
            self.write_none("KUBE-EXTERNAL-SERVICES", rule, any, out);
            if !any {
                return;
            }
        }
        let external = self.chain(names::EXTERNAL);
        let (matches, service) = (self.matches(rule), self.service);
        let target = if rule.sources.is_empty() { external.clone() } else { self.chain(names::FIREWALL) };
        let line = match (rule.frontend, rule.sources.is_empty()) {
            (Frontend::Node, _) => {
                format!("-A KUBE-NODEPORTS -m comment --comment \"{service}\" {matches} -j {target}")
            }
            (Frontend::Address(_), true) => format!(
                "-A KUBE-SERVICES -m comment --comment \"{service} external IP\" {matches} -j {target}"
            ),
            (Frontend::Address(_), false) => format!(
                "-A KUBE-SERVICES -m comment --comment \"{service} loadbalancer IP\" {matches} -j {target}"
            ),
        };
        out.nat.push(line);
        if !rule.sources.is_empty() {
            self.write_firewall(rule, &target, &external, out);
        }
        let entry = out.chains.entry(external);
        let lines = self.external_lines(rule, entry.key(), found);
        entry.or_insert(lines);
    }

    /// The chain of traffic from outside of the cluster.
    fn external_lines(&self, rule: &Rule, chain: &str, found: &[SocketAddr]) -> Vec<String> {
        let service = self.service;
        let mut lines = Vec::new();
        if rule.local {
            // Pods, and the node itself, are not outside: they may ask any endpoint.
            let everywhere = self
                .rules
                .iter()
                .find(|rule| !rule.external && !rule.local && !endpoints(rule, self.v4).is_empty());
            if everywhere.is_some() {
                let cluster = self.chain(names::SERVICE);
                if let Some(pods) = self.pods() {
                    lines.push(format!(
                        "-A {chain} -m comment --comment \"pod traffic for {service} external destinations\" -s {pods} -j {cluster}"
                    ));
                }
                for (what, target) in [("masquerade", "KUBE-MARK-MASQ"), ("route", cluster.as_str())] {
                    lines.push(format!(
                        "-A {chain} -m comment --comment \"{what} LOCAL traffic for {service} external destinations\" -m addrtype --src-type LOCAL -j {target}"
                    ));
                }
            }
        } else {
            lines.push(format!(
                "-A {chain} -m comment --comment \"masquerade traffic for {service} external destinations\" -j KUBE-MARK-MASQ"
            ));
        }
        if !found.is_empty() {
            lines.push(format!("-A {chain} -j {}", self.policy_chain(rule)));
        }
        lines
    }

    /// The chain that lets some sources through; what it doesn't is dropped later, for nothing can be dropped in `nat`.
    fn write_firewall(&self, rule: &Rule, chain: &str, external: &str, out: &mut Fragment) {
        let (service, matches) = (self.service, self.matches(rule));
        out.filter.push(format!(
            "-A KUBE-PROXY-FIREWALL -m comment --comment \"{service} traffic not accepted by {chain}\" {matches} -j DROP"
        ));
        let ranges = rule.sources.iter().filter_map(|range| Cidr::parse(range));
        let ranges = ranges.filter(|range| is_of(range.network, self.v4));
        let mut lines: Vec<String> = ranges
            .map(|range| {
                format!(
                    "-A {chain} -m comment --comment \"{service} loadbalancer IP\" -s {range} -j {external}"
                )
            })
            .collect();
        lines.push(format!(
            "-A {chain} -m comment --comment \"other traffic to {service} will be dropped by KUBE-PROXY-FIREWALL\""
        ));
        out.chains.entry(chain.to_owned()).or_insert(lines);
    }

    /// The chain that chooses an endpoint, and that of each endpoint.
    fn write_endpoints(&self, rule: &Rule, found: &[SocketAddr], out: &mut Fragment) {
        let chain = self.policy_chain(rule);
        if out.chains.contains_key(&chain) {
            return;
        }
        let (service, protocol) = (self.service, names::protocol(self.transport));
        let mut lines = Vec::new();
        let named: Vec<(String, SocketAddr)> = found
            .iter()
            .map(|endpoint| (names::of_endpoint(service, self.transport, *endpoint), *endpoint))
            .collect();
        if let Some(time) = rule.affinity {
            for (name, endpoint) in &named {
                lines.push(format!(
                    "-A {chain} -m comment --comment \"{service} -> {endpoint}\" -m recent --name {name} --rcheck --seconds {} --reap -j {name}",
                    time.as_secs().max(1)
                ));
            }
        }
        for (at, (name, endpoint)) in named.iter().enumerate() {
            let left = u32::try_from(named.len() - at).unwrap_or(u32::MAX);
            let turn = if left > 1 {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / f64::from(left))
            } else {
                String::new()
            };
            lines
                .push(format!("-A {chain} -m comment --comment \"{service} -> {endpoint}\" {turn}-j {name}"));
        }
        out.chains.insert(chain, lines);
        for (name, endpoint) in named {
            let affinity = if rule.affinity.is_some() {
                format!("-m recent --name {name} --set ")
            } else {
                String::new()
            };
            let comment = format!("-A {name} -m comment --comment \"{service}\"");
            let lines = vec![
                // A pod that reaches itself by its Service must see another source than its own address.
                format!("{comment} -s {} -j KUBE-MARK-MASQ", endpoint.ip()),
                format!(
                    "{comment} {affinity}-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
                ),
            ];
            out.chains.insert(name, lines);
        }
    }
}
