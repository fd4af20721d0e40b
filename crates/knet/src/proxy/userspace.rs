//! The proxy without privileges: it listens on the Services' addresses itself and copies bytes.
//!
//! Services have loopback addresses then (a range of 127.0.0.0/8), which every process of the machine can listen on and
//! reach. Ports below 1024 need a privilege; without it the proxy listens on another port and says so in its
//! [`Redirects`], which the process runtime follows for pods. From outside of pods such a port is not reachable.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{RuleError, ServiceProxy, SyncError};
use crate::{
    balance::Balancer,
    redirect::{Redirects, Transport, bind},
    rules::{Frontend, Rule, Table},
};

mod tcp;
mod udp;

/// How many TCP connections one proxy carries at the same time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 8192;
/// How long one endpoint may take to accept a connection before the next one is tried.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How many UDP clients one rule has at the same time; datagrams of more are dropped.
pub const FLOWS_MAX: usize = 4096;
/// How long a UDP flow without a datagram is remembered.
pub const FLOW_IDLE_MAX: Duration = Duration::from_secs(60);

/// Where something is listened on.
type Key = (Transport, SocketAddr);

/// The userspace proxy.
///
/// ```no_run
/// # async fn example() -> Result<(), knet::proxy::SyncError> {
/// use knet::{Redirects, proxy::{ServiceProxy, userspace::UserspaceProxy}, rules::Table};
/// let proxy = UserspaceProxy::new(Redirects::default());
/// proxy.sync(&Table::default()).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct UserspaceProxy {
    redirects: Redirects,
    node_addresses: Vec<IpAddr>,
    running: Mutex<HashMap<Key, Running>>,
    connections: Arc<Semaphore>,
    /// Ends the connections too.
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// A rule that is served. Dropping it ends the listening, not the connections.
#[derive(Debug)]
struct Running {
    served: Arc<Served>,
    _stop_on_drop: DropGuard,
    /// Where it really listens.
    bound: SocketAddr,
}

/// What a listener and its connections share.
#[derive(Debug)]
struct Served {
    state: Mutex<State>,
    redirects: Redirects,
}

#[derive(Debug)]
struct State {
    rule: Rule,
    balancer: Balancer,
}

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next endpoint for a client, and where to connect for it.
    fn pick(
        &self,
        transport: Transport,
        client: IpAddr,
        tried: &[SocketAddr],
    ) -> Option<(SocketAddr, SocketAddr)> {
        let mut state = self.state();
        let State { rule, balancer } = &mut *state;
        if !allowed(&rule.sources, client) {
            return None;
        }
        let endpoint = balancer.pick(&rule.endpoints, client, rule.affinity, Instant::now(), tried)?;
        Some((endpoint, self.redirects.resolve(transport, endpoint)))
    }

    fn has(&self, endpoint: SocketAddr) -> bool {
        self.state().rule.endpoints.contains(&endpoint)
    }
}

/// Whether a client is in one of the ranges; no range means everybody.
fn allowed(ranges: &[String], client: IpAddr) -> bool {
    let within = |range: &String| {
        let (network, prefix) = range.split_once('/')?;
        let (network, prefix): (IpAddr, u32) = (network.trim().parse().ok()?, prefix.trim().parse().ok()?);
        Some(match (network, client) {
            (IpAddr::V4(network), IpAddr::V4(client)) => {
                let shift = 32_u32.checked_sub(prefix)?;
                (network.to_bits() ^ client.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(client)) => {
                let shift = 128_u32.checked_sub(prefix)?;
                (network.to_bits() ^ client.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        })
    };
    ranges.is_empty() || ranges.iter().any(|range| within(range).unwrap_or(false))
}

impl UserspaceProxy {
    /// A proxy whose node ports are at 127.0.0.1.
    #[must_use]
    pub fn new(redirects: Redirects) -> Self {
        let stop = CancellationToken::new();
        Self {
            redirects,
            node_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            running: Mutex::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Serves node ports at these addresses.
    #[must_use]
    pub fn node_addresses(mut self, addresses: Vec<IpAddr>) -> Self {
        self.node_addresses = addresses;
        self
    }

    /// Where the proxy listens, for each address that it serves.
    #[must_use]
    pub fn listening(&self) -> BTreeMap<SocketAddr, SocketAddr> {
        self.running().iter().map(|((_, address), running)| (*address, running.bound)).collect()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self, table: &Table) -> HashMap<Key, Rule> {
        let mut wanted = HashMap::new();
        for rule in table.rules() {
            let addresses = match rule.frontend {
                Frontend::Address(address) => vec![address],
                Frontend::Node => self.node_addresses.clone(),
            };
            for address in addresses {
                // Of two Services that claim one address and port, the first by name has it.
                wanted
                    .entry((rule.transport, SocketAddr::new(address, rule.port)))
                    .or_insert_with(|| rule.clone());
            }
        }
        wanted
    }

    fn listen(&self, (transport, address): Key, rule: Rule) -> io::Result<Running> {
        let stop = self.stop.child_token();
        let served = Arc::new(Served {
            state: Mutex::new(State { rule, balancer: Balancer::default() }),
            redirects: self.redirects.clone(),
        });
        let bound = match transport {
            Transport::Tcp => {
                let listener = bind(address, tcp::listen)?;
                let bound = listener.local_addr()?;
                let limits = Arc::clone(&self.connections);
                tokio::spawn(tcp::accept(
                    listener,
                    Arc::clone(&served),
                    limits,
                    stop.clone(),
                    self.stop.clone(),
                ));
                bound
            }
            Transport::Udp => {
                let socket = bind(address, udp::bind)?;
                let bound = socket.local_addr()?;
                tokio::spawn(udp::run(socket, Arc::clone(&served), stop.clone()));
                bound
            }
            Transport::Sctp => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "SCTP is not served in userspace; nftables, iptables and IPVS carry it",
                ));
            }
        };
        if bound != address {
            self.redirects.set(transport, address, bound);
        }
        Ok(Running { served, _stop_on_drop: stop.drop_guard(), bound })
    }
}

#[async_trait]
impl ServiceProxy for UserspaceProxy {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        let wanted = self.wanted(table);
        let mut running = self.running();
        running.retain(|(transport, address), running| {
            let stays = wanted.contains_key(&(*transport, *address));
            if !stays && running.bound != *address {
                self.redirects.remove(*transport, *address);
            }
            stays
        });
        let mut errors = Vec::new();
        for (key, rule) in wanted {
            if let Some(running) = running.get(&key) {
                let mut state = running.served.state();
                if state.rule != rule {
                    state.rule = rule;
                }
                continue;
            }
            let service = rule.service.to_string();
            match self.listen(key, rule) {
                Ok(started) => {
                    running.insert(key, started);
                }
                Err(source) => {
                    errors.push(RuleError { service, address: key.1, transport: key.0, source });
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(SyncError(errors)) }
    }
}

impl Drop for UserspaceProxy {
    fn drop(&mut self) {
        for ((transport, address), running) in
            self.running.get_mut().unwrap_or_else(PoisonError::into_inner).drain()
        {
            if running.bound != address {
                self.redirects.remove(transport, address);
            }
        }
    }
}

/// A connection to an endpoint, if one of them takes it.
async fn connect(served: &Served, client: IpAddr) -> Option<TcpStream> {
    let mut tried = Vec::new();
    while let Some((endpoint, target)) = served.pick(Transport::Tcp, client, &tried) {
        match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => return Some(stream),
            // Refused or silent: the endpoint is about to leave the table. The next one may do.
            Ok(Err(_)) | Err(_) => tried.push(endpoint),
        }
    }
    None
}

/// A UDP socket that talks to an endpoint only.
async fn connect_udp(served: &Served, client: IpAddr) -> Option<(SocketAddr, UdpSocket)> {
    let (endpoint, target) = served.pick(Transport::Udp, client, &[])?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    Some((endpoint, socket))
}
