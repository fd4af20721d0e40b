//! The priority levels and flow schemas that every cluster begins with (`apis/flowcontrol/bootstrap` of the API server).

use serde_json::{Value, json};

/// A level's name, shares, percentage that may be lent, and queues with their hand size; `None` rejects instead.
type LevelRow = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: &[LevelRow] = &[
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}, "spec": spec,
    })
}

fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LEVELS.iter().map(|(name, shares, lendable, queues)| {
        let response = match queues {
            Some((queues, hand)) => {
                json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}})
            }
            None => json!({"type": "Reject"}),
        };
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}});
        object("PriorityLevelConfiguration", name, &spec)
    });
    std::iter::once(object("PriorityLevelConfiguration", "exempt", &exempt)).chain(limited).collect()
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn resource(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = json!(true);
    }
    rule
}

fn schema(name: &str, level: &str, precedence: u32, by: &str, rules: &Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rules],
    });
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, &spec)
}

fn schemas() -> Vec<Value> {
    let everything = |subjects: &Value| {
        json!({"subjects": subjects, "resourceRules": [resource(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
    };
    let everybody = groups(&["system:unauthenticated", "system:authenticated"]);
    let nodes = groups(&["system:nodes"]);
    let system_accounts =
        json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let leaders =
        json!([user("system:kube-controller-manager"), user("system:kube-scheduler"), system_accounts]);
    let leases = |verbs: &[&str]| resource(verbs, "coordination.k8s.io", &["leases"], false);
    let probes = json!({"subjects": everybody, "nonResourceRules": [
        {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let elections = json!({"subjects": leaders, "resourceRules": [leases(&["get", "create", "update"])]});
    let node_health = json!({"subjects": nodes, "resourceRules": [
        resource(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]});
    vec![
        schema("exempt", "exempt", 1, "", &everything(&groups(&["system:masters"]))),
        schema("probes", "exempt", 2, "", &probes),
        schema("system-leader-election", "leader-election", 100, "ByUser", &elections),
        schema("system-node-high", "node-high", 400, "ByUser", &node_health),
        schema("system-nodes", "system", 500, "ByUser", &everything(&nodes)),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            &everything(&json!([user("system:kube-controller-manager")])),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            "ByNamespace",
            &everything(&json!([user("system:kube-scheduler")])),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            &everything(&json!([system_accounts])),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            &everything(&groups(&["system:serviceaccounts"])),
        ),
        schema("global-default", "global-default", 9900, "ByUser", &everything(&everybody)),
        schema("catch-all", "catch-all", 10000, "ByUser", &everything(&everybody)),
    ]
}

/// The levels and the schemas.
pub(crate) fn objects() -> (Vec<Value>, Vec<Value>) {
    (levels(), schemas())
}
