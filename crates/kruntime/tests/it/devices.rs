//! Devices of a plug-in, which the tests serve over its socket.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kcore::SystemClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig,
    managers::{Machine, ManagerOptions, NumaNode, ResourceManagers, TopologyPolicy},
    runtime::process::{ProcessOptions, ProcessRuntime},
    testing::device::{DevicePlugin, DevicePluginOptions},
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const RESOURCE: &str = "test.example/thing";
const NODE: &str = "/api/v1/nodes/node";

pub(crate) struct World {
    api: FakeApi,
    dir: tempfile::TempDir,
    runtime: Arc<ProcessRuntime>,
    running: Option<Running>,
    managers: Option<Arc<ResourceManagers>>,
    _block: LoopbackBlock,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(None).await
    }

    async fn with(managers: Option<Arc<ResourceManagers>>) -> Self {
        let (dir, block) = (tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
        let addresses: AddressRange = block.pods()[0].parse().unwrap();
        let clock = Arc::new(SystemClock);
        let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock);
        let api = FakeApi::default();
        let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
        let mut world = Self { api, dir, runtime, running: None, managers, _block: block };
        world.start().await;
        world
    }

    /// Starts an agent, and waits for its socket.
    async fn start(&mut self) {
        let informers = Informers::new(self.api.client());
        let mut config = NodeConfig::new("node", self.runtime.clone());
        config.state_dir = Some(self.node_dir());
        config.plugins = true;
        config.managers = self.managers.clone();
        let agent = NodeAgent::new(&informers, Arc::new(SystemClock), [config]);
        let manager = Manager::new().informers(&informers).add(Start::Always, agent.clone());
        let socket = self.node_dir().join("device-plugins/kubelet.sock");
        let _ = std::fs::remove_file(&socket);
        self.api.put_object(NODE, json!({"metadata": {"name": "node", "uid": "uid-of-node"}}));
        self.running = Some(manager.start());
        let is_there = async {
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_there).await.unwrap();
    }

    pub(crate) fn node_dir(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    /// A plug-in that the node has taken and counted.
    pub(crate) async fn plugin(
        &self,
        options: DevicePluginOptions,
        ids: &[(&'static str, bool)],
    ) -> DevicePlugin {
        let plugin = DevicePlugin::start(&self.node_dir(), options, ids.iter().copied()).unwrap();
        plugin.register().await.unwrap();
        let healthy = ids.iter().filter(|(_, is_healthy)| *is_healthy).count();
        self.counts(ids.len(), healthy).await;
        plugin
    }

    async fn counts(&self, all: usize, healthy: usize) {
        let (all, healthy) = (json!(all.to_string()), json!(healthy.to_string()));
        let is = |node: &Value| {
            node["status"]["capacity"][RESOURCE] == all && node["status"]["allocatable"][RESOURCE] == healthy
        };
        self.within("the devices are counted", self.api.until_object(NODE, is)).await;
    }

    /// A pod with these containers, of a name and a number of devices each; names that begin with `init` are of init containers.
    pub(crate) fn put_pod(&self, name: &str, containers: &[(&str, u32)]) {
        let container = |(name, count): &(&str, u32)| {
            let script = "echo $DEVICES > /dev/termination-log";
            let stays = if name.starts_with("init") { "" } else { "; exec sleep 1000" };
            json!({"name": name, "image": "i", "command": ["sh", "-c", format!("{script}{stays}")],
                "resources": {"limits": {RESOURCE: count.to_string()}, "requests": {RESOURCE: count.to_string()}}})
        };
        let (init, usual): (Vec<_>, Vec<_>) =
            containers.iter().partition(|(name, _)| name.starts_with("init"));
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {
                "nodeName": "node", "terminationGracePeriodSeconds": 1, "restartPolicy": "Always",
                "initContainers": init.into_iter().map(container).collect::<Vec<_>>(),
                "containers": usual.into_iter().map(container).collect::<Vec<_>>(),
            },
            "status": {"phase": "Pending"},
        }));
    }

    pub(crate) async fn phase(&self, name: &str, phase: &str) -> Value {
        self.within(phase, self.api.until(|pods| pods[name]["status"]["phase"] == phase)).await;
        self.api.pods()[name]["status"].clone()
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.api.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        });
        self.within("the pod is gone", self.api.until(|pods| !pods.contains_key(name))).await;
    }

    async fn within(&self, what: &str, waits: impl Future<Output = ()>) {
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("{what}: {:?} {}", self.api.pods(), self.api.object(NODE)["status"]);
        }
    }
}

fn ids(list: &[&str]) -> Value {
    json!(list)
}

#[tokio::test]
async fn devices_are_given_to_one_container_at_a_time() {
    let world = World::new().await;
    let mut options = DevicePluginOptions::new(RESOURCE);
    options.pre_start = true;
    options.preferred = vec!["c".to_owned(), "gone".to_owned()];
    let plugin = world.plugin(options, &[("a", true), ("b", true), ("c", true), ("sick", false)]).await;
    // An init container's devices are used again by who comes after it.
    world.put_pod("first", &[("init", 1), ("one", 2)]);
    let status = world.phase("first", "Running").await;
    // The container has found what the plug-in gave it.
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["message"], "c\n", "{status}");
    assert_eq!(plugin.requests("Allocate"), [ids(&["c"]), ids(&["a", "c"])]);
    assert_eq!(plugin.requests("PreStartContainer"), [ids(&["c"]), ids(&["a", "c"])]);
    let asked = plugin.requests("GetPreferredAllocation");
    assert_eq!(asked[0], json!({"available": ["a", "b", "c"], "mustInclude": [], "size": 1}));
    assert_eq!(asked[1], json!({"available": ["a", "b", "c"], "mustInclude": ["c"], "size": 2}));

    world.put_pod("second", &[("one", 1), ("two", 1)]);
    let status = world.phase("second", "Failed").await;
    assert_eq!(status["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        status["message"],
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for test.example/thing. Requested: 1, \
         Available: 0, which is unexpected"
    );
    // What the refused pod had been given is free again.
    world.put_pod("third", &[("one", 1)]);
    world.phase("third", "Running").await;
    assert_eq!(plugin.requests("Allocate").last().unwrap(), &ids(&["b"]));
    world.delete("first").await;
    world.put_pod("fourth", &[("one", 2)]);
    world.phase("fourth", "Running").await;
    assert_eq!(plugin.requests("Allocate").last().unwrap(), &ids(&["a", "c"]));
}

#[tokio::test]
async fn health_is_followed_and_a_plugin_that_is_away_has_no_healthy_devices() {
    let world = World::new().await;
    let plugin = world.plugin(DevicePluginOptions::new(RESOURCE), &[("a", true)]).await;
    plugin.set([("a", false), ("b", true), ("c", false)]);
    world.counts(3, 1).await;
    world.put_pod("pod", &[("one", 1)]);
    world.phase("pod", "Running").await;
    assert_eq!(plugin.requests("Allocate"), [ids(&["b"])]);
    drop(plugin);
    world.counts(3, 0).await;
    world.put_pod("late", &[("one", 1)]);
    let status = world.phase("late", "Failed").await;
    assert_eq!(
        status["message"],
        "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices test.example/thing, \
         which is unexpected"
    );
    assert_eq!(world.api.pods()["pod"]["status"]["phase"], "Running");

    let refused = async |change: &dyn Fn(&mut DevicePluginOptions)| {
        let mut options = DevicePluginOptions::new(RESOURCE);
        change(&mut options);
        let plugin = DevicePlugin::start(&world.node_dir(), options, []).unwrap();
        plugin.register().await.unwrap_err()
    };
    assert_eq!(
        refused(&|options| options.version = "v2".to_owned()).await,
        "requested API version \"v2\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
    );
    assert_eq!(
        refused(&|options| options.resource = "cpu".to_owned()).await,
        "the ResourceName \"cpu\" is invalid"
    );
}

#[tokio::test]
async fn what_was_given_outlives_the_agent() {
    let mut world = World::new().await;
    let devices = [("a", true), ("b", true)];
    let plugin = world.plugin(DevicePluginOptions::new(RESOURCE), &devices).await;
    world.put_pod("stays", &[("one", 1)]);
    world.phase("stays", "Running").await;
    world.put_pod("goes", &[("one", 1)]);
    world.phase("goes", "Running").await;
    let of = |number: usize| plugin.requests("Allocate")[number].clone();
    let (stays, goes) = (of(0), of(1));
    assert_ne!(stays, goes);
    world.running.take().unwrap().stop().await;
    drop(plugin);
    // One pod is gone when the next agent comes; plug-ins find its new socket and register again.
    kruntime::ContainerRuntime::remove_pod(&*world.runtime, &kruntime::PodUid::from("goes")).await.unwrap();
    world.api.remove("goes");
    world.start().await;
    let plugin = world.plugin(DevicePluginOptions::new(RESOURCE), &devices).await;
    world.put_pod("new", &[("one", 1)]);
    world.phase("new", "Running").await;
    assert_eq!(plugin.requests("Allocate"), [goes]);
    let status = &world.api.pods()["stays"]["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0);
}

#[tokio::test]
async fn devices_are_given_near_to_each_other() {
    let machine =
        Machine { nodes: (0..2).map(|node| (node, NumaNode::default())).collect(), ..Machine::default() };
    let options = ManagerOptions { topology: TopologyPolicy::SingleNumaNode, ..ManagerOptions::default() };
    let managers = ResourceManagers::open(machine, options, &[].into(), None).unwrap();
    let world = World::with(Some(Arc::new(managers))).await;
    let mut options = DevicePluginOptions::new(RESOURCE);
    options.nodes =
        [("a", 0), ("b", 1), ("c", 0), ("d", 1)].map(|(id, node)| (id.to_owned(), vec![node])).into();
    let plugin = world.plugin(options, &[("a", true), ("b", true), ("c", true), ("d", true)]).await;
    world.put_pod("first", &[("one", 1)]);
    world.phase("first", "Running").await;
    assert_eq!(plugin.requests("Allocate"), [ids(&["a"])]);
    // Only one node has two left.
    world.put_pod("second", &[("one", 2)]);
    world.phase("second", "Running").await;
    assert_eq!(plugin.requests("Allocate")[1], ids(&["b", "d"]));
    world.delete("first").await;
    world.put_pod("third", &[("one", 3)]);
    let status = world.phase("third", "Failed").await;
    assert_eq!(status["reason"], "TopologyAffinityError");
    assert_eq!(status["message"], "Pod was rejected: Resources cannot be allocated with Topology locality");
    world.put_pod("fourth", &[("one", 2)]);
    world.phase("fourth", "Running").await;
    assert_eq!(plugin.requests("Allocate")[2], ids(&["a", "c"]));
}
