//! The iptables proxy, in a network namespace of its own.

use std::{net::SocketAddr, sync::Arc};

use knet::{
    ServiceProxy, Transport,
    proxy::{iptables::IptablesProxy, nftables::NftablesProxy},
    rules::{Frontend, Rule, Table},
    testing::{Spread, check_service_proxy_that, rule, table},
};

use crate::lab::{connect, run, serve};

fn inside(test: &str) -> bool {
    crate::lab::inside(test, crate::SERVICES, &["iptables", "ip6tables", "iptables-restore", "conntrack"])
}

/// What the kernel has, in one order: chains are told in that of their making.
fn listed() -> Vec<String> {
    let mut lines = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = run(program);
        let mut table = String::new();
        for line in saved.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            }
            let line = line.split(" [").next().unwrap_or_default();
            lines.push(format!("{program} {table} {line}"));
        }
    }
    lines
}

/// The rules of each chain in their order, the chains in another.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    let chain = |line: &String| line.split(' ').take(4).collect::<Vec<_>>().join(" ");
    lines.sort_by_key(chain);
    lines
}

fn kube() -> Vec<String> {
    listed().into_iter().filter(|line| line.contains("KUBE-") || line.contains("kplane")).collect()
}

#[tokio::test]
async fn iptables_keeps_the_suites_promises() {
    if inside("iptables::iptables_keeps_the_suites_promises") {
        let address = "10.96.0.9".parse().unwrap();
        check_service_proxy_that(&IptablesProxy::default(), address, Spread::Random).await;
    }
}

#[tokio::test]
async fn a_switch_of_mode_leaves_no_rule_behind() {
    if !inside("iptables::a_switch_of_mode_leaves_no_rule_behind") {
        return;
    }
    serve("", "192.0.2.1:8080".parse().unwrap());
    let address: SocketAddr = "10.96.0.9:80".parse().unwrap();
    let cluster = rule(address, Transport::Tcp, &["192.0.2.1:8080".parse().unwrap()]);
    let node = Rule { frontend: Frontend::Node, port: 30080, external: true, ..cluster.clone() };
    let table = table(vec![cluster, node]);
    let (iptables, nftables) = (IptablesProxy::default(), NftablesProxy::default());
    iptables.sync(&table).await.unwrap();
    // The administrator's own rules are nobody else's business.
    run(
        "iptables -A INPUT -s 203.0.113.1 -j DROP && iptables -t nat -N OWN && iptables -t nat -A OUTPUT -j OWN",
    );
    for target in ["10.96.0.9:80", "192.0.2.1:30080"] {
        connect("", target.parse().unwrap()).expect(target);
    }
    let refused = connect("", "127.0.0.1:30080".parse().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    nftables.sync(&table).await.unwrap();
    iptables.remove().await.unwrap();
    assert_eq!(kube(), Vec::<String>::new());
    assert!(listed().iter().any(|line| line.contains("203.0.113.1")));
    assert!(listed().iter().any(|line| line.ends_with("-A OUTPUT -j OWN")));
    connect("", address).expect("the other mode serves it");
    iptables.sync(&table).await.unwrap();
    nftables.remove().await.unwrap();
    connect("", address).expect("the first mode serves it again");
    assert!(!run("nft list tables").contains("kplane"));
}

/// What the kernel has after a history of tables is what a proxy that starts with the last of them makes.
#[tokio::test]
async fn changes_lead_where_a_fresh_start_does() {
    if !inside("iptables::changes_lead_where_a_fresh_start_does") {
        return;
    }
    let at = |address: &str, transport, endpoints: &[&str]| {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
        rule(address.parse().unwrap(), transport, &endpoints)
    };
    let sticky =
        |seconds, rule: Rule| Rule { affinity: Some(std::time::Duration::from_secs(seconds)), ..rule };
    let node = |rule: Rule| Rule { frontend: Frontend::Node, port: 30080, external: true, ..rule };
    let balancer = |sources: &[&str], rule: Rule| Rule {
        frontend: Frontend::Address("203.0.113.9".parse().unwrap()),
        external: true,
        sources: sources.iter().map(|&source| source.to_owned()).collect(),
        ..rule
    };
    let three = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let web = || at("10.96.0.1:80", Transport::Tcp, &three);
    let tables = [
        table(vec![web(), at("[fd00::1]:80", Transport::Tcp, &["[fd00::9]:80"])]),
        table(vec![sticky(60, web())]),
        table(vec![sticky(60, at("10.96.0.1:80", Transport::Tcp, &three[1..])), node(web())]),
        table(vec![web(), node(Rule { local: true, ..at("10.96.0.1:80", Transport::Tcp, &[]) })]),
        table(vec![web(), balancer(&["192.0.2.0/24", "fd00::/8"], web())]),
        table(vec![web(), balancer(&[], web())]),
        Table::default(),
        table(vec![at("10.96.0.1:53", Transport::Udp, &[])]),
        Table {
            services: [("a", "10.96.0.1:80"), ("b", "10.96.0.2:80")]
                .map(|(name, address)| {
                    let rule = Rule { service: name.into(), ..at(address, Transport::Tcp, &three[..1]) };
                    (Arc::from(name), Arc::from([rule]))
                })
                .into(),
        },
    ];
    let proxy = IptablesProxy::default();
    for (index, table) in tables.iter().enumerate() {
        proxy.sync(table).await.unwrap_or_else(|error| panic!("{index}: {:?}", error.0));
        let after = sorted(listed());
        IptablesProxy::default().sync(table).await.unwrap();
        assert_eq!(after, sorted(listed()), "{index}");
    }
}

/// The chains of a Service with everything, as upstream's proxy makes them (`pkg/proxy/iptables/proxier_test.go`).
#[tokio::test]
async fn chains_are_those_of_upstream() {
    if !inside("iptables::chains_are_those_of_upstream") {
        return;
    }
    let endpoint = ["10.180.0.1:80".parse().unwrap()];
    let cluster = Rule {
        service: "ns1/svc1:p80".into(),
        ..rule("10.96.0.41:80".parse().unwrap(), Transport::Tcp, &endpoint)
    };
    let node = Rule { frontend: Frontend::Node, port: 3001, external: true, ..cluster.clone() };
    IptablesProxy::default().sync(&table(vec![cluster, node])).await.unwrap();
    let saved = run("iptables-save -t nat");
    let rules: Vec<&str> =
        saved.lines().filter(|line| line.contains("7WJZT7O ") || line.contains("SEP-")).collect();
    let expected = [
        "-A KUBE-NODEPORTS -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 -j KUBE-EXT-XPGD46QRK7WJZT7O",
        "-A KUBE-SERVICES -d 10.96.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O",
        "-A KUBE-EXT-XPGD46QRK7WJZT7O -m comment --comment \"masquerade traffic for ns1/svc1:p80 external destinations\" -j KUBE-MARK-MASQ",
        "-A KUBE-EXT-XPGD46QRK7WJZT7O -j KUBE-SVC-XPGD46QRK7WJZT7O",
        "-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment \"ns1/svc1:p80 -> 10.180.0.1:80\" -j KUBE-SEP-SXIVWICOYRO3J4NJ",
        "-A KUBE-SEP-SXIVWICOYRO3J4NJ -s 10.180.0.1/32 -m comment --comment \"ns1/svc1:p80\" -j KUBE-MARK-MASQ",
        "-A KUBE-SEP-SXIVWICOYRO3J4NJ -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp -j DNAT --to-destination 10.180.0.1:80",
    ];
    for line in expected {
        assert!(saved.lines().any(|found| found == line), "{line}\n{rules:#?}");
    }
}
