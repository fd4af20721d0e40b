//! A pod without its containers: its directory, its namespaces, its address.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use knet::network::{PodAttachment, PortMapping};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};

use super::{
    Container, Shared, container, file_name,
    network::{Wanted, drop_namespaces, is_namespace, make_namespaces},
    pause::Pause,
};
use crate::runtime::{
    PodUid, RuntimeError, SandboxConfig,
    ports::{protocol_name, protocol_of},
};

/// The size of a pod's shared memory (containerd's default).
const SHARED_MEMORY: &std::ffi::CStr = c"mode=1777,size=65536k";

/// A pod's sandbox.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) config: SandboxConfig,
    pub(super) addresses: Vec<IpAddr>,
    /// The address to be given back.
    own_address: Option<IpAddr>,
    pub(super) dir: PathBuf,
    /// The process that has the namespace of the pod's processes.
    pub(super) pause: Option<Pause>,
    containers: Mutex<Vec<Arc<Container>>>,
}

/// What is kept of a sandbox, for a runtime that comes after this one.
#[derive(Deserialize, Serialize)]
struct Saved {
    uid: String,
    namespace: String,
    name: String,
    node: String,
    #[serde(default)]
    runtime_handler: String,
    hostname: String,
    host_network: bool,
    host_pid: bool,
    host_ipc: bool,
    #[serde(default)]
    ports: Vec<(Option<IpAddr>, u16, u16, String)>,
    addresses: Vec<IpAddr>,
    own_address: Option<IpAddr>,
    pause: Option<Pause>,
}

impl Pod {
    pub(super) fn containers(&self) -> MutexGuard<'_, Vec<Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Container>> {
        self.containers().iter().find(|container| *container.name == *name).cloned()
    }

    pub(super) fn running(&self, name: &str) -> Result<Arc<Container>, RuntimeError> {
        self.find(name)
            .filter(|container| container.is_running())
            .ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))
    }

    /// Removes the namespaces and the directory. Blocks.
    pub(super) fn remove_files(&self, shared: &Shared) {
        if let Some(pause) = &self.pause {
            pause.end(shared.engine(&self.config.runtime_handler));
        }
        remove_dir(&self.dir);
    }
}

fn remove_dir(dir: &Path) {
    drop_namespaces(&dir.join("ns"));
    let _ = unmount(dir.join("shm"), UnmountFlags::DETACH);
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a pod's directory is left");
    }
}

/// Makes a pod's sandbox.
pub(super) async fn make(shared: &Shared, uid: &PodUid, config: &SandboxConfig) -> Result<Pod, RuntimeError> {
    let dir = shared.options.dir.join("pods").join(file_name(uid.as_str()));
    let made = {
        let (dir, config) = (dir.clone(), config.clone());
        tokio::task::spawn_blocking(move || make_files(&dir, &config)).await
    };
    let made = made.map_err(io::Error::other).and_then(|made| made);
    if let Err(source) = made {
        remove_dir(&dir);
        return Err(RuntimeError::Io { context: "making the pod's namespaces", source });
    }
    let connected = connect(shared, uid, config, &dir).await;
    let (addresses, own_address) = connected.inspect_err(|_| remove_dir(&dir))?;
    let containers = Mutex::default();
    let mut pod =
        Pod { config: config.clone(), addresses, own_address, dir: dir.clone(), pause: None, containers };
    match finish(shared, uid, &mut pod).await {
        Ok(()) => Ok(pod),
        Err(error) => {
            // What went wrong first is what is told.
            if let Err(error) = remove(shared, uid, &pod).await {
                tracing::warn!(pod = %uid, %error, "what was made of a pod is left");
            }
            Err(error)
        }
    }
}

async fn finish(shared: &Shared, uid: &PodUid, pod: &mut Pod) -> Result<(), RuntimeError> {
    if pod.config.share_processes && !pod.config.host_pid {
        pod.pause = Some(Pause::start(shared, &pod.dir, &pod.config).await?);
    }
    keep(uid, pod).map_err(RuntimeError::io("making the pod's directory"))
}

async fn connect(
    shared: &Shared,
    uid: &PodUid,
    config: &SandboxConfig,
    dir: &Path,
) -> Result<(Vec<IpAddr>, Option<IpAddr>), RuntimeError> {
    if config.host_network {
        return Ok((vec![Ipv4Addr::LOCALHOST.into()], None));
    }
    if let Some(network) = &shared.options.network {
        let attached = network.attach(&attachment(uid, config, dir)).await?;
        return Ok((attached.addresses, None));
    }
    let address = shared.options.addresses.allocate(None);
    let address =
        address.map_err(|error| RuntimeError::Create(format!("no address for the pod: {error}")))?;
    Ok((vec![address], Some(address)))
}

/// The pod as its network knows it. A namespace that is gone, as after a new start of the machine, isn't named.
fn attachment(uid: &PodUid, config: &SandboxConfig, dir: &Path) -> PodAttachment {
    let netns = dir.join("ns/net");
    PodAttachment {
        id: file_name(uid.as_str()),
        namespace: config.namespace.to_string(),
        name: config.name.to_string(),
        uid: uid.to_string(),
        netns: is_namespace(&netns).then_some(netns),
        ports: config.ports.clone(),
    }
}

/// Takes back the addresses of pods that are gone.
pub(super) async fn collect_addresses(shared: &Shared) {
    let Some(network) = &shared.options.network else { return };
    let alive: Vec<_> = shared.pods().keys().map(|uid| file_name(uid.as_str())).collect();
    if let Err(error) = network.collect(&alive).await {
        tracing::warn!(%error, "addresses of pods that are gone are left");
    }
}

fn make_files(dir: &Path, config: &SandboxConfig) -> io::Result<()> {
    std::fs::create_dir_all(dir.join("shm"))?;
    let wanted =
        Wanted { network: !config.host_network, ipc: !config.host_ipc, hostname: !config.host_network };
    let sysctls: Vec<_> = config.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    make_namespaces(&dir.join("ns"), wanted, &config.hostname, &sysctls)?;
    if !config.host_ipc {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("shm", dir.join("shm"), "tmpfs", flags, Some(SHARED_MEMORY))?;
    }
    let resolv_conf = match &config.resolv_conf {
        Some(text) => text.clone(),
        None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    std::fs::write(dir.join("resolv.conf"), resolv_conf)?;
    let hostname = if config.host_network {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
    } else {
        format!("{}\n", config.hostname)
    };
    std::fs::write(dir.join("hostname"), hostname)
}

/// Writes what needs the addresses, and last of all what makes the pod known to a runtime that comes after this one.
fn keep(uid: &PodUid, pod: &Pod) -> io::Result<()> {
    let config = &pod.config;
    let mut hosts = if config.host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()
    };
    if !config.host_network {
        for address in &pod.addresses {
            let fqdn = config.fqdn.as_ref().map(|fqdn| format!("\t{fqdn}")).unwrap_or_default();
            hosts.push_str(&format!("{address}{fqdn}\t{}\n", config.hostname));
        }
    }
    for (address, names) in &config.host_aliases {
        hosts.push_str(&format!("{address}\t{}\n", names.join("\t")));
    }
    std::fs::write(pod.dir.join("hosts"), hosts)?;
    let saved = Saved {
        uid: uid.to_string(),
        namespace: config.namespace.to_string(),
        name: config.name.to_string(),
        node: config.node.to_string(),
        runtime_handler: config.runtime_handler.clone(),
        hostname: config.hostname.clone(),
        host_network: config.host_network,
        host_pid: config.host_pid,
        host_ipc: config.host_ipc,
        ports: config.ports.iter().map(saved_port).collect(),
        addresses: pod.addresses.clone(),
        own_address: pod.own_address,
        pause: pod.pause.clone(),
    };
    let mut file = tempfile::NamedTempFile::new_in(&pod.dir)?;
    file.write_all(&serde_json::to_vec(&saved)?)?;
    file.persist(pod.dir.join("sandbox.json")).map_err(|error| error.error)?;
    Ok(())
}

/// Removes a pod whose containers have ended.
pub(super) async fn remove(shared: &Shared, uid: &PodUid, pod: &Pod) -> Result<(), RuntimeError> {
    if let Some(network) = shared.options.network.as_ref().filter(|_| !pod.config.host_network) {
        network.detach(&attachment(uid, &pod.config, &pod.dir)).await?;
    }
    if let Some(address) = pod.own_address {
        shared.options.addresses.release(address);
    }
    let (dir, engine, pause) =
        (pod.dir.clone(), shared.engine(&pod.config.runtime_handler).clone(), pod.pause.clone());
    let work = move || {
        if let Some(pause) = pause {
            pause.end(&engine);
        }
        remove_dir(&dir);
    };
    let _ = tokio::task::spawn_blocking(work).await;
    shared.cgroups.remove_pod(&file_name(uid.as_str()));
    Ok(())
}

/// Finds the pods of an earlier runtime. What is not whole is removed.
pub(super) async fn restore(shared: &Arc<Shared>, pods: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(pods)? {
        let dir = entry?.path();
        let saved = std::fs::read(dir.join("sandbox.json")).ok();
        let saved: Option<Saved> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let there = |saved: &Saved| saved.host_network || is_namespace(&dir.join("ns/net"));
        match saved.filter(there) {
            Some(saved) => restore_pod(shared, dir, saved)?,
            None => {
                for (container, saved) in saved_containers(&dir) {
                    let _ = shared.engine(&saved.handler).run(None, &["delete", "--force", &saved.id]).await;
                    saved.holder.into_iter().for_each(super::holder::Process::kill);
                    super::rootfs::remove(&container::bundle_path(&container, saved.attempt));
                }
                remove_dir(&dir);
            }
        }
    }
    Ok(())
}

/// The last start of each container that is kept in a pod's directory.
fn saved_containers(dir: &Path) -> Vec<(PathBuf, container::Saved)> {
    let mut found = Vec::new();
    for container in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let starts = std::fs::read_dir(container.path()).into_iter().flatten().flatten();
        let read = |start: std::fs::DirEntry| -> Option<container::Saved> {
            serde_json::from_slice(&std::fs::read(start.path().join("state.json")).ok()?).ok()
        };
        if let Some(saved) = starts.filter_map(read).max_by_key(|saved| saved.attempt) {
            found.push((container.path(), saved));
        }
    }
    found.sort_by_key(|(_, saved)| saved.order);
    found
}

fn saved_port(port: &PortMapping) -> (Option<IpAddr>, u16, u16, String) {
    (port.host_address, port.host_port, port.pod_port, protocol_name(port.protocol).to_owned())
}

/// `None` for a protocol that a later version of this program may have known.
fn restored_port(
    (host_address, host_port, pod_port, protocol): (Option<IpAddr>, u16, u16, String),
) -> Option<PortMapping> {
    Some(PortMapping { host_address, host_port, pod_port, protocol: protocol_of(&protocol)? })
}

fn restore_pod(shared: &Arc<Shared>, dir: PathBuf, saved: Saved) -> io::Result<()> {
    let uid = PodUid::from(saved.uid.as_str());
    if let Some(address) = saved.own_address
        && let Err(error) = shared.options.addresses.allocate(Some(address))
    {
        tracing::warn!(pod = %uid, %error, "a pod's address is not its own any more");
    }
    let config = SandboxConfig {
        namespace: saved.namespace.into(),
        name: saved.name.into(),
        node: saved.node.into(),
        runtime_handler: saved.runtime_handler,
        hostname: saved.hostname,
        host_network: saved.host_network,
        host_pid: saved.host_pid,
        host_ipc: saved.host_ipc,
        ports: saved.ports.into_iter().filter_map(restored_port).collect(),
        ..SandboxConfig::default()
    };
    let containers: io::Result<Vec<_>> = saved_containers(&dir)
        .into_iter()
        .map(|(dir, saved)| container::restore(shared, &uid, &dir, saved))
        .collect();
    let pod = Pod {
        config,
        addresses: saved.addresses,
        own_address: saved.own_address,
        dir,
        pause: saved.pause,
        containers: Mutex::new(containers?),
    };
    shared.pods().insert(uid, Arc::new(pod));
    Ok(())
}
