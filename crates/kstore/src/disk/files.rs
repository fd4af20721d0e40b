//! What the engine asks of a file system: few operations, so that a simulated one can stand in and crash at each.

use std::{
    any::Any,
    collections::hash_map::RandomState,
    fs::{File, OpenOptions, TryLockError},
    hash::{BuildHasher, Hasher},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is written durably is a multiple of this and begins at a multiple of it, in the file and in memory: then no write
/// touches a block of the disk that holds something else.
pub(crate) const BLOCK_BYTES: usize = 4_096;

/// One directory, flat.
pub(crate) trait Files: Send + Sync {
    /// For messages: where a file is.
    fn path(&self, name: &str) -> PathBuf;
    /// The names of the files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file for reading and writing; `create` makes it if it isn't there.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn FileOps>>;
    /// Gives a file another name; what had it is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes what was made, renamed and removed durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Takes the directory for oneself, until what is returned is dropped; none if somebody has it.
    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
    /// A number that no other store has.
    fn identity(&self) -> u128;
}

/// One open file.
pub(crate) trait FileOps: Send + Sync {
    /// How long it is, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills the buffer; an error if the file ends before.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of it.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all of it and, if that costs nothing extra, makes it durable; whether it did. Everything is aligned to blocks,
    /// and begins inside of the file or at its end.
    fn write_through_at(&self, offset: u64, bytes: &[u8]) -> io::Result<bool>;
    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the operating system.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory, if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        if !path.is_dir() {
            std::fs::create_dir_all(path)?;
            // So that the directory itself outlives a crash.
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Directory { path: path.to_owned() })
    }
}

impl Files for Directory {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn FileOps>> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&path)?;
        Ok(Arc::new(DirectoryFile { file, through: open_through(&path) }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn identity(&self) -> u128 {
        // The keys of the standard library's hash are random, which is all that is needed here.
        let number = || u128::from(RandomState::new().build_hasher().finish());
        (number() << 64 | number()).max(1)
    }
}

/// The file past the page cache, written through to the disk: one system call instead of two, and the fastest of all ways.
/// Not every file system can; then it is done in two steps.
#[cfg(target_os = "linux")]
fn open_through(path: &Path) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_through(path: &Path) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(path).ok()
}

struct DirectoryFile {
    file: File,
    through: Option<File>,
}

impl FileOps for DirectoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_through_at(&self, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        match &self.through {
            Some(through) => match through.write_all_at(bytes, offset) {
                Ok(()) => Ok(true),
                // The file system took the flag and doesn't do it, or wants larger blocks.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.write_at(offset, bytes).map(|()| false)
                }
                Err(error) => Err(error),
            },
            None => self.write_at(offset, bytes).map(|()| false),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
