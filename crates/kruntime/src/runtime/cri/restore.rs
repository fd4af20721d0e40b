//! Finding what an earlier runtime had.

use std::{collections::HashMap, sync::Arc};

use prost::Message as _;

use super::{
    CONTAINER_NAME, Known, Pod, Shared, Traits, by_pod, log_dir, log_name, message_path, owned, pb, pods,
    ready, refused,
    sandbox::{self, KEPT},
};
use crate::runtime::{PodUid, RuntimeError, SandboxConfig};

/// Takes over the pods whose labels are this runtime's. What is not whole is removed.
pub(super) async fn restore(shared: &Shared) -> Result<(), RuntimeError> {
    let filter =
        pb::ContainerFilter { label_selector: owned(&shared.owner), ..pb::ContainerFilter::default() };
    let request = pb::ListContainersRequest { filter: Some(filter) };
    let listed: pb::ListContainersResponse =
        shared.client.call("RuntimeService/ListContainers", request).await.map_err(refused)?;
    let mut containers = by_pod(listed.containers, |container| &container.labels);
    let sandboxes = by_pod(sandbox::list(shared, None).await?, |sandbox| &sandbox.labels);
    for (uid, mut starts) in sandboxes {
        starts
            .sort_by_key(|start| std::cmp::Reverse(start.metadata.as_ref().map_or(0, |names| names.attempt)));
        let mut starts = starts.into_iter();
        let Some(last) = starts.next() else { continue };
        for earlier in starts {
            sandbox::end(shared, &earlier.id).await?;
        }
        let uid = PodUid::from(uid.as_str());
        let kept = std::fs::read(shared.dir(&uid).join(KEPT)).ok();
        let Some(wire) = kept.and_then(|kept| pb::PodSandboxConfig::decode(&kept[..]).ok()) else {
            sandbox::end(shared, &last.id).await?;
            continue;
        };
        let containers = containers.remove(uid.as_str()).unwrap_or_default();
        let containers = containers.into_iter().filter(|container| container.pod_sandbox_id == last.id);
        let known = restore_containers(shared, &uid, containers.collect()).await?;
        let pod = Pod {
            config: config(&wire),
            wire,
            addresses: sandbox::addresses(shared, &last.id).await?,
            dir: shared.dir(&uid),
            ready: ready(last.state() == pb::PodSandboxState::Ready),
            containers: known.into(),
            sandbox: last.id,
        };
        shared.pods().insert(uid, Arc::new(pod));
    }
    Ok(())
}

/// The last start of each container, in the order of their first ones; all others are removed.
async fn restore_containers(
    shared: &Shared,
    uid: &PodUid,
    mut found: Vec<pb::Container>,
) -> Result<Vec<Arc<Known>>, RuntimeError> {
    found.sort_by_key(|container| container.created_at);
    let mut last: HashMap<String, u32> = HashMap::new();
    for container in &found {
        let names = container.metadata.clone().unwrap_or_default();
        let known = last.entry(names.name).or_default();
        *known = (*known).max(names.attempt);
    }
    let mut restored = Vec::new();
    for container in found {
        let Some(name) = container.labels.get(CONTAINER_NAME) else { continue };
        let attempt = container.metadata.as_ref().map_or(0, |names| names.attempt);
        let status = shared.status(&container.id).await.map_err(refused)?;
        let phase = pods::phase(&status, shared.options.clock.now());
        let Some(phase) = phase.filter(|_| last.get(name) == Some(&attempt)) else {
            shared.remove_container(&container.id).await?;
            continue;
        };
        let dir = shared.dir(uid);
        let known = Known {
            name: name.as_str().into(),
            id: container.id,
            attempt,
            image_id: Some(status.image_ref).filter(|image| !image.is_empty()),
            traits: Traits::read(&container.annotations),
            phase: Known::began(&phase),
            message: message_path(&dir, name, attempt),
            log: log_dir(&dir).join(log_name(name, attempt)),
        };
        known.settle(phase);
        restored.push(Arc::new(known));
    }
    Ok(restored)
}

/// What later containers of the pod need to know of it.
fn config(wire: &pb::PodSandboxConfig) -> SandboxConfig {
    let names = wire.metadata.clone().unwrap_or_default();
    let security = wire.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    SandboxConfig {
        namespace: names.namespace.into(),
        name: names.name.into(),
        hostname: wire.hostname.clone(),
        host_network: namespaces.network() == pb::NamespaceMode::Node,
        host_pid: namespaces.pid() == pb::NamespaceMode::Node,
        host_ipc: namespaces.ipc() == pb::NamespaceMode::Node,
        share_processes: namespaces.pid() == pb::NamespaceMode::Pod,
        privileged: security.privileged,
        ..SandboxConfig::default()
    }
}
