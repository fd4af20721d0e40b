//! Opening whatever someone has put into a directory.

use std::{sync::Arc, time::Duration};

use super::SimDisk;
use crate::{
    DiskStore, OpenError, RecoveryReport, Revision, Store,
    disk::{
        checkpoint::{self, Preface},
        frame::{Buffer, Head},
        identity, wal,
    },
};

/// The number of the store that these files belong to.
const IDENTITY: u128 = 7;

/// Opens a directory that holds these files, and checks the state that comes of it.
///
/// # Errors
/// As of [`DiskStore::open`].
///
/// # Panics
/// If the state contradicts itself.
pub fn open_files(files: Vec<(String, Vec<u8>)>) -> Result<RecoveryReport, OpenError> {
    let disk = SimDisk::new(1);
    for (name, content) in files {
        disk.put(&name, content);
    }
    let clock = || Duration::from_secs(1_800_000_000);
    let store = DiskStore::builder("sim").wall_clock(clock).open_files(Arc::new(disk), true)?;
    let snapshot = store.snapshot();
    snapshot.verify().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(snapshot.revision(), store.recovery().revision);
    Ok(store.recovery().clone())
}

/// A directory whose log is these bytes.
pub fn log(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    vec![identity::plate(IDENTITY), (wal::segment_name(1), bytes.to_vec())]
}

/// A directory whose log is one frame with these records, so many of them as is said, and with checksums that are right.
pub fn log_of_records(records: &[u8], count: u32) -> Vec<(String, Vec<u8>)> {
    let mut buffer = Buffer::new();
    buffer.end().extend_from_slice(records);
    buffer.keep();
    let revision = Revision(1_000);
    let head = Head {
        identity: IDENTITY,
        generation: 1,
        seq: 1,
        first: Revision::ZERO,
        last: revision,
        reserved: revision,
        durable: 0,
        records: count,
        bytes: 0,
        sum: 0,
        chain: 0,
        flags: 0,
    };
    buffer.finish_with(head, count);
    log(buffer.frame())
}

/// A directory with a checkpoint whose preface is right and is followed by these bytes.
pub fn checkpoint(backup: &[u8]) -> Vec<(String, Vec<u8>)> {
    let preface = Preface {
        identity: IDENTITY,
        generation: 1,
        seq: 5,
        chain: 6,
        reserved: Revision(9),
        taken: Duration::from_secs(1_800_000_000),
        durabilities: Vec::new(),
    };
    let content = [&preface.encode(), backup].concat();
    vec![identity::plate(IDENTITY), (checkpoint::name(5), content)]
}
