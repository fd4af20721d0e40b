//! The proxy in the kernel, in a network namespace of its own.

use std::{
    net::SocketAddr,
    process::{Command, Output},
};

use knet::{
    ServiceProxy, Transport,
    proxy::nftables::{NftablesConfig, NftablesProxy},
    rules::{Frontend, Rule, Table},
    testing::{check_service_proxy, rule, table},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

fn inside(test: &str) -> bool {
    crate::lab::inside(test, crate::SERVICES, &["conntrack"])
}

fn nft(arguments: &[&str]) -> Output {
    Command::new("nft").args(arguments).output().expect("nft")
}

/// The table as the kernel tells it, without what counts or changes by itself.
fn listed(family: &str) -> String {
    let output = nft(&["list", "table", family, "kplane-proxy"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn nftables_keeps_the_suites_promises() {
    if inside("nftables::nftables_keeps_the_suites_promises") {
        check_service_proxy(&NftablesProxy::default(), "10.96.0.9".parse().unwrap()).await;
    }
}

#[tokio::test]
async fn node_ports_are_served_on_the_nodes_addresses_and_nothing_is_left() {
    if !inside("nftables::node_ports_are_served_on_the_nodes_addresses_and_nothing_is_left") {
        return;
    }
    let proxy = NftablesProxy::default();
    let server = TcpListener::bind("192.0.2.1:0").await.unwrap();
    let endpoint = server.local_addr().unwrap();
    let address: SocketAddr = "10.96.0.9:80".parse().unwrap();
    let cluster = rule(address, Transport::Tcp, &[endpoint]);
    let node = Rule { frontend: Frontend::Node, port: 30080, external: true, ..cluster.clone() };
    proxy.sync(&table(vec![cluster, node])).await.unwrap();
    for target in ["192.0.2.1:30080", "10.96.0.9:80"] {
        let (client, accepted) = tokio::join!(TcpStream::connect(target), server.accept());
        drop(accepted.expect(target));
        let ended = client.expect(target).read(&mut [0]).await;
        assert!(matches!(ended, Ok(0)), "{target}");
    }
    // Another port of the Service, and the node port on the loopback address, are nobody's.
    for target in ["10.96.0.9:81", "127.0.0.1:30080"] {
        let refused = TcpStream::connect(target).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{target}");
    }
    proxy.remove().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&nft(&["list", "ruleset"]).stdout), "");
}

/// What the kernel has after a history of tables is what a proxy that starts with the last of them makes.
#[tokio::test]
async fn changes_lead_where_a_fresh_start_does() {
    if !inside("nftables::changes_lead_where_a_fresh_start_does") {
        return;
    }
    let at = |address: &str, transport, endpoints: &[&str]| {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
        rule(address.parse().unwrap(), transport, &endpoints)
    };
    let sticky =
        |seconds, rule: Rule| Rule { affinity: Some(std::time::Duration::from_secs(seconds)), ..rule };
    let three = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let tables = [
        table(vec![
            at("10.96.0.1:80", Transport::Tcp, &three),
            at("[fd00::1]:80", Transport::Tcp, &["[fd00::9]:80"]),
        ]),
        table(vec![sticky(60, at("10.96.0.1:80", Transport::Tcp, &three))]),
        table(vec![
            sticky(60, at("10.96.0.1:80", Transport::Tcp, &three[1..])),
            at("10.96.0.1:53", Transport::Udp, &[]),
        ]),
        table(vec![sticky(90, at("10.96.0.1:80", Transport::Tcp, &three))]),
        Table::default(),
        table(vec![
            Rule {
                external: true,
                sources: std::sync::Arc::from(["10.0.0.0/8".to_owned()]),
                ..at("10.96.0.1:80", Transport::Tcp, &three)
            },
            Rule {
                frontend: Frontend::Node,
                external: true,
                local: true,
                ..at("10.96.0.1:30080", Transport::Udp, &[])
            },
        ]),
        table(vec![at("10.96.0.1:80", Transport::Tcp, &three[..1])]),
    ];
    let proxy = NftablesProxy::default();
    for (index, table) in tables.iter().enumerate() {
        proxy.sync(table).await.unwrap_or_else(|error| panic!("{index}: {:?}", error.0));
        let after = [listed("ip"), listed("ip6")];
        NftablesProxy::default().sync(table).await.unwrap();
        assert_eq!(sorted(&after), sorted(&[listed("ip"), listed("ip6")]), "{index}");
        // That one began anew: what the first remembers is what is there.
    }
}

/// The blocks of a listing in one order: the kernel tells them in that of their making.
fn sorted(listings: &[String]) -> Vec<Vec<String>> {
    let blocks = |text: &String| {
        let mut blocks: Vec<String> =
            text.split("\n\n").flat_map(|part| part.split("\n\t}\n")).map(str::to_owned).collect();
        blocks.sort();
        blocks
    };
    listings.iter().map(blocks).collect()
}

/// Elements alone change without the program, by netlink; and to what the program would have made of it.
#[tokio::test]
async fn elements_change_without_the_program() {
    if !inside("nftables::elements_change_without_the_program") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str| {
        let mut config = NftablesConfig::default();
        config.nft = dir.path().join(name);
        config
    };
    std::os::unix::fs::symlink(
        String::from_utf8_lossy(&Command::new("which").arg("nft").output().unwrap().stdout).trim(),
        dir.path().join("nft"),
    )
    .unwrap();
    let four = |address: &str, transport, last: u16| {
        let endpoints: Vec<SocketAddr> =
            (1..=2).map(|host| SocketAddr::from(([10, 0, 0, host], last))).collect();
        rule(address.parse().unwrap(), transport, &endpoints)
    };
    let six = |last: u16| {
        let endpoints = [SocketAddr::new("fd00::9".parse().unwrap(), last)];
        rule("[fd00::1]:80".parse().unwrap(), Transport::Tcp, &endpoints)
    };
    let node = |last| Rule {
        frontend: Frontend::Node,
        external: true,
        ..four("10.96.0.1:30080", Transport::Tcp, last)
    };
    let before = table(vec![four("10.96.0.1:80", Transport::Tcp, 8000), six(1), node(8000)]);
    let tables = [
        table(vec![four("10.96.0.1:80", Transport::Tcp, 8001), six(2), node(8001)]),
        // A Service comes, with endpoints or without any; others go.
        table(vec![
            four("10.96.0.1:80", Transport::Tcp, 8001),
            four("10.96.0.2:53", Transport::Udp, 53),
            rule("10.96.0.3:80".parse().unwrap(), Transport::Tcp, &[]),
            six(2),
            node(8001),
        ]),
        before.clone(),
    ];
    let proxy = NftablesProxy::new(config("nft"));
    proxy.sync(&before).await.unwrap();
    for (index, table) in tables.iter().enumerate() {
        std::fs::rename(dir.path().join("nft"), dir.path().join("hidden")).unwrap();
        proxy.sync(table).await.unwrap_or_else(|error| panic!("{index}: {:?}", error.0));
        std::fs::rename(dir.path().join("hidden"), dir.path().join("nft")).unwrap();
        let after = [listed("ip"), listed("ip6")];
        NftablesProxy::default().sync(table).await.unwrap();
        assert_eq!(sorted(&after), sorted(&[listed("ip"), listed("ip6")]), "{index}");
    }
    // What the kernel refuses, since somebody has flushed the table, is told with `nft`'s words, and made anew by the next call.
    assert!(nft(&["flush", "ruleset"]).status.success());
    let error = proxy.sync(&tables[0]).await.unwrap_err();
    assert!(error.0[0].source.to_string().contains("No such file or directory"), "{error:?}");
    proxy.sync(&tables[0]).await.unwrap();
    assert!(listed("ip").contains("10.0.0.1 . 8001"));
}
