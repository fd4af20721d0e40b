//! Checkpoints: one published state in a file, so that the log before it is not needed any more.
//!
//! A checkpoint is a preface, which says where in the log it belongs, and then a back-up. It is written beside the old one, made
//! durable, and only then given its name.

use std::{io, ops::Range, sync::Arc, thread, time::Duration};

use bytes::{BufMut, Bytes};

use crate::{
    Backup, Durability, RestoreError, Revision,
    backup::{
        Decoder, FRAME_HEAD_BYTES, Image, MAGIC_BYTES,
        blocks::{Frame, ReadFrame, Readers},
        frame_head,
    },
    checksum::crc32c,
    disk::{
        OpenError,
        files::{FileOps, Files},
        record::{Reader, put_durability, put_time},
    },
    table::TABLES_MAX,
};

/// What a checkpoint begins with; the last byte is the version of the format.
const MAGIC: &[u8; 8] = b"kstorcp\x02";
/// The version before, whose back-up has no packed blocks, is read too.
const VERSION_BEFORE: u8 = 1;
/// What the names of checkpoints begin with.
pub(crate) const PREFIX: &str = "checkpoint-";
/// The name of one that is not finished.
pub(crate) const UNFINISHED: &str = "checkpoint.new";
/// The magic number, the length and the checksum of the preface.
const LEAD_BYTES: usize = 16;
const PREFACE_BYTES_MAX: usize = 64 + TABLES_MAX * 13;
/// After so many bytes they are made durable, so that nobody who commits meanwhile waits for more.
const UNSYNCED_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What is longer is read by several threads.
const ALONE_BYTES_MAX: u64 = 1024 * 1024;

/// The name of the checkpoint that covers the frames up to `seq`.
pub(crate) fn name(seq: u64) -> String {
    format!("{PREFIX}{seq:016x}")
}

/// The frame up to which the checkpoint of that name covers the log.
pub(crate) fn seq_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()
}

/// Where in the log a checkpoint belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preface {
    pub(crate) identity: u128,
    pub(crate) generation: u64,
    /// The last frame that is covered, and its checksum.
    pub(crate) seq: u64,
    pub(crate) chain: u32,
    /// No revision above it had been shown to anyone.
    pub(crate) reserved: Revision,
    /// When it was taken, counted from 1970; the leases' remaining time is counted from there.
    pub(crate) taken: Duration,
    /// Of the tables, in their order.
    pub(crate) durabilities: Vec<Durability>,
}

impl Preface {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        content.put_slice(&self.identity.to_le_bytes());
        for number in [self.generation, self.seq, self.reserved.0] {
            content.put_u64_le(number);
        }
        content.put_u32_le(self.chain);
        put_time(&mut content, self.taken);
        content.put_u32_le(self.durabilities.len() as u32);
        for durability in &self.durabilities {
            put_durability(&mut content, *durability);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.put_u32_le(content.len() as u32);
        bytes.put_u32_le(crc32c(0, &content));
        bytes.put_slice(&content);
        bytes
    }

    fn decode(content: &[u8]) -> Option<Preface> {
        let mut reader = Reader(content);
        let (low, high) = (reader.u64()?, reader.u64()?);
        let identity = u128::from(high) << 64 | u128::from(low);
        let (generation, seq, reserved) = (reader.u64()?, reader.u64()?, Revision(reader.u64()?));
        let (chain, taken, count) = (reader.u32()?, reader.time()?, reader.u32()?);
        let mut durabilities = Vec::with_capacity((count as usize).min(content.len()));
        for _ in 0..count {
            durabilities.push(reader.durability()?);
        }
        reader.0.is_empty().then_some(Preface {
            identity,
            generation,
            seq,
            chain,
            reserved,
            taken,
            durabilities,
        })
    }
}

/// The writing of a checkpoint.
pub(crate) struct CheckpointJob {
    files: Arc<dyn Files>,
    pub(crate) seq: u64,
    pub(crate) revision: Revision,
    /// Taken when it has been written.
    preface: Option<Vec<u8>>,
    backup: Backup,
    file: Option<Arc<dyn FileOps>>,
    written: u64,
    synced: u64,
    stage: Stage,
    /// Checkpoints that are not needed once this one is there.
    old: Vec<String>,
}

enum Stage {
    Write,
    Rename,
    SyncDir,
    RemoveOld,
}

impl CheckpointJob {
    pub(crate) fn new(files: &Arc<dyn Files>, preface: &Preface, backup: Backup) -> CheckpointJob {
        CheckpointJob {
            files: files.clone(),
            seq: preface.seq,
            revision: backup.revision(),
            preface: Some(preface.encode()),
            backup,
            file: None,
            written: 0,
            synced: 0,
            stage: Stage::Write,
            old: Vec::new(),
        }
    }

    /// Does the next step; whether it was the last.
    pub(crate) fn step(&mut self) -> io::Result<bool> {
        match self.stage {
            Stage::Write => self.write()?,
            Stage::Rename => {
                self.file = None;
                self.files.rename(UNFINISHED, &name(self.seq))?;
                self.stage = Stage::SyncDir;
            }
            Stage::SyncDir => {
                self.files.sync_dir()?;
                let names = self.files.list()?.into_iter();
                self.old = names.filter(|name| seq_of(name).is_some_and(|seq| seq < self.seq)).collect();
                self.stage = Stage::RemoveOld;
            }
            Stage::RemoveOld => match self.old.pop() {
                // One that stays is taken away by the next checkpoint.
                Some(old) => drop(self.files.remove(&old)),
                None => return Ok(true),
            },
        }
        Ok(false)
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else {
            // What an earlier attempt left must not stand behind the end of this one.
            if self.files.list()?.iter().any(|name| name == UNFINISHED) {
                self.files.remove(UNFINISHED)?;
            }
            self.file = Some(self.files.open(UNFINISHED, true)?);
            return Ok(());
        };
        if self.written - self.synced >= UNSYNCED_BYTES_MAX {
            self.synced = self.written;
            return file.sync();
        }
        match self.preface.take().map(Bytes::from).or_else(|| self.backup.next()) {
            Some(bytes) => {
                file.write_at(self.written, &bytes)?;
                self.written += bytes.len() as u64;
            }
            None => {
                file.sync()?;
                self.stage = Stage::Rename;
            }
        }
        Ok(())
    }

    /// How long the file became.
    pub(crate) fn bytes(&self) -> u64 {
        self.written
    }

    /// Takes away what there is of it; the log is still whole.
    pub(crate) fn give_up(&mut self) {
        self.file = None;
        if matches!(self.stage, Stage::Write | Stage::Rename) {
            let _ = self.files.remove(UNFINISHED);
        }
    }
}

/// Reads a checkpoint and checks it.
pub(crate) fn load(files: &dyn Files, name: &str) -> Result<(Preface, Image), OpenError> {
    let io = |source| OpenError::Io { file: files.path(name), source: Arc::new(source) };
    let corrupt = |offset, reason| OpenError::Corrupt { file: files.path(name), offset, reason };
    let file = files.open(name, false).map_err(io)?;
    let length = file.len().map_err(io)?;
    let mut lead = [0; LEAD_BYTES];
    if length < LEAD_BYTES as u64 {
        return Err(corrupt(length, "its end is missing"));
    }
    file.read_at(0, &mut lead).map_err(io)?;
    if lead[..7] == MAGIC[..7] && lead[7] == VERSION_BEFORE {
        lead[7] = MAGIC[7];
    }
    if lead[..7] == MAGIC[..7] && lead[7] != MAGIC[7] {
        return Err(OpenError::Format { file: files.path(name), found: lead[7], known: MAGIC[7] });
    }
    let mut rest = Reader(&lead[MAGIC.len()..]);
    let (size, sum) = (rest.u32().unwrap_or_default() as usize, rest.u32().unwrap_or_default());
    if !lead.starts_with(MAGIC) || size > PREFACE_BYTES_MAX || (LEAD_BYTES + size) as u64 > length {
        return Err(corrupt(0, "it doesn't begin as a checkpoint does"));
    }
    let mut content = vec![0; size];
    file.read_at(LEAD_BYTES as u64, &mut content).map_err(io)?;
    let preface = match crc32c(0, &content) == sum {
        true => Preface::decode(&content).ok_or_else(|| corrupt(0, "its preface is impossible"))?,
        false => return Err(corrupt(0, "the checksum of its preface is wrong")),
    };
    let image = load_image(&*file, (LEAD_BYTES + size) as u64..length).map_err(|error| match error {
        ImageError::Io(source) => io(source),
        ImageError::Corrupt(offset, reason) => corrupt(offset, reason),
    })?;
    match preface.durabilities.len() == image.tables.len() {
        true => Ok((preface, image)),
        false => Err(corrupt(0, "its preface is about other tables")),
    }
}

/// Why what a checkpoint holds can't be had: where, and what is wrong there.
enum ImageError {
    Io(io::Error),
    Corrupt(u64, &'static str),
}

impl ImageError {
    fn at(offset: u64, error: &RestoreError) -> ImageError {
        ImageError::Corrupt(
            offset,
            match error {
                RestoreError::Damaged { reason, .. } => reason,
                RestoreError::Truncated { .. } => "its end is missing",
                _ => "what it holds is not a back-up",
            },
        )
    }
}

/// Reads the back-up between two places of a file, by several threads if it is long.
fn load_image(file: &dyn FileOps, within: Range<u64>) -> Result<Image, ImageError> {
    thread::scope(|scope| {
        let long = within.end - within.start > ALONE_BYTES_MAX;
        let mut readers = if long { Readers::start(scope) } else { Readers::none() };
        let mut decoder = Decoder::default();
        let add = |decoder: &mut Decoder, frame: Option<ReadFrame>| match frame {
            Some(frame) => {
                let offset = frame.offset;
                decoder.add(frame).map_err(|error| ImageError::at(offset, &error))
            }
            None => Ok(()),
        };
        let mut offset = within.start;
        if within.end - offset >= MAGIC_BYTES as u64 {
            let mut magic = [0; MAGIC_BYTES];
            file.read_at(offset, &mut magic).map_err(ImageError::Io)?;
            decoder.begin(magic).map_err(|error| ImageError::at(offset, &error))?;
            offset += MAGIC_BYTES as u64;
        }
        let mut place = 0;
        while offset < within.end {
            let frame = match read_frame(file, place, offset..within.end)? {
                Some(frame) => frame,
                // What is wrong before comes first.
                None => break,
            };
            place += 1;
            let next = offset + (FRAME_HEAD_BYTES + frame.content.len()) as u64;
            add(&mut decoder, readers.give(frame))?;
            offset = next;
        }
        while let Some(frame) = readers.take() {
            add(&mut decoder, Some(frame))?;
        }
        if offset < within.end {
            return Err(ImageError::Corrupt(offset, "its end is missing"));
        }
        decoder.finish().map_err(|error| ImageError::at(offset, &error))
    })
}

/// The frame that begins there; none if its end is missing.
fn read_frame(file: &dyn FileOps, place: u64, within: Range<u64>) -> Result<Option<Frame>, ImageError> {
    let Range { start: offset, end } = within;
    if end - offset < FRAME_HEAD_BYTES as u64 {
        return Ok(None);
    }
    let mut head = [0; FRAME_HEAD_BYTES];
    file.read_at(offset, &mut head).map_err(ImageError::Io)?;
    let impossible = ImageError::Corrupt(offset, "its length is impossible");
    let (length, sum, kind) = frame_head(head).ok_or(impossible)?;
    let at = offset + FRAME_HEAD_BYTES as u64;
    if end - at < length as u64 {
        return Ok(None);
    }
    let mut content = vec![0; length];
    file.read_at(at, &mut content).map_err(ImageError::Io)?;
    Ok(Some(Frame { place, offset, kind, sum, content: content.into() }))
}
