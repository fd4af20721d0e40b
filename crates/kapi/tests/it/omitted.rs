//! What Go's encoder leaves out is neither stored nor answered nor owned, as upstream. What is expected follows from the
//! `omitempty` of upstream's Go types.

use serde_json::{Value, json};

use crate::harness::{get, json as send, send as raw, server};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(rest: &Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {}, "finalizers": [], "annotations": {"kept": ""}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "paused": false, "minReadySeconds": 0,
            "template": {"metadata": {"labels": {"a": "b"}, "annotations": {}}, "spec": {
                "hostNetwork": false, "nodeSelector": {}, "tolerations": [], "securityContext": {},
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "i", "command": [], "env": [{"name": "E", "value": ""}], "resources": {}}]}}}});
    for (key, value) in rest.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn assert_omitted(found: &Value) {
    let metadata = &found["metadata"];
    assert_eq!((metadata.get("labels"), metadata.get("finalizers")), (None, None), "{found}");
    assert_eq!(metadata["annotations"]["kept"], "", "{found}");
    assert_eq!((found["spec"].get("paused"), found["spec"].get("minReadySeconds")), (None, None), "{found}");
    let pod = &found["spec"]["template"]["spec"];
    for absent in ["hostNetwork", "nodeSelector", "tolerations"] {
        assert_eq!(pod.get(absent), None, "{absent}: {found}");
    }
    assert_eq!(
        (&pod["securityContext"], &pod["volumes"][0]["emptyDir"]),
        (&json!({}), &json!({})),
        "{found}"
    );
    let container = &pod["containers"][0];
    assert_eq!((container.get("command"), &container["env"]), (None, &json!([{"name": "E"}])), "{found}");
    assert_eq!(container["resources"], json!({}), "{found}");
}

#[tokio::test]
async fn empty_fields_are_not_stored_and_change_nothing() {
    let server = server().await;
    let path = format!("{DEPLOYMENTS}/d");
    let (code, made) = send(&server, "POST", DEPLOYMENTS, &deployment(&json!({}))).await;
    assert_eq!(code, 201, "{made}");
    assert_omitted(&made);
    assert_omitted(&get(&server, &path).await.1);
    let owned = made["metadata"]["managedFields"].to_string();
    for absent in ["f:finalizers", "f:tolerations", "f:command", "f:hostNetwork", "f:paused", "f:value"] {
        assert!(!owned.contains(&format!("{absent:?}")), "{absent}: {owned}");
    }
    assert!(owned.contains(r#""f:securityContext""#), "{owned}");
    // The same again is no change, so neither the generation nor the revision moves.
    let (code, same) = send(&server, "PUT", &path, &deployment(&json!({}))).await;
    assert_eq!((code, &same["metadata"]["generation"]), (200, &json!(1)), "{same}");
    assert_eq!(same, made);
    let patch =
        json!({"spec": {"template": {"spec": {"imagePullSecrets": [], "hostAliases": []}}}}).to_string();
    let (code, patched) = raw(&server, "PATCH", &path, "application/merge-patch+json", patch).await;
    assert_eq!((code, &patched["metadata"]["generation"]), (200, &json!(1)), "{patched}");
    assert_eq!(patched["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // A pointer's zero is a value.
    let (_, scaled) = send(&server, "PUT", &path, &deployment(&json!({"replicas": 0}))).await;
    assert_eq!((&scaled["spec"]["replicas"], &scaled["metadata"]["generation"]), (&json!(0), &json!(2)));
}

#[tokio::test]
async fn what_is_emptied_goes() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let map = |data: Value| json!({"metadata": {"name": "m", "labels": {"a": "b"}}, "data": data});
    let (code, _) = send(&server, "POST", path, &map(json!({"a": "b"}))).await;
    assert_eq!(code, 201);
    let (code, found) = send(&server, "PUT", &format!("{path}/m"), &map(json!({}))).await;
    assert_eq!((code, found.get("data")), (200, None), "{found}");
    assert!(!found["metadata"]["managedFields"].to_string().contains("f:data"), "{found}");
}
