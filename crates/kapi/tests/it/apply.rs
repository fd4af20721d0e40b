//! Server-side apply through the server: who owns what, conflicts, and what becomes of it (KEP-555).

use serde_json::{Value, json};

use crate::harness::{get, json as send, send as raw, server};

const APPLY: &str = "application/apply-patch+yaml";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// What is owned by whom: manager, operation and subresource, with the fields.
fn owners(object: &Value) -> Vec<(String, Value)> {
    let entry = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let words = [text("manager"), text("operation"), text("subresource"), text("apiVersion")];
        (words.join(" "), entry["fieldsV1"].clone())
    };
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(entry).collect()
}

async fn apply(server: &kapi::ApiServer, path: &str, manager: &str, object: &Value) -> (u16, Value) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = format!("{path}?fieldManager={manager}&{query}");
    raw(server, "PATCH", &path, APPLY, object.to_string()).await
}

fn map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

#[tokio::test]
async fn applies_own_what_they_say_and_conflicts_name_the_owner() {
    let server = server().await;
    let path = format!("{MAPS}/a");
    let (code, made) = apply(&server, &path, "alice", &map(&json!({"x": "1", "y": "1"}))).await;
    assert_eq!(
        (code, owners(&made)),
        (201, vec![("alice Apply  v1".to_owned(), json!({"f:data": {"f:x": {}, "f:y": {}}}))]),
        "{made}"
    );
    // The same again changes nothing, not even the revision.
    let (code, again) = apply(&server, &path, "alice", &map(&json!({"x": "1", "y": "1"}))).await;
    assert_eq!((code, &again), (200, &made));
    let (code, status) = apply(&server, &path, "bob", &map(&json!({"x": "2"}))).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")), "{status}");
    assert_eq!(status["message"], "Apply failed with 1 conflict: conflict with \"alice\": .data.x");
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"alice\"", "field": ".data.x"}])
    );
    let (_, forced) = apply(&server, &format!("{path}?force=true"), "bob", &map(&json!({"x": "2"}))).await;
    let expected = vec![
        ("alice Apply  v1".to_owned(), json!({"f:data": {"f:y": {}}})),
        ("bob Apply  v1".to_owned(), json!({"f:data": {"f:x": {}}})),
    ];
    assert_eq!((&forced["data"], owners(&forced)), (&json!({"x": "2", "y": "1"}), expected));
    // What is not applied any more goes, unless somebody else wants it.
    let (_, less) = apply(&server, &path, "alice", &map(&json!({"z": "1"}))).await;
    assert_eq!(less["data"], json!({"x": "2", "z": "1"}));
    let (_, dry) = apply(&server, &format!("{path}?dryRun=All"), "alice", &map(&json!({}))).await;
    assert_eq!(dry["data"], json!({"x": "2"}));
    assert_eq!(get(&server, &path).await.1, less);
}

#[tokio::test]
async fn every_write_says_who_owns_what() {
    let server = server().await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let (_, made) = send(&server, "POST", &format!("{DEPLOYMENTS}?fieldManager=maker"), &deployment).await;
    let (first, fields) = &owners(&made)[0];
    assert_eq!(first, "maker Update  apps/v1");
    assert_eq!(
        fields["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]["f:image"],
        json!({})
    );
    // A status is owned apart, and an update that changes nothing changes no owner.
    let mut status = made.clone();
    status["status"]["replicas"] = json!(2);
    let path = format!("{DEPLOYMENTS}/d");
    let (_, written) = send(&server, "PUT", &format!("{path}/status?fieldManager=controller"), &status).await;
    let controller = owners(&written).into_iter().find(|(who, _)| who.starts_with("controller")).unwrap();
    assert_eq!(
        controller,
        ("controller Update status apps/v1".to_owned(), json!({"f:status": {"f:replicas": {}}})),
        "{written}"
    );
    let (_, same) = send(&server, "PUT", &format!("{path}?fieldManager=other"), &written).await;
    assert_eq!(same, written);
    // The scale's number is the deployment's.
    let scale = json!({"spec": {"replicas": 5}}).to_string();
    let merge = "application/merge-patch+json";
    let (code, shown) =
        raw(&server, "PATCH", &format!("{path}/scale?fieldManager=scaler"), merge, scale).await;
    assert_eq!((code, &shown["spec"]["replicas"]), (200, &json!(5)), "{shown}");
    let (_, now) = get(&server, &path).await;
    let scaler =
        owners(&now).into_iter().find(|(who, _)| who.starts_with("scaler")).expect("the scaler owns");
    assert_eq!(scaler, ("scaler Update scale apps/v1".to_owned(), json!({"f:spec": {"f:replicas": {}}})));
    let maker = owners(&now).into_iter().find(|(who, _)| who.starts_with("maker")).unwrap();
    assert!(maker.1["f:spec"].get("f:replicas").is_none(), "the maker does not any more");
}

#[tokio::test]
async fn what_can_not_be_applied_is_refused() {
    let server = server().await;
    let path = format!("{MAPS}/a");
    for (query, body, code, message) in [
        (
            "fieldManager=me",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}),
            400,
            "invalid object type: /v1, Kind=Secret",
        ),
        (
            "fieldManager=me",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": [{}]}}),
            400,
            "metadata.managedFields must be nil",
        ),
        ("fieldManager=me", json!([1]), 400, "error decoding YAML"),
        (
            "",
            map(&json!({})),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            "fieldManager=me",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "frobs": 1}),
            500,
            "failed to create typed patch object (default/a; /v1, Kind=ConfigMap): .frobs: field not declared in schema",
        ),
        (
            "fieldManager=me",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
    ] {
        let (got, status) = raw(&server, "PATCH", &format!("{path}?{query}"), APPLY, body.to_string()).await;
        assert_eq!(got, code, "{body}: {status}");
        assert!(status["message"].as_str().unwrap().starts_with(message), "{body}: {status}");
    }
    let merge = "application/merge-patch+json";
    assert_eq!(raw(&server, "PATCH", &format!("{path}?force=true"), merge, "{}").await.0, 422);
    assert_eq!(get(&server, &path).await.0, 404);
}

/// Admission adds tolerations to a list that is applied as a whole; applying it again must not take them away.
#[tokio::test]
async fn a_pod_with_tolerations_is_applied_twice() {
    let server = server().await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "tolerations": [{"key": "mine", "operator": "Exists"}], "containers": [{"name": "c", "image": "i"}]}});
    let path = "/api/v1/namespaces/default/pods/p";
    let (code, made) = apply(&server, path, "me", &pod).await;
    assert_eq!((code, made["spec"]["tolerations"].as_array().map(Vec::len)), (201, Some(3)), "{made}");
    let (code, again) = apply(&server, path, "me", &pod).await;
    assert_eq!((code, &again), (200, &made));
}
