//! SPDY/3.1 as Kubernetes' clients speak it: several streams in one connection (draft-mbelshe-httpbis-spdy).
//!
//! Clients up to kubectl 1.29, and newer ones where WebSockets can't pass, upgrade a request to SPDY for exec, attach and port
//! forwarding; port forwarding speaks SPDY inside of a WebSocket too (KEP-4006). This is the server's side of it: [`frame`] has
//! the words of the protocol, [`FrameDecoder`] and [`FrameEncoder`] read and write them, [`accept`] runs a connection and hands
//! out its [`Stream`]s.
//!
//! Flow control is one-sided, as it is upstream: what streams have taken is credited to the peer by WINDOW_UPDATE, while
//! the peer's own windows are not waited for, because Go's clients (`moby/spdystream`) never open them. A stream that isn't
//! read holds up its connection, and with it the peer.

mod connection;
mod decode;
mod dictionary;
mod encode;
pub mod frame;

pub use connection::{Control, STREAMS_MAX, Stream, StreamReader, StreamWriter, accept};
pub use decode::{CONTROL_BYTES_MAX, FrameDecoder, FrameError, HEADER_BYTES_MAX, HEADERS_MAX};
pub use encode::FrameEncoder;
