//! What a container may use, and what it may do.

/// What a container may use, in the kernel's units, worked out as upstream does
/// (`pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The share of the processors when they are short (`cpu.shares` of cgroup v1).
    pub cpu_shares: Option<u64>,
    /// The processor time that it may use in each [`cpu_period_us`](Self::cpu_period_us), in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// The period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// The most memory, in bytes.
    pub memory_bytes_max: Option<i64>,
    /// How soon it is killed when the machine is out of memory: from -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// The processors that it may run on, as the kernel writes them: `0-3,8`. `None`: all.
    pub cpuset_cpus: Option<String>,
    /// The NUMA nodes that its memory is of, in the same way. `None`: all.
    pub cpuset_mems: Option<String>,
}

/// Which calls of the kernel a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// All of them. The default, as upstream's without `seccompDefault`.
    #[default]
    Unconfined,
    /// Those of the runtime's own profile.
    RuntimeDefault,
    /// Those of a profile in a file below the node's directory of profiles.
    Localhost(String),
}

/// What AppArmor lets a container do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AppArmor {
    /// The pod says nothing: the runtime's own profile where the machine has AppArmor and the runtime one, otherwise all.
    #[default]
    Unset,
    /// All.
    Unconfined,
    /// What the runtime's own profile allows.
    RuntimeDefault,
    /// What a profile allows that is loaded on the node.
    Localhost(String),
}

/// What a container may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Nothing is kept from it.
    pub privileged: bool,
    /// Its programs get no more rights than it has (`allowPrivilegeEscalation: false`).
    pub no_new_privileges: bool,
    /// It can't write to its image's files.
    pub read_only_root: bool,
    /// Capabilities beyond the runtime's own set, without `CAP_`; `ALL` means all.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken away.
    pub drop_capabilities: Vec<String>,
    /// Groups beyond its own, `fsGroup` among them.
    pub supplemental_groups: Vec<u32>,
    /// Whether the groups that the image gives its user don't count (`supplementalGroupsPolicy: Strict`).
    pub strict_groups: bool,
    /// The calls of the kernel that it may make.
    pub seccomp: Seccomp,
    /// What AppArmor allows.
    pub apparmor: AppArmor,
    /// Whether all of `/proc` is there (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}
