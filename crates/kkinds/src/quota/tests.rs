use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Evaluator, counted_kind, scopes_of, written};

fn now() -> Timestamp {
    "2030-01-01T01:00:00Z".parse().unwrap()
}

fn usage(kind: &str, object: Value) -> Value {
    let evaluator = Evaluator::of("", kind).unwrap();
    serde_json::to_value(written(&evaluator.usage_of_value(&object, now()).unwrap())).unwrap()
}

fn container(requests: Value, limits: Value) -> Value {
    json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
}

/// The cases of upstream's `TestPodEvaluatorUsage` (`evaluator/core/pods_test.go`), and those of pods that are being resized
/// or have resources of their own.
#[test]
fn pods_use_what_they_ask_for_until_they_end() {
    let one = |init: Value, main: Value| json!({"initContainers": init, "containers": main});
    let count = |mut rest: Value| {
        rest["count/pods"] = "1".into();
        rest["pods"] = "1".into();
        rest
    };
    let empty = json!({});
    let cpu = |of: &str| json!({"cpu": of});
    let cases = [
        (
            one(json!([container(cpu("1m"), cpu("2m"))]), json!([])),
            empty.clone(),
            count(json!({"cpu": "1m", "requests.cpu": "1m", "limits.cpu": "2m"})),
        ),
        (
            one(json!([]), json!([container(json!({"memory": "1Mi"}), json!({"memory": "2Mi"}))])),
            empty.clone(),
            count(json!({"memory": "1Mi", "requests.memory": "1Mi", "limits.memory": "2Mi"})),
        ),
        (
            one(
                json!([]),
                json!([container(
                    json!({"ephemeral-storage": "32Mi"}),
                    json!({"ephemeral-storage": "64Mi"})
                )]),
            ),
            empty.clone(),
            count(json!({"ephemeral-storage": "32Mi", "requests.ephemeral-storage": "32Mi",
                "limits.ephemeral-storage": "64Mi"})),
        ),
        (
            one(json!([]), json!([container(json!({"hugepages-2Mi": "100Mi"}), json!({}))])),
            empty.clone(),
            count(json!({"hugepages-2Mi": "100Mi", "requests.hugepages-2Mi": "100Mi"})),
        ),
        (
            one(
                json!([]),
                json!([container(json!({"example.com/dongle": "3"}), json!({"example.com/dongle": "3"}))]),
            ),
            empty.clone(),
            count(json!({"requests.example.com/dongle": "3"})),
        ),
        // The most that is needed at once: sidecars go on, init containers come one by one.
        (
            one(
                json!([
                    container(cpu("4"), cpu("5")),
                    {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                    container(cpu("3"), json!({})),
                ]),
                json!([container(cpu("1"), cpu("2")), container(cpu("1"), cpu("2"))]),
            ),
            empty.clone(),
            count(json!({"cpu": "4", "requests.cpu": "4", "limits.cpu": "5"})),
        ),
        (
            json!({"containers": [container(cpu("1"), cpu("2"))], "overhead": {"cpu": "500m", "memory": "1Mi"}}),
            empty.clone(),
            count(json!({"cpu": "1500m", "requests.cpu": "1500m", "limits.cpu": "2500m",
                "memory": "1Mi", "requests.memory": "1Mi"})),
        ),
        (
            json!({"containers": [container(cpu("1"), json!({}))], "resources": {"requests": {"cpu": "3"}}}),
            empty.clone(),
            count(json!({"cpu": "3", "requests.cpu": "3"})),
        ),
        // While it is resized, what it has counts if that is more; what the node can't give does not.
        (
            one(json!([]), json!([container(cpu("1"), json!({}))])),
            json!({"containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "3"}}]}),
            count(json!({"cpu": "3", "requests.cpu": "3"})),
        ),
        (
            one(json!([]), json!([container(cpu("9"), json!({}))])),
            json!({"conditions": [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}],
                "containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}),
            count(json!({"cpu": "2", "requests.cpu": "2"})),
        ),
        (
            one(json!([]), json!([container(cpu("1"), cpu("1"))])),
            json!({"phase": "Failed"}),
            json!({"count/pods": "1"}),
        ),
        (
            one(json!([]), json!([container(cpu("1"), cpu("1"))])),
            json!({"phase": "Succeeded"}),
            json!({"count/pods": "1"}),
        ),
    ];
    for (spec, mut status, expected) in cases {
        for one in status["containerStatuses"].as_array_mut().into_iter().flatten() {
            for (key, value) in [
                ("image", json!("")),
                ("imageID", json!("")),
                ("ready", json!(true)),
                ("restartCount", json!(0)),
            ] {
                one[key] = value;
            }
        }
        let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        assert_eq!(usage("pods", pod.clone()), expected, "{pod}");
    }
    // Deleted with 30 s of grace: charged until these are over.
    for (deletion, charged) in [("2030-01-01T00:59:30Z", true), ("2030-01-01T00:59:29Z", false)] {
        let pod = json!({"metadata": {"deletionTimestamp": deletion, "deletionGracePeriodSeconds": 30}, "spec": {"containers": []}});
        assert_eq!(usage("pods", pod)["pods"] == "1", charged, "{deletion}");
    }
}

/// The cases of upstream's `TestServiceEvaluatorUsage`.
#[test]
fn services_use_ports_and_balancers() {
    let ports = json!([{"port": 1, "nodePort": 30001}, {"port": 2}]);
    let cases = [
        (json!({"type": "ClusterIP", "ports": ports}), "0", "0"),
        (json!({"ports": ports}), "0", "0"),
        (json!({"type": "NodePort", "ports": ports}), "2", "0"),
        (json!({"type": "LoadBalancer", "ports": ports}), "2", "1"),
        (json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false}), "1", "1"),
        (json!({"type": "ExternalName"}), "0", "0"),
    ];
    for (spec, node_ports, balancers) in cases {
        let expected = json!({"count/services": "1", "services": "1", "services.nodeports": node_ports,
            "services.loadbalancers": balancers});
        assert_eq!(usage("services", json!({"metadata": {}, "spec": spec})), expected, "{spec}");
    }
}

/// The cases of upstream's `TestPersistentVolumeClaimEvaluatorUsage`.
#[test]
fn claims_use_storage_also_of_their_class() {
    let base = json!({"persistentvolumeclaims": "1", "count/persistentvolumeclaims": "1"});
    let with = |more: Value| {
        let mut all = base.clone();
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let asks = |of: &str| json!({"requests": {"storage": of}});
    let cases = [
        (json!({"resources": asks("10Gi")}), json!({}), with(json!({"requests.storage": "10Gi"}))),
        (
            json!({"resources": asks("10Gi"), "storageClassName": "gold"}),
            json!({}),
            with(json!({
            "requests.storage": "10Gi", "gold.storageclass.storage.k8s.io/requests.storage": "10Gi",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1"})),
        ),
        (json!({"resources": asks("10000m")}), json!({}), with(json!({"requests.storage": "10"}))),
        (json!({"resources": asks("10400m")}), json!({}), with(json!({"requests.storage": "11"}))),
        (
            json!({"resources": asks("10Gi")}),
            json!({"allocatedResources": {"storage": "11Gi"}}),
            with(json!({"requests.storage": "11Gi"})),
        ),
        (
            json!({"resources": asks("10Gi")}),
            json!({"allocatedResources": {"storage": "9Gi"}}),
            with(json!({"requests.storage": "10Gi"})),
        ),
    ];
    for (spec, status, expected) in cases {
        let claim = json!({"metadata": {}, "spec": spec, "status": status});
        assert_eq!(usage("persistentvolumeclaims", claim), expected, "{spec} {status}");
    }
}

/// The rules of upstream's `claimEvaluator.Usage`.
#[test]
fn device_claims_use_what_they_may_get_at_most() {
    let one = |class: &str, mode: &str, count: Value| json!({"deviceClassName": class, "allocationMode": mode, "count": count});
    let devices = |class: &str| format!("{class}.deviceclass.resource.k8s.io/devices");
    for (requests, expected) in [
        (json!([]), vec![]),
        (json!([{"name": "a", "exactly": one("gpu", "ExactCount", json!(2))}]), vec![("gpu", "2")]),
        (json!([{"name": "a", "exactly": {"deviceClassName": "gpu"}}]), vec![("gpu", "1")]),
        (json!([{"name": "a", "exactly": one("gpu", "All", json!(null))}]), vec![("gpu", "32")]),
        (json!([{"name": "a", "exactly": one("gpu", "Some", json!(9))}]), vec![("gpu", "0")]),
        (
            json!([{"name": "a", "exactly": one("gpu", "ExactCount", json!(2))},
                {"name": "b", "exactly": one("gpu", "ExactCount", json!(3))}]),
            vec![("gpu", "5")],
        ),
        (
            json!([{"name": "a", "firstAvailable": [
                {"name": "x", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2},
                {"name": "y", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 4},
                {"name": "z", "deviceClassName": "nic", "allocationMode": "All"}]}]),
            vec![("gpu", "4"), ("nic", "32")],
        ),
    ] {
        let mut all = json!({"count/resourceclaims.resource.k8s.io": "1"});
        expected.iter().for_each(|(class, count)| all[devices(class)] = json!(count));
        let claim = json!({"metadata": {}, "spec": {"devices": {"requests": requests}}});
        let evaluator = Evaluator::of("resource.k8s.io", "resourceclaims").unwrap();
        let found = evaluator.usage_of_value(&claim, now()).unwrap();
        assert_eq!(serde_json::to_value(written(&found)).unwrap(), all, "{requests}");
    }
    let name = devices("gpu");
    assert_eq!(counted_kind(&name), Some(("resource.k8s.io", "resourceclaims")));
}

/// The cases of upstream's `TestPodEvaluatorMatchingScopes`, `Test_podMatchesScopeFunc` and those of claims.
#[test]
fn scopes_select_what_is_charged() {
    let scope = |name: &str| json!({"scopes": [name]});
    let select = |name: &str, operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": name, "operator": operator, "values": values}]}});
    let plain = json!({"containers": []});
    let asking = json!({"containers": [container(json!({"cpu": "1"}), json!({}))]});
    let short = json!({"containers": [], "activeDeadlineSeconds": 30});
    let high = json!({"containers": [], "priorityClassName": "high"});
    let term = json!([{"topologyKey": "k", "namespaceSelector": {}}]);
    let across = json!({"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let claim = json!({"volumeAttributesClassName": "fast"});
    let cases = [
        ("pods", json!({}), &plain, true),
        ("pods", scope("Terminating"), &short, true),
        ("pods", scope("Terminating"), &plain, false),
        ("pods", scope("NotTerminating"), &plain, true),
        ("pods", scope("BestEffort"), &plain, true),
        ("pods", scope("BestEffort"), &asking, false),
        ("pods", scope("NotBestEffort"), &asking, true),
        ("pods", json!({"scopes": ["NotBestEffort", "Terminating"]}), &asking, false),
        ("pods", scope("PriorityClass"), &high, true),
        ("pods", scope("PriorityClass"), &plain, false),
        ("pods", select("PriorityClass", "In", json!(["high", "low"])), &high, true),
        ("pods", select("PriorityClass", "In", json!(["low"])), &high, false),
        ("pods", select("PriorityClass", "NotIn", json!(["high"])), &high, false),
        ("pods", select("PriorityClass", "NotIn", json!(["high"])), &plain, true),
        ("pods", select("PriorityClass", "DoesNotExist", json!([])), &plain, true),
        ("pods", scope("CrossNamespacePodAffinity"), &across, true),
        ("pods", scope("CrossNamespacePodAffinity"), &plain, false),
        ("pods", scope("VolumeAttributesClass"), &plain, false),
        ("persistentvolumeclaims", scope("VolumeAttributesClass"), &claim, true),
        ("persistentvolumeclaims", select("VolumeAttributesClass", "In", json!(["slow"])), &claim, false),
        ("persistentvolumeclaims", scope("BestEffort"), &claim, false),
        ("services", scope("BestEffort"), &plain, false),
    ];
    for (kind, quota, spec, expected) in cases {
        let evaluator = Evaluator::of("", kind).unwrap();
        let object = json!({"metadata": {}, "spec": spec});
        let scopes = scopes_of(&serde_json::from_value(quota.clone()).unwrap());
        assert_eq!(
            evaluator.value_in_scopes(&object, &scopes).unwrap(),
            expected,
            "{kind} {spec} in {quota}"
        );
    }
}

/// What each evaluator answers for (upstream's `MatchingResources`).
#[test]
fn kinds_answer_for_their_names() {
    let names = [
        "pods",
        "count/pods",
        "requests.cpu",
        "limits.memory",
        "hugepages-2Mi",
        "requests.hugepages-2Mi",
        "requests.example.com/gpu",
        "example.com/gpu",
        "limits.example.com/gpu",
        "services",
        "count/services",
        "services.nodeports",
        "persistentvolumeclaims",
        "requests.storage",
        "gold.storageclass.storage.k8s.io/requests.storage",
        "secrets",
        "count/secrets",
        "count/deployments.apps",
        "count/resourceclaims.resource.k8s.io",
        "gpu.deviceclass.resource.k8s.io/devices",
    ];
    let cases = [
        (("", "pods"), &names[..7]),
        (("", "services"), &names[9..12]),
        (("", "persistentvolumeclaims"), &names[12..15]),
        (("", "secrets"), &names[15..17]),
        (("apps", "deployments"), &names[17..18]),
        (("resource.k8s.io", "resourceclaims"), &names[18..]),
    ];
    for ((group, plural), expected) in cases {
        let mut seen = Evaluator::of(group, plural).unwrap().matching(names);
        seen.sort_by_key(|name| names.iter().position(|known| known == name));
        assert_eq!(seen, expected, "{group}/{plural}");
    }
    assert_eq!(Evaluator::of("", "events"), None);
}
