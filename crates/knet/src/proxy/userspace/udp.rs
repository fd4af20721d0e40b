//! UDP: one socket to the endpoint for each client, so that answers find their way back.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use tokio::{net::UdpSocket, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{FLOW_IDLE_MAX, FLOWS_MAX, Served, connect_udp};

/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

struct Flow {
    endpoint: SocketAddr,
    socket: Arc<UdpSocket>,
    last: Arc<std::sync::Mutex<Instant>>,
    task: tokio::task::AbortHandle,
}

/// Carries datagrams until `stop`.
pub(super) async fn run(socket: UdpSocket, served: Arc<Served>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    // Ends all of them when it is dropped.
    let mut tasks: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Ok(client) = ended && flows.get(&client).is_some_and(|flow| flow.task.is_finished()) {
                    flows.remove(&client);
                }
            }
            received = socket.recv_from(&mut buffer) => {
                // An error is about a datagram that was sent before.
                let Ok((length, client)) = received else { continue };
                if let Some(flow) = flows.get(&client) && !served.has(flow.endpoint) {
                    flow.task.abort();
                    flows.remove(&client);
                }
                if !flows.contains_key(&client) {
                    if flows.len() >= FLOWS_MAX {
                        continue;
                    }
                    let Some((endpoint, upstream)) = connect_udp(&served, client.ip()).await else { continue };
                    let upstream = Arc::new(upstream);
                    let last = Arc::new(std::sync::Mutex::new(Instant::now()));
                    let answers = answer(Arc::clone(&socket), Arc::clone(&upstream), client, Arc::clone(&last));
                    let task = tasks.spawn(answers);
                    flows.insert(client, Flow { endpoint, socket: upstream, last, task });
                }
                if let Some(flow) = flows.get(&client) {
                    touch(&flow.last);
                    let _ = flow.socket.send(&buffer[..length]).await;
                }
            }
        }
    }
}

fn touch(last: &std::sync::Mutex<Instant>) {
    *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
}

/// Carries answers back until nothing came either way for a while. Gives the client, to forget its flow.
async fn answer(
    socket: Arc<UdpSocket>,
    upstream: Arc<UdpSocket>,
    client: SocketAddr,
    last: Arc<std::sync::Mutex<Instant>>,
) -> SocketAddr {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let ends = *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) + FLOW_IDLE_MAX;
        match tokio::time::timeout_at(ends, upstream.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                touch(&last);
                let _ = socket.send_to(&buffer[..length], client).await;
            }
            // Nobody listens there: the client may come again and get another endpoint.
            Ok(Err(_)) => return client,
            Err(_)
                if Instant::now()
                    >= *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) + FLOW_IDLE_MAX =>
            {
                return client;
            }
            Err(_) => {}
        }
    }
}
