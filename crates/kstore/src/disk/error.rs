//! Why a directory cannot be opened as a store.

use std::{io, path::PathBuf, sync::Arc};

/// Why a [`DiskStore`](crate::DiskStore) cannot be opened. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another store, in this process or another, has the directory open.
    #[error("{} is in use by another store", .directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory holds files, but no store, or one whose name plate is gone.
    #[error("{} holds files but no store", .directory.display())]
    NotAStore {
        /// The directory.
        directory: PathBuf,
    },
    /// The store was written in a format that this version doesn't know.
    #[error("{} has format {found}, this version reads format {known}", .file.display())]
    Format {
        /// The file that says so.
        file: PathBuf,
        /// Its format.
        found: u8,
        /// The format that can be read.
        known: u8,
    },
    /// What was acknowledged is damaged. Restore a back-up, or copy the directory and take the file out to see what can be had
    /// without it.
    #[error("{} is damaged at byte {offset}: {reason}", .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A file could not be read or written.
    #[error("{} could not be opened, read or written", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        #[source]
        source: Arc<io::Error>,
    },
}
