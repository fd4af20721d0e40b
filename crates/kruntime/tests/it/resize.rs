//! Changes of what containers may use, over virtual time.

use std::sync::Arc;

use kcore::TokioClock;
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{NodeAgent, NodeConfig, PodUid, runtime::simulated::SimulatedRuntime};
use serde_json::{Value, json};

use crate::fake::FakeApi;

fn start(api: &FakeApi) -> (Running, Arc<SimulatedRuntime>) {
    let clock = Arc::new(TokioClock::new());
    let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
    let informers = Informers::new(api.client());
    // 4 processors and 16 GiB.
    let mut config = NodeConfig::new("node-0", runtime.clone());
    config.events = true;
    let agent = NodeAgent::new(&informers, clock, [config]);
    (Manager::new().informers(&informers).add(Start::Always, agent).start(), runtime)
}

fn pod(name: &str, cpu: &str, policy: &Value) -> Value {
    let amounts = json!({"cpu": cpu, "memory": "1Gi"});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1},
        "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": "i", "resizePolicy": policy,
            "resources": {"requests": amounts, "limits": amounts}}]},
        "status": {"phase": "Pending"},
    })
}

fn resize(api: &FakeApi, name: &str, cpu: &str) {
    api.change(name, |pod| {
        let generation = pod["metadata"]["generation"].as_i64().unwrap() + 1;
        pod["metadata"]["generation"] = json!(generation);
        let resources = &mut pod["spec"]["containers"][0]["resources"];
        resources["requests"]["cpu"] = json!(cpu);
        resources["limits"]["cpu"] = json!(cpu);
    });
}

fn condition(pod: &Value, type_: &str) -> Value {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}

fn given(pod: &Value) -> (&str, &str, i64) {
    let status = &pod["status"]["containerStatuses"][0];
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    (
        text("/allocatedResources/cpu"),
        text("/resources/limits/cpu"),
        status["restartCount"].as_i64().unwrap_or(-1),
    )
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_more_when_there_is_room() {
    let api = FakeApi::default();
    let (running, runtime) = start(&api);
    let runs = |pod: &Value| pod["status"]["phase"] == "Running";
    let restart = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    api.put(pod("web", "1", &json!([])));
    api.put(pod("db", "2", &restart));
    api.until(|pods| pods.values().all(runs)).await;
    let quota = |name: &str| runtime.resources(&PodUid::from(name), "c").unwrap().cpu_quota_us;
    assert_eq!((quota("web"), quota("db")), (Some(100_000), Some(200_000)));

    // Without a restart.
    resize(&api, "web", "2");
    api.until(|pods| given(&pods["web"]) == ("2", "2", 0)).await;
    assert_eq!(quota("web"), Some(200_000));
    api.until(|pods| condition(&pods["web"], "PodResizeInProgress").is_null()).await;

    // More than there is in all, and more than there is now.
    resize(&api, "web", "5");
    api.until(|pods| condition(&pods["web"], "PodResizePending")["reason"] == "Infeasible").await;
    api.until(|pods| {
        let pending = condition(&pods["web"], "PodResizePending");
        assert_eq!(
            pending["message"],
            "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000"
        );
        assert_eq!(given(&pods["web"]), ("2", "2", 0));
        true
    })
    .await;
    resize(&api, "web", "3");
    api.until(|pods| condition(&pods["web"], "PodResizePending")["reason"] == "Deferred").await;
    let said = condition(&api.pods()["web"], "PodResizePending")["message"].clone();
    assert_eq!(said, "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000");
    assert_eq!(quota("web"), Some(200_000));

    // The other one takes less, by a restart that is no crash, and what it leaves is given away at once.
    let begun = tokio::time::Instant::now();
    resize(&api, "db", "1");
    api.until(|pods| given(&pods["db"]) == ("1", "1", 1) && runs(&pods["db"])).await;
    api.until(|pods| given(&pods["web"]) == ("3", "3", 0)).await;
    api.until(|pods| condition(&pods["web"], "PodResizePending").is_null()).await;
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert_eq!((quota("web"), quota("db")), (Some(300_000), Some(100_000)));
    let killed = api.writes_to("/events").into_iter().any(|(_, _, event)| {
        [&event["message"], &event["note"]].iter().any(|said| **said == "Container c resize requires restart")
    });
    assert!(killed);

    // A pod that ends makes room, too.
    resize(&api, "web", "4");
    api.until(|pods| condition(&pods["web"], "PodResizePending")["reason"] == "Deferred").await;
    api.remove("db");
    api.until(|pods| given(&pods["web"]) == ("4", "4", 0)).await;
    running.stop().await;
}
