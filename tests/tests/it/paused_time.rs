//! With tokio's time paused, minutes of the cluster pass in milliseconds.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kplane::Cluster;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

/// Longer than anything that a test waits for; it passes in no time.
const AGES: Duration = Duration::from_secs(3600);

fn deployment(name: &str, replicas: i32, more: serde_json::Value) -> Deployment {
    let mut object = json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

async fn ready(cluster: &Cluster) {
    cluster
        .wait_until::<k8s_openapi::api::core::v1::ServiceAccount>("default", "default", AGES, |found| {
            found.is_some()
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_makes_no_progress_says_so_after_its_deadline() {
    // Without nodes no pod ever runs.
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    ready(&cluster).await;
    let began = cluster.clock().now();
    let api: Api<Deployment> = Api::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &deployment("stuck", 1, json!({"progressDeadlineSeconds": 600})))
        .await
        .unwrap();
    let exceeded = |deployment: Option<&Deployment>| {
        let conditions = deployment.and_then(|deployment| deployment.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            condition.type_.as_deref() == Some("Progressing")
                && condition.status.as_deref() == Some("False")
                && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        })
    };
    cluster.wait_until::<Deployment>("default", "stuck", AGES, exceeded).await.unwrap();
    let passed = cluster.clock().now().duration_since(began).as_secs();
    assert!((600..700).contains(&passed), "{passed}");
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_pods_of_a_dead_node_move() {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    ready(&cluster).await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &deployment("web", 4, json!({}))).await.unwrap();
    let all = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|deployment| deployment.status.as_ref())
            .is_some_and(|status| status.available_replicas == Some(4))
    };
    cluster.wait_until::<Deployment>("default", "web", AGES, all).await.unwrap();
    let began = cluster.clock().now();
    assert!(cluster.nodes().unwrap().stop_node("node-1").await);
    let lost = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
    };
    cluster.wait_until::<Node>("", "node-1", AGES, lost).await.unwrap();
    let passed = cluster.clock().now().duration_since(began).as_secs();
    assert!((40..=70).contains(&passed), "the node's grace period is 50 s, {passed} s passed");
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let moved = async {
        loop {
            let list = pods.list(&ListParams::default()).await.unwrap();
            let here = list.items.iter().filter(|pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("node-2")
                    && pod.metadata.deletion_timestamp.is_none()
            });
            if here.count() == 4 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::time::timeout(AGES, moved).await.unwrap();
    let passed = cluster.clock().now().duration_since(began).as_secs();
    assert!((300..500).contains(&passed), "pods are evicted after 300 s, {passed} s passed");
    cluster.shutdown().await.unwrap();
}
