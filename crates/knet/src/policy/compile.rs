//! From policies, pods and namespaces to what each pod may do: pure, and step by step.
//!
//! What costs is what changes: a pod is compared with the groups that may have it, not with other pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use kcore::selector::LabelSelector;

use super::{
    Allow, Cidr, GroupId, Member, Name, Peers, PodFacts, PodRules, PolicyChange, PolicyFacts, PolicyTable,
    Ports, Protocol,
    facts::{Namespaces, Peer, PortFacts, RuleFacts},
};

type Labels = BTreeMap<String, String>;

/// Compiles policies for one node.
///
/// ```
/// use knet::policy::{Compiler, PodFacts, PolicyFacts};
/// let mut compiler = Compiler::new(None);
/// let policy = serde_json::json!({
///     "metadata": {"name": "deny", "namespace": "shop"},
///     "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
/// });
/// let policy = serde_json::from_value(policy).unwrap();
/// let web = PodFacts { addresses: vec!["10.0.0.1".parse().unwrap()], ..PodFacts::default() };
/// compiler.set_pod(("shop".into(), "web".into()), Some(web));
/// assert!(compiler.table().pods.is_empty(), "nothing isolates it");
/// compiler.set_policy(("shop".into(), "deny".into()), PolicyFacts::of(&policy));
/// let rules = &compiler.table().pods[&("shop".into(), "web".into())];
/// assert_eq!(rules.ingress.as_deref(), Some(&[][..]), "nothing may come");
/// assert_eq!(rules.egress, None, "everything may go");
/// ```
#[derive(Debug, Default)]
pub struct Compiler {
    node: Option<String>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    pods: BTreeMap<Name, PodFacts>,
    policies: BTreeMap<Name, PolicyFacts>,
    groups: BTreeMap<GroupId, Group>,
    /// The groups of pods of one namespace, by that.
    narrow: BTreeMap<Arc<str>, BTreeSet<GroupId>>,
    /// The others.
    wide: BTreeSet<GroupId>,
    table: PolicyTable,
    change: PolicyChange,
}

/// A group that some isolated pod's rules speak of.
#[derive(Debug)]
struct Group {
    spec: GroupSpec,
    /// How many pods' rules.
    users: usize,
    /// How many pods give a member: more than one when an address has passed on and the news of that are late.
    counts: BTreeMap<Member, usize>,
}

/// What selects the members of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupSpec {
    scope: Scope,
    pods: LabelSelector,
    /// Only addresses of this range.
    block: Option<(Cidr, Vec<Cidr>)>,
    /// The named port, when the members are ports at addresses.
    port: Option<(Protocol, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Namespace(Arc<str>),
    Selected(LabelSelector),
    Everywhere,
}

impl GroupSpec {
    fn id(&self) -> GroupId {
        let scope = match &self.scope {
            Scope::Namespace(name) => format!("in {name}"),
            Scope::Selected(selector) => format!("where {selector}"),
            Scope::Everywhere => "everywhere".to_owned(),
        };
        let mut id = format!("{scope}; pods {}", self.pods);
        if let Some((cidr, except)) = &self.block {
            id.push_str(&format!("; of {cidr}"));
            for range in except {
                id.push_str(&format!(" without {range}"));
            }
        }
        if let Some((protocol, name)) = &self.port {
            id.push_str(&format!("; port {protocol:?} {name}"));
        }
        id.into()
    }

    /// What a pod gives to the group.
    fn members(&self, namespace: &Arc<str>, labels: Option<&Labels>, pod: &PodFacts) -> Vec<Member> {
        let in_scope = match &self.scope {
            Scope::Namespace(own) => own == namespace,
            Scope::Selected(selector) => labels.is_some_and(|labels| selects(selector, labels)),
            Scope::Everywhere => true,
        };
        if !in_scope || !selects(&self.pods, &pod.labels) {
            return Vec::new();
        }
        let addresses = pod.addresses.iter().filter(|address| match &self.block {
            Some((cidr, except)) => {
                cidr.contains(**address) && !except.iter().any(|range| range.contains(**address))
            }
            None => true,
        });
        let mut members = BTreeSet::new();
        for address in addresses {
            match &self.port {
                None => {
                    members.insert(Member { address: *address, port: None });
                }
                Some((protocol, name)) => members.extend(
                    named(pod, *protocol, name)
                        .map(|port| Member { address: *address, port: Some((*protocol, port)) }),
                ),
            }
        }
        members.into_iter().collect()
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches_with(|key| labels.get(key).map(String::as_str))
}

fn named<'a>(pod: &'a PodFacts, protocol: Protocol, name: &'a str) -> impl Iterator<Item = u16> + 'a {
    pod.ports.iter().filter(move |port| port.protocol == protocol && port.name == name).map(|port| port.port)
}

/// The entries of one namespace.
fn of_namespace<'a, V>(
    map: &'a BTreeMap<Name, V>,
    namespace: &'a Arc<str>,
) -> impl Iterator<Item = (&'a Name, &'a V)> {
    let first: Name = (Arc::clone(namespace), Arc::from(""));
    map.range((Bound::Included(first), Bound::Unbounded)).take_while(move |(name, _)| name.0 == *namespace)
}

impl Compiler {
    /// A compiler for the pods of a node; without one, for all pods.
    #[must_use]
    pub fn new(node: Option<String>) -> Self {
        Self { node, ..Self::default() }
    }

    /// What is to be enforced.
    #[must_use]
    pub fn table(&self) -> &PolicyTable {
        &self.table
    }

    /// What is different since [`settle`](Self::settle) was called.
    #[must_use]
    pub fn change(&self) -> &PolicyChange {
        &self.change
    }

    /// Says that the table is enforced.
    pub fn settle(&mut self) {
        self.change = PolicyChange::default();
    }

    /// Tells of a namespace's labels; `None`: it is gone.
    pub fn set_namespace(&mut self, name: Arc<str>, labels: Option<Labels>) {
        let before = self.namespaces.get(&name).cloned();
        if before == labels {
            return;
        }
        match labels.clone() {
            Some(labels) => self.namespaces.insert(Arc::clone(&name), labels),
            None => self.namespaces.remove(&name),
        };
        for id in &self.wide {
            let Some(group) = self.groups.get_mut(id) else { continue };
            for (_, pod) in of_namespace(&self.pods, &name) {
                let old = group.spec.members(&name, before.as_ref(), pod);
                let new = group.spec.members(&name, labels.as_ref(), pod);
                group.replace(id, &old, &new, &mut self.table, &mut self.change);
            }
        }
    }

    /// Tells of a pod; `None`: it is gone, or nothing that policies are about.
    pub fn set_pod(&mut self, name: Name, pod: Option<PodFacts>) {
        let before = match pod.clone() {
            Some(pod) => self.pods.insert(name.clone(), pod),
            None => self.pods.remove(&name),
        };
        if before == pod {
            return;
        }
        let labels = self.namespaces.get(&name.0);
        for id in self.narrow.get(&name.0).into_iter().flatten().chain(&self.wide) {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let members = |pod: Option<&PodFacts>| {
                pod.map(|pod| group.spec.members(&name.0, labels, pod)).unwrap_or_default()
            };
            let (old, new) = (members(before.as_ref()), members(pod.as_ref()));
            group.replace(id, &old, &new, &mut self.table, &mut self.change);
        }
        self.isolate(&name);
    }

    /// Tells of a policy; `None`: it is gone, or can't be read.
    pub fn set_policy(&mut self, name: Name, policy: Option<PolicyFacts>) {
        let before = match policy.clone() {
            Some(policy) => self.policies.insert(name.clone(), policy),
            None => self.policies.remove(&name),
        };
        if before == policy {
            return;
        }
        let concerned = of_namespace(&self.pods, &name.0).filter(|(_, pod)| {
            let both = before.iter().chain(&policy);
            both.into_iter().any(|policy| selects(&policy.selects, &pod.labels))
        });
        let concerned: Vec<Name> = concerned.map(|(name, _)| name.clone()).collect();
        for pod in concerned {
            self.isolate(&pod);
        }
    }

    /// Computes a pod's rules anew.
    fn isolate(&mut self, name: &Name) {
        let mut specs = BTreeMap::new();
        let rules = self.pods.get(name).and_then(|pod| self.rules(&name.0, pod, &mut specs));
        let before = self.table.pods.get(name);
        if before == rules.as_ref() {
            return;
        }
        let unused = before.map(groups_of).unwrap_or_default();
        for id in rules.as_ref().map(groups_of).unwrap_or_default() {
            if let Some(spec) = specs.remove(&id) {
                self.use_group(id, spec);
            }
        }
        match rules {
            Some(rules) => self.table.pods.insert(name.clone(), rules),
            None => self.table.pods.remove(name),
        };
        self.change.pods.insert(name.clone());
        for id in unused {
            self.leave_group(&id);
        }
    }

    /// `None` when the pod isn't isolated, or not one of this node.
    fn rules(
        &self,
        namespace: &Arc<str>,
        pod: &PodFacts,
        specs: &mut BTreeMap<GroupId, GroupSpec>,
    ) -> Option<PodRules> {
        if self.node.is_some() && pod.node != self.node {
            return None;
        }
        let (mut ingress, mut egress) = (None::<BTreeSet<Allow>>, None::<BTreeSet<Allow>>);
        for (_, policy) in of_namespace(&self.policies, namespace) {
            if !selects(&policy.selects, &pod.labels) {
                continue;
            }
            for rules in policy.ingress.iter() {
                let allowed = ingress.get_or_insert_default();
                rules.iter().for_each(|rule| allow_ingress(rule, namespace, pod, specs, allowed));
            }
            for rules in policy.egress.iter() {
                let allowed = egress.get_or_insert_default();
                rules.iter().for_each(|rule| allow_egress(rule, namespace, specs, allowed));
            }
        }
        if ingress.is_none() && egress.is_none() {
            return None;
        }
        let list = |allowed: Option<BTreeSet<Allow>>| allowed.map(|set| set.into_iter().collect());
        Some(PodRules { addresses: pod.addresses.clone(), ingress: list(ingress), egress: list(egress) })
    }

    fn use_group(&mut self, id: GroupId, spec: GroupSpec) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.users += 1;
            return;
        }
        match &spec.scope {
            Scope::Namespace(name) => {
                self.narrow.entry(Arc::clone(name)).or_default().insert(Arc::clone(&id));
            }
            Scope::Selected(_) | Scope::Everywhere => {
                self.wide.insert(Arc::clone(&id));
            }
        }
        let mut group = Group { spec, users: 1, counts: BTreeMap::new() };
        self.change.groups.insert(Arc::clone(&id));
        self.change.members.retain(|(of, _)| *of != id);
        self.table.groups.insert(Arc::clone(&id), BTreeSet::new());
        for ((namespace, _), pod) in &self.pods {
            let members = group.spec.members(namespace, self.namespaces.get(namespace), pod);
            group.replace(&id, &[], &members, &mut self.table, &mut self.change);
        }
        self.groups.insert(id, group);
    }

    fn leave_group(&mut self, id: &GroupId) {
        let Some(group) = self.groups.get_mut(id) else { return };
        group.users -= 1;
        if group.users > 0 {
            return;
        }
        if let Scope::Namespace(name) = &group.spec.scope
            && let Some(ids) = self.narrow.get_mut(name)
        {
            ids.remove(id);
            if ids.is_empty() {
                let name = Arc::clone(name);
                self.narrow.remove(&name);
            }
        }
        self.wide.remove(id);
        self.groups.remove(id);
        self.table.groups.remove(id);
        self.change.members.retain(|(of, _)| of != id);
        self.change.groups.insert(Arc::clone(id));
    }
}

impl Group {
    /// Puts what a pod gives now in place of what it gave.
    fn replace(
        &mut self,
        id: &GroupId,
        old: &[Member],
        new: &[Member],
        table: &mut PolicyTable,
        change: &mut PolicyChange,
    ) {
        if old == new {
            return;
        }
        let Some(members) = table.groups.get_mut(id) else { return };
        let mut touched = |member: Member| {
            if !change.groups.contains(id) {
                change.members.insert((Arc::clone(id), member));
            }
        };
        for member in new {
            let count = self.counts.entry(*member).or_default();
            *count += 1;
            if *count == 1 {
                members.insert(*member);
                touched(*member);
            }
        }
        for member in old {
            let Some(count) = self.counts.get_mut(member) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(member);
                members.remove(member);
                touched(*member);
            }
        }
    }
}

/// The groups that a pod's rules speak of.
fn groups_of(rules: &PodRules) -> BTreeSet<GroupId> {
    let allowed = rules.ingress.iter().chain(&rules.egress).flat_map(|list| list.iter());
    let groups = allowed.filter_map(|allow| match &allow.peers {
        Peers::Group(id) | Peers::GroupPorts(id) => Some(Arc::clone(id)),
        Peers::Any | Peers::Block { .. } => None,
    });
    groups.collect()
}

/// The peers of a rule, and the groups among them.
fn peers(rule: &RuleFacts, namespace: &Arc<str>, specs: &mut BTreeMap<GroupId, GroupSpec>) -> Vec<Peers> {
    let Some(list) = &rule.peers else { return vec![Peers::Any] };
    let peers = list.iter().map(|peer| match peer {
        Peer::Block { cidr, except } => Peers::Block { cidr: *cidr, except: except.clone() },
        Peer::Pods { .. } => {
            let spec = group_spec(Some(peer), namespace, None);
            let id = spec.id();
            specs.insert(Arc::clone(&id), spec);
            Peers::Group(id)
        }
    });
    peers.collect()
}

fn group_spec(peer: Option<&Peer>, namespace: &Arc<str>, port: Option<(Protocol, String)>) -> GroupSpec {
    let (scope, pods, block) = match peer {
        None => (Scope::Everywhere, LabelSelector::default(), None),
        Some(Peer::Block { cidr, except }) => {
            (Scope::Everywhere, LabelSelector::default(), Some((*cidr, except.clone())))
        }
        Some(Peer::Pods { namespaces, pods }) => {
            let scope = match namespaces {
                Namespaces::Own => Scope::Namespace(Arc::clone(namespace)),
                Namespaces::Selected(selector) => Scope::Selected(selector.clone()),
            };
            (scope, pods.clone(), None)
        }
    };
    GroupSpec { scope, pods, block, port }
}

/// Adds what a rule for incoming traffic allows: a named port is one of the pod's own.
fn allow_ingress(
    rule: &RuleFacts,
    namespace: &Arc<str>,
    pod: &PodFacts,
    specs: &mut BTreeMap<GroupId, GroupSpec>,
    allowed: &mut BTreeSet<Allow>,
) {
    let ports = rule.ports.as_ref().map(|ports| {
        let numbers = ports.iter().flat_map(|port| match port {
            PortFacts::Numbers(range) => vec![*range],
            PortFacts::Named(protocol, name) => named(pod, *protocol, name)
                .map(|port| Ports { protocol: *protocol, first: port, last: port })
                .collect(),
        });
        sorted(numbers)
    });
    if ports.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    for peers in peers(rule, namespace, specs) {
        allowed.insert(Allow { peers, ports: ports.clone() });
    }
}

/// Adds what a rule for outgoing traffic allows: a named port is one of each peer's, so that only pods can have it.
fn allow_egress(
    rule: &RuleFacts,
    namespace: &Arc<str>,
    specs: &mut BTreeMap<GroupId, GroupSpec>,
    allowed: &mut BTreeSet<Allow>,
) {
    let numbers = rule.ports.as_ref().map(|ports| {
        sorted(ports.iter().filter_map(|port| match port {
            PortFacts::Numbers(range) => Some(*range),
            PortFacts::Named(..) => None,
        }))
    });
    if numbers.as_ref().is_none_or(|numbers| !numbers.is_empty()) {
        for peers in peers(rule, namespace, specs) {
            allowed.insert(Allow { peers, ports: numbers.clone() });
        }
    }
    for port in rule.ports.iter().flatten() {
        let PortFacts::Named(protocol, name) = port else { continue };
        let peers: Vec<Option<&Peer>> = match &rule.peers {
            None => vec![None],
            Some(list) => list.iter().map(Some).collect(),
        };
        for peer in peers {
            let spec = group_spec(peer, namespace, Some((*protocol, name.clone())));
            let id = spec.id();
            specs.insert(Arc::clone(&id), spec);
            allowed.insert(Allow { peers: Peers::GroupPorts(id), ports: None });
        }
    }
}

fn sorted(ports: impl Iterator<Item = Ports>) -> Vec<Ports> {
    ports.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests;
