//! Real data in real volumes: what a StatefulSet writes outlives its pods, and goes with its claims.

use std::path::{Path, PathBuf};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
};
use kplane::Cluster;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;

use crate::support::PATIENCE;

/// Each start leaves a line; a pod is ready once its own is there.
fn database() -> StatefulSet {
    serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {
        "replicas": 2, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "none",
                "command": ["sh", "-c", "echo started >> /data/starts; touch /own/up; exec sleep 1000"],
                "readinessProbe": {"exec": {"command": ["test", "-e", "/own/up"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "own", "mountPath": "/own"}]}],
            "volumes": [{"name": "own", "emptyDir": {}}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}))
    .unwrap()
}

/// Waits until a pod of this name, but not of this uid, is ready; its uid.
async fn ready(pods: &Api<Pod>, name: &str, not: Option<&str>) -> String {
    let is_ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        let ready =
            conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True");
        ready && pod.is_some_and(|pod| pod.metadata.uid.as_deref() != not)
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(pods.clone(), name, is_ready)).await;
    match waited {
        Ok(pod) => pod.unwrap().unwrap().metadata.uid.unwrap(),
        Err(_) => panic!("{name} is not ready: {:?}", pods.get_opt(name).await),
    }
}

/// The directory of the volume that a claim is bound to, and the volume's name.
async fn directory(
    claims: &Api<PersistentVolumeClaim>,
    volumes: &Api<PersistentVolume>,
    claim: &str,
) -> (PathBuf, String) {
    let claim = claims.get(claim).await.unwrap();
    assert_eq!(claim.status.unwrap().phase.as_deref(), Some("Bound"));
    let name = claim.spec.unwrap().volume_name.unwrap();
    let volume = volumes.get(&name).await.unwrap();
    (PathBuf::from(volume.spec.unwrap().host_path.unwrap().path), name)
}

fn starts(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("starts")).unwrap().lines().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_finds_its_data_again() {
    let builder = Cluster::builder().nodes(1).processes().unwrap().default_storage_class();
    let cluster = builder.start().await.unwrap();
    let client = cluster.client();
    let (pods, claims): (Api<Pod>, Api<PersistentVolumeClaim>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client.clone()));
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let sets: Api<StatefulSet> = Api::default_namespaced(client);
    sets.create(&PostParams::default(), &database()).await.unwrap();
    let first = ready(&pods, "db-0", None).await;
    ready(&pods, "db-1", None).await;
    let (own, volume) = directory(&claims, &volumes, "data-db-0").await;
    let (other, _) = directory(&claims, &volumes, "data-db-1").await;
    assert_eq!((starts(&own), starts(&other)), (1, 1));

    pods.delete("db-0", &DeleteParams::default()).await.unwrap();
    ready(&pods, "db-0", Some(&first)).await;
    assert_eq!(starts(&own), 2);
    assert_eq!(directory(&claims, &volumes, "data-db-0").await.0, own);

    // The claim goes when no pod uses it any more; with it the volume and the data.
    let gone =
        await_condition(volumes.clone(), &volume, |volume: Option<&PersistentVolume>| volume.is_none());
    sets.delete("db", &DeleteParams::background()).await.unwrap();
    claims.delete("data-db-0", &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(PATIENCE, gone).await.expect("the volume is still there").unwrap();
    assert!(!own.exists());
    assert!(other.exists());
    cluster.shutdown().await.unwrap();
}
