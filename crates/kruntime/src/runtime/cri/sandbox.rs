//! Making and ending sandboxes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use prost::Message as _;

use super::{
    Pod, Shared,
    convert::{self, POD_UID, owned},
    gone, hosts_path, log_dir, pb, ready, refused,
};
use crate::runtime::{PodUid, RuntimeError, SandboxConfig};

/// The file that keeps what the server was told of a pod.
pub(super) const KEPT: &str = "sandbox";

/// Runs a pod's sandbox, unless it has one that is ready.
pub(super) async fn run(
    shared: &Shared,
    uid: &PodUid,
    config: &SandboxConfig,
) -> Result<Vec<IpAddr>, RuntimeError> {
    let earlier = shared.pod(uid).ok();
    if let Some(pod) = earlier.as_ref().filter(|pod| pod.is_ready()) {
        return Ok(pod.addresses.clone());
    }
    // What an attempt left that was given up, or whose end nobody saw, goes first.
    let mut attempt = 0;
    for left in list(shared, Some(uid)).await? {
        attempt = attempt.max(left.metadata.map_or(0, |names| names.attempt) + 1);
        end(shared, &left.id).await?;
    }
    let dir = shared.dir(uid);
    let logs = log_dir(&dir);
    std::fs::create_dir_all(&logs).map_err(RuntimeError::io("making the pod's directory"))?;
    let parent = &shared.options.cgroup_parent;
    let wire = convert::sandbox(&shared.owner, uid, attempt, config, &logs, parent);
    let request = pb::RunPodSandboxRequest {
        config: Some(wire.clone()),
        runtime_handler: match config.runtime_handler.as_str() {
            "" => shared.options.handler.clone(),
            handler => handler.to_owned(),
        },
    };
    let made: pb::PodSandboxId =
        shared.client.call("RuntimeService/RunPodSandbox", request).await.map_err(refused)?;
    let addresses = addresses(shared, &made.pod_sandbox_id).await?;
    keep(&dir, config, &wire, &addresses).map_err(RuntimeError::io("making the pod's directory"))?;
    let containers = earlier.map(|pod| pod.containers().clone()).unwrap_or_default();
    let pod = Pod {
        sandbox: made.pod_sandbox_id,
        config: config.clone(),
        wire,
        addresses: addresses.clone(),
        dir,
        ready: ready(true),
        containers: containers.into(),
    };
    shared.pods().insert(uid.clone(), Arc::new(pod));
    Ok(addresses)
}

/// The sandboxes that are this runtime's: all, or those of one pod.
pub(super) async fn list(shared: &Shared, uid: Option<&PodUid>) -> Result<Vec<pb::PodSandbox>, RuntimeError> {
    let mut labels = owned(&shared.owner);
    labels.extend(uid.map(|uid| (POD_UID.to_owned(), uid.to_string())));
    let filter = pb::PodSandboxFilter { label_selector: labels, ..pb::PodSandboxFilter::default() };
    let request = pb::ListPodSandboxRequest { filter: Some(filter) };
    let listed: pb::ListPodSandboxResponse =
        shared.client.call("RuntimeService/ListPodSandbox", request).await.map_err(refused)?;
    Ok(listed.items)
}

/// A pod's addresses; on the node's network it has none of its own.
pub(super) async fn addresses(shared: &Shared, sandbox: &str) -> Result<Vec<IpAddr>, RuntimeError> {
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
    let answer: pb::PodSandboxStatusResponse =
        shared.client.call("RuntimeService/PodSandboxStatus", request).await.map_err(refused)?;
    let network = answer.status.and_then(|status| status.network).unwrap_or_default();
    let more = network.additional_ips.iter().map(|more| &more.ip);
    let found: Vec<IpAddr> =
        std::iter::once(&network.ip).chain(more).filter_map(|ip| ip.parse().ok()).collect();
    Ok(if found.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { found })
}

/// Ends a sandbox with all that runs in it, at once, and removes it.
pub(super) async fn end(shared: &Shared, sandbox: &str) -> Result<(), RuntimeError> {
    let filter = pb::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..pb::ContainerFilter::default() };
    let request = pb::ListContainersRequest { filter: Some(filter) };
    let listed: pb::ListContainersResponse =
        gone(shared.client.call("RuntimeService/ListContainers", request).await)?;
    let running = listed.containers.iter().filter(|found| found.state() == pb::ContainerState::Running);
    for container in running {
        let request = pb::StopContainerRequest { container_id: container.id.clone(), timeout: 0 };
        gone(shared.client.call::<_, pb::Empty>("RuntimeService/StopContainer", request).await)?;
    }
    for method in ["RuntimeService/StopPodSandbox", "RuntimeService/RemovePodSandbox"] {
        let request = pb::PodSandboxId { pod_sandbox_id: sandbox.to_owned() };
        gone(shared.client.call::<_, pb::Empty>(method, request).await)?;
    }
    Ok(())
}

/// Writes the pod's hosts file, and what is needed to know the pod again.
fn keep(
    dir: &Path,
    config: &SandboxConfig,
    wire: &pb::PodSandboxConfig,
    addresses: &[IpAddr],
) -> io::Result<()> {
    if let Some(hosts) = hosts(config, addresses)? {
        std::fs::write(hosts_path(dir), hosts)?;
    }
    std::fs::write(dir.join(KEPT), wire.encode_to_vec())
}

/// The pod's hosts file; `None` when the node's own will do.
fn hosts(config: &SandboxConfig, addresses: &[IpAddr]) -> io::Result<Option<String>> {
    let mut text = if config.host_network {
        if config.host_aliases.is_empty() {
            return Ok(None);
        }
        std::fs::read_to_string("/etc/hosts")?
    } else {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()
    };
    if !config.host_network {
        for address in addresses {
            let fqdn = config.fqdn.as_ref().map(|fqdn| format!("\t{fqdn}")).unwrap_or_default();
            text.push_str(&format!("{address}{fqdn}\t{}\n", config.hostname));
        }
    }
    for (address, names) in &config.host_aliases {
        text.push_str(&format!("{address}\t{}\n", names.join("\t")));
    }
    Ok(Some(text))
}
