//! Where images are kept: blobs by their digests, layers unpacked, and the images' names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kcore::Clock;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Candidate, CollectPolicy, Configuration, Digest, Disk, ImageConfig, ImageError, ImageStore, Manifest,
    Reference, Run, UnpackOptions, Whiteouts,
    manifest::{DOCUMENT_BYTES_MAX, Document},
    plan_collection, unpack_layer,
};

/// An image that is in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its configuration: what `status.containerStatuses[].imageID` is made of.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The names that it has, in full.
    pub names: Vec<String>,
    /// The bytes of its layers as they were fetched.
    pub size: u64,
    /// How it is run.
    pub run: Run,
    /// The digests of its unpacked layers, and of these layers as they were fetched, the lowest first.
    pub layers: Vec<(Digest, Digest)>,
}

/// The images of a node, in a directory. Cheap to clone; all clones are one. Two stores must not share a directory.
///
/// Content is written beside its place, verified, and renamed: what is in its place is whole, whenever the process ends.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let store = kruntime::images::ContentStore::open(dir.path(), std::sync::Arc::new(kcore::TokioClock::new())).unwrap();
/// let digest = store.put(b"hello").unwrap();
/// assert_eq!(store.read(&digest).unwrap(), b"hello");
/// assert!(store.images().is_empty());
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct ContentStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    unpack: UnpackOptions,
    index: Mutex<Index>,
    /// Whoever brings content holds it to read, whoever throws some away to write: what is fetched has no name yet.
    gate: tokio::sync::RwLock<()>,
    /// Layers are unpacked one after the other: two images often share some.
    unpacking: Mutex<()>,
}

/// The images, by the digests of their manifests.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Index {
    images: BTreeMap<Digest, Known>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Known {
    names: BTreeSet<String>,
    since: Timestamp,
    used: Timestamp,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ContentStore {
    /// Opens the store in `dir`, which is made if it isn't there. What was not finished is thrown away.
    ///
    /// # Errors
    /// When the directory can't be made or its index can't be read.
    pub fn open(dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Result<Self, ImageError> {
        let dir = dir.into();
        let opening = |path: &Path| ImageError::io(format!("opening {}", path.display()));
        let temporary = dir.join("tmp");
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(opening(&temporary))?;
        }
        for part in ["tmp", "blobs", "layers"] {
            std::fs::create_dir_all(dir.join(part)).map_err(opening(&dir))?;
        }
        let path = dir.join("images.json");
        let index = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| ImageError::Malformed {
                what: path.display().to_string(),
                why: error.to_string(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(opening(&path)(error)),
        };
        let shared = Shared {
            dir,
            clock,
            unpack: UnpackOptions::new(Whiteouts::Overlay),
            index: Mutex::new(index),
            gate: tokio::sync::RwLock::default(),
            unpacking: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The file of this content, whether it is there or not.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.shared.dir.join("blobs").join(digest.hex())
    }

    /// Whether this content is there.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A directory for something that is about to be put into the store.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir, ImageError> {
        tempfile::tempdir_in(self.shared.dir.join("tmp")).map_err(ImageError::io("making a directory"))
    }

    /// Holds off [`collect`](Self::collect) until it is dropped.
    pub(super) async fn hold(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.shared.gate.read().await
    }

    /// Begins to write content that becomes part of the store when it is what it should be.
    pub(super) fn write(&self) -> Result<BlobWriter, ImageError> {
        let file = tempfile::NamedTempFile::new_in(self.shared.dir.join("tmp"));
        Ok(BlobWriter {
            file: file.map_err(ImageError::io("making a file"))?,
            hasher: Sha256::new(),
            size: 0,
        })
    }

    /// Puts a document into the store.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let mut writer = self.write()?;
        writer.write(bytes)?;
        writer.commit(self, None)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], or [`ImageError::TooLarge`] for what can't be a document.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let file = File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound(digest.to_string()),
            _ => ImageError::Io { context: format!("opening {digest}"), source: error },
        })?;
        read_limited(file, &digest.to_string())
    }

    /// Gives an image a name. Its manifest, its configuration and its layers are in the store.
    ///
    /// # Errors
    /// When something of it is missing or malformed.
    pub fn tag(&self, name: &Reference, manifest: &Digest) -> Result<Image, ImageError> {
        let image = self.describe(manifest, &[])?;
        for (_, layer) in &image.layers {
            if !self.has(layer) {
                return Err(ImageError::NotFound(layer.to_string()));
            }
        }
        let (name, now) = (name.to_string(), self.shared.clock.now());
        let mut index = lock(&self.shared.index);
        for known in index.images.values_mut() {
            known.names.remove(&name);
        }
        let known = index.images.entry(manifest.clone()).or_insert_with(|| Known {
            names: BTreeSet::new(),
            since: now,
            used: now,
        });
        known.names.insert(name);
        let names = known.names.iter().cloned().collect();
        self.save(&index)?;
        Ok(Image { names, ..image })
    }

    /// The image of this name. A name with a digest finds the image whatever it was fetched as.
    #[must_use]
    pub fn find(&self, name: &Reference) -> Option<Image> {
        let wanted = name.to_string();
        let (manifest, names) = {
            let index = lock(&self.shared.index);
            let by_name = index.images.iter().find(|(_, known)| known.names.contains(&wanted));
            let by_digest = || name.digest.as_ref().and_then(|digest| index.images.get_key_value(digest));
            let (manifest, known) = by_name.or_else(by_digest)?;
            (manifest.clone(), known.names.iter().cloned().collect::<Vec<_>>())
        };
        self.describe(&manifest, &names).ok()
    }

    /// Every image.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        let known: Vec<_> = {
            let index = lock(&self.shared.index);
            index
                .images
                .iter()
                .map(|(digest, k)| (digest.clone(), k.names.iter().cloned().collect::<Vec<_>>()))
                .collect()
        };
        known.iter().filter_map(|(manifest, names)| self.describe(manifest, names).ok()).collect()
    }

    /// Notes that an image was used just now: the one that was not used for longest goes first.
    pub fn touch(&self, manifest: &Digest) {
        let now = self.shared.clock.now();
        if let Some(known) = lock(&self.shared.index).images.get_mut(manifest) {
            known.used = now;
        }
    }

    fn describe(&self, manifest: &Digest, names: &[String]) -> Result<Image, ImageError> {
        let Document::Manifest(Manifest { config, layers }) =
            Document::parse(&self.read(manifest)?, manifest.as_str())?
        else {
            return Err(ImageError::Malformed {
                what: manifest.to_string(),
                why: "not a manifest".to_owned(),
            });
        };
        let malformed = |why: String| ImageError::Malformed { what: config.digest.to_string(), why };
        let configuration: Configuration = serde_json::from_slice(&self.read(&config.digest)?)
            .map_err(|error| malformed(error.to_string()))?;
        if configuration.rootfs.diff_ids.len() != layers.len() {
            return Err(malformed("its layers are not those of the manifest".to_owned()));
        }
        let size = layers.iter().map(|layer| layer.size).sum();
        let layers =
            configuration.rootfs.diff_ids.into_iter().zip(layers.into_iter().map(|layer| layer.digest));
        Ok(Image {
            id: config.digest,
            manifest: manifest.clone(),
            names: names.to_vec(),
            size,
            run: configuration.config.unwrap_or_default(),
            layers: layers.collect(),
        })
    }

    /// The directories of an image's unpacked layers, the lowest first; what is not unpacked yet is now. It takes its time: not on
    /// the event loop.
    ///
    /// # Errors
    /// When a layer is missing, is refused, or is not what the configuration says.
    pub fn unpack(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        image.layers.iter().map(|(unpacked, packed)| self.layer(unpacked, packed)).collect()
    }

    /// Unpacks an image's layers over each other into `root`: for machines without an overlay. As
    /// [`unpack`](Self::unpack) otherwise.
    ///
    /// # Errors
    /// As there.
    pub fn unpack_into(&self, image: &Image, root: &Path) -> Result<(), ImageError> {
        let options = UnpackOptions { whiteouts: Whiteouts::Apply, ..self.shared.unpack };
        for (unpacked, packed) in &image.layers {
            self.unpack_one(unpacked, packed, root, &options)?;
        }
        Ok(())
    }

    /// A short name: the kernel takes the paths of all layers in one page.
    fn layer_path(&self, unpacked: &Digest) -> PathBuf {
        self.shared.dir.join("layers").join(&unpacked.hex()[..24])
    }

    fn layer(&self, unpacked: &Digest, packed: &Digest) -> Result<PathBuf, ImageError> {
        let path = self.layer_path(unpacked);
        if path.is_dir() {
            return Ok(path);
        }
        let _one = lock(&self.shared.unpacking);
        if path.is_dir() {
            return Ok(path);
        }
        let scratch = self.scratch()?;
        let root = scratch.path().join("layer");
        std::fs::create_dir(&root).map_err(ImageError::io("making the layer's directory"))?;
        // What a layer says nothing about is as a root usually is.
        set_mode(&root, 0o755)?;
        self.unpack_one(unpacked, packed, &root, &self.shared.unpack)?;
        std::fs::rename(&root, &path).map_err(ImageError::io("keeping the layer"))?;
        Ok(path)
    }

    fn unpack_one(
        &self,
        unpacked: &Digest,
        packed: &Digest,
        root: &Path,
        options: &UnpackOptions,
    ) -> Result<(), ImageError> {
        let file = File::open(self.path(packed)).map_err(|_| ImageError::NotFound(packed.to_string()))?;
        let found = unpack_layer(file, root, options)?;
        if found == *unpacked {
            return Ok(());
        }
        let what = format!("layer {packed} unpacked");
        Err(ImageError::Mismatch { what, expected: unpacked.to_string(), found: found.to_string() })
    }

    /// Forgets an image's names. Its content goes with the next [`collect`](Self::collect).
    ///
    /// # Errors
    /// When the index can't be written.
    pub fn remove(&self, manifest: &Digest) -> Result<(), ImageError> {
        let mut index = lock(&self.shared.index);
        index.images.remove(manifest);
        self.save(&index)
    }

    /// Throws away, as `policy` has it, images that no container uses, and all content that no image has. `in_use` are the
    /// manifests of the containers' images. Gives the images that went.
    ///
    /// # Errors
    /// When the file system can't be asked or the index can't be written.
    pub async fn collect(
        &self,
        policy: &CollectPolicy,
        in_use: &BTreeSet<Digest>,
    ) -> Result<Vec<Image>, ImageError> {
        let _all = self.shared.gate.write().await;
        let disk = self.disk()?;
        self.collect_from(policy, in_use, disk)
    }

    pub(super) fn collect_from(
        &self,
        policy: &CollectPolicy,
        in_use: &BTreeSet<Digest>,
        disk: Disk,
    ) -> Result<Vec<Image>, ImageError> {
        let images = self.images();
        let now = self.shared.clock.now();
        let candidates: Vec<_> = {
            let index = lock(&self.shared.index);
            let idle = images.iter().filter(|image| !in_use.contains(&image.manifest));
            idle.filter_map(|image| {
                let known = index.images.get(&image.manifest)?;
                let age = |time: Timestamp| Duration::try_from(now.duration_since(time)).unwrap_or_default();
                Some(Candidate {
                    image: image.manifest.clone(),
                    bytes: image.size,
                    unused: age(known.used),
                    age: age(known.since),
                })
            })
            .collect()
        };
        let going = plan_collection(&candidates, disk, policy);
        for manifest in &going {
            self.remove(manifest)?;
        }
        self.sweep(in_use)?;
        Ok(images.into_iter().filter(|image| going.contains(&image.manifest)).collect())
    }

    /// Removes what neither an image nor a container needs.
    fn sweep(&self, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let mut roots: BTreeSet<Digest> = lock(&self.shared.index).images.keys().cloned().collect();
        roots.extend(in_use.iter().cloned());
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for manifest in &roots {
            blobs.insert(self.path(manifest));
            // An image that can't be read keeps its manifest, so that the next fetch sees what is missing.
            let Ok(image) = self.describe(manifest, &[]) else { continue };
            blobs.insert(self.path(&image.id));
            for (unpacked, packed) in &image.layers {
                layers.insert(self.layer_path(unpacked));
                blobs.insert(self.path(packed));
            }
        }
        let sweeping = || ImageError::io("removing what is not used");
        for (part, keep) in [("blobs", &blobs), ("layers", &layers)] {
            for found in std::fs::read_dir(self.shared.dir.join(part)).map_err(sweeping())? {
                let path = found.map_err(sweeping())?.path();
                if keep.contains(&path) {
                    continue;
                }
                let removed =
                    if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.map_err(sweeping())?;
            }
        }
        Ok(())
    }

    fn disk(&self) -> Result<Disk, ImageError> {
        let found = rustix::fs::statvfs(&self.shared.dir).map_err(|error| ImageError::Io {
            context: "asking the file system".to_owned(),
            source: error.into(),
        })?;
        Ok(Disk { capacity: found.f_blocks * found.f_frsize, available: found.f_bavail * found.f_frsize })
    }

    fn save(&self, index: &Index) -> Result<(), ImageError> {
        let saving = || ImageError::io("saving the index of images");
        let bytes = serde_json::to_vec(index).map_err(|error| saving()(io::Error::other(error)))?;
        let mut file = tempfile::NamedTempFile::new_in(self.shared.dir.join("tmp")).map_err(saving())?;
        file.write_all(&bytes).map_err(saving())?;
        file.as_file().sync_all().map_err(saving())?;
        file.persist(self.shared.dir.join("images.json")).map_err(|error| saving()(error.error))?;
        Ok(())
    }
}

/// So that the process runtime, too, runs what images say. An index in memory, one small file: it does not block for long.
impl ImageStore for ContentStore {
    fn config(&self, image: &str) -> Option<ImageConfig> {
        let run = self.find(&image.parse().ok()?)?.run;
        let env = run.env.into_iter().flatten().filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Some(ImageConfig {
            env: env.collect(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            command: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
        })
    }
}

pub(super) fn read_limited(file: impl Read, what: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let read = file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(ImageError::io(format!("reading {what}")))?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(ImageError::TooLarge { what: what.to_owned(), limit: DOCUMENT_BYTES_MAX });
    }
    Ok(bytes)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(ImageError::io("setting a mode"))
}

/// Content on its way into the store. Dropped, it leaves nothing.
pub(super) struct BlobWriter {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    size: u64,
}

impl BlobWriter {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(ImageError::io("writing content"))
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Makes the content part of the store, if it is what is expected.
    pub(super) fn commit(
        self,
        store: &ContentStore,
        expected: Option<(&Digest, u64)>,
    ) -> Result<Digest, ImageError> {
        let (digest, size) = (Digest::finish(self.hasher), self.size);
        if let Some((wanted, length)) = expected {
            let mismatch = |expected: String, found: String| ImageError::Mismatch {
                what: format!("content {wanted}"),
                expected,
                found,
            };
            if size != length {
                return Err(mismatch(format!("{length} bytes"), format!("{size} bytes")));
            }
            if digest != *wanted {
                return Err(mismatch(wanted.to_string(), digest.to_string()));
            }
        }
        let keeping = || ImageError::io("keeping content");
        self.file.as_file().sync_data().map_err(keeping())?;
        self.file.persist(store.path(&digest)).map_err(|error| keeping()(error.error))?;
        Ok(digest)
    }
}
