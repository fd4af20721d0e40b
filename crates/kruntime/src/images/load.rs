//! Images from files: OCI layouts and Docker's archives, as directories or as tar.

use std::{fs::File, io, path::Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use serde::Deserialize;

use super::{
    ContentStore, Descriptor, Digest, INDEX_DEPTH_MAX, ImageError, Manifest, Platform, Reference,
    UnpackOptions, Whiteouts,
    content::{BlobWriter, read_limited},
    manifest::{DOCUMENT_BYTES_MAX, Document, LAYERS_MAX, MANIFEST_TYPES, choose},
    unpack_layer,
};

/// Where a layout keeps an image's name.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An entry of a Docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A directory that somebody else has filled: nothing outside of it is opened, and no link is followed to there.
struct Source {
    dir: std::os::fd::OwnedFd,
}

impl Source {
    fn new(dir: &Path) -> Result<Self, ImageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(dir, flags, Mode::empty()).map_err(|error| ImageError::Io {
            context: format!("opening {}", dir.display()),
            source: error.into(),
        })?;
        Ok(Self { dir })
    }

    fn open(&self, path: &str) -> Result<File, ImageError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // A pipe must not make us wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat2(&self.dir, path, flags, Mode::empty(), resolve) {
            Ok(file) => Ok(File::from(file)),
            Err(rustix::io::Errno::NOENT) => Err(ImageError::NotFound(path.to_owned())),
            Err(error) => Err(ImageError::Io { context: format!("opening {path}"), source: error.into() }),
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        read_limited(self.open(path)?, path)
    }

    fn optional(&self, path: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self.read(path) {
            Err(ImageError::NotFound(_)) => Ok(None),
            found => found.map(Some),
        }
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn copy(from: &mut impl io::Read, into: &mut BlobWriter, size_max: u64) -> Result<(), ImageError> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = from.read(&mut buffer).map_err(ImageError::io("reading content"))?;
        if length == 0 {
            return Ok(());
        }
        into.write(&buffer[..length])?;
        if into.size() > size_max {
            return Err(ImageError::TooLarge { what: "content".to_owned(), limit: size_max });
        }
    }
}

impl ContentStore {
    /// Takes the images in `path`: an OCI layout or a Docker archive, as a directory or a tar file, compressed or not. They get the
    /// names that stand there; `name` is for an image that has none. Gives the names.
    ///
    /// # Errors
    /// When it is neither, when something of it is missing or not what its digest says, or when nothing is for this machine.
    pub async fn load(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Reference>, ImageError> {
        let _held = self.hold().await;
        let (store, path, name) = (self.clone(), path.to_owned(), name.cloned());
        tokio::task::spawn_blocking(move || store.load_now(&path, name.as_ref())).await.map_err(|error| {
            ImageError::Io { context: "loading".to_owned(), source: io::Error::other(error) }
        })?
    }

    fn load_now(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Reference>, ImageError> {
        if path.is_dir() {
            return self.load_dir(&Source::new(path)?, name);
        }
        let scratch = self.scratch()?;
        let file = File::open(path).map_err(ImageError::io(format!("opening {}", path.display())))?;
        unpack_layer(file, scratch.path(), &UnpackOptions::new(Whiteouts::Apply))?;
        self.load_dir(&Source::new(scratch.path())?, name)
    }

    fn load_dir(&self, source: &Source, name: Option<&Reference>) -> Result<Vec<Reference>, ImageError> {
        if let Some(index) = source.optional("index.json")? {
            return self.load_layout(source, &index, name);
        }
        match source.optional("manifest.json")? {
            Some(saved) => self.load_docker(source, &saved, name),
            None => Err(ImageError::NotFound("index.json or manifest.json".to_owned())),
        }
    }

    fn load_layout(
        &self,
        source: &Source,
        index: &[u8],
        name: Option<&Reference>,
    ) -> Result<Vec<Reference>, ImageError> {
        let Document::Index(entries) = Document::parse(index, "index.json")? else {
            return Err(ImageError::Malformed {
                what: "index.json".to_owned(),
                why: "not an index".to_owned(),
            });
        };
        let mut names = Vec::new();
        for entry in &entries {
            // A bare tag is no name of an image: it says nothing of the repository.
            let own = NAMES
                .iter()
                .find_map(|key| entry.annotations.get(*key))
                .filter(|name| name.contains(['/', ':']));
            let own = own.map(|name| name.parse()).transpose()?;
            let Some(own) = own.or_else(|| name.cloned()) else { continue };
            let manifest = self.take_manifest(source, entry, 0)?;
            self.tag(&own, &manifest)?;
            names.push(own);
        }
        if names.is_empty() {
            return Err(ImageError::Malformed {
                what: "index.json".to_owned(),
                why: "no image has a name".to_owned(),
            });
        }
        Ok(names)
    }

    fn take_manifest(&self, source: &Source, entry: &Descriptor, depth: usize) -> Result<Digest, ImageError> {
        let bytes = source.read(&blob(&entry.digest))?;
        match Document::parse(&bytes, entry.digest.as_str())? {
            Document::Index(_) if depth >= INDEX_DEPTH_MAX => Err(ImageError::TooLarge {
                what: "the index' depth".to_owned(),
                limit: INDEX_DEPTH_MAX as u64,
            }),
            Document::Index(entries) => {
                let platform = Platform::of_this_machine();
                let missing = || ImageError::Platform(format!("{}/{}", platform.os, platform.architecture));
                self.take_manifest(source, choose(&entries, &platform).ok_or_else(missing)?, depth + 1)
            }
            Document::Manifest(manifest) => {
                for part in manifest.layers.iter().chain([&manifest.config]) {
                    if !self.has(&part.digest) {
                        let mut writer = self.write()?;
                        copy(&mut source.open(&blob(&part.digest))?, &mut writer, part.size)?;
                        writer.commit(self, Some((&part.digest, part.size)))?;
                    }
                }
                let mut writer = self.write()?;
                writer.write(&bytes)?;
                writer.commit(self, Some((&entry.digest, entry.size)))
            }
        }
    }

    /// Docker's archives have no manifest in the registries' form: one is made.
    fn load_docker(
        &self,
        source: &Source,
        saved: &[u8],
        name: Option<&Reference>,
    ) -> Result<Vec<Reference>, ImageError> {
        let malformed = |why: String| ImageError::Malformed { what: "manifest.json".to_owned(), why };
        let saved: Vec<Saved> =
            serde_json::from_slice(saved).map_err(|error| malformed(error.to_string()))?;
        let layer_bytes_max = UnpackOptions::new(Whiteouts::Apply).limits.layer_bytes_max;
        let mut names = Vec::new();
        for image in saved {
            if image.layers.len() > LAYERS_MAX {
                return Err(malformed(format!("an image may have {LAYERS_MAX} layers")));
            }
            let take = |path: &str, kind: &str, size_max: u64| -> Result<Descriptor, ImageError> {
                let mut writer = self.write()?;
                copy(&mut source.open(path)?, &mut writer, size_max)?;
                let size = writer.size();
                let digest = writer.commit(self, None)?;
                let media_type = format!("application/vnd.oci.image.{kind}");
                Ok(Descriptor { media_type, digest, size, platform: None, annotations: Default::default() })
            };
            let config = take(&image.config, "config.v1+json", DOCUMENT_BYTES_MAX)?;
            let layers: Result<Vec<_>, _> =
                image.layers.iter().map(|path| take(path, "layer.v1.tar", layer_bytes_max)).collect();
            let digest = self.put(&manifest_bytes(&Manifest { config, layers: layers? })?)?;
            let own: Result<Vec<Reference>, _> =
                image.repo_tags.iter().flatten().map(|tag| tag.parse()).collect();
            let mut own = own?;
            if own.is_empty() {
                own.extend(name.cloned());
            }
            for name in own {
                self.tag(&name, &digest)?;
                names.push(name);
            }
        }
        if names.is_empty() { Err(malformed("no image has a name".to_owned())) } else { Ok(names) }
    }
}

fn manifest_bytes(manifest: &Manifest) -> Result<Vec<u8>, ImageError> {
    let wrong = |error: serde_json::Error| ImageError::Malformed {
        what: "manifest".to_owned(),
        why: error.to_string(),
    };
    let mut value = serde_json::to_value(manifest).map_err(wrong)?;
    value["schemaVersion"] = 2.into();
    value["mediaType"] = MANIFEST_TYPES[0].into();
    serde_json::to_vec(&value).map_err(wrong)
}
