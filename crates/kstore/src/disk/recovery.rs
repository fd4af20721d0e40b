//! Opening: the newest checkpoint, then the log from there on, up to the first frame that is not there.
//!
//! Frames are written several at a time, so behind that hole there may be others that did get there. None of them was ever
//! acknowledged, and they are cut off. But each frame says up to which one all was durable when it was written: if one behind
//! the hole says that the hole was, what is missing was acknowledged, and the store is not opened.

use std::{any::Any, collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Durability, Revision, TableId,
    backup::Image,
    checksum::crc32c,
    core::Core,
    disk::{
        OpenError,
        checkpoint::{self, Preface},
        files::{BLOCK_BYTES, FileOps, Files},
        frame::{CLOSED, HEAD_BYTES, Head},
        identity,
        record::{Reader, Record},
        wal::{self, Segment, SegmentBytes, Wal},
    },
};

/// How much of a log file is looked at at once.
const WINDOW_BYTES: usize = 256 * 1024;

/// What opening a store found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The checkpoint that was loaded; none when there was none.
    pub checkpoint: Option<PathBuf>,
    /// Its revision.
    pub checkpoint_revision: Revision,
    /// Newer checkpoints that could not be read, and were not needed since the log reaches back behind them.
    pub checkpoints_refused: Vec<PathBuf>,
    /// How many frames of the log were done again, and how many records were in them.
    pub frames: u64,
    /// See `frames`.
    pub records: u64,
    /// How many frames were cut off, that had been written in part or behind one that was; never acknowledged, all of them.
    pub frames_cut: u64,
    /// How many bytes of the log they took.
    pub bytes_cut: u64,
    /// The revision of the store. It is above every revision that anybody has seen.
    pub revision: Revision,
    /// The last revision that was found. It is below `revision` only if there were commits that a crash may lose.
    pub revision_found: Revision,
    /// Whether the store had been closed; otherwise it had been killed, or the machine had stopped.
    pub clean: bool,
    /// How long all of it took.
    pub took: Duration,
}

/// An opened store before anyone uses it.
pub(crate) struct Recovered {
    pub(crate) core: Core,
    pub(crate) wal: Wal,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) report: RecoveryReport,
    pub(crate) lock: Box<dyn Any + Send + Sync>,
}

/// A frame, and where it is.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    head: Head,
    sum: u32,
}

struct LogFile {
    name: String,
    file: Arc<dyn FileOps>,
    bytes: u64,
    /// The end of the last frame that counts, and that frame; 0 if there is none.
    written: u64,
    last_seq: u64,
}

struct Recovery<'a> {
    files: &'a dyn Files,
    core: Core,
    logs: Vec<LogFile>,
    preface: Preface,
    report: RecoveryReport,
    /// The time, counted from 1970.
    wall: Duration,
    /// The frames that were done again.
    applied: Vec<Place>,
}

/// Opens what is in the directory. `bytes_max` is the quota; `wall` the time, counted from 1970.
pub(crate) fn recover(
    files: &Arc<dyn Files>,
    bytes_max: u64,
    sizes: SegmentBytes,
    wall: Duration,
) -> Result<Recovered, OpenError> {
    let began = Instant::now();
    let io = |source| OpenError::Io { file: files.path(""), source: Arc::new(source) };
    let lock = files.lock(identity::LOCK).map_err(io)?;
    let lock = lock.ok_or_else(|| OpenError::Locked { directory: files.path("") })?;
    let names = files.list().map_err(io)?;
    let identity = identity::identity(&**files, &names)?;
    let (mut report, loaded, mut refused) = load_checkpoint(&**files, &names, identity)?;
    let (preface, image) = loaded.unwrap_or_else(|| (first_preface(identity, wall), Image::default()));
    let checkpoint_bytes = match &report.checkpoint {
        Some(_) => {
            files.open(&checkpoint::name(preface.seq), false).and_then(|file| file.len()).map_err(io)?
        }
        None => 0,
    };
    report.checkpoint_revision = image.revision;
    let mut recovery = Recovery {
        files: &**files,
        core: Core::new(bytes_max),
        logs: open_logs(&**files, names)?,
        preface,
        report,
        wall,
        applied: Vec::new(),
    };
    recovery.load(image)?;
    let (wal, reserved) = recovery.replay(sizes, &mut refused)?;
    recovery.make_durable().map_err(io)?;
    recovery.settle(reserved);
    let Recovery { core, mut report, .. } = recovery;
    report.revision = core.revision;
    report.took = began.elapsed();
    Ok(Recovered { core, wal, checkpoint_bytes, report, lock })
}

fn first_preface(identity: u128, taken: Duration) -> Preface {
    Preface {
        identity,
        generation: 0,
        seq: 0,
        chain: 0,
        reserved: Revision::ZERO,
        taken,
        durabilities: Vec::new(),
    }
}

type Refused = Option<(u64, OpenError)>;

/// The newest checkpoint that is whole; and the newest one, with what is wrong with it, if that is another.
#[allow(clippy::type_complexity, reason = "a name for it would say less")]
fn load_checkpoint(
    files: &dyn Files,
    names: &[String],
    identity: u128,
) -> Result<(RecoveryReport, Option<(Preface, Image)>, Refused), OpenError> {
    let mut report = RecoveryReport::default();
    let mut seqs: Vec<u64> = names.iter().filter_map(|name| checkpoint::seq_of(name)).collect();
    seqs.sort_unstable();
    let mut refused: Refused = None;
    for seq in seqs.into_iter().rev() {
        let name = checkpoint::name(seq);
        let wrong = match checkpoint::load(files, &name) {
            Ok((preface, image)) if preface.identity == identity && preface.seq == seq => {
                report.checkpoint = Some(files.path(&name));
                return Ok((report, Some((preface, image)), refused));
            }
            Ok(_) => OpenError::Corrupt {
                file: files.path(&name),
                offset: 0,
                reason: "it belongs to another store or another place",
            },
            Err(error @ OpenError::Corrupt { .. }) => error,
            Err(error) => return Err(error),
        };
        report.checkpoints_refused.push(files.path(&name));
        refused.get_or_insert((seq, wrong));
    }
    Ok((report, None, refused))
}

fn open_logs(files: &dyn Files, names: Vec<String>) -> Result<Vec<LogFile>, OpenError> {
    let mut names: Vec<String> = names.into_iter().filter(|name| name.starts_with(wal::PREFIX)).collect();
    names.sort_unstable();
    let mut logs = Vec::with_capacity(names.len());
    for name in names {
        let io = |source| OpenError::Io { file: files.path(&name), source: Arc::new(source) };
        let file = files.open(&name, false).map_err(io)?;
        let bytes = file.len().map_err(io)?;
        // A file whose making was interrupted may have any length.
        let bytes = bytes - bytes % BLOCK_BYTES as u64;
        logs.push(LogFile { name, file, bytes, written: 0, last_seq: 0 });
    }
    Ok(logs)
}

impl Recovery<'_> {
    fn corrupt(&self, place: &Place, reason: &'static str) -> OpenError {
        let file = self.files.path(&self.logs[place.file].name);
        OpenError::Corrupt { file, offset: place.offset, reason }
    }

    fn load(&mut self, mut image: Image) -> Result<(), OpenError> {
        let corrupt = |reason| OpenError::Corrupt {
            file: self.files.path(&checkpoint::name(self.preface.seq)),
            offset: 0,
            reason,
        };
        for (_, ttl, remaining) in &mut image.leases {
            *remaining = deadline(self.preface.taken.saturating_add(*remaining), *ttl, self.wall);
        }
        let names: Vec<Arc<str>> = image.tables.iter().map(|table| table.name.clone()).collect();
        self.core.load(image, Duration::ZERO).map_err(|_| corrupt("what it holds cannot be loaded"))?;
        for (index, (name, durability)) in names.iter().zip(self.preface.durabilities.clone()).enumerate() {
            self.core.replay_table(TableId(index as u32), name, durability).map_err(corrupt)?;
        }
        Ok(())
    }

    /// All frames of this store behind the checkpoint, by number; and the greatest generation of all.
    fn index(&self) -> Result<(HashMap<u64, Vec<Place>>, u64), OpenError> {
        let (mut places, mut generation) = (HashMap::<u64, Vec<Place>>::new(), self.preface.generation);
        for (index, log) in self.logs.iter().enumerate() {
            let found = scan(&*log.file, log.bytes, self.preface.identity, &mut |offset, head, sum| {
                generation = generation.max(head.generation);
                if head.seq > self.preface.seq {
                    places.entry(head.seq).or_default().push(Place { file: index, offset, head, sum });
                }
            });
            found.map_err(|source| OpenError::Io {
                file: self.files.path(&log.name),
                source: Arc::new(source),
            })?;
        }
        Ok((places, generation))
    }

    /// Does again what the log says, and gives the log to its writer.
    fn replay(&mut self, sizes: SegmentBytes, refused: &mut Refused) -> Result<(Wal, Revision), OpenError> {
        let (mut places, newest) = self.index()?;
        let mut last = None;
        let (mut seq, mut chain, mut generation) =
            (self.preface.seq, self.preface.chain, self.preface.generation);
        let mut reserved = self.preface.reserved;
        let mut torn = None;
        let mut replayed_bytes = 0;
        loop {
            let mut candidates = places.remove(&(seq + 1)).unwrap_or_default();
            candidates.sort_by_key(|place| std::cmp::Reverse(place.head.generation));
            let mut found = None;
            for place in candidates {
                let fits = place.head.chain == chain && place.head.generation >= generation;
                if fits && found.is_none() {
                    match self.records(&place)? {
                        Some(records) => found = Some((place, records)),
                        None => torn = Some(place),
                    }
                }
                if found
                    .as_ref()
                    .is_none_or(|(found, _)| found.offset != place.offset || found.file != place.file)
                {
                    places.entry(seq + 1).or_default().push(place);
                }
            }
            let Some((place, records)) = found else { break };
            torn = None;
            self.apply(&place, &records)?;
            (seq, chain, generation) = (seq + 1, place.sum, place.head.generation);
            reserved = place.head.reserved;
            self.report.clean = place.head.flags & CLOSED != 0;
            let log = &mut self.logs[place.file];
            (log.written, log.last_seq) = (place.offset + place.head.room(), seq);
            replayed_bytes += place.head.room();
            self.applied.push(place);
            last = Some(place);
        }
        self.check_hole(seq + 1, &places, torn.or(last), last, refused)?;
        self.report.revision_found = self.core.revision;
        Ok((self.wal(sizes, (seq, chain, newest.saturating_add(1)), last, replayed_bytes), reserved))
    }

    /// Looks at what is behind the first frame that is missing.
    fn check_hole(
        &mut self,
        hole: u64,
        places: &HashMap<u64, Vec<Place>>,
        near: Option<Place>,
        last: Option<Place>,
        refused: &mut Refused,
    ) -> Result<(), OpenError> {
        let mut behind: Vec<&Place> = places.values().flatten().collect();
        behind.sort_by_key(|place| (place.head.generation, place.head.seq));
        let known = behind.iter().find(|place| place.head.durable >= hole).copied();
        match refused.take() {
            // The checkpoint was whole once, so everything up to it was acknowledged.
            Some((seq, error)) if hole <= seq || known.is_some() => return Err(error),
            _ => {}
        }
        if let Some(known) = known {
            // The damage is where the missing frame begins: at the place of what is left of it, or behind the last one.
            let reason = "a frame that was acknowledged is missing or damaged";
            return Err(match (near, last) {
                (Some(near), Some(last)) if near.head.seq == last.head.seq => {
                    let offset = last.offset + last.head.room();
                    self.corrupt(&Place { offset, ..last }, reason)
                }
                (Some(near), _) => self.corrupt(&near, reason),
                (None, _) => self.corrupt(&Place { offset: 0, ..*known }, reason),
            });
        }
        // What an earlier recovery cut off has lower numbers or an older generation, and is still there; it counts once.
        let newest = behind.last().map(|place| place.head.generation);
        for place in
            behind.into_iter().filter(|place| Some(place.head.generation) == newest && place.head.seq >= hole)
        {
            self.report.frames_cut += 1;
            self.report.bytes_cut += place.head.room();
        }
        Ok(())
    }

    /// The records of the frame, if they are as they were written.
    fn records(&self, place: &Place) -> Result<Option<Vec<u8>>, OpenError> {
        let log = &self.logs[place.file];
        let mut records = vec![0; place.head.bytes as usize];
        log.file
            .read_at(place.offset + HEAD_BYTES as u64, &mut records)
            .map_err(|source| OpenError::Io { file: self.files.path(&log.name), source: Arc::new(source) })?;
        Ok((crc32c(0, &records) == place.head.sum).then_some(records))
    }

    fn apply(&mut self, place: &Place, records: &[u8]) -> Result<(), OpenError> {
        let mut reader = Reader(records);
        for _ in 0..place.head.records {
            let record =
                reader.record().ok_or_else(|| self.corrupt(place, "a record of the frame is impossible"))?;
            self.do_again(record).map_err(|reason| self.corrupt(place, reason))?;
            self.report.records += 1;
        }
        if !reader.0.is_empty() || self.core.revision > place.head.last {
            return Err(self.corrupt(place, "the records of the frame are not what its head says"));
        }
        self.report.frames += 1;
        Ok(())
    }

    fn do_again(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Txn { revision, ops } => self.core.replay_txn(revision, ops),
            Record::Table { id, durability, name } => self.core.replay_table(id, &name, durability),
            Record::Lease { id, ttl, ends, last } => {
                self.core.replay_lease(id, ttl, deadline(ends, ttl, self.wall), last)
            }
            Record::LeaseEnd { id, revision } => self.core.replay_lease_end(id, revision),
            // It may be that of a commit which is not written down; then all history ends above it anyway.
            Record::Floor { floor } => {
                let floor = floor.min(self.core.revision);
                self.core.compact(floor).map_err(|_| "its floor lies in the future")
            }
        }
    }

    /// What was found may be in the page cache only. After a sync that failed, it may even be there as if it were on the disk:
    /// what is not known to have got there is written once more.
    fn make_durable(&self) -> io::Result<()> {
        let known = self.applied.last().map_or(0, |last| last.head.durable);
        for place in self.applied.iter().filter(|place| place.head.seq > known) {
            let mut frame = vec![0; place.head.room() as usize];
            let file = &self.logs[place.file].file;
            file.read_at(place.offset, &mut frame)?;
            file.write_at(place.offset, &frame)?;
        }
        for log in self.logs.iter().filter(|log| log.last_seq > 0) {
            log.file.sync()?;
        }
        for left in [checkpoint::UNFINISHED] {
            if self.files.list()?.iter().any(|name| name == left) {
                self.files.remove(left)?;
            }
        }
        self.files.sync_dir()
    }

    /// Leaves nothing that a reader could take for what it saw before.
    fn settle(&mut self, reserved: Revision) {
        let durabilities: Vec<Durability> = self.core.durabilities().collect();
        let forgets = durabilities.contains(&Durability::Memory);
        let found = self.core.revision;
        // Whoever has seen the last revision that may have been shown must not go on from there: what it saw may be gone.
        match reserved > found {
            true => self.core.skip_to(reserved.next()),
            false if forgets => self.core.skip_to(found.next()),
            false => {}
        }
        for (index, durability) in durabilities.into_iter().enumerate() {
            if durability == Durability::Memory {
                self.core.empty_table(TableId(index as u32));
            }
        }
    }

    fn wal(
        &mut self,
        sizes: SegmentBytes,
        (seq, chain, generation): (u64, u32, u64),
        last: Option<Place>,
        replayed: u64,
    ) -> Wal {
        let number = |name: &str| u64::from_str_radix(name.strip_prefix(wal::PREFIX)?, 16).ok();
        let next_number = self
            .logs
            .iter()
            .filter_map(|log| number(&log.name))
            .max()
            .map_or(1, |number| number.saturating_add(1));
        let mut wal = Wal {
            identity: self.preface.identity,
            generation,
            seq,
            chain,
            total: replayed,
            covered: 0,
            sizes,
            next_number,
            current: None,
            spare: None,
            full: Vec::new(),
            free: Vec::new(),
            preparing: false,
            unsynced: Vec::new(),
        };
        for (index, log) in self.logs.iter().enumerate() {
            let LogFile { name, file, bytes, written, last_seq } = log;
            let segment = Segment {
                name: name.clone(),
                file: file.clone(),
                bytes: *bytes,
                written: *written,
                last_seq: *last_seq,
            };
            match last {
                Some(last) if last.file == index => wal.current = Some(segment),
                _ if *last_seq > 0 => wal.full.push(segment),
                _ => wal.free.push(segment),
            }
        }
        wal.full.sort_by_key(|segment| segment.last_seq);
        wal
    }
}

/// When a lease ends, counted from now. It never has more time than it was granted, whatever clocks do.
fn deadline(ends: Duration, ttl: Duration, wall: Duration) -> Duration {
    ends.saturating_sub(wall).min(ttl)
}

/// Shows every frame of a file.
fn scan(
    file: &dyn FileOps,
    bytes: u64,
    identity: u128,
    visit: &mut dyn FnMut(u64, Head, u32),
) -> io::Result<()> {
    let mut window = vec![0; WINDOW_BYTES];
    let (mut from, mut filled, mut at) = (0, 0, 0);
    while at < bytes {
        if at < from || at >= from + filled {
            (from, filled) = (at, (WINDOW_BYTES as u64).min(bytes - at));
            file.read_at(from, &mut window[..filled as usize])?;
        }
        match Head::decode(&window[(at - from) as usize..filled as usize]) {
            Some((head, sum)) if head.identity == identity && head.room() <= bytes - at => {
                visit(at, head, sum);
                at += head.room();
            }
            _ => at += BLOCK_BYTES as u64,
        }
    }
    Ok(())
}
