//! Unpacks layers. Every path is opened below the root by the kernel (`openat2` with `RESOLVE_BENEATH`), never checked as
//! text and then opened: what an archive does between the two has no effect.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fsetxattr, linkat, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    Digest, ImageError,
    tar::{Archive, Entry, Kind},
};

/// What becomes of a layer's device nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceNodes {
    /// A layer that has one is refused. The default: containers get their devices from the runtime.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
    /// They are made.
    Make,
}

/// How a layer says that something of the layers below is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// As the kernel's overlay wants it: the layer has a directory of its own.
    Overlay,
    /// It is removed: layers go over each other into one directory.
    Apply,
}

/// What a layer may cost.
#[derive(Clone, Copy, Debug)]
pub struct UnpackLimits {
    /// The most bytes of a layer, unpacked.
    pub layer_bytes_max: u64,
    /// The most entries of a layer.
    pub entries_max: u64,
    /// How many bytes may come out of each one that goes in, beyond the first [`free_bytes`](Self::free_bytes).
    pub ratio_max: u64,
    /// So much may come out of anything.
    pub free_bytes: u64,
    /// How deep directories may lie in each other.
    pub depth_max: usize,
}

impl Default for UnpackLimits {
    /// 32 GiB, two million entries, 200 bytes of one beyond 64 MiB, 256 directories deep.
    fn default() -> Self {
        Self {
            layer_bytes_max: 32 << 30,
            entries_max: 2_000_000,
            ratio_max: 200,
            free_bytes: 64 << 20,
            depth_max: 256,
        }
    }
}

/// How a layer is unpacked.
#[derive(Clone, Copy, Debug)]
pub struct UnpackOptions {
    /// See [`Whiteouts`].
    pub whiteouts: Whiteouts,
    /// See [`DeviceNodes`].
    pub devices: DeviceNodes,
    /// See [`UnpackLimits`].
    pub limits: UnpackLimits,
}

impl UnpackOptions {
    /// Devices are refused, with the default limits.
    #[must_use]
    pub fn new(whiteouts: Whiteouts) -> Self {
        Self { whiteouts, devices: DeviceNodes::default(), limits: UnpackLimits::default() }
    }
}

/// The attribute by which the kernel's overlay knows a directory that hides those below.
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Counts what goes through.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// What comes out of the compression: limited, and digested on its way.
struct Unpacked<R> {
    inner: R,
    packed: Arc<AtomicU64>,
    count: u64,
    limits: UnpackLimits,
    hasher: Sha256,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        self.hasher.update(&buffer[..length]);
        let UnpackLimits { layer_bytes_max, ratio_max, free_bytes, .. } = self.limits;
        let by_ratio =
            free_bytes.saturating_add(self.packed.load(Ordering::Relaxed).saturating_mul(ratio_max));
        if self.count > layer_bytes_max {
            return Err(io::Error::other(format!("the layer unpacks to more than {layer_bytes_max} bytes")));
        }
        if self.count > by_ratio {
            return Err(io::Error::other(format!(
                "the layer unpacks to more than {ratio_max} times its size"
            )));
        }
        Ok(length)
    }
}

/// Finds out the compression by the first bytes; registries and builders are not of one mind about media types.
fn decompress(file: File, packed: &Arc<AtomicU64>) -> io::Result<Box<dyn Read>> {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 4];
    let length = file.read_at(&mut magic, 0)?;
    let counted = io::BufReader::with_capacity(128 << 10, Counted { inner: file, count: Arc::clone(packed) });
    Ok(match &magic[..length] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(counted).map_err(io::Error::other)?;
            Box::new(decoder)
        }
        _ => Box::new(counted),
    })
}

/// Unpacks the layer in `layer` below `root`, a directory that is there, and gives the digest of the unpacked archive.
///
/// # Errors
/// [`ImageError::Entry`] names the entry that is refused: an absolute name, one with `..`, one that leads out of the root
/// through a link, a hard link to outside, a device node (unless `options` has it otherwise), one too many, or whatever the
/// operating system refuses. Nothing outside of `root` was touched then; what is inside is to be thrown away.
pub fn unpack_layer(layer: File, root: &Path, options: &UnpackOptions) -> Result<Digest, ImageError> {
    let packed = Arc::new(AtomicU64::new(0));
    let reading = || ImageError::io("reading the layer");
    let inner = decompress(layer, &packed).map_err(reading())?;
    let stream = Unpacked { inner, packed, count: 0, limits: options.limits, hasher: Sha256::new() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty());
    let root = opened
        .map_err(|error| ImageError::Io { context: "opening the root".to_owned(), source: error.into() })?;
    let mut unpacker = Unpacker {
        root,
        options: *options,
        is_root: rustix::process::geteuid().is_root(),
        entries: 0,
        own: HashSet::new(),
        directories: Vec::new(),
        last: String::new(),
    };
    let mut stream = stream;
    let mut archive = Archive::new(&mut stream);
    loop {
        // A stream that breaks off is told with the last entry that was seen.
        let next = archive.next().map_err(|error| unpacker.broken(&error))?;
        let Some(entry) = next else { break };
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        unpacker.last.clone_from(&name);
        unpacker.entry(&entry, &mut archive).map_err(|why| ImageError::Entry { entry: name, why })?;
    }
    archive.finish().map_err(|error| unpacker.broken(&error))?;
    unpacker.finish();
    Ok(Digest::finish(stream.hasher))
}

struct Unpacker {
    root: OwnedFd,
    options: UnpackOptions,
    is_root: bool,
    entries: u64,
    /// What this layer has brought, for opaque directories: they hide what the layers below have. With
    /// [`Whiteouts::Apply`] only.
    own: HashSet<Vec<u8>>,
    /// Directories get their times last: what is put into them changes these.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    last: String,
}

/// Why an entry is refused, in words.
type Refusal = String;

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(why.into())
}

/// The parts of a path, checked; none for the root itself.
fn parts<'a>(path: &'a [u8], depth_max: usize, what: &str) -> Result<Vec<&'a [u8]>, Refusal> {
    if path.first() == Some(&b'/') {
        return refuse(format!("{what} is absolute"));
    }
    if path.contains(&0) {
        return refuse(format!("{what} has a zero byte"));
    }
    let parts: Vec<_> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return refuse(format!("{what} has `..` in it"));
    }
    if parts.len() > depth_max {
        return refuse(format!("{what} is deeper than {depth_max} directories"));
    }
    Ok(parts)
}

fn path_of(parts: &[&[u8]]) -> Vec<u8> {
    if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') }
}

fn said(what: &'static str) -> impl FnOnce(Errno) -> Refusal {
    move |error| match error {
        Errno::XDEV | Errno::LOOP => format!("{what}: it leads out of the root through a link"),
        error => format!("{what}: {}", io::Error::from(error)),
    }
}

impl Unpacker {
    fn broken(&self, error: &io::Error) -> ImageError {
        ImageError::Entry { entry: self.last.clone(), why: error.to_string() }
    }

    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > self.options.limits.entries_max {
            return refuse(format!("the layer has more than {} entries", self.options.limits.entries_max));
        }
        let parts = parts(&entry.name, self.options.limits.depth_max, "the name")?;
        let Some((name, parents)) = parts.split_last() else {
            return match entry.kind {
                Kind::Directory => self.finish_directory(&[], entry),
                _ => refuse("the root is a directory"),
            };
        };
        let parent = self.make_parents(parents)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.white_out(&parent, parents, hidden);
        }
        if self.options.whiteouts == Whiteouts::Apply {
            self.own.insert(path_of(&parts));
        }
        let name = CString::new(*name).map_err(|_| "the name has a zero byte".to_owned())?;
        self.make_way(&parent, &name, entry.kind == Kind::Directory)?;
        match entry.kind {
            Kind::File => self.file(&parent, &name, entry, archive)?,
            Kind::Directory => {
                match mkdirat(&parent, &*name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(said("making the directory")(error)),
                }
                return self.finish_directory(&parts, entry);
            }
            Kind::SymbolicLink => {
                let target = CString::new(&*entry.link).map_err(|_| "the link has a zero byte".to_owned())?;
                symlinkat(&*target, &parent, &*name).map_err(said("making the link"))?;
            }
            Kind::HardLink => return self.hard_link(&parent, &name, entry),
            Kind::CharDevice | Kind::BlockDevice => {
                if !self.device(&parent, &name, entry)? {
                    return Ok(());
                }
            }
            Kind::Fifo => mknodat(&parent, &*name, FileType::Fifo, Mode::from_raw_mode(entry.mode), 0)
                .map_err(said("making the pipe"))?,
            Kind::Other(letter) => {
                return refuse(format!("its kind {:?} is not supported", char::from(letter)));
            }
        }
        self.owner_and_times(&parent, &name, entry)
    }

    /// Opens a directory below the root.
    fn open_directory(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory that the entry goes into; made, as others do, when the archive has no entry for it.
    fn make_parents(&self, parents: &[&[u8]]) -> Result<OwnedFd, Refusal> {
        match self.open_directory(&path_of(parents), OFlags::PATH) {
            Err(Errno::NOENT) => {}
            found => return found.map_err(said("opening its directory")),
        }
        let mut above = self.open_directory(b".", OFlags::PATH).map_err(said("opening the root"))?;
        for depth in 0..parents.len() {
            let path = path_of(&parents[..=depth]);
            above = match self.open_directory(&path, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    mkdirat(&above, parents[depth], Mode::from_raw_mode(0o755))
                        .map_err(said("making its directory"))?;
                    self.open_directory(&path, OFlags::PATH)
                }
                found => found,
            }
            .map_err(said("opening its directory"))?;
        }
        Ok(above)
    }

    /// An entry replaces what has its name, but a directory stays a directory.
    fn make_way(&self, parent: &OwnedFd, name: &CStr, directory: bool) -> Result<(), Refusal> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(said("looking for it")(error)),
            Ok(found) if directory && FileType::from_raw_mode(found.st_mode) == FileType::Directory => Ok(()),
            Ok(_) => {
                remove(parent.as_fd(), name, self.options.limits.depth_max).map_err(said("replacing it"))
            }
        }
    }

    fn file<R: Read>(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Refusal> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(said("making the file"))?;
        let mut file = File::from(file);
        let copied = io::copy(&mut archive.read_contents(), &mut file).map_err(|error| error.to_string())?;
        if copied != entry.size {
            return refuse("its contents end too early");
        }
        self.own(&file, entry)
    }

    /// Owner, mode and attributes, in this order: a change of the owner clears bits of the mode and capabilities.
    fn own(&self, file: impl AsFd, entry: &Entry) -> Result<(), Refusal> {
        let file = file.as_fd();
        if self.is_root {
            rustix::fs::fchown(file, Some(Uid::from_raw(entry.user)), Some(Gid::from_raw(entry.group)))
                .map_err(said("setting the owner"))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(said("setting the mode"))?;
        for (name, value) in &entry.attributes {
            let name = CString::new(&**name).map_err(|_| "an attribute's name has a zero byte".to_owned())?;
            if name.to_bytes().starts_with(b"trusted.") {
                return refuse(format!("the attribute {name:?} is not a layer's to set"));
            }
            let allowed = name.to_bytes().starts_with(b"user.") || &*name == c"security.capability";
            if allowed && (self.is_root || name.to_bytes().starts_with(b"user.")) {
                match fsetxattr(file, &*name, value, XattrFlags::empty()) {
                    // A file system without attributes is no reason not to have the image.
                    Ok(()) | Err(Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(said("setting an attribute")(error)),
                }
            }
        }
        Ok(())
    }

    fn finish_directory(&mut self, parts: &[&[u8]], entry: &Entry) -> Result<(), Refusal> {
        let path = path_of(parts);
        let directory = self.open_directory(&path, OFlags::RDONLY).map_err(said("opening the directory"))?;
        self.own(&directory, entry)?;
        self.directories.push((path, entry.modified));
        Ok(())
    }

    fn hard_link(&self, parent: &OwnedFd, name: &CStr, entry: &Entry) -> Result<(), Refusal> {
        let target = parts(&entry.link, self.options.limits.depth_max, "the hard link")?;
        let Some((target, parents)) = target.split_last() else { return refuse("a hard link to the root") };
        let from = self
            .open_directory(&path_of(parents), OFlags::PATH)
            .map_err(said("opening the link's directory"))?;
        linkat(&from, *target, parent, name, AtFlags::empty()).map_err(said("making the hard link"))
    }

    /// Says whether the node was made.
    fn device(&self, parent: &OwnedFd, name: &CStr, entry: &Entry) -> Result<bool, Refusal> {
        // The kernel's overlay takes this one for a whiteout, which has a form of its own in layers.
        if entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            return refuse("a device of the number 0:0");
        }
        match self.options.devices {
            DeviceNodes::Refuse => refuse("device nodes are not allowed"),
            DeviceNodes::Skip => Ok(false),
            DeviceNodes::Make => {
                let kind = if entry.kind == Kind::CharDevice {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), device)
                    .map_err(said("making the device"))?;
                Ok(true)
            }
        }
    }

    fn owner_and_times(&self, parent: &OwnedFd, name: &CStr, entry: &Entry) -> Result<(), Refusal> {
        if self.is_root && entry.kind != Kind::File {
            let (user, group) = (Uid::from_raw(entry.user), Gid::from_raw(entry.group));
            chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(said("setting the owner"))?;
        }
        utimensat(parent, name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(said("setting its time"))
    }

    fn white_out(&self, parent: &OwnedFd, parents: &[&[u8]], hidden: &[u8]) -> Result<(), Refusal> {
        let overlay = self.options.whiteouts == Whiteouts::Overlay;
        if hidden == b".wh..opq" {
            let directory = path_of(parents);
            let opened =
                self.open_directory(&directory, OFlags::RDONLY).map_err(said("opening its directory"))?;
            return if overlay {
                fsetxattr(&opened, OPAQUE, b"y", XattrFlags::empty()).map_err(said("hiding what is below"))
            } else {
                self.empty(opened, parents)
            };
        }
        // What else begins so is aufs' own.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return refuse("it hides no name");
        }
        let name = CString::new(hidden).map_err(|_| "the name has a zero byte".to_owned())?;
        match remove(parent.as_fd(), &name, self.options.limits.depth_max) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(said("removing what it hides")(error)),
        }
        if overlay {
            mknodat(parent, &*name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(said("hiding what is below"))?;
        }
        Ok(())
    }

    /// Removes what the layers below have in a directory.
    fn empty(&self, directory: OwnedFd, parents: &[&[u8]]) -> Result<(), Refusal> {
        let listing = Dir::read_from(&directory).map_err(said("reading its directory"))?;
        for found in listing {
            let found = found.map_err(said("reading its directory"))?;
            let name = found.file_name();
            let mut path = parents.to_vec();
            path.push(name.to_bytes());
            if !matches!(name.to_bytes(), b"." | b"..") && !self.own.contains(&path_of(&path)) {
                remove(directory.as_fd(), name, self.options.limits.depth_max)
                    .map_err(said("removing what it hides"))?;
            }
        }
        Ok(())
    }

    /// Times are not worth a failure: a directory may have been replaced since.
    fn finish(&self) {
        for (path, modified) in self.directories.iter().rev() {
            if let Ok(directory) = self.open_directory(path, OFlags::RDONLY) {
                let _ = rustix::fs::futimens(&directory, &times(*modified));
            }
        }
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a file, or a directory with all that is in it, at most `depth` deep.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return done,
    }
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    for found in Dir::read_from(&directory)? {
        let found = found?;
        if !matches!(found.file_name().to_bytes(), b"." | b"..") {
            remove(directory.as_fd(), found.file_name(), depth - 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
