//! The proxies as their users see them.

mod agents;
mod bridge;
mod cni;
mod dns;
mod gateway;
mod health;
mod hosts;
mod http_proxy;
mod iptables;
mod ipvs;
mod kernel;
mod lab;
mod nftables;
mod policy;
mod sctp;

use knet::{
    Redirects, ServiceProxy, Transport,
    loopback::LoopbackBlock,
    proxy::userspace::UserspaceProxy,
    testing::{check_dead_endpoints, check_service_proxy, rule, table},
};
use tokio::net::TcpStream;

/// Gives the loopback device the address 192.0.2.1, too, and a route to the Services' range.
const SERVICES: &str = "ip addr add 192.0.2.1/24 dev lo && ip route add local 10.96.0.0/16 dev lo";

/// Gives the loopback device the address 192.0.2.1, too; the Services' range is somewhere else.
const SERVICES_ELSEWHERE: &str = "ip addr add 192.0.2.1/24 dev lo";

#[tokio::test]
async fn userspace_keeps_the_suites_promises() {
    let block = LoopbackBlock::claim().unwrap();
    let proxy = UserspaceProxy::new(Redirects::default());
    check_service_proxy(&proxy, block.nth(1)).await;
    check_dead_endpoints(&proxy, block.nth(1)).await;
}

/// A port that needs a privilege is served at another one, and whoever asks for redirects finds it.
#[tokio::test]
async fn low_ports_are_redirected_without_privileges() {
    let block = LoopbackBlock::claim().unwrap();
    let redirects = Redirects::default();
    let proxy = UserspaceProxy::new(redirects.clone());
    let address = std::net::SocketAddr::new(block.nth(2), 80);
    proxy.sync(&table(vec![rule(address, Transport::Tcp, &[])])).await.unwrap();
    let target = redirects.resolve(Transport::Tcp, address);
    assert_eq!(proxy.listening()[&address], target);
    assert!(TcpStream::connect(target).await.is_ok());
    drop(proxy);
    assert_eq!(redirects.resolve(Transport::Tcp, address), address);
}

/// The kernel has no sockets of SCTP that anybody could do without a right to: who wants it is told, and the others are served.
#[tokio::test]
async fn sctp_is_refused_in_userspace_and_the_rest_is_served() {
    let block = LoopbackBlock::claim().unwrap();
    let proxy = UserspaceProxy::new(Redirects::default());
    let address = std::net::SocketAddr::new(block.nth(4), 7005);
    let rules = vec![rule(address, Transport::Sctp, &[]), rule(address, Transport::Tcp, &[])];
    let error = proxy.sync(&table(rules)).await.unwrap_err();
    assert_eq!(error.0.len(), 1);
    assert_eq!(error.0[0].source.kind(), std::io::ErrorKind::Unsupported);
    let told = error.to_string();
    assert!(told.contains("Sctp") && told.contains("SCTP is not served in userspace"), "{told}");
    assert!(TcpStream::connect(address).await.is_ok());
}

/// Connections, listeners and flows end with the proxy.
#[tokio::test]
async fn nothing_outlives_the_proxy() {
    let block = LoopbackBlock::claim().unwrap();
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = std::net::SocketAddr::new(block.nth(3), 7004);
    let proxy = UserspaceProxy::new(Redirects::default());
    let endpoints = [server.local_addr().unwrap()];
    proxy.sync(&table(vec![rule(address, Transport::Tcp, &endpoints)])).await.unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    let _accepted = server.accept().await.unwrap();
    drop(proxy);
    let ended = tokio::io::AsyncReadExt::read(&mut client, &mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
}
