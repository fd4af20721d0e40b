//! Carrying questions and answers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Answer, Zone, answer};
use crate::redirect::{Redirects, Transport, bind};

/// How many questions wait for other servers at the same time; more are dropped, and their clients ask again.
pub const FORWARDS_MAX: usize = 256;
/// How long another server may take.
const FORWARD_WAIT_MAX: Duration = Duration::from_secs(2);
/// How many TCP connections there are at the same time.
const CONNECTIONS_MAX: usize = 256;
/// How long a TCP connection may be silent.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// The largest answer over UDP to a client that doesn't say what it takes.
const PLAIN_BYTES_MAX: u16 = 512;
const DATAGRAM_BYTES_MAX: usize = 65_535;

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
    others: Vec<SocketAddr>,
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
        let shared = Arc::new(Shared {
            domain: domain.trim_matches('.').to_lowercase(),
            zone,
            others,
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
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is about an answer that was sent before.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        let limit =
            question.edns.as_ref().map_or(PLAIN_BYTES_MAX, |edns| edns.max_payload().max(PLAIN_BYTES_MAX));
        match answer(&question, &shared.domain, &*shared.zone) {
            Answer::Final(reply) => send(&socket, client, &reply, limit).await,
            // What must be asked elsewhere does not hold up the others.
            other => {
                let Ok(permit) = Arc::clone(&shared.forwards).try_acquire_owned() else { continue };
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                let forward = async move {
                    let reply = shared.finish(&question, other).await;
                    send(&socket, client, &reply, limit).await;
                    drop(permit);
                };
                tokio::spawn(stop.clone().run_until_cancelled_owned(forward));
            }
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, reply: &Message, limit: u16) {
    let Ok(mut bytes) = reply.to_vec() else { return };
    if bytes.len() > usize::from(limit) {
        // The client asks again over TCP.
        let Ok(short) = reply.truncate().to_vec() else { return };
        bytes = short;
    }
    let _ = socket.send_to(&bytes, client).await;
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
        let bytes = tokio::time::timeout(IDLE_MAX, read).await??;
        let question = Message::from_vec(&bytes).map_err(io::Error::other)?;
        let reply = match answer(&question, &shared.domain, &*shared.zone) {
            Answer::Final(reply) => *reply,
            other => shared.finish(&question, other).await,
        };
        let bytes = reply.to_vec().map_err(io::Error::other)?;
        stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&bytes).await?;
    }
}

impl Shared {
    /// What other servers have to say.
    async fn finish(&self, question: &Message, so_far: Answer) -> Message {
        match so_far {
            Answer::Final(reply) => *reply,
            Answer::Outside => match self.ask_others(question).await {
                Some(reply) => reply,
                None => {
                    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
                    reply.queries = question.queries.clone();
                    let refused = self.others.is_empty();
                    reply.metadata.response_code =
                        if refused { ResponseCode::Refused } else { ResponseCode::ServFail };
                    reply
                }
            },
            Answer::Alias(mut reply, target) => {
                let wanted = question.queries.first().map_or(RecordType::A, Query::query_type);
                if let Some(rest) = self.ask_others(&about(target, wanted)).await {
                    reply.add_answers(rest.answers);
                }
                *reply
            }
        }
    }

    async fn ask_others(&self, question: &Message) -> Option<Message> {
        for server in &self.others {
            if let Ok(Ok(reply)) = tokio::time::timeout(FORWARD_WAIT_MAX, ask(*server, question)).await {
                return Some(reply);
            }
        }
        None
    }
}

fn about(name: Name, wanted: RecordType) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, wanted));
    question
}

/// Asks another server, over TCP when the answer is too long for UDP.
async fn ask(server: SocketAddr, question: &Message) -> io::Result<Message> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Ok(reply) = Message::from_vec(&buffer[..length]) else { continue };
        // A late answer to an earlier question, or somebody's guess.
        if reply.metadata.id != question.metadata.id || reply.queries != question.queries {
            continue;
        }
        if !reply.metadata.truncation {
            return Ok(reply);
        }
        break;
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    stream.write_all(&bytes).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Message::from_vec(&bytes).map_err(io::Error::other)
}
