//! From pods and containers to the words of the Container Runtime Interface, as upstream's kubelet says them
//! (`pkg/kubelet/kuberuntime/{kuberuntime_sandbox,kuberuntime_container,security_context}*.go`). Pure.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::proto as pb;
use crate::managers::CpuSet;
use crate::runtime::{
    AppArmor, ContainerConfig, Device, ImageMount, Mount, PodUid, Propagation, Resources, RuntimeError,
    SandboxConfig, Seccomp,
    oci::{MASKED, READ_ONLY},
};

/// Labels that everybody who looks at a server knows.
pub(super) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(super) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Whose it is: of several runtimes over one server each has pods of its own.
pub(super) const OWNER: &str = "kplane.dev/owner";
const MESSAGE_FROM_LOG: &str = "io.kubernetes.container.terminationMessagePolicy";
const TERMINAL: &str = "kplane.dev/tty";
const INPUT: &str = "kplane.dev/stdin";

/// What is kept of a container with the server, for a runtime that comes after this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) message_from_log: bool,
    pub(super) tty: bool,
    pub(super) stdin: bool,
}

impl Traits {
    pub(super) fn of(config: &ContainerConfig) -> Self {
        Self { message_from_log: config.termination_message_from_log, tty: config.tty, stdin: config.stdin }
    }

    fn annotations(self) -> BTreeMap<String, String> {
        let policy = if self.message_from_log { "FallbackToLogsOnError" } else { "File" };
        [
            (MESSAGE_FROM_LOG, policy.to_owned()),
            (TERMINAL, self.tty.to_string()),
            (INPUT, self.stdin.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    pub(super) fn read(annotations: &BTreeMap<String, String>) -> Self {
        let is = |key: &str, value: &str| annotations.get(key).is_some_and(|found| found == value);
        Self {
            message_from_log: is(MESSAGE_FROM_LOG, "FallbackToLogsOnError"),
            tty: is(TERMINAL, "true"),
            stdin: is(INPUT, "true"),
        }
    }
}

/// The labels of all that is this runtime's.
pub(super) fn owned(owner: &str) -> BTreeMap<String, String> {
    [(OWNER.to_owned(), owner.to_owned())].into()
}

fn pod_labels(owner: &str, uid: &str, config: &SandboxConfig) -> BTreeMap<String, String> {
    let mut labels = owned(owner);
    labels.insert(POD_NAME.to_owned(), config.name.to_string());
    labels.insert(POD_NAMESPACE.to_owned(), config.namespace.to_string());
    labels.insert(POD_UID.to_owned(), uid.to_owned());
    labels
}

fn namespaces(config: &SandboxConfig) -> pb::NamespaceOption {
    let of = |is_node: bool, other: pb::NamespaceMode| {
        i32::from(if is_node { pb::NamespaceMode::Node } else { other })
    };
    let processes =
        if config.share_processes { pb::NamespaceMode::Pod } else { pb::NamespaceMode::Container };
    pb::NamespaceOption {
        network: of(config.host_network, pb::NamespaceMode::Pod),
        pid: of(config.host_pid, processes),
        ipc: of(config.host_ipc, pb::NamespaceMode::Pod),
        target_id: String::new(),
    }
}

fn profile(kind: pb::ProfileType) -> pb::SecurityProfile {
    pb::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() }
}

/// The resolver's configuration, from the text of its file.
fn dns(text: &str) -> pb::DnsConfig {
    let mut config = pb::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words),
            Some("search") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

/// A pod without its containers.
pub(super) fn sandbox(
    owner: &str,
    uid: &PodUid,
    attempt: u32,
    config: &SandboxConfig,
    logs: &Path,
    cgroup_parent: &str,
) -> pb::PodSandboxConfig {
    let port = |port: &knet::network::PortMapping| pb::PortMapping {
        protocol: match port.protocol {
            knet::policy::Protocol::Tcp => pb::Protocol::Tcp,
            knet::policy::Protocol::Udp => pb::Protocol::Udp,
            knet::policy::Protocol::Sctp => pb::Protocol::Sctp,
        }
        .into(),
        container_port: port.pod_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_address.map(|address| address.to_string()).unwrap_or_default(),
    };
    pb::PodSandboxConfig {
        metadata: Some(pb::PodSandboxMetadata {
            name: config.name.to_string(),
            uid: uid.to_string(),
            namespace: config.namespace.to_string(),
            attempt,
        }),
        // A pod on the node's network has the node's name.
        hostname: if config.host_network { String::new() } else { config.hostname.clone() },
        log_directory: logs.to_string_lossy().into_owned(),
        dns_config: config.resolv_conf.as_deref().map(dns),
        port_mappings: config.ports.iter().map(port).collect(),
        labels: pod_labels(owner, uid.as_str(), config),
        annotations: (*config.annotations).clone(),
        linux: Some(pb::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(pb::SandboxSecurity {
                namespace_options: Some(namespaces(config)),
                privileged: config.privileged,
                seccomp: Some(profile(pb::ProfileType::RuntimeDefault)),
                ..pb::SandboxSecurity::default()
            }),
            sysctls: config.sysctls.clone(),
            overhead: (config.overhead != Resources::default()).then(|| resources(&config.overhead)),
            ..pb::LinuxPodSandboxConfig::default()
        }),
    }
}

/// Files of the runtime's own that a container sees.
#[derive(Debug)]
pub(super) struct OwnFiles {
    /// The hosts file; `None` on the node's network without aliases, where the server gives the node's.
    pub(super) hosts: Option<PathBuf>,
    /// Where the container's last words go.
    pub(super) message: PathBuf,
    /// Its log, below the pod's directory for logs.
    pub(super) log: String,
}

fn mount(mount: &Mount) -> pb::Mount {
    pb::Mount {
        container_path: mount.target.to_string_lossy().into_owned(),
        host_path: mount.source.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        propagation: match mount.propagation {
            Propagation::None => pb::MountPropagation::Private,
            Propagation::HostToContainer => pb::MountPropagation::HostToContainer,
            Propagation::Bidirectional => pb::MountPropagation::Bidirectional,
        }
        .into(),
        ..pb::Mount::default()
    }
}

fn mounts(config: &ContainerConfig, files: &OwnFiles) -> Vec<pb::Mount> {
    let own = |source: &Path, target: &Path| Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        propagation: Propagation::None,
    };
    let mut all = config.mounts.clone();
    let has = |target: &Path| config.mounts.iter().any(|mount| mount.target == target);
    if let Some(hosts) = files.hosts.as_ref().filter(|_| !has(Path::new("/etc/hosts"))) {
        all.push(own(hosts, Path::new("/etc/hosts")));
    }
    if let Some(path) = config.termination_message_path.as_ref().filter(|path| !has(path)) {
        all.push(own(&files.message, path));
    }
    all.iter().map(mount).collect()
}

/// An image volume; `id` is the image's on the server.
pub(super) fn image_mount(wanted: &ImageMount, id: &str) -> pb::Mount {
    pb::Mount {
        container_path: wanted.target.to_string_lossy().into_owned(),
        readonly: true,
        image: Some(pb::ImageSpec {
            image: id.to_owned(),
            user_specified_image: wanted.image.clone(),
            ..pb::ImageSpec::default()
        }),
        image_sub_path: wanted.sub_path.clone(),
        ..pb::Mount::default()
    }
}

fn resources(wanted: &Resources) -> pb::LinuxContainerResources {
    let signed = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok()).unwrap_or(0);
    pb::LinuxContainerResources {
        cpu_period: signed(wanted.cpu_period_us),
        cpu_quota: wanted.cpu_quota_us.unwrap_or(0),
        cpu_shares: signed(wanted.cpu_shares),
        memory_limit_in_bytes: wanted.memory_bytes_max.unwrap_or(0),
        oom_score_adj: wanted.oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: wanted.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: wanted.cpuset_mems.clone().unwrap_or_default(),
    }
}

/// What a container that runs is to have. Zero is for unchanged, so that a limit of memory can't be taken away.
pub(super) fn update(id: &str, wanted: &Resources) -> pb::UpdateContainerResourcesRequest {
    let linux =
        pb::LinuxContainerResources { cpu_quota: wanted.cpu_quota_us.unwrap_or(-1), ..resources(wanted) };
    pb::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux) }
}

/// The processors of a container that runs; all else is left out, and so stays.
pub(super) fn bound(id: &str, cpus: &CpuSet) -> pb::UpdateContainerResourcesRequest {
    let linux = pb::LinuxContainerResources {
        cpuset_cpus: cpus.to_string(),
        ..pb::LinuxContainerResources::default()
    };
    pb::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux) }
}

fn security(
    pod: &SandboxConfig,
    config: &ContainerConfig,
    image: &pb::Image,
    seccomp_dir: Option<&Path>,
) -> Result<pb::ContainerSecurity, RuntimeError> {
    let wanted = &config.security;
    let seccomp = match &wanted.seccomp {
        Seccomp::Unconfined => profile(pb::ProfileType::Unconfined),
        Seccomp::RuntimeDefault => profile(pb::ProfileType::RuntimeDefault),
        Seccomp::Localhost(name) => {
            let dir = seccomp_dir.ok_or_else(|| {
                RuntimeError::Config("localhost seccomp profiles need a directory for profiles".to_owned())
            })?;
            let localhost_ref = dir.join(name).to_string_lossy().into_owned();
            pb::SecurityProfile { profile_type: pb::ProfileType::Localhost.into(), localhost_ref }
        }
    };
    let apparmor = match &wanted.apparmor {
        AppArmor::Unset => None,
        AppArmor::Unconfined => Some(profile(pb::ProfileType::Unconfined)),
        AppArmor::RuntimeDefault => Some(profile(pb::ProfileType::RuntimeDefault)),
        AppArmor::Localhost(name) => Some(pb::SecurityProfile {
            profile_type: pb::ProfileType::Localhost.into(),
            localhost_ref: name.clone(),
        }),
    };
    let user = run_as(config, image)?;
    let policy = match wanted.strict_groups {
        true => pb::SupplementalGroupsPolicy::Strict,
        false => pb::SupplementalGroupsPolicy::Merge,
    };
    let hidden = |paths: &[&str]| -> Vec<String> {
        let none = wanted.unmasked_proc || wanted.privileged;
        paths.iter().filter(|_| !none).map(|path| (*path).to_owned()).collect()
    };
    Ok(pb::ContainerSecurity {
        capabilities: Some(pb::Capability {
            add_capabilities: wanted.add_capabilities.clone(),
            drop_capabilities: wanted.drop_capabilities.clone(),
        }),
        privileged: wanted.privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.0,
        run_as_username: user.1,
        readonly_rootfs: wanted.read_only_root,
        supplemental_groups: wanted.supplemental_groups.iter().map(|group| i64::from(*group)).collect(),
        no_new_privs: wanted.no_new_privileges,
        run_as_group: config.run_as_group.map(Into::into),
        masked_paths: hidden(&MASKED),
        readonly_paths: hidden(&READ_ONLY),
        seccomp: Some(seccomp),
        apparmor,
        supplemental_groups_policy: policy.into(),
    })
}

/// The user by number or else by name; the image's when the container names none.
fn run_as(
    config: &ContainerConfig,
    image: &pb::Image,
) -> Result<(Option<pb::Value64>, String), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::Config(why));
    if let Some(user) = config.run_as_user {
        return match user {
            0 if config.run_as_non_root => refuse("container's runAsUser breaks non-root policy".to_owned()),
            _ => Ok((Some(user.into()), String::new())),
        };
    }
    match (image.uid, image.username.as_str()) {
        (Some(user), _) if user.value != 0 => Ok((Some(user), String::new())),
        (None, name) if !name.is_empty() && config.run_as_non_root => refuse(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
        (_, _) if config.run_as_non_root => {
            refuse("container has runAsNonRoot and image will run as root".to_owned())
        }
        (uid, name) => Ok((uid, if uid.is_some() { String::new() } else { name.to_owned() })),
    }
}

/// One container.
///
/// # Errors
/// When what it asks for can't be given.
pub(super) fn container(
    pod: (&str, &str, &SandboxConfig),
    config: &ContainerConfig,
    image: &pb::Image,
    files: &OwnFiles,
    seccomp_dir: Option<&Path>,
) -> Result<pb::ContainerConfig, RuntimeError> {
    let (owner, uid, sandbox) = pod;
    let devices = &config.devices;
    let mut labels = pod_labels(owner, uid, sandbox);
    labels.insert(CONTAINER_NAME.to_owned(), config.name.to_string());
    // Later values win here; a server may take the first.
    let mut env: Vec<(&str, &str)> = Vec::with_capacity(config.env.len());
    for (name, value) in &config.env {
        env.retain(|(known, _)| known != name);
        env.push((name, value));
    }
    Ok(pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata { name: config.name.to_string(), attempt: config.attempt }),
        image: Some(pb::ImageSpec {
            image: image.id.clone(),
            user_specified_image: config.image.clone(),
            ..pb::ImageSpec::default()
        }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config
            .working_dir
            .as_ref()
            .map(|dir| dir.to_string_lossy().into_owned())
            .unwrap_or_default(),
        envs: env
            .into_iter()
            .map(|(key, value)| pb::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec().into() })
            .collect(),
        mounts: mounts(config, files),
        labels,
        annotations: devices
            .annotations
            .clone()
            .into_iter()
            .chain(Traits::of(config).annotations())
            .collect(),
        log_path: files.log.clone(),
        stdin: config.stdin,
        tty: config.tty,
        linux: Some(pb::LinuxContainerConfig {
            resources: Some(resources(&config.resources)),
            security_context: Some(security(sandbox, config, image, seccomp_dir)?),
        }),
        devices: devices.nodes.iter().map(device).collect(),
        cdi_devices: devices.cdi.iter().map(|name| pb::CdiDevice { name: name.clone() }).collect(),
        stop_signal: config.stop_signal.as_deref().map_or(0, signal),
        ..pb::ContainerConfig::default()
    })
}

fn device(device: &Device) -> pb::Device {
    pb::Device {
        container_path: device.container_path.to_string_lossy().into_owned(),
        host_path: device.host_path.to_string_lossy().into_owned(),
        permissions: device.permissions.clone(),
    }
}

/// The number of a signal's name in the interface (`Signal` of `api.proto`); 0 is the image's.
fn signal(name: &str) -> i32 {
    const SIGNALS: [&str; 35] = [
        "SIGABRT",
        "SIGALRM",
        "SIGBUS",
        "SIGCHLD",
        "SIGCLD",
        "SIGCONT",
        "SIGFPE",
        "SIGHUP",
        "SIGILL",
        "SIGINT",
        "SIGIO",
        "SIGIOT",
        "SIGKILL",
        "SIGPIPE",
        "SIGPOLL",
        "SIGPROF",
        "SIGPWR",
        "SIGQUIT",
        "SIGSEGV",
        "SIGSTKFLT",
        "SIGSTOP",
        "SIGSYS",
        "SIGTERM",
        "SIGTRAP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGUSR1",
        "SIGUSR2",
        "SIGVTALRM",
        "SIGWINCH",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGRTMIN",
    ];
    /// The numbers of `SIGRTMIN` and `SIGRTMAX`.
    const REAL_TIME: (i32, i32) = (35, 65);
    if let Some(at) = SIGNALS.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).unwrap_or(0);
    }
    let offset = |text: &str| text.parse::<i32>().ok().filter(|offset| (1..=15).contains(offset));
    if let Some(offset) = name.strip_prefix("SIGRTMIN+").and_then(offset) {
        return REAL_TIME.0 + offset;
    }
    if let Some(offset) = name.strip_prefix("SIGRTMAX-").and_then(offset).filter(|offset| *offset < 15) {
        return REAL_TIME.1 - offset;
    }
    if name == "SIGRTMAX" { REAL_TIME.1 } else { 0 }
}

#[cfg(test)]
mod tests;
