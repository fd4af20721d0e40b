//! A disk that does what disks may do: it forgets what was not synced, in pieces and in any order, and fails when it is told
//! to.

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    disk::files::{FileOps, Files},
    testing::Random,
};

/// Disks write this much as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What goes wrong, by the number of the operation that changes something, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// It comes to an end in the middle of this one.
    pub crash_at: Option<u64>,
    /// The first sync from this one on fails, and what it should have made durable may be durable or not.
    pub sync_fails_at: Option<u64>,
    /// The first write from this one on fails.
    pub write_fails_at: Option<u64>,
    /// How many bytes there is room for.
    pub bytes_max: Option<u64>,
    /// Reads fail.
    pub reads_fail: bool,
    /// It says that it has synced files, and has not.
    pub lies: bool,
}

/// A simulated disk, or rather one directory on it. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Disk>>);

struct Disk {
    random: Random,
    failures: Failures,
    steps: u64,
    crashed: bool,
    failed: bool,
    /// Grows with each restart; files that were opened before are not there any more.
    boot: u64,
    locked: bool,
    files: BTreeMap<u64, File>,
    next: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names that were not synced.
    renames: Vec<Rename>,
    start: Instant,
}

#[derive(Clone)]
enum Rename {
    Set(String, u64),
    Remove(String),
}

#[derive(Default)]
struct File {
    /// As it is read, and as it is when the power goes.
    content: Vec<u8>,
    durable: Vec<u8>,
    /// What makes the difference, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
}

fn write(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if at > content.len() {
        // Much faster than filling byte by byte, where nothing is optimized.
        content.extend_from_slice(&vec![0; at - content.len()]);
    }
    if at == content.len() {
        return content.extend_from_slice(bytes);
    }
    if at + bytes.len() > content.len() {
        content.truncate(at);
        return content.extend_from_slice(bytes);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

impl File {
    fn sync(&mut self) {
        for (at, bytes) in std::mem::take(&mut self.unsynced) {
            write(&mut self.durable, at, &bytes);
        }
    }

    /// Makes the last write durable. Of those before, only what it overwrites is settled with it: a write past the page cache
    /// first clears its place there.
    fn write_through(&mut self) {
        let Some((at, bytes)) = self.unsynced.pop() else { return };
        let range = at..at + bytes.len();
        let unsynced = std::mem::take(&mut self.unsynced);
        for (at, bytes) in unsynced {
            match at < range.end && range.start < at + bytes.len() {
                true => write(&mut self.durable, at, &bytes),
                false => self.unsynced.push((at, bytes)),
            }
        }
        write(&mut self.durable, at, &bytes);
    }

    /// Some sectors of what was not synced are durable, others are not.
    fn tear(&mut self, random: &mut Random) {
        let kept_per_mille = [0, 300, 700, 1_000][random.below(4) as usize];
        for (at, bytes) in std::mem::take(&mut self.unsynced) {
            let kept = if random.happens(300) { 1_000 } else { kept_per_mille };
            let mut from = 0;
            while from < bytes.len() {
                let to = (((at + from) / SECTOR_BYTES + 1) * SECTOR_BYTES - at).min(bytes.len());
                if random.happens(kept) {
                    write(&mut self.durable, at + from, &bytes[from..to]);
                }
                from = to;
            }
        }
    }
}

impl Disk {
    /// An operation that changes something begins.
    fn begin(&mut self, boot: u64) -> io::Result<()> {
        if self.crashed || boot != self.boot {
            return Err(io::Error::other("the machine has stopped"));
        }
        self.steps += 1;
        Ok(())
    }

    /// Whether the operation is the last one.
    fn ends(&mut self) -> io::Result<()> {
        if self.failures.crash_at.is_some_and(|at| self.steps >= at) {
            (self.crashed, self.failed) = (true, true);
            return Err(io::Error::other("the machine stops"));
        }
        Ok(())
    }

    fn fails(&mut self, at: fn(&mut Failures) -> &mut Option<u64>) -> bool {
        let steps = self.steps;
        let fails = at(&mut self.failures).take_if(|at| steps >= *at).is_some();
        self.failed |= fails;
        fails
    }

    fn rename(&mut self, change: Rename) {
        apply(&mut self.names, &change);
        self.renames.push(change);
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|file| file.content.len() as u64).sum()
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Rename) {
    match change {
        Rename::Set(name, id) => {
            names.retain(|_, other| other != id);
            names.insert(name.clone(), *id);
        }
        Rename::Remove(name) => drop(names.remove(name)),
    }
}

impl SimDisk {
    /// An empty disk. What it forgets follows from the seed.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Disk {
            random: Random::new(seed),
            failures: Failures::default(),
            steps: 0,
            crashed: false,
            failed: false,
            boot: 0,
            locked: false,
            files: BTreeMap::new(),
            next: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renames: Vec::new(),
            start: Instant::now(),
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to go wrong from now on; operations are counted anew.
    pub fn plan(&self, failures: Failures) {
        let mut disk = self.disk();
        (disk.failures, disk.steps, disk.failed) = (failures, 0, false);
    }

    /// What is to go wrong from now on, by the same count.
    pub fn plan_more(&self, failures: Failures) {
        self.disk().failures = failures;
    }

    /// Whether reads fail.
    pub fn fail_reads(&self, fail: bool) {
        self.disk().failures.reads_fail = fail;
    }

    /// Whether it has come to an end.
    pub fn has_crashed(&self) -> bool {
        self.disk().crashed
    }

    /// Whether anything has gone wrong that was planned.
    pub fn has_failed(&self) -> bool {
        self.disk().failed
    }

    /// How many operations there were.
    pub fn steps(&self) -> u64 {
        self.disk().steps
    }

    /// The time, counted from 1970.
    pub fn wall(&self) -> Duration {
        Duration::from_secs(1_800_000_000) + self.disk().start.elapsed()
    }

    /// Only the process ended, or the power went: then what was not synced is there in part or not at all. Nothing goes
    /// wrong from now on.
    pub fn restart(&self, power: bool) {
        let mut disk = self.disk();
        let disk = &mut *disk;
        disk.boot += 1;
        (disk.crashed, disk.locked, disk.failures) = (false, false, Failures::default());
        if !power {
            return;
        }
        for change in std::mem::take(&mut disk.renames) {
            if disk.random.happens(500) {
                apply(&mut disk.durable_names, &change);
            }
        }
        disk.names = disk.durable_names.clone();
        for file in disk.files.values_mut() {
            file.tear(&mut disk.random);
            file.content = file.durable.clone();
        }
    }

    /// Changes one bit somewhere.
    pub fn flip_a_bit(&self) {
        let mut disk = self.disk();
        let names: Vec<u64> =
            disk.names.values().copied().filter(|id| !disk.files[id].content.is_empty()).collect();
        let Some(id) = names.get(disk.random.below(names.len() as u64) as usize).copied() else { return };
        // Where something is written, mostly.
        let length = disk.files[&id].content.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        let (at, bit) = (disk.random.below(length as u64) as usize, disk.random.below(8));
        if let Some(file) = disk.files.get_mut(&id) {
            file.content[at] ^= 1 << bit;
            file.durable = file.content.clone();
            file.unsynced.clear();
        }
    }

    /// Puts a file there, durable.
    pub fn put(&self, name: &str, content: Vec<u8>) {
        let mut disk = self.disk();
        disk.next += 1;
        let id = disk.next;
        disk.files.insert(id, File { durable: content.clone(), content, unsynced: Vec::new() });
        apply(&mut disk.names, &Rename::Set(name.to_owned(), id));
        apply(&mut disk.durable_names, &Rename::Set(name.to_owned(), id));
    }

    /// The files and what they hold.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let disk = self.disk();
        disk.names.iter().map(|(name, id)| (name.clone(), disk.files[id].content.clone())).collect()
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("names", &self.disk().names).finish_non_exhaustive()
    }
}

impl Files for SimDisk {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk().names.keys().cloned().collect())
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn FileOps>> {
        let mut disk = self.disk();
        let boot = disk.boot;
        let id = match (disk.names.get(name).copied(), create) {
            (Some(id), _) => id,
            (None, false) => return Err(io::ErrorKind::NotFound.into()),
            (None, true) => {
                disk.begin(boot)?;
                disk.next += 1;
                let id = disk.next;
                disk.files.insert(id, File::default());
                disk.rename(Rename::Set(name.to_owned(), id));
                disk.ends()?;
                id
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), id, boot }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let boot = disk.boot;
        disk.begin(boot)?;
        let id = disk.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        disk.rename(Rename::Set(to.to_owned(), id));
        disk.ends()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let boot = disk.boot;
        disk.begin(boot)?;
        disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        disk.rename(Rename::Remove(name.to_owned()));
        disk.ends()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let boot = disk.boot;
        disk.begin(boot)?;
        disk.ends()?;
        disk.renames.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn lock(&self, _: &str) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut disk = self.disk();
        if std::mem::replace(&mut disk.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(Unlock(self.clone(), disk.boot))))
    }

    fn identity(&self) -> u128 {
        u128::from(self.disk().random.number()) + 1
    }
}

struct Unlock(SimDisk, u64);

impl Drop for Unlock {
    fn drop(&mut self) {
        let mut disk = self.0.disk();
        if disk.boot == self.1 {
            disk.locked = false;
        }
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    boot: u64,
}

impl SimFile {
    fn write(&self, offset: u64, bytes: &[u8], through: bool) -> io::Result<bool> {
        let mut disk = self.disk.disk();
        let disk = &mut *disk;
        disk.begin(self.boot)?;
        if disk.fails(|failures| &mut failures.write_fails_at) {
            return Err(io::Error::other("the disk fails"));
        }
        let used = disk.used();
        let file = disk.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let grows = (offset + bytes.len() as u64).saturating_sub(file.content.len() as u64);
        if grows > 0 && disk.failures.bytes_max.is_some_and(|max| used + grows > max) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        write(&mut file.content, offset as usize, bytes);
        file.unsynced.push((offset as usize, bytes.to_vec()));
        disk.ends()?;
        let through = through && disk.random.happens(500);
        if through
            && !disk.failures.lies
            && let Some(file) = disk.files.get_mut(&self.id)
        {
            file.write_through();
        }
        Ok(through)
    }
}

impl FileOps for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.disk().files.get(&self.id).map_or(0, |file| file.content.len() as u64))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.disk();
        if disk.failures.reads_fail {
            return Err(io::Error::other("the disk can't be read"));
        }
        let file = disk.files.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let from = offset as usize;
        let found = file.content.get(from..from + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes, false).map(|_| ())
    }

    fn write_through_at(&self, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        self.write(offset, bytes, true)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.disk();
        let disk = &mut *disk;
        disk.begin(self.boot)?;
        disk.ends()?;
        let fails = disk.fails(|failures| &mut failures.sync_fails_at);
        let file = disk.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        match fails {
            true => {
                file.tear(&mut disk.random);
                Err(io::Error::other("the disk can't sync"))
            }
            false if disk.failures.lies => Ok(()),
            false => {
                file.sync();
                Ok(())
            }
        }
    }
}
