//! The compiler against a model that reads the objects anew for each packet, as the API's documentation says it.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::NamedPort;

/// What the model knows: the objects as they are.
#[derive(Clone, Debug, Default)]
struct World {
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<(String, String), PodFacts>,
    policies: BTreeMap<(String, String), Value>,
}

type Found<'a> = (&'a (String, String), &'a PodFacts);

#[derive(Clone, Copy, Debug)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

fn labels_match(selector: &Value, labels: &Labels) -> bool {
    let wanted = selector["matchLabels"].as_object();
    let equal = wanted
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    equal
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|one| {
            let value = labels.get(one["key"].as_str().unwrap());
            let listed = |value: &String| one["values"].as_array().unwrap().iter().any(|v| v == value);
            match one["operator"].as_str().unwrap() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

impl World {
    fn pods_at(&self, address: IpAddr) -> Vec<Found<'_>> {
        self.pods.iter().filter(|(_, pod)| pod.addresses.contains(&address)).collect()
    }

    /// Whether a peer of a rule is this address, as that of this pod, if it is one's.
    fn peer_matches(&self, policy: &Value, peer: &Value, address: IpAddr, pod: Option<Found<'_>>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let within = |text: &Value| Cidr::parse(text.as_str().unwrap()).unwrap().contains(address);
            return within(&block["cidr"]) && !block["except"].as_array().into_iter().flatten().any(within);
        }
        pod.is_some_and(|((namespace, _), pod)| {
            let in_scope = match peer.get("namespaceSelector") {
                Some(selector) => {
                    self.namespaces.get(namespace).is_some_and(|labels| labels_match(selector, labels))
                }
                None => policy["metadata"]["namespace"] == **namespace,
            };
            in_scope && peer.get("podSelector").is_none_or(|selector| labels_match(selector, &pod.labels))
        })
    }

    /// Whether the policies of one direction let a packet through. `peer` is the end that isn't the pod.
    fn direction(&self, packet: Packet, ingress: bool) -> bool {
        let (own, peer) = if ingress { (packet.to, packet.from) } else { (packet.from, packet.to) };
        let (kind, rules, peers) =
            if ingress { ("Ingress", "ingress", "from") } else { ("Egress", "egress", "to") };
        self.pods_at(own).into_iter().all(|((namespace, _), pod)| {
            let mut isolated = false;
            for policy in self.policies.values() {
                let spec = &policy["spec"];
                let types = spec["policyTypes"].as_array();
                let about = match types {
                    Some(types) => types.iter().any(|one| one == kind),
                    None => ingress || spec["egress"].as_array().is_some_and(|list| !list.is_empty()),
                };
                let selected = policy["metadata"]["namespace"] == **namespace
                    && labels_match(&spec["podSelector"], &pod.labels);
                if !about || !selected {
                    continue;
                }
                isolated = true;
                // An address may be that of several pods while the news of the first one's end are late.
                let mut candidates: Vec<_> = self.pods_at(peer).into_iter().map(Some).collect();
                candidates.push(None);
                for rule in spec[rules].as_array().into_iter().flatten() {
                    let lets = candidates.iter().any(|candidate| {
                        let everybody = rule.get(peers).is_none();
                        let mut listed = rule[peers].as_array().into_iter().flatten();
                        (everybody || listed.any(|one| self.peer_matches(policy, one, peer, *candidate)))
                            && port_matches(
                                rule,
                                packet,
                                if ingress { Some(pod) } else { candidate.map(|c| c.1) },
                            )
                    });
                    if lets {
                        return true;
                    }
                }
            }
            !isolated
        })
    }

    fn allows(&self, packet: Packet) -> bool {
        packet.from == packet.to || (self.direction(packet, false) && self.direction(packet, true))
    }
}

/// Whether a rule has the port of a packet to this pod, if it is one.
fn port_matches(rule: &Value, packet: Packet, target: Option<&PodFacts>) -> bool {
    let Some(ports) = rule["ports"].as_array() else { return true };
    ports.iter().any(|port| {
        let protocol = if port["protocol"] == "UDP" { Protocol::Udp } else { Protocol::Tcp };
        if protocol != packet.protocol {
            return false;
        }
        match &port["port"] {
            Value::Null => true,
            Value::String(name) => target.is_some_and(|pod| {
                let mut ports = pod.ports.iter();
                ports.any(|one| one.name == *name && one.protocol == protocol && one.port == packet.port)
            }),
            number => {
                let first = number.as_u64().unwrap();
                let last = port["endPort"].as_u64().unwrap_or(first);
                (first..=last).contains(&u64::from(packet.port))
            }
        }
    })
}

/// What the compiled table does with a packet.
fn table_allows(table: &PolicyTable, packet: Packet) -> bool {
    if packet.from == packet.to {
        return true;
    }
    let direction = |own: IpAddr, peer: IpAddr, ingress: bool| {
        table.pods.values().filter(|rules| rules.addresses.contains(&own)).all(|rules| {
            let Some(allowed) = (if ingress { &rules.ingress } else { &rules.egress }) else { return true };
            allowed.iter().any(|allow| {
                let member = |port| Member { address: peer, port };
                let peers = match &allow.peers {
                    Peers::Any => true,
                    Peers::Group(id) => table.groups[id].contains(&member(None)),
                    Peers::GroupPorts(id) => {
                        table.groups[id].contains(&member(Some((packet.protocol, packet.port))))
                    }
                    Peers::Block { cidr, except } => {
                        cidr.contains(peer) && !except.iter().any(|range| range.contains(peer))
                    }
                };
                peers
                    && allow.ports.as_ref().is_none_or(|ports| {
                        ports.iter().any(|range| {
                            range.protocol == packet.protocol
                                && (range.first..=range.last).contains(&packet.port)
                        })
                    })
            })
        })
    };
    direction(packet.from, packet.to, false) && direction(packet.to, packet.from, true)
}

fn pick(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

fn any_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(pick(&["app", "tier"]), pick(&["a", "b"]), 0..3)
}

fn any_selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        any_labels().prop_map(|labels| json!({"matchLabels": labels})),
        (pick(&["app", "tier"]), pick(&["In", "NotIn"]), pick(&["a", "b"])).prop_map(
            |(key, operator, value)| {
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]})
            }
        ),
        (pick(&["app", "tier"]), pick(&["Exists", "DoesNotExist"]))
            .prop_map(|(key, operator)| json!({"matchExpressions": [{"key": key, "operator": operator}]})),
    ]
}

fn any_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_selector().prop_map(|pods| json!({"podSelector": pods})),
        any_selector().prop_map(|names| json!({"namespaceSelector": names})),
        (any_selector(), any_selector())
            .prop_map(|(names, pods)| json!({"namespaceSelector": names, "podSelector": pods})),
        (pick(&["10.0.0.0/29", "0.0.0.0/0", "fd00::/64"]), any::<bool>()).prop_map(|(cidr, without)| {
            let except = if cidr == "fd00::/64" { "fd00::2/127" } else { "10.0.0.2/31" };
            let except = if without { vec![except] } else { Vec::new() };
            json!({"ipBlock": {"cidr": cidr, "except": except}})
        }),
    ]
}

fn any_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": 80, "endPort": 81, "protocol": "UDP"})),
        Just(json!({"port": "http"})),
        Just(json!({"port": "dns", "protocol": "UDP"})),
        Just(json!({"protocol": "UDP"})),
    ]
}

fn any_rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let lists = (
        prop::option::of(prop::collection::vec(any_peer(), 1..3)),
        prop::option::of(prop::collection::vec(any_port(), 1..3)),
    );
    let rule = lists.prop_map(move |(who, ports)| {
        let mut rule = json!({});
        if let Some(who) = who {
            rule[peers] = who.into();
        }
        if let Some(ports) = ports {
            rule["ports"] = ports.into();
        }
        rule
    });
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn any_policy(namespace: String, name: String) -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(Value::Null),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    (any_selector(), types, any_rules("from"), any_rules("to")).prop_map(
        move |(selector, types, ingress, egress)| {
            let mut spec = json!({"podSelector": selector, "ingress": ingress, "egress": egress});
            if !types.is_null() {
                spec["policyTypes"] = types;
            }
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
        },
    )
}

fn any_pod() -> impl Strategy<Value = PodFacts> {
    let port = prop_oneof![
        Just(("http", Protocol::Tcp, 80)),
        Just(("http", Protocol::Tcp, 81)),
        Just(("dns", Protocol::Udp, 80)),
    ];
    let address = prop_oneof![
        (0..6_u8).prop_map(|last| IpAddr::from([10, 0, 0, last])),
        (0..4_u16).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])),
    ];
    let parts = (any_labels(), prop::collection::btree_set(address, 1..3), prop::collection::vec(port, 0..3));
    parts.prop_map(|(labels, addresses, ports)| PodFacts {
        labels,
        addresses: addresses.into_iter().collect(),
        node: None,
        ports: ports
            .into_iter()
            .map(|(name, protocol, port)| NamedPort { name: name.to_owned(), protocol, port })
            .collect(),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Namespace(String, Option<Labels>),
    Pod(String, String, Option<PodFacts>),
    Policy(String, String, Option<Value>),
}

fn any_step() -> impl Strategy<Value = Step> {
    let namespace = || pick(&["x", "y"]);
    prop_oneof![
        1 => (namespace(), prop::option::weighted(0.8, any_labels()))
            .prop_map(|(name, labels)| Step::Namespace(name, labels)),
        4 => (namespace(), pick(&["p", "q", "r"]), prop::option::weighted(0.8, any_pod()))
            .prop_map(|(namespace, name, pod)| Step::Pod(namespace, name, pod)),
        3 => (namespace(), pick(&["m", "n"])).prop_flat_map(|(namespace, name)| {
            prop::option::weighted(0.8, any_policy(namespace.clone(), name.clone()))
                .prop_map(move |policy| Step::Policy(namespace.clone(), name.clone(), policy))
        }),
    ]
}

fn apply(world: &mut World, compiler: &mut Compiler, step: Step) {
    fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
    match step {
        Step::Namespace(name, labels) => {
            compiler.set_namespace(name.as_str().into(), labels.clone());
            set(&mut world.namespaces, name, labels);
        }
        Step::Pod(namespace, name, pod) => {
            compiler.set_pod((namespace.as_str().into(), name.as_str().into()), pod.clone());
            set(&mut world.pods, (namespace, name), pod);
        }
        Step::Policy(namespace, name, policy) => {
            let read = policy.clone().and_then(|policy| {
                PolicyFacts::of(&serde_json::from_value::<NetworkPolicy>(policy).unwrap())
            });
            compiler.set_policy((namespace.as_str().into(), name.as_str().into()), read);
            set(&mut world.policies, (namespace, name), policy);
        }
    }
}

/// A table that follows only what `change` says, as an enforcer does.
fn follow(known: &mut PolicyTable, table: &PolicyTable, change: &PolicyChange) {
    for id in &change.groups {
        known.groups.remove(id);
        if let Some(members) = table.groups.get(id) {
            known.groups.insert(id.clone(), members.clone());
        }
    }
    for (id, member) in &change.members {
        let members = known.groups.get_mut(id).expect("a group that was there");
        if table.groups[id].contains(member) {
            members.insert(*member)
        } else {
            members.remove(member)
        };
    }
    for name in &change.pods {
        known.pods.remove(name);
        if let Some(rules) = table.pods.get(name) {
            known.pods.insert(name.clone(), rules.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// After each step of a history, every packet has the fate that the objects say; the changes add up to the table; and a compiler
    /// that begins with the last objects has the same table.
    #[test]
    fn packets_have_the_fate_that_the_objects_say(steps in prop::collection::vec(any_step(), 1..25)) {
        let (mut world, mut compiler) = (World::default(), Compiler::new(None));
        let mut known = PolicyTable::default();
        for (index, step) in steps.into_iter().enumerate() {
            apply(&mut world, &mut compiler, step);
            if index % 3 == 0 {
                follow(&mut known, compiler.table(), compiler.change());
                compiler.settle();
                prop_assert_eq!(&known, compiler.table());
            }
        }
        let four = (0..9_u8).map(|last| IpAddr::from([10, 0, 0, last]));
        let six = (0..4_u16).map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
        let (four, six): (Vec<_>, Vec<_>) = (four.collect(), six.collect());
        for addresses in [four, six] {
            for (from, to) in addresses.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to))) {
                for (protocol, port) in [Protocol::Tcp, Protocol::Udp].into_iter()
                    .flat_map(|protocol| [79, 80, 81].map(|port| (protocol, port)))
                {
                    let packet = Packet { from, to, protocol, port };
                    prop_assert_eq!(table_allows(compiler.table(), packet), world.allows(packet), "{:?}", packet);
                }
            }
        }
        let mut fresh = Compiler::new(None);
        let world_now = world.clone();
        for (name, labels) in world_now.namespaces {
            apply(&mut world, &mut fresh, Step::Namespace(name, Some(labels)));
        }
        for ((namespace, name), policy) in world_now.policies {
            apply(&mut world, &mut fresh, Step::Policy(namespace, name, Some(policy)));
        }
        for ((namespace, name), pod) in world_now.pods {
            apply(&mut world, &mut fresh, Step::Pod(namespace, name, Some(pod)));
        }
        prop_assert_eq!(fresh.table(), compiler.table());
    }
}

/// Only pods of the node get rules; peers may be anywhere.
#[test]
fn rules_are_for_the_nodes_own_pods() {
    let mut compiler = Compiler::new(Some("here".to_owned()));
    let pod = |last: u8, node: &str| PodFacts {
        addresses: vec![IpAddr::from([10, 0, 0, last])],
        node: Some(node.to_owned()),
        ..PodFacts::default()
    };
    compiler.set_pod(("x".into(), "near".into()), Some(pod(1, "here")));
    compiler.set_pod(("x".into(), "far".into()), Some(pod(2, "there")));
    let policy =
        json!({"metadata": {}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}});
    compiler.set_policy(("x".into(), "p".into()), PolicyFacts::of(&serde_json::from_value(policy).unwrap()));
    let names: Vec<_> = compiler.table().pods.keys().map(|name| &*name.1).collect();
    assert_eq!(names, ["near"]);
    assert_eq!(compiler.table().groups.values().map(BTreeSet::len).collect::<Vec<_>>(), [2]);
}
