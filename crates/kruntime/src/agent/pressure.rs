//! Looks after the nodes: takes figures, says what they are short of, and ends pods.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kreconcile::{EventType, Regarding};
use tokio::time::Instant;

use super::{Inner, Node, PodEntry};
use crate::{
    demand,
    eviction::{
        Candidate, EPHEMERAL_STORAGE, Eviction, EvictionMachine, EvictionOptions, Figure, LOOK_EVERY,
        Pressure, Signal, Use, is_static, refusal,
    },
    machine::NodeEnd,
    runtime::{ContainerPhase, PodUid},
};

/// The reason of pods that had to go, and of those that are not taken.
pub(super) const EVICTED: &str = "Evicted";
/// How often it is looked whether an evicted pod has ended (upstream's `podCleanupPollFreq`).
const ENDED_EVERY: Duration = Duration::from_secs(1);
/// How long that is waited for before the next look (`podCleanupTimeout`).
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// What is remembered of one node.
struct Watch {
    machine: EvictionMachine,
    due: Instant,
    /// The pod that was evicted last, and until when its end is waited for.
    leaving: Option<(PodUid, Instant)>,
}

/// One task for all nodes of the agent.
pub(super) async fn run(inner: &Inner) {
    let every = Duration::try_from(LOOK_EVERY).unwrap_or(Duration::from_secs(10));
    let mut watches: HashMap<Arc<str>, Watch, ahash::RandomState> = HashMap::default();
    loop {
        let nodes: Vec<Arc<Node>> = inner.nodes().values().cloned().collect();
        let names: Vec<&Arc<str>> = nodes.iter().map(|node| &node.config.name).collect();
        watches.retain(|name, _| names.contains(&name));
        for node in &nodes {
            let Some(options) = &node.config.eviction else { continue };
            let watch = watches.entry(Arc::clone(&node.config.name)).or_insert_with(|| Watch {
                machine: EvictionMachine::new(options.thresholds.clone())
                    .pressure_stays(options.pressure_stays),
                due: Instant::now(),
                leaving: None,
            });
            if watch.due > Instant::now() {
                continue;
            }
            if let Some((uid, until)) = &watch.leaving
                && *until > Instant::now()
                && inner.entry(uid).is_some_and(|entry| has_running(&entry))
            {
                watch.due = Instant::now() + ENDED_EVERY;
                continue;
            }
            watch.leaving = inner.look_after(node, options, &mut watch.machine).await;
            watch.due = Instant::now() + if watch.leaving.is_some() { ENDED_EVERY } else { every };
        }
        let next = watches.values().map(|watch| watch.due).min();
        tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + every).min(Instant::now() + every))
            .await;
    }
}

/// Whether anything of the pod runs.
pub(super) fn has_running(entry: &PodEntry) -> bool {
    let observed = entry.node.config.runtime.observe(&entry.uid);
    observed.containers.iter().any(|container| matches!(container.phase, ContainerPhase::Running { .. }))
}

impl Inner {
    /// One look at one node. Gives the pod that has to go, and until when its end is waited for.
    async fn look_after(
        &self,
        node: &Arc<Node>,
        options: &EvictionOptions,
        machine: &mut EvictionMachine,
    ) -> Option<(PodUid, Instant)> {
        let figures = options.signals.figures().await;
        let now = self.clock.now();
        // Who uses what is asked only when something is short.
        let first = machine.step::<PodUid>(&figures, &[], now);
        self.set_pressures(node, &first.pressures);
        // Limits of pods come first: what that frees may be enough.
        if self.limit_storage(node).await {
            return None;
        }
        let short_of = first.short_of?;
        let resource = short_of.signal.resource();
        self.node_event(
            node,
            EventType::Warning,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {resource}"),
        );
        let figures = if short_of.signal.pressure() == Pressure::Disk && node.config.runtime.reclaim().await {
            options.signals.figures().await
        } else {
            figures
        };
        let candidates = self.candidates(node, &figures, short_of.signal).await;
        let verdict = machine.step(&figures, &candidates, now);
        let Some(eviction) = verdict.evict else {
            if verdict.short_of.is_some() {
                tracing::warn!(node = %node.config.name, resource, "nothing is left that could be evicted");
            }
            return None;
        };
        let entry = self.entry(&eviction.key)?;
        self.evict(&entry, eviction, options);
        Some((entry.uid.clone(), Instant::now() + ENDED_WITHIN))
    }

    /// The pods that run on the node and have not been told to end.
    async fn candidates(
        &self,
        node: &Arc<Node>,
        figures: &BTreeMap<Signal, Figure>,
        signal: Signal,
    ) -> Vec<Candidate<PodUid>> {
        let mut here: Vec<Arc<PodEntry>> = {
            let entries = self.entries();
            let here = entries.values().filter(|entry| entry.node.config.name == node.config.name);
            here.filter(|entry| !entry.is_ended_by_node() && has_running(entry)).cloned().collect()
        };
        // Equals go in the order of their uids, not in that of a hash.
        here.sort_by(|one, other| one.uid.cmp(&other.uid));
        let mut used: HashMap<PodUid, BTreeMap<Arc<str>, u64>> = HashMap::new();
        if signal == Signal::Memory && figures.contains_key(&signal) {
            let uids: Vec<PodUid> = here.iter().map(|entry| entry.uid.clone()).collect();
            for (uid, readings) in node.config.runtime.usage(&uids).await {
                used.insert(uid, readings.into_iter().map(|r| (r.name, r.memory_bytes)).collect());
            }
        }
        let mut candidates: Vec<_> =
            here.iter().map(|entry| candidate(&entry.uid, &entry.pod(), used.get(&entry.uid))).collect();
        if matches!(signal, Signal::NodeFs | Signal::ImageFs) {
            for ((candidate, entry), disk) in candidates.iter_mut().zip(&here).zip(self.disks(&here).await) {
                let pod = entry.pod();
                let requested = pod.spec.as_ref().map_or(0, |spec| demand::request(spec, EPHEMERAL_STORAGE));
                let requested = u64::try_from(requested).unwrap_or(0);
                candidate.disk = Some(Use { used: disk.total(&pod), requested });
            }
        }
        candidates
    }

    fn evict(&self, entry: &PodEntry, eviction: Eviction<PodUid>, options: &EvictionOptions) {
        let grace_seconds = eviction.grace_seconds.unwrap_or(options.grace_seconds_max).max(1);
        tracing::info!(pod = %entry.uid, message = eviction.message, "a pod is evicted");
        self.event(entry, None, EventType::Warning, EVICTED, eviction.message.clone());
        entry.end(NodeEnd {
            reason: EVICTED.to_owned(),
            message: eviction.message,
            grace_seconds: Some(grace_seconds),
            is_refusal: false,
            is_disruption: true,
        });
        self.queue.add(entry.uid.clone());
    }

    /// Refuses a pod that is new to a node which is short of something, or ends.
    pub(super) fn admit(&self, entry: &PodEntry) {
        let ends = entry.node.shutting_down().is_some();
        let pressures: Vec<Pressure> = entry.node.pressures().keys().copied().collect();
        // Nearly always.
        if pressures.is_empty() && !ends {
            return;
        }
        let pod = entry.pod();
        let begun = entry.node.config.runtime.observe(&entry.uid).addresses.is_some();
        if begun || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        if ends {
            return self.refuse(
                entry,
                "NodeShutdown",
                "Pod was rejected as the node is shutting down.".to_owned(),
            );
        }
        if let Some(message) = refusal(&pod, &pressures) {
            self.refuse(entry, EVICTED, message);
        }
    }

    /// Refuses a pod for good: it fails, and nothing of it is begun.
    pub(super) fn refuse(&self, entry: &PodEntry, reason: &str, message: String) {
        self.event(entry, None, EventType::Warning, reason, message.clone());
        entry.end(NodeEnd {
            reason: reason.to_owned(),
            message: format!("Pod was rejected: {message}"),
            grace_seconds: Some(1),
            is_refusal: true,
            is_disruption: false,
        });
    }

    fn set_pressures(&self, node: &Arc<Node>, found: &[Pressure]) {
        let changed: Vec<(Pressure, bool)> = {
            let mut known = node.pressures();
            let all = [Pressure::Memory, Pressure::Disk, Pressure::Pid];
            let is = |list: &[Pressure], pressure: &Pressure| list.contains(pressure);
            let before: Vec<Pressure> = known.keys().copied().collect();
            known.retain(|pressure, _| is(found, pressure));
            for pressure in found {
                known.entry(*pressure).or_insert_with(|| self.clock.now());
            }
            let changed = all.iter().filter(|pressure| is(&before, pressure) != is(found, pressure));
            changed.map(|pressure| (*pressure, is(found, pressure))).collect()
        };
        for (pressure, is_there) in &changed {
            if !is_there {
                node.set_relieved(*pressure, self.clock.now());
            }
            let what = format!("Node{}", pressure.reason(*is_there).trim_start_matches("Kubelet"));
            let message = format!("Node {} status is now: {what}", node.config.name);
            self.node_event(node, EventType::Normal, &what, message);
        }
        if !changed.is_empty() {
            node.ask_for_status();
        }
    }

    /// An event about a node.
    pub(crate) fn node_event(&self, node: &Node, kind: EventType, reason: &str, message: String) {
        if !node.config.events {
            return;
        }
        let name = node.config.name.to_string();
        // The node's name stands for its uid, as upstream's kubelet has it.
        let about = Regarding {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            uid: name.clone(),
            name,
            ..Regarding::default()
        };
        self.recorder.record(&about, kind, reason, message);
    }
}

fn candidate(uid: &PodUid, pod: &Pod, used: Option<&BTreeMap<Arc<str>, u64>>) -> Candidate<PodUid> {
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let containers = containers.filter_map(|container| {
        let used = *used?.get(container.name.as_str())?;
        let requested = demand::requested(container, "memory").unwrap_or(0);
        Some((container.name.clone(), Use { used, requested: bytes(requested) }))
    });
    let requested = spec.map_or(0, |spec| bytes(demand::request(spec, "memory")));
    Candidate {
        key: uid.clone(),
        priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
        is_static: is_static(pod),
        memory: used.map(|used| Use { used: used.values().sum(), requested }),
        containers: containers.collect(),
        disk: None,
        inodes: None,
        processes: None,
    }
}
