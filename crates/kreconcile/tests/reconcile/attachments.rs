//! Volumes of CSI drivers on their way from node to node.

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_some},
    fake::FakeApi,
};

const UNIQUE_NAME: &str = "kubernetes.io/csi/disk.example.com^vol-1";

/// The nodes with an attachment.
fn attached_to(api: &FakeApi) -> Vec<String> {
    let nodes = api.list("volumeattachments").into_iter();
    nodes.map(|one| one["spec"]["nodeName"].as_str().unwrap().to_owned()).collect()
}

/// Does what the driver's attacher would.
fn carry_out(api: &FakeApi) {
    for one in api.list("volumeattachments") {
        let name = one["metadata"]["name"].as_str().unwrap();
        api.edit("volumeattachments", "", name, |one| one["status"] = json!({"attached": true}));
    }
}

fn told(api: &FakeApi, pod: &str) -> Vec<String> {
    let events = api.list("events").into_iter().filter(|event| event["involvedObject"]["name"] == pod);
    events.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

fn add_pod(api: &FakeApi, name: &str, node: &str) {
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    let spec = json!({"containers": [], "nodeName": node, "volumes": volumes});
    api.add("pods", json!({"metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": spec}));
}

fn add_volume(api: &FakeApi, mode: &str) {
    let claim = json!({"namespace": "shop", "name": "data", "uid": "claim"});
    let csi = json!({"driver": "disk.example.com", "volumeHandle": "vol-1"});
    let spec = json!({"accessModes": [mode], "csi": csi, "claimRef": claim});
    api.add("persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": spec}));
    let metadata = json!({"name": "data", "namespace": "shop", "uid": "claim"});
    api.add(
        "persistentvolumeclaims",
        json!({"metadata": metadata, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
    );
}

fn add_node(api: &FakeApi, name: &str) {
    let annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    api.add("nodes", json!({"metadata": {"name": name, "annotations": annotations}, "status": status}));
}

fn attached_volumes(api: &FakeApi, node: &str) -> Value {
    api.get("nodes", "", node).unwrap()["status"]["volumesAttached"].clone()
}

/// What `attach_detach_controller_test.go` and `reconciler_test.go` go through, from the outside.
#[tokio::test(start_paused = true)]
async fn a_volume_is_at_one_node_at_a_time() {
    let (api, running) =
        start_some(TokioClock::new(), |name| name == "persistentvolume-attach-detach-controller");
    for node in ["a", "b"] {
        add_node(&api, node);
    }
    api.add("nodes", json!({"metadata": {"name": "unmanaged"}}));
    add_volume(&api, "ReadWriteOnce");
    add_pod(&api, "elsewhere", "unmanaged");
    at_rest(&api).await;
    assert_eq!(api.count("volumeattachments"), 0, "that node attaches by itself");
    add_pod(&api, "p", "a");
    api.until("the attachment", |api| attached_to(api) == ["a"]).await;
    let attachment = &api.list("volumeattachments")[0];
    let spec =
        json!({"attacher": "disk.example.com", "nodeName": "a", "source": {"persistentVolumeName": "pv"}});
    assert_eq!(attachment["spec"], spec);
    at_rest(&api).await;
    assert!(attached_volumes(&api, "a").is_null(), "nobody has carried it out yet");
    carry_out(&api);
    let listed = json!([{"name": UNIQUE_NAME, "devicePath": ""}]);
    api.until("the report", |api| attached_volumes(api, "a") == listed).await;
    let good = "AttachVolume.Attach succeeded for volume \"pv\" ";
    api.until("the event", |api| told(api, "p") == [good]).await;
    api.edit("nodes", "", "a", |node| node["status"]["volumesInUse"] = json!([UNIQUE_NAME]));

    add_pod(&api, "q", "b");
    let refused = "Multi-Attach error for volume \"pv\" Volume is already used by pod(s) p";
    api.until("the refusal", |api| told(api, "q") == [refused]).await;
    api.remove("pods", "shop", "p");
    at_rest(&api).await;
    assert_eq!(attached_to(&api), ["a"], "the node still uses it");
    api.edit("nodes", "", "a", |node| node["status"]["volumesInUse"] = Value::Null);
    api.until("it to move", |api| attached_to(api) == ["b"]).await;
    assert!(attached_volumes(&api, "a").is_null());
    assert_eq!(told(&api, "q"), [refused], "once is enough");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_keeps_a_volume_for_six_minutes_only() {
    let (api, running) =
        start_some(TokioClock::new(), |name| name == "persistentvolume-attach-detach-controller");
    add_node(&api, "a");
    add_volume(&api, "ReadWriteOnce");
    add_pod(&api, "p", "a");
    api.until("the attachment", |api| attached_to(api) == ["a"]).await;
    carry_out(&api);
    api.until("the report", |api| !attached_volumes(api, "a").is_null()).await;
    api.edit("nodes", "", "a", |node| node["status"]["volumesInUse"] = json!([UNIQUE_NAME]));
    at_rest(&api).await;
    let began = tokio::time::Instant::now();
    api.remove("pods", "shop", "p");
    api.edit("nodes", "", "a", |node| {
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "Unknown"}]);
    });
    api.until("the detachment", |api| api.count("volumeattachments") == 0).await;
    assert_eq!(began.elapsed().as_secs(), 360);

    // One that is out of service does not keep it at all, nor does one that is gone.
    for end in ["taint", "gone"] {
        add_pod(&api, end, "a");
        api.until("the attachment", |api| attached_to(api) == ["a"]).await;
        api.remove("pods", "shop", end);
        let taint = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
        if end == "taint" {
            api.edit("nodes", "", "a", |node| node["spec"]["taints"] = taint);
        } else {
            api.remove("nodes", "", "a");
        }
        let began = tokio::time::Instant::now();
        api.until("the detachment", |api| api.count("volumeattachments") == 0).await;
        assert!(began.elapsed().as_secs() < 10, "{end}");
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn shared_volumes_are_at_many_nodes_and_some_need_no_attaching() {
    let (api, running) =
        start_some(TokioClock::new(), |name| name == "persistentvolume-attach-detach-controller");
    for node in ["a", "b"] {
        add_node(&api, node);
    }
    add_volume(&api, "ReadWriteMany");
    add_pod(&api, "p", "a");
    add_pod(&api, "q", "b");
    api.until("both attachments", |api| api.count("volumeattachments") == 2).await;
    // The volume goes before its attachments.
    carry_out(&api);
    api.until("the report", |api| !attached_volumes(api, "a").is_null()).await;
    for pod in ["p", "q"] {
        api.edit("pods", "shop", pod, |pod| pod["status"] = json!({"phase": "Succeeded"}));
    }
    api.remove("persistentvolumes", "", "pv");
    api.until("both to go", |api| {
        api.count("volumeattachments") == 0 && attached_volumes(api, "a").is_null()
    })
    .await;
    for pod in ["p", "q"] {
        api.remove("pods", "shop", pod);
    }
    api.remove("persistentvolumeclaims", "shop", "data");
    api.add(
        "csidrivers",
        json!({"metadata": {"name": "disk.example.com"}, "spec": {"attachRequired": false}}),
    );
    at_rest(&api).await;
    add_volume(&api, "ReadWriteMany");
    add_pod(&api, "r", "a");
    at_rest(&api).await;
    assert_eq!(api.count("volumeattachments"), 0);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn classes_of_attributes_stay_while_they_are_used() {
    let (api, running) =
        start_some(TokioClock::new(), |name| name == "volumeattributesclass-protection-controller");
    let class = |name: &str| json!({"metadata": {"name": name}, "driverName": "disk.example.com"});
    api.add("volumeattributesclasses", class("gold"));
    api.until("the finalizer", |api| {
        let finalizers = &api.get("volumeattributesclasses", "", "gold").unwrap()["metadata"]["finalizers"];
        *finalizers == json!(["kubernetes.io/vac-protection"])
    })
    .await;
    let spec = json!({"volumeAttributesClassName": "gold"});
    api.add("persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": spec}));
    api.add("persistentvolumeclaims", json!({"metadata": {"name": "c", "namespace": "shop"}, "spec": spec}));
    at_rest(&api).await;
    api.edit("volumeattributesclasses", "", "gold", |class| {
        class["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    });
    at_rest(&api).await;
    api.remove("persistentvolumes", "", "pv");
    at_rest(&api).await;
    assert_eq!(api.count("volumeattributesclasses"), 1, "a claim asks for it");
    api.edit("persistentvolumeclaims", "shop", "c", |claim| {
        claim["spec"]["volumeAttributesClassName"] = "silver".into();
    });
    api.until("the class to go", |api| api.count("volumeattributesclasses") == 0).await;
    running.stop().await;
}
