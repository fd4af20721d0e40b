//! From frames to bytes.

use bytes::{BufMut as _, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::{
    dictionary,
    frame::{FRAME_BYTES_MAX, Frame, Headers, VERSION},
};

/// Writes frames. It keeps the state that the compression of headers needs, so a connection has one of its own.
///
/// ```
/// use bytes::BytesMut;
/// use kruntime::spdy::{FrameDecoder, FrameEncoder, frame::Frame};
///
/// let frame = Frame::SynReply { stream: 1, fin: false, headers: [("a", "b")].into() };
/// let mut bytes = BytesMut::new();
/// FrameEncoder::default().encode(&frame, &mut bytes);
/// assert_eq!(FrameDecoder::default().decode(&mut bytes), Ok(Some(frame)));
/// ```
#[derive(Debug, Default)]
pub struct FrameEncoder {
    headers: Option<Compress>,
}

impl FrameEncoder {
    /// Appends a frame. Data that are longer than [`FRAME_BYTES_MAX`] become several frames.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data { stream, fin, data } => {
                let mut rest = &data[..];
                loop {
                    let (piece, left) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
                    out.put_u32(*stream);
                    put_length(out, u8::from(*fin && left.is_empty()), piece.len());
                    out.put_slice(piece);
                    rest = left;
                    if rest.is_empty() {
                        return;
                    }
                }
            }
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                let mut payload = words(&[*stream, *associated]);
                payload.extend((u16::from(*priority & 7) << 13).to_be_bytes());
                self.block(headers, &mut payload);
                put_control(out, 1, u8::from(*fin) | u8::from(*unidirectional) << 1, &payload);
            }
            Frame::SynReply { stream, fin, headers } => {
                let mut payload = words(&[*stream]);
                self.block(headers, &mut payload);
                put_control(out, 2, u8::from(*fin), &payload);
            }
            Frame::Headers { stream, fin, headers } => {
                let mut payload = words(&[*stream]);
                self.block(headers, &mut payload);
                put_control(out, 8, u8::from(*fin), &payload);
            }
            Frame::Reset { stream, status } => put_control(out, 3, 0, &words(&[*stream, *status])),
            Frame::Settings(settings) => {
                let mut payload = words(&[u32::try_from(settings.len()).unwrap_or(u32::MAX)]);
                for (number, value) in settings {
                    payload.extend(words(&[number & 0x00ff_ffff, *value]));
                }
                put_control(out, 4, 0, &payload);
            }
            Frame::Ping(number) => put_control(out, 6, 0, &words(&[*number])),
            Frame::GoAway { last, status } => put_control(out, 7, 0, &words(&[*last, *status])),
            Frame::WindowUpdate { stream, delta } => put_control(out, 9, 0, &words(&[*stream, *delta])),
        }
    }

    /// Appends a block of headers, compressed in one stream with all the blocks before it.
    fn block(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        let mut plain = words(&[u32::try_from(headers.0.len()).unwrap_or(u32::MAX)]);
        for (name, values) in &headers.0 {
            for text in [name, &values.join("\0")] {
                plain.extend(words(&[u32::try_from(text.len()).unwrap_or(u32::MAX)]));
                plain.extend(text.bytes());
            }
        }
        let compress = match &mut self.headers {
            Some(compress) => compress,
            none => {
                // Method 8 with a window of 32 KiB, and the flag that a dictionary follows.
                out.extend([0x78, 0xbb]);
                out.extend(dictionary::ID.to_be_bytes());
                let compress = none.insert(Compress::new(Compression::fast(), false));
                // Compressing the dictionary first, and forgetting the outcome, makes it what the compressor refers to.
                flush(compress, &dictionary::bytes(), &mut Vec::new());
                compress
            }
        };
        flush(compress, &plain, out);
    }
}

/// Compresses all of `input` up to a boundary of bytes.
fn flush(compress: &mut Compress, input: &[u8], out: &mut Vec<u8>) {
    let before = compress.total_in();
    loop {
        out.reserve(1024);
        let used = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
        let rest = input.get(used..).unwrap_or_default();
        let done = compress.compress_vec(rest, out, FlushCompress::Sync);
        // With room left in the output, nothing is held back any more.
        if done.is_err() || out.len() < out.capacity() {
            return;
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u8(flags);
    out.put_uint(length as u64 & FRAME_BYTES_MAX as u64, 3);
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, payload: &[u8]) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(out, flags, payload.len());
    out.put_slice(payload);
}
