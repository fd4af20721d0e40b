//! Faces of kplane under the names that test suites know: `kube-apiserver` and `etcd`, as `KUBEBUILDER_ASSETS` has them.
//!
//! envtest (controller-runtime, and its counterparts in other languages) starts two programs, waits until they are healthy and
//! ends them with SIGTERM. [`install`] puts both names into a folder, as links to the `kplane` command; [`Face::of`] tells which
//! of them the command was started as. The API server keeps its objects in the etcd that `--etcd-servers` names, this one or
//! a real one, and in memory without it; the `etcd` is [`kstore::EtcdServer`], for etcd's clients of any kind.

mod access;
mod apiserver;
mod etcd;
mod flags;

use std::{io, net::SocketAddr, path::Path};

pub use self::flags::Flags;

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// `kube-apiserver`: an API server without controllers, scheduler or nodes.
    ApiServer,
    /// `etcd`: etcd's v3 API over a store of kplane's.
    Etcd,
}

/// Why a face could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaceError {
    /// A flag has a value that can't be read.
    #[error("--{flag}: {value:?} is not {wanted}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// A configuration file can't be used.
    #[error("--{flag}: {source}")]
    Config {
        /// The flag that names it.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        source: kapi::config::ConfigError,
    },
    /// A file can't be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{path} holds no certificate or key in PEM")]
    Pem {
        /// The file.
        path: String,
    },
    /// An address can't be listened on.
    #[error("{address} can't be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("TLS could not be set up")]
    Tls(#[from] crate::CaError),
    /// Nodes can't be reached with what the flags name.
    #[error("--kubelet-client-certificate or --kubelet-certificate-authority: {0}")]
    Kubelet(#[from] kapi::node::KubeletDialerError),
    /// The API server could not be made.
    #[error("the API server could not be made")]
    Build(#[from] kapi::BuildError),
    /// The etcd of the API server can't be used.
    #[error("--etcd-servers can't be used")]
    Etcd(#[source] kstore::StoreError),
    /// The folder of --data-dir can't be used.
    #[error("--data-dir can't be used")]
    Open(#[from] kstore::OpenError),
    /// The file of --initial-snapshot can't be restored.
    #[error("--initial-snapshot can't be restored")]
    Restore(#[from] kstore::RestoreError),
    /// The store can't be written.
    #[error("the store can't be written")]
    Store(#[source] kstore::CommitError),
    /// The API server could not be filled with what every cluster has.
    #[error("the cluster's first objects could not be made: {0}")]
    Bootstrap(kapi::error::ApiError),
}

impl Face {
    /// The face that a program of this name has.
    #[must_use]
    pub fn of(program: &str) -> Option<Self> {
        match Path::new(program).file_name()?.to_str()? {
            "kube-apiserver" => Some(Self::ApiServer),
            "etcd" => Some(Self::Etcd),
            _ => None,
        }
    }

    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::Etcd => "etcd",
        }
    }

    /// What `--help` prints: each flag on a line of its own, which is how suites find out what they may pass.
    #[must_use]
    pub fn help(self) -> String {
        let flags = match self {
            Self::ApiServer => [access::FLAGS, apiserver::FLAGS].concat(),
            Self::Etcd => etcd::FLAGS.to_vec(),
        };
        let lines: String = flags.iter().map(|(flag, what)| format!("      --{flag:<44} {what}\n")).collect();
        format!(
            "{} is served by kplane {}. Flags that are not listed are accepted and have no effect.\n\nFlags:\n{lines}",
            self.name(),
            env!("CARGO_PKG_VERSION")
        )
    }

    /// Serves until `end` is there.
    ///
    /// # Errors
    /// See [`FaceError`].
    pub async fn run(self, flags: &Flags, end: impl Future<Output = ()> + Send) -> Result<(), FaceError> {
        match self {
            Self::ApiServer => apiserver::run(flags, end).await,
            Self::Etcd => etcd::run(flags, end).await,
        }
    }
}

/// Says where a program serves: who started it with port 0 learns the port, and everybody that it is ready.
fn announce(listener: &tokio::net::TcpListener) {
    if let Ok(address) = listener.local_addr() {
        println!("serving on {address}");
    }
}

/// The text of a file.
fn read(path: impl AsRef<Path>) -> Result<String, FaceError> {
    let path = path.as_ref();
    std::fs::read_to_string(path)
        .map_err(|source| FaceError::File { path: path.display().to_string(), source })
}

/// Links both names in `folder` to `program`, the `kplane` command.
///
/// # Errors
/// When the folder can't be made or a link can't be put in place of what is there.
pub fn install(folder: &Path, program: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for face in [Face::ApiServer, Face::Etcd] {
        let link = folder.join(face.name());
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::os::unix::fs::symlink(program, &link)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_what_envtest_looks_for_and_nothing_that_misleads_it() {
        let help = Face::ApiServer.help();
        let listed = |flag: &str| help.lines().any(|line| line.trim_start().split(' ').next() == Some(flag));
        for flag in
            ["--secure-port", "--cert-dir", "--authorization-mode", "--etcd-servers", "--client-ca-file"]
        {
            assert!(listed(flag), "{flag}");
        }
        assert!(!help.contains("--insecure-port"), "suites would serve without TLS");
        assert!(Face::Etcd.help().contains("--listen-client-urls"));
        assert_eq!(Face::of("/x/kube-apiserver"), Some(Face::ApiServer));
        assert_eq!(Face::of("kplane"), None);
    }
}
