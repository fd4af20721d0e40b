//! Frames: what the log is made of. One frame is one write: a head of fixed size, and the records of one or more commits.
//!
//! The head proves itself and, through the checksum in it, the records; it names the frame before by that one's checksum. So
//! frames form one chain, in which none can be missing, and what an earlier life of the file left behind never fits.
//! Numbers are little-endian.

use bytes::{Buf, BufMut};

use crate::{Revision, checksum::crc32c, disk::files::BLOCK_BYTES};

/// What a frame begins with; the last byte is the version of the format.
const MAGIC: &[u8; 8] = b"kstorlg\x01";
/// The length of a head.
pub(crate) const HEAD_BYTES: usize = 104;
/// The records of one frame are never longer.
pub(crate) const FRAME_BYTES_MAX: usize = 512 * 1024 * 1024;
/// The store was closed after this frame, and nothing is missing behind it.
pub(crate) const CLOSED: u32 = 1;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the store.
    pub(crate) identity: u128,
    /// Grows whenever the store is opened and whenever the log goes on in another file.
    pub(crate) generation: u64,
    /// Counts the frames of the store, from 1, without gaps.
    pub(crate) seq: u64,
    /// The revision before the frame, and after it.
    pub(crate) first: Revision,
    pub(crate) last: Revision,
    /// No revision above it has been shown to anyone when this frame is the last one.
    pub(crate) reserved: Revision,
    /// When the frame was written, all frames up to this one were known to be durable.
    pub(crate) durable: u64,
    /// How many records there are, and how many bytes.
    pub(crate) records: u32,
    pub(crate) bytes: u32,
    /// The checksum of the records.
    pub(crate) sum: u32,
    /// The checksum of the frame before; 0 for the first.
    pub(crate) chain: u32,
    pub(crate) flags: u32,
}

impl Head {
    /// The head as it is written, and its checksum, which stands for the whole frame.
    pub(crate) fn encode(&self) -> ([u8; HEAD_BYTES], u32) {
        let mut bytes = [0; HEAD_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(MAGIC);
        rest.put_u128_le(self.identity);
        for number in [self.generation, self.seq, self.first.0, self.last.0, self.reserved.0, self.durable, 0]
        {
            rest.put_u64_le(number);
        }
        for number in [self.records, self.bytes, self.sum, self.chain, self.flags] {
            rest.put_u32_le(number);
        }
        let sum = crc32c(0, &bytes[..HEAD_BYTES - 4]);
        bytes[HEAD_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        (bytes, sum)
    }

    /// The head that stands at the beginning of `bytes`, and its checksum; none if there isn't a whole one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Head, u32)> {
        let bytes = bytes.get(..HEAD_BYTES)?;
        let (content, mut sum) = bytes.split_at(HEAD_BYTES - 4);
        let sum = sum.get_u32_le();
        if !content.starts_with(MAGIC) || crc32c(0, content) != sum {
            return None;
        }
        let mut rest = &content[MAGIC.len()..];
        let identity = rest.get_u128_le();
        let [generation, seq, first, last, reserved, durable, _] = std::array::from_fn(|_| rest.get_u64_le());
        let [records, bytes, records_sum, chain, flags] = std::array::from_fn(|_| rest.get_u32_le());
        let [first, last, reserved] = [first, last, reserved].map(Revision);
        let head = Head {
            identity,
            generation,
            seq,
            first,
            last,
            reserved,
            durable,
            records,
            bytes,
            sum: records_sum,
            chain,
            flags,
        };
        (head.bytes as usize <= FRAME_BYTES_MAX && seq > 0).then_some((head, sum))
    }

    /// How much of the file the frame takes.
    pub(crate) fn room(&self) -> u64 {
        room(self.bytes as usize) as u64
    }
}

/// How much of a file a frame of so many bytes of records takes.
pub(crate) fn room(records: usize) -> usize {
    (HEAD_BYTES + records).next_multiple_of(BLOCK_BYTES)
}

/// A frame in the making: the records so far, with room for the head before them.
pub(crate) struct Buffer {
    /// The frame begins at `start`, so that it is aligned in memory.
    bytes: Vec<u8>,
    start: usize,
    records: u32,
    /// How many bytes are covered by `sum`.
    summed: usize,
    sum: u32,
}

impl Buffer {
    pub(crate) fn new() -> Buffer {
        Buffer::with_capacity(16 * BLOCK_BYTES)
    }

    fn with_capacity(capacity: usize) -> Buffer {
        let mut bytes = Vec::with_capacity(capacity + BLOCK_BYTES);
        let start = padding(&bytes);
        bytes.resize(start + HEAD_BYTES, 0);
        Buffer { bytes, start, records: 0, summed: 0, sum: 0 }
    }

    /// The buffer for the next frame, emptied.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = padding(&self.bytes);
        self.bytes.resize(self.start + HEAD_BYTES, 0);
        (self.records, self.summed, self.sum) = (0, 0, 0);
    }

    /// How many bytes of records there are.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start - HEAD_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Where records are appended.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes of the records from `at` on, to be completed.
    pub(crate) fn from(&mut self, at: usize) -> &mut [u8] {
        &mut self.bytes[self.start + HEAD_BYTES + at..]
    }

    /// Takes back what was appended from `at` on and not kept.
    pub(crate) fn truncate(&mut self, at: usize) {
        self.bytes.truncate(self.start + HEAD_BYTES + at);
    }

    /// What was appended is a record, and stays.
    pub(crate) fn keep(&mut self) {
        self.records += 1;
        let from = self.start + HEAD_BYTES + self.summed;
        self.sum = crc32c(self.sum, &self.bytes[from..]);
        self.summed = self.len();
    }

    /// Completes the frame: `head` gets what the buffer knows, and is put in front. The checksum of the frame.
    pub(crate) fn finish(&mut self, head: Head) -> u32 {
        self.finish_with(head, self.records)
    }

    /// The same, with another number of records.
    pub(crate) fn finish_with(&mut self, mut head: Head, records: u32) -> u32 {
        (head.records, head.bytes, head.sum) = (records, self.len() as u32, self.sum);
        let (encoded, sum) = head.encode();
        self.bytes[self.start..self.start + HEAD_BYTES].copy_from_slice(&encoded);
        let room = room(self.len());
        let rest = self.start + room - self.bytes.len();
        self.bytes.extend_from_slice(&[0; BLOCK_BYTES][..rest]);
        // Growing may have moved it to where it isn't aligned.
        if !(self.bytes.as_ptr() as usize + self.start).is_multiple_of(BLOCK_BYTES) {
            let mut moved = Vec::with_capacity(room + 2 * BLOCK_BYTES);
            let start = padding(&moved);
            moved.resize(start, 0);
            moved.extend_from_slice(&self.bytes[self.start..]);
            (self.bytes, self.start) = (moved, start);
        }
        sum
    }

    /// The finished frame.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// How far the first aligned place is from where the bytes begin.
pub(crate) fn padding(bytes: &[u8]) -> usize {
    let address = bytes.as_ptr() as usize;
    address.next_multiple_of(BLOCK_BYTES) - address
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head {
        identity: 7 << 80 | 1,
        generation: 3,
        seq: 9,
        first: Revision(10),
        last: Revision(12),
        reserved: Revision(100),
        durable: 8,
        records: 2,
        bytes: 5,
        sum: 6,
        chain: 4,
        flags: CLOSED,
    };

    #[test]
    fn a_head_is_read_as_it_was_written_and_not_with_a_bit_changed() {
        let (bytes, sum) = HEAD.encode();
        assert_eq!(Head::decode(&bytes), Some((HEAD, sum)));
        for bit in 0..HEAD_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(Head::decode(&bytes[..HEAD_BYTES - 1]), None);
    }

    #[test]
    fn frames_are_aligned_however_they_grow() {
        let mut buffer = Buffer::new();
        for size in [1usize, 100, 4_000, 70_000, 3_000_000, 5] {
            let record = vec![b'r'; size];
            buffer.end().extend_from_slice(&record);
            buffer.keep();
            buffer.end().extend_from_slice(b"not kept");
            buffer.truncate(size);
            buffer.end().extend_from_slice(b"two");
            buffer.keep();
            let sum = buffer.finish(HEAD);
            let frame = buffer.frame();
            assert!((frame.as_ptr() as usize).is_multiple_of(BLOCK_BYTES));
            assert!(frame.len().is_multiple_of(BLOCK_BYTES));
            let (head, found) = Head::decode(frame).unwrap_or_else(|| panic!("a head"));
            assert_eq!((found, head.records, head.bytes as usize), (sum, 2, size + 3));
            let records = &frame[HEAD_BYTES..HEAD_BYTES + size + 3];
            assert_eq!(crc32c(0, records), head.sum);
            assert!(records.starts_with(&record) && records.ends_with(b"two"));
            buffer.clear();
        }
    }
}
