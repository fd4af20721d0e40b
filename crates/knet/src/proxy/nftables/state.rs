//! What the kernel has been told, and the commands that bring it to another table: pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    NftablesConfig,
    chains::{FAMILIES, Family, Kind, Target, Writer},
};
use crate::{
    proxy::{
        RuleError,
        changes::differences,
        conntrack::{self, Flow},
    },
    redirect::Transport,
    rules::{Frontend, Rule, Table},
};

/// What connections are told apart by. Two Services can't have the same.
type Key = (Frontend, u16, Transport);

/// What the kernel has been told.
#[derive(Debug, Default)]
pub(super) struct State {
    services: BTreeMap<Arc<str>, Arc<[Rule]>>,
    /// Which Service a key belongs to; with the same external IP and port the first one has it.
    owners: HashMap<Key, Arc<str>>,
    /// How many rules a cluster IP has, and how many an endpoint is of.
    cluster_ips: BTreeMap<IpAddr, usize>,
    hairpins: BTreeMap<IpAddr, usize>,
    /// The shared chains.
    shared: BTreeMap<(Family, String), Shared>,
    /// How many turns there are, for addresses and for node ports.
    turns: BTreeMap<(Family, bool), usize>,
}

/// A shared chain: how many rules go there, how many endpoints each has, and whether they are node ports.
#[derive(Clone, Copy, Debug)]
struct Shared {
    rules: usize,
    endpoints: usize,
    is_node: bool,
}

/// From one state to another.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) state: State,
    /// The commands, one transaction; empty when there is nothing to do.
    pub(super) script: String,
    /// The UDP flows that must not go on.
    pub(super) ended: Vec<Flow>,
    /// The rules whose place another Service has.
    pub(super) refused: Vec<RuleError>,
}

/// The commands that leave nothing.
pub(super) fn removal(config: &NftablesConfig) -> String {
    let mut out = String::new();
    for family in FAMILIES {
        Writer { out: &mut out, config, family }.drop_table();
    }
    out
}

impl State {
    /// Everything anew, in place of whatever is there.
    pub(super) fn fresh(config: &NftablesConfig, table: &Table) -> Change {
        let mut script = String::new();
        for family in FAMILIES {
            Writer { out: &mut script, config, family }.base();
        }
        let mut change = Self::default().change(config, table);
        // Nobody knows what was there before, so no flow is told to end.
        change.ended.clear();
        script.push_str(&change.script);
        change.script = gathered(&script);
        change
    }

    /// The way from here to a table. What costs is what differs.
    pub(super) fn change(self, config: &NftablesConfig, table: &Table) -> Change {
        let mut change =
            Change { state: self, script: String::new(), ended: Vec::new(), refused: Vec::new() };
        let none: Arc<[Rule]> = Arc::from([]);
        let (gone, changed) = differences(&change.state.services, &table.services);
        let mut counts = Counts::default();
        // Those that go make room for those that come.
        for (service, rules) in gone {
            change.state.services.remove(&service);
            change.service(config, &service, &rules, &none, &mut counts);
        }
        for (service, before, rules) in changed {
            let before = before.unwrap_or_else(|| Arc::clone(&none));
            let served = change.service(config, &service, &before, &rules, &mut counts);
            // What is not served whole is tried again with the next table.
            change.state.services.insert(service, served);
        }
        change.settle(config, counts);
        change
    }
}

/// How many elements one command adds.
const ELEMENTS_MAX: usize = 512;

/// The same commands with those that add elements at the end, and such of one map or set in one: `nft` takes twice as long for as many commands as there
/// are elements. What elements lead to is made before them.
fn gathered(script: &str) -> String {
    let (mut out, mut sets) = (String::with_capacity(script.len()), BTreeMap::<&str, Vec<&str>>::new());
    for line in script.lines() {
        let element = line.strip_suffix(" }").and_then(|line| line.split_once(" { "));
        match element.filter(|(head, _)| head.starts_with("add element ")) {
            Some((head, element)) => sets.entry(head).or_default().push(element),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    for (head, elements) in sets {
        for some in elements.chunks(ELEMENTS_MAX) {
            out.push_str(&format!("{head} {{ {} }}\n", some.join(", ")));
        }
    }
    out
}

/// By how much the counts of addresses change.
#[derive(Default)]
struct Counts {
    cluster_ips: BTreeMap<IpAddr, isize>,
    hairpins: BTreeMap<IpAddr, isize>,
}

impl Counts {
    fn count(&mut self, rule: &Rule, by: isize) {
        if let (Frontend::Address(address), false) = (rule.frontend, rule.external) {
            *self.cluster_ips.entry(address).or_default() += by;
        }
        for endpoint in rule.endpoints.iter() {
            *self.hairpins.entry(endpoint.ip()).or_default() += by;
        }
    }
}

impl Change {
    /// Brings one Service from some rules to others; gives those that are served.
    fn service(
        &mut self,
        config: &NftablesConfig,
        service: &Arc<str>,
        before: &Arc<[Rule]>,
        after: &Arc<[Rule]>,
        counts: &mut Counts,
    ) -> Arc<[Rule]> {
        let key = |rule: &Rule| (rule.frontend, rule.port, rule.transport);
        let keys: HashSet<Key> = after.iter().map(key).collect();
        for old in before.iter().filter(|old| !keys.contains(&key(old))) {
            self.state.owners.remove(&key(old));
            counts.count(old, -1);
            self.rule(config, Some(old), None);
        }
        let mut served = Vec::with_capacity(after.len());
        for new in after.iter() {
            let owner = self.state.owners.entry(key(new)).or_insert_with(|| Arc::clone(service));
            if owner != service {
                let address = match new.frontend {
                    Frontend::Address(address) => address,
                    Frontend::Node => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                };
                self.refused.push(RuleError {
                    service: new.service.to_string(),
                    address: SocketAddr::new(address, new.port),
                    transport: new.transport,
                    source: io::Error::new(
                        io::ErrorKind::AddrInUse,
                        format!("{owner} has this address and port"),
                    ),
                });
                continue;
            }
            let old = before.iter().find(|old| key(old) == key(new));
            if old != Some(new) {
                if let Some(old) = old {
                    counts.count(old, -1);
                }
                counts.count(new, 1);
                self.rule(config, old, Some(new));
            }
            served.push(new.clone());
        }
        if served.len() == after.len() { Arc::clone(after) } else { served.into() }
    }

    /// Brings one key from a rule to another.
    fn rule(&mut self, config: &NftablesConfig, old: Option<&Rule>, new: Option<&Rule>) {
        let Some(frontend) = old.or(new).map(|rule| rule.frontend) else { return };
        for family in FAMILIES {
            if matches!(frontend, Frontend::Address(address) if Family::of(address) != family) {
                continue;
            }
            let (before, after) = (endpoints(old, family), endpoints(new, family));
            let from = old.map(|old| (old, Target::of(old, &before)));
            let to = new.map(|new| (new, Target::of(new, &after)));
            let mut writer = Writer { out: &mut self.script, config, family };
            match (&from, &to) {
                (Some((old, Target::Own(one))), Some((new, Target::Own(other))))
                    if one == other && old.affinity == new.affinity =>
                {
                    writer.refill(new, &before, &after);
                }
                (Some((_, Target::Shared(one))), Some((new, Target::Shared(other)))) if one == other => {
                    writer.turns(new, &before, &after);
                }
                (Some((_, from)), Some((_, to))) if from == to && !matches!(to, Target::Own(_)) => {}
                _ => self.replace(config, family, (from, &before), (to, &after)),
            }
            // A flow goes on as it began, so those whose answer would be another one now have to end.
            self.ended.extend(conntrack::ended(old.or(new), family == Family::V4, &before, &after));
        }
    }

    /// Puts one way to endpoints in place of another.
    fn replace(
        &mut self,
        config: &NftablesConfig,
        family: Family,
        (from, before): (Option<(&Rule, Target)>, &[SocketAddr]),
        (to, after): (Option<(&Rule, Target)>, &[SocketAddr]),
    ) {
        if let Some((rule, target)) = from {
            let mut writer = Writer { out: &mut self.script, config, family };
            writer.lose(rule, &target);
            match target {
                Target::Own(_) => writer.drop_chains(rule, before),
                Target::Shared(chain) => {
                    writer.turns(rule, before, &[]);
                    // It is taken away in the end, if nobody else has come to it by then.
                    if let Some(shared) = self.state.shared.get_mut(&(family, chain)) {
                        shared.rules = shared.rules.saturating_sub(1);
                    }
                }
                Target::Refused | Target::Dropped => {}
            }
        }
        if let Some((rule, target)) = to {
            let mut writer = Writer { out: &mut self.script, config, family };
            match &target {
                Target::Own(_) => writer.chains(rule, after),
                Target::Shared(chain) => {
                    let is_node = rule.frontend == Frontend::Node;
                    let turns = self.state.turns.entry((family, is_node)).or_default();
                    for turn in *turns..after.len() {
                        writer.turn(is_node, turn);
                    }
                    *turns = after.len().max(*turns);
                    let shared = self.state.shared.entry((family, chain.clone())).or_insert_with(|| {
                        writer.shared(chain, Kind::of(rule), after.len());
                        Shared { rules: 0, endpoints: after.len(), is_node }
                    });
                    shared.rules += 1;
                    writer.turns(rule, &[], after);
                }
                Target::Refused | Target::Dropped => {}
            }
            writer.find(rule, &target);
        }
    }

    /// Takes the chains away that nobody shares any more; adds the addresses that are new in a set, and takes away those that
    /// nobody has.
    fn settle(&mut self, config: &NftablesConfig, counts: Counts) {
        let State { cluster_ips, hairpins, shared, turns, .. } = &mut self.state;
        let script = &mut self.script;
        shared.retain(|(family, chain), shared| {
            if shared.rules == 0 {
                Writer { out: script, config, family: *family }.drop_chain(chain);
            }
            shared.rules > 0
        });
        for ((family, is_node), count) in turns {
            let own = shared.iter().filter(|(key, shared)| key.0 == *family && shared.is_node == *is_node);
            let needed = own.map(|(_, shared)| shared.endpoints).max().unwrap_or(0);
            for turn in (needed..*count).rev() {
                Writer { out: script, config, family: *family }.drop_turn(*is_node, turn);
            }
            *count = needed;
        }
        for (set, known, changes) in
            [("cluster-ips", cluster_ips, counts.cluster_ips), ("hairpins", hairpins, counts.hairpins)]
        {
            for (address, by) in changes {
                let before = known.get(&address).copied().unwrap_or(0);
                let after = before.saturating_add_signed(by);
                let mut writer = Writer { out: &mut self.script, config, family: Family::of(address) };
                if after == 0 {
                    known.remove(&address);
                } else {
                    known.insert(address, after);
                }
                match (before, after) {
                    (0, 1..) => writer.address("add element", set, address),
                    (1.., 0) => writer.address("delete element", set, address),
                    _ => {}
                }
            }
        }
    }
}

/// A rule's endpoints of one family.
fn endpoints(rule: Option<&Rule>, family: Family) -> Vec<SocketAddr> {
    let all = rule.into_iter().flat_map(|rule| rule.endpoints.iter());
    all.filter(|one| Family::of(one.ip()) == family).copied().collect()
}

#[cfg(test)]
mod tests;
