//! What a directory takes of its disk.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _, path::Path};

/// How many files and directories are looked at; of a directory with more only so many are counted.
pub(crate) const ENTRIES_MAX: usize = 1_000_000;
/// The unit that the kernel counts a file's blocks in.
const BLOCK_BYTES: u64 = 512;

/// The bytes that a directory and all below it take, as `du -x` counts them: blocks, files with several names once, no other
/// file systems. What can't be read, or goes meanwhile, counts nothing. Blocks.
pub(crate) fn taken(root: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(root) else { return 0 };
    let device = meta.dev();
    let mut total = meta.blocks().saturating_mul(BLOCK_BYTES);
    let mut seen = HashSet::new();
    let mut rest = if meta.is_dir() { vec![root.to_owned()] } else { Vec::new() };
    let mut entries = 0;
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES_MAX {
                tracing::warn!(root = %root.display(), "there is too much to be counted");
                return total;
            }
            // Links are not followed.
            let Ok(meta) = entry.metadata() else { continue };
            let is_new = meta.is_dir() || meta.nlink() < 2 || seen.insert(meta.ino());
            if meta.dev() != device || !is_new {
                continue;
            }
            total = total.saturating_add(meta.blocks().saturating_mul(BLOCK_BYTES));
            if meta.is_dir() {
                rest.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let before = taken(dir.path());
        let at = |name: &str| dir.path().join("volume").join(name);
        fs::create_dir_all(at("deep/deeper")).unwrap();
        fs::write(at("deep/deeper/file"), vec![1; 1 << 20]).unwrap();
        let whole = taken(dir.path()) - before;
        assert!((1 << 20..2 << 20).contains(&whole), "{whole}");
        fs::hard_link(at("deep/deeper/file"), at("again")).unwrap();
        std::os::unix::fs::symlink("/", at("elsewhere")).unwrap();
        let again = taken(dir.path()) - before;
        assert!(again - whole < 1 << 16, "{again}");
        assert!(taken(&at("elsewhere")) < 1 << 16, "a link that stands for the whole is none");
        assert_eq!(taken(&at("nowhere")), 0);
    }
}
