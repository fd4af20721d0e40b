//! Whose a volume's files are when the pod has an `fsGroup` (upstream's `pkg/volume/volume_linux.go`).

use std::{
    io,
    os::unix::fs::{PermissionsExt as _, lchown},
    path::Path,
};

/// How deep directories are gone into.
const DEPTH_MAX: usize = 64;

/// Gives a volume with all that is in it to a group, which may read it and, unless it is `read_only`, write to it. What is made in
/// it later is the group's too.
///
/// # Errors
/// Of the first file whose group can't be changed.
pub(super) fn give_to_group(volume: &Path, group: u32, read_only: bool) -> io::Result<()> {
    give(volume, group, read_only, DEPTH_MAX)
}

/// Whether the volume's root is as [`give_to_group`] leaves it, so that the rest is taken to be, too (`fsGroupChangePolicy:
/// OnRootMismatch`, KEP-695).
///
/// # Errors
/// When the root can't be looked at.
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub(super) fn is_of_group(volume: &Path, group: u32) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = volume.metadata()?;
    Ok(metadata.gid() == group && metadata.mode() & 0o2770 == 0o2770)
}

fn give(path: &Path, group: u32, read_only: bool, depth: usize) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    lchown(path, None, Some(group))?;
    // A link has no mode, and what it leads to may be anywhere.
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.permissions().mode() | if read_only { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        mode |= 0o2110;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if !metadata.is_dir() {
        return Ok(());
    }
    if depth == 0 {
        return Err(io::Error::other(format!("a volume is deeper than {DEPTH_MAX} directories")));
    }
    for entry in std::fs::read_dir(path)? {
        give(&entry?.path(), group, read_only, depth - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn files_and_directories_become_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().metadata().unwrap().gid();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l")).unwrap();
        let set = |name: &str, mode| {
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (read_only, of_file, of_dir) in [(true, 0o640, 0o2750), (false, 0o660, 0o2770)] {
            set("d/f", 0o600);
            set("d", 0o700);
            give_to_group(dir.path(), own, read_only).unwrap();
            let mode = |name: &str| dir.path().join(name).metadata().unwrap().mode() & 0o7777;
            assert_eq!((mode("d/f"), mode("d")), (of_file, of_dir), "{read_only}");
        }
        assert_eq!(dir.path().join("l").metadata().unwrap().mode() & 0o020, 0, "what a link leads to stays");
    }
}
