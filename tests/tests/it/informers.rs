//! Informers and controllers seen from outside: caches of metadata only, and what a cluster tells about its controllers.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kplane::Cluster;
use kreconcile::{Health, Informer, Informers, ResourceType, Selection};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Over HTTP an informer of metadata gets `PartialObjectMetadata` and nothing else, and follows every change of it (Kubernetes API
/// Concepts, "Metadata-only fetches"). One of whole objects beside it has the rest.
#[tokio::test(start_paused = true)]
async fn an_informer_of_metadata_gets_nothing_else_over_http() {
    let cluster =
        Cluster::builder().nodes(0).without_controllers().without_scheduler().start().await.unwrap();
    let maps = Api::<ConfigMap>::default_namespaced(cluster.client());
    let map = json!({"metadata": {"name": "m", "labels": {"step": "1"}}, "data": {"k": "much"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let informers = Informers::new(cluster.client_http());
    let kind = ResourceType::of::<ConfigMap>();
    let partial: Informer<Value> = informers.dynamic(kind.clone(), Selection::all().metadata_only());
    assert!(partial.synced().await);
    let mut changes = partial.subscribe();
    let seen = |informer: &Informer<Value>| {
        let map = informer.get("default", "m")?;
        Some((map["metadata"]["labels"]["step"].clone(), map.get("data").cloned()))
    };
    assert_eq!(seen(&partial), Some((json!("1"), None)));

    let patch = Patch::Merge(json!({"metadata": {"labels": {"step": "2"}}}));
    maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
    while seen(&partial) != Some((json!("2"), None)) {
        assert!(changes.next().await.is_some(), "{:?}", seen(&partial));
    }
    maps.delete("m", &DeleteParams::default()).await.unwrap();
    while seen(&partial).is_some() {
        assert!(changes.next().await.is_some());
    }

    let map = json!({"metadata": {"name": "m", "labels": {"step": "3"}}, "data": {"k": "much"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let whole: Informer<Value> = informers.dynamic(kind, Selection::all());
    assert!(whole.synced().await);
    assert_eq!(seen(&whole), Some((json!("3"), Some(json!({"k": "much"})))));
    informers.stop().await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cluster_tells_how_its_controllers_are_and_what_they_count() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let patience = Duration::from_secs(60);
    let account =
        cluster.wait_until::<ServiceAccount>("default", "default", patience, |found| found.is_some());
    account.await.unwrap();
    let health = cluster.health();
    for name in ["serviceaccount-controller", "garbage-collector-controller", "deployment-controller"] {
        assert_eq!(health.get(name), Some(&Health::Running), "{health:?}");
    }
    let text = cluster.controller_metrics();
    let number = |series: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{series} in {text}"))
    };
    assert!(number("workqueue_adds_total{name=\"serviceaccount-controller\"}") > 0);
    let told =
        "controller_runtime_reconcile_total{controller=\"serviceaccount-controller\",result=\"success\"}";
    assert!(number(told) > 0);
    assert_eq!(number("workqueue_adds_total{name=\"deployment-controller\"}"), 0, "there are no Deployments");
    assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE workqueue_depth ")).count(), 1);
    cluster.shutdown().await.unwrap();
}
