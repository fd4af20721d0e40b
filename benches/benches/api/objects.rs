//! The objects that are measured.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::{Api, Client, api::PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A ConfigMap with 1 KiB of data.
pub(crate) fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": "x".repeat(1024)},
    })
}

/// A pod as a small Deployment makes it. Stored, with its defaults, the account's volume and the owners of its fields, it has
/// about 2.5 KiB.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web", "pod-template-hash": "5d59d67564"}},
        "spec": {"containers": [{
            "name": "web", "image": "registry.example.com/web:1.27.4",
            "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": "LOG_FORMAT", "value": "json"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        }]},
    })
}

/// The object as its Rust type.
pub(crate) fn typed<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("an object of its type")
}

/// The account that pods run as unless they name one; a controller makes it in a whole cluster.
pub(crate) async fn create_account(client: &Client) {
    let account: ServiceAccount = typed(json!({"metadata": {"name": "default"}}));
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts.create(&PostParams::default(), &account).await.expect("a service account");
}

/// Prints how many bytes of JSON the objects have as the server keeps them.
pub(crate) async fn print_sizes(client: &Client) {
    let (maps, pods) = (
        Api::<ConfigMap>::default_namespaced(client.clone()),
        Api::<Pod>::default_namespaced(client.clone()),
    );
    let parameters = PostParams::default();
    let map = maps.create(&parameters, &typed(config_map("sized"))).await.expect("created");
    let pod = pods.create(&parameters, &typed(pod("sized"))).await.expect("created");
    let size = |json: Result<String, serde_json::Error>| json.expect("JSON").len() as f64;
    kplane_benches::figure("configmap_1k_json", size(serde_json::to_string(&map)), "bytes");
    kplane_benches::figure("pod_2k_json", size(serde_json::to_string(&pod)), "bytes");
}
