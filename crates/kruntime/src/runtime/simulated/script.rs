//! What simulated containers do: by annotations, or by code.

use std::{fmt::Debug, time::Duration};

use super::Load;
use crate::runtime::{ContainerConfig, ProbeKind, SandboxConfig};

/// The prefix of the annotations that [`AnnotationScript`] reads.
pub const ANNOTATION_PREFIX: &str = "simulated.kplane.dev/";

/// What one start of a container is going to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How long it takes to start.
    pub start_delay: Duration,
    /// Why it can't be started, if it can't.
    pub start_error: Option<String>,
    /// How long it runs before it ends by itself; `None` means until it is stopped.
    pub run_time: Option<Duration>,
    /// The code that it ends with by itself.
    pub exit_code: i32,
    /// How long it takes to end after it was asked to. Longer than the grace means that it is killed, with code 137.
    pub stop_delay: Duration,
    /// How long after its start each probe begins to succeed, in the order startup, liveness, readiness; `None` means
    /// never.
    pub probes: [Option<Duration>; 3],
    /// The processor time that it takes, in thousandths of a core.
    pub cpu: Load,
    /// The memory that it holds, in bytes.
    pub memory: Load,
    /// What it has on disks beside its volumes, in bytes.
    pub disk: Load,
    /// What it writes to its log at its start.
    pub log: String,
}

impl Plan {
    /// Starts at once and runs until it is stopped; all probes succeed.
    #[must_use]
    pub fn forever() -> Self {
        Self { probes: [Some(Duration::ZERO); 3], ..Self::default() }
    }

    pub(super) fn probe(&self, kind: ProbeKind) -> Option<Duration> {
        self.probes[kind as usize]
    }
}

/// Decides what containers do. Called once for each start, in the order of starts of a pod; it must not block.
pub trait Script: Debug + Send + Sync + 'static {
    /// The plan of this start of this container.
    fn plan(&self, pod: &SandboxConfig, container: &ContainerConfig) -> Plan;
}

const _: Option<&dyn Script> = None;

/// Reads the plan from the pod's annotations, the default:
///
/// | annotation after `simulated.kplane.dev/` | meaning | default |
/// |---|---|---|
/// | `start-delay` | how long a start takes | `0s` |
/// | `start-error` | the message of a start that fails | none |
/// | `run-time` | how long it runs | for ever |
/// | `exit-code` | how it ends after that | `0` |
/// | `stop-delay` | how long it takes to end when asked | `0s` |
/// | `startup`, `liveness`, `readiness` | how long after the start the probe succeeds, or `never` | `0s` |
/// | `cpu` | the processor time that it takes, such as `250m`, or in steps after its start, such as `100m,60s=2,5m=0` | `0` |
/// | `memory` | the memory that it holds, such as `64Mi`, or in steps | `0` |
/// | `disk` | what it has on disks beside its volumes, such as `1Gi`, or in steps | `0` |
/// | `log` | the text of its log | empty |
///
/// `exit-code.web` is for the container `web` only. Durations are as in Go: `1.5s`, `200ms`, `2m`. What can't be read is
/// as if it weren't there.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnnotationScript;

impl Script for AnnotationScript {
    fn plan(&self, pod: &SandboxConfig, container: &ContainerConfig) -> Plan {
        if !pod.annotations.keys().any(|key| key.starts_with(ANNOTATION_PREFIX)) {
            return Plan::forever();
        }
        let get = |key: &str| {
            pod.annotations
                .get(&format!("{ANNOTATION_PREFIX}{key}.{}", container.name))
                .or_else(|| pod.annotations.get(&format!("{ANNOTATION_PREFIX}{key}")))
        };
        let time = |key: &str| get(key).and_then(|text| parse_duration(text));
        let probe = |key: &str| match get(key).map(String::as_str) {
            Some("never") => None,
            Some(text) => Some(parse_duration(text).unwrap_or_default()),
            None => Some(Duration::ZERO),
        };
        Plan {
            start_delay: time("start-delay").unwrap_or_default(),
            start_error: get("start-error").cloned(),
            run_time: time("run-time"),
            exit_code: get("exit-code").and_then(|text| text.parse().ok()).unwrap_or_default(),
            stop_delay: time("stop-delay").unwrap_or_default(),
            probes: [probe("startup"), probe("liveness"), probe("readiness")],
            cpu: get("cpu").and_then(|text| Load::parse(text, |cpu| cpu.milli())).unwrap_or_default(),
            memory: get("memory")
                .and_then(|text| Load::parse(text, |memory| memory.value()))
                .unwrap_or_default(),
            disk: get("disk").and_then(|text| Load::parse(text, |disk| disk.value())).unwrap_or_default(),
            log: get("log").cloned().unwrap_or_default(),
        }
    }
}

/// A duration as Go writes it.
///
/// ```
/// use std::time::Duration;
/// use kruntime::runtime::simulated::parse_duration;
/// assert_eq!(parse_duration("1m1.5s"), Some(Duration::from_millis(61_500)));
/// assert_eq!(parse_duration("soon"), None);
/// ```
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.trim().is_empty()).then_some(total)
}
