//! What can go wrong with an image.

use std::io;

use super::ReferenceError;

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The name is no image's name. The container waits with `InvalidImageName`.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The registry, or the file, has no such image.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry doesn't let us have it.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// The registry can't be reached, or speaks otherwise than it should.
    #[error("{0}")]
    Registry(String),
    /// A document is not what it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// Which one.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Content is not what its digest says.
    #[error("{what}: expected {expected}, got {found}")]
    Mismatch {
        /// Which content.
        what: String,
        /// Its digest or size, as it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// No manifest of the index is for this machine.
    #[error("no match for platform {0} in manifest")]
    Platform(String),
    /// An entry of a layer that must not be unpacked.
    #[error("entry {entry:?} refused: {why}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// A limit is exceeded.
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The most that it may be.
        limit: u64,
    },
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context: context.into(), source }
    }
}
