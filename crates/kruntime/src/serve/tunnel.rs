//! Bytes in the binary messages of a WebSocket: how port forwarding's SPDY passes where only WebSockets do (KEP-4006).

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::Message;

use super::{channel::normal_closure, upgrade::Socket};

const READ_BYTES: usize = 32 * 1024;

/// The bytes of a WebSocket, and what carries them: the future ends with the connection.
pub(super) fn tunnel(socket: Socket) -> (DuplexStream, impl Future<Output = ()> + Send) {
    let (near, far) = tokio::io::duplex(2 * READ_BYTES);
    let (mut sink, mut incoming) = socket.split();
    let (mut from, mut to) = tokio::io::split(far);
    let carry = async move {
        let inward = async {
            while let Some(Ok(message)) = incoming.next().await {
                match message {
                    Message::Binary(bytes) if to.write_all(&bytes).await.is_ok() => {}
                    Message::Ping(_) | Message::Pong(_) => {}
                    // What isn't bytes, or comes after the end, ends the connection.
                    _ => break,
                }
            }
            let _ = to.shutdown().await;
        };
        let outward = async {
            let mut chunk = vec![0; READ_BYTES];
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                let message = Message::Binary(Bytes::copy_from_slice(&chunk[..length]));
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(normal_closure()).await;
            let _ = sink.flush().await;
        };
        tokio::join!(inward, outward);
    };
    (near, carry)
}
