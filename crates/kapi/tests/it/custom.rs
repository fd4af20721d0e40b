//! Kinds that a CustomResourceDefinition brings.

use serde_json::{Value, json};

use crate::harness::{get, json as send, send as raw, server};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const SHIRTS: &str = "/apis/example.com/v1/namespaces/default/shirts";

fn definition(plural: &str, kind: &str, short: &str) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "color": {"type": "string", "description": "What colour it has."},
            "size": {"type": "string", "default": "M", "enum": ["S", "M", "L"]},
            "replicas": {"type": "integer", "minimum": 0}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": [short], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1}]},
                {"name": "v1alpha1", "served": true, "storage": false, "schema": schema, "deprecated": true}],
        },
    })
}

fn shirt(name: &str, color: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Shirt", "metadata": {"name": name}, "spec": {"color": color}})
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().unwrap();
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_definition_is_served_at_once_and_goes_with_its_objects() {
    let server = server().await;
    assert_eq!(get(&server, SHIRTS).await.0, 404);
    let (code, made) = send(&server, "POST", DEFINITIONS, &definition("shirts", "Shirt", "sh")).await;
    assert_eq!(code, 201, "{made}");
    let (_, crd) = get(&server, &format!("{DEFINITIONS}/shirts.example.com")).await;
    assert_eq!(condition(&crd, "Established")["reason"], "InitialNamesAccepted");
    assert_eq!(condition(&crd, "NamesAccepted")["reason"], "NoConflicts");
    assert_eq!(crd["status"]["acceptedNames"], crd["spec"]["names"]);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));

    let (code, made) = send(&server, "POST", SHIRTS, &shirt("a", "blue")).await;
    assert_eq!((code, &made["metadata"]["generation"]), (201, &json!(1)), "{made}");
    assert_eq!(send(&server, "POST", SHIRTS, &shirt("b", "red")).await.0, 201);
    let (_, list) = get(&server, &format!("{SHIRTS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("ShirtList"), 1));

    // The other version is the same object under another name, with a warning.
    let (_, other) = get(&server, "/apis/example.com/v1alpha1/namespaces/default/shirts/a").await;
    assert_eq!(
        (&other["apiVersion"], &other["spec"]["color"]),
        (&json!("example.com/v1alpha1"), &json!("blue"))
    );

    let (_, group) = get(&server, "/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let (_, resources) = get(&server, "/apis/example.com/v1").await;
    let names: Vec<_> =
        resources["resources"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["shirts", "shirts/status", "shirts/scale"]);
    let (_, document) = get(&server, "/openapi/v3/apis/example.com/v1").await;
    let schema = &document["components"]["schemas"]["com.example.v1.Shirt"];
    assert_eq!(schema["properties"]["spec"]["properties"]["color"]["description"], "What colour it has.");

    // An object that somebody holds, holds the definition.
    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    let merge = "application/merge-patch+json";
    let (code, answer) = raw(&server, "PATCH", &format!("{SHIRTS}/a"), merge, hold.to_string()).await;
    assert_eq!(code, 200, "{answer}");
    let path = format!("{DEFINITIONS}/shirts.example.com");
    let (code, going) = send(&server, "DELETE", &path, &Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(condition(&going, "Terminating")["reason"], "InstanceDeletionPending");
    assert_eq!(get(&server, &format!("{SHIRTS}/b")).await.0, 404);
    assert_eq!(get(&server, &format!("{SHIRTS}/a")).await.0, 200);
    assert_eq!(send(&server, "POST", SHIRTS, &shirt("c", "red")).await.0, 403);
    let release = json!({"metadata": {"finalizers": null}});
    assert_eq!(raw(&server, "PATCH", &format!("{SHIRTS}/a"), merge, release.to_string()).await.0, 200);
    assert_eq!(get(&server, &path).await.0, 404);
    assert_eq!(get(&server, SHIRTS).await.0, 404);
    assert_eq!(get(&server, "/apis/example.com").await.0, 404);
}

#[tokio::test]
async fn names_that_are_taken_wait_until_they_are_free() {
    let server = server().await;
    assert_eq!(send(&server, "POST", DEFINITIONS, &definition("shirts", "Shirt", "sh")).await.0, 201);
    assert_eq!(send(&server, "POST", DEFINITIONS, &definition("shoes", "Shoe", "sh")).await.0, 201);
    let path = format!("{DEFINITIONS}/shoes.example.com");
    let (_, shoes) = get(&server, &path).await;
    let accepted = condition(&shoes, "NamesAccepted");
    assert_eq!(
        (&accepted["reason"], &accepted["message"]),
        (&json!("ShortNamesConflict"), &json!("\"sh\" is already in use"))
    );
    assert_eq!(condition(&shoes, "Established")["reason"], "NotAccepted");
    assert_eq!(get(&server, "/apis/example.com/v1/namespaces/default/shoes").await.0, 404);
    assert_eq!(
        send(&server, "DELETE", &format!("{DEFINITIONS}/shirts.example.com"), &Value::Null).await.0,
        200
    );
    let (_, shoes) = get(&server, &path).await;
    assert_eq!(condition(&shoes, "Established")["status"], "True");
    assert_eq!(get(&server, "/apis/example.com/v1/namespaces/default/shoes").await.0, 200);
}

#[tokio::test]
async fn status_and_scale_are_apart_from_the_rest() {
    let server = server().await;
    assert_eq!(send(&server, "POST", DEFINITIONS, &definition("shirts", "Shirt", "sh")).await.0, 201);
    let mut object = shirt("a", "blue");
    object["spec"]["replicas"] = json!(2);
    object["status"] = json!({"replicas": 9});
    let (_, made) = send(&server, "POST", SHIRTS, &object).await;
    assert!(made.get("status").is_none());
    let mut status = made.clone();
    status["spec"]["color"] = json!("red");
    status["status"] = json!({"replicas": 2, "selector": "app=a"});
    let (code, written) = send(&server, "PUT", &format!("{SHIRTS}/a/status"), &status).await;
    assert_eq!(code, 200, "{written}");
    assert_eq!((&written["spec"]["color"], &written["metadata"]["generation"]), (&json!("blue"), &json!(1)));
    let (_, scale) = get(&server, &format!("{SHIRTS}/a/scale")).await;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(2), &json!({"replicas": 2, "selector": "app=a"}))
    );
    let more = json!({"spec": {"replicas": 5}}).to_string();
    let (code, scale) =
        raw(&server, "PATCH", &format!("{SHIRTS}/a/scale"), "application/merge-patch+json", more).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)), "{scale}");
    let (_, now) = get(&server, &format!("{SHIRTS}/a")).await;
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(2)));
}

#[tokio::test]
async fn protected_groups_need_an_approval() {
    let server = server().await;
    let mut crd = definition("shirts", "Shirt", "sh");
    crd["metadata"]["name"] = json!("shirts.x.k8s.io");
    crd["spec"]["group"] = json!("x.k8s.io");
    crd["metadata"]["annotations"] =
        json!({"api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/1111"});
    assert_eq!(send(&server, "POST", DEFINITIONS, &crd).await.0, 201);
    let (_, crd) = get(&server, &format!("{DEFINITIONS}/shirts.x.k8s.io")).await;
    assert_eq!(condition(&crd, "KubernetesAPIApprovalPolicyConformant")["reason"], "ApprovedAnnotation");
}
