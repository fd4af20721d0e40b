//! What pods are given of their node before they run: devices, processors, memory; and who is told when others have less to share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;

use super::{Inner, Node, PodEntry};
use crate::{
    machine::is_sidecar,
    managers::{self, CpuSet, Refusal, ResourceManagers, Session, TopologyPolicy, TopologyScope, hint},
    runtime::{ContainerPhase, PodUid, Resources},
};

/// How many containers are told at the same time.
const TELLS_MAX: usize = 8;

impl Node {
    /// Puts into `resources` where a container may run.
    pub(super) fn bind(&self, pod: &PodUid, container: &str, resources: &mut Resources) {
        if let Some(managers) = &self.config.managers {
            resources.cpuset_cpus = managers.cpus(pod.as_str(), container).map(|cpus| cpus.to_string());
            resources.cpuset_mems = managers.memory_nodes(pod.as_str(), container);
        }
    }
}

impl Inner {
    /// Gives the pod all that its containers get for themselves, near to each other where the node's policy says so. Repeated it gives what was
    /// given.
    pub(super) async fn allocate(&self, entry: &PodEntry, pod: &Pod) -> Result<(), Refusal> {
        let managers = entry.node.config.managers.as_deref();
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let devices = entry.node.devices.as_deref().filter(|devices| devices.is_wanted(pod));
        #[cfg(not(all(feature = "plugins", target_os = "linux")))]
        let devices: Option<&()> = None;
        if managers.is_none() && devices.is_none() {
            return Ok(());
        }
        let _turn = entry.node.allocating.lock().await;
        let own = entry.uid.as_str();
        let active = |uid: &str| uid == own || self.has_pod(uid);
        if let Some(managers) = managers {
            managers.forget(active);
        }
        let mut session = Session::default();
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let mut reusable = crate::devices::Reusable::default();
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let Some(devices) = devices {
            devices.forget(active);
        }
        // What a device plug-in says of NUMA nodes matters only where there is a policy.
        let asks = managers.filter(|managers| managers.options().topology != TopologyPolicy::None);
        let of_pod = asks.filter(|asks| asks.options().scope == TopologyScope::Pod);
        let place = match of_pod {
            None => None,
            Some(managers) => {
                let mut hints = managers.pod_hints(pod);
                #[cfg(all(feature = "plugins", target_os = "linux"))]
                if let Some(devices) = devices {
                    hints.splice(0..0, devices.pod_hints(pod, managers.machine()));
                }
                Some(managers.place(&hints)?)
            }
        };
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).count();
        for (index, container) in managers::containers(pod).enumerate() {
            let ends = index < init && !is_sidecar(container);
            let place = match (place, asks) {
                (Some(place), _) => place,
                (None, None) => hint::ANYWHERE,
                (None, Some(managers)) => {
                    let mut hints = managers.hints(pod, container, &session);
                    #[cfg(all(feature = "plugins", target_os = "linux"))]
                    if let Some(devices) = devices {
                        hints.splice(0..0, devices.hints(own, container, &reusable, managers.machine()));
                    }
                    managers.place(&hints)?
                }
            };
            #[cfg(all(feature = "plugins", target_os = "linux"))]
            if let Some(devices) = devices {
                let given = devices.give(own, container, ends, place.mask, &mut reusable).await;
                given.map_err(|why| Refusal::unexpected(&why))?;
            }
            if let Some(managers) = managers {
                managers.give(pod, container, ends, place, &mut session)?;
            }
        }
        if managers.is_some() {
            self.shared_changed.notify_one();
        }
        Ok(())
    }

    /// Lets drivers prepare the claims of the pod.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(super) async fn prepare_claims(&self, entry: &PodEntry, pod: &Pod) -> Result<(), String> {
        match &entry.node.claims {
            Some(claims) => claims.prepare(&self.client, pod).await,
            None => Ok(()),
        }
    }

    #[cfg(not(all(feature = "plugins", target_os = "linux")))]
    pub(super) async fn prepare_claims(&self, _: &PodEntry, _: &Pod) -> Result<(), String> {
        Ok(())
    }

    /// Gives back what drivers have prepared for a pod of which nothing runs any more. Says whether it is done; if not, the pod is looked
    /// at again.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(super) async fn give_back_claims(&self, entry: &PodEntry) -> bool {
        let Some(claims) = &entry.node.claims else { return true };
        let given_back = claims.unprepare(entry.uid.as_str()).await;
        if let Err(error) = &given_back {
            tracing::warn!(pod = %entry.uid, error, "the pod's claims are not given back yet");
            self.queue.add_rate_limited(entry.uid.clone());
        }
        given_back.is_ok()
    }

    #[cfg(not(all(feature = "plugins", target_os = "linux")))]
    pub(super) async fn give_back_claims(&self, _: &PodEntry) -> bool {
        true
    }

    /// What the pod had is free.
    pub(super) fn release_shares(&self, entry: &PodEntry) {
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let Some(devices) = &entry.node.devices {
            devices.release(entry.uid.as_str());
        }
        if let Some(managers) = &entry.node.config.managers
            && managers.release(entry.uid.as_str())
        {
            self.shared_changed.notify_one();
        }
    }
}

/// A container that runs, by its pod, name and id.
type Known = (PodUid, Arc<str>, String);

/// Tells containers which processors are theirs or are shared, when that changes and from time to time.
pub(super) async fn run(inner: &Inner) {
    let mut told: HashMap<Known, CpuSet> = HashMap::new();
    loop {
        let nodes: Vec<(Arc<Node>, Arc<ResourceManagers>)> = {
            let nodes = inner.nodes();
            nodes
                .values()
                .filter_map(|node| Some((Arc::clone(node), node.config.managers.clone()?)))
                .collect()
        };
        let every = nodes.iter().map(|(_, managers)| managers.options().reconcile_every).min();
        let mut now = HashMap::new();
        for (node, managers) in &nodes {
            tell(inner, node, managers, &told, &mut now).await;
        }
        told = now;
        tokio::select! {
            () = inner.shared_changed.notified() => {}
            () = tokio::time::sleep(every.unwrap_or(Duration::MAX)) => {}
        }
    }
}

async fn tell(
    inner: &Inner,
    node: &Node,
    managers: &ResourceManagers,
    told: &HashMap<Known, CpuSet>,
    now: &mut HashMap<Known, CpuSet>,
) {
    let pods: Vec<PodUid> = {
        let entries = inner.entries();
        let here = entries.values().filter(|entry| entry.node.config.name == node.config.name);
        here.map(|entry| entry.uid.clone()).collect()
    };
    let mut wanted = Vec::new();
    for uid in pods {
        for container in node.config.runtime.observe(&uid).containers {
            let runs = matches!(container.phase, ContainerPhase::Running { .. });
            let Some(cpus) = managers.cpus(uid.as_str(), &container.name).filter(|_| runs) else { continue };
            wanted.push(((uid.clone(), container.name, container.id), cpus));
        }
    }
    let told: Vec<_> = futures::stream::iter(wanted)
        .map(|(known, cpus)| async move {
            if told.get(&known) == Some(&cpus) {
                return Some((known, cpus));
            }
            match node.config.runtime.set_cpus(&known.0, &known.1, &cpus).await {
                Ok(()) => Some((known, cpus)),
                Err(error) => {
                    tracing::debug!(pod = %known.0, container = %known.1, %cpus, %error, "a container is not bound to its processors yet");
                    None
                }
            }
        })
        .buffer_unordered(TELLS_MAX)
        .collect()
        .await;
    now.extend(told.into_iter().flatten());
}
