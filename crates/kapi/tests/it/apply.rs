//! Server-side apply through the server: who owns what, conflicts, and what becomes of it (KEP-555).

use serde_json::{Value, json};

use crate::harness::{get, json as send, send as raw, server, warned};

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
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .frobs: field not declared in schema",
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

/// Asked of kube-apiserver 1.36 with the same patches. `status` is what is answered; the words are those of its message, or
/// of its warnings.
#[tokio::test]
async fn applied_yaml_is_read_strictly_as_upstream_reads_it() {
    const HEAD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let twice = format!("{HEAD}data:\n  a: \"1\"\n  a: \"2\"\ndata:\n  b: \"2\"\n");
    let lines = ["line 6: key \"a\" already set in map", "line 8: key \"data\" already set in map"];
    let unknown = format!("{HEAD}foo: x\ndata:\n  a: \"1\"\n  a: \"2\"\n");
    let undeclared =
        "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .foo: field not declared in schema";
    let json = "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"},\"data\":{\"a\":\"1\",\"a\":\"2\"}}";
    let strict = |lines: &[&str]| {
        let lines = lines.join("\n  ");
        format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {lines}"
        )
    };
    let array = "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}";
    let nameless = "the name of the object (a based on URL) was undeterminable: name must be provided";
    let server = server().await;
    for (validation, patch, status, message, warnings) in [
        ("Strict", &*twice, 400, strict(&lines), vec![]),
        ("Strict", json, 400, strict(&["line 1: key \"a\" already set in map"]), vec![]),
        ("Strict", &unknown, 500, undeclared.to_owned(), vec![]),
        ("Warn", &unknown, 500, undeclared.to_owned(), vec![]),
        ("Ignore", &unknown, 500, undeclared.to_owned(), vec![]),
        ("Strict", "- a\n", 400, array.to_owned(), vec![]),
        ("Warn", "", 400, "invalid object type: /, Kind=".to_owned(), vec![]),
        ("Warn", "apiVersion: v1\nkind: ConfigMap\n---\nx: y\n", 400, nameless.to_owned(), vec![]),
        ("Ignore", &twice, 201, String::new(), vec![]),
        ("Warn", &twice, 200, String::new(), lines.to_vec()),
        // What changes nothing is read as strictly.
        ("Strict", &twice, 400, strict(&lines), vec![]),
        ("Strict", HEAD, 200, String::new(), vec![]),
    ] {
        let path = format!(
            "/api/v1/namespaces/default/configmaps/a?fieldManager=m&force=true&fieldValidation={validation}"
        );
        let (code, answer, told) =
            warned(&server, "PATCH", &path, "application/apply-patch+yaml", patch.to_owned()).await;
        assert_eq!(
            (code, told),
            (status, warnings.into_iter().map(str::to_owned).collect()),
            "{patch}: {answer}"
        );
        assert_eq!(answer["message"].as_str().unwrap_or_default(), message, "{validation} {patch}");
    }
}

/// As above, for bodies of YAML that are created.
#[tokio::test]
async fn created_yaml_is_read_strictly_as_upstream_reads_it() {
    const HEAD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";
    let twice = format!("{HEAD}data:\n  a: \"1\"\n  a: \"2\"\n  b: \"2\"\n  a: \"3\"\n");
    let both = format!("{HEAD}foo: x\ndata:\n  a: \"1\"\n  a: \"2\"\n");
    let strict = |why: &str| {
        format!("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: {why}")
    };
    let errors = "yaml: unmarshal errors:\n  ";
    let (six, seven, eight) = (
        "line 6: key \"a\" already set in map",
        "line 7: key \"a\" already set in map",
        "line 8: key \"a\" already set in map",
    );
    let server = server().await;
    for (validation, body, status, message, warnings) in [
        ("Strict", &twice, 400, strict(&format!("{errors}{six}\n  {eight}")), vec![]),
        ("Strict", &both, 400, strict(&format!("{errors}{seven}, unknown field \"foo\"")), vec![]),
        ("Warn", &twice, 201, String::new(), vec![six, eight]),
        ("Warn", &both, 201, String::new(), vec![seven, "unknown field \"foo\""]),
        ("Ignore", &both, 201, String::new(), vec![]),
    ] {
        let path = format!("/api/v1/namespaces/default/configmaps?dryRun=All&fieldValidation={validation}");
        let (code, answer, told) = warned(&server, "POST", &path, "application/yaml", body.clone()).await;
        assert_eq!(
            (code, told),
            (status, warnings.into_iter().map(str::to_owned).collect()),
            "{body}: {answer}"
        );
        assert_eq!(answer["message"].as_str().unwrap_or_default(), message, "{validation} {body}");
    }
}
