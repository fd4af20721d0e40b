//! From bytes to frames.

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    dictionary,
    frame::{Frame, Headers, VERSION},
};

/// The longest control frame that is read, in bytes.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// The longest block of headers, in bytes when it is not compressed.
pub const HEADER_BYTES_MAX: usize = 48 * 1024;
/// The names that one block of headers may have.
pub const HEADERS_MAX: usize = 100;
/// How many settings one frame may have.
const SETTINGS_MAX: usize = 64;
const HEAD_BYTES: usize = 8;

/// What makes a connection unusable. After it nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A control frame of another version.
    #[error("version {0} of SPDY is not spoken")]
    Version(u16),
    /// A control frame that there is none of in version 3.
    #[error("there is no control frame {0}")]
    Kind(u16),
    /// A control frame that is longer than [`CONTROL_BYTES_MAX`].
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    /// A control frame whose length doesn't fit what it is.
    #[error("a control frame has the wrong length")]
    Length,
    /// A stream, or a ping, has the number 0.
    #[error("a frame has the number 0")]
    Zero,
    /// Headers that can't be decompressed.
    #[error("headers can't be decompressed")]
    Compression,
    /// Headers that are not well-formed: cut off, twice the same, or not in lower case.
    #[error("headers are not well-formed")]
    Headers,
    /// Headers beyond [`HEADER_BYTES_MAX`] or [`HEADERS_MAX`].
    #[error("there are too many headers")]
    TooManyHeaders,
}

/// Reads frames. It keeps the state that the compression of headers needs, so a connection has one of its own.
///
/// ```
/// use bytes::BytesMut;
/// use kruntime::spdy::{FrameDecoder, frame::Frame};
///
/// let mut bytes = BytesMut::from(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1, 0x80][..]);
/// let mut decoder = FrameDecoder::default();
/// assert_eq!(decoder.decode(&mut bytes), Ok(Some(Frame::Ping(1))));
/// assert_eq!(decoder.decode(&mut bytes), Ok(None)); // one byte of the next frame
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    headers: Option<Decompress>,
    /// The frame of data that is being read: its stream, whether it is the last, and how much is still to come.
    data: Option<(u32, bool, usize)>,
}

impl FrameDecoder {
    /// Takes the next frame out of the buffer; `None` when more bytes are needed. Data come as they are there, without waiting
    /// for the whole frame.
    ///
    /// # Errors
    /// When the connection can't go on.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(data) = self.data.take() {
            return Ok(self.piece(data, buffer));
        }
        let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if first & 0x8000_0000 == 0 {
            if first == 0 {
                return Err(FrameError::Zero);
            }
            buffer.advance(HEAD_BYTES);
            return Ok(self.piece((first, flags & 1 != 0, length), buffer));
        }
        let (version, kind) = (head_version(first), (first & 0xffff) as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        buffer.advance(HEAD_BYTES);
        let payload = buffer.split_to(length).freeze();
        self.control(kind, flags, payload).map(Some)
    }

    /// As much of a frame of data as there is.
    fn piece(&mut self, (stream, fin, left): (u32, bool, usize), buffer: &mut BytesMut) -> Option<Frame> {
        if left > 0 && buffer.is_empty() {
            self.data = Some((stream, fin, left));
            return None;
        }
        let data = buffer.split_to(left.min(buffer.len())).freeze();
        let left = left - data.len();
        if left > 0 {
            self.data = Some((stream, fin, left));
        }
        Some(Frame::Data { stream, fin: fin && left == 0, data })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: Bytes) -> Result<Frame, FrameError> {
        let mut payload = Payload(payload);
        let fin = flags & 1 != 0;
        let frame = match kind {
            1 => {
                let (stream, associated) = (payload.number()?, payload.word()? & 0x7fff_ffff);
                let priority = (payload.short()? >> 13) as u8;
                let headers = self.block(&payload.0)?;
                return Ok(Frame::SynStream {
                    stream,
                    associated,
                    priority,
                    fin,
                    unidirectional: flags & 2 != 0,
                    headers,
                });
            }
            2 => {
                return Ok(Frame::SynReply {
                    stream: payload.number()?,
                    fin,
                    headers: self.block(&payload.0)?,
                });
            }
            8 => {
                return Ok(Frame::Headers {
                    stream: payload.number()?,
                    fin,
                    headers: self.block(&payload.0)?,
                });
            }
            3 => Frame::Reset { stream: payload.number()?, status: payload.word()? },
            4 => payload.settings()?,
            6 => match payload.word()? {
                0 => return Err(FrameError::Zero),
                number => Frame::Ping(number),
            },
            7 => Frame::GoAway { last: payload.word()? & 0x7fff_ffff, status: payload.word()? },
            9 => Frame::WindowUpdate {
                stream: payload.word()? & 0x7fff_ffff,
                delta: payload.word()? & 0x7fff_ffff,
            },
            other => return Err(FrameError::Kind(other)),
        };
        if payload.0.is_empty() { Ok(frame) } else { Err(FrameError::Length) }
    }

    /// A block of headers: compressed as one stream over all blocks of the connection, which starts with zlib's header.
    fn block(&mut self, mut block: &[u8]) -> Result<Headers, FrameError> {
        let decompress = match &mut self.headers {
            Some(decompress) => decompress,
            none => none.insert(start(&mut block)?),
        };
        let mut out = Vec::new();
        let before = decompress.total_in();
        loop {
            let rest = block.get(taken(decompress, before)..).unwrap_or_default();
            out.reserve(4 * 1024);
            match decompress.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                // The stream has no end as long as the connection lives.
                Ok(Status::StreamEnd) | Err(_) => return Err(FrameError::Compression),
            }
            if out.len() > HEADER_BYTES_MAX {
                return Err(FrameError::TooManyHeaders);
            }
            // With room left in the output, there is no more to come of this input.
            if out.len() < out.capacity() {
                break;
            }
        }
        if taken(decompress, before) != block.len() {
            return Err(FrameError::Compression);
        }
        parse(Payload(out.into()))
    }
}

fn head_version(first: u32) -> u16 {
    ((first >> 16) & 0x7fff) as u16
}

fn taken(decompress: &Decompress, before: u64) -> usize {
    usize::try_from(decompress.total_in() - before).unwrap_or(usize::MAX)
}

/// Reads zlib's header (RFC 1950) and, when it names the dictionary, makes the dictionary what the decompressor has seen last:
/// by giving it to it as a block that is not compressed (RFC 1951, section 3.2.4).
fn start(block: &mut &[u8]) -> Result<Decompress, FrameError> {
    let [method, flags, rest @ ..] = *block else { return Err(FrameError::Compression) };
    let check = u16::from_be_bytes([*method, *flags]);
    if method & 0x0f != 8 || check % 31 != 0 {
        return Err(FrameError::Compression);
    }
    let mut decompress = Decompress::new(false);
    *block = rest;
    if flags & 0x20 != 0 {
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(FrameError::Compression)?;
        if u32::from_be_bytes(*id) != dictionary::ID {
            return Err(FrameError::Compression);
        }
        *block = rest;
        let dictionary = dictionary::bytes();
        let length = u16::try_from(dictionary.len()).unwrap_or_default();
        let mut stored = vec![0];
        stored.extend(length.to_le_bytes());
        stored.extend((!length).to_le_bytes());
        stored.extend(&dictionary);
        let mut out = Vec::with_capacity(2 * dictionary.len());
        let status = decompress.decompress_vec(&stored, &mut out, FlushDecompress::Sync);
        if status.is_err() || out != dictionary {
            return Err(FrameError::Compression);
        }
    }
    Ok(decompress)
}

fn parse(mut block: Payload) -> Result<Headers, FrameError> {
    let count = block.size().map_err(|_| FrameError::Headers)?;
    if count > HEADERS_MAX {
        return Err(FrameError::TooManyHeaders);
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let (name, value) = (block.text()?, block.text()?);
        let upper = name.bytes().any(|byte| byte.is_ascii_uppercase());
        if upper || name.is_empty() || headers.0.iter().any(|(known, _)| *known == name) {
            return Err(FrameError::Headers);
        }
        headers.0.push((name, value.split('\0').map(str::to_owned).collect()));
    }
    Ok(headers)
}

/// What is left of a control frame.
struct Payload(Bytes);

impl Payload {
    fn word(&mut self) -> Result<u32, FrameError> {
        self.0.try_get_u32().map_err(|_| FrameError::Length)
    }

    fn short(&mut self) -> Result<u16, FrameError> {
        self.0.try_get_u16().map_err(|_| FrameError::Length)
    }

    /// The number of a stream.
    fn number(&mut self) -> Result<u32, FrameError> {
        match self.word()? & 0x7fff_ffff {
            0 => Err(FrameError::Zero),
            number => Ok(number),
        }
    }

    fn size(&mut self) -> Result<usize, FrameError> {
        usize::try_from(self.word()?).map_err(|_| FrameError::Length)
    }

    fn settings(&mut self) -> Result<Frame, FrameError> {
        let count = self.size()?;
        if count > SETTINGS_MAX {
            return Err(FrameError::Length);
        }
        let settings: Result<_, FrameError> =
            (0..count).map(|_| Ok((self.word()? & 0x00ff_ffff, self.word()?))).collect();
        Ok(Frame::Settings(settings?))
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let length = self.size().map_err(|_| FrameError::Headers)?;
        if length > self.0.len() {
            return Err(FrameError::Headers);
        }
        let bytes = self.0.split_to(length);
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| FrameError::Headers)
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;
    use crate::spdy::FrameEncoder;

    /// The frames of section 2.6 of the draft, as bytes.
    #[test]
    fn frames_are_laid_out_as_in_the_draft() {
        let data =
            |stream, fin, data: &'static [u8]| Frame::Data { stream, fin, data: Bytes::from_static(data) };
        for (frame, bytes) in [
            (Frame::Reset { stream: 5, status: 3 }, &b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x05\0\0\0\x03"[..]),
            (Frame::Settings(vec![(7, 65536)]), b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\0\0\0\x07\0\x01\0\0"),
            (Frame::Ping(0x0102_0304), b"\x80\x03\0\x06\0\0\0\x04\x01\x02\x03\x04"),
            (Frame::GoAway { last: 9, status: 1 }, b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x09\0\0\0\x01"),
            (
                Frame::WindowUpdate { stream: 1, delta: 300 },
                b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\x01\x2c",
            ),
            (data(3, true, b"bytes"), b"\0\0\0\x03\x01\0\0\x05bytes"),
            (data(3, false, b""), b"\0\0\0\x03\0\0\0\0"),
        ] {
            let mut out = BytesMut::new();
            FrameEncoder::default().encode(&frame, &mut out);
            assert_eq!(out, bytes, "{frame:?}");
            assert_eq!(FrameDecoder::default().decode(&mut out), Ok(Some(frame)));
            assert!(out.is_empty());
        }
    }

    /// Whatever pieces a connection brings, the frames are the same; later headers refer to earlier ones.
    #[test]
    fn headers_are_one_compressed_stream() {
        let open = |stream, kind| Frame::SynStream {
            stream,
            associated: 0,
            priority: 3,
            fin: stream == 5,
            unidirectional: false,
            headers: [("streamtype", kind), ("port", "8080"), ("requestid", "0")].into(),
        };
        let many: Vec<_> =
            (0..90).map(|n| (format!("name-{n}"), vec!["v".repeat(300), "w".into()])).collect();
        let frames = [
            open(1, "error"),
            open(3, "data"),
            Frame::SynReply { stream: 1, fin: false, headers: Headers::default() },
            Frame::Headers { stream: 3, fin: true, headers: Headers(many) },
            open(5, "data"),
        ];
        let mut encoder = FrameEncoder::default();
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| encoder.encode(frame, &mut bytes));
        for size in [1, 7, bytes.len()] {
            let (mut decoder, mut buffer, mut read) = (FrameDecoder::default(), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, frames, "in pieces of {size}");
        }
    }

    #[test]
    fn long_data_come_as_they_arrive() {
        let mut decoder = FrameDecoder::default();
        let mut buffer = BytesMut::from(&b"\0\0\0\x03\x01\0\0\x05by"[..]);
        let piece = |fin, data: &'static [u8]| {
            Ok(Some(Frame::Data { stream: 3, fin, data: Bytes::from_static(data) }))
        };
        assert_eq!(decoder.decode(&mut buffer), piece(false, b"by"));
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        buffer.extend_from_slice(b"tes\0\0");
        assert_eq!(decoder.decode(&mut buffer), piece(true, b"tes"));
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
    }

    /// A SYN_REPLY with this block of headers, compressed without a dictionary.
    fn reply(block: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 0, 0, 1, 0x78, 0x01];
        let mut compress = Compress::new(Compression::best(), false);
        let mut out = Vec::with_capacity(block.len() + 1024);
        compress.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
        payload.extend(out);
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0x80, 3, 0, 2, 0][..], &length[1..], &payload].concat()
    }

    fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
        let mut out = word(pairs.len()).to_vec();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            out.extend(word(text.len()));
            out.extend(text.bytes());
        }
        out
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let long = "x".repeat(HEADER_BYTES_MAX);
        let names: Vec<String> = (0..=HEADERS_MAX).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        for (bytes, error) in [
            (b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01".to_vec(), FrameError::Version(2)),
            (b"\x80\x03\0\x05\0\0\0\0".to_vec(), FrameError::Kind(5)),
            (b"\x80\x03\0\x06\0\x01\0\x01".to_vec(), FrameError::TooLong(65537)),
            (b"\x80\x03\0\x06\0\0\0\x03\0\0\x01".to_vec(), FrameError::Length),
            (b"\x80\x03\0\x06\0\0\0\x05\0\0\0\x01\0".to_vec(), FrameError::Length),
            (b"\x80\x03\0\x06\0\0\0\x04\0\0\0\0".to_vec(), FrameError::Zero),
            (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x01".to_vec(), FrameError::Zero),
            (b"\x80\x03\0\x04\0\0\0\x04\xff\xff\xff\xff".to_vec(), FrameError::Length),
            (b"\0\0\0\0\0\0\0\0".to_vec(), FrameError::Zero),
            // Another dictionary than that of the draft.
            (b"\x80\x03\0\x02\0\0\0\x0a\0\0\0\x01\x78\xbb\0\0\0\0".to_vec(), FrameError::Compression),
            (b"\x80\x03\0\x02\0\0\0\x06\0\0\0\x01\x79\xbb".to_vec(), FrameError::Compression),
            // A block type that there is none of.
            (b"\x80\x03\0\x02\0\0\0\x07\0\0\0\x01\x78\x01\x07".to_vec(), FrameError::Compression),
            (reply(&block(&[("a", "1"), ("a", "2")])), FrameError::Headers),
            (reply(&block(&[("Upper", "1")])), FrameError::Headers),
            (reply(&block(&[("", "1")])), FrameError::Headers),
            (reply(b"\0\0\0\x01\0\0\0\x09a"), FrameError::Headers),
            (reply(&block(&[("a", &long)])), FrameError::TooManyHeaders),
            (reply(&block(&many)), FrameError::TooManyHeaders),
        ] {
            let mut buffer = BytesMut::from(&bytes[..]);
            assert_eq!(FrameDecoder::default().decode(&mut buffer), Err(error), "{bytes:?}");
        }
        let mut buffer = BytesMut::from(&reply(&block(&[("a", "1\x002")]))[..]);
        let headers = Headers(vec![("a".into(), vec!["1".into(), "2".into()])]);
        let expected = Frame::SynReply { stream: 1, fin: false, headers };
        assert_eq!(FrameDecoder::default().decode(&mut buffer), Ok(Some(expected)));
    }
}
