//! What every implementation of this crate's traits has to keep.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::{
    allocator::{AllocateError, IpAllocator},
    proxy::ServiceProxy,
    redirect::Transport,
    rules::{Frontend, Rule, Table},
};

/// How long the suites wait for anything.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// How long they wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

/// Checks the promises of [`IpAllocator`] on an allocator that has nothing handed out and not more than a few hundred
/// addresses.
///
/// # Panics
/// When a promise is broken.
pub fn check_ip_allocator(allocator: &dyn IpAllocator) {
    let mut all = Vec::new();
    loop {
        match allocator.allocate(None) {
            Ok(address) => all.push(address),
            Err(error) => {
                assert_eq!(error, AllocateError::Full);
                break;
            }
        }
    }
    let mut distinct = all.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), all.len(), "an address was handed out twice");
    let one = all[all.len() / 2];
    assert_eq!(allocator.allocate(Some(one)), Err(AllocateError::Taken));
    assert!(allocator.release(one), "an address that is in use is taken back");
    assert!(!allocator.release(one), "an address is taken back once");
    assert_eq!(allocator.allocate(Some(one)), Ok(one), "an address that is free can be asked for");
    assert_eq!(allocator.allocate(None), Err(AllocateError::Full));
    for address in all {
        assert!(allocator.release(address));
    }
    let outside = if one.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    assert_eq!(allocator.allocate(outside.parse().ok()), Err(AllocateError::OutOfRange));
}

/// A rule for the suite.
#[must_use]
pub fn rule(address: SocketAddr, transport: Transport, endpoints: &[SocketAddr]) -> Rule {
    Rule {
        service: "default/test".into(),
        frontend: Frontend::Address(address.ip()),
        port: address.port(),
        transport,
        endpoints: endpoints.into(),
        affinity: None,
        sources: Arc::from([]),
        external: false,
        local: false,
    }
}

/// A table of one Service.
#[must_use]
pub fn table(rules: Vec<Rule>) -> Table {
    Table { services: BTreeMap::from([(Arc::from("default/test"), rules.into())]) }
}

/// Servers that say who they are. A TCP server answers when the client has sent all it wants to.
struct Servers {
    addresses: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Servers {
    async fn tcp(count: usize) -> Self {
        let (mut addresses, mut tasks) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("an address");
            addresses.push(address);
            tasks.spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let mut text = String::new();
                        if stream.read_to_string(&mut text).await.is_ok() {
                            let _ = stream.write_all(format!("{address} {text}").as_bytes()).await;
                        }
                    });
                }
            });
        }
        Self { addresses, _tasks: tasks }
    }

    async fn udp(count: usize) -> Self {
        let (mut addresses, mut tasks) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
            let address = socket.local_addr().expect("an address");
            addresses.push(address);
            tasks.spawn(async move {
                let mut buffer = [0; 100];
                while let Ok((_, client)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(address.to_string().as_bytes(), client).await;
                }
            });
        }
        Self { addresses, _tasks: tasks }
    }
}

/// Sends `text`, says that this is all, and reads the answer: who it was, and what he heard.
async fn ask(address: SocketAddr, text: &str) -> Option<(SocketAddr, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(text.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (server, heard) = answer.split_once(' ')?;
        Some((server.parse().ok()?, heard.to_owned()))
    };
    tokio::time::timeout(WAIT_MAX, asked).await.expect("an answer or a refusal in time")
}

async fn ask_udp(client: &UdpSocket, address: SocketAddr) -> SocketAddr {
    client.send_to(b"who", address).await.expect("a datagram can be sent");
    let mut buffer = [0; 100];
    let (length, from) = tokio::time::timeout(WAIT_MAX, client.recv_from(&mut buffer))
        .await
        .expect("an answer in time")
        .expect("an answer");
    assert_eq!(from, address, "the answer comes from the address that was asked");
    String::from_utf8_lossy(&buffer[..length]).parse().expect("the server's address")
}

/// How a proxy chooses among endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One after the other.
    InTurn,
    /// At random, each as likely as the others.
    Random,
}

/// How many connections are made until each of three endpoints chosen at random must have had one: that one has none is less likely
/// than one in 10^17.
const RANDOM_TRIES_MAX: usize = 100;

/// Checks the promises of [`ServiceProxy`] with real connections, for a proxy that takes endpoints in turn. `address` is one that the
/// proxy can serve and that nobody else uses.
///
/// # Panics
/// When a promise is broken.
pub async fn check_service_proxy(proxy: &dyn ServiceProxy, address: IpAddr) {
    check_service_proxy_that(proxy, address, Spread::InTurn).await;
}

/// The same for a proxy that may choose another way.
///
/// # Panics
/// When a promise is broken.
pub async fn check_service_proxy_that(proxy: &dyn ServiceProxy, address: IpAddr, spread: Spread) {
    check_tcp(proxy, SocketAddr::new(address, 7001), spread).await;
    check_affinity(proxy, SocketAddr::new(address, 7002)).await;
    check_udp(proxy, SocketAddr::new(address, 7003)).await;
    check_sources(proxy, SocketAddr::new(address, 7005)).await;
    proxy.sync(&Table::default()).await.expect("an empty table");
}

async fn check_spread(address: SocketAddr, all: &[SocketAddr], spread: Spread) {
    let mut seen = Vec::new();
    let tries = match spread {
        Spread::InTurn => 2 * all.len(),
        Spread::Random => RANDOM_TRIES_MAX,
    };
    for _ in 0..tries {
        let (server, heard) = ask(address, "hello").await.expect("an answer");
        assert_eq!(heard, "hello", "a half that is closed leaves the other half open");
        seen.push(server);
    }
    for server in all {
        let count = seen.iter().filter(|seen| *seen == server).count();
        match spread {
            Spread::InTurn => assert_eq!(count, 2, "each replica in turn"),
            Spread::Random => assert!(count > 0, "each replica has its share"),
        }
    }
}

async fn check_tcp(proxy: &dyn ServiceProxy, address: SocketAddr, spread: Spread) {
    let servers = Servers::tcp(3).await;
    let all = &servers.addresses;
    let full = table(vec![rule(address, Transport::Tcp, all)]);
    proxy.sync(&full).await.expect("a table");
    proxy.sync(&full).await.expect("the same table again");
    check_spread(address, all, spread).await;
    proxy.sync(&table(vec![rule(address, Transport::Tcp, &all[..1])])).await.expect("fewer endpoints");
    assert_eq!(ask(address, "x").await.map(|(server, _)| server), Some(all[0]));
    proxy.sync(&table(vec![rule(address, Transport::Tcp, &[])])).await.expect("no endpoint");
    assert_eq!(ask(address, "x").await, None, "without endpoints nobody answers");
    proxy.sync(&Table::default()).await.expect("an empty table");
    let mut tries = 0;
    while TcpStream::connect(address).await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "a Service that is gone is not listened for");
        tokio::task::yield_now().await;
    }
}

/// Checks that a proxy which makes the connections to endpoints itself passes those over that refuse it. A proxy in the kernel
/// can't: there a connection is refused by whom it was given to.
///
/// # Panics
/// When it does not.
pub async fn check_dead_endpoints(proxy: &dyn ServiceProxy, address: IpAddr) {
    let address = SocketAddr::new(address, 7004);
    let servers = Servers::tcp(2).await;
    let all = &servers.addresses;
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("an address")
    };
    proxy
        .sync(&table(vec![rule(address, Transport::Tcp, &[refusing, all[1]])]))
        .await
        .expect("a dead endpoint");
    for _ in 0..2 {
        assert_eq!(
            ask(address, "x").await.map(|(server, _)| server),
            Some(all[1]),
            "a dead endpoint is passed over"
        );
    }
    proxy.sync(&Table::default()).await.expect("an empty table");
}

async fn check_affinity(proxy: &dyn ServiceProxy, address: SocketAddr) {
    let servers = Servers::tcp(2).await;
    let mut sticky = rule(address, Transport::Tcp, &servers.addresses);
    sticky.affinity = Some(Duration::from_secs(60));
    proxy.sync(&table(vec![sticky])).await.expect("a table");
    let first = ask(address, "x").await.expect("an answer").0;
    for _ in 0..3 {
        assert_eq!(ask(address, "x").await.expect("an answer").0, first, "a client stays with its endpoint");
    }
}

/// A load balancer's address that only some may use: who may not hears nothing, or is refused.
async fn check_sources(proxy: &dyn ServiceProxy, address: SocketAddr) {
    let servers = Servers::tcp(1).await;
    let mut limited = Rule { external: true, ..rule(address, Transport::Tcp, &servers.addresses) };
    for (sources, allowed) in [
        (["0.0.0.0/1", "128.0.0.0/1"].as_slice(), true),
        (["203.0.113.0/24", "fd00::/8"].as_slice(), false),
        (["203.0.113.0/24", "0.0.0.0/1", "128.0.0.0/1"].as_slice(), true),
    ] {
        limited.sources = sources.iter().map(|&range| range.to_owned()).collect();
        proxy.sync(&table(vec![limited.clone()])).await.expect("a table");
        // A proxy without privileges can't tell who it is before it has taken the connection.
        let asked = tokio::time::timeout(SILENCE, ask(address, "x")).await;
        assert_eq!(asked.is_ok_and(|answer| answer.is_some()), allowed, "{sources:?}");
    }
}

async fn check_udp(proxy: &dyn ServiceProxy, address: SocketAddr) {
    let servers = Servers::udp(2).await;
    let all = &servers.addresses;
    proxy.sync(&table(vec![rule(address, Transport::Udp, all)])).await.expect("a table");
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let first = ask_udp(&client, address).await;
    let mut second = first;
    // Chosen in turn, the next client has another one.
    for _ in 0..RANDOM_TRIES_MAX {
        let other = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        second = ask_udp(&other, address).await;
        if second != first {
            break;
        }
    }
    assert_ne!(first, second, "clients are spread");
    assert_eq!(ask_udp(&client, address).await, first, "a client's datagrams go one way");
    proxy.sync(&table(vec![rule(address, Transport::Udp, &[second])])).await.expect("fewer endpoints");
    assert_eq!(ask_udp(&client, address).await, second, "a flow to an endpoint that is gone ends");
}
