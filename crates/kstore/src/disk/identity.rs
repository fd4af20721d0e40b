//! The name plate of a store: the file that says that the directory is one, which one, and in which format.

use std::sync::Arc;

use crate::{
    checksum::crc32c,
    disk::{OpenError, checkpoint, files::Files, wal},
};

const NAME: &str = "STORE";
const UNFINISHED: &str = "STORE.new";
/// The file whose lock is that of the directory.
pub(crate) const LOCK: &str = "LOCK";
/// The last byte is the version of the format.
const MAGIC: &[u8; 8] = b"kstore \x01";
const BYTES: usize = 8 + 16 + 4;

/// The number of the store, made and written down if the directory is empty.
pub(crate) fn identity(files: &dyn Files, names: &[String]) -> Result<u128, OpenError> {
    let io = |source| OpenError::Io { file: files.path(NAME), source: Arc::new(source) };
    let corrupt = |reason| OpenError::Corrupt { file: files.path(NAME), offset: 0, reason };
    if !names.iter().any(|name| name == NAME) {
        let ours = |name: &String| name.starts_with(wal::PREFIX) || name.starts_with(checkpoint::PREFIX);
        if names.iter().any(ours) {
            return Err(OpenError::NotAStore { directory: files.path("") });
        }
        return make(files).map_err(io);
    }
    let file = files.open(NAME, false).map_err(io)?;
    let mut bytes = [0; BYTES];
    if file.len().map_err(io)? != BYTES as u64 {
        return Err(corrupt("its length is impossible"));
    }
    file.read_at(0, &mut bytes).map_err(io)?;
    let (content, sum) = bytes.split_at(BYTES - 4);
    if crc32c(0, content).to_le_bytes() != *sum {
        return Err(corrupt("its checksum is wrong"));
    }
    match content.split_first_chunk::<8>() {
        Some((magic, identity)) if magic == MAGIC => {
            identity.try_into().map(u128::from_le_bytes).map_err(|_| corrupt("it has no number"))
        }
        Some((magic, _)) if magic[..7] == MAGIC[..7] => {
            Err(OpenError::Format { file: files.path(NAME), found: magic[7], known: MAGIC[7] })
        }
        _ => Err(corrupt("it doesn't begin as it should")),
    }
}

/// The file of the store of that number: its name and what it holds.
pub(crate) fn plate(identity: u128) -> (String, Vec<u8>) {
    let mut bytes = [MAGIC.as_slice(), &identity.to_le_bytes()].concat();
    bytes.extend(crc32c(0, &bytes).to_le_bytes());
    (NAME.to_owned(), bytes)
}

fn make(files: &dyn Files) -> std::io::Result<u128> {
    let identity = files.identity();
    let (_, bytes) = plate(identity);
    let file = files.open(UNFINISHED, true)?;
    file.write_at(0, &bytes)?;
    file.sync()?;
    files.rename(UNFINISHED, NAME)?;
    files.sync_dir()?;
    Ok(identity)
}
