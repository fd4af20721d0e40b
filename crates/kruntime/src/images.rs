//! What an image's name stands for.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf};

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
