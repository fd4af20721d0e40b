use std::time::Duration;

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, deployment, start_some, until},
    fake::FakeApi,
};

fn budget(spec: &Value) -> Value {
    let mut budget = json!({"metadata": {"name": "calm", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    for (key, value) in spec.as_object().unwrap() {
        budget["spec"][key] = value.clone();
    }
    budget
}

/// Allowed, current, desired and expected.
fn counts(api: &FakeApi) -> [Value; 4] {
    let status = api.get("poddisruptionbudgets", "shop", "calm").unwrap_or_default()["status"].clone();
    ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"].map(|key| status[key].clone())
}

fn pod_names(api: &FakeApi) -> Vec<String> {
    api.list("pods").iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn reasons(api: &FakeApi) -> Vec<String> {
    api.list("events").iter().map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_budget_follows_the_pods_of_a_deployment() {
    let (api, running) = start_some(TokioClock::new(), |name| {
        ["disruption-controller", "deployment-controller", "replicaset-controller"].contains(&name)
    });
    api.add("poddisruptionbudgets", budget(&json!({"maxUnavailable": "25%"})));
    until(&api, "a budget without pods", |api| counts(api) == [0, 0, 0, 0]).await;
    api.add("deployments", deployment(8));
    until(&api, "eight healthy pods", |api| counts(api) == [2, 8, 6, 8]).await;
    let calm = api.get("poddisruptionbudgets", "shop", "calm").unwrap();
    assert_eq!(calm["status"]["observedGeneration"], 1);
    let condition = &calm["status"]["conditions"][0];
    assert_eq!((&condition["reason"], &condition["status"]), (&json!("SufficientPods"), &json!("True")));
    at_rest(&api).await;

    // One is evicted, as the API server counts it; it is not deleted in time and counts again.
    let first = pod_names(&api).remove(0);
    api.edit("poddisruptionbudgets", "shop", "calm", |calm| {
        calm["status"]["disruptionsAllowed"] = 1.into();
        calm["status"]["disruptedPods"] = json!({&first: "1970-01-01T00:00:00Z"});
    });
    api.until("the late pod to be told", |api| reasons(api).iter().any(|reason| reason == "NotDeleted"))
        .await;
    until(&api, "it counts again", |api| counts(api) == [2, 8, 6, 8]).await;
    let second = pod_names(&api).remove(1);
    let created = api.get("pods", "shop", &second).unwrap()["metadata"]["creationTimestamp"].clone();
    assert!(created.is_string());
    api.edit("pods", "shop", &second, |pod| pod["status"]["conditions"][0]["status"] = "False".into());
    until(&api, "one fewer", |api| counts(api) == [1, 7, 6, 8]).await;

    // What nobody owns can't be counted in shares.
    api.add("pods", json!({"metadata": {"name": "bare", "namespace": "shop", "labels": {"app": "web"}}}));
    api.until("the bare pod to be told", |api| reasons(api).iter().any(|reason| reason == "UnmanagedPods"))
        .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_custom_controllers_are_counted_by_their_scale() {
    let (api, running) = start_some(TokioClock::new(), |name| name == "disruption-controller");
    let owner = |kind: &str| json!([{"apiVersion": "example.com/v1", "kind": kind, "name": "w", "uid": kind, "controller": true}]);
    let add_pod = |name: &str, kind: &str| {
        let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        api.add(
            "pods",
            json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"},
            "ownerReferences": owner(kind)}, "status": status}),
        );
    };
    api.add(
        "widgets",
        json!({"metadata": {"name": "w", "namespace": "shop", "uid": "Widget"}, "spec": {"replicas": 4}}),
    );
    api.add("poddisruptionbudgets", budget(&json!({"minAvailable": "50%"})));
    for name in ["a", "b", "c"] {
        add_pod(name, "Widget");
    }
    api.until("the scale of the widget", |api| counts(api) == [1, 3, 2, 4]).await;
    at_rest(&api).await;

    add_pod("lost", "Nothing");
    api.until("a failure", |api| counts(api)[0] == 0).await;
    let calm = api.get("poddisruptionbudgets", "shop", "calm").unwrap();
    let condition = &calm["status"]["conditions"][0];
    assert_eq!(condition["reason"], "SyncFailed");
    assert_eq!(condition["message"], "no matches for kind \"Nothing\" in version \"example.com/v1\"");
    api.until("the event", |api| reasons(api).iter().any(|why| why == "CalculateExpectedPodCountFailed"))
        .await;
    at_rest(&api).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_to_be_disrupted_and_stays_is_no_longer_marked() {
    let (api, running) =
        start_some(TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap()), |name| {
            name == "disruption-controller"
        });
    let conditions = json!([{"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "True",
        "reason": "EvictionByEvictionAPI", "lastTransitionTime": "2030-01-01T00:00:00Z"}]);
    api.add(
        "pods",
        json!({"metadata": {"name": "p", "namespace": "shop"},
        "status": {"phase": "Running", "conditions": conditions}}),
    );
    tokio::time::sleep(Duration::from_secs(119)).await;
    let marked = |api: &FakeApi| api.get("pods", "shop", "p").unwrap()["status"]["conditions"].clone();
    assert_eq!(marked(&api)[1]["status"], "True");
    api.until("the mark to go", |api| marked(api)[1]["status"] == "False").await;
    let expected = json!([{"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "False",
        "lastTransitionTime": "2030-01-01T00:02:00Z", "observedGeneration": 1}]);
    assert_eq!(marked(&api), expected);
    running.stop().await;
}
