use std::path::PathBuf;

/// A file or directory of the host that a container sees at `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where the container sees it: an absolute path.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Who sees what is mounted below it later.
    pub propagation: Propagation,
}

/// An image that a container sees as files, and can only read (KEP-4639).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMount {
    /// The image's name, as the pod has it.
    pub image: String,
    /// Where the container sees it: an absolute path.
    pub target: PathBuf,
    /// What of the image it sees: a relative path without `..`; empty for all.
    pub sub_path: String,
}

/// Which way later mounts go between host and container (`mountPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way. The default.
    #[default]
    None,
    /// What the host mounts is seen by the container.
    HostToContainer,
    /// And the other way round.
    Bidirectional,
}
