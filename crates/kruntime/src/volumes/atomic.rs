//! Replaces the files of a volume all at once.
//!
//! As in upstream's `atomic_writer`: the files are in a directory with a name of their own, `..data` is a symbolic link
//! to it, and what the container opens are links through `..data`. Renaming a new `..data` over the old one is the one
//! moment at which everything changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// The files by their paths in the volume, with their modes.
pub(super) type Payload = BTreeMap<PathBuf, (Vec<u8>, u32)>;

const DATA: &str = "..data";

/// Makes the files in `dir` equal to `payload`. Says whether anything changed. `version` names the new directory and
/// must be another one each time.
pub(super) fn write(dir: &Path, payload: &Payload, version: &str) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_same(&data, payload)? {
        return Ok(false);
    }
    let mut name = format!("..{version}");
    while dir.join(&name).exists() {
        name.push('_');
    }
    for (path, (bytes, mode)) in payload {
        let path = dir.join(&name).join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    fs::create_dir_all(dir.join(&name))?;
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&name, &temporary)?;
    fs::rename(&temporary, &data)?;
    link(dir, payload)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

/// Links each first part of a path through `..data`, and removes links that lead nowhere now.
fn link(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<_> = payload.keys().filter_map(|path| path.components().next()).collect();
    let wanted: BTreeSet<&Path> = wanted.into_iter().map(|part| Path::new(part.as_os_str())).collect();
    for name in &wanted {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_err() {
            symlink(Path::new(DATA).join(name), path)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !wanted.contains(Path::new(&name)) {
            fs::remove_file(dir.join(name))?;
        }
    }
    Ok(())
}

fn is_same(data: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut dirs = vec![data.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
                continue;
            }
            found += 1;
            let path = entry.path();
            let known = path.strip_prefix(data).ok().and_then(|path| payload.get(path));
            let mode = entry.metadata()?.permissions().mode() & 0o7777;
            if known.is_none_or(|known| known.1 != mode) {
                return Ok(false);
            }
            // A file that its owner may not read is written anew each time.
            if fs::read(&path).ok().as_ref() != known.map(|known| &known.0) {
                return Ok(false);
            }
        }
    }
    Ok(found == payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(path, text)| (path.into(), (text.as_bytes().to_vec(), 0o644))).collect()
    }

    #[test]
    fn files_change_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("deep/b", "2")]), "1").unwrap());
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write(dir, &payload(&[("a", "1"), ("deep/b", "2")]), "2").unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
        assert!(write(dir, &payload(&[("a", "3")]), "2").unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(dir.join("deep")).is_err());
        assert!(!dir.join(before).exists());
        assert!(fs::symlink_metadata(dir.join("a")).unwrap().is_symlink());
    }
}
