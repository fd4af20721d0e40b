//! The commands, read by a small model of what `nft` does with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

/// The objects of the tables: chains with their rules, sets and maps with their elements. A command that the kernel would
/// refuse is a panic.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    chains: BTreeMap<String, Vec<String>>,
    sets: BTreeMap<String, BTreeMap<String, String>>,
}

impl Kernel {
    fn run(&mut self, script: &str) {
        for line in script.lines() {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            let (verb, kind, family, rest) =
                (words[0], words[1], words[2], words.get(4).copied().unwrap_or(""));
            let (name, body) = rest.split_once(' ').unwrap_or((rest, ""));
            let name = format!("{family} {name}");
            match (verb, kind) {
                ("add", "table") => {}
                ("delete", "table") => {
                    let own = format!("{family} ");
                    self.chains.retain(|name, _| !name.starts_with(&own));
                    self.sets.retain(|name, _| !name.starts_with(&own));
                }
                ("add", "chain") => assert!(self.chains.insert(name, Vec::new()).is_none(), "{line}"),
                ("add", "set" | "map") => {
                    assert!(self.sets.insert(name, BTreeMap::new()).is_none(), "{line}")
                }
                ("add", "rule") => self.chains.get_mut(&name).expect(line).push(body.to_owned()),
                ("flush", "chain") => self.chains.get_mut(&name).expect(line).clear(),
                ("delete", "chain") => {
                    assert!(self.chains.remove(&name).is_some_and(|rules| rules.is_empty()), "{line}");
                }
                ("delete", "set" | "map") => assert!(self.sets.remove(&name).is_some(), "{line}"),
                ("add" | "delete", "element") => {
                    let set = self.sets.get_mut(&name).expect(line);
                    for element in body.trim_matches(|c| "{ }".contains(c)).split(", ") {
                        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                        if verb == "add" {
                            assert!(set.insert(key.to_owned(), value.to_owned()).is_none(), "{line}");
                        } else {
                            assert!(set.remove(key).is_some(), "{line}");
                        }
                    }
                }
                _ => panic!("{line}"),
            }
        }
        self.check();
    }

    /// Everything that is named is there.
    fn check(&self) {
        for (chain, rules) in &self.chains {
            let family = chain.split(' ').next().unwrap_or_default();
            for rule in rules {
                let words: Vec<&str> = rule.split([' ', ',']).collect();
                for pair in words.windows(2) {
                    if matches!(pair[0], "goto" | "jump") {
                        assert!(
                            self.chains.contains_key(&format!("{family} {}", pair[1])),
                            "{chain}: {rule}"
                        );
                    }
                }
                for set in words.iter().filter_map(|word| word.strip_prefix('@')) {
                    assert!(self.sets.contains_key(&format!("{family} {set}")), "{chain}: {rule}");
                }
            }
        }
        let verdicts =
            self.sets.iter().flat_map(|(set, elements)| elements.values().map(move |value| (set, value)));
        for (set, value) in verdicts {
            if let Some(chain) = value.strip_prefix("goto ") {
                let family = set.split(' ').next().unwrap_or_default();
                assert!(self.chains.contains_key(&format!("{family} {chain}")), "{set}: {value}");
            }
        }
    }
}

fn rule(service: &str, frontend: &str, port: u16, endpoints: &[&str]) -> Rule {
    Rule {
        service: service.into(),
        frontend: frontend.parse().map_or(Frontend::Node, Frontend::Address),
        port,
        transport: Transport::Tcp,
        endpoints: endpoints.iter().map(|one| one.parse().unwrap()).collect(),
        affinity: None,
        sources: Arc::from([]),
        external: false,
        local: false,
    }
}

fn table(services: &[(&str, Vec<Rule>)]) -> Table {
    let services = services.iter().map(|(name, rules)| (Arc::from(*name), Arc::from(rules.as_slice())));
    Table { services: services.collect() }
}

/// The chain that connections of a rule go to.
fn chain_of(config: &NftablesConfig, rule: &Rule) -> Vec<String> {
    let change = State::fresh(config, &table(&[("a/b", vec![rule.clone()])]));
    let mut kernel = Kernel::default();
    kernel.run(&change.script);
    let found = &kernel.sets["ip service-ips"]["10.96.0.7 . tcp . 80"];
    kernel.chains[&format!("ip {}", found.strip_prefix("goto ").unwrap())].clone()
}

/// What upstream's kube-proxy does in its mode nftables (KEP-3866, `pkg/proxy/nftables/proxier.go`).
#[test]
fn elements_of_a_fresh_start_come_last_and_many_at_once() {
    let script = "add map ip t m { type ipv4_addr : verdict ; }\nadd element ip t m { 10.0.0.1 : goto c }\nadd chain ip t c\n\
        add element ip6 t m { fd00::1 : drop }\nadd rule ip t c ip saddr { 10.0.0.0/8 } drop\nadd element ip t m { 10.0.0.2 : drop }\n";
    let expected = "add map ip t m { type ipv4_addr : verdict ; }\nadd chain ip t c\nadd rule ip t c ip saddr { 10.0.0.0/8 } drop\n\
        add element ip t m { 10.0.0.1 : goto c, 10.0.0.2 : drop }\nadd element ip6 t m { fd00::1 : drop }\n";
    assert_eq!(gathered(script), expected);
    let many = "add element ip t m { 10.0.0.1 }\n".repeat(ELEMENTS_MAX + 1);
    assert_eq!(gathered(&many).lines().count(), 2);
}

#[test]
fn rules_become_chains() {
    let config = NftablesConfig {
        pod_ranges: vec!["10.244.0.0/16".to_owned(), "fd00::/8".to_owned()],
        ..Default::default()
    };
    let plain = NftablesConfig::default();
    let two = rule("a/b:http", "10.96.0.7", 80, &["10.244.0.1:8080", "10.244.0.2:8080"]);
    let one = rule("a/b", "10.96.0.7", 80, &["10.244.0.1:8080"]);
    let external = Rule { external: true, ..one.clone() };
    let local = Rule { local: true, ..external.clone() };
    let ranges = |ranges: &[&str]| Rule {
        sources: ranges.iter().map(|&range| range.to_owned()).collect(),
        ..local.clone()
    };
    let turns = |count: usize| {
        let turns: Vec<String> = (0..count).map(|turn| format!("{turn} : goto turn-{turn}")).collect();
        format!("numgen inc mod {count} vmap {{ {} }}", turns.join(", "))
    };
    let to_one = "meta l4proto tcp dnat ip to 10.244.0.1:8080";
    for (config, rule, expected) in [
        (&plain, &two, vec![turns(2)]),
        (&plain, &one, vec![turns(1)]),
        (&config, &one, vec!["ip saddr != { 10.244.0.0/16 } jump mark-for-masquerade".to_owned(), turns(1)]),
        (&config, &external, vec!["jump mark-for-masquerade".to_owned(), turns(1)]),
        (&config, &local, vec![turns(1)]),
        (
            &plain,
            &ranges(&["10.0.0.0/8", "fd00::/8"]),
            vec!["ip saddr != { 10.0.0.0/8 } drop".to_owned(), to_one.to_owned()],
        ),
        (&plain, &ranges(&["fd00::/8"]), vec!["drop".to_owned(), to_one.to_owned()]),
        (
            &plain,
            &ranges(&["10.0.0.0/33", " 192.168.0.0/16 "]),
            vec!["ip saddr != { 192.168.0.0/16 } drop".to_owned(), to_one.to_owned()],
        ),
    ] {
        assert_eq!(chain_of(config, rule), expected);
    }
    let sticky = Rule { affinity: Some(Duration::from_secs(60)), ..two };
    let chain = chain_of(&plain, &sticky);
    assert_eq!(chain.len(), 3);
    assert!(chain[0].starts_with("ip saddr @affinity-"), "{chain:?}");
    assert!(chain[2].starts_with("numgen inc mod 2 vmap { 0 : goto endpoint-"), "{chain:?}");
}

#[test]
fn what_has_no_endpoints_is_refused_or_dropped() {
    let config = NftablesConfig::default();
    let none = rule("a/b", "10.96.0.7", 80, &[]);
    let local = Rule { external: true, local: true, frontend: Frontend::Node, port: 30080, ..none.clone() };
    let mut kernel = Kernel::default();
    kernel.run(&State::fresh(&config, &table(&[("a/b", vec![none, local])])).script);
    assert_eq!(kernel.sets["ip no-endpoint-service-ips"]["10.96.0.7 . tcp . 80"], "goto refuse");
    for family in ["ip", "ip6"] {
        assert_eq!(kernel.sets[&format!("{family} no-endpoint-service-nodeports")]["tcp . 30080"], "drop");
    }
    assert!(kernel.sets["ip service-ips"].is_empty());
}

#[test]
fn a_change_writes_what_it_changes() {
    let config = NftablesConfig::default();
    let services: Vec<String> = (0..100).map(|index| format!("a/s{index}")).collect();
    let rules = |index: usize, last: u8| {
        let frontend = format!("10.96.0.{index}");
        vec![rule(&services[index], &frontend, 80, &["10.0.0.1:1", &format!("10.0.0.{last}:1")])]
    };
    let before: Vec<_> = (0..100).map(|index| (services[index].as_str(), rules(index, 2))).collect();
    let mut after = before.clone();
    after[7].1 = rules(7, 3);
    let fresh = State::fresh(&config, &table(&before));
    let change = fresh.state.change(&config, &table(&after));
    // One turn is taken away and given anew, and an address is new among the endpoints.
    assert_eq!(change.script.lines().count(), 3, "{}", change.script);
    assert_eq!(change.state.change(&config, &table(&after)).script, "");
}

#[test]
fn a_place_that_is_taken_is_refused_until_it_is_free() {
    let config = NftablesConfig::default();
    let first = vec![rule("a/first", "192.0.2.1", 80, &["10.0.0.1:1"])];
    let second = vec![rule("a/second", "192.0.2.1", 80, &["10.0.0.2:1"])];
    let both = State::fresh(&config, &table(&[("a/first", first), ("a/second", second.clone())]));
    assert_eq!(both.refused.len(), 1);
    assert_eq!(both.refused[0].service, "a/second");
    let alone = both.state.change(&config, &table(&[("a/second", second)]));
    assert!(alone.refused.is_empty() && alone.script.contains("10.0.0.2"), "{}", alone.script);
}

#[test]
fn udp_flows_to_endpoints_that_are_gone_end() {
    let config = NftablesConfig::default();
    let udp = |endpoints: &[&str]| {
        let rule = Rule { transport: Transport::Udp, ..rule("a/b", "10.96.0.7", 53, endpoints) };
        table(&[("a/b", vec![rule])])
    };
    let fresh = State::fresh(&config, &udp(&["10.0.0.1:53", "10.0.0.2:53"]));
    assert_eq!(fresh.ended, []);
    let fewer = fresh.state.change(&config, &udp(&["10.0.0.2:53"]));
    let shown: Vec<String> = fewer.ended.iter().map(|flow| flow.arguments().join(" ")).collect();
    assert_eq!(shown, ["-D -p udp -f ipv4 --orig-port-dst 53 --orig-dst 10.96.0.7 --reply-src 10.0.0.1"]);
    let none = fewer.state.change(&config, &udp(&[]));
    assert_eq!(none.ended.len(), 1);
    let again = none.state.change(&config, &udp(&["10.0.0.2:53"]));
    assert_eq!(
        again.ended[0].arguments().join(" "),
        "-D -p udp -f ipv4 --orig-port-dst 53 --orig-dst 10.96.0.7"
    );
}

fn some_rule(service: &'static str) -> impl Strategy<Value = Rule> {
    let endpoint = prop_oneof![
        (1..5_u8, 1..3_u16).prop_map(|(host, port)| format!("10.0.0.{host}:{port}")),
        (1..3_u8).prop_map(|host| format!("[fd00::{host}]:1")),
    ];
    let frontend = prop_oneof![
        (1..4_u8).prop_map(|host| format!("10.96.0.{host}")),
        Just("fd01::1".to_owned()),
        Just("node".to_owned())
    ];
    let endpoints = prop::collection::btree_set(endpoint, 0..4);
    (frontend, 80..83_u16, endpoints, any::<[bool; 4]>()).prop_map(
        move |(frontend, port, endpoints, flags)| {
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let [sticky, external, local, udp] = flags;
            Rule {
                affinity: sticky.then_some(Duration::from_secs(10)),
                transport: if udp { Transport::Udp } else { Transport::Tcp },
                external,
                local,
                ..rule(service, &frontend, port, &endpoints)
            }
        },
    )
}

fn some_table() -> impl Strategy<Value = Table> {
    let service = |name: &'static str| {
        prop::collection::vec(some_rule(name), 0..5).prop_map(move |rules| {
            let mut seen = BTreeSet::new();
            let rules: Vec<Rule> = rules
                .into_iter()
                .filter(|rule| seen.insert((rule.frontend, rule.port, rule.transport as u8)))
                .collect();
            (name, rules)
        })
    };
    (service("a/a"), service("a/b"), service("b/c")).prop_map(|(a, b, c)| table(&[a, b, c]))
}

proptest! {
    /// However a table was reached, the kernel has what it would have had at once.
    #[test]
    fn changes_lead_where_a_fresh_start_does(tables in prop::collection::vec(some_table(), 1..6)) {
        let config = NftablesConfig::default();
        let mut kernel = Kernel::default();
        let mut state: Option<State> = None;
        let mut refused = false;
        for table in &tables {
            let change = match state.take() {
                Some(state) => state.change(&config, table),
                None => State::fresh(&config, table),
            };
            kernel.run(&change.script);
            refused |= !change.refused.is_empty();
            state = Some(change.state);
        }
        let mut fresh = Kernel::default();
        let change = State::fresh(&config, tables.last().unwrap());
        fresh.run(&change.script);
        // Who has a place that two want depends on who came first.
        if !refused {
            prop_assert_eq!(kernel, fresh);
        }
    }
}
