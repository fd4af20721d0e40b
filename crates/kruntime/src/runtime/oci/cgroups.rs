//! Control groups, both versions: where a container's are, what they count, and their end. The OCI runtime makes them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const ROOT: &str = "/sys/fs/cgroup";

/// The control groups of one runtime's containers.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    unified: bool,
    parent: String,
}

/// The value of `key value` lines.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Cgroups {
    pub(super) fn new(parent: String) -> Self {
        Self { unified: Path::new(ROOT).join("cgroup.controllers").exists(), parent }
    }

    /// Whether it is the second version.
    pub(super) fn is_unified(&self) -> bool {
        self.unified
    }

    /// A container's group, as `linux.cgroupsPath` has it.
    pub(super) fn path(&self, pod: &str, container: &str) -> String {
        format!("{}/pod{pod}/{container}", self.parent)
    }

    fn dir(&self, controller: &str, group: &str) -> PathBuf {
        let root = Path::new(ROOT);
        let root = if self.unified { root.to_owned() } else { root.join(controller) };
        root.join(group.trim_start_matches('/'))
    }

    fn read(&self, controller: &str, group: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir(controller, group).join(file)).ok()
    }

    /// All processor time, and the memory that can't be given up easily (the working set of upstream's statistics).
    pub(super) fn usage(&self, group: &str) -> Option<(Duration, u64)> {
        let (cpu, memory, idle) = if self.unified {
            let cpu = Duration::from_micros(value(&self.read("", group, "cpu.stat")?, "usage_usec")?);
            (
                cpu,
                self.read("", group, "memory.current")?,
                value(&self.read("", group, "memory.stat")?, "inactive_file"),
            )
        } else {
            let cpu = self.read("cpuacct", group, "cpuacct.usage")?;
            let stat = self.read("memory", group, "memory.stat")?;
            let idle = value(&stat, "total_inactive_file");
            (
                Duration::from_nanos(cpu.trim().parse().ok()?),
                self.read("memory", group, "memory.usage_in_bytes")?,
                idle,
            )
        };
        Some((cpu, memory.trim().parse::<u64>().ok()?.saturating_sub(idle.unwrap_or(0))))
    }

    /// Whether the kernel has killed some of its processes for want of memory.
    pub(super) fn was_out_of_memory(&self, group: &str) -> bool {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        self.read("memory", group, file)
            .and_then(|text| value(&text, "oom_kill"))
            .is_some_and(|kills| kills > 0)
    }

    /// Removes a pod's groups, which are empty by now.
    pub(super) fn remove_pod(&self, pod: &str) {
        self.remove(&format!("{}/pod{pod}", self.parent));
    }

    /// Removes the group of all pods, when none is left.
    pub(super) fn remove_all(&self) {
        self.remove(&self.parent);
    }

    fn remove(&self, group: &str) {
        let roots: Vec<PathBuf> = if self.unified {
            vec![ROOT.into()]
        } else {
            std::fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        for root in roots {
            // What another start of the pod has in there keeps it.
            let _ = std::fs::remove_dir(root.join(group.trim_start_matches('/')));
        }
    }
}
