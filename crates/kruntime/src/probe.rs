//! Probes: the same question again and again, and what the answers mean.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Probe};
use kreconcile::EventType;

use crate::{
    agent::{Inner, PodEntry},
    handler::{self, HandlerError},
    runtime::ProbeKind,
};

/// Counts answers: the result changes after so many equal ones in a row.
///
/// ```
/// use k8s_openapi::api::core::v1::Probe;
/// let mut count = kruntime::probe::Count::new(&Probe { failure_threshold: Some(2), ..Probe::default() });
/// assert_eq!([count.add(true), count.add(false), count.add(false)], [Some(true), None, Some(false)]);
/// ```
#[derive(Clone, Debug)]
pub struct Count {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    times: u32,
}

impl Count {
    /// Counts for this probe: `successThreshold` is 1 and `failureThreshold` 3 by default.
    #[must_use]
    pub fn new(probe: &Probe) -> Self {
        let threshold =
            |value: Option<i32>, default| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default);
        Self {
            success_threshold: threshold(probe.success_threshold, 1).max(1),
            failure_threshold: threshold(probe.failure_threshold, 3).max(1),
            last: None,
            times: 0,
        }
    }

    /// Counts one answer; gives the result when the threshold is reached.
    pub fn add(&mut self, success: bool) -> Option<bool> {
        self.times = if self.last == Some(success) { self.times.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.times >= threshold).then_some(success)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default),
    )
}

/// Probes one container until the task is dropped, or, for a startup probe, until it is decided.
pub(crate) async fn run(
    inner: Weak<Inner>,
    entry: Weak<PodEntry>,
    container: Container,
    kind: ProbeKind,
    probe: Probe,
) {
    let name: Arc<str> = container.name.as_str().into();
    let mut count = Count::new(&probe);
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    loop {
        {
            let (Some(inner), Some(entry)) = (inner.upgrade(), entry.upgrade()) else { return };
            let answer = ask(&entry, &container, kind, &probe).await;
            if let Err(message) = &answer {
                let word = ["Startup", "Liveness", "Readiness"][kind as usize];
                let message = format!("{word} probe failed: {message}");
                inner.event(&entry, Some(&name), EventType::Warning, "Unhealthy", message);
            }
            if let Ok(Some(warning)) = &answer {
                let word = ["Startup", "Liveness", "Readiness"][kind as usize];
                let message = format!("{word} probe warning: {warning}");
                inner.event(&entry, Some(&name), EventType::Warning, "ProbeWarning", message);
            }
            if let Some(result) = count.add(answer.is_ok()) {
                if entry.set_probe(&name, kind, result) {
                    inner.queue.add(entry.uid.clone());
                }
                // A container that is to be killed is not asked again; neither is one that has started.
                if kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !result) {
                    return;
                }
            }
        }
        tokio::time::sleep(seconds(probe.period_seconds, 10)).await;
    }
}

/// A success may come with a warning.
async fn ask(
    entry: &PodEntry,
    container: &Container,
    kind: ProbeKind,
    probe: &Probe,
) -> Result<Option<String>, String> {
    if let Some(answer) = entry.node.config.runtime.probe(&entry.uid, &container.name, kind, probe).await {
        return if answer { Ok(None) } else { Err("as scripted".to_owned()) };
    }
    let timeout = seconds(probe.timeout_seconds, 1);
    let asked = async {
        if let Some(action) = &probe.exec {
            handler::exec(entry, container, action).await.map(|()| None)
        } else if let Some(action) = &probe.http_get {
            handler::http_get(entry, container, action).await
        } else if let Some(action) = &probe.tcp_socket {
            handler::tcp_socket(entry, container, action).await.map(|()| None)
        } else if let Some(action) = &probe.grpc {
            handler::grpc(entry, action).await.map(|()| None)
        } else {
            Err(HandlerError::Bad("missing probe handler".to_owned()))
        }
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) if probe.grpc.is_some() => {
            Err(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
        }
        Err(_) => Err(format!("command timed out after {}s", timeout.as_secs())),
    }
}
