use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    proxy::ipvs::Scheduler,
    testing::{rule, table},
};

fn config() -> IpvsConfig {
    IpvsConfig { table: "t".to_owned(), pod_ranges: vec!["10.1.0.0/16".into()], ..IpvsConfig::default() }
}

fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|one| one.parse().unwrap()).collect()
}

fn nodes() -> Nodes {
    Nodes::new(addresses(&["127.0.0.1", "192.0.2.1", "2001:db8::1"]), &[], true)
}

fn at(address: &str, endpoints: &[&str]) -> Rule {
    let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
    rule(address.parse().unwrap(), Transport::Tcp, &endpoints)
}

fn external(rule: Rule) -> Rule {
    Rule { external: true, ..rule }
}

fn local(rule: Rule) -> Rule {
    Rule { local: true, ..rule }
}

fn node(rule: Rule) -> Rule {
    Rule { frontend: Frontend::Node, port: 30080, external: true, ..rule }
}

fn sources(ranges: &[&str], rule: Rule) -> Rule {
    Rule { sources: ranges.iter().map(|&range| range.to_owned()).collect(), ..external(rule) }
}

fn shown(key: Key) -> String {
    format!("{}/{:?}", SocketAddr::new(key.address, key.port), key.transport).to_lowercase()
}

/// A change as lines: what IPVS is asked, what the device has, and what `nft` does.
fn lines(change: &Change) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for request in &change.requests {
        let key = shown(request.key());
        lines.push(match request {
            Request::Add(_, options) => {
                format!("server {key} {} {:#x} {}", options.scheduler, options.flags, options.timeout)
            }
            Request::Set(_, options) => {
                format!("change {key} {} {:#x} {}", options.scheduler, options.flags, options.timeout)
            }
            Request::Delete(_) => format!("delete {key}"),
            Request::AddEndpoint(_, endpoint, weight) => format!("add {key} {endpoint} {weight}"),
            Request::SetEndpoint(_, endpoint, weight) => format!("set {key} {endpoint} {weight}"),
            Request::DeleteEndpoint(_, endpoint) => format!("remove {key} {endpoint}"),
        });
    }
    lines.extend(change.bound.iter().map(|address| format!("bind {address}")));
    lines.extend(change.unbound.iter().map(|address| format!("unbind {address}")));
    lines.extend(change.script.lines().map(|line| line.replace(" ip t ", " ").replace(" ip6 t ", " ")));
    // Guards are called by a hash.
    let hashed = |line: String| match line.split_once("guard-") {
        Some((before, after)) => format!("{before}guard-1{}", &after[16..]),
        None => line,
    };
    lines.into_iter().map(hashed).collect()
}

#[test]
fn rules_become_servers_and_sets() {
    let mesh = ["10.1.0.1:80", "10.1.0.2:80"];
    let one = &mesh[..1];
    let cases: Vec<(&str, Vec<Rule>, &str)> = vec![
        (
            "a cluster IP",
            vec![at("10.96.0.1:80", &mesh)],
            "server 10.96.0.1:80/tcp rr 0x0 0
             add 10.96.0.1:80/tcp 10.1.0.1:80 1
             add 10.96.0.1:80/tcp 10.1.0.2:80 1
             bind 10.96.0.1
             add element inside { 10.96.0.1 . tcp . 80 }
             add element services { 10.96.0.1 . tcp . 80 }
             add element hairpins { 10.1.0.1 . 10.1.0.1 }
             add element hairpins { 10.1.0.2 . 10.1.0.2 }
             add element addresses { 10.96.0.1 }",
        ),
        (
            "without endpoints it is refused",
            vec![Rule { transport: Transport::Udp, ..at("[fd00::1]:53", &[]) }],
            "server [fd00::1]:53/udp rr 0x0 0
             bind fd00::1
             add element inside { fd00::1 . udp . 53 }
             add element no-endpoints { fd00::1 . udp . 53 : goto refuse }
             add element services { fd00::1 . udp . 53 }
             add element addresses { fd00::1 }",
        ),
        (
            "clients stay with an endpoint",
            vec![Rule { affinity: Some(Duration::from_secs(90)), ..at("10.96.0.1:80", &[]) }],
            "server 10.96.0.1:80/tcp rr 0x1 90
             bind 10.96.0.1
             add element inside { 10.96.0.1 . tcp . 80 }
             add element no-endpoints { 10.96.0.1 . tcp . 80 : goto refuse }
             add element services { 10.96.0.1 . tcp . 80 }
             add element addresses { 10.96.0.1 }",
        ),
        (
            "an external IP that is the node's own is not bound; everybody's source is rewritten",
            vec![external(at("192.0.2.1:80", one))],
            "server 192.0.2.1:80/tcp rr 0x0 0
             add 192.0.2.1:80/tcp 10.1.0.1:80 1
             add element masked { 192.0.2.1 . tcp . 80 }
             add element services { 192.0.2.1 . tcp . 80 }
             add element hairpins { 10.1.0.1 . 10.1.0.1 }",
        ),
        (
            "a node port is served at the node's addresses of the Service's family; clients keep their addresses if endpoints are local",
            vec![local(node(at("10.96.0.1:80", one)))],
            "server 192.0.2.1:30080/tcp rr 0x0 0
             add 192.0.2.1:30080/tcp 10.1.0.1:80 1
             add element services { 192.0.2.1 . tcp . 30080 }
             add element hairpins { 10.1.0.1 . 10.1.0.1 }",
        ),
        (
            "a load balancer's address for some, the node among them",
            vec![sources(
                &["192.0.2.0/24", "10.0.0.0/8", "10.2.0.0/16", "fd00::/8"],
                at("203.0.113.9:80", one),
            )],
            "server 203.0.113.9:80/tcp rr 0x0 0
             add 203.0.113.9:80/tcp 10.1.0.1:80 1
             bind 203.0.113.9
             add chain guard-1
             add rule guard-1 ip saddr != { 10.0.0.0/8, 192.0.2.0/24 } ip saddr != @addresses drop
             add element guarded { 203.0.113.9 . tcp . 80 : goto guard-1 }
             add element masked { 203.0.113.9 . tcp . 80 }
             add element services { 203.0.113.9 . tcp . 80 }
             add element hairpins { 10.1.0.1 . 10.1.0.1 }
             add element addresses { 203.0.113.9 }",
        ),
        (
            "ranges of the other family are nobody's",
            vec![sources(&["fd00::/8"], at("203.0.113.9:80", &[]))],
            "server 203.0.113.9:80/tcp rr 0x0 0
             bind 203.0.113.9
             add chain guard-1
             add rule guard-1 drop
             add element guarded { 203.0.113.9 . tcp . 80 : goto guard-1 }
             add element masked { 203.0.113.9 . tcp . 80 }
             add element no-endpoints { 203.0.113.9 . tcp . 80 : goto refuse }
             add element services { 203.0.113.9 . tcp . 80 }
             add element addresses { 203.0.113.9 }",
        ),
        (
            "without local endpoints pods get any, who is outside is dropped",
            vec![local(external(at("203.0.113.9:80", &[]))), at("127.96.0.1:80", one)],
            "server 127.96.0.1:80/tcp rr 0x0 0
             add 127.96.0.1:80/tcp 10.1.0.1:80 1
             server 203.0.113.9:80/tcp rr 0x0 0
             add 203.0.113.9:80/tcp 10.1.0.1:80 1
             bind 203.0.113.9
             add chain guard-1
             add rule guard-1 fib saddr type != local ip saddr != { 10.1.0.0/16 } drop
             add element inside { 127.96.0.1 . tcp . 80 }
             add element services { 127.96.0.1 . tcp . 80 }
             add element guarded { 203.0.113.9 . tcp . 80 : goto guard-1 }
             add element services { 203.0.113.9 . tcp . 80 }
             add element hairpins { 10.1.0.1 . 10.1.0.1 }
             add element addresses { 203.0.113.9 }",
        ),
        (
            "and is told nothing where there are none at all",
            vec![local(external(at("203.0.113.9:80", &[])))],
            "server 203.0.113.9:80/tcp rr 0x0 0
             bind 203.0.113.9
             add element no-endpoints { 203.0.113.9 . tcp . 80 : drop }
             add element services { 203.0.113.9 . tcp . 80 }
             add element addresses { 203.0.113.9 }",
        ),
    ];
    for (title, rules, expected) in cases {
        let change = State::default().change(&config(), &nodes(), &table(rules));
        let expected: Vec<&str> = expected.lines().map(str::trim).collect();
        assert_eq!(lines(&change), expected, "{title}");
    }
}

#[test]
fn only_what_differs_is_written() {
    let both = ["10.1.0.1:80", "10.1.0.2:80"];
    let two = table(vec![at("10.96.0.1:80", &both)]);
    let state = State::default().change(&config(), &nodes(), &two).state;
    let change = state.change(&config(), &nodes(), &two);
    assert_eq!(lines(&change), [""; 0]);
    // One goes, but keeps its connections; it comes again, and another goes.
    let first = table(vec![at("10.96.0.1:80", &both[..1])]);
    let change = change.state.change(&config(), &nodes(), &first);
    let expected = ["set 10.96.0.1:80/tcp 10.1.0.2:80 0", "delete element hairpins { 10.1.0.2 . 10.1.0.2 }"];
    assert_eq!(lines(&change), expected);
    assert_eq!(change.state.leaving.len(), 1);
    let second = table(vec![at("10.96.0.1:80", &both[1..])]);
    let change = change.state.change(&config(), &nodes(), &second);
    let expected = [
        "set 10.96.0.1:80/tcp 10.1.0.2:80 1",
        "set 10.96.0.1:80/tcp 10.1.0.1:80 0",
        "add element hairpins { 10.1.0.2 . 10.1.0.2 }",
        "delete element hairpins { 10.1.0.1 . 10.1.0.1 }",
    ];
    assert_eq!(lines(&change), expected);
    // With the Service all of it goes.
    let change = change.state.change(&config(), &nodes(), &Table::default());
    let expected = [
        "delete 10.96.0.1:80/tcp",
        "unbind 10.96.0.1",
        "delete element inside { 10.96.0.1 . tcp . 80 }",
        "delete element services { 10.96.0.1 . tcp . 80 }",
        "delete element hairpins { 10.1.0.2 . 10.1.0.2 }",
        "delete element addresses { 10.96.0.1 }",
    ];
    assert_eq!(lines(&change), expected);
    assert!(change.state.leaving.is_empty());
}

#[test]
fn udp_endpoints_go_at_once_and_their_flows_end() {
    let udp =
        |endpoints: &[&str]| table(vec![Rule { transport: Transport::Udp, ..at("10.96.0.1:53", endpoints) }]);
    let state = State::default().change(&config(), &nodes(), &udp(&["10.1.0.1:53", "10.1.0.2:53"])).state;
    let change = state.change(&config(), &nodes(), &udp(&["10.1.0.2:53"]));
    assert_eq!(change.requests.len(), 1);
    assert_eq!(lines(&change)[0], "remove 10.96.0.1:53/udp 10.1.0.1:53");
    let ended: Vec<String> = change.ended.iter().map(|flow| flow.arguments().join(" ")).collect();
    assert_eq!(ended, ["-D -p udp -f ipv4 --orig-port-dst 53 --orig-dst 10.96.0.1 --reply-src 10.1.0.1"]);
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let services = table(vec![node(at("10.96.0.1:80", &["10.1.0.1:80"]))]);
    let state = State::default().change(&config(), &nodes(), &services).state;
    let moved = Nodes::new(addresses(&["192.0.2.9"]), &[], true);
    let change = state.change(&config(), &moved, &services);
    let expected = [
        "delete 192.0.2.1:30080/tcp",
        "server 192.0.2.9:30080/tcp rr 0x0 0",
        "add 192.0.2.9:30080/tcp 10.1.0.1:80 1",
        "delete element masked { 192.0.2.1 . tcp . 30080 }",
        "delete element services { 192.0.2.1 . tcp . 30080 }",
        "add element masked { 192.0.2.9 . tcp . 30080 }",
        "add element services { 192.0.2.9 . tcp . 30080 }",
    ];
    assert_eq!(lines(&change), expected);
    for (own, ranges, serves_all, expected) in [
        (&["127.0.0.1", "192.0.2.1", "::1"][..], &[][..], true, &["192.0.2.1"][..]),
        (&["192.0.2.1", "198.51.100.1"], &["192.0.2.0/24"], false, &["192.0.2.1"]),
        (&["127.0.0.1"], &["127.0.0.0/8"], false, &["127.0.0.1"]),
        // All addresses of the loopback range are the node's.
        (&["127.0.0.1"], &["127.5.0.1/32"], false, &["127.5.0.1"]),
        (&["192.0.2.1"], &["fd00::/8"], false, &[]),
    ] {
        let parsed: Vec<Cidr> = ranges.iter().filter_map(|range| Cidr::parse(range)).collect();
        let nodes = Nodes::new(addresses(own), &parsed, serves_all);
        assert_eq!(nodes.serving, addresses(expected), "{own:?} {ranges:?}");
    }
}

/// What the kernel has already is changed, not made; what nobody asks for goes.
#[test]
fn a_fresh_start_takes_over_what_is_there() {
    let key = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        Key { address: address.ip(), port: address.port(), transport: Transport::Tcp }
    };
    let server = |scheduler, endpoints: &[(&str, u32)]| Server {
        options: Options::new(scheduler, None),
        endpoints: endpoints.iter().map(|(one, weight)| (one.parse().unwrap(), *weight)).collect(),
    };
    let there = There {
        servers: BTreeMap::from([
            (
                key("10.96.0.1:80"),
                server(Scheduler::RoundRobin, &[("10.1.0.1:80", 1), ("10.1.0.2:80", 0), ("10.1.0.3:80", 1)]),
            ),
            (key("10.96.0.2:80"), server(Scheduler::SourceHashing, &[])),
            (key("10.96.0.3:80"), server(Scheduler::RoundRobin, &[])),
        ]),
        bound: addresses(&["10.96.0.1", "10.96.0.3"]),
    };
    let wanted = table(vec![at("10.96.0.1:80", &["10.1.0.1:80", "10.1.0.2:80"]), at("10.96.0.2:80", &[])]);
    let change = State::fresh(&config(), &nodes(), &wanted, there);
    let lines = lines(&change);
    let expected = [
        "delete 10.96.0.3:80/tcp",
        "set 10.96.0.1:80/tcp 10.1.0.2:80 1",
        "set 10.96.0.1:80/tcp 10.1.0.3:80 0",
        "change 10.96.0.2:80/tcp rr 0x0 0",
        "bind 10.96.0.2",
        "unbind 10.96.0.3",
    ];
    assert_eq!(lines[..expected.len()], expected);
    assert_eq!(change.state.leaving, BTreeSet::from([(key("10.96.0.1:80"), "10.1.0.3:80".parse().unwrap())]));
}

#[test]
fn an_address_and_port_is_the_first_services() {
    let rules = |name: &str, endpoint: &str| -> (Arc<str>, Arc<[Rule]>) {
        let rule = Rule { service: name.into(), ..external(at("203.0.113.9:80", &[endpoint])) };
        (name.into(), [rule].into())
    };
    let both =
        Table { services: BTreeMap::from([rules("a/one", "10.1.0.1:80"), rules("a/two", "10.1.0.2:80")]) };
    let change = State::default().change(&config(), &nodes(), &both);
    assert_eq!(change.refused.len(), 1);
    assert_eq!(change.refused[0].service, "a/two");
    assert!(change.refused[0].source.to_string().contains("a/one has this address and port"));
    // When the first goes, the other has it.
    let other = Table { services: BTreeMap::from([rules("a/two", "10.1.0.2:80")]) };
    let change = change.state.change(&config(), &nodes(), &other);
    assert!(change.refused.is_empty());
    let expected = ["add 203.0.113.9:80/tcp 10.1.0.2:80 1", "set 203.0.113.9:80/tcp 10.1.0.1:80 0"];
    assert_eq!(lines(&change)[..2], expected);
}

/// What the kernel would have after these commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    servers: Servers,
    bound: BTreeSet<IpAddr>,
    /// Elements by set and key, with chains of guards in place of their names.
    elements: BTreeMap<String, String>,
    chains: BTreeMap<String, Vec<String>>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        for request in &change.requests {
            match request.clone() {
                Request::Add(key, options) => {
                    let server = Server { options, endpoints: BTreeMap::new() };
                    assert!(self.servers.insert(key, server).is_none(), "{request:?} is there");
                }
                Request::Set(key, options) => self.servers.get_mut(&key).unwrap().options = options,
                Request::Delete(key) => assert!(self.servers.remove(&key).is_some(), "{request:?}"),
                Request::AddEndpoint(key, endpoint, weight) => {
                    let known = self.servers.get_mut(&key).unwrap().endpoints.insert(endpoint, weight);
                    assert!(known.is_none(), "{request:?} is there");
                }
                Request::SetEndpoint(key, endpoint, weight) => {
                    let known = self.servers.get_mut(&key).unwrap().endpoints.insert(endpoint, weight);
                    assert!(known.is_some(), "{request:?} is not there");
                }
                Request::DeleteEndpoint(key, endpoint) => {
                    assert!(self.servers.get_mut(&key).unwrap().endpoints.remove(&endpoint).is_some());
                }
            }
        }
        change.bound.iter().for_each(|address| assert!(self.bound.insert(*address), "{address} is bound"));
        change
            .unbound
            .iter()
            .for_each(|address| assert!(self.bound.remove(address), "{address} is not bound"));
        for line in change.script.lines() {
            let words: Vec<&str> = line.splitn(6, ' ').collect();
            match words[..] {
                ["delete", "table", ..] => {
                    let prefix = words[2];
                    self.elements.retain(|key, _| !key.starts_with(&format!("{prefix} ")));
                    self.chains.retain(|key, _| !key.starts_with(&format!("{prefix} ")));
                }
                ["add", "element", family, _, set, rest] => {
                    let rest = rest.trim_matches(['{', '}', ' ']);
                    let (key, value) = rest.split_once(" : ").unwrap_or((rest, ""));
                    let known = self.elements.insert(format!("{family} {set} {key}"), value.to_owned());
                    assert!(known.is_none(), "{line}: is there");
                }
                ["delete", "element", family, _, set, rest] => {
                    let key = rest.trim_matches(['{', '}', ' ']);
                    assert!(self.elements.remove(&format!("{family} {set} {key}")).is_some(), "{line}");
                }
                ["add", "chain", family, _, chain, ..] => {
                    self.chains.insert(format!("{family} {chain}"), Vec::new());
                }
                ["add", "rule", family, _, chain, rule] => {
                    self.chains.get_mut(&format!("{family} {chain}")).unwrap().push(rule.to_owned());
                }
                ["delete", "chain", family, _, chain] => {
                    assert!(
                        !self.elements.iter().any(|(key, value)| key.starts_with(&format!("{family} "))
                            && *value == format!("goto {chain}")),
                        "{line}: is used"
                    );
                    assert!(self.chains.remove(&format!("{family} {chain}")).is_some(), "{line}");
                }
                _ => {}
            }
        }
    }

    /// What does not depend on the way that led here: without those that leave, and with guards' rules in place of their names.
    fn settled(mut self, leaving: &Leaving) -> Self {
        for (key, endpoint) in leaving {
            assert_eq!(self.servers.get_mut(key).unwrap().endpoints.remove(endpoint), Some(0));
        }
        let guards: Vec<String> =
            self.chains.keys().filter(|name| name.contains(" guard-")).cloned().collect();
        for name in guards {
            let rules = self.chains.remove(&name).unwrap();
            let (family, chain) = name.split_once(' ').unwrap();
            for (key, value) in &mut self.elements {
                if key.starts_with(&format!("{family} ")) && *value == format!("goto {chain}") {
                    *value = format!("{rules:?}");
                }
            }
        }
        self
    }
}

prop_compose! {
    fn any_rule()(
        frontend in 0..5_usize,
        port in 80..82_u16,
        udp in any::<bool>(),
        endpoints in proptest::sample::subsequence(vec!["10.1.0.1:80", "10.1.0.2:80", "[fd00::1]:80"], 0..=3),
        sticky in any::<bool>(),
        limited in proptest::sample::select(vec![vec![], vec!["192.0.2.0/24"], vec!["10.0.0.0/8", "fd00::/8"]]),
        external in any::<bool>(),
        local in any::<bool>(),
    ) -> Rule {
        let address = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "192.0.2.1", "10.96.0.1"][frontend];
        let transport = if udp { Transport::Udp } else { Transport::Tcp };
        let at = at(&SocketAddr::new(address.parse().unwrap(), port).to_string(), &endpoints);
        let frontend = if frontend == 4 { Frontend::Node } else { at.frontend };
        Rule {
            frontend,
            transport,
            affinity: sticky.then_some(Duration::from_secs(60)),
            sources: limited.iter().map(|&range| range.to_owned()).collect(),
            external: external || frontend == Frontend::Node,
            local,
            ..at
        }
    }
}

fn any_table() -> impl Strategy<Value = Table> {
    let rules = proptest::collection::vec(any_rule(), 0..4);
    proptest::collection::btree_map(proptest::sample::select(vec!["a/one", "a/two", "b/three"]), rules, 0..4)
        .prop_map(|services| {
            let named = services.into_iter().map(|(name, mut rules)| {
                // A Service has each of its ports once.
                rules.sort_by_key(|rule| (format!("{:?}", rule.frontend), rule.port, rule.transport));
                rules.dedup_by_key(|rule| (rule.frontend, rule.port, rule.transport));
                let rules: Vec<Rule> =
                    rules.into_iter().map(|rule| Rule { service: name.into(), ..rule }).collect();
                (Arc::from(name), Arc::from(rules))
            });
            Table { services: named.collect() }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// After any history the kernel has what a fresh start with the last table makes, from nothing or from what is there.
    #[test]
    fn every_history_leads_where_a_fresh_start_does(
        tables in proptest::collection::vec((any_table(), any::<bool>()), 1..6),
    ) {
        let config = config();
        let homes = [nodes(), Nodes::new(addresses(&["192.0.2.9"]), &[], true)];
        let mut model = Model::default();
        let mut state: Option<State> = None;
        for (table, moved) in &tables {
            let nodes = &homes[usize::from(*moved)];
            let change = match state.take() {
                Some(state) => state.change(&config, nodes, table),
                None => State::fresh(&config, nodes, table, There::default()),
            };
            model.apply(&change);
            if !change.refused.is_empty() {
                // Who has what two Services want depends on who came first.
                return Ok(());
            }
            let mut fresh = Model::default();
            fresh.apply(&State::fresh(&config, nodes, table, There::default()));
            let settled = model.clone().settled(&change.state.leaving);
            prop_assert_eq!(&settled, &fresh.clone().settled(&Leaving::new()));
            // Who starts anew here finds it so, too.
            let there = There { servers: model.servers.clone(), bound: model.bound.clone() };
            let again = State::fresh(&config, nodes, table, there);
            let mut taken = model.clone();
            taken.apply(&again);
            prop_assert_eq!(taken.settled(&again.state.leaving), fresh.settled(&Leaving::new()));
            state = Some(change.state);
        }
    }
}
