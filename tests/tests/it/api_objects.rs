//! Controllers that act on objects of the API alone, as their own users, against the API server: addresses and ranges, attachments,
//! classes of attributes, and migrations.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service},
    networking::v1::{IPAddress, ServiceCIDR},
    storage::v1::{VolumeAttachment, VolumeAttributesClass},
    storagemigration::v1::StorageVersionMigration,
};
use kplane::Cluster;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Longer than anything that a test waits for; it passes in no time.
const AGES: Duration = Duration::from_secs(3600);

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn services_and_nodes_have_their_addresses() {
    let cluster = Cluster::builder().nodes(2).settings(|settings| {
        settings.cluster_ranges = vec!["10.244.0.0/16".to_owned()];
    });
    let cluster = cluster.start().await.unwrap();
    for name in ["node-1", "node-2"] {
        let has = |node: Option<&Node>| {
            let spec = node.and_then(|node| node.spec.as_ref());
            spec.and_then(|spec| spec.pod_cidr.as_deref()).is_some_and(|range| range.starts_with("10.244."))
        };
        cluster.wait_until::<Node>("", name, AGES, has).await.unwrap();
    }
    let ready = |network: Option<&ServiceCIDR>| {
        let status = network.and_then(|network| network.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    cluster.wait_until::<ServiceCIDR>("", "kubernetes", AGES, ready).await.unwrap();
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    let web =
        create(&services, json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})).await;
    let address = web.spec.unwrap().cluster_ip.unwrap();
    let of_web = |found: Option<&IPAddress>| found.is_some_and(|found| found.spec.parent_ref.name == "web");
    cluster.wait_until::<IPAddress>("", &address, AGES, of_web).await.unwrap();
    services.delete("web", &DeleteParams::default()).await.unwrap();
    cluster.wait_until::<IPAddress>("", &address, AGES, |found| found.is_none()).await.unwrap();
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn volumes_are_attached_and_classes_protected() {
    let cluster = Cluster::builder().nodes(1).start().await.unwrap();
    let client = cluster.client();
    let nodes = Api::<Node>::all(client.clone());
    let node = "node-1".to_owned();
    cluster.wait_until::<Node>("", &node, AGES, |node| node.is_some()).await.unwrap();
    let annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    nodes.patch(&node, &PatchParams::default(), &patch).await.unwrap();
    let classes = Api::<VolumeAttributesClass>::all(client.clone());
    create(
        &classes,
        json!({"metadata": {"name": "gold"}, "driverName": "disk.example.com", "parameters": {"iops": "1"}}),
    )
    .await;
    let held = |class: Option<&VolumeAttributesClass>| {
        class.is_some_and(|class| {
            class.metadata.finalizers.iter().flatten().any(|one| one == "kubernetes.io/vac-protection")
        })
    };
    cluster.wait_until::<VolumeAttributesClass>("", "gold", AGES, held).await.unwrap();
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let csi = json!({"driver": "disk.example.com", "volumeHandle": "vol-1"});
    create(
        &volumes,
        json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": csi,
            "storageClassName": "none", "persistentVolumeReclaimPolicy": "Retain"}}),
    )
    .await;
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(client.clone());
    create(
        &claims,
        json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none",
            "volumeName": "pv", "resources": {"requests": {"storage": "1Gi"}}}}),
    )
    .await;
    let bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|claim| claim.status.as_ref()?.phase.as_deref()) == Some("Bound")
    };
    cluster.wait_until::<PersistentVolumeClaim>("default", "data", AGES, bound).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    create(
        &pods,
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "volumes": volume, "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "x"}]}}),
    )
    .await;
    let attachments = Api::<VolumeAttachment>::all(client.clone());
    let name = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(one) = attachments.list(&Default::default()).await.unwrap().items.pop() {
            assert_eq!(one.spec.source.persistent_volume_name.as_deref(), Some("pv"));
            break one.metadata.name.unwrap();
        }
    };
    // As the driver's attacher does.
    let patch = Patch::Merge(json!({"status": {"attached": true}}));
    attachments.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
    let reported = |node: Option<&Node>| {
        let status = node.and_then(|node| node.status.as_ref());
        let attached = status.and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default();
        attached.iter().any(|volume| volume.name == "kubernetes.io/csi/disk.example.com^vol-1")
    };
    cluster.wait_until::<Node>("", &node, AGES, reported).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    cluster.wait_until::<VolumeAttachment>("", &name, AGES, |found| found.is_none()).await.unwrap();
    cluster.wait_until::<Node>("", &node, AGES, |node| !reported(node)).await.unwrap();
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn objects_are_migrated() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let before = create(&maps, json!({"metadata": {"name": "x"}, "data": {"a": "b"}})).await;
    let migrations = Api::<StorageVersionMigration>::all(cluster.client());
    create(
        &migrations,
        json!({"metadata": {"name": "maps"}, "spec": {"resource": {"group": "", "resource": "configmaps"}}}),
    )
    .await;
    let ended = |migration: Option<&StorageVersionMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Succeeded" && condition.status == "True")
    };
    cluster.wait_until::<StorageVersionMigration>("", "maps", AGES, ended).await.unwrap();
    let after = maps.get("x").await.unwrap();
    assert_eq!((after.data, after.metadata.uid), (before.data, before.metadata.uid));
    cluster.shutdown().await.unwrap();
}
