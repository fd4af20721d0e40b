//! Claims of pods on a node with a driver of dynamic resources, which the tests serve over its sockets.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kcore::SystemClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig,
    runtime::process::{ProcessOptions, ProcessRuntime},
    testing::dra::{DraDriver, DraDriverOptions},
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const DRIVER: &str = "dra.example";
const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices";

pub(crate) struct World {
    api: FakeApi,
    dir: tempfile::TempDir,
    runtime: Arc<ProcessRuntime>,
    running: Option<Running>,
    _block: LoopbackBlock,
}

impl World {
    pub(crate) fn new() -> Self {
        let (dir, block) = (tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
        let addresses: AddressRange = block.pods()[0].parse().unwrap();
        let options =
            ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), Arc::new(SystemClock));
        let api = FakeApi::default();
        api.put_object("/api/v1/nodes/node", json!({"metadata": {"name": "node", "uid": "uid-of-node"}}));
        let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
        let mut world = Self { api, dir, runtime, running: None, _block: block };
        world.start();
        world
    }

    fn start(&mut self) {
        let informers = Informers::new(self.api.client());
        let mut config = NodeConfig::new("node", self.runtime.clone());
        config.state_dir = Some(self.node_dir());
        config.plugins = true;
        config.events = true;
        let agent = NodeAgent::new(&informers, Arc::new(SystemClock), [config]);
        self.running = Some(Manager::new().informers(&informers).add(Start::Always, agent).start());
    }

    pub(crate) fn node_dir(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    /// A driver that the node has taken.
    pub(crate) async fn driver(&self, options: DraDriverOptions) -> DraDriver {
        let driver = DraDriver::start(&self.node_dir(), options).unwrap();
        self.within("the driver is registered", driver.called("NotifyRegistrationStatus", 1)).await;
        driver
    }

    /// A claim that is allocated, and reserved for these pods.
    pub(crate) fn put_claim(&self, name: &str, pods: &[&str]) {
        let reserved: Vec<Value> =
            pods.iter().map(|pod| json!({"resource": "pods", "name": pod, "uid": pod})).collect();
        let result = json!({"request": "r", "driver": DRIVER, "pool": "pool", "device": name});
        self.api.put_object(
            &format!("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{name}"),
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
                "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")}, "spec": {},
                "status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": reserved}}),
        );
    }

    /// A pod whose only container uses a claim; it ends by itself when `script` does.
    pub(crate) fn put_pod(&self, name: &str, claim: &str, script: &str) {
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 1, "restartPolicy": "Never",
                "resourceClaims": [{"name": "e", "resourceClaimName": claim}],
                "containers": [{"name": "c", "image": "i", "command": ["sh", "-c", script], "resources": {"claims": [{"name": "e"}]}}]},
            "status": {"phase": "Pending"},
        }));
    }

    pub(crate) async fn phase(&self, name: &str, phase: &str) {
        self.within(phase, self.api.until(|pods| pods[name]["status"]["phase"] == phase)).await;
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.api.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        });
        self.within("the pod is gone", self.api.until(|pods| !pods.contains_key(name))).await;
    }

    /// Waits for an event with this reason and message.
    async fn told(&self, reason: &str, message: &str) {
        let is_there = |writes: &[crate::fake::Write]| {
            writes.iter().any(|(_, _, body)| {
                let said = [&body["message"], &body["note"]];
                body["reason"] == reason && said.iter().any(|said| **said == message)
            })
        };
        let waits = self.api.until_written("/events", is_there);
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("{reason}: {message}: {:?}", self.api.writes_to("/events"));
        }
    }

    async fn within(&self, what: &str, waits: impl Future<Output = ()>) {
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("{what}: {:?}", self.api.pods());
        }
    }
}

#[tokio::test]
async fn claims_are_prepared_for_pods_and_given_back() {
    let mut world = World::new();
    world.put_claim("shared", &["one", "two"]);
    world.put_pod("one", "shared", "exec sleep 1000");
    let late = "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver dra.example is not registered";
    world.told("FailedPrepareDynamicResources", late).await;
    // A pod waits for its driver.
    let driver = world.driver(DraDriverOptions::new(DRIVER)).await;
    world.phase("one", "Running").await;
    let prepare = "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources";
    assert_eq!(driver.requests(prepare), [json!(["default/shared/uid-of-shared"])]);
    // Whoever comes second finds it prepared, and the last one gives it back.
    world.put_pod("two", "shared", "exec sleep 1000");
    world.phase("two", "Running").await;
    assert_eq!(driver.requests(prepare).len(), 1);
    world.delete("one").await;
    assert!(driver.requests("NodeUnprepareResources").is_empty());

    // An agent that comes back knows what is prepared.
    world.running.take().unwrap().stop().await;
    drop(driver);
    world.start();
    let driver = world.driver(DraDriverOptions::new(DRIVER)).await;
    driver.fail("NodeUnprepareResources", "not now");
    world.api.change("two", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    });
    world.within("it is tried again", driver.called("NodeUnprepareResources", 2)).await;
    assert!(world.api.pods().contains_key("two"));
    driver.fail("NodeUnprepareResources", "");
    world.within("the pod is gone", world.api.until(|pods| !pods.contains_key("two"))).await;
    assert_eq!(
        driver.requests("NodeUnprepareResources").last(),
        Some(&json!(["default/shared/uid-of-shared"]))
    );
    let kept = std::fs::read_to_string(world.node_dir().join("dra_manager_state")).unwrap();
    assert_eq!(kept, "[]");
    // What drivers published before the node came back is gone, each time.
    let wiped = world.api.writes_to(SLICES).into_iter().filter(|(method, ..)| method == "DELETE").count();
    assert_eq!(wiped, 2);
}

#[tokio::test]
async fn a_pod_that_ends_gives_back_before_it_says_so() {
    let world = World::new();
    let mut options = DraDriverOptions::new(DRIVER);
    options.services = vec!["v1beta1.DRAPlugin".to_owned()];
    let driver = world.driver(options).await;
    world.put_claim("own", &["job"]);
    driver.fail("NodePrepareResources", "no room");
    world.put_pod("job", "own", "exit 0");
    let failed = "Failed to prepare dynamic resources: prepare dynamic resources: NodePrepareResources failed for ResourceClaim own: no room";
    world.told("FailedPrepareDynamicResources", failed).await;
    driver.fail("NodePrepareResources", "");
    world.phase("job", "Succeeded").await;
    let last = "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources";
    assert_eq!(driver.requests(last), [json!(["default/own/uid-of-own"])]);

    world.put_claim("others", &["somebody"]);
    world.put_pod("thief", "others", "exit 0");
    let refused = "Failed to prepare dynamic resources: prepare dynamic resources: pod thief (thief) is not allowed to use \
                   ResourceClaim others (uid-of-others)";
    world.told("FailedPrepareDynamicResources", refused).await;
    assert!(
        driver
            .requests("NodePrepareResources")
            .iter()
            .all(|claims| *claims == json!(["default/own/uid-of-own"]))
    );
}

#[tokio::test]
async fn what_drivers_name_reaches_the_runtime() {
    let world = World::new();
    let mut options = DraDriverOptions::new(DRIVER);
    options.cdi = vec!["vendor.example/thing=a".to_owned()];
    let _driver = world.driver(options).await;
    world.put_claim("claim", &["pod"]);
    world.put_pod("pod", "claim", "exit 0");
    // Processes know no such names, and say so.
    let waits = |pods: &std::collections::BTreeMap<String, Value>| {
        pods["pod"]["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
            == "CDI device \"vendor.example/thing=a\": this runtime knows no CDI devices"
    };
    world.within("the runtime is told", world.api.until(waits)).await;

    // A plug-in that speaks no version of ours is told so.
    let mut options = DraDriverOptions::new("other.example");
    options.services = vec!["v9.DRAPlugin".to_owned()];
    let other = world.driver(options).await;
    let told = &other.requests("NotifyRegistrationStatus")[0];
    assert_eq!(told["pluginRegistered"], json!(false));
    let why = told["error"].as_str().unwrap();
    assert!(
        why.contains(
            "none of services supported by the plugin ([\"v9.DRAPlugin\"]) are supported by the kubelet"
        ),
        "{why}"
    );
}
