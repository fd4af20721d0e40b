//! What clients in other namespaces see of the proxies in the kernel: which address a server sees, who is let through, and what is
//! refused. The expected results are upstream's (`pkg/proxy/iptables/proxier_test.go`: the tables of `TestHealthCheckNodePort`,
//! `TestInternalExternalMasquerade` and `TestLoadBalancer`).

use std::{net::SocketAddr, time::Duration};

use knet::{
    ServiceProxy, Transport,
    proxy::{
        iptables::{IptablesConfig, IptablesProxy},
        ipvs::{IpvsConfig, IpvsProxy},
        nftables::{NftablesConfig, NftablesProxy},
    },
    rules::{Frontend, Rule},
    testing::{rule, table},
};

use crate::lab::{connect_within, inside, pod, run, serve};

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(400);
const PODS: [(&str, &str, &str); 2] = [("a", "10.1.0.1", "fd00::1"), ("b", "10.1.0.2", "fd00::2")];
const OUTSIDE: (&str, &str) = ("outside", "198.51.100.7");
/// The node's addresses: one that serves node ports, and one that doesn't.
const NODE: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

fn lay_out() {
    for (name, four, six) in PODS {
        pod(name, &[four, six]);
        serve(name, SocketAddr::new(four.parse().unwrap(), 80));
        serve(name, SocketAddr::new(six.parse().unwrap(), 80));
    }
    pod(OUTSIDE.0, &[OUTSIDE.1]);
    // Service addresses are nobody's: without a rule they lead nowhere.
    run("ip route add unreachable 10.96.0.0/16 metric 999; ip addr add 192.0.2.2/24 dev lo");
}

fn endpoints(pods: &[&str], six: bool) -> Vec<SocketAddr> {
    let found = PODS.iter().filter(|pod| pods.contains(&pod.0));
    found.map(|pod| SocketAddr::new(if six { pod.2 } else { pod.1 }.parse().unwrap(), 80)).collect()
}

fn cluster(address: &str, pods: &[&str]) -> Rule {
    let address: SocketAddr = address.parse().unwrap();
    rule(address, Transport::Tcp, &endpoints(pods, address.is_ipv6()))
}

fn external(rule: Rule) -> Rule {
    Rule { external: true, ..rule }
}

fn node(rule: Rule) -> Rule {
    Rule { frontend: Frontend::Node, port: 30080, external: true, ..rule }
}

/// Each line is a connection and what the server sees: an address, `node` for one of the node's, or `none` when there is no answer.
async fn check(proxy: &dyn ServiceProxy, title: &str, rules: Vec<Rule>, lines: &str) {
    proxy.sync(&table(rules)).await.unwrap();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (connection, expected) = line.rsplit_once(' ').unwrap();
        let (from, to) = connection.split_once("->").unwrap();
        let seen = connect_within(from.trim(), to.trim().parse().unwrap(), SILENCE).map(|(seen, _)| seen);
        let seen = match seen.as_deref() {
            Ok(address) if PODS.iter().any(|pod| pod.1 == address || pod.2 == address) => address,
            Ok(address) if address == OUTSIDE.1 => address,
            Ok(_) => "node",
            Err(_) => "none",
        };
        assert_eq!(seen, expected, "{proxy:?} {title}: {line}");
    }
}

async fn check_proxy(proxy: &dyn ServiceProxy) {
    check(
        proxy,
        "a cluster IP: pods keep their addresses, but to themselves",
        vec![cluster("10.96.0.9:80", &["b"])],
        "a -> 10.96.0.9:80 10.1.0.1
         b -> 10.96.0.9:80 node
         outside -> 10.96.0.9:80 node
         a -> 10.96.0.9:81 none",
    )
    .await;
    check(
        proxy,
        "both families",
        vec![cluster("10.96.0.9:80", &["b"]), cluster("[fd00:96::9]:80", &["b"])],
        "a -> 10.96.0.9:80 10.1.0.1
         a -> [fd00:96::9]:80 fd00::1
         b -> [fd00:96::9]:80 node",
    )
    .await;
    check(
        proxy,
        "a node port, at one of the node's addresses",
        vec![cluster("10.96.0.9:80", &["b"]), node(cluster("10.96.0.9:80", &["b"]))],
        "outside -> 192.0.2.1:30080 node
         a -> 192.0.2.1:30080 node
         outside -> 192.0.2.2:30080 none",
    )
    .await;
    let local = Rule { local: true, ..node(cluster("10.96.0.9:80", &["b"])) };
    check(
        proxy,
        "a node port for local endpoints: clients keep their addresses",
        vec![cluster("10.96.0.9:80", &["b"]), local.clone()],
        "outside -> 192.0.2.1:30080 198.51.100.7",
    )
    .await;
    let none = Rule { endpoints: [].into(), ..local };
    check(
        proxy,
        "a node port without local endpoints",
        vec![cluster("10.96.0.9:80", &["b"]), none],
        "outside -> 192.0.2.1:30080 none
         a -> 10.96.0.9:80 10.1.0.1",
    )
    .await;
    let balancer = |sources: &[&str]| Rule {
        sources: sources.iter().map(|&range| range.to_owned()).collect(),
        ..external(cluster("203.0.113.9:80", &["a"]))
    };
    check(
        proxy,
        "a load balancer's address for some",
        vec![cluster("10.96.0.9:80", &["a"]), balancer(&["198.51.100.0/24"])],
        "outside -> 203.0.113.9:80 node
         b -> 203.0.113.9:80 none
         b -> 10.96.0.9:80 10.1.0.2",
    )
    .await;
}

#[tokio::test]
async fn nftables_shows_servers_the_right_clients() {
    if !inside("kernel::nftables_shows_servers_the_right_clients", crate::SERVICES_ELSEWHERE, &["sysctl"]) {
        return;
    }
    lay_out();
    let mut config = NftablesConfig::default();
    config.pod_ranges = vec!["10.1.0.0/16".into(), "fd00::/64".into()];
    config.node_port_addresses = vec![format!("{}/32", NODE[0])];
    check_proxy(&NftablesProxy::new(config)).await;
}

#[tokio::test]
async fn iptables_shows_servers_the_right_clients() {
    let tools = ["sysctl", "iptables", "ip6tables"];
    if !inside("kernel::iptables_shows_servers_the_right_clients", crate::SERVICES_ELSEWHERE, &tools) {
        return;
    }
    lay_out();
    let mut config = IptablesConfig::default();
    config.pod_ranges = vec!["10.1.0.0/16".into(), "fd00::/64".into()];
    config.node_port_addresses = vec![format!("{}/32", NODE[0])];
    check_proxy(&IptablesProxy::new(config)).await;
}

#[tokio::test]
async fn ipvs_shows_servers_the_right_clients() {
    let test = "kernel::ipvs_shows_servers_the_right_clients";
    if !crate::ipvs::inside(test, crate::SERVICES_ELSEWHERE, &["sysctl"]) {
        return;
    }
    lay_out();
    let mut config = IpvsConfig::default();
    config.pod_ranges = vec!["10.1.0.0/16".into(), "fd00::/64".into()];
    config.node_port_addresses = vec![format!("{}/32", NODE[0])];
    check_proxy(&IpvsProxy::new(config)).await;
}
