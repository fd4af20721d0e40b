//! What the kernel has been told, and the commands that bring it to another table: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    NftablesPolicyConfig,
    script::{self, Direction, Script},
};
use crate::policy::{Allow, GroupId, Name, PodRules, PolicyChange, PolicyTable};

/// What the kernel has been told.
#[derive(Debug, Default)]
pub(super) struct State {
    groups: BTreeSet<GroupId>,
    pods: BTreeMap<Name, PodRules>,
    /// Who says that it has an address. When two do, the first has it, until it goes.
    claims: BTreeMap<IpAddr, BTreeSet<Name>>,
    /// The chains that an address leads to, in each direction.
    placed: BTreeMap<IpAddr, [Option<Arc<str>>; 2]>,
    /// How many addresses lead to a chain.
    chains: BTreeMap<Arc<str>, usize>,
}

impl State {
    /// Everything anew, in place of whatever is there.
    pub(super) fn fresh(config: &NftablesPolicyConfig, table: &PolicyTable) -> (String, Self) {
        let change = PolicyChange {
            groups: table.groups.keys().cloned().collect(),
            members: BTreeSet::new(),
            pods: table.pods.keys().cloned().collect(),
        };
        let mut script = Script::new(config);
        script.base();
        let (rest, state) = Self::default().change(config, table, &change);
        (script.text + &rest, state)
    }

    /// The way from here to a table that differs in `change`. What costs is what differs.
    pub(super) fn change(
        mut self,
        config: &NftablesPolicyConfig,
        table: &PolicyTable,
        change: &PolicyChange,
    ) -> (String, Self) {
        let mut script = Script::new(config);
        let with_ports: BTreeSet<&GroupId> = match change.groups.is_empty() {
            true => BTreeSet::new(),
            false => table.pods.values().flat_map(script::groups_of_ports).collect(),
        };
        for id in &change.groups {
            let Some(members) = table.groups.get(id) else { continue };
            if self.groups.insert(Arc::clone(id)) {
                script.add_group(id, with_ports.contains(id));
            } else {
                script.flush_group(id);
            }
            script.elements("add", id, members.iter());
        }
        for (id, member) in &change.members {
            let Some(members) = table.groups.get(id) else { continue };
            let what = if members.contains(member) { "add" } else { "delete" };
            script.elements(what, id, std::iter::once(member));
        }
        let mut touched = BTreeSet::new();
        for name in &change.pods {
            self.claim(name, table.pods.get(name), &mut touched);
        }
        let mut unused = BTreeSet::new();
        for address in touched {
            self.place(&mut script, address, &mut unused);
        }
        for chain in unused {
            if self.chains.get(&chain).is_some_and(|users| *users == 0) {
                self.chains.remove(&chain);
                script.drop_chain(&chain);
            }
        }
        for id in &change.groups {
            if !table.groups.contains_key(id) && self.groups.remove(id) {
                script.drop_group(id);
            }
        }
        (script.text, self)
    }

    /// Remembers a pod's rules, and which addresses that may matter to.
    fn claim(&mut self, name: &Name, rules: Option<&PodRules>, touched: &mut BTreeSet<IpAddr>) {
        if let Some(before) = self.pods.remove(name) {
            for address in before.addresses {
                if let Some(claims) = self.claims.get_mut(&address) {
                    claims.remove(name);
                    if claims.is_empty() {
                        self.claims.remove(&address);
                    }
                }
                touched.insert(address);
            }
        }
        if let Some(rules) = rules {
            for address in &rules.addresses {
                self.claims.entry(*address).or_default().insert(name.clone());
                touched.insert(*address);
            }
            self.pods.insert(name.clone(), rules.clone());
        }
    }

    /// Makes an address lead where its pod's rules are.
    fn place(&mut self, script: &mut Script<'_>, address: IpAddr, unused: &mut BTreeSet<Arc<str>>) {
        let owner = self.claims.get(&address).and_then(BTreeSet::first);
        let rules = owner.and_then(|name| self.pods.get(name)).cloned();
        let before = self.placed.remove(&address).unwrap_or_default();
        let mut after = [None, None];
        for (at, direction) in [Direction::Ingress, Direction::Egress].into_iter().enumerate() {
            let allowed = rules.as_ref().and_then(|rules| match direction {
                Direction::Ingress => rules.ingress.clone(),
                Direction::Egress => rules.egress.clone(),
            });
            let chain = allowed.map(|allowed| self.chain(script, direction, &allowed));
            if before[at] == chain {
                // It was counted twice.
                self.leave(chain.as_ref(), unused);
            } else {
                if let Some(old) = &before[at] {
                    script.unplace(direction, address, old);
                    self.leave(Some(old), unused);
                }
                if let Some(new) = &chain {
                    script.place(direction, address, new);
                }
            }
            after[at] = chain;
        }
        let (was, is) = (before.iter().any(Option::is_some), after.iter().any(Option::is_some));
        if was != is {
            script.own(if is { "add" } else { "delete" }, address);
        }
        if is {
            self.placed.insert(address, after);
        }
    }

    /// The chain of these rules, made if there is none, with one more user.
    fn chain(&mut self, script: &mut Script<'_>, direction: Direction, allowed: &[Allow]) -> Arc<str> {
        let name = script::chain_name(direction, allowed);
        let users = self.chains.entry(Arc::clone(&name)).or_insert_with(|| {
            script.add_chain(&name, direction, allowed);
            0
        });
        *users += 1;
        name
    }

    fn leave(&mut self, chain: Option<&Arc<str>>, unused: &mut BTreeSet<Arc<str>>) {
        let Some(chain) = chain else { return };
        if let Some(users) = self.chains.get_mut(chain) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                unused.insert(Arc::clone(chain));
            }
        }
    }
}
