//! Who may do what, in requests: what a kube-apiserver answered to the same ones is in `access/decisions.txt`.

use kapi::{ApiServer, authn::UserInfo};
use serde_json::{Value, json};

use crate::harness::{json as send, json_as, server};

const DECISIONS: &str = include_str!("access/decisions.txt");

/// The words of a line: all but the body, and the body.
fn request(line: &str) -> (Vec<&str>, Value) {
    let (head, body) = line.split_once(" {").map_or((line, None), |(head, body)| (head, Some(body)));
    let body = body.map_or(Value::Null, |body| serde_json::from_str(&format!("{{{body}")).unwrap());
    (head.split(' ').collect(), body)
}

fn caller(name: &str, groups: &str) -> UserInfo {
    UserInfo::new(name, groups.split(',').filter(|group| *group != "-"))
}

/// What counts of an answer: of a review its status, of a refusal its message. Lists of rules have no order.
fn gist(code: u16, path: &str, answer: &Value) -> Value {
    if code >= 400 {
        return answer["message"].clone();
    }
    let mut status = answer["status"].clone();
    if !path.contains("reviews") || !status.is_object() {
        return Value::Null;
    }
    sort_rules(&mut status);
    status
}

fn sort_rules(status: &mut Value) {
    for list in ["resourceRules", "nonResourceRules"] {
        if let Some(rules) = status[list].as_array_mut() {
            rules.sort_by_key(ToString::to_string);
        } else if let Some(status) = status.as_object_mut() {
            status.remove(list);
        }
    }
}

async fn prepare(server: &ApiServer) {
    for line in DECISIONS.lines().filter_map(|line| line.strip_prefix("+ ")) {
        let (words, body) = request(line);
        let (code, answer) = send(server, words[0], words[1], &body).await;
        assert_eq!(code, 201, "{line}: {answer}");
    }
}

#[tokio::test]
async fn requests_are_decided_as_upstream() {
    let server = server().await;
    prepare(&server).await;
    let mut wrong = Vec::new();
    let mut lines = DECISIONS.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '+']));
    while let (Some(asked), Some(expected)) = (lines.next(), lines.next()) {
        let (words, body) = request(asked);
        let [name, groups, method, path] = words[..] else { panic!("{asked}") };
        let (code, answer) = json_as(&server, caller(name, groups), method, path, &body).await;
        let (expected_code, text) = expected.trim().split_once(' ').unwrap_or((expected.trim(), "null"));
        let mut expected: Value = serde_json::from_str(text).unwrap();
        if expected.is_object() {
            sort_rules(&mut expected);
        }
        let found = gist(code, path, &answer);
        // What follows the star is about the moment.
        let cut = expected.as_str().and_then(|text| text.strip_suffix('*'));
        let same = match (cut, found.as_str()) {
            (Some(cut), Some(found)) => found.starts_with(cut),
            _ => found == expected,
        };
        if code.to_string() != expected_code || !same {
            wrong.push(format!("{asked}\n  found    {code} {found}\n  expected {expected_code} {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_role_counts_for_the_very_next_request_and_its_end_too() {
    let server = server().await;
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let jane = || UserInfo::new("jane", [""; 0]);
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["nodes"]}]});
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"});
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": [subject]});
    for round in 0..3 {
        for (method, path, body, expected) in [
            ("POST", format!("{group}/clusterroles"), &role, 403),
            ("POST", format!("{group}/clusterrolebindings"), &binding, 200),
            ("DELETE", format!("{group}/clusterroles/r"), &Value::Null, 403),
            ("DELETE", format!("{group}/clusterrolebindings/b"), &Value::Null, 403),
        ] {
            let (code, answer) = send(&server, method, &path, body).await;
            assert!(code < 300, "{answer}");
            let (code, answer) = json_as(&server, jane(), "GET", "/api/v1/nodes", &Value::Null).await;
            assert_eq!(code, expected, "{round} {method} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_bootstrap_policy_is_brought_up_to_date_and_what_is_protected_stays() {
    let server = server().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rules = async |name: &str| {
        send(&server, "GET", &format!("{roles}/{name}"), &Value::Null).await.1["rules"].clone()
    };
    let before = rules("system:discovery").await;
    let patch = |annotation: &str| json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": annotation}}, "rules": []});
    for (name, annotation) in [("system:discovery", "true"), ("system:basic-user", "false")] {
        let body = serde_json::to_vec(&patch(annotation)).unwrap();
        let path = format!("{roles}/{name}");
        let kind = "application/merge-patch+json";
        assert_eq!(crate::harness::send(&server, "PATCH", &path, kind, body).await.0, 200);
    }
    assert_eq!(send(&server, "DELETE", &format!("{roles}/view"), &Value::Null).await.0, 200);
    server.bootstrap().await.unwrap();
    // Each missing permission is a rule of its own, as upstream adds them.
    assert_eq!(
        rules("system:discovery").await.as_array().unwrap().len(),
        before[0]["nonResourceURLs"].as_array().unwrap().len()
    );
    assert!(rules("system:basic-user").await.as_array().is_none_or(Vec::is_empty));
    assert_eq!(send(&server, "GET", &format!("{roles}/view"), &Value::Null).await.0, 200);
}

/// Nobody who should not gets at anything by any verb or by another spelling of the path.
#[tokio::test]
async fn strangers_get_nothing() {
    let server = server().await;
    prepare(&server).await;
    let account = || UserInfo::new("system:serviceaccount:default:other", ["system:serviceaccounts"]);
    let places = [
        "/api/v1/namespaces/kube-system/secrets",
        "/api/v1/namespaces/default/secrets/in-volume",
        "/api/v1//namespaces/default/secrets/in-volume",
        "/api/v1/watch/namespaces/default/secrets",
        "/api/v1/namespaces/default/pods/one/exec",
        "/api/v1/namespaces/default/pods/one/status",
        "/api/v1/nodes/n1/proxy/",
        "/api/v1/namespaces/default/serviceaccounts/robot/token",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/nowhere.example.com/v1/things",
        "/metrics",
        "/version/../metrics",
        "/healthz%2f..%2fmetrics",
    ];
    for user in [UserInfo::anonymous(), account(), UserInfo::new("", [""; 0])] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            for place in places {
                let (code, answer) = json_as(&server, user.clone(), method, place, &json!({})).await;
                assert_eq!(code, 403, "{method} {place} as {:?}: {answer}", user.name);
            }
        }
    }
}
