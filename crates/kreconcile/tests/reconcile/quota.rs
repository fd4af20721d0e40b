use std::time::Duration;

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_some},
    fake::FakeApi,
};

fn used(api: &FakeApi) -> Value {
    api.get("resourcequotas", "shop", "limits").unwrap_or_default()["status"]["used"].clone()
}

fn pod(name: &str, cpu: &str) -> Value {
    let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": [container]}})
}

#[tokio::test(start_paused = true)]
async fn a_quota_follows_what_is_used() {
    let start = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let (api, running) = start_some(start, |name| name == "resourcequota-controller");
    let hard = json!({"pods": "10", "requests.cpu": "8", "count/widgets.example.com": "3", "secrets": "4",
        "services.nodeports": "2", "requests.storage": "1Ti", "example.com/unknown": "1"});
    api.add(
        "resourcequotas",
        json!({"metadata": {"name": "limits", "namespace": "shop"}, "spec": {"hard": hard}}),
    );
    let nothing = json!({"pods": "0", "requests.cpu": "0", "count/widgets.example.com": "0", "secrets": "0",
        "services.nodeports": "0", "requests.storage": "0"});
    api.until("what is not used", |api| used(api) == nothing).await;
    assert_eq!(api.get("resourcequotas", "shop", "limits").unwrap()["status"]["hard"], hard);
    at_rest(&api).await;

    api.add("pods", pod("a", "500m"));
    api.add("pods", pod("b", "1"));
    api.add("widgets", json!({"metadata": {"name": "w", "namespace": "shop"}}));
    api.add("widgets", json!({"metadata": {"name": "w", "namespace": "elsewhere"}}));
    let ports = json!([{"port": 80}]);
    api.add(
        "services",
        json!({"metadata": {"name": "s", "namespace": "shop"}, "spec": {"type": "NodePort", "ports": ports}}),
    );
    let storage = json!({"resources": {"requests": {"storage": "10Gi"}}});
    api.add(
        "persistentvolumeclaims",
        json!({"metadata": {"name": "v", "namespace": "shop"}, "spec": storage}),
    );
    let all = json!({"pods": "2", "requests.cpu": "1500m", "count/widgets.example.com": "1", "secrets": "0",
        "services.nodeports": "1", "requests.storage": "10Gi"});
    api.until("all that is used", |api| used(api) == all).await;

    api.edit("pods", "shop", "a", |pod| pod["status"]["phase"] = "Succeeded".into());
    api.remove("widgets", "shop", "w");
    api.edit("services", "shop", "s", |service| service["spec"]["type"] = "ClusterIP".into());
    let less = json!({"pods": "1", "requests.cpu": "1", "count/widgets.example.com": "0", "secrets": "0",
        "services.nodeports": "0", "requests.storage": "10Gi"});
    api.until("less", |api| used(api) == less).await;
    at_rest(&api).await;

    // A pod that does not end is let off when its time is over, without any event.
    api.edit("pods", "shop", "b", |pod| {
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:30:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(used(&api)["pods"], "1");
    api.until("the pod is let off", |api| used(api)["pods"] == "0").await;

    api.edit("resourcequotas", "shop", "limits", |quota| {
        quota["spec"]["hard"] = json!({"count/secrets": "9"})
    });
    api.until("other limits", |api| used(api) == json!({"count/secrets": "0"})).await;
    running.stop().await;
}
