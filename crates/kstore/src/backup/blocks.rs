//! Blocks of entries: how they are written, and how each is read by itself, so that several can be read at once.

use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, Scope},
};

use bytes::{Buf, BufMut, Bytes};

use super::{ENTRIES, FRAME_BYTES_MAX, PACKED, checksum};
use crate::{
    Entry, LeaseId, Revision,
    txn::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};

/// How many threads read blocks at most.
const READERS_MAX: usize = 8;
/// How many blocks wait for each of them.
const WAITING_MAX: usize = 4;
/// LZ4 makes bytes fewer by at most so many times.
const RATIO_MAX: usize = 255;

pub(super) fn put(content: &mut Vec<u8>, entry: &Entry) {
    for part in [&entry.key, &entry.value] {
        content.put_u32_le(part.len() as u32);
        content.put_slice(part);
    }
    let lease = entry.lease.map_or(0, LeaseId::get);
    for number in [entry.create.0, entry.modified.0, entry.version, lease] {
        content.put_u64_le(number);
    }
}

/// Packing is to save at least one part in so many, or it isn't worth the reading.
const SAVED_PARTS: usize = 8;

/// The same in fewer bytes (its length, and an LZ4 block), if it can be had.
pub(super) fn packed(content: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = (content.len() as u32).to_le_bytes().to_vec();
    bytes.extend(lz4_flex::block::compress(content));
    (bytes.len() < content.len() - content.len() / SAVED_PARTS).then_some(bytes)
}

fn unpacked(mut content: &[u8]) -> Result<Vec<u8>, &'static str> {
    let length = content.try_get_u32_le().map_err(|_| "a block is cut off")? as usize;
    if length > FRAME_BYTES_MAX || length > content.len().saturating_mul(RATIO_MAX) {
        return Err("the length of a block is impossible");
    }
    match lz4_flex::block::decompress(content, length) {
        Ok(bytes) if bytes.len() == length => Ok(bytes),
        _ => Err("a block is not packed as it should be"),
    }
}

/// The next entry; none if it is cut off. Key and value are copied, so that none keeps the whole block in memory.
fn entry(content: &mut &[u8]) -> Option<Entry> {
    let mut part = || {
        let length = content.try_get_u32_le().ok()? as usize;
        let (part, rest) = content.split_at_checked(length)?;
        *content = rest;
        Some(Bytes::copy_from_slice(part))
    };
    let (key, value) = (part()?, part()?);
    let mut number = || content.try_get_u64_le().ok();
    Some(Entry {
        key,
        value,
        create: Revision(number()?),
        modified: Revision(number()?),
        version: number()?,
        lease: LeaseId::new(number()?),
        tombstone: false,
        hint: None,
        derived: OnceLock::new(),
        terms: None,
    })
}

/// What is wrong with an entry can be told of most by looking at it and the one before.
fn entries(mut content: &[u8]) -> Result<Vec<Arc<Entry>>, &'static str> {
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    while !content.is_empty() {
        let entry = entry(&mut content).ok_or("an entry is cut off")?;
        let possible = entry.create > Revision::ZERO
            && entry.create <= entry.modified
            && entry.version > 0
            && !entry.key.is_empty()
            && entry.key.len() <= KEY_BYTES_MAX
            && entry.value.len() <= VALUE_BYTES_MAX
            && entries.last().is_none_or(|last| last.key < entry.key);
        if !possible {
            return Err("an entry is impossible");
        }
        entries.push(Arc::new(entry));
    }
    Ok(entries)
}

/// A frame as it stands in the stream.
pub(crate) struct Frame {
    /// The how-manieth it is.
    pub(crate) place: u64,
    /// Where it begins, for whoever tells of it.
    pub(crate) offset: u64,
    pub(crate) kind: u8,
    pub(crate) sum: u32,
    pub(crate) content: Bytes,
}

/// A frame whose checksum is right, and what was read of it.
pub(crate) struct ReadFrame {
    pub(crate) place: u64,
    pub(crate) offset: u64,
    pub(crate) content: Result<Content, &'static str>,
}

pub(crate) enum Content {
    Entries(Vec<Arc<Entry>>),
    Other(u8, Bytes),
}

impl Frame {
    pub(crate) fn read(self) -> ReadFrame {
        let Frame { place, offset, kind, sum, content } = self;
        let content = match kind {
            _ if checksum(place, kind, &content) != sum => Err("its checksum is wrong"),
            ENTRIES => entries(&content).map(Content::Entries),
            PACKED => unpacked(&content).and_then(|content| entries(&content)).map(Content::Entries),
            kind => Ok(Content::Other(kind, content)),
        };
        ReadFrame { place, offset, content }
    }
}

/// Threads that read frames, each its own; what they read comes back in order.
pub(crate) struct Readers {
    readers: Vec<(SyncSender<Frame>, Receiver<ReadFrame>)>,
    given: usize,
    taken: usize,
}

impl Readers {
    /// As many as the machine has processors. They end with the `Readers`, and so before the scope.
    pub(crate) fn start<'scope>(scope: &'scope Scope<'scope, '_>) -> Readers {
        let count = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX);
        let mut readers = Vec::with_capacity(count);
        for _ in 0..count {
            let (to, frames) = sync_channel::<Frame>(WAITING_MAX);
            let (done, from) = sync_channel(WAITING_MAX);
            let read = move || while frames.recv().is_ok_and(|frame| done.send(frame.read()).is_ok()) {};
            // Without a thread there are fewer, and without any, everything is read where it is given.
            if thread::Builder::new().name("kstore".to_owned()).spawn_scoped(scope, read).is_ok() {
                readers.push((to, from));
            }
        }
        Readers { readers, given: 0, taken: 0 }
    }

    /// None: everything is read where it is given.
    pub(crate) fn none() -> Readers {
        Readers { readers: Vec::new(), given: 0, taken: 0 }
    }

    /// Gives a frame to be read; one that was given before comes back once enough are under way.
    pub(crate) fn give(&mut self, frame: Frame) -> Option<ReadFrame> {
        let count = self.readers.len();
        if count == 0 {
            return Some(frame.read());
        }
        let before = if self.given - self.taken == count * WAITING_MAX { self.take() } else { None };
        if let Err(unread) = self.readers[self.given % count].0.send(frame) {
            // Its thread panicked; that is told where its frames are taken.
            drop(unread);
        }
        self.given += 1;
        before
    }

    /// The oldest frame that was given and has not come back.
    pub(crate) fn take(&mut self) -> Option<ReadFrame> {
        if self.taken == self.given {
            return None;
        }
        let (_, from) = &self.readers[self.taken % self.readers.len()];
        let place = self.taken as u64;
        self.taken += 1;
        let lost = ReadFrame { place, offset: 0, content: Err("whoever read it panicked") };
        Some(from.recv().unwrap_or(lost))
    }
}
