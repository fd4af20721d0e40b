//! Whether a container that ended starts again, and when.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::later;

/// The wait before the second restart.
pub const BACKOFF_MIN: SignedDuration = SignedDuration::from_secs(10);
/// The wait never grows beyond this.
pub const BACKOFF_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran so long since its last restart starts anew with the shortest wait.
pub const BACKOFF_RESET: SignedDuration = SignedDuration::from_secs(600);

/// The crash-loop back-off of one container: none before the first restart, then 10 s, doubling to 300 s.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    entry: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// Until when a container that ended at `finished` has to wait; `None` when it may start.
    pub(super) fn until(&self, finished: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (wait, updated) = self.entry?;
        let until = later(finished, wait);
        (finished.duration_since(updated) <= BACKOFF_RESET && until > now).then_some(until)
    }

    /// The wait that holds now, for messages.
    pub(super) fn wait(&self) -> SignedDuration {
        self.entry.map_or(BACKOFF_MIN, |(wait, _)| wait)
    }

    /// Notes a restart.
    pub(super) fn next(&mut self, now: Timestamp) {
        let wait = match self.entry {
            Some((wait, updated)) if now.duration_since(updated) <= BACKOFF_RESET => {
                (wait * 2).min(BACKOFF_MAX)
            }
            _ => BACKOFF_MIN,
        };
        self.entry = Some((wait, now));
    }
}

/// The wait after `times` refusals in a row.
pub(super) fn wait(times: u32) -> SignedDuration {
    (BACKOFF_MIN * 2_i32.saturating_pow(times.saturating_sub(1).min(10))).min(BACKOFF_MAX)
}

/// Whether a container that ended with `code` is to start again (KEP-5307: the container's first rule for that code, then its own
/// policy, then the pod's).
pub(super) fn should_restart(spec: &PodSpec, container: &Container, code: i32) -> bool {
    if matches!(super::restart_all::rule(container, code), Some("Restart" | "RestartAllContainers")) {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(spec.restart_policy.as_deref());
    match policy.unwrap_or("Always") {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}
