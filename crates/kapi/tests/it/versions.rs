//! One object in several versions, through the server (upstream's `pkg/apis/*/*/conversion.go`).

use serde_json::{Value, json};

use crate::harness::{get, json as send, send as raw, server};

fn claim(version: &str, request: &Value) -> Value {
    json!({"apiVersion": format!("resource.k8s.io/{version}"), "kind": "ResourceClaim", "metadata": {"name": "c"},
        "spec": {"devices": {"requests": [request]}}})
}

fn path(version: &str, plural: &str) -> String {
    format!("/apis/resource.k8s.io/{version}/namespaces/default/{plural}")
}

#[tokio::test]
async fn claims_are_written_and_read_in_every_version() {
    let server = server().await;
    let flat = json!({"name": "gpu", "deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 1});
    let nested = json!({"name": "gpu", "exactly": {"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 1}});
    let old = json!({"name": "gpu", "deviceClassName": "gpus"});
    let (code, made) =
        send(&server, "POST", &path("v1beta1", "resourceclaims"), &claim("v1beta1", &old)).await;
    assert_eq!((code, &made["spec"]["devices"]["requests"][0]), (201, &flat), "{made}");
    for (version, expected) in [("v1", &nested), ("v1beta2", &nested), ("v1beta1", &flat)] {
        let (code, found) = get(&server, &format!("{}/c", path(version, "resourceclaims"))).await;
        assert_eq!(code, 200, "{found}");
        assert_eq!(found["apiVersion"], format!("resource.k8s.io/{version}"));
        assert_eq!(&found["spec"]["devices"]["requests"][0], expected, "{version}");
    }
    let template = json!({"apiVersion": "resource.k8s.io/v1beta2", "kind": "ResourceClaimTemplate", "metadata": {"name": "t"},
        "spec": {"spec": {"devices": {"requests": [{"name": "a", "firstAvailable": [{"name": "b", "deviceClassName": "c"}]}]}}}});
    let (code, made) = send(&server, "POST", &path("v1beta2", "resourceclaimtemplates"), &template).await;
    assert_eq!(code, 201, "{made}");
    let (_, found) = get(&server, &format!("{}/t", path("v1beta1", "resourceclaimtemplates"))).await;
    let alternative = &found["spec"]["spec"]["devices"]["requests"][0]["firstAvailable"][0];
    assert_eq!(alternative["deviceClassName"], "c", "{found}");
    let device = json!({"name": "d", "basic": {"attributes": {"model": {"string": "m"}}}});
    let slice = json!({"apiVersion": "resource.k8s.io/v1beta1", "kind": "ResourceSlice", "metadata": {"name": "s"},
        "spec": {"driver": "d.example.com", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}});
    let (code, made) = send(&server, "POST", "/apis/resource.k8s.io/v1beta1/resourceslices", &slice).await;
    assert_eq!((code, &made["spec"]["devices"][0]), (201, &device), "{made}");
    let (_, found) = get(&server, "/apis/resource.k8s.io/v1/resourceslices/s").await;
    assert_eq!(found["spec"]["devices"], json!([{"name": "d", "attributes": {"model": {"string": "m"}}}]));
}

/// Each manager owns fields in the version that he writes, and conflicts are found across versions (KEP-555).
#[tokio::test]
async fn fields_are_owned_across_versions() {
    let server = server().await;
    let apply = async |version: &str, query: &str, object: Value| {
        let path = format!("{}/t?{query}", path(version, "resourceclaimtemplates"));
        raw(&server, "PATCH", &path, "application/apply-patch+yaml", object.to_string()).await
    };
    let template = |version: &str, request: Value, labels: Value| {
        json!({"apiVersion": format!("resource.k8s.io/{version}"), "kind": "ResourceClaimTemplate",
            "metadata": {"name": "t", "labels": labels}, "spec": {"spec": {"devices": {"requests": [request]}}}})
    };
    let flat = |class: &str| json!({"name": "a", "deviceClassName": class, "allocationMode": "All"});
    let nested =
        |class: &str| json!({"name": "a", "exactly": {"deviceClassName": class, "allocationMode": "All"}});
    let (code, made) =
        apply("v1beta1", "fieldManager=old", template("v1beta1", flat("c"), json!({"x": "1"}))).await;
    assert_eq!(code, 201, "{made}");
    let owner = &made["metadata"]["managedFields"][0];
    assert_eq!((&owner["manager"], &owner["apiVersion"]), (&json!("old"), &json!("resource.k8s.io/v1beta1")));
    // The same in the words of another version is no conflict, and both own it.
    let (code, both) = apply("v1", "fieldManager=new", template("v1", nested("c"), json!({"y": "1"}))).await;
    assert_eq!(code, 200, "{both}");
    // They are ordered by the second in which they were written.
    let mut owners: Vec<_> = both["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["manager"].as_str().unwrap(), entry["apiVersion"].as_str().unwrap()))
        .collect();
    owners.sort_unstable();
    assert_eq!(owners, [("new", "resource.k8s.io/v1"), ("old", "resource.k8s.io/v1beta1")]);
    // What nobody applies any more goes, whichever version named it.
    let (_, less) = apply("v1beta1", "fieldManager=old", template("v1beta1", flat("c"), json!({}))).await;
    assert_eq!(less["metadata"]["labels"], json!({"y": "1"}), "{less}");
    let (code, conflict) =
        apply("v1", "fieldManager=new", template("v1", nested("c"), json!({"y": "1", "z": "1"}))).await;
    assert_eq!(code, 200, "{conflict}");
    let (code, status) =
        apply("v1beta1", "fieldManager=third", template("v1beta1", flat("c"), json!({"y": "2"}))).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")), "{status}");
    assert!(
        status["message"].as_str().unwrap().contains("conflict with \"new\": .metadata.labels.y"),
        "{status}"
    );
}

#[tokio::test]
async fn autoscalers_keep_what_their_first_version_has_no_fields_for() {
    let server = server().await;
    let path =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 70}}});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3,
            "metrics": [memory, cpu], "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}});
    let (code, made) = send(&server, "POST", &path("v2"), &scaler).await;
    assert_eq!(code, 201, "{made}");
    let (_, mut old) = get(&server, &format!("{}/h", path("v1"))).await;
    assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 50);
    assert_eq!(
        old["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"],
        r#"[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":70}}]"#
    );
    old["spec"]["maxReplicas"] = json!(4);
    let (code, put) = send(&server, "PUT", &format!("{}/h", path("v1")), &old).await;
    assert_eq!((code, &put["spec"]["maxReplicas"]), (200, &json!(4)), "{put}");
    let (_, new) = get(&server, &format!("{}/h", path("v2"))).await;
    assert_eq!(new["spec"]["metrics"], json!([memory, cpu]));
    assert_eq!(new["spec"]["behavior"], made["spec"]["behavior"]);
    assert_eq!(new["metadata"].get("annotations"), None, "{new}");
}
