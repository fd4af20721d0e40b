//! Volumes of a CSI driver, which the tests serve over its sockets.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use kcore::{Clock, SystemClock};
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    ContainerRuntime, NodeAgent, NodeConfig, PodUid, kubelet_service,
    runtime::process::{ProcessOptions, ProcessRuntime},
    testing::csi::{CsiDriver, CsiDriverOptions},
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);
const DRIVER: &str = "test.csi.example";
const NODE: &str = "/api/v1/nodes/node";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/node";
const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/claim";

/// The machine's time, or a later one.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now() + SignedDuration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A node whose pods are processes, and which takes plug-ins.
struct World {
    api: FakeApi,
    dir: tempfile::TempDir,
    clock: Arc<Ahead>,
    runtime: Arc<ProcessRuntime>,
    running: Option<(Running, NodeAgent)>,
    _block: LoopbackBlock,
}

impl World {
    fn new() -> Self {
        let (dir, block) = (tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
        let addresses: AddressRange = block.pods()[0].parse().unwrap();
        let clock = Arc::new(Ahead::default());
        let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock.clone());
        let api = FakeApi::default();
        api.put_object(NODE, json!({"metadata": {"name": "node", "uid": "uid-of-node"}}));
        api.put_object(
            &format!("/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"),
            json!({"metadata": {"name": DRIVER}, "spec": {"attachRequired": false, "fsGroupPolicy": "None"}}),
        );
        let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
        let mut world = Self { api, dir, clock, runtime, running: None, _block: block };
        world.start();
        world
    }

    fn start(&mut self) {
        let informers = Informers::new(self.api.client());
        let mut config = NodeConfig::new("node", self.runtime.clone());
        config.state_dir = Some(self.node_dir());
        config.plugins = true;
        let agent = NodeAgent::new(&informers, self.clock.clone(), [config]);
        let manager = Manager::new().informers(&informers).add(Start::Always, agent.clone());
        self.running = Some((manager.start(), agent));
    }

    async fn stop(&mut self) {
        if let Some((running, _)) = self.running.take() {
            running.stop().await;
        }
    }

    fn node_dir(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    fn options(&self) -> CsiDriverOptions {
        CsiDriverOptions::new(DRIVER, self.dir.path().join("data"))
    }

    fn driver(&self, options: CsiDriverOptions) -> CsiDriver {
        let driver = CsiDriver::start(&self.node_dir(), options).unwrap();
        std::fs::write(driver.volume("handle").unwrap().join("file"), "from the volume").unwrap();
        driver
    }

    fn put_driver(&self, spec: &Value) {
        let object = json!({"metadata": {"name": DRIVER}, "spec": spec});
        self.api.put_object(&format!("/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"), object);
    }

    /// A claim that is bound to the volume `pv` of the driver, which has these more fields.
    fn put_claim(&self, more: &Value) {
        self.api.put_object(
            CLAIM,
            json!({
                "metadata": {"name": "claim", "namespace": "default", "uid": "uid-of-claim"},
                "spec": {"volumeName": "pv"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
            }),
        );
        let mut source = json!({"driver": DRIVER, "volumeHandle": "handle", "fsType": "ext4", "volumeAttributes": {"a": "b"}});
        source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.api.put_object(
            "/api/v1/persistentvolumes/pv",
            json!({
                "metadata": {"name": "pv"},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"],
                    "claimRef": {"namespace": "default", "name": "claim", "uid": "uid-of-claim"}, "csi": source,
                },
            }),
        );
    }

    /// Starts a pod that shows what is in its volume and stays.
    fn put_pod(&self, name: &str, volume: &Value) {
        let mut volume = volume.clone();
        volume["name"] = json!("data");
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {
                "nodeName": "node", "terminationGracePeriodSeconds": 1, "serviceAccountName": "account",
                "volumes": [volume],
                "containers": [{
                    "name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "command": ["sh", "-c", "cat /data/file > /dev/termination-log; touch /data/made || true; exec sleep 1000"],
                }],
            },
            "status": {"phase": "Pending"},
        }));
    }

    fn delete(&self, name: &str) {
        self.api.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        });
    }

    async fn runs(&self, name: &str) {
        self.within("the pod runs", self.api.until(|pods| pods[name]["status"]["phase"] == "Running")).await;
    }

    async fn is_gone(&self, name: &str) {
        self.within("the pod is gone", self.api.until(|pods| !pods.contains_key(name))).await;
    }

    async fn told(&self, words: &str) {
        let is = |writes: &[(http::Method, String, Value)]| {
            writes.iter().any(|(_, _, event)| event["message"].as_str() == Some(words))
        };
        self.within(words, self.api.until_written("/events", is)).await;
    }

    async fn within(&self, what: &str, waits: impl Future<Output = ()>) {
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("{what}: {:?} {:?}", self.api.pods(), self.api.writes_to("/events"));
        }
    }

    fn target(&self, pod: &str, volume: &str) -> PathBuf {
        self.node_dir().join("pods").join(pod).join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }
}

fn of_claim() -> Value {
    json!({"persistentVolumeClaim": {"claimName": "claim"}})
}

fn names(driver: &CsiDriver) -> Vec<String> {
    driver.calls().into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn a_claim_is_attached_staged_and_published_and_given_back() {
    let world = World::new();
    world.put_driver(&json!({
        "podInfoOnMount": true, "fsGroupPolicy": "None", "tokenRequests": [{"audience": "there"}, {"audience": ""}],
    }));
    world.put_claim(&json!({
        "nodeStageSecretRef": {"namespace": "kube-system", "name": "stage"},
        "nodePublishSecretRef": {"namespace": "kube-system", "name": "publish"},
    }));
    for name in ["stage", "publish"] {
        let secret = json!({"metadata": {"name": name}, "data": {"user": "cm9vdA=="}});
        world.api.put_object(&format!("/api/v1/namespaces/kube-system/secrets/{name}"), secret);
    }
    world.put_pod("pod", &of_claim());
    let events = async || {
        let is = |writes: &[(http::Method, String, Value)]| {
            writes.iter().any(|(_, _, event)| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == "FailedMount"
                    && message.starts_with("MountVolume.WaitForAttach failed for volume \"pv\" : volume handle has GET error for volume attachment csi-")
            })
        };
        world.within("it waits for the attachment", world.api.until_written("/events", is)).await;
    };
    events().await;
    let asked = world.api.writes_to("/events");
    let message = asked
        .iter()
        .find_map(|(_, _, event)| event["message"].as_str().filter(|text| text.contains("GET error")));
    let name =
        message.unwrap().split("volume attachment ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    let attachment = |attached: bool| {
        json!({
            "metadata": {"name": name}, "spec": {"attacher": DRIVER, "nodeName": "node", "source": {}},
            "status": {"attached": attached, "attachmentMetadata": {"device": "/dev/x"}},
        })
    };
    let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
    world.api.put_object(&path, attachment(false));
    world
        .told(&format!("MountVolume.WaitForAttach failed for volume \"pv\" : volume handle is not attached for volume attachment {name}"))
        .await;
    world.api.put_object(&path, attachment(true));
    world
        .told(
            "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: attacher.MountDevice failed to create \
             newCsiDriverClient: driver name test.csi.example not found in the list of registered CSI drivers",
        )
        .await;
    // By now nobody may detach it any more.
    let unique = "kubernetes.io/csi/test.csi.example^handle";
    assert_eq!(world.api.object(NODE)["status"]["volumesInUse"], json!([unique]));
    assert_eq!(world.api.object(CSI_NODE)["spec"]["drivers"], json!([]));

    let mut options = world.options();
    options.topology = [("topology.test/zone".to_owned(), "a".to_owned())].into();
    options.volumes_max = 7;
    let driver = world.driver(options);
    world.runs("pod").await;
    let entry = json!({"name": DRIVER, "nodeID": "id-of-node", "topologyKeys": ["topology.test/zone"], "allocatable": {"count": 7}});
    let csi_node = world.api.object(CSI_NODE);
    assert_eq!(csi_node["spec"]["drivers"], json!([entry]));
    assert_eq!(csi_node["metadata"]["ownerReferences"][0]["uid"], "uid-of-node");
    let node = world.api.object(NODE);
    assert_eq!(node["metadata"]["labels"]["topology.test/zone"], "a");
    assert_eq!(
        node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"],
        "{\"test.csi.example\":\"id-of-node\"}"
    );
    let calls = names(&driver);
    let told = calls.iter().position(|name| name == "NotifyRegistrationStatus").unwrap();
    assert_eq!(calls[..told], ["GetInfo", "NodeGetInfo"], "{calls:?}");
    assert_eq!(
        driver.requests("NotifyRegistrationStatus")[0],
        json!({"pluginRegistered": true, "error": ""})
    );
    let staged = &driver.requests("NodeStageVolume")[0];
    let staging = staged["stagingTargetPath"].as_str().unwrap().to_owned();
    let expected = world.node_dir().join("plugins/kubernetes.io/csi").join(DRIVER);
    assert!(Path::new(&staging).starts_with(expected) && staging.ends_with("/globalmount"), "{staging}");
    assert_eq!(
        *staged,
        json!({
            "volumeId": "handle", "publishContext": {"device": "/dev/x"}, "stagingTargetPath": staging,
            "secrets": {"user": "root"}, "volumeContext": {"a": "b"},
            "volumeCapability": {
                "mount": {"fsType": "ext4", "mountFlags": ["noatime"], "volumeMountGroup": ""}, "block": false, "accessMode": 7,
            },
        })
    );
    let published = &driver.requests("NodePublishVolume")[0];
    let target = world.target("pod", "pv");
    assert_eq!(published["targetPath"], target.to_str().unwrap());
    assert_eq!(published["stagingTargetPath"], staging);
    assert_eq!((&published["readonly"], &published["secrets"]), (&json!(false), &json!({"user": "root"})));
    assert_eq!(published["publishContext"], json!({"device": "/dev/x"}));
    let mut context = published["volumeContext"].clone();
    let tokens = context.as_object_mut().unwrap().remove("csi.storage.k8s.io/serviceAccount.tokens").unwrap();
    assert_eq!(
        context,
        json!({
            "a": "b", "csi.storage.k8s.io/pod.name": "pod", "csi.storage.k8s.io/pod.namespace": "default",
            "csi.storage.k8s.io/pod.uid": "pod", "csi.storage.k8s.io/serviceAccount.name": "account",
            "csi.storage.k8s.io/ephemeral": "false",
        })
    );
    let tokens: Value = serde_json::from_str(tokens.as_str().unwrap()).unwrap();
    assert_eq!(
        tokens,
        json!({
            "": {"token": "token of account for []", "expirationTimestamp": "2999-01-01T00:00:00Z"},
            "there": {"token": "token of account for [\"there\"]", "expirationTimestamp": "2999-01-01T00:00:00Z"},
        })
    );
    // The container has seen it, and written into it.
    world
        .within("the container has written", async {
            while !target.join("made").exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    let (_, agent) = world.running.as_ref().unwrap();
    let summary = summary(agent).await;
    let mut volume = summary["pods"][0]["volume"][0].clone();
    volume.as_object_mut().unwrap().remove("time");
    assert_eq!(
        volume,
        json!({
            "name": "data", "pvcRef": {"name": "claim", "namespace": "default"}, "usedBytes": 4096, "capacityBytes": 1 << 30,
            "availableBytes": (1 << 30) - 4096, "inodes": 100, "inodesUsed": 2, "inodesFree": 98,
        })
    );

    // A second pod shares what is staged; the volume is given back after the last one.
    world.put_pod("other", &of_claim());
    world.runs("other").await;
    world.delete("pod");
    world.is_gone("pod").await;
    assert_eq!(
        driver.requests("NodeUnpublishVolume"),
        [json!({"volumeId": "handle", "targetPath": target.to_str()})]
    );
    assert_eq!(driver.requests("NodeUnstageVolume"), [] as [Value; 0]);
    driver.fail("NodeUnstageVolume", 13, "busy");
    world.delete("other");
    world
        .within(
            "it is tried",
            driver.until(|calls| calls.iter().any(|(name, _)| name == "NodeUnstageVolume")),
        )
        .await;
    assert!(world.api.pods().contains_key("other"), "a pod stays until its volumes are given back");
    assert_eq!(world.api.object(NODE)["status"]["volumesInUse"], json!([unique]));
    driver.fail("NodeUnstageVolume", 0, "");
    world.is_gone("other").await;
    let unstaged = driver.requests("NodeUnstageVolume");
    assert_eq!(unstaged.last().unwrap(), &json!({"volumeId": "handle", "stagingTargetPath": staging}));
    assert!(!Path::new(&staging).exists() && !world.node_dir().join("pods/other").exists());
    let is_free = |node: &Value| node["status"]["volumesInUse"] == json!([]);
    world.within("it may be detached", world.api.until_object(NODE, is_free)).await;

    // Without its socket the driver is no longer the node's.
    drop(driver);
    let is_empty = |object: &Value| object["spec"]["drivers"] == json!([]);
    world.within("the driver is gone", world.api.until_object(CSI_NODE, is_empty)).await;
    let has_no_id =
        |node: &Value| node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].is_null();
    world.within("its name for the node is gone", world.api.until_object(NODE, has_no_id)).await;
}

#[tokio::test]
async fn a_volume_of_the_pods_own_is_published_again_and_again() {
    let world = World::new();
    let driver = world.driver(world.options());
    let inline = json!({"csi": {"driver": DRIVER, "readOnly": true, "volumeAttributes": {"k": "v"}}});
    world.put_pod("pod", &inline);
    world
        .told(
            "MountVolume.SetUp failed for volume \"data\" : kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle \
             mode: volume mode \"Ephemeral\" not supported by driver test.csi.example (only supports [\"Persistent\"])",
        )
        .await;
    world.put_driver(&json!({
        "attachRequired": false, "volumeLifecycleModes": ["Ephemeral"], "requiresRepublish": true, "podInfoOnMount": true,
        "serviceAccountTokenInSecrets": true, "tokenRequests": [{"audience": "there"}],
    }));
    let count = |driver: &CsiDriver| driver.requests("NodePublishVolume").len();
    // The handle is made of the pod's uid and the volume's name: printf poddata | sha256sum
    world.runs("pod").await;
    let published = driver.requests("NodePublishVolume");
    let [published] = &published[..] else { panic!("{published:?}") };
    let handle = published["volumeId"].as_str().unwrap();
    assert_eq!(handle.len(), "csi-".len() + 64);
    assert_eq!((&published["readonly"], &published["stagingTargetPath"]), (&json!(true), &json!("")));
    assert_eq!(published["volumeContext"]["csi.storage.k8s.io/ephemeral"], "true");
    assert_eq!(published["volumeContext"]["csi.storage.k8s.io/serviceAccount.tokens"], Value::Null);
    assert!(
        published["secrets"]["csi.storage.k8s.io/serviceAccount.tokens"].as_str().unwrap().contains("there")
    );
    assert_eq!(published["volumeCapability"]["accessMode"], 7);
    assert_eq!(driver.requests("NodeStageVolume"), [] as [Value; 0]);
    let target = world.target("pod", "data");
    assert!(target.is_dir());

    // A minute later it is due again; that it can't be had then takes nothing from the pod.
    for (round, code) in [(1, 0), (2, 13), (3, 0)] {
        driver.fail("NodePublishVolume", code, "not now");
        world.clock.0.fetch_add(61, Ordering::Relaxed);
        world.api.change("pod", |pod| pod["metadata"]["labels"] = json!({"round": round.to_string()}));
        world
            .within(
                "it is published again",
                driver.until(|calls| {
                    calls.iter().filter(|(name, _)| name == "NodePublishVolume").count() > round
                }),
            )
            .await;
        assert!(target.is_dir() && count(&driver) > round);
    }
    world.delete("pod");
    world.is_gone("pod").await;
    assert_eq!(names(&driver).last().unwrap(), "NodeUnpublishVolume");
    assert!(!target.exists());
}

#[tokio::test]
async fn mounts_outlive_the_agent_and_what_was_deleted_meanwhile_is_given_back() {
    let mut world = World::new();
    world.put_claim(&json!({}));
    let mut options = world.options();
    options.mounts = is_root();
    let driver = world.driver(options);
    world.put_pod("stays", &of_claim());
    world.put_pod("goes", &json!({"csi": {"driver": DRIVER}}));
    world.put_driver(&json!({"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
    world.runs("stays").await;
    world.runs("goes").await;
    let (stays, goes) = (world.target("stays", "pv"), world.target("goes", "data"));
    let file = driver.volume("handle").unwrap().join("made");
    if is_root() {
        let written = async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
        };
        world.within("what the container writes is in the volume", written).await;
    }
    world.stop().await;
    // The runtime still has both; one of them is killed and deleted while nobody looks.
    world.runtime.remove_pod(&PodUid::from("goes")).await.unwrap();
    world.api.remove("goes");
    assert!(stays.is_dir() && goes.is_dir());
    let before = driver.calls().len();
    world.start();
    world
        .within(
            "it is given back",
            driver.until(|calls| {
                calls[before..].iter().any(|(name, request)| {
                    name == "NodeUnpublishVolume" && request["targetPath"] == goes.to_str().unwrap()
                })
            }),
        )
        .await;
    world
        .within("nothing is left", async {
            while goes.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    // The other one is made sure of, where it was, and nothing is taken from it.
    world
        .within(
            "it is published anew",
            driver.until(|calls| {
                calls[before..].iter().any(|(name, request)| {
                    name == "NodePublishVolume" && request["targetPath"] == stays.to_str().unwrap()
                })
            }),
        )
        .await;
    let status = &world.api.pods()["stays"]["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0);
    assert!(stays.join("file").exists());
    // A driver that does not let go leaves the data where it is.
    driver.fail("NodeUnpublishVolume", 13, "busy");
    let tried = driver.requests("NodeUnpublishVolume").len();
    world.delete("stays");
    world
        .within(
            "it is tried",
            driver.until(|calls| {
                calls.iter().filter(|(name, _)| name == "NodeUnpublishVolume").count() > tried + 1
            }),
        )
        .await;
    assert!(stays.join("file").exists() && world.api.pods().contains_key("stays"));
    driver.fail("NodeUnpublishVolume", 0, "");
    world.is_gone("stays").await;
    assert!(!stays.exists() && driver.volume("handle").unwrap().join("file").exists());
}

#[tokio::test]
async fn file_systems_grow_with_their_volumes() {
    let world = World::new();
    world.put_claim(&json!({}));
    let driver = world.driver(world.options());
    world.put_pod("pod", &of_claim());
    world.runs("pod").await;
    let grow = |to: &str| {
        let mut volume = world.api.object("/api/v1/persistentvolumes/pv");
        volume["spec"]["capacity"]["storage"] = json!(to);
        world.api.put_object("/api/v1/persistentvolumes/pv", volume);
        let mut claim = world.api.object(CLAIM);
        claim["status"]["allocatedResourceStatuses"] = json!({"storage": "NodeResizePending"});
        claim["status"]["conditions"] = json!([
            {"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"},
        ]);
        world.api.put_object(CLAIM, claim);
        world.clock.0.fetch_add(61, Ordering::Relaxed);
        world.api.change("pod", |pod| pod["metadata"]["labels"] = json!({"to": to}));
    };
    grow("2Gi");
    let has_grown = |claim: &Value| claim["status"]["capacity"]["storage"] == "2Gi";
    world.within("it has grown", world.api.until_object(CLAIM, has_grown)).await;
    let claim = world.api.object(CLAIM);
    assert_eq!(claim["status"]["allocatedResourceStatuses"], json!({}));
    assert_eq!(claim["status"]["conditions"], json!([{"type": "Other", "status": "True"}]));
    let asked = driver.requests("NodeExpandVolume");
    assert_eq!(asked[0]["requiredBytes"], 2_u64 << 30);
    assert_eq!(asked[0]["volumePath"], world.target("pod", "pv").to_str().unwrap());
    assert!(asked[0]["stagingTargetPath"].as_str().unwrap().ends_with("/globalmount"));
    world.told("MountVolume.NodeExpandVolume succeeded for volume \"pv\" node").await;

    driver.fail("NodeExpandVolume", 3, "never");
    grow("3Gi");
    let is_marked =
        |claim: &Value| claim["status"]["allocatedResourceStatuses"]["storage"] == "NodeResizeInfeasible";
    world.within("it can't grow", world.api.until_object(CLAIM, is_marked)).await;
    let claim = world.api.object(CLAIM);
    assert_eq!(claim["status"]["capacity"]["storage"], "2Gi");
    let told =
        claim["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "NodeResizeError");
    assert!(
        told.unwrap()["message"]
            .as_str()
            .unwrap()
            .ends_with("rpc error: code = InvalidArgument desc = never"),
        "{claim}"
    );
}

#[tokio::test]
async fn drivers_that_can_not_be_taken_are_told_why() {
    let world = World::new();
    let mut options = world.options();
    options.versions = vec!["0.3.0".to_owned()];
    let driver = world.driver(options);
    let is_told =
        |calls: &[(String, Value)]| calls.iter().any(|(name, _)| name == "NotifyRegistrationStatus");
    world.within("it is told", driver.until(is_told)).await;
    let told = &driver.requests("NotifyRegistrationStatus")[0];
    assert_eq!(told["pluginRegistered"], false);
    let error = told["error"].as_str().unwrap();
    assert!(error.starts_with("RegisterPlugin error -- plugin validation failed with err: validation failed for CSI Driver test.csi.example at endpoint "), "{error}");
    assert!(error.ends_with("highest supported version reported is 0.3.0, must be v1.x"), "{error}");
    drop(driver);

    // One that does not know its node is asked again, and taken when it does.
    let driver = world.driver(world.options());
    driver.fail("NodeGetInfo", 14, "not yet");
    let driver_told = |registered: bool| {
        move |calls: &[(String, Value)]| {
            calls.iter().any(|(name, request)| {
                name == "NotifyRegistrationStatus" && request["pluginRegistered"] == registered
            })
        }
    };
    world.within("it is refused", driver.until(driver_told(false))).await;
    assert_eq!(world.api.object(CSI_NODE)["spec"]["drivers"], json!([]));
    driver.fail("NodeGetInfo", 0, "");
    world.within("it is taken", driver.until(driver_told(true))).await;
    assert_eq!(world.api.object(CSI_NODE)["spec"]["drivers"][0]["name"], DRIVER);
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

async fn summary(agent: &NodeAgent) -> Value {
    let (client, server) = tokio::io::duplex(64 * 1024);
    tokio::spawn(kubelet_service(agent, "node").serve(server));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/stats/summary").header("host", "node");
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    serde_json::from_slice(&answer.to_bytes()).unwrap()
}
