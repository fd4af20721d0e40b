//! Several streams in one WebSocket, told apart by the first byte of each message: the protocols `*.channel.k8s.io`.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, stream::SplitSink};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::{
    Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::upgrade::Socket;

/// In version 5 only: the byte that follows names the stream that is closed.
pub(super) const CLOSE: u8 = 255;

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// The channel is a digit and the rest base64, for clients that can't send bytes.
    pub(super) base64: bool,
    /// Whether the error stream carries a Status in JSON; before version 4 it carried words.
    pub(super) status: bool,
    /// Whether streams can be closed one by one.
    pub(super) closes: bool,
}

impl Form {
    pub(super) fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64."),
            status: protocol.starts_with("v4.") || protocol.starts_with("v5."),
            closes: protocol.starts_with("v5."),
        }
    }

    pub(super) fn write(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let text = format!("{}{}", char::from(b'0'.wrapping_add(channel)), STANDARD.encode(bytes));
            return Message::Text(Utf8Bytes::from(text));
        }
        let mut out = BytesMut::with_capacity(bytes.len() + 1);
        out.put_u8(channel);
        out.put_slice(bytes);
        Message::Binary(out.freeze())
    }

    /// The channel and the bytes of a message; `None` for what carries none.
    pub(super) fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => return None,
        };
        let (channel, data) = bytes.split_first()?;
        if !self.base64 {
            return Some((*channel, bytes.slice(1..)));
        }
        let channel = channel.checked_sub(b'0')?;
        Some((channel, STANDARD.decode(data).ok()?.into()))
    }
}

/// The way out of a WebSocket, shared by its streams.
#[derive(Clone)]
pub(super) struct Sink {
    form: Form,
    socket: Arc<Mutex<SplitSink<Socket, Message>>>,
}

impl Sink {
    pub(super) fn new(form: Form, socket: SplitSink<Socket, Message>) -> Self {
        Self { form, socket: Arc::new(Mutex::new(socket)) }
    }

    /// Whether the bytes could be sent.
    pub(super) async fn write(&self, channel: u8, bytes: &[u8]) -> bool {
        self.socket.lock().await.send(self.form.write(channel, bytes)).await.is_ok()
    }

    /// Clients take anything but a normal closure for a broken connection.
    pub(super) async fn close(&self) {
        let mut socket = self.socket.lock().await;
        let _ = socket.send(normal_closure()).await;
        let _ = socket.flush().await;
    }
}

/// The frame that ends a connection whose business is done (RFC 6455, code 1000).
pub(super) fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `wsstream` of the API machinery describes the forms.
    #[test]
    fn messages_are_written_and_read() {
        for (protocol, message) in [
            ("v5.channel.k8s.io", Message::Binary(Bytes::from_static(b"\x01out"))),
            ("", Message::Binary(Bytes::from_static(b"\x01out"))),
            ("base64.channel.k8s.io", Message::Text(Utf8Bytes::from_static("1b3V0"))),
            ("v4.base64.channel.k8s.io", Message::Text(Utf8Bytes::from_static("1b3V0"))),
        ] {
            let form = Form::of(protocol);
            assert_eq!(form.write(1, b"out"), message, "{protocol}");
            assert_eq!(form.read(message), Some((1, Bytes::from_static(b"out"))), "{protocol}");
        }
        assert_eq!(Form::of("v4.base64.channel.k8s.io").read(Message::Text("1&".into())), None);
        assert_eq!(Form::of("").read(Message::Binary(Bytes::new())), None);
    }
}
