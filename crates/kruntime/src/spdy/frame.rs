//! The frames of SPDY/3.1.

use bytes::Bytes;

/// The version of the protocol in control frames.
pub const VERSION: u16 = 3;
/// The longest frame that the 24 bits for the length can say.
pub const FRAME_BYTES_MAX: usize = (1 << 24) - 1;

/// Why a stream is reset (section 2.6.3 of the draft).
pub mod reset {
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// There is no such stream.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream was refused before anything was done.
    pub const REFUSED_STREAM: u32 = 3;
    /// The creator doesn't need the stream any more.
    pub const CANCEL: u32 = 5;
    /// A frame for a stream that has been closed by the sender.
    pub const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// Why a connection ends (section 2.6.6).
pub mod away {
    /// It has done its work.
    pub const OK: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// Names and values of a stream; names in lower case, a name's values apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Vec<String>)>);

impl Headers {
    /// The first value of a name, asked for in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(known, _)| known == name)?;
        values.first().map(String::as_str)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).into())
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream's number: odd when the client opens it.
        stream: u32,
        /// The stream that it belongs to; 0 for none.
        associated: u32,
        /// 0 is the most urgent, 7 the least.
        priority: u8,
        /// Whether the sender will send nothing on it.
        fin: bool,
        /// Whether the receiver may send nothing on it.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream's number.
        stream: u32,
        /// Whether the sender will send nothing on it.
        fin: bool,
        /// More about the stream.
        headers: Headers,
    },
    /// Ends a stream at once.
    Reset {
        /// The stream's number.
        stream: u32,
        /// Why, see [`reset`].
        status: u32,
    },
    /// Says how the peer wants to be treated: the number and the value of each setting.
    Settings(Vec<(u32, u32)>),
    /// Asks whether the other side is there, or answers with the same number.
    Ping(u32),
    /// No more streams are taken.
    GoAway {
        /// The last stream that was taken.
        last: u32,
        /// Why, see [`away`].
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// The stream's number.
        stream: u32,
        /// Whether the sender will send nothing more on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Allows the peer to send more bytes.
    WindowUpdate {
        /// The stream's number, or 0 for the whole connection.
        stream: u32,
        /// How many bytes more.
        delta: u32,
    },
    /// Bytes of a stream. A decoder gives a long frame in pieces.
    Data {
        /// The stream's number.
        stream: u32,
        /// Whether these are the sender's last.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}
