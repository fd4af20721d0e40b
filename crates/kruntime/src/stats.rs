//! What pods use, over time: two readings of each container make a rate.
//!
//! A reading is taken when somebody asks and the last one is older than [`RESOLUTION`]; for some minutes after that one is taken
//! regularly, so that who asks again is told of the time just past. While nobody asks, nothing is read. The rules
//! for a container that has just started are those of metrics-server (`pkg/storage/pod.go`): its start is its first
//! reading, and it must have run for [`AGE_MIN`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

use crate::{
    agent::Inner,
    runtime::{ContainerPhase, ContainerReading, ContainerRuntime, PodUid},
};

/// How far two readings are apart at least (metrics-server's `--metric-resolution`).
pub const RESOLUTION: Duration = Duration::from_secs(15);
/// How long a container must have run before its use is told.
pub const AGE_MIN: Duration = Duration::from_secs(10);
/// For how long readings go on after the last question.
pub const INTEREST_MAX: Duration = Duration::from_secs(300);

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStats {
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// The processor time that it took within the window, in billionths of a core.
    pub cpu_nanocores: u64,
    /// All processor time since its start, in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// The memory that it holds, in bytes.
    pub memory_bytes: u64,
}

/// What the containers of one pod use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStats {
    /// When that was read.
    pub at: Timestamp,
    /// The time before `at` that the processor time is of.
    pub window: Duration,
    /// Every container that runs.
    pub containers: Vec<ContainerStats>,
}

/// What the pods of one node use together. The rest of the machine is not counted: it may be shared by several nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStats {
    /// When that was read.
    pub at: Timestamp,
    /// The time before `at` that the processor time is of.
    pub window: Duration,
    /// The processor time within the window, in billionths of a core.
    pub cpu_nanocores: u64,
    /// The memory that is held, in bytes.
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Timestamp,
    cpu: Duration,
    memory_bytes: u64,
}

/// The last two readings of one start of a container; before the second one the first is its start.
#[derive(Clone, Debug)]
struct Series {
    name: Arc<str>,
    started_at: Timestamp,
    before: Reading,
    last: Reading,
}

/// The readings of all pods of an agent.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    kept: Mutex<Kept>,
    /// Held while a reading is taken, so that callers at the same time share one.
    reading: tokio::sync::Mutex<()>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    /// One entry for each pod that an agent looks after.
    pods: HashMap<PodUid, Vec<Series>, ahash::RandomState>,
    read_at: Option<Timestamp>,
    asked_at: Option<Instant>,
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

impl Series {
    fn first(reading: &ContainerReading, started_at: Timestamp, at: Timestamp) -> Self {
        let last = Reading { at, cpu: reading.cpu, memory_bytes: reading.memory_bytes };
        let before = Reading { at: started_at, cpu: Duration::ZERO, memory_bytes: 0 };
        Self { name: Arc::clone(&reading.name), started_at, before, last }
    }

    /// This series with one reading more.
    fn then(&self, reading: &ContainerReading, at: Timestamp) -> Self {
        // Of a process that ended and was not waited for nothing is known any more: what was counted stays counted.
        let cpu = reading.cpu.max(self.last.cpu);
        Self {
            before: self.last,
            last: Reading { at, cpu, memory_bytes: reading.memory_bytes },
            ..self.clone()
        }
    }

    fn window(&self) -> Duration {
        between(self.before.at, self.last.at)
    }

    /// What the container uses; `None` while it is too young for that to mean anything.
    fn stats(&self) -> Option<ContainerStats> {
        let window = self.window();
        if window.is_zero() || between(self.started_at, self.last.at) < AGE_MIN {
            return None;
        }
        let used = self.last.cpu.saturating_sub(self.before.cpu);
        let nanocores = used.as_nanos().saturating_mul(1_000_000_000) / window.as_nanos();
        Some(ContainerStats {
            name: Arc::clone(&self.name),
            cpu_nanocores: u64::try_from(nanocores).unwrap_or(u64::MAX),
            cpu_nanoseconds: u64::try_from(self.last.cpu.as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: self.last.memory_bytes,
        })
    }
}

/// What a pod uses: all its containers, or nothing while one of them is too young.
fn pod_stats(series: &[Series]) -> Option<PodStats> {
    let first = series.first()?;
    let containers = series.iter().map(Series::stats).collect::<Option<Vec<_>>>()?;
    Some(PodStats { at: first.last.at, window: first.window(), containers })
}

impl Readings {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a reading is due at `now`.
    fn is_due(&self, now: Timestamp) -> bool {
        self.kept().read_at.is_none_or(|at| between(at, now) >= RESOLUTION)
    }

    fn is_of_interest(&self) -> bool {
        self.kept().asked_at.is_some_and(|at| at.elapsed() < INTEREST_MAX)
    }
}

impl Inner {
    /// Takes a reading of all pods, unless the last one is new enough.
    async fn read_usage(&self) {
        let _reading = self.stats.reading.lock().await;
        let now = self.clock.now();
        if !self.stats.is_due(now) {
            return;
        }
        let mut runtimes: Vec<(Arc<dyn ContainerRuntime>, Vec<PodUid>)> = Vec::new();
        for (uid, entry) in self.entries().iter() {
            let runtime = &entry.node.config.runtime;
            match runtimes.iter_mut().find(|(known, _)| Arc::ptr_eq(known, runtime)) {
                Some((_, pods)) => pods.push(uid.clone()),
                None => runtimes.push((Arc::clone(runtime), vec![uid.clone()])),
            }
        }
        let mut read: HashMap<PodUid, Vec<(Timestamp, ContainerReading)>> = HashMap::new();
        for (runtime, pods) in runtimes {
            for (uid, readings) in runtime.usage(&pods).await {
                let observed = runtime.observe(&uid);
                let since = |name: &str| {
                    observed.containers.iter().find(|container| *container.name == *name).and_then(
                        |container| match container.phase {
                            ContainerPhase::Running { started_at } => Some(started_at),
                            ContainerPhase::Exited(_) => None,
                        },
                    )
                };
                let known = readings.into_iter().filter_map(|reading| Some((since(&reading.name)?, reading)));
                read.insert(uid, known.collect());
            }
        }
        let mut kept = self.stats.kept();
        let before = std::mem::take(&mut kept.pods);
        let series = read.into_iter().map(|(uid, readings)| {
            let old = before.get(&uid).map(Vec::as_slice).unwrap_or_default();
            let next = readings.iter().map(|(since, reading)| {
                let same = |series: &&Series| series.name == reading.name && series.started_at == *since;
                match old.iter().find(same) {
                    Some(series) => series.then(reading, now),
                    None => Series::first(reading, *since, now),
                }
            });
            let next = next.collect();
            (uid, next)
        });
        kept.pods = series.collect();
        kept.read_at = Some(now);
    }

    /// What these pods use, by their uids; `None` for one of which nothing is known.
    pub(crate) async fn pod_stats(&self, uids: &[PodUid]) -> Vec<Option<PodStats>> {
        self.stats.kept().asked_at = Some(Instant::now());
        self.stats.asked.notify_one();
        self.read_usage().await;
        let uids = self.statics.meant(uids);
        let kept = self.stats.kept();
        uids.iter().map(|uid| pod_stats(kept.pods.get(uid)?)).collect()
    }

    /// What the pods of each of these nodes use together; `None` for a node that is not here.
    pub(crate) async fn node_stats(&self, names: &[impl AsRef<str>]) -> Vec<Option<NodeStats>> {
        let (uids, nodes): (Vec<PodUid>, Vec<Arc<str>>) = {
            let entries = self.entries();
            entries.iter().map(|(uid, entry)| (uid.clone(), Arc::clone(&entry.node.config.name))).unzip()
        };
        let pods = self.pod_stats(&uids).await;
        let at = self.stats.kept().read_at.unwrap_or_else(|| self.clock.now());
        let nothing = NodeStats { at, window: Duration::ZERO, cpu_nanocores: 0, memory_bytes: 0 };
        let mut sums: HashMap<Arc<str>, NodeStats> = HashMap::new();
        for (node, pod) in nodes.into_iter().zip(pods) {
            let Some(pod) = pod else { continue };
            let sum = sums.entry(node).or_insert_with(|| nothing.clone());
            sum.window = sum.window.max(pod.window);
            for container in pod.containers {
                sum.cpu_nanocores += container.cpu_nanocores;
                sum.memory_bytes += container.memory_bytes;
            }
        }
        let known = self.nodes();
        let of = |name: &str| {
            let idle = NodeStats { window: RESOLUTION, ..nothing.clone() };
            known.contains_key(name).then(|| sums.get(name).cloned().unwrap_or(idle))
        };
        names.iter().map(|name| of(name.as_ref())).collect()
    }
}

/// Takes readings while somebody is interested.
pub(crate) async fn run(inner: &Inner) {
    loop {
        inner.stats.asked.notified().await;
        while inner.stats.is_of_interest() {
            tokio::time::sleep(RESOLUTION).await;
            inner.read_usage().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of metrics-server's `pkg/storage/pod_test.go`: a window between two readings, a container that has just started, one
    /// that started anew, and a counter that goes back.
    #[test]
    fn readings_become_rates() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let reading = |cpu_ms: u64| ContainerReading {
            name: "c".into(),
            cpu: Duration::from_millis(cpu_ms),
            memory_bytes: 1 << 20,
        };
        // What is read, as second and milliseconds of processor time; then window in seconds and thousandths of a core.
        type Case = (&'static [(i64, u64)], Option<(u64, u64)>);
        let cases: &[Case] = &[
            (&[(9, 900)], None),
            (&[(10, 1_000)], Some((10, 100))),
            (&[(60, 30_000)], Some((60, 500))),
            (&[(10, 1_000), (25, 16_000)], Some((15, 1_000))),
            (&[(10, 1_000), (25, 16_000), (40, 16_000)], Some((15, 0))),
            (&[(10, 1_000), (25, 500)], Some((15, 0))),
        ];
        for (readings, expected) in cases {
            let mut series: Option<Series> = None;
            for (second, cpu) in *readings {
                let reading = reading(*cpu);
                series = Some(match &series {
                    Some(series) => series.then(&reading, at(*second)),
                    None => Series::first(&reading, at(0), at(*second)),
                });
            }
            let found = pod_stats(series.as_slice())
                .map(|pod| (pod.window.as_secs(), pod.containers[0].cpu_nanocores / 1_000_000));
            assert_eq!(found, *expected, "{readings:?}");
        }
        let young = Series::first(&reading(1), at(55), at(60));
        let old = Series::first(&reading(1), at(0), at(60));
        assert_eq!(pod_stats(&[old, young]), None, "one container is too young");
        assert_eq!(pod_stats(&[]), None);
    }
}
