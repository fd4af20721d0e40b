//! When a node is short of something, and whose pod goes first: upstream's eviction manager
//! (`pkg/kubelet/eviction/{eviction_manager,helpers}.go`) as a function of figures and time.
//!
//! [`EvictionMachine::step`] is called at every [`LOOK_EVERY`] with what was measured. It says which conditions the node has and, when a
//! threshold was met for as long as its grace, which one pod is to go; more than one would be a pod too many, for what it frees shows
//! only afterwards.

use std::{cmp::Ordering, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use kcore::{Quantity, quantity::Format};

mod local;
mod options;

pub(crate) use local::EPHEMERAL_STORAGE;
pub use local::{PodDisk, excess, is_limited};
pub use options::{EvictionOptions, is_critical, is_static, refusal};

/// How often figures are taken (upstream's `evictionMonitoringPeriod`).
pub const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// How long a condition stays after its last cause (upstream's `evictionPressureTransitionPeriod`).
pub const PRESSURE_STAYS: SignedDuration = SignedDuration::from_secs(300);
/// The seconds that a pod gets to end after a hard threshold (upstream's `immediateEvictionGracePeriodSeconds`).
pub const HARD_GRACE_SECONDS: u64 = 1;
/// Pods of this priority and above are the system's, and never evicted (`SystemCriticalPriority`).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`, in bytes: the capacity without the working set.
    Memory,
    /// `nodefs.available`, in bytes: volumes, logs and what containers write.
    NodeFs,
    /// `nodefs.inodesFree`.
    NodeFsInodes,
    /// `imagefs.available`, in bytes: images.
    ImageFs,
    /// `imagefs.inodesFree`.
    ImageFsInodes,
    /// `pid.available`: the processes that can still be made.
    Pids,
}

/// What the node says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Pressure {
    /// The type of the node's condition.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// The reason of the condition, in upstream's words.
    #[must_use]
    pub fn reason(self, is_there: bool) -> &'static str {
        match (self, is_there) {
            (Self::Memory, true) => "KubeletHasInsufficientMemory",
            (Self::Memory, false) => "KubeletHasSufficientMemory",
            (Self::Disk, true) => "KubeletHasDiskPressure",
            (Self::Disk, false) => "KubeletHasNoDiskPressure",
            (Self::Pid, true) => "KubeletHasInsufficientPID",
            (Self::Pid, false) => "KubeletHasSufficientPID",
        }
    }

    /// The message of the condition, in upstream's words.
    #[must_use]
    pub fn message(self, is_there: bool) -> &'static str {
        match (self, is_there) {
            (Self::Memory, true) => "kubelet has insufficient memory available",
            (Self::Memory, false) => "kubelet has sufficient memory available",
            (Self::Disk, true) => "kubelet has disk pressure",
            (Self::Disk, false) => "kubelet has no disk pressure",
            (Self::Pid, true) => "kubelet has insufficient PID available",
            (Self::Pid, false) => "kubelet has sufficient PID available",
        }
    }
}

impl Signal {
    /// The name in the configuration of upstream's kubelet.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// The resource that is named to those whose pod goes.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::NodeFs | Self::ImageFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    fn format(self) -> Format {
        match self {
            Self::Memory | Self::NodeFs | Self::ImageFs => Format::BinarySi,
            Self::NodeFsInodes | Self::ImageFsInodes | Self::Pids => Format::DecimalSi,
        }
    }

    /// The condition that the node has when a threshold of it is met.
    #[must_use]
    pub fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::Pids => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }
}

/// An amount, or a part of the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// So many bytes, inodes or processes.
    Absolute(u64),
    /// So many hundredths of the capacity.
    Percent(u8),
}

impl Amount {
    pub(crate) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Percent(percent) => {
                u64::try_from(u128::from(capacity) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
        }
    }
}

/// Below which amount something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// Below what.
    pub below: Amount,
    /// How long it must have been so: zero for a hard threshold.
    pub grace: SignedDuration,
    /// How much more than that must be free before it is no longer met, once it was met.
    pub reclaim: Amount,
}

impl Threshold {
    /// A threshold that is met at once and no longer than the figure is below it.
    #[must_use]
    pub const fn hard(signal: Signal, below: Amount) -> Self {
        Self { signal, below, grace: SignedDuration::ZERO, reclaim: Amount::Absolute(0) }
    }

    fn is_met(&self, figure: Figure, with_reclaim: bool) -> bool {
        let more = if with_reclaim { self.reclaim.of(figure.capacity) } else { 0 };
        figure.available < self.below.of(figure.capacity).saturating_add(more)
    }
}

/// Upstream's `DefaultEvictionHard` on Linux.
pub const THRESHOLDS: [Threshold; 5] = [
    Threshold::hard(Signal::Memory, Amount::Absolute(100 * 1024 * 1024)),
    Threshold::hard(Signal::NodeFs, Amount::Percent(10)),
    Threshold::hard(Signal::NodeFsInodes, Amount::Percent(5)),
    Threshold::hard(Signal::ImageFs, Amount::Percent(15)),
    Threshold::hard(Signal::ImageFsInodes, Amount::Percent(5)),
];

/// What was measured of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// What is left.
    pub available: u64,
    /// What there is in all.
    pub capacity: u64,
}

/// What a pod uses and has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// What it uses.
    pub used: u64,
    /// What it has asked for.
    pub requested: u64,
}

/// A pod that may have to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate<K> {
    /// Names it.
    pub key: K,
    /// Its priority.
    pub priority: i32,
    /// Whether it is static: such pods are the node's own and stay.
    pub is_static: bool,
    /// Its memory in bytes; `None` when nothing is known of it.
    pub memory: Option<Use>,
    /// What it has on disks in bytes; `None` when nothing is known of it.
    pub disk: Option<Use>,
    /// Its inodes; nobody asks for them.
    pub inodes: Option<u64>,
    /// Its processes.
    pub processes: Option<u64>,
    /// Its containers with their memory, for those who read why it had to go.
    pub containers: Vec<(String, Use)>,
}

/// What one step gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<K> {
    /// The node's conditions, each once, in order.
    pub pressures: Vec<Pressure>,
    /// What is to be made good, the most urgent first: images and ended containers may do it for disks, before a pod goes.
    pub short_of: Option<Threshold>,
    /// The pod that is to go if nothing else helps.
    pub evict: Option<Eviction<K>>,
}

/// A pod's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction<K> {
    /// The pod.
    pub key: K,
    /// How many seconds it gets at most; `None`: its own grace, as far as the node allows it.
    pub grace_seconds: Option<u64>,
    /// What its status says.
    pub message: String,
}

/// Remembers since when thresholds are met, and when conditions were last true.
///
/// ```
/// use jiff::Timestamp;
/// use kruntime::eviction::{Candidate, EvictionMachine, Figure, Pressure, Signal, THRESHOLDS};
///
/// let mut machine = EvictionMachine::new(THRESHOLDS.to_vec());
/// let figures = [(Signal::Memory, Figure { available: 50 << 20, capacity: 8 << 30 })].into();
/// let pods = [Candidate { key: "web", ..Candidate::default() }];
/// let verdict = machine.step(&figures, &pods, Timestamp::UNIX_EPOCH);
/// assert_eq!(verdict.pressures, [Pressure::Memory]);
/// assert_eq!(verdict.evict.map(|eviction| eviction.key), Some("web"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct EvictionMachine {
    thresholds: Vec<Threshold>,
    /// The thresholds that were met at the last step, and since when.
    met: BTreeMap<Threshold, Timestamp>,
    /// When each condition had a cause last.
    pressures: BTreeMap<Pressure, Timestamp>,
    stays: Option<SignedDuration>,
}

impl EvictionMachine {
    /// A machine with these thresholds.
    #[must_use]
    pub fn new(thresholds: Vec<Threshold>) -> Self {
        Self { thresholds, ..Self::default() }
    }

    /// How long conditions stay after their last cause; [`PRESSURE_STAYS`] by default.
    #[must_use]
    pub fn pressure_stays(mut self, stays: SignedDuration) -> Self {
        self.stays = Some(stays);
        self
    }

    /// Looks at new figures. A signal without one is left alone.
    pub fn step<K: Clone>(
        &mut self,
        figures: &BTreeMap<Signal, Figure>,
        pods: &[Candidate<K>],
        now: Timestamp,
    ) -> Verdict<K> {
        let before = std::mem::take(&mut self.met);
        for threshold in &self.thresholds {
            let Some(figure) = figures.get(&threshold.signal) else { continue };
            let was_met = before.get(threshold).copied();
            if threshold.is_met(*figure, was_met.is_some()) {
                self.met.insert(*threshold, was_met.unwrap_or(now));
                self.pressures.insert(threshold.signal.pressure(), now);
            }
        }
        let stays = self.stays.unwrap_or(PRESSURE_STAYS);
        // What has a cause now is there, however short conditions stay.
        self.pressures.retain(|_, last| *last == now || now.duration_since(*last) < stays);
        let mut due: Vec<Threshold> = self
            .met
            .iter()
            .filter(|(threshold, since)| now.duration_since(**since) >= threshold.grace)
            .map(|(threshold, _)| *threshold)
            .collect();
        // Memory first; of one signal the hard threshold.
        due.sort_by_key(|threshold| (threshold.signal != Signal::Memory, threshold.signal, threshold.grace));
        let short_of = due.first().copied();
        let evict = short_of.and_then(|threshold| choose(threshold, figures, pods));
        Verdict { pressures: self.pressures.keys().copied().collect(), short_of, evict }
    }
}

fn choose<K: Clone>(
    threshold: Threshold,
    figures: &BTreeMap<Signal, Figure>,
    pods: &[Candidate<K>],
) -> Option<Eviction<K>> {
    let mut ranked: Vec<&Candidate<K>> = pods.iter().collect();
    rank(&mut ranked, threshold.signal);
    // Critical pods are passed over, not ranked last: what they use counts for nobody else.
    let first = ranked.into_iter().find(|pod| !pod.is_static && pod.priority < CRITICAL_PRIORITY)?;
    let figure = figures.get(&threshold.signal)?;
    let message = message(threshold, *figure, first);
    let grace_seconds = (threshold.grace == SignedDuration::ZERO).then_some(HARD_GRACE_SECONDS);
    Some(Eviction { key: first.key.clone(), grace_seconds, message })
}

/// Why this pod has to go, in upstream's words (`evictionMessage`).
fn message<K>(threshold: Threshold, figure: Figure, pod: &Candidate<K>) -> String {
    let signal = threshold.signal;
    let amount = |number: u64| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        Quantity::with_format(number, signal.format()).to_string()
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        amount(threshold.below.of(figure.capacity)),
        amount(figure.available)
    );
    let all = pod.containers.iter().filter(|_| signal == Signal::Memory);
    for (name, used) in all.filter(|(_, used)| used.used > used.requested) {
        let (used, requested) = (amount(used.used), amount(used.requested));
        text.push_str(&format!(
            "Container {name} was using {used}, request is {requested}, has larger consumption of {}. ",
            signal.resource()
        ));
    }
    text
}

/// Puts those first that are to go first, and leaves the order of equals.
///
/// For memory and disks those go first that nothing is known of, then those that use more than they asked for, then those of lower
/// priority, then those that are furthest above what they asked for. For processes it is the priority, then their number.
pub fn rank<K>(pods: &mut [&Candidate<K>], signal: Signal) {
    pods.sort_by(|one, other| match signal {
        Signal::Memory => by_excess(one.memory, other.memory, one.priority, other.priority),
        Signal::NodeFs | Signal::ImageFs => by_excess(one.disk, other.disk, one.priority, other.priority),
        Signal::NodeFsInodes | Signal::ImageFsInodes => {
            let uses = |inodes: Option<u64>| inodes.map(|used| Use { used, requested: 0 });
            by_excess(uses(one.inodes), uses(other.inodes), one.priority, other.priority)
        }
        Signal::Pids => {
            one.priority.cmp(&other.priority).then_with(|| match (one.processes, other.processes) {
                (Some(one), Some(other)) => other.cmp(&one),
                (one, other) => one.is_some().cmp(&other.is_some()),
            })
        }
    });
}

fn by_excess(one: Option<Use>, other: Option<Use>, one_priority: i32, other_priority: i32) -> Ordering {
    let (Some(one), Some(other)) = (one, other) else {
        return one.is_some().cmp(&other.is_some()).then(one_priority.cmp(&other_priority));
    };
    let exceeds = |pod: Use| pod.used > pod.requested;
    let excess = |pod: Use| i128::from(pod.used) - i128::from(pod.requested);
    exceeds(other)
        .cmp(&exceeds(one))
        .then(one_priority.cmp(&other_priority))
        .then(excess(other).cmp(&excess(one)))
}

#[cfg(test)]
mod tests;
