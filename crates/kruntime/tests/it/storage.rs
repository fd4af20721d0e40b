//! What pods have on disks: limits, who goes first when a disk is full, and what the node tells of it.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use kcore::{Clock, SystemClock, TokioClock};
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    ContainerRuntime, NodeAgent, NodeConfig,
    eviction::{EvictionOptions, Signal},
    kubelet_service,
    runtime::{
        process::{ProcessOptions, ProcessRuntime},
        simulated::SimulatedRuntime,
    },
    signals::SetSignals,
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

fn start(
    api: &FakeApi,
    runtime: Arc<dyn ContainerRuntime>,
    clock: Arc<dyn Clock>,
    state: Option<&std::path::Path>,
) -> (Running, NodeAgent, Arc<SetSignals>) {
    let informers = Informers::new(api.client());
    let signals = Arc::new(SetSignals::default());
    let mut config = NodeConfig::new("node", runtime);
    config.eviction = Some(EvictionOptions::new(signals.clone()));
    config.state_dir = state.map(Into::into);
    config.events = true;
    let agent = NodeAgent::new(&informers, clock, [config]);
    let manager = Manager::new().informers(&informers).add(Start::Always, agent.clone());
    (manager.start(), agent, signals)
}

/// A pod that has so much on disks, with these resources.
fn pod(name: &str, disk: &str, resources: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name,
            "annotations": {"simulated.kplane.dev/disk": disk}},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "image": "i", "resources": resources}]},
        "status": {"phase": "Pending"},
    })
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn who_writes_more_than_its_limit_goes() {
    let (api, clock) = (FakeApi::default(), Arc::new(TokioClock::new()));
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let (running, _, _) = start(&api, runtime, clock, None);
    let limit = json!({"limits": {"ephemeral-storage": "1Gi"}});
    api.put(pod("grows", "100Mi,1m=2Gi", &limit));
    api.put(pod("stays", "100Mi", &limit));
    api.put(pod("free", "100Gi", &json!({})));
    let mut fixed = pod("fixed", "2Gi", &limit);
    fixed["metadata"]["annotations"]["kubernetes.io/config.source"] = json!("file");
    api.put(fixed);
    api.until(|pods| pods.values().all(|pod| phase(pod) == "Running")).await;
    let begun = tokio::time::Instant::now();
    api.until(|pods| phase(&pods["grows"]) == "Failed").await;
    let took = begun.elapsed().as_secs();
    assert!((50..80).contains(&took), "{took}");
    let status = api.pods()["grows"]["status"].clone();
    assert_eq!(status["reason"], "Evicted");
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ";
    assert_eq!(status["message"], message);
    // It is its own fault: no disruption by others.
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    assert!(!conditions.iter().any(|one| one["type"] == "DisruptionTarget"), "{status}");
    api.until_written("/events", |events| {
        events.iter().any(|(_, _, event)| event["reason"] == "Evicted" && event["message"] == message)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    for name in ["stays", "free", "fixed"] {
        assert_eq!(phase(&api.pods()[name]), "Running", "{name}");
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_ends_who_has_most_beyond_its_request() {
    let (api, clock) = (FakeApi::default(), Arc::new(TokioClock::new()));
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let (running, _, signals) = start(&api, runtime, clock, None);
    let asks = |size: &str| json!({"requests": {"ephemeral-storage": size}});
    api.put(pod("asked", "50Gi", &asks("60Gi")));
    api.put(pod("some", "2Gi", &asks("1Gi")));
    api.put(pod("most", "5Gi", &asks("1Gi")));
    api.put(pod("little", "1Gi", &json!({})));
    api.until(|pods| pods.values().all(|pod| phase(pod) == "Running")).await;
    signals.set(Signal::NodeFs, GIB, 100 * GIB);
    api.until(|pods| pods.values().any(|pod| phase(pod) == "Failed")).await;
    signals.set(Signal::NodeFs, 50 * GIB, 100 * GIB);
    let pods = api.pods();
    let gone: Vec<&String> =
        pods.iter().filter(|(_, pod)| phase(pod) == "Failed").map(|(name, _)| name).collect();
    assert_eq!(gone, ["most"]);
    let message = pods["most"]["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. "), "{message}");
    running.stop().await;
}

/// Real files, of a pod whose containers are processes.
#[tokio::test]
async fn directories_are_measured_and_limited() {
    let (api, dir, block) =
        (FakeApi::default(), tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
    let clock = Arc::new(SystemClock);
    let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock.clone());
    let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
    let (_running, agent, _) = start(&api, runtime, clock, Some(&dir.path().join("node")));
    let with = |name: &str, limit: &str| {
        let mut pod = pod(name, "0", &json!({}));
        pod["spec"]["containers"][0]["command"] = json!(["sleep", "1000"]);
        pod["spec"]["volumes"] = json!([{"name": "cache", "emptyDir": {"sizeLimit": limit}}]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
        pod
    };
    api.put(with("small", "1Mi"));
    api.put(with("large", "1Gi"));
    let within = async |is: &dyn Fn(&std::collections::BTreeMap<String, Value>) -> bool| {
        let until = tokio::time::timeout(PATIENCE, api.until(is)).await;
        until.unwrap_or_else(|_| panic!("{:?}", api.pods()));
    };
    within(&|pods| pods.values().all(|pod| phase(pod) == "Running")).await;
    for name in ["small", "large"] {
        let volume = dir.path().join("node/pods").join(name).join("volumes/cache");
        std::fs::write(volume.join("file"), vec![1; 3 << 20]).unwrap();
    }
    let used = summary(&agent).await;
    let of_large =
        used["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "large").unwrap();
    for bytes in [&of_large["volume"][0]["usedBytes"], &of_large["ephemeral-storage"]["usedBytes"]] {
        assert!((3 << 20..4 << 20).contains(&bytes.as_u64().unwrap()), "{of_large}");
    }
    assert_eq!(of_large["volume"][0]["name"], "cache");
    within(&|pods| phase(&pods["small"]) == "Failed").await;
    let pods = api.pods();
    assert_eq!(pods["small"]["status"]["reason"], "Evicted");
    let message = "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ";
    assert_eq!(pods["small"]["status"]["message"], message);
    assert_eq!(phase(&pods["large"]), "Running");
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
