use std::{sync::Arc, time::Duration};

use http::Method;
use kcore::TokioClock;
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{NodeAgent, NodeConfig, agent::shutdown_periods, runtime::simulated::SimulatedRuntime};
use serde_json::{Value, json};

use crate::fake::FakeApi;

fn start(api: &FakeApi, nodes: usize) -> (Running, NodeAgent, Arc<SimulatedRuntime>) {
    let clock = Arc::new(TokioClock::new());
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let informers = Informers::new(api.client());
    let configs = (0..nodes).map(|n| NodeConfig::new(format!("node-{n}"), runtime.clone()));
    let agent = NodeAgent::new(&informers, clock, configs);
    let manager = Manager::new().informers(&informers).add(Start::Always, agent.clone());
    (manager.start(), agent, runtime)
}

fn pod(name: &str, node: usize, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1, "annotations": annotations},
        "spec": {"nodeName": format!("node-{node}"), "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Pending"},
    })
}

fn phase<'a>(pods: &'a std::collections::BTreeMap<String, Value>, name: &str) -> &'a str {
    pods.get(name).and_then(|pod| pod["status"]["phase"].as_str()).unwrap_or("gone")
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_starts_costs_one_write() {
    let api = FakeApi::default();
    let (running, _agent, _runtime) = start(&api, 10);
    for number in 0..100 {
        api.put(pod(&format!("p{number}"), number % 10, &json!({})));
    }
    api.until(|pods| pods.values().all(|pod| pod["status"]["phase"] == "Running")).await;
    assert_eq!(api.pod_writes().len(), 100);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_end_by_themselves_and_by_deletion() {
    let api = FakeApi::default();
    let (running, _agent, runtime) = start(&api, 1);
    api.put(pod("job", 0, &json!({"simulated.kplane.dev/run-time": "1h"})));
    api.put(pod("slow", 0, &json!({"simulated.kplane.dev/stop-delay": "90s"})));
    api.until(|pods| phase(pods, "job") == "Succeeded").await;
    let begun = tokio::time::Instant::now();
    api.change("slow", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    });
    api.until(|pods| phase(pods, "slow") == "gone").await;
    assert_eq!(begun.elapsed(), Duration::from_secs(30), "it is killed when its grace is over");
    let (last, before) = {
        let writes = api.pod_writes();
        let mut of_slow = writes.into_iter().rev().filter(|(_, path, _)| path.contains("/pods/slow"));
        (of_slow.next().unwrap(), of_slow.next().unwrap())
    };
    assert_eq!((last.0, &last.2["gracePeriodSeconds"]), (Method::DELETE, &json!(0)));
    assert_eq!(before.2["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    assert_eq!(kruntime::ContainerRuntime::pods(&*runtime).len(), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_says_nothing_more() {
    let api = FakeApi::default();
    let (running, agent, runtime) = start(&api, 2);
    api.put(pod("a", 0, &json!({})));
    api.put(pod("b", 1, &json!({"simulated.kplane.dev/run-time": "1m"})));
    api.until(|pods| pods.values().all(|pod| pod["status"]["phase"] == "Running")).await;
    assert!(agent.stop_node("node-0").await);
    assert!(!agent.stop_node("node-0").await);
    api.until(|pods| phase(pods, "b") == "Succeeded").await;
    api.until(|pods| phase(pods, "a") == "Running").await;
    assert_eq!(kruntime::ContainerRuntime::pods(&*runtime).len(), 1);
    running.stop().await;
}

/// RuntimeClasses (KEP-585): their handler is the runtime's to know, and a pod whose class can't be had waits and says why.
#[tokio::test(start_paused = true)]
async fn a_runtime_class_chooses_the_handler() {
    let api = FakeApi::default();
    let clock = Arc::new(TokioClock::new());
    let script = Arc::new(kruntime::runtime::simulated::AnnotationScript);
    let handlers = vec!["special-handler".to_owned()];
    let runtime = Arc::new(SimulatedRuntime::with_handlers(clock.clone(), script, handlers));
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node-0", runtime);
    config.events = true;
    let agent = NodeAgent::new(&informers, clock, [config]);
    let running = Manager::new().informers(&informers).add(Start::Always, agent).start();
    for class in ["special", "other", "none"] {
        let mut pod = pod(class, 0, &json!({}));
        pod["spec"]["runtimeClassName"] = json!(class);
        api.put(pod);
    }
    api.until(|pods| phase(pods, "special") == "Running").await;
    for (name, expected) in [
        ("other", "Failed to create pod sandbox: no runtime for \"other-handler\" is configured"),
        ("none", "Failed to create pod sandbox: RuntimeClass \"none\" not found"),
    ] {
        let told = |event: &Value| {
            event["reason"] == "FailedCreatePodSandBox"
                && [&event["involvedObject"], &event["regarding"]].iter().any(|about| about["name"] == name)
                && [&event["message"], &event["note"]].iter().any(|said| **said == expected)
        };
        api.until_written("/events", |events| events.iter().any(|(_, _, event)| told(event))).await;
        api.until(|pods| phase(pods, name) == "Pending").await;
    }
    let handlers = &api.writes_to("/nodes")[0].2["status"]["runtimeHandlers"];
    assert_eq!(*handlers, json!([{"name": ""}, {"name": "special-handler"}]));
    running.stop().await;
}

/// Graceful node shutdown (KEP-2000): the node is not ready and takes nothing, and critical pods end last.
#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_ends_its_pods_in_their_order() {
    let api = FakeApi::default();
    let (running, agent, _runtime) = start(&api, 1);
    let stop_delay = |delay: &str| json!({"simulated.kplane.dev/stop-delay": delay});
    for (name, delay, priority, own_grace) in [
        ("quick", "5s", 0, 30),
        ("slow", "10m", 0, 30),
        ("short", "10m", 7, 3),
        ("critical", "4s", 2_000_000_000, 30),
    ] {
        let mut pod = pod(name, 0, &stop_delay(delay));
        pod["spec"]["priority"] = json!(priority);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(own_grace);
        api.put(pod);
    }
    api.until(|pods| pods.values().all(|pod| pod["status"]["phase"] == "Running")).await;
    let begun = tokio::time::Instant::now();
    let ends = agent.clone();
    let ending = tokio::spawn(async move {
        ends.shut_down("node-0", &shutdown_periods(Duration::from_secs(30), Duration::from_secs(10))).await
    });
    let ended = |name: &'static str, seconds: std::ops::RangeInclusive<u64>| {
        let api = api.clone();
        async move {
            api.until(|pods| phase(pods, name) == "Failed").await;
            let after = begun.elapsed().as_secs();
            assert!(seconds.contains(&after), "{name} ended after {after} s");
        }
    };
    ended("short", 3..=3).await;
    ended("quick", 5..=5).await;
    api.put(pod("late", 0, &json!({})));
    api.until(|pods| phase(pods, "late") == "Failed").await;
    assert_eq!(api.pods()["late"]["status"]["reason"], "NodeShutdown");
    api.until(|pods| phase(pods, "critical") == "Running").await;
    ended("slow", 20..=20).await;
    ended("critical", 24..=25).await;
    assert_eq!(ending.await.unwrap(), Some(Vec::new()));
    for name in ["quick", "slow", "short", "critical"] {
        let status = &api.pods()[name]["status"];
        assert_eq!(status["reason"], "Terminated", "{name}");
        assert_eq!(status["message"], "Pod was terminated in response to imminent node shutdown.");
        let conditions = status["conditions"].as_array().unwrap();
        assert!(
            conditions
                .iter()
                .any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet")
        );
    }
    let not_ready = |body: &Value| {
        let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| {
            c["type"] == "Ready" && c["status"] == "False" && c["message"] == "node is shutting down"
        })
    };
    api.until_written("/nodes", |writes| writes.iter().any(|(_, _, body)| not_ready(body))).await;
    assert_eq!(agent.shut_down("nowhere", &[]).await, None);
    running.stop().await;
}
