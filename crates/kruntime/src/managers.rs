//! Who has processors alone and whose memory is near to them: upstream's CPU, memory and topology managers
//! ([docs](https://kubernetes.io/docs/concepts/policy/node-resource-managers/)).
//!
//! A pod is given its share before its sandbox is made, all its containers at once, and keeps it until it ends. Devices of plug-ins have a
//! say in where that is, and are given there. A pod that can't be given what it asks for is refused, in upstream's words. What is given is kept
//! in files (`cpu_manager_state`, `memory_manager_state`), so that it stays given when the agent is started anew.
//!
//! The policies are pure functions over a [`Machine`]; [`ResourceManagers`] keeps what they decide.
//!
//! Pods that say what they need as a whole (`spec.resources`) are left to the kernel, as upstream does without its alpha feature
//! `PodLevelResourceManagers`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    demand,
    machine::{is_sidecar, qos},
};

mod checkpoint;
mod cpu;
mod cpus;
pub(crate) mod hint;
mod machine;
mod memory;
mod options;
mod take;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod tell;

pub use cpus::{CPU_MAX, CpuSet, CpuSetError};
pub use machine::{Cpu, Machine, NumaNode};
pub use options::{
    CpuManagerPolicy, CpuOptions, ManagerOptions, MemoryManagerPolicy, NUMA_NODES_DEFAULT, RECONCILE_DEFAULT,
    TopologyPolicy, TopologyScope,
};

use checkpoint::{CpuFile, MemoryFile};
use cpu::{CpuPolicy, CpuState};
use hint::{Hint, Hints};
use memory::{MemoryState, Reusable, Wanted};

/// Why there can't be such managers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagersError {
    /// An option makes no sense.
    #[error("{0}")]
    Option(String),
    /// The machine is not fit for what is asked for.
    #[error("{0}")]
    Machine(String),
    /// What was given before is not known, or does not fit. Whoever drains the node can remove the file.
    #[error("{} can't be used: {why}; drain the node and remove the file", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Why a pod is not run here: reason and message of its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn unexpected(why: &str) -> Self {
        let message = format!("Allocate failed due to {why}, which is unexpected");
        Self { reason: "UnexpectedAdmissionError", message }
    }

    pub(crate) fn topology() -> Self {
        let message = "Resources cannot be allocated with Topology locality".to_owned();
        Self { reason: "TopologyAffinityError", message }
    }
}

/// What came free within a pod while it is given its share.
#[derive(Debug, Default)]
pub(crate) struct Session {
    cpus: CpuSet,
    memory: Reusable,
    /// The init containers that have ended by now.
    earlier: Vec<String>,
}

#[derive(Debug, Default)]
struct Given {
    cpu: CpuState,
    memory: MemoryState,
}

/// The managers of one node.
///
/// ```
/// use std::collections::BTreeMap;
/// use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
/// use kruntime::managers::{CpuManagerPolicy, CpuOptions, Machine, ManagerOptions, ResourceManagers};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut options = ManagerOptions::default();
/// options.cpu = CpuManagerPolicy::Static(CpuOptions::default());
/// let reserved = BTreeMap::from([("cpu".to_owned(), Quantity("1".to_owned()))]);
/// let machine = Machine::read("/".as_ref())?;
/// let managers = ResourceManagers::open(machine, options, &reserved, Some("/var/lib/node".into()))?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ResourceManagers {
    machine: Machine,
    options: ManagerOptions,
    cpu: Option<CpuPolicy>,
    dir: Option<PathBuf>,
    given: Mutex<Given>,
}

impl ResourceManagers {
    /// For a node of which so much is [reserved](crate::NodeConfig::reserved), with what was given before by the files in `dir`. With no directory
    /// an agent that comes back knows nothing.
    ///
    /// # Errors
    /// See [`ManagersError`]; the words are upstream's.
    pub fn open(
        machine: Machine,
        options: ManagerOptions,
        reserved: &BTreeMap<String, Quantity>,
        dir: Option<PathBuf>,
    ) -> Result<Self, ManagersError> {
        if options.topology != TopologyPolicy::None && machine.nodes.len() > options.numa_nodes_max {
            let most = options.numa_nodes_max;
            return Err(ManagersError::Machine(format!(
                "unsupported on machines with more than {most} NUMA Nodes"
            )));
        }
        let unfit = |name: &str, why| match &dir {
            Some(dir) => ManagersError::Checkpoint { path: dir.join(name), why },
            None => ManagersError::Machine(why),
        };
        let mut given = Given {
            cpu: checkpoint::load::<CpuFile>(dir.as_deref(), &options.cpu.to_string())?,
            memory: checkpoint::load::<MemoryFile>(dir.as_deref(), &options.memory.to_string())?,
        };
        let cpu = match options.cpu {
            CpuManagerPolicy::None => None,
            CpuManagerPolicy::Static(own) => {
                own.check()?;
                let count = demand::amount(Some(reserved), "cpu").unwrap_or(0);
                let count = usize::try_from(count).unwrap_or(0).div_ceil(1000);
                if count == 0 {
                    return Err(ManagersError::Machine(
                        "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                            .to_owned(),
                    ));
                }
                let policy = CpuPolicy::new(&machine, own, options.reserved_cpus.as_ref(), count)
                    .map_err(ManagersError::Machine)?;
                policy.open(&machine, &mut given.cpu).map_err(|why| unfit(checkpoint::CPU, why))?;
                Some(policy)
            }
        };
        if let MemoryManagerPolicy::Static { reserved: by_node } = &options.memory {
            check_reserved(&machine, by_node, reserved)?;
            given
                .memory
                .open(memory::fresh(&machine, by_node))
                .map_err(|why| unfit(checkpoint::MEMORY, why))?;
        }
        let managers = Self { machine, options, cpu, dir, given: Mutex::new(given) };
        if let Err(error) = managers.keep(&managers.given()) {
            let path = managers.dir.clone().unwrap_or_default();
            return Err(ManagersError::Checkpoint { path, why: error.to_string() });
        }
        Ok(managers)
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How the managers work.
    #[must_use]
    pub fn options(&self) -> &ManagerOptions {
        &self.options
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_memory(&self) -> bool {
        self.options.memory != MemoryManagerPolicy::None
    }

    fn keep(&self, given: &Given) -> std::io::Result<()> {
        let dir = self.dir.as_deref();
        if self.cpu.is_some() {
            checkpoint::keep::<CpuFile>(dir, self.options.cpu.to_string(), &given.cpu)?;
        }
        if self.has_memory() {
            checkpoint::keep::<MemoryFile>(dir, self.options.memory.to_string(), &given.memory)?;
        }
        Ok(())
    }

    fn keep_or_tell(&self, given: &Given) {
        if let Err(error) = self.keep(given) {
            tracing::warn!(%error, "what is given of processors and memory is not kept");
        }
    }

    /// What pods had that are not `active` any more is free.
    pub(crate) fn forget(&self, active: impl Fn(&str) -> bool) {
        let known: BTreeSet<String> = {
            let given = self.given();
            given.cpu.given.keys().chain(given.memory.given.keys()).cloned().collect()
        };
        known.iter().filter(|pod| !active(pod)).for_each(|pod| _ = self.release(pod));
    }

    /// Where a container's processors and memory could be.
    pub(crate) fn hints(&self, pod: &Pod, container: &Container, session: &Session) -> Vec<Hints> {
        let uid = uid(pod);
        let given = self.given();
        let mut found = Vec::new();
        let wanted = exclusive_cpus(pod, container);
        if let Some(policy) = self.cpu.as_ref().filter(|_| wanted > 0) {
            let has = given.cpu.of(uid, &container.name);
            found.push(Some(policy.hints(&self.machine, &given.cpu, wanted, has, &session.cpus)));
        }
        if let Some(wanted) = wanted_memory(pod, container).filter(|_| self.has_memory()) {
            let has = given.memory.of(uid, &container.name);
            found.extend(given.memory.hints(&wanted, has, &session.memory));
        }
        found
    }

    /// Where those of a whole pod could be.
    pub(crate) fn pod_hints(&self, pod: &Pod) -> Vec<Hints> {
        let uid = uid(pod);
        let given = self.given();
        let mut found = Vec::new();
        let wanted = together(pod, |container| {
            let count = u64::try_from(exclusive_cpus(pod, container)).unwrap_or(u64::MAX);
            [("cpu".to_owned(), count)].into()
        });
        let wanted = wanted.get("cpu").and_then(|count| usize::try_from(*count).ok()).unwrap_or(0);
        if let Some(policy) = self.cpu.as_ref().filter(|_| wanted > 0) {
            let mut has = CpuSet::default();
            let mut is_changed = false;
            for container in containers(pod) {
                if let Some(known) = given.cpu.of(uid, &container.name) {
                    is_changed |= known.len() != exclusive_cpus(pod, container);
                    has = has.union(known);
                }
            }
            found.push(Some(if is_changed {
                Vec::new()
            } else {
                let all = Some(&has).filter(|has| has.len() == wanted);
                policy.hints(&self.machine, &given.cpu, wanted, all, &has)
            }));
        }
        if self.has_memory() && containers(pod).any(|one| wanted_memory(pod, one).is_some()) {
            let wanted = together(pod, |container| wanted_memory(pod, container).unwrap_or_default());
            let has = containers(pod).find_map(|container| given.memory.of(uid, &container.name));
            if !wanted.is_empty() {
                found.extend(given.memory.hints(&wanted, has, &Reusable::default()));
            }
        }
        found
    }

    /// The place that is best by all of these.
    ///
    /// # Errors
    /// The policy refuses it.
    pub(crate) fn place(&self, hints: &[Hints]) -> Result<Hint, Refusal> {
        let policy = self.options.topology;
        if policy == TopologyPolicy::None {
            return Ok(hint::ANYWHERE);
        }
        let closest = self.options.prefer_closest_numa_nodes;
        let (place, is_admitted) = hint::merge(policy, closest, &self.machine, hints);
        if is_admitted { Ok(place) } else { Err(Refusal::topology()) }
    }

    /// Gives a container its processors and its memory, unless it has them.
    ///
    /// # Errors
    /// Why it can't be; what its pod has stays until it is released.
    pub(crate) fn give(
        &self,
        pod: &Pod,
        container: &Container,
        ends: bool,
        place: Hint,
        session: &mut Session,
    ) -> Result<(), Refusal> {
        let (uid, name) = (uid(pod), container.name.as_str());
        let mut given = self.given();
        let mut is_changed = false;
        let wanted = exclusive_cpus(pod, container);
        if let Some(policy) = self.cpu.as_ref().filter(|_| wanted > 0) {
            let state = &mut given.cpu;
            let taken = policy.give(&self.machine, state, (uid, name), wanted, place.mask, &session.cpus)?;
            session.cpus = if ends { session.cpus.union(&taken) } else { session.cpus.difference(&taken) };
            is_changed = true;
        }
        if let Some(wanted) = wanted_memory(pod, container).filter(|_| self.has_memory()) {
            let is_new = given.memory.of(uid, name).is_none();
            let blocks = given.memory.give(uid, name, &wanted, place, &session.memory);
            let blocks = blocks.map_err(|why| Refusal::unexpected(&why))?;
            session.memory.note(&blocks, ends);
            if is_new {
                let earlier: Vec<&str> = session.earlier.iter().map(String::as_str).collect();
                given.memory.took_over(uid, &blocks, &earlier);
            }
            is_changed = true;
        }
        if ends {
            session.earlier.push(name.to_owned());
        }
        if is_changed {
            self.keep(&given)
                .map_err(|error| Refusal::unexpected(&format!("failed to write checkpoint file: {error}")))?;
        }
        Ok(())
    }

    /// What a pod had is free. Says whether others now share more processors.
    pub(crate) fn release(&self, pod: &str) -> bool {
        let mut given = self.given();
        let names: Vec<String> =
            given.memory.given.get(pod).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        let had_memory = !names.is_empty();
        names.iter().for_each(|name| _ = given.memory.release(pod, name));
        let had_cpus = given.cpu.release(pod);
        if had_cpus || had_memory {
            self.keep_or_tell(&given);
        }
        had_cpus
    }

    /// A container starts: the memory of init containers before it is free.
    pub(crate) fn starting(&self, pod: &Pod, container: &str) {
        let mut given = self.given();
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let before = init.take_while(|init| init.name != container).filter(|init| !is_sidecar(init));
        let freed: Vec<bool> = before.map(|init| given.memory.release(uid(pod), &init.name)).collect();
        if freed.contains(&true) {
            self.keep_or_tell(&given);
        }
    }

    /// The processors that a container may run on; `None`: all of them.
    pub(crate) fn cpus(&self, pod: &str, container: &str) -> Option<CpuSet> {
        self.cpu.as_ref()?;
        let given = self.given();
        let cpus = given.cpu.of(pod, container).unwrap_or(&given.cpu.shared);
        Some(cpus.clone()).filter(|cpus| !cpus.is_empty())
    }

    /// The NUMA nodes that a container's memory is of, as the kernel writes them; `None`: all of them.
    pub(crate) fn memory_nodes(&self, pod: &str, container: &str) -> Option<String> {
        let nodes = self.given().memory.affinity(pod, container);
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        Some(nodes.join(",")).filter(|nodes| !nodes.is_empty())
    }

    /// Why what Guaranteed pods have of processors and of memory can't be changed while they run, in upstream's words.
    pub(crate) fn bound(&self) -> [Option<&'static str>; 2] {
        let of_cpu = "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"";
        let of_memory = "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
        [self.cpu.as_ref().map(|_| of_cpu), self.has_memory().then_some(of_memory)]
    }
}

/// What is reserved by node must add up to what is reserved of the node.
fn check_reserved(
    machine: &Machine,
    by_node: &BTreeMap<u32, BTreeMap<String, u64>>,
    reserved: &BTreeMap<String, Quantity>,
) -> Result<(), ManagersError> {
    let wrong = |text| Err(ManagersError::Machine(text));
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, list) in by_node {
        if !machine.nodes.contains_key(node) {
            return wrong(format!(
                "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
            ));
        }
        for (resource, bytes) in list {
            let sum = sums.entry(resource).or_default();
            *sum = sum.saturating_add(*bytes);
        }
    }
    let names = reserved.keys().map(String::as_str).chain(sums.keys().copied());
    for name in names.filter(|name| is_memory(name)).collect::<BTreeSet<_>>() {
        let of_node = demand::amount(Some(reserved), name).and_then(|bytes| u64::try_from(bytes).ok());
        let (sum, of_node) = (sums.get(name).copied().unwrap_or(0), of_node.unwrap_or(0));
        if sum != of_node {
            return wrong(format!(
                "the total amount \"{sum}\" of type \"{name}\" is not equal to the value \"{of_node}\" determined by Node Allocatable feature"
            ));
        }
    }
    if sums.get("memory").copied().unwrap_or(0) == 0 {
        return wrong("[memorymanager] you should specify the system reserved memory".to_owned());
    }
    Ok(())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn is_memory(resource: &str) -> bool {
    resource == "memory" || resource.starts_with("hugepages-")
}

/// The containers of a pod, in the order in which they are given something.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.chain(pod.spec.iter().flat_map(|spec| &spec.containers))
}

/// Whether the containers of a pod may have something alone.
fn is_guaranteed(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let as_a_whole =
        spec.resources.as_ref().is_some_and(|own| own.requests.is_some() || own.limits.is_some());
    qos(spec) == "Guaranteed" && !as_a_whole
}

fn requests(container: &Container) -> impl Iterator<Item = (&String, &Quantity)> {
    let resources = container.resources.as_ref();
    // The API server fills in requests; static pods may have limits alone.
    resources.and_then(|own| own.requests.as_ref().or(own.limits.as_ref())).into_iter().flatten()
}

/// How many processors a container gets alone.
fn exclusive_cpus(pod: &Pod, container: &Container) -> usize {
    let cpu = requests(container).find(|(name, _)| *name == "cpu");
    let milli = cpu.and_then(|(_, quantity)| Some(kcore::Quantity::parse(&quantity.0).ok()?.milli()));
    match milli {
        Some(milli) if milli % 1000 == 0 && is_guaranteed(pod) => usize::try_from(milli / 1000).unwrap_or(0),
        _ => 0,
    }
}

/// The memory of a container that is of certain nodes; `None` when its pod does not get any.
fn wanted_memory(pod: &Pod, container: &Container) -> Option<Wanted> {
    if !is_guaranteed(pod) {
        return None;
    }
    let bytes = |(name, quantity): (&String, &Quantity)| {
        let bytes = kcore::Quantity::parse(&quantity.0).ok()?.value();
        Some((name.clone(), u64::try_from(bytes).ok()?))
    };
    Some(requests(container).filter(|(name, _)| is_memory(name)).filter_map(bytes).collect())
}

/// What all containers of a pod want at once at most: sidecars stay beside those that come after them (KEP-753).
pub(crate) fn together(pod: &Pod, of: impl Fn(&Container) -> Wanted) -> Wanted {
    let (mut stays, mut most) = (Wanted::new(), Wanted::new());
    for container in pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()) {
        for (name, wanted) in of(container) {
            let here = stays.entry(name.clone()).or_default();
            let peak = here.saturating_add(wanted);
            if is_sidecar(container) {
                *here = peak;
            }
            let known = most.entry(name).or_default();
            *known = peak.max(*known);
        }
    }
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        for (name, wanted) in of(container) {
            let here = stays.entry(name).or_default();
            *here = here.saturating_add(wanted);
        }
    }
    for (name, wanted) in stays {
        let known = most.entry(name).or_default();
        *known = wanted.max(*known);
    }
    most
}
