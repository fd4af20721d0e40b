use std::sync::Arc;

use kcore::TokioClock;
use kreconcile::Running;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_some},
    fake::FakeApi,
};

fn start() -> (Arc<FakeApi>, Running) {
    start_some(TokioClock::new(), |name| {
        ["persistentvolume-binder-controller", "local-volume-provisioner"].contains(&name)
    })
}

fn claim(name: &str, class: Option<&str>, size: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": size}}},
        "status": {"phase": "Pending"},
    })
}

fn volume(name: &str, size: &str, policy: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "gold",
            "persistentVolumeReclaimPolicy": policy, "hostPath": {"path": "/data"}},
        "status": {"phase": "Pending"},
    })
}

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({"metadata": {"name": name}, "provisioner": provisioner, "reclaimPolicy": "Delete", "volumeBindingMode": mode})
}

fn phase(api: &FakeApi, plural: &str, name: &str) -> Value {
    let namespace = if plural == "persistentvolumes" { "" } else { "shop" };
    api.get(plural, namespace, name).unwrap_or_default()["status"]["phase"].clone()
}

fn told(api: &FakeApi, name: &str, reason: &str) -> bool {
    api.list("events")
        .iter()
        .any(|event| event["involvedObject"]["name"] == name && event["reason"] == reason)
}

#[tokio::test(start_paused = true)]
async fn claims_and_volumes_find_each_other_and_part() {
    let (api, running) = start();
    api.add("persistentvolumeclaims", claim("data", Some("gold"), "5Gi"));
    api.until("no class to be told", |api| told(api, "data", "ProvisioningFailed")).await;
    api.add("persistentvolumes", volume("big", "20Gi", "Retain"));
    api.until("the claim to be bound", |api| phase(api, "persistentvolumeclaims", "data") == "Bound").await;
    let data = api.get("persistentvolumeclaims", "shop", "data").unwrap();
    assert_eq!(data["spec"]["volumeName"], "big");
    assert_eq!(data["status"]["capacity"], json!({"storage": "20Gi"}));
    let expected =
        json!({"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"});
    assert_eq!(data["metadata"]["annotations"], expected);
    let big = api.get("persistentvolumes", "", "big").unwrap();
    assert_eq!(
        (&big["status"]["phase"], &big["spec"]["claimRef"]["uid"]),
        (&json!("Bound"), &data["metadata"]["uid"])
    );
    at_rest(&api).await;

    // Twelve claims and twelve volumes: each gets one.
    for number in 0..12 {
        api.add("persistentvolumes", volume(&format!("v{number}"), &format!("{}Gi", number + 1), "Retain"));
        api.add("persistentvolumeclaims", claim(&format!("c{number}"), Some("gold"), "1Gi"));
    }
    api.until("all to be bound", |api| {
        (0..12).all(|number| phase(api, "persistentvolumeclaims", &format!("c{number}")) == "Bound")
    })
    .await;
    let mut taken: Vec<String> =
        (0..12).map(|number| phase(&api, "persistentvolumes", &format!("v{number}")).to_string()).collect();
    taken.dedup();
    assert_eq!(taken, ["\"Bound\""]);
    at_rest(&api).await;

    // Without its claim the volume is kept; a claim of the same name is another one.
    api.remove("persistentvolumeclaims", "shop", "data");
    api.until("the volume to be released", |api| phase(api, "persistentvolumes", "big") == "Released").await;
    api.add("persistentvolumeclaims", claim("data", Some("gold"), "15Gi"));
    at_rest(&api).await;
    assert_eq!(phase(&api, "persistentvolumeclaims", "data"), "Pending");
    assert_eq!(phase(&api, "persistentvolumes", "big"), "Released");

    // Without its volume the claim is lost.
    let lost = api.get("persistentvolumeclaims", "shop", "c3").unwrap()["spec"]["volumeName"].clone();
    api.remove("persistentvolumes", "", lost.as_str().unwrap());
    api.until("the claim to be lost", |api| phase(api, "persistentvolumeclaims", "c3") == "Lost").await;
    api.until("which is told", |api| told(api, "c3", "ClaimLost")).await;
    at_rest(&api).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn volumes_that_nobody_can_delete_or_recycle_fail() {
    let (api, running) = start();
    for (name, policy) in [("deleted", "Delete"), ("recycled", "Recycle")] {
        let mut gone = volume(name, "1Gi", policy);
        gone["spec"]["claimRef"] = json!({"namespace": "shop", "name": "gone", "uid": "gone"});
        api.add("persistentvolumes", gone);
        api.until("it to fail", |api| phase(api, "persistentvolumes", name) == "Failed").await;
    }
    api.until("the events", |api| {
        told(api, "deleted", "VolumeFailedDelete") && told(api, "recycled", "VolumeFailedRecycle")
    })
    .await;
    at_rest(&api).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn volumes_are_made_when_their_time_has_come() {
    let (api, running) = start();
    api.add("storageclasses", class("local", "kplane.dev/local", "WaitForFirstConsumer"));
    api.add("storageclasses", class("disks", "x.io/disks", "Immediate"));
    api.add("persistentvolumeclaims", claim("data", Some("local"), "5Gi"));
    api.until("it to wait", |api| told(api, "data", "WaitForFirstConsumer")).await;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    api.add("pods", json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"volumes": volumes}}));
    api.until("it to wait for the pod", |api| told(api, "data", "WaitForPodScheduled")).await;
    at_rest(&api).await;

    // The scheduler has chosen.
    api.edit("persistentvolumeclaims", "shop", "data", |claim| {
        claim["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "node-1"});
    });
    api.until("the claim to be bound", |api| phase(api, "persistentvolumeclaims", "data") == "Bound").await;
    let data = api.get("persistentvolumeclaims", "shop", "data").unwrap();
    assert_eq!(
        data["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"],
        "kplane.dev/local"
    );
    let name = data["spec"]["volumeName"].as_str().unwrap().to_owned();
    let made = api.get("persistentvolumes", "", &name).unwrap();
    assert_eq!(made["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"], "kplane.dev/local");
    let affinity = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(affinity["values"], json!(["node-1"]));
    at_rest(&api).await;
    assert!(told(&api, "data", "ProvisioningSucceeded") && told(&api, "data", "ExternalProvisioning"));

    // It is asked for more.
    api.edit("persistentvolumeclaims", "shop", "data", |claim| {
        claim["spec"]["resources"]["requests"]["storage"] = "9Gi".into();
    });
    api.until("it to have grown", |api| {
        api.get("persistentvolumeclaims", "shop", "data").unwrap()["status"]["capacity"]["storage"] == "9Gi"
    })
    .await;
    assert_eq!(api.get("persistentvolumes", "", &name).unwrap()["spec"]["capacity"]["storage"], "9Gi");
    let grown = api.get("persistentvolumeclaims", "shop", "data").unwrap();
    assert!(grown["status"]["conditions"].is_null());
    at_rest(&api).await;

    // It goes with its claim.
    api.remove("persistentvolumeclaims", "shop", "data");
    api.until("the volume to go", |api| api.get("persistentvolumes", "", &name).is_none()).await;

    // Others make theirs: it waits for them, without being asked twice.
    api.add("persistentvolumeclaims", claim("far", Some("disks"), "5Gi"));
    api.until("the driver to be named", |api| told(api, "far", "ExternalProvisioning")).await;
    at_rest(&api).await;
    assert_eq!(phase(&api, "persistentvolumeclaims", "far"), "Pending");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_default_class_comes_later() {
    let (api, running) = start();
    api.add("persistentvolumeclaims", claim("data", None, "5Gi"));
    api.add("persistentvolumeclaims", claim("none", Some(""), "5Gi"));
    api.until("nobody to want it", |api| {
        told(api, "data", "FailedBinding") && told(api, "none", "FailedBinding")
    })
    .await;
    let mut default = class("local", "kplane.dev/local", "Immediate");
    default["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    api.add("storageclasses", default);
    api.until("the claim to be bound", |api| phase(api, "persistentvolumeclaims", "data") == "Bound").await;
    let data = api.get("persistentvolumeclaims", "shop", "data").unwrap();
    assert_eq!(data["spec"]["storageClassName"], "local");
    at_rest(&api).await;
    assert_eq!(phase(&api, "persistentvolumeclaims", "none"), "Pending");
    running.stop().await;
}
