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

/// A definition of gadgets with this schema of the specification.
fn gadgets(spec: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]},
    })
}

const GADGETS: &str = "/apis/example.com/v1/namespaces/default/gadgets";

fn gadget(spec: &Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": spec})
}

#[tokio::test]
async fn objects_are_what_their_schema_says() {
    let server = server().await;
    let schema = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]+$"},
        "size": {"type": "string", "default": "M", "enum": ["S", "M", "L"]},
        "count": {"type": "integer", "minimum": 1},
        "port": {"x-kubernetes-int-or-string": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}}});
    assert_eq!(send(&server, "POST", DEFINITIONS, &gadgets(&schema)).await.0, 201);
    for (spec, message) in [
        (json!({}), "spec.name: Required value"),
        (json!({"name": "toolong"}), "spec.name: Too long: may not be more than 5 bytes"),
        (
            json!({"name": "ABC"}),
            "spec.name: Invalid value: \"ABC\": spec.name in body should match '^[a-z]+$'",
        ),
        (
            json!({"name": "a", "size": "XL"}),
            "spec.size: Unsupported value: \"XL\": supported values: \"S\", \"M\", \"L\"",
        ),
        (
            json!({"name": "a", "count": 0}),
            "spec.count: Invalid value: 0: spec.count in body should be greater than or equal to 1",
        ),
        (
            json!({"name": "a", "count": "x"}),
            "spec.count: Invalid value: \"string\": spec.count in body must be of type integer: \"string\"",
        ),
        (json!({"name": "a", "tags": ["x", "x"]}), "spec.tags[1]: Duplicate value: \"x\""),
    ] {
        let (code, status) = send(&server, "POST", GADGETS, &gadget(&spec)).await;
        assert_eq!(code, 422, "{spec}: {status}");
        let expected = format!("Gadget.example.com \"a\" is invalid: {message}");
        assert!(status["message"].as_str().unwrap().starts_with(&expected), "{spec}: {status}");
    }
    let spec = json!({"name": "a", "bogus": 1, "free": {"x": {"y": 1}}, "port": "http"});
    let strict = format!("{GADGETS}?fieldValidation=Strict");
    let (code, status) = send(&server, "POST", &strict, &gadget(&spec)).await;
    assert_eq!(code, 400, "{status}");
    assert!(
        status["message"].as_str().unwrap().ends_with("strict decoding error: unknown field \"spec.bogus\""),
        "{status}"
    );
    let (code, made) = send(&server, "POST", GADGETS, &gadget(&spec)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"name": "a", "size": "M", "free": {"x": {"y": 1}}, "port": "http"}));
    let strategic = "application/strategic-merge-patch+json";
    assert_eq!(raw(&server, "PATCH", &format!("{GADGETS}/a"), strategic, "{}").await.0, 415);
}

/// Defaults of a schema that came later hold for objects that were there before, from when it is changed on.
#[tokio::test]
async fn a_changed_schema_is_seen_in_old_objects() {
    let server = server().await;
    let schema =
        json!({"type": "object", "properties": {"name": {"type": "string"}, "gone": {"type": "string"}}});
    assert_eq!(send(&server, "POST", DEFINITIONS, &gadgets(&schema)).await.0, 201);
    let object = gadget(&json!({"name": "a", "gone": "soon"}));
    assert_eq!(send(&server, "POST", GADGETS, &object).await.0, 201);
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let (_, mut crd) = get(&server, &path).await;
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] =
        json!({"name": {"type": "string"}, "size": {"type": "string", "default": "M"}});
    let (code, answer) = send(&server, "PUT", &path, &crd).await;
    assert_eq!(code, 200, "{answer}");
    let (_, now) = get(&server, &format!("{GADGETS}/a")).await;
    assert_eq!(now["spec"], json!({"name": "a", "size": "M"}));
    let (_, list) = get(&server, GADGETS).await;
    assert_eq!(list["items"][0]["spec"], now["spec"]);
}

#[tokio::test]
async fn rules_are_asked_and_what_did_not_change_may_stay() {
    let server = server().await;
    let rules = json!([
        {"rule": "self.low <= self.high", "message": "low must not be above high"},
        {"rule": "self.low >= oldSelf.low", "messageExpression": "oldSelf.low == 1 ? 'low may not sink below 1' : 'low may not sink'", "fieldPath": ".low", "reason": "FieldValueForbidden"},
    ]);
    let mut schema = json!({"type": "object", "properties": {
        "low": {"type": "integer"}, "high": {"type": "integer"},
        "names": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 10, "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}}}});
    schema["x-kubernetes-validations"] = rules;
    let (code, made) = send(&server, "POST", DEFINITIONS, &gadgets(&schema)).await;
    assert_eq!(code, 201, "{made}");
    let bad = gadget(&json!({"low": 3, "high": 1, "names": ["good", "bad"]}));
    let (code, status) = send(&server, "POST", GADGETS, &bad).await;
    assert_eq!(code, 422, "{status}");
    let message = status["message"].as_str().unwrap();
    for part in [
        "spec: Invalid value: low must not be above high",
        "spec.names[1]: Invalid value: \"bad\": failed rule: self != 'bad'",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let (_, made) =
        send(&server, "POST", GADGETS, &gadget(&json!({"low": 1, "high": 5, "names": ["good"]}))).await;
    let mut sunk = made.clone();
    sunk["spec"]["low"] = json!(0);
    let (code, status) = send(&server, "PUT", &format!("{GADGETS}/a"), &sunk).await;
    assert_eq!(
        (code, status["message"].as_str().unwrap()),
        (422, "Gadget.example.com \"a\" is invalid: spec.low: Forbidden: low may not sink below 1"),
        "{status}"
    );

    // A rule that comes later does not stop changes of something else (KEP-4008).
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let (_, mut crd) = get(&server, &path).await;
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["names"]["items"]
        ["x-kubernetes-validations"] = json!([{"rule": "self == 'best'"}]);
    assert_eq!(send(&server, "PUT", &path, &crd).await.0, 200);
    let raise = json!({"spec": {"low": 2}}).to_string();
    let merge = "application/merge-patch+json";
    let (code, status) = raw(&server, "PATCH", &format!("{GADGETS}/a"), merge, raise).await;
    assert_eq!(code, 200, "{status}");
    let more = json!({"spec": {"names": ["good", "fine"]}}).to_string();
    let (code, status) = raw(&server, "PATCH", &format!("{GADGETS}/a"), merge, more).await;
    assert_eq!(code, 422, "entries of a list without keys can't be compared: {status}");
}

#[tokio::test]
async fn rules_that_can_not_work_are_refused_with_the_definition() {
    let server = server().await;
    for (rule, message) in [
        (
            json!({"rule": "self.nope > 1"}),
            "rule: Invalid value: {\"rule\":\"self.nope > 1\"}: compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
        ),
        (json!({"rule": "self.names.size()"}), "cel expression must evaluate to a bool"),
        (json!({"rule": " "}), "rule: Required value: rule is not specified"),
        (json!({"rule": "true", "reason": "Whim"}), "reason: Unsupported value: \"Whim\""),
        (
            json!({"rule": "true", "fieldPath": ".none"}),
            "fieldPath: Invalid value: \".none\": must be a valid path",
        ),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            "optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
        (
            json!({"rule": "self.names.all(x, self.names.all(y, self.names.all(z, x == y || y == z)))"}),
            "rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x",
        ),
    ] {
        let mut schema = json!({"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}});
        schema["x-kubernetes-validations"] = json!([rule]);
        let (code, status) = send(&server, "POST", DEFINITIONS, &gadgets(&schema)).await;
        assert_eq!(code, 422, "{rule}: {status}");
        let found = status["message"].as_str().unwrap();
        assert!(found.contains(message), "{rule}: {found}");
        assert!(
            found.contains("spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]."),
            "{found}"
        );
    }
}

#[tokio::test]
async fn a_watch_ends_with_its_definition() {
    use http_body_util::{BodyExt as _, Full};
    use tower::ServiceExt as _;

    let server = server().await;
    assert_eq!(send(&server, "POST", DEFINITIONS, &definition("shirts", "Shirt", "sh")).await.0, 201);
    assert_eq!(send(&server, "POST", SHIRTS, &shirt("a", "blue")).await.0, 201);
    let request =
        http::Request::get(format!("{SHIRTS}?watch=true")).body(Full::<bytes::Bytes>::default()).unwrap();
    let admin = kapi::authn::UserInfo::new("admin", [kapi::authn::MASTERS]);
    let mut body = server.as_user(admin).oneshot(request).await.unwrap().into_body();
    let mut seen = String::new();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    seen.push_str(std::str::from_utf8(&frame).unwrap());
    let path = format!("{DEFINITIONS}/shirts.example.com");
    assert_eq!(send(&server, "DELETE", &path, &Value::Null).await.0, 200);
    while let Some(frame) = body.frame().await {
        seen.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    assert!(seen.starts_with("{\"type\":\"ADDED\""), "{seen}");
}
