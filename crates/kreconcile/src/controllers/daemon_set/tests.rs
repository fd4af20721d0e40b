//! Tables of upstream's rules, in the words of `daemon_controller.go` and `update.go`.

use super::*;

fn now() -> Timestamp {
    "2030-01-02T00:00:00Z".parse().unwrap()
}

/// A pod from its node and letters: `r`eady, `f`ailed, `s`ucceeded, `g`oing, `o`f another revision, `u`nbound.
fn pod(name: &str, node: &str, letters: &str) -> Arc<Pod> {
    let has = |letter| letters.contains(letter);
    let phase = match () {
        () if has('f') => "Failed",
        () if has('s') => "Succeeded",
        () if has('u') => "Pending",
        () => "Running",
    };
    let ready = has('r')
        .then(|| json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}]));
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}});
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2030-01-01T00:00:00Z",
                "deletionTimestamp": has('g').then_some("2030-01-01T00:00:00Z"),
                "labels": {decide::HASH_LABEL: if has('o') { "old" } else { "new" }}},
            "spec": {"containers": [], "nodeName": (!has('u')).then_some(node), "affinity": affinity},
            "status": {"phase": phase, "conditions": ready},
        }))
        .unwrap(),
    )
}

fn words(decision: &Decision) -> String {
    let ended = decision.ended.iter().map(|(pod, node)| format!("end:{}@{node}", pod_state::name(pod)));
    let create = decision.create.iter().map(|node| format!("+{node}"));
    let delete = decision.delete.iter().map(|pod| format!("-{}", pod_state::name(pod)));
    create.chain(delete).chain(ended).collect::<Vec<_>>().join(" ")
}

/// Nodes a, b, c …, each with a letter: `y`es, `s`tay (pods may stay but none is made), `n`o.
fn check(strategy: Value, nodes: &str, pods: &[(&str, &str, &str)], expected: &str) {
    let set: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "agent", "uid": "D"},
        "spec": {"selector": {}, "template": {}, "updateStrategy": strategy},
    }))
    .unwrap();
    let place = |(node, letter): (char, char)| Place {
        node: node.to_string(),
        should_run: letter == 'y',
        may_stay: letter != 'n',
    };
    let places: Vec<_> = ('a'..).zip(nodes.chars()).map(place).collect();
    let pods: Vec<_> = pods.iter().map(|(name, node, letters)| pod(name, node, letters)).collect();
    let view = View { set: &set, places: &places, pods: &pods, hash: "new", now: now() };
    let mut decision = decide::manage(&view);
    if decision.is_empty() {
        decision = decide::roll(&view);
    }
    assert_eq!(words(&decision), expected, "{strategy} {nodes} {pods:?}");
}

fn unavailable(count: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": count, "maxSurge": 0}})
}

fn surge(count: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": count}})
}

#[test]
fn each_node_that_should_has_one_pod() {
    let one = || unavailable(json!(1));
    check(one(), "yny", &[], "+a +c");
    check(one(), "ys", &[("1", "a", "r")], "");
    check(one(), "ysn", &[("1", "a", "r"), ("2", "b", "r"), ("3", "c", "r")], "-3");
    check(one(), "y", &[("1", "a", "r"), ("2", "a", "r")], "-2");
    check(one(), "y", &[("1", "a", "u"), ("2", "a", "r")], "-1");
    check(one(), "y", &[("1", "a", "f")], "end:1@a");
    check(one(), "y", &[("1", "a", "s")], "end:1@a");
    check(one(), "y", &[("1", "a", "fg")], "+a");
    check(one(), "y", &[("1", "a", "rg")], "");
    // The pod of a node that has gone: one that waits is deleted, one that runs is left to the garbage collection.
    check(one(), "y", &[("1", "a", "r"), ("2", "z", "u"), ("3", "z", "r")], "-2");
}

#[test]
fn updates_keep_to_the_most_that_may_be_unavailable() {
    let all = |letters| [("1", "a", letters), ("2", "b", letters), ("3", "c", letters), ("4", "d", letters)];
    check(unavailable(json!(1)), "yyyy", &all("ro"), "-1");
    check(unavailable(json!("50%")), "yyyy", &all("ro"), "-1 -2");
    check(json!({"type": "OnDelete"}), "yyyy", &all("ro"), "");
    // What is not available is replaced at once.
    check(unavailable(json!(1)), "yyy", &[("1", "a", "o"), ("2", "b", "o"), ("3", "c", "ro")], "-1 -2");
    check(unavailable(json!(1)), "yy", &[("1", "a", ""), ("2", "b", "ro")], "");
    check(unavailable(json!(0)), "yy", &[("1", "a", "ro"), ("2", "b", "ro")], "-1");
}

#[test]
fn a_surge_brings_the_new_pod_up_before_the_old_one_goes() {
    let all = |letters| [("1", "a", letters), ("2", "b", letters), ("3", "c", letters)];
    check(surge(json!(1)), "yyy", &all("ro"), "+a");
    check(surge(json!("50%")), "yyy", &all("ro"), "+a +b");
    check(surge(json!(1)), "yy", &[("1", "a", "ro"), ("2", "a", ""), ("3", "b", "ro")], "");
    check(surge(json!(1)), "yy", &[("1", "a", "ro"), ("2", "a", "r"), ("3", "b", "ro")], "-1");
    check(surge(json!(1)), "yy", &[("1", "a", "o"), ("2", "a", ""), ("3", "b", "ro")], "-1");
    check(surge(json!(1)), "y", &[("1", "a", "g")], "+a");
    check(surge(json!(1)), "yn", &[("1", "a", "r"), ("2", "b", "r")], "-2");
    check(surge(json!(1)), "ys", &[("1", "a", "r"), ("2", "b", "ro")], "-2");
}

#[test]
fn taints_keep_pods_away_or_send_them_off() {
    let taint =
        |key: &str, effect: &str| Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
    let plain = tolerations(&PodSpec::default());
    let host = tolerations(&PodSpec { host_network: Some(true), ..PodSpec::default() });
    let cases = [
        (vec![], &plain, (true, true)),
        (vec![taint("node.kubernetes.io/unreachable", "NoExecute")], &plain, (true, true)),
        (vec![taint("node.kubernetes.io/unschedulable", "NoSchedule")], &plain, (true, true)),
        (vec![taint("node.kubernetes.io/network-unavailable", "NoSchedule")], &plain, (false, true)),
        (vec![taint("node.kubernetes.io/network-unavailable", "NoSchedule")], &host, (true, true)),
        (vec![taint("mine", "PreferNoSchedule")], &plain, (true, true)),
        (vec![taint("mine", "NoSchedule")], &plain, (false, true)),
        (vec![taint("mine", "NoExecute")], &plain, (false, false)),
    ];
    for (taints, tolerations, expected) in cases {
        assert_eq!(tolerated(&taints, tolerations), expected, "{taints:?}");
    }
    let said = PodSpec { tolerations: Some(plain.clone()), ..PodSpec::default() };
    assert_eq!(tolerations(&said), plain, "nothing is said twice");
}

#[test]
fn the_status_counts_nodes() {
    let set: DaemonSet = serde_json::from_value(json!({
        "metadata": {"generation": 3}, "spec": {"selector": {}, "template": {}}, "status": {"currentNumberScheduled": 0,
            "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0, "observedGeneration": 2},
    }))
    .unwrap();
    let place = |node: &str, should_run| Place { node: node.into(), should_run, may_stay: true };
    let places = [place("a", true), place("b", true), place("c", true), place("d", false)];
    let pods = [pod("1", "a", "r"), pod("2", "b", "o"), pod("3", "d", "r")];
    let view = View { set: &set, places: &places, pods: &pods, hash: "new", now: now() };
    let expected = |generation: i64| {
        json!({"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberMisscheduled": 1, "numberReady": 1,
            "numberAvailable": 1, "numberUnavailable": 2, "updatedNumberScheduled": 1, "observedGeneration": generation})
    };
    for (observed, generation) in [(true, 3), (false, 2)] {
        let status = serde_json::to_value(decide::status(&view, 0, observed)).unwrap();
        assert_eq!(status, expected(generation));
    }
}
