//! A container's view of the file system: the machine's, with the volumes put in.
//!
//! The plan is made before the fork, with every path ready as a C string; the child only carries it out. The new root is
//! a file system in memory with the machine's top-level directories bound into it. A mount path that the machine does
//! not have gets its parent replaced by a file system in memory as well, with all that was in the parent bound into it.
//! So nothing on the machine is changed, and every mount path is possible.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use crate::runtime::{Mount, RuntimeError};

/// The most entries of a directory that are bound one by one.
const ENTRIES_MAX: usize = 4096;
/// The most symbolic links on the way to a mount path.
const LINKS_MAX: usize = 40;
/// What of the machine's `/dev` a container sees.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// One step. Sources are below `/old`, targets below `/new`.
#[derive(Debug)]
enum Step {
    Memory(CString),
    Bind { source: CString, target: CString, required: bool },
    ReadOnly(CString),
    Directory(CString),
    File(CString),
    Link { to: CString, path: CString },
}

/// The steps from the machine's file system to the container's.
#[derive(Debug)]
pub(in crate::runtime) struct MountPlan {
    /// An empty directory of the machine to begin at.
    base: CString,
    new: CString,
    old: CString,
    steps: Vec<Step>,
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn below(prefix: &str, path: &Path) -> PathBuf {
    Path::new(prefix).join(path.strip_prefix("/").unwrap_or(path))
}

/// How far a path exists on the machine, symbolic links followed, and what of it is missing.
fn resolve(path: &Path) -> io::Result<(PathBuf, Vec<OsString>)> {
    let mut found = PathBuf::from("/");
    let mut left: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&part);
        match fs::symlink_metadata(&next) {
            Ok(meta) if meta.is_symlink() => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let to = fs::read_link(&next)?;
                if to.is_absolute() {
                    found = PathBuf::from("/");
                }
                for part in parts(&to).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(part);
                }
            }
            Ok(_) => found = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut missing = vec![part];
                missing.extend(left);
                return Ok((found, missing));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((found, Vec::new()))
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

impl MountPlan {
    /// Plans `mounts`. `base` is an empty directory of the machine.
    pub(super) fn new(base: &Path, mounts: &[Mount]) -> Result<Self, RuntimeError> {
        let mut plan = Planner::default();
        let wrong = |source| RuntimeError::Io { context: "planning the mounts", source };
        plan.fill_root().map_err(wrong)?;
        let mut sorted: Vec<&Mount> = mounts.iter().collect();
        sorted.sort_by_key(|mount| mount.target.components().count());
        let mut done: Vec<(PathBuf, PathBuf)> = Vec::new();
        for mount in sorted {
            let target = plan.place(mount, &done)?;
            plan.bind(&mount.source, &target, true).map_err(wrong)?;
            if mount.read_only {
                plan.steps.push(Step::ReadOnly(c_string(&below("/new", &target)).map_err(wrong)?));
            }
            done.push((target, mount.source.clone()));
        }
        Ok(Self {
            new: c_string(&base.join("new")).map_err(wrong)?,
            old: c_string(&base.join("old")).map_err(wrong)?,
            base: c_string(base).map_err(wrong)?,
            steps: plan.steps,
        })
    }
}

#[derive(Default)]
struct Planner {
    steps: Vec<Step>,
    /// Directories whose contents are bound one by one, so that more can be made in them.
    open: BTreeSet<PathBuf>,
    made: BTreeSet<PathBuf>,
}

impl Planner {
    fn bind(&mut self, source: &Path, target: &Path, required: bool) -> io::Result<()> {
        self.steps.push(Step::Bind {
            source: c_string(&below("/old", source))?,
            target: c_string(&below("/new", target))?,
            required,
        });
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.steps.push(Step::Directory(c_string(&below("/new", path))?));
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        self.steps.push(Step::File(c_string(&below("/new", path))?));
        Ok(())
    }

    fn link(&mut self, to: &str, path: &Path) -> io::Result<()> {
        self.steps.push(Step::Link { to: c_string(Path::new(to))?, path: c_string(&below("/new", path))? });
        Ok(())
    }

    fn fill_root(&mut self) -> io::Result<()> {
        self.open(Path::new("/"))?;
        // A `/dev` of one's own is small, and new files can be made in it.
        let dev = Path::new("/dev");
        self.directory(dev)?;
        self.steps.push(Step::Memory(c_string(&below("/new", dev))?));
        self.open.insert(dev.to_owned());
        for name in DEVICES {
            self.file(&dev.join(name))?;
            self.bind(&dev.join(name), &dev.join(name), false)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            self.directory(&dev.join(name))?;
            self.bind(&dev.join(name), &dev.join(name), false)?;
        }
        self.link("pts/ptmx", &dev.join("ptmx"))?;
        self.link("/proc/self/fd", &dev.join("fd"))?;
        for (number, name) in ["stdin", "stdout", "stderr"].iter().enumerate() {
            self.link(&format!("/proc/self/fd/{number}"), &dev.join(name))?;
        }
        Ok(())
    }

    /// Makes a directory of the machine one that more can be made in.
    fn open(&mut self, dir: &Path) -> io::Result<()> {
        if !self.open.insert(dir.to_owned()) {
            return Ok(());
        }
        self.steps.push(Step::Memory(c_string(&below("/new", dir))?));
        let mut count = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if path == Path::new("/dev") {
                continue;
            }
            count += 1;
            if count > ENTRIES_MAX {
                return Err(io::Error::other(format!("{} has too many entries", dir.display())));
            }
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                let to = fs::read_link(&path)?;
                self.steps.push(Step::Link { to: c_string(&to)?, path: c_string(&below("/new", &path))? });
                continue;
            }
            if kind.is_dir() {
                self.directory(&path)?
            } else {
                self.file(&path)?
            }
            self.bind(&path, &path, false)?;
        }
        Ok(())
    }

    /// Makes sure that there is something to mount over, and says where it is.
    fn place(&mut self, mount: &Mount, done: &[(PathBuf, PathBuf)]) -> Result<PathBuf, RuntimeError> {
        let wrong = |source| RuntimeError::Io { context: "planning a mount", source };
        let directory = fs::metadata(&mount.source).map_err(wrong)?.is_dir();
        if !mount.target.is_absolute() {
            return Err(RuntimeError::Config(format!(
                "mountPath {} is not absolute",
                mount.target.display()
            )));
        }
        let (mut found, mut missing) = resolve(&mount.target).map_err(wrong)?;
        if missing.is_empty() && self.is_hidden(&found) {
            missing = parts(found.strip_prefix("/dev").unwrap_or(&found)).collect();
            found = PathBuf::from("/dev");
        }
        let target = missing.iter().fold(found.clone(), |path, part| path.join(part));
        if target == Path::new("/") {
            return Err(RuntimeError::Config("a volume can't be mounted at /".to_owned()));
        }
        // Inside another volume the place to mount over is made in that volume, as other runtimes do.
        if let Some((outer, source)) = done.iter().rev().find(|(outer, _)| target.starts_with(outer)) {
            let inner = source.join(target.strip_prefix(outer).unwrap_or(&target));
            if inner != *source && !inner.exists() {
                let parent = if directory { Some(inner.as_path()) } else { inner.parent() };
                parent.map_or(Ok(()), fs::create_dir_all).map_err(wrong)?;
                if !directory {
                    fs::File::create(&inner).map_err(wrong)?;
                }
            }
            return Ok(target);
        }
        if missing.is_empty() {
            return Ok(target);
        }
        if !fs::metadata(&found).map_err(wrong)?.is_dir() {
            return Err(RuntimeError::Config(format!("{} is not a directory", found.display())));
        }
        if !self.made.iter().any(|made| found.starts_with(made)) {
            self.open(&found).map_err(wrong)?;
        }
        let mut path = found;
        for (index, part) in missing.iter().enumerate() {
            path.push(part);
            if !self.made.insert(path.clone()) {
                continue;
            }
            if directory || index + 1 < missing.len() {
                self.directory(&path).map_err(wrong)?;
            } else {
                self.file(&path).map_err(wrong)?;
            }
        }
        Ok(target)
    }

    /// Whether the machine has `path` but the container's `/dev` does not.
    fn is_hidden(&mut self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix("/dev") else { return false };
        let first = rest.components().next().map(|part| part.as_os_str().to_owned());
        first.is_some_and(|first| {
            let known = DEVICES.iter().any(|name| first == *name)
                || ["pts", "shm", "mqueue"].iter().any(|n| first == *n);
            !known && !self.made.contains(path)
        })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount(
    source: Option<&CString>,
    target: &CString,
    kind: Option<&'static [u8]>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let source = source.map_or(std::ptr::null(), |source| source.as_ptr());
    let kind: *const libc::c_char = kind.map_or(std::ptr::null(), |kind| kind.as_ptr().cast());
    // Not world-writable with the sticky bit, the default: the kernel then refuses `> /dev/null`, as the file is neither
    // the caller's nor the directory's owner's.
    let data: *const libc::c_void =
        if kind.is_null() { std::ptr::null() } else { c"mode=755".as_ptr().cast() };
    // SAFETY: all pointers are null or to strings that end with a zero byte.
    check(unsafe { libc::mount(source, target.as_ptr(), kind, flags, data) })
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

impl MountPlan {
    /// Carries the plan out in a mount namespace of one's own. Runs between fork and exec: only calls that are safe
    /// there, and no allocation.
    pub(super) fn carry_out(&self) -> io::Result<()> {
        const TMPFS: &[u8] = b"tmpfs\0";
        let root = c"/";
        // SAFETY: plain system calls with strings that end with a zero byte.
        unsafe {
            let none = std::ptr::null();
            check(libc::mount(none, root.as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, std::ptr::null()))?;
            mount(None, &self.base, Some(TMPFS), 0)?;
            check(libc::mkdir(self.new.as_ptr(), 0o755))?;
            check(libc::mkdir(self.old.as_ptr(), 0o755))?;
            check(libc::syscall(libc::SYS_pivot_root, self.base.as_ptr(), self.old.as_ptr()) as libc::c_int)?;
            check(libc::chdir(root.as_ptr()))?;
        }
        self.steps.iter().try_for_each(Step::carry_out)?;
        // SAFETY: as above. The second `pivot_root` puts the old root over the new one, from where it is taken away.
        unsafe {
            check(libc::chdir(c"/new".as_ptr()))?;
            let here = c".".as_ptr();
            check(libc::syscall(libc::SYS_pivot_root, here, here) as libc::c_int)?;
            check(libc::umount2(here, libc::MNT_DETACH))?;
            check(libc::chdir(root.as_ptr()))
        }
    }
}

impl Step {
    fn carry_out(&self) -> io::Result<()> {
        const TMPFS: &[u8] = b"tmpfs\0";
        match self {
            Self::Memory(target) => mount(None, target, Some(TMPFS), 0),
            Self::Bind { source, target, required } => {
                match mount(Some(source), target, None, libc::MS_BIND | libc::MS_REC) {
                    Err(_) if !required => Ok(()),
                    result => result,
                }
            }
            Self::ReadOnly(target) => {
                const RDONLY: u64 = 1;
                const RECURSIVE: libc::c_int = 0x8000;
                let attributes = MountAttributes { set: RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
                // SAFETY: the attributes live until the call returns.
                check(unsafe {
                    libc::syscall(
                        libc::SYS_mount_setattr,
                        libc::AT_FDCWD,
                        target.as_ptr(),
                        RECURSIVE,
                        &raw const attributes,
                        size_of::<MountAttributes>(),
                    )
                } as libc::c_int)
            }
            // SAFETY: strings that end with a zero byte.
            Self::Directory(path) => match check(unsafe { libc::mkdir(path.as_ptr(), 0o755) }) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                result => result,
            },
            Self::File(path) => {
                // SAFETY: as above; the descriptor is closed at once.
                let fd = unsafe {
                    libc::open(path.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC | libc::O_WRONLY, 0o644)
                };
                check(fd)?;
                // SAFETY: the descriptor was just opened.
                check(unsafe { libc::close(fd) })
            }
            // SAFETY: as above.
            Self::Link { to, path } => check(unsafe { libc::symlink(to.as_ptr(), path.as_ptr()) }),
        }
    }
}
