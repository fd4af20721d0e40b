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
