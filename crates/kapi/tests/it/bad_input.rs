//! What makes no sense is refused with the right `Status`, and nothing is written.

use bytes::Bytes;
use http_body_util::Full;
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json as send, send as raw, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn bad_bodies_are_refused_and_nothing_is_written() {
    let server = server().await;
    let before = server.objects().snapshot().revision();
    let large = format!(r#"{{"metadata":{{"name":"a"}},"data":{{"a":"{}"}}}}"#, "x".repeat(4 << 20));
    let json = "application/json";
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    for (path, kind, body, code, reason, message) in [
        (MAPS, json, "{", 400, "BadRequest", "couldn't get version/kind; json parse error: "),
        (MAPS, json, "", 400, "BadRequest", "couldn't get version/kind; json parse error: "),
        (MAPS, json, "[1]", 400, "BadRequest", "couldn't get version/kind; json parse error: "),
        (MAPS, "application/yaml", "a: [", 400, "BadRequest", "error converting YAML to JSON: "),
        (
            MAPS,
            "text/plain",
            "a",
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format",
        ),
        (
            MAPS,
            json,
            r#"{"kind":"Pod","apiVersion":"v1"}"#,
            400,
            "BadRequest",
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            MAPS,
            json,
            r#"{"kind":"ConfigMap","apiVersion":"apps/v1"}"#,
            400,
            "BadRequest",
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            MAPS,
            json,
            r#"{"data":{"a":1}}"#,
            400,
            "BadRequest",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data.a of type string",
        ),
        (
            MAPS,
            json,
            r#"{"metadata":{"name":"A_b"}}"#,
            422,
            "Invalid",
            "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist",
        ),
        (
            MAPS,
            json,
            r#"{"metadata":{}}"#,
            422,
            "Invalid",
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            MAPS,
            json,
            r#"{"metadata":{"name":"a","labels":{"-x":"y"}}}"#,
            422,
            "Invalid",
            "ConfigMap \"a\" is invalid: metadata.labels: Invalid value: \"-x\": name part must consist",
        ),
        (
            MAPS,
            json,
            r#"{"metadata":{"name":"a","namespace":"other"}}"#,
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            MAPS,
            json,
            large.as_str(),
            413,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        ),
        (
            deployments,
            json,
            r#"{"metadata":{"name":"d"},"spec":{"replicas":-1,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#,
            422,
            "Invalid",
            "Deployment.apps \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            deployments,
            json,
            r#"{"metadata":{"name":"d"},"spec":{"template":{"spec":{"containers":"x"}}}}"#,
            400,
            "BadRequest",
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
    ] {
        let (got, status) = raw(&server, "POST", path, kind, body.to_owned()).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!((got, status["reason"].as_str()), (code, Some(reason)), "{shown}: {status}");
        assert!(status["message"].as_str().unwrap().starts_with(message), "{shown}: {status}");
        assert_eq!(
            (status["kind"].as_str(), status["code"].as_u64()),
            (Some("Status"), Some(u64::from(code)))
        );
    }
    assert_eq!(server.objects().snapshot().revision(), before);
}

#[tokio::test]
async fn unknown_and_duplicate_fields_go_as_the_caller_says() {
    let server = server().await;
    let body = r#"{"metadata":{"name":"a","foo":1},"bar":{},"data":{"x":"1","x":"2"}}"#;
    let (code, status) =
        raw(&server, "POST", &format!("{MAPS}?fieldValidation=Strict"), "application/json", body).await;
    let expected = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.x\", unknown field \"bar\", unknown field \"metadata.foo\"";
    assert_eq!((code, status["message"].as_str()), (400, Some(expected)));
    let (code, made) =
        raw(&server, "POST", &format!("{MAPS}?fieldValidation=Ignore"), "application/json", body).await;
    assert_eq!((code, &made["bar"], &made["data"]["x"]), (201, &Value::Null, &json!("2")));
    let path = format!("{MAPS}/a?fieldValidation=Warn");
    let patch = r#"[{"op":"add","path":"/data/y","value":"1","foo":1},{"op":"add","path":"/bar","path":"/data/z","value":"1"}]"#;
    let (code, patched) = raw(&server, "PATCH", &path, "application/json-patch+json", patch).await;
    assert_eq!((code, &patched["data"]), (200, &json!({"x": "2", "y": "1", "z": "1"})));
    let (code, status) =
        raw(&server, "POST", &format!("{MAPS}?fieldValidation=Maybe"), "application/json", body).await;
    assert_eq!((code, status["reason"].as_str()), (422, Some("Invalid")));
}

/// The words are those of upstream's `endpoints/handlers/patch.go` (`jsonPatcher`, `smpPatcher`) with what its strict decoder
/// `sigs.k8s.io/json` says; `test/integration/apiserver/field_validation_test.go` expects the same.
#[tokio::test]
async fn strange_fields_of_patches_are_told_as_upstream_tells_them() {
    const JSON: &str = "application/json-patch+json";
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    let server = server().await;
    let (code, _) = raw(&server, "POST", MAPS, "application/json", r#"{"metadata":{"name":"a"}}"#).await;
    assert_eq!(code, 201);
    for (kind, patch, told) in [
        (
            JSON,
            r#"[{"op":"add","path":"/bar","path":"/data","value":{}},{"op":"add","path":"/data/y","value":"1","foo":1}]"#,
            &[r#"json patch duplicate field "[0].path""#, r#"json patch unknown field "[1].foo""#][..],
        ),
        (
            JSON,
            r#"[{"op":"test","path":"/kind","value":"ConfigMap","Op":"","foo":1,"foo":2},{"op":"add","path":"/bar","value":{"a":1,"a":2}}]"#,
            &[
                r#"json patch unknown field "[0].Op""#,
                r#"json patch unknown field "[0].foo""#,
                r#"json patch duplicate field "[1].value.a""#,
                r#"unknown field "bar""#,
            ],
        ),
        (
            MERGE,
            r#"{"bar":1,"data":{"x":"1","x":"2"}}"#,
            &[r#"duplicate field "data.x""#, r#"unknown field "bar""#],
        ),
        (
            STRATEGIC,
            r#"{"metadata":{"foo":[1,null]},"data":{"x":"1","x":"2"}}"#,
            &[r#"duplicate field "data.x""#, r#"unknown field "metadata.foo""#],
        ),
    ] {
        let path = format!("{MAPS}/a?fieldValidation=Strict");
        let (code, status) = raw(&server, "PATCH", &path, kind, patch).await;
        let message = status["message"].as_str().unwrap();
        assert_eq!((code, status["reason"].as_str()), (422, Some("Invalid")), "{patch}: {status}");
        assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: \""), "{message}");
        let expected = format!("\": strict decoding error: {}", told.join(", "));
        assert!(message.ends_with(&expected), "{message}\nwanted {expected}");
        if kind == STRATEGIC {
            let quoted = r#": "map[data:map[x:2] metadata:map[foo:[1 <nil>]]]": "#;
            assert!(message.contains(quoted), "{message}");
        }
        let path = format!("{MAPS}/a?fieldValidation=Warn&dryRun=All");
        assert_eq!(warnings(&server, &path, kind, patch).await, told, "{patch}");
    }
    let wrong = r#"{"data":["x"]}"#;
    let (code, status) = raw(&server, "PATCH", &format!("{MAPS}/a"), MERGE, wrong).await;
    let message = status["message"].as_str().unwrap();
    assert_eq!(code, 422, "{message}");
    assert!(message.contains(": json: cannot unmarshal array into Go struct field "), "{message}");
}

/// What the sender of a patch is warned of.
async fn warnings(server: &ApiServer, path: &str, kind: &str, patch: &str) -> Vec<String> {
    let request = http::Request::builder().method("PATCH").uri(path).header("content-type", kind);
    let request = request.body(Full::new(Bytes::from(patch.to_owned()))).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200, "{patch}");
    let warned = response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap());
    // 299 - "the text", with its quotes escaped.
    let text =
        |line: &str| line.strip_prefix("299 - \"")?.strip_suffix('"').map(|text| text.replace("\\\"", "\""));
    warned.map(|line| text(line).unwrap()).collect()
}

#[tokio::test]
async fn unknown_paths_selectors_and_patches() {
    let server = server().await;
    for (path, code, message) in [
        ("/api/v1/namespaces/default/frobs", 404, "the server could not find the requested resource"),
        ("/api/v1/namespaces/default/configmaps/none", 404, "configmaps \"none\" not found"),
        (
            "/api/v1/configmaps?labelSelector=a%20b",
            400,
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("/api/v1/pods?fieldSelector=spec.foo%3Da", 400, "field label not supported: spec.foo"),
        ("/api/v1/configmaps?limit=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        (
            "/api/v1/configmaps?continue=x",
            400,
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 1",
        ),
        ("/api/v1/configmaps/a", 405, "the server does not allow this method on the requested resource"),
    ] {
        let (got, status) = get(&server, path).await;
        assert_eq!(got, code, "{path}: {status}");
        assert!(status["message"].as_str().unwrap().starts_with(message), "{path}: {status}");
    }
    // What no group serves is not even answered with a `Status`.
    assert_eq!(get(&server, "/apis/none.io/v1/frobs").await, (404, Value::Null));
    send(&server, "POST", MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    for (kind, body, code, reason) in [
        ("application/json-patch+json", r#"[{"op":"test","path":"/data/k","value":"w"}]"#, 422, "Invalid"),
        ("application/json-patch+json", r#"[{"op":"remove","path":"/data/none"}]"#, 422, "Invalid"),
        ("application/json-patch+json", r#"{"op":"remove"}"#, 400, "BadRequest"),
        ("application/merge-patch+json", r#"{"data":[]}"#, 422, "Invalid"),
        ("application/merge-patch+json", r#""x""#, 400, "BadRequest"),
        ("application/merge-patch+json", r#"{"metadata":{"name":"b"}}"#, 400, "BadRequest"),
        ("application/merge-patch+json", r#"{"metadata":{"resourceVersion":"1"}}"#, 409, "Conflict"),
        ("application/strategic-merge-patch+json", r#"{"$patch":"frob"}"#, 400, "BadRequest"),
        ("application/apply-patch+yaml", "{}", 422, "Invalid"),
        ("application/json", "{}", 415, "UnsupportedMediaType"),
    ] {
        let (got, status) = raw(&server, "PATCH", &format!("{MAPS}/a"), kind, body).await;
        assert_eq!((got, status["reason"].as_str()), (code, Some(reason)), "{body}: {status}");
    }
    assert_eq!(get(&server, &format!("{MAPS}/a")).await.1["data"], json!({"k": "v"}));
}

#[tokio::test]
async fn reviews_are_checked_like_everything_else() {
    let server = server().await;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    for (body, code, message) in [
        (
            json!({"spec": {"user": 7}}),
            400,
            "SubjectAccessReview in version \"v1\" cannot be handled as a SubjectAccessReview",
        ),
        (
            json!({"spec": {"user": "jane"}}),
            422,
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes",
        ),
        (
            json!({"spec": {"resourceAttributes": {"verb": "get"}}}),
            422,
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user",
        ),
    ] {
        let (got, status) = send(&server, "POST", path, &body).await;
        assert_eq!(got, code, "{body}: {status}");
        assert!(status["message"].as_str().unwrap().starts_with(message), "{body}: {status}");
    }
    let good = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let (code, answer) = send(&server, "POST", path, &good).await;
    assert_eq!((code, &answer["kind"]), (201, &json!("SubjectAccessReview")), "{answer}");
}

/// Both APIs show the same events, each under its own names (upstream's `AddFieldLabelConversionsForEvent` of
/// `pkg/apis/core/v1` and `pkg/apis/events/v1`).
#[tokio::test]
async fn events_are_selected_by_the_names_of_their_api() {
    const CORE: &str = "/api/v1/namespaces/default/events";
    const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
    let server = server().await;
    let core = json!({
        "metadata": {"name": "core"}, "reason": "Pulled", "type": "Normal", "reportingComponent": "kubelet", "message": "m",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "a,b=c", "namespace": "default", "uid": "1", "fieldPath": "f", "resourceVersion": "7"},
    });
    let new = json!({
        "metadata": {"name": "new"}, "reason": "Failed", "type": "Warning", "reportingController": "example.com/c", "note": "n",
        "reportingInstance": "i", "action": "Act", "eventTime": "2026-01-09T23:00:00.000000Z",
        "regarding": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "namespace": "default", "uid": "2", "resourceVersion": "8"},
    });
    for (path, event) in [(CORE, &core), (NEW, &new)] {
        let (code, made) = send(&server, "POST", path, event).await;
        assert_eq!(code, 201, "{made}");
    }
    // Nothing is lost on the way from one form to the other.
    let (_, shown) = get(&server, &format!("{NEW}/new")).await;
    for key in ["regarding", "reportingController", "note", "reason", "type", "action"] {
        assert_eq!(shown[key], new[key], "{key}");
    }
    let escaped = r"a\,b\=c";
    for (old_field, new_field, of_core, of_new) in [
        ("involvedObject.apiVersion", "regarding.apiVersion", "v1", "apps/v1"),
        ("involvedObject.fieldPath", "regarding.fieldPath", "f", ""),
        ("involvedObject.kind", "regarding.kind", "Pod", "Deployment"),
        ("involvedObject.name", "regarding.name", escaped, "web"),
        ("involvedObject.resourceVersion", "regarding.resourceVersion", "7", "8"),
        ("involvedObject.uid", "regarding.uid", "1", "2"),
        ("reportingComponent", "reportingController", "kubelet", "example.com/c"),
        ("reason", "reason", "Pulled", "Failed"),
        ("type", "type", "Normal", "Warning"),
        ("metadata.name", "metadata.name", "core", "new"),
    ] {
        for (path, field) in [(CORE, old_field), (NEW, new_field)] {
            for (operator, value, found) in
                [("=", of_core, "core"), ("=", of_new, "new"), ("!=", of_core, "new"), ("!=", of_new, "core")]
            {
                let selector = format!("{field}{operator}{value}");
                let query = utf8_percent_encode(&selector, NON_ALPHANUMERIC);
                let (_, list) = get(&server, &format!("{path}?fieldSelector={query}")).await;
                let names: Vec<_> =
                    list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
                assert_eq!(names, [found], "{path} {field}{operator}{value}");
            }
        }
    }
    for (path, field) in [
        (NEW, "involvedObject.kind"),
        (NEW, "reportingComponent"),
        (NEW, "source"),
        (CORE, "regarding.kind"),
        (CORE, "reportingController"),
    ] {
        let (code, status) = get(&server, &format!("{path}?fieldSelector={field}%3Da")).await;
        let why = format!("field label not supported: {field}");
        assert_eq!((code, status["message"].as_str()), (400, Some(&*why)), "{path}");
    }
}
