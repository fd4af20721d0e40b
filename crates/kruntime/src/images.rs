//! What an image's name stands for; with the feature `oci`, images themselves: `ContentStore` keeps them, and they come
//! from files (`ContentStore::load`) or from a `Registry`.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf};

#[cfg(all(feature = "oci", target_os = "linux"))]
mod collect;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod content;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod credentials;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod error;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod load;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod manifest;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod reference;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod registry;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod tar;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod unpack;

#[cfg(all(feature = "oci", target_os = "linux"))]
pub use self::{
    collect::{Candidate, CollectPolicy, Disk, plan_collection},
    content::{ContentStore, Image},
    credentials::{Credential, Credentials},
    error::ImageError,
    manifest::{
        Configuration, DOCUMENT_BYTES_MAX, Descriptor, INDEX_DEPTH_MAX, INDEX_ENTRIES_MAX, LAYERS_MAX,
        Manifest, Platform, RootFs, Run,
    },
    reference::{Digest, DigestError, NAME_BYTES_MAX, Reference, ReferenceError},
    registry::Registry,
    unpack::{DeviceNodes, UnpackLimits, UnpackOptions, Whiteouts, unpack_layer},
};

/// What an image says about how it is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that the container's `args` replace.
    pub command: Vec<String>,
    /// The environment that the container's goes over.
    pub env: Vec<(String, String)>,
    /// The directory to start in.
    pub working_dir: Option<PathBuf>,
}

/// Knows images. The process runtime asks it for the command of containers that name none, so that a manifest written
/// for images can run as processes. It must not block.
pub trait ImageStore: Debug + Send + Sync + 'static {
    /// How `image` is run; `None` when it isn't known.
    fn config(&self, image: &str) -> Option<ImageConfig>;
}

const _: Option<&dyn ImageStore> = None;

/// Images by their exact names. An empty one knows none.
impl ImageStore for BTreeMap<String, ImageConfig> {
    fn config(&self, image: &str) -> Option<ImageConfig> {
        self.get(image).cloned()
    }
}
