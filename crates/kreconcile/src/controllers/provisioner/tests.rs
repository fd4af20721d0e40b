use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::*;

fn claim(annotations: &Value, volume: Option<&str>) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": "data", "namespace": "n", "uid": "u", "annotations": annotations},
        "spec": {"storageClassName": "c", "volumeName": volume, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}},
    }))
    .unwrap()
}

/// The rules of `shouldProvision` in sig-storage-lib-external-provisioner.
#[test]
fn claims_are_served_that_name_the_provisioner() {
    let cases = [
        (json!({}), None, false),
        (json!({STORAGE_PROVISIONER: "mine"}), None, true),
        (json!({BETA_STORAGE_PROVISIONER: "mine"}), None, true),
        (json!({STORAGE_PROVISIONER: "other", BETA_STORAGE_PROVISIONER: "mine"}), None, false),
        (json!({STORAGE_PROVISIONER: "mine"}), Some("bound"), false),
    ];
    for (annotations, volume, expected) in cases {
        assert_eq!(asks(&claim(&annotations, volume), "mine"), expected, "{annotations}");
    }
    let class = |mode: &str| -> StorageClass {
        serde_json::from_value(json!({"metadata": {}, "provisioner": "mine", "volumeBindingMode": mode}))
            .unwrap()
    };
    let chosen = claim(&json!({SELECTED_NODE: "node-1"}), None);
    let open = claim(&json!({}), None);
    assert_eq!(node_of(&chosen, &class("WaitForFirstConsumer")), Some(Some("node-1")));
    assert_eq!(node_of(&open, &class("WaitForFirstConsumer")), None);
    assert_eq!(node_of(&chosen, &class("Immediate")), Some(None));
}

/// The rules of `shouldDelete` in sig-storage-lib-external-provisioner, with the finalizer of KEP-2644.
#[test]
fn volumes_are_deleted_that_nobody_has() {
    let volume = |by: &str, policy: &str, phase: &str, deleted: bool, finalizer: &str| -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v", "annotations": {PROVISIONED_BY: by}, "finalizers": [finalizer],
                "deletionTimestamp": deleted.then_some("2030-01-01T00:00:00Z")},
            "spec": {"persistentVolumeReclaimPolicy": policy},
            "status": {"phase": phase},
        }))
        .unwrap()
    };
    let cases = [
        (volume("mine", "Delete", "Released", false, FINALIZER), true),
        (volume("mine", "Delete", "Released", true, FINALIZER), true),
        (volume("mine", "Delete", "Released", true, "x/y"), false),
        (volume("mine", "Delete", "Bound", true, FINALIZER), false),
        (volume("mine", "Retain", "Released", false, FINALIZER), false),
        (volume("other", "Delete", "Released", false, FINALIZER), false),
    ];
    for (volume, expected) in cases {
        assert_eq!(is_to_be_deleted(&volume, "mine"), expected, "{volume:?}");
    }
}

#[tokio::test]
async fn local_volumes_are_made_of_directories_and_only_those_are_deleted() {
    let dir = std::env::temp_dir().join(format!("kreconcile-local-{}", std::process::id()));
    let provisioner = LocalProvisioner::new(&dir);
    let class: StorageClass =
        serde_json::from_value(json!({"metadata": {"name": "c"}, "provisioner": LOCAL_PROVISIONER})).unwrap();
    let claim = claim(&json!({}), None);
    let request = |node| ProvisionRequest { claim: &claim, class: &class, volume_name: "pvc-u", node };
    for node in [None, Some("node-1")] {
        let request = request(node);
        let made = provisioner.provision(&request).await.unwrap();
        let body = volume_of(&request, LOCAL_PROVISIONER, made).unwrap();
        let source = if node.is_some() { "local" } else { "hostPath" };
        assert_eq!(body["spec"][source]["path"], dir.join("pvc-u").to_str().unwrap());
        assert_eq!(body["spec"]["nodeAffinity"].is_null(), node.is_none());
        assert_eq!(body["spec"]["capacity"], json!({"storage": "1Gi"}));
        assert_eq!(body["spec"]["claimRef"]["uid"], "u");
        assert_eq!(body["metadata"]["finalizers"], json!([FINALIZER]));
        let volume: PersistentVolume = serde_json::from_value(body.clone()).unwrap();
        std::fs::create_dir_all(dir.join("pvc-u/data")).unwrap();
        provisioner.delete(&volume).await.unwrap();
        provisioner.delete(&volume).await.unwrap();
        assert!(!dir.join("pvc-u").exists());

        let mut elsewhere = body;
        elsewhere["spec"][source]["path"] = dir.to_str().unwrap().into();
        let elsewhere: PersistentVolume = serde_json::from_value(elsewhere).unwrap();
        assert!(provisioner.delete(&elsewhere).await.is_err());
        assert!(dir.exists());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn the_local_provisioner_keeps_its_promises() {
    let dir = std::env::temp_dir().join(format!("kreconcile-conformance-{}", std::process::id()));
    crate::testing::check_provisioner(&LocalProvisioner::new(&dir), std::collections::BTreeMap::new()).await;
    let _ = std::fs::remove_dir_all(&dir);
}
