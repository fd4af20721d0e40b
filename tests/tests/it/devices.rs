//! Devices in a whole cluster: drivers offer them in slices, claims are made from templates, pods get them and give them
//! back. Time is paused.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    core::v1::{Event, Node, Pod, ServiceAccount},
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
};
use kplane::Cluster;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, from_value, json};

/// Longer than anything that a test waits for; it passes in no time.
const AGES: Duration = Duration::from_secs(3600);
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// Two nodes: the first one has two devices, the second one has one.
async fn cluster() -> Cluster {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    cluster.wait_until::<ServiceAccount>("default", "default", AGES, |found| found.is_some()).await.unwrap();
    for number in 1..=2 {
        let ready = |node: Option<&Node>| {
            node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
        };
        cluster.wait_until("", &format!("node-{number}"), AGES, ready).await.unwrap();
        let devices: Value = (0..3 - number).map(|index| json!({"name": format!("gpu-{index}")})).collect();
        let slice = json!({"metadata": {"name": format!("gpus-{number}")}, "spec": {
            "driver": "gpu.example.com", "nodeName": format!("node-{number}"), "devices": devices,
            "pool": {"name": format!("node-{number}"), "generation": 1, "resourceSliceCount": 1},
        }});
        create(&Api::<ResourceSlice>::all(cluster.client()), slice).await;
    }
    let selector = json!({"cel": {"expression": "device.driver == 'gpu.example.com'"}});
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [selector]}});
    create(&Api::<DeviceClass>::all(cluster.client()), class).await;
    cluster
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &from_value(object).unwrap()).await.unwrap();
}

fn claims(cluster: &Cluster) -> Api<ResourceClaim> {
    Api::default_namespaced(cluster.client())
}

fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::default_namespaced(cluster.client())
}

fn pod(name: &str, claim: Value) -> Value {
    let containers = json!([{"name": "c", "image": "x", "resources": {"claims": [{"name": "gpu"}]}}]);
    let mut claim = claim;
    claim["name"] = json!("gpu");
    json!({"metadata": {"name": name}, "spec": {"containers": containers, "resourceClaims": [claim]}})
}

fn requests() -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}})
}

async fn node_of(cluster: &Cluster, name: &str) -> String {
    let has_node = |pod: Option<&Pod>| {
        pod.is_some_and(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()))
    };
    let pod = cluster.wait_until::<Pod>("default", name, AGES, has_node).await.unwrap();
    pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone()).unwrap()
}

/// The devices that a claim has, as `pool/device`.
fn devices(claim: &ResourceClaim) -> Vec<String> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    let results = devices.and_then(|devices| devices.results.as_ref()).into_iter().flatten();
    results.map(|result| format!("{}/{}", result.pool, result.device)).collect()
}

fn users(claim: &ResourceClaim) -> Vec<&str> {
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    users.map(|user| user.name.as_str()).collect()
}

fn finalizers(claim: &ResourceClaim) -> &[String] {
    claim.metadata.finalizers.as_deref().unwrap_or_default()
}

/// The name of the claim that was made for a pod.
async fn claim_of(cluster: &Cluster, pod: &str) -> String {
    let pod = pods(cluster).get(pod).await.unwrap();
    let statuses = pod.status.and_then(|status| status.resource_claim_statuses).unwrap_or_default();
    statuses.into_iter().find_map(|told| told.resource_claim_name).expect("the pod is told its claim")
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_template_get_a_device_each() {
    let cluster = cluster().await;
    let template = json!({"metadata": {"name": "one-gpu"}, "spec": {"spec": requests()}});
    create(&Api::<ResourceClaimTemplate>::default_namespaced(cluster.client()), template).await;
    let mut taken = BTreeSet::new();
    for name in ["a", "b", "c"] {
        create(&pods(&cluster), pod(name, json!({"resourceClaimTemplateName": "one-gpu"}))).await;
        let node = node_of(&cluster, name).await;
        let claim = claims(&cluster).get(&claim_of(&cluster, name).await).await.unwrap();
        let [device] = &devices(&claim)[..] else { panic!("{claim:?}") };
        assert!(device.starts_with(&format!("{node}/")), "{device} on {node}");
        assert!(taken.insert(device.clone()), "{device} is given out twice");
        assert_eq!((users(&claim), finalizers(&claim)), (vec![name], &[FINALIZER.to_owned()][..]));
        let name_base = claim.metadata.generate_name.as_deref();
        assert_eq!(name_base, Some(format!("{name}-gpu-").as_str()));
    }
    create(&pods(&cluster), pod("d", json!({"resourceClaimTemplateName": "one-gpu"}))).await;
    let events: Api<Event> = Api::default_namespaced(cluster.client());
    let refused = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.reason.as_deref() == Some("Unschedulable"))
    };
    cluster.wait_until("default", "d", AGES, refused).await.unwrap();
    let expected = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are \
                    available: 2 Preemption is not helpful for scheduling.";
    let waiting = pods(&cluster).get("d").await.unwrap();
    let conditions = waiting.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(
        conditions.iter().any(|condition| condition.message.as_deref() == Some(expected)),
        "{conditions:?}"
    );

    // A pod that ends gives its device to the one that waits.
    let (first, its_claim) = (node_of(&cluster, "a").await, claim_of(&cluster, "a").await);
    pods(&cluster).delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(node_of(&cluster, "d").await, first);
    cluster.wait_until::<ResourceClaim>("default", &its_claim, AGES, |claim| claim.is_none()).await.unwrap();
    assert_eq!(claims(&cluster).list(&ListParams::default()).await.unwrap().items.len(), 3);
    let failures =
        events.list(&ListParams::default().fields("reason=FailedResourceClaimCreation")).await.unwrap();
    assert!(failures.items.is_empty(), "{failures:?}");
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shared_claim_is_given_back_with_its_last_user() {
    let cluster = cluster().await;
    create(&claims(&cluster), json!({"metadata": {"name": "shared"}, "spec": requests()})).await;
    let shared = || json!({"resourceClaimName": "shared"});
    create(&pods(&cluster), pod("a", shared())).await;
    create(&pods(&cluster), pod("b", shared())).await;
    assert_eq!(node_of(&cluster, "a").await, node_of(&cluster, "b").await);
    let both = |claim: Option<&ResourceClaim>| claim.is_some_and(|claim| users(claim).len() == 2);
    cluster.wait_until("default", "shared", AGES, both).await.unwrap();
    pods(&cluster).delete("a", &DeleteParams::default()).await.unwrap();
    let one = |claim: Option<&ResourceClaim>| claim.is_some_and(|claim| users(claim) == ["b"]);
    let claim = cluster.wait_until("default", "shared", AGES, one).await.unwrap().unwrap();
    assert_eq!((devices(&claim).len(), finalizers(&claim).len()), (1, 1), "it is still used");
    pods(&cluster).delete("b", &DeleteParams::default()).await.unwrap();
    let free = |claim: Option<&ResourceClaim>| {
        claim.is_some_and(|claim| devices(claim).is_empty() && finalizers(claim).is_empty())
    };
    cluster.wait_until("default", "shared", AGES, free).await.unwrap();
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_where_the_pod_cannot_go_is_allocated_anew() {
    let cluster = cluster().await;
    create(
        &claims(&cluster),
        json!({"metadata": {"name": "mine", "finalizers": [FINALIZER]}, "spec": requests()}),
    )
    .await;
    let allocation = json!({
        "devices": {"results": [
            {"request": "r", "driver": "gpu.example.com", "pool": "node-1", "device": "gpu-0"}
        ]},
        "nodeSelector": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}
        ]},
    });
    let status = Patch::Merge(json!({"status": {"allocation": allocation}}));
    claims(&cluster).patch_status("mine", &PatchParams::default(), &status).await.unwrap();
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    Api::<Node>::all(cluster.client()).patch("node-1", &PatchParams::default(), &cordon).await.unwrap();
    create(&pods(&cluster), pod("p", json!({"resourceClaimName": "mine"}))).await;
    assert_eq!(node_of(&cluster, "p").await, "node-2");
    let claim = claims(&cluster).get("mine").await.unwrap();
    assert_eq!((devices(&claim), users(&claim)), (vec!["node-2/gpu-0".to_owned()], vec!["p"]));
    cluster.shutdown().await.unwrap();
}

/// KEP-5004: the pod asks in the old way, and the device class says that its devices are that resource.
#[tokio::test(start_paused = true)]
async fn devices_stand_for_an_extended_resource() {
    let cluster = cluster().await;
    let classes: Api<DeviceClass> = Api::all(cluster.client());
    let patch = json!({"spec": {"extendedResourceName": "example.com/gpu"}});
    classes.patch("gpu", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let mut taken = BTreeSet::new();
    for name in ["a", "b", "c"] {
        let wants = json!({"limits": {"example.com/gpu": "1"}});
        let containers = json!([{"name": "c", "image": "x", "resources": wants}]);
        create(&pods(&cluster), json!({"metadata": {"name": name}, "spec": {"containers": containers}}))
            .await;
        let node = node_of(&cluster, name).await;
        let told = |pod: Option<&Pod>| {
            pod.and_then(|pod| pod.status.as_ref()?.extended_resource_claim_status.as_ref()).is_some()
        };
        let pod = cluster.wait_until::<Pod>("default", name, AGES, told).await.unwrap().unwrap();
        let told =
            pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.clone()).unwrap();
        let [mapping] = &told.request_mappings[..] else { panic!("{told:?}") };
        assert_eq!(
            (&*mapping.container_name, &*mapping.resource_name, &*mapping.request_name),
            ("c", "example.com/gpu", "container-0-request-0")
        );
        let claim = claims(&cluster).get(&told.resource_claim_name).await.unwrap();
        assert!(told.resource_claim_name.starts_with(&format!("{name}-extended-resources-")), "{told:?}");
        let [device] = &devices(&claim)[..] else { panic!("{claim:?}") };
        assert!(device.starts_with(&format!("{node}/")), "{device} on {node}");
        assert!(taken.insert(device.clone()), "{device} is given out twice");
        assert_eq!((users(&claim), finalizers(&claim)), (vec![name], &[FINALIZER.to_owned()][..]));
    }
    // A pod that waits gets the device of one that ends, whose claim goes with it.
    let containers = json!([{"name": "c", "image": "x", "resources": {"limits": {"example.com/gpu": "1"}}}]);
    create(&pods(&cluster), json!({"metadata": {"name": "d"}, "spec": {"containers": containers}})).await;
    let refused = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.reason.as_deref() == Some("Unschedulable"))
    };
    cluster.wait_until("default", "d", AGES, refused).await.unwrap();
    let first = node_of(&cluster, "a").await;
    pods(&cluster).delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(node_of(&cluster, "d").await, first);
    let left = claims(&cluster).list(&ListParams::default()).await.unwrap().items;
    let owners: BTreeSet<_> = left.iter().flat_map(|claim| users(claim)).map(str::to_owned).collect();
    assert!(["b", "c", "d"].iter().all(|name| owners.contains(*name)), "{owners:?}");
}
