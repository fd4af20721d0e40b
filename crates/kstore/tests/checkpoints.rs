//! The files of checkpoints: what they hold is had back, and nothing else; older ones are read; damage is told by its place.
#![cfg(all(feature = "disk", unix))]

use std::path::{Path, PathBuf};

use kstore::{DiskStore, MemoryStore, Op, OpenError, Range, Store, TableSpec, Txn, testing::Random};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const ENTRIES: usize = 4_000;

/// A directory whose only state is in a checkpoint: entries whose values can't be packed, or can.
async fn restored(packable: bool, entries: usize) -> Result<(tempfile::TempDir, PathBuf)> {
    let origin = MemoryStore::new();
    let table = origin.open_table(TableSpec::new("t"))?;
    let mut random = Random::new(7);
    for number in 0..entries {
        let value: Vec<u8> = match packable {
            true => vec![b'x'; 1_024],
            false => (0..128).flat_map(|_| random.number().to_le_bytes()).collect(),
        };
        origin.commit(Txn::new().op(Op::put(table, format!("{number:05}"), value))).await?;
    }
    let directory = tempfile::tempdir()?;
    let store = DiskStore::open(&directory)?;
    store.restore(origin.backup().await?.into()).await?;
    drop(store);
    let mut files = std::fs::read_dir(directory.path())?.filter_map(|file| Some(file.ok()?.path()));
    let is_checkpoint = |path: &PathBuf| path.to_string_lossy().contains("checkpoint-");
    let checkpoint = files.find(is_checkpoint).ok_or("there is no checkpoint")?;
    drop(files);
    Ok((directory, checkpoint))
}

fn damage(path: &Path, at: usize) -> Result {
    let mut bytes = std::fs::read(path)?;
    bytes[at] ^= 0x40;
    Ok(std::fs::write(path, bytes)?)
}

/// Where a piece of text stands in a file.
fn place_of(path: &Path, text: &[u8]) -> Result<usize> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.windows(text.len()).position(|window| window == text).ok_or("it is not there")?)
}

/// Long ones are read by several threads, short ones are not; the order of the entries is the same.
#[tokio::test]
async fn everything_is_had_back_in_order() -> Result {
    for (packable, entries) in [(false, ENTRIES), (true, ENTRIES), (false, 3), (true, 3)] {
        let (directory, _) = restored(packable, entries).await?;
        let store = DiskStore::open(&directory)?;
        let table = store.open_table(TableSpec::new("t"))?;
        let snapshot = store.snapshot();
        snapshot.verify()?;
        let keys: Vec<_> = snapshot.range(table, Range::all()).map(|entry| entry.key().clone()).collect();
        let expected: Vec<_> = (0..entries).map(|number| format!("{number:05}")).collect();
        assert_eq!(keys, expected);
    }
    let (_directory, checkpoint) = restored(true, ENTRIES).await?;
    let bytes = std::fs::metadata(&checkpoint)?.len() as usize;
    assert!(bytes < ENTRIES * 100, "what repeats is packed: {bytes} bytes");
    Ok(())
}

/// A block that is damaged is refused, with the file and the place where it begins. (A store that had been restored, and had no
/// frames of its own, was opened empty: the checkpoint was thought not to be needed, since the log reached as far as it did.)
#[tokio::test]
async fn a_damaged_block_is_refused_with_its_place() -> Result {
    let (directory, checkpoint) = restored(false, ENTRIES).await?;
    let (first, second) = (place_of(&checkpoint, b"00000")?, place_of(&checkpoint, b"03000")?);
    for at in [first, second] {
        damage(&checkpoint, at)?;
        match DiskStore::open(&directory) {
            Err(OpenError::Corrupt { file, offset, .. }) => {
                assert_eq!(file, checkpoint);
                let offset = offset as usize;
                // A block has entries of 256 KiB, and then the rest of the last one.
                assert!(offset < at && at - offset < 258 * 1_024, "{at} was damaged, {offset} was told");
            }
            other => panic!("opened: {other:?}"),
        }
        damage(&checkpoint, at)?;
    }
    let bytes = std::fs::read(&checkpoint)?;
    for kept in [bytes.len() - 1, bytes.len() / 2, first] {
        std::fs::write(&checkpoint, &bytes[..kept])?;
        let refused = DiskStore::open(&directory);
        assert!(
            matches!(&refused, Err(OpenError::Corrupt { file, .. }) if *file == checkpoint),
            "{refused:?}"
        );
    }
    std::fs::write(&checkpoint, &bytes)?;
    DiskStore::open(&directory)?;
    Ok(())
}

/// A checkpoint of the version before has the same frames, none of them packed, behind other numbers; it is read. One of a version
/// to come is refused, and the refusal says why.
#[tokio::test]
async fn the_version_before_is_read_and_the_one_to_come_refused() -> Result {
    let (directory, checkpoint) = restored(false, 3).await?;
    let backup = place_of(&checkpoint, b"kstorbk")?;
    let mut bytes = std::fs::read(&checkpoint)?;
    assert_eq!((bytes[7], bytes[backup + 7]), (2, 2));
    (bytes[7], bytes[backup + 7]) = (1, 1);
    std::fs::write(&checkpoint, &bytes)?;
    let store = DiskStore::open(&directory)?;
    let table = store.open_table(TableSpec::new("t"))?;
    assert_eq!(store.snapshot().len(table), 3);
    drop(store);
    let newest = std::fs::read(&checkpoint)?;
    assert_eq!(newest, bytes, "it is not written anew before there is a reason");
    bytes[7] = 3;
    std::fs::write(&checkpoint, &bytes)?;
    let refused = DiskStore::open(&directory);
    assert!(matches!(&refused, Err(OpenError::Format { found: 3, known: 2, .. })), "{refused:?}");
    Ok(())
}
