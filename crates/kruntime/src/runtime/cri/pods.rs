//! What is known of the server's pods and containers, so that looking costs nothing.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    convert::{POD_UID, Traits},
    proto as pb,
};
use crate::runtime::{
    ContainerPhase, Exit, ObservedContainer, RuntimeError, SandboxConfig, output::termination_message,
};

/// A pod's sandbox.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) sandbox: String,
    pub(super) config: SandboxConfig,
    /// As the server was told, which wants to be told again with each container.
    pub(super) wire: pb::PodSandboxConfig,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) dir: PathBuf,
    pub(super) ready: AtomicBool,
    pub(super) containers: Mutex<Vec<Arc<Known>>>,
}

impl Pod {
    pub(super) fn containers(&self) -> MutexGuard<'_, Vec<Arc<Known>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Known>> {
        self.containers().iter().find(|container| *container.name == *name).cloned()
    }

    /// Puts a container in the place of its earlier start, which it gives.
    pub(super) fn put(&self, container: Arc<Known>) -> Option<Arc<Known>> {
        let mut containers = self.containers();
        match containers.iter_mut().find(|known| known.name == container.name) {
            Some(known) => Some(std::mem::replace(known, container)),
            None => {
                containers.push(container);
                None
            }
        }
    }
}

/// The files of a pod.
pub(super) fn hosts_path(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

pub(super) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("logs")
}

/// Where the log of a container's start is, below [`log_dir`].
pub(super) fn log_name(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

pub(super) fn message_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join("messages").join(format!("{container}-{attempt}"))
}

/// The last start of a container.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: Arc<str>,
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) image_id: Option<String>,
    pub(super) traits: Traits,
    /// Only ever goes from running to exited.
    pub(super) phase: watch::Sender<ContainerPhase>,
    pub(super) message: PathBuf,
    pub(super) log: PathBuf,
}

impl Known {
    /// The phase that a container begins with, whatever has become of it.
    pub(super) fn began(phase: &ContainerPhase) -> watch::Sender<ContainerPhase> {
        let started_at = match phase {
            ContainerPhase::Running { started_at } => *started_at,
            ContainerPhase::Exited(exit) => exit.started_at,
        };
        watch::Sender::new(ContainerPhase::Running { started_at })
    }

    /// Notes what has become of it.
    pub(super) fn settle(&self, phase: ContainerPhase) {
        if let ContainerPhase::Exited(exit) = phase {
            self.end(exit);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(*self.phase.borrow(), ContainerPhase::Running { .. })
    }

    pub(super) fn observe(&self) -> ObservedContainer {
        ObservedContainer {
            name: Arc::clone(&self.name),
            id: self.id.clone(),
            attempt: self.attempt,
            image_id: self.image_id.clone(),
            phase: self.phase.borrow().clone(),
        }
    }

    pub(super) fn running(&self) -> Result<(), RuntimeError> {
        if self.is_running() { Ok(()) } else { Err(RuntimeError::NotRunning(self.name.to_string())) }
    }

    /// Notes how it ended; whether that is news. Reads files of the container's.
    pub(super) fn end(&self, mut exit: Exit) -> bool {
        if exit.message.is_none() {
            let log = self.traits.message_from_log.then(|| self.log.clone());
            exit.message = termination_message(&self.message, log, exit.code);
        }
        self.phase.send_if_modified(|phase| {
            let is_news = matches!(phase, ContainerPhase::Running { .. });
            if is_news {
                *phase = ContainerPhase::Exited(exit);
            }
            is_news
        })
    }
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What a container that the server doesn't know any more is taken to have ended with (upstream's `ContainerStatusUnknown`).
pub(super) fn lost(started_at: Timestamp, now: Timestamp) -> Exit {
    Exit {
        started_at,
        finished_at: now.max(started_at),
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown",
        message: Some("The container could not be located when the pod was looked at".to_owned()),
    }
}

/// A container's phase by its status; `None` while it hasn't been started.
pub(super) fn phase(status: &pb::ContainerStatus, now: Timestamp) -> Option<ContainerPhase> {
    match status.state() {
        pb::ContainerState::Created => None,
        pb::ContainerState::Running => Some(ContainerPhase::Running { started_at: time(status.started_at) }),
        pb::ContainerState::Unknown => {
            Some(ContainerPhase::Exited(lost(time(status.started_at.max(status.created_at)), now)))
        }
        pb::ContainerState::Exited => {
            let finished_at = time(status.finished_at);
            // One that could not be started has no start.
            let started_at =
                if status.started_at == 0 { finished_at } else { time(status.started_at).min(finished_at) };
            let reason = match status.reason.as_str() {
                "OOMKilled" => "OOMKilled",
                "StartError" | "ContainerCannotRun" => "StartError",
                _ if status.exit_code == 0 => "Completed",
                _ => "Error",
            };
            Some(ContainerPhase::Exited(Exit {
                started_at,
                finished_at,
                code: status.exit_code,
                signal: None,
                reason,
                message: Some(status.message.clone()).filter(|message| !message.is_empty()),
            }))
        }
    }
}

/// Makes the place for a log, and the file for last words, which the container may write whoever it runs as.
pub(super) fn make_files(log: &Path, message: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for path in [log, message] {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
    }
    std::fs::write(message, [])?;
    std::fs::set_permissions(message, std::fs::Permissions::from_mode(0o666))
}

/// A fresh map of what is there, by pod.
pub(super) fn by_pod<T>(
    items: Vec<T>,
    labels: impl Fn(&T) -> &BTreeMap<String, String>,
) -> HashMap<String, Vec<T>> {
    let mut found: HashMap<String, Vec<T>> = HashMap::new();
    for item in items {
        if let Some(uid) = labels(&item).get(POD_UID).cloned() {
            found.entry(uid).or_default().push(item);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After `toKubeContainerStatus` of upstream's kuberuntime, and the reasons of containerd and CRI-O.
    #[test]
    fn phases_are_read_from_statuses() {
        let now = Timestamp::from_second(100).unwrap();
        let second = 1_000_000_000;
        let status = |state: pb::ContainerState, code: i32, reason: &str, started: i64| pb::ContainerStatus {
            state: state.into(),
            exit_code: code,
            reason: reason.to_owned(),
            created_at: second,
            started_at: started * second,
            finished_at: 9 * second,
            ..pb::ContainerStatus::default()
        };
        let summary = |phase: Option<ContainerPhase>| match phase {
            None => "created".to_owned(),
            Some(ContainerPhase::Running { started_at }) => format!("running {}", started_at.as_second()),
            Some(ContainerPhase::Exited(exit)) => {
                let times = (exit.started_at.as_second(), exit.finished_at.as_second());
                format!("{} {} {times:?}", exit.code, exit.reason)
            }
        };
        use pb::ContainerState::{Created, Exited, Running, Unknown};
        for (status, expected) in [
            (status(Created, 0, "", 0), "created"),
            (status(Running, 0, "", 2), "running 2"),
            (status(Exited, 0, "Completed", 2), "0 Completed (2, 9)"),
            (status(Exited, 0, "", 2), "0 Completed (2, 9)"),
            (status(Exited, 3, "Error", 2), "3 Error (2, 9)"),
            (status(Exited, 137, "OOMKilled", 2), "137 OOMKilled (2, 9)"),
            (status(Exited, 128, "StartError", 0), "128 StartError (9, 9)"),
            (status(Exited, 128, "ContainerCannotRun", 0), "128 StartError (9, 9)"),
            (status(Unknown, 0, "", 2), "137 ContainerStatusUnknown (2, 100)"),
        ] {
            assert_eq!(summary(phase(&status, now)), expected, "{status:?}");
        }
    }
}
