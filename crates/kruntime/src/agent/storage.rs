//! What pods have on their node's disks, and the end of those that have more than they may.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use kreconcile::EventType;

use super::{Inner, Node, PodEntry, pressure::EVICTED};
use crate::{
    disk,
    eviction::{PodDisk, excess, is_critical, is_limited},
    machine::NodeEnd,
    runtime::PodUid,
};

impl Inner {
    /// What these pods have on the node's disks, in their order. It takes a look at each of their files.
    pub(crate) async fn disks(&self, entries: &[Arc<PodEntry>]) -> Vec<PodDisk> {
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            let of_runtime = entry.node.config.runtime.disk(std::slice::from_ref(&entry.uid)).await;
            let mut disk = PodDisk::default();
            disk.containers.extend(of_runtime.into_iter().flat_map(|(_, containers)| containers));
            let pod = entry.pod();
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let dirs: Vec<(String, PathBuf)> = volumes
                .filter(|volume| volume.empty_dir.is_some())
                .filter_map(|volume| {
                    let dir = entry.node.volumes.as_ref()?.own_dir(&entry.uid, &volume.name);
                    Some((volume.name.clone(), dir))
                })
                .collect();
            if !dirs.is_empty() {
                let measure = move || {
                    dirs.into_iter().map(|(name, dir)| (name, disk::taken(&dir))).collect::<HashMap<_, _>>()
                };
                let measured = tokio::task::spawn_blocking(measure).await;
                disk.volumes.extend(measured.unwrap_or_default());
            }
            all.push(disk);
        }
        all
    }

    /// Ends the pods of the node that have more on its disks than they may. Says whether there were any.
    pub(super) async fn limit_storage(&self, node: &Arc<Node>) -> bool {
        let mut limited: Vec<Arc<PodEntry>> = {
            let entries = self.entries();
            let here = entries.values().filter(|entry| entry.node.config.name == node.config.name);
            here.filter(|entry| {
                let pod = entry.pod();
                is_limited(&pod) && !is_critical(&pod) && !entry.is_ended_by_node() && has_sandbox(entry)
            })
            .cloned()
            .collect()
        };
        limited.sort_by(|one, other| one.uid.cmp(&other.uid));
        let mut any = false;
        for (entry, disk) in limited.iter().zip(self.disks(&limited).await) {
            let Some(message) = excess(&entry.pod(), &disk) else { continue };
            any = true;
            tracing::info!(pod = %entry.uid, message, "a pod is evicted");
            self.event(entry, None, EventType::Warning, EVICTED, message.clone());
            entry.end(NodeEnd {
                reason: EVICTED.to_owned(),
                message,
                grace_seconds: Some(1),
                is_refusal: false,
                is_disruption: false,
            });
            self.queue.add(PodUid::clone(&entry.uid));
        }
        any
    }
}

fn has_sandbox(entry: &PodEntry) -> bool {
    entry.node.config.runtime.observe(&entry.uid).addresses.is_some()
}
