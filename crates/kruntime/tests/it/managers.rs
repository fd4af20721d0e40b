//! Who has processors alone and whose memory is where, over virtual time.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kcore::TokioClock;
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig, PodUid,
    managers::{
        Cpu, CpuManagerPolicy, CpuOptions, Machine, ManagerOptions, MemoryManagerPolicy, NumaNode,
        ResourceManagers, TopologyPolicy, TopologyScope,
    },
    runtime::simulated::SimulatedRuntime,
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const GI: u64 = 1 << 30;

struct World {
    api: FakeApi,
    runtime: Arc<SimulatedRuntime>,
    dir: tempfile::TempDir,
    options: ManagerOptions,
    running: Option<Running>,
}

/// Two sockets with four cores each of two threads: 0-3 and 8-11, 4-7 and 12-15; 8Gi on each.
fn machine() -> Machine {
    let cpu = |id: u32| {
        let core = id % 8;
        (id, Cpu { core, socket: core / 4, node: core / 4, cache: core / 4 })
    };
    let node = || NumaNode { memory_bytes: 8 * GI, distances: vec![10, 21], ..NumaNode::default() };
    Machine { cpus: (0..16).map(cpu).collect(), nodes: [(0, node()), (1, node())].into() }
}

fn reserved() -> BTreeMap<String, Quantity> {
    [("cpu", "1500m"), ("memory", "1Gi")]
        .map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())))
        .into()
}

fn cpus(options: CpuOptions) -> ManagerOptions {
    ManagerOptions { cpu: CpuManagerPolicy::Static(options), ..ManagerOptions::default() }
}

impl World {
    fn new(options: ManagerOptions) -> Self {
        let runtime = Arc::new(SimulatedRuntime::new(Arc::new(TokioClock::new())));
        let dir = tempfile::tempdir().unwrap();
        let mut world = Self { api: FakeApi::default(), runtime, dir, options, running: None };
        world.start();
        world
    }

    fn start(&mut self) {
        let informers = Informers::new(self.api.client());
        let mut config = NodeConfig::new("node", self.runtime.clone());
        config.capacity.insert("cpu".to_owned(), Quantity("16".to_owned()));
        config.reserved = reserved();
        let managers =
            ResourceManagers::open(machine(), self.options.clone(), &reserved(), Some(self.file("")));
        config.managers = Some(Arc::new(managers.unwrap()));
        let agent = NodeAgent::new(&informers, Arc::new(TokioClock::new()), [config]);
        self.running = Some(Manager::new().informers(&informers).add(Start::Always, agent).start());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A pod whose containers have these limits of processors and Gi of memory, as their requests too.
    fn put(&self, name: &str, containers: &[(&str, &str, u32)]) {
        let container = |(name, cpu, memory): &(&str, &str, u32)| {
            let mut amounts = json!({"memory": format!("{memory}Gi")});
            if !cpu.is_empty() {
                amounts["cpu"] = json!(cpu);
            }
            json!({"name": name, "image": "i", "resources": {"requests": amounts, "limits": amounts}})
        };
        let (init, usual): (Vec<_>, Vec<_>) =
            containers.iter().partition(|(name, ..)| name.starts_with("init"));
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1, "annotations": {
                "simulated.kplane.dev/run-time.init": "1s"}},
            "spec": {"nodeName": "node", "initContainers": init.into_iter().map(container).collect::<Vec<_>>(),
                "containers": usual.into_iter().map(container).collect::<Vec<_>>()},
            "status": {"phase": "Pending"},
        }));
    }

    async fn phase(&self, name: &str, phase: &str) -> Value {
        self.api.until(|pods| pods[name]["status"]["phase"] == phase).await;
        self.api.pods()[name]["status"].clone()
    }

    /// The reason and the message of a pod that is refused.
    async fn refused(&self, name: &str) -> (String, String) {
        let status = self.phase(name, "Failed").await;
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (text("reason"), text("message"))
    }

    fn bound(&self, pod: &str, container: &str) -> (Option<String>, Option<String>) {
        let found = self.runtime.resources(&PodUid::from(pod), container).unwrap();
        (found.cpuset_cpus, found.cpuset_mems)
    }

    fn on(&self, pod: &str, container: &str) -> String {
        self.bound(pod, container).0.unwrap_or_default()
    }

    /// Waits until a container that runs shares these processors.
    async fn shares(&self, pod: &str, expected: &str) {
        for _ in 0..10_000 {
            if self.on(pod, "c") == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{pod} shares {}, not {expected}", self.on(pod, "c"));
    }

    async fn delete(&self, name: &str) {
        self.api.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        });
        self.api.until(|pods| !pods.contains_key(name)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_whole_processors_has_them_alone() {
    let mut world = World::new(cpus(CpuOptions::default()));
    world.put("burstable", &[("c", "", 1)]);
    world.phase("burstable", "Running").await;
    assert_eq!(world.on("burstable", "c"), "0-15");
    // Processors 0 and 8 are reserved: nobody has them alone, and all share them.
    world.put("two", &[("c", "2", 1), ("d", "1500m", 1)]);
    world.phase("two", "Running").await;
    assert_eq!(world.on("two", "c"), "1,9");
    assert_eq!(world.on("two", "d"), "0,2-8,10-15");
    world.shares("burstable", "0,2-8,10-15").await;
    // Half of the second processor that is reserved is left to pods, as upstream counts it, but not as one of their own.
    world.put("many", &[("c", "13", 1)]);
    let why = "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=13, available=12, \
               which is unexpected";
    assert_eq!(world.refused("many").await, ("UnexpectedAdmissionError".to_owned(), why.to_owned()));
    world.put("socket", &[("c", "8", 1)]);
    world.phase("socket", "Running").await;
    assert_eq!(world.on("socket", "c"), "4-7,12-15");

    // An agent that comes back knows who has what.
    world.running.take().unwrap().stop().await;
    let kept: Value =
        serde_json::from_slice(&std::fs::read(world.file("cpu_manager_state")).unwrap()).unwrap();
    assert_eq!(
        kept,
        json!({"policyName": "static", "checksum": 597_451_189, "defaultCpuSet": "0,2-3,8,10-11",
            "entries": {"two": {"c": "1,9"}, "socket": {"c": "4-7,12-15"}}})
    );
    world.start();
    world.put("last", &[("c", "4", 1)]);
    world.phase("last", "Running").await;
    assert_eq!(world.on("last", "c"), "2-3,10-11");
    world.shares("burstable", "0,8").await;
    world.delete("socket").await;
    world.delete("two").await;
    world.shares("burstable", "0-1,4-9,12-15").await;

    // What they have alone can't be changed while they run.
    world.api.change("last", |pod| {
        pod["metadata"]["generation"] = json!(2);
        for list in ["requests", "limits"] {
            pod["spec"]["containers"][0]["resources"][list]["cpu"] = json!("2");
        }
    });
    let infeasible = |pods: &BTreeMap<String, Value>| {
        let conditions = pods["last"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| {
            one["reason"] == "Infeasible"
                && one["message"]
                    == "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\""
        })
    };
    world.api.until(infeasible).await;
    assert_eq!(world.on("last", "c"), "2-3,10-11");
}

#[tokio::test(start_paused = true)]
async fn only_whole_cores_are_given_where_that_is_asked_for() {
    let world = World::new(cpus(CpuOptions { full_pcpus_only: true, ..CpuOptions::default() }));
    world.put("odd", &[("c", "3", 1)]);
    let why = "Pod was rejected: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
    assert_eq!(world.refused("odd").await, ("SMTAlignmentError".to_owned(), why.to_owned()));
    // An init container's processors are used again by who comes after it.
    world.put("pod", &[("init", "4", 1), ("c", "2", 1), ("d", "4", 1)]);
    world.phase("pod", "Running").await;
    assert_eq!((world.on("pod", "c"), world.on("pod", "d")), ("1,9".to_owned(), "2-3,10-11".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn processors_and_memory_are_near_to_each_other() {
    let half: BTreeMap<String, u64> = [("memory".to_owned(), GI / 2)].into();
    let mut options = cpus(CpuOptions::default());
    options.memory = MemoryManagerPolicy::Static { reserved: [(0, half.clone()), (1, half)].into() };
    options.topology = TopologyPolicy::SingleNumaNode;
    let text = |text: &str| Some(text.to_owned());
    let affinity = |name: &str| {
        (name.to_owned(), "Pod was rejected: Resources cannot be allocated with Topology locality".to_owned())
    };
    {
        let mut world = World::new(options.clone());
        world.put("large", &[("c", "2", 9)]);
        assert_eq!(world.refused("large").await, affinity("TopologyAffinityError"));
        world.put("first", &[("c", "2", 5)]);
        world.phase("first", "Running").await;
        assert_eq!(world.bound("first", "c"), (text("1,9"), text("0")));
        // The first node has processors, but not the memory.
        world.put("second", &[("c", "2", 5)]);
        world.phase("second", "Running").await;
        assert_eq!(world.bound("second", "c"), (text("4,12"), text("1")));
        // No node may give together with another any more: the memory manager has nothing to say, and nothing to give.
        world.put("late", &[("c", "2", 9)]);
        let why = "Pod was rejected: Allocate failed due to [memorymanager] failed to find NUMA nodes to extend the current topology hint, \
                   which is unexpected";
        assert_eq!(world.refused("late").await, ("UnexpectedAdmissionError".to_owned(), why.to_owned()));
        // Containers of one pod may be apart.
        world.put("apart", &[("c", "4", 1), ("d", "6", 1)]);
        world.phase("apart", "Running").await;
        assert_eq!(world.bound("apart", "c"), (text("2-3,10-11"), text("0")));
        assert_eq!(world.bound("apart", "d"), (text("5-7,13-15"), text("1")));
        world.running.take().unwrap().stop().await;
        let kept = std::fs::read(world.file("memory_manager_state")).unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept["machineState"]["0"]["memoryMap"]["memory"]["reserved"], json!(6 * GI));
        assert_eq!(
            kept["entries"]["apart"]["d"],
            json!([{"numaAffinity": [1], "type": "memory", "size": GI}])
        );
        // Other settings don't go with what was given.
        world.options.memory = MemoryManagerPolicy::None;
        let dir = Some(world.file(""));
        let refused = ResourceManagers::open(machine(), world.options.clone(), &reserved(), dir).unwrap_err();
        let why = "configured policy \"None\" differs from state checkpoint policy \"Static\"";
        assert!(refused.to_string().contains(why), "{refused}");
    }
    options.scope = TopologyScope::Pod;
    let world = World::new(options);
    world.put("apart", &[("c", "4", 1), ("d", "6", 1)]);
    assert_eq!(world.refused("apart").await, affinity("TopologyAffinityError"));
    world.put("together", &[("init", "6", 1), ("c", "4", 1), ("d", "4", 1)]);
    world.phase("together", "Running").await;
    for container in ["c", "d"] {
        assert_eq!(world.bound("together", container).1, text("1"));
    }
    assert_eq!(
        (world.on("together", "c"), world.on("together", "d")),
        ("4-5,12-13".to_owned(), "6-7,14-15".to_owned())
    );
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let open = |options: ManagerOptions, reserved: &[(&str, &str)]| {
        let reserved =
            reserved.iter().map(|(name, text)| ((*name).to_owned(), Quantity((*text).to_owned()))).collect();
        ResourceManagers::open(machine(), options, &reserved, None).map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        open(cpus(CpuOptions::default()), &[]),
        "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
    );
    let memory = |reserved: &[(u32, u64)]| {
        let one = |bytes: u64| [("memory".to_owned(), bytes)].into();
        let reserved = reserved.iter().map(|(node, bytes)| (*node, one(*bytes))).collect();
        ManagerOptions { memory: MemoryManagerPolicy::Static { reserved }, ..ManagerOptions::default() }
    };
    assert_eq!(open(memory(&[]), &[]), "[memorymanager] you should specify the system reserved memory");
    assert_eq!(
        open(memory(&[(0, GI)]), &[("memory", "2Gi")]),
        "the total amount \"1073741824\" of type \"memory\" is not equal to the value \"2147483648\" determined by Node Allocatable feature"
    );
    assert_eq!(
        open(memory(&[(7, GI)]), &[("memory", "1Gi")]),
        "the reserved memory configuration references a NUMA node 7 that does not exist on this machine"
    );
    let few = ManagerOptions {
        topology: TopologyPolicy::BestEffort,
        numa_nodes_max: 1,
        ..ManagerOptions::default()
    };
    assert_eq!(open(few, &[]), "unsupported on machines with more than 1 NUMA Nodes");
}
