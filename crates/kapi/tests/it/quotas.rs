//! Quotas, limits and the security standard, through requests. Expected results: upstream's `admission/plugin/resourcequota`,
//! `limitranger` and `pod-security-admission`.

use futures::future::join_all;
use kapi::ApiServer;
use serde_json::{Value, json};

use crate::harness::{get, json as send, server, warned};

const CORE: &str = "/api/v1/namespaces/default";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A quota whose use has been calculated.
async fn limit(server: &ApiServer, hard: Value, used: Value) {
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let (code, answer) = send(server, "POST", &format!("{CORE}/resourcequotas"), &quota).await;
    assert_eq!(code, 201, "{answer}");
    let status =
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}});
    let (code, answer) = send(server, "PUT", &format!("{CORE}/resourcequotas/q/status"), &status).await;
    assert_eq!(code, 200, "{answer}");
}

async fn used(server: &ApiServer) -> Value {
    get(server, &format!("{CORE}/resourcequotas/q")).await.1["status"]["used"].clone()
}

#[tokio::test]
async fn a_quota_is_exact_however_many_write_at_once() {
    let server = server().await;
    limit(&server, json!({"count/configmaps": "10"}), json!({"count/configmaps": "3"})).await;
    let path = format!("{CORE}/configmaps");
    let maps: Vec<Value> = (0..40).map(|index| map(&format!("m{index}"))).collect();
    let answers = join_all(maps.iter().map(|map| send(&server, "POST", &path, map))).await;
    let made = answers.iter().filter(|(code, _)| *code == 201).count();
    assert_eq!((made, used(&server).await), (7, json!({"count/configmaps": "10"})));
    let refused = answers.iter().find(|(code, _)| *code == 403).unwrap();
    let message = refused.1["message"].as_str().unwrap();
    let why = "is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=10, limited: count/configmaps=10";
    assert!(message.ends_with(why), "{message}");
}

#[tokio::test]
async fn what_is_not_made_is_not_charged() {
    let server = server().await;
    limit(&server, json!({"configmaps": "5"}), json!({"configmaps": "0"})).await;
    let path = format!("{CORE}/configmaps");
    for (path, expected, count) in [
        (format!("{path}?dryRun=All"), 201, "0"),
        (path.clone(), 201, "1"),
        // It is there already.
        (path.clone(), 409, "1"),
    ] {
        assert_eq!(send(&server, "POST", &path, &map("m")).await.0, expected, "{path}");
        assert_eq!(used(&server).await, json!({"configmaps": count}), "{path}");
    }
}

#[tokio::test]
async fn claims_for_devices_are_charged_by_their_classes() {
    let (server, name) = (server().await, "gpu.deviceclass.resource.k8s.io/devices");
    limit(&server, json!({name: "3"}), json!({name: "0"})).await;
    let path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let claim = |claim: &str, count: u32| {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu", "count": count}});
        json!({"metadata": {"name": claim}, "spec": {"devices": {"requests": [request]}}})
    };
    let (code, answer) = send(&server, "POST", path, &claim("two", 2)).await;
    assert_eq!((code, used(&server).await), (201, json!({name: "2"})), "{answer}");
    let (code, answer) = send(&server, "POST", path, &claim("two-more", 2)).await;
    let why = format!("exceeded quota: q, requested: {name}=2, used: {name}=2, limited: {name}=3");
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().unwrap().ends_with(&why), "{answer}");
    assert_eq!(send(&server, "POST", path, &claim("one", 1)).await.0, 201);
    assert_eq!(used(&server).await, json!({name: "3"}));
}

#[tokio::test]
async fn a_quota_that_is_not_calculated_yet_lets_nothing_pass() {
    let server = server().await;
    limit(&server, json!({"secrets": "5"}), json!({})).await;
    let (code, answer) = send(&server, "POST", &format!("{CORE}/secrets"), &map("s")).await;
    assert_eq!(code, 403);
    assert_eq!(
        answer["message"],
        "secrets \"s\" is forbidden: status unknown for quota: q, resources: secrets"
    );
}

#[tokio::test]
async fn the_standard_of_a_namespace_refuses_and_warns() {
    let server = server().await;
    let labels = br#"{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}}"#;
    let kind = "application/merge-patch+json";
    assert_eq!(warned(&server, "PATCH", "/api/v1/namespaces/default", kind, labels.to_vec()).await.0, 200);
    let account = json!({"metadata": {"name": "default"}});
    send(&server, "POST", &format!("{CORE}/serviceaccounts"), &account).await;
    let pod = |spec: Value| serde_json::to_vec(&json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    let container = json!([{"name": "c", "image": "i"}]);
    let path = format!("{CORE}/pods");
    let host = pod(json!({"hostNetwork": true, "containers": container}));
    let (code, answer, _) = warned(&server, "POST", &path, "application/json", host).await;
    let expected = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!((code, answer["message"].as_str().unwrap()), (403, expected));
    let plain = pod(json!({"containers": container}));
    let (code, answer, warnings) = warned(&server, "POST", &path, "application/json", plain).await;
    assert_eq!(code, 201, "{answer}");
    assert!(
        warnings[0].starts_with(
            "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"
        ),
        "{warnings:?}"
    );
    let raise = br#"{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}"#.to_vec();
    let (_, _, warnings) = warned(&server, "PATCH", "/api/v1/namespaces/default", kind, raise).await;
    assert_eq!(
        warnings[0],
        "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"restricted:latest\""
    );
    let faulty = br#"{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "strict"}}}"#.to_vec();
    let (code, answer, _) = warned(&server, "PATCH", "/api/v1/namespaces/default", kind, faulty).await;
    assert_eq!(code, 422, "{answer}");
}
