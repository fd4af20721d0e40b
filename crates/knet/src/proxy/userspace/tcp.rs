//! TCP: accept, connect, copy both ways.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{Served, connect};

/// How many connections wait to be accepted.
const BACKLOG: u32 = 1024;
const BUFFER_BYTES: usize = 32 * 1024;

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until `stop`; connections go on until `end`.
pub(super) async fn accept(
    listener: TcpListener,
    served: Arc<Served>,
    limit: Arc<Semaphore>,
    stop: CancellationToken,
    end: CancellationToken,
) {
    loop {
        let accepted = async {
            let permit = Arc::clone(&limit).acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => return Some((stream, client, permit)),
                    // The client has gone already, or there are no descriptors left: others may end.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            }
        };
        let (stream, client, permit) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => return,
            },
        };
        let (served, end) = (Arc::clone(&served), end.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = carry(stream, client, &served, permit) => {}
            }
        });
    }
}

async fn carry(mut client: TcpStream, address: SocketAddr, served: &Served, _permit: OwnedSemaphorePermit) {
    let Some(mut endpoint) = connect(served, address.ip()).await else {
        // As a packet filter would: the client sees that the connection is refused, not that it ended well.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = endpoint.set_nodelay(true);
    // Each direction ends by itself: half of a connection may go on alone.
    if copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER_BYTES, BUFFER_BYTES).await.is_err() {
        let _ = client.set_zero_linger();
        let _ = endpoint.set_zero_linger();
    }
}
