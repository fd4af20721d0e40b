//! Admission webhooks, through requests; the webhooks are servers in this process. Expected results: upstream's
//! `admission/plugin/webhook` and its `testing/testcase.go`.

use std::sync::{Arc, Mutex};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use kapi::ApiServer;
use serde_json::{Value, json};

use crate::{
    aggregate::{Local, pki},
    harness::{json as send, warned},
};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

type Reviews = Arc<Mutex<Vec<Value>>>;

/// A server with a service that answers reviews with what `answer` makes of the path and the request; what it was asked is
/// kept.
async fn with_service(answer: fn(&str, &Value) -> Value) -> (ApiServer, Reviews, String) {
    let pki = pki("hook.default.svc");
    let reviews = Reviews::default();
    let seen = Arc::clone(&reviews);
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let path = request.uri().path_and_query().unwrap().to_string();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let review: Value = serde_json::from_slice(&body).unwrap();
            let mut response = answer(&path, &review["request"]);
            response["uid"] = review["request"]["uid"].clone();
            seen.lock().unwrap().push(json!([path, review["request"]]));
            let answer =
                json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
            Ok::<_, std::convert::Infallible>(Response::new(kapi::Body::from(Bytes::from(
                answer.to_string(),
            ))))
        }
    });
    let dialer = Local {
        service: ("default", "hook"),
        tls: pki.server,
        answer: tower::util::BoxCloneSyncService::new(service),
    };
    let server = ApiServer::builder().services(Arc::new(dialer)).build().unwrap();
    server.bootstrap().await.unwrap();
    (server, reviews, STANDARD.encode(&pki.authority_pem))
}

/// Registers a webhook; `more` is what it has beside the usual.
async fn register(server: &ApiServer, kind: &str, name: &str, authority: &str, more: Value) {
    let mut hook = json!({
        "name": format!("{name}.example.com"), "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"caBundle": authority, "service": {"namespace": "default", "name": "hook", "path": format!("/{name}")}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    let body = json!({"metadata": {"name": name}, "webhooks": [hook]});
    let path = format!("{GROUP}/{kind}webhookconfigurations");
    let (code, answer) = send(server, "POST", &path, &body).await;
    assert_eq!(code, 201, "{answer}");
}

/// What the path says: refuses, warns, or sets a key of the data.
fn answer(path: &str, request: &Value) -> Value {
    let patch = |operations: Value| json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())});
    match path.split('?').next().unwrap() {
        "/deny" => json!({"allowed": false, "status": {"message": "no", "code": 403, "reason": "Forbidden"}}),
        "/warn" => json!({"allowed": true, "warnings": ["look out"]}),
        "/set" => patch(json!([{"op": "add", "path": "/data/set", "value": "1"}])),
        "/seen" => {
            let seen = if request["object"]["data"]["set"] == "1" { "yes" } else { "no" };
            patch(json!([{"op": "add", "path": "/data/seen", "value": seen}]))
        }
        "/owners" => {
            patch(json!([{"op": "add", "path": "/metadata/managedFields", "value": [{"manager": "x"}]}]))
        }
        "/broken" => patch(json!([{"op": "remove", "path": "/nothing"}])),
        "/untyped" => json!({"allowed": true, "patch": STANDARD.encode("[]")}),
        _ => json!({"allowed": true}),
    }
}

fn map() -> Value {
    json!({"metadata": {"name": "m", "labels": {"a": "b"}}, "data": {"x": "1"}})
}

#[tokio::test]
async fn webhooks_decide_and_change() {
    let conditions = |expression: &str| json!({"matchConditions": [{"name": "c", "expression": expression}]});
    for (kind, name, more, query, expected) in [
        ("validating", "allow", json!({}), "", Ok(json!({"x": "1"}))),
        (
            "validating",
            "deny",
            json!({}),
            "",
            Err((403, "admission webhook \"deny.example.com\" denied the request: no")),
        ),
        (
            "mutating",
            "deny",
            json!({}),
            "",
            Err((403, "admission webhook \"deny.example.com\" denied the request: no")),
        ),
        ("mutating", "set", json!({}), "", Ok(json!({"x": "1", "set": "1"}))),
        ("mutating", "owners", json!({}), "", Ok(json!({"x": "1"}))),
        (
            "validating",
            "set",
            json!({}),
            "",
            Err((
                500,
                "Internal error occurred: failed calling webhook \"set.example.com\": received invalid webhook response: validating webhook may not return response.patch",
            )),
        ),
        (
            "mutating",
            "untyped",
            json!({}),
            "",
            Err((
                500,
                "Internal error occurred: failed calling webhook \"untyped.example.com\": received invalid webhook response: webhook returned response.patch but not response.patchType",
            )),
        ),
        ("mutating", "untyped", json!({"failurePolicy": "Ignore"}), "", Ok(json!({"x": "1"}))),
        (
            "mutating",
            "broken",
            json!({"failurePolicy": "Ignore"}),
            "",
            Err((500, "Internal error occurred: *")),
        ),
        (
            "validating",
            "deny",
            json!({"objectSelector": {"matchLabels": {"a": "c"}}}),
            "",
            Ok(json!({"x": "1"})),
        ),
        (
            "validating",
            "deny",
            json!({"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["default"]}]}}),
            "",
            Ok(json!({"x": "1"})),
        ),
        ("validating", "deny", conditions("object.data.x == '2'"), "", Ok(json!({"x": "1"}))),
        (
            "validating",
            "deny",
            conditions("!('x' in object.data) || request.userInfo.username == 'jane'"),
            "",
            Ok(json!({"x": "1"})),
        ),
        (
            "validating",
            "allow",
            conditions("object.data.y == '2'"),
            "",
            Err((
                403,
                "configmaps \"m\" is forbidden: expression 'object.data.y == '2'' resulted in error: no such key: y",
            )),
        ),
        (
            "validating",
            "deny",
            json!({"sideEffects": "NoneOnDryRun"}),
            "?dryRun=All",
            Err((403, "admission webhook \"deny.example.com\" denied the request: no")),
        ),
        (
            "validating",
            "allow",
            json!({"clientConfig": {"service": {"namespace": "default", "name": "lost"}, "caBundle": null}}),
            "",
            Err((
                500,
                "Internal error occurred: failed calling webhook \"allow.example.com\": failed to call webhook: Post \"https://lost.default.svc:443/?timeout=10s\": *",
            )),
        ),
    ] {
        let (server, reviews, authority) = with_service(answer).await;
        register(&server, kind, name, &authority, more.clone()).await;
        let (code, answer) = send(&server, "POST", &format!("{MAPS}{query}"), &map()).await;
        match expected {
            Ok(data) => assert_eq!((code, &answer["data"]), (201, &data), "{name} {more}: {answer}"),
            Err((expected, why)) => {
                let message = answer["message"].as_str().unwrap_or_default();
                let matches = why.strip_suffix('*').map_or(message == why, |why| message.starts_with(why));
                assert!(code == expected && matches, "{name} {more}: {code} {message}");
            }
        }
        assert!(reviews.lock().unwrap().len() <= 2, "{name}");
    }
}

#[tokio::test]
async fn reviews_say_what_is_asked() {
    let (server, reviews, authority) = with_service(answer).await;
    register(&server, "validating", "warn", &authority, json!({"timeoutSeconds": 3})).await;
    let body = serde_json::to_vec(&map()).unwrap();
    let (code, _, warnings) = warned(&server, "POST", MAPS, "application/json", body).await;
    assert_eq!((code, &warnings[..]), (201, &["look out".to_owned()][..]));
    let patch = br#"{"data": {"x": "2"}}"#.to_vec();
    let path = format!("{MAPS}/m");
    let given = "?fieldManager=me&fieldValidation=Strict";
    warned(&server, "PATCH", &format!("{path}{given}"), "application/merge-patch+json", patch).await;
    let dry = json!({"gracePeriodSeconds": 7, "propagationPolicy": "Orphan", "dryRun": ["All"]});
    assert_eq!(send(&server, "DELETE", &path, &dry).await.0, 200);
    assert_eq!(send(&server, "DELETE", &path, &Value::Null).await.0, 200);
    let reviews = reviews.lock().unwrap();
    let x = |review: &Value, key: &str| review[1][key]["data"]["x"].clone();
    let told: Vec<Value> = reviews
        .iter()
        .map(|review| {
            assert_eq!(review[0], "/warn?timeout=3s");
            assert_eq!(review[1]["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
            assert_eq!(
                review[1]["requestResource"],
                json!({"group": "", "version": "v1", "resource": "configmaps"})
            );
            assert_eq!(review[1]["userInfo"]["username"], "admin");
            json!([review[1]["operation"], review[1]["name"], x(review, "object"), x(review, "oldObject")])
        })
        .collect();
    let expected = json!([
        ["CREATE", "m", "1", null],
        ["UPDATE", "m", "2", "1"],
        ["DELETE", "m", null, "2"],
        ["DELETE", "m", null, "2"]
    ]);
    assert_eq!(json!(told), expected);
    // The options are those of what a request comes to, with what was given.
    let options: Vec<Value> = reviews.iter().map(|review| review[1]["options"].clone()).collect();
    let kind = |kind: &str, more: Value| {
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let expected = [
        kind("CreateOptions", json!({})),
        kind("UpdateOptions", json!({"fieldManager": "me", "fieldValidation": "Strict"})),
        kind("DeleteOptions", dry),
        kind("DeleteOptions", json!({})),
    ];
    assert_eq!(options, expected);
    assert_eq!(
        reviews.iter().map(|review| review[1]["dryRun"] == true).collect::<Vec<_>>(),
        [false, false, true, false]
    );
    // Owned fields are sets of fields, not texts.
    assert!(reviews[1][1]["oldObject"]["metadata"]["managedFields"][0]["fieldsV1"].is_object());
}

#[tokio::test]
async fn webhooks_are_called_again_after_others_have_changed_the_object() {
    for (policy, expected) in [("Never", "no"), ("IfNeeded", "yes")] {
        let (server, _, authority) = with_service(answer).await;
        register(&server, "mutating", "seen", &authority, json!({"reinvocationPolicy": policy})).await;
        register(&server, "mutating", "set", &authority, json!({})).await;
        let (code, answer) = send(&server, "POST", MAPS, &map()).await;
        assert_eq!((code, &answer["data"]["seen"]), (201, &json!(expected)), "{policy}: {answer}");
    }
}

/// A webhook about everything can be taken away again, and one with effects is not called when nothing is kept.
#[tokio::test]
async fn webhooks_are_not_called_about_webhooks() {
    let (server, _, authority) = with_service(answer).await;
    let everything = json!({"rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]});
    register(&server, "validating", "deny", &authority, everything).await;
    assert_eq!(send(&server, "POST", MAPS, &map()).await.0, 403);
    let path = format!("{GROUP}/validatingwebhookconfigurations/deny");
    assert_eq!(send(&server, "DELETE", &path, &Value::Null).await.0, 200);
    assert_eq!(send(&server, "POST", MAPS, &map()).await.0, 201);
}

/// Expected results: `endpoints/handlers/rest.go`, `ConnectResource`, and the end-to-end test "should be able to deny attaching pod".
#[tokio::test]
async fn connections_are_shown_before_they_are_made() {
    let (server, reviews, authority) = with_service(answer).await;
    let rules = |operation: &str| json!({"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": ["pods/*", "services/proxy", "nodes/proxy"]}]});
    register(&server, "mutating", "see", &authority, rules("CONNECT")).await;
    register(&server, "validating", "deny", &authority, rules("CONNECT")).await;
    register(&server, "validating", "other", &authority, rules("CREATE")).await;
    let pods = "/api/v1/namespaces/default/pods/p";
    for (method, path, name, options) in [
        (
            "POST",
            format!("{pods}/exec?command=a&command=b&stdin=true&container=c"),
            "p",
            json!({"kind": "PodExecOptions", "command": ["a", "b"], "stdin": true, "container": "c"}),
        ),
        ("GET", format!("{pods}/exec?command=a"), "p", json!({"kind": "PodExecOptions", "command": ["a"]})),
        (
            "POST",
            format!("{pods}/attach?stdout=true&tty=false"),
            "p",
            json!({"kind": "PodAttachOptions", "stdout": true}),
        ),
        (
            "POST",
            format!("{pods}/portforward?ports=80"),
            "p",
            json!({"kind": "PodPortForwardOptions", "ports": [80]}),
        ),
        ("DELETE", format!("{pods}/proxy/a/b"), "p", json!({"kind": "PodProxyOptions", "path": "/a/b"})),
        (
            "GET",
            "/api/v1/namespaces/default/services/https:s:1/proxy/".to_owned(),
            "https:s:1",
            json!({"kind": "ServiceProxyOptions", "path": "/"}),
        ),
        (
            "GET",
            "/api/v1/nodes/n/proxy/metrics".to_owned(),
            "n",
            json!({"kind": "NodeProxyOptions", "path": "/metrics"}),
        ),
    ] {
        reviews.lock().unwrap().clear();
        let (code, answer) = send(&server, method, &path, &Value::Null).await;
        let why = "admission webhook \"deny.example.com\" denied the request: no";
        assert_eq!((code, &answer["message"]), (403, &json!(why)), "{path}: {answer}");
        let seen = reviews.lock().unwrap().clone();
        let asked: Vec<&str> = seen.iter().filter_map(|review| review[0].as_str()).collect();
        assert_eq!(asked, ["/see?timeout=10s", "/deny?timeout=10s"], "{path}");
        for review in seen {
            let review = &review[1];
            let mut expected = options.clone();
            expected["apiVersion"] = "v1".into();
            assert_eq!(review["object"], expected, "{path}");
            assert_eq!(
                review["kind"],
                json!({"group": "", "version": "v1", "kind": options["kind"]}),
                "{path}"
            );
            let rest = [
                &review["operation"],
                &review["name"],
                &review["oldObject"],
                &review["options"],
                &review["dryRun"],
            ];
            assert_eq!(
                rest,
                [&json!("CONNECT"), &json!(name), &Value::Null, &Value::Null, &json!(false)],
                "{path}"
            );
        }
    }
    // Logs are read; and what nobody minds goes on to where it fails for want of a pod.
    assert_eq!(send(&server, "GET", &format!("{pods}/log"), &Value::Null).await.0, 404);
    assert_eq!(
        send(&server, "DELETE", &format!("{GROUP}/validatingwebhookconfigurations/deny"), &Value::Null)
            .await
            .0,
        200
    );
    assert_eq!(send(&server, "POST", &format!("{pods}/exec?command=a"), &Value::Null).await.0, 404);
}

/// A policy can keep people out of containers, by what they want to run.
#[tokio::test]
async fn policies_see_connections() {
    let server = crate::harness::server().await;
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"]});
    let policy = json!({"metadata": {"name": "no-shells"}, "spec": {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "!('sh' in object.command)", "message": "no shells"}]}});
    let binding = json!({"metadata": {"name": "no-shells"}, "spec": {"policyName": "no-shells", "validationActions": ["Deny"]}});
    assert_eq!(send(&server, "POST", &format!("{GROUP}/validatingadmissionpolicies"), &policy).await.0, 201);
    assert_eq!(
        send(&server, "POST", &format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.0,
        201
    );
    let exec = "/api/v1/namespaces/default/pods/p/exec?command=";
    let (code, answer) = send(&server, "POST", &format!("{exec}sh"), &Value::Null).await;
    assert!(code == 422 && answer["message"].as_str().unwrap().contains("no shells"), "{code} {answer}");
    assert_eq!(send(&server, "POST", &format!("{exec}ls"), &Value::Null).await.0, 404);
}
