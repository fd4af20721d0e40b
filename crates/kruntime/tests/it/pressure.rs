//! A node that is short of something, over virtual time: what it says, whom it ends, and whom it does not take.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use kcore::TokioClock;
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    NodeAgent, NodeConfig,
    eviction::{Amount, EvictionOptions, Signal, THRESHOLDS, Threshold},
    runtime::simulated::SimulatedRuntime,
    signals::SetSignals,
};
use serde_json::{Value, json};

use crate::fake::FakeApi;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

fn start(api: &FakeApi, thresholds: Vec<Threshold>, grace: u64) -> (Running, Arc<SetSignals>) {
    let clock = Arc::new(TokioClock::new());
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let informers = Informers::new(api.client());
    let signals = Arc::new(SetSignals::default());
    let mut options = EvictionOptions::new(signals.clone());
    options.thresholds = thresholds;
    options.grace_seconds_max = grace;
    let mut config = NodeConfig::new("node-0", runtime);
    config.eviction = Some(options);
    config.events = true;
    let agent = NodeAgent::new(&informers, clock, [config]);
    let manager = Manager::new().informers(&informers).add(Start::Always, agent);
    (manager.start(), signals)
}

/// A pod with this request of memory that holds so much of it.
fn pod(name: &str, request: &str, memory: &str, annotations: &Value) -> Value {
    let resources = if request.is_empty() { json!({}) } else { json!({"requests": {"memory": request}}) };
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1, "annotations": annotations},
        "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": "i", "resources": resources}]},
        "status": {"phase": "Pending"},
    });
    object["metadata"]["annotations"]["simulated.kplane.dev/memory"] = json!(memory);
    object
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// The last state of a condition of the node that was written.
fn condition(api: &FakeApi, type_: &str) -> Value {
    let writes = api.writes_to("/nodes");
    let of = |body: &Value| {
        let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == type_)
    };
    writes.iter().rev().find_map(|(_, _, body)| of(body)).unwrap_or_default()
}

fn reasons(api: &FakeApi) -> Vec<String> {
    let events = api.writes_to("/events");
    events.iter().filter_map(|(_, _, event)| event["reason"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn memory_pressure_ends_one_pod_at_a_time_and_keeps_others_out() {
    let api = FakeApi::default();
    let (running, signals) = start(&api, THRESHOLDS.to_vec(), 0);
    api.put(pod("modest", "2Gi", "1Gi", &json!({})));
    api.put(pod("greedy", "1Gi", "3Gi", &json!({"simulated.kplane.dev/stop-delay": "5m"})));
    api.put(pod("static", "", "4Gi", &json!({"kubernetes.io/config.source": "file"})));
    api.until(|pods| pods.values().all(|pod| phase(pod) == "Running")).await;
    assert_eq!(condition(&api, "MemoryPressure")["status"], "False");

    signals.set(Signal::Memory, 50 * MIB, 8 * GIB);
    let begun = tokio::time::Instant::now();
    api.until(|pods| phase(&pods["greedy"]) == "Failed").await;
    assert!(begun.elapsed() <= Duration::from_secs(12), "a look every ten seconds, and one second of grace");
    // What was freed is not known before the next look, but by then it is.
    signals.set(Signal::Memory, 3 * GIB, 8 * GIB);
    api.until(|pods| {
        let status = &pods["greedy"]["status"];
        let said = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was \
                    using 3Gi, request is 1Gi, has larger consumption of memory. ";
        let disrupted = status["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|c| {
                c["type"] == "DisruptionTarget"
                    && c["status"] == "True"
                    && c["reason"] == "TerminationByKubelet"
                    && c["message"] == said
            })
        });
        assert!(status["message"] == said && status["reason"] == "Evicted", "{status}");
        disrupted && status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    })
    .await;
    api.until_written("/events", |_| {
        let reasons = reasons(&api);
        ["EvictionThresholdMet", "NodeHasInsufficientMemory", "Evicted"]
            .iter()
            .all(|r| reasons.iter().any(|known| known == r))
    })
    .await;
    api.until_written("/nodes", |_| condition(&api, "MemoryPressure")["status"] == "True").await;
    let pressed = condition(&api, "MemoryPressure");
    assert_eq!(pressed["reason"], "KubeletHasInsufficientMemory");
    assert_eq!(pressed["message"], "kubelet has insufficient memory available");

    // While the condition lasts only pods that ask for resources are taken.
    api.put(pod("best-effort", "", "1Mi", &json!({})));
    api.put(pod("burstable", "1Mi", "1Mi", &json!({})));
    api.until(|pods| phase(&pods["best-effort"]) == "Failed" && phase(&pods["burstable"]) == "Running").await;
    api.until(|pods| {
        let status = &pods["best-effort"]["status"];
        assert_eq!(status["reason"], "Evicted");
        assert_eq!(status["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
        assert_eq!(status["containerStatuses"], Value::Null, "nothing of it was begun");
        phase(&pods["modest"]) == "Running" && phase(&pods["static"]) == "Running"
    })
    .await;

    // Five minutes after its last cause it ends, and anybody is taken.
    let begun = tokio::time::Instant::now();
    api.until_written("/nodes", |_| condition(&api, "MemoryPressure")["status"] == "False").await;
    let lasted = begun.elapsed().as_secs();
    assert!((280..=320).contains(&lasted), "{lasted}");
    assert!(condition(&api, "MemoryPressure")["lastTransitionTime"] != pressed["lastTransitionTime"]);
    api.put(pod("late", "", "1Mi", &json!({})));
    api.until(|pods| phase(&pods["late"]) == "Running").await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_soft_threshold_waits_and_lets_pods_end_in_their_own_time() {
    let api = FakeApi::default();
    let soft = Threshold {
        signal: Signal::NodeFs,
        below: Amount::Percent(20),
        grace: SignedDuration::from_secs(60),
        reclaim: Amount::Absolute(0),
    };
    let (running, signals) = start(&api, vec![soft], 20);
    api.put(pod("web", "", "1Mi", &json!({"simulated.kplane.dev/stop-delay": "5m"})));
    api.until(|pods| phase(&pods["web"]) == "Running").await;
    signals.set(Signal::NodeFs, GIB, 10 * GIB);
    let begun = tokio::time::Instant::now();
    api.until_written("/nodes", |_| condition(&api, "DiskPressure")["status"] == "True").await;
    assert_eq!(condition(&api, "DiskPressure")["reason"], "KubeletHasDiskPressure");
    api.until_written("/events", |_| reasons(&api).iter().any(|reason| reason == "Killing")).await;
    let waited = begun.elapsed().as_secs();
    assert!((60..=80).contains(&waited), "{waited}");
    api.until(|pods| {
        // Until its containers have ended the pod still runs.
        assert!(["Running", "Failed"].contains(&phase(&pods["web"])));
        phase(&pods["web"]) == "Failed"
    })
    .await;
    let ended = begun.elapsed().as_secs() - waited;
    assert!((19..=22).contains(&ended), "{ended}");
    running.stop().await;
}

/// What is not measured, or not below a threshold, changes nothing; and neither does a node without options.
#[tokio::test(start_paused = true)]
async fn a_node_with_enough_of_everything_does_nothing() {
    let api = FakeApi::default();
    let (running, signals) = start(&api, THRESHOLDS.to_vec(), 0);
    api.put(pod("web", "", "1Mi", &json!({})));
    api.until(|pods| phase(&pods["web"]) == "Running").await;
    signals.set(Signal::Memory, 100 * MIB, 8 * GIB);
    signals.set(Signal::Pids, 0, 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for type_ in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(condition(&api, type_)["status"], "False", "{type_}");
    }
    assert!(!reasons(&api).iter().any(|reason| reason == "EvictionThresholdMet"));
    api.until(|pods| phase(&pods["web"]) == "Running").await;
    running.stop().await;
}
