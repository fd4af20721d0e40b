//! Carrying questions and answers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Zone,
    forward::Others,
    kept::Kept,
    packet::{Reaction, TCP_BYTES_MAX, encode, respond, udp_limit},
};
use crate::redirect::{Redirects, Transport, bind};

/// How many questions wait for other servers at the same time; more are dropped, and their clients ask again.
pub const FORWARDS_MAX: usize = 256;
/// How many TCP connections there are at the same time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a TCP connection may be silent, or not take an answer.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The cluster's DNS server. Dropping it ends it.
///
/// ```no_run
/// # async fn example(informers: &kreconcile::Informers) -> std::io::Result<()> {
/// use std::sync::Arc;
/// use knet::{Redirects, dns::{DnsServer, InformerZone, system_resolvers}};
/// let zone = Arc::new(InformerZone::new(informers));
/// let address = ([127, 3, 0, 10], 53).into();
/// let server = DnsServer::start(address, "cluster.local", zone, system_resolvers(), &Redirects::default()).await?;
/// println!("{}", server.address());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct DnsServer {
    asked: SocketAddr,
    address: SocketAddr,
    redirects: Redirects,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    domain: String,
    zone: Arc<dyn Zone>,
    others: Others,
    forwards: Arc<Semaphore>,
}

/// The name servers that the machine uses, from `/etc/resolv.conf`.
#[must_use]
pub fn system_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers
        .filter_map(|server| server.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

impl DnsServer {
    /// Starts to serve `domain` at `address`, UDP and TCP, and asks `others` about everything else. When the port needs a
    /// privilege that is lacking, another one is taken and `redirects` told.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn start(
        address: SocketAddr,
        domain: &str,
        zone: Arc<dyn Zone>,
        others: Vec<SocketAddr>,
        redirects: &Redirects,
    ) -> io::Result<Self> {
        let udp = bind(address, |address| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })?;
        let bound = udp.local_addr()?;
        // Over TCP the same port, so that one redirect of either kind leads to it.
        let tcp = TcpListener::bind(bound).await?;
        if bound != address {
            redirects.set(Transport::Udp, address, bound);
            redirects.set(Transport::Tcp, address, bound);
        }
        // The machine may use this very server: it would ask itself.
        let others = others.into_iter().filter(|other| *other != address && *other != bound).collect();
        let shared = Arc::new(Shared {
            domain: domain.trim_matches('.').to_lowercase(),
            zone,
            others: Others::new(others),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve_udp(
            udp,
            Arc::clone(&shared),
            stop.clone(),
        )));
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve_tcp(tcp, shared, stop.clone())));
        Ok(Self { asked: address, address: bound, redirects: redirects.clone(), _stop: stop.drop_guard() })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        if self.asked != self.address {
            self.redirects.remove(Transport::Udp, self.asked);
            self.redirects.remove(Transport::Tcp, self.asked);
        }
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; TCP_BYTES_MAX];
    let (mut kept, mut answer) = (Kept::default(), Vec::new());
    loop {
        // An error is about an answer that was sent before.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let question = &buffer[..length];
        kept.look(&*shared.zone);
        if kept.find(question, &mut answer) {
            let _ = socket.send_to(&answer, client).await;
            continue;
        }
        match respond(question, &shared.domain, &*shared.zone) {
            Reaction::Ignore => {}
            Reaction::Reply(reply, limit) => {
                let code = reply.metadata.response_code;
                if let Some(bytes) = encode(&shared.finished(*reply), limit) {
                    kept.put(question, code, &bytes);
                    let _ = socket.send_to(&bytes, client).await;
                }
            }
            // What must be asked elsewhere does not hold up the others.
            Reaction::Ask(question, so_far) => {
                let Ok(permit) = Arc::clone(&shared.forwards).try_acquire_owned() else { continue };
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                let forward = async move {
                    let reply = shared.others.finish(&question, so_far).await;
                    shared.send(&socket, client, reply, udp_limit(&question)).await;
                    drop(permit);
                };
                tokio::spawn(stop.clone().run_until_cancelled_owned(forward));
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let _ = converse(stream, &shared).await;
            drop(permit);
        }));
    }
}

/// Answers one question after the other; each message has its length before it.
async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        };
        let bytes = timeout(IDLE_MAX, read).await??;
        let reply = match respond(&bytes, &shared.domain, &*shared.zone) {
            Reaction::Ignore => return Ok(()),
            Reaction::Reply(reply, _) => *reply,
            Reaction::Ask(question, so_far) => shared.others.finish(&question, so_far).await,
        };
        let Some(bytes) = encode(&shared.finished(reply), TCP_BYTES_MAX) else { return Ok(()) };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        // Together, so that they are one packet.
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
}

impl Shared {
    /// The answer with what is true of all of them.
    fn finished(&self, mut reply: Message) -> Message {
        reply.metadata.recursion_available = self.others.are_there();
        reply
    }

    async fn send(&self, socket: &UdpSocket, client: SocketAddr, reply: Message, limit: usize) {
        if let Some(bytes) = encode(&self.finished(reply), limit) {
            let _ = socket.send_to(&bytes, client).await;
        }
    }
}
