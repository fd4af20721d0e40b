use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use super::{CpuSet, ManagersError};

/// How often containers are told which processors they share, unless it is said otherwise (upstream's `cpuManagerReconcilePeriod`).
pub const RECONCILE_DEFAULT: Duration = Duration::from_secs(10);
/// How many NUMA nodes a machine may have for the topology manager, unless it is said otherwise, and what may be said at least.
pub const NUMA_NODES_DEFAULT: usize = 8;

/// Options of the CPU manager's policy `static` that are stable upstream, or on by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own upstream, too")]
pub struct CpuOptions {
    /// Only whole cores are given (`full-pcpus-only`): who asks for a part of one is refused with `SMTAlignmentError`.
    pub full_pcpus_only: bool,
    /// Who needs more than one NUMA node gets as many of each (`distribute-cpus-across-numa`, KEP-2902).
    pub distribute_cpus_across_numa: bool,
    /// Nobody shares the reserved processors (`strict-cpu-reservation`, KEP-4540).
    pub strict_cpu_reservation: bool,
    /// Processors that share a last-level cache are given together where that can be (`prefer-align-cpus-by-uncorecache`, KEP-4800).
    pub prefer_align_cpus_by_uncorecache: bool,
}

fn switch(name: &str, value: &str) -> Result<bool, ManagersError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ManagersError::Option(format!("bad value for option {name:?}: {value:?} is no boolean"))),
    }
}

impl CpuOptions {
    /// From upstream's names and values (`cpuManagerPolicyOptions`).
    ///
    /// # Errors
    /// In upstream's words for an option that is not known, is alpha upstream, or does not go with another.
    pub fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ManagersError> {
        let mut found = Self::default();
        for (name, value) in options {
            let field = match name {
                "full-pcpus-only" => &mut found.full_pcpus_only,
                "distribute-cpus-across-numa" => &mut found.distribute_cpus_across_numa,
                "strict-cpu-reservation" => &mut found.strict_cpu_reservation,
                "prefer-align-cpus-by-uncorecache" => &mut found.prefer_align_cpus_by_uncorecache,
                "align-by-socket" | "distribute-cpus-across-cores" => {
                    return Err(ManagersError::Option(format!(
                        "CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided"
                    )));
                }
                _ => {
                    return Err(ManagersError::Option(format!(
                        "unknown CPU Manager Policy option: {name:?}"
                    )));
                }
            };
            *field = switch(name, value)?;
        }
        found.check()?;
        Ok(found)
    }

    pub(super) fn check(self) -> Result<(), ManagersError> {
        if self.prefer_align_cpus_by_uncorecache && self.distribute_cpus_across_numa {
            let said = "static policy options prefer-align-cpus-by-uncorecache and distribute-cpus-across-numa can not be used at the same time";
            return Err(ManagersError::Option(said.to_owned()));
        }
        Ok(())
    }
}

/// Who gets processors alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuManagerPolicy {
    /// Nobody: the kernel decides who runs where.
    #[default]
    None,
    /// Containers of Guaranteed pods that ask for whole processors. All others share the rest.
    Static(CpuOptions),
}

/// Whose memory is of certain NUMA nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryManagerPolicy {
    /// Nobody's.
    #[default]
    None,
    /// That of Guaranteed pods.
    Static {
        /// What is reserved on each NUMA node, in bytes by resource: `memory` or `hugepages-…` (upstream's `reservedMemory`). It must add up to
        /// what is reserved of the node, and that must be more than nothing.
        reserved: BTreeMap<u32, BTreeMap<String, u64>>,
    },
}

/// How much it matters that what a container gets is near to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyPolicy {
    /// Not at all: nobody is asked.
    #[default]
    None,
    /// The best place is taken, however good it is.
    BestEffort,
    /// Who could have a better place on an empty machine of this kind is refused.
    Restricted,
    /// Who can't have all on one NUMA node is refused.
    SingleNumaNode,
}

/// What is kept together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyScope {
    /// What a container has.
    #[default]
    Container,
    /// What all containers of a pod have.
    Pod,
}

impl FromStr for TopologyPolicy {
    type Err = ManagersError;

    fn from_str(text: &str) -> Result<Self, ManagersError> {
        match text {
            "none" => Ok(Self::None),
            "best-effort" => Ok(Self::BestEffort),
            "restricted" => Ok(Self::Restricted),
            "single-numa-node" => Ok(Self::SingleNumaNode),
            _ => Err(ManagersError::Option(format!("unknown policy: \"{text}\""))),
        }
    }
}

impl FromStr for TopologyScope {
    type Err = ManagersError;

    fn from_str(text: &str) -> Result<Self, ManagersError> {
        match text {
            "container" => Ok(Self::Container),
            "pod" => Ok(Self::Pod),
            _ => Err(ManagersError::Option(format!("unknown scope: \"{text}\""))),
        }
    }
}

impl fmt::Display for CpuManagerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::None { "none" } else { "static" })
    }
}

impl fmt::Display for MemoryManagerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::None { "None" } else { "Static" })
    }
}

/// How the managers of a node work.
///
/// | field | default | upstream's name |
/// |---|---|---|
/// | `cpu` | `none` | `cpuManagerPolicy`, `cpuManagerPolicyOptions` |
/// | `reserved_cpus` | as many as are reserved, the first ones | `reservedSystemCPUs` |
/// | `reconcile_every` | [`RECONCILE_DEFAULT`] | `cpuManagerReconcilePeriod` |
/// | `memory` | `None` | `memoryManagerPolicy`, `reservedMemory` |
/// | `topology` | `none` | `topologyManagerPolicy` |
/// | `scope` | `container` | `topologyManagerScope` |
/// | `prefer_closest_numa_nodes` | no | the option of that name |
/// | `numa_nodes_max` | [`NUMA_NODES_DEFAULT`] | the option `max-allowable-numa-nodes` |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerOptions {
    /// Who gets processors alone.
    pub cpu: CpuManagerPolicy,
    /// The processors that nobody gets alone. There must be as many as are reserved of the node, rounded up.
    pub reserved_cpus: Option<CpuSet>,
    /// How often containers are told anew which processors they share; they are told of changes at once, too.
    pub reconcile_every: Duration,
    /// Whose memory is of certain NUMA nodes.
    pub memory: MemoryManagerPolicy,
    /// How much it matters that what a container gets is near to each other.
    pub topology: TopologyPolicy,
    /// What is kept together.
    pub scope: TopologyScope,
    /// Of as many NUMA nodes, those that are near to each other are taken.
    pub prefer_closest_numa_nodes: bool,
    /// How many NUMA nodes a machine may have with a topology policy; all sets of them are looked at.
    pub numa_nodes_max: usize,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            cpu: CpuManagerPolicy::None,
            reserved_cpus: None,
            reconcile_every: RECONCILE_DEFAULT,
            memory: MemoryManagerPolicy::None,
            topology: TopologyPolicy::None,
            scope: TopologyScope::Container,
            prefer_closest_numa_nodes: false,
            numa_nodes_max: NUMA_NODES_DEFAULT,
        }
    }
}

impl ManagerOptions {
    /// Takes the topology manager's options by upstream's names and values (`topologyManagerPolicyOptions`).
    ///
    /// # Errors
    /// In upstream's words for an option that is not known, or a value that makes no sense.
    pub fn set_topology_options<'a>(
        &mut self,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), ManagersError> {
        let wrong = |text| Err(ManagersError::Option(text));
        for (name, value) in options {
            match name {
                "prefer-closest-numa-nodes" => self.prefer_closest_numa_nodes = switch(name, value)?,
                "max-allowable-numa-nodes" => match value.parse() {
                    Ok(most) if most >= NUMA_NODES_DEFAULT => self.numa_nodes_max = most,
                    Ok(_) => {
                        return wrong(format!(
                            "the minimum value of {name:?} should not be less than {NUMA_NODES_DEFAULT}"
                        ));
                    }
                    Err(error) => {
                        return wrong(format!(
                            "unable to convert policy option to integer {name:?}: {error}"
                        ));
                    }
                },
                _ => return wrong(format!("unknown Topology Manager Policy option: {name:?}")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After upstream's `TestPolicyOptionsAvailable` and `TestNewTopologyManagerOptions`.
    #[test]
    fn options_are_checked() {
        let cpu = |options: &[(&'static str, &'static str)]| {
            CpuOptions::parse(options.iter().copied()).map_err(|error| error.to_string())
        };
        let all = cpu(&[
            ("full-pcpus-only", "true"),
            ("strict-cpu-reservation", "1"),
            ("distribute-cpus-across-numa", "false"),
        ]);
        assert!(all.is_ok_and(|all| all.full_pcpus_only
            && all.strict_cpu_reservation
            && !all.distribute_cpus_across_numa));
        for (options, expected) in [
            (&[("a", "true")][..], "unknown CPU Manager Policy option: \"a\""),
            (
                &[("align-by-socket", "true")],
                "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
            ),
            (
                &[("full-pcpus-only", "yes")],
                "bad value for option \"full-pcpus-only\": \"yes\" is no boolean",
            ),
            (
                &[("distribute-cpus-across-numa", "true"), ("prefer-align-cpus-by-uncorecache", "true")],
                "static policy options prefer-align-cpus-by-uncorecache and distribute-cpus-across-numa can not be used at the same time",
            ),
        ] {
            assert_eq!(cpu(options).unwrap_err(), expected);
        }
        let mut found = ManagerOptions::default();
        let mut set =
            |name, value| found.set_topology_options([(name, value)]).map_err(|error| error.to_string());
        assert!(
            set("prefer-closest-numa-nodes", "true").is_ok() && set("max-allowable-numa-nodes", "9").is_ok()
        );
        assert_eq!(set("x", "").unwrap_err(), "unknown Topology Manager Policy option: \"x\"");
        let few = "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8";
        assert_eq!(set("max-allowable-numa-nodes", "2").unwrap_err(), few);
        assert!(found.prefer_closest_numa_nodes && found.numa_nodes_max == 9);
        assert!("all".parse::<TopologyPolicy>().is_err() && "all".parse::<TopologyScope>().is_err());
    }
}
