//! Nodes that look after themselves, in whole clusters with tokio's time paused.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, ServiceAccount},
};
use kplane::Cluster;
use kruntime::{
    eviction::{EvictionOptions, Signal},
    signals::SetSignals,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Longer than anything that a test waits for; it passes in no time.
const AGES: Duration = Duration::from_secs(3600);

async fn ready(cluster: &Cluster) {
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until::<ServiceAccount>("default", "default", AGES, there).await.unwrap();
}

fn value<K: serde::Serialize>(object: Option<&K>) -> Value {
    serde_json::to_value(object).unwrap()
}

fn condition(object: &Value, type_: &str) -> Value {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}

/// Pods that had to go come back elsewhere, as the node life-cycle controller turns the condition into a taint.
#[tokio::test(start_paused = true)]
async fn a_node_short_of_memory_loses_its_pods_to_others() {
    const GIB: u64 = 1 << 30;
    let signals = Arc::new(SetSignals::default());
    let of_node = signals.clone();
    let cluster = Cluster::builder()
        .nodes(2)
        .configure_node(move |node| {
            if &*node.name == "node-1" {
                node.eviction = Some(EvictionOptions::new(of_node.clone()));
            }
        })
        .start()
        .await
        .unwrap();
    ready(&cluster).await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client());
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 4,
        "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    api.create(&PostParams::default(), &serde_json::from_value(web).unwrap()).await.unwrap();
    let all = |deployment: Option<&Deployment>| value(deployment)["status"]["availableReplicas"] == 4;
    cluster.wait_until::<Deployment>("default", "web", AGES, all).await.unwrap();

    signals.set(Signal::Memory, GIB / 64, 8 * GIB);
    let tainted = |node: Option<&Node>| {
        let node = value(node);
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        condition(&node, "MemoryPressure")["status"] == "True"
            && taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure")
    };
    cluster.wait_until::<Node>("", "node-1", AGES, tainted).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let moved = async {
        loop {
            let list = pods.list(&ListParams::default().labels("app=web")).await.unwrap();
            let list: Vec<Value> = list.items.iter().map(|pod| value(Some(pod))).collect();
            let there =
                |pod: &&Value| pod["spec"]["nodeName"] == "node-2" && pod["status"]["phase"] == "Running";
            if list.iter().filter(there).count() == 4 {
                return list;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let list = tokio::time::timeout(AGES, moved).await.unwrap();
    let failed = list.iter().filter(|pod| pod["status"]["phase"] == "Failed");
    let mut ended = 0;
    for pod in failed {
        assert_eq!(
            (&pod["status"]["reason"], &pod["spec"]["nodeName"]),
            (&json!("Evicted"), &json!("node-1"))
        );
        // Those that came before the taint did were not taken: nothing of them was disrupted.
        let was_refused = pod["status"]["message"].as_str().unwrap().starts_with("Pod was rejected: ");
        let expected = if was_refused { json!(null) } else { json!("TerminationByKubelet") };
        assert_eq!(condition(pod, "DisruptionTarget")["reason"], expected, "{pod}");
        ended += usize::from(!was_refused);
    }
    assert!(ended > 0);
    signals.set(Signal::Memory, GIB, 8 * GIB);
    cluster.wait_until::<Node>("", "node-1", AGES, |node| !tainted(node)).await.unwrap();
    cluster.shutdown().await.unwrap();
}

/// The API server takes a node's mirrors, and nobody gets rid of a static pod by them.
#[tokio::test(start_paused = true)]
async fn a_static_pod_has_a_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    std::fs::write(dir.path().join("web.yaml"), manifest.to_string()).unwrap();
    let place = dir.path().to_owned();
    let cluster = Cluster::builder()
        .nodes(1)
        .configure_node(move |node| node.static_pods = Some(place.clone()))
        .start()
        .await
        .unwrap();
    let runs = |pod: Option<&Pod>| {
        let pod = value(pod);
        pod["status"]["phase"] == "Running"
            && pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string()
    };
    let first = cluster.wait_until::<Pod>("default", "web-node-1", AGES, runs).await.unwrap().unwrap();
    let owner = &first.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Node", "node-1"));
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    pods.delete("web-node-1", &DeleteParams::default()).await.unwrap();
    let again =
        |pod: Option<&Pod>| runs(pod) && pod.is_some_and(|pod| pod.metadata.uid != first.metadata.uid);
    cluster.wait_until::<Pod>("default", "web-node-1", AGES, again).await.unwrap();
    std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
    cluster.wait_until::<Pod>("default", "web-node-1", AGES, |pod| pod.is_none()).await.unwrap();
    cluster.shutdown().await.unwrap();
}

/// By the subresource `resize` (KEP-1287).
#[tokio::test(start_paused = true)]
async fn a_pod_is_resized_in_place() {
    let cluster = Cluster::builder().nodes(1).start().await.unwrap();
    ready(&cluster).await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let amounts = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": "1Gi"}});
    let runs = |pod: Option<&Pod>| value(pod)["status"]["phase"] == "Running";
    for name in ["web", "other"] {
        let container = json!({"name": "c", "image": "x", "resources": amounts("1")});
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        cluster.wait_until::<Pod>("default", name, AGES, runs).await.unwrap();
    }
    let resize = async |cpu: &str| {
        let patch = json!({"spec": {"containers": [{"name": "c", "resources": amounts(cpu)}]}});
        pods.patch_subresource("resize", "web", &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .unwrap();
    };
    let has = |pod: Option<&Pod>, cpu: &str| {
        let pod = value(pod);
        let status = &pod["status"]["containerStatuses"][0];
        status["resources"]["limits"]["cpu"] == cpu
            && status["allocatedResources"]["cpu"] == cpu
            && status["restartCount"] == 0
            && condition(&pod, "PodResizePending").is_null()
            && condition(&pod, "PodResizeInProgress").is_null()
    };
    resize("2").await;
    cluster.wait_until::<Pod>("default", "web", AGES, |pod| has(pod, "2")).await.unwrap();
    // As much as the node has, but not as much as is left of it: admission refuses only more than that.
    resize("4").await;
    let put_off = |pod: Option<&Pod>| condition(&value(pod), "PodResizePending")["reason"] == "Deferred";
    cluster.wait_until::<Pod>("default", "web", AGES, put_off).await.unwrap();
    resize("3").await;
    cluster.wait_until::<Pod>("default", "web", AGES, |pod| has(pod, "3")).await.unwrap();
    cluster.shutdown().await.unwrap();
}
