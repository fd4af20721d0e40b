//! Tables: what `kubectl get` shows. Each case is an object and its row, wide columns included, as the server answers it.

use std::{collections::BTreeSet, sync::Arc};

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use jiff::Timestamp;
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kcore::Clock;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json as send};

/// The time at which every row is shown.
const NOW: &str = "2026-01-10T00:00:00Z";

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        NOW.parse().unwrap()
    }
}

async fn server() -> ApiServer {
    let server = ApiServer::builder().clock(Arc::new(Fixed)).build().unwrap();
    server.bootstrap().await.unwrap();
    server
}

async fn table(server: &ApiServer, path: &str) -> Value {
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let request = Request::get(path).header("accept", accept).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

/// Creates an object, writes its status if it has one, and compares its row, joined by `|`.
async fn check(server: &ApiServer, collection: &str, object: Value, expected: &str) {
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let path = format!("{collection}/{name}");
    let (code, made) = send(server, "POST", collection, &object).await;
    assert_eq!(code, 201, "{made}");
    if !object["status"].is_null() {
        let patch = serde_json::to_vec(&json!({"status": object["status"]})).unwrap();
        let kind = "application/merge-patch+json";
        let (code, answer) =
            crate::harness::send(server, "PATCH", &format!("{path}/status"), kind, patch).await;
        assert_eq!(code, 200, "{answer}");
    }
    let table = table(server, &path).await;
    let cells = table["rows"][0]["cells"].as_array().unwrap_or_else(|| panic!("{table}"));
    let shown: Vec<String> =
        cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    assert_eq!(shown.join("|"), expected, "{name}");
    assert_eq!(cells.len(), table["columnDefinitions"].as_array().unwrap().len(), "{name}");
    check_lists(server, collection, &name).await;
}

/// A list has the row that the object alone has, whatever stands beside it.
async fn check_lists(server: &ApiServer, collection: &str, name: &str) {
    for include in ["Metadata", "Object", "None"] {
        let query = format!("includeObject={include}");
        let mut alone = table(server, &format!("{collection}/{name}?{query}")).await;
        let listed = table(server, &format!("{collection}?fieldSelector=metadata.name={name}&{query}")).await;
        // A list has a revision of its own.
        alone["metadata"] = listed["metadata"].clone();
        assert_eq!(alone, listed, "{name} {include}");
    }
}

fn running(ready: bool) -> Value {
    json!({"name": "c", "ready": ready, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}})
}

fn waiting(name: &str, reason: &str, restarts: i32) -> Value {
    json!({"name": name, "ready": false, "restartCount": restarts, "image": "i", "imageID": "", "state": {"waiting": {"reason": reason}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-09T23:55:00Z"}}})
}

fn ended(name: &str, code: i32, reason: &str) -> Value {
    json!({"name": name, "ready": false, "restartCount": 0, "image": "i", "imageID": "", "state": {"terminated": {"exitCode": code, "reason": reason}}})
}

#[tokio::test]
async fn pods_show_what_their_containers_do() {
    let server = server().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    let ready = json!([{"type": "Ready", "status": "True"}, {"type": "x", "status": "True"}]);
    let bare: Value = json!([]);
    let cases: Vec<(&str, Value, Value, &str)> = vec![
        ("pending", bare.clone(), json!({}), "0/1|Pending|0|0s|<none>|<none>|<none>|<none>"),
        (
            "running",
            bare.clone(),
            json!({"phase": "Running", "conditions": ready, "podIPs": [{"ip": "10.0.0.9"}], "containerStatuses": [running(true)]}),
            "1/1|Running|0|0s|10.0.0.9|<none>|<none>|<none>",
        ),
        (
            "crashing",
            bare.clone(),
            json!({"phase": "Running", "containerStatuses": [waiting("c", "CrashLoopBackOff", 3)]}),
            "0/1|CrashLoopBackOff|3 (5m ago)|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "done",
            bare.clone(),
            json!({"phase": "Succeeded", "containerStatuses": [ended("c", 0, "Completed")]}),
            "0/1|Completed|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "failed",
            bare.clone(),
            json!({"phase": "Failed", "containerStatuses": [ended("c", 3, "")]}),
            "0/1|ExitCode:3|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "evicted",
            bare.clone(),
            json!({"phase": "Failed", "reason": "Evicted"}),
            "0/1|Evicted|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "half",
            bare.clone(),
            json!({"phase": "Running", "containerStatuses": [ended("c", 0, "Completed"), running(true)]}),
            "1/1|NotReady|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "initializing",
            json!([{"name": "i", "image": "i"}, {"name": "j", "image": "i"}]),
            json!({"phase": "Pending", "initContainerStatuses": [ended("i", 0, "Completed"), waiting("j", "PodInitializing", 0)]}),
            "0/1|Init:1/2|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "init-failing",
            json!([{"name": "i", "image": "i"}]),
            json!({"phase": "Pending", "initContainerStatuses": [waiting("i", "CrashLoopBackOff", 2)]}),
            "0/1|Init:CrashLoopBackOff|2 (5m ago)|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "sidecar",
            json!([{"name": "i", "image": "i", "restartPolicy": "Always"}]),
            json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "ready": true, "started": true, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}],
                "containerStatuses": [running(true)]}),
            "2/2|Running|0|0s|<none>|<none>|<none>|<none>",
        ),
        (
            "gated",
            bare.clone(),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/1|SchedulingGated|0|0s|<none>|<none>|<none>|<none>",
        ),
    ];
    for (name, init, status, expected) in cases {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"initContainers": init, "containers": [{"name": "c", "image": "i"}]}, "status": status});
        check(&server, "/api/v1/namespaces/default/pods", pod, &format!("{name}|{expected}")).await;
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ending", "finalizers": ["a/b"]},
        "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}], "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "conditions": ready, "containerStatuses": [running(true)]}});
    check(&server, "/api/v1/namespaces/default/pods", pod, "ending|1/1|Running|0|0s|<none>|n|<none>|1/2")
        .await;
    let path = "/api/v1/namespaces/default/pods/ending";
    assert_eq!(send(&server, "DELETE", path, &Value::Null).await.0, 200);
    assert_eq!(table(&server, path).await["rows"][0]["cells"][2], "Terminating");
    check_lists(&server, "/api/v1/namespaces/default/pods", "ending").await;
    let done = table(&server, "/api/v1/namespaces/default/pods/done").await;
    assert_eq!(done["rows"][0]["conditions"][0]["type"], "Completed");
}

#[tokio::test]
async fn workloads_show_their_counts() {
    let server = server().await;
    let selector = json!({"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}]});
    let template = json!({"metadata": {"labels": {"a": "2", "b": "1", "c": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}});
    let job_template =
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let wide = "c,d|i,j|a=2,b=1,c in (x,y)";
    let spec = json!({"replicas": 3, "selector": selector, "template": template});
    let cases = [
        (
            "apps/v1",
            "deployments",
            "Deployment",
            spec.clone(),
            json!({"replicas": 3, "readyReplicas": 1, "updatedReplicas": 3, "availableReplicas": 1}),
            format!("x|1/3|3|1|0s|{wide}"),
        ),
        (
            "apps/v1",
            "replicasets",
            "ReplicaSet",
            spec.clone(),
            json!({"replicas": 2, "readyReplicas": 1}),
            format!("x|3|2|1|0s|{wide}"),
        ),
        (
            "apps/v1",
            "statefulsets",
            "StatefulSet",
            json!({"replicas": 3, "serviceName": "s", "selector": selector, "template": template}),
            json!({"replicas": 3, "readyReplicas": 2}),
            "x|2/3|0s|c,d|i,j".to_owned(),
        ),
        (
            "apps/v1",
            "daemonsets",
            "DaemonSet",
            json!({"selector": selector, "template": template}),
            json!({"desiredNumberScheduled": 5, "currentNumberScheduled": 4, "numberMisscheduled": 0, "numberReady": 3, "updatedNumberScheduled": 2, "numberAvailable": 1}),
            format!("x|5|4|3|2|1|<none>|0s|{wide}"),
        ),
        (
            "batch/v1",
            "cronjobs",
            "CronJob",
            json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job_template}}}),
            json!({"lastScheduleTime": "2026-01-09T23:59:30Z"}),
            "x|* * * * *|<none>|False|0|30s|0s|c|i|<none>".to_owned(),
        ),
        (
            "policy/v1",
            "poddisruptionbudgets",
            "PodDisruptionBudget",
            json!({"maxUnavailable": "25%", "selector": selector}),
            json!({"disruptionsAllowed": 2, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}),
            "x|N/A|25%|2|0s".to_owned(),
        ),
        (
            "autoscaling/v2",
            "horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            json!({"maxReplicas": 9, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
            {"type": "Pods", "pods": {"metric": {"name": "p"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
            {"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "a", "name": "b"}, "target": {"type": "Value", "value": "5"}}}]}),
            json!({"currentReplicas": 4, "desiredReplicas": 4, "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 42}}}]}),
            "x|Deployment/d|cpu: 42%/80%, <unknown>/10 + 1 more...|1|9|4|0s".to_owned(),
        ),
    ];
    for (version, plural, kind, spec, status, expected) in cases {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": spec, "status": status});
        check(&server, &format!("/apis/{version}/namespaces/default/{plural}"), object, &expected).await;
    }
}

#[tokio::test]
async fn jobs_show_their_state() {
    let server = server().await;
    let started = json!({"startTime": "2026-01-09T23:00:00Z", "succeeded": 1});
    let cases = [
        ("a", json!({"completions": 4}), started.clone(), "Running|1/4|60m"),
        ("b", json!({"parallelism": 3}), started.clone(), "Running|1/1 of 3|60m"),
        (
            "c",
            json!({"suspend": true}),
            json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
            "Suspended|0/1|",
        ),
    ];
    for (name, mut spec, status, expected) in cases {
        spec["template"] =
            json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec, "status": status});
        let path = "/apis/batch/v1/namespaces/default/jobs";
        let (code, made) = send(&server, "POST", path, &job).await;
        assert_eq!(code, 201, "{made}");
        let patch = serde_json::to_vec(&json!({"status": status})).unwrap();
        let kind = "application/merge-patch+json";
        assert_eq!(
            crate::harness::send(&server, "PATCH", &format!("{path}/{name}/status"), kind, patch).await.0,
            200
        );
        let table = table(&server, &format!("{path}/{name}")).await;
        let cells: Vec<&str> =
            table["rows"][0]["cells"].as_array().unwrap()[1..4].iter().filter_map(Value::as_str).collect();
        assert_eq!(cells.join("|"), expected, "{name}");
    }
}

#[tokio::test]
async fn the_rest_of_a_cluster_is_shown_as_upstream_does() {
    let server = server().await;
    let core = |plural: &str| format!("/api/v1/namespaces/default/{plural}");
    let meta = json!({"name": "x"});
    let cases = [
        (
            core("services"),
            json!({"kind": "Service", "metadata": meta, "spec": {"clusterIP": "10.96.0.77", "selector": {"a": "b"}, "type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}]}}),
            "x|NodePort|10.96.0.77|<none>|80:30080/TCP,53:30053/UDP|0s|a=b",
        ),
        (
            core("services"),
            json!({"kind": "Service", "metadata": {"name": "lb"}, "spec": {"clusterIP": "10.96.0.78", "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "a.example.com"}]}}}),
            "lb|LoadBalancer|10.96.0.78|192.0.2.9,a.example.com|80/TCP|0s|<none>",
        ),
        (
            core("services"),
            json!({"kind": "Service", "metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "e.example.com"}}),
            "ext|ExternalName|<none>|e.example.com|<none>|0s|<none>",
        ),
        (
            core("endpoints"),
            json!({"kind": "Endpoints", "metadata": meta, "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}]}),
            "x|10.0.0.1:1,10.0.0.2:1,10.0.0.1:2 + 1 more...|0s",
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices".to_owned(),
            json!({"kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "", "port": 80}]}),
            "x|IPv4|80|10.0.0.1|0s",
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses".to_owned(),
            json!({"kind": "Ingress", "metadata": meta, "spec": {"rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 1}}}}]}}]}}),
            "x|<none>|a.b||80|0s",
        ),
        (
            "/api/v1/nodes".to_owned(),
            json!({"kind": "Node", "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.1.1.1"}], "nodeInfo": {"kubeletVersion": "v1.37.0", "kernelVersion": "6.1", "architecture": "amd64", "osImage": "Linux", "containerRuntimeVersion": "sim://1", "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": "", "operatingSystem": "linux"}}}),
            "n|Ready,SchedulingDisabled|edge,worker|0s|v1.37.0|10.1.1.1|<none>|Linux|6.1 (amd64)|sim://1",
        ),
        ("/api/v1/namespaces".to_owned(), json!({"kind": "Namespace", "metadata": meta}), "x|Active|0s"),
        (
            core("events"),
            json!({"kind": "Event", "metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "fieldPath": "spec.containers{c}"}, "reason": "Pulled", "message": " done\n", "type": "Normal", "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2026-01-09T23:00:00Z", "lastTimestamp": "2026-01-09T23:59:00Z", "count": 7}),
            "60s|Normal|Pulled|pod/p|spec.containers{c}|kubelet, n|done|60m|7|e",
        ),
        (
            core("configmaps"),
            json!({"kind": "ConfigMap", "metadata": meta, "data": {"a": "1"}, "binaryData": {"b": "AA=="}}),
            "x|2|0s",
        ),
        (
            core("secrets"),
            json!({"kind": "Secret", "metadata": meta, "data": {"a": "AA=="}}),
            "x|Opaque|1|0s",
        ),
        (core("serviceaccounts"), json!({"kind": "ServiceAccount", "metadata": meta}), "x|0s"),
        (
            core("limitranges"),
            json!({"kind": "LimitRange", "metadata": meta, "spec": {"limits": []}}),
            "x|2026-01-10T00:00:00Z",
        ),
        (
            core("resourcequotas"),
            json!({"kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "3"}}, "status": {"hard": {"pods": "3", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
            "x|pods: 1/3|limits.cpu: 0/2|0s",
        ),
        (
            "/api/v1/persistentvolumes".to_owned(),
            json!({"kind": "PersistentVolume", "metadata": meta, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "hostPath": {"path": "/a"}, "storageClassName": "s"}}),
            "x|1Gi|RWO,RWX|Retain|Pending||s|<unset>||0s|Filesystem",
        ),
        (
            core("persistentvolumeclaims"),
            json!({"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}}}),
            "x|Pending||||s|<unset>|0s|Filesystem",
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses".to_owned(),
            json!({"kind": "StorageClass", "metadata": {"name": "x", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
            "x (default)|p|Delete|Immediate|false|0s",
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(),
            json!({"kind": "ClusterRole", "metadata": meta, "rules": []}),
            "x|2026-01-10T00:00:00Z",
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
            json!({"kind": "ClusterRoleBinding", "metadata": meta, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
            "x|ClusterRole/r|0s|u||n/s",
        ),
        (
            "/apis/scheduling.k8s.io/v1/priorityclasses".to_owned(),
            json!({"kind": "PriorityClass", "metadata": meta, "value": 5}),
            "x|5|false|0s|PreemptLowerPriority",
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases".to_owned(),
            json!({"kind": "Lease", "metadata": meta, "spec": {"holderIdentity": "h"}}),
            "x|h|0s",
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies".to_owned(),
            json!({"kind": "NetworkPolicy", "metadata": meta, "spec": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}}}),
            "x|!a|0s",
        ),
        (
            "/apis/apps/v1/namespaces/default/controllerrevisions".to_owned(),
            json!({"kind": "ControllerRevision", "metadata": {"name": "x", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]}, "revision": 3, "data": {"spec": {}}}),
            "x|daemonset.apps/d|3|0s",
        ),
    ];
    for (collection, mut object, expected) in cases {
        let version = collection.trim_start_matches("/apis/").trim_start_matches("/api/");
        let parts: Vec<&str> = version.split('/').collect();
        object["apiVersion"] =
            if collection.starts_with("/api/") { json!("v1") } else { json!(parts[..2].join("/")) };
        check(&server, &collection, object, expected).await;
    }
}

#[tokio::test]
async fn every_resource_has_columns_that_fit_its_cells() {
    let server = server().await;
    let mut kinds = BTreeSet::new();
    for group_version in
        ["api/v1", "apis/apps/v1", "apis/storage.k8s.io/v1", "apis/resource.k8s.io/v1", "apis/batch/v1"]
    {
        let (_, list) = get(&server, &format!("/{group_version}")).await;
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            if name.contains('/') || !resource["verbs"].as_array().unwrap().contains(&json!("list")) {
                continue;
            }
            let table = table(&server, &format!("/{group_version}/{name}")).await;
            let columns = table["columnDefinitions"].as_array().unwrap();
            assert!(columns.iter().any(|column| column["name"] == "Name"), "{name}");
            assert!(columns.iter().all(|column| column["description"] != ""), "{name}");
            kinds.insert(name.to_owned());
        }
    }
    assert!(kinds.len() > 25, "{kinds:?}");
}
