//! Asking other servers about names that are not the cluster's.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::Instant,
};

use super::{
    Answer,
    cache::{Cache, Key},
    packet::{TCP_BYTES_MAX, UDP_BYTES_MAX, reply_to},
};

/// How long another server may take, over UDP and then, where that does not do, over TCP.
pub const FORWARD_WAIT_MAX: Duration = Duration::from_secs(2);

/// The other servers, and what they have said.
#[derive(Debug)]
pub(super) struct Others {
    servers: Vec<SocketAddr>,
    /// Who answered last: asked first, so that one that is down is not waited for each time.
    first: AtomicUsize,
    cache: Mutex<Cache>,
}

impl Others {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, first: AtomicUsize::new(0), cache: Mutex::default() }
    }

    pub(super) fn are_there(&self) -> bool {
        !self.servers.is_empty()
    }

    /// The answer to a question that the cluster can't answer alone.
    pub(super) async fn finish(&self, question: &Message, so_far: Answer) -> Message {
        let (mut reply, name) = match so_far {
            Answer::Final(reply) => return *reply,
            Answer::Outside => (reply_to(question), None),
            Answer::Alias(reply, target) => (*reply, Some(target)),
        };
        let Some(asked) = question.queries.first() else { return reply };
        let is_alias = name.is_some();
        let query = about(name.unwrap_or_else(|| asked.name().clone()), asked);
        let signed = question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        match self.ask(query, signed, question.metadata.checking_disabled).await {
            Some(found) => {
                // Of an alias the end of the way counts (RFC 6604).
                reply.metadata.response_code = found.metadata.response_code;
                reply.metadata.authentic_data = found.metadata.authentic_data && !is_alias;
                reply.add_answers(found.answers);
                reply.add_authorities(found.authorities);
                reply.add_additionals(found.additionals);
            }
            // Who has nobody to ask says the name at least.
            None if !self.are_there() && is_alias => {}
            None if !self.are_there() => reply.metadata.response_code = ResponseCode::Refused,
            None => reply.metadata.response_code = ResponseCode::ServFail,
        }
        reply
    }

    fn cached(&self, key: &Key) -> Option<Message> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(key, Instant::now())
    }

    async fn ask(&self, query: Query, signed: bool, unchecked: bool) -> Option<Message> {
        let key = Key::new(&query, signed, unchecked);
        if let Some(known) = self.cached(&key) {
            return Some(known);
        }
        let count = self.servers.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = None;
        for index in (0..count).map(|step| (first + step) % count.max(1)) {
            let server = *self.servers.get(index)?;
            let question = question(query.clone(), signed, unchecked);
            let asked = tokio::time::timeout(FORWARD_WAIT_MAX, ask(server, &question)).await;
            let Ok(Ok((reply, bytes))) = asked else { continue };
            match reply.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => {
                    self.first.store(index, Ordering::Relaxed);
                    let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                    cache.put(key, &reply, bytes, Instant::now());
                    return Some(reply);
                }
                // Another one may be better off.
                _ => failed = Some(reply),
            }
        }
        failed
    }
}

fn about(name: Name, asked: &Query) -> Query {
    let mut query = Query::query(name, asked.query_type());
    query.set_query_class(asked.query_class());
    query
}

/// A question of our own: numbers and extensions of the client stay here, so that nobody can guess from the one side what goes on at the
/// other.
fn question(query: Query, signed: bool, unchecked: bool) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.metadata.checking_disabled = unchecked;
    question.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(UDP_BYTES_MAX).unwrap_or(u16::MAX)).set_dnssec_ok(signed);
    question.set_edns(edns);
    question
}

/// Asks another server, over TCP when the answer is too long for UDP; gives the answer and its length.
async fn ask(server: SocketAddr, question: &Message) -> io::Result<(Message, usize)> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; TCP_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Ok(reply) = Message::from_vec(&buffer[..length]) else { continue };
        // A late answer to an earlier question, or somebody's guess.
        if reply.metadata.id != question.metadata.id || reply.queries != question.queries {
            continue;
        }
        if !reply.metadata.truncation {
            return Ok((reply, length));
        }
        break;
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    stream.write_all(&bytes).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let reply = Message::from_vec(&bytes).map_err(io::Error::other)?;
    if reply.metadata.id != question.metadata.id || reply.queries != question.queries {
        return Err(io::Error::other("an answer to another question"));
    }
    Ok((reply, bytes.len()))
}

/// Whether a type asks for a whole zone, which is not given away (RFC 5936).
pub(super) fn is_transfer(wanted: RecordType) -> bool {
    matches!(wanted, RecordType::AXFR | RecordType::IXFR)
}
