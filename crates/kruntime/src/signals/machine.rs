//! This machine's figures, from the kernel.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::NodeSignals;
use crate::eviction::{Figure, Signal};

/// Measures the machine that the process is on, as upstream's kubelet does by cAdvisor: memory by the control groups (of either version)
/// and `/proc/meminfo`, file systems by `statvfs`, processes by `/proc`.
///
/// Where the process itself is in a control group with a limit of memory that shows as the root, as in a container, that limit is the
/// capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSignals {
    /// A directory on the file system of volumes and logs (`nodefs`); `None` leaves its signals out.
    pub node_dir: Option<PathBuf>,
    /// A directory on the file system of images (`imagefs`); `None` leaves its signals out.
    pub image_dir: Option<PathBuf>,
    /// Where control groups are: `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// Where the kernel tells of processes: `/proc`.
    pub proc_root: PathBuf,
}

impl MachineSignals {
    /// Measures memory, processes, and the file system of `dir` as the one of volumes, logs and images.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            node_dir: Some(dir.clone()),
            image_dir: Some(dir),
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
        }
    }

    fn measure(&self) -> BTreeMap<Signal, Figure> {
        let mut figures = BTreeMap::new();
        let mut put = |signal, figure: Option<Figure>| figure.map(|figure| figures.insert(signal, figure));
        let read = |root: &Path, name: &str| std::fs::read_to_string(root.join(name)).ok();
        let group = |one: &str, other: &str| {
            read(&self.cgroup_root, one).or_else(|| read(&self.cgroup_root, &format!("memory/{other}")))
        };
        let meminfo = read(&self.proc_root, "meminfo").unwrap_or_default();
        let figure = memory(
            &meminfo,
            group("memory.current", "memory.usage_in_bytes").as_deref(),
            group("memory.max", "memory.limit_in_bytes").as_deref(),
            group("memory.stat", "memory.stat").as_deref(),
        );
        put(Signal::Memory, figure);
        let number = |name: &str| read(&self.proc_root, name)?.trim().parse::<u64>().ok();
        let load = read(&self.proc_root, "loadavg").unwrap_or_default();
        put(Signal::Pids, pids(&load, number("sys/kernel/pid_max"), number("sys/kernel/threads-max")));
        for (dir, bytes, inodes) in [
            (&self.node_dir, Signal::NodeFs, Signal::NodeFsInodes),
            (&self.image_dir, Signal::ImageFs, Signal::ImageFsInodes),
        ] {
            let Some(dir) = dir else { continue };
            match file_system(dir) {
                Ok((of_bytes, of_inodes)) => {
                    put(bytes, Some(of_bytes));
                    put(inodes, of_inodes);
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a file system can't be measured");
                }
            }
        }
        figures
    }
}

#[async_trait]
impl NodeSignals for MachineSignals {
    async fn figures(&self) -> BTreeMap<Signal, Figure> {
        let signals = self.clone();
        // A file system that is far away may take its time.
        tokio::task::spawn_blocking(move || signals.measure()).await.unwrap_or_default()
    }
}

/// The figure behind `key` in lines like `key 12` or `key: 12 kB`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, rest) = line.split_once([':', ' '])?;
        let mut words = rest.split_whitespace().filter(|_| name == key);
        let number: u64 = words.next()?.parse().ok()?;
        Some(if words.next() == Some("kB") { number.saturating_mul(1024) } else { number })
    })
}

/// The capacity without the working set: what is used, less what is cached of files that nobody has touched lately. `usage`, `limit` and
/// `stat` are those of the root control group; the root of version 2 has no usage, which is then what isn't free.
fn memory(meminfo: &str, usage: Option<&str>, limit: Option<&str>, stat: Option<&str>) -> Option<Figure> {
    let total = value(meminfo, "MemTotal")?;
    let number = |text: Option<&str>| text?.trim().parse::<u64>().ok();
    let capacity = number(limit).map_or(total, |limit| limit.min(total));
    let used = match number(usage) {
        Some(used) => used,
        None => total.saturating_sub(value(meminfo, "MemFree")?),
    };
    let cached = stat.and_then(|stat| value(stat, "total_inactive_file").or(value(stat, "inactive_file")));
    let cached = cached.or_else(|| value(meminfo, "Inactive(file)")).unwrap_or(0);
    Some(Figure { available: capacity.saturating_sub(used.saturating_sub(cached)), capacity })
}

/// The processes that can still be made: the lesser of the kernel's two limits without the threads that there are (the fourth field of
/// proc_loadavg(5)).
fn pids(load: &str, pid_max: Option<u64>, threads_max: Option<u64>) -> Option<Figure> {
    let running: u64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    let capacity = [pid_max, threads_max].into_iter().flatten().min()?;
    Some(Figure { available: capacity.saturating_sub(running), capacity })
}

/// The bytes and, where they are counted, the inodes of the file system that `dir` is on.
fn file_system(dir: &Path) -> io::Result<(Figure, Option<Figure>)> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a zero byte, and the structure is the kernel's to fill; all its bytes are valid as zeros.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    let block = stat.f_frsize;
    let bytes = Figure {
        available: stat.f_bavail.saturating_mul(block),
        capacity: stat.f_blocks.saturating_mul(block),
    };
    let inodes = Figure { available: stat.f_ffree, capacity: stat.f_files };
    Ok((bytes, (stat.f_files > 0).then_some(inodes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn memory_is_the_capacity_without_the_working_set() {
        let meminfo = "MemTotal: 1048576 kB\nMemFree: 524288 kB\nInactive(file): 102400 kB\n";
        let text = |mib: u64| (mib * MIB).to_string();
        let stat = |key: &str, mib: u64| format!("cache 1\n{key} {}\n", mib * MIB);
        // Usage, limit and statistics of the group; then what is left and what there is, in MiB.
        let cases = [
            // The root of version 2.
            (None, None, Some(stat("inactive_file", 200)), (712, 1024)),
            // No control groups at all.
            (None, None, None, (612, 1024)),
            // Version 1: no limit is a huge number, `inactive_file` alone is not the whole hierarchy's.
            (
                Some(text(700)),
                Some("9223372036854771712".to_owned()),
                Some(stat("inactive_file", 1) + &stat("total_inactive_file", 300)),
                (624, 1024),
            ),
            // Within a container.
            (Some(text(200)), Some(text(256)), Some(stat("inactive_file", 50)), (106, 256)),
            (Some(text(200)), Some("max".to_owned()), Some(stat("inactive_file", 50)), (874, 1024)),
            (Some(text(300)), Some(text(256)), None, (56, 256)),
        ];
        for (usage, limit, stat, (available, capacity)) in cases {
            let found = memory(meminfo, usage.as_deref(), limit.as_deref(), stat.as_deref());
            let expected = Figure { available: available * MIB, capacity: capacity * MIB };
            assert_eq!(found, Some(expected), "{usage:?} {limit:?} {stat:?}");
        }
        assert_eq!(memory("", Some("1"), None, None), None);
    }

    #[test]
    fn processes_are_counted_against_the_lesser_limit() {
        let of = |available, capacity| Some(Figure { available, capacity });
        let load = "0.1 0.2 0.3 2/150 4242";
        assert_eq!(pids(load, Some(32_768), Some(1000)), of(850, 1000));
        assert_eq!(pids(load, Some(100), None), of(0, 100));
        assert_eq!(pids(load, None, None), None);
        assert_eq!(pids("", Some(1), Some(1)), None);
    }

    #[tokio::test]
    async fn this_machine_can_be_measured() {
        let dir = tempfile::tempdir().unwrap();
        let figures = MachineSignals::new(dir.path()).figures().await;
        for signal in [Signal::Memory, Signal::Pids, Signal::NodeFs, Signal::ImageFs] {
            let figure = figures[&signal];
            assert!(figure.available > 0 && figure.available <= figure.capacity, "{signal:?} {figure:?}");
        }
        let nowhere = MachineSignals { node_dir: Some("/nowhere/at/all".into()), ..MachineSignals::new("/") };
        assert!(!nowhere.figures().await.contains_key(&Signal::NodeFs));
    }
}
