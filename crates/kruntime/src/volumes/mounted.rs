//! What is mounted where, as the kernel says.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// The places in this process' mount namespace that something is mounted at. None where the kernel does not say.
pub(crate) fn mount_points() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(point_of).collect()
}

/// The fifth field of a line (proc_pid_mountinfo(5)).
fn point_of(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        // Blanks and backslashes are three octal digits.
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let escaped = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// Whether something is mounted at this very place.
#[cfg(any(test, all(feature = "plugins", target_os = "linux")))]
pub(crate) fn is_mounted(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|path| mount_points().contains(&path))
}

/// A place at or below `dir` where something is mounted.
pub(crate) fn first_below(dir: &Path) -> Option<PathBuf> {
    let dir = fs::canonicalize(dir).ok()?;
    mount_points().into_iter().find(|point| point.starts_with(&dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are() {
        let line = |point: &str| format!("36 35 98:0 / {point} rw,noatime master:1 - ext3 /dev/root rw");
        let cases = [("/mnt2", "/mnt2"), ("/a\\040b\\134c", "/a b\\c"), ("/odd\\9", "/odd\\9")];
        for (text, expected) in cases {
            assert_eq!(point_of(line(text).as_bytes()).as_deref(), Some(Path::new(expected)));
        }
        assert_eq!(point_of(b"too short"), None);
        assert!(cfg!(not(target_os = "linux")) || is_mounted(Path::new("/proc")));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mounted(dir.path()) && first_below(dir.path()).is_none());
        assert!(!is_mounted(Path::new("/does/not/exist")));
    }
}
