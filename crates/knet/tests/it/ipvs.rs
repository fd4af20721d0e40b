//! The proxy by IPVS, in a network namespace of its own, where the kernel has IPVS. `.ci/ipvs` boots one that has.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    time::Duration,
};

use knet::{
    ServiceProxy, Transport,
    proxy::ipvs::{IpvsConfig, IpvsProxy, Scheduler},
    rules::{Frontend, Rule, Table},
    testing::{check_service_proxy, rule, table},
};

use crate::lab::{attempt, connect, echoes, pod, run, serve};

/// How long a test waits for what has to come.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long it pauses between two questions whether something is so.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the test again in a namespace of its own, if the kernel has IPVS: not every one has, so nobody can require it.
pub(crate) fn inside(test: &str, setup: &str, tools: &[&str]) -> bool {
    let is_there = || std::path::Path::new("/proc/net/ip_vs").exists();
    if !is_there() {
        let _ = Command::new("modprobe").arg("ip_vs").output();
    }
    if !is_there() {
        println!("skipped: needs IPVS in the kernel");
        return false;
    }
    crate::lab::inside(test, setup, tools)
}

fn here(test: &str) -> bool {
    inside(test, crate::SERVICES_ELSEWHERE, &["conntrack"])
}

fn proxy(set: impl FnOnce(&mut IpvsConfig)) -> IpvsProxy {
    let mut config = IpvsConfig::default();
    set(&mut config);
    IpvsProxy::new(config)
}

/// What the kernel has: virtual servers, the Services' device, and the table.
fn listed() -> BTreeSet<String> {
    let servers = std::fs::read_to_string("/proc/net/ip_vs").unwrap();
    let mut lines: BTreeSet<String> = BTreeSet::new();
    let mut server = String::new();
    for line in servers.lines().skip(3) {
        // Connections come and go by themselves.
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        if words[0] == "->" {
            lines.insert(format!("{server}: {}", words.join(" ")));
        } else {
            server = words.join(" ");
            lines.insert(server.clone());
        }
    }
    let addresses = run("ip -o addr show dev kube-ipvs0 scope global 2>/dev/null || true");
    lines.extend(
        addresses.lines().map(|line| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ")),
    );
    for family in ["ip", "ip6"] {
        let table = attempt(&format!("nft list table {family} kplane-ipvs"));
        lines.extend(
            elements(&String::from_utf8_lossy(&table.stdout))
                .into_iter()
                .map(|line| format!("{family} {line}")),
        );
    }
    lines
}

/// The lines of a table with the elements of sets apart, in whatever order they are told.
fn elements(table: &str) -> BTreeSet<String> {
    let (mut found, mut block, mut is_list) = (BTreeSet::new(), String::new(), false);
    for line in table.lines().map(str::trim) {
        if line.ends_with('{') && !line.contains("elements") {
            block = line.to_owned();
        }
        let list = line.strip_prefix("elements = {");
        is_list |= list.is_some();
        if is_list {
            for element in list.unwrap_or(line).split([',', '}']).map(str::trim).filter(|one| !one.is_empty())
            {
                found.insert(format!("{block} {element}"));
            }
            is_list = !line.ends_with('}');
        } else {
            found.insert(format!("{block} {line}"));
        }
    }
    found
}

#[tokio::test]
async fn ipvs_keeps_the_suites_promises() {
    if here("ipvs::ipvs_keeps_the_suites_promises") {
        // The suite's servers are processes.
        let proxy = proxy(|config| config.loopback_endpoints = true);
        proxy.check().await.unwrap();
        check_service_proxy(&proxy, "10.96.0.9".parse().unwrap()).await;
    }
}

fn at(address: &str, endpoints: &[&str]) -> Rule {
    let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
    rule(address.parse().unwrap(), Transport::Tcp, &endpoints)
}

#[tokio::test]
async fn every_scheduler_serves() {
    if !here("ipvs::every_scheduler_serves") {
        return;
    }
    pod("a", &["10.1.0.1"]);
    serve("a", "10.1.0.1:80".parse().unwrap());
    for scheduler in Scheduler::all() {
        let proxy = proxy(|config| config.scheduler = scheduler);
        proxy.check().await.unwrap_or_else(|error| panic!("{scheduler}: {error}"));
        proxy.sync(&table(vec![at("10.96.0.9:80", &["10.1.0.1:80"])])).await.unwrap();
        assert!(
            listed().iter().any(|line| line.contains(&format!(" {scheduler}"))),
            "{scheduler}: {:?}",
            listed()
        );
        let connected = connect("", "10.96.0.9:80".parse().unwrap());
        assert!(connected.is_ok(), "{scheduler}: {connected:?}");
    }
}

/// What the kernel has after a history of tables is what a proxy that starts with the last of them makes; in the end nothing is left.
#[tokio::test]
async fn changes_lead_where_a_fresh_start_does_and_nothing_is_left() {
    if !here("ipvs::changes_lead_where_a_fresh_start_does_and_nothing_is_left") {
        return;
    }
    // Another one's virtual server is left alone.
    let exclude = |config: &mut IpvsConfig| config.exclude = vec!["203.0.113.0/24".into()];
    let other = proxy(|config| config.device = "other0".to_owned());
    other.sync(&table(vec![at("203.0.113.80:80", &[])])).await.unwrap();
    run("ip link del other0; nft flush ruleset");
    let foreign: BTreeSet<String> = listed();
    let before = (run("ip addr"), run("nft list ruleset"));
    let sticky = |seconds, rule: Rule| Rule { affinity: Some(Duration::from_secs(seconds)), ..rule };
    let three = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let sources = |ranges: &[&str], rule| Rule {
        external: true,
        sources: ranges.iter().map(|&range| range.to_owned()).collect(),
        ..rule
    };
    let node = |rule| Rule { frontend: Frontend::Node, external: true, ..rule };
    let udp = |rule| Rule { transport: Transport::Udp, ..rule };
    let tables = [
        table(vec![at("10.96.0.1:80", &three), at("[fd00:96::1]:80", &["[fd00::9]:80"])]),
        table(vec![sticky(60, at("10.96.0.1:80", &three)), udp(at("10.96.0.1:53", &[]))]),
        table(vec![sticky(90, at("10.96.0.1:80", &three[1..])), udp(at("10.96.0.1:53", &three[..1]))]),
        table(vec![sources(&["10.0.0.0/8"], at("198.51.100.1:80", &three)), at("10.96.0.1:80", &three)]),
        table(vec![
            sources(&["10.0.0.0/8", "192.0.2.0/24"], at("198.51.100.1:80", &three)),
            node(at("10.96.0.1:30080", &three)),
            at("10.96.0.1:80", &three),
        ]),
        Table::default(),
        table(vec![at("10.96.0.1:80", &three[..1])]),
    ];
    let proxy = proxy(exclude);
    for (index, table) in tables.iter().enumerate() {
        proxy.sync(table).await.unwrap_or_else(|error| panic!("{index}: {:?}", error.0));
        proxy.sync(table).await.unwrap_or_else(|error| panic!("{index}, again: {:?}", error.0));
        let after = listed();
        let fresh = self::proxy(exclude);
        fresh.sync(table).await.unwrap_or_else(|error| panic!("{index}, anew: {:?}", error.0));
        assert_eq!(after, listed(), "{index}");
    }
    proxy.remove().await.unwrap();
    assert_eq!(listed(), foreign);
    assert_eq!((run("ip addr"), run("nft list ruleset")), before);
    // Where there is no device, virtual servers are somebody else's.
    self::proxy(|_| {}).remove().await.unwrap();
    assert_eq!(listed(), foreign);
}

/// Ends a connection so that both ends forget it at once.
fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open, and the value is of the option's type and size.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            u32::try_from(size_of::<libc::linger>()).unwrap(),
        )
    };
    assert_eq!(set, 0);
}

/// An endpoint that goes keeps its connections and gets no more; it is taken out when it has none.
#[tokio::test]
async fn endpoints_that_go_keep_their_connections() {
    if !here("ipvs::endpoints_that_go_keep_their_connections") {
        return;
    }
    for (name, address) in [("a", "10.1.0.1"), ("b", "10.1.0.2")] {
        pod(name, &[address]);
        serve(name, SocketAddr::new(address.parse().unwrap(), 80));
    }
    pod("client", &["10.1.0.3"]);
    let address: SocketAddr = "10.96.0.9:80".parse().unwrap();
    let proxy = proxy(|_| {});
    proxy.sync(&table(vec![at("10.96.0.9:80", &["10.1.0.1:80"])])).await.unwrap();
    let (seen, mut held) = connect("client", address).unwrap();
    assert_eq!(seen, "10.1.0.3");
    proxy.sync(&table(vec![at("10.96.0.9:80", &["10.1.0.2:80"])])).await.unwrap();
    assert!(listed().iter().any(|line| line.contains("0A010001:0050 Masq 0")), "{:?}", listed());
    assert!(echoes(&mut held, WAIT_MAX), "what exists goes on");
    assert_eq!(proxy.sweep().await.unwrap(), 1);
    let servers = || run("grep -A9 0A600009 /proc/net/ip_vs");
    for _ in 0..3 {
        let (_, mut other) = connect("client", address).unwrap();
        assert!(echoes(&mut other, WAIT_MAX));
        reset(other);
    }
    let of = |servers: &str, name: &str| servers.lines().find(|line| line.contains(name)).map(str::to_owned);
    let [left, taken] = ["0A010001", "0A010002"].map(|name| of(&servers(), name).unwrap());
    let connections = |line: &str| -> u32 {
        line.split_whitespace().rev().take(2).map(|word| word.parse::<u32>().unwrap()).sum()
    };
    assert_eq!((connections(&left), connections(&taken)), (1, 3));
    reset(held);
    // The kernel remembers a connection for ten seconds after it was reset.
    let swept = async {
        while proxy.sweep().await.unwrap() > 0 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, swept).await.expect("the endpoint is taken out");
    assert_eq!(of(&servers(), "0A010001"), None);
}

/// A Service that goes is not served any more, and its address is nobody's.
#[tokio::test]
async fn addresses_are_the_nodes_only_while_they_are_a_services() {
    if !here("ipvs::addresses_are_the_nodes_only_while_they_are_a_services") {
        return;
    }
    let proxy = proxy(|config| config.strict_arp = true);
    for address in ["10.96.0.9", "fd00:96::9"] {
        let address: std::net::IpAddr = address.parse().unwrap();
        let both = format!("{}", SocketAddr::new(address, 80));
        proxy.sync(&table(vec![at(&both, &[])])).await.unwrap();
        let bound = run("ip -o addr show dev kube-ipvs0");
        assert!(bound.contains(&format!(" {address}/")), "{bound}");
        proxy.sync(&Table::default()).await.unwrap();
        let bound = run("ip -o addr show dev kube-ipvs0");
        assert!(!bound.contains(&format!(" {address}/")), "{bound}");
    }
    let settings =
        run("cd /proc/sys/net/ipv4; cat conf/all/arp_ignore conf/all/arp_announce vs/conntrack ip_forward");
    assert_eq!(settings.split_whitespace().collect::<Vec<_>>(), ["1", "2", "1", "1"]);
}
