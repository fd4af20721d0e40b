//! One case a line for plug-ins whose rules are short, and the cases that upstream's tests begin with for those whose rules
//! are long (`tests/differential.rs` asks more of these). The expected results are those of the test files named at each
//! table, below `pkg/scheduler/framework/plugins`.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ContainerRestartRule, PodSpec};
use ksched::{
    PodInfo, ProfileBuilder, QueuedPod, Snapshot, Verdict,
    build::{NodeBuilder, PodBuilder, node, pod},
    decide,
    groups::Groups,
    plugin::{FilterPlugin, PreEnqueue, PreFilter, QueueSort},
    plugins::{
        InterPodAffinity, NodeDeclaredFeatures, NodeName, NodeUnschedulable, PodTopologySpread, PrioritySort,
        SchedulingGates, TaintToleration,
    },
};
use serde_json::{Value, from_value, json};
use tokio::time::Instant;

/// The names of the nodes that pass, and what is said of the others, each once.
fn filtered(profile: ProfileBuilder, snapshot: &Snapshot, pod: &PodInfo) -> (Vec<String>, Vec<String>) {
    let decision = decide(&profile.build().unwrap(), snapshot, pod);
    let (mut passing, mut reasons) = (Vec::new(), Vec::new());
    for (name, verdict) in decision.verdicts() {
        match verdict {
            ksched::NodeVerdict::Feasible(_) => passing.push(name.to_string()),
            ksched::NodeVerdict::Rejected { rejection, .. } => reasons.push(rejection.message()),
            ksched::NodeVerdict::NotAsked => {}
        }
    }
    passing.sort();
    reasons.sort();
    reasons.dedup();
    (passing, reasons)
}

fn only(filter: Arc<dyn FilterPlugin>) -> ProfileBuilder {
    ProfileBuilder::empty().filter(filter)
}

fn with<P: FilterPlugin + PreFilter>(plugin: P) -> ProfileBuilder {
    let plugin = Arc::new(plugin);
    ProfileBuilder::empty().pre_filter(Arc::clone(&plugin) as Arc<_>).filter(plugin)
}

fn check_one(profile: ProfileBuilder, node: NodeBuilder, pod: PodBuilder, reason: Option<&str>, why: &str) {
    let mut snapshot = Snapshot::new();
    snapshot.set_node(node.info());
    let (passing, reasons) = filtered(profile, &snapshot, &pod.info());
    assert_eq!(passing.len(), usize::from(reason.is_none()), "{why}");
    assert_eq!(reasons, reason.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{why}");
}

/// `nodename/node_name_test.go`.
#[test]
fn node_name() {
    let reason = "node(s) didn't match the requested node name";
    let wants = |name: &str| {
        let name = name.to_owned();
        pod("p").edit(move |pod| pod.spec.get_or_insert_default().node_name = Some(name))
    };
    for (pod, on, expected, why) in [
        (pod("p"), "foo", None, "no host specified"),
        (wants("foo"), "foo", None, "host matches"),
        (wants("bar"), "foo", Some(reason), "host doesn't match"),
    ] {
        check_one(only(Arc::new(NodeName)), node(on), pod, expected, why);
    }
}

/// `nodeunschedulable/node_unschedulable_test.go`.
#[test]
fn node_unschedulable() {
    let reason = "node(s) were unschedulable";
    let tolerates = || pod("p").toleration("node.kubernetes.io/unschedulable", "Exists", "", "NoSchedule");
    for (pod, node, expected, why) in [
        (pod("p"), node("a").unschedulable(), Some(reason), "does not schedule pod to unschedulable node"),
        (pod("p"), node("a"), None, "schedules pod to normal node"),
        (tolerates(), node("a").unschedulable(), None, "schedules pod with toleration to unschedulable node"),
    ] {
        check_one(only(Arc::new(NodeUnschedulable)), node, pod, expected, why);
    }
}

/// `nodedeclaredfeatures/nodedeclaredfeatures_test.go`, and the features' own tests.
#[test]
fn node_declared_features() {
    let reason = "node(s) didn't match Pod's required features";
    let able = |features: &[&str]| {
        let features = features.iter().map(|name| (*name).to_owned()).collect();
        node("a").edit(|node| node.status.get_or_insert_default().declared_features = Some(features))
    };
    let spec = |edit: fn(&mut PodSpec)| pod("p").edit(move |pod| edit(pod.spec.get_or_insert_default()));
    let restarts = || {
        spec(|spec| {
            let rule =
                ContainerRestartRule { action: "RestartAllContainers".to_owned(), ..Default::default() };
            spec.containers[0].restart_policy_rules = Some(vec![rule]);
        })
    };
    let users = |host: bool, own: bool| {
        pod("p").edit(move |pod| {
            let spec = pod.spec.get_or_insert_default();
            (spec.host_network, spec.host_users) = (Some(host), Some(!own));
        })
    };
    let (all, hosts) = ("RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport");
    for (pod, on, expected, why) in [
        (pod("p"), able(&[]), None, "nothing needed"),
        (restarts(), able(&[all]), None, "declared"),
        (restarts(), able(&[hosts, "Another"]), Some(reason), "another is declared"),
        (restarts(), node("a"), Some(reason), "nothing is declared"),
        (users(true, true), able(&[hosts]), None, "declared"),
        (users(true, true), able(&[all]), Some(reason), "not declared"),
        (users(true, false), able(&[]), None, "the host's users"),
        (users(false, true), able(&[]), None, "a network of its own"),
    ] {
        check_one(with(NodeDeclaredFeatures), on, pod, expected, why);
    }
}

/// `tainttoleration/taint_toleration_test.go`, `TestTaintTolerationFilter`.
#[test]
fn taint_toleration() {
    let reason = "node(s) had untolerated taint(s)";
    let dedicated = |value: &str| node("a").taint("dedicated", value, "NoSchedule");
    let foo = |effect: &str| node("a").taint("foo", "bar", effect);
    for (pod, node, expected, why) in [
        (pod("p"), dedicated("user1"), Some(reason), "no tolerations against a tainted node"),
        (
            pod("p").toleration("dedicated", "Equal", "user1", "NoSchedule"),
            dedicated("user1"),
            None,
            "tolerated",
        ),
        (
            pod("p").toleration("dedicated", "Equal", "user2", "NoSchedule"),
            dedicated("user1"),
            Some(reason),
            "a toleration of another value",
        ),
        (
            pod("p").toleration("foo", "Exists", "", "NoSchedule"),
            foo("NoSchedule"),
            None,
            "Exists in any value",
        ),
        (
            pod("p").toleration("foo", "Equal", "bar", "PreferNoSchedule"),
            foo("NoSchedule"),
            Some(reason),
            "key and value match, the effect does not",
        ),
        (pod("p").toleration("foo", "Equal", "bar", ""), foo("NoSchedule"), None, "no effect is any effect"),
        (pod("p"), foo("PreferNoSchedule"), None, "a preference keeps nobody away"),
        (
            pod("p").toleration("dedicated", "Equal", "user2", "NoSchedule").toleration(
                "foo",
                "Exists",
                "",
                "NoSchedule",
            ),
            dedicated("user2").taint("foo", "bar", "NoSchedule"),
            None,
            "two taints, both tolerated",
        ),
    ] {
        check_one(only(Arc::new(TaintToleration)), node, pod, expected, why);
    }
}

/// `schedulinggates/scheduling_gates_test.go`, `TestPreEnqueue`.
#[test]
fn scheduling_gates() {
    for (pod, expected) in [
        (pod("p"), Verdict::Pass),
        (pod("p").gate("foo").gate("bar"), Verdict::unresolvable("waiting for scheduling gates: [foo bar]")),
    ] {
        assert_eq!(SchedulingGates.pre_enqueue(&pod.info(), &Groups::default()), expected);
    }
}

/// `queuesort/priority_sort_test.go`, `TestLess`.
#[test]
fn priority_sort() {
    let start = Instant::now();
    let (early, late) = (start, start + Duration::from_secs(1));
    let queued =
        |priority: i32, since: Instant| QueuedPod::new(Arc::new(pod("p").priority(priority).info()), since);
    for (one, two, expected, why) in [
        (queued(10, early), queued(100, early), Ordering::Greater, "the priority of the first is lower"),
        (queued(100, early), queued(10, early), Ordering::Less, "the priority of the first is higher"),
        (queued(10, early), queued(10, late), Ordering::Less, "equal priorities, the first came earlier"),
        (queued(10, late), queued(10, early), Ordering::Greater, "equal priorities, the second came earlier"),
        (queued(100, late), queued(10, early), Ordering::Less, "the time matters among equals only"),
        (queued(10, early), queued(10, early), Ordering::Equal, "the same"),
    ] {
        assert_eq!(PrioritySort.compare(&one, &two), expected, "{why}");
    }
}

fn labelled(builder: PodBuilder, labels: &[(&str, &str)]) -> PodBuilder {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    builder.edit(move |pod| pod.metadata.labels = Some(labels))
}

fn with_affinity(builder: PodBuilder, affinity: Value) -> PodBuilder {
    builder.edit(move |pod| pod.spec.get_or_insert_default().affinity = from_value(affinity).unwrap())
}

fn required(kind: &str, terms: &[Value]) -> Value {
    json!({ kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms} })
}

fn term(operator: &str, values: &[&str]) -> Value {
    json!({"topologyKey": "region", "labelSelector": {"matchExpressions": [
        {"key": "service", "operator": operator, "values": values}
    ]}})
}

/// `interpodaffinity/filtering_test.go`, `TestRequiredAffinitySingleNode`: one node with the label `region=r1`, and a pod of
/// the service `securityscan` on it.
#[test]
fn inter_pod_affinity() {
    let (affinity, anti) = ("podAffinity", "podAntiAffinity");
    let rules = Some("node(s) didn't match pod affinity rules");
    let anti_rules = Some("node(s) didn't match pod anti-affinity rules");
    let existing_rules = Some("node(s) didn't satisfy existing pods anti-affinity rules");
    let scan = || term("In", &["securityscan", "value2"]);
    let plain = || labelled(pod("there"), &[("service", "securityscan")]);
    let hostile = || with_affinity(plain(), required(anti, &[scan()]));
    let elsewhere = || plain().edit(|pod| pod.metadata.namespace = Some("ns".to_owned()));
    let asks = |affinity: Value| with_affinity(labelled(pod("p"), &[("service", "other")]), affinity);
    let both = || {
        json!({
            affinity: required(affinity, &[scan()])[affinity],
            anti: required(anti, &[scan()])[anti],
        })
    };
    for (asked, there, expected, why) in [
        (pod("p"), plain(), None, "no rules"),
        (asks(required(affinity, &[scan()])), plain(), None, "In matches the pod there"),
        (asks(required(affinity, &[term("NotIn", &["securityscan3"])])), plain(), None, "NotIn matches it"),
        (asks(required(affinity, &[scan()])), elsewhere(), rules, "it is in another namespace"),
        (asks(required(affinity, &[term("In", &["antivirusscan"])])), plain(), rules, "it does not match"),
        (asks(required(affinity, &[scan(), term("In", &["none"])])), plain(), rules, "one of two terms"),
        (asks(required(anti, &[term("In", &["antivirusscan"])])), plain(), None, "anti-affinity to others"),
        (asks(required(anti, &[scan()])), plain(), anti_rules, "anti-affinity to the pod there"),
        (asks(both()), plain(), anti_rules, "affinity and anti-affinity to the same pod"),
        (
            labelled(pod("p"), &[("service", "securityscan")]),
            hostile(),
            existing_rules,
            "the anti-affinity of the pod there",
        ),
        (asks(json!({})), hostile(), None, "the pod there is against others"),
        (
            with_affinity(
                labelled(pod("p"), &[("service", "new")]),
                required(affinity, &[term("In", &["new"])]),
            ),
            plain(),
            None,
            "the first of its kind matches itself",
        ),
    ] {
        let mut snapshot = Snapshot::new();
        snapshot.set_node(node("machine1").label("region", "r1").info());
        snapshot.place(&Arc::new(there.info()), "machine1");
        let (passing, reasons) = filtered(with(InterPodAffinity::default()), &snapshot, &asked.info());
        assert_eq!(passing.len(), usize::from(expected.is_none()), "{why}: {reasons:?}");
        assert_eq!(reasons, expected.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{why}");
    }
}

/// `podtopologyspread/filtering_test.go`, `TestSingleConstraint`: two nodes in each of two zones.
#[test]
fn pod_topology_spread() {
    let hosts = |skew: i32| {
        json!({"maxSkew": skew, "topologyKey": "node", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchExpressions": [{"key": "foo", "operator": "Exists"}]}})
    };
    let zones = |skew: i32| {
        let mut constraint = hosts(skew);
        constraint["topologyKey"] = json!("zone");
        constraint
    };
    let all = || vec!["node-a", "node-b", "node-x", "node-y"];
    let reason = "node(s) didn't match pod topology spread constraints";
    for (there, constraint, expected, why) in [
        (vec![], zones(1), all(), "no existing pods"),
        (
            vec![("a", 2), ("b", 1), ("y", 3)],
            zones(1),
            all(),
            "pods spread across zones as 3/3, all nodes fit",
        ),
        (vec![("a", 1), ("y", 2)], zones(1), vec!["node-a", "node-b"], "zones as 1/2, zone1 fits"),
        (vec![("a", 2), ("b", 1), ("y", 3)], hosts(1), vec!["node-x"], "nodes as 2/1/0/3, only node-x fits"),
        (
            vec![("a", 2), ("b", 1), ("y", 3)],
            hosts(2),
            vec!["node-b", "node-x"],
            "nodes as 2/1/0/3, maxSkew is 2",
        ),
    ] {
        let mut snapshot = Snapshot::new();
        for (name, zone) in [("a", "zone1"), ("b", "zone1"), ("x", "zone2"), ("y", "zone2")] {
            let name = format!("node-{name}");
            snapshot.set_node(node(&name).label("zone", zone).label("node", &name).info());
        }
        for (on, count) in there {
            for number in 0..count {
                let there = labelled(pod(&format!("p-{on}{number}")), &[("foo", "")]).info();
                snapshot.place(&Arc::new(there), &format!("node-{on}"));
            }
        }
        let asked = labelled(pod("p"), &[("foo", "")]).edit(move |pod| {
            pod.spec.get_or_insert_default().topology_spread_constraints =
                from_value(json!([constraint])).unwrap();
        });
        let (passing, reasons) = filtered(with(PodTopologySpread::default()), &snapshot, &asked.info());
        assert_eq!(passing, expected, "{why}");
        assert!(reasons.iter().all(|known| known == reason), "{why}: {reasons:?}");
    }
}
