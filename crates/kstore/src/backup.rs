//! Back-ups: one published state as a stream of bytes that carries its own proof.
//!
//! The stream is a magic number and then frames: length, checksum, kind, content. The checksum (CRC-32C) covers the place of
//! the frame in the stream too, so that a damaged, missing, repeated or misplaced frame is seen; an end mark shows that
//! nothing is missing. Numbers are little-endian. Entries come in blocks, each packed by LZ4 where that makes it shorter, and each
//! readable by itself.

#[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "only checkpoints are read by several threads"))]
pub(crate) mod blocks;

use std::{collections::HashSet, fmt, io, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};

use blocks::{Content, Frame, ReadFrame};

use crate::{
    Entries, Entry, LeaseId, Range, RestoreError, Revision, Snapshot, TableId,
    checksum::crc32c,
    lease::{LEASE_TTL_MAX, LEASES_MAX, LeaseTimes},
    table::TABLES_MAX,
    txn::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};

/// What a back-up begins with; the last byte is the version of the format.
const MAGIC: &[u8; 8] = b"kstorbk\x02";
/// The version before, which had no packed blocks, is read too.
const MAGIC_BEFORE: &[u8; 8] = b"kstorbk\x01";
pub(crate) const MAGIC_BYTES: usize = MAGIC.len();
/// Entries are put into one frame up to about so many bytes.
const FRAME_BYTES: usize = 256 * 1024;
/// No frame is longer: one entry of the largest kind fits.
const FRAME_BYTES_MAX: usize = FRAME_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX + 64;
pub(crate) const FRAME_HEAD_BYTES: usize = 9;

const HEAD: u8 = 1;
const LEASES: u8 = 2;
const TABLE: u8 = 3;
const ENTRIES: u8 = 4;
const END: u8 = 5;
const PACKED: u8 = 6;

/// A back-up as it is made: an iterator over chunks, to be written one after the other. It works lazily on a snapshot, and
/// holds nobody up.
///
/// ```
/// # use kstore::{MemoryStore, Store, TableSpec, Txn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let table = store.open_table(TableSpec::new("pods"))?;
/// store.commit(Txn::create(table, "a", "spec")).await?;
/// let bytes: Vec<u8> = store.backup().await?.flatten().collect();
///
/// let other = MemoryStore::new();
/// other.restore(bytes::Bytes::from(bytes).into()).await?;
/// let table = other.open_table(TableSpec::new("pods"))?;
/// assert_eq!(other.snapshot().get(table, b"a").map(|entry| entry.modified()), Some(kstore::Revision(1)));
/// # Ok(()) }
/// ```
pub struct Backup {
    snapshot: Snapshot,
    leases: Vec<LeaseTimes>,
    last_lease: u64,
    /// Tables whose entries are left out.
    skipped: Vec<TableId>,
    /// Frames made so far.
    frames: u64,
    entries: u64,
    state: Making,
}

enum Making {
    Head,
    Leases,
    Table(u32),
    Entries(u32, Box<Entries>),
    Done,
}

impl Backup {
    pub(crate) fn new(snapshot: Snapshot, leases: Vec<LeaseTimes>, last_lease: u64) -> Backup {
        let (skipped, state) = (Vec::new(), Making::Head);
        Backup { snapshot, leases, last_lease, skipped, frames: 0, entries: 0, state }
    }

    /// Leaves the entries of some tables out.
    #[cfg(feature = "disk")]
    pub(crate) fn without(mut self, tables: Vec<TableId>) -> Backup {
        self.skipped = tables;
        self
    }

    /// The revision of the state that is backed up.
    pub fn revision(&self) -> Revision {
        self.snapshot.revision()
    }

    fn frame(&mut self, kind: u8, content: &[u8]) -> Bytes {
        let magic = if self.frames == 0 { &MAGIC[..] } else { &[] };
        let mut frame = BytesMut::with_capacity(magic.len() + FRAME_HEAD_BYTES + content.len());
        frame.put_slice(magic);
        frame.put_u32_le(content.len() as u32);
        frame.put_u32_le(checksum(self.frames, kind, content));
        frame.put_u8(kind);
        frame.put_slice(content);
        self.frames += 1;
        frame.freeze()
    }

    fn head(&mut self) -> Bytes {
        let mut content = Vec::new();
        content.put_u64_le(self.snapshot.revision().0);
        content.put_u32_le(self.snapshot.tables().count() as u32);
        content.put_u64_le(self.last_lease);
        self.frame(HEAD, &content)
    }

    fn leases(&mut self) -> Bytes {
        let mut content = Vec::new();
        for (id, ttl, remaining) in &self.leases {
            content.put_u64_le(id.get());
            for time in [ttl, remaining] {
                content.put_u64_le(time.as_secs());
                content.put_u32_le(time.subsec_nanos());
            }
        }
        self.frame(LEASES, &content)
    }

    fn table(&mut self, index: u32) -> Option<Bytes> {
        let id = TableId(index);
        let name = self.snapshot.tables().nth(id.index())?.0.to_owned();
        let mut content = Vec::new();
        content.put_u64_le(self.snapshot.table_revision(id).0);
        let count = if self.skipped.contains(&id) { 0 } else { self.snapshot.len(id) };
        content.put_u64_le(count as u64);
        content.put_slice(name.as_bytes());
        Some(self.frame(TABLE, &content))
    }

    fn entries(&mut self, entries: &mut Entries) -> Option<Bytes> {
        let mut content = Vec::new();
        while content.len() < FRAME_BYTES
            && let Some(entry) = entries.next()
        {
            blocks::put(&mut content, &entry);
            self.entries += 1;
        }
        if content.is_empty() {
            return None;
        }
        Some(match blocks::packed(&content) {
            Some(packed) => self.frame(PACKED, &packed),
            None => self.frame(ENTRIES, &content),
        })
    }
}

impl Iterator for Backup {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            match std::mem::replace(&mut self.state, Making::Done) {
                Making::Head => {
                    self.state = Making::Leases;
                    return Some(self.head());
                }
                Making::Leases => {
                    self.state = Making::Table(0);
                    return Some(self.leases());
                }
                Making::Table(index) => {
                    let Some(frame) = self.table(index) else {
                        let count = self.entries.to_le_bytes();
                        return Some(self.frame(END, &count));
                    };
                    let skipped = self.skipped.contains(&TableId(index));
                    let range = if skipped { Range::new("", "") } else { Range::all() };
                    let entries = self.snapshot.range(TableId(index), range);
                    self.state = Making::Entries(index, Box::new(entries));
                    return Some(frame);
                }
                Making::Entries(index, mut entries) => match self.entries(&mut entries) {
                    Some(frame) => {
                        self.state = Making::Entries(index, entries);
                        return Some(frame);
                    }
                    None => self.state = Making::Table(index + 1),
                },
                Making::Done => return None,
            }
        }
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("revision", &self.revision().0).field("frames", &self.frames).finish()
    }
}

fn checksum(place: u64, kind: u8, content: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(0, &place.to_le_bytes()), &[kind]), content)
}

/// Where a back-up is read from: its bytes, in chunks of any size.
pub struct BackupReader(BoxStream<'static, io::Result<Bytes>>);

impl BackupReader {
    /// Reads from a stream: a file, a socket.
    pub fn new(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> BackupReader {
        BackupReader(stream.boxed())
    }

    /// Reads all of it, and checks it.
    pub(crate) async fn image(mut self) -> Result<Image, RestoreError> {
        let mut decoder = Decoder::default();
        while let Some(chunk) = self.0.next().await {
            decoder.push(&chunk.map_err(|error| RestoreError::Read(Arc::new(error)))?)?;
        }
        decoder.finish()
    }
}

impl From<Bytes> for BackupReader {
    fn from(bytes: Bytes) -> BackupReader {
        BackupReader::from(vec![bytes])
    }
}

impl From<Vec<Bytes>> for BackupReader {
    fn from(chunks: Vec<Bytes>) -> BackupReader {
        BackupReader::new(futures::stream::iter(chunks.into_iter().map(Ok)))
    }
}

impl From<Backup> for BackupReader {
    fn from(backup: Backup) -> BackupReader {
        BackupReader::new(futures::stream::iter(backup.map(Ok)))
    }
}

impl fmt::Debug for BackupReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupReader")
    }
}

/// What a back-up holds, checked.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) revision: Revision,
    pub(crate) leases: Vec<LeaseTimes>,
    pub(crate) last_lease: u64,
    pub(crate) tables: Vec<ImageTable>,
}

pub(crate) struct ImageTable {
    pub(crate) name: Arc<str>,
    /// The revision of its last change.
    pub(crate) last: Revision,
    /// In the order of their keys.
    pub(crate) entries: Vec<Arc<Entry>>,
}

#[derive(Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    begun: bool,
    /// Frames read so far.
    frames: u64,
    /// How many tables, and how many entries of the last table, are still to come.
    tables_left: u32,
    entries_left: u64,
    entries: u64,
    stage: Stage,
    image: Image,
    lease_ids: HashSet<LeaseId>,
    names: HashSet<Arc<str>>,
}

#[derive(Default, PartialEq)]
enum Stage {
    #[default]
    Head,
    Leases,
    Tables,
    Done,
}

impl Decoder {
    fn damaged(&self, reason: &'static str) -> RestoreError {
        RestoreError::Damaged { frame: self.frames, reason }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        self.buffer.extend_from_slice(chunk);
        if !self.begun {
            let seen = self.buffer.len().min(MAGIC_BYTES);
            if ![MAGIC, MAGIC_BEFORE].iter().any(|magic| self.buffer[..seen] == magic[..seen]) {
                return Err(RestoreError::NotABackup);
            }
            if seen < MAGIC_BYTES {
                return Ok(());
            }
            self.buffer.advance(MAGIC_BYTES);
            self.begun = true;
        }
        while self.buffer.len() >= FRAME_HEAD_BYTES {
            let mut head = [0; FRAME_HEAD_BYTES];
            head.copy_from_slice(&self.buffer[..FRAME_HEAD_BYTES]);
            let (length, sum, kind) = frame_head(head).ok_or(self.damaged("its length is impossible"))?;
            if self.buffer.len() < FRAME_HEAD_BYTES + length {
                break;
            }
            self.buffer.advance(FRAME_HEAD_BYTES);
            let content = self.buffer.split_to(length).freeze();
            self.add(Frame { place: self.frames, offset: 0, kind, sum, content }.read())?;
        }
        Ok(())
    }

    /// Whether these bytes are those that a back-up begins with; what follows comes by `add`.
    #[cfg(feature = "disk")]
    pub(crate) fn begin(&mut self, magic: [u8; MAGIC_BYTES]) -> Result<(), RestoreError> {
        self.push(&magic)
    }

    /// Takes the next frame in.
    pub(crate) fn add(&mut self, frame: ReadFrame) -> Result<(), RestoreError> {
        match frame.content {
            _ if frame.place != self.frames => return Err(self.damaged("it is not where it belongs")),
            Err(reason) => return Err(self.damaged(reason)),
            Ok(Content::Entries(entries)) => self.entries(entries)?,
            Ok(Content::Other(kind, content)) => self.frame(kind, content)?,
        }
        self.frames += 1;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Image, RestoreError> {
        match (self.stage == Stage::Done, self.buffer.is_empty()) {
            (true, true) => Ok(self.image),
            (true, false) => Err(self.damaged("it comes after the end")),
            (false, _) if !self.begun => Err(RestoreError::NotABackup),
            (false, _) => Err(RestoreError::Truncated { frames: self.frames }),
        }
    }

    fn frame(&mut self, kind: u8, mut content: Bytes) -> Result<(), RestoreError> {
        match (&self.stage, kind) {
            (Stage::Head, HEAD) if content.len() == 20 => {
                self.image.revision = Revision(content.get_u64_le());
                self.tables_left = content.get_u32_le();
                self.image.last_lease = content.get_u64_le();
                self.stage = Stage::Leases;
                match self.tables_left as usize > TABLES_MAX {
                    true => Err(self.damaged("there are too many tables")),
                    false => Ok(()),
                }
            }
            (Stage::Leases, LEASES) => {
                self.stage = Stage::Tables;
                self.leases(content)
            }
            (Stage::Tables, TABLE) if self.tables_left > 0 && self.entries_left == 0 => self.table(content),
            (Stage::Tables, END) if self.tables_left == 0 && self.entries_left == 0 && content.len() == 8 => {
                self.stage = Stage::Done;
                match content.get_u64_le() == self.entries {
                    true => Ok(()),
                    false => Err(self.damaged("the number of entries is wrong")),
                }
            }
            _ => Err(self.damaged("it is not the kind of frame that must come here")),
        }
    }

    fn leases(&mut self, mut content: Bytes) -> Result<(), RestoreError> {
        while content.len() >= LEASE_BYTES {
            let id = LeaseId::new(content.get_u64_le());
            let mut time =
                || Some((content.get_u64_le(), content.get_u32_le())).filter(|(_, nanos)| *nanos < NANOS);
            let (ttl, remaining) = (time(), time());
            let (Some(id), Some(ttl), Some(remaining)) = (id, ttl, remaining) else {
                return Err(self.damaged("a lease is impossible"));
            };
            let [ttl, remaining] = [ttl, remaining].map(|(secs, nanos)| Duration::new(secs, nanos));
            if ttl.is_zero() || ttl > LEASE_TTL_MAX || remaining > ttl || !self.lease_ids.insert(id) {
                return Err(self.damaged("a lease is impossible"));
            }
            self.image.leases.push((id, ttl, remaining));
        }
        if content.is_empty() { Ok(()) } else { Err(self.damaged("a lease is cut off")) }
    }

    fn table(&mut self, mut content: Bytes) -> Result<(), RestoreError> {
        if content.len() <= 16 {
            return Err(self.damaged("a table has no name"));
        }
        let (last, count) = (Revision(content.get_u64_le()), content.get_u64_le());
        let name: Arc<str> = match std::str::from_utf8(&content) {
            Ok(name) if name.len() <= KEY_BYTES_MAX && self.names.insert(name.into()) => name.into(),
            _ => return Err(self.damaged("a table's name is not usable")),
        };
        if last > self.image.revision {
            return Err(self.damaged("a revision lies after that of the back-up"));
        }
        self.tables_left -= 1;
        self.entries_left = count;
        self.image.tables.push(ImageTable { name, last, entries: Vec::new() });
        Ok(())
    }

    fn entries(&mut self, entries: Vec<Arc<Entry>>) -> Result<(), RestoreError> {
        let count = entries.len() as u64;
        let table = self.image.tables.last_mut().filter(|_| self.entries_left > 0);
        let Some(table) = table else {
            return Err(self.damaged("it is not the kind of frame that must come here"));
        };
        let ordered = match (table.entries.last(), entries.first()) {
            (Some(last), Some(first)) => last.key < first.key,
            _ => true,
        };
        let known = |entry: &Arc<Entry>| {
            entry.lease.is_none_or(|lease| self.lease_ids.contains(&lease)) && entry.modified <= table.last
        };
        if !ordered || count > self.entries_left || !entries.iter().all(known) {
            return Err(self.damaged("an entry is impossible"));
        }
        table.entries.extend(entries);
        self.entries_left -= count;
        self.entries += count;
        Ok(())
    }
}

/// The length of a frame's content, its checksum and its kind; none if the length is impossible.
pub(crate) fn frame_head(head: [u8; FRAME_HEAD_BYTES]) -> Option<(usize, u32, u8)> {
    let mut head = &head[..];
    let (length, sum, kind) = (head.get_u32_le() as usize, head.get_u32_le(), head.get_u8());
    (length <= FRAME_BYTES_MAX.max(LEASES_MAX * LEASE_BYTES)).then_some((length, sum, kind))
}

const LEASE_BYTES: usize = 8 + 2 * 12;
const NANOS: u32 = 1_000_000_000;
