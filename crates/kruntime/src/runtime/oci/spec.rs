//! The OCI runtime's configuration of a container: a pure function of what is known of it. The mounts, masked paths and
//! limits are containerd's (`pkg/oci/spec.go`, `internal/cri/server/container_create.go`).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::users::User;
use crate::managers::CpuSet;
use crate::runtime::{
    AppArmor, ContainerConfig, Device, Mount, Propagation, Resources, RuntimeError, SandboxConfig,
};

/// What of `/proc` and `/sys` a container doesn't see.
pub(in crate::runtime) const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/interrupts",
];
/// What of `/proc` it only reads.
pub(in crate::runtime) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where programs are looked for when neither image nor pod say.
pub(super) const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that a container's configuration is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) config: &'a ContainerConfig,
    pub(super) sandbox: &'a SandboxConfig,
    pub(super) arguments: &'a [String],
    pub(super) env: &'a [(String, String)],
    pub(super) working_dir: &'a Path,
    pub(super) user: &'a User,
    pub(super) capabilities: &'a [String],
    pub(super) seccomp: Option<Value>,
    /// The pod's own mounts, and the container's volumes.
    pub(super) mounts: &'a [Mount],
    /// Where the pod's namespaces are.
    pub(super) namespaces: &'a Path,
    /// Where the namespace of the pod's processes is, when its containers share one.
    pub(super) processes: Option<String>,
    /// The lowest `oom_score_adj` that can be given.
    pub(super) oom_score_min: i32,
    /// Where the pod's shared memory is.
    pub(super) shared_memory: &'a Path,
    pub(super) cgroup: &'a str,
    pub(super) unified: bool,
    /// The machine's devices, for containers from which nothing is kept; for others those that they were given, in their order.
    pub(super) devices: Vec<Value>,
}

/// The contents of `config.json`.
pub(super) fn spec(parts: &Parts<'_>) -> Value {
    let config = parts.config;
    let security = &config.security;
    let open = security.privileged;
    let mut linux = json!({
        "namespaces": namespaces(parts),
        "cgroupsPath": parts.cgroup,
        "resources": resources(parts),
        "rootfsPropagation": propagation(parts.mounts),
    });
    if !open && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if !parts.devices.is_empty() {
        linux["devices"] = json!(parts.devices);
    }
    if let Some(seccomp) = parts.seccomp.as_ref().filter(|_| !open) {
        linux["seccomp"] = seccomp.clone();
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process(parts),
        "root": {"path": "rootfs", "readonly": security.read_only_root},
        "mounts": mounts(parts),
        "linux": linux,
    })
}

fn process(parts: &Parts<'_>) -> Value {
    let (config, user) = (parts.config, parts.user);
    let env: Vec<_> = parts.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let capabilities = parts.capabilities;
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": user.user, "gid": user.group, "additionalGids": user.additional},
        "args": parts.arguments,
        "env": env,
        "cwd": parts.working_dir,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": config.security.no_new_privileges,
    });
    if let Some(score) = config.resources.oom_score_adj {
        process["oomScoreAdj"] = json!(score.max(parts.oom_score_min));
    }
    if let AppArmor::Localhost(profile) = &config.security.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    process
}

fn namespaces(parts: &Parts<'_>) -> Value {
    let sandbox = parts.sandbox;
    let kept = |kind: &str, file: &str| json!({"type": kind, "path": parts.namespaces.join(file)});
    let mut list = vec![json!({"type": "mount"})];
    match &parts.processes {
        _ if sandbox.host_pid => {}
        Some(path) => list.push(json!({"type": "pid", "path": path})),
        None => list.push(json!({"type": "pid"})),
    }
    if !sandbox.host_ipc {
        list.push(kept("ipc", "ipc"));
    }
    if !sandbox.host_network {
        list.extend([kept("network", "net"), kept("uts", "uts")]);
    }
    if parts.unified && !parts.config.security.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    json!(list)
}

fn resources(parts: &Parts<'_>) -> Value {
    let own = &parts.config.resources;
    let open = parts.config.security.privileged;
    let mut rules = vec![json!({"allow": open, "access": "rwm"})];
    // What is not kept from the container needs no rule of its own.
    let given = parts.devices.iter().zip(&parts.config.devices.nodes).filter(|_| !open);
    rules.extend(given.map(|(device, given)| {
        json!({"allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"],
            "access": given.permissions})
    }));
    let mut resources = json!({"devices": rules});
    let mut cpu = json!({});
    if let Some(shares) = own.cpu_shares {
        cpu["shares"] = json!(shares);
    }
    if let (Some(quota), Some(period)) = (own.cpu_quota_us, own.cpu_period_us) {
        cpu["quota"] = json!(quota);
        cpu["period"] = json!(period);
    }
    bind(&mut cpu, own);
    resources["cpu"] = cpu;
    if let Some(limit) = own.memory_bytes_max {
        // Swap counts as memory here: the container gets none, as upstream has it.
        resources["memory"] = json!({"limit": limit});
        if parts.unified {
            // A container whose processes are killed one by one is of no use (upstream sets it since 1.28).
            resources["unified"] = json!({"memory.oom.group": "1"});
        }
    }
    resources
}

/// What `update` of an OCI runtime reads: all that can be changed, with -1 for no limit.
pub(super) fn update(resources: &Resources) -> Value {
    let mut cpu = json!({"quota": resources.cpu_quota_us.unwrap_or(-1)});
    if let Some(shares) = resources.cpu_shares {
        cpu["shares"] = json!(shares);
    }
    if let Some(period) = resources.cpu_period_us {
        cpu["period"] = json!(period);
    }
    bind(&mut cpu, resources);
    json!({"cpu": cpu, "memory": {"limit": resources.memory_bytes_max.unwrap_or(-1)}})
}

fn bind(cpu: &mut Value, resources: &Resources) {
    if let Some(cpus) = &resources.cpuset_cpus {
        cpu["cpus"] = json!(cpus);
    }
    if let Some(nodes) = &resources.cpuset_mems {
        cpu["mems"] = json!(nodes);
    }
}

/// The same for the processors alone.
pub(super) fn bound(cpus: &CpuSet) -> Value {
    json!({"cpu": {"cpus": cpus.to_string()}})
}

/// A container that mounts for others needs a root that lets it through.
fn propagation(mounts: &[Mount]) -> &'static str {
    if mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional) {
        "rshared"
    } else if mounts.iter().any(|mount| mount.propagation == Propagation::HostToContainer) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn mounts(parts: &Parts<'_>) -> Value {
    let open = parts.config.security.privileged;
    let system = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let access = if open { "rw" } else { "ro" };
    let mut list = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    // A pod on the node's network, or with the node's queues, can't mount file systems that belong to namespaces.
    if parts.sandbox.host_network {
        list[4] = json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", access]});
    }
    let shared = if parts.sandbox.host_ipc { Path::new("/dev/shm") } else { parts.shared_memory };
    list.push(json!({"destination": "/dev/shm", "type": "bind", "source": shared, "options": ["rbind", "nosuid", "noexec", "nodev"]}));
    // The outer before the inner, or the outer would hide it.
    let mut own: Vec<_> = parts.mounts.iter().collect();
    own.sort_by_key(|mount| mount.target.components().count());
    for mount in own {
        let way = match mount.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        list.push(json!({"destination": mount.target, "type": "bind", "source": mount.source,
            "options": ["rbind", way, access]}));
    }
    json!(list)
}

/// Whether what the container wants of AppArmor can be had.
///
/// # Errors
/// When the machine has no AppArmor, in upstream's words; and for a profile of the runtime's own, which there is none of.
pub(super) fn check_apparmor(wanted: &AppArmor, is_enabled: bool) -> Result<(), RuntimeError> {
    match wanted {
        AppArmor::Unset | AppArmor::Unconfined => Ok(()),
        _ if !is_enabled => Err(RuntimeError::Config(
            "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned(),
        )),
        AppArmor::RuntimeDefault => {
            Err(RuntimeError::Config("the runtime has no AppArmor profile of its own".to_owned()))
        }
        AppArmor::Localhost(_) => Ok(()),
    }
}

/// Whether the kernel enforces profiles of AppArmor.
pub(super) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// The machine's devices below `/dev`, but terminals and what containers have of their own.
pub(super) fn host_devices() -> Vec<Value> {
    const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", "ptmx"];
    const DEPTH_MAX: usize = 4;
    let (mut found, mut dirs) = (Vec::new(), vec![(PathBuf::from("/dev"), 0)]);
    while let Some((dir, depth)) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if OWN.iter().any(|own| *own == entry.file_name()) {
                continue;
            }
            let kind = metadata.file_type();
            if kind.is_dir() && depth < DEPTH_MAX {
                dirs.push((entry.path(), depth + 1));
            } else {
                found.extend(device(&entry.path(), &metadata));
            }
        }
    }
    found
}

/// A device as OCI runtimes want it, to be seen at `path`; `None` for what is none.
fn device(path: &Path, metadata: &std::fs::Metadata) -> Option<Value> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let kind = metadata.file_type();
    let letter = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => "c",
        (_, true) => "b",
        _ => return None,
    };
    Some(json!({"path": path, "type": letter, "major": rustix::fs::major(metadata.rdev()),
        "minor": rustix::fs::minor(metadata.rdev()), "fileMode": metadata.mode() & 0o7777,
        "uid": metadata.uid(), "gid": metadata.gid()}))
}

/// A device that a container was given.
pub(super) fn given_device(given: &Device) -> Result<Value, RuntimeError> {
    let metadata = given.host_path.metadata().map_err(RuntimeError::io("looking at a device"))?;
    device(&given.container_path, &metadata)
        .ok_or_else(|| RuntimeError::Config(format!("{} is no device", given.host_path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Security;

    #[test]
    fn apparmor_is_enforced_or_refused() {
        let local = || AppArmor::Localhost("own".to_owned());
        for (wanted, is_enabled, is_fine) in [
            (AppArmor::Unset, false, true),
            (AppArmor::Unconfined, false, true),
            (local(), true, true),
            (local(), false, false),
            (AppArmor::RuntimeDefault, false, false),
            (AppArmor::RuntimeDefault, true, false),
        ] {
            assert_eq!(check_apparmor(&wanted, is_enabled).is_ok(), is_fine, "{wanted:?} {is_enabled}");
        }
    }

    /// Each field against what the runtime specification calls it, with containerd's values.
    #[test]
    fn what_a_pod_wants_is_in_the_specification() {
        let cases: Vec<(ContainerConfig, SandboxConfig, &str, Value)> = vec![
            (ContainerConfig::default(), SandboxConfig::default(), "/root/readonly", json!(false)),
            (
                ContainerConfig {
                    security: Security {
                        apparmor: AppArmor::Localhost("own".to_owned()),
                        ..Security::default()
                    },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/process/apparmorProfile",
                json!("own"),
            ),
            (
                ContainerConfig {
                    security: Security { read_only_root: true, ..Security::default() },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/root/readonly",
                json!(true),
            ),
            (
                ContainerConfig::default(),
                SandboxConfig::default(),
                "/linux/readonlyPaths/3",
                json!("/proc/sys"),
            ),
            (
                ContainerConfig {
                    security: Security { unmasked_proc: true, ..Security::default() },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/linux/readonlyPaths",
                Value::Null,
            ),
            (
                ContainerConfig {
                    security: Security { privileged: true, ..Security::default() },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/linux/resources/devices/0/allow",
                json!(true),
            ),
            (
                ContainerConfig {
                    security: Security { privileged: true, ..Security::default() },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/linux/seccomp",
                Value::Null,
            ),
            (ContainerConfig::default(), SandboxConfig::default(), "/linux/seccomp/x", json!(1)),
            (
                ContainerConfig {
                    resources: Resources { memory_bytes_max: Some(5), ..Resources::default() },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/linux/resources/memory/limit",
                json!(5),
            ),
            (
                ContainerConfig {
                    resources: Resources {
                        cpu_quota_us: Some(5),
                        cpu_period_us: Some(10),
                        ..Resources::default()
                    },
                    ..ContainerConfig::default()
                },
                SandboxConfig::default(),
                "/linux/resources/cpu",
                json!({"quota": 5, "period": 10}),
            ),
            (
                ContainerConfig::default(),
                SandboxConfig::default(),
                "/linux/namespaces/1",
                json!({"type": "pid"}),
            ),
            (
                ContainerConfig::default(),
                SandboxConfig {
                    host_pid: true,
                    host_ipc: true,
                    host_network: true,
                    ..SandboxConfig::default()
                },
                "/linux/namespaces",
                json!([{"type": "mount"}]),
            ),
            (
                ContainerConfig::default(),
                SandboxConfig::default(),
                "/process/user/additionalGids",
                json!([3]),
            ),
            (ContainerConfig::default(), SandboxConfig::default(), "/process/env/0", json!("A=b")),
            (ContainerConfig::default(), SandboxConfig::default(), "/mounts/7/destination", json!("/a")),
            (
                ContainerConfig::default(),
                SandboxConfig::default(),
                "/mounts/8/options",
                json!(["rbind", "rslave", "ro"]),
            ),
            (
                ContainerConfig::default(),
                SandboxConfig::default(),
                "/linux/rootfsPropagation",
                json!("rslave"),
            ),
        ];
        let mount = |target: &str, propagation| Mount {
            source: "/s".into(),
            target: target.into(),
            read_only: target != "/a",
            propagation,
        };
        let mounts = [mount("/a/b", Propagation::HostToContainer), mount("/a", Propagation::None)];
        for (config, sandbox, pointer, expected) in cases {
            let parts = Parts {
                config: &config,
                sandbox: &sandbox,
                arguments: &[],
                env: &[("A".to_owned(), "b".to_owned())],
                working_dir: Path::new("/"),
                user: &User { user: 1, group: 2, additional: vec![3] },
                capabilities: &[],
                seccomp: Some(json!({"x": 1})),
                mounts: &mounts,
                namespaces: Path::new("/ns"),
                processes: None,
                oom_score_min: -1000,
                shared_memory: Path::new("/shm"),
                cgroup: "/g",
                unified: false,
                devices: Vec::new(),
            };
            let found = spec(&parts);
            assert_eq!(found.pointer(pointer).cloned().unwrap_or(Value::Null), expected, "{pointer}");
        }
    }
}
