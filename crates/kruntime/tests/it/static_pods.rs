//! Pods from a node's own files, over virtual time.

use std::{path::Path, sync::Arc, time::Duration};

use kcore::TokioClock;
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{ContainerRuntime, NodeAgent, NodeConfig, PodUid, runtime::simulated::SimulatedRuntime};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const NAME: &str = "web-node-0";

fn start(api: &FakeApi, place: &Path) -> (Running, NodeAgent, Arc<SimulatedRuntime>) {
    let clock = Arc::new(TokioClock::new());
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node-0", runtime.clone());
    config.static_pods = Some(place.to_owned());
    config.events = true;
    let agent = NodeAgent::new(&informers, clock, [config]);
    let manager = Manager::new().informers(&informers).add(Start::Always, agent.clone());
    (manager.start(), agent, runtime)
}

fn manifest(image: &str, more: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": more},
        "spec": {"containers": [{"name": "c", "image": image}]}})
    .to_string()
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn mirror(pod: &Value) -> &str {
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].as_str().unwrap_or_default()
}

/// Waits for what nobody tells of: the runtime's pods.
async fn until(runtime: &SimulatedRuntime, is: impl Fn(&[PodUid]) -> bool) {
    while !is(&runtime.pods()) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_a_pod_and_its_mirror_comes_back() {
    let api = FakeApi::default();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    std::fs::write(&file, manifest("web:1", &json!({"simulated.kplane.dev/log": "hello"}))).unwrap();
    let (running, agent, runtime) = start(&api, dir.path());
    api.until(|pods| pods.get(NAME).is_some_and(|pod| phase(pod) == "Running")).await;
    let uid = runtime.pods()[0].clone();
    api.until(|pods| {
        let meta = &pods[NAME]["metadata"];
        assert_eq!(mirror(&pods[NAME]), uid.as_str());
        assert_eq!(meta["annotations"]["kubernetes.io/config.source"], "file");
        assert!(meta["annotations"]["kubernetes.io/config.seen"].is_string());
        assert_eq!(meta["ownerReferences"][0]["uid"], "uid-of-node-0");
        assert_ne!(meta["uid"], uid.as_str(), "the API gives its own");
        true
    })
    .await;
    // Who asks by the mirror's uid means the pod.
    let shown = api.pods()[NAME]["metadata"]["uid"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(agent.pod_stats(&[PodUid::from(&*shown)]).await[0].is_some());

    // A mirror that is deleted was only a picture: the pod goes on, and a new one is made.
    api.change(NAME, |pod| pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"));
    api.until(|pods| {
        pods.get(NAME).is_some_and(|pod| pod["metadata"]["uid"] != shown.as_str() && phase(pod) == "Running")
    })
    .await;
    api.remove(NAME);
    api.until(|pods| pods.get(NAME).is_some_and(|pod| phase(pod) == "Running")).await;
    assert_eq!(runtime.pods(), std::slice::from_ref(&uid));

    // A changed file is another pod, which begins when the first one has ended.
    std::fs::write(&file, manifest("web:2", &json!({}))).unwrap();
    api.until(|pods| {
        assert!(runtime.pods().len() <= 1, "one after the other");
        pods.get(NAME).is_some_and(|pod| mirror(pod) != uid.as_str() && phase(pod) == "Running")
    })
    .await;
    assert_eq!(api.pods()[NAME]["spec"]["containers"][0]["image"], "web:2");

    std::fs::remove_file(&file).unwrap();
    api.until(|pods| !pods.contains_key(NAME)).await;
    until(&runtime, <[PodUid]>::is_empty).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn static_pods_need_no_api() {
    let api = FakeApi::default();
    api.set_away(true);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("web.json"), manifest("web:1", &json!({}))).unwrap();
    let (running, _agent, runtime) = start(&api, dir.path());
    until(&runtime, |pods| pods.iter().any(|pod| runtime.observe(pod).containers.len() == 1)).await;
    assert!(api.pods().is_empty());
    // It is told of when the API comes back.
    api.set_away(false);
    api.until(|pods| pods.get(NAME).is_some_and(|pod| phase(pod) == "Running")).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn wrong_files_are_told_of_and_orphans_go() {
    let api = FakeApi::default();
    // A mirror of a pod that was there before the agent was started.
    let annotations = json!({"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "file"});
    api.put(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "old-node-0", "namespace": "default", "uid": "old", "annotations": annotations},
        "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}}));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    std::fs::write(&file, "kind: Pod").unwrap();
    let (running, _agent, runtime) = start(&api, dir.path());
    api.until(|pods| pods.is_empty()).await;
    let about = |events: &[crate::fake::Write]| -> Vec<String> {
        let wrong = events.iter().filter(|(_, _, event)| event["reason"] == "InvalidManifest");
        wrong.map(|(_, _, event)| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    };
    api.until_written("/events", |events| !about(events).is_empty()).await;
    assert!(about(&api.writes_to("/events"))[0].contains("apiVersion is null"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(about(&api.writes_to("/events")).len(), 1, "once for each state of the file");
    assert!(runtime.pods().is_empty(), "a mirror alone runs nothing");
    std::fs::write(&file, manifest("web:1", &json!({}))).unwrap();
    api.until(|pods| pods.get(NAME).is_some_and(|pod| phase(pod) == "Running")).await;
    running.stop().await;
}
