//! The resource metrics API: what metrics-server answers to (`pkg/api/pod_test.go`, `node_test.go`).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kapi::{
    ApiServer,
    usage::{Measured, Usage, UsageSource},
};
use serde_json::{Value, json};

use crate::harness::{get, json as send};

/// Knows every pod and node but those that are called `new`, or have a uid unknown to it.
#[derive(Debug)]
struct Fixed;

fn measured<T>(usage: T) -> Measured<T> {
    Measured { at: "2030-01-01T00:00:00Z".parse().unwrap(), window: Duration::from_secs(90), usage }
}

#[async_trait]
impl UsageSource for Fixed {
    async fn pods(&self, uids: &[Box<str>]) -> Vec<Option<Measured<Vec<(Arc<str>, Usage)>>>> {
        let usage = Usage { cpu_nanocores: 1_500_000_000, memory_bytes: 3 << 20 };
        let each = uids.iter().enumerate();
        each.map(|(index, uid)| (index != 1 && !uid.is_empty()).then(|| measured(vec![("c".into(), usage)])))
            .collect()
    }

    async fn nodes(&self, names: &[Box<str>]) -> Vec<Option<Measured<Usage>>> {
        let usage = Usage { cpu_nanocores: 7, memory_bytes: 1024 };
        names.iter().map(|name| (&**name != "new").then(|| measured(usage))).collect()
    }
}

async fn server() -> ApiServer {
    let server = ApiServer::builder().usage(Arc::new(Fixed)).build().unwrap();
    server.bootstrap().await.unwrap();
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "serviceAccountName": "default"});
    send(
        &server,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
    for name in ["a", "b", "c"] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let (code, answer) = send(&server, "POST", "/api/v1/namespaces/default/pods", &pod).await;
        assert_eq!(code, 201, "{answer}");
    }
    for name in ["new", "old"] {
        send(&server, "POST", "/api/v1/nodes", &json!({"metadata": {"name": name, "labels": {"on": name}}}))
            .await;
    }
    server
}

#[tokio::test]
async fn what_is_used_is_told_by_the_names_of_pods_and_nodes() {
    let server = server().await;
    let root = "/apis/metrics.k8s.io/v1beta1";
    // The path; the code; the names in the answer.
    let cases: &[(&str, u16, &[&str])] = &[
        // The second of those asked about is one of which nothing is known.
        ("/pods", 200, &["a", "c"]),
        ("/namespaces/default/pods", 200, &["a", "c"]),
        ("/namespaces/other/pods", 200, &[]),
        ("/namespaces/default/pods?labelSelector=app%3Dc", 200, &["c"]),
        ("/namespaces/default/pods?fieldSelector=metadata.name%3Db", 200, &["b"]),
        ("/namespaces/default/pods?limit=1", 200, &["a"]),
        ("/namespaces/default/pods/b", 200, &["b"]),
        ("/namespaces/default/pods/none", 404, &[]),
        ("/nodes", 200, &["old"]),
        ("/nodes?labelSelector=on%3Dnew", 200, &[]),
        ("/nodes/new", 404, &[]),
        ("/nodes/old", 200, &["old"]),
        ("/pods?fieldSelector=spec.nodeName%3Dx", 400, &[]),
        ("/nodes?watch=true", 405, &[]),
    ];
    for (path, code, names) in cases {
        let (found, answer) = get(&server, &format!("{root}{path}")).await;
        let one = std::slice::from_ref(&answer);
        let items = answer["items"].as_array().map_or(if found == 200 { one } else { &[] }, Vec::as_slice);
        let seen: Vec<_> = items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
        assert_eq!((found, &seen[..]), (*code, *names), "{path}: {answer}");
    }
    let (_, mut pod) = get(&server, &format!("{root}/namespaces/default/pods/a")).await;
    assert!(pod["metadata"].as_object_mut().unwrap().remove("creationTimestamp").is_some());
    let expected = json!({"kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": {"name": "a", "namespace": "default", "labels": {"app": "a"}},
        "timestamp": "2030-01-01T00:00:00Z", "window": "1m30s",
        "containers": [{"name": "c", "usage": {"cpu": "1500m", "memory": "3Mi"}}]});
    assert_eq!(pod, expected);
    let (code, missing) = get(&server, &format!("{root}/nodes/new")).await;
    assert_eq!((code, &missing["message"]), (404, &json!("nodes.metrics.k8s.io \"new\" not found")));
    assert_eq!(
        send(&server, "POST", &format!("{root}/nodes"), &json!({"metadata": {"name": "x"}})).await.0,
        405
    );
}

#[tokio::test]
async fn clients_find_the_api() {
    let server = server().await;
    let (code, list) = get(&server, "/apis/metrics.k8s.io/v1beta1").await;
    let resources = list["resources"].as_array().unwrap();
    let seen: Vec<Value> = resources
        .iter()
        .map(|one| json!([one["name"], one["kind"], one["namespaced"], one["verbs"]]))
        .collect();
    let expected = vec![
        json!(["nodes", "NodeMetrics", false, ["get", "list"]]),
        json!(["pods", "PodMetrics", true, ["get", "list"]]),
    ];
    assert_eq!((code, seen), (200, expected));
    let without = ApiServer::builder().build().unwrap();
    without.bootstrap().await.unwrap();
    assert_eq!(get(&without, "/apis/metrics.k8s.io/v1beta1").await.0, 404);
}
