//! What the kernel has been told, and the way from there to another table: pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    IpvsConfig,
    filter::{self, Element, Guard, Writer},
    servers::{Key, Options, Request, Server, Servers, WEIGHT},
};
use crate::{
    policy::Cidr,
    proxy::{
        RuleError,
        changes::{self, Services},
        conntrack::{self, Flow},
    },
    redirect::Transport,
    rules::{Frontend, Rule, Table},
};

/// The real servers that get no new connections and go when they have no more.
pub(super) type Leaving = BTreeSet<(Key, SocketAddr)>;

/// The node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    /// Those of its devices but the Services' one.
    own: BTreeSet<IpAddr>,
    /// Those that serve node ports.
    serving: BTreeSet<IpAddr>,
}

impl Nodes {
    /// Those of its own that are in the ranges, or all but the loopback ones. A range of one address is taken as it is, since all
    /// addresses of the loopback range are the node's without being any device's.
    pub(super) fn new(own: BTreeSet<IpAddr>, ranges: &[Cidr], serves_all: bool) -> Self {
        let is_served = |address: &&IpAddr| {
            (serves_all && !address.is_loopback()) || ranges.iter().any(|range| range.contains(**address))
        };
        let mut serving: BTreeSet<IpAddr> = own.iter().filter(is_served).copied().collect();
        let single =
            ranges.iter().filter(|range| range.prefix == if range.network.is_ipv4() { 32 } else { 128 });
        serving.extend(single.map(|range| range.network));
        Self { own, serving }
    }
}

/// What the kernel had before anything was told.
#[derive(Clone, Debug, Default)]
pub(super) struct There {
    pub(super) servers: Servers,
    /// The addresses of the Services' device.
    pub(super) bound: BTreeSet<IpAddr>,
}

/// What becomes of an address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    server: Server,
    /// What the sets say of it; who may come is said by the guard.
    elements: BTreeSet<Element>,
    guard: Option<Guard>,
    /// Whether the Services' device has the address.
    is_bound: bool,
}

type Entries = BTreeMap<Key, Entry>;

/// What the kernel has been told.
#[derive(Debug, Default)]
pub(super) struct State {
    services: Services,
    nodes: Nodes,
    entries: HashMap<Arc<str>, Entries>,
    /// Which Service has an address and port; the first one that asks.
    owners: HashMap<Key, Arc<str>>,
    /// How many entries have an address on the device, and how many endpoints have one.
    bound: BTreeMap<IpAddr, usize>,
    hairpins: BTreeMap<IpAddr, usize>,
    /// How many entries have each guard.
    guards: BTreeMap<Guard, usize>,
    pub(super) leaving: Leaving,
}

/// From one state to another.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) state: State,
    /// The commands for `nft`, one transaction; empty when there is nothing to do.
    pub(super) script: String,
    /// What IPVS is asked, in this order.
    pub(super) requests: Vec<Request>,
    /// The addresses that the Services' device gets and loses.
    pub(super) bound: Vec<IpAddr>,
    pub(super) unbound: Vec<IpAddr>,
    /// The UDP flows that must not go on.
    pub(super) ended: Vec<Flow>,
    /// The rules whose place another Service has.
    pub(super) refused: Vec<RuleError>,
}

impl State {
    /// The name of the Service that has an address and port.
    pub(super) fn owner(&self, key: Key) -> String {
        self.owners.get(&key).map_or("no service", |owner| owner).to_owned()
    }

    /// Everything anew, in place of what is there.
    pub(super) fn fresh(config: &IpvsConfig, nodes: &Nodes, table: &Table, there: There) -> Change {
        let mut change = Self::default().change(config, nodes, table);
        let mut script = String::new();
        for v4 in [true, false] {
            Writer { out: &mut script, config, v4 }.base();
        }
        script.push_str(&change.script);
        change.script = script;
        // Nobody knows what was there before, so no flow is told to end.
        change.ended.clear();
        let wanted: Servers = change
            .state
            .entries
            .values()
            .flatten()
            .map(|(key, entry)| (*key, entry.server.clone()))
            .collect();
        change.requests = requests(&there.servers, &wanted, &mut change.state.leaving);
        let wanted = &change.state.bound;
        change.bound = wanted.keys().filter(|address| !there.bound.contains(address)).copied().collect();
        change.unbound = there.bound.into_iter().filter(|address| !wanted.contains_key(address)).collect();
        change
    }

    /// The way from here to a table. What costs is what differs.
    pub(super) fn change(mut self, config: &IpvsConfig, nodes: &Nodes, table: &Table) -> Change {
        let (gone, mut changed) = changes::differences(&self.services, &table.services);
        if self.nodes != *nodes {
            // Node ports are served elsewhere now, and who is the node itself is another question.
            changed = table
                .services
                .iter()
                .map(|(service, rules)| {
                    (Arc::clone(service), self.services.get(service).cloned(), Arc::clone(rules))
                })
                .collect();
            self.nodes.clone_from(nodes);
        }
        let mut change = Change { state: self, ..Change::default() };
        let (mut before, mut after) = (Entries::new(), Entries::new());
        // Those that go make room for those that come.
        for (service, rules) in &gone {
            change.state.services.remove(service);
            change.leave(service, &mut before);
            change.end_flows(rules, &[]);
        }
        for (service, _, _) in &changed {
            change.leave(service, &mut before);
        }
        for (service, known, rules) in changed {
            change.end_flows(known.as_deref().unwrap_or_default(), &rules);
            let is_served = change.take(config, &service, &rules, &mut after);
            // What is not served whole is tried again with the next table.
            let served = if is_served { rules } else { Arc::from([]) };
            change.state.services.insert(service, served);
        }
        change.settle(config, &before, &after);
        change
    }
}

impl Change {
    fn end_flows(&mut self, before: &[Rule], after: &[Rule]) {
        for v4 in [true, false] {
            self.ended.extend(conntrack::between(before, after, v4));
        }
    }

    /// Forgets what a Service has.
    fn leave(&mut self, service: &Arc<str>, before: &mut Entries) {
        let entries = self.state.entries.remove(service).unwrap_or_default();
        for key in entries.keys() {
            self.state.owners.remove(key);
        }
        before.extend(entries);
    }

    /// Gives a Service what it asks for; whether nothing of it is somebody else's.
    fn take(&mut self, config: &IpvsConfig, service: &Arc<str>, rules: &[Rule], after: &mut Entries) -> bool {
        let mut own = Entries::new();
        let mut is_served = true;
        for (key, entry, rule) in entries(config, &self.state.nodes, rules) {
            let owner = self.state.owners.entry(key).or_insert_with(|| Arc::clone(service));
            if owner == service {
                own.insert(key, entry);
                continue;
            }
            is_served = false;
            let told = format!("{owner} has this address and port");
            self.refused.push(RuleError {
                service: rule.service.to_string(),
                address: SocketAddr::new(key.address, key.port),
                transport: key.transport,
                source: io::Error::new(io::ErrorKind::AddrInUse, told),
            });
        }
        after.extend(own.iter().map(|(key, entry)| (*key, entry.clone())));
        self.state.entries.insert(Arc::clone(service), own);
        is_served
    }

    /// Writes what differs.
    fn settle(&mut self, config: &IpvsConfig, before: &Entries, after: &Entries) {
        let state = &mut self.state;
        let script = &mut self.script;
        let servers = |entries: &Entries| -> Servers {
            entries.iter().map(|(key, entry)| (*key, entry.server.clone())).collect()
        };
        self.requests = requests(&servers(before), &servers(after), &mut state.leaving);
        // What comes is counted first, so that a guard that stays is not made anew.
        for guard in after.values().filter_map(|entry| entry.guard.as_ref()) {
            let count = state.guards.entry(guard.clone()).or_insert_with(|| {
                Writer { out: script, config, v4: guard.v4 }.guard(guard);
                0
            });
            *count += 1;
        }
        let elements = |key: Key, entries: &Entries| {
            let Some(entry) = entries.get(&key) else { return BTreeSet::new() };
            let mut elements = entry.elements.clone();
            if let Some(guard) = &entry.guard {
                let verdict = Some(format!("goto {}", guard.chain()));
                elements.insert(Element { set: "guarded", verdict });
            }
            elements
        };
        let keys: BTreeSet<Key> = before.keys().chain(after.keys()).copied().collect();
        for key in keys {
            let old = elements(key, before);
            let new = elements(key, after);
            let mut writer = Writer { out: script, config, v4: key.address.is_ipv4() };
            old.difference(&new).for_each(|element| writer.element(false, key, element));
            new.difference(&old).for_each(|element| writer.element(true, key, element));
        }
        for guard in before.values().filter_map(|entry| entry.guard.as_ref()) {
            if let Some(count) = state.guards.get_mut(guard) {
                *count -= 1;
                if *count == 0 {
                    Writer { out: script, config, v4: guard.v4 }.drop_chain(&guard.chain());
                    state.guards.remove(guard);
                }
            }
        }
        let bound = |entries: &Entries| -> Vec<IpAddr> {
            let bound = entries.iter().filter(|(_, entry)| entry.is_bound);
            bound.map(|(key, _)| key.address).collect()
        };
        let endpoints = |entries: &Entries| -> Vec<IpAddr> {
            let all = entries.values().flat_map(|entry| entry.server.endpoints.keys());
            all.map(SocketAddr::ip).collect()
        };
        let mut write = |set: &str, (come, go): &(Vec<IpAddr>, Vec<IpAddr>)| {
            for (adds, addresses) in [(true, come), (false, go)] {
                for address in addresses {
                    Writer { out: script, config, v4: address.is_ipv4() }.address(adds, set, *address);
                }
            }
        };
        write("hairpins", &count(&mut state.hairpins, &endpoints(before), &endpoints(after)));
        let change = count(&mut state.bound, &bound(before), &bound(after));
        write("addresses", &change);
        (self.bound, self.unbound) = change;
    }
}

/// Counts addresses; gives those that are new and those that nobody has any more.
fn count(
    known: &mut BTreeMap<IpAddr, usize>,
    before: &[IpAddr],
    after: &[IpAddr],
) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let mut changes: BTreeMap<IpAddr, isize> = BTreeMap::new();
    for (addresses, by) in [(before, -1), (after, 1)] {
        addresses.iter().for_each(|address| *changes.entry(*address).or_default() += by);
    }
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for (address, by) in changes {
        let old = known.get(&address).copied().unwrap_or(0);
        let new = old.saturating_add_signed(by);
        match (old, new) {
            (0, 1..) => come.push(address),
            (1.., 0) => go.push(address),
            _ => {}
        }
        if new == 0 {
            known.remove(&address);
        } else {
            known.insert(address, new);
        }
    }
    (come, go)
}

/// What a Service's rules come to, and the rule of each.
fn entries<'a>(config: &IpvsConfig, nodes: &Nodes, rules: &'a [Rule]) -> Vec<(Key, Entry, &'a Rule)> {
    let mut entries = Vec::new();
    for rule in rules {
        let addresses: Vec<IpAddr> = match rule.frontend {
            Frontend::Address(address) => vec![address],
            Frontend::Node => nodes.serving.iter().copied().collect(),
        };
        for address in addresses {
            if let Some(entry) = entry(config, nodes, rules, rule, address) {
                let key = Key { address, port: rule.port, transport: rule.transport };
                entries.push((key, entry, rule));
            }
        }
    }
    entries
}

fn entry(config: &IpvsConfig, nodes: &Nodes, rules: &[Rule], rule: &Rule, address: IpAddr) -> Option<Entry> {
    let v4 = address.is_ipv4();
    let same_port = |other: &&Rule| other.service == rule.service && other.transport == rule.transport;
    let inside = || rules.iter().filter(|other| !other.external).filter(same_port);
    let mut endpoints = filter::in_family(&rule.endpoints, v4);
    let is_of = |other: &Rule| matches!(other.frontend, Frontend::Address(own) if own.is_ipv4() == v4);
    if rule.frontend == Frontend::Node && endpoints.is_empty() && !inside().any(is_of) {
        // A Service without addresses of this family has nothing to say about its node ports either.
        return None;
    }
    let is_bare = rule.external && rule.local;
    let mut only_inside = false;
    if is_bare && endpoints.is_empty() {
        // Pods of the node, and the node itself, are not outside: they may ask any endpoint (KEP-1669).
        let everywhere = inside().filter(|other| !other.local);
        endpoints =
            everywhere.map(|other| filter::in_family(&other.endpoints, v4)).next().unwrap_or_default();
        only_inside = !endpoints.is_empty();
    }
    let mut elements = BTreeSet::from([Element::of("services")]);
    match (rule.external, rule.local) {
        (false, _) => drop(elements.insert(Element::of("inside"))),
        (true, false) => drop(elements.insert(Element::of("masked"))),
        (true, true) => {}
    }
    if endpoints.is_empty() {
        let verdict = Some(if is_bare { "drop" } else { "goto refuse" }.to_owned());
        elements.insert(Element { set: "no-endpoints", verdict });
    }
    let ranges = (!rule.sources.is_empty()).then(|| filter::ranges(&rule.sources, v4));
    let with_node = ranges
        .iter()
        .flatten()
        .filter_map(|range| Cidr::parse(range))
        .any(|range| nodes.own.iter().any(|own| !own.is_loopback() && range.contains(*own)));
    let guard = (ranges.is_some() || only_inside).then_some(Guard { v4, ranges, with_node, only_inside });
    let server = Server {
        options: Options::new(config.scheduler, rule.affinity),
        endpoints: endpoints.into_iter().map(|endpoint| (endpoint, WEIGHT)).collect(),
    };
    let is_bound = rule.frontend != Frontend::Node && !address.is_loopback() && !nodes.own.contains(&address);
    Some(Entry { server, elements, guard, is_bound })
}

/// What IPVS is asked so that it has some servers in place of others. Real servers of TCP that go are left with the weight 0 as long as
/// they have connections; for others there is nothing to wait for.
fn requests(before: &Servers, after: &Servers, leaving: &mut Leaving) -> Vec<Request> {
    let mut requests = Vec::new();
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        leaving.retain(|(of, _)| of != key);
        requests.push(Request::Delete(*key));
    }
    for (key, server) in after {
        let none = BTreeMap::new();
        let old = before.get(key);
        match old {
            None => requests.push(Request::Add(*key, server.options.clone())),
            Some(old) if old.options != server.options => {
                requests.push(Request::Set(*key, server.options.clone()));
            }
            Some(_) => {}
        }
        let had = old.map_or(&none, |old| &old.endpoints);
        for (endpoint, weight) in &server.endpoints {
            let is_leaving = leaving.remove(&(*key, *endpoint));
            match had.get(endpoint) {
                Some(known) if known == weight && !is_leaving => {}
                None if !is_leaving => requests.push(Request::AddEndpoint(*key, *endpoint, *weight)),
                _ => requests.push(Request::SetEndpoint(*key, *endpoint, *weight)),
            }
        }
        for (endpoint, weight) in had.iter().filter(|(one, _)| !server.endpoints.contains_key(one)) {
            if key.transport != Transport::Tcp {
                requests.push(Request::DeleteEndpoint(*key, *endpoint));
                continue;
            }
            if *weight != 0 {
                requests.push(Request::SetEndpoint(*key, *endpoint, 0));
            }
            leaving.insert((*key, *endpoint));
        }
    }
    requests
}

#[cfg(test)]
mod tests;
