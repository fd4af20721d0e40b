//! The write-ahead log as its writer sees it: which file the next frame goes to, and where in it.
//!
//! Files are filled with zeros once, so that writing a frame changes nothing but its own blocks, and used again when a
//! checkpoint covers all their frames. What they held before does no harm: it doesn't fit the chain.

use std::{io, sync::Arc};

use crate::{
    Revision,
    disk::{
        files::{BLOCK_BYTES, FileOps, Files},
        frame::{Buffer, Head, padding, room},
    },
};

/// Zeros are written in pieces of this size, each durable before the next, so that whoever commits meanwhile never waits for
/// more than one of them.
const ZEROS_BYTES: usize = 512 * 1024;
/// Frames up to this size are written by whoever commits, where that is quick.
const QUICK_BYTES_MAX: usize = 64 * 1024;
/// How many files that are not in use are kept for later.
const FREE_SEGMENTS_MAX: usize = 2;

/// What the names of log files begin with.
pub(crate) const PREFIX: &str = "log-";

/// The name of a log file.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{PREFIX}{number:08x}")
}

/// One file of the log.
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn FileOps>,
    pub(crate) bytes: u64,
    /// How much of it holds frames of now.
    pub(crate) written: u64,
    /// The last of them.
    pub(crate) last_seq: u64,
}

impl Segment {
    fn has_room(&self, bytes: u64) -> bool {
        self.bytes - self.written >= bytes
    }
}

/// How large files are: each twice as large as the one before, between these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentBytes {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

pub(crate) struct Wal {
    pub(crate) identity: u128,
    pub(crate) generation: u64,
    /// The last frame that was cut, and its checksum.
    pub(crate) seq: u64,
    pub(crate) chain: u32,
    /// The bytes of all frames that were cut or done again, and of those that a checkpoint covers.
    pub(crate) total: u64,
    pub(crate) covered: u64,
    pub(crate) sizes: SegmentBytes,
    pub(crate) next_number: u64,
    pub(crate) current: Option<Segment>,
    pub(crate) spare: Option<Segment>,
    /// Those that came before, in order.
    pub(crate) full: Vec<Segment>,
    pub(crate) free: Vec<Segment>,
    pub(crate) preparing: bool,
    /// Files with frames that were not made durable.
    pub(crate) unsynced: Vec<Arc<dyn FileOps>>,
}

/// What a frame says beside what the log knows.
pub(crate) struct Cut {
    pub(crate) first: Revision,
    pub(crate) last: Revision,
    pub(crate) reserved: Revision,
    pub(crate) durable: u64,
    pub(crate) flags: u32,
    pub(crate) sync: bool,
}

impl Wal {
    /// Whether so many bytes of records can be written as one frame now.
    pub(crate) fn fits(&self, records: usize) -> bool {
        let bytes = room(records) as u64;
        [&self.current, &self.spare].into_iter().flatten().any(|segment| segment.has_room(bytes))
    }

    /// Makes sure that there is a spare file, of at least so many bytes of records: from those that were used before, or by
    /// the job that is returned.
    pub(crate) fn provide(&mut self, files: &Arc<dyn Files>, records: usize) -> Option<PrepareJob> {
        let needed = room(records) as u64;
        if self.preparing || self.spare.as_ref().is_some_and(|spare| spare.has_room(needed)) {
            return None;
        }
        let grown = self.current.as_ref().map_or(0, |current| current.bytes.saturating_mul(2));
        let wanted = grown.clamp(self.sizes.min, self.sizes.max).max(needed);
        if let Some(at) = self.free.iter().position(|segment| segment.bytes >= needed) {
            // One that is smaller than it would be made now is good enough if it is not much smaller.
            if self.free[at].bytes >= wanted / 2 {
                self.free.extend(self.spare.take());
                self.spare = Some(self.free.swap_remove(at));
                return None;
            }
        }
        self.preparing = true;
        let name = segment_name(self.next_number);
        self.next_number += 1;
        Some(PrepareJob {
            files: files.clone(),
            name,
            bytes: wanted,
            file: None,
            zeros: Vec::new(),
            written: 0,
            synced: true,
        })
    }

    /// A file is ready.
    pub(crate) fn provided(&mut self, segment: Option<Segment>) {
        self.preparing = false;
        if let Some(segment) = segment {
            self.free.extend(self.spare.replace(segment));
        }
    }

    /// Makes a frame of the buffer, for which there must be room, and says where to write it.
    pub(crate) fn cut(&mut self, mut buffer: Buffer, cut: &Cut) -> Result<WriteJob, Buffer> {
        let bytes = room(buffer.len()) as u64;
        if !self.current.as_ref().is_some_and(|current| current.has_room(bytes)) {
            let Some(spare) = self.spare.take_if(|spare| spare.has_room(bytes)) else { return Err(buffer) };
            self.full.extend(self.current.replace(spare));
            self.generation += 1;
        }
        let Some(current) = &mut self.current else { return Err(buffer) };
        let head = Head {
            identity: self.identity,
            generation: self.generation,
            seq: self.seq + 1,
            first: cut.first,
            last: cut.last,
            reserved: cut.reserved,
            durable: cut.durable,
            records: 0,
            bytes: 0,
            sum: 0,
            chain: self.chain,
            flags: cut.flags,
        };
        self.chain = buffer.finish(head);
        self.seq += 1;
        let offset = current.written;
        current.written += bytes;
        current.last_seq = self.seq;
        self.total += bytes;
        let file = current.file.clone();
        let mixed = self.unsynced.iter().any(|other| Arc::ptr_eq(other, &file));
        let mut before = Vec::new();
        if cut.sync {
            before = std::mem::take(&mut self.unsynced);
            before.retain(|other| !Arc::ptr_eq(other, &file));
        } else if !mixed {
            self.unsynced.push(file.clone());
        }
        let kind = match (cut.sync, mixed) {
            (false, _) => Kind::Later,
            (true, false) => Kind::Through,
            // Earlier frames of the file are in the page cache: writing past it would leave them there.
            (true, true) => Kind::Synced,
        };
        Ok(WriteJob { seq: self.seq, file, offset, buffer, kind, before, written: false })
    }

    /// A checkpoint covers all frames up to `seq`: files that hold no others are free. The names of those that are not worth
    /// keeping.
    pub(crate) fn release(&mut self, seq: u64, position: u64) -> Vec<String> {
        let covered = self.full.partition_point(|segment| segment.last_seq <= seq);
        for mut segment in self.full.drain(..covered) {
            segment.written = 0;
            self.free.push(segment);
        }
        self.covered = self.covered.max(position);
        self.free.sort_by_key(|segment| std::cmp::Reverse(segment.bytes));
        let surplus = self.free.len().min(FREE_SEGMENTS_MAX);
        self.free.drain(surplus..).map(|segment| segment.name).collect()
    }
}

/// The way of a frame to the disk.
pub(crate) struct WriteJob {
    pub(crate) seq: u64,
    file: Arc<dyn FileOps>,
    offset: u64,
    pub(crate) buffer: Buffer,
    kind: Kind,
    /// Files before this one that have to be durable first.
    before: Vec<Arc<dyn FileOps>>,
    written: bool,
}

/// How a frame is made durable.
#[derive(PartialEq)]
enum Kind {
    /// Not now.
    Later,
    /// By the write itself, if that can be.
    Through,
    /// By a sync after the write.
    Synced,
}

impl WriteJob {
    /// Whether it is one write of few bytes; to the page cache only, unless `synced` ones are quick too.
    pub(crate) fn is_quick(&self, synced: bool) -> bool {
        (self.kind == Kind::Later || (synced && self.is_through()))
            && self.before.is_empty()
            && self.buffer.frame().len() <= QUICK_BYTES_MAX
    }

    /// Whether the write itself makes it durable.
    pub(crate) fn is_through(&self) -> bool {
        self.kind == Kind::Through
    }

    /// Does the next step; whether it was the last.
    pub(crate) fn step(&mut self) -> io::Result<bool> {
        if let Some(file) = self.before.pop() {
            file.sync()?;
            return Ok(false);
        }
        if self.written {
            self.file.sync()?;
            return Ok(true);
        }
        self.written = true;
        let frame = self.buffer.frame();
        match self.kind {
            Kind::Through => self.file.write_through_at(self.offset, frame),
            Kind::Later => self.file.write_at(self.offset, frame).map(|()| true),
            Kind::Synced => self.file.write_at(self.offset, frame).map(|()| false),
        }
    }
}

/// The making of a log file.
pub(crate) struct PrepareJob {
    files: Arc<dyn Files>,
    name: String,
    bytes: u64,
    file: Option<Arc<dyn FileOps>>,
    /// A piece, and what it takes to have it aligned.
    zeros: Vec<u8>,
    written: u64,
    synced: bool,
}

impl PrepareJob {
    /// Does the next step; the file, once it is ready.
    pub(crate) fn step(&mut self) -> io::Result<Option<Segment>> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                self.file = Some(self.files.open(&self.name, true)?);
                self.zeros = vec![0; ZEROS_BYTES + BLOCK_BYTES];
                return Ok(None);
            }
        };
        if !self.synced {
            file.sync()?;
            self.synced = true;
            return Ok(None);
        }
        if self.written < self.bytes {
            let piece = ZEROS_BYTES.min((self.bytes - self.written) as usize);
            let start = padding(&self.zeros);
            self.synced = file.write_through_at(self.written, &self.zeros[start..start + piece])?;
            self.written += piece as u64;
            return Ok(None);
        }
        self.files.sync_dir()?;
        Ok(Some(Segment { name: self.name.clone(), file, bytes: self.bytes, written: 0, last_seq: 0 }))
    }

    /// Takes away what there is of it.
    pub(crate) fn give_up(&mut self) {
        self.file = None;
        // If that fails too, the next opening of the store finds a file without frames, and uses it.
        let _ = self.files.remove(&self.name);
    }
}

const _: () = assert!(ZEROS_BYTES.is_multiple_of(BLOCK_BYTES));
